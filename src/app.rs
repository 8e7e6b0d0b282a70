//! Wires everything from a [`Config`]: what starts in which order, what stops in which, and what a new
//! config changes meanwhile.

mod budget;
mod drain;
mod plan;
mod reload;
mod running;

use std::{io, num::NonZero, path::Path, sync::Arc, thread};

use tokio::{sync::oneshot, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{Level, info, warn};

use self::{
    plan::Plan,
    reload::Reloader,
    running::{Base, Running},
};
use crate::{
    config::{Bind, Config, DEFAULT_MAX_CONNECTIONS},
    data::{gate::Total, hold::Holds, worker::Workers},
    lifecycle::{self, Asked, Signals},
    metrics::Metrics,
    net,
};

/// Why the process cannot start or go on. Each ends it with exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// An address cannot be listened on.
    #[error("cannot listen on {bind} ({key}): {error}; free the address or change the config")]
    Bind {
        /// As the config has it.
        bind: Bind,
        /// The config's key.
        key: String,
        /// The system's reason.
        error: io::Error,
    },
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

/// Runs the config of this file until a signal asks for the end. `set_level` changes what is logged.
/// Must be called on the control plane's runtime.
pub async fn run(config: Config, file: &Path, set_level: impl Fn(Level)) -> Result<(), AppError> {
    let mut signals = Signals::install()?;
    let count = match config.workers {
        Some(count) => count.get().try_into().unwrap_or(usize::MAX),
        // Knows the affinity and the cgroup's quota, too.
        None => thread::available_parallelism().map_or(1, NonZero::get),
    };

    // Everything that can be refused is asked for before anything runs.
    if let Some(name) = &config.congestion {
        net::try_congestion(name)
            .map_err(|error| AppError::Congestion { name: name.clone(), error })?;
    }
    let limit = net::raise_descriptor_limit();
    let congestion = config.congestion.clone();
    let plan = Plan::new(config.clone(), None, count, limit, congestion.as_ref())?;
    warn_of_few(&plan, limit);
    let metrics = Arc::new(Metrics::new(count)?);

    let stop = CancellationToken::new();
    let mut data = JoinSet::new();
    let mut watch = |name: String, ended: oneshot::Receiver<()>| {
        data.spawn(async move {
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
    let hold_end = holds.start(workers.clone(), hold_stop.clone())?;
    watch("the holding thread".to_owned(), hold_end);

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
    let mut running = Running::new(base, draining.clone());
    running.apply(plan).await?;
    let mut reloader = Reloader::new(config, file, limit);
    lifecycle::prefer_this_thread();
    info!(version = env!("CARGO_PKG_VERSION"), workers = count, "rolegate runs");

    let signal = loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop(signal) => break signal,
                Asked::Reload => {
                    // The log tells how it went.
                    let _ = reloader.reload(&mut running, &set_level).await?;
                }
            },
            () = reloader.secrets_changed() => {
                reloader.renew_secrets(&mut running, &set_level).await?;
            }
            Some(end) = running.ends.join_next() => running.note_end(end)?,
            Some(ended) = data.join_next() => return Err(ended_early(ended)),
        }
    };
    let config = reloader.config();
    let (grace, drain) = (config.shutdown_timeout, config.drain);
    info!(
        signal,
        shutdown_timeout_seconds = grace.as_secs_f64(),
        "stopping: no new clients, sessions may end"
    );
    draining.cancel();
    let delay = sleep(drain.delay);
    tokio::pin!(delay);
    let mut is_delayed = true;
    let ending = async {
        drain::all(&workers, &total, drain.pace, grace).await;
        stop.cancel();
        std::future::pending::<()>().await;
    };
    tokio::pin!(ending);
    loop {
        tokio::select! {
            () = &mut delay, if is_delayed => {
                is_delayed = false;
                running.stop_listening();
                hold_stop.cancel();
                returns.wake();
            }
            () = &mut ending, if !is_delayed => {}
            asked = signals.next() => {
                if let Asked::Stop(signal) = asked {
                    warn!(signal, "stopping at once: second signal");
                    return Ok(());
                }
            }
            Some(end) = running.ends.join_next() => running.note_end(end)?,
            ended = data.join_next() => match ended {
                Some(ended) if is_delayed => return Err(ended_early(ended)),
                Some(_) => {}
                None => {
                    info!("stopped");
                    return Ok(());
                }
            },
        }
    }
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
