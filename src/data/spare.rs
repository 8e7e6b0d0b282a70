//! Connections to the served backend that wait for clients: new ones that nobody has used.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus::IntGauge;
use tokio::{
    net::TcpStream,
    select,
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    net::{self, Tuning},
    topology::{Lease, Served, View},
};

/// How long one waits at the most. Redis closes idle connections after its `timeout`, in seconds;
/// one that it has closed before is noticed and not used.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Before the next try when a connection could not be made. Whether the backend lives is for the
/// checks to find out.
const PAUSE: Duration = Duration::from_secs(1);

/// The spare connections of a pool, and how they are made.
#[derive(Debug)]
pub struct Spares {
    view: watch::Receiver<Arc<View>>,
    connect_timeout: Duration,
    tuning: Tuning,
    /// By worker, each of which has its own.
    shelves: Vec<Shelf>,
    /// How many wait now.
    ready: IntGauge,
}

#[derive(Debug)]
struct Shelf {
    /// So many are to wait.
    size: usize,
    /// The oldest first.
    spares: Mutex<VecDeque<Spare>>,
    taken: Notify,
}

#[derive(Debug)]
struct Spare {
    backend: TcpStream,
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
        tuning: Tuning,
        ready: IntGauge,
    ) -> Self {
        let shelf = |worker| Shelf {
            size: count / workers + usize::from(worker < count % workers),
            spares: Mutex::default(),
            taken: Notify::new(),
        };
        let shelves = (0..workers).map(shelf).collect();
        Self { view, connect_timeout, tuning, shelves, ready }
    }

    /// One that was made under this lease and still is as the backend left it; `None` if there is
    /// none.
    pub(super) fn take(&self, worker: usize, lease: &Lease) -> Option<TcpStream> {
        let shelf = &self.shelves[worker];
        if shelf.size == 0 {
            return None;
        }
        let mut spares = shelf.lock();
        while let Some(spare) = spares.pop_front() {
            self.ready.dec();
            shelf.taken.notify_one();
            if spare.lease.is(lease) && net::is_untouched(&spare.backend) {
                return Some(spare.backend);
            }
        }
        None
    }

    /// Whether this worker has to keep any.
    pub(super) fn has_shelf(&self, worker: usize) -> bool {
        self.shelves[worker].size > 0
    }

    /// Keeps the worker's shelf full, and everything on it fit for use.
    pub(super) async fn keep(self: Arc<Self>, worker: usize) {
        let shelf = &self.shelves[worker];
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
            }
            if view.changed().await.is_err() {
                return;
            }
        }
    }

    async fn fill(&self, shelf: &Shelf, served: &Served) {
        loop {
            self.discard(shelf, |spare| spare.since.elapsed() >= MAX_AGE);
            let missing = shelf.size > shelf.lock().len();
            if missing {
                let connecting = net::connect(served.address, &self.tuning);
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
            let first = shelf.lock().front().map_or_else(Instant::now, |spare| spare.since);
            select! {
                () = shelf.taken.notified() => {}
                () = sleep_until(first + MAX_AGE) => {}
            }
        }
    }

    fn discard(&self, shelf: &Shelf, is_useless: impl Fn(&Spare) -> bool) {
        let mut spares = shelf.lock();
        while spares.front().is_some_and(&is_useless) {
            spares.pop_front();
            self.ready.dec();
        }
    }
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Spare>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
