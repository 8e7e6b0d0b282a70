//! Connections to the served backend that wait for clients: new ones that nobody has used.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prometheus::IntGauge;
use tokio::{
    select,
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::reach::Reach;
use crate::{
    net::tls::Stream,
    topology::{Lease, Served, View},
};

/// How long one waits at the most. Redis closes idle connections after its `timeout`, in seconds;
/// one that it has closed before is noticed and not used.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Before the next try when a connection could not be made, or the backend has closed one that
/// waited, as it does at its `maxclients`. Whether it lives is for the checks to find out.
const PAUSE: Duration = Duration::from_secs(5);

/// How often to look for connections that are too old, or that the backend has closed.
const LOOK: Duration = Duration::from_secs(1);

/// The spare connections of a pool, and how they are made.
#[derive(Debug)]
pub struct Spares {
    view: watch::Receiver<Arc<View>>,
    connect_timeout: Duration,
    reach: Reach,
    /// By worker, each of which has its own.
    shelves: Vec<Shelf>,
    /// How many wait now.
    ready: IntGauge,
    /// When a new config brings others.
    stop: CancellationToken,
}

#[derive(Debug)]
struct Shelf {
    /// So many are to wait.
    size: usize,
    /// The oldest first.
    spares: Mutex<VecDeque<Spare>>,
    taken: Notify,
    /// A client found one that the backend had closed.
    found_closed: AtomicBool,
}

#[derive(Debug)]
struct Spare {
    backend: Stream,
    lease: Lease,
    since: Instant,
}

impl Spares {
    /// `count` in all, spread over the workers. `ready` shows how many wait.
    pub fn new(
        count: usize,
        workers: usize,
        view: watch::Receiver<Arc<View>>,
        connect_timeout: Duration,
        reach: Reach,
        ready: IntGauge,
    ) -> Self {
        let shelf = |worker| Shelf {
            size: count / workers + usize::from(worker < count % workers),
            spares: Mutex::default(),
            taken: Notify::new(),
            found_closed: AtomicBool::new(false),
        };
        let shelves = (0..workers).map(shelf).collect();
        let stop = CancellationToken::new();
        Self { view, connect_timeout, reach, shelves, ready, stop }
    }

    /// Gives up those that wait, and makes no more.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// One that was made under this lease and still is as the backend left it; `None` if there is
    /// none.
    pub(super) fn take(&self, worker: usize, lease: &Lease) -> Option<Stream> {
        let shelf = &self.shelves[worker];
        if shelf.size == 0 {
            return None;
        }
        let mut spares = shelf.lock();
        while let Some(mut spare) = spares.pop_front() {
            self.ready.dec();
            shelf.taken.notify_one();
            if !spare.backend.is_untouched() {
                shelf.found_closed.store(true, Ordering::Relaxed);
            } else if spare.lease.is(lease) {
                return Some(spare.backend);
            }
        }
        None
    }

    /// Whether this worker has to keep any.
    pub(super) fn has_shelf(&self, worker: usize) -> bool {
        self.shelves[worker].size > 0
    }

    /// Keeps the worker's shelf full, and everything on it fit for use, until the stop.
    pub(super) async fn keep(self: Arc<Self>, worker: usize) {
        let shelf = &self.shelves[worker];
        select! {
            biased;
            () = self.stop.cancelled() => {}
            () = self.follow(shelf) => {}
        }
        self.discard(shelf, |_| true);
    }

    /// Until the pool is not watched any more.
    async fn follow(&self, shelf: &Shelf) {
        let mut view = self.view.clone();
        loop {
            let now = view.borrow_and_update().clone();
            if let Some(served) = now.verdict.served() {
                select! {
                    biased;
                    () = served.lease.revoked() => {}
                    () = self.fill(shelf, served) => {}
                }
                self.discard(shelf, |_| true);
                shelf.found_closed.store(false, Ordering::Relaxed);
            }
            if view.changed().await.is_err() {
                return;
            }
        }
    }

    async fn fill(&self, shelf: &Shelf, served: &Served) {
        loop {
            self.discard(shelf, |spare| spare.since.elapsed() >= MAX_AGE);
            let closed = self.discard(shelf, |spare| !spare.backend.is_untouched());
            if shelf.found_closed.swap(false, Ordering::Relaxed) || closed > 0 {
                sleep(PAUSE).await;
                continue;
            }
            if shelf.size > shelf.lock().len() {
                let connecting = self.reach.connect(served);
                match timeout(self.connect_timeout, connecting).await {
                    Ok(Ok(backend)) => {
                        let (lease, since) = (served.lease.clone(), Instant::now());
                        shelf.lock().push_back(Spare { backend, lease, since });
                        self.ready.inc();
                    }
                    _ => sleep(PAUSE).await,
                }
                continue;
            }
            let _ = timeout(LOOK, shelf.taken.notified()).await;
        }
    }

    /// Tells how many there were.
    fn discard(&self, shelf: &Shelf, is_useless: impl Fn(&mut Spare) -> bool) -> i64 {
        let mut spares = shelf.lock();
        let before = spares.len();
        spares.retain_mut(|spare| !is_useless(spare));
        let count = i64::try_from(before - spares.len()).unwrap_or(i64::MAX);
        self.ready.sub(count);
        count
    }
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Spare>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
