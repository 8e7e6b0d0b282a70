//! Which backend of a pool is the true master. Pure: no clock, no I/O; time is an argument.
//!
//! Several nodes can say `role:master` at once, for seconds after every failover. Time never tells
//! which of them is right. What tells is lineage (a promoted node keeps its old master's replid as
//! its replid2), who follows whom (by replid), which process was served without a break, and what
//! the Sentinels agree on. Where that does not decide, nothing is served.

#[cfg(test)]
mod changes;
mod decision;
mod field;
mod incumbent;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod vectors;

use std::time::Duration;

use self::field::Field;
pub use self::{
    decision::{Decision, Member, SentinelView},
    incumbent::Memory,
};
use crate::topology::{Answer, OnUnexplainedHeir, Role, Rule, State};

/// How long an heir that nothing explains may keep the pool without a master.
pub const DOUBT: Duration = Duration::from_secs(2);

/// How long the Sentinels may take to say whether a failover explains an heir, while the incumbent
/// goes on. They answer in a millisecond or so.
const ASKING: Duration = Duration::from_millis(50);

/// How long the pool waits for the replica that a failover has selected. It takes one tick of
/// Sentinel's timer, about 100 ms.
const SELECTED: Duration = Duration::from_millis(500);

/// After a failover that promoted nobody, no other one stops the incumbent for so long: one Sentinel
/// alone says that it has begun.
const DISTRUST: Duration = Duration::from_secs(60);

/// Decides for one pool, and remembers what that takes.
#[derive(Debug)]
pub struct Election {
    policy: OnUnexplainedHeir,
    memory: Option<Memory>,
    /// The incumbent has passed every check since it was served, as the same process and a master,
    /// but for those whose login it refused.
    unbroken: bool,
    /// It is served although it refuses the login of checks.
    is_mute: bool,
    /// The backend that the last decision served.
    served: Option<usize>,
    /// When the broken incumbent was first seen again.
    returned: Option<Duration>,
    contest: Option<Contest>,
    selected: Option<Selected>,
    distrust_until: Duration,
    /// Since when nobody follows the incumbent while half follow this other master.
    deserted: Option<(usize, Duration)>,
}

/// Heirs that claim the role of a master that lives.
#[derive(Debug, PartialEq, Eq)]
struct Contest {
    parent: usize,
    /// Their places and replids.
    heirs: Vec<(usize, String)>,
    since: Duration,
    seen: Duration,
}

/// A failover has selected a replica, which is not promoted yet.
#[derive(Debug)]
struct Selected {
    heir: usize,
    since: Duration,
    believed: bool,
}

/// Whether it is up, as far as its refusal of a login tells.
fn is_login_refused(state: &State) -> bool {
    matches!(state, State::Down(failure) if failure.is_login())
}

impl Election {
    /// Starts with what is remembered of an earlier run, if anything.
    pub fn new(policy: OnUnexplainedHeir, memory: Option<Memory>) -> Self {
        Self {
            policy,
            memory,
            unbroken: false,
            is_mute: false,
            served: None,
            returned: None,
            contest: None,
            selected: None,
            distrust_until: Duration::ZERO,
            deserted: None,
        }
    }

    /// What is remembered.
    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    /// From now on this is what to do about heirs.
    pub fn set_policy(&mut self, policy: OnUnexplainedHeir) {
        self.policy = policy;
    }

    /// The pool has other backends from now on; `to` has the new place of each old one. An incumbent
    /// that is none any more is forgotten.
    pub fn renumber(&mut self, to: &[Option<usize>]) {
        let place = |old: usize| to.get(old).copied().flatten();
        self.memory = self.memory.take().and_then(|memory| {
            let strays = memory.strays.into_iter();
            let strays = strays.filter_map(|(old, replid)| Some((place(old)?, replid))).collect();
            Some(Memory { place: place(memory.place)?, strays, ..memory })
        });
        self.unbroken &= self.memory.is_some();
        self.served = self.served.and_then(place);
        self.selected = self
            .selected
            .take()
            .and_then(|selected| Some(Selected { heir: place(selected.heir)?, ..selected }));
        // They begin anew.
        self.contest = None;
        self.deserted = None;
    }

