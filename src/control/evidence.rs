//! What each backend's checks prove, in a sentence. Pure.

use std::sync::Arc;

use super::election::Decision;
use crate::topology::{Answer, Role, State};

/// So many characters of an id are shown: enough to compare.
const SHORT: usize = 8;

/// One sentence for each backend of a pool.
pub(super) fn sentences(names: &[Arc<str>], states: &[&State], decision: &Decision) -> Vec<String> {
    let pool = Pool { names, states };
    (0..names.len()).map(|place| pool.sentence(place, decision)).collect()
}

struct Pool<'a> {
    names: &'a [Arc<str>],
    states: &'a [&'a State],
}

impl Pool<'_> {
    fn sentence(&self, place: usize, decision: &Decision) -> String {
        let answer = match self.states[place] {
            State::Unchecked => return "not checked yet".to_owned(),
            State::Down(failure) => return format!("out of sight: {}", failure.advice()),
            State::Up(answer) => answer,
        };
        let replid = short(&answer.replid);
        if answer.role == Role::Replica {
            let link = if answer.link_up == Some(true) { "link up" } else { "link down" };
            return match self.list(|other, a| {
                other != place && a.role == Role::Master && a.replid == answer.replid
            }) {
                Some(master) => format!("replica of {master} (replid {replid}), {link}"),
                None => {
                    format!("replica with replid {replid}, which no master in sight has, {link}")
                }
            };
        }
        let mut words = format!("says role:master, replid {replid}");
        if let Some(id) = &answer.replid2 {
            words.push_str(&format!(", replid2 {}", short(id)));
            let parent =
                self.list(|other, a| other != place && a.role == Role::Master && a.replid == *id);
            if let Some(parent) = parent {
                words.push_str(&format!(" (promoted from a replica of {parent})"));
            }
        }
        let followers = self.list(|_, a| {
            a.role == Role::Replica && a.link_up == Some(true) && a.replid == answer.replid
        });
        match followers {
            Some(followers) => words.push_str(&format!(", followed by {followers}")),
            None => words.push_str(", followed by none"),
        }
        let heirs = self.list(|other, a| {
            other != place
                && a.replid2.as_ref() == Some(&answer.replid)
                && a.replid != answer.replid
        });
        if decision.serve == Some(place) {
            words.push_str(": served");
        } else if let Some(heirs) = heirs {
            words.push_str(&format!(": not the master any more, as {heirs} went on from it"));
        } else if decision.refuted.contains(&place) {
            words.push_str(": not the master any more, as one that was served after it shows");
        } else if decision.serve.is_some() {
            words.push_str(": not the heir of the one that is served");
        }
        words
    }

    fn list(&self, mut wanted: impl FnMut(usize, &Answer) -> bool) -> Option<String> {
        let names: Vec<&str> = self
            .states
            .iter()
            .enumerate()
            .filter_map(|(place, state)| Some((place, state.answer()?)))
            .filter(|(place, answer)| wanted(*place, answer))
            .map(|(place, _)| &*self.names[place])
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

fn short(id: &str) -> String {
    id.chars().take(SHORT).collect()
}
