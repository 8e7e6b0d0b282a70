//! Accepts clients, each listening socket on one of the workers.

use std::{io, sync::Arc};

use tokio::{select, sync::watch, task::yield_now, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    session::{Session, Shared},
    worker::Here,
};
use crate::net::{self, Accepting, Listening};

/// Clients that one socket may bring before the sessions of its worker have their turn.
const TURN: usize = 32;

/// A bound, non-blocking socket and what its sessions share.
#[derive(Debug)]
pub struct Listener<S = Listening> {
    socket: S,
    /// What those share who come from now on.
    shared: watch::Receiver<Arc<Shared>>,
    stop: CancellationToken,
}

impl Listener {
    /// Accepts nothing yet, and nothing more after the stop.
    pub fn new(
        socket: Listening,
        shared: watch::Receiver<Arc<Shared>>,
        stop: CancellationToken,
    ) -> Self {
        Self { socket, shared, stop }
    }

    /// Gets ready to accept on the worker that runs here.
    pub(super) fn register(self) -> io::Result<Listener<Accepting>> {
        let Self { socket, shared, stop } = self;
        Ok(Listener { socket: socket.register()?, shared, stop })
    }
}

impl Listener<Accepting> {
    /// Accepts until the stop, whatever goes wrong with a client.
    pub(super) async fn run(self, here: Here) {
        let stop = self.stop.clone();
        select! {
            biased;
            () = stop.cancelled() => {}
            () = self.accept(here) => {}
        }
    }

    async fn accept(self, here: Here) {
        let mut failing = false;
        loop {
            for _ in 0..TURN {
                let rate = self.shared.borrow().admission.accept_rate;
                if let Some(rate) = rate {
                    let gate = self.shared.borrow().gate.clone();
                    gate.turn(rate).await;
                }
                let accepted = self.socket.accept().await;
                let shared = self.shared.borrow().clone();
                match accepted {
                    Ok((client, peer)) => {
                        if failing {
                            failing = false;
                            info!(listener = &*shared.listener, "accepts clients again");
                        }
                        if let Some(session) = Session::enter(client, peer, &shared) {
                            here.welcome(session);
                        }
                    }
                    Err(error) if net::is_client_gone(&error) => {}
                    Err(error) => {
                        shared.metrics.accept_errors.inc();
                        if !failing {
                            failing = true;
                            let error = error.to_string();
                            let advice =
                                "raise the limit of open files; new clients wait or are reset";
                            warn!(listener = &*shared.listener, error, advice, "cannot accept");
                        }
                        sleep(net::RESOURCES_PAUSE).await;
                    }
                }
            }
            yield_now().await;
        }
    }
}
