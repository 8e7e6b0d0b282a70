//! What happens to the group and to the proxy.

use super::{Event, Reach, Sim, model::Data};

/// What ends a trouble.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mend {
    Restart(usize, Data),
    Thaw(usize),
    Uncut(usize),
    UncutAll,
    Join(usize),
    Calm(usize),
    PutBack(usize),
    Hear,
}

impl Sim {
    pub(super) fn mend(&mut self, mend: Mend) {
        self.log(|_| format!("{mend:?}"));
        let now = self.now;
        match mend {
            Mend::Restart(place, data) if !self.group.nodes[place].up => {
                let loading = now + self.rng.u64(0..500);
                self.group.restart(place, data, loading);
            }
            Mend::Restart(..) => {}
            Mend::Thaw(place) => self.group.nodes[place].frozen = false,
            Mend::Uncut(place) => self.group.nodes[place].cut = false,
            Mend::UncutAll => self.group.nodes.iter_mut().for_each(|node| node.cut = false),
            Mend::Join(place) => self.group.nodes[place].isolated = false,
            Mend::Calm(place) => self.group.nodes[place].flaky = false,
            Mend::PutBack(place) => {
                let busy = self.actor.failover.is_some() || self.actor.named == place;
                if !busy && self.group.obeys(place, now) {
                    self.group.follow(place, self.actor.named, false);
                }
            }
            Mend::Hear => self.reach = Reach::All,
        }
        self.note();
    }

    /// Something bad, and when it ends.
    pub(super) fn disturb(&mut self) {
        let (now, place) = (self.now, self.rng.usize(..self.group.nodes.len()));
        // Most things happen to the master.
        let place = if self.rng.bool() { self.actor.named } else { place };
        let most = if self.rng.bool() { 2000 } else { 15_000 };
        let long = self.rng.u64(100..most);
        let obeys = self.group.obeys(place, now);
        let node = &mut self.group.nodes[place];
        let (words, mend) = match self.rng.u8(..16) {
            0 | 1 if node.up => {
                node.up = false;
                let data = [Data::Nothing, Data::Rdb, Data::Aof][self.rng.usize(..3)];
                ("killed", Some(Mend::Restart(place, data)))
            }
            2 | 3 => {
                node.frozen = true;
                ("frozen", Some(Mend::Thaw(place)))
            }
            4 if self.rng.bool() => {
                for node in &mut self.group.nodes {
                    node.cut = true;
                }
                if self.rng.bool() {
                    let next = self.actor.fail_over(&mut self.rng);
                    self.plan(next);
                }
                ("and all others cut from the proxy", Some(Mend::UncutAll))
            }
            4 | 5 => {
                node.cut = true;
                ("cut from the proxy", Some(Mend::Uncut(place)))
            }
            6 => {
                node.isolated = true;
                ("isolated", Some(Mend::Join(place)))
            }
            7 => {
                node.flaky = true;
                ("flaky", Some(Mend::Calm(place)))
            }
            8 => {
                node.busy = now + long.min(5000);
                ("busy", None)
            }
            9 | 10 => {
                let next = self.actor.fail_over(&mut self.rng);
                self.plan(next);
                self.say(None);
                ("planned failover", None)
            }
            11 if obeys => {
                self.group.promote(place, false);
                ("detached", self.rng.bool().then_some(Mend::PutBack(place)))
            }
            12 if obeys && self.view.is_none() && self.actor.failover.is_none() => {
                self.group.switch(place);
                if self.group.is_master(place) {
                    self.actor.named = place;
                }
                ("FAILOVER to", None)
            }
            13 => {
                self.group.forget_lineage(place);
                ("backlog-ttl", None)
            }
            14 => {
                let memory = self.election.memory().filter(|_| self.rng.u8(..4) > 0).cloned();
                self.restart_proxy(memory);
                ("proxy restarted", None)
            }
            15 if self.view.is_some() => {
                self.reach = if self.rng.bool() { Reach::NoLeader } else { Reach::None };
                self.after(700, Event::Unheard(self.count));
                ("Sentinels out of reach", Some(Mend::Hear))
            }
            _ => return,
        };
        self.log(|sim| format!("{place} {words} {:?}", sim.group.nodes[place]));
        if let Some(mend) = mend {
            self.after(long, Event::Mend(mend));
        }
        self.note();
    }

    pub(super) fn heal(&mut self) {
        self.log(|_| "all is mended".to_owned());
        for place in self.group.places() {
            let data = [Data::Nothing, Data::Rdb, Data::Aof][self.rng.usize(..3)];
            for mend in [
                Mend::Restart(place, data),
                Mend::Thaw(place),
                Mend::Uncut(place),
                Mend::Join(place),
                Mend::Calm(place),
                Mend::Hear,
            ] {
                self.mend(mend);
            }
        }
    }
}
