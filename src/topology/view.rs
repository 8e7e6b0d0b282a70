//! What is published of a pool, and the right to use what it serves.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{Address, Failure, Hints, Reason, State, VerdictKind};

/// The right to use one backend process. Every session on the backend holds a clone, and ends when
/// the monitor revokes it. Dropping a lease revokes nothing.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Grant>);

#[derive(Debug)]
struct Grant {
    revoked: AtomicBool,
    token: CancellationToken,
    /// In milliseconds since [`ZERO`].
    confirmed: AtomicU64,
}

/// The zero of the leases' time.
static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);

fn millis(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*ZERO).as_millis()).unwrap_or(u64::MAX)
}

impl Default for Lease {
    fn default() -> Self {
        Self(Arc::new(Grant {
            revoked: AtomicBool::new(false),
            token: CancellationToken::new(),
            confirmed: AtomicU64::new(millis(Instant::now())),
        }))
    }
}

impl Lease {
    /// Every backend has been checked since then, and the lease still holds.
    pub fn confirm(&self, since: Instant) {
        self.0.confirmed.store(millis(since), Ordering::Relaxed);
    }

    /// How old the oldest check is on which the lease rests. If that is long, the process itself has
    /// stood still, and knows nothing of what happened meanwhile.
    pub fn unconfirmed_for(&self) -> Duration {
        let confirmed = self.0.confirmed.load(Ordering::Relaxed);
        Duration::from_millis(millis(Instant::now()).saturating_sub(confirmed))
    }

    /// Whether both are the same grant.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Ends every session that holds this lease.
    pub fn revoke(&self) {
        self.0.revoked.store(true, Ordering::Release);
        self.0.token.cancel();
    }

    /// Whether the lease has been revoked.
    pub fn is_revoked(&self) -> bool {
        self.0.revoked.load(Ordering::Acquire)
    }

    /// Resolves when the lease is revoked.
    ///
    /// Must stay in the task that polled it first: the waker is registered once, so that a session
    /// which polls this with every message takes no lock that all sessions share.
    pub fn revoked(&self) -> Revoked {
        Revoked {
            lease: self.clone(),
            wait: Box::pin(self.0.token.clone().cancelled_owned()),
            registered: false,
        }
    }
}

/// See [`Lease::revoked`].
#[derive(Debug)]
pub struct Revoked {
    lease: Lease,
    wait: Pin<Box<WaitForCancellationFutureOwned>>,
    registered: bool,
}

impl Revoked {
    /// The lease that is waited for.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }
}

impl Future for Revoked {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.lease.is_revoked() {
            return Poll::Ready(());
        }
        if self.registered {
            return Poll::Pending;
        }
        self.registered = true;
        self.wait.as_mut().poll(cx)
    }
}

/// The backend that a View serves.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its name in the config.
    pub backend: Arc<str>,
    /// The address that passed the check.
    pub address: Address,
    /// The host of the config, which its certificate names where it speaks TLS; empty for a unix socket.
    pub host: Arc<str>,
    /// Why it was chosen.
    pub reason: Reason,
    /// Revoked when this process at this address is no longer the one to serve.
    pub lease: Lease,
}

/// What clients of a pool get.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// This backend.
    Serve(Arc<Served>),
    /// Nothing yet, and why.
    Hold(Reason),
    /// Nothing, and why.
    Refuse(Reason),
}

impl Verdict {
    /// The verdict without its particulars.
    pub fn kind(&self) -> VerdictKind {
        match self {
            Self::Serve(_) => VerdictKind::Serve,
            Self::Hold(_) => VerdictKind::Hold,
            Self::Refuse(_) => VerdictKind::Refuse,
        }
    }

    /// The served backend, if one is.
    pub fn served(&self) -> Option<&Arc<Served>> {
        match self {
            Self::Serve(served) => Some(served),
            Self::Hold(_) | Self::Refuse(_) => None,
        }
    }

    /// Why none is.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Serve(_) => None,
            Self::Hold(reason) | Self::Refuse(reason) => Some(reason),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serve(served) => write!(f, "serve {} at {}", served.backend, served.address),
            Self::Hold(reason) => write!(f, "hold: {reason}"),
            Self::Refuse(reason) => write!(f, "refuse: {reason}"),
        }
    }
}

/// What the control plane publishes of a pool and the data plane acts on. Immutable.
#[derive(Debug)]
pub struct View {
    /// Grows by one with each View of a pool, from 0.
    pub epoch: u64,
    /// When it was published.
    pub since: Instant,
    /// When a backend was served last; `None` while one is, or if none ever was.
    pub unserved_since: Option<Instant>,
    /// What clients get.
    pub verdict: Verdict,
}

/// Where others read what a pool's monitor publishes.
#[derive(Clone, Debug)]
pub struct Published {
    /// The pool's name.
    pub pool: Arc<str>,
    /// What clients get.
    pub view: watch::Receiver<Arc<View>>,
    /// What is known, renewed with every check.
    pub status: Arc<Mutex<PoolStatus>>,
    /// Where sessions report what they notice.
    pub hints: Hints,
}

impl Published {
    /// What is known now. Not to be held for long: the monitor waits for it.
    pub fn status(&self) -> MutexGuard<'_, PoolStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that a pool's monitor knows, for `/status`.
#[derive(Clone, Debug)]
pub struct PoolStatus {
    /// The rule that decides now, and its sentence.
    pub reason: Reason,
    /// In the order of the config.
    pub backends: Vec<BackendStatus>,
    /// In the order of the config; empty in a pool without Sentinels.
    pub sentinels: Vec<SentinelStatus>,
    /// What the Sentinels agree on, in words; `None` in a pool without.
    pub sentinel_view: Option<String>,
}

/// One Sentinel of a pool, for `/status`.
#[derive(Clone, Debug)]
pub struct SentinelStatus {
    /// `host:port` of the config.
    pub address: String,
    /// What it said last, or why it is not heard, in words.
    pub says: String,
    /// Whether it answers.
    pub up: bool,
}

/// One backend of a pool as the last checks found it, for `/status`.
#[derive(Clone, Debug)]
pub struct BackendStatus {
    /// Its name in the config.
    pub name: Arc<str>,
    /// `host:port` of the config.
    pub address: String,
    /// What the monitor holds to be true.
    pub state: State,
    /// What that means for the pool, in words.
    pub evidence: String,
    /// The last check that ended.
    pub last_check: Option<LastCheck>,
}

/// The last check of a backend that ended, whatever its result.
#[derive(Clone, Debug)]
pub struct LastCheck {
    /// When it ended.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// What went wrong, and the backend's or the system's own words where there are any.
    pub error: Option<(Failure, Option<String>)>,
}
