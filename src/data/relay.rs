//! The byte pump between a client and its backend.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    task::yield_now,
    time::{Instant, Sleep, sleep, sleep_until, timeout_at},
};

use super::{
    flow::{Broken, Flow, Side},
    session::Account,
};
use crate::{
    metrics::{CloseReason, Moved},
    net::{self, tls::is_hello},
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

/// A session's two sides, and what is under way between them.
#[derive(Debug)]
pub(super) struct Relay<'a, C, B> {
    client: &'a mut C,
    backend: B,
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
    /// The FIN is not passed on yet, as TLS has words to say before.
    fin_waits: bool,
}

impl<'a, C: Side, B: Side> Relay<'a, C, B> {
    pub(super) fn new(
        client: &'a mut C,
        backend: B,
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
            fin_waits: false,
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
        if self.first_closed.is_none() {
            if self.up.has_ended() {
                self.first_closed = Some(CloseReason::ClientClosed);
            } else if self.down.has_ended() {
                // Nothing is pending here, so the FIN comes after every byte.
                self.sent_before_fin = is_sent(self.client);
                self.first_closed = Some(CloseReason::BackendClosed);
            } else {
                return None;
            }
            self.fin_waits = true;
            // Another timeout holds from now on.
            if let Some(timers) = &mut self.timers {
                timers.quiet = None;
            }
        }
        if !self.fin_waits {
            return None;
        }
        let (passed, broken) = if self.first_closed == Some(CloseReason::ClientClosed) {
            (Pin::new(&mut self.backend).poll_shutdown(cx), CloseReason::BackendReset)
        } else {
            (Pin::new(&mut *self.client).poll_shutdown(cx), CloseReason::ClientReset)
        };
        self.fin_waits = passed.is_pending();
        if matches!(passed, Poll::Ready(Err(_))) {
            if broken == CloseReason::BackendReset {
                self.account.shared.hints.give(Hint::BackendReset);
            }
            return Some(broken);
        }
        None
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
        let timers = self.timers.get_or_insert_default();
        let (last, sleep) =
            timers.quiet.get_or_insert_with(|| (now, Box::pin(sleep_until(now + limit))));
        // What waits to be passed on is not quiet: the process itself has stood still.
        if moved || timers.stalled.is_some() {
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
        // The check may have come before the next look.
        if let Some(timers) = &mut self.timers {
            timers.stalled = None;
        }
        true
    }

    /// Ends a session whose backend is lost: reads nothing from the client, takes over what the
    /// backend has already answered, resets it, and delivers that to the client.
    pub(super) async fn reset_and_deliver(mut self) {
        let deadline = Instant::now() + DELIVERY;
        if !self.down.has_ended() {
            let salvaged = self.down.salvage(&mut self.backend);
            self.count(Moved { up: 0, down: salvaged });
        }
        // At once, also for a slow client: the backend may not execute what our kernel still holds.
        self.backend.reset();
        if !self.down.is_empty() {
            // A client that is gone, or too slow, loses what is left.
            let delivered = poll_fn(|cx| self.down.poll_kept(cx, self.client));
            let _ = timeout_at(deadline, delivered).await;
        }
        if !self.down.has_ended() {
            while !is_sent(self.client) && Instant::now() < deadline {
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
        self.backend.reset();
    }
}

/// Whether our kernel has sent the client everything.
fn is_sent(client: &impl Side) -> bool {
    client.socket().is_none_or(net::is_sent)
}

/// Moves bytes, and counts them, until both sides have closed, one has broken, or the lease is
/// revoked. Tells which was first.
impl<C: Side, B: Side> Future for Relay<'_, C, B> {
    type Output = CloseReason;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let this = &mut *self;
        if Pin::new(&mut this.revoked).poll(cx).is_ready() {
            return Poll::Ready(CloseReason::Revoked);
        }
        let mut turn = Moved::default();
        let up = if this.is_confirmed(cx) {
            let hides_tls = this.account.shared.expects_plain && this.account.moved.up == 0;
            let look = |bytes: &[u8]| !(hides_tls && is_hello(bytes));
            this.up.poll(cx, this.client, &mut this.backend, &mut turn.up, look)
        } else {
            Poll::Pending
        };
        let hint = |bytes: &[u8]| {
            if bytes.starts_with(READ_ONLY) {
                this.account.shared.hints.give(Hint::ReadOnly);
            }
            true
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
            (Poll::Ready(Err(Broken::Refused)), _) => {
                this.account.tell_tls_on_plain();
                return Poll::Ready(CloseReason::TlsOnPlain);
            }
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
