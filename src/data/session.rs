//! One client, from its first byte to its last: find the served backend, connect, relay, account.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpStream as StdTcpStream},
    sync::Arc,
    time::Duration,
};

use prometheus::IntCounter;
use tokio::{
    net::TcpStream,
    select,
    sync::watch,
    time::{Instant, timeout_at},
};
use tracing::debug;

use super::relay::{Moved, Relay};
use crate::{
    metrics::{CloseReason, ListenerMetrics},
    net,
    topology::{Lease, Served, Verdict, View},
};

/// What every session of a listener shares.
#[derive(Debug)]
pub struct Shared {
    /// The listener's name.
    pub listener: Arc<str>,
    /// Its pool's View.
    pub view: watch::Receiver<Arc<View>>,
    /// For the connection to the backend.
    pub connect_timeout: Duration,
    /// The listener's handles.
    pub metrics: ListenerMetrics,
    /// Failed connections, by backend.
    pub connect_failures: HashMap<Arc<str>, IntCounter>,
}

/// An accepted client.
pub(super) struct Session {
    client: StdTcpStream,
    account: Account,
}

impl Session {
    /// Counts the client from now on, wherever it waits.
    pub(super) fn new(client: StdTcpStream, peer: SocketAddr, shared: Arc<Shared>) -> Self {
        shared.metrics.sessions.inc();
        shared.metrics.sessions_total.inc();
        let account = Account {
            shared,
            peer,
            backend: None,
            opened: Instant::now(),
            moved: Moved::default(),
            // Unless something better is known when it is dropped.
            reason: CloseReason::Shutdown,
        };
        Self { client, account }
    }

    /// Serves the client until its end.
    pub(super) async fn run(self) {
        let Self { client, mut account } = self;
        let Ok(client) = TcpStream::from_std(client) else {
            return account.close(CloseReason::NoResources);
        };
        let (backend, lease) = match account.connect().await {
            Ok(connected) => connected,
            Err(reason) => {
                net::reset(client);
                return account.close(reason);
            }
        };
        let metrics = &account.shared.metrics;
        let (up, down) = (metrics.bytes_in.clone(), metrics.bytes_out.clone());
        let mut relay = Relay::new(client, backend, up, down);
        let reason = select! {
            biased;
            () = lease.revoked() => CloseReason::Revoked,
            reason = relay.run(&mut account.moved) => reason,
        };
        match reason {
            CloseReason::Revoked | CloseReason::BackendReset => {
                // Boxed, so that no session pays for its end before it comes.
                Box::pin(relay.deliver_and_reset(&mut account.moved)).await;
            }
            CloseReason::ClientReset => relay.reset(),
            _ => drop(relay),
        }
        account.close(reason);
    }
}

/// What is known of a session. However the session ends, dropping this counts its end once.
struct Account {
    shared: Arc<Shared>,
    peer: SocketAddr,
    backend: Option<Arc<str>>,
    opened: Instant,
    moved: Moved,
    reason: CloseReason,
}

impl Account {
    /// Connects to the backend that is served now. Should its lease go meanwhile, starts over with
    /// what the new View says.
    async fn connect(&mut self) -> Result<(TcpStream, Lease), CloseReason> {
        let deadline = Instant::now() + self.shared.connect_timeout;
        loop {
            let view = self.shared.view.borrow().clone();
            let served = match &view.verdict {
                Verdict::Serve(served) => served,
                Verdict::Refuse(_) => return Err(CloseReason::Refused),
            };
            self.backend = Some(served.backend.clone());
            let connected = select! {
                biased;
                () = served.lease.revoked() => continue,
                connected = timeout_at(deadline, net::connect(served.address)) => connected,
            };
            // The lease may have gone in the very moment of success.
            if served.lease.is_revoked() {
                continue;
            }
            return match connected {
                Ok(Ok(backend)) => Ok((backend, served.lease.clone())),
                Ok(Err(error)) => Err(self.connect_failed(served, Some(&error))),
                Err(_) => Err(self.connect_failed(served, None)),
            };
        }
    }

    fn connect_failed(&self, served: &Served, error: Option<&io::Error>) -> CloseReason {
        if error.is_some_and(net::is_out_of_resources) {
            return CloseReason::NoResources;
        }
        if let Some(counter) = self.shared.connect_failures.get(&served.backend) {
            counter.inc();
        }
        error.map_or(CloseReason::ConnectTimeout, |_| CloseReason::ConnectFailed)
    }

    fn close(mut self, reason: CloseReason) {
        self.reason = reason;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let reason = if std::thread::panicking() { CloseReason::Internal } else { self.reason };
        self.shared.metrics.sessions.dec();
        self.shared.metrics.session_closed(reason);
        debug!(
            listener = &*self.shared.listener,
            client = %self.peer,
            backend = self.backend.as_deref(),
            bytes_in = self.moved.up,
            bytes_out = self.moved.down,
            seconds = self.opened.elapsed().as_secs_f64(),
            reason = reason.as_str(),
            "session closed"
        );
    }
}
