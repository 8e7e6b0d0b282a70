//! A proxy's election next to a model of a group to which everything happens, in simulated time.
//!
//! `ROLEGATE_SEED=7 cargo test --lib simulation -- --nocapture` replays one seed, with its log.
//! `ROLEGATE_SEEDS=10000` runs as many.

mod actor;
mod judge;
mod model;
mod proxy;
mod trouble;

use std::{collections::BTreeMap, env, time::Duration};

use fastrand::Rng;

use self::{
    actor::{Act, Actor},
    model::{Group, Ms},
    proxy::{Eye, eyes},
    trouble::Mend,
};
use super::{Decision, Election, SentinelView};
use crate::{control::health::Observation, topology::OnUnexplainedHeir};

const SEEDS: u64 = 300;
const TIMEOUT: Ms = 300;
const FALL: u32 = 2;
/// A fact that is in sight for so long is known: a check that began before it may still time out.
const KNOWN: Ms = TIMEOUT + 100 + 30;
const LIVE: Ms = 3000;

enum Event {
    Check(usize),
    Sample(usize, Ms),
    Ended { place: usize, began: Ms, sampled: Ms, found: Observation },
    NodeTick(usize),
    ActorTick,
    Act(Act),
    Mend(Mend),
    Ask,
    Said { asked: Option<Ms>, view: SentinelView },
    Unheard(u64),
    Wake,
}

/// What the proxy hears of the Sentinels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    All,
    /// A quorum, without the one that leads.
    NoLeader,
    None,
}

struct Sim {
    seed: u64,
    trace: bool,
    rng: Rng,
    now: Ms,
    queue: BTreeMap<(Ms, u64), Event>,
    count: u64,
    group: Group,
    actor: Actor,
    policy: OnUnexplainedHeir,
    election: Election,
    /// Gets the same, and must say the same.
    twin: Election,
    eyes: Vec<Eye>,
    view: Option<SentinelView>,
    reach: Reach,
    last: Decision,
    woken: Option<Duration>,
    /// Since when a master, its successor and the follower of that are as they are, and in sight.
    succeeded: BTreeMap<[usize; 3], Ms>,
    /// Masters that were served, with the replid that each had then and the one it came from.
    served: Vec<(usize, u64, u64)>,
    /// The master that must be served from now on.
    due: Option<usize>,
    acks: u64,
}

fn time(ms: Ms) -> Duration {
    Duration::from_millis(ms)
}

