//! What was measured, round by round, and medians over the rounds.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{cases::Case, peer::Peer};

/// Values by their names, which have the unit in them.
pub type Figures = BTreeMap<&'static str, f64>;

/// Of the processors that it had.
pub const DISTURBED: f64 = 5.0;

/// Whether other work took a part of its processors.
pub fn is_disturbed(figures: &Figures) -> bool {
    figures.get("other %").is_some_and(|share| *share > DISTURBED)
}

/// One run of a case with a peer.
struct Run {
    round: usize,
    case: Case,
    peer: Peer,
    figures: Figures,
}

#[derive(Default)]
pub struct Results(Vec<Run>);

impl Results {
    pub fn push(&mut self, round: usize, case: Case, peer: Peer, figures: Figures) {
        self.0.push(Run { round, case, peer, figures });
    }

    /// By round.
    fn values(&self, case: Case, peer: Peer, name: &str) -> BTreeMap<usize, f64> {
        let runs = self.0.iter().filter(|run| run.case == case && run.peer == peer);
        runs.filter_map(|run| Some((run.round, *run.figures.get(name)?))).collect()
    }

    pub fn has(&self, case: Case, peer: Peer) -> bool {
        self.0.iter().any(|run| run.case == case && run.peer == peer)
    }

    pub fn median(&self, case: Case, peer: Peer, name: &str) -> Option<f64> {
        median(self.values(case, peer, name).into_values().collect())
    }

    /// The median of the ratios of the rounds: what disturbs a round disturbs both sides of it.
    pub fn ratio(&self, case: Case, [one, other]: [Peer; 2], name: &str) -> Option<f64> {
        let others = self.values(case, other, name);
        let ratio = |(round, value): (usize, f64)| Some(value / others.get(&round)?);
        median(self.values(case, one, name).into_iter().filter_map(ratio).collect())
    }

    /// How many runs were disturbed, and how many there are.
    pub fn disturbed(&self) -> (usize, usize) {
        let disturbed = self.0.iter().filter(|run| is_disturbed(&run.figures));
        (disturbed.count(), self.0.len())
    }

    pub fn json(&self) -> Value {
        let run = |run: &Run| {
            let (case, peer) = (run.case.name(), run.peer.name());
            json!({ "round": run.round, "case": case, "peer": peer, "figures": run.figures })
        };
        self.0.iter().map(run).collect()
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 0 => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}
