//! The byte pump between a client and its backend.
//!
//! Every worker thread has one read buffer for all its sessions; a session keeps bytes of its own
//! only while the peer that they are for takes no more, and reads nothing new meanwhile.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::yield_now,
    time::{Instant, Sleep, sleep, timeout_at},
};

use super::session::Shared;

use crate::{
    metrics::{CloseReason, Moved, Tally},
    net,
    topology::{Hint, Revoked},
};

/// What one read takes at the most, and so what a session keeps at the most for each side.
const BUFFER: usize = 64 * 1024;

/// What one session may move in one direction before the others of its worker have their turn.
const TURN: u64 = 256 * 1024;

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
pub(super) struct Relay<'a> {
    client: &'a mut TcpStream,
    backend: TcpStream,
    revoked: Revoked,
    up: Flow,
    down: Flow,
    shared: &'a Shared,
    /// The session's own count, and its worker's.
    moved: &'a mut Moved,
    tally: &'a Tally,
    /// Until when nothing is passed on, because the lease rests on checks that are too old.
    stalled: Option<Pin<Box<Sleep>>>,
    /// The side whose FIN came first.
    first_closed: Option<CloseReason>,
    /// Nothing waited in our kernel when the backend's FIN was passed on.
    sent_before_fin: bool,
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// Read but not written yet: the receiving side is full.
    pending: Option<Box<Pending>>,
    /// The sender's FIN has come, and everything before it was written.
    ended: bool,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// So many of them are written.
    written: usize,
}

/// Which end of a flow broke.
enum Broken {
    Sender,
    Receiver,
}

impl<'a> Relay<'a> {
    pub(super) fn new(
        client: &'a mut TcpStream,
        backend: TcpStream,
        revoked: Revoked,
        shared: &'a Shared,
        moved: &'a mut Moved,
        tally: &'a Tally,
    ) -> Self {
        Self {
            client,
            backend,
            revoked,
            up: Flow::default(),
            down: Flow::default(),
            shared,
            moved,
            tally,
            stalled: None,
            first_closed: None,
            sent_before_fin: false,
        }
    }

    fn count(&mut self, turn: Moved) {
        *self.moved += turn;
        self.tally.add(turn);
    }

    /// Passes on the first FIN of the two. The second one needs no passing on, the close does it: the
    /// session ends, for this reason.
    fn pass_fin(&mut self, cx: &mut Context<'_>) -> Option<CloseReason> {
        if self.up.ended && self.down.ended {
            return Some(self.first_closed.unwrap_or(CloseReason::BackendClosed));
        }
        if self.first_closed.is_some() {
            return None;
        }
        let (first, to, broken) = if self.up.ended {
            (CloseReason::ClientClosed, &mut self.backend, CloseReason::BackendReset)
        } else if self.down.ended {
            // Nothing is pending here, so the FIN comes after every byte.
            self.sent_before_fin = net::is_sent(self.client);
            (CloseReason::BackendClosed, &mut *self.client, CloseReason::ClientReset)
        } else {
            return None;
        };
        self.first_closed = Some(first);
        match Pin::new(to).poll_shutdown(cx) {
            Poll::Ready(Err(_)) => Some(broken),
            _ => None,
        }
    }

    /// Whether checks have confirmed the lease of late. If not, looks again soon.
    fn is_confirmed(&mut self, cx: &mut Context<'_>) -> bool {
        while self.revoked.lease().unconfirmed_for() > self.shared.lease_patience {
            let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL_LOOK)));
            if stalled.as_mut().poll(cx).is_pending() {
                return false;
            }
            self.stalled = None;
        }
        true
    }

    /// Ends a session whose backend is lost: reads nothing from the client, takes over what the
    /// backend has already answered, resets it, and delivers that to the client.
    pub(super) async fn reset_and_deliver(mut self) {
        let deadline = Instant::now() + DELIVERY;
        if !self.down.ended {
            let salvaged = self.down.salvage(&self.backend);
            self.count(Moved { up: 0, down: salvaged });
        }
        // At once, also for a slow client: the backend may not execute what our kernel still holds.
        net::reset(self.backend);
        if self.down.pending.is_some() {
            // A client that is gone, or too slow, loses what is left.
            let delivered = poll_fn(|cx| self.down.poll_pending(cx, self.client));
            let _ = timeout_at(deadline, delivered).await;
        }
        if !self.down.ended {
            while !net::is_sent(self.client) && Instant::now() < deadline {
                sleep(DELIVERY_LOOK).await;
            }
        } else if !self.sent_before_fin {
            // After its FIN a socket no longer tells what it has sent; the client's FIN does.
            let mut rest = [0; 1024];
            let gone = async { while let Ok(1..) = self.client.read(&mut rest).await {} };
            let _ = timeout_at(deadline, gone).await;
        }
    }

    /// Resets the backend at once, for a client that is gone.
    pub(super) fn reset(self) {
        net::reset(self.backend);
    }
}