    /// Decides, `now` being any time that never goes backwards. `view` is `None` in a pool without
    /// Sentinels.
    pub fn decide(
        &mut self,
        now: Duration,
        members: &[Member<'_>],
        view: Option<&SentinelView>,
    ) -> Decision {
        self.follow_incumbent(now, members);
        let field = Field::new(members, self.memory.clone());
        let mut decision = self.judge(now, &field, view);
        let refuted = |place: &usize| Some(*place) != decision.serve && field.is_refuted(*place);
        decision.refuted = field.masters().iter().copied().filter(refuted).collect();
        self.contest.take_if(|contest| contest.seen < now);
        match (decision.serve, decision.serve.and_then(|place| members[place].state.answer())) {
            (Some(place), Some(answer)) => {
                self.adopt(place, answer, view);
                let is_settled = matches!(decision.rule, Rule::Incumbent | Rule::Kept);
                if let Some(memory) = self.memory.as_mut().filter(|_| is_settled && !decision.ask) {
                    let others = field.masters().iter().filter(|other| **other != place);
                    others.for_each(|other| memory.remember_stray(*other, field.replid(*other)));
                }
            }
            _ => self.learn_epoch(view),
        }
        self.served = decision.serve;
        self.is_mute = decision.rule == Rule::FailStatic;
        decision
    }

    /// Notices when the incumbent's row of passed checks breaks, and which replids it shows.
    fn follow_incumbent(&mut self, now: Duration, members: &[Member<'_>]) {
        let Some(memory) = &mut self.memory else {
            return;
        };
        match members[memory.place].state.answer().filter(|answer| answer.role == Role::Master) {
            Some(answer) if self.unbroken && answer.is_process(&memory.run_id) => {
                memory.remember(answer);
            }
            Some(_) => {
                self.unbroken = false;
                self.returned.get_or_insert(now);
            }
            None => {
                self.unbroken &= is_login_refused(members[memory.place].state);
                self.returned = None;
            }
        }
    }

    fn adopt(&mut self, place: usize, answer: &Answer, view: Option<&SentinelView>) {
        let same = self.memory.as_ref().is_some_and(|memory| {
            memory.place == place && answer.is_process(&memory.run_id) && memory.knows(answer)
        });
        if !same {
            let epoch = self.memory.as_ref().and_then(|memory| memory.epoch);
            // A restart ends no lineage: a failover that began before it goes on from there.
            let before = self.memory.take().filter(|memory| memory.place == place);
            let (replids, strays) = before.map(|b| (b.replids, b.strays)).unwrap_or_default();
            let (run_id, ancestors) = (answer.run_id.clone(), Vec::new());
            self.memory = Some(Memory { place, run_id, replids, ancestors, epoch, strays });
        }
        if let Some(memory) = &mut self.memory {
            memory.remember(answer);
        }
        self.unbroken = true;
        self.returned = None;
        self.learn_epoch(view);
    }

    /// What the Sentinels said before the incumbent was served, or when they first were heard,
    /// says nothing against it; and what names the incumbent confirms it.
    fn learn_epoch(&mut self, view: Option<&SentinelView>) {
        if let (Some(memory), Some((place, epoch))) =
            (&mut self.memory, view.and_then(|view| view.named))
            && (place == memory.place || memory.epoch.is_none())
        {
            memory.epoch = memory.epoch.max(Some(epoch));
        }
    }

    fn judge(&mut self, now: Duration, field: &Field<'_>, view: Option<&SentinelView>) -> Decision {
        if let Some(incumbent) = self.mute_incumbent(field, view) {
            return Decision::serve(incumbent, Rule::FailStatic);
        }
        // One that a new config brings is out of sight until it has been checked.
        let is_starting = field.is_starting() || view.is_some_and(|view| view.starting);
        if is_starting && !self.unbroken {
            return Decision::starting();
        }
        if field.masters().is_empty() {
            return Decision::not(Rule::NoMaster, Vec::new());
        }
        if let Some(same) = field.same_process() {
            return Decision::not(Rule::SameProcess, same);
        }
        match self.memory.as_ref().map(|memory| memory.place) {
            Some(place) if self.unbroken && field.masters().contains(&place) => {
                self.judge_unbroken(now, field, view, place)
            }
            _ => self.judge_broken(now, field, view),
        }
    }

    /// The incumbent, if it is served and refuses the login of checks, as all others do, but for
    /// replicas that still follow it. That is somebody's new password: it tells nothing of roles, and
    /// must not take the data down.
    fn mute_incumbent(&mut self, field: &Field<'_>, view: Option<&SentinelView>) -> Option<usize> {
        let memory = self.memory.as_ref().filter(|_| self.unbroken)?;
        let incumbent = memory.place;
        if !is_login_refused(field.state(incumbent)) {
            return None;
        }
        let agrees = |place: usize| match field.state(place).answer() {
            None => is_login_refused(field.state(place)),
            Some(answer) => answer.link_up == Some(true) && memory.replids.contains(&answer.replid),
        };
        let is_contradicted = view.is_some_and(|view| {
            view.failover.is_some() || view.named.is_some_and(|(named, _)| named != incumbent)
        });
        let begins = !self.is_mute;
        let stays = self.served == Some(incumbent)
            && (!begins || field.is_fresh(incumbent))
            && field.places().all(agrees)
            && !is_contradicted;
        self.unbroken = stays;
        stays.then_some(incumbent)
    }

    /// The incumbent has been the master all along: only its heir, or the Sentinels, replace it.
    fn judge_unbroken(
        &mut self,
        now: Duration,
        field: &Field<'_>,
        view: Option<&SentinelView>,
        incumbent: usize,
    ) -> Decision {
        let heirs = field.heirs_of(incumbent);
        let newer = self.newer(view).filter(|named| *named != incumbent);
        if let Some(named) = newer {
            // The very master that the incumbent came after is not newer than it.
            let stale = field.descends(incumbent, named) || !field.heirs_of(named).is_empty();
            if field.masters().contains(&named) && !stale {
                return Decision::serve(named, Rule::Sentinel);
            }
        }
        if !heirs.is_empty() {
            return self.contest(now, field, view, incumbent, heirs);
        }
        if let Some(named) = newer.filter(|named| field.is_down(*named)) {
            return Decision::not(Rule::SentinelElsewhere, vec![named]);
        }
        let cleared = view.is_some_and(|view| view.is_calm_about(incumbent));
        let others = [field.followers_of_lost_heir(incumbent), field.followed_strangers(incumbent)];
        if let Some(about) = others.into_iter().find(|about| !about.is_empty())
            && !cleared
        {
            return Decision::not(Rule::Superseded, about);
        }
        let rival = field.followed_rival(incumbent);
        if self.deserted.map(|(place, _)| place) != rival {
            self.deserted = rival.map(|place| (place, now));
        }
        // Replicas also follow an old master that restarts before they are told of the new one.
        if let (Some((rival, since)), Some(view)) = (self.deserted, view)
            && now >= since + DOUBT
            && view.is_calm_about(rival)
            && view.is_complete_since(since)
        {
            return Decision::serve(rival, Rule::Sentinel);
        }
        if let Some(decision) = self.wait_for_selected(now, view, incumbent) {
            return decision;
        }
        Decision::serve(incumbent, Rule::Incumbent)
    }

    /// From the moment a failover has selected a replica, what the incumbent acknowledges may be
    /// lost.
    fn wait_for_selected(
        &mut self,
        now: Duration,
        view: Option<&SentinelView>,
        incumbent: usize,
    ) -> Option<Decision> {
        // While the Sentinels are asked anew, what they said still holds.
        if let Some(selected) = self.selected.as_ref().filter(|selected| selected.believed)
            && view.is_some_and(|view| view.starting)
        {
            let end = selected.since + SELECTED;
            let wait = || Decision::not(Rule::FailoverBegun, vec![selected.heir]).until(end);
            return (now < end).then(wait);
        }
        let view = view.filter(|view| view.names(incumbent));
        let heir = view.and_then(|view| view.failover.flatten());
        let distrust_until = &mut self.distrust_until;
        let Some(heir) = heir.filter(|heir| *heir != incumbent) else {
            let given_up = |selected: Selected| selected.believed && selected.heir != incumbent;
            if self.selected.take().is_some_and(given_up) {
                *distrust_until = now + DISTRUST;
            }
            return None;
        };
        let selected = self.selected.get_or_insert_with(|| Selected {
            heir,
            since: now,
            believed: now >= *distrust_until,
        });
        // Should it be another one now, the time does not begin anew.
        selected.heir = heir;
        let end = selected.since + SELECTED;
        if selected.believed && now >= end {
            selected.believed = false;
            *distrust_until = now + DISTRUST;
        }
        selected.believed.then(|| Decision::not(Rule::FailoverBegun, vec![heir]).until(end))
    }

    /// Heirs claim the role of a master that lives.
    fn contest(
        &mut self,
        now: Duration,
        field: &Field<'_>,
        view: Option<&SentinelView>,
        parent: usize,
        heirs: Vec<usize>,
    ) -> Decision {
        let claims: Vec<_> =
            heirs.iter().map(|heir| (*heir, field.replid(*heir).to_owned())).collect();
        let since = match &self.contest {
            Some(contest) if contest.parent == parent && contest.heirs == claims => contest.since,
            _ => now,
        };
        self.contest = Some(Contest { parent, heirs: claims, since, seen: now });

        let promoted = view.and_then(|view| view.failover.flatten());
        if let Some(heir) = promoted.filter(|heir| heirs.contains(heir)) {
            return Decision::serve(heir, Rule::Failover).about(vec![parent]);
        }
        if let Some(heir) = self.newer(view).filter(|heir| heirs.contains(heir)) {
            return Decision::serve(heir, Rule::Sentinel);
        }
        // A successor that is out of sight counts more than these.
        let is_elsewhere = |named: &usize| *named != parent && field.is_down(*named);
        if let Some(named) = self.newer(view).filter(is_elsewhere) {
            return Decision::not(Rule::SentinelElsewhere, vec![named]);
        }
        let kept = |heirs| Decision::serve(parent, Rule::Kept).about(heirs);
        let parent_followed = field.followers(parent) > 0;
        let followed: Vec<_> =
            heirs.iter().copied().filter(|heir| field.followers(*heir) > 0).collect();
        if let Some(view) = view.filter(|_| parent_followed || followed.is_empty()) {
            let calm = view.is_calm_about(parent);
            if calm && view.is_complete_since(since) {
                return kept(heirs);
            }
            let heard = view.is_complete_since(since.saturating_sub(DOUBT));
            if calm && heard && self.unbroken && now < since + ASKING {
                return Decision { ask: true, ..kept(heirs).until(since + ASKING) };
            }
        }
        let lost = field.followers_of_lost_heir(parent);
        if !lost.is_empty() {
            return Decision::not(Rule::Superseded, lost);
        }
        match (parent_followed, &followed[..], &heirs[..]) {
            (false, [heir], _) | (false, [], [heir]) => {
                Decision::serve(*heir, Rule::Heir).about(vec![parent])
            }
            (false, [], _) => Decision::not(Rule::Conflict, heirs),
            (true, [], _) => match (self.policy, &heirs[..]) {
                (OnUnexplainedHeir::Follow, [heir]) => {
                    Decision::serve(*heir, Rule::Heir).about(vec![parent])
                }
                (OnUnexplainedHeir::Keep, _) => kept(heirs),
                _ if heirs.iter().all(|heir| field.is_stray(*heir)) => kept(heirs),
                _ if now >= since + DOUBT => kept(heirs),
                _ => Decision {
                    ask: true,
                    ..Decision::not(Rule::UnexplainedHeir, heirs).until(since + DOUBT)
                },
            },
            _ => {
                let mut about = vec![parent];
                about.extend(followed);
                Decision::not(Rule::BothFollowed, about)
            }
        }
    }

    /// There is no incumbent whose checks never broke.
    fn judge_broken(
        &mut self,
        now: Duration,
        field: &Field<'_>,
        view: Option<&SentinelView>,
    ) -> Decision {
        // Between the incumbent and the master before it, all has been decided.
        let contested = field.masters().iter().copied().find(|parent| {
            field.followers(*parent) > 0
                && !field.heirs_of(*parent).is_empty()
                && !field.is_outlived(*parent)
        });
        if let Some(parent) = contested {
            return self.contest(now, field, view, parent, field.heirs_of(parent));
        }
        let is_left = |place: &usize| !field.is_refuted(*place);
        let mut left: Vec<_> = field.masters().iter().copied().filter(is_left).collect();
        let is_stray = |place: &usize| field.is_stray(*place) && field.followers(*place) == 0;
        if !left.iter().all(is_stray) {
            left.retain(|place| !is_stray(place));
        }
        // A failover to the one that is named already is as good as over.
        let settled = view.is_some_and(|view| {
            let named = view.named.map(|(named, _)| named);
            view.failover.is_none_or(|heir| heir.is_some() && heir == named)
                && view.complete_from.is_some()
        });
        let newer = self.newer(view);
        let settled = view.filter(|_| settled).and_then(|view| view.named);
        let named = newer.or_else(|| settled.map(|(place, _)| place));
        let is_heir = |place: &usize| field.is_heir(*place) && !field.is_stray(*place);
        let heirs: Vec<_> = left.iter().copied().filter(is_heir).collect();
        let named = named.filter(|named| left.contains(named));
        match (&left[..], &heirs[..], named) {
            ([], ..) => Decision::not(Rule::Superseded, field.masters().to_vec()),
            (_, _, Some(named)) if newer == Some(named) => Decision::serve(named, Rule::Sentinel),
            (_, [heir], _) => Decision::serve(*heir, Rule::Heir),
            (_, _, Some(named)) => Decision::serve(named, Rule::Sentinel),
            ([only], ..) => self.judge_only(field, *only, view),
            _ => match field.only_followed(&left) {
                Some(place) if self.memory.is_none() || field.is_followed_by_half(place) => {
                    Decision::serve(place, Rule::Followers)
                }
                _ => Decision::not(Rule::Conflict, left),
            },
        }
    }

    /// One master is left, and it is no heir.
    fn judge_only(&self, field: &Field<'_>, only: usize, view: Option<&SentinelView>) -> Decision {
        let is_elsewhere = |named: &usize| *named != only && field.is_down(*named);
        let elsewhere = self.newer_or_cold(view).filter(is_elsewhere);
        let Some(memory) = &self.memory else {
            let foreign = field.foreign_replicas(only);
            return match elsewhere {
                Some(named) => Decision::not(Rule::SentinelElsewhere, vec![named]),
                None if !field.is_majority_visible() => Decision::not(Rule::Minority, field.down()),
                None if !foreign.is_empty() => Decision::not(Rule::Superseded, foreign),
                None => Decision::serve(only, Rule::OnlyMaster),
            };
        };
        // Replicas also follow an old master that restarts before they are told of the new one.
        let still_named = view.and_then(|view| view.named).filter(|(named, epoch)| {
            *named == memory.place && Some(*epoch) >= memory.epoch && is_elsewhere(named)
        });
        if let Some((named, _)) = still_named {
            return Decision::not(Rule::SentinelElsewhere, vec![named]);
        }
        // After a partition the backends come back one by one: a successor may be the next.
        let unseen = field.not_checked_since(self.returned.unwrap_or_default());
        let is_back = only == memory.place && field.is_incumbent_process();
        if is_back && unseen.is_empty() && elsewhere.is_none() {
            return Decision::serve(only, Rule::Returned);
        }
        if field.follows(memory.place, only) || field.is_followed_by_half(only) {
            return Decision::serve(only, Rule::Followers);
        }
        if only != memory.place {
            return Decision::not(Rule::LineageGap, vec![only, memory.place]);
        }
        if let Some(named) = elsewhere {
            return Decision::not(Rule::SentinelElsewhere, vec![named]);
        }
        if is_back {
            return Decision::not(Rule::Returning, unseen);
        }
        if field.others_are_its_replicas(only) {
            // What they said before may be from before a pause of this process itself.
            let since = self.returned.unwrap_or_default();
            return match field.others_not_checked_since(only, since) {
                unseen if unseen.is_empty() => Decision::serve(only, Rule::Restarted),
                unseen => Decision::not(Rule::Returning, unseen),
            };
        }
        Decision::not(Rule::Gone, field.down())
    }

    /// The backend that a quorum names with a config-epoch above that of the incumbent: what the
    /// Sentinels say lags behind a promotion for about a second.
    fn newer(&self, view: Option<&SentinelView>) -> Option<usize> {
        let (place, epoch) = view?.named?;
        let known = self.memory.as_ref()?.epoch?;
        (epoch > known).then_some(place)
    }

    fn newer_or_cold(&self, view: Option<&SentinelView>) -> Option<usize> {
        match self.memory {
            Some(_) => self.newer(view),
            None => view?.named.map(|(place, _)| place),
        }
    }
}
