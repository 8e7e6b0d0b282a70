//! Worker threads: each runs its share of the sessions on a runtime of its own.

use std::{io, sync::Arc, thread, time::Duration};

use prometheus::IntGauge;
use tokio::{
    runtime, select,
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{
    listener::Listener,
    pipe::{self, Pipe},
    session::{Parked, Session},
    spare::Spares,
};

/// Sessions that wait for a worker at the most.
const QUEUE: usize = 1024;

/// Pipes for bulk that a worker has use for. Each has two descriptors.
pub const MAX_PIPES: usize = pipe::MAX;

/// The sending side of all workers.
#[derive(Clone, Debug)]
pub struct Workers(Arc<[Arc<Worker>]>);

#[derive(Debug)]
struct Worker {
    number: usize,
    queue: mpsc::Sender<Job>,
    /// Those that it has or that wait for it.
    sessions: IntGauge,
    /// Told when one has ended.
    ended: Notify,
}

impl Worker {
    fn add_load(self: &Arc<Self>) -> Load {
        self.sessions.inc();
        Load(self.clone())
    }

    /// Waits until it has no session any more.
    async fn wait_empty(&self) {
        while self.sessions.get() > 0 {
            self.ended.notified().await;
        }
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
    /// then for `grace` or until its last session has ended, and then cuts what is left. Each has so
    /// many `pipes` at the most. The receivers resolve when a thread ends.
    pub fn start(
        sessions: Vec<IntGauge>,
        stop: &CancellationToken,
        grace: Duration,
        pipes: usize,
    ) -> io::Result<(Self, Vec<oneshot::Receiver<()>>)> {
        let (workers, queues): (Vec<_>, Vec<_>) = sessions
            .into_iter()
            .enumerate()
            .map(|(number, sessions)| {
                let (queue, jobs) = mpsc::channel(QUEUE);
                (Arc::new(Worker { number, queue, sessions, ended: Notify::new() }), jobs)
            })
            .unzip();
        let workers = Self(workers.into());
        let mut ended = Vec::new();
        for (worker, jobs) in workers.0.iter().zip(queues) {
            let (ending, end) = oneshot::channel();
            // What other threads wake goes first: sessions whose lease is revoked, before any other
            // moves a byte and before new ones are accepted.
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .global_queue_interval(1)
                .build()?;
            let number = worker.number;
            let here = Here { worker: worker.clone(), workers: workers.clone() };
            let stop = stop.clone();
            thread::Builder::new().name(format!("rolegate-data-{number}")).spawn(move || {
                Pipe::allow(pipes);
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
    worker: Arc<Worker>,
    workers: Workers,
}

impl Here {
    /// Runs the session here, or gives it to a worker that has fewer.
    pub(super) fn take(&self, session: Session) {
        let own = &self.worker;
        let other = self.workers.0.iter().min_by_key(|worker| worker.sessions.get());
        let fewer = other.filter(|other| other.sessions.get() < own.sessions.get());
        // One that is too busy to take more gets none.
        match fewer.and_then(|other| Some((other.queue.try_reserve().ok()?, other.add_load()))) {
            None => serve(session, own.add_load()),
            Some((place, load)) => {
                if let Some(session) = session.park() {
                    place.send(Job::Serve(session, load));
                }
            }
        }
    }
}

fn resume(session: Parked, load: Load) {
    if let Some(session) = session.resume() {
        serve(session, load);
    }
}

#[expect(clippy::disallowed_methods, reason = "its load tracks it, which costs no memory")]
fn serve(session: Session, load: Load) {
    tokio::spawn(session.run(load));
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
            Some(Job::Keep(spares)) => drop(tasks.spawn(spares.keep(here.worker.number))),
            Some(Job::Serve(session, load)) => resume(session, load),
            None => return,
        }
    }
    tasks.shutdown().await;
    // Those that were accepted before the stop are sessions like the others.
    jobs.close();
    while let Some(job) = jobs.recv().await {
        if let Job::Serve(session, load) = job {
            resume(session, load);
        }
    }
    let _ = timeout(grace, here.worker.wait_empty()).await;
}

/// One session's share of a worker's load.
#[derive(Debug)]
pub(super) struct Load(Arc<Worker>);

impl Load {
    /// The worker's number.
    pub(super) fn worker(&self) -> usize {
        self.0.number
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.sessions.dec();
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "as sessions are")]
    fn a_session_that_panics_takes_no_other_with_it() {
        let sessions = IntGauge::new("sessions", "Sessions.").unwrap();
        let (queue, _) = mpsc::channel(1);
        let ended = Notify::new();
        let worker = Arc::new(Worker { number: 0, queue, sessions: sessions.clone(), ended });
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let load = worker.add_load();
            tokio::spawn(async move {
                let _load = load;
                panic!("as it should");
            });
            let load = worker.add_load();
            let other = tokio::spawn(async move {
                tokio::task::yield_now().await;
                drop(load);
                "has gone on"
            });
            assert_eq!(other.await.unwrap(), "has gone on");
            worker.wait_empty().await;
        });
        assert_eq!(sessions.get(), 0, "the load of both is given back");
    }
}
