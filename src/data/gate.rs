//! Lets clients in or not: counts them, and keeps to the rules of their listener.

use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZero,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::warn;

use crate::{
    metrics::{Refusal, RefusalMetrics, Untold},
    topology::Admission,
};

/// What of an accept rate may come at once: this share of a second.
const BURST: Duration = Duration::from_millis(100);

/// How many are in.
#[derive(Debug, Default)]
struct Count {
    open: AtomicUsize,
    empty: Notify,
}

impl Count {
    /// Adds one, unless there are `max`.
    fn enter(&self, max: usize) -> bool {
        // Never beyond, so that the last one who leaves sees that it is the last.
        let more = |open| (open < max).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn leave(&self) {
        if self.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.empty.notify_one();
        }
    }

    /// Waits until nobody is in. For one task only.
    async fn wait_empty(&self) {
        while self.open.load(Ordering::Relaxed) > 0 {
            self.empty.notified().await;
        }
    }
}

/// The clients of all listeners.
#[derive(Debug)]
pub struct Total {
    count: Count,
    max: AtomicUsize,
}

impl Total {
    /// Lets so many in.
    pub fn new(max: usize) -> Self {
        Self { count: Count::default(), max: AtomicUsize::new(max) }
    }

    /// Waits until nobody is in. For one task only.
    pub async fn wait_empty(&self) {
        self.count.wait_empty().await;
    }

    /// From now on so many; those who are in stay.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }
}

/// The way into one listener, which also those take who come after a change of its rules.
#[derive(Debug)]
pub struct Gate {
    listener: Arc<str>,
    total: Arc<Total>,
    count: Count,
    closed: AtomicBool,
    /// How many there are from each address. Only counted where that is limited.
    sources: Mutex<HashMap<IpAddr, u32>>,
    opened: Instant,
    /// Before this the accept rate lets nobody in, in microseconds since it was opened.
    next: AtomicU64,
    refusals: Untold,
    metrics: RefusalMetrics,
}

impl Gate {
    /// Nobody is in.
    pub fn new(listener: Arc<str>, total: Arc<Total>, metrics: RefusalMetrics) -> Self {
        Self {
            listener,
            total,
            count: Count::default(),
            closed: AtomicBool::new(false),
            sources: Mutex::default(),
            opened: Instant::now(),
            next: AtomicU64::new(0),
            refusals: Untold::default(),
            metrics,
        }
    }

    /// Takes a client in, who has to [`Self::leave`].
    pub(super) fn enter(&self, rules: &Admission) -> Result<(), Refusal> {
        let max = rules.max_connections.map_or(usize::MAX, as_size);
        if !self.count.enter(max) {
            return Err(Refusal::ListenerMaxConnections);
        }
        if !self.total.count.enter(self.total.max.load(Ordering::Relaxed)) {
            self.count.leave();
            return Err(Refusal::MaxConnections);
        }
        Ok(())
    }

    pub(super) fn leave(&self) {
        self.total.count.leave();
        self.count.leave();
    }

    /// Waits until nobody is in. For one task only.
    pub async fn wait_empty(&self) {
        self.count.wait_empty().await;
    }

    /// Clients may wait for a backend no longer. Those who do are let go with the next wake of the
    /// hold.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether a client may come from this address. If it is counted there, which the answer tells,
    /// it has to [`Self::leave_source`].
    pub(super) fn enter_source(&self, source: IpAddr, rules: &Admission) -> Result<bool, Refusal> {
        if !rules.permits(source) {
            return Err(Refusal::Denied);
        }
        let Some(max) = rules.max_connections_per_source else {
            return Ok(false);
        };
        let mut sources = lock(&self.sources);
        let count = sources.entry(source.to_canonical()).or_default();
        if *count >= max.get() {
            return Err(Refusal::SourceMaxConnections);
        }
        *count += 1;
        Ok(true)
    }

    pub(super) fn leave_source(&self, source: IpAddr) {
        let source = source.to_canonical();
        let mut sources = lock(&self.sources);
        if let Some(count) = sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&source);
            }
        }
    }

    /// Waits until the accept rate lets one more in.
    pub(super) async fn turn(&self, rate: NonZero<u32>) {
        let gap = micros(Duration::from_secs(1)) / u64::from(rate.get());
        let now = micros(self.opened.elapsed());
        // Time that nobody used is kept for a burst.
        let earliest = now.saturating_sub(micros(BURST));
        let mine = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            Some(next.max(earliest) + gap)
        });
        let mine = mine.unwrap_or_default().max(earliest);
        if mine > now {
            sleep_until(self.opened + Duration::from_micros(mine)).await;
        }
    }

    /// Counts a client that may not come in, and tells of it now and then.
    pub(super) fn refuse(&self, refusal: Refusal, source: Option<IpAddr>) {
        self.metrics.refused(refusal);
        let Some(refused) = self.refusals.tell() else {
            return;
        };
        let client = source.map_or_else(|| "unix".to_owned(), |ip| ip.to_canonical().to_string());
        let listener = &*self.listener;
        let (reason, advice) = (refusal.as_str(), refusal.advice());
        warn!(listener, client, refused, reason, advice, "client refused");
    }
}

fn as_size(count: NonZero<u32>) -> usize {
    usize::try_from(count.get()).unwrap_or(usize::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
