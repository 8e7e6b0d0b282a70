//! The byte pump between a client and its backend.
//!
//! Every worker thread has one read buffer for all its sessions; a session keeps bytes of its own
//! only while the peer that they are for takes no more, and reads nothing new meanwhile.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use prometheus::IntCounter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

use crate::net;

/// What one read takes at the most, and so what a session keeps at the most for each side.
const BUFFER: usize = 64 * 1024;

/// How long a slow client gets for the replies that its lost backend gave before it lost the lease.
const DELIVERY: Duration = Duration::from_secs(1);

/// How often to look whether our kernel has sent all of them.
const DELIVERY_LOOK: Duration = Duration::from_millis(2);

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// How a relay ended by itself. Who closed or broke first is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    BackendClosed,
    BackendReset,
    ClientClosed,
    ClientReset,
}

/// A session's two sockets, and what is under way between them.
#[derive(Debug)]
pub(super) struct Relay {
    client: TcpStream,
    backend: TcpStream,
    up: Flow,
    down: Flow,
    /// The side whose FIN came first.
    first_closed: Option<End>,
}

/// Bytes that a session has read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
    /// From the client.
    pub(super) up: u64,
    /// From the backend.
    pub(super) down: u64,
}

/// One direction.
#[derive(Debug)]
struct Flow {
    /// The listener's count of all bytes in this direction.
    counter: IntCounter,
    /// Read but not written yet; empty unless the receiving side is full.
    pending: Vec<u8>,
    /// So much of `pending` is written.
    written: usize,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Bytes may come.
    Open,
    /// The sender's FIN was passed on.
    Closed,
    /// The receiver takes nothing any more.
    Broken,
}

/// Which end of a flow broke.
enum Broken {
    Sender,
    Receiver,
}

impl Relay {
    /// `bytes_up` and `bytes_down` count what is read from the client and from the backend.
    pub(super) fn new(
        client: TcpStream,
        backend: TcpStream,
        bytes_up: IntCounter,
        bytes_down: IntCounter,
    ) -> Self {
        let [up, down] = [bytes_up, bytes_down].map(|counter| Flow {
            counter,
            pending: Vec::new(),
            written: 0,
            phase: Phase::Open,
        });
        Self { client, backend, up, down, first_closed: None }
    }

