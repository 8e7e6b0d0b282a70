//! A config and everything for it that the system can refuse: asked for before anything changes.

use std::{io, net::SocketAddr, net::TcpListener, sync::Arc};

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

    fn share(bind: Bind, kept: Arc<TcpListener>) -> io::Result<Self> {
        let (address, accepting) = (kept.local_addr()?, Some(kept.try_clone()?));
        Ok(Self { bind, address, kept, accepting })
    }

    /// Whether both are the same socket.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kept, &other.kept)
    }

    /// The end that accepts, once.
    pub(super) fn take(&mut self) -> io::Result<TcpListener> {
        self.accepting.take().map_or_else(|| self.kept.try_clone(), Ok)
    }
}

impl Plan {
    /// Binds what `running` has not bound yet. An error leaves everything as it was.
    pub(super) fn new(
        config: Config,
        running: Option<&Running>,
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
                None => Socket::new(bind, congestion.cloned()),
            };
            socket.map_err(|error| AppError::Bind { bind, key: key.to_owned(), error })
        };
        let admin = config.admin.map(|bind| socket(None, bind, "admin.bind")).transpose()?;
        let mut sockets = Vec::new();
        for listener in &config.listeners {
            let key = format!("listeners.{}.bind", listener.name);
            let bound: Result<Vec<_>, _> = (listener.binds.iter())
                .map(|bind| socket(Some(&listener.name), *bind, &key))
                .collect();
            sockets.push(bound?);
        }
        drop(known);
        Ok(Self { config, sockets, admin, budget })
    }
}
