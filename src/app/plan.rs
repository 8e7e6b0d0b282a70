//! A config and everything for it that the system can refuse: asked for before anything changes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
};

use tracing::warn;

use super::{AppError, budget::Budget, running::Running};
use crate::{
    config::{Bind, Config},
    net,
};

/// A config that can be run.
pub(super) struct Plan {
    pub(super) config: Config,
    /// For each listener of the config.
    pub(super) sockets: Vec<Vec<Socket>>,
    pub(super) admin: Option<Socket>,
    pub(super) budget: Budget,
    /// Clients are accepted only when every pool is served: another process accepts them until then.
    pub(super) takes_over: bool,
}

/// A listening socket.
pub(super) struct Socket {
    bind: Bind,
    pub(super) address: SocketAddr,
    /// Kept as long as the socket is to listen, whoever accepts.
    kept: Arc<TcpListener>,
    /// For the one who accepts.
    accepting: Option<TcpListener>,
}

impl Socket {
    fn new(bind: Bind, congestion: Option<Arc<str>>) -> io::Result<Self> {
        let kept = Arc::new(net::listen(bind, congestion)?);
        Self::share(bind, kept)
    }

    /// One that was passed to this process.
    fn adopt(bind: Bind, socket: TcpListener, congestion: Option<Arc<str>>) -> io::Result<Self> {
        net::adopt(&socket, congestion)?;
        Self::share(bind, Arc::new(socket))
    }

    fn share(bind: Bind, kept: Arc<TcpListener>) -> io::Result<Self> {
        let (address, accepting) = (kept.local_addr()?, Some(kept.try_clone()?));
        Ok(Self { bind, address, kept, accepting })
    }

    /// Whether both are the same socket.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kept, &other.kept)
    }

    /// The socket itself, for another process.
    pub(super) fn fd(&self) -> &TcpListener {
        &self.kept
    }

    /// The end that accepts, once.
    pub(super) fn take(&mut self) -> io::Result<TcpListener> {
        self.accepting.take().map_or_else(|| self.kept.try_clone(), Ok)
    }
}

impl Plan {
    /// Binds what `running` has not bound yet and nobody has passed. An error leaves everything as it
    /// was.
    pub(super) fn new(
        config: Config,
        running: Option<&Running>,
        mut inherited: Vec<(String, TcpListener)>,
        workers: usize,
        limit: u64,
        congestion: Option<&Arc<str>>,
    ) -> Result<Self, AppError> {
        let budget = Budget::new(&config, workers, limit)?;
        // Each once; one of the same listener first, as port 0 is another port for each.
        let mut known: Vec<_> = running.iter().flat_map(|running| running.sockets()).collect();
        let mut socket = |name: Option<&str>, bind: Bind, key: &str| {
            let is_it = |(owner, socket): &(Option<&str>, &Socket), same: bool| {
                socket.bind == bind && (*owner == name || !same && bind.address().port() != 0)
            };
            let at = known.iter().position(|known| is_it(known, true));
            let at = at.or_else(|| known.iter().position(|known| is_it(known, false)));
            let socket = match at {
                Some(at) => Socket::share(bind, known.swap_remove(at).1.kept.clone()),
                None => match position(&inherited, bind, key) {
                    Some(at) => Socket::adopt(bind, inherited.remove(at).1, congestion.cloned()),
                    None => Socket::new(bind, congestion.cloned()),
                },
            };
            socket.map_err(|error| AppError::Bind { bind, key: key.to_owned(), error })
        };
        let admin = config.admin.map(|bind| socket(None, bind, ADMIN)).transpose()?;
        let mut sockets = Vec::new();
        for listener in &config.listeners {
            let key = key(&listener.name);
            let bound: Result<Vec<_>, _> = (listener.binds.iter())
                .map(|bind| socket(Some(&listener.name), *bind, &key))
                .collect();
            sockets.push(bound?);
        }
        drop(known);
        for (name, unused) in &inherited {
            let address = unused.local_addr().ok().map(|address| address.to_string());
            let advice = "no bind of the config has this address; it is closed";
            warn!(name, address, advice, "a socket was passed that is not used");
        }
        Ok(Self { config, sockets, admin, budget, takes_over: false })
    }
}

/// The key of the admin's socket.
pub(super) const ADMIN: &str = "admin.bind";

/// The key of a listener's sockets.
pub(super) fn key(listener: &str) -> String {
    format!("listeners.{listener}.bind")
}

/// The socket for this key and address: by its address, or by its name where the config leaves the port
/// to the system.
fn position(inherited: &[(String, TcpListener)], bind: Bind, key: &str) -> Option<usize> {
    let wanted = bind.address();
    inherited.iter().position(|(name, socket)| match socket.local_addr() {
        Ok(address) if wanted.port() == 0 => name == key && address.ip() == wanted.ip(),
        Ok(address) => {
            // Without IPv6 all addresses are those of IPv4.
            let is_all =
                matches!(bind, Bind::All(port) if address == (Ipv4Addr::UNSPECIFIED, port).into());
            address == wanted || is_all
        }
        Err(_) => false,
    })
}
