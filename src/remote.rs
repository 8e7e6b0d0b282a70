//! Asks the rolegate that runs with a config, over its admin address.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::Bind;

/// For each step; the admin answers at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// No answer is longer, in bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The config has no admin address.
    #[error("the config has no admin.bind, so the running rolegate cannot be asked; add one")]
    NoAdmin,
    /// Nobody answers.
    #[error(
        "no rolegate answers at {address} (admin.bind): {error}; does it run with this config?"
    )]
    Silent {
        /// Where it was asked.
        address: Bind,
        /// The system's reason.
        error: io::Error,
    },
    /// It answered with an error.
    #[error("{0}")]
    Answer(String),
}

/// The body of what a GET of this path gives.
pub fn get(admin: Option<Bind>, path: &str) -> Result<String, RemoteError> {
    let address = admin.ok_or(RemoteError::NoAdmin)?;
    let (code, body) =
        request(&address, path).map_err(|error| RemoteError::Silent { address, error })?;
    match code {
        200 => Ok(body),
        _ => Err(RemoteError::Answer(body.trim_end().to_owned())),
    }
}

fn request(bind: &Bind, path: &str) -> io::Result<(u16, String)> {
    let mut stream = connect(bind)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    // To HTTP/1.0 the body comes as it is, and ends with the connection.
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.ok_or_else(|| io::Error::other("this is not HTTP"))?;
    Ok((code, body.to_owned()))
}

fn connect(bind: &Bind) -> io::Result<TcpStream> {
    let address = match bind {
        Bind::Unix { path, .. } => {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // Also for the connect, which waits while the queue is full.
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.connect(&SockAddr::unix(path)?)?;
            // To read and write it is a stream like any other.
            return Ok(socket.into());
        }
        Bind::One(address) => *address,
        Bind::All(port) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *port),
    };
    TcpStream::connect_timeout(&reachable(address), PATIENCE)
}

/// What listens on all addresses is asked on the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        // Takes IPv4 as well, which also a host without IPv6 has.
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) | IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            Ipv4Addr::LOCALHOST.into()
        }
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
