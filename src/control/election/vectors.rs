//! Situations that real servers were seen in, and what must be served in each.
//!
//! A row is one look at all nodes: `A m f54d` is a master with that replid, `s` a replica, `<` comes
//! before a replid2, `-` is out of sight, `loading` reads its dataset, and `A'` is A as a new
//! process. A replica's link is up if it shows the replid of a master in the row, unless the row says. `@ B2` is what the
//! Sentinels say: B with config-epoch 2; `>C` is the replica that a failover promotes, `>?` one
//! that is not known yet. A row without it repeats the one before.
//!
//! An outcome is a node that is served, `~` for a hold, `-` for a refusal. Several letters are
//! alternatives.

use std::time::Duration;

use super::{DOUBT, Decision, Election, Member, Memory, SentinelView};
use crate::topology::{Answer, Failure, OnUnexplainedHeir, Role, State, VerdictKind};

struct Vector {
    name: &'static str,
    /// What the proxy saw before; the incumbent comes from here.
    before: &'static [&'static str],
    incumbent: char,
    now: &'static str,
    /// What may be served at all. What the Sentinels decide may be served, too.
    truth: &'static str,
    memory: &'static str,
    cold: &'static str,
    /// Empty where no Sentinel has a say.
    sentinel: &'static str,
}

const fn vector(
    name: &'static str,
    (incumbent, before): (char, &'static [&'static str]),
    (now, truth): (&'static str, &'static str),
    [memory, cold, sentinel]: [&'static str; 3],
) -> Vector {
    Vector { name, before, incumbent, now, truth, memory, cold, sentinel }
}

