//! What is known of a session, and how it gets its backend.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    select,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::debug;

use super::{FAREWELL, Shared};
use crate::{
    metrics::{CloseReason, Moved},
    net::{self, Peer, tls::Stream},
    topology::{Hint, Revoked, Served},
};

/// The share of the connect_timeout that the first attempt has; each one after has twice as much.
const FIRST_ATTEMPT: u32 = 8;

/// Before a backend is tried again that refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// What is known of a session. However the session ends, dropping this counts its end once.
#[derive(Debug)]
pub(in crate::data) struct Account {
    pub(in crate::data) shared: Arc<Shared>,
    pub(super) peer: Peer,
    /// What it was last connected to, or tried.
    pub(super) served: Option<Arc<Served>>,
    pub(super) opened: Instant,
    pub(in crate::data) moved: Moved,
    /// In milliseconds since it was opened.
    pub(super) held_after: Option<u32>,
    /// It is counted among those who wait.
    pub(super) is_held: bool,
    /// It is counted among those from its address.
    pub(super) is_source_counted: bool,
    /// It is only to be told why there is no backend, and closed.
    pub(super) dismissed: Option<CloseReason>,
    /// Why it ends; `None` while it may still be refused, which is no session that ended.
    pub(super) reason: Option<CloseReason>,
}

impl Account {
    /// Connects to the backend that is served now. Should its lease go meanwhile, starts over with
    /// what the new View says; `None` if that serves nobody.
    pub(super) async fn connect(
        &mut self,
        worker: usize,
    ) -> Result<Option<(Stream, Revoked)>, CloseReason> {
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
    pub(super) async fn tell_why(&self, client: &mut Stream) {
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
    pub(in crate::data) fn tell_tls_on_plain(&self) {
        let words = "it begins with a TLS handshake";
        self.shared.log.failed(self.peer, CloseReason::TlsOnPlain, words);
    }

    /// It is a session from now on.
    pub(super) fn begin(&mut self) {
        self.shared.metrics.sessions_total.inc();
        // Unless something better is known when it is dropped.
        self.reason = Some(CloseReason::Shutdown);
    }

    pub(super) fn leave_hold(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.shared.metrics.held.dec();
        }
    }

    pub(super) fn close(mut self, reason: CloseReason) {
        self.reason = Some(reason);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.leave_hold();
        self.shared.gate.leave();
        self.shared.metrics.sessions.dec();
        let Some(reason) = self.reason else {
            return;
        };
        let reason = if std::thread::panicking() { CloseReason::Internal } else { reason };
        if let Some(ip) = self.peer.ip().filter(|_| self.is_source_counted) {
            self.shared.gate.leave_source(ip);
        }
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
