//! The ways to lose a master, and what they may cost.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use clap::ValueEnum;

use crate::{
    lab::{Cut, Proxy, group, within},
    outcome::{Outcome, Times},
    pause,
    support::{Group, Node, Reply, Sentinels},
    writers::{KEY, Span, Watch, Writers},
};

/// How long the old master is away once there is a new one.
const AWAY: Duration = Duration::from_secs(5);
/// For Sentinel to promote a replica, and to demote a master that has come back.
const LIMIT: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Scenario {
    /// kill -9 of A, which is back 5 s after the promotion
    Kill9,
    /// The same, with an RDB file that A loads when it is back
    Kill9Rdb,
    /// SIGSTOP of A until 5 s after the promotion
    Sigstop,
    /// SENTINEL FAILOVER
    Planned,
    /// Sentinels lose A until 5 s after the promotion, everybody else reaches it
    Asym,
    /// The FAILOVER command, without Sentinel
    Failover,
    /// REPLICAOF NO ONE on B, 0.3 s later REPLICAOF B on A and C, without Sentinel
    Manual,
    /// REPLICAOF NO ONE on C by mistake
    Detach,
}

impl Scenario {
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub fn goal(self) -> &'static str {
        match self {
            Self::Kill9 | Self::Kill9Rdb | Self::Sigstop | Self::Failover => {
                "gap ≤ promotion + 40, lost 0"
            }
            Self::Planned => "gap ≤ 200, lost 0",
            Self::Asym => "gap ≤ 200, late 0",
            Self::Manual => "gap ≤ 400, lost ≤ acks of A in 110 ms",
            Self::Detach => "gap ≤ 40, lost 0",
        }
    }

    /// What of its goal an outcome misses.
    pub fn misses(self, outcome: &Outcome) -> Vec<String> {
        let (name, lost) = match self {
            Self::Asym => ("late", (outcome.late, 0)),
            Self::Manual => ("lost", (outcome.lost, outcome.early)),
            _ => ("lost", (outcome.lost, 0)),
        };
        let limit = match self {
            Self::Kill9 | Self::Kill9Rdb | Self::Sigstop | Self::Failover => {
                outcome.promoted.map_or(0, |promoted| promoted.as_millis()) + 40
            }
            Self::Planned | Self::Asym => 200,
            Self::Manual => 400,
            Self::Detach => 40,
        };
        let gap = outcome.gap.max(outcome.churn).as_millis();
        let mut misses = Vec::new();
        if gap > limit {
            misses.push(format!("gap {gap} ms, not {limit}"));
        }
        if lost.0 > lost.1 {
            misses.push(format!("{name} {}, not {}", lost.0, lost.1));
        }
        misses
    }

    /// The addresses of the Sentinels, where there are any.
    fn sentinels(self) -> Option<Ipv4Addr> {
        match self {
            Self::Failover | Self::Manual => None,
            // So that their packets can be told from those of the proxies.
            Self::Asym => Some(Ipv4Addr::new(127, 0, 0, 9)),
            _ => Some(Ipv4Addr::LOCALHOST),
        }
    }

    /// Plays it once, for all proxies at the same time, so that they meet the same event. An
    /// error says why the round is worth nothing.
    pub fn run(self, haproxy: bool) -> Result<Vec<Outcome>, String> {
        let rdb = self == Self::Kill9Rdb;
        let mut group = group(if rdb { &["save 3600 1"] } else { &[] });
        if rdb {
            group.nodes[0].call(&["SAVE"]);
        }
        let sentinels = self.sentinels().map(|host| Sentinels::start_with(host, &group, &[], None));
        let mut proxies = vec![Proxy::rolegate(&group, sentinels.as_ref())];
        proxies.extend(haproxy.then(|| Proxy::haproxy(&group)));
        let mut columns = Vec::new();
        for proxy in proxies {
            let name = proxy.name();
            proxy
                .wait_leads_to(&group.nodes[0])
                .ok_or_else(|| format!("{name} does not lead to A"))?;
            let writers = Writers::start(name, proxy.address());
            columns.push((proxy, writers));
        }
        let steady = || columns.iter().all(|(_, writers)| writers.progress() >= 100).then_some(());
        within(LIMIT, steady).ok_or("the writers do not write")?;

        let watch =
            [Watch::start(group.nodes[0].address()), Watch::start(group.nodes[1].address())];
        let event = Instant::now();
        let result = self.happen(event, &mut group, sentinels.as_ref(), &watch);
        // What goes wrong once everything seems over is to be seen, too.
        pause(Duration::from_secs(2));
        let end = Instant::now();
        columns.iter().for_each(|(_, writers)| writers.stop());
        let mut acks = Vec::new();
        for (proxy, writers) in columns {
            let (name, log) = (proxy.name(), proxy.log());
            drop(proxy);
            acks.push((name, log, writers.join()));
        }
        let promoted = result?;

        let last = &group.nodes[usize::from(self != Self::Detach)];
        let named = sentinels.as_ref().map(Sentinels::master);
        if let Some(named) = named.filter(|named| *named != Some(last.port())) {
            let name = group.nodes.iter().zip("ABC".chars()).find(|(n, _)| Some(n.port()) == named);
            for sentinel in sentinels.iter().flat_map(|all| &all.nodes) {
                eprintln!("{}", sentinel.log());
            }
            let name = name.map_or('?', |(_, name)| name);
            return Err(format!("in the end Sentinel's master is {name}"));
        }
        let times = Times { event, promoted, end };
        let members = members(last);
        let old = group.nodes[0].port();
        Ok(acks
            .into_iter()
            .map(|(column, log, acks)| Outcome {
                log,
                ..Outcome::new(column, &times, old, &acks, &members)
            })
            .collect())
    }

    /// Lets it happen, waits until it is over, and tells when B was promoted.
    fn happen(
        self,
        event: Instant,
        group: &mut Group,
        sentinels: Option<&Sentinels>,
        [a, b]: &[Watch; 2],
    ) -> Result<Option<Span>, String> {
        let promoted =
            || within(LIMIT, || b.first("master", event)).ok_or("B was not promoted in time");
        let nodes = &mut group.nodes;
        match self {
            Self::Kill9 | Self::Kill9Rdb => {
                nodes[0].kill();
                promoted()?;
                pause(AWAY);
                nodes[0].restart_only();
            }
            Self::Sigstop => {
                nodes[0].freeze();
                let seen = promoted();
                pause(AWAY);
                nodes[0].thaw();
                seen?;
            }
            Self::Planned => {
                let sentinel = sentinels.map(|all| &all.nodes[0]).ok_or("there is no Sentinel")?;
                accepted(sentinel, &["SENTINEL", "FAILOVER", "it"])?;
            }
            Self::Asym => {
                let _cut = Cut::new(Ipv4Addr::new(127, 0, 0, 9), &nodes[0]);
                promoted()?;
                pause(AWAY);
            }
            Self::Failover => {
                let port = nodes[1].port().to_string();
                accepted(&nodes[0], &["FAILOVER", "TO", "127.0.0.1", &port])?;
            }
            Self::Manual => {
                nodes[1].promote();
                pause(Duration::from_millis(300));
                let port = nodes[1].port().to_string();
                for node in [&nodes[0], &nodes[2]] {
                    accepted(node, &["REPLICAOF", "127.0.0.1", &port])?;
                }
            }
            Self::Detach => {
                nodes[2].promote();
                pause(Duration::from_secs(4));
                return Ok(None);
            }
        }
        let promoted = promoted()?;
        within(LIMIT, || a.first("slave", event)).ok_or("A was not demoted in time")?;
        Ok(Some(promoted))
    }
}

fn accepted(node: &Node, command: &[&str]) -> Result<(), String> {
    match node.call(command) {
        Reply::Error(error) => Err(format!("{command:?}: {error}")),
        _ => Ok(()),
    }
}

fn members(node: &Node) -> HashSet<String> {
    match node.call(&["SMEMBERS", KEY]) {
        Reply::Array(members) => members.iter().map(Reply::text).collect(),
        _ => HashSet::new(),
    }
}
