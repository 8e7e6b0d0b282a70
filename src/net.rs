//! Sockets: how they are opened, tuned and closed, and what their errors mean.

pub mod proxy;
pub mod tls;
mod unix;

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixListener,
    },
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, recv},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

pub use self::unix::SocketFile;
use crate::{config::Bind, topology::Address};

/// Clients that wait for accept; the system's `net.core.somaxconn` caps it.
const BACKLOG: i32 = 4096;

/// An idle peer is asked after so long whether it is still there, and again after each interval.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A client that acknowledges nothing, or takes nothing more of what waits for it, for so long has
/// vanished: Linux counts a receiver that keeps its window shut in with the silent ones.
const VANISHED: Duration = Duration::from_secs(90);

/// How long to wait for descriptors or memory to come back; less than a second.
pub const RESOURCES_PAUSE: Duration = Duration::from_millis(100);

/// How a connection is treated.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// A peer that acknowledges nothing for so long is given up.
    pub patience: Duration,
    /// TCP's congestion control by the system's name for it; the system's own choice if absent.
    pub congestion: Option<Arc<str>>,
}

impl Tuning {
    fn apply(&self, socket: &SockRef<'_>) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        // Also ends the row of keepalive probes, whose number then means nothing.
        socket.set_tcp_user_timeout(Some(self.patience))?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE);
        socket.set_tcp_keepalive(&keepalive.with_interval(KEEPALIVE_INTERVAL))?;
        match &self.congestion {
            Some(name) => socket.set_tcp_congestion(name.as_bytes()),
            None => Ok(()),
        }
    }
}

/// Whether the system lets this process choose this congestion control; the error names those that
/// it has.
pub fn try_congestion(name: &str) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_congestion(name.as_bytes()).map_err(|error| {
        let list = fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control");
        let allowed = list.as_deref().map_or("unknown", str::trim);
        io::Error::other(format!("{error}; allowed here: {allowed}"))
    })
}

/// A listening socket that is non-blocking.
#[derive(Debug)]
pub enum Listening {
    /// Of TCP.
    Tcp(TcpListener),
    /// A unix socket, with its file.
    Unix(UnixListener, Arc<SocketFile>),
}

/// The same, registered with the runtime of the thread that accepts.
#[derive(Debug)]
pub enum Accepting {
    /// Of TCP.
    Tcp(tokio::net::TcpListener),
    /// A unix socket, with its file.
    Unix(tokio::net::UnixListener, Arc<SocketFile>),
}

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(Option<(IpAddr, u16)>);

impl Listening {
    /// Where it listens.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(socket) => Ok(Address::Tcp(socket.local_addr()?)),
            Self::Unix(_, file) => Ok(Address::Unix(file.path().clone())),
        }
    }

    /// The same socket once more. Its file stays until all are closed.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone()?),
            Self::Unix(socket, file) => Self::Unix(socket.try_clone()?, file.clone()),
        })
    }

    /// A unix socket that another process has opened. Its file stays until [`SocketFile::own`] says
    /// that it is for this process to remove.
    pub fn adopt_unix(socket: UnixListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let file = SocketFile::of(&socket)?;
        Ok(Self::Unix(socket, Arc::new(file)))
    }

    /// The file of a unix socket.
    pub fn file(&self) -> Option<&SocketFile> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(_, file) => Some(file),
        }
    }

    /// Gets ready to accept on the runtime that runs here.
    pub fn register(self) -> io::Result<Accepting> {
        Ok(match self {
            Self::Tcp(socket) => Accepting::Tcp(tokio::net::TcpListener::from_std(socket)?),
            Self::Unix(socket, file) => {
                Accepting::Unix(tokio::net::UnixListener::from_std(socket)?, file)
            }
        })
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket, _) => socket.as_fd(),
        }
    }
}

impl Accepting {
    /// The next client. A unix socket's stream is used as one of TCP: it moves bytes the same way.
    pub async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                Ok((stream, peer.into()))
            }
            Self::Unix(socket, _) => {
                let (stream, _) = socket.accept().await?;
                Ok((unix::as_stream(stream)?, Peer(None)))
            }
        }
    }
}

impl Peer {
    /// Its IP address; `None` at a unix socket, where peers have none.
    pub fn ip(&self) -> Option<IpAddr> {
        self.0.map(|(ip, _)| ip)
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self(Some((address.ip(), address.port())))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => SocketAddr::from(address).fmt(f),
            None => f.write_str("unix"),
        }
    }
}

/// Opens a listening socket that is non-blocking. Linux hands the options of TCP down to every accepted
/// socket, so no client costs a system call for them.
pub fn listen(bind: &Bind, congestion: Option<Arc<str>>) -> io::Result<Listening> {
    let tuning = Tuning { patience: VANISHED, congestion };
    let socket = match bind {
        Bind::One(address) => open(*address, &tuning)?,
        Bind::All(port) => match open((Ipv6Addr::UNSPECIFIED, *port).into(), &tuning) {
            // The system has no IPv6.
            Err(error)
                if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT)
                    || Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) =>
            {
                open((Ipv4Addr::UNSPECIFIED, *port).into(), &tuning)?
            }
            result => result?,
        },
        Bind::Unix { path, mode } => {
            let (socket, file) = unix::listen(path, *mode)?;
            return Ok(Listening::Unix(socket, Arc::new(file)));
        }
    };
    Ok(Listening::Tcp(socket))
}

