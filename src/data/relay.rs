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
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep, timeout_at},
};

use super::session::Shared;

use crate::{
    metrics::CloseReason,
    net,
    topology::{Hint, Hints, Lease},
};

/// What one read takes at the most, and so what a session keeps at the most for each side.
const BUFFER: usize = 64 * 1024;

/// How a backend that has lost the role answers a write. Looked for only where what is read begins,
/// which is one comparison of the first byte for nearly every reply.
const READ_ONLY: &[u8] = b"-READONLY ";

/// How long a slow client gets for the replies that its lost backend gave before it lost the lease.
const DELIVERY: Duration = Duration::from_secs(1);

/// How often to look whether a check has passed since the process stood still.
const STALL_LOOK: Duration = Duration::from_millis(5);

/// How often to look whether our kernel has sent all of them.
const DELIVERY_LOOK: Duration = Duration::from_millis(2);

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// A session's two sockets, and what is under way between them.
#[derive(Debug)]
pub(super) struct Relay {
    client: TcpStream,
    backend: TcpStream,
    up: Flow,
    down: Flow,
    hints: Hints,
    lease: Lease,
    /// So old may the checks be on which the lease rests.
    patience: Duration,
    /// Until when nothing is passed on, because it is older.
    stalled: Option<Pin<Box<Sleep>>>,
    /// The side whose FIN came first.
    first_closed: Option<CloseReason>,
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
    /// The sender's FIN was passed on.
    closed: bool,
    /// Nothing waited in our kernel when the FIN was passed on.
    sent_before_fin: bool,
}

/// Which end of a flow broke.
enum Broken {
    Sender,
    Receiver,
}

impl Relay {
    pub(super) fn new(
        client: TcpStream,
        backend: TcpStream,
        lease: Lease,
        shared: &Shared,
    ) -> Self {
        let metrics = &shared.metrics;
        let [up, down] = [&metrics.bytes_in, &metrics.bytes_out].map(|counter| Flow {
            counter: counter.clone(),
            pending: Vec::new(),
            written: 0,
            closed: false,
            sent_before_fin: false,
        });
        let (hints, patience) = (shared.hints.clone(), shared.lease_patience);
        Self {
            client,
            backend,
            up,
            down,
            hints,
            lease,
            patience,
            stalled: None,
            first_closed: None,
        }
    }

    /// Moves bytes, and counts them, until both sides have closed or one has broken. Tells which
    /// closed or broke first.
    pub(super) async fn run(&mut self, moved: &mut Moved) -> CloseReason {
        poll_fn(|cx| self.poll(cx, moved)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, moved: &mut Moved) -> Poll<CloseReason> {
        let up = if self.is_confirmed(cx) {
            self.up.poll(cx, &mut self.client, &mut self.backend, &mut moved.up, |_| ())
        } else {
            Poll::Pending
        };
        let hint = |bytes: &[u8]| {
            if bytes.starts_with(READ_ONLY) {
                self.hints.give(Hint::ReadOnly);
            }
        };
        let down = self.down.poll(cx, &mut self.backend, &mut self.client, &mut moved.down, hint);
        match (&up, &down) {
            (Poll::Ready(Err(Broken::Sender)), _) | (_, Poll::Ready(Err(Broken::Receiver))) => {
                return Poll::Ready(CloseReason::ClientReset);
            }
            // A write breaks only when nothing more can come. What has come is delivered after.
            (Poll::Ready(Err(Broken::Receiver)), _) | (_, Poll::Ready(Err(Broken::Sender))) => {
                return Poll::Ready(CloseReason::BackendReset);
            }
            _ => {}
        }
        if self.first_closed.is_none() {
            self.first_closed = match (self.down.closed, self.up.closed) {
                (false, false) => None,
                (false, true) => Some(CloseReason::ClientClosed),
                (true, _) => Some(CloseReason::BackendClosed),
            };
        }
        match (up, down, self.first_closed) {
            (Poll::Ready(_), Poll::Ready(_), Some(end)) => Poll::Ready(end),
            _ => Poll::Pending,
        }
    }

    /// Whether checks have confirmed the lease of late. If not, looks again soon.
    fn is_confirmed(&mut self, cx: &mut Context<'_>) -> bool {
        while self.lease.unconfirmed_for() > self.patience {
            let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL_LOOK)));
            if stalled.as_mut().poll(cx).is_pending() {
                return false;
            }
            self.stalled = None;
        }
        true
    }

    /// Ends a session whose backend is lost: reads nothing from the client, takes over what the
    /// backend has already answered and resets it, delivers that to the client and resets it too.
    pub(super) async fn deliver_and_reset(mut self, moved: &mut Moved) {
        let deadline = Instant::now() + DELIVERY;
        if !self.down.closed {
            self.down.salvage(&self.backend, &mut moved.down);
        }
        // At once, also for a slow client: the backend may not execute what our kernel still holds.
        net::reset(self.backend);
        // A client that is gone, or too slow, loses what is left.
        let delivered = poll_fn(|cx| self.down.poll_pending(cx, &mut self.client));
        let _ = timeout_at(deadline, delivered).await;
        if !self.down.closed {
            while !net::is_sent(&self.client) && Instant::now() < deadline {
                sleep(DELIVERY_LOOK).await;
            }
        } else if !self.down.sent_before_fin {
            // After its FIN a socket no longer tells what it has sent; the client's FIN does.
            let mut rest = [0; 1024];
            let gone = async { while let Ok(1..) = self.client.read(&mut rest).await {} };
            let _ = timeout_at(deadline, gone).await;
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
    /// Moves what can be moved now. Ready when nothing will move any more; not to be polled after
    /// an error.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        moved: &mut u64,
        look: impl Fn(&[u8]),
    ) -> Poll<Result<(), Broken>> {
        while !self.closed {
            if ready!(self.poll_pending(cx, to)).is_err() {
                return Poll::Ready(Err(Broken::Receiver));
            }
            if ready!(self.poll_read(cx, from, to, moved, &look))?.is_none() {
                // Nothing is pending here, so the FIN comes after every byte.
                self.sent_before_fin = net::is_sent(to);
                if ready!(Pin::new(&mut *to).poll_shutdown(cx)).is_err() {
                    return Poll::Ready(Err(Broken::Receiver));
                }
                self.closed = true;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes over what has already come from a backend, as much as its socket may hold.
    fn salvage(&mut self, backend: &TcpStream, moved: &mut u64) {
        let unread = usize::try_from(net::unread(backend)).unwrap_or(0);
        let start = self.pending.len();
        self.pending.resize(start + unread, 0);
        let read = net::read_now(backend, &mut self.pending[start..]);
        self.pending.truncate(start + read);
        *moved += read as u64;
        self.counter.inc_by(read as u64);
    }

    /// Reads once and passes on what the receiver takes. `None` at the sender's end. The receiver
    /// must have taken all that came before.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        moved: &mut u64,
        look: impl Fn(&[u8]),
    ) -> Poll<Result<Option<()>, Broken>> {
        READ.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            if ready!(Pin::new(from).poll_read(cx, &mut read)).is_err() {
                return Poll::Ready(Err(Broken::Sender));
            }
            let mut bytes = read.filled();
            let n = bytes.len();
            if n == 0 {
                return Poll::Ready(Ok(None));
            }
            look(bytes);
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
            Poll::Ready(Ok(Some(())))
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
