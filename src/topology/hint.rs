//! Hints: what others notice that a check should look into.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

/// What a session noticed that a check should look into. A closed set: each is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// The served backend refused a session's connection, or did not take it in time.
    ConnectFailed,
    /// The backend's connection broke.
    BackendReset,
    /// A reply began with `-READONLY`.
    ReadOnly,
    /// A check's idle connection was cut.
    CheckCut,
    /// A Sentinel told of an event.
    Sentinel,
}

impl Hint {
    /// Every hint, in the order in which metrics show them.
    pub const ALL: [Self; 5] =
        [Self::ConnectFailed, Self::BackendReset, Self::ReadOnly, Self::CheckCut, Self::Sentinel];

    /// The word for it in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectFailed => "connect_failed",
            Self::BackendReset => "backend_reset",
            Self::ReadOnly => "readonly",
            Self::CheckCut => "check_cut",
            Self::Sentinel => "sentinel",
        }
    }
}

/// Where hints go. Hints of a kind that come before the monitor looks are one hint.
#[derive(Clone, Debug, Default)]
pub struct Hints(Arc<HintBox>);

#[derive(Debug, Default)]
struct HintBox {
    waiting: [AtomicBool; Hint::ALL.len()],
    given: Notify,
}

impl Hints {
    /// Asks for checks at once. Decides nothing.
    pub fn give(&self, hint: Hint) {
        if !self.0.waiting[hint as usize].swap(true, Ordering::AcqRel) {
            self.0.given.notify_one();
        }
    }

    /// Waits until there are some, and takes them. For one task only.
    pub async fn take(&self) -> Vec<Hint> {
        loop {
            let taken: Vec<_> = Hint::ALL
                .into_iter()
                .filter(|hint| self.0.waiting[*hint as usize].swap(false, Ordering::AcqRel))
                .collect();
            if !taken.is_empty() {
                return taken;
            }
            self.0.given.notified().await;
        }
    }
}
