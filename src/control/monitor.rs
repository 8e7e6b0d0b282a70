//! One task a pool: the only writer of the pool's state. Takes reports in, decides, publishes the
//! View and revokes leases.

mod reload;
pub(super) mod sentinels;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::{error, info, warn};

pub use self::reload::{Lost, Orders};
use self::{reload::Order, sentinels::PoolSentinels};
use super::{
    election::{self, Decision, Election},
    evidence,
    health::Observation,
    member::Member,
    memory::{Saver, Store},
    probe::Report,
    sentinel::News,
};
use crate::{
    config,
    metrics::{Metrics, PoolMetrics},
    topology::{
        Answer, Hint, Hints, LastCheck, Lease, PoolStatus, Published, Reason, Role, Rule, Served,
        State, Verdict, VerdictKind, View,
    },
};

/// Reports that wait at the most; a probe waits when there are more.
const REPORTS: usize = 64;

/// Hints are taken at least so far apart.
const HINT_GAP: Duration = Duration::from_millis(5);

/// How long a hint counts as a doubt.
const HINT: Duration = Duration::from_secs(1);

/// From one log line about a pool that is served without checks to the next.
const STATIC_GAP: Duration = Duration::from_secs(60);

/// Watches one pool.
pub struct Monitor {
    config: config::Pool,
    names: Vec<Arc<str>>,
    members: Vec<Member>,
    hints: Hints,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
    /// The probes that there ever were.
    probes: u64,
    orders: mpsc::Receiver<Order>,
    tasks: JoinSet<()>,
    election: Election,
    last: Decision,
    sentinel: Option<PoolSentinels>,
    saver: Option<Saver>,
    /// No other process does.
    saves: bool,
    all_metrics: Arc<Metrics>,
    metrics: PoolMetrics,
    /// The zero of the election's time.
    started: Instant,
    /// Until when the seconds are counted.
    counted: Instant,
    /// When something changed last.
    news: Instant,
    hinted: Option<Instant>,
    fast: bool,
    /// Several say that they are the master.
    conflict: bool,
    /// When it was told last that the incumbent is kept although it refuses the login of checks.
    told_static: Option<Instant>,
    /// The answer of the process that is served, or was served last, from when that began.
    served: Option<Answer>,
    /// The last passed check of the served backend.
    passed: Option<Instant>,
    view: watch::Sender<Arc<View>>,
    /// What others read.
    published: Published,
}

impl Monitor {
    /// A monitor that has checked nothing yet and refuses.
    pub fn new(
        pool: config::Pool,
        state_dir: Option<&Path>,
        metrics: &Arc<Metrics>,
    ) -> (Self, Published, Orders) {
        let (reporter, reports) = mpsc::channel(REPORTS);
        let (order, orders) = mpsc::channel(1);
        let started = Instant::now();
        let reason = Reason { rule: Rule::Starting, words: Rule::Starting.words(&[]).into() };
        let verdict = Verdict::Refuse(reason.clone());
        let first = View { epoch: 0, since: started, unserved_since: None, verdict };
        let (view, view_out) = watch::channel(Arc::new(first));
        let names: Vec<_> = pool.backends.iter().map(|backend| backend.name.clone()).collect();
        let hints = Hints::default();
        let status =
            PoolStatus { reason, backends: Vec::new(), sentinels: Vec::new(), sentinel_view: None };
        let published = Published {
            pool: pool.name.clone(),
            view: view_out,
            status: Arc::new(Mutex::new(status)),
            hints: hints.clone(),
        };
        let store = state_dir.map(|folder| Store::new(folder, pool.name.clone()));
        let memory = store.as_ref().and_then(|store| store.load(&names));
        let mut monitor = Self {
            names: Vec::new(),
            members: Vec::new(),
            hints,
            reports,
            reporter,
            probes: 0,
            orders,
            tasks: JoinSet::new(),
            election: Election::new(pool.on_unexplained_heir, memory),
            last: Decision::starting(),
            sentinel: None,
            saver: store.map(Saver::new),
            saves: true,
            all_metrics: metrics.clone(),
            metrics: metrics.pool(&pool.name),
            started,
            counted: started,
            news: started,
            hinted: None,
            fast: true,
            conflict: false,
            told_static: None,
            served: None,
            passed: None,
            view,
            published: published.clone(),
            config: pool,
        };
        monitor.fill();
        monitor.metrics.set_verdict(Rule::Starting);
        (monitor, published, Orders(order))
    }

