//! The handles that tasks keep: what one of them counts costs no lookup.

use std::{
    ops::AddAssign,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus::{Counter, Histogram, IntCounter, IntGauge};

use super::{CloseReason, Refusal};
use crate::topology::{Failure, Hint, Role, Rule};

/// See [`super::Metrics::pool`].
#[derive(Debug)]
pub struct PoolMetrics {
    /// Master changes.
    pub changes: IntCounter,
    /// Time with several masters.
    pub conflict_seconds: Counter,
    /// Time without a served backend.
    pub without_master_seconds: Counter,
    /// Refuted masters.
    pub lineage_refusals: IntCounter,
    pub(super) conflict: IntGauge,
    pub(super) verdicts: [IntGauge; Rule::ALL.len()],
    pub(super) failover_duration: Histogram,
    pub(super) hints: [IntCounter; Hint::ALL.len()],
}

impl PoolMetrics {
    /// Shows what clients get.
    pub fn set_verdict(&self, rule: Rule) {
        for (each, gauge) in Rule::ALL.iter().zip(&self.verdicts) {
            gauge.set((*each == rule).into());
        }
    }

    /// Shows whether more than one backend says that it is the master.
    pub fn set_conflict(&self, conflict: bool) {
        self.conflict.set(conflict.into());
    }

    /// Counts a change of master.
    pub fn failover_took(&self, took: Duration) {
        self.failover_duration.observe(took.as_secs_f64());
    }

    /// Counts a hint.
    pub fn hinted(&self, hint: Hint) {
        self.hints[hint as usize].inc();
    }
}

/// See [`super::Metrics::sentinels`].
#[derive(Debug)]
pub struct SentinelMetrics {
    /// Sentinels that name the served backend.
    pub agree: IntGauge,
    /// By place: whether it answers.
    pub up: Vec<IntGauge>,
}

/// See [`super::Metrics::backend`].
#[derive(Debug)]
pub struct BackendMetrics {
    pub(super) up: IntGauge,
    pub(super) roles: [IntGauge; Role::ALL.len()],
    pub(super) master: IntGauge,
    pub(super) check_duration: Histogram,
    pub(super) check_failures: [IntCounter; Failure::ALL.len()],
}

impl BackendMetrics {
    /// Counts a check that ended.
    pub fn check_ended(&self, took: Duration) {
        self.check_duration.observe(took.as_secs_f64());
    }

    /// Counts a failure.
    pub fn check_failed(&self, failure: Failure) {
        for (each, counter) in Failure::ALL.iter().zip(&self.check_failures) {
            if *each == failure {
                counter.inc();
            }
        }
    }

    /// Shows the proven role; `None` while the backend is down.
    pub fn set_role(&self, role: Option<Role>) {
        self.up.set(role.is_some().into());
        for (each, gauge) in Role::ALL.iter().zip(&self.roles) {
            gauge.set((role == Some(*each)).into());
        }
    }

    /// Shows whether the backend is served as the master.
    pub fn set_master(&self, master: bool) {
        self.master.set(master.into());
    }
}

/// Bytes that were read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    /// From clients.
    pub up: u64,
    /// From backends.
    pub down: u64,
}

impl AddAssign for Moved {
    fn add_assign(&mut self, other: Self) {
        self.up += other.up;
        self.down += other.down;
    }
}

/// What one worker has moved for one listener. Each has cache lines of its own, so that no worker
/// waits for another to count; [`super::Metrics::render`] adds them up.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    pub(super) up: AtomicU64,
    pub(super) down: AtomicU64,
}

impl Tally {
    /// Counts.
    pub fn add(&self, moved: Moved) {
        for (bytes, more) in [(&self.up, moved.up), (&self.down, moved.down)] {
            if more > 0 {
                bytes.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    fn moved(&self) -> Moved {
        let [up, down] = [&self.up, &self.down].map(|bytes| bytes.load(Ordering::Relaxed));
        Moved { up, down }
    }
}

/// What all workers have moved.
pub(super) fn moved(tallies: &[Tally]) -> Moved {
    let mut sum = Moved::default();
    tallies.iter().for_each(|tally| sum += tally.moved());
    sum
}

/// See [`super::Metrics::listener`].
#[derive(Debug)]
pub struct ListenerMetrics {
    /// Open sessions.
    pub sessions: IntGauge,
    /// Sessions ever.
    pub sessions_total: IntCounter,
    /// What each worker has moved, by its number.
    pub tallies: Arc<[Tally]>,
    /// Clients lost for want of descriptors or memory.
    pub accept_errors: IntCounter,
    /// Clients that wait.
    pub held: IntGauge,
    /// Clients that ever waited.
    pub held_total: IntCounter,
    /// Clients that waited in vain.
    pub hold_timeouts: IntCounter,
    pub(super) closed: [IntCounter; CloseReason::ALL.len()],
}

impl ListenerMetrics {
    /// What all workers have moved.
    pub fn moved(&self) -> Moved {
        moved(&self.tallies)
    }

    /// Counts a session that ended.
    pub fn session_closed(&self, reason: CloseReason) {
        for (each, counter) in CloseReason::ALL.iter().zip(&self.closed) {
            if *each == reason {
                counter.inc();
            }
        }
    }
}

/// See [`super::Metrics::refusals`].
#[derive(Debug)]
pub struct RefusalMetrics {
    pub(super) refused: [IntCounter; Refusal::ALL.len()],
}

impl RefusalMetrics {
    /// Counts a client that was not let in.
    pub fn refused(&self, refusal: Refusal) {
        self.refused[refusal as usize].inc();
    }
}
