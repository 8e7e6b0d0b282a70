//! TLS over a TCP socket: for clients, and towards backends and Sentinels.

use std::{
    fmt,
    io::{self, IoSlice, Read},
    net::{SocketAddr, TcpStream as StdTcpStream},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::{ClientConfig, ConnectionCommon, ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// The first bytes of a TLS client: a handshake record of any version.
const HELLO: [u8; 2] = [22, 3];

/// The same of an alert, with which a TLS port may answer whoever speaks plain text.
const ALERT: [u8; 2] = [21, 3];

/// Whether these are the first bytes of a TLS client.
pub fn is_hello(bytes: &[u8]) -> bool {
    bytes.starts_with(&HELLO)
}

/// Whether this may be the first byte of a TLS client.
pub fn may_be_hello(first: &[u8]) -> bool {
    first.first() == HELLO.first()
}

/// Whether these are the first bytes of one who speaks TLS and was spoken to.
pub fn is_answer(bytes: &[u8]) -> bool {
    bytes.starts_with(&HELLO) || bytes.starts_with(&ALERT)
}

/// What rustls has against it, if that is why a stream failed.
pub fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// How peers are reached over TLS: the same for checks and for data.
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    /// Whom all certificates have to name; each its own host if absent.
    name: Option<ServerName<'static>>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Connector {
    /// All certificates have to name `name`, or else each the host that is connected to.
    pub fn new(config: Arc<ClientConfig>, name: Option<ServerName<'static>>) -> Self {
        Self { config, name }
    }

    /// Shakes hands with the peer of a new connection to this host; the caller sets the deadline.
    pub async fn connect(&self, host: &str, socket: TcpStream) -> io::Result<Stream> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        let connector = TlsConnector::from(self.config.clone());
        let stream = connector.connect(name, Slot(Some(socket))).await?;
        Ok(Stream::Tls(Box::new(stream.into())))
    }
}

/// Shakes hands with a new client; the caller sets the deadline. After a failure the socket comes
/// back: what was said about it may still be on its way.
pub async fn accept(
    socket: TcpStream,
    config: &Arc<ServerConfig>,
) -> Result<Stream, (io::Error, Option<TcpStream>)> {
    let accepting = TlsAcceptor::from(config.clone()).accept(Slot(Some(socket)));
    match accepting.into_fallible().await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream.into()))),
        Err((error, slot)) => Err((error, slot.0)),
    }
}

/// A connection, plain or over TLS. A TLS peer that closes without saying so (`close_notify`) has
/// closed: RESP tells by itself where a reply ends.
#[derive(Debug)]
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// After the handshake.
    Tls(Box<TlsStream<Slot>>),
}

impl Stream {
    /// The socket under it.
    pub fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(stream) => stream.get_ref().0.0.as_ref(),
        }
    }

    /// The address at the other end.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket().ok_or(io::ErrorKind::NotConnected)?.peer_addr()
    }

    /// Closes with RST, so that the peer's next use fails at once instead of vanishing.
    pub fn reset(self) {
        if let Some(socket) = self.socket() {
            super::linger_not(socket);
        }
    }

    /// Takes what has come from the peer already, without waiting. Tells whether the connection is
    /// still open.
    pub fn take_arrived(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        match self {
            Self::Plain(socket) => {
                let start = into.len();
                into.resize(start + usize::try_from(super::unread(&*socket)).unwrap_or(0), 0);
                let read = super::read_now(&*socket, &mut into[start..]);
                into.truncate(start + read);
                Ok(true)
            }
            Self::Tls(stream) => match &mut **stream {
                TlsStream::Client(stream) => {
                    let (slot, connection) = stream.get_mut();
                    take_arrived(slot, connection, into)
                }
                TlsStream::Server(stream) => {
                    let (slot, connection) = stream.get_mut();
                    take_arrived(slot, connection, into)
                }
            },
        }
    }

    /// Whether the peer has sent nothing yet but what belongs to the handshake, not even its close.
    pub fn is_untouched(&mut self) -> bool {
        if let Self::Plain(socket) = self {
            return super::is_untouched(socket);
        }
        let mut bytes = Vec::new();
        self.take_arrived(&mut bytes).unwrap_or(false) && bytes.is_empty()
    }

    /// Leaves the runtime that it is registered with.
    pub fn detach(self) -> io::Result<Detached> {
        match self {
            Self::Plain(socket) => Ok(Detached { socket: socket.into_std()?, tls: None }),
            Self::Tls(mut stream) => {
                let slot = match &mut *stream {
                    TlsStream::Client(stream) => stream.get_mut().0,
                    TlsStream::Server(stream) => stream.get_mut().0,
                };
                let socket = slot.0.take().ok_or(io::ErrorKind::NotConnected)?;
                Ok(Detached { socket: socket.into_std()?, tls: Some(stream) })
            }
        }
    }

    /// Says that nothing more will be sent, and waits until that is on its way.
    pub async fn finish(&mut self) {
        let _ = self.shutdown().await;
    }
}

/// A connection that no runtime watches.
#[derive(Debug)]
pub struct Detached {
    socket: StdTcpStream,
    /// What was agreed on in the handshake.
    tls: Option<Box<TlsStream<Slot>>>,
}

impl Detached {
    /// Registers it with the runtime that runs here.
    pub fn attach(self) -> io::Result<Stream> {
        let socket = TcpStream::from_std(self.socket)?;
        let Some(mut stream) = self.tls else {
            return Ok(Stream::Plain(socket));
        };
        match &mut *stream {
            TlsStream::Client(stream) => stream.get_mut().0.0 = Some(socket),
            TlsStream::Server(stream) => stream.get_mut().0.0 = Some(socket),
        }
        Ok(Stream::Tls(stream))
    }
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes in the records that have come whole. What comes while it does so has to wait, or a peer
/// that never stops would be listened to for ever.
fn take_arrived<D>(
    slot: &Slot,
    connection: &mut ConnectionCommon<D>,
    into: &mut Vec<u8>,
) -> io::Result<bool> {
    let socket = slot.0.as_ref().ok_or(io::ErrorKind::NotConnected)?;
    let mut left = super::unread(socket);
    loop {
        // Says "would block" when it is empty, and ends only at the peer's end.
        match connection.reader().read_to_end(into) {
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if left == 0 {
            return Ok(!super::is_ended(socket));
        }
        let read = connection.read_tls(&mut Raw(socket).take(left))?;
        if read == 0 {
            return Ok(false);
        }
        left = left.saturating_sub(read as u64);
        connection.process_new_packets().map_err(io::Error::other)?;
    }
}

/// Reads without tokio, which may not have noticed yet what has come.
struct Raw<'a>(&'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

/// The place of the socket under TLS; empty while no runtime watches that.
#[derive(Debug)]
pub struct Slot(Option<TcpStream>);

impl Slot {
    fn socket(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.0.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for Slot {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.socket()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Slot {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.socket()?.poll_write(cx, bytes)
    }

    // Several records go with one system call.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket()?.poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket()?.poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Tls(stream) => match Pin::new(stream).poll_read(cx, buffer) {
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Poll::Ready(Ok(()))
                }
                read => read,
            },
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
