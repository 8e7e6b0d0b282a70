//! The end of the process: by a signal, or because another process has taken over.

use std::{future::pending, pin::Pin, process::Child, sync::Arc, thread, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Sleep, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{AppError, drain, ended_early, reload::Reloader, running::Running, upgrade::Successor};
use crate::{
    config::Config,
    data::{gate::Total, hold::Returns, worker::Workers},
    lifecycle::{Asked, Signals, Supervisor},
};

/// Why the process ends.
pub(super) enum Cause {
    /// This signal.
    Signal(&'static str),
    /// Another process accepts the clients.
    Successor(Successor),
}

/// The data plane.
pub(super) struct Data {
    pub(super) workers: Workers,
    pub(super) total: Arc<Total>,
    pub(super) returns: Returns,
    /// Cuts what is left.
    pub(super) stop: CancellationToken,
    /// Lets nobody wait any more.
    pub(super) hold_stop: CancellationToken,
    /// Resolve to their names.
    pub(super) threads: JoinSet<String>,
}

/// Lets sessions end, still supervised, and returns when none is left.
pub(super) async fn stop(
    cause: Cause,
    mut reloader: Reloader,
    mut running: Running,
    data: Data,
    mut signals: Signals,
    mut supervisor: Supervisor,
) -> Result<(), AppError> {
    let Data { workers, total, returns, stop, hold_stop, mut threads } = data;
    let config = &reloader.config().clone();
    let end = |grace: Duration| {
        let (workers, total, pace) = (workers.clone(), total.clone(), config.drain.pace);
        Box::pin(async move { drain::all(&workers, &total, pace, grace).await })
    };
    let mut is_stopping = false;
    let mut closing: Option<Pin<Box<Sleep>>> = None;
    let mut ending = None;
    match cause {
        Cause::Signal(signal) => {
            is_stopping = true;
            supervisor.stopping();
            tell_stop(signal, config);
            closing = Some(Box::pin(sleep(config.drain.delay)));
        }
        Cause::Successor(successor) => {
            let process = successor.process();
            let hard_stop_after_seconds = config.hard_stop_after.as_secs_f64();
            supervisor.hand_over(process);
            running.leave_state().await;
            running.sockets().for_each(|(_, socket)| socket.leave());
            running.stop_listening();
            running.stop_admin();
            // It becomes ready for systemd when that knows of it.
            reap(successor.confirm());
            info!(process, hard_stop_after_seconds, "handed over");
            ending = Some(end(config.hard_stop_after));
        }
    }
    loop {
        tokio::select! {
            () = resolved(&mut closing) => {
                closing = None;
                running.stop_listening();
                hold_stop.cancel();
                returns.wake();
                ending = Some(end(config.shutdown_timeout));
            }
            () = resolved(&mut ending) => {
                ending = None;
                stop.cancel();
                hold_stop.cancel();
                returns.wake();
            }
            asked = signals.next() => match asked {
                Asked::Stop(signal) if is_stopping => {
                    warn!(signal, "stopping at once: second signal");
                    return Ok(());
                }
                Asked::Stop(signal) => {
                    is_stopping = true;
                    tell_stop(signal, config);
                    closing = Some(Box::pin(sleep(Duration::ZERO)));
                }
                Asked::Reload | Asked::Upgrade => {
                    let advice = "send the signal to the process that accepts clients, if there is one";
                    warn!(advice, "ending: takes neither a reload nor an upgrade");
                }
            },
            () = reloader.secrets_changed() => reloader.renew_pools(&mut running).await,
            () = supervisor.keep_alive() => {}
            Some(end) = running.ends.join_next() => running.note_end(end)?,
            ended = threads.join_next() => match ended {
                Some(ended) if !hold_stop.is_cancelled() => return Err(ended_early(ended)),
                Some(_) => {}
                None => {
                    info!("stopped");
                    return Ok(());
                }
            },
        }
    }
}

/// Tells if the new process ends while this one goes on: nobody accepts clients then.
fn reap(mut child: Child) {
    let wait = move || {
        let process = child.id();
        if let Ok(status) = child.wait() {
            let (status, advice) =
                (status.to_string(), "start rolegate again: clients are refused");
            error!(process, status, advice, "the process that took over has ended");
        }
    };
    // It waits for nothing else. Without a thread, the system reaps when this process ends.
    let _ = thread::Builder::new().name("rolegate-reaper".to_owned()).spawn(wait);
}

fn tell_stop(signal: &str, config: &Config) {
    let grace = config.shutdown_timeout.as_secs_f64();
    info!(signal, shutdown_timeout_seconds = grace, "stopping: no new clients, sessions may end");
}

async fn resolved<F: Future<Output = ()>>(future: &mut Option<Pin<Box<F>>>) {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::{
        super::running::{Base, End},
        *,
    };
    use crate::{data::hold::Holds, metrics::Metrics};

    /// Nothing runs but what a test lets end.
    fn running() -> Running {
        let (workers, _) = Workers::start(Vec::new(), &CancellationToken::new(), 0).unwrap();
        let (_, returns) = Holds::new().unwrap();
        let base = Base {
            metrics: Arc::new(Metrics::new(0).unwrap()),
            total: Arc::new(Total::new(1)),
            workers,
            worker_count: 0,
            returns,
            congestion: None,
            state_dir: None,
        };
        let (orders, _) = mpsc::channel(1);
        Running::new(base, CancellationToken::new(), orders)
    }

    #[tokio::test]
    async fn a_part_that_is_lost_or_panics_ends_the_process_and_one_that_was_asked_does_not() {
        let mut running = running();
        running.ends.spawn(async { End::Asked });
        let end = running.ends.join_next().await.unwrap();
        assert!(running.note_end(end).is_ok());

        let name = "the monitor of pool p".to_owned();
        running.ends.spawn(async { End::Lost(name) });
        let end = running.ends.join_next().await.unwrap();
        let error = running.note_end(end).unwrap_err().to_string();
        assert!(error.contains("the monitor of pool p has ended"), "{error}");

        // As the admin's task would, or a monitor itself.
        running.ends.spawn(async { panic!("as it should") });
        let end = running.ends.join_next().await.unwrap();
        assert!(matches!(running.note_end(end), Err(AppError::Ended(_))));
    }
}
