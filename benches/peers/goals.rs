//! What rolegate wants to reach, beside HAProxy with as many threads.

use crate::{cases::Case, figures::Results, peer::Peer};

/// What a value is compared with.
#[derive(Clone, Copy)]
enum Beside {
    Haproxy,
    Splice,
    Direct,
    Nothing,
}

#[derive(Clone, Copy)]
enum Limit {
    Most(f64),
    Least(f64),
}

struct Goal {
    title: &'static str,
    cases: &'static [Case],
    figure: &'static str,
    beside: Beside,
    limit: Limit,
}

const SMALL: (&str, &[Case]) =
    ("small, P=1", &[Case::Get1, Case::Get50, Case::Get500, Case::Set50]);
const P16: (&str, &[Case]) = ("P=16", &[Case::GetP16, Case::SetP16]);
const KIB_16: (&str, &[Case]) = ("16 KiB", &[Case::Get16k, Case::Set16k]);
const MIB: (&str, &[Case]) = ("1 MiB", &[Case::Get1m, Case::Set1m]);
const CONNECT: (&str, &[Case]) = ("new connections", &[Case::Connect]);

const fn beside_haproxy(
    (title, cases): (&'static str, &'static [Case]),
    figure: &'static str,
    limit: Limit,
) -> Goal {
    Goal { title, cases, figure, beside: Beside::Haproxy, limit }
}

const fn alone(
    case: &'static [Case],
    title: &'static str,
    figure: &'static str,
    most: f64,
) -> Goal {
    Goal { title, cases: case, figure, beside: Beside::Nothing, limit: Limit::Most(most) }
}

const GOALS: [Goal; 20] = [
    beside_haproxy(SMALL, "CPU µs", Limit::Most(0.92)),
    beside_haproxy(SMALL, "requests/s", Limit::Least(1.0)),
    beside_haproxy(SMALL, "p99 ms", Limit::Most(1.0)),
    beside_haproxy(P16, "CPU µs", Limit::Most(0.92)),
    beside_haproxy(P16, "requests/s", Limit::Least(1.0)),
    beside_haproxy(P16, "p99 ms", Limit::Most(1.0)),
    beside_haproxy(KIB_16, "CPU µs", Limit::Most(0.65)),
    beside_haproxy(KIB_16, "requests/s", Limit::Least(1.15)),
    beside_haproxy(KIB_16, "p99 ms", Limit::Most(0.9)),
    beside_haproxy(MIB, "CPU µs", Limit::Most(0.45)),
    Goal { beside: Beside::Splice, ..beside_haproxy(MIB, "CPU µs", Limit::Most(0.65)) },
    beside_haproxy(MIB, "requests/s", Limit::Least(1.4)),
    beside_haproxy(MIB, "p99 ms", Limit::Most(0.8)),
    beside_haproxy(CONNECT, "CPU µs", Limit::Most(0.9)),
    beside_haproxy(CONNECT, "requests/s", Limit::Least(1.1)),
    beside_haproxy(CONNECT, "p99 ms", Limit::Most(0.95)),
    beside_haproxy(("idle sessions", &[Case::Idle]), "PSS KiB a session", Limit::Most(0.45)),
    alone(&[Case::Kill], "crowd, kill -9", "last closed ms", 50.0),
    alone(&[Case::Demote], "crowd, REPLICAOF", "first to last closed ms", 50.0),
    Goal {
        beside: Beside::Direct,
        ..alone(&[Case::Fairness], "fairness", "p99 beside : alone", 2.0)
    },
];

impl Goal {
    /// The values of each case with this rolegate, and whether all of them reach the goal.
    fn cell(&self, results: &Results, rolegate: Peer) -> String {
        let other = match (self.beside, rolegate) {
            (Beside::Haproxy, Peer::Rolegate1) => Some(Peer::Haproxy1),
            (Beside::Haproxy, _) => Some(Peer::HaproxyAll),
            (Beside::Splice, Peer::Rolegate1) => Some(Peer::Splice1),
            (Beside::Splice, _) => return "–".to_owned(),
            (Beside::Direct, _) => Some(Peer::Direct),
            (Beside::Nothing, _) => None,
        };
        let value = |case: &Case| match other {
            Some(other) => results.ratio(*case, [rolegate, other], self.figure),
            None => results.median(*case, rolegate, self.figure),
        };
        let values: Vec<Option<f64>> = self.cases.iter().map(value).collect();
        if values.iter().all(Option::is_none) {
            return "–".to_owned();
        }
        let reaches = |value: &f64| match self.limit {
            Limit::Most(limit) => *value <= limit,
            Limit::Least(limit) => *value >= limit,
        };
        let verdict = match values.iter().flatten().all(reaches) {
            false => "**missed**",
            true if values.contains(&None) => "not all measured",
            true => "met",
        };
        let text = values.iter().map(|value| value.map_or("–".to_owned(), |v| format!("{v:.2}")));
        format!("{} {verdict}", text.collect::<Vec<_>>().join(", "))
    }
}

/// A table of all goals that something was measured for.
pub fn table(results: &Results) -> String {
    let mut table = "| goal | | one thread | all cores |\n|---|---|---|---|\n".to_owned();
    for goal in &GOALS {
        if !goal.cases.iter().any(|case| Peer::ALL.iter().any(|peer| results.has(*case, *peer))) {
            continue;
        }
        let names: Vec<_> = goal.cases.iter().map(|case| case.name()).collect();
        let beside = match goal.beside {
            Beside::Haproxy => " : HAProxy",
            Beside::Splice => " : HAProxy with splice-auto",
            Beside::Direct => " : the same without a proxy",
            Beside::Nothing => "",
        };
        let limit = match goal.limit {
            Limit::Most(limit) => format!("≤ {limit}"),
            Limit::Least(limit) => format!("≥ {limit}"),
        };
        let [one, all] = [Peer::Rolegate1, Peer::RolegateAll].map(|peer| goal.cell(results, peer));
        table += &format!(
            "| {} ({}) | {}{beside} {limit} | {one} | {all} |\n",
            goal.title,
            names.join(", "),
            goal.figure,
        );
    }
    table
}
