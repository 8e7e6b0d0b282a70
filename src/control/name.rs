//! A host name, and the addresses that it resolves to: looked up again and again beside everything
//! else, never by who wants to connect.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    time::Duration,
};

use tokio::{
    select,
    sync::{Notify, watch},
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout},
};
use tracing::{info, warn};

use super::route::Problem;
use crate::{config::HostPort, topology::Failure};

/// From the end of one lookup to the next, however often one is asked for.
const MIN_GAP: Duration = Duration::from_secs(1);

/// A lookup that takes longer counts as failed for the log, and goes on.
const SLOW: Duration = Duration::from_secs(5);

/// What is known of a name.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The last good answer, whatever came after it.
    addresses: Vec<SocketAddr>,
    /// Why the last lookup failed.
    problem: Option<String>,
}

/// One name, with the port that goes with it.
#[derive(Debug)]
pub(super) struct Name {
    address: HostPort,
    every: Duration,
    known: watch::Sender<Known>,
    wanted: Notify,
}

/// Tells when a name has other addresses.
pub(super) struct Changes(watch::Receiver<Known>);

impl Name {
    /// Looked up `every` so often, once [`Self::keep`] runs.
    pub(super) fn new(address: HostPort, every: Duration) -> Self {
        Self { address, every, known: watch::Sender::default(), wanted: Notify::new() }
    }

    /// Knows from the start what the same name resolved to before.
    pub(super) fn take_over(&self, old: &Self) {
        if self.address == old.address {
            self.known.send_replace(old.known.borrow().clone());
        }
    }

    /// The last good answer, at least one address. Waits for the first lookup, for so long at the
    /// most.
    pub(super) async fn addresses(&self, patience: Duration) -> Result<Vec<SocketAddr>, Problem> {
        let mut known = self.known.subscribe();
        let ended = known.wait_for(|k| !k.addresses.is_empty() || k.problem.is_some());
        let words = match timeout(patience, ended).await {
            Ok(Ok(known)) if !known.addresses.is_empty() => return Ok(known.addresses.clone()),
            Ok(Ok(known)) => known.problem.clone(),
            Ok(Err(_)) | Err(_) => Some("the lookup has not ended yet".to_owned()),
        };
        Err(Problem { failure: Failure::Unresolved, words })
    }

    /// Whether it resolves to this address now.
    pub(super) fn is_at(&self, ip: IpAddr, port: u16) -> bool {
        let is_it = |at: &SocketAddr| at.ip().to_canonical() == ip && at.port() == port;
        self.known.borrow().addresses.iter().any(is_it)
    }

    /// From now on.
    pub(super) fn changes(&self) -> Changes {
        Changes(self.known.subscribe())
    }

    /// Asks for a lookup now: something went wrong at the addresses that are known.
    pub(super) fn look_again(&self) {
        self.wanted.notify_one();
    }

    /// Looks it up, on schedule and when that is asked for. Never ends. A lookup blocks a thread, so
    /// there is never a second one.
    pub(super) async fn keep(&self) {
        loop {
            let started = Instant::now();
            let name = (self.address.host.clone(), self.address.port);
            let mut lookup = spawn_blocking(move || Ok(name.to_socket_addrs()?.collect()));
            let found = match timeout(SLOW, &mut lookup).await {
                Ok(found) => found,
                Err(_) => {
                    self.failed(format!("no answer in {} s", SLOW.as_secs()));
                    lookup.await
                }
            };
            match found.unwrap_or_else(|stopped| Err(io::Error::other(stopped))) {
                Ok(found) => self.resolved(found),
                Err(error) => self.failed(error.to_string()),
            }
            let soonest = Instant::now() + MIN_GAP.min(self.every);
            let asked = async {
                self.wanted.notified().await;
                sleep_until(soonest).await;
            };
            select! {
                () = sleep_until(soonest.max(started + self.every)) => {}
                () = asked => {}
            }
        }
    }

    fn resolved(&self, found: Vec<SocketAddr>) {
        let Some(found) = tidy(found) else {
            return self.failed("it has no addresses".to_owned());
        };
        let name = self.address.to_string();
        self.known.send_if_modified(|known| {
            let again = known.problem.take().is_some();
            if again && !known.addresses.is_empty() {
                info!(name, to = show(&found), "name resolves again");
            }
            if is_same(&known.addresses, &found) {
                return false;
            }
            let (from, to) = (show(&known.addresses), show(&found));
            if known.addresses.is_empty() {
                info!(name, to, "name resolves");
            } else {
                info!(name, from, to, "name has other addresses");
            }
            known.addresses = found;
            true
        });
    }

    fn failed(&self, error: String) {
        let name = self.address.to_string();
        self.known.send_if_modified(|known| {
            let is_first = known.problem.is_none();
            // Without an address, the check itself fails and says so.
            if is_first && !known.addresses.is_empty() {
                let (stays, advice) = (
                    show(&known.addresses),
                    "checks go on at its last addresses; is DNS, or /etc/hosts, in order?",
                );
                warn!(name, error, stays, advice, "name does not resolve");
            }
            known.problem = Some(error);
            is_first && known.addresses.is_empty()
        });
    }
}

impl Changes {
    /// Resolves when there are other addresses than when it last did, or a first lookup has failed.
    pub(super) async fn next(&mut self) {
        // The name outlives whoever waits for it.
        let _ = self.0.changed().await;
    }
}

/// Each address once, in the system's order of preference; `None` if there is none.
fn tidy(found: Vec<SocketAddr>) -> Option<Vec<SocketAddr>> {
    let mut addresses: Vec<SocketAddr> = Vec::with_capacity(found.len());
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    (!addresses.is_empty()).then_some(addresses)
}

/// DNS hands out the same addresses in another order each time, which is no news.
fn is_same(known: &[SocketAddr], found: &[SocketAddr]) -> bool {
    known.len() == found.len() && found.iter().all(|address| known.contains(address))
}

fn show(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
    if addresses.is_empty() { "none".to_owned() } else { addresses.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(hosts: &[u8]) -> Vec<SocketAddr> {
        hosts.iter().map(|host| ([10, 0, 0, *host], 1).into()).collect()
    }

    fn name() -> Name {
        Name::new(HostPort { host: "redis".to_owned(), port: 1 }, Duration::from_secs(10))
    }

    #[tokio::test]
    async fn another_order_is_no_change_and_a_failure_takes_nothing_away() {
        let name = name();
        let mut changes = name.changes();
        name.resolved(addresses(&[1, 2, 1]));
        assert!(changes.0.has_changed().unwrap());
        changes.next().await;
        name.resolved(addresses(&[2, 1]));
        name.failed("no answer".to_owned());
        name.resolved(Vec::new());
        assert!(!changes.0.has_changed().unwrap());
        assert_eq!(name.addresses(Duration::ZERO).await.unwrap(), addresses(&[1, 2]));
        name.resolved(addresses(&[2, 3]));
        assert!(changes.0.has_changed().unwrap());
        assert!(!name.is_at([10, 0, 0, 1].into(), 1) && name.is_at([10, 0, 0, 3].into(), 1));
    }

    #[tokio::test]
    async fn a_first_lookup_is_waited_for_as_long_as_it_says() {
        let name = name();
        let problem = name.addresses(Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(problem.failure, Failure::Unresolved);
        assert_eq!(problem.words.as_deref(), Some("the lookup has not ended yet"));
        name.failed("no such name".to_owned());
        let problem = name.addresses(Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(problem.words.as_deref(), Some("no such name"));
    }
}
