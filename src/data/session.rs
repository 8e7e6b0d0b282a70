//! One client, from its first byte to its last: find the served backend, connect, relay, account.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use prometheus::IntCounter;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    select,
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::debug;

use super::{
    gate::Gate,
    handshake::{Handshake, Log},
    hold::Returns,
    reach::Reach,
    relay::Relay,
    spare::Spares,
    worker::Load,
};
use crate::{
    metrics::{CloseReason, ListenerMetrics, Moved},
    net::{
        self, Peer,
        tls::{Detached, Stream},
    },
    topology::{Admission, Hint, Hints, Hold, Revoked, Served, Timeouts, View},
};

/// The share of the connect_timeout that the first attempt has; each one after has twice as much.
const FIRST_ATTEMPT: u32 = 8;

/// Before a backend is tried again that refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// For the last words to a client that gets no backend.
const FAREWELL: Duration = Duration::from_secs(1);

/// What every session of a listener shares.
#[derive(Debug)]
pub struct Shared {
    /// The listener's name.
    pub listener: Arc<str>,
    /// The listener's number, which no other has in this process.
    pub place: usize,
    /// The pool's name.
    pub pool: Arc<str>,
    /// Its pool's View.
    pub view: watch::Receiver<Arc<View>>,
    /// For the connection to the backend.
    pub connect_timeout: Duration,
    /// How that is made.
    pub reach: Reach,
    /// How clients shake hands, where they have to.
    pub handshake: Option<Handshake>,
    /// A client that speaks TLS is wrong here.
    pub expects_plain: bool,
    /// Lines about clients that are not understood.
    pub log: Log,
    /// A lease that rests on older checks passes nothing on.
    pub lease_patience: Duration,
    /// Connections that wait for clients.
    pub spares: Arc<Spares>,
    /// Counts its clients, and lets them in.
    pub gate: Arc<Gate>,
    /// Who may come in.
    pub admission: Admission,
    /// When a session ends on which nothing moves.
    pub timeouts: Timeouts,
    /// What becomes of clients while no backend is served.
    pub hold: Hold,
    /// How they get there.
    pub returns: Returns,
    /// Where to tell what the monitor should look into.
    pub hints: Hints,
    /// The listener's handles.
    pub metrics: ListenerMetrics,
    /// Failed connections, by backend.
    pub connect_failures: HashMap<Arc<str>, IntCounter>,
}

impl Shared {
    /// Whether a session may have TLS on a side, and so not be spliced.
    fn has_tls(&self) -> bool {
        self.handshake.is_some() || self.reach.tls.is_some()
    }

    /// Whether what rolegate itself says would be understood.
    pub(super) fn may_tell(&self) -> bool {
        self.handshake.is_some() || self.expects_plain
    }
}

/// An accepted client, on the worker that runs it.
#[derive(Debug)]
pub(super) struct Session<S = Stream> {
    client: S,
    account: Account,
}

/// A client that no worker runs: it waits, or is on its way to a worker.
pub(super) type Parked = Session<Detached>;

impl Session {
    /// Counts the client from now on, wherever it waits. `None` if it may not come in, which resets
    /// it.
    pub(super) fn admit(client: TcpStream, peer: Peer, shared: &Arc<Shared>) -> Option<Self> {
        let (gate, rules) = (&shared.gate, &shared.admission);
        let entered = gate.enter(rules).and_then(|()| match peer.ip() {
            Some(ip) => gate.enter_source(ip, rules).inspect_err(|_| gate.leave()),
            // At a unix socket the mode of its file says who may.
            None => Ok(false),
        });
        let is_source_counted = match entered {
            Ok(is_source_counted) => is_source_counted,
            Err(refusal) => {
                gate.refuse(refusal, peer.ip());
                net::reset(client);
                return None;
            }
        };
        shared.metrics.sessions.inc();
        shared.metrics.sessions_total.inc();
        let account = Account {
            shared: shared.clone(),
            peer,
            served: None,
            opened: Instant::now(),
            moved: Moved::default(),
            held_after: None,
            is_held: false,
            is_source_counted,
            dismissed: None,
            // Unless something better is known when it is dropped.
            reason: CloseReason::Shutdown,
        };
        Some(Self { client: Stream::Plain(client), account })
    }

    /// The place of its listener.
    pub(super) fn place(&self) -> usize {
        self.account.shared.place
    }

    /// Leaves the worker. `None` if the system does not let it go, which closes it.
    pub(super) fn park(self) -> Option<Parked> {
        let Self { client, account } = self;
        match client.detach() {
            Ok(client) => Some(Session { client, account }),
            Err(_) => {
                account.close(CloseReason::NoResources);
                None
            }
        }
    }

    /// Lets the client wait for a View that serves.
    pub(super) fn hold(self) {
        let returns = self.account.shared.returns.clone();
        if let Some(session) = self.park() {
            returns.hold(session);
        }
    }

