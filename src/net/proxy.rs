//! The header of the PROXY protocol, in which a load balancer tells whose connection it passes on. Both
//! versions; what follows the header stays in the socket.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use ppp::{v1, v2};
use tokio::{io::AsyncReadExt, net::TcpStream};

/// The longest header of version 1, in bytes: the protocol's own limit.
const MAX_TEXT: usize = 107;

/// The longest one of version 2 that is taken, in bytes, with all that a load balancer adds.
const MAX_BINARY: usize = 4096;

/// What version 1 begins with.
const TEXT: &[u8] = b"PROXY ";

/// Version 1 of one who does not tell. Anything may follow, to the end of the line.
const UNKNOWN: &[u8] = b"PROXY UNKNOWN";

/// The part of version 2 that tells how long the rest is.
const FIXED: usize = 16;

/// So much is looked at once.
const LOOK: usize = 512;

/// Why nothing can be told about a client.
#[derive(Debug)]
pub enum Fault {
    /// It begins with something else.
    Missing,
    /// It begins as a header does, and is none.
    Malformed,
    /// The header does not end where it has to: 107 bytes of version 1, 4096 of version 2.
    TooLong,
    /// The peer closed before its end.
    Closed,
    /// The connection broke before its end.
    Broken,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Broken,
        }
    }
}

/// Takes the header, and nothing after it. `None` if it does not say where the client is, as the health
/// checks of a load balancer do: then it is the peer itself. The caller sets the deadline.
pub async fn read(socket: &mut TcpStream) -> Result<Option<SocketAddr>, Fault> {
    let mut header = Vec::new();
    let mut look = [0; LOOK];
    loop {
        let taken = header.len();
        let seen = match socket.peek(&mut look).await? {
            0 => return Err(Fault::Closed),
            seen => &look[..seen],
        };
        header.extend_from_slice(seen);
        // Until it is known where the header ends, all of it is header. To take that makes room to wait
        // for more.
        let end = measure(&header)?;
        header.truncate(end.unwrap_or(header.len()));
        let part = header.len() - taken;
        socket.read_exact(&mut look[..part]).await?;
        if end.is_some() {
            return parse(&header);
        }
    }
}

/// Where the header ends with which these bytes begin; `None` if not within them.
fn measure(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let begins_as = |prefix: &[u8]| bytes.iter().zip(prefix).all(|(a, b)| a == b);
    if begins_as(TEXT) {
        let line = &bytes[..bytes.len().min(MAX_TEXT)];
        return match line.iter().position(|byte| *byte == b'\n') {
            Some(end) if line[..end].ends_with(b"\r") => Ok(Some(end + 1)),
            Some(_) => Err(Fault::Malformed),
            None if bytes.len() >= MAX_TEXT => Err(Fault::TooLong),
            None => Ok(None),
        };
    }
    if !begins_as(v2::PROTOCOL_PREFIX) {
        return Err(Fault::Missing);
    }
    let Some(&[high, low]) = bytes.get(FIXED - 2..FIXED) else {
        return Ok(None);
    };
    let end = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if end > MAX_BINARY {
        return Err(Fault::TooLong);
    }
    Ok(Some(end).filter(|end| *end <= bytes.len()))
}

/// Whom a whole header tells of.
fn parse(header: &[u8]) -> Result<Option<SocketAddr>, Fault> {
    if header.strip_prefix(UNKNOWN).is_some_and(|rest| rest.starts_with(b" ") || rest == b"\r\n") {
        return Ok(None);
    }
    if header.starts_with(TEXT) {
        let header = v1::Header::try_from(header).map_err(|_| Fault::Malformed)?;
        return Ok(match header.addresses {
            v1::Addresses::Tcp4(ip) => Some(address(ip.source_address, ip.source_port)),
            v1::Addresses::Tcp6(ip) => Some(address(ip.source_address, ip.source_port)),
            v1::Addresses::Unknown => None,
        });
    }
    let header = v2::Header::try_from(header).map_err(|_| Fault::Malformed)?;
    match (header.command, header.protocol) {
        (v2::Command::Local, _) | (v2::Command::Proxy, v2::Protocol::Unspecified) => Ok(None),
        (v2::Command::Proxy, v2::Protocol::Datagram) => Err(Fault::Malformed),
        (v2::Command::Proxy, v2::Protocol::Stream) => Ok(match header.addresses {
            v2::Addresses::IPv4(ip) => Some(address(ip.source_address, ip.source_port)),
            v2::Addresses::IPv6(ip) => Some(address(ip.source_address, ip.source_port)),
            // A client of the load balancer's own unix socket has no address that rules could judge.
            v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
        }),
    }
}

