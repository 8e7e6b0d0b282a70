//! A config and everything for it that the system can refuse: asked for before anything changes.

use std::{io, sync::Arc};

use tracing::warn;

use super::{AppError, budget::Budget, running::Running};
use crate::{
    config::{Bind, Config},
    lifecycle::{inherit::Passed, privileges::uid},
    net::{self, Listening, SocketFile},
    topology::Address,
};

/// A config that can be run.
pub(super) struct Plan {
    pub(super) config: Config,
    /// Listeners that take no clients until another reload.
    pub(super) closed: Vec<Arc<str>>,
    /// For each listener of the config; none for one that is closed.
    pub(super) sockets: Vec<Vec<Socket>>,
    pub(super) admin: Option<Socket>,
    pub(super) budget: Budget,
    /// Clients are accepted only when every pool is served: another process accepts them until then.
    pub(super) takes_over: bool,
}

/// A listening socket.
pub(super) struct Socket {
    bind: Bind,
    pub(super) address: Address,
    /// Kept as long as the socket is to listen, whoever accepts.
    kept: Arc<Listening>,
    /// An older rolegate had opened it.
    is_passed_on: bool,
    /// For the one who accepts.
    accepting: Option<Listening>,
}

impl Socket {
    fn new(bind: Bind, congestion: Option<Arc<str>>) -> io::Result<Self> {
        let kept = Arc::new(net::listen(&bind, congestion)?);
        Self::share(bind, kept)
    }

    fn share(bind: Bind, kept: Arc<Listening>) -> io::Result<Self> {
        let (address, accepting) = (kept.address()?, Some(kept.try_clone()?));
        Ok(Self { bind, address, kept, is_passed_on: false, accepting })
    }

    /// Whether both are the same socket.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kept, &other.kept)
    }

    /// The socket itself, for another process, and its name there. A file that is not ours to remove
    /// is told by a name that is no key.
    pub(super) fn pass(&self, key: String) -> (String, &Listening) {
        let is_others = self.kept.file().is_some_and(|file| !file.is_own());
        (if is_others { String::new() } else { key }, &self.kept)
    }

    /// Another process listens here from now on.
    pub(super) fn leave(&self) {
        if let Some(file) = self.kept.file() {
            file.leave();
        }
    }

    /// The process that listened here before does so no longer.
    pub(super) fn own(&self) {
        if let Some(file) = self.kept.file().filter(|_| self.is_passed_on) {
            file.own();
        }
    }

    /// What the new config says of the same socket holds from now on.
    pub(super) fn renew(&mut self, new: &Self) {
        if let (Some(file), Bind::Unix { mode, .. }) = (self.kept.file(), &new.bind)
            && self.bind != new.bind
            && let Err(error) = file.set_mode(*mode)
        {
            let error = error.to_string();
            let advice = "the file keeps its mode; is it still there, and this user's?";
            warn!(address = %self.address, error, advice, "cannot change bind_mode");
        }
        self.bind = new.bind.clone();
    }

    /// The end that accepts, once.
    pub(super) fn take(&mut self) -> io::Result<Listening> {
        self.accepting.take().map_or_else(|| self.kept.try_clone(), Ok)
    }
}

