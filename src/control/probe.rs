//! Checks one backend over one kept connection: AUTH, PING, INFO replication, and once for each
//! connection INFO server.

mod link;

use std::{future::pending, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};

pub(super) use self::link::Examined;
use self::link::Link;
use super::{
    health::Observation,
    pace::Pace,
    route::{Changes, Problem, Route},
};
use crate::{
    config::{Auth, Check},
    topology::{Address, Failure, Hint, Hints},
};

/// Checks start at least so far apart, also when each finds its connection cut.
const MIN_GAP: Duration = Duration::from_millis(5);

/// One check that ended, as the monitor gets it.
#[derive(Debug)]
pub(super) struct Report {
    /// The probe that found it: a backend keeps its place no longer than the config does.
    pub(super) probe: u64,
    /// When this was found.
    pub(super) at: Instant,
    /// How long it has taken.
    pub(super) took: Duration,
    /// It has not ended: this is one more timeout of it.
    pub(super) goes_on: bool,
    /// What it found.
    pub(super) observation: Observation,
    /// The backend's or the system's own words about a failure; never a secret.
    pub(super) words: Option<String>,
}

/// What a pool's probes share.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) auth: Option<Arc<Auth>>,
    pub(super) check: Check,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) hints: Hints,
}

/// One backend's probe. It ends when this is dropped.
pub(super) struct Watch {
    pub(super) id: u64,
    /// How the backend is reached.
    pub(super) route: Arc<Route>,
    pub(super) pace: Arc<Pace>,
    waiting: Option<Probe>,
    running: Option<AbortHandle>,
}

impl Watch {
    /// A probe whose reports carry this id. It does not run yet.
    pub(super) fn new(id: u64, route: Route, desk: Desk) -> Self {
        let pace = Arc::new(Pace::new(desk.check.fast_interval));
        let route = Arc::new(route);
        let probe = Probe::new(id, route.clone(), pace.clone(), desk);
        Self { id, route, pace, waiting: Some(probe), running: None }
    }

    /// The backend passed its last check at this address, over another probe.
    pub(super) fn expect(&mut self, address: Option<&Address>) {
        if let Some(probe) = &mut self.waiting {
            probe.passed_at = address.cloned();
        }
    }

