//! One task a pool: the only writer of the pool's state. Takes reports in, decides, publishes the
//! View and revokes leases.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tracing::{info, warn};

use super::{
    election::{self, Candidate, Decision},
    health::{Health, Observation},
    probe::{Probe, Report},
};
use crate::{
    config,
    metrics::{BackendMetrics, Metrics, PoolMetrics},
    topology::{
        Answer, BackendStatus, Failure, LastCheck, Lease, Published, Refusal, Role, Served, State,
        Verdict, VerdictKind, View,
    },
};

/// Reports that wait at the most; a probe waits when there are more.
const REPORTS: usize = 64;

/// Checks passed in a row that end a failure for the log.
const STEADY: u32 = 10;

/// Watches one pool.
pub struct Monitor {
    pool: Arc<str>,
    members: Vec<Member>,
    probes: Vec<Probe>,
    reports: mpsc::Receiver<Report>,
    metrics: PoolMetrics,
    /// The answer of the process that is served, or was served last, from when that began.
    served: Option<Answer>,
    view: watch::Sender<Arc<View>>,
    status: watch::Sender<Vec<BackendStatus>>,
}

/// One backend and all that is known of it.
struct Member {
    name: Arc<str>,
    health: Health,
    metrics: BackendMetrics,
    /// What the last failed check found, until checks pass steadily.
    failing: Option<Failure>,
    /// Checks passed in a row.
    passes: u32,
}

impl Monitor {
    /// A monitor that has checked nothing yet and refuses.
    pub fn new(pool: &config::Pool, metrics: &Metrics) -> (Self, Published) {
        let (report, reports) = mpsc::channel(REPORTS);
        let verdict = Verdict::Refuse(Refusal::Starting);
        let (view, view_out) =
            watch::channel(Arc::new(View { epoch: 0, since: Instant::now(), verdict }));
        let backends = pool.backends.iter();
        let status = backends.clone().map(|backend| BackendStatus {
            name: backend.name.clone(),
            address: backend.address.to_string(),
            state: State::Unchecked,
            last_check: None,
        });
        let (status, status_out) = watch::channel(status.collect());
        let probes = backends.clone().enumerate().map(|(place, backend)| {
            Probe::new(place, backend.clone(), pool.auth.clone(), pool.check, report.clone())
        });
        let members = backends.clone().map(|backend| Member {
            name: backend.name.clone(),
            health: Health::new(pool.check.fall),
            metrics: metrics.backend(&pool.name, &backend.name),
            failing: None,
            passes: 0,
        });
        let monitor = Self {
            pool: pool.name.clone(),
            members: members.collect(),
            probes: probes.collect(),
            reports,
            metrics: metrics.pool(&pool.name),
            served: None,
            view,
            status,
        };
        monitor.metrics.set_verdict(VerdictKind::Starting);
        (monitor, Published { pool: pool.name.clone(), view: view_out, backends: status_out })
    }

    /// Runs until a probe ends, which none does by itself.
    pub async fn run(mut self) {
        let mut probes = JoinSet::new();
        for probe in self.probes.drain(..) {
            probes.spawn(probe.run());
        }
        loop {
            tokio::select! {
                biased;
                report = self.reports.recv() => match report {
                    Some(report) => self.take(report),
                    None => return,
                },
                _ = probes.join_next() => return,
            }
        }
    }

    fn take(&mut self, report: Report) {
        let Report { place, at, took, goes_on, observation, words } = report;
        let member = &mut self.members[place];
        if !goes_on {
            member.metrics.check_ended(took);
        }
        let failure = match &observation {
            Observation::Failed(failure) => Some(*failure),
            Observation::Silent => Some(Failure::Timeout),
            Observation::StillBusy => Some(Failure::Busy),
            Observation::Passed(_) => None,
        };
        if let Some(failure) = failure.filter(|_| observation != Observation::StillBusy) {
            member.metrics.check_failed(failure);
        }
        let before = member.health.state().clone();
        member.health.observe(observation);
        member.log(&self.pool, &before, failure, words.as_deref());
        let state = member.health.state().clone();
        if state != before {
            member.metrics.set_role(state.role());
        }
        self.status.send_modify(|backends| {
            let backend = &mut backends[place];
            backend.state = state;
            backend.last_check =
                Some(LastCheck { at, took, error: failure.map(|failure| (failure, words)) });
        });
        self.decide();
    }

    fn decide(&mut self) {
        let candidates: Vec<_> = self
            .members
            .iter()
            .map(|member| Candidate { name: &member.name, state: member.health.state() })
            .collect();
        let decision = election::decide(&candidates);
        self.metrics.set_conflict(election::masters(&candidates).count() > 1);
        if !self.is_published(&decision) {
            self.publish(decision);
        }
    }

