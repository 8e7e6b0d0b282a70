//! What a pool knows of its Sentinels: who they are, what they say, and whom they mean.

use std::{net::IpAddr, sync::Arc};

use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use crate::{
    config::{self, Endpoint, HostPort},
    control::{
        council::Council,
        election::SentinelView,
        route::Route,
        sentinel::{News, Sentinels},
    },
    metrics::{Metrics, SentinelMetrics},
};

pub(super) struct PoolSentinels {
    council: Council,
    view: SentinelView,
    sentinels: Sentinels,
    news: mpsc::Receiver<News>,
    metrics: SentinelMetrics,
    book: AddressBook,
}

/// Knows backends by the addresses that Sentinels may name.
pub(in crate::control) struct AddressBook {
    /// As configured; what is announced goes first.
    configured: Vec<(usize, HostPort)>,
    /// By place, for what names resolve to.
    routes: Vec<Arc<Route>>,
}

impl AddressBook {
    /// `routes` are those of the pool's backends.
    pub(in crate::control) fn new(
        pool: &config::Pool,
        config: &config::Sentinel,
        routes: Vec<Arc<Route>>,
    ) -> Self {
        let backends = pool.backends.iter().enumerate();
        let backends = backends.filter_map(|(place, backend)| match &backend.address {
            Endpoint::Host(address) => Some((place, address.clone())),
            // Known by what is announced alone.
            Endpoint::Unix(_) => None,
        });
        let configured = config.announce.iter().cloned().chain(backends).collect();
        Self { configured, routes }
    }

    /// The backend that has this address.
    pub(in crate::control) fn place_of(&self, address: &HostPort) -> Option<usize> {
        if let Some((place, _)) = self.configured.iter().find(|(_, known)| known == address) {
            return Some(*place);
        }
        let ip: IpAddr = address.host.parse().ok()?;
        self.routes.iter().position(|route| route.is_at(ip, address.port))
    }
}

impl PoolSentinels {
    /// `routes` are those of the pool's backends.
    pub(super) fn new(
        pool: &config::Pool,
        config: &config::Sentinel,
        routes: Vec<Arc<Route>>,
        metrics: &Metrics,
    ) -> Self {
        let (sentinels, news) = Sentinels::new(&pool.name, config, &pool.check);
        let addresses: Vec<_> = config.addresses.iter().map(HostPort::to_string).collect();
        Self {
            council: Council::new(addresses.len(), config.quorum),
            view: SentinelView { starting: true, ..SentinelView::default() },
            sentinels,
            news,
            metrics: metrics.sentinels(&pool.name, &addresses),
            book: AddressBook::new(pool, config, routes),
        }
    }

    /// They are reached in another way from now on. What they said last holds until they answer.
    pub(super) fn reconnect(&mut self, pool: &config::Pool, config: &config::Sentinel) {
        (self.sentinels, self.news) = Sentinels::new(&pool.name, config, &pool.check);
    }

    /// The pool has other backends from now on, with these routes.
    pub(super) fn renumber(
        &mut self,
        pool: &config::Pool,
        config: &config::Sentinel,
        routes: Vec<Arc<Route>>,
    ) {
        self.book = AddressBook::new(pool, config, routes);
        self.renew();
    }

    /// Starts to listen, once.
    pub(super) fn spawn(&mut self, tasks: &mut JoinSet<()>) {
        self.sentinels.spawn(tasks);
    }

    /// The next thing that one of them says.
    pub(super) async fn news(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// Takes in what one of them said, and tells which, and whether it is an event that tells
    /// something new. `zero` is that of the election's time.
    pub(super) fn take(&mut self, news: News, zero: Instant) -> (usize, bool) {
        let since = |at: Instant| at.saturating_duration_since(zero);
        match news {
            News::Answered { place, asked, said } => {
                self.council.answered(place, since(asked), said);
                self.metrics.up[place].set(1);
                (place, false)
            }
            News::Event { place, event } => {
                (place, self.council.event(place, since(Instant::now()), event))
            }
            News::Silent { place, asked, why, gone } => {
                self.council.silent(place, since(asked), why, gone);
                self.metrics.up[place].set(0);
                (place, false)
            }
        }
    }

    /// Brings up to date what they agree on. True if that differs.
    pub(super) fn renew(&mut self) -> bool {
        let view = self.council.view(|address| self.book.place_of(address));
        let differs = view.failover != self.view.failover || view.named != self.view.named;
        self.view = view;
        differs
    }

    /// What they agree on.
    pub(super) fn view(&self) -> &SentinelView {
        &self.view
    }

    pub(super) fn is_failing_over(&self) -> bool {
        self.view.failover.is_some()
    }

    /// Asks all of them at once.
    pub(super) fn ask_now(&self) {
        self.sentinels.ask_now();
    }

    /// Shows how many name the served backend.
    pub(super) fn count_agreeing(&self, served: Option<usize>) {
        let agree = served
            .map_or(0, |place| self.council.agree(place, |address| self.book.place_of(address)));
        self.metrics.agree.set(i64::try_from(agree).unwrap_or(i64::MAX));
    }

    /// What one of them says, in words, and whether it is heard.
    pub(super) fn says(&self, place: usize, names: &[Arc<str>]) -> (String, bool) {
        let name_of =
            |address: &HostPort| self.book.place_of(address).map(|place| names[place].to_string());
        self.council.says(place, name_of)
    }

    /// What they agree on, in words.
    pub(super) fn describe(&self, names: &[Arc<str>]) -> String {
        let mut words = match self.view.named {
            Some((place, epoch)) => {
                format!("a quorum names {} (config-epoch {epoch})", names[place])
            }
            None => "no quorum names a backend of this pool".to_owned(),
        };
        match self.view.failover {
            Some(Some(heir)) => words.push_str(&format!("; a failover promotes {}", names[heir])),
            Some(None) => words.push_str("; a failover is under way"),
            None => {}
        }
        words
    }
}