/// Moves bytes, and counts them, until both sides have closed, one has broken, or the lease is
/// revoked. Tells which was first.
impl Future for Relay<'_> {
    type Output = CloseReason;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let this = &mut *self;
        if Pin::new(&mut this.revoked).poll(cx).is_ready() {
            return Poll::Ready(CloseReason::Revoked);
        }
        let mut turn = Moved::default();
        let up = if this.is_confirmed(cx) {
            this.up.poll(cx, this.client, &mut this.backend, &mut turn.up, |_| ())
        } else {
            Poll::Pending
        };
        let hint = |bytes: &[u8]| {
            if bytes.starts_with(READ_ONLY) {
                this.shared.hints.give(Hint::ReadOnly);
            }
        };
        let down = this.down.poll(cx, &mut this.backend, this.client, &mut turn.down, hint);
        this.count(turn);
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
        if let Some(end) = this.pass_fin(cx) {
            return Poll::Ready(end);
        }
        let is_over = |flow: &Flow, poll: &Poll<_>| poll.is_ready() && !flow.ended;
        if is_over(&this.up, &up) || is_over(&this.down, &down) {
            // Its first poll asks to be woken after the others, and after a look for new events.
            let _ = pin!(yield_now()).poll(cx);
        }
        Poll::Pending
    }
}

impl Flow {
    /// Moves what can be moved now. Ready when the sender has ended, or when the turn is over; not
    /// to be polled after an error.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        moved: &mut u64,
        look: impl Fn(&[u8]),
    ) -> Poll<Result<(), Broken>> {
        while !self.ended && *moved < TURN {
            if ready!(self.poll_pending(cx, to)).is_err() {
                return Poll::Ready(Err(Broken::Receiver));
            }
            match ready!(self.poll_read(cx, from, to, &look))? {
                0 => self.ended = true,
                read => *moved += read,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes over what has already come from a backend, as much as its socket may hold.
    fn salvage(&mut self, backend: &TcpStream) -> u64 {
        let unread = usize::try_from(net::unread(backend)).unwrap_or(0);
        if unread == 0 {
            return 0;
        }
        let bytes = &mut self.pending.get_or_insert_default().bytes;
        let start = bytes.len();
        bytes.resize(start + unread, 0);
        let read = net::read_now(backend, &mut bytes[start..]);
        bytes.truncate(start + read);
        read as u64
    }

    /// Reads once and passes on what the receiver takes. Tells how much was read: 0 at the sender's
    /// end. The receiver must have taken all that came before.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        look: impl Fn(&[u8]),
    ) -> Poll<Result<u64, Broken>> {
        READ.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            if ready!(Pin::new(from).poll_read(cx, &mut read)).is_err() {
                return Poll::Ready(Err(Broken::Sender));
            }
            let bytes = read.filled();
            look(bytes);
            let mut written = 0;
            while written < bytes.len() {
                match write(cx, to, &bytes[written..]) {
                    Poll::Ready(Ok(n)) => written += n,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Receiver)),
                    Poll::Pending => {
                        let bytes = bytes[written..].to_vec();
                        self.pending = Some(Box::new(Pending { bytes, written: 0 }));
                        break;
                    }
                }
            }
            Poll::Ready(Ok(bytes.len() as u64))
        })
    }

    /// Writes what is pending; gives its memory back when it is all written.
    fn poll_pending(&mut self, cx: &mut Context<'_>, to: &mut TcpStream) -> Poll<io::Result<()>> {
        if let Some(pending) = &mut self.pending {
            while pending.written < pending.bytes.len() {
                match ready!(write(cx, to, &pending.bytes[pending.written..])) {
                    Ok(written) => pending.written += written,
                    Err(error) => {
                        self.pending = None;
                        return Poll::Ready(Err(error));
                    }
                }
            }
            self.pending = None;
        }
        Poll::Ready(Ok(()))
    }
}

fn write(cx: &mut Context<'_>, to: &mut TcpStream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(to).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        result => Poll::Ready(result),
    }
}
