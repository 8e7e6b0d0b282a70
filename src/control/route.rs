//! How a backend or a Sentinel is reached, and what may go wrong with it.

use std::{
    fmt,
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use super::{
    name::{self, Name},
    secured,
};
use crate::{
    config::{Endpoint, PeerTls},
    net::{
        self, Tuning,
        tls::{Connector, Stream},
    },
    topology::{Address, Failure},
};

/// How a backend or a Sentinel is reached.
pub(super) struct Route {
    to: To,
    timeout: Duration,
    tls: Option<Connector>,
    /// Whom a certificate has to name, unless the config says otherwise.
    host: String,
}

enum To {
    Fixed(Address),
    Name(Name),
}

/// Tells when a route leads elsewhere.
pub(super) struct Changes(Option<name::Changes>);

impl Route {
    /// `timeout` is for all of the name's addresses together; the caller keeps it as a whole. A name
    /// is looked up `resolve` so often.
    pub(super) fn new(
        to: Endpoint,
        tls: Option<&PeerTls>,
        timeout: Duration,
        resolve: Duration,
    ) -> Self {
        let tls = tls.map(|tls| Connector::new(tls.connector.clone(), tls.server_name.clone()));
        let host = to.host().to_owned();
        let to = match to {
            Endpoint::Unix(path) => To::Fixed(Address::Unix(path)),
            Endpoint::Host(address) => match address.host.parse() {
                Ok(ip) => To::Fixed(SocketAddr::new(ip, address.port).into()),
                Err(_) => To::Name(Name::new(address, resolve)),
            },
        };
        Self { to, timeout, tls, host }
    }

    /// Knows from the start where the old route to the same backend led.
    pub(super) fn take_over(&self, old: &Self) {
        if let (To::Name(new), To::Name(old)) = (&self.to, &old.to) {
            new.take_over(old);
        }
    }

    /// Tries each address in turn, shakes hands where that is wanted, and tells the one that was
    /// reached. A peer is given up that acknowledges nothing for as long as `patience`.
    pub(super) async fn connect(&self, patience: Duration) -> Result<(Stream, Address), Problem> {
        let addresses = match &self.to {
            To::Fixed(address) => vec![address.clone()],
            // What is left is for an answer that says why.
            To::Name(name) => {
                let addresses = name.addresses(self.timeout / 2).await?;
                addresses.into_iter().map(Address::from).collect()
            }
        };
        let tuning = Tuning { patience, congestion: None };
        // One that swallows everything leaves time for the next.
        let share = self.timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut last = None;
        for address in addresses {
            let end = Instant::now() + share;
            match timeout_at(end, net::connect(&address, &tuning)).await {
                Ok(Ok(socket)) => match &self.tls {
                    None => return Ok((Stream::Plain(socket), address)),
                    Some(connector) => {
                        let (host, half) = (&self.host, share / 2);
                        let secured = secured::connect(socket, connector, host, &address, half);
                        match timeout_at(end, secured).await {
                            Ok(Ok(stream)) => return Ok((stream, address)),
                            Ok(Err(problem)) => last = Some(problem),
                            Err(_) => last = Some(Problem::silent()),
                        }
                    }
                },
                Ok(Err(error)) => last = Some(Problem::io(&error)),
                Err(_) => last = Some(Problem::silent()),
            }
        }
        Err(last.unwrap_or(Problem { failure: Failure::Unresolved, words: None }))
    }

    /// Finds out whether a peer speaks TLS that broke off a plain connection without a word.
    pub(super) async fn wants_tls(&self, address: &Address) -> bool {
        self.tls.is_none() && secured::speaks_tls(address, self.timeout / 4).await
    }

    /// Whether it leads to this address now.
    pub(super) fn is_at(&self, ip: IpAddr, port: u16) -> bool {
        match &self.to {
            To::Fixed(Address::Tcp(address)) => address.ip() == ip && address.port() == port,
            To::Fixed(Address::Unix(_)) => false,
            To::Name(name) => name.is_at(ip.to_canonical(), port),
        }
    }

    /// Whether a connection to this address still is one to the backend: the name may have moved.
    pub(super) fn holds(&self, address: &Address) -> bool {
        match (&self.to, address) {
            (To::Fixed(fixed), _) => fixed == address,
            (To::Name(name), Address::Tcp(address)) => {
                name.is_at(address.ip().to_canonical(), address.port())
            }
            (To::Name(_), Address::Unix(_)) => false,
        }
    }

    /// From now on.
    pub(super) fn changes(&self) -> Changes {
        Changes(match &self.to {
            To::Fixed(_) => None,
            To::Name(name) => Some(name.changes()),
        })
    }

    /// Something went wrong there: is it still the right address?
    pub(super) fn look_again(&self) {
        if let To::Name(name) = &self.to {
            name.look_again();
        }
    }

    /// Keeps the addresses fresh. Never ends.
    pub(super) async fn keep(&self) {
        match &self.to {
            To::Fixed(_) => pending().await,
            To::Name(name) => name.keep().await,
        }
    }
}

impl Changes {
    /// Resolves when the route leads elsewhere than when it last did.
    pub(super) async fn next(&mut self) {
        match &mut self.0 {
            Some(changes) => changes.next().await,
            None => pending().await,
        }
    }
}

/// What went wrong, and in whose words.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) failure: Failure,
    pub(super) words: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.words {
            Some(words) => write!(f, "{} ({words})", self.failure),
            None => self.failure.fmt(f),
        }
    }
}

impl Problem {
    pub(super) fn silent() -> Self {
        Self { failure: Failure::Timeout, words: None }
    }

    pub(super) fn io(error: &io::Error) -> Self {
        let failure = match error.kind() {
            _ if net::is_out_of_resources(error) => Failure::NoResources,
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Failure::Refused,
            io::ErrorKind::TimedOut => Failure::Timeout,
            _ => Failure::Unreachable,
        };
        Self { failure, words: Some(error.to_string()) }
    }
}