    /// Runs until it is told to end, which is `Ok`, or one of its tasks ends, which none does by
    /// itself.
    pub async fn run(mut self) -> Result<(), Lost> {
        if let Some(saver) = &self.saver {
            self.tasks.spawn(saver.run());
        }
        self.start_tasks();
        loop {
            let wake = self.last.wake.map(|wake| self.started + wake);
            let wake = wake.or_else(|| self.doubt_ends());
            let wait = async {
                match wake {
                    Some(wake) => sleep_until(wake).await,
                    None => std::future::pending().await,
                }
            };
            let news = async {
                match &mut self.sentinel {
                    Some(sentinel) => sentinel.news().await,
                    None => std::future::pending().await,
                }
            };
            // A storm of hints is one hint.
            let calm = self.hinted.map(|hinted| hinted + HINT_GAP);
            let hints = async {
                if let Some(calm) = calm {
                    sleep_until(calm).await;
                }
                self.hints.take().await
            };
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(Order::Reconfigure(pool, done)) => {
                        self.reconfigure(*pool);
                        let _ = done.send(());
                    }
                    Some(Order::LeaveState) => self.saves = false,
                    Some(Order::End) | None => {
                        self.end();
                        return Ok(());
                    }
                },
                report = self.reports.recv() => match report {
                    Some(report) => self.take(report),
                    None => return Err(Lost),
                },
                news = news => match news {
                    Some(news) => self.take_news(news),
                    None => return Err(Lost),
                },
                hints = hints => self.take_hints(&hints),
                () = wait => self.decide(),
                Some(ended) = self.tasks.join_next() => {
                    // One that was told to end is no loss.
                    if !ended.is_err_and(|error| error.is_cancelled()) {
                        return Err(Lost);
                    }
                }
            }
        }
    }

    fn take(&mut self, report: Report) {
        let Report { probe, at, took, goes_on, observation, words } = report;
        // One may come late, of a backend that is none any more.
        let Some(place) = self.members.iter().position(|member| member.watch.id == probe) else {
            return;
        };
        let member = &mut self.members[place];
        if !goes_on {
            member.metrics.check_ended(took);
            member.checked = (at - took).saturating_duration_since(self.started);
        }
        let passed = matches!(observation, Observation::Passed(_) | Observation::StillBusy);
        if passed && self.view.borrow().verdict.served().is_some_and(|s| s.backend == member.name) {
            self.passed = Some(at);
        }
        let failure = observation.failure();
        let changed = member.observe(&self.config.name, observation, words.as_deref());
        let state = member.state();
        {
            let mut status = self.published.status();
            let backend = &mut status.backends[place];
            match (&mut backend.state, state) {
                (State::Up(shown), State::Up(now)) if !changed => shown.offset = now.offset,
                (shown, now) => *shown = now.clone(),
            }
            backend.last_check =
                Some(LastCheck { at, took, error: failure.map(|failure| (failure, words)) });
        }
        if changed {
            self.news = at;
        }
        if changed || self.last.rule != Rule::Incumbent {
            self.decide();
        } else if self.conflict {
            self.count_seconds();
        }
        // After the decision. The word of the served one is not enough: another may be its heir.
        if let Some(served) = self.view.borrow().verdict.served()
            && let Some(oldest) = self.members.iter().map(|member| member.checked).min()
        {
            served.lease.confirm(self.started + oldest);
        }
    }

    fn take_news(&mut self, news: News) {
        let Some(sentinel) = &mut self.sentinel else {
            return;
        };
        let (place, is_new_event) = sentinel.take(news, self.started);
        if is_new_event {
            self.hints.give(Hint::Sentinel);
        }
        let (says, up) = sentinel.says(place, &self.names);
        {
            let mut status = self.published.status();
            let status = &mut status.sentinels[place];
            if status.says != says {
                let (pool, sentinel) = (&*self.config.name, &*status.address);
                if up {
                    info!(pool, sentinel, says, "sentinel");
                } else {
                    let advice = "is it up, reachable, and does it take sentinel.auth? rolegate check --connect \
                                  tells";
                    warn!(pool, sentinel, says, advice, "sentinel is not heard");
                }
                status.says = says;
                status.up = up;
            }
        }
        self.decide();
    }

    fn take_hints(&mut self, hints: &[Hint]) {
        for hint in hints {
            self.metrics.hinted(*hint);
        }
        let now = Instant::now();
        self.hinted = Some(now);
        self.news = now;
        self.set_pace();
        self.members.iter().for_each(|member| member.watch.pace.check_now());
    }

    fn decide(&mut self) {
        let now = self.started.elapsed();
        let patience = self.config.check.lease_patience();
        let members: Vec<_> = self
            .members
            .iter()
            .map(|member| election::Member {
                state: member.state(),
                checked: member.checked,
                fresh: self.passed.is_some_and(|passed| passed.elapsed() <= patience),
            })
            .collect();
        if self.sentinel.as_mut().is_some_and(PoolSentinels::renew) {
            self.news = Instant::now();
        }
        let view = self.sentinel.as_ref().map(PoolSentinels::view);
        let before = self.election.memory().cloned();
        let decision = self.election.decide(now, &members, view);
        if let (Some(saver), Some(memory), true) = (&self.saver, self.election.memory(), self.saves)
            && before.as_ref() != Some(memory)
        {
            saver.save(memory, &self.names);
        }
        if let Some(sentinel) = &self.sentinel {
            sentinel.count_agreeing(decision.serve);
            if decision.ask {
                sentinel.ask_now();
            }
        }
        let masters = members.iter().filter(|m| m.state.role() == Some(Role::Master)).count();
        let newly = decision.refuted.iter().filter(|place| !self.last.refuted.contains(place));
        self.metrics.lineage_refusals.inc_by(newly.count() as u64);
        self.count_seconds();
        self.conflict = masters > 1;
        self.metrics.set_conflict(self.conflict);
        let reason = self.reason(&decision);
        self.explain(&decision, &reason);
        if !self.is_published(&decision, &reason) {
            self.publish(&decision, &reason);
        }
        self.tell_static(&decision, &reason);
        self.last = decision;
        self.set_pace();
    }

    /// Renews what `/status` says of the decision.
    fn explain(&self, decision: &Decision, reason: &Reason) {
        let states: Vec<_> = self.members.iter().map(Member::state).collect();
        let sentences = evidence::sentences(&self.names, &states, decision);
        self.metrics.set_verdict(reason.rule);
        let view = self.sentinel.as_ref().map(|sentinel| sentinel.describe(&self.names));
        let mut status = self.published.status();
        for (backend, sentence) in status.backends.iter_mut().zip(sentences) {
            backend.evidence = sentence;
        }
        status.reason = reason.clone();
        status.sentinel_view = view;
    }

    fn reason(&self, decision: &Decision) -> Reason {
        let about: Vec<_> = decision.about.iter().map(|place| &*self.names[*place]).collect();
        Reason { rule: decision.rule, words: decision.rule.words(&about).into() }
    }

    fn is_published(&self, decision: &Decision, reason: &Reason) -> bool {
        match (&self.view.borrow().verdict, decision.serve) {
            (Verdict::Hold(now) | Verdict::Refuse(now), None) => now == reason,
            (Verdict::Serve(now), Some(place)) => {
                let member = &self.members[place];
                let is_static = decision.rule == Rule::FailStatic;
                now.backend == member.name && (is_static || self.served_last(member.state()))
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
    fn publish(&mut self, decision: &Decision, reason: &Reason) {
        let old = self.view.borrow().clone();
        let now = Instant::now();
        let served =
            decision.serve.and_then(|place| Some((place, self.members[place].state().answer()?)));
        let verdict = match served {
            None if decision.rule.kind() == VerdictKind::Hold => Verdict::Hold(reason.clone()),
            None => Verdict::Refuse(reason.clone()),
            Some((place, answer)) => {
                if self.served.is_some() && !self.served_last(self.members[place].state()) {
                    self.metrics.changes.inc();
                    if let Some(passed) = self.passed {
                        self.metrics.failover_took(now.saturating_duration_since(passed));
                    }
                }
                self.served = Some(answer.clone());
                self.passed = Some(now);
                Verdict::Serve(Arc::new(Served {
                    backend: self.names[place].clone(),
                    address: answer.address.clone(),
                    host: self.config.backends[place].address.host().into(),
                    reason: reason.clone(),
                    lease: Lease::default(),
                }))
            }
        };
        let unserved_since = match (&verdict, &old.verdict) {
            (Verdict::Serve(_), _) => None,
            (_, Verdict::Serve(_)) => Some(now),
            _ => old.unserved_since,
        };
        let new = Arc::new(View { epoch: old.epoch + 1, since: now, unserved_since, verdict });
        self.view.send_replace(new.clone());
        if let Some(served) = old.verdict.served() {
            served.lease.revoke();
        }
        for (place, member) in self.members.iter().enumerate() {
            member.metrics.set_master(Some(place) == decision.serve);
        }
        self.news = now;
        let evidence: Vec<_> = self
            .published
            .status()
            .backends
            .iter()
            .map(|backend| format!("{}: {}", backend.name, backend.evidence))
            .collect();
        let evidence = evidence.join("; ");
        let (epoch, pool) = (new.epoch, &*self.config.name);
        let (from, to) = (old.verdict.to_string(), new.verdict.to_string());
        let (rule, why) = (reason.rule.as_str(), &*reason.words);
        let advice = reason.rule.advice();
        match new.verdict.kind() {
            VerdictKind::Refuse => {
                warn!(pool, epoch, from, to, rule, why, advice, evidence, "verdict changed");
            }
            VerdictKind::Serve | VerdictKind::Hold => {
                info!(pool, epoch, from, to, rule, why, evidence, "verdict changed");
            }
        }
    }

    /// An error for every minute in which no failover would be noticed.
    fn tell_static(&mut self, decision: &Decision, reason: &Reason) {
        let (pool, now) = (&*self.config.name, Instant::now());
        if decision.rule != Rule::FailStatic {
            if self.told_static.take().is_some() {
                info!(pool, rule = reason.rule.as_str(), "checks decide again");
            }
        } else if self.told_static.is_none_or(|told| now - told >= STATIC_GAP) {
            self.told_static = Some(now);
            let backend = decision.serve.map(|place| &*self.names[place]);
            let (why, advice) = (&*reason.words, reason.rule.advice());
            error!(pool, backend, why, advice, "serves without checks");
        }
    }

    /// Adds the time since the last call to what it was spent in.
    fn count_seconds(&mut self) {
        let now = Instant::now();
        let seconds = now.saturating_duration_since(self.counted).as_secs_f64();
        self.counted = now;
        if self.last.serve.is_none() {
            self.metrics.without_master_seconds.inc_by(seconds);
        }
        if self.conflict {
            self.metrics.conflict_seconds.inc_by(seconds);
        }
    }

    /// Anything that a check might clear up soon.
    fn is_in_doubt(&self) -> bool {
        self.last.serve.is_none()
            || self.last.wake.is_some()
            || self.members.iter().any(Member::is_failing)
            || self.sentinel.as_ref().is_some_and(|sentinel| sentinel.is_failing_over())
            || self.hinted.is_some_and(|hinted| hinted.elapsed() < HINT)
    }

    /// When the pace may have to change although nothing comes in.
    fn doubt_ends(&self) -> Option<Instant> {
        self.fast
            .then(|| match self.hinted {
                Some(hinted) if hinted.elapsed() < HINT => hinted + HINT,
                _ => self.news + self.config.check.fast_for,
            })
            .filter(|end| *end > Instant::now())
    }

    /// Fast while something is in doubt and that has brought something new of late.
    fn set_pace(&mut self) {
        let fast = self.is_in_doubt() && self.news.elapsed() < self.config.check.fast_for;
        if fast != self.fast {
            self.fast = fast;
            self.apply_pace();
        }
    }

    fn apply_pace(&self) {
        let check = &self.config.check;
        let interval = if self.fast { check.fast_interval } else { check.interval };
        for member in &self.members {
            member.watch.pace.set(interval);
            if self.fast {
                member.watch.pace.check_now();
            }
        }
    }
}