/// Makes a listening socket that another process opened the same as one of [`listen`].
pub fn adopt(socket: TcpListener, congestion: Option<Arc<str>>) -> io::Result<Listening> {
    socket.set_nonblocking(true)?;
    Tuning { patience: VANISHED, congestion }.apply(&SockRef::from(&socket))?;
    Ok(Listening::Tcp(socket))
}

fn open(address: SocketAddr, tuning: &Tuning) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    tuning.apply(&SockRef::from(&socket))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Connects to a peer; the caller sets the deadline.
pub async fn connect(address: &Address, tuning: &Tuning) -> io::Result<TcpStream> {
    let address = match address {
        Address::Tcp(address) => address,
        // It has nothing to tune, and its peer cannot vanish.
        Address::Unix(path) => return unix::connect(path).await,
    };
    let stream = TcpStream::connect(address).await?;
    tuning.apply(&SockRef::from(&stream))?;
    Ok(stream)
}

/// Closes with RST, so that the peer's next use fails at once instead of vanishing. At a unix socket
/// it does so after any close, and what was written can still be read.
pub fn reset(stream: impl AsFd) {
    linger_not(&stream);
    drop(stream);
}

/// Makes the close a RST.
fn linger_not(stream: &impl AsFd) {
    // Without the option the close is a FIN: less prompt, still a close.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Whether nothing has come from the peer yet, not even its close.
pub fn is_untouched(stream: &TcpStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(recv(stream, &mut [0u8; 1], flags), Err(Errno::AGAIN))
}

/// Whether the peer has closed or reset the connection, and everything before that was read.
fn is_ended(stream: &TcpStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    !matches!(recv(stream, &mut [0u8; 1], flags), Ok((1.., _)) | Err(Errno::AGAIN))
}

/// Bytes that have arrived from the peer and are not read yet.
pub fn unread(stream: &TcpStream) -> u64 {
    rustix::io::ioctl_fionread(stream).unwrap_or(0)
}

/// Reads what is there without waiting, until the buffer is full. Not through tokio, which may not
/// have noticed yet what has come.
pub fn read_now(stream: &TcpStream, buffer: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::read(stream, &mut buffer[filled..]) {
            Ok(0) | Err(_) => break,
            Ok(n) => filled += n,
        }
    }
    filled
}

/// Whether everything written has left for the peer. A RST would throw the rest away. Not to be
/// asked after our own FIN, when the system always says yes.
pub fn is_sent(stream: &TcpStream) -> bool {
    // With this mark a socket counts as writable only while nothing waits to be sent. A unix socket
    // takes none: what is written to it lies with the peer.
    if SockRef::from(stream).set_tcp_notsent_lowat(1).is_err() {
        return true;
    }
    let fd = stream.as_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
    // Anything but "not writable" ends the wait: also an error, which nothing can be sent on.
    !matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

/// Raises the limit of open files as far as the system lets this process, and tells it.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // Where it may not be raised, the old limit stays.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Whether an error means that this process or system ran out of something: no peer's fault.
pub fn is_out_of_resources(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::ADDRNOTAVAIL
                | Errno::AGAIN
        )
    )
}

/// Whether an accept failed for a client that is already gone: nothing to wait for.
pub fn is_client_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::CONNRESET)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(bind: &Bind, congestion: Option<Arc<str>>) -> TcpListener {
        match listen(bind, congestion).unwrap() {
            Listening::Tcp(listener) => listener,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_star_takes_ipv4_clients_and_a_second_bind_fails() {
        let listener = tcp(&Bind::All(0), None);
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let error = listen(&Bind::All(port), None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn accepted_clients_have_the_options_of_their_listener() {
        let listener = tcp(&Bind::One((Ipv4Addr::LOCALHOST, 0).into()), None);
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(VANISHED));
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
    }

    #[test]
    fn accepted_clients_have_the_congestion_control_of_their_listener() {
        let bind = Bind::One((Ipv4Addr::LOCALHOST, 0).into());
        // Every kernel has it.
        let listener = tcp(&bind, Some("reno".into()));
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let name = SockRef::from(&accepted).tcp_congestion().unwrap();
        assert!(name.starts_with(b"reno"), "{name:?}");
    }

    #[tokio::test]
    async fn sent_means_that_nothing_waits_in_our_kernel() {
        let listener = tcp(&Bind::One((Ipv4Addr::LOCALHOST, 0).into()), None);
        let tuning = Tuning { patience: VANISHED, congestion: None };
        let stream = connect(&listener.local_addr().unwrap().into(), &tuning).await.unwrap();
        assert!(is_sent(&stream));
        stream.writable().await.unwrap();
        while stream.try_write(&[0; 65536]).is_ok() {}
        assert!(!is_sent(&stream), "the peer reads nothing, so much must still wait here");
    }
}
