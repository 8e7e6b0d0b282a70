//! What an election is told, and what it decides.

use std::time::Duration;

use crate::topology::{Rule, State};

/// One backend, as its checks prove it.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// What its checks prove.
    pub state: &'a State,
    /// When the last check that has ended began.
    pub checked: Duration,
    /// A served one has passed a check of late: since then the process has not stood still, nor has
    /// the backend had time to be started anew unseen.
    pub fresh: bool,
}

/// What the Sentinels agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentinelView {
    /// Some Sentinel's first question has not ended yet.
    pub starting: bool,
    /// The backend that a quorum names, and the config-epoch with which it does.
    pub named: Option<(usize, u64)>,
    /// A failover is under way, and it promotes this backend as far as is known.
    pub failover: Option<Option<usize>>,
    /// Every Sentinel has answered a question that was asked then or later, or it does not run.
    pub complete_from: Option<Duration>,
}

impl SentinelView {
    /// Whether a quorum names this backend.
    pub(super) fn names(&self, place: usize) -> bool {
        self.named.is_some_and(|(named, _)| named == place)
    }

    /// Whether a quorum names this backend, and no failover is under way.
    pub(super) fn is_calm_about(&self, place: usize) -> bool {
        self.names(place) && self.failover.is_none()
    }

    /// Whether every Sentinel has answered a question that was asked then or later.
    pub(super) fn is_complete_since(&self, time: Duration) -> bool {
        self.complete_from.is_some_and(|from| from >= time)
    }
}

/// The outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The place of the backend to serve. Only rules that serve have one.
    pub serve: Option<usize>,
    /// The rule that decided.
    pub rule: Rule,
    /// The other backends that the rule speaks of.
    pub about: Vec<usize>,
    /// Masters that are not, by their lineage.
    pub refuted: Vec<usize>,
    /// The Sentinels should be asked now.
    pub ask: bool,
    /// When to decide again, should nothing change before.
    pub wake: Option<Duration>,
}

impl Decision {
    /// What holds before anything is known.
    pub fn starting() -> Self {
        Self::not(Rule::Starting, Vec::new())
    }

    pub(super) fn new(rule: Rule, serve: Option<usize>, about: Vec<usize>) -> Self {
        Self { serve, rule, about, refuted: Vec::new(), ask: false, wake: None }
    }

    pub(super) fn serve(place: usize, rule: Rule) -> Self {
        Self::new(rule, Some(place), Vec::new())
    }

    pub(super) fn not(rule: Rule, about: Vec<usize>) -> Self {
        Self::new(rule, None, about)
    }

    pub(super) fn about(self, about: Vec<usize>) -> Self {
        Self { about, ..self }
    }

    pub(super) fn until(self, wake: Duration) -> Self {
        Self { wake: Some(wake), ..self }
    }
}
