//! The rules that decide what a pool's clients get.

use std::{fmt, sync::Arc, time::Duration};

/// What to do about an heir that nothing explains: a replica that left a master which lives and has
/// other followers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnUnexplainedHeir {
    /// Serve nobody until the followers show whose side they are on, for two seconds at the most.
    Hold,
    /// Go on with the master that was there.
    Keep,
    /// Go with the heir.
    Follow,
}

/// How a listener's clients wait while no backend is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// So long at the most; zero closes them at once.
    pub timeout: Duration,
    /// So many at the most; more are closed at once.
    pub max: usize,
    /// Those who are closed get a RESP error first.
    pub error_reply: bool,
    /// Close them at once, and only count who would have waited.
    pub dry_run: bool,
}

/// What clients of a pool get. A closed set: each is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerdictKind {
    /// A backend.
    Serve,
    /// Nothing yet: what is missing comes by itself within a bound.
    Hold,
    /// Nothing until the backends or the Sentinels say something else.
    Refuse,
}

impl VerdictKind {
    /// The word for it in metrics, logs and `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Hold => "hold",
            Self::Refuse => "refuse",
        }
    }
}

/// The rule that decided. A closed set: each is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Serve: it has passed every check since it was first served.
    Incumbent,
    /// Serve: it carries on the lineage of the master before it.
    Heir,
    /// Serve: an heir, and a failover of the Sentinels names it.
    Failover,
    /// Serve: a quorum of Sentinels names it.
    Sentinel,
    /// Serve: the others replicate from it.
    Followers,
    /// Serve: the incumbent's process answers again, and no successor is in sight.
    Returned,
    /// Serve: the incumbent was restarted and all others are replicas.
    Restarted,
    /// Serve: nothing is remembered, it is the only master, and most backends are in sight.
    OnlyMaster,
    /// Serve: the incumbent, although others say that they are its heirs.
    Kept,
    /// Serve: the incumbent, although no check is let in, by its login or for a certificate.
    FailStatic,
    /// Hold: the Sentinels are promoting a replica.
    FailoverBegun,
    /// Hold: an heir whose master lives, and nothing explains it yet.
    UnexplainedHeir,
    /// Hold: the incumbent is back, and other backends have not been checked since.
    Returning,
    /// Refuse: some first check or question has not ended.
    Starting,
    /// Refuse: no backend is a proven master.
    NoMaster,
    /// Refuse: the config names one process several times.
    SameProcess,
    /// Refuse: several masters, and nothing tells them apart.
    Conflict,
    /// Refuse: a master and its heir both have followers.
    BothFollowed,
    /// Refuse: every master in sight has a successor, which is out of sight.
    Superseded,
    /// Refuse: the only master is not related to the one before.
    LineageGap,
    /// Refuse: the incumbent was restarted, and a successor may be out of sight.
    Gone,
    /// Refuse: nothing is remembered, and most backends are out of sight.
    Minority,
    /// Refuse: the Sentinels name a backend that is out of sight.
    SentinelElsewhere,
    /// Refuse: a new config has no such pool.
    Removed,
}

impl Rule {
    /// Every rule, in the order in which metrics show them.
    pub const ALL: [Self; 24] = [
        Self::Incumbent,
        Self::Heir,
        Self::Failover,
        Self::Sentinel,
        Self::Followers,
        Self::Returned,
        Self::Restarted,
        Self::OnlyMaster,
        Self::Kept,
        Self::FailStatic,
        Self::FailoverBegun,
        Self::UnexplainedHeir,
        Self::Returning,
        Self::Starting,
        Self::NoMaster,
        Self::SameProcess,
        Self::Conflict,
        Self::BothFollowed,
        Self::Superseded,
        Self::LineageGap,
        Self::Gone,
        Self::Minority,
        Self::SentinelElsewhere,
        Self::Removed,
    ];

    /// What clients get by this rule.
    pub fn kind(self) -> VerdictKind {
        match self {
            Self::Incumbent
            | Self::Heir
            | Self::Failover
            | Self::Sentinel
            | Self::Followers
            | Self::Returned
            | Self::Restarted
            | Self::OnlyMaster
            | Self::Kept
            | Self::FailStatic => VerdictKind::Serve,
            Self::FailoverBegun | Self::UnexplainedHeir | Self::Returning => VerdictKind::Hold,
            Self::Starting
            | Self::NoMaster
            | Self::SameProcess
            | Self::Conflict
            | Self::BothFollowed
            | Self::Superseded
            | Self::LineageGap
            | Self::Gone
            | Self::Minority
            | Self::SentinelElsewhere
            | Self::Removed => VerdictKind::Refuse,
        }
    }