#[rustfmt::skip]
const VECTORS: &[Vector] = &[
    vector("1 steady",
        ('A', &["A m f54d | B s f54d | C s f54d @ A1"]),
        ("A m f54d | B s f54d | C s f54d", "A"),
        ["A", "A", "A"]),
    vector("2a A dead, nobody promoted",
        ('A', &["A m f54d | B s f54d | C s f54d @ A1"]),
        ("A - | B s f54d | C s f54d", "-"),
        ["-", "-", "-"]),
    vector("2b A dead, B promoted, C not repointed, the Sentinels' word lags",
        ('A', &["A m f54d | B s f54d | C s f54d @ A1", "A - | B s f54d | C s f54d"]),
        ("A - | B m 9cbd<f54d | C s f54d @ A1>B", "B"),
        ["B", "B", "B"]),
    vector("2c C follows B",
        ('A', &["A m f54d | B s f54d | C s f54d @ A1", "A - | B s f54d | C s f54d"]),
        ("A - | B m 9cbd<f54d | C s 9cbd<f54d @ B2", "B"),
        ["B", "B", "B"]),
    vector("3 A is back, empty",
        ('A', &["A m f54d | B s f54d | C s f54d @ A1", "A - | B s f54d | C s f54d"]),
        ("A' m 3a7e | B m 9cbd<f54d | C s 9cbd<f54d @ B2", "B"),
        ["B", "B", "B"]),
    vector("3b the same, B is the incumbent",
        ('B', &["A - | B m 9cbd<f54d | C s 9cbd<f54d @ B2"]),
        ("A' m 3a7e | B m 9cbd<f54d | C s 9cbd<f54d", "B"),
        ["B", "B", "B"]),
    vector("4 A is back from its RDB, both have one replid2",
        ('A', &["A m ad59 | B s ad59 | C s ad59 @ A1", "A - | B s ad59 | C s ad59"]),
        ("A' m 93b4<ad59 | B m 705b<ad59 | C s 705b<ad59 @ B2", "B"),
        ["B", "B", "B"]),
    vector("4 the same, B is the incumbent",
        ('B', &["A - | B m 705b<ad59 | C s 705b<ad59 @ B2"]),
        ("A' m 93b4<ad59 | B m 705b<ad59 | C s 705b<ad59", "B"),
        ["B", "B", "B"]),
    vector("5 A is back from its AOF",
        ('A', &["A m 89e4 | B s 89e4 | C s 89e4 @ A1", "A - | B s 89e4 | C s 89e4"]),
        ("A' m 0a21 | B m 6d4b<89e4 | C s 6d4b<89e4 @ B2", "B"),
        ["B", "B", "B"]),
    vector("5 the same, B is the incumbent",
        ('B', &["A - | B m 6d4b<89e4 | C s 6d4b<89e4 @ B2"]),
        ("A' m 0a21 | B m 6d4b<89e4 | C s 6d4b<89e4", "B"),
        ["B", "B", "B"]),
    vector("4b two nodes, A is back from its RDB",
        ('A', &["A m 89b4 | B s 89b4 @ A1", "A - | B s 89b4"]),
        ("A' m b6d5<89b4 | B m cfdd<89b4 @ B2", "B"),
        ["B", "-", "B"]),
    vector("6 A was stopped and goes on",
        ('A', &["A m 453d | B s 453d | C s 453d @ A1", "A - | B s 453d | C s 453d"]),
        ("A m 453d | B m c302<453d | C s c302<453d @ B2", "B"),
        ["B", "B", "B"]),
    vector("7 planned failover that names its heir, C still on A",
        ('A', &["A m 059b | B s 059b | C s 059b @ A1"]),
        ("A m 059b | B m 7b83<059b | C s 059b @ A1>B", "B~"),
        ["~", "~", "B"]),
    vector("7 the same, the heir is not known",
        ('A', &["A m 059b | B s 059b | C s 059b @ A1"]),
        ("A m 059b | B m 7b83<059b | C s 059b @ A1>?", "B~"),
        ["~", "~", "~"]),
    vector("7 the same, the Sentinels have not all answered",
        ('A', &["A m 059b | B s 059b | C s 059b @ A1 partly"]),
        ("A m 059b | B m 7b83<059b | C s 059b", "B~"),
        ["~", "~", "~"]),
    vector("8 planned failover, C follows B, A lives on",
        ('A', &["A m 059b | B s 059b | C s 059b @ A1"]),
        ("A m 059b | B m 7b83<059b | C s 7b83<059b @ B2", "B"),
        ["B", "B", "B"]),
    vector("9 two nodes, B promoted by hand, A lives on",
        ('A', &["A m e22c | B s e22c"]),
        ("A m e22c | B m e7ae<e22c", "B"),
        ["B", "B", ""]),
    vector("10 C detached by accident",
        ('A', &["A m 8d2b | B s 8d2b | C s 8d2b @ A1"]),
        ("A m 8d2b | B s 8d2b | C m fe41<8d2b", "A~"),
        ["~", "~", "A"]),
    vector("11 A dead, B and C promoted by hand",
        ('A', &["A m 078d | B s 078d | C s 078d @ A1", "A - | B s 078d | C s 078d"]),
        ("A - | B m 1769<078d | C m d25f<078d @ B2", "-"),
        ["-", "-", "B"]),
    vector("12 A lives, B and C promoted",
        ('A', &["A m fe48 | B s fe48 | C s fe48 @ A1"]),
        ("A m fe48 | B m 600c<fe48 | C m e12d<fe48 @ B2", "-"),
        ["-", "-", "B"]),
    vector("13 A died, B died, C promoted, A is back empty; B was seen",
        ('B', &["A m 11aa | B s 11aa | C s 11aa @ A1", "A - | B m 774f<11aa | C s 774f<11aa @ B2",
                "A - | B - | C s 774f<11aa"]),
        ("A' m 1c01 | B - | C m 09be<774f @ C3", "C"),
        ["C", "-", "C"]),
    vector("13b the same, B was never seen",
        ('A', &["A m 11aa | B s 11aa | C s 11aa @ A1", "A - | B - | C s 11aa"]),
        ("A' m 1c01 | B - | C m 09be<774f @ C3", "C-"),
        ["-", "-", "C"]),
    vector("13 A died, B died, C promoted, A is back from its RDB; B was seen",
        ('B', &["A m 2e0f | B s 2e0f | C s 2e0f @ A1", "A - | B m 5c57<2e0f | C s 5c57<2e0f @ B2",
                "A - | B - | C s 5c57<2e0f"]),
        ("A' m 854d<2e0f | B - | C m 6e8f<5c57 @ C3", "C"),
        ["C", "-", "C"]),
    vector("13b the same, B was never seen",
        ('A', &["A m 2e0f | B s 2e0f | C s 2e0f @ A1", "A - | B - | C s 2e0f"]),
        ("A' m 854d<2e0f | B - | C m 6e8f<5c57 @ C3", "C-"),
        ["-", "-", "C"]),
    vector("15 A restarted empty before any failover, all follow it",
        ('A', &["A m 15aa | B s 15aa | C s 15aa @ A1", "A - | B s 15aa | C s 15aa"]),
        ("A' m b805 | B s b805 | C s b805", "A"),
        ["A", "A", "A"]),
    vector("17 two failovers were missed",
        ('A', &["A m 17aa | B s 17aa | C s 17aa @ A1", "A - | B - | C -"]),
        ("A s 36e9<ac36 | B s 36e9<ac36 | C m 36e9<ac36 @ C3", "C"),
        ["C", "C", "C"]),
    vector("19 only the restarted old master is in sight",
        ('A', &["A m 19aa | B s 19aa | C s 19aa @ A1", "A - | B - | C -"]),
        ("A' m 3288 | B - | C - @ B2", "-~"),
        ["-~", "-", "-"]),
    vector("21 two masters without a lineage, B is the incumbent",
        ('B', &["A m 21aa | B s 21aa @ A1", "A - | B s 21aa", "A - | B m 21bb<21aa @ B2",
                "A - | B m d283"]),
        ("A m 8bca | B m d283", "B"),
        ["B", "-", "B"]),
    vector("22 B restarted with an old dump, C promoted",
        ('A', &["A m f222 | B s f222 | C s f222 @ A1", "A - | B - | C s f222"]),
        ("A - | B' s 5a38 | C m e7bf<f222 @ C2", "C"),
        ["C", "C", "C"]),
    vector("23 netsplit: A keeps D, B has C",
        ('A', &["A m 862f | B s 862f | C s 862f | D s 862f @ A1"]),
        ("A m 862f | B m b309<862f | C s b309<862f | D s 862f @ B2", "B-"),
        ["-", "B-", "B"]),
    // Without a memory, a loading node hides as much as one out of sight: half is no majority.
    vector("20 two nodes, A is loading and says master, B promoted",
        ('A', &["A m ea6f | B s ea6f @ A1", "A - | B s ea6f"]),
        ("A' loading | B m 2211<ea6f @ B2", "B"),
        ["B", "-", "B"]),
    // The rest was not observed; the first two were found by the simulation.
    vector("B is back, meanwhile C has gone back to the master before it",
        ('B', &["A m 24aa | B s 24aa | C s 24aa @ A1",
                "A m 24aa | B m 24bb<24aa | C s 24bb<24aa @ B2", "A m 24aa | B - | C s 24aa"]),
        ("A m 24aa | B m 24bb<24aa | C s 24aa", "B"),
        ["B", "~", "B"]),
    vector("C was detached by accident long ago, now D follows B, which is out of sight",
        ('A', &["A m 25aa | B s 25aa | C m 25cc<25aa | D s 25aa | E s 25aa @ A1",
                "A m 25aa | B - | C m 25cc<25aa | D s 25aa | E s 25aa",
                "A m 25aa | B - | C m 25cc<25aa | D s 25aa | E s 25aa",
                "A m 25aa | B - | C m 25cc<25aa | D s 25aa | E s 25aa"]),
        ("A m 25aa | B - | C m 25cc<25aa | D s 25bb<25aa up | E s 25aa @ B2>B", "-"),
        ["-", "-", "-"]),
    vector("the same, and only the Sentinels know of B",
        ('A', &["A m 25aa | B s 25aa | C m 25cc<25aa | D s 25aa | E s 25aa @ A1",
                "A m 25aa | B - | C m 25cc<25aa | D s 25aa | E s 25aa",
                "A m 25aa | B - | C m 25cc<25aa | D s 25aa | E s 25aa",
                "A m 25aa | B - | C m 25cc<25aa | D s 25aa | E s 25aa"]),
        ("A m 25aa | B - | C m 25cc<25aa | D s 25aa | E s 25aa @ B2", "A-"),
        ["A", "~", "-"]),
    vector("planned failover, C has left A and syncs with B",
        ('A', &["A m 26aa | B s 26aa | C s 26aa @ A1"]),
        ("A m 26aa | B m 26bb<26aa | C s 26aa down @ A1>B", "B"),
        ["B", "B", "B"]),
    vector("two failovers, and the Sentinels still name the first heir, which is back",
        ('C', &["A m 27aa | B s 27aa | C s 27aa @ A1", "A - | B m 27bb<27aa | C s 27bb<27aa @ A1>B",
                "A - | B - | C m 27cc<27bb @ A1"]),
        ("A - | B m 27bb<27aa | C m 27cc<27bb @ B2", "C"),
        ["C", "C", "C"]),
];

