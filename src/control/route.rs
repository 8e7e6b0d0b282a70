//! How a backend or a Sentinel is reached, and what may go wrong with it.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    sync::Mutex as AsyncMutex,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use crate::{
    config::HostPort,
    net::{self, Tuning},
    topology::Failure,
};

/// How a backend or a Sentinel is reached.
pub(super) struct Route {
    address: HostPort,
    timeout: Duration,
    /// What the name resolved to last.
    known: Mutex<Vec<SocketAddr>>,
    /// A name lookup that has not ended. It blocks a thread, so there is never a second one.
    lookup: AsyncMutex<Option<JoinHandle<io::Result<Vec<SocketAddr>>>>>,
}

impl Route {
    /// `timeout` is for all of the name's addresses together; the caller keeps it as a whole.
    pub(super) fn new(address: HostPort, timeout: Duration) -> Self {
        Self { address, timeout, known: Mutex::default(), lookup: AsyncMutex::default() }
    }

    /// Tries each address in turn. A peer is given up that acknowledges nothing for as long as
    /// `patience`.
    pub(super) async fn connect(&self, patience: Duration) -> Result<TcpStream, Problem> {
        let addresses = self.resolve().await?;
        let tuning = Tuning { patience, congestion: None };
        self.known().clone_from(&addresses);
        // One that swallows everything leaves time for the next.
        let share = self.timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut last = None;
        for address in addresses {
            match timeout(share, net::connect(address, &tuning)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = Some(Problem::io(&error)),
                Err(_) => last = Some(Problem { failure: Failure::Timeout, words: None }),
            }
        }
        Err(last.unwrap_or(Problem { failure: Failure::Unresolved, words: None }))
    }

    /// What the name resolved to last; nothing before the first time.
    pub(super) fn known(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, Problem> {
        let address = &self.address;
        if let Ok(ip) = address.host.parse() {
            return Ok(vec![SocketAddr::new(ip, address.port)]);
        }
        let mut lookup = self.lookup.lock().await;
        let name = (address.host.clone(), address.port);
        let running = lookup
            .get_or_insert_with(|| spawn_blocking(move || Ok(name.to_socket_addrs()?.collect())));
        let found = running.await;
        *lookup = None;
        found.unwrap_or_else(|stopped| Err(io::Error::other(stopped))).map_err(|error| Problem {
            failure: Failure::Unresolved,
            words: Some(error.to_string()),
        })
    }
}

/// What went wrong, and in whose words.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) failure: Failure,
    pub(super) words: Option<String>,
}

impl Problem {
    pub(super) fn io(error: &io::Error) -> Self {
        let failure = match error.kind() {
            _ if net::is_out_of_resources(error) => Failure::NoResources,
            io::ErrorKind::ConnectionRefused => Failure::Refused,
            io::ErrorKind::TimedOut => Failure::Timeout,
            _ => Failure::Unreachable,
        };
        Self { failure, words: Some(error.to_string()) }
    }
}
