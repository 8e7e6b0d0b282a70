//! TLS towards backends and Sentinels: the handshake, and what it means when it fails.

use std::{io, time::Duration};

use rustls::{AlertDescription, CertificateError, Error};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{reply, route::Problem};
use crate::{
    net::{
        self, Tuning,
        tls::{self, Connector, Stream},
    },
    topology::{Address, Failure},
};

/// What any TLS peer has to answer, be it with an alert: a ClientHello of TLS 1.2 with one cipher.
#[rustfmt::skip]
const HELLO: [u8; 52] = [
    22, 3, 1, 0, 47, // a handshake record
    1, 0, 0, 43, 3, 3, // a ClientHello of TLS 1.2
    0x72, 0x6f, 0x6c, 0x65, 0x67, 0x61, 0x74, 0x65, 0x72, 0x6f, 0x6c, 0x65, 0x67, 0x61, 0x74, 0x65,
    0x72, 0x6f, 0x6c, 0x65, 0x67, 0x61, 0x74, 0x65, 0x72, 0x6f, 0x6c, 0x65, 0x67, 0x61, 0x74, 0x65,
    0, // no session
    0, 4, 0xc0, 0x2f, 0xc0, 0x30, // ECDHE-RSA with AES-GCM
    1, 0, // no compression
];

/// For a connection that only asks what is spoken there.
const PATIENCE: Duration = Duration::from_secs(1);

/// What Redis answers in plain text, also without a login.
const PING: &[u8] = b"PING\r\n";

/// Shakes hands; the caller has the deadline. A plain Redis waits for the end of what it takes for a
/// command. So one that is silent for `patience` is asked in plain text, on a connection beside.
pub(super) async fn connect(
    socket: TcpStream,
    connector: &Connector,
    host: &str,
    address: &Address,
    patience: Duration,
) -> Result<Stream, Problem> {
    let is_plain = async {
        sleep(patience).await;
        if !answers(address, PING, |bytes| matches!(bytes[0], b'+' | b'-')).await {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        connected = connector.connect(host, socket) => {
            connected.map_err(|error| problem(&error).unwrap_or_else(|| broken_off(&error)))
        }
        () = is_plain => {
            Err(Problem { failure: Failure::TlsPlain, words: Some("it answers PING in plain text".to_owned()) })
        }
    }
}

/// Whether a TLS handshake is answered at this address.
pub(super) async fn speaks_tls(address: &Address, patience: Duration) -> bool {
    timeout(patience, answers(address, &HELLO, tls::is_answer)).await.unwrap_or(false)
}

async fn answers(address: &Address, question: &[u8], expected: fn(&[u8]) -> bool) -> bool {
    let ask = async {
        let tuning = Tuning { patience: PATIENCE, congestion: None };
        let mut socket = net::connect(address, &tuning).await?;
        socket.write_all(question).await?;
        let mut answer = [0; 2];
        socket.read_exact(&mut answer).await?;
        net::reset(socket);
        Ok::<_, io::Error>(expected(&answer))
    };
    ask.await.unwrap_or(false)
}

fn broken_off(error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => {
            Problem { failure: Failure::Cut, words: Some("in the TLS handshake".to_owned()) }
        }
        _ => Problem::io(error),
    }
}

/// What rustls has against the peer, or the peer against us. `None` for other errors of a stream.
pub(super) fn problem(error: &io::Error) -> Option<Problem> {
    let cause = tls::cause(error)?;
    let words = Some(reply::tidy(&cause.to_string()));
    Some(Problem { failure: failure(cause), words })
}

fn failure(error: &Error) -> Failure {
    match error {
        // A record that is none.
        Error::InvalidMessage(_) => Failure::TlsPlain,
        Error::InvalidCertificate(wrong) => match wrong {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Failure::TlsExpired,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Failure::TlsName
            }
            _ => Failure::TlsUntrusted,
        },
        Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => Failure::TlsClientCert,
        _ => Failure::Tls,
    }
}

#[cfg(test)]
mod tests {
    use rustls::InvalidMessage;

    use super::*;

    #[test]
    fn every_cause_has_its_failure() {
        let cases = [
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), Failure::TlsPlain),
            (Error::InvalidCertificate(CertificateError::Expired), Failure::TlsExpired),
            (Error::InvalidCertificate(CertificateError::NotValidYet), Failure::TlsExpired),
            (Error::InvalidCertificate(CertificateError::NotValidForName), Failure::TlsName),
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), Failure::TlsUntrusted),
            (Error::InvalidCertificate(CertificateError::BadSignature), Failure::TlsUntrusted),
            (Error::AlertReceived(AlertDescription::CertificateRequired), Failure::TlsClientCert),
            (Error::AlertReceived(AlertDescription::UnknownCA), Failure::TlsClientCert),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), Failure::Tls),
        ];
        for (error, expected) in cases {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            assert_eq!(problem(&error).unwrap().failure, expected, "{error}");
        }
        assert!(problem(&io::ErrorKind::ConnectionReset.into()).is_none());
    }
}
