//! Worker threads: each runs its share of the sessions on a runtime of its own.

use std::{
    io, iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::session::Session;

/// Sessions that wait for a worker at the most; accepting waits when there are more.
const QUEUE: usize = 1024;

/// The sending side of all workers.
pub struct Workers(Vec<Worker>);

struct Worker {
    queue: mpsc::Sender<Job>,
    /// Sessions that it has or that wait for it.
    load: Arc<AtomicUsize>,
}

struct Job {
    session: Session,
    load: Load,
}

impl Workers {
    /// Starts so many threads. Each goes on until `stop`, then for `grace` or until its last
    /// session has ended, and then cuts what is left. The receivers resolve when a thread ends.
    pub fn start(
        count: usize,
        stop: &CancellationToken,
        grace: Duration,
    ) -> io::Result<(Self, Vec<oneshot::Receiver<()>>)> {
        let mut workers = Vec::new();
        let mut ended = Vec::new();
        for number in 0..count {
            let (queue, jobs) = mpsc::channel(QUEUE);
            let (ending, end) = oneshot::channel();
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let stop = stop.clone();
            thread::Builder::new().name(format!("rolegate-data-{number}")).spawn(move || {
                runtime.block_on(work(jobs, stop, grace));
                // Cuts the sessions that are left.
                drop(runtime);
                drop(ending);
            })?;
            workers.push(Worker { queue, load: Arc::default() });
            ended.push(end);
        }
        Ok((Self(workers), ended))
    }

    /// Gives the session to the worker that has the fewest. Blocks while its queue is full.
    pub(super) fn take(&self, session: Session) {
        let load = |worker: &&Worker| worker.load.load(Ordering::Relaxed);
        if let Some(worker) = self.0.iter().min_by_key(load) {
            let load = Load::new(&worker.load);
            // After a stop there is no receiver; dropping the session closes it.
            let _ = worker.queue.blocking_send(Job { session, load });
        }
    }
}

async fn work(mut jobs: mpsc::Receiver<Job>, stop: CancellationToken, grace: Duration) {
    let sessions = TaskTracker::new();
    let start = |Job { session, load }| {
        sessions.spawn(async move {
            session.run().await;
            drop(load);
        });
    };
    while let Some(Some(job)) = stop.run_until_cancelled(jobs.recv()).await {
        start(job);
    }
    // Those that were accepted before the stop are sessions like the others.
    jobs.close();
    iter::from_fn(|| jobs.try_recv().ok()).for_each(start);
    sessions.close();
    let _ = timeout(grace, sessions.wait()).await;
}

/// One session's share of a worker's load.
struct Load(Arc<AtomicUsize>);

impl Load {
    fn new(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self(load.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
