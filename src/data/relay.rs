//! The byte pump between a client and its backend.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    net::TcpStream,
    task::yield_now,
    time::{Instant, Sleep, sleep, sleep_until, timeout_at},
};

use super::{
    flow::{Broken, Flow},
    session::Account,
};
use crate::{
    metrics::{CloseReason, Moved},
    net,
    topology::{Hint, Revoked},
};

/// How a backend that has lost the role answers a write. Looked for only where what is read begins,
/// which is one comparison of the first byte for nearly every reply.
const READ_ONLY: &[u8] = b"-READONLY ";

/// How long a slow client gets for the replies that its lost backend gave before it lost the lease.
const DELIVERY: Duration = Duration::from_secs(1);

/// How often to look whether a check has passed since the process stood still.
const STALL_LOOK: Duration = Duration::from_millis(5);

/// How often to look whether our kernel has sent all of them.
const DELIVERY_LOOK: Duration = Duration::from_millis(2);

/// What few sessions wait for.
#[derive(Debug, Default)]
struct Timers {
    /// Until then nothing is passed on, because the lease rests on checks that are too old.
    stalled: Option<Pin<Box<Sleep>>>,
    /// When something moved last, and when to look whether that was too long ago. Only where the
    /// listener has a timeout for the state that the session is in.
    quiet: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// A session's two sockets, and what is under way between them.
#[derive(Debug)]
pub(super) struct Relay<'a> {
    client: &'a mut TcpStream,
    backend: TcpStream,
    revoked: Revoked,
    up: Flow,
    down: Flow,
    account: &'a mut Account,
    worker: usize,
    timers: Option<Box<Timers>>,
    /// The side whose FIN came first.
    first_closed: Option<CloseReason>,
    /// Nothing waited in our kernel when the backend's FIN was passed on.
    sent_before_fin: bool,
}

impl<'a> Relay<'a> {
    pub(super) fn new(
        client: &'a mut TcpStream,
        backend: TcpStream,
        revoked: Revoked,
        account: &'a mut Account,
        worker: usize,
    ) -> Self {
        Self {
            client,
            backend,
            revoked,
            up: Flow::default(),
            down: Flow::default(),
            account,
            worker,
            timers: None,
            first_closed: None,
            sent_before_fin: false,
        }
    }

    fn count(&mut self, turn: Moved) {
        self.account.moved += turn;
        self.account.shared.metrics.tallies[self.worker].add(turn);
    }

    /// Passes on the first FIN of the two. The second one needs no passing on, the close does it: the
    /// session ends, for this reason.
    fn pass_fin(&mut self, cx: &mut Context<'_>) -> Option<CloseReason> {
        if self.up.has_ended() && self.down.has_ended() {
            return Some(self.first_closed.unwrap_or(CloseReason::BackendClosed));
        }
        if self.first_closed.is_some() {
            return None;
        }
        let (first, to, broken) = if self.up.has_ended() {
            (CloseReason::ClientClosed, &mut self.backend, CloseReason::BackendReset)
        } else if self.down.has_ended() {
            // Nothing is pending here, so the FIN comes after every byte.
            self.sent_before_fin = net::is_sent(self.client);
            (CloseReason::BackendClosed, &mut *self.client, CloseReason::ClientReset)
        } else {
            return None;
        };
        self.first_closed = Some(first);
        // Another timeout holds from now on.
        if let Some(timers) = &mut self.timers {
            timers.quiet = None;
        }
        match Pin::new(to).poll_shutdown(cx) {
            Poll::Ready(Err(_)) => {
                if broken == CloseReason::BackendReset {
                    self.account.shared.hints.give(Hint::BackendReset);
                }
                Some(broken)
            }
            _ => None,
        }
    }

    /// Whether nothing has moved for as long as the listener allows. If not, looks again in time.
    fn has_timed_out(&mut self, cx: &mut Context<'_>, moved: bool) -> Option<CloseReason> {
        let timeouts = &self.account.shared.timeouts;
        let (limit, reason) = match self.first_closed {
            None => (timeouts.idle, CloseReason::IdleTimeout),
            Some(_) => (timeouts.half_close, CloseReason::HalfCloseTimeout),
        };
        if limit.is_zero() {
            return None;
        }
        let now = Instant::now();
        let quiet = &mut self.timers.get_or_insert_default().quiet;
        let (last, sleep) = quiet.get_or_insert_with(|| (now, Box::pin(sleep_until(now + limit))));
        if moved {
            *last = now;
        }
        while sleep.as_mut().poll(cx).is_ready() {
            let end = *last + limit;
            if end <= now {
                return Some(reason);
            }
            sleep.as_mut().reset(end);
        }
        None
    }

    /// Whether checks have confirmed the lease of late. If not, looks again soon.
    fn is_confirmed(&mut self, cx: &mut Context<'_>) -> bool {
        while self.revoked.lease().unconfirmed_for() > self.account.shared.lease_patience {
            let stalled = &mut self.timers.get_or_insert_default().stalled;
            let look = stalled.get_or_insert_with(|| Box::pin(sleep(STALL_LOOK)));
            if look.as_mut().poll(cx).is_pending() {
                return false;
            }
            *stalled = None;
        }
        true
    }

    /// Ends a session whose backend is lost: reads nothing from the client, takes over what the
    /// backend has already answered, resets it, and delivers that to the client.
    pub(super) async fn reset_and_deliver(mut self) {
        let deadline = Instant::now() + DELIVERY;
        if !self.down.has_ended() {
            let salvaged = self.down.salvage(&self.backend);
            self.count(Moved { up: 0, down: salvaged });
        }
        // At once, also for a slow client: the backend may not execute what our kernel still holds.
        net::reset(self.backend);
        if !self.down.is_empty() {
            // A client that is gone, or too slow, loses what is left.
            let delivered = poll_fn(|cx| self.down.poll_kept(cx, self.client));
            let _ = timeout_at(deadline, delivered).await;
        }
        if !self.down.has_ended() {
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
                this.account.shared.hints.give(Hint::ReadOnly);
            }
        };
        let down = this.down.poll(cx, &mut this.backend, this.client, &mut turn.down, hint);
        this.count(turn);
        if turn.up > 0 {
            this.down.turn_around();
        }
        if turn.down > 0 {
            this.up.turn_around();
        }
        match (&up, &down) {
            (Poll::Ready(Err(Broken::Sender)), _) | (_, Poll::Ready(Err(Broken::Receiver))) => {
                return Poll::Ready(CloseReason::ClientReset);
            }
            // A write breaks only when nothing more can come. What has come is delivered after.
            (Poll::Ready(Err(Broken::Receiver)), _) | (_, Poll::Ready(Err(Broken::Sender))) => {
                this.account.shared.hints.give(Hint::BackendReset);
                return Poll::Ready(CloseReason::BackendReset);
            }
            _ => {}
        }
        if let Some(end) = this.pass_fin(cx) {
            return Poll::Ready(end);
        }
        if let Some(end) = this.has_timed_out(cx, turn.up + turn.down > 0) {
            return Poll::Ready(end);
        }
        let is_over = |flow: &Flow, poll: &Poll<_>| poll.is_ready() && !flow.has_ended();
        if is_over(&this.up, &up) || is_over(&this.down, &down) {
            // Its first poll asks to be woken after the others, and after a look for new events.
            let _ = pin!(yield_now()).poll(cx);
        }
        Poll::Pending
    }
}
