//! Wires everything from a [`Config`]: what starts in which order, and what stops in which.

mod budget;

use std::{io, net::TcpListener, num::NonZero, sync::Arc, thread, time::Duration};

use tokio::{sync::oneshot, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::budget::Budget;
use crate::{
    admin,
    config::{Bind, Config, DEFAULT_MAX_CONNECTIONS, Pool},
    control::monitor::Monitor,
    data::{
        gate::{Gate, Total},
        hold::Holds,
        listener,
        session::Shared,
        spare::Spares,
        worker::Workers,
    },
    lifecycle::{self, Signals},
    metrics::Metrics,
    net::{self, Tuning},
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

/// Runs until a signal asks for the end. Must be called on the control plane's runtime.
pub async fn run(config: Config) -> Result<(), AppError> {
    let mut signals = Signals::install()?;
    let started = Instant::now();
    let draining = CancellationToken::new();
    let count = match config.workers {
        Some(count) => count.get().try_into().unwrap_or(usize::MAX),
        // Knows the affinity and the cgroup's quota, too.
        None => thread::available_parallelism().map_or(1, NonZero::get),
    };
    let metrics = Arc::new(Metrics::new(count)?);

    // Everything that can be refused is asked for before anything runs.
    let limit = net::raise_descriptor_limit();
    let budget = Budget::new(&config, count, limit)?;
    if config.max_connections.is_none() && budget.connections < DEFAULT_MAX_CONNECTIONS as usize {
        warn!(
            max_connections = budget.connections,
            open_files = limit,
            advice =
                "raise the limit of open files (LimitNOFILE, ulimit -Hn), or set max_connections",
            "fewer clients than usual may come at once"
        );
    }
    let total = Arc::new(Total::new(budget.connections));
    if let Some(name) = &config.congestion {
        net::try_congestion(name)
            .map_err(|error| AppError::Congestion { name: name.clone(), error })?;
    }
    let mut sockets = Vec::new();
    for listener in &config.listeners {
        let key = format!("listeners.{}.bind", listener.name);
        let bound: Result<Vec<_>, _> =
            listener.binds.iter().map(|bind| listen(*bind, &config, &key)).collect();
        sockets.push(bound?);
    }
    let admin_socket = match config.admin {
        Some(bind) => {
            Some(tokio::net::TcpListener::from_std(listen(bind, &config, "admin.bind")?)?)
        }
        None => None,
    };

    let mut control = JoinSet::new();
    let mut pools = Vec::new();
    for pool in &config.pools {
        let (monitor, published) = Monitor::new(pool, config.state_dir.as_deref(), &metrics);
        let name = format!("the monitor of pool {}", pool.name);
        control.spawn(async move {
            monitor.run().await;
            name
        });
        pools.push(published);
    }

    let mut data = JoinSet::new();
    let mut watch = |name: String, ended: oneshot::Receiver<()>| {
        data.spawn(async move {
            let _ = ended.await;
            name
        });
    };
    let loads = (0..count).map(|number| metrics.worker(number)).collect();
    let (workers, ends) = Workers::start(loads, &draining, config.shutdown_timeout, budget.pipes)?;
    for (number, end) in ends.into_iter().enumerate() {
        watch(format!("data worker {number}"), end);
    }

    let (holds, returns) = Holds::new(config.listeners.len())?;
    watch("the holding thread".to_owned(), holds.start(workers.clone(), draining.clone())?);
    for published in &pools {
        let (pool, mut view, returns) =
            (published.pool.clone(), published.view.clone(), returns.clone());
        control.spawn(async move {
            while view.changed().await.is_ok() {
                returns.wake();
            }
            format!("the monitor of pool {pool}")
        });
    }
    let mut spares = Vec::new();
    for (pool, published) in config.pools.iter().zip(&pools) {
        spares.push(Arc::new(Spares::new(
            pool.preconnect,
            count,
            published.view.clone(),
            pool.connect_timeout,
            tuning(pool, &config),
            metrics.preconnected(&pool.name),
        )));
    }
    let mut accepting = Vec::new();
    let mut statuses = Vec::new();
    for (place, (listener, sockets)) in config.listeners.iter().zip(sockets).enumerate() {
        let pool = &config.pools[listener.pool];
        let published = &pools[listener.pool];
        let shared = Arc::new(Shared {
            listener: listener.name.clone(),
            place,
            pool: pool.name.clone(),
            view: published.view.clone(),
            connect_timeout: pool.connect_timeout,
            tuning: tuning(pool, &config),
            lease_patience: pool.check.lease_patience(),
            spares: spares[listener.pool].clone(),
            gate: Arc::new(Gate::new(
                listener.name.clone(),
                total.clone(),
                metrics.refusals(&listener.name),
            )),
            admission: listener.admission.clone(),
            timeouts: listener.timeouts,
            hold: listener.hold,
            returns: returns.clone(),
            hints: published.hints.clone(),
            metrics: metrics.listener(&listener.name),
            connect_failures: (pool.backends.iter())
                .map(|backend| {
                    let failures = metrics.connect_failures(&pool.name, &backend.name);
                    (backend.name.clone(), failures)
                })
                .collect(),
        });
        let mut addresses = Vec::new();
        for socket in sockets {
            let address = socket.local_addr()?;
            let (listener, pool) = (&*listener.name, &*pool.name);
            info!(listener, %address, pool, "listening");
            addresses.push(address);
            accepting.push(listener::Listener::new(socket, shared.clone()));
        }
        statuses.push(admin::ListenerStatus {
            name: listener.name.clone(),
            pool: listener.pool,
            role: listener.role,
            hold: if listener.hold.dry_run { Duration::ZERO } else { listener.hold.timeout },
            addresses,
            metrics: metrics.listener(&listener.name),
        });
    }
    for spares in &spares {
        workers.keep(spares).await;
    }
    workers.accept(accepting).await;

    if let Some(socket) = admin_socket {
        info!(address = %socket.local_addr()?, "admin listening");
        let state = Arc::new(admin::State {
            started,
            metrics,
            pools,
            listeners: statuses,
            draining: draining.clone(),
        });
        control.spawn(async move {
            admin::run(socket, state).await;
            "the admin listener".to_owned()
        });
    }
    lifecycle::prefer_this_thread();
    info!(version = env!("CARGO_PKG_VERSION"), workers = count, "rolegate runs");

    let signal = tokio::select! {
        signal = signals.next() => signal,
        Some(ended) = control.join_next() => return Err(ended_early(ended)),
        Some(ended) = data.join_next() => return Err(ended_early(ended)),
    };
    let grace = config.shutdown_timeout.as_secs_f64();
    info!(signal, shutdown_timeout_seconds = grace, "stopping: no new clients, sessions may end");
    draining.cancel();
    returns.wake();
    tokio::select! {
        signal = signals.next() => warn!(signal, "stopping at once: second signal"),
        Some(ended) = control.join_next() => return Err(ended_early(ended)),
        () = async { while data.join_next().await.is_some() {} } => info!("stopped"),
    }
    Ok(())
}

fn listen(bind: Bind, config: &Config, key: &str) -> Result<TcpListener, AppError> {
    net::listen(bind, config.congestion.clone()).map_err(|error| AppError::Bind {
        bind,
        key: key.to_owned(),
        error,
    })
}

/// How sessions' connections to the pool's backends are treated.
fn tuning(pool: &Pool, config: &Config) -> Tuning {
    Tuning { patience: pool.check.patience(), congestion: config.congestion.clone() }
}

fn ended_early(ended: Result<String, tokio::task::JoinError>) -> AppError {
    AppError::Ended(ended.unwrap_or_else(|error| format!("a part of the control plane ({error})")))
}
