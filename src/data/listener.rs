//! Accepts clients, each listening socket on one of the workers.

use std::{io, net::TcpListener as StdTcpListener, sync::Arc};

use tokio::{net::TcpListener, task::yield_now, time::sleep};
use tracing::{info, warn};

use super::{
    session::{Session, Shared},
    worker::Here,
};
use crate::net;

/// Clients that one socket may bring before the sessions of its worker have their turn.
const TURN: usize = 32;

/// A bound, non-blocking socket and what its sessions share.
#[derive(Debug)]
pub struct Listener<S = StdTcpListener> {
    socket: S,
    shared: Arc<Shared>,
}

impl Listener {
    /// Accepts nothing yet.
    pub fn new(socket: StdTcpListener, shared: Arc<Shared>) -> Self {
        Self { socket, shared }
    }

    /// Gets ready to accept on the worker that runs here.
    pub(super) fn register(self) -> io::Result<Listener<TcpListener>> {
        Ok(Listener { socket: TcpListener::from_std(self.socket)?, shared: self.shared })
    }
}

impl Listener<TcpListener> {
    /// Accepts until it is dropped, whatever goes wrong with a client.
    pub(super) async fn run(self, here: Here) {
        let Self { socket, shared } = self;
        let mut failing = false;
        loop {
            for _ in 0..TURN {
                if let Some(rate) = shared.admission.accept_rate {
                    shared.gate.turn(rate).await;
                }
                match socket.accept().await {
                    Ok((client, peer)) => {
                        if failing {
                            failing = false;
                            info!(listener = &*shared.listener, "accepts clients again");
                        }
                        let Some(session) = Session::admit(client, peer, &shared) else {
                            continue;
                        };
                        if shared.view.borrow().verdict.served().is_some() {
                            here.take(session);
                        } else {
                            session.hold();
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