fn address(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    (ip.into(), port).into()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream as StdStream};

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A header of version 2.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = v2::PROTOCOL_PREFIX.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    /// What these bytes are as a whole.
    fn whole(bytes: &[u8]) -> Result<Option<SocketAddr>, Fault> {
        match measure(bytes)? {
            Some(end) => {
                assert_eq!(end, bytes.len());
                parse(bytes)
            }
            None => panic!("{bytes:?} is no whole header"),
        }
    }

    #[test]
    fn headers_of_both_versions() {
        let told = |bytes: &[u8]| whole(bytes).unwrap().map(|address| address.to_string());
        let four = [10, 1, 2, 3, 127, 0, 0, 1, 0x1f, 0x90, 0, 80];
        let mut six = [0; 36];
        (six[0], six[1], six[15], six[33]) = (0xfd, 0, 1, 7);
        let mut tlvs = four.to_vec();
        tlvs.extend([4, 0, 3, 0, 0, 0]);
        for (bytes, address) in [
            (&b"PROXY TCP4 10.1.2.3 127.0.0.1 8080 80\r\n"[..], Some("10.1.2.3:8080")),
            (b"PROXY TCP6 fd00::1 ::1 7 80\r\n", Some("[fd00::1]:7")),
            (b"PROXY UNKNOWN\r\n", None),
            (b"PROXY UNKNOWN what ever it is and how many words it has\r\n", None),
            (&binary(1, 0x11, &four), Some("10.1.2.3:8080")),
            (&binary(1, 0x11, &tlvs), Some("10.1.2.3:8080")),
            (&binary(1, 0x21, &six), Some("[fd00::1]:7")),
            (&binary(1, 0x31, &[b'x'; 216]), None),
            (&binary(1, 0, &[]), None),
            (&binary(0, 0, &[]), None),
            (&binary(0, 0x11, &four), None),
        ] {
            assert_eq!(told(bytes).as_deref(), address, "{bytes:?}");
            // However little of it has come.
            for part in 0..bytes.len() {
                assert!(matches!(measure(&bytes[..part]), Ok(None)), "{part} of {bytes:?}");
            }
        }
    }

    #[test]
    fn what_is_no_header() {
        for bytes in
            [&b"*1\r\n$4\r\nPING\r\n"[..], b"PING\r\n", b"\x16\x03\x01", b"proxy ", b"\r\nX"]
        {
            assert!(matches!(measure(bytes), Err(Fault::Missing)), "{bytes:?}");
        }
        for bytes in [
            &b"PROXY TCP4 10.1.2.3 127.0.0.1 8080 80\n"[..],
            b"PROXY TCP4 10.1.2.3 127.0.0.1 8080\r\n",
            b"PROXY TCP4 10.1.2.3 127.0.0.1 8080 80 9\r\n",
            b"PROXY TCP4 10.1.2.3 127.0.0.1 8080 65536\r\n",
            b"PROXY TCP4 fd00::1 ::1 7 80\r\n",
            b"PROXY TCP5 10.1.2.3 127.0.0.1 8080 80\r\n",
            b"PROXY UNKNOWNS\r\n",
            b"PROXY \xff\r\n",
            b"PROXY \r\n",
            &binary(1, 0x11, &[0; 11]),
            &binary(2, 0x11, &[0; 12]),
            &binary(1, 0x12, &[0; 12]),
            &binary(1, 0x41, &[0; 12]),
        ] {
            assert!(matches!(whole(bytes), Err(Fault::Malformed)), "{bytes:?}");
        }
        let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat();
        assert!(matches!(measure(&long[..107]), Err(Fault::TooLong)));
        assert!(matches!(measure(&long), Err(Fault::TooLong)));
        let most = binary(1, 0, &[0; MAX_BINARY - FIXED]);
        assert_eq!(measure(&most).unwrap(), Some(MAX_BINARY));
        let long = binary(1, 0, &[0; MAX_BINARY - FIXED + 1]);
        assert!(matches!(measure(&long[..FIXED]), Err(Fault::TooLong)));
    }

    /// What is read from these bytes, and what is left of them, however they are cut.
    async fn through_a_socket(
        bytes: &[u8],
        cut: usize,
    ) -> (Result<Option<SocketAddr>, Fault>, Vec<u8>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = StdStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let stream = |socket: StdStream| {
            socket.set_nonblocking(true).unwrap();
            TcpStream::from_std(socket).unwrap()
        };
        let (mut client, mut socket) = (stream(client), stream(socket));
        let (head, tail) = bytes.split_at(cut.min(bytes.len()));
        client.write_all(head).await.unwrap();
        let send = async {
            tokio::task::yield_now().await;
            client.write_all(tail).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(read(&mut socket), send);
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        (read, rest)
    }

    fn block_on<T>(task: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task)
    }

    /// Random bytes, most of which begin as a header does.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let prefix = prop_oneof![
            Just(Vec::new()),
            Just(b"PROXY ".to_vec()),
            Just(b"PROXY TCP4 ".to_vec()),
            Just(b"PROXY TCP4 1.2.3.4 5.6.7.8 9 ".to_vec()),
            Just(b"PROXY UNKNOWN".to_vec()),
            Just(v2::PROTOCOL_PREFIX.to_vec()),
            (0..3u8, any::<u8>(), 0..40u8).prop_map(|(command, family, length)| {
                let mut bytes = binary(command, family, &[]);
                bytes[FIXED - 1] = length;
                bytes
            }),
        ];
        let rest = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            "[0-9. ]{0,12}(\r\n)?.{0,20}".prop_map(String::into_bytes),
        ];
        (prefix, rest).prop_map(|(prefix, rest)| [prefix, rest].concat())
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_what_is_no_header_stays(bytes in bytes(), cut in 0..64usize) {
            let (read, rest) = block_on(through_a_socket(&bytes, cut));
            prop_assert!(bytes.ends_with(&rest));
            let taken = bytes.len() - rest.len();
            match (measure(&bytes), read) {
                (Ok(Some(end)), Ok(source)) => {
                    prop_assert_eq!(taken, end);
                    prop_assert_eq!(parse(&bytes[..end]).unwrap(), source);
                }
                (Ok(Some(end)), Err(Fault::Malformed)) => prop_assert_eq!(taken, end),
                (Ok(None), Err(Fault::Closed)) | (Err(_), Err(_)) => {}
                (measured, read) => prop_assert!(false, "{measured:?}, {read:?}"),
            }
        }

        #[test]
        fn what_follows_a_header_is_left(
            port in any::<u16>(),
            tlvs in prop::collection::vec(any::<u8>(), 0..1500),
            rest in prop::collection::vec(any::<u8>(), 0..3000),
            text in any::<bool>(),
            cut in 0..600usize,
        ) {
            let header = if text {
                format!("PROXY TCP4 1.2.3.4 5.6.7.8 {port} 9\r\n").into_bytes()
            } else {
                let [high, low] = port.to_be_bytes();
                let addresses = [1, 2, 3, 4, 5, 6, 7, 8, high, low, 0, 9];
                binary(1, 0x11, &[&addresses[..], &tlvs].concat())
            };
            let (read, left) = block_on(through_a_socket(&[header, rest.clone()].concat(), cut));
            prop_assert_eq!(read.unwrap(), Some(([1, 2, 3, 4], port).into()));
            prop_assert_eq!(left, rest);
        }
    }
}
