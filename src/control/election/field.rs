//! What the members' answers say of each other: who descends from whom, who follows whom.

use super::{Member, Memory};
use crate::topology::{Answer, Role, State};

/// All members of a pool at one moment.
pub(super) struct Field<'a> {
    members: &'a [Member<'a>],
    memory: Option<Memory>,
    masters: Vec<usize>,
}

impl<'a> Field<'a> {
    pub(super) fn new(members: &'a [Member<'a>], memory: Option<Memory>) -> Self {
        let is_master = |place: &usize| members[*place].state.role() == Some(Role::Master);
        Self { members, memory, masters: (0..members.len()).filter(is_master).collect() }
    }

    /// The places of those that prove to say `role:master`.
    pub(super) fn masters(&self) -> &[usize] {
        &self.masters
    }

    pub(super) fn places(&self) -> std::ops::Range<usize> {
        0..self.members.len()
    }

    pub(super) fn state(&self, place: usize) -> &'a State {
        self.members[place].state
    }

    pub(super) fn is_fresh(&self, place: usize) -> bool {
        self.members[place].fresh
    }

    pub(super) fn is_starting(&self) -> bool {
        self.members.iter().any(|member| *member.state == State::Unchecked)
    }

    pub(super) fn is_down(&self, place: usize) -> bool {
        self.answer(place).is_none()
    }

    pub(super) fn down(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|place| self.is_down(*place)).collect()
    }

    pub(super) fn replid(&self, place: usize) -> &'a str {
        self.answer(place).map_or("", |answer| &answer.replid)
    }

    fn answer(&self, place: usize) -> Option<&'a Answer> {
        self.members.get(place)?.state.answer()
    }

    /// Those that are replicas, with their answers.
    fn replicas(&self) -> impl Iterator<Item = (usize, &'a Answer)> {
        let answers = self.members.iter().enumerate();
        answers
            .filter_map(|(place, member)| Some((place, member.state.answer()?)))
            .filter(|(_, answer)| answer.role == Role::Replica)
    }

    /// Masters that are one process, which the config names several times.
    pub(super) fn same_process(&self) -> Option<Vec<usize>> {
        self.masters.iter().find_map(|first| {
            let run_id = &self.answer(*first)?.run_id;
            let same = |place: &usize| self.answer(*place).is_some_and(|a| a.is_process(run_id));
            let places: Vec<_> = self.masters.iter().copied().filter(same).collect();
            (places.len() > 1).then_some(places)
        })
    }

    /// Replicas that a master's stream reaches. By replid, because hosts and ports differ by who
    /// looks.
    pub(super) fn followers(&self, master: usize) -> usize {
        self.replicas().filter(|(place, _)| self.follows(*place, master)).count()
    }

    pub(super) fn follows(&self, place: usize, master: usize) -> bool {
        let replid = self.replid(master);
        self.answer(place).is_some_and(|answer| {
            answer.role == Role::Replica
                && answer.link_up == Some(true)
                && !replid.is_empty()
                && answer.replid == replid
        })
    }

    pub(super) fn is_followed_by_half(&self, master: usize) -> bool {
        let followers = self.followers(master);
        followers > 0 && followers * 2 >= self.members.len() - 1
    }

    /// The only one of these with followers, where their lineage does not tell them apart.
    pub(super) fn only_followed(&self, masters: &[usize]) -> Option<usize> {
        let mut origins: Vec<_> =
            masters.iter().filter_map(|place| self.answer(*place)?.replid2.as_ref()).collect();
        origins.dedup();
        let mut followed = masters.iter().copied().filter(|place| self.followers(*place) > 0);
        followed.next().filter(|_| origins.len() < 2 && followed.next().is_none())
    }

    /// Whether `child` was promoted from a replica of what `parent` is now.
    pub(super) fn descends(&self, child: usize, parent: usize) -> bool {
        let replid = self.replid(parent);
        child != parent
            && !replid.is_empty()
            && self.answer(child).and_then(|answer| answer.replid2.as_deref()) == Some(replid)
    }

    /// Whether it was promoted from a replica of the incumbent, whatever became of that.
    pub(super) fn is_heir(&self, place: usize) -> bool {
        self.memory.as_ref().is_some_and(|memory| {
            let origin = self.answer(place).and_then(|answer| answer.replid2.as_ref());
            place != memory.place && origin.is_some_and(|id| memory.replids.contains(id))
        })
    }

    /// The masters that carry on where this one was left.
    pub(super) fn heirs_of(&self, parent: usize) -> Vec<usize> {
        let was_served = self.memory.as_ref().is_some_and(|memory| memory.place == parent);
        let is_heir = |child: &usize| {
            *child != parent
                && (self.descends(*child, parent) || was_served && self.is_heir(*child))
        };
        self.masters.iter().copied().filter(is_heir).collect()
    }

    /// Whether its lineage goes on elsewhere, as a master, a replica, or the incumbent shows.
    pub(super) fn is_refuted(&self, place: usize) -> bool {
        self.is_outlived(place)
            || self.heirs_of(place).iter().any(|heir| !self.is_stray(*heir))
            || self.replicas_of_heir(place).next().is_some()
    }

    /// Whether it was seen beside the incumbent before, and not served.
    pub(super) fn is_stray(&self, place: usize) -> bool {
        let replid = self.replid(place);
        self.memory
            .as_ref()
            .is_some_and(|memory| memory.strays.iter().any(|(at, id)| *at == place && id == replid))
    }

    /// Whether the incumbent went on from it, and has not gone back to it.
    pub(super) fn is_outlived(&self, place: usize) -> bool {
        let replid = self.replid(place);
        self.memory.as_ref().is_some_and(|memory| {
            memory.place != place
                && memory.ancestors.iter().any(|id| id == replid)
                && !self.follows(memory.place, place)
        })
    }

    /// Replicas whose master went on from this one.
    fn replicas_of_heir(&self, place: usize) -> impl Iterator<Item = (usize, &'a Answer)> {
        let replid = self.replid(place);
        self.replicas().filter(move |(_, answer)| {
            !replid.is_empty()
                && answer.replid != replid
                && answer.replid2.as_deref() == Some(replid)
        })
    }

    /// Replicas that right now follow an heir of this one, which itself is out of sight. A replica
    /// whose link is down may just be on its way back here.
    pub(super) fn followers_of_lost_heir(&self, place: usize) -> Vec<usize> {
        let follows_one_in_sight =
            |place: usize| self.masters.iter().any(|master| self.follows(place, *master));
        self.replicas_of_heir(place)
            .filter(|(place, answer)| answer.link_up == Some(true) && !follows_one_in_sight(*place))
            .map(|(place, _)| place)
            .collect()
    }

    /// The only other master that half follow while nobody follows the incumbent.
    pub(super) fn followed_rival(&self, incumbent: usize) -> Option<usize> {
        let is_rival = |place: &usize| *place != incumbent && self.is_followed_by_half(*place);
        let mut rivals = self.masters.iter().copied().filter(is_rival);
        rivals.next().filter(|_| self.followers(incumbent) == 0 && rivals.next().is_none())
    }

    /// Masters of an unknown lineage that most follow while nobody follows this one: failovers that
    /// were out of sight.
    pub(super) fn followed_strangers(&self, incumbent: usize) -> Vec<usize> {
        if self.followers(incumbent) > 0 {
            return Vec::new();
        }
        let known = |id: &String| {
            self.memory.as_ref().is_some_and(|m| m.replids.contains(id) || m.ancestors.contains(id))
        };
        let is_stranger = |place: &usize| {
            // One that the incumbent descends from is known by its own id, whatever came before it.
            self.answer(*place).is_some_and(|answer| {
                let origin = answer.replid2.as_ref().filter(|_| !known(&answer.replid));
                origin.is_some_and(|id| !known(id))
            }) && self.is_followed_by_half(*place)
        };
        self.masters.iter().copied().filter(is_stranger).collect()
    }

    /// Replicas that hold the data of another lineage, next to a master that nobody follows.
    pub(super) fn foreign_replicas(&self, master: usize) -> Vec<usize> {
        let Some(own) = self.answer(master).filter(|_| self.followers(master) == 0) else {
            return Vec::new();
        };
        let is_foreign = |(_, answer): &(usize, &Answer)| {
            // One that never had a master's data shows an offset of 0 or 1.
            let has_data = answer.offset.is_some_and(|offset| offset > 1);
            let related =
                answer.replid == own.replid || Some(&answer.replid) == own.replid2.as_ref();
            let is_fed = answer.link_up == Some(true);
            has_data
                && !related
                && (is_fed || own.replid2.is_none() || answer.replid2 == own.replid2)
        };
        self.replicas().filter(is_foreign).map(|(place, _)| place).collect()
    }

    pub(super) fn is_majority_visible(&self) -> bool {
        (self.members.len() - self.down().len()) * 2 > self.members.len()
    }

    /// Whether the incumbent's backend is still the process that was served, with its data.
    pub(super) fn is_incumbent_process(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| {
            let answer = self.answer(memory.place);
            answer.is_some_and(|a| a.is_process(&memory.run_id) && memory.knows(a))
        })
    }

    /// Those out of sight of which no check has begun and ended since then.
    pub(super) fn not_checked_since(&self, time: std::time::Duration) -> Vec<usize> {
        self.down().into_iter().filter(|place| self.members[*place].checked < time).collect()
    }

    /// Other members whose last check began before.
    pub(super) fn others_not_checked_since(
        &self,
        place: usize,
        time: std::time::Duration,
    ) -> Vec<usize> {
        let is_old = |other: &usize| *other != place && self.members[*other].checked < time;
        self.places().filter(is_old).collect()
    }

    /// Whether every other member is a replica, and none of another master.
    pub(super) fn others_are_its_replicas(&self, master: usize) -> bool {
        let astray = |(place, answer): (usize, &Answer)| {
            answer.link_up == Some(true) && !self.follows(place, master)
        };
        self.replicas().count() == self.members.len() - 1 && !self.replicas().any(astray)
    }
}
