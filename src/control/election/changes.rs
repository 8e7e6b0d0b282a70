//! A pool whose backends or passwords change while it is served.

use std::time::Duration;

use super::{Decision, Election, Member, SentinelView};
use crate::topology::{Answer, Failure, OnUnexplainedHeir, Role, Rule, State};

fn state(role: Role, replid: &str, run_id: &str) -> State {
    State::Up(Answer {
        address: ([127, 0, 0, 1], 6379).into(),
        role,
        run_id: run_id.into(),
        replid: replid.into(),
        replid2: None,
        offset: Some(0),
        link_up: (role == Role::Replica).then_some(true),
    })
}

fn master() -> State {
    state(Role::Master, "a", "r0")
}

fn replica() -> State {
    state(Role::Replica, "a", "r1")
}

const REFUSED: State = State::Down(Failure::WrongPass);

/// A master that was promoted from a replica of the one with this replid.
fn promoted(replid: &str, from: &str, run_id: &str) -> State {
    match state(Role::Master, replid, run_id) {
        State::Up(answer) => State::Up(Answer { replid2: Some(from.into()), ..answer }),
        other => other,
    }
}

struct Pool {
    election: Election,
    now: Duration,
    fresh: bool,
}

impl Pool {
    /// With an incumbent at place 0.
    fn served() -> Self {
        let election = Election::new(OnUnexplainedHeir::Hold, None);
        let mut pool = Self { election, now: Duration::ZERO, fresh: true };
        for _ in 0..2 {
            assert_eq!(pool.decide(&[master(), replica()]).serve, Some(0));
        }
        pool
    }

    fn decide(&mut self, states: &[State]) -> Decision {
        self.decide_with(states, None)
    }

    fn decide_with(&mut self, states: &[State], view: Option<&SentinelView>) -> Decision {
        self.now += Duration::from_millis(100);
        let checked = self.now;
        let members: Vec<_> =
            states.iter().map(|state| Member { state, checked, fresh: self.fresh }).collect();
        self.election.decide(self.now, &members, view)
    }
}

#[test]
fn a_new_backend_does_not_stop_the_incumbent() {
    let mut pool = Pool::served();
    pool.election.renumber(&[Some(1), Some(2)]);
    let decision = pool.decide(&[State::Unchecked, master(), replica()]);
    assert_eq!((decision.serve, decision.rule), (Some(1), Rule::Incumbent));
    assert_eq!(pool.election.memory().map(|memory| memory.place), Some(1));
}

#[test]
fn a_master_that_is_taken_out_of_the_config_is_forgotten() {
    let mut pool = Pool::served();
    pool.election.renumber(&[None, Some(0)]);
    assert!(pool.election.memory().is_none());
    assert_eq!(pool.decide(&[replica()]).rule, Rule::NoMaster);
    let promoted = state(Role::Master, "b", "r1");
    assert_eq!(pool.decide(&[promoted]).serve, Some(0));
}

#[test]
fn a_refused_login_keeps_the_incumbent_whoever_refuses_first() {
    let both = [[REFUSED, replica()], [master(), REFUSED], [REFUSED, REFUSED]];
    for first in &both {
        let mut pool = Pool::served();
        for states in [first, &both[2]] {
            let decision = pool.decide(states);
            let rule = if states[0] == REFUSED { Rule::FailStatic } else { Rule::Incumbent };
            assert_eq!((decision.serve, decision.rule), (Some(0), rule), "{states:?}");
        }
        // No gap when the login is taken again.
        assert_eq!(pool.decide(&[master(), REFUSED]).rule, Rule::Incumbent);
    }
}

