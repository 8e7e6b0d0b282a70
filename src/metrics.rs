//! Every metric: names, help and labels in one place, and the handles that tasks keep.
//!
//! Label values are names from the config or words of closed sets, never anything a peer sent.

mod forget;
mod handles;
mod reason;
mod untold;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus::{
    CounterVec, Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use self::handles::moved;
pub use self::{
    handles::{
        BackendMetrics, ListenerMetrics, Moved, PoolMetrics, RefusalMetrics, SentinelMetrics, Tally,
    },
    reason::{CloseReason, Refusal},
    untold::Untold,
};
use crate::topology::{Failure, Hint, Role, Rule};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Seconds; a check on a healthy LAN takes 0.1 to 1 ms.
const CHECK_BUCKETS: [f64; 12] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0];

/// Seconds; a crash takes as long as Sentinel's down-after, a planned failover a tenth of a second.
const FAILOVER_BUCKETS: [f64; 12] =
    [0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 5.0, 10.0, 30.0, 120.0];

/// All metrics of the process, in a registry of their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    backend_up: IntGaugeVec,
    backend_role: IntGaugeVec,
    pool_master: IntGaugeVec,
    pool_master_changes: IntCounterVec,
    pool_conflict: IntGaugeVec,
    pool_verdict: IntGaugeVec,
    conflict_seconds: CounterVec,
    without_master_seconds: CounterVec,
    failover_duration: HistogramVec,
    lineage_refusals: IntCounterVec,
    hints: IntCounterVec,
    sentinel_agree: IntGaugeVec,
    sentinel_up: IntGaugeVec,
    preconnected: IntGaugeVec,
    check_duration: HistogramVec,
    check_failures: IntCounterVec,
    connect_failures: IntCounterVec,
    sessions: IntGaugeVec,
    sessions_total: IntCounterVec,
    bytes: IntCounterVec,
    tallies: Mutex<HashMap<String, Arc<[Tally]>>>,
    workers: usize,
    closed: IntCounterVec,
    accept_errors: IntCounterVec,
    refused: IntCounterVec,
    max_connections: IntGauge,
    held: IntGaugeVec,
    held_total: IntCounterVec,
    hold_timeouts: IntCounterVec,
    worker_sessions: IntGaugeVec,
}