    /// Serves the client until its end, or lets it wait, on the worker that has the load.
    #[expect(clippy::manual_async_fn, reason = "an async fn would keep its arguments twice")]
    pub(super) fn run(mut self, load: Load) -> impl Future<Output = ()> + Send {
        // What few sessions need, or none for long, is boxed: an idle one pays for what is not.
        async move {
            if self.account.shared.has_tls() {
                return Box::pin(self.run_over_tls(load)).await;
            }
            if let Some(reason) = self.account.dismissed {
                Box::pin(self.account.tell_why(&mut self.client)).await;
                return self.account.close(reason);
            }
            let (backend, revoked) = match Box::pin(self.account.connect(load.worker())).await {
                Ok(Some((Stream::Plain(backend), revoked))) => (backend, revoked),
                Ok(Some((Stream::Tls(_), _))) => return self.account.close(CloseReason::Internal),
                Ok(None) => return self.hold(),
                Err(reason) => {
                    self.client.reset();
                    return self.account.close(reason);
                }
            };
            let Stream::Plain(client) = &mut self.client else {
                return self.account.close(CloseReason::Internal);
            };
            let account = &mut self.account;
            let mut relay = Relay::new(client, backend, revoked, account, load.worker());
            let reason = (&mut relay).await;
            match after(reason) {
                After::Deliver => {
                    Box::pin(relay.reset_and_deliver()).await;
                    self.client.reset();
                }
                After::Reset => {
                    relay.reset();
                    self.client.reset();
                }
                After::Close => {
                    drop(relay);
                    drop(self.client);
                }
            }
            self.account.close(reason);
            drop(load);
        }
    }

    /// The same where TLS is spoken on a side or on both.
    async fn run_over_tls(self, load: Load) {
        let Self { client, account } = self;
        let client = match (client, &account.shared.handshake) {
            // One that has waited after its handshake has done with it.
            (Stream::Plain(socket), Some(handshake)) => {
                match handshake.take(socket, account.peer, &account.shared.log).await {
                    Ok(client) => client,
                    Err(reason) => return account.close(reason),
                }
            }
            (client, _) => client,
        };
        let mut session = Self { client, account };
        if let Some(reason) = session.account.dismissed {
            session.account.tell_why(&mut session.client).await;
            return session.account.close(reason);
        }
        let (backend, revoked) = match session.account.connect(load.worker()).await {
            Ok(Some(connected)) => connected,
            Ok(None) => return session.hold(),
            Err(reason) => {
                session.client.reset();
                return session.account.close(reason);
            }
        };
        let Self { client, account } = &mut session;
        let mut relay = Relay::new(client, backend, revoked, account, load.worker());
        let reason = (&mut relay).await;
        match after(reason) {
            After::Deliver => {
                relay.reset_and_deliver().await;
                session.client.reset();
            }
            After::Reset => {
                relay.reset();
                session.client.reset();
            }
            After::Close => {
                drop(relay);
                // TLS has its own word for the end, without which a client takes it for a fault.
                let _ = timeout(FAREWELL, session.client.finish()).await;
                drop(session.client);
            }
        }
        session.account.close(reason);
    }
}

/// What is left to do for the two sides of a session.
enum After {
    /// Reset the backend, deliver what has come from it, reset the client.
    Deliver,
    /// Reset both.
    Reset,
    /// Both have closed.
    Close,
}

fn after(reason: CloseReason) -> After {
    match reason {
        CloseReason::Revoked | CloseReason::BackendReset => After::Deliver,
        CloseReason::ClientReset | CloseReason::TlsOnPlain => After::Reset,
        _ => After::Close,
    }
}

impl Parked {
    /// Goes on, on the worker that runs here. `None` if the system does not let it, which closes it.
    pub(super) fn resume(self) -> Option<Session> {
        let Self { client, account } = self;
        match client.attach() {
            Ok(client) => Some(Session { client, account }),
            Err(_) => {
                account.close(CloseReason::NoResources);
                None
            }
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.account.shared
    }

    /// When the client was accepted.
    pub(super) fn opened(&self) -> Instant {
        self.account.opened
    }

    /// When it first had to wait: a backend that comes and goes does not wind it up again.
    pub(super) fn held_since(&self) -> Instant {
        let after = self.account.held_after.unwrap_or_default();
        self.account.opened + Duration::from_millis(after.into())
    }

    pub(super) fn enter_hold(mut self) -> Self {
        let metrics = &self.account.shared.metrics;
        metrics.held.inc();
        if self.account.held_after.is_none() {
            metrics.held_total.inc();
            let after = self.account.opened.elapsed().as_millis();
            self.account.held_after = Some(u32::try_from(after).unwrap_or(u32::MAX));
        }
        self.account.is_held = true;
        self
    }

    pub(super) fn leave_hold(mut self) -> Self {
        self.account.leave_hold();
        self
    }

    /// The same client, to be told why it gets no backend.
    pub(super) fn dismissed(mut self, reason: CloseReason) -> Self {
        self.account.dismissed = Some(reason);
        self
    }

    /// Resets the client.
    pub(super) fn close(self, reason: CloseReason) {
        net::reset(self.client);
        self.account.close(reason);
    }
}

impl AsFd for Parked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }
}

