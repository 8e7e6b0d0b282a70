//! Sockets: how they are opened, tuned and closed, and what their errors mean.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::AsFd,
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

use crate::config::Bind;

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

/// Opens a listening socket that is non-blocking. Linux hands its options down to every accepted
/// socket, so no client costs a system call for them.
pub fn listen(bind: Bind, congestion: Option<Arc<str>>) -> io::Result<TcpListener> {
    let tuning = Tuning { patience: VANISHED, congestion };
    match (open(bind.address(), &tuning), bind) {
        // The system has no IPv6.
        (Err(error), Bind::All(port))
            if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT)
                || Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) =>
        {
            open(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), &tuning)
        }
        (result, _) => result,
    }
}

/// Makes a listening socket that another process opened the same as one of [`listen`].
pub fn adopt(socket: &TcpListener, congestion: Option<Arc<str>>) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    Tuning { patience: VANISHED, congestion }.apply(&SockRef::from(socket))
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
pub async fn connect(address: SocketAddr, tuning: &Tuning) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    tuning.apply(&SockRef::from(&stream))?;
    Ok(stream)
}

/// Closes with RST, so that the peer's next use fails at once instead of vanishing.
pub fn reset(stream: impl AsFd) {
    // Without the option the close is a FIN: less prompt, still a close.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

/// Whether nothing has come from the peer yet, not even its close.
pub fn is_untouched(stream: &TcpStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(recv(stream, &mut [0u8; 1], flags), Err(Errno::AGAIN))
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
    // With this mark a socket counts as writable only while nothing waits to be sent.
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

    #[test]
    fn a_star_takes_ipv4_clients_and_a_second_bind_fails() {
        let listener = listen(Bind::All(0), None).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let error = listen(Bind::All(port), None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn accepted_clients_have_the_options_of_their_listener() {
        let listener = listen(Bind::One((Ipv4Addr::LOCALHOST, 0).into()), None).unwrap();
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
        let listener = listen(bind, Some("reno".into())).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let name = SockRef::from(&accepted).tcp_congestion().unwrap();
        assert!(name.starts_with(b"reno"), "{name:?}");
    }

    #[tokio::test]
    async fn sent_means_that_nothing_waits_in_our_kernel() {
        let listener = listen(Bind::One((Ipv4Addr::LOCALHOST, 0).into()), None).unwrap();
        let tuning = Tuning { patience: VANISHED, congestion: None };
        let stream = connect(listener.local_addr().unwrap(), &tuning).await.unwrap();
        assert!(is_sent(&stream));
        stream.writable().await.unwrap();
        while stream.try_write(&[0; 65536]).is_ok() {}
        assert!(!is_sent(&stream), "the peer reads nothing, so much must still wait here");
    }
}
