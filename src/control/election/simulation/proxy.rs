//! What the proxy sees and does.

use super::{Event, FALL, Ms, Reach, Sim, TIMEOUT, time};
use crate::{
    control::{
        election::{Decision, Election, Member, Memory, SentinelView},
        health::{Health, Observation},
    },
    topology::{Failure, State},
};

/// What the proxy knows of one node.
pub(super) struct Eye {
    pub(super) health: Health,
    /// The process that its connection leads to.
    pub(super) link: Option<u64>,
    checked: Ms,
    /// When what the last passed check says was so.
    pub(super) sampled: Option<Ms>,
    /// The same of the first check that passed since it was out of sight.
    pub(super) since: Option<Ms>,
}

pub(super) fn eyes(size: usize) -> Vec<Eye> {
    let eye =
        |_| Eye { health: Health::new(FALL), link: None, checked: 0, sampled: None, since: None };
    (0..size).map(eye).collect()
}

impl Sim {
    pub(super) fn sample(&mut self, place: usize, began: Ms) {
        let node = &self.group.nodes[place];
        let lost = node.flaky && self.rng.bool();
        let link = &mut self.eyes[place].link;
        let mut wait = self.rng.u64(0..8);
        let found = if node.cut || lost || node.up && node.frozen {
            wait = (began + TIMEOUT).saturating_sub(self.now);
            if link.is_some() { Observation::Silent } else { Observation::Failed(Failure::Timeout) }
        } else if !node.up {
            Observation::Failed(Failure::Refused)
        } else if link.is_some_and(|run| run != node.run) {
            Observation::Failed(Failure::Cut)
        } else if node.loading > self.now {
            Observation::Failed(Failure::Loading)
        } else if node.busy > self.now {
            let proven = link.is_some();
            if proven { Observation::StillBusy } else { Observation::Failed(Failure::Busy) }
        } else {
            *link = Some(node.run);
            Observation::Passed(self.group.answer(place))
        };
        if matches!(found, Observation::Failed(_)) {
            *link = None;
        }
        self.after(wait, Event::Ended { place, began, sampled: self.now, found });
    }

    pub(super) fn ended(&mut self, place: usize, began: Ms, sampled: Ms, found: Observation) {
        let was_cut = found == Observation::Failed(Failure::Cut);
        let eye = &mut self.eyes[place];
        let before = eye.health.state().clone();
        if let Observation::Passed(_) = found {
            eye.sampled = Some(sampled);
            eye.since.get_or_insert(sampled);
        }
        eye.health.observe(found);
        eye.checked = began;
        let state = eye.health.state();
        if let State::Down(_) = state {
            (eye.link, eye.sampled, eye.since) = (None, None, None);
        }
        let changed = match (before.answer(), state.answer()) {
            (Some(before), Some(now)) => !now.claims_the_same(before),
            _ => before != *state,
        };
        if changed {
            self.log(|sim| format!("          {place} is {}", sim.short(place)));
        }
        // As the monitor does, and sometimes without need.
        if changed || self.last.serve.is_none() || self.last.wake.is_some() || self.rng.u8(..8) == 0
        {
            self.decide();
        }
        self.write();
        let interval = if was_cut { 0 } else { self.rng.u64(10..100) };
        let wait = (began + interval).saturating_sub(self.now);
        self.after(wait, Event::Check(place));
    }

    fn short(&self, place: usize) -> String {
        match self.eyes[place].health.state() {
            State::Up(a) => {
                format!("{} r{} {}<{:?} {:?}", a.role, a.run_id, a.replid, a.replid2, a.link_up)
            }
            state => format!("{state:?}"),
        }
    }

    pub(super) fn restart_proxy(&mut self, memory: Option<Memory>) {
        self.election = Election::new(self.policy, memory.clone());
        if memory.is_none() {
            self.served.clear();
        }
        self.twin = Election::new(self.policy, memory);
        for eye in &mut self.eyes {
            *eye = Eye { checked: eye.checked, ..eyes(1).remove(0) };
        }
        self.view = self.view.as_ref().map(|_| SentinelView {
            starting: self.reach == Reach::All,
            ..SentinelView::default()
        });
        self.last = Decision::starting();
        self.ask();
    }

    pub(super) fn decide(&mut self) {
        let members: Vec<_> = self
            .eyes
            .iter()
            .map(|eye| Member {
                state: eye.health.state(),
                checked: time(eye.checked),
                fresh: true,
            })
            .collect();
        let now = time(self.now);
        let decision = self.election.decide(now, &members, self.view.as_ref());
        let twin = self.twin.decide(now, &members, self.view.as_ref());
        let changed = decision.serve != self.last.serve || decision.rule != self.last.rule;
        self.last = decision;
        if changed {
            self.log(|sim| format!("     ===> {:?} {:?}", sim.last.serve, sim.last.rule));
        }
        if self.last != twin {
            self.fail("two elections decide differently");
        }
        self.judge();
        if self.last.ask {
            self.ask();
        }
        if let Some(wake) = self.last.wake.filter(|wake| self.woken != Some(*wake)) {
            self.woken = Some(wake);
            let wait = wake.saturating_sub(now).as_millis();
            self.after(u64::try_from(wait).unwrap(), Event::Wake);
        }
    }
}
