//! Who leads failovers in the model: Sentinels, or an operator who acts like them.

use super::model::{Group, Link, Ms};

/// What is to be done at some time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Select,
    Promote(usize),
    /// The leader sees the promotion.
    Learn(usize),
    /// The others have heard of it.
    Agree,
    Repoint(usize),
    End,
}

pub(super) struct Actor {
    /// The master that the leader names, and its config-epoch.
    pub(super) named: usize,
    pub(super) epoch: u64,
    /// The same as a quorum says it.
    pub(super) agreed: (usize, u64),
    pub(super) failover: Option<Option<usize>>,
    bad: Option<Ms>,
    astray: Vec<Option<Ms>>,
    patience: Ms,
}

impl Actor {
    pub(super) fn new(size: usize, patience: Ms) -> Self {
        let (named, epoch, agreed) = (0, 1, (0, 1));
        Self { named, epoch, agreed, failover: None, bad: None, astray: vec![None; size], patience }
    }

    /// Begins a failover, and says what follows when.
    pub(super) fn fail_over(&mut self, rng: &mut fastrand::Rng) -> Option<(Ms, Act)> {
        self.failover.is_none().then(|| {
            self.failover = Some(None);
            (rng.u64(60..130), Act::Select)
        })
    }

    /// Looks at the group ten times a second.
    pub(super) fn tick(
        &mut self,
        now: Ms,
        group: &mut Group,
        rng: &mut fastrand::Rng,
    ) -> Option<(Ms, Act)> {
        if self.failover.is_some() {
            return None;
        }
        let named = &group.nodes[self.named];
        let answers = named.up && !named.frozen && !named.isolated && named.busy <= now;
        if !answers || !group.is_master(self.named) {
            if now >= *self.bad.get_or_insert(now) + self.patience {
                self.bad = None;
                return self.fail_over(rng);
            }
            return None;
        }
        self.bad = None;
        for place in group.places() {
            let wrong = place != self.named && group.nodes[place].follows != Some(self.named);
            if !wrong || !group.obeys(place, now) {
                self.astray[place] = None;
            } else if now >= *self.astray[place].get_or_insert(now) + 10_000 {
                group.follow(place, self.named, true);
            }
        }
        None
    }

    pub(super) fn act(
        &mut self,
        act: Act,
        now: Ms,
        group: &mut Group,
        rng: &mut fastrand::Rng,
    ) -> Vec<(Ms, Act)> {
        match act {
            Act::Select => {
                let fit = |place: &usize| {
                    let syncing = matches!(group.nodes[*place].link, Link::Syncing(_));
                    *place != self.named
                        && group.obeys(*place, now)
                        && !group.is_master(*place)
                        && !syncing
                };
                let fit: Vec<_> = group.places().filter(fit).collect();
                let Some(heir) = rng.choice(&fit) else {
                    return vec![(0, Act::End)];
                };
                self.failover = Some(Some(*heir));
                vec![(rng.u64(50..100), Act::Promote(*heir))]
            }
            Act::Promote(heir) if group.obeys(heir, now) => {
                group.promote(heir, true);
                let mut next = vec![(rng.u64(850..1000), Act::Learn(heir))];
                let others = group.places().filter(|place| ![heir, self.named].contains(place));
                next.extend(others.map(|place| (rng.u64(1000..2000), Act::Repoint(place))));
                next
            }
            Act::Learn(heir) if group.obeys(heir, now) && group.is_master(heir) => {
                self.named = heir;
                self.epoch += 1;
                vec![(rng.u64(60..100), Act::Agree), (rng.u64(1200..1500), Act::End)]
            }
            // It has died: the failover is given up after a while.
            Act::Promote(_) | Act::Learn(_) => vec![(3000, Act::End)],
            Act::Agree => {
                self.agreed = (self.named, self.epoch);
                Vec::new()
            }
            Act::Repoint(place) => {
                if self.failover.flatten() == Some(self.named) && group.obeys(place, now) {
                    group.follow(place, self.named, true);
                }
                Vec::new()
            }
            Act::End => {
                self.failover = None;
                Vec::new()
            }
        }
    }
}
