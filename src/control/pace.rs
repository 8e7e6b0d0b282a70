//! How often a pool is checked: by need.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// One check in so many comes early, so that checks of many pools spread by themselves.
const EARLY: u32 = 50;

/// Checks start on a grid of this many points an interval, shared by all pools: those that share a
/// point share one waking of the thread.
const POINTS: u32 = 20;

/// Intervals below have no grid: they are for doubt, when a millisecond matters.
const MIN_GRID: Duration = Duration::from_millis(50);

/// The zero of the grid.
static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What the monitor tells one probe.
#[derive(Debug)]
pub(super) struct Pace {
    micros: AtomicU64,
    now: Notify,
}

impl Pace {
    /// One check an interval.
    pub(super) fn new(interval: Duration) -> Self {
        Self { micros: AtomicU64::new(micros(interval)), now: Notify::new() }
    }

    /// Another interval, which holds from the next check on.
    pub(super) fn set(&self, interval: Duration) {
        self.micros.store(micros(interval), Ordering::Relaxed);
    }

    /// Asks for a check that begins from now on.
    pub(super) fn check_now(&self) {
        self.now.notify_one();
    }

    /// Waits until a check is asked for.
    pub(super) async fn asked(&self) {
        self.now.notified().await;
    }

    /// When the next check starts: at the latest one interval after this one did.
    pub(super) fn next(&self, started: Instant) -> Instant {
        let interval = Duration::from_micros(self.micros.load(Ordering::Relaxed));
        let next = started + interval;
        if interval < MIN_GRID {
            return next;
        }
        let step = micros(interval / POINTS);
        let past = micros(next.saturating_duration_since(*ZERO)) % step;
        let early = if fastrand::u32(..EARLY) == 0 { step } else { 0 };
        next - Duration::from_micros(past + early)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_check_is_never_later_than_an_interval_and_never_much_earlier() {
        for millis in [1, 10, 49, 50, 100, 1000, 3_600_000] {
            let interval = Duration::from_millis(millis);
            let pace = Pace::new(interval);
            for n in 0..1000 {
                let started = *ZERO + Duration::from_micros(n * 12_345);
                let gap = pace.next(started) - started;
                assert!(
                    gap <= interval && gap >= interval.mul_f64(0.89),
                    "{gap:?} of {interval:?}"
                );
            }
        }
    }
}