    /// Starts it, once.
    pub(super) fn start(&mut self, tasks: &mut JoinSet<()>) {
        if let Some(probe) = self.waiting.take() {
            self.running = Some(tasks.spawn(probe.run()));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

/// Asks a backend once over a new connection, and hears every reply out.
pub(super) async fn examine(
    route: &Route,
    auth: Option<&Auth>,
    check: Check,
) -> Result<Examined, Problem> {
    let examined = async {
        let (stream, address) = route.connect(check.patience()).await?;
        match Link::new(stream, address.clone()).examine(auth).await {
            Err(Problem { failure: Failure::Cut, .. }) if route.wants_tls(&address).await => {
                Err(Problem { failure: Failure::TlsWanted, words: None })
            }
            examined => examined,
        }
    };
    let silent = || Problem { failure: Failure::Timeout, words: None };
    tokio::select! {
        () = route.keep() => Err(silent()),
        examined = timeout(check.timeout, examined) => examined.map_err(|_| silent())?,
    }
}

/// Sends checks to one backend and reports to its pool's monitor, until that is gone.
struct Probe {
    id: u64,
    route: Arc<Route>,
    changes: Changes,
    pace: Arc<Pace>,
    desk: Desk,
    turn: Turn,
    /// Timeouts in a row of the check that has not ended.
    silences: u32,
    /// Where the last check passed.
    passed_at: Option<Address>,
}

enum Turn {
    /// No check is out; this is the connection that the last one left open.
    Idle(Option<Box<Link>>),
    /// A silent check goes on: a late answer from the process that answered before is worth more
    /// than a new connection to one that may be another.
    Asking(Asking),
}

/// A check that is out.
struct Asking {
    since: Instant,
    over: Over,
    /// Where the kept connection that it goes over leads.
    at: Option<Address>,
    answer: Pin<Box<dyn Future<Output = Answered> + Send>>,
}

type Answered = (Option<Box<Link>>, Result<Observation, Problem>);

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
    fn new(id: u64, route: Arc<Route>, pace: Arc<Pace>, desk: Desk) -> Self {
        let changes = route.changes();
        let (turn, silences, passed_at) = (Turn::Idle(None), 0, None);
        Self { id, route, changes, pace, desk, turn, silences, passed_at }
    }

    /// Checks at the pool's pace, and at once when that is asked for, the kept connection is cut, or
    /// the backend's name has other addresses.
    async fn run(self) {
        let route = self.route.clone();
        tokio::select! {
            () = Box::pin(route.keep()) => {}
            () = self.check_on() => {}
        }
    }

    async fn check_on(mut self) {
        loop {
            let started = Instant::now();
            let report = self.check().await;
            if report.observation.failure().is_some() {
                self.route.look_again();
            }
            if self.desk.reports.send(report).await.is_err() {
                return;
            }
            let link = match &mut self.turn {
                Turn::Asking(_) => continue,
                Turn::Idle(link) => link,
            };
            let cut = async {
                match link {
                    Some(link) => link.cut().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = sleep_until(self.pace.next(started)) => {}
                () = self.pace.asked() => sleep_until(started + MIN_GAP).await,
                () = self.changes.next() => sleep_until(started + MIN_GAP).await,
                () = cut => {
                    self.desk.hints.give(Hint::CheckCut);
                    sleep_until(started + MIN_GAP).await;
                }
            }
        }
    }

    /// One check, or one more timeout of the check that has not ended.
    async fn check(&mut self) -> Report {
        loop {
            let mut asking = match std::mem::replace(&mut self.turn, Turn::Idle(None)) {
                Turn::Idle(link) => self.ask(link.filter(|link| self.is_of_use(link))),
                Turn::Asking(asking) if self.is_held(&asking) => asking,
                // The name has moved away from what does not answer.
                Turn::Asking(_) => {
                    self.silences = 0;
                    self.ask(None)
                }
            };
            let (since, over) = (asking.since, asking.over);
            let answered = timeout(self.desk.check.timeout, &mut asking.answer).await;
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
                        Ok(observation) => {
                            self.remember(&observation);
                            (observation, None)
                        }
                        Err(problem) => self.failed(problem),
                    }
                }
                Err(_) => {
                    self.silences += 1;
                    if over == Over::Proven && self.silences < self.desk.check.fall {
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
            return Report { probe: self.id, at, took, goes_on, observation, words };
        }
    }

    fn remember(&mut self, observation: &Observation) {
        if let Observation::Passed(answer) = observation
            && self.passed_at.as_ref() != Some(&answer.address)
        {
            self.passed_at = Some(answer.address.clone());
        }
    }

    /// A refused login leaves open whether the backend still is what it was. At an address to which
    /// its name has moved, that was another node: so what was is said to be gone, once.
    fn failed(&mut self, problem: Problem) -> (Observation, Option<String>) {
        let Problem { failure, words } = problem;
        let moved = |at: &mut Address| failure.is_login() && !self.route.holds(at);
        match self.passed_at.take_if(moved) {
            Some(at) => {
                let words =
                    format!("its name has left {at}, and a login is refused where it leads");
                (Observation::Failed(Failure::Unresolved), Some(words))
            }
            None => (Observation::Failed(failure), words),
        }
    }

    /// Whether the next check can go over this connection: another address is another node.
    fn is_of_use(&self, link: &Link) -> bool {
        !link.is_cut() && self.route.holds(link.address())
    }

    fn is_held(&self, asking: &Asking) -> bool {
        asking.at.as_ref().is_none_or(|at| self.route.holds(at))
    }

    /// A check over the kept connection, or else over a new one.
    fn ask(&self, kept: Option<Box<Link>>) -> Asking {
        let (route, auth) = (self.route.clone(), self.desk.auth.clone());
        let patience = self.desk.check.patience();
        let over = match &kept {
            Some(link) if link.is_proven() => Over::Proven,
            Some(_) => Over::Kept,
            None => Over::New,
        };
        let at = kept.as_ref().map(|link| link.address().clone());
        let answer: Pin<Box<dyn Future<Output = _> + Send>> = match kept {
            // A small future, as nearly always.
            Some(link) => Box::pin(link.ask(auth)),
            None => Box::pin(async move {
                match route.connect(patience).await {
                    Ok((stream, address)) => {
                        let link = Box::new(Link::new(stream, address.clone()));
                        let (link, mut result) = link.ask(auth).await;
                        if let Err(problem) = &mut result
                            && problem.failure == Failure::Cut
                            && route.wants_tls(&address).await
                        {
                            *problem = Problem { failure: Failure::TlsWanted, words: None };
                        }
                        (link, result)
                    }
                    Err(problem) => (None, Err(problem)),
                }
            }),
        };
        Asking { since: Instant::now(), over, at, answer }
    }
}