    fn is_published(&self, decision: &Decision) -> bool {
        match (&self.view.borrow().verdict, decision) {
            (Verdict::Refuse(now), Err(refusal)) => now == refusal,
            (Verdict::Serve(now), Ok(place)) => {
                let member = &self.members[*place];
                now.backend == member.name && self.served_last(member.health.state())
            }
            _ => false,
        }
    }

    /// Whether this is the process at the address that is served, or was served last.
    fn served_last(&self, state: &State) -> bool {
        match (&self.served, state) {
            (Some(a), State::Up(b)) => a.address == b.address && a.run_id == b.run_id,
            _ => false,
        }
    }

    /// Publishes the new View first and revokes the old lease then: who loses the lease finds the
    /// View that says what comes instead.
    fn publish(&mut self, decision: Decision) {
        let old = self.view.borrow().clone();
        let place = decision.as_ref().ok().copied();
        let verdict = match decision {
            Err(refusal) => Verdict::Refuse(refusal),
            Ok(place) => {
                let member = &self.members[place];
                let State::Up(answer) = member.health.state() else {
                    return;
                };
                if self.served.is_some() && !self.served_last(member.health.state()) {
                    self.metrics.changes.inc();
                }
                self.served = Some(answer.clone());
                Verdict::Serve(Served {
                    backend: member.name.clone(),
                    address: answer.address,
                    lease: Lease::default(),
                })
            }
        };
        let new = Arc::new(View { epoch: old.epoch + 1, since: Instant::now(), verdict });
        self.view.send_replace(new.clone());
        if let Some(served) = old.verdict.served() {
            served.lease.revoke();
        }
        for (i, member) in self.members.iter().enumerate() {
            member.metrics.set_master(Some(i) == place);
        }
        self.metrics.set_verdict(new.verdict.kind());
        let evidence = self.members.iter().map(Member::evidence).collect::<Vec<_>>().join(", ");
        let (epoch, pool) = (new.epoch, &*self.pool);
        let (from, to) = (old.verdict.to_string(), new.verdict.to_string());
        match new.verdict {
            Verdict::Serve(_) => info!(pool, epoch, from, to, evidence, "verdict changed"),
            Verdict::Refuse(_) => warn!(pool, epoch, from, to, evidence, "verdict changed"),
        }
    }
}

impl Member {
    /// One line for each change of role, of state, or of what checks find. A node that fails now
    /// and then gets one line, until it has passed [`STEADY`] checks in a row.
    fn log(&mut self, pool: &str, before: &State, failure: Option<Failure>, words: Option<&str>) {
        let backend = &*self.name;
        let state = self.health.state();
        let [was, is] =
            [before, state].map(|state| state.role().map_or(state.as_str(), Role::as_str));
        if let Some(failure) = failure {
            self.passes = 0;
            let (reason, advice) = (failure.as_str(), failure.advice());
            let found = self.failing.map_or("passed", Failure::as_str);
            if before.role().is_some() && state.role().is_none() {
                warn!(pool, backend, from = was, to = is, reason, words, advice, "backend is down");
            } else if self.failing != Some(failure) {
                let (role, to) = (is, reason);
                if failure == Failure::Busy && state.role().is_some() {
                    info!(pool, backend, role, from = found, to, reason, advice, "backend is busy");
                } else {
                    warn!(
                        pool,
                        backend,
                        role,
                        from = found,
                        to,
                        reason,
                        words,
                        advice,
                        "check failed"
                    );
                }
            }
            self.failing = Some(failure);
            return;
        }
        self.passes += 1;
        if let State::Up(answer) = state
            && before.role() != Some(answer.role)
        {
            let (address, reason) = (answer.address.to_string(), "PONG, and the role in INFO");
            info!(pool, backend, from = was, to = is, reason, address, "role changed");
            self.failing = None;
        } else if let Some(failing) = self.failing.filter(|_| self.passes >= STEADY) {
            let (role, from, to) = (is, failing.as_str(), "passed");
            let reason = format!("{STEADY} checks in a row passed");
            info!(pool, backend, role, from, to, reason, "checks pass again");
            self.failing = None;
        }
    }

    fn evidence(&self) -> String {
        let name = &self.name;
        match self.health.state() {
            State::Unchecked => format!("{name}=unchecked"),
            State::Up(answer) => {
                let short: String = answer.run_id.chars().take(8).collect();
                format!("{name}={} (run_id {short})", answer.role)
            }
            State::Down(failure) => format!("{name}={failure}"),
        }
    }
}