/// What is known of a session. However the session ends, dropping this counts its end once.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) shared: Arc<Shared>,
    peer: Peer,
    /// What it was last connected to, or tried.
    served: Option<Arc<Served>>,
    opened: Instant,
    pub(super) moved: Moved,
    /// In milliseconds since it was opened.
    held_after: Option<u32>,
    /// It is counted among those who wait.
    is_held: bool,
    /// It is counted among those from its address.
    is_source_counted: bool,
    /// It is only to be told why there is no backend, and closed.
    dismissed: Option<CloseReason>,
    reason: CloseReason,
}

impl Account {
    /// Connects to the backend that is served now. Should its lease go meanwhile, starts over with
    /// what the new View says; `None` if that serves nobody.
    async fn connect(&mut self, worker: usize) -> Result<Option<(Stream, Revoked)>, CloseReason> {
        let deadline = Instant::now() + self.shared.connect_timeout;
        // A crowd overflows the backend's queue, which drops what comes, and the system asks again
        // only after a second. So do not rely on one attempt alone.
        let mut share = self.shared.connect_timeout / FIRST_ATTEMPT;
        loop {
            let view = self.shared.view.borrow().clone();
            let Some(served) = view.verdict.served() else {
                self.served = None;
                return Ok(None);
            };
            self.served = Some(served.clone());
            let end = deadline.min(Instant::now() + share);
            let mut revoked = served.lease.revoked();
            if let Some(backend) = self.shared.spares.take(worker, &served.lease) {
                return Ok(Some((backend, revoked)));
            }
            let connected = select! {
                biased;
                () = &mut revoked => continue,
                connected = timeout_at(end, self.shared.reach.connect(served)) => connected,
            };
            // The lease may have gone in the very moment of success.
            if served.lease.is_revoked() {
                continue;
            }
            let (reason, pause) = match connected {
                Ok(Ok(backend)) => return Ok(Some((backend, revoked))),
                Ok(Err(error)) if net::is_out_of_resources(&error) => {
                    return Err(CloseReason::NoResources);
                }
                // A backend that has just died: the next check finds that out.
                Ok(Err(_)) => (CloseReason::ConnectFailed, REFUSED_PAUSE),
                Err(_) => (CloseReason::ConnectTimeout, Duration::ZERO),
            };
            self.shared.hints.give(Hint::ConnectFailed);
            if Instant::now() + pause >= deadline {
                if let Some(counter) = self.shared.connect_failures.get(&served.backend) {
                    counter.inc();
                }
                return Err(reason);
            }
            share *= 2;
            select! {
                () = revoked => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Sends the RESP error that drivers understand, and waits a little until the client has it: a
    /// close with unread input would discard it.
    async fn tell_why(&self, client: &mut Stream) {
        let reason = match self.shared.view.borrow().verdict.reason() {
            Some(reason) => reason.to_string(),
            None => "its master was not to be reached".to_owned(),
        };
        let reply =
            format!("-MASTERDOWN rolegate serves no master of {}: {reason}\r\n", self.shared.pool);
        let tell = async {
            client.write_all(reply.as_bytes()).await?;
            client.shutdown().await?;
            let mut rest = [0; 1024];
            while client.read(&mut rest).await? > 0 {}
            Ok::<_, io::Error>(())
        };
        // One that neither reads nor closes gets no more than this.
        let _ = timeout(FAREWELL, tell).await;
    }

    /// Lets the log tell of a client that speaks TLS where nobody does.
    pub(super) fn tell_tls_on_plain(&self) {
        let words = "it begins with a TLS handshake";
        self.shared.log.failed(self.peer, CloseReason::TlsOnPlain, words);
    }

    fn leave_hold(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.shared.metrics.held.dec();
        }
    }

    fn close(mut self, reason: CloseReason) {
        self.reason = reason;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let reason = if std::thread::panicking() { CloseReason::Internal } else { self.reason };
        self.leave_hold();
        self.shared.gate.leave();
        if let Some(ip) = self.peer.ip().filter(|_| self.is_source_counted) {
            self.shared.gate.leave_source(ip);
        }
        self.shared.metrics.sessions.dec();
        self.shared.metrics.session_closed(reason);
        debug!(
            listener = &*self.shared.listener,
            client = %self.peer,
            backend = self.served.as_deref().map(|served| &*served.backend),
            bytes_in = self.moved.up,
            bytes_out = self.moved.down,
            seconds = self.opened.elapsed().as_secs_f64(),
            reason = reason.as_str(),
            "session closed"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<F>(_: fn(Session, Load) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_session_does_not_grow_unnoticed() {
        // Up to here its task, which has about 100 bytes more, fits in 384.
        let size = size_of_future(Session::run);
        assert!(size <= 280, "{size} bytes");
    }
}
