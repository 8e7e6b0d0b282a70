//! How a new config changes a pool that is watched: what stays as it was keeps its health, its memory
//! and its sessions.

use std::{mem, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tracing::info;

use super::{Monitor, PoolSentinels};
use crate::{
    config::{self, Backend, Check, HostPort},
    control::{
        election::Decision,
        member::Member,
        probe::{Desk, Watch},
        route::Route,
    },
    topology::{BackendStatus, Reason, Rule, SentinelStatus, State, Verdict, View},
};

/// What a monitor can be told.
pub(super) enum Order {
    Reconfigure(Box<config::Pool>, oneshot::Sender<()>),
    LeaveState,
    End,
}

/// Tells a monitor what to do.
#[derive(Debug)]
pub struct Orders(pub(super) mpsc::Sender<Order>);

/// A monitor has lost a task without which it would know nothing.
#[derive(Debug)]
pub struct Lost;

impl Orders {
    /// Watches the pool by this config from now on. Returns when that is so.
    pub async fn reconfigure(&self, pool: config::Pool) {
        let (done, is_done) = oneshot::channel();
        // A monitor that is gone ends the process.
        if self.0.send(Order::Reconfigure(Box::new(pool), done)).await.is_ok() {
            let _ = is_done.await;
        }
    }

    /// Saves nothing any more: another process does.
    pub async fn leave_state(&self) {
        let _ = self.0.send(Order::LeaveState).await;
    }

    /// Ends the watch, and with it every session on the pool.
    pub async fn end(self) {
        let _ = self.0.send(Order::End).await;
    }
}

impl Monitor {
    /// Takes over what the new config changes.
    pub(super) fn reconfigure(&mut self, new: config::Pool) {
        let old = mem::replace(&mut self.config, new);
        let new = &self.config;
        let place_of = |wanted: &Backend| new.backends.iter().position(|other| other == wanted);
        let to: Vec<_> = old.backends.iter().map(place_of).collect();
        let reached = |check: &Check| (check.timeout, check.resolve);
        let is_way_same = reached(&old.check) == reached(&new.check);
        let is_probe_same = (&old.auth, &old.tls) == (&new.auth, &new.tls)
            && is_way_same
            && old.check.fall == new.check.fall;
        let is_line_same = old.sentinel == new.sentinel && is_way_same;
        let seats = |sentinel: &config::Sentinel| {
            (sentinel.addresses.clone(), sentinel.master_name.clone(), sentinel.quorum)
        };
        let is_council_same = old.sentinel.as_ref().map(seats) == new.sentinel.as_ref().map(seats);

        let mut kept: Vec<_> = new.backends.iter().map(|_| None).collect();
        for (mut member, place) in mem::take(&mut self.members).into_iter().zip(&to) {
            match place {
                Some(place) => {
                    if !is_probe_same {
                        member.set_fall(self.config.check.fall);
                    }
                    kept[*place] = Some(member);
                }
                None => self.all_metrics.forget_backend(&self.config.name, &member.name),
            }
        }
        if to.iter().enumerate().any(|(old, new)| *new != Some(old)) || kept.len() != to.len() {
            self.election.renumber(&to);
            self.last = renumbered(&self.last, &to);
        }
        self.election.set_policy(self.config.on_unexplained_heir);
        let old_status = mem::take(&mut self.published.status().backends);
        if !is_council_same {
            self.forget_sentinels(&old);
        } else if let (Some(sentinel), Some(config), false) =
            (&mut self.sentinel, &self.config.sentinel, is_line_same)
        {
            sentinel.reconnect(&self.config, config);
        }
        self.names.clear();
        for (place, member) in kept.into_iter().enumerate() {
            let member = match member {
                Some(mut member) => {
                    if !is_probe_same {
                        let mut watch = self.watch(place);
                        // DNS may be down just now.
                        watch.route.take_over(&member.watch.route);
                        watch.expect(member.state().answer().map(|answer| &answer.address));
                        member.watch = watch;
                    }
                    member
                }
                None => self.member(place),
            };
            self.names.push(member.name.clone());
            self.members.push(member);
        }
        let statuses = (self.config.backends.iter().enumerate()).map(|(place, backend)| {
            let known = to.iter().position(|to| *to == Some(place));
            known.map_or_else(|| unchecked(backend), |old| old_status[old].clone())
        });
        let statuses = statuses.collect();
        self.published.status().backends = statuses;
        self.fill_sentinels();
        self.start_tasks();
        self.news = Instant::now();
        self.apply_pace();
        self.decide();
    }

    /// Makes what a pool needs that has nothing yet.
    pub(super) fn fill(&mut self) {
        for place in 0..self.config.backends.len() {
            let member = self.member(place);
            self.names.push(member.name.clone());
            self.members.push(member);
        }
        self.published.status().backends = self.config.backends.iter().map(unchecked).collect();
        self.fill_sentinels();
    }

    /// Starts what does not run yet.
    pub(super) fn start_tasks(&mut self) {
        for member in &mut self.members {
            member.watch.start(&mut self.tasks);
        }
        if let Some(sentinel) = &mut self.sentinel {
            sentinel.spawn(&mut self.tasks);
        }
    }

    /// Ends every session on the pool. Its tasks end with the monitor.
    pub(super) fn end(&mut self) {
        let old = self.view.borrow().clone();
        let words = Rule::Removed.words(&[]).into();
        let verdict = Verdict::Refuse(Reason { rule: Rule::Removed, words });
        let since = Instant::now();
        let (epoch, unserved_since) = (old.epoch + 1, Some(since));
        self.view.send_replace(Arc::new(View { epoch, since, unserved_since, verdict }));
        if let Some(served) = old.verdict.served() {
            served.lease.revoke();
        }
        let config = self.config.clone();
        let pool = &*config.name;
        for member in &self.members {
            self.all_metrics.forget_backend(pool, &member.name);
        }
        self.forget_sentinels(&config);
        self.all_metrics.forget_pool(pool);
        info!(pool, "pool is not watched any more");
    }

    fn member(&mut self, place: usize) -> Member {
        let watch = self.watch(place);
        let (pool, name) = (&self.config.name, &self.config.backends[place].name);
        let metrics = self.all_metrics.backend(pool, name);
        Member::new(name.clone(), self.config.check.fall, metrics, watch)
    }

    fn watch(&mut self, place: usize) -> Watch {
        self.probes += 1;
        let desk = Desk {
            auth: self.config.auth.clone().map(Arc::new),
            check: self.config.check,
            reports: self.reporter.clone(),
            hints: self.hints.clone(),
        };
        let (address, tls) = (&self.config.backends[place].address, self.config.tls.as_ref());
        let check = &self.config.check;
        let route = Route::new(address.clone(), tls, check.timeout, check.resolve);
        Watch::new(self.probes, route, desk)
    }

    /// Hears the Sentinels of the config, and knows the backends by their routes of now.
    fn fill_sentinels(&mut self) {
        let Some(config) = &self.config.sentinel else {
            self.sentinel = None;
            return;
        };
        let routes = self.members.iter().map(|member| member.watch.route.clone()).collect();
        if let Some(sentinel) = &mut self.sentinel {
            return sentinel.renumber(&self.config, config, routes);
        }
        self.published.status().sentinels = config.addresses.iter().map(silent).collect();
        let sentinel = PoolSentinels::new(&self.config, config, routes, &self.all_metrics);
        self.sentinel = Some(sentinel);
    }

    fn forget_sentinels(&mut self, old: &config::Pool) {
        self.sentinel = None;
        let mut status = self.published.status();
        status.sentinels.clear();
        status.sentinel_view = None;
        for address in old.sentinel.iter().flat_map(|sentinel| &sentinel.addresses) {
            self.all_metrics.forget_sentinel(&old.name, &address.to_string());
        }
    }
}

fn renumbered(decision: &Decision, to: &[Option<usize>]) -> Decision {
    let place = |old: usize| to.get(old).copied().flatten();
    let places = |old: &[usize]| old.iter().filter_map(|old| place(*old)).collect();
    Decision {
        serve: decision.serve.and_then(place),
        about: places(&decision.about),
        refuted: places(&decision.refuted),
        ..decision.clone()
    }
}

fn unchecked(backend: &Backend) -> BackendStatus {
    BackendStatus {
        name: backend.name.clone(),
        address: backend.address.to_string(),
        state: State::Unchecked,
        evidence: "not checked yet".to_owned(),
        last_check: None,
    }
}

fn silent(address: &HostPort) -> SentinelStatus {
    let says = "has not answered yet".to_owned();
    SentinelStatus { address: address.to_string(), says, up: false }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use tokio::{task::JoinSet, time::timeout};

    use super::*;
    use crate::{metrics::Metrics, topology::Published};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A monitor of what nobody answers at, with a Sentinel and a folder to save to.
    fn monitor(folder: &Path) -> (Monitor, Published, Orders) {
        let text = "listeners: { a: { bind: 127.0.0.1:9, pool: p } }\n\
                    pools:\n  p:\n    backends: { b: 127.0.0.1:1 }\n    \
                    sentinel: { master_name: m, addresses: [127.0.0.1:2] }\n";
        let config = config::Config::parse(Path::new("x.yaml"), text).unwrap();
        let metrics = Arc::new(Metrics::new(1).unwrap());
        Monitor::new(config.pools[0].clone(), Some(folder), &metrics)
    }

    async fn ends(monitor: Monitor) -> Option<Result<(), Lost>> {
        timeout(PATIENCE, monitor.run()).await.ok()
    }

    #[tokio::test]
    async fn a_task_that_panics_or_ends_is_missed() {
        let folder = tempfile::tempdir().unwrap();
        for panics in [true, false] {
            let (mut monitor, _published, _orders) = monitor(folder.path());
            monitor.tasks.spawn(async move { assert!(!panics, "as it should") });
            assert!(matches!(ends(monitor).await, Some(Err(Lost))), "{panics}");
        }
    }

    #[tokio::test]
    async fn a_task_that_was_told_to_end_is_not_missed() {
        let folder = tempfile::tempdir().unwrap();
        let (mut monitor, _published, orders) = monitor(folder.path());
        monitor.tasks.spawn(std::future::pending()).abort();
        let mut tasks = JoinSet::new();
        let running = tasks.spawn(monitor.run());
        let changed = config_with_two_backends();
        timeout(PATIENCE, orders.reconfigure(changed)).await.unwrap();
        assert!(!running.is_finished());
        orders.end().await;
        let ended = timeout(PATIENCE, tasks.join_next()).await.unwrap();
        assert!(matches!(ended, Some(Ok(Ok(())))), "{ended:?}");
    }

    fn config_with_two_backends() -> config::Pool {
        let text = "listeners: { a: { bind: 127.0.0.1:9, pool: p } }\n\
                    pools: { p: { backends: { c: 127.0.0.1:1, d: 127.0.0.1:3 } } }\n";
        config::Config::parse(Path::new("x.yaml"), text).unwrap().pools[0].clone()
    }
}