    /// Moves bytes, and counts them, until both sides have closed or one has broken.
    pub(super) async fn run(&mut self, moved: &mut Moved) -> End {
        poll_fn(|cx| self.poll(cx, moved)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, moved: &mut Moved) -> Poll<End> {
        let up = self.up.poll(cx, &mut self.client, &mut self.backend, &mut moved.up);
        let down = self.down.poll(cx, &mut self.backend, &mut self.client, &mut moved.down);
        // A backend that no longer takes commands may have answered earlier ones: only what it
        // sends decides when it is done. From a client that is gone there is nothing to wait for.
        if matches!(up, Poll::Ready(Err(Broken::Sender)))
            || matches!(down, Poll::Ready(Err(Broken::Receiver)))
        {
            return Poll::Ready(End::ClientReset);
        }
        if matches!(down, Poll::Ready(Err(Broken::Sender))) {
            return Poll::Ready(End::BackendReset);
        }
        if self.first_closed.is_none() {
            self.first_closed = match (self.down.phase, self.up.phase) {
                (Phase::Open, Phase::Open) => None,
                (Phase::Open, Phase::Broken) => Some(End::BackendReset),
                (Phase::Open, Phase::Closed) => Some(End::ClientClosed),
                _ => Some(End::BackendClosed),
            };
        }
        match (up, down, self.first_closed) {
            (Poll::Ready(_), Poll::Ready(_), Some(end)) => Poll::Ready(end),
            _ => Poll::Pending,
        }
    }

    /// Ends a session whose backend is lost: reads nothing from the client, delivers what the
    /// backend has already answered, then resets both sides.
    pub(super) async fn deliver_and_reset(mut self, moved: &mut Moved) {
        let deadline = Instant::now() + DELIVERY;
        let mut unread = net::unread(&self.backend);
        let delivered = poll_fn(|cx| {
            let (from, to) = (&mut self.backend, &mut self.client);
            self.down.poll_some(cx, from, to, &mut moved.down, &mut unread)
        });
        // A client that is gone, or too slow, loses what is left.
        let _ = timeout_at(deadline, delivered).await;
        net::reset(self.backend);
        while !net::is_sent(&self.client) && Instant::now() < deadline {
            sleep(DELIVERY_LOOK).await;
        }
        net::reset(self.client);
    }

    /// Resets both sides at once, for a client that is gone.
    pub(super) fn reset(self) {
        net::reset(self.backend);
        net::reset(self.client);
    }
}

impl Flow {
    /// Moves what can be moved now. Ready when nothing will move any more.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        moved: &mut u64,
    ) -> Poll<Result<(), Broken>> {
        while self.phase == Phase::Open {
            let step = match ready!(self.poll_pending(cx, to)) {
                Ok(()) => ready!(self.poll_read(cx, from, to, moved, BUFFER)),
                Err(_) => Err(Broken::Receiver),
            };
            match step {
                Ok(Some(_)) => {}
                // Nothing is pending here, so the FIN comes after every byte.
                Ok(None) => match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                    Ok(()) => self.phase = Phase::Closed,
                    Err(_) => self.phase = Phase::Broken,
                },
                Err(Broken::Sender) => return Poll::Ready(Err(Broken::Sender)),
                Err(Broken::Receiver) => self.phase = Phase::Broken,
            }
        }
        match self.phase {
            Phase::Broken => Poll::Ready(Err(Broken::Receiver)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Moves so many bytes more, or as many as there are before the sender's end.
    fn poll_some(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        moved: &mut u64,
        left: &mut u64,
    ) -> Poll<()> {
        loop {
            if ready!(self.poll_pending(cx, to)).is_err() || *left == 0 || self.phase != Phase::Open
            {
                return Poll::Ready(());
            }
            let most = usize::try_from(*left).unwrap_or(BUFFER);
            match ready!(self.poll_read(cx, from, to, moved, most)) {
                Ok(Some(n)) => *left = left.saturating_sub(n as u64),
                Ok(None) | Err(_) => return Poll::Ready(()),
            }
        }
    }

    /// Reads once, at most so many bytes, and passes on what the receiver takes. `None` at the
    /// sender's end. The receiver must have taken all that came before.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        moved: &mut u64,
        most: usize,
    ) -> Poll<Result<Option<usize>, Broken>> {
        READ.with_borrow_mut(|buffer| {
            let most = most.min(buffer.len());
            let mut read = ReadBuf::new(&mut buffer[..most]);
            if ready!(Pin::new(from).poll_read(cx, &mut read)).is_err() {
                return Poll::Ready(Err(Broken::Sender));
            }
            let mut bytes = read.filled();
            let n = bytes.len();
            if n == 0 {
                return Poll::Ready(Ok(None));
            }
            *moved += n as u64;
            self.counter.inc_by(n as u64);
            while !bytes.is_empty() {
                match write(cx, to, bytes) {
                    Poll::Ready(Ok(written)) => bytes = &bytes[written..],
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Receiver)),
                    Poll::Pending => {
                        self.pending = bytes.to_vec();
                        break;
                    }
                }
            }
            Poll::Ready(Ok(Some(n)))
        })
    }

    /// Writes what is pending; gives its memory back when it is all written.
    fn poll_pending(&mut self, cx: &mut Context<'_>, to: &mut TcpStream) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            match ready!(write(cx, to, &self.pending[self.written..])) {
                Ok(written) => self.written += written,
                Err(error) => {
                    self.pending = Vec::new();
                    self.written = 0;
                    return Poll::Ready(Err(error));
                }
            }
        }
        self.pending = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

fn write(cx: &mut Context<'_>, to: &mut TcpStream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(to).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        result => Poll::Ready(result),
    }
}
