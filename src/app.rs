//! Wires everything from a [`Config`]: what starts in which order, what stops in which, and what a new
//! config changes meanwhile.

mod budget;
mod drain;
mod plan;
mod privileges;
mod reload;
mod running;
mod stop;
mod upgrade;

use std::{future::pending, io, num::NonZero, path::Path, sync::Arc, thread};

use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;
use tracing::{Level, error, info, warn};

pub use self::upgrade::Launch;
use self::{
    plan::Plan,
    reload::Reloader,
    running::{Base, Running},
    stop::{Cause, Data},
    upgrade::Successor,
};
use crate::{
    admin::{self, Order},
    config::{Bind, Config, DEFAULT_MAX_CONNECTIONS},
    control::survey::Survey,
    data::{gate::Total, hold::Holds, worker::Workers},
    lifecycle::{self, Asked, Signals, Supervisor, inherit::Inherited, privileges::CannotRunAs},
    metrics::Metrics,
    net,
};

/// Why the process cannot start or go on. Each ends it with exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// An address cannot be listened on.
    #[error("cannot listen on {bind} ({key}): {error}; {advice}")]
    Bind {
        /// As the config has it.
        bind: Bind,
        /// The config's key.
        key: String,
        /// The system's reason.
        error: io::Error,
        /// What to do.
        advice: String,
    },
    /// The process cannot go on as the user of the config.
    #[error("cannot run as {0}")]
    User(#[from] CannotRunAs),
    /// The system does not let this process have the congestion control of the config.
    #[error("cannot use congestion {name}: {error}; name another, or load its kernel module")]
    Congestion {
        /// As the config has it.
        name: Arc<str>,
        /// The system's reason.
        error: io::Error,
    },
    /// The limit of open files is too low for the clients of the config.
    #[error(
        "cannot serve {wanted} clients (max_connections): that takes {needed} open files, and this process may have \
         {limit}; raise its limit (LimitNOFILE, ulimit -Hn), or lower max_connections"
    )]
    Descriptors {
        /// Clients.
        wanted: u64,
        /// Open files for them and all else.
        needed: u64,
        /// The limit.
        limit: u64,
    },
    /// A pool is not served here, and another process serves it until this one takes over.
    #[error(
        "cannot take over: pool {pool} is not served here: {reason}; the process before goes on"
    )]
    NotServed {
        /// Its name.
        pool: Arc<str>,
        /// Why it is not.
        reason: Arc<str>,
    },
    /// A metric is defined twice.
    #[error("defect of rolegate: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The system gives no thread, descriptor or signal.
    #[error("cannot start: {0}; the process needs threads, descriptors and memory")]
    System(#[from] io::Error),
    /// A part without which the process would run on as a ghost has ended.
    #[error("defect of rolegate: {0} has ended; stopping rather than running on without it")]
    Ended(String),
}