impl Metrics {
    /// Builds and registers every family, for so many workers. Fails only if two have one name.
    pub fn new(workers: usize) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name, help, labels: &[&str]| {
            let family = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let counter = |name, help, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let seconds = |name, help| {
            let family = CounterVec::new(Opts::new(name, help), &["pool"])?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let histogram = |name, help, buckets: &[f64], labels: &[&str]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let family = HistogramVec::new(opts, labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        gauge("rolegate_build_info", "1; the version runs.", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Ok(Self {
            backend_up: gauge(
                "rolegate_backend_up",
                "1 if the backend passes its checks, whatever its role.",
                &["pool", "backend"],
            )?,
            backend_role: gauge(
                "rolegate_backend_role",
                "1 for the role that the backend's last passed check proved; all 0 while it is down.",
                &["pool", "backend", "role"],
            )?,
            pool_master: gauge(
                "rolegate_pool_master",
                "1 for the backend that is served as the master.",
                &["pool", "backend"],
            )?,
            pool_master_changes: counter(
                "rolegate_pool_master_changes_total",
                "Times that another backend, or another process of the same one, was served than before.",
                &["pool"],
            )?,
            pool_conflict: gauge(
                "rolegate_pool_conflict",
                "1 while more than one backend says that it is the master.",
                &["pool"],
            )?,
            pool_verdict: gauge(
                "rolegate_pool_verdict",
                "1 for what clients of the pool get now (serve, hold, refuse) and the rule that decided.",
                &["pool", "verdict", "reason"],
            )?,
            conflict_seconds: seconds(
                "rolegate_pool_conflict_seconds_total",
                "Seconds in which more than one backend said that it is the master.",
            )?,
            without_master_seconds: seconds(
                "rolegate_pool_without_master_seconds_total",
                "Seconds in which no backend was served, also those before the first.",
            )?,
            failover_duration: histogram(
                "rolegate_pool_failover_duration_seconds",
                "From the old master's last passed check while it was served to the moment another one was.",
                &FAILOVER_BUCKETS,
                &["pool"],
            )?,
            lineage_refusals: counter(
                "rolegate_pool_lineage_refusals_total",
                "Times that a backend came to say role:master whose lineage goes on elsewhere.",
                &["pool"],
            )?,
            hints: counter(
                "rolegate_pool_hints_total",
                "Hints that made the whole pool be checked at once.",
                &["pool", "hint"],
            )?,
            sentinel_agree: gauge(
                "rolegate_pool_sentinel_agree",
                "Sentinels that name the served backend.",
                &["pool"],
            )?,
            sentinel_up: gauge(
                "rolegate_sentinel_up",
                "1 if the Sentinel answers.",
                &["pool", "sentinel"],
            )?,
            preconnected: gauge(
                "rolegate_pool_preconnected",
                "Connections to the served backend that wait for clients.",
                &["pool"],
            )?,
            check_duration: histogram(
                "rolegate_check_duration_seconds",
                "How long checks took until they ended, also failed ones.",
                &CHECK_BUCKETS,
                &["pool", "backend"],
            )?,
            check_failures: counter(
                "rolegate_check_failures_total",
                "Checks that failed, by reason.",
                &["pool", "backend", "reason"],
            )?,
            connect_failures: counter(
                "rolegate_connect_failures_total",
                "Sessions' connections to the backend that failed or timed out.",
                &["pool", "backend"],
            )?,
            sessions: gauge(
                "rolegate_listener_sessions",
                "Sessions open now, also those that wait for a master.",
                &["listener"],
            )?,
            sessions_total: counter(
                "rolegate_listener_sessions_total",
                "Sessions ever accepted.",
                &["listener"],
            )?,
            bytes: counter(
                "rolegate_listener_bytes_total",
                "Bytes read from clients (in) and from backends (out), counted while they move.",
                &["listener", "direction"],
            )?,
            tallies: Mutex::default(),
            workers,
            closed: counter(
                "rolegate_sessions_closed_total",
                "Sessions that ended, by reason.",
                &["listener", "reason"],
            )?,
            accept_errors: counter(
                "rolegate_accept_errors_total",
                "Clients that could not be accepted: descriptors or memory ran out.",
                &["listener"],
            )?,
            max_connections: gauge(
                "rolegate_max_connections",
                "Clients of all listeners that may be in at once.",
                &[],
            )?
            .with_label_values::<&str>(&[]),
            refused: counter(
                "rolegate_listener_refused_total",
                "Clients that were not let in, by reason.",
                &["listener", "reason"],
            )?,
            held: gauge(
                "rolegate_listener_held",
                "Clients that wait for a backend to be served.",
                &["listener"],
            )?,
            held_total: counter(
                "rolegate_listener_held_total",
                "Clients that ever waited for one, or would have in a dry run.",
                &["listener"],
            )?,
            hold_timeouts: counter(
                "rolegate_listener_hold_timeouts_total",
                "Clients that waited in vain.",
                &["listener"],
            )?,
            worker_sessions: gauge(
                "rolegate_worker_sessions",
                "Sessions that a worker runs, or that are on their way to it.",
                &["worker"],
            )?,
            registry,
        })
    }

    /// The Prometheus text format 0.0.4.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        for (listener, tallies) in &*self.tallies() {
            let sum = moved(tallies);
            for (direction, bytes) in [("in", sum.up), ("out", sum.down)] {
                let counter = self.bytes.with_label_values(&[listener, direction]);
                counter.inc_by(bytes - counter.get());
            }
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// The handles of one pool.
    pub fn pool(&self, pool: &str) -> PoolMetrics {
        let labels = [pool];
        PoolMetrics {
            changes: self.pool_master_changes.with_label_values(&labels),
            conflict: self.pool_conflict.with_label_values(&labels),
            verdicts: Rule::ALL.map(|rule| {
                let labels = [pool, rule.kind().as_str(), rule.as_str()];
                self.pool_verdict.with_label_values(&labels)
            }),
            conflict_seconds: self.conflict_seconds.with_label_values(&labels),
            without_master_seconds: self.without_master_seconds.with_label_values(&labels),
            failover_duration: self.failover_duration.with_label_values(&labels),
            lineage_refusals: self.lineage_refusals.with_label_values(&labels),
            hints: Hint::ALL.map(|hint| self.hints.with_label_values(&[pool, hint.as_str()])),
        }
    }

    /// The handles of one pool's Sentinels, by their addresses in the config.
    pub fn sentinels(&self, pool: &str, addresses: &[String]) -> SentinelMetrics {
        let up = |address: &String| self.sentinel_up.with_label_values(&[pool, address]);
        SentinelMetrics {
            agree: self.sentinel_agree.with_label_values(&[pool]),
            up: addresses.iter().map(up).collect(),
        }
    }

    /// The handles of one backend.
    pub fn backend(&self, pool: &str, backend: &str) -> BackendMetrics {
        let labels = [pool, backend];
        BackendMetrics {
            up: self.backend_up.with_label_values(&labels),
            roles: Role::ALL
                .map(|role| self.backend_role.with_label_values(&[pool, backend, role.as_str()])),
            master: self.pool_master.with_label_values(&labels),
            check_duration: self.check_duration.with_label_values(&labels),
            check_failures: Failure::ALL.map(|failure| {
                self.check_failures.with_label_values(&[pool, backend, failure.as_str()])
            }),
        }
    }

    /// Sessions' failed connections to one backend.
    pub fn connect_failures(&self, pool: &str, backend: &str) -> IntCounter {
        self.connect_failures.with_label_values(&[pool, backend])
    }

    /// Checks of one backend that have ended.
    pub fn checks(&self, pool: &str, backend: &str) -> u64 {
        self.check_duration.with_label_values(&[pool, backend]).get_sample_count()
    }

    fn tallies(&self) -> MutexGuard<'_, HashMap<String, Arc<[Tally]>>> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections of a pool that wait for clients.
    pub fn preconnected(&self, pool: &str) -> IntGauge {
        self.preconnected.with_label_values(&[pool])
    }

    /// The sessions of one worker.
    pub fn worker(&self, number: usize) -> IntGauge {
        self.worker_sessions.with_label_values(&[&number.to_string()])
    }

    /// Shows how many clients may be in at once.
    pub fn set_max_connections(&self, max: usize) {
        self.max_connections.set(i64::try_from(max).unwrap_or(i64::MAX));
    }

    /// Clients that one listener does not let in.
    pub fn refusals(&self, listener: &str) -> RefusalMetrics {
        RefusalMetrics {
            refused: Refusal::ALL
                .map(|refusal| self.refused.with_label_values(&[listener, refusal.as_str()])),
        }
    }

    /// The handles of one listener.
    pub fn listener(&self, listener: &str) -> ListenerMetrics {
        let tallies = || (0..self.workers).map(|_| Tally::default()).collect();
        ListenerMetrics {
            sessions: self.sessions.with_label_values(&[listener]),
            sessions_total: self.sessions_total.with_label_values(&[listener]),
            tallies: self.tallies().entry(listener.to_owned()).or_insert_with(tallies).clone(),
            closed: CloseReason::ALL
                .map(|reason| self.closed.with_label_values(&[listener, reason.as_str()])),
            accept_errors: self.accept_errors.with_label_values(&[listener]),
            held: self.held.with_label_values(&[listener]),
            held_total: self.held_total.with_label_values(&[listener]),
            hold_timeouts: self.hold_timeouts.with_label_values(&[listener]),
        }
    }
}