impl Plan {
    /// Binds what `running` has not bound yet and nobody has passed, but nothing for listeners that
    /// are to stay `closed`. An error leaves everything as it was.
    pub(super) fn new(
        config: Config,
        running: Option<&Running>,
        closed: Vec<Arc<str>>,
        mut inherited: Vec<(String, Listening)>,
        workers: usize,
        limit: u64,
        congestion: Option<&Arc<str>>,
    ) -> Result<Self, AppError> {
        let budget = Budget::new(&config, workers, limit)?;
        // Each once; one of the same listener first, as port 0 is another port for each.
        let mut known: Vec<_> = running.iter().flat_map(|running| running.sockets()).collect();
        let mut socket = |name: Option<&str>, bind: &Bind, key: &str| {
            let is_it = |(owner, socket): &(Option<&str>, &Socket), same: bool| {
                socket.bind.is_same_place(bind) && (*owner == name || !same && !bind.is_any_port())
            };
            let at = known.iter().position(|known| is_it(known, true));
            let at = at.or_else(|| known.iter().position(|known| is_it(known, false)));
            let socket = match at {
                Some(at) => Socket::share(bind.clone(), known.swap_remove(at).1.kept.clone()),
                None => match position(&inherited, bind, key) {
                    Some(at) => {
                        let (name, passed) = inherited.remove(at);
                        let shared = Socket::share(bind.clone(), Arc::new(passed));
                        shared.map(|socket| Socket { is_passed_on: name == key, ..socket })
                    }
                    None => Socket::new(bind.clone(), congestion.cloned()),
                },
            };
            socket.map_err(|error| {
                let (bind, key, advice) = (bind.clone(), key.to_owned(), advice(bind, &error));
                AppError::Bind { bind, key, error, advice }
            })
        };
        let admin = config.admin.as_ref().map(|admin| socket(None, &admin.bind, ADMIN));
        let admin = admin.transpose()?;
        let mut sockets = Vec::new();
        for listener in &config.listeners {
            let key = key(&listener.name);
            let binds = if closed.contains(&listener.name) { &[] } else { &listener.binds[..] };
            let bound: Result<Vec<_>, _> =
                (binds.iter()).map(|bind| socket(Some(&listener.name), bind, &key)).collect();
            sockets.push(bound?);
        }
        drop(known);
        for (name, unused) in &inherited {
            let address = unused.address().ok().map(|address| address.to_string());
            let advice = "no bind of the config has this address; it is closed";
            warn!(name, address, advice, "a socket was passed that is not used");
        }
        Ok(Self { config, closed, sockets, admin, budget, takes_over: false })
    }

    /// The files of unix sockets that this process has made.
    pub(super) fn files(&self) -> impl Iterator<Item = &SocketFile> {
        let sockets = self.sockets.iter().flatten().chain(&self.admin);
        sockets.filter_map(|socket| socket.kept.file()).filter(|file| file.is_own())
    }
}

/// What to do about an address that cannot be listened on.
fn advice(bind: &Bind, error: &io::Error) -> String {
    let uid = uid();
    match bind.port() {
        _ if error.kind() != io::ErrorKind::PermissionDenied => {
            "free the address or change the config".to_owned()
        }
        Some(_) => format!(
            "low ports (below 1024, unless the system says otherwise) are for root and \
             CAP_NET_BIND_SERVICE, and this process runs as uid {uid}: take another port, or restart it as \
             root, which binds before it changes to the user of the config"
        ),
        None => format!(
            "this process runs as uid {uid}, which has to be allowed to make files in the folder"
        ),
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
fn position(inherited: &[(String, Listening)], bind: &Bind, key: &str) -> Option<usize> {
    inherited.iter().position(|(name, socket)| {
        let is_named = bind.is_any_port() && name == key;
        is_named || socket.address().is_ok_and(|address| bind.is_at(&address))
    })
}

/// What was passed, made ready to accept. What cannot be is closed.
pub(super) fn adopt(
    passed: Vec<(String, Passed)>,
    congestion: Option<&Arc<str>>,
) -> Vec<(String, Listening)> {
    let adopt = |(name, socket)| {
        let socket = match socket {
            Passed::Tcp(socket) => net::adopt(socket, congestion.cloned()),
            Passed::Unix(socket) => Listening::adopt_unix(socket),
        };
        match socket {
            Ok(socket) => Some((name, socket)),
            Err(error) => {
                let error = error.to_string();
                let advice = "it is closed, and the address bound anew";
                warn!(name, error, advice, "cannot use a socket that was passed");
                None
            }
        }
    };
    passed.into_iter().filter_map(adopt).collect()
}