/// One row, read.
struct Look {
    states: Vec<State>,
    view: Option<SentinelView>,
}

impl Look {
    fn new(row: &str) -> Self {
        let (nodes, says) = row.split_once(" @ ").map_or((row, None), |(n, s)| (n, Some(s)));
        let mut states: Vec<_> = nodes.split(" | ").map(state).collect();
        let master = |state: &State| {
            state.answer().filter(|a| a.role == Role::Master).map(|a| a.replid.clone())
        };
        let masters: Vec<_> = states.iter().filter_map(master).collect();
        for state in &mut states {
            if let State::Up(answer) = state
                && answer.role == Role::Replica
            {
                answer.link_up.get_or_insert_with(|| masters.contains(&answer.replid));
            }
        }
        Self { states, view: says.map(view) }
    }
}

fn state(node: &str) -> State {
    let words: Vec<_> = node.split(' ').collect();
    let (role, ids) = match words[1..] {
        ["-"] => return State::Down(Failure::Timeout),
        ["loading"] => return State::Down(Failure::Loading),
        ["m", ids] => (Role::Master, ids),
        ["s", ids] | ["s", ids, "up" | "down"] => (Role::Replica, ids),
        _ => panic!("{node}"),
    };
    let (replid, replid2) = ids.split_once('<').map_or((ids, None), |(a, b)| (a, Some(b)));
    State::Up(Answer {
        address: ([127, 0, 0, 1], 6379).into(),
        role,
        run_id: words[0].to_owned(),
        replid: replid.to_owned(),
        replid2: replid2.map(str::to_owned),
        offset: None,
        link_up: words.get(3).map(|link| *link == "up"),
    })
}

