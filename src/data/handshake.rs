//! The TLS handshake with a new client, and what its failure means.

use std::{fmt, io, sync::Arc, time::Duration};

use rustls::{AlertDescription, Error, ServerConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tracing::warn;

use crate::{
    metrics::{CloseReason, Untold},
    net::{
        self, Peer,
        tls::{self, Stream},
    },
};

/// For the last words to a client that is not understood.
const FAREWELL: Duration = Duration::from_secs(1);

/// What drivers show to whoever forgot to set TLS.
const SPEAK_TLS: &[u8] = b"-ERR this port speaks TLS, and the client does not\r\n";

/// How a listener shakes hands with its clients.
pub struct Handshake {
    config: Arc<ServerConfig>,
    timeout: Duration,
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Handshake {
    /// `timeout` is for a whole handshake.
    pub fn new(config: Arc<ServerConfig>, timeout: Duration) -> Self {
        Self { config, timeout }
    }

    /// The client over TLS, or why not. Then it has been closed.
    pub(super) async fn take(
        &self,
        socket: TcpStream,
        peer: Peer,
        log: &Log,
    ) -> Result<Stream, CloseReason> {
        let refused = match timeout(self.timeout, self.shake(socket)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(refused)) => refused,
            Err(_) => Refused {
                reason: CloseReason::TlsTimeout,
                words: format!("not done in {:?}", self.timeout),
                socket: None,
            },
        };
        let reason = refused.reason;
        if !matches!(reason, CloseReason::ClientClosed | CloseReason::ClientReset) {
            log.failed(peer, reason, &refused.words);
        }
        if let Some(mut socket) = refused.socket
            && timeout(FAREWELL, say_farewell(&mut socket, reason)).await.is_err()
        {
            net::reset(socket);
        }
        Err(reason)
    }

    async fn shake(&self, socket: TcpStream) -> Result<Stream, Refused> {
        let mut first = [0; 1];
        let refused =
            |reason, words: &str, socket| Err(Refused { reason, words: words.to_owned(), socket });
        match socket.peek(&mut first).await {
            // One that connects to see whether that works, such as a load balancer.
            Ok(0) => refused(CloseReason::ClientClosed, "", None),
            Ok(_) if tls::may_be_hello(&first) => {
                tls::accept(socket, &self.config).await.map_err(|(error, socket)| {
                    let (reason, words) = judge(&error);
                    Refused { reason, words, socket }
                })
            }
            Ok(_) => {
                let words = "its first byte is none of TLS";
                refused(CloseReason::PlainOnTls, words, Some(socket))
            }
            Err(_) => refused(CloseReason::ClientReset, "", None),
        }
    }
}

/// Why there is no session, and the socket where the client may be told.
struct Refused {
    reason: CloseReason,
    words: String,
    socket: Option<TcpStream>,
}

/// Lets the client have what is on its way to it, an alert or words of ours: a close with unread input
/// would discard that.
async fn say_farewell(socket: &mut TcpStream, reason: CloseReason) -> io::Result<()> {
    if reason == CloseReason::PlainOnTls {
        socket.write_all(SPEAK_TLS).await?;
    }
    socket.shutdown().await?;
    let mut rest = [0; 1024];
    while socket.read(&mut rest).await? > 0 {}
    Ok(())
}

fn judge(error: &io::Error) -> (CloseReason, String) {
    let Some(cause) = tls::cause(error) else {
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof => CloseReason::ClientClosed,
            _ => CloseReason::ClientReset,
        };
        return (reason, error.to_string());
    };
    let reason = match cause {
        Error::NoCertificatesPresented | Error::InvalidCertificate(_) => CloseReason::TlsClientCert,
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired,
        ) => CloseReason::TlsUntrusted,
        _ => CloseReason::TlsFailed,
    };
    (reason, cause.to_string())
}

/// Log lines of one listener about clients of the wrong kind. A scanner cannot flood the log.
#[derive(Debug)]
pub struct Log {
    listener: Arc<str>,
    untold: Untold,
}

impl Log {
    /// Has written nothing yet.
    pub fn new(listener: Arc<str>) -> Self {
        Self { listener, untold: Untold::default() }
    }

    /// Writes a line, unless one was written just before.
    pub(super) fn failed(&self, peer: Peer, reason: CloseReason, words: &str) {
        let Some(failed) = self.untold.tell() else {
            return;
        };
        let left_out = failed - 1;
        let advice = match reason {
            CloseReason::PlainOnTls => "the client has to speak TLS here, or use a plain listener",
            CloseReason::TlsOnPlain => {
                "the client speaks TLS: give the listener tls, or the pool tls.passthrough"
            }
            CloseReason::TlsClientCert => {
                "the client needs a certificate that a CA of the listener's tls.client_ca has signed"
            }
            CloseReason::TlsUntrusted => {
                "the client does not trust the listener's tls.certificate: give it the CA, or renew it"
            }
            CloseReason::TlsTimeout => "the client or its network is slow, or it is no TLS client",
            _ => "the client's TLS does not fit: see error",
        };
        let (listener, client) = (&*self.listener, peer);
        let (reason, error) = (reason.as_str(), words);
        warn!(listener, %client, reason, error, advice, left_out, "client is not understood");
    }
}
