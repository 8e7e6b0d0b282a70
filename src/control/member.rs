//! One backend of a pool: its probe, its health, its metrics, and the log lines about it.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use super::{
    health::{Health, Observation},
    probe::Watch,
};
use crate::{
    metrics::BackendMetrics,
    topology::{Failure, Role, State},
};

/// Checks passed in a row that end a failure for the log.
const STEADY: u32 = 10;

pub(super) struct Member {
    pub(super) name: Arc<str>,
    pub(super) metrics: BackendMetrics,
    pub(super) watch: Watch,
    /// When the last check that has ended began, since the monitor's start.
    pub(super) checked: Duration,
    health: Health,
    /// What the last failed check found, until checks pass steadily.
    failing: Option<Failure>,
    /// Checks passed in a row.
    passes: u32,
}

impl Member {
    pub(super) fn new(name: Arc<str>, fall: u32, metrics: BackendMetrics, watch: Watch) -> Self {
        let health = Health::new(fall);
        Self { name, metrics, watch, checked: Duration::ZERO, health, failing: None, passes: 0 }
    }

    pub(super) fn set_fall(&mut self, fall: u32) {
        self.health.set_fall(fall);
    }

    pub(super) fn state(&self) -> &State {
        self.health.state()
    }

    /// Whether its last check failed.
    pub(super) fn is_failing(&self) -> bool {
        self.passes == 0
    }

    /// Takes one check's result in. True if that changes what is held to be true, but for the
    /// offset, which tells nothing about roles.
    pub(super) fn observe(
        &mut self,
        pool: &str,
        observation: Observation,
        words: Option<&str>,
    ) -> bool {
        if let (Observation::Passed(answer), Some(known), None) =
            (&observation, self.state().answer(), self.failing)
            && answer.claims_the_same(known)
        {
            // As nearly always.
            self.passes = self.passes.saturating_add(1);
            self.health.observe(observation);
            return false;
        }
        let failure = observation.failure();
        if let Some(failure) = failure.filter(|_| observation != Observation::StillBusy) {
            self.metrics.check_failed(failure);
        }
        let was_failing = self.is_failing();
        let before = self.state().clone();
        self.health.observe(observation);
        self.log(pool, &before, failure, words);
        let state = self.state();
        let changed = match (before.answer(), state.answer()) {
            (Some(before), Some(now)) => !now.claims_the_same(before),
            _ => before != *state,
        };
        if changed {
            self.metrics.set_role(state.role());
        }
        changed || was_failing != self.is_failing()
    }

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
        self.passes = self.passes.saturating_add(1);
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
}
