//! Why a session ended, and why a client was not let in.

/// Why a session ended. A closed set: each is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The client closed first, and everything was delivered.
    ClientClosed,
    /// The client's connection broke.
    ClientReset,
    /// The backend closed first, and everything was delivered.
    BackendClosed,
    /// The backend's connection broke.
    BackendReset,
    /// The backend lost its lease: the master changed or is in doubt.
    Revoked,
    /// There was no backend to serve, and clients do not wait here.
    Refused,
    /// No backend came while the client waited.
    HoldTimeout,
    /// There was no backend to serve, and too many clients wait already.
    HoldFull,
    /// The backend refused the connection or cannot be reached.
    ConnectFailed,
    /// The backend did not take the connection in time.
    ConnectTimeout,
    /// Nothing moved for as long as the listener's idle_timeout.
    IdleTimeout,
    /// One side had closed, and nothing moved for as long as the listener's half_close_timeout.
    HalfCloseTimeout,
    /// A client that speaks plain text, on a listener with TLS.
    PlainOnTls,
    /// A client that speaks TLS, on a listener without.
    TlsOnPlain,
    /// The client has no certificate that the listener accepts.
    TlsClientCert,
    /// The client does not trust the listener's certificate.
    TlsUntrusted,
    /// The client's TLS handshake took too long.
    TlsTimeout,
    /// The client's TLS handshake failed for another reason.
    TlsFailed,
    /// rolegate has no descriptor or local port left to connect with.
    NoResources,
    /// rolegate stopped.
    Shutdown,
    /// A defect of rolegate ended the session.
    Internal,
}

impl CloseReason {
    /// Every reason.
    pub const ALL: [Self; 21] = [
        Self::ClientClosed,
        Self::ClientReset,
        Self::BackendClosed,
        Self::BackendReset,
        Self::Revoked,
        Self::Refused,
        Self::HoldTimeout,
        Self::HoldFull,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::IdleTimeout,
        Self::HalfCloseTimeout,
        Self::PlainOnTls,
        Self::TlsOnPlain,
        Self::TlsClientCert,
        Self::TlsUntrusted,
        Self::TlsTimeout,
        Self::TlsFailed,
        Self::NoResources,
        Self::Shutdown,
        Self::Internal,
    ];

    /// The word for it in metrics and access lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::ClientReset => "client_reset",
            Self::BackendClosed => "backend_closed",
            Self::BackendReset => "backend_reset",
            Self::Revoked => "revoked",
            Self::Refused => "refused",
            Self::HoldTimeout => "hold_timeout",
            Self::HoldFull => "hold_full",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::HalfCloseTimeout => "half_close_timeout",
            Self::PlainOnTls => "plain_on_tls",
            Self::TlsOnPlain => "tls_on_plain",
            Self::TlsClientCert => "tls_client_cert",
            Self::TlsUntrusted => "tls_untrusted",
            Self::TlsTimeout => "tls_timeout",
            Self::TlsFailed => "tls_failed",
            Self::NoResources => "no_resources",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal",
        }
    }
}

/// Why a client was not let in. A closed set: each is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many clients as the process may have are in.
    MaxConnections,
    /// As many as the listener may have.
    ListenerMaxConnections,
    /// As many as may come from this address.
    SourceMaxConnections,
    /// The listener's `allow` and `deny` keep this address out.
    Denied,
    /// One outside the listener's `trusted` networks, where a PROXY header is required.
    ProxyUntrusted,
    /// The client's first bytes are no PROXY header.
    ProxyMissing,
    /// The PROXY header cannot be understood.
    ProxyMalformed,
    /// The PROXY header is longer than any that is taken.
    ProxyTooLong,
    /// The PROXY header did not come in time.
    ProxyTimeout,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::MaxConnections,
        Self::ListenerMaxConnections,
        Self::SourceMaxConnections,
        Self::Denied,
        Self::ProxyUntrusted,
        Self::ProxyMissing,
        Self::ProxyMalformed,
        Self::ProxyTooLong,
        Self::ProxyTimeout,
    ];

    /// The word for it in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxConnections => "max_connections",
            Self::ListenerMaxConnections => "listener_max_connections",
            Self::SourceMaxConnections => "source_max_connections",
            Self::Denied => "denied",
            Self::ProxyUntrusted => "proxy_untrusted",
            Self::ProxyMissing => "proxy_missing",
            Self::ProxyMalformed => "proxy_malformed",
            Self::ProxyTooLong => "proxy_too_long",
            Self::ProxyTimeout => "proxy_timeout",
        }
    }

    /// What to do, for a log line.
    pub fn advice(self) -> &'static str {
        match self {
            Self::MaxConnections => {
                "raise max_connections, and the limit of open files with it, or look for clients that \
                 leak connections"
            }
            Self::ListenerMaxConnections => {
                "raise the listener's max_connections, or look for clients that leak connections"
            }
            Self::SourceMaxConnections => {
                "look for a leak at this client, or raise max_connections_per_source"
            }
            Self::Denied => "nothing, or add its network to allow, or take it out of deny",
            Self::ProxyUntrusted => {
                "nothing, or add it to trusted if it is a load balancer; clients need another listener"
            }
            Self::ProxyMissing => {
                "let the load balancer send the PROXY header (HAProxy: send-proxy-v2), or remove \
                 proxy_protocol"
            }
            Self::ProxyMalformed => "look at the load balancer: its PROXY header is none of TCP",
            Self::ProxyTooLong => {
                "let the load balancer add less to its PROXY header: 107 bytes fit in version 1, 4096 \
                 in version 2"
            }
            Self::ProxyTimeout => {
                "look at the load balancer and the network, or raise proxy_timeout"
            }
        }
    }
}
