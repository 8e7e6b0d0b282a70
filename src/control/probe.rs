//! Checks one backend over one kept connection: AUTH, PING, INFO replication, and once for each
//! connection INFO server.

mod link;
mod reply;

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Mutex, mpsc},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};

use self::link::Link;
use super::health::Observation;
use crate::{
    config::{Auth, Backend, Check},
    net,
    topology::Failure,
};

/// Checks start at least so far apart, also when each finds its connection cut.
const MIN_GAP: Duration = Duration::from_millis(5);

/// One check that ended, as the monitor gets it.
#[derive(Debug)]
pub struct Report {
    /// The backend's place in its pool.
    pub place: usize,
    /// When this was found.
    pub at: Instant,
    /// How long it has taken.
    pub took: Duration,
    /// It has not ended: this is one more timeout of it.
    pub goes_on: bool,
    /// What it found.
    pub observation: Observation,
    /// The backend's or the system's own words about a failure; never a secret.
    pub words: Option<String>,
}

/// Sends checks to one backend and reports to its pool's monitor, until that is gone.
pub struct Probe {
    place: usize,
    route: Arc<Route>,
    reports: mpsc::Sender<Report>,
    turn: Turn,
    /// Timeouts in a row of the check that has not ended.
    silences: u32,
}

#[expect(clippy::large_enum_variant, reason = "there is one for each backend")]
enum Turn {
    /// No check is out; this is the connection that the last one left open.
    Idle(Option<Link>),
    /// A silent check goes on: a late answer from the process that answered before is worth more
    /// than a new connection to one that may be another.
    Asking(Asking),
}

/// A check that is out.
struct Asking {
    since: Instant,
    over: Over,
    answer: Pin<Box<dyn Future<Output = Answered> + Send>>,
}

type Answered = (Option<Link>, Result<Observation, Problem>);

/// What connection a check goes over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    /// One that has passed a check before: whoever answers is the process that answered then.
    Proven,
    /// One that was kept, yet has passed none.
    Kept,
    /// A new one.
    New,
}

impl Probe {
    /// A probe for the backend at this place of its pool.
    pub fn new(
        place: usize,
        backend: Backend,
        auth: Option<Auth>,
        check: Check,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let route = Arc::new(Route { backend, auth, check, lookup: Mutex::default() });
        Self { place, route, reports, turn: Turn::Idle(None), silences: 0 }
    }

    /// Checks at every interval, and at once when the kept connection is cut.
    pub async fn run(mut self) {
        loop {
            let started = Instant::now();
            let report = self.check().await;
            if self.reports.send(report).await.is_err() {
                return;
            }
            let next = sleep_until(started + self.route.check.interval);
            match &self.turn {
                Turn::Asking(_) => {}
                Turn::Idle(None) => next.await,
                Turn::Idle(Some(link)) => tokio::select! {
                    () = next => {}
                    () = link.cut() => sleep_until(started + MIN_GAP).await,
                },
            }
        }
    }

    /// One check, or one more timeout of the check that has not ended.
    async fn check(&mut self) -> Report {
        loop {
            let mut asking = match std::mem::replace(&mut self.turn, Turn::Idle(None)) {
                Turn::Idle(link) => self.route.ask(link.filter(|link| !link.is_cut())),
                Turn::Asking(asking) => asking,
            };
            let Asking { since, over, .. } = asking;
            let answered = timeout(self.route.check.timeout, &mut asking.answer).await;
            let (observation, words) = match answered {
                Ok((_, Err(problem))) if problem.failure == Failure::Cut && over != Over::New => {
                    // That proves nothing about the backend: ask again on a new connection.
                    self.silences = 0;
                    continue;
                }
                Ok((link, result)) => {
                    self.silences = 0;
                    self.turn = Turn::Idle(link);
                    match result {
                        Ok(observation) => (observation, None),
                        Err(Problem { failure, words }) => (Observation::Failed(failure), words),
                    }
                }
                Err(_) => {
                    self.silences += 1;
                    if over == Over::Proven && self.silences < self.route.check.fall {
                        self.turn = Turn::Asking(asking);
                    } else {
                        // Long enough: start anew, should only this connection be dead.
                        self.silences = 0;
                    }
                    match over {
                        Over::Proven => (Observation::Silent, None),
                        Over::Kept | Over::New => (Observation::Failed(Failure::Timeout), None),
                    }
                }
            };
            let at = Instant::now();
            let goes_on = matches!(self.turn, Turn::Asking(_));
            let took = at - since;
            return Report { place: self.place, at, took, goes_on, observation, words };
        }
    }
}

/// How a backend is reached.
struct Route {
    backend: Backend,
    auth: Option<Auth>,
    check: Check,
    /// A name lookup that has not ended. It blocks a thread, so there is never a second one.
    lookup: Mutex<Option<JoinHandle<io::Result<Vec<SocketAddr>>>>>,
}

impl Route {
    /// A check over the kept connection, or else over a new one.
    fn ask(self: &Arc<Self>, kept: Option<Link>) -> Asking {
        let route = self.clone();
        let over = match &kept {
            Some(link) if link.is_proven() => Over::Proven,
            Some(_) => Over::Kept,
            None => Over::New,
        };
        let answer = Box::pin(async move {
            let link = match kept {
                Some(link) => Ok(link),
                None => route.connect().await,
            };
            match link {
                Ok(link) => link.ask(route.auth.as_ref()).await,
                Err(problem) => (None, Err(problem)),
            }
        });
        Asking { since: Instant::now(), over, answer }
    }

    /// Tries each address of the backend in turn.
    async fn connect(&self) -> Result<Link, Problem> {
        // Unacknowledged for longer than `fall` timeouts: the host is gone.
        let patience = (self.check.timeout * self.check.fall).max(Duration::from_secs(1));
        let addresses = self.resolve().await?;
        // One that swallows everything leaves time for the next.
        let share = self.check.timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut last = None;
        for address in addresses {
            match timeout(share, net::connect(address)).await {
                Ok(Ok(stream)) => return Link::new(stream, address, patience).await,
                Ok(Err(error)) => last = Some(Problem::io(&error)),
                Err(_) => last = Some(Problem { failure: Failure::Timeout, words: None }),
            }
        }
        Err(last.unwrap_or(Problem { failure: Failure::Unresolved, words: None }))
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, Problem> {
        let address = &self.backend.address;
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
struct Problem {
    failure: Failure,
    words: Option<String>,
}

impl Problem {
    fn io(error: &io::Error) -> Self {
        let failure = match error.kind() {
            _ if net::is_out_of_resources(error) => Failure::NoResources,
            io::ErrorKind::ConnectionRefused => Failure::Refused,
            io::ErrorKind::TimedOut => Failure::Timeout,
            _ => Failure::Unreachable,
        };
        Self { failure, words: Some(error.to_string()) }
    }
}
