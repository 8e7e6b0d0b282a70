//! Worker threads: each runs its share of the sessions on a runtime of its own.

use std::{io, sync::Arc, thread, time::Duration};

use prometheus::IntGauge;
use tokio::{
    runtime, select,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::error;

use super::{
    listener::Listener,
    session::{Parked, Session},
    spare::Spares,
};

/// Sessions that wait for a worker at the most.
const QUEUE: usize = 1024;

/// The sending side of all workers.
#[derive(Clone, Debug)]
pub struct Workers(Arc<[Worker]>);

#[derive(Debug)]
struct Worker {
    number: usize,
    queue: mpsc::Sender<Job>,
    /// Those that it has or that wait for it.
    sessions: IntGauge,
}

impl Worker {
    fn add_load(&self) -> Load {
        self.sessions.inc();
        Load { worker: self.number, sessions: self.sessions.clone() }
    }
}

#[derive(Debug)]
enum Job {
    Accept(Listener),
    Keep(Arc<Spares>),
    Serve(Parked, Load),
}

impl Workers {
    /// Starts a thread for each of these gauges, which show its sessions. Each goes on until `stop`,
    /// then for `grace` or until its last session has ended, and then cuts what is left. The
    /// receivers resolve when a thread ends.
    pub fn start(
        sessions: Vec<IntGauge>,
        stop: &CancellationToken,
        grace: Duration,
    ) -> io::Result<(Self, Vec<oneshot::Receiver<()>>)> {
        let (workers, queues): (Vec<_>, Vec<_>) = sessions
            .into_iter()
            .enumerate()
            .map(|(number, sessions)| {
                let (queue, jobs) = mpsc::channel(QUEUE);
                (Worker { number, queue, sessions }, jobs)
            })
            .unzip();
        let workers = Self(workers.into());
        let mut ended = Vec::new();
        for (number, jobs) in queues.into_iter().enumerate() {
            let (ending, end) = oneshot::channel();
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let here = Here { number, workers: workers.clone(), sessions: TaskTracker::new() };
            let stop = stop.clone();
            thread::Builder::new().name(format!("rolegate-data-{number}")).spawn(move || {
                runtime.block_on(work(here, jobs, stop, grace));
                // Cuts the sessions that are left.
                drop(runtime);
                drop(ending);
            })?;
            ended.push(end);
        }
        Ok((workers, ended))
    }

    /// Lets each listener accept on one of the workers, in turn.
    pub async fn accept(&self, listeners: Vec<Listener>) {
        for (listener, worker) in listeners.into_iter().zip(self.0.iter().cycle()) {
            // A worker without a receiver has ended, which ends the process.
            let _ = worker.queue.send(Job::Accept(listener)).await;
        }
    }

    /// Lets each worker keep its spare connections.
    pub async fn keep(&self, spares: &Arc<Spares>) {
        for worker in self.0.iter().filter(|worker| spares.has_shelf(worker.number)) {
            let _ = worker.queue.send(Job::Keep(spares.clone())).await;
        }
    }

    /// Gives the session to the worker that has the fewest. Blocks while its queue is full.
    pub(super) fn take(&self, session: Parked) {
        if let Some(worker) = self.0.iter().min_by_key(|worker| worker.sessions.get()) {
            // After a stop there is no receiver; dropping the session closes it.
            let _ = worker.queue.blocking_send(Job::Serve(session, worker.add_load()));
        }
    }
}

/// The worker on whose thread this is used.
#[derive(Clone, Debug)]
pub(super) struct Here {
    number: usize,
    workers: Workers,
    sessions: TaskTracker,
}

impl Here {
    /// Runs the session here, or gives it to a worker that has fewer.
    pub(super) fn take(&self, session: Session) {
        let Workers(workers) = &self.workers;
        let own = &workers[self.number];
        let other = workers.iter().min_by_key(|worker| worker.sessions.get());
        let fewer = other.filter(|other| other.sessions.get() < own.sessions.get());
        // One that is too busy to take more gets none.
        match fewer.and_then(|other| Some((other.queue.try_reserve().ok()?, other.add_load()))) {
            None => self.serve(session, own.add_load()),
            Some((place, load)) => {
                if let Some(session) = session.park() {
                    place.send(Job::Serve(session, load));
                }
            }
        }
    }

    fn resume(&self, session: Parked, load: Load) {
        if let Some(session) = session.resume() {
            self.serve(session, load);
        }
    }

    fn serve(&self, session: Session, load: Load) {
        self.sessions.spawn(session.run(load));
    }
}

async fn work(here: Here, mut jobs: mpsc::Receiver<Job>, stop: CancellationToken, grace: Duration) {
    let mut tasks = JoinSet::new();
    loop {
        let job = select! {
            () = stop.cancelled() => break,
            job = jobs.recv() => job,
            Some(_) = tasks.join_next() => None,
        };
        match job {
            Some(Job::Accept(listener)) => match listener.register() {
                Ok(listener) => drop(tasks.spawn(listener.run(here.clone()))),
                Err(error) => return error!(error = error.to_string(), "cannot wait for clients"),
            },
            Some(Job::Keep(spares)) => drop(tasks.spawn(spares.keep(here.number))),
            Some(Job::Serve(session, load)) => here.resume(session, load),
            None => return,
        }
    }
    tasks.shutdown().await;
    // Those that were accepted before the stop are sessions like the others.
    jobs.close();
    while let Ok(job) = jobs.try_recv() {
        if let Job::Serve(session, load) = job {
            here.resume(session, load);
        }
    }
    here.sessions.close();
    let _ = timeout(grace, here.sessions.wait()).await;
}

/// One session's share of a worker's load.
#[derive(Debug)]
pub(super) struct Load {
    worker: usize,
    sessions: IntGauge,
}

impl Load {
    /// The worker's number.
    pub(super) fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.sessions.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_panics_takes_no_other_with_it() {
        let sessions = IntGauge::new("sessions", "Sessions.").unwrap();
        let worker = Worker { number: 0, queue: mpsc::channel(1).0, sessions: sessions.clone() };
        let tracker = TaskTracker::new();
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let load = worker.add_load();
            tracker.spawn(async move {
                let _load = load;
                panic!("as it should");
            });
            let load = worker.add_load();
            let other = tracker.spawn(async move {
                tokio::task::yield_now().await;
                drop(load);
                "has gone on"
            });
            assert_eq!(other.await.unwrap(), "has gone on");
            tracker.close();
            tracker.wait().await;
        });
        assert_eq!(sessions.get(), 0, "the load of both is given back");
    }
}