    /// The word for this rule in metrics, logs and `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incumbent => "incumbent",
            Self::Heir => "heir",
            Self::Failover => "failover",
            Self::Sentinel => "sentinel",
            Self::Followers => "followers",
            Self::Returned => "returned",
            Self::Restarted => "restarted",
            Self::OnlyMaster => "only_master",
            Self::Kept => "kept",
            Self::FailStatic => "fail_static",
            Self::FailoverBegun => "failover_begun",
            Self::UnexplainedHeir => "unexplained_heir",
            Self::Returning => "returning",
            Self::Starting => "starting",
            Self::NoMaster => "no_master",
            Self::SameProcess => "same_process",
            Self::Conflict => "conflict",
            Self::BothFollowed => "both_followed",
            Self::Superseded => "superseded",
            Self::LineageGap => "lineage_gap",
            Self::Gone => "gone",
            Self::Minority => "minority",
            Self::SentinelElsewhere => "sentinel_elsewhere",
            Self::Removed => "removed",
        }
    }

    /// The rule in a sentence; `about` are the names of the other backends that it speaks of.
    pub fn words(self, about: &[&str]) -> String {
        let names = if about.is_empty() { "none".to_owned() } else { about.join(", ") };
        match self {
            Self::Incumbent => "it has passed every check since it was first served".into(),
            Self::Heir if about.is_empty() => {
                "it carries on the lineage of the master before it (replid2)".into()
            }
            Self::Heir => format!("it carries on the lineage of {names} (replid2)"),
            Self::Failover => {
                format!("it carries on the lineage of {names}, and Sentinel's failover names it")
            }
            Self::Sentinel => "a quorum of Sentinels names it".into(),
            Self::Followers => "the other backends replicate from it".into(),
            Self::Returned => {
                "the process that was served answers again, and no successor is in sight".into()
            }
            Self::Restarted => {
                "the master was restarted, and every other backend is a replica; what it had not \
                 saved is lost"
                    .into()
            }
            Self::OnlyMaster => {
                "it is the only master, and most of the backends are in sight".into()
            }
            Self::Kept => format!("the master stays, as nothing explains why {names} left it"),
            Self::FailStatic => {
                "the master stays, as checks are not let in (login or certificates), which tells nothing of roles".into()
            }
            Self::FailoverBegun => format!("the Sentinels are promoting {names}"),
            Self::UnexplainedHeir => {
                format!("{names} left a master that lives, and nothing explains that yet")
            }
            Self::Returning => {
                format!("the master is back, and the next checks of {names} are waited for")
            }
            Self::Starting => "the first checks have not ended yet".into(),
            Self::NoMaster => "no backend is a proven master".into(),
            Self::SameProcess => format!("{names} are one process, which the config names twice"),
            Self::Conflict => {
                format!("several backends say role:master, and nothing tells them apart: {names}")
            }
            Self::BothFollowed => {
                format!("a master and its successor both have followers: {names}")
            }
            Self::Superseded => format!(
                "every master in sight has been succeeded by one that is not, as {names} shows"
            ),
            Self::LineageGap => {
                format!("the only master and the one before are not related: {names}")
            }
            Self::Gone => format!(
                "the master was restarted, and {names}, out of sight or a replica of another \
                 master, may hide its successor"
            ),
            Self::Minority => {
                format!("just started, with nothing remembered and {names} out of sight")
            }
            Self::SentinelElsewhere => {
                format!("a quorum of Sentinels names {names}, which is out of sight")
            }
            Self::Removed => "the config has no such pool any more".into(),
        }
    }

    /// What an operator can do, where it does not pass by itself.
    pub fn advice(self) -> Option<&'static str> {
        Some(match self.kind() {
            _ if self == Self::FailStatic => {
                "give the pool a password that the backends take, and the ACL rules +ping +info, or \
                 certificates that fit (see the reasons of the checks): until then no failover is noticed"
            }
            VerdictKind::Serve | VerdictKind::Hold => return None,
            VerdictKind::Refuse => match self {
                Self::Starting | Self::Removed => return None,
                Self::NoMaster => {
                    "start the master, or mend what its checks fail for, or promote a replica \
                     (REPLICAOF NO ONE)"
                }
                Self::SameProcess => "name every Redis once in the pool's backends",
                Self::Conflict | Self::BothFollowed => {
                    "make the wrong ones replicas of the right one (REPLICAOF)"
                }
                Self::LineageGap => {
                    "make the other backends replicas of the master that is right (REPLICAOF), or \
                     take those that are gone for good out of the config"
                }
                Self::Superseded | Self::Gone | Self::SentinelElsewhere => {
                    "bring back the backends that are out of sight, or make the others replicas of \
                     the master that is right (REPLICAOF)"
                }
                _ => "bring back the backends that are out of sight",
            },
        })
    }
}

/// Why a pool's clients get nothing: the rule, and its sentence with the names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The rule.
    pub rule: Rule,
    /// See [`Rule::words`].
    pub words: Arc<str>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}
