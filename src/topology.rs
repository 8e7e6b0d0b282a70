//! Plain data that both planes share: names, roles, what a check found, and the published View.

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// What a backend says it is in `INFO replication`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `role:master`.
    Master,
    /// `role:slave`.
    Replica,
}

impl Role {
    /// Every role, in the order in which metrics show them.
    pub const ALL: [Self; 2] = [Self::Master, Self::Replica];

    /// The word for this role in config, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Replica => "replica",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a backend answered to a full check: PING said PONG and INFO named a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The address that was checked; sessions connect to this very address.
    pub address: SocketAddr,
    /// `role`.
    pub role: Role,
    /// `run_id` of INFO server: names one server process.
    pub run_id: String,
    /// `master_replid`.
    pub replid: String,
    /// `master_replid2`; `None` while it is all zeros.
    pub replid2: Option<String>,
    /// `master_repl_offset` of a master, `slave_repl_offset` of a replica.
    pub offset: Option<u64>,
    /// `master_link_status:up`; `None` for a master.
    pub link_up: Option<bool>,
}

/// Why a check failed. A closed set: each is a metric label and a log reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The host refused the connection: nothing listens there.
    Refused,
    /// The host or its network cannot be reached.
    Unreachable,
    /// The backend's name does not resolve.
    Unresolved,
    /// rolegate has no descriptor or local port left to check with.
    NoResources,
    /// No complete answer within the check's timeout.
    Timeout,
    /// The backend closed or reset the connection before it had answered.
    Cut,
    /// `-LOADING`: the dataset is being read.
    Loading,
    /// `-BUSY`: a script runs, and this connection had no answer before it.
    Busy,
    /// `-MASTERDOWN`: a replica that may not serve stale data.
    MasterDown,
    /// `-NOAUTH`: the backend wants a password and none is configured.
    NoAuth,
    /// `-WRONGPASS`, or an older server's words for it.
    WrongPass,
    /// A password is configured and the backend has none.
    AuthNotSet,
    /// `-NOPERM`: the user may not run PING or INFO.
    NoPerm,
    /// `-DENIED`: protected mode.
    Denied,
    /// `-ERR max number of clients reached`.
    MaxClients,
    /// Any other error reply.
    ErrorReply,
    /// INFO has no role: a Sentinel, or something that is not Redis.
    NoRole,
    /// The answer is not RESP, not of the right kind, or too long.
    Protocol,
}

impl Failure {
    /// Every failure.
    pub const ALL: [Self; 18] = [
        Self::Refused,
        Self::Unreachable,
        Self::Unresolved,
        Self::NoResources,
        Self::Timeout,
        Self::Cut,
        Self::Loading,
        Self::Busy,
        Self::MasterDown,
        Self::NoAuth,
        Self::WrongPass,
        Self::AuthNotSet,
        Self::NoPerm,
        Self::Denied,
        Self::MaxClients,
        Self::ErrorReply,
        Self::NoRole,
        Self::Protocol,
    ];

    /// The word for this failure in metrics, logs and `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Unresolved => "unresolved",
            Self::NoResources => "no_resources",
            Self::Timeout => "timeout",
            Self::Cut => "cut",
            Self::Loading => "loading",
            Self::Busy => "busy",
            Self::MasterDown => "masterdown",
            Self::NoAuth => "noauth",
            Self::WrongPass => "wrongpass",
            Self::AuthNotSet => "auth_not_set",
            Self::NoPerm => "noperm",
            Self::Denied => "denied",
            Self::MaxClients => "maxclients",
            Self::ErrorReply => "error_reply",
            Self::NoRole => "no_role",
            Self::Protocol => "protocol",
        }
    }

    /// Whose side it is and what to do, for a log line.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Refused => "nothing listens on this address: is the backend running?",
            Self::Unreachable => "the network does not reach this address",
            Self::Unresolved => "the backend's name does not resolve: check the config and DNS",
            Self::NoResources => {
                "rolegate itself is out of descriptors, ports or memory: raise its limits"
            }
            Self::Timeout => "the backend is silent: hung, stopped, overloaded or cut off",
            Self::Cut => "the backend closed the connection before it answered",
            Self::Loading => "the backend is reading its dataset; it answers when that is done",
            Self::Busy => "the backend runs a long script; it answers when that is done",
            Self::MasterDown => "a replica without its master that may not serve stale data",
            Self::NoAuth => "the backend wants a password: set auth in the pool",
            Self::WrongPass => "the backend refuses the pool's username or password",
            Self::AuthNotSet => "the pool has a password but the backend has none: remove auth",
            Self::NoPerm => "the check's user needs the ACL rules +ping +info",
            Self::Denied => "the backend is in protected mode and does not serve this host",
            Self::MaxClients => "the backend has reached its maxclients",
            Self::ErrorReply => "the backend answered the check with an error",
            Self::NoRole => "INFO names no role: a Sentinel, or not a Redis data node",
            Self::Protocol => "the answer is not what Redis answers: is this a Redis port?",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the monitor holds to be true of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// No check has ended yet.
    Unchecked,
    /// The last verdict of its checks is this answer.
    Up(Answer),
    /// Its checks fail.
    Down(Failure),
}

