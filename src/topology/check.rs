//! What a check of one backend finds.

use std::fmt;

use super::Address;

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
    pub address: Address,
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

impl Answer {
    /// Whether the process that has this run_id answered. One without a run_id is never known.
    pub fn is_process(&self, run_id: &str) -> bool {
        !run_id.is_empty() && self.run_id == run_id
    }

    /// Whether the two differ in nothing but the offset.
    pub fn claims_the_same(&self, other: &Self) -> bool {
        // Named one by one, so that a new field is not forgotten here.
        let Self { address, role, run_id, replid, replid2, offset: _, link_up } = self;
        (address, role, run_id, replid, replid2, link_up)
            == (
                &other.address,
                &other.role,
                &other.run_id,
                &other.replid,
                &other.replid2,
                &other.link_up,
            )
    }
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
    /// TLS is configured, and the backend speaks plain text.
    TlsPlain,
    /// TLS is not configured, and the backend speaks it.
    TlsWanted,
    /// Nobody who is trusted has signed the backend's certificate.
    TlsUntrusted,
    /// The backend's certificate names another.
    TlsName,
    /// The backend's certificate has expired, or is not valid yet.
    TlsExpired,
    /// The backend wants a client certificate, or another one.
    TlsClientCert,
    /// The TLS handshake failed for another reason.
    Tls,
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
    pub const ALL: [Self; 25] = [
        Self::Refused,
        Self::Unreachable,
        Self::Unresolved,
        Self::NoResources,
        Self::Timeout,
        Self::Cut,
        Self::TlsPlain,
        Self::TlsWanted,
        Self::TlsUntrusted,
        Self::TlsName,
        Self::TlsExpired,
        Self::TlsClientCert,
        Self::Tls,
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
            Self::TlsPlain => "tls_plain",
            Self::TlsWanted => "tls_wanted",
            Self::TlsUntrusted => "tls_untrusted",
            Self::TlsName => "tls_name",
            Self::TlsExpired => "tls_expired",
            Self::TlsClientCert => "tls_client_cert",
            Self::Tls => "tls",
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

    /// Whether the backend refused the login, or what the login may do, or the two do not agree about
    /// their certificates: it answers, and tells nothing of its role.
    pub fn is_login(self) -> bool {
        matches!(
            self,
            Self::NoAuth
                | Self::WrongPass
                | Self::AuthNotSet
                | Self::NoPerm
                | Self::TlsUntrusted
                | Self::TlsName
                | Self::TlsExpired
                | Self::TlsClientCert
        )
    }

    /// Whose side it is and what to do, for a log line.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Refused => "nothing listens on this address: is the backend running?",
            Self::Unreachable => {
                "the network, or this user, does not reach this address: check routes, firewalls and \
                 the mode of a unix socket"
            }
            Self::Unresolved => "the backend's name does not resolve: check the config and DNS",
            Self::NoResources => {
                "rolegate itself is out of descriptors, ports or memory: raise its limits"
            }
            Self::Timeout => {
                "the backend is silent: hung, stopped, in a long script, overloaded or cut off"
            }
            Self::Cut => {
                "the backend closed the connection before it answered: is it stopping, or is that \
                 something else than Redis?"
            }
            Self::TlsPlain => "the backend speaks plain text: name its TLS port, or remove tls",
            Self::TlsWanted => {
                "the backend speaks TLS: set tls in the pool, or name its plain port"
            }
            Self::TlsUntrusted => {
                "nobody trusted has signed the backend's certificate: check tls.ca in the pool"
            }
            Self::TlsName => {
                "the backend's certificate names another: set tls.server_name, or renew it"
            }
            Self::TlsExpired => {
                "the backend's certificate is not valid now: renew it, or the clock is off"
            }
            Self::TlsClientCert => {
                "the backend wants a client certificate that it knows: set tls.certificate and tls.key"
            }
            Self::Tls => "the TLS handshake with the backend failed: see the words with it",
            Self::Loading => "the backend is reading its dataset; it answers when that is done",
            Self::Busy => "the backend runs a long script; it answers when that is done",
            Self::MasterDown => {
                "a replica without its master that may not serve stale data: bring its master back"
            }
            Self::NoAuth => "the backend wants a password: set auth in the pool",
            Self::WrongPass => {
                "the backend refuses the pool's username or password: correct auth in the pool"
            }
            Self::AuthNotSet => "the pool has a password but the backend has none: remove auth",
            Self::NoPerm => "the check's user needs the ACL rules +ping +info",
            Self::Denied => {
                "the backend is in protected mode and does not serve this host: give it a password"
            }
            Self::MaxClients => {
                "the backend has reached its maxclients: raise that, or look for clients that leak \
                 connections"
            }
            Self::ErrorReply => {
                "the backend answered the check with an error: see the words with it"
            }
            Self::NoRole => "INFO names no role: a Sentinel? name the port of a Redis data node",
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
        self.answer().map(|answer| answer.role)
    }

    /// What it answered, unless it is down.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Up(answer) => Some(answer),
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