#[test]
fn a_refused_login_keeps_nobody_where_anything_else_is_seen() {
    let others = [
        State::Down(Failure::Refused),
        state(Role::Master, "b", "r1"),
        state(Role::Replica, "b", "r1"),
        State::Unchecked,
    ];
    for other in others {
        let mut pool = Pool::served();
        let decision = pool.decide(&[REFUSED, other.clone()]);
        assert_ne!(decision.serve, Some(0), "{other:?}");
        // It does not come back by the refusal of the other.
        assert_eq!(pool.decide(&[REFUSED, REFUSED]).serve, None, "{other:?}");
    }
    let mut pool = Pool::served();
    let elsewhere = SentinelView { named: Some((1, 2)), ..SentinelView::default() };
    assert_eq!(pool.decide_with(&[REFUSED, REFUSED], Some(&elsewhere)).serve, None);
}

#[test]
fn a_refusal_after_a_time_without_checks_keeps_nobody() {
    let mut pool = Pool::served();
    pool.fresh = false;
    assert_eq!(pool.decide(&[REFUSED, REFUSED]).serve, None);
    // Once it is kept, no check can pass any more.
    let mut pool = Pool::served();
    assert_eq!(pool.decide(&[REFUSED, REFUSED]).rule, Rule::FailStatic);
    pool.fresh = false;
    assert_eq!(pool.decide(&[REFUSED, REFUSED]).rule, Rule::FailStatic);
}

#[test]
fn another_process_behind_the_refusal_is_no_incumbent() {
    let mut pool = Pool::served();
    assert_eq!(pool.decide(&[REFUSED, REFUSED]).rule, Rule::FailStatic);
    let restarted = state(Role::Master, "c", "r9");
    let decision = pool.decide(&[restarted, replica()]);
    assert_ne!(decision.rule, Rule::Incumbent);
    assert_eq!(decision.serve, None);
}

#[test]
fn a_pool_that_serves_nobody_does_not_begin_to_by_a_refusal() {
    let mut election = Election::new(OnUnexplainedHeir::Hold, None);
    let members = [Member { state: &REFUSED, checked: Duration::ZERO, fresh: true }];
    assert_eq!(election.decide(Duration::ZERO, &members, None).serve, None);
}

#[test]
fn a_master_that_is_succeeded_again_is_no_stranger() {
    let mut pool = Pool::served();
    let follower = |replid| state(Role::Replica, replid, "r2");
    // Place 1 takes over, and place 0 again later, while place 1 still has its follower.
    let once = [state(Role::Replica, "b", "r0"), promoted("b", "a", "r1"), follower("b")];
    pool.election.renumber(&[Some(0), Some(1)]);
    assert_eq!(pool.decide(&once).serve, Some(1));
    assert_eq!(pool.decide(&once).rule, Rule::Incumbent);
    let twice = [promoted("c", "b", "r0"), promoted("b", "a", "r1"), follower("b")];
    let view = SentinelView {
        named: Some((1, 2)),
        failover: Some(Some(0)),
        complete_from: Some(Duration::ZERO),
        ..SentinelView::default()
    };
    assert_eq!(pool.decide_with(&twice, Some(&view)).rule, Rule::Failover);
    for _ in 0..3 {
        let decision = pool.decide_with(&twice, Some(&view));
        assert_eq!((decision.serve, decision.rule), (Some(0), Rule::Incumbent));
    }
}

#[test]
fn a_reload_does_not_end_the_wait_for_a_selected_heir() {
    let mut pool = Pool::served();
    let both = [master(), replica()];
    let selected = SentinelView {
        named: Some((0, 1)),
        failover: Some(Some(1)),
        complete_from: Some(Duration::ZERO),
        ..SentinelView::default()
    };
    assert_eq!(pool.decide_with(&both, Some(&selected)).rule, Rule::FailoverBegun);
    // The Sentinels are asked anew.
    let starting = SentinelView { starting: true, ..SentinelView::default() };
    assert_eq!(pool.decide_with(&both, Some(&starting)).rule, Rule::FailoverBegun);
    assert_eq!(pool.decide_with(&both, Some(&selected)).rule, Rule::FailoverBegun);
    // Should they never answer, the wait ends in its own time, and nobody is distrusted for that.
    for _ in 0..5 {
        pool.decide_with(&both, Some(&starting));
    }
    assert_eq!(pool.decide_with(&both, Some(&starting)).rule, Rule::Incumbent);
}