/// Runs the config of this file until a signal asks for the end. `launch` starts the next process when
/// one is to take over, `inherited` is what this one was given, and `set_level` changes what is
/// logged. Must be called on the control plane's runtime.
pub async fn run(
    config: Config,
    file: &Path,
    launch: Launch,
    inherited: Inherited,
    set_level: impl Fn(Level),
) -> Result<(), AppError> {
    let mut signals = Signals::install()?;
    let count = match config.workers {
        Some(count) => count.get().try_into().unwrap_or(usize::MAX),
        // Knows the affinity and the cgroup's quota, too.
        None => thread::available_parallelism().map_or(1, NonZero::get),
    };

    for warning in &config.warnings {
        warn!(warning, "the config has something that is hardly meant");
    }
    // Everything that can be refused is asked for before anything runs.
    let run_as = privileges::successor_of_root(&config)?;
    if let Some(name) = &config.congestion {
        net::try_congestion(name)
            .map_err(|error| AppError::Congestion { name: name.clone(), error })?;
    }
    let limit = net::raise_descriptor_limit();
    let congestion = config.congestion.clone();
    let Inherited { sockets, unusable, predecessor } = inherited;
    for what in unusable {
        let advice = "whoever started this process passed it: a systemd socket unit names ListenStream= alone";
        warn!(what, advice, "a descriptor was passed that is no listening socket");
    }
    let sockets = plan::adopt(sockets, congestion.as_ref());
    let mut plan =
        Plan::new(config.clone(), None, Vec::new(), sockets, count, limit, congestion.as_ref())?;
    plan.takes_over = predecessor.is_some();
    warn_of_few(&plan, limit);
    let metrics = Arc::new(Metrics::new(count)?);

    let stop = CancellationToken::new();
    let mut threads = JoinSet::new();
    let mut watch = |name: String, ended: oneshot::Receiver<()>| {
        threads.spawn(async move {
            let _ = ended.await;
            name
        });
    };
    let loads = (0..count).map(|number| metrics.worker(number)).collect();
    let (workers, ends) = Workers::start(loads, &stop, plan.budget.pipes)?;
    for (number, end) in ends.into_iter().enumerate() {
        watch(format!("data worker {number}"), end);
    }
    let (holds, returns) = Holds::new()?;
    let hold_stop = CancellationToken::new();
    watch("the holding thread".to_owned(), holds.start(workers.clone(), hold_stop.clone())?);
    // These threads have no client yet, nor this one's preference, which only root may choose.
    if let Some(run_as) = run_as {
        privileges::give_up(&run_as, &plan, file, launch.program())?;
    }
    let total = Arc::new(Total::new(plan.budget.connections));
    let base = Base {
        metrics,
        total: total.clone(),
        workers: workers.clone(),
        worker_count: count,
        returns: returns.clone(),
        congestion,
        state_dir: config.state_dir.clone(),
    };
    let draining = CancellationToken::new();
    let (orders, mut ordered) = mpsc::channel(admin::QUEUE);
    let mut running = Running::new(base, draining.clone(), orders);
    running.apply(plan).await?;
    let mut supervisor = Supervisor::new();
    if let Some(predecessor) = predecessor {
        match spawn_blocking(|| predecessor.take_over()).await {
            Ok(Ok(())) => {
                running.sockets().for_each(|(_, socket)| socket.own());
                info!("took over from the process before");
            }
            _ => {
                let advice = "if it still runs (see ps), end it with SIGTERM";
                warn!(advice, "the process before does not answer; it may accept clients, too");
            }
        }
    }
    let mut reloader = Reloader::new(config, file, limit);
    lifecycle::prefer_this_thread();
    info!(version = env!("CARGO_PKG_VERSION"), workers = count, "rolegate runs");
    supervisor.ready();

    let mut successor: Option<Successor> = None;
    let cause = loop {
        let is_alone = successor.is_none();
        let taken_over = async {
            match &mut successor {
                Some(successor) => successor.ready().await,
                None => pending().await,
            }
        };
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop(signal) => break Cause::Signal(signal),
                Asked::Reload if successor.is_some() => {
                    let advice = "reload again when the new process has taken over";
                    warn!(advice, "not reloaded while a new process starts");
                }
                Asked::Reload => {
                    supervisor.reloading();
                    // The log tells how it went.
                    let _ = reloader.reload(&mut running, &set_level).await?;
                    supervisor.ready();
                }
                Asked::Upgrade if successor.is_some() => {
                    let advice = "wait: within 30 s the log says how that went";
                    warn!(advice, "a new process is starting already");
                }
                Asked::Upgrade => match Successor::start(&launch, running.named_sockets()) {
                    Ok(started) => {
                        info!(process = started.process(), "a new process is to take over");
                        successor = Some(started);
                    }
                    Err(error) => {
                        let error = error.to_string();
                        let advice = "this process goes on; is its program file in its place and executable?";
                        error!(error, advice, "cannot start a new process");
                    }
                },
            },
            ready = taken_over => if let Some(next) = successor.take() {
                match ready {
                    Ok(()) => break Cause::Successor(next),
                    Err(why) => {
                        let advice = "mend what the new process says above, and send SIGUSR2 again";
                        let process = next.process();
                        error!(process, why, advice, "not taken over; this process goes on");
                        next.give_up();
                    }
                }
            },
            // A new process that starts has read the config already.
            Some(order) = ordered.recv(), if is_alone => match order {
                Order::Reload(answer) => {
                    supervisor.reloading();
                    let result = reloader.reload(&mut running, &set_level).await?;
                    supervisor.ready();
                    // Whoever asked may be gone; the log tells, too.
                    let _ = answer.send(result);
                }
                Order::Drain { listener, answer } => {
                    let words = running.drain(&listener, reloader.config());
                    let _ = answer.send(Ok(words));
                }
            },
            () = reloader.secrets_changed() => {
                reloader.renew_secrets(&mut running, &set_level).await?;
            }
            () = supervisor.keep_alive() => {}
            Some(end) = running.ends.join_next() => running.note_end(end)?,
            Some(ended) = threads.join_next() => return Err(ended_early(ended)),
        }
    };
    // Who waits for an order learns that nothing comes of it.
    drop(ordered);
    if let Some(successor) = successor {
        successor.give_up();
    }
    if matches!(cause, Cause::Signal(_)) {
        draining.cancel();
    }
    let data = Data { workers, total, returns, stop, hold_stop, threads };
    stop::stop(cause, reloader, running, data, signals, supervisor).await
}

/// Asks every backend and Sentinel of the config once. Must be called on a runtime.
pub async fn survey(config: &Config) -> Survey {
    net::raise_descriptor_limit();
    Survey::take(&config.pools).await
}

/// Tells of a limit of open files that is too low for the usual number of clients.
fn warn_of_few(plan: &Plan, limit: u64) {
    let usual = usize::try_from(DEFAULT_MAX_CONNECTIONS).unwrap_or(usize::MAX);
    if plan.config.max_connections.is_none() && plan.budget.connections < usual {
        let advice =
            "raise the limit of open files (LimitNOFILE, ulimit -Hn), or set max_connections";
        let max_connections = plan.budget.connections;
        warn!(
            max_connections,
            open_files = limit,
            advice,
            "fewer clients than usual may come at once"
        );
    }
}

fn ended_early(ended: Result<String, tokio::task::JoinError>) -> AppError {
    AppError::Ended(ended.unwrap_or_else(|error| format!("a part of the control plane ({error})")))
}
