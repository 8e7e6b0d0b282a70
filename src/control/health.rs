//! What one backend's checks prove, check by check. Pure: no clock, no I/O.

use crate::topology::{Answer, Failure, State};

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// A full, successful check.
    Passed(Answer),
    /// `-BUSY` on a connection that has passed a check before, and no other role than then: the
    /// very process that answered then runs a long script now.
    StillBusy,
    /// No answer in time on a connection that has passed a check before.
    Silent,
    /// A check that failed.
    Failed(Failure),
}

impl Observation {
    /// What went wrong, if anything did.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::Passed(_) => None,
            Self::StillBusy => Some(Failure::Busy),
            Self::Silent => Some(Failure::Timeout),
            Self::Failed(failure) => Some(*failure),
        }
    }
}

/// One backend's state and what changes it.
#[derive(Clone, Debug)]
pub struct Health {
    state: State,
    fall: u32,
    silences: u32,
}

impl Health {
    /// Starts unchecked; `fall` silent timeouts in a row make it down.
    pub fn new(fall: u32) -> Self {
        Self { state: State::Unchecked, fall, silences: 0 }
    }

    /// From now on so many silences in a row make it down.
    pub fn set_fall(&mut self, fall: u32) {
        self.fall = fall;
    }

    /// What is held to be true now.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes one result in. Any answer counts at once, also a bad one. Only the silence of the
    /// process that answered before waits: what is silent on a new connection may be another.
    pub fn observe(&mut self, observation: Observation) {
        match observation {
            Observation::Passed(answer) => {
                self.silences = 0;
                self.state = State::Up(answer);
            }
            // A script blocks the process, which can neither change its role nor lose its data
            // while it does: what it said before still holds.
            Observation::StillBusy => self.silences = 0,
            Observation::Silent => {
                self.silences = self.silences.saturating_add(1);
                if self.silences >= self.fall {
                    self.state = State::Down(Failure::Timeout);
                }
            }
            Observation::Failed(failure) => {
                self.silences = 0;
                self.state = State::Down(failure);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topology::Role;

    fn answer(role: Role) -> Answer {
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

    fn up() -> Health {
        let mut health = Health::new(3);
        health.observe(Observation::Passed(answer(Role::Master)));
        health
    }

    #[test]
    fn silence_waits_and_every_answer_counts_at_once() {
        let mut health = up();
        health.observe(Observation::Silent);
        health.observe(Observation::Silent);
        assert_eq!(health.state().role(), Some(Role::Master));
        health.observe(Observation::Silent);
        assert_eq!(*health.state(), State::Down(Failure::Timeout));

        let mut health = up();
        health.observe(Observation::Failed(Failure::Loading));
        assert_eq!(*health.state(), State::Down(Failure::Loading));
    }

    #[test]
    fn silence_on_a_new_connection_does_not_wait() {
        let mut health = up();
        health.observe(Observation::Failed(Failure::Timeout));
        assert_eq!(*health.state(), State::Down(Failure::Timeout));
    }

    #[test]
    fn an_answer_ends_a_row_of_silences() {
        let mut health = up();
        for _ in 0..10 {
            health.observe(Observation::Silent);
            health.observe(Observation::Silent);
            health.observe(Observation::Passed(answer(Role::Master)));
        }
        assert_eq!(health.state().role(), Some(Role::Master));
    }

    #[test]
    fn busy_keeps_what_the_unbroken_connection_said() {
        let mut health = up();
        health.observe(Observation::StillBusy);
        assert_eq!(health.state().role(), Some(Role::Master));
        health.observe(Observation::Failed(Failure::Busy));
        assert_eq!(*health.state(), State::Down(Failure::Busy));
    }

    #[test]
    fn the_first_check_ends_the_unchecked_state() {
        let mut health = Health::new(3);
        assert_eq!(*health.state(), State::Unchecked);
        health.observe(Observation::Failed(Failure::Timeout));
        assert_eq!(*health.state(), State::Down(Failure::Timeout));
    }

    proptest! {
        #[test]
        fn only_a_passed_check_proves_a_role(kinds in prop::collection::vec(0usize..5, 0..50)) {
            let failures =
                [Failure::Timeout, Failure::Busy, Failure::Refused, Failure::Cut, Failure::NoAuth];
            let mut health = Health::new(2);
            for kind in kinds {
                health.observe(Observation::Failed(failures[kind]));
                prop_assert_eq!(health.state().role(), None);
            }
        }

        #[test]
        fn a_row_of_fall_silences_always_ends_a_role(fall in 1u32..20, before in 0u32..20) {
            let mut health = Health::new(fall);
            health.observe(Observation::Passed(answer(Role::Master)));
            for _ in 0..before.min(fall - 1) {
                health.observe(Observation::Silent);
                prop_assert_eq!(health.state().role(), Some(Role::Master));
            }
            for _ in 0..fall {
                health.observe(Observation::Silent);
            }
            prop_assert_eq!(health.state().role(), None);
        }
    }
}
