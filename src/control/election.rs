//! Which backend of a pool is the master. Pure: no clock, no I/O.

use std::sync::Arc;

use crate::topology::{Refusal, Role, State};

/// A backend that stands for election.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a Arc<str>,
    /// What its checks prove.
    pub state: &'a State,
}

/// The outcome: the candidate to serve, by its place, or why there is none.
pub type Decision = Result<usize, Refusal>;

/// Decides. Exactly one proven master is served; none or several are refused, because a wrong
/// guess loses data. Nothing is served before every backend's first check has ended, since the one
/// that is still out may be the second master.
pub fn decide(candidates: &[Candidate<'_>]) -> Decision {
    let masters: Vec<_> = masters(candidates).collect();
    match masters[..] {
        _ if candidates.iter().any(|c| *c.state == State::Unchecked) => Err(Refusal::Starting),
        [] => Err(Refusal::NoMaster),
        [only] => Ok(only),
        [first, ..] => {
            let one = run_id(&candidates[first]);
            let same = |place: &usize| run_id(&candidates[*place]) == one;
            Err(Refusal::Conflict {
                one_process: one.is_some() && masters.iter().all(same),
                names: masters.iter().map(|place| candidates[*place].name.clone()).collect(),
            })
        }
    }
}

/// The places of those that have proven to be a master.
pub fn masters(candidates: &[Candidate<'_>]) -> impl Iterator<Item = usize> {
    candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.state.role() == Some(Role::Master))
        .map(|(place, _)| place)
}

fn run_id<'a>(candidate: &Candidate<'a>) -> Option<&'a str> {
    match candidate.state {
        State::Up(answer) => Some(&answer.run_id).filter(|id| !id.is_empty()).map(String::as_str),
        State::Unchecked | State::Down(_) => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topology::{Answer, Failure};

    pub(in crate::control) fn answer(role: Role) -> Answer {
        Answer {
            address: ([127, 0, 0, 1], 6379).into(),
            role,
            run_id: "r1".into(),
            replid: "a".into(),
            replid2: None,
            offset: Some(0),
            link_up: (role == Role::Replica).then_some(true),
        }
    }

    fn state(kind: u8) -> State {
        match kind {
            0 => State::Unchecked,
            1 => State::Down(Failure::Loading),
            2 => State::Up(answer(Role::Replica)),
            _ => State::Up(answer(Role::Master)),
        }
    }

    fn decide_states(states: &[State]) -> Decision {
        let names: Vec<Arc<str>> = (0..states.len()).map(|i| format!("r{i}").into()).collect();
        let candidates: Vec<_> =
            names.iter().zip(states).map(|(name, state)| Candidate { name, state }).collect();
        decide(&candidates)
    }

    #[test]
    fn one_master_is_served_and_none_or_two_are_refused() {
        let [down, replica, master] = [1, 2, 3].map(state);
        assert_eq!(decide_states(&[down.clone(), master.clone(), replica.clone()]), Ok(1));
        assert_eq!(decide_states(&[down, replica]), Err(Refusal::NoMaster));
        assert_eq!(
            decide_states(&[master.clone(), master]),
            Err(Refusal::Conflict { names: vec!["r0".into(), "r1".into()], one_process: true })
        );
    }

    #[test]
    fn nothing_is_served_before_every_first_check_has_ended() {
        assert_eq!(decide_states(&[state(3), state(0)]), Err(Refusal::Starting));
    }

    proptest! {
        #[test]
        fn only_the_one_proven_master_is_ever_served(kinds in prop::collection::vec(0u8..4, 1..6)) {
            let states: Vec<_> = kinds.iter().copied().map(state).collect();
            let masters = kinds.iter().filter(|kind| **kind == 3).count();
            match decide_states(&states) {
                Ok(place) => prop_assert!(kinds[place] == 3 && masters == 1),
                Err(Refusal::Conflict { names, .. }) => prop_assert_eq!(names.len(), masters),
                Err(Refusal::NoMaster) => prop_assert_eq!(masters, 0),
                Err(Refusal::Starting) => prop_assert!(kinds.contains(&0)),
            }
        }
    }
}