fn view(says: &str) -> SentinelView {
    let (says, complete) = says.strip_suffix(" partly").map_or((says, true), |says| (says, false));
    let (named, heir) = says.split_once('>').map_or((says, None), |(named, h)| (named, Some(h)));
    let (name, epoch) = named.split_at(1);
    SentinelView {
        starting: false,
        named: Some(("ABCDE".find(name).unwrap(), epoch.parse().unwrap())),
        failover: heir.map(|heir| "ABCDE".find(heir)),
        complete_from: complete.then_some(Duration::ZERO),
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// A proxy that looks at one row a second.
struct Proxy {
    election: Election,
    now: Duration,
    view: Option<SentinelView>,
}

impl Proxy {
    fn new(memory: Option<Memory>) -> Self {
        let election = Election::new(OnUnexplainedHeir::Hold, memory);
        Self { election, now: SECOND, view: None }
    }

    fn after(vector: &Vector, sentinels: bool) -> Self {
        let mut proxy = Self::new(None);
        for row in vector.before {
            proxy.look(row, sentinels);
        }
        let memory = proxy.election.memory().unwrap();
        assert_eq!(memory.place, "ABCDE".find(vector.incumbent).unwrap(), "{}", vector.name);
        proxy
    }

    fn look(&mut self, row: &str, sentinels: bool) -> Decision {
        self.now += SECOND;
        self.look_again(row, sentinels)
    }

    /// Looks, without time going on; every check and question is as of now.
    fn look_again(&mut self, row: &str, sentinels: bool) -> Decision {
        let look = Look::new(row);
        if let Some(mut view) = look.view.filter(|_| sentinels) {
            view.complete_from = view.complete_from.and(Some(self.now));
            self.view = Some(view);
        } else if let Some(from) = self.view.as_mut().and_then(|v| v.complete_from.as_mut()) {
            *from = self.now;
        }
        self.decide(&look.states)
    }

    fn decide(&mut self, states: &[State]) -> Decision {
        let members: Vec<_> =
            states.iter().map(|state| Member { state, checked: self.now, fresh: true }).collect();
        self.election.decide(self.now, &members, self.view.as_ref())
    }
}

/// The outcome as one letter.
fn outcome(decision: &Decision) -> char {
    assert_eq!(decision.serve.is_some(), decision.rule.kind() == VerdictKind::Serve);
    match (decision.serve, decision.rule.kind()) {
        (Some(place), _) => char::from(b"ABCDE"[place]),
        (None, VerdictKind::Hold) => '~',
        (None, _) => '-',
    }
}

fn check(mode: &str, vector: &Vector, expected: &str, decision: &Decision) {
    let Vector { name, truth, sentinel, .. } = vector;
    let outcome = outcome(decision);
    let right = truth.contains(outcome) || mode.contains("sentinel") && sentinel.contains(outcome);
    assert!(decision.serve.is_none() || right, "{name}, {mode}: WRONG PICK {decision:?}");
    assert!(expected.contains(outcome), "{name}, {mode}: not {expected} but {decision:?}");
}

#[test]
fn a_proxy_that_remembers_decides_right() {
    for vector in VECTORS {
        let decision = Proxy::after(vector, false).look(vector.now, false);
        check("memory", vector, vector.memory, &decision);
    }
}

#[test]
fn a_proxy_that_has_just_started_decides_right() {
    for vector in VECTORS {
        let decision = Proxy::new(None).look(vector.now, false);
        check("cold", vector, vector.cold, &decision);
    }
}

#[test]
fn a_proxy_that_hears_sentinels_decides_right() {
    for vector in VECTORS.iter().filter(|vector| !vector.sentinel.is_empty()) {
        let decision = Proxy::after(vector, true).look(vector.now, true);
        check("sentinel", vector, vector.sentinel, &decision);
    }
}

/// One that starts, with a saved memory or with Sentinels, knows less and may refuse more.
#[test]
fn a_proxy_that_starts_never_picks_wrong() {
    for vector in VECTORS {
        for (sentinels, remembers) in [(false, true), (true, false), (true, true)] {
            let before = Proxy::after(vector, sentinels);
            let memory = before.election.memory().filter(|_| remembers);
            let mut proxy = Proxy { view: before.view.clone(), ..Proxy::new(memory.cloned()) };
            proxy.now = before.now;
            let decision = proxy.look(vector.now, sentinels);
            let mode = if sentinels { "sentinel, started" } else { "started" };
            check(mode, vector, "ABCDE~-", &decision);
        }
    }
}

fn named(name: &str) -> &'static Vector {
    VECTORS.iter().find(|vector| vector.name.starts_with(name)).unwrap()
}

#[test]
fn doubt_about_an_heir_ends() {
    let vector = named("10 ");
    let mut proxy = Proxy::after(vector, false);
    let mut decision = proxy.look(vector.now, false);
    let since = proxy.now;
    while proxy.now < since + DOUBT {
        assert_eq!((outcome(&decision), decision.wake), ('~', Some(since + DOUBT)));
        proxy.now += SECOND / 100;
        decision = proxy.look_again(vector.now, false);
    }
    assert_eq!(outcome(&decision), 'A');
}

#[test]
fn a_detached_replica_makes_no_gap_while_the_sentinels_are_asked() {
    let vector = named("10 ");
    let mut proxy = Proxy::after(vector, true);
    let states = Look::new(vector.now).states;
    proxy.now += SECOND / 2;
    // They answered half a second ago; they are asked again and answer 40 ms later.
    for _ in 0..40 {
        let decision = proxy.decide(&states);
        assert_eq!((outcome(&decision), decision.ask), ('A', true));
        proxy.now += SECOND / 1000;
    }
    for _ in 0..100 {
        let decision = proxy.look_again(vector.now, true);
        assert_eq!((outcome(&decision), decision.ask), ('A', false));
        proxy.now += SECOND / 100;
    }
}

#[test]
fn an_heir_is_not_served_on_the_word_of_sentinels_that_do_not_answer() {
    let vector = named("10 ");
    let mut proxy = Proxy::after(vector, true);
    let states = Look::new(vector.now).states;
    // The last answers are half a second old, and the question is never answered.
    proxy.now += SECOND / 2;
    let since = proxy.now;
    while proxy.now < since + DOUBT {
        let expected = if proxy.now < since + super::ASKING { 'A' } else { '~' };
        assert_eq!(outcome(&proxy.decide(&states)), expected, "after {:?}", proxy.now - since);
        proxy.now += SECOND / 100;
    }
    assert_eq!(outcome(&proxy.decide(&states)), 'A');
}

/// Replicas go back to an old master that restarts before they are told of the new one.
#[test]
fn a_stale_master_with_all_the_followers_is_not_served_against_the_sentinels() {
    let mut proxy = Proxy::new(None);
    for (row, expected) in [
        ("A m a | B s a | C s a | D s a @ A1", 'A'),
        ("A - | B s a | C s a | D s a", '-'),
        ("A - | B m b<a | C s a | D s a @ A1>B", 'B'),
        ("A' m c<a | B m b<a | C s c<a | D s c<a @ B2>B", 'B'),
        ("A' m c<a | B - | C s c<a | D s c<a", '-'),
        ("A' m c<a | B m b<a | C s c<a | D s c<a", 'B'),
    ] {
        let decision = proxy.look(row, true);
        assert_eq!(outcome(&decision), expected, "{row}: {decision:?}");
    }
}

/// What is served in the end of each row, after doubts have had their time.
fn story(policy: OnUnexplainedHeir, sentinels: bool, rows: &[&str]) -> String {
    let mut proxy = Proxy::new(None);
    proxy.election = Election::new(policy, None);
    let mut end = |row: &&str| {
        proxy.look(row, sentinels);
        let mut last = '?';
        for _ in 0..3 {
            last = outcome(&proxy.look_again(row, sentinels));
            proxy.now += SECOND;
        }
        last
    };
    rows.iter().map(&mut end).collect()
}

#[test]
fn a_stray_does_not_become_the_heir_when_the_master_stutters() {
    let rows = [
        "A m a | B s a | C s a @ A1",
        "A m a | B s a | C m c<a @ A1",
        "A - | B s a up | C m c<a @ A1",
        "A m a | B s a | C m c<a @ A1",
    ];
    for (policy, sentinels) in [
        (OnUnexplainedHeir::Hold, false),
        (OnUnexplainedHeir::Keep, false),
        (OnUnexplainedHeir::Hold, true),
    ] {
        assert_eq!(story(policy, sentinels, &rows), "AA-A", "{policy:?}, Sentinels: {sentinels}");
    }
}

#[test]
fn a_failover_that_goes_on_past_the_restart_of_the_master_is_followed() {
    for ids in ["a2", "a2<a"] {
        let rows = [
            "A m a | B s a | C s a @ A1",
            "A - | B s a | C s a @ A1>?",
            &format!("A' m {ids} | B s a | C s a @ A1>B"),
            &format!("A' m {ids} | B m b<a | C s a @ A1>B"),
            &format!("A' m {ids} | B m b<a | C s b<a @ B2"),
        ];
        for sentinels in [false, true] {
            assert_eq!(story(OnUnexplainedHeir::Hold, sentinels, &rows), "A-ABB", "{ids}");
        }
    }
}

#[test]
fn a_master_that_was_ignored_is_ignored_when_the_incumbent_is_back() {
    let rows =
        ["A m a | B s a", "A - | B m b<a", "A' m x | B m b<a", "A' m x | B -", "A' m x | B m b<a"];
    assert_eq!(story(OnUnexplainedHeir::Hold, false, &rows), "ABB-B");
    let mut proxy = Proxy::new(None);
    for row in &rows[..3] {
        proxy.look(row, false);
        proxy.look_again(row, false);
    }
    let mut restarted = Proxy::new(proxy.election.memory().cloned());
    assert_eq!(outcome(&restarted.look(rows[4], false)), 'B');
}

#[test]
fn where_nobody_follows_the_incumbent_calm_sentinels_may_name_whom_half_follow() {
    let rows = [
        "A m a | B s a | C s a @ A1",
        "A - | B s a | C m c<a @ A1>?",
        "A' m x | B s x | C m c<a @ A1",
    ];
    assert_eq!(story(OnUnexplainedHeir::Hold, true, &rows), "ACA");
    assert_eq!(story(OnUnexplainedHeir::Hold, false, &rows), "ACC");
}

#[test]
fn a_cold_start_does_not_serve_beside_a_replica_that_is_fed_from_out_of_sight() {
    for (row, expected) in [
        ("A m y<x | B - | C s b<a up", '-'),
        ("A m y | B - | C s b<a up", '-'),
        ("A m y<x | B - | C s b<a down", 'A'),
    ] {
        let mut proxy = Proxy::new(None);
        let mut look = Look::new(row);
        for state in &mut look.states {
            if let State::Up(answer) = state {
                answer.offset = Some(1000);
            }
        }
        proxy.now += SECOND;
        assert_eq!(outcome(&proxy.decide(&look.states)), expected, "{row}");
    }
}

#[test]
fn one_sentinel_that_claims_failover_after_failover_stops_the_master_once_a_minute() {
    let mut proxy = Proxy::new(None);
    proxy.look("A m a | B s a | C s a @ A1", true);
    let held = (0..600).filter(|n| {
        proxy.now += SECOND / 10;
        let heir = ["B", "B", "C", "C", "B", ""][n % 6];
        let row = match heir {
            "" => "A m a | B s a | C s a @ A1".to_owned(),
            heir => format!("A m a | B s a | C s a @ A1>{heir}"),
        };
        outcome(&proxy.look_again(&row, true)) == '~'
    });
    let held = held.count();
    assert!((1..=5).contains(&held), "{held} of 600 looks");
}
