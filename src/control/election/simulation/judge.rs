//! What must hold.

use std::collections::BTreeMap;

use super::{KNOWN, Sim};
use crate::{
    control::election::SentinelView,
    topology::{Role, Rule},
};

impl Sim {
    /// Notes which masters have a successor with a follower, as long as all three are in sight.
    pub(super) fn note(&mut self) {
        let group = &self.group;
        let visible = |place: &usize| group.is_visible(*place, self.now);
        let masters: Vec<_> = group.places().filter(|place| group.is_master(*place)).collect();
        let mut facts = BTreeMap::new();
        for old in masters.iter().copied().filter(visible) {
            for heir in masters.iter().copied().filter(visible) {
                let is_heir = heir != old && group.succeeds(heir, old);
                for follower in group.places().filter(visible).filter(|_| is_heir) {
                    if group.is_fed(follower, heir) {
                        let fact = [old, heir, follower];
                        facts.insert(fact, self.succeeded.get(&fact).map_or(self.now, |at| *at));
                    }
                }
            }
        }
        self.succeeded = facts;
    }

    /// A quorum that has just been asked says that the old master stays, and it has followers, too.
    fn is_confirmed(&self, master: usize) -> bool {
        let quiet = |view: &SentinelView| {
            view.named.is_some_and(|(named, _)| named == master) && view.failover.is_none()
        };
        let followed = self.group.places().any(|place| self.group.is_fed(place, master));
        self.last.rule == Rule::Kept && followed && self.view.as_ref().is_some_and(quiet)
    }

    /// Whether a proxy that sees a master and its successor can tell which is which.
    fn is_evident(&self, old: usize, heir: usize) -> bool {
        let nodes = &self.group.nodes;
        let named = self.view.as_ref().and_then(|view| view.named).map(|(named, _)| named);
        // What a master was before it restarted, only the Sentinels know for sure.
        let descends = nodes[heir].replid2 == Some(nodes[old].replid);
        (descends || named == Some(heir)) && !self.is_confirmed(old)
    }

    pub(super) fn judge(&mut self) {
        if let Some(due) = self.due
            && self.last.serve != Some(due)
        {
            self.fail(&format!("{due} is the undisputed master and not served"));
        }
        let Some(served) = self.last.serve else {
            return;
        };
        if self.eyes[served].health.state().role() != Some(Role::Master) {
            self.fail("what is served has not proved to be a master");
        }
        for (places @ [old, heir, _], at) in &self.succeeded {
            let seen = |place: &usize| self.eyes[*place].sampled.is_some_and(|seen| seen >= *at);
            let is_back = self.last.rule == Rule::Returned
                && self.eyes[*old].since.is_some_and(|since| since >= *at);
            // One that comes back has to wait for those that were out of sight, too.
            let down = |place: &usize| self.eyes[*place].health.state().answer().is_none();
            let known = places.iter().all(|place| seen(place) || is_back && down(place));
            if *old == served && known && self.is_evident(*old, *heir) {
                self.fail(&format!("served although succeeded, as {places:?} show since {at}"));
            }
        }
        self.judge_lost_heir(served);
        self.judge_word(served);
        self.judge_return(served);
    }

    /// A replica that is fed by a successor proves it, also when the successor is out of sight.
    fn judge_lost_heir(&self, served: usize) {
        let answer = |place: usize| self.eyes[place].health.state().answer();
        let Some(own) = answer(served) else {
            return;
        };
        let proves = |place: &usize| {
            answer(*place).is_some_and(|other| {
                other.link_up == Some(true)
                    && other.replid != own.replid
                    && other.replid2.as_ref() == Some(&own.replid)
            })
        };
        let quiet = |view: &SentinelView| {
            view.named.is_some_and(|(named, _)| named == served) && view.failover.is_none()
        };
        if let Some(place) = self.group.places().find(proves)
            && !self.view.as_ref().is_some_and(quiet)
        {
            self.fail(&format!("served although {place} follows its successor"));
        }
    }

    /// What all Sentinels calmly name, and is a master, is not passed over for one before it.
    fn judge_word(&self, served: usize) {
        if let Some(view) = &self.view
            && let (Some((named, _)), None, Some(_)) =
                (view.named, view.failover, view.complete_from)
            && view.named == Some(self.actor.agreed)
            && self.eyes[named].health.state().role() == Some(Role::Master)
            && self.group.is_master(named)
            && self.group.succeeds(named, served)
        {
            self.fail(&format!("served although the Sentinels name its successor {named}"));
        }
    }

    /// Nothing leads back from a successor that was served, unless that was a mistake.
    fn judge_return(&mut self, served: usize) {
        let nodes = &self.group.nodes;
        self.served.retain(|(place, id, _)| nodes[*place].ids.contains(id));
        let back = |(place, _, origin): &(usize, u64, u64)| {
            *place != served && nodes[served].ids.contains(origin)
        };
        // Where most have gone back to it, so must the clients.
        if self.actor.named == served || self.last.rule == Rule::Followers {
            self.served.retain(|entry| !back(entry));
        } else if let Some((heir, ..)) = self.served.iter().find(|entry| back(entry)) {
            self.fail(&format!("served after its successor {heir}"));
        }
        let node = &nodes[served];
        if let Some(origin) = node.replid2.filter(|id| !node.ids.contains(id))
            && node.follows.is_none()
            && !self.served.contains(&(served, node.replid, origin))
        {
            self.served.push((served, node.replid, origin));
        }
    }

    /// A client writes to what is served.
    pub(super) fn write(&mut self) {
        let Some(served) = self.last.serve.filter(|p| self.group.is_visible(*p, self.now)) else {
            return;
        };
        if !self.group.is_master(served) {
            return;
        }
        self.acks += 1;
        for (places @ [old, heir, _], at) in &self.succeeded {
            if *old == served && self.now > at + KNOWN && self.is_evident(*old, *heir) {
                self.fail(&format!("a write is lost: {places:?} are so since {at}"));
            }
        }
    }
}
