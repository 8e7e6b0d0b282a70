//! One client, from its first byte to its last: find the served backend, connect, relay, account.

mod account;
mod origin;

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use prometheus::IntCounter;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout},
};

pub(super) use self::account::Account;
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
    metrics::{CloseReason, ListenerMetrics, Moved, Refusal},
    net::{
        self, Peer,
        tls::{Detached, Stream},
    },
    topology::{Admission, Hints, Hold, ProxyProtocol, Timeouts, View},
};

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
    /// Whether its clients come by way of a load balancer that tells who they are.
    pub proxy: Option<ProxyProtocol>,
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
    /// Takes a place for the client, wherever it waits from now on. `None` if there is none, which resets
    /// it.
    pub(super) fn enter(client: TcpStream, peer: Peer, shared: &Arc<Shared>) -> Option<Self> {
        let is_trusted = shared.proxy.as_ref().is_none_or(|proxy| proxy.trusts(peer.ip()));
        let entered = if is_trusted {
            shared.gate.enter(&shared.admission)
        } else {
            Err(Refusal::ProxyUntrusted)
        };
        if let Err(refusal) = entered {
            shared.gate.refuse(refusal, peer.ip());
            net::reset(client);
            return None;
        }
        shared.metrics.sessions.inc();
        let account = Account {
            shared: shared.clone(),
            peer,
            served: None,
            opened: Instant::now(),
            moved: Moved::default(),
            held_after: None,
            is_held: false,
            is_source_counted: false,
            dismissed: None,
            reason: None,
        };
        Some(Self { client: Stream::Plain(client), account })
    }

    /// Lets the client in, whose address is known. `None` if it may not come from there, which resets it.
    pub(super) fn admit(mut self) -> Option<Self> {
        let shared = &self.account.shared;
        let is_counted = match self.account.peer.ip() {
            Some(ip) => shared.gate.enter_source(ip, &shared.admission),
            // At a unix socket the mode of its file says who may.
            None => Ok(false),
        };
        match is_counted {
            Ok(is_counted) => {
                self.account.is_source_counted = is_counted;
                self.account.begin();
                Some(self)
            }
            Err(refusal) => {
                self.refuse(refusal);
                None
            }
        }
    }

    /// Resets the client, which is no session.
    fn refuse(self, refusal: Refusal) {
        self.account.shared.gate.refuse(refusal, self.account.peer.ip());
        self.client.reset();
    }

    /// Whether there is a backend for it.
    pub(super) fn is_served(&self) -> bool {
        self.account.shared.view.borrow().verdict.served().is_some()
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