impl State {
    /// The role, as far as it is proven.
    pub fn role(&self) -> Option<Role> {
        match self {
            Self::Up(answer) => Some(answer.role),
            Self::Unchecked | Self::Down(_) => None,
        }
    }

    /// The word for this state in logs and `/status`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Up(_) => "up",
            Self::Down(_) => "down",
        }
    }
}

/// Why no backend of a pool may be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Some backend's first check has not ended yet.
    Starting,
    /// Every backend was checked and none is a proven master.
    NoMaster,
    /// Several backends say that they are the master.
    Conflict {
        /// Their names.
        names: Vec<Arc<str>>,
        /// They all have one run_id: the config names one process several times.
        one_process: bool,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("first checks have not ended yet"),
            Self::NoMaster => f.write_str("no backend is a proven master"),
            Self::Conflict { names, one_process } => {
                write!(f, "several backends say role:master: {}", names.join(", "))?;
                if *one_process {
                    f.write_str("; they have one run_id: the config names one process twice")?;
                }
                Ok(())
            }
        }
    }
}

/// The right to use one backend process. Every session on the backend holds a clone, and ends when
/// the monitor revokes it. Dropping a lease revokes nothing.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    revoked: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Lease {
    /// Ends every session that holds this lease.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Whether the lease has been revoked.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Resolves when the lease is revoked.
    ///
    /// Must stay in the task that polled it first: the waker is registered once, so that a session
    /// which polls this with every message takes no lock that all sessions share.
    pub fn revoked(&self) -> Revoked {
        Revoked {
            flag: self.revoked.clone(),
            wait: Box::pin(self.token.clone().cancelled_owned()),
            registered: false,
        }
    }
}

/// See [`Lease::revoked`].
#[derive(Debug)]
pub struct Revoked {
    flag: Arc<AtomicBool>,
    wait: Pin<Box<WaitForCancellationFutureOwned>>,
    registered: bool,
}

impl Future for Revoked {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.flag.load(Ordering::Acquire) {
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
    pub address: SocketAddr,
    /// Revoked when this process at this address is no longer the one to serve.
    pub lease: Lease,
}

/// What clients of a pool get.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// This backend.
    Serve(Served),
    /// Nothing, and why.
    Refuse(Refusal),
}

/// A verdict without its particulars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerdictKind {
    /// A backend is served.
    Serve,
    /// See [`Refusal::Starting`].
    Starting,
    /// See [`Refusal::NoMaster`].
    NoMaster,
    /// See [`Refusal::Conflict`].
    Conflict,
}

impl VerdictKind {
    /// Every kind, in the order in which metrics show them.
    pub const ALL: [Self; 4] = [Self::Serve, Self::Starting, Self::NoMaster, Self::Conflict];

    /// The word for this kind in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Starting => "starting",
            Self::NoMaster => "no_master",
            Self::Conflict => "conflict",
        }
    }
}

impl Verdict {
    /// The verdict without its particulars.
    pub fn kind(&self) -> VerdictKind {
        match self {
            Self::Serve(_) => VerdictKind::Serve,
            Self::Refuse(Refusal::Starting) => VerdictKind::Starting,
            Self::Refuse(Refusal::NoMaster) => VerdictKind::NoMaster,
            Self::Refuse(Refusal::Conflict { .. }) => VerdictKind::Conflict,
        }
    }

    /// The served backend, if one is.
    pub fn served(&self) -> Option<&Served> {
        match self {
            Self::Serve(served) => Some(served),
            Self::Refuse(_) => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serve(served) => write!(f, "serve {} at {}", served.backend, served.address),
            Self::Refuse(refusal) => write!(f, "refuse: {refusal}"),
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
    /// The backends in the order of the config, renewed with every check.
    pub backends: watch::Receiver<Vec<BackendStatus>>,
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