impl Sim {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let size = rng.usize(2..=5);
        let policies =
            [OnUnexplainedHeir::Hold, OnUnexplainedHeir::Keep, OnUnexplainedHeir::Follow];
        let policy = policies[rng.usize(..3).min(rng.usize(..3))];
        let patience = rng.u64(1000..3000);
        let view = rng.bool().then(|| SentinelView { starting: true, ..SentinelView::default() });
        let mut sim = Self {
            seed,
            trace,
            now: 0,
            queue: BTreeMap::new(),
            count: 0,
            group: Group::new(size),
            actor: Actor::new(size, patience),
            policy,
            election: Election::new(policy, None),
            twin: Election::new(policy, None),
            eyes: eyes(size),
            view,
            reach: Reach::All,
            last: Decision::starting(),
            woken: None,
            succeeded: BTreeMap::new(),
            served: Vec::new(),
            due: None,
            acks: 0,
            rng,
        };
        let sentinels = if sim.view.is_some() { "with" } else { "without" };
        sim.log(|_| format!("{size} nodes, {policy:?}, {sentinels} Sentinels"));
        for place in 0..size {
            sim.after(0, Event::Check(place));
            sim.after(0, Event::NodeTick(place));
        }
        sim.after(0, Event::ActorTick);
        sim.after(0, Event::Ask);
        sim
    }

    fn log(&self, words: impl FnOnce(&Self) -> String) {
        if self.trace {
            println!("{:>9.3} {}", time(self.now).as_secs_f64(), words(self));
        }
    }

    fn fail(&self, words: &str) -> ! {
        let Self { seed, now, last, view, group, .. } = self;
        let states: Vec<_> = self.eyes.iter().map(|eye| eye.health.state()).collect();
        panic!(
            "seed {seed} at {now} ms: {words}\n{last:?}\n{view:?}\n{:?}\n{:#?}\n{states:#?}",
            self.election.memory(),
            group.nodes,
        );
    }

    fn after(&mut self, wait: Ms, event: Event) {
        self.count += 1;
        self.queue.insert((self.now + wait, self.count), event);
    }

    fn run_for(&mut self, span: Ms) {
        let end = self.now + span;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((now, _), event) = entry.remove_entry();
            self.now = now;
            self.handle(event);
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Check(place) => {
                let wait = self.rng.u64(0..3);
                self.after(wait, Event::Sample(place, self.now));
            }
            Event::Sample(place, began) => self.sample(place, began),
            Event::Ended { place, began, sampled, found } => {
                self.ended(place, began, sampled, found);
            }
            Event::NodeTick(place) => {
                let before = self.group.nodes[place].link;
                self.group.tick(place, self.now, &mut self.rng);
                if before != self.group.nodes[place].link {
                    self.log(|sim| format!("node {place}: {:?}", sim.group.nodes[place]));
                }
                let wait = self.rng.u64(20..100);
                self.after(wait, Event::NodeTick(place));
                self.note();
            }
            Event::ActorTick => {
                let next = self.actor.tick(self.now, &mut self.group, &mut self.rng);
                self.plan(next);
                self.after(100, Event::ActorTick);
            }
            Event::Act(act) => self.act(act),
            Event::Mend(mend) => self.mend(mend),
            Event::Ask => {
                self.ask();
                self.after(1000, Event::Ask);
            }
            Event::Said { asked, view } => self.hear(asked, view),
            Event::Unheard(count) => {
                if self.reach == Reach::None && self.view.is_some() && count <= self.count {
                    self.view = Some(SentinelView::default());
                    self.decide();
                }
            }
            Event::Wake => self.decide(),
        }
    }

    // What the nodes and the Sentinels do.

    fn plan(&mut self, next: impl IntoIterator<Item = (Ms, Act)>) {
        for (wait, act) in next {
            self.after(wait, Event::Act(act));
        }
    }

    fn act(&mut self, act: Act) {
        let commanded = match act {
            Act::Promote(place) | Act::Repoint(place) => Some(place),
            _ => None,
        };
        let next = self.actor.act(act, self.now, &mut self.group, &mut self.rng);
        self.log(|sim| format!("{act:?}, {:?} named {:?}", sim.actor.failover, sim.actor.agreed));
        self.plan(next);
        // Sentinel cuts the connections of a node that it commands.
        if let Some(place) = commanded.filter(|_| self.rng.bool()) {
            self.eyes[place].link = self.eyes[place].link.map(|_| 0);
        }
        // An event may get lost.
        if self.rng.u8(..5) > 0 {
            self.say(None);
        }
        self.note();
    }

    fn ask(&mut self) {
        if self.view.is_some() && self.reach != Reach::None {
            self.say(Some(self.now));
        }
    }

    /// The Sentinels say what they think now; `asked` unless by themselves.
    fn say(&mut self, asked: Option<Ms>) {
        if self.view.is_none() || self.reach == Reach::None {
            return;
        }
        let failover = self.actor.failover.filter(|_| self.reach == Reach::All);
        let view =
            SentinelView { named: Some(self.actor.agreed), failover, ..SentinelView::default() };
        let wait = self.rng.u64(1..10);
        self.after(wait, Event::Said { asked, view });
    }

    fn hear(&mut self, asked: Option<Ms>, mut view: SentinelView) {
        let Some(before) = self.view.take() else {
            return;
        };
        if asked.is_some() && view.failover.is_some_and(|heir| heir.is_some()) {
            // Only events name the heir.
            view.failover = Some(before.failover.flatten());
        }
        let from = if asked.is_some() { asked.map(time) } else { before.complete_from };
        view.complete_from = from.max(before.complete_from).filter(|_| self.reach == Reach::All);
        self.view = Some(view);
        self.decide();
    }

    /// The master, if the whole group and the Sentinels agree on it and all is in sight.
    fn agreed(&self) -> Option<usize> {
        let group = &self.group;
        let mut masters = group.places().filter(|place| group.is_master(*place));
        let master = masters.next()?;
        let sane = |place: usize| {
            let node = &group.nodes[place];
            let follows = node.follows == Some(master) && group.is_fed(place, master);
            group.is_visible(place, self.now) && !node.isolated && (place == master || follows)
        };
        let quiet = self.actor.failover.is_none()
            && self.actor.agreed.0 == master
            && self.reach == Reach::All;
        (group.places().all(sane) && masters.next().is_none())
            .then_some(master)
            .filter(|_| self.view.is_none() || quiet)
    }

    /// Waits until all agree, and some time more in which nothing but the master may be served.
    fn settle(&mut self) {
        let deadline = self.now + 90_000;
        let mut since = None;
        while self.now < deadline {
            let agreed = self.agreed();
            if since.map(|(master, _)| master) != agreed {
                since = agreed.map(|master| (master, self.now));
                self.due = None;
                self.log(|_| format!("all agree on {agreed:?}"));
            }
            if let Some((master, since)) = since {
                if self.now >= since + LIVE && self.due.is_none() {
                    self.due = Some(master);
                    if self.last.serve != Some(master) {
                        self.fail(&format!("{master} is the master for long and not served"));
                    }
                }
                if self.now >= since + LIVE + 1500 {
                    self.due = None;
                    return;
                }
            }
            self.run_for(if self.due.is_some() { 1 } else { 20 });
        }
        self.fail("the model never settles");
    }
}

fn run(seed: u64, trace: bool) -> u64 {
    let mut sim = Sim::new(seed, trace);
    sim.settle();
    for _ in 0..3 {
        for _ in 0..sim.rng.u32(1..8) {
            sim.disturb();
            let span = if sim.rng.bool() { 300 } else { 4000 };
            let span = sim.rng.u64(0..span);
            sim.run_for(span);
        }
        sim.heal();
        sim.settle();
    }
    sim.acks
}

#[test]
fn nothing_makes_it_serve_a_wrong_master_or_stay_without_one() {
    if let Ok(seed) = env::var("ROLEGATE_SEED") {
        run(seed.parse().unwrap(), true);
        return;
    }
    let seeds = env::var("ROLEGATE_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    let acks: u64 = (0..seeds).map(|seed| run(seed, false)).sum();
    assert!(acks > seeds * 100, "{acks}");
}
