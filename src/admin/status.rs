//! The JSON of `/status`.

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::{ListenerStatus, Shown, State};
use crate::topology::{self, Address, Answer, BackendStatus, Published};

/// A JSON object whose entries keep the order of the config.
struct Named<K, V>(Vec<(K, V)>);

impl<K: Serialize, V: Serialize> Serialize for Named<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    state: &'static str,
    uptime_seconds: f64,
    listeners: Named<&'a str, Listener<'a>>,
    pools: Named<&'a str, Pool>,
}

#[derive(Serialize)]
struct Listener<'a> {
    addresses: Vec<String>,
    pool: &'a str,
    role: &'static str,
    drained: bool,
    sessions: i64,
    sessions_total: u64,
    /// Of the sessions, those that wait for a master.
    held: i64,
    bytes_in: u64,
    bytes_out: u64,
}

#[derive(Serialize)]
struct Pool {
    /// `serve`, `hold` or `refuse`.
    verdict: &'static str,
    master: Option<String>,
    rule: &'static str,
    reason: String,
    advice: Option<&'static str>,
    /// The rule and its sentence by which the master was chosen, at the time that `age_seconds` tells.
    chosen: Option<Chosen>,
    age_seconds: f64,
    epoch: u64,
    backends: Named<String, Backend>,
    sentinel_view: Option<String>,
    sentinels: Named<String, Sentinel>,
}

#[derive(Serialize)]
struct Chosen {
    rule: &'static str,
    reason: String,
}

#[derive(Serialize)]
struct Sentinel {
    up: bool,
    says: String,
}

#[derive(Serialize)]
struct Backend {
    address: String,
    state: &'static str,
    role: Option<&'static str>,
    evidence: String,
    resolved: Option<String>,
    run_id: Option<String>,
    replid: Option<String>,
    replid2: Option<String>,
    offset: Option<u64>,
    link_up: Option<bool>,
    last_check: Option<Check>,
    /// Checks that have ended.
    checks_total: u64,
    error: Option<Error>,
}

#[derive(Serialize)]
struct Check {
    age_seconds: f64,
    latency_ms: f64,
}

#[derive(Serialize)]
struct Error {
    reason: &'static str,
    words: Option<String>,
    advice: &'static str,
}

/// The report of this moment.
pub(super) fn report<'a>(state: &State, shown: &'a Shown) -> impl Serialize + use<'a> {
    let now = Instant::now();
    let listeners = shown.listeners.iter().map(|listener| {
        (&*listener.name, Listener::new(listener, &shown.pools[listener.pool].pool))
    });
    Report {
        version: env!("CARGO_PKG_VERSION"),
        state: if state.draining.is_cancelled() { "draining" } else { "running" },
        uptime_seconds: age(state.started, now),
        listeners: Named(listeners.collect()),
        pools: Named(
            shown.pools.iter().map(|pool| (&*pool.pool, Pool::new(pool, state, now))).collect(),
        ),
    }
}

impl<'a> Listener<'a> {
    fn new(listener: &'a ListenerStatus, pool: &'a str) -> Self {
        let moved = listener.metrics.moved();
        Self {
            addresses: listener.addresses.iter().map(Address::to_string).collect(),
            pool,
            role: listener.role.as_str(),
            drained: listener.is_drained,
            sessions: listener.metrics.sessions.get(),
            sessions_total: listener.metrics.sessions_total.get(),
            held: listener.metrics.held.get(),
            bytes_in: moved.up,
            bytes_out: moved.down,
        }
    }
}

impl Pool {
    fn new(pool: &Published, state: &State, now: Instant) -> Self {
        let view = pool.view.borrow();
        let status = pool.status();
        Self {
            verdict: view.verdict.kind().as_str(),
            master: view.verdict.served().map(|served| served.backend.to_string()),
            rule: status.reason.rule.as_str(),
            reason: status.reason.words.to_string(),
            advice: status.reason.rule.advice(),
            chosen: view.verdict.served().map(|served| Chosen {
                rule: served.reason.rule.as_str(),
                reason: served.reason.words.to_string(),
            }),
            age_seconds: age(view.since, now),
            epoch: view.epoch,
            backends: Named(
                status
                    .backends
                    .iter()
                    .map(|b| {
                        let checks = state.metrics.checks(&pool.pool, &b.name);
                        (b.name.to_string(), Backend::new(b, checks, now))
                    })
                    .collect(),
            ),
            sentinel_view: status.sentinel_view.clone(),
            sentinels: Named(
                status
                    .sentinels
                    .iter()
                    .map(|s| (s.address.clone(), Sentinel { up: s.up, says: s.says.clone() }))
                    .collect(),
            ),
        }
    }
}

impl Backend {
    fn new(backend: &BackendStatus, checks_total: u64, now: Instant) -> Self {
        let answer = backend.state.answer();
        let text = |field: fn(&Answer) -> &String| answer.map(field).cloned();
        let last = backend.last_check.as_ref();
        Self {
            address: backend.address.clone(),
            state: backend.state.as_str(),
            role: backend.state.role().map(topology::Role::as_str),
            evidence: backend.evidence.clone(),
            resolved: answer.map(|answer| answer.address.to_string()),
            run_id: text(|answer| &answer.run_id),
            replid: text(|answer| &answer.replid),
            replid2: answer.and_then(|answer| answer.replid2.clone()),
            offset: answer.and_then(|answer| answer.offset),
            link_up: answer.and_then(|answer| answer.link_up),
            last_check: last.map(|check| Check {
                age_seconds: age(check.at, now),
                latency_ms: check.took.as_secs_f64() * 1000.0,
            }),
            checks_total,
            error: last.and_then(|check| check.error.as_ref()).map(|(failure, words)| Error {
                reason: failure.as_str(),
                words: words.clone(),
                advice: failure.advice(),
            }),
        }
    }
}

fn age(then: Instant, now: Instant) -> f64 {
    now.saturating_duration_since(then).as_secs_f64()
}
