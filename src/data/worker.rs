//! Worker threads: each runs its share of the sessions on a runtime of its own.

use std::{
    future::pending,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use prometheus::IntGauge;
use slab::Slab;
use tokio::{
    runtime, select,
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
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
pub struct Workers {
    all: Arc<[Arc<Worker>]>,
    /// The one that gets the next listening socket.
    next: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Worker {
    number: usize,
    queue: mpsc::Sender<Job>,
    /// Those that it has or that wait for it.
    sessions: IntGauge,
    /// Those that it runs.
    running: Mutex<Slab<Running>>,
}

/// A session's task, and the place of its listener.
#[derive(Debug)]
struct Running {
    task: AbortHandle,
    listener: usize,
}

impl Worker {
    fn add_load(self: &Arc<Self>) -> Load {
        self.sessions.inc();
        Load { worker: self.clone(), place: NOWHERE }
    }

    fn running(&self) -> MutexGuard<'_, Slab<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// and then cuts what is left. Each has so many `pipes` at the most. The receivers resolve when a
    /// thread ends.
    pub fn start(
        sessions: Vec<IntGauge>,
        stop: &CancellationToken,
        pipes: usize,
    ) -> io::Result<(Self, Vec<oneshot::Receiver<()>>)> {
        let (workers, queues): (Vec<_>, Vec<_>) = sessions
            .into_iter()
            .enumerate()
            .map(|(number, sessions)| {
                let (queue, jobs) = mpsc::channel(QUEUE);
                (Arc::new(Worker { number, queue, sessions, running: Mutex::default() }), jobs)
            })
            .unzip();
        let workers = Self { all: workers.into(), next: Arc::default() };
        let mut ended = Vec::new();
        for (worker, jobs) in workers.all.iter().zip(queues) {
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
                runtime.block_on(work(here, jobs, stop));
                // Cuts the sessions that are left.
                drop(runtime);
                drop(ending);
            })?;
            ended.push(end);
        }
        Ok((workers, ended))
    }

    /// Lets the listener accept on one of the workers, each of which gets one in turn.
    pub async fn accept(&self, listener: Listener) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let worker = &self.all[turn % self.all.len()];
        // A worker without a receiver has ended, which ends the process.
        let _ = worker.queue.send(Job::Accept(listener)).await;
    }

    /// How many sessions of the listener at this place run, or of all.
    pub fn running(&self, listener: Option<usize>) -> usize {
        self.tasks(listener).len()
    }

    /// Closes so many of them.
    pub fn close(&self, listener: Option<usize>, count: usize) {
        self.tasks(listener).iter().take(count).for_each(AbortHandle::abort);
    }

    fn tasks(&self, listener: Option<usize>) -> Vec<AbortHandle> {
        let is_meant = |running: &&Running| listener.is_none_or(|place| place == running.listener);
        let tasks = |worker: &Arc<Worker>| -> Vec<_> {
            let running = worker.running();
            running.iter().map(|(_, r)| r).filter(is_meant).map(|r| r.task.clone()).collect()
        };
        self.all.iter().flat_map(tasks).collect()
    }

    /// Lets each worker keep its spare connections.
    pub async fn keep(&self, spares: &Arc<Spares>) {
        for worker in self.all.iter().filter(|worker| spares.has_shelf(worker.number)) {
            let _ = worker.queue.send(Job::Keep(spares.clone())).await;
        }
    }

    /// Gives the session to the worker that has the fewest. Blocks while its queue is full.
    pub(super) fn take(&self, session: Parked) {
        if let Some(worker) = self.all.iter().min_by_key(|worker| worker.sessions.get()) {
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
    /// Takes a client that was accepted here.
    pub(super) fn welcome(&self, session: Session) {
        if !session.has_to_tell_origin() {
            return self.admit(session);
        }
        let here = self.clone();
        run(session.place(), self.worker.add_load(), |load| async move {
            let session = session.learn_origin().await;
            drop(load);
            if let Some(session) = session {
                here.admit(session);
            }
        });
    }

    /// Lets the client in whose address is known, unless the rules are against it.
    fn admit(&self, session: Session) {
        match session.admit() {
            Some(session) if session.is_served() => self.take(session),
            Some(session) => session.hold(),
            None => {}
        }
    }

    /// Runs the session here, or gives it to a worker that has fewer.
    fn take(&self, session: Session) {
        let own = &self.worker;
        let other = self.workers.all.iter().min_by_key(|worker| worker.sessions.get());
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

fn serve(session: Session, load: Load) {
    run(session.place(), load, |load| session.run(load));
}

/// Starts a task for a client of the listener at this place.
#[expect(clippy::disallowed_methods, reason = "its worker's slab tracks it")]
fn run<F>(listener: usize, mut load: Load, start: impl FnOnce(Load) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let worker = load.worker.clone();
    let mut running = worker.running();
    let entry = running.vacant_entry();
    load.place = u32::try_from(entry.key()).unwrap_or(NOWHERE);
    entry.insert(Running { task: tokio::spawn(start(load)).abort_handle(), listener });
}

async fn work(here: Here, mut jobs: mpsc::Receiver<Job>, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    loop {
        let job = select! {
            () = stop.cancelled() => return,
            job = jobs.recv() => job,
            () = panicked(&mut tasks) => return,
        };
        match job {
            Some(Job::Accept(listener)) => match listener.register() {
                Ok(listener) => drop(tasks.spawn(listener.run(here.clone()))),
                Err(error) => {
                    let error = error.to_string();
                    let advice = "the process ends; the system is out of memory or descriptors";
                    return error!(error, advice, "cannot wait for clients");
                }
            },
            Some(Job::Keep(spares)) => drop(tasks.spawn(spares.keep(here.worker.number))),
            Some(Job::Serve(session, load)) => resume(session, load),
            None => return,
        }
    }
}

/// Waits until one of the tasks panics. One that was told to end is no loss.
async fn panicked(tasks: &mut JoinSet<()>) {
    loop {
        match tasks.join_next().await {
            Some(Ok(())) => {}
            Some(Err(_)) => return,
            None => pending().await,
        }
    }
}

/// The place of a load that no session runs with yet.
const NOWHERE: u32 = u32::MAX;

/// One session's share of a worker's load.
#[derive(Debug)]
pub(super) struct Load {
    worker: Arc<Worker>,
    /// Where the worker has its task.
    place: u32,
}

impl Load {
    /// The worker's number.
    pub(super) fn worker(&self) -> usize {
        self.worker.number
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.worker.sessions.dec();
        if self.place != NOWHERE {
            let place = usize::try_from(self.place).unwrap_or(usize::MAX);
            drop(self.worker.running().try_remove(place));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        sync::watch,
        time::{Instant, timeout},
    };

    use super::*;
    use crate::{
        data::reach::Reach,
        net::Tuning,
        topology::{Reason, Rule, Verdict, View},
    };

    fn gauge() -> IntGauge {
        IntGauge::new("sessions", "Sessions.").unwrap()
    }

    /// A worker that does not run, and its jobs.
    fn worker(number: usize) -> (Arc<Worker>, mpsc::Receiver<Job>) {
        let (queue, jobs) = mpsc::channel(QUEUE);
        (Arc::new(Worker { number, queue, sessions: gauge(), running: Mutex::default() }), jobs)
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    /// Spare connections for so many workers. On any other the task that keeps them panics.
    fn spares(workers: usize) -> Arc<Spares> {
        let reason = Reason { rule: Rule::Starting, words: "".into() };
        let verdict = Verdict::Refuse(reason);
        let view = View { epoch: 0, since: Instant::now(), unserved_since: None, verdict };
        let (_, view) = watch::channel(Arc::new(view));
        let patience = Duration::from_secs(1);
        let reach = Reach { tuning: Tuning { patience, congestion: None }, tls: None };
        Arc::new(Spares::new(1, workers, view, patience, reach, gauge()))
    }

    #[test]
    fn a_task_that_panics_ends_its_worker_also_after_another_one_ended() {
        for others in [0, 1, 5] {
            let (worker, jobs) = worker(0);
            let here = Here {
                worker: worker.clone(),
                workers: Workers { all: [worker.clone()].into(), next: Arc::default() },
            };
            for _ in 0..others {
                let ended = spares(1);
                ended.stop();
                worker.queue.try_send(Job::Keep(ended)).unwrap();
            }
            worker.queue.try_send(Job::Keep(spares(0))).unwrap();
            block_on(async {
                let ends =
                    timeout(Duration::from_secs(5), work(here, jobs, CancellationToken::new()));
                assert!(ends.await.is_ok(), "it runs on without one of its tasks, {others}");
            });
        }
    }

    #[test]
    fn the_end_of_a_thread_is_told() {
        let (workers, ends) =
            Workers::start(vec![gauge(), gauge()], &CancellationToken::new(), 0).unwrap();
        for (worker, mut end) in workers.all.iter().zip(ends) {
            assert!(matches!(end.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
            worker.queue.blocking_send(Job::Keep(spares(0))).unwrap();
            let ended = async { timeout(Duration::from_secs(20), end).await.is_ok() };
            assert!(block_on(ended), "worker {}", worker.number);
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "as sessions are")]
    fn a_session_that_panics_takes_no_other_with_it() {
        let (worker, _jobs) = worker(0);
        let sessions = worker.sessions.clone();
        block_on(async {
            let load = worker.add_load();
            let broken = tokio::spawn(async move {
                let _load = load;
                panic!("as it should");
            });
            let load = worker.add_load();
            let other = tokio::spawn(async move {
                tokio::task::yield_now().await;
                drop(load);
                "has gone on"
            });
            assert!(broken.await.is_err_and(|error| error.is_panic()));
            assert_eq!(other.await.unwrap(), "has gone on");
        });
        assert_eq!(sessions.get(), 0, "the load of both is given back");
    }
}
