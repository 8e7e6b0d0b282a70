//! Everything at once, for long: clients of every kind while masters change, nodes die and stand
//! still, and configs are reloaded. Afterwards all is as it was before.

mod crowd;

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Signal, getrlimit};
use tempfile::tempdir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use self::crowd::{Crowd, connect, on_one_thread};
use crate::support::{
    Client, Group, Node, PASSWORD, Rolegate, config, eventually, free_port, process,
};

/// As many of them as the open files of this process allow, each of which takes so many.
fn as_many_as(wanted: usize, each: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    wanted.min(usize::try_from(limit).unwrap() / each)
}

/// What a rolegate holds that nobody uses.
#[derive(Debug)]
struct Quiet {
    descriptors: usize,
    watched: usize,
    threads: usize,
}

impl Quiet {
    /// The least of some looks: an answered request of the test itself may still be closing.
    fn least(rolegate: &Rolegate) -> Self {
        let looks: Vec<_> = (0..20)
            .map(|_| {
                thread::park_timeout(Duration::from_millis(10));
                Self::of(rolegate)
            })
            .collect();
        let least = |of: fn(&Self) -> usize| looks.iter().map(of).min().unwrap();
        Self {
            descriptors: least(|look| look.descriptors),
            watched: least(|look| look.watched),
            threads: least(|look| look.threads),
        }
    }

    fn of(rolegate: &Rolegate) -> Self {
        Self {
            descriptors: process::descriptors(rolegate.process()),
            watched: rolegate.watched_sockets().iter().sum(),
            threads: rolegate.threads(),
        }
    }

    /// Waits until it holds no more than that again.
    fn wait(&self, rolegate: &Rolegate) {
        let mut last = String::new();
        eventually("it holds no more than before", || {
            let now = Self::of(rolegate);
            let words = format!("{now:?}, before {self:?}");
            if words != last {
                println!("it holds {words}");
                last = words;
            }
            (now.descriptors <= self.descriptors
                && now.watched <= self.watched
                && now.threads <= self.threads)
                .then_some(())
        });
    }
}

/// The sum of the series whose lines begin so.
fn sum(metrics: &str, series: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(series));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Waits until nobody is in, and holds the books of all that ever came against each other.
fn check_books(rolegate: &Rolegate) -> f64 {
    // One look at all series takes a moment, in which a session may end.
    let metrics = eventually("nobody is in, and every session has ended once", || {
        let metrics = rolegate.get("/metrics").1;
        let in_use = ["listener_sessions{", "listener_held{", "worker_sessions{"];
        let is_empty = |name: &&str| sum(&metrics, &format!("rolegate_{name}")) == 0.0;
        let is_even = sum(&metrics, "rolegate_listener_sessions_total{")
            == sum(&metrics, "rolegate_sessions_closed_total{");
        (is_even && in_use.iter().all(is_empty)).then_some(metrics)
    });
    let came = sum(&metrics, "rolegate_listener_sessions_total{");
    assert_eq!(sum(&metrics, "rolegate_listener_sessions_total{listener=\"redis\"}"), {
        sum(&metrics, "rolegate_sessions_closed_total{listener=\"redis\"")
    });
    let defects = metrics.lines().filter(|line| line.contains(r#"reason="internal""#));
    assert!(defects.clone().all(|line| line.ends_with(" 0")), "{defects:?}");
    came
}

/// No panic, and nothing else that calls for somebody.
fn check_log(rolegate: &Rolegate) {
    let output = rolegate.output();
    let errors: Vec<_> =
        output.lines().filter(|line| line.contains(r#""level":"ERROR""#)).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// What happens to the nodes and to the config while clients come and go.
struct Storm {
    group: Group,
    master: usize,
    rolegate: Rolegate,
    base: String,
    /// Where a second listener accepts when there is one.
    second: SocketAddr,
    random: fastrand::Rng,
}

impl Storm {
    fn start(state_dir: &std::path::Path) -> Self {
        let group = Group::start(3);
        let base = group.config().replace("level: debug", "level: info");
        let base = base.replace("hold: { timeout: 0s }", "hold: { timeout: 5s }");
        let base = format!("{base}shutdown_timeout: 2s\nstate_dir: '{}'\n", state_dir.display());
        let rolegate = Rolegate::start_ready(&base);
        let seed = fastrand::u64(..);
        println!("the seed is {seed}");
        let second = ([127, 0, 0, 1], free_port()).into();
        let random = fastrand::Rng::with_seed(seed);
        Self { group, master: 0, rolegate, base, second, random }
    }

    fn pause(&mut self, least: u64, most: u64) {
        thread::park_timeout(Duration::from_millis(self.random.u64(least..most)));
    }

    /// One thing that happens.
    fn step(&mut self) {
        let kind = self.random.u8(..9);
        match kind {
            0 => self.promote_by_hand(),
            1 => self.kill_the_master(),
            2 => self.stop_the_master(true),
            3 => self.stop_the_master(false),
            4 => self.kill_a_replica(),
            5 => self.stop_a_replica(),
            6 => self.take_a_replica_away(),
            _ => self.change_config(),
        }
    }

    /// Some replica, and the other one.
    fn replicas(&mut self) -> [usize; 2] {
        let mut replicas = [(self.master + 1) % 3, (self.master + 2) % 3];
        if self.random.bool() {
            replicas.reverse();
        }
        replicas
    }

    fn nodes(&self, places: [usize; 2]) -> [&Node; 2] {
        places.map(|place| &self.group.nodes[place])
    }

    fn set_master(&mut self, place: usize) {
        self.master = place;
        self.wait_served();
    }

    fn wait_served(&self) {
        self.rolegate.wait_master(&format!("n{}", self.master));
    }

    fn promote_by_hand(&mut self) {
        let [heir, other] = self.replicas();
        let nodes = &self.group.nodes;
        nodes[heir].promote();
        nodes[self.master].follow(&nodes[heir]);
        nodes[other].follow(&nodes[heir]);
        self.set_master(heir);
    }

    fn kill_the_master(&mut self) {
        let [heir, other] = self.replicas();
        let old = self.master;
        self.group.nodes[old].kill();
        self.pause(10, 500);
        let [new, third] = self.nodes([heir, other]);
        new.promote();
        third.follow(new);
        self.set_master(heir);
        self.group.nodes[old].restart();
        self.group.nodes[old].follow(&self.group.nodes[heir]);
    }

    fn stop_the_master(&mut self, replaced: bool) {
        let [heir, other] = self.replicas();
        let old = self.master;
        self.group.nodes[old].freeze();
        self.pause(10, 1500);
        if replaced {
            let [new, third] = self.nodes([heir, other]);
            new.promote();
            third.follow(new);
            self.set_master(heir);
        }
        self.group.nodes[old].thaw();
        if replaced {
            self.group.nodes[old].follow(&self.group.nodes[heir]);
        }
        self.wait_served();
    }

    fn kill_a_replica(&mut self) {
        let [replica, _] = self.replicas();
        self.group.nodes[replica].kill();
        self.pause(10, 500);
        self.group.nodes[replica].restart();
        self.group.nodes[replica].follow(&self.group.nodes[self.master]);
    }

    fn stop_a_replica(&mut self) {
        let [replica, _] = self.replicas();
        self.group.nodes[replica].freeze();
        self.pause(10, 1500);
        self.group.nodes[replica].thaw();
    }

    fn take_a_replica_away(&mut self) {
        let [replica, _] = self.replicas();
        let backend = format!("n{replica}: '{}'", self.group.nodes[replica].address());
        let rest = self.base.replace(&format!("{backend}, "), "");
        let rest = rest.replace(&format!(", {backend}"), "");
        self.reload(&rest);
        self.pause(10, 500);
        self.change_config();
        self.wait_served();
    }

    fn change_config(&mut self) {
        let mut one_of = |choices: &[&'static str]| choices[self.random.usize(..choices.len())];
        let hold = one_of(&["timeout: 5s", "timeout: 500ms, max: 100", "timeout: 0s"]);
        let limits = one_of(&["", "max_connections: 400, ", "max_connections_per_source: 5, "]);
        let more_limits = one_of(&["", "accept_rate: 1000, ", "idle_timeout: 2s, "]);
        let interval = one_of(&["interval: 100ms", "interval: 50ms", "interval: 200ms"]);
        let timeout = one_of(&["timeout: 500ms", "timeout: 800ms"]);
        let spares = one_of(&["", "    preconnect: 20\n"]);
        let second = one_of(&["", "yes"]);
        let mut changed = self
            .base
            .replace("hold: { timeout: 5s }", &format!("{limits}{more_limits}hold: {{ {hold} }}"))
            .replace("interval: 100ms, timeout: 500ms", &format!("{interval}, {timeout}"))
            .replace("    check:", &format!("{spares}    check:"));
        if !second.is_empty() {
            let second = format!("  second: {{ bind: '{}', pool: main }}\n", self.second);
            changed = changed.replace("pools:", &format!("{second}pools:"));
        }
        self.reload(&changed);
    }

    fn reload(&self, config: &str) {
        assert!(self.rolegate.reload(config), "{:?}", self.rolegate.log("cannot reload"));
    }
}

/// Memory in KiB while the crowd is there, by the time at which it was taken.
#[derive(Default)]
struct Memory(Vec<(Duration, u64)>);

impl Memory {
    /// The most that there was in this part of the time.
    fn most(&self, part: std::ops::Range<u32>, parts: u32, time: Duration) -> u64 {
        let part = time * part.start / parts..time * part.end / parts;
        let taken = self.0.iter().filter(|(at, _)| part.contains(at)).map(|(_, memory)| *memory);
        taken.max().expect("it was taken often")
    }
}

fn soak(time: Duration) {
    let folder = tempdir().unwrap();
    let mut storm = Storm::start(folder.path());
    storm.wait_served();
    let quiet = Quiet::least(&storm.rolegate);
    let count = as_many_as(2000, 8);
    let crowd = Crowd::start(count, [storm.rolegate.address(), storm.second]);
    let (since, mut memory, mut steps) = (Instant::now(), Memory::default(), 0);
    while since.elapsed() < time {
        storm.step();
        steps += 1;
        assert!(storm.rolegate.is_running());
        for _ in 0..5 {
            storm.pause(100, 400);
            memory.0.push((since.elapsed(), storm.rolegate.memory()));
        }
    }
    let base = storm.base.clone();
    storm.reload(&base);
    let lives = crowd.stop();
    println!("{count} clients, {steps} things that happened, {lives:?}");
    let wrong = lives.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "what no client asked for: {wrong:?}");
    assert!(lives.good.load(Ordering::Relaxed) > lives.cut.load(Ordering::Relaxed) / 10);

    let came = check_books(&storm.rolegate);
    println!("{came} sessions");
    quiet.wait(&storm.rolegate);
    check_log(&storm.rolegate);
    let [early, late] = [(1..2, 4), (3..4, 4)].map(|(part, of)| memory.most(part, of, time));
    println!("{:?}", memory.0.iter().step_by(20).collect::<Vec<_>>());
    println!("{early} KiB at first, {late} KiB at last, {} KiB now", storm.rolegate.memory());
    assert!(late < early + early / 4 + 8192, "{early} KiB have become {late} KiB");
    check_limits(&storm);
    upgrade(storm, &quiet);
}

/// Nobody is counted who has gone: every limit lets in as many as it says.
fn check_limits(storm: &Storm) {
    let address = storm.rolegate.address();
    let mut inside: Vec<Client> = Vec::new();
    let mut let_in = |count: usize, reason: &str| {
        while inside.len() < count {
            inside.push(Client::login(address, PASSWORD).expect("there is room"));
        }
        let series =
            format!(r#"rolegate_listener_refused_total{{listener="redis",reason="{reason}"}}"#);
        let before = storm.rolegate.metric(&series);
        assert!(Client::login(address, PASSWORD).is_err(), "there is no room for more");
        assert_eq!(storm.rolegate.metric(&series), before + 1.0);
    };
    let limited = |keys: &str| storm.base.replace("pool: main,", &format!("pool: main, {keys},"));
    storm.reload(&limited("max_connections: 5"));
    let_in(5, "listener_max_connections");
    storm.reload(&format!("{}max_connections: 8\n", storm.base));
    let_in(8, "max_connections");
    drop(inside);
    check_books(&storm.rolegate);
    storm.reload(&limited("max_connections_per_source: 3"));
    let mut inside: Vec<Client> =
        (0..3).map(|_| Client::login(address, PASSWORD).unwrap()).collect();
    assert!(Client::login(address, PASSWORD).is_err());
    inside.clear();
    check_books(&storm.rolegate);
    storm.reload(&storm.base);
}

/// Another process takes over from one that has seen all this.
fn upgrade(mut storm: Storm, quiet: &Quiet) {
    let crowd = Crowd::start(as_many_as(200, 80), [storm.rolegate.address(), storm.second]);
    eventually("clients are there", || {
        let sessions = r#"rolegate_listener_sessions{listener="redis"}"#;
        (storm.rolegate.metric(sessions) > 10.0).then_some(())
    });
    let next = storm.rolegate.upgrade();
    storm.promote_by_hand();
    let lives = crowd.stop();
    assert!(lives.wrong.lock().unwrap().is_empty(), "{lives:?}");
    assert_eq!(storm.rolegate.wait_exit(), Some(0));
    check_books(&storm.rolegate);
    check_log(&storm.rolegate);
    eventually("the new process holds no more than the old one did", || {
        (process::descriptors(next) <= quiet.descriptors).then_some(())
    });
    let mut client = Client::login(storm.rolegate.address(), PASSWORD).unwrap();
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
    Rolegate::signal_successor(next, Signal::TERM);
}

#[test]
fn a_minute_of_everything_leaves_no_trace() {
    soak(Duration::from_secs(60));
}

#[test]
#[ignore = "takes an hour, or as many seconds as ROLEGATE_SOAK says"]
fn an_hour_of_everything_leaves_no_trace() {
    let seconds = std::env::var("ROLEGATE_SOAK").map_or(3600, |seconds| seconds.parse().unwrap());
    soak(Duration::from_secs(seconds));
}

/// What became of a client of a crowd.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Served,
    Refused,
    /// Neither; this is what it saw.
    Lost(String),
}

const PONG: [u8; 7] = *b"+PONG\r\n";

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

#[test]
fn twenty_thousand_clients_at_once_are_all_served_or_refused() {
    let arrive = as_many_as(20_000, 2);
    let served = arrive / 4;
    let node = Node::start(&["tcp-backlog 4096"]);
    let config = config(&[node.address()], None).replace("level: debug", "level: info");
    // A crowd overflows the queue of the node.
    let config = config.replace("    check:", "    connect_timeout: 20s\n    check:");
    let mut rolegate = Rolegate::start_ready(&format!("{config}max_connections: {served}\n"));
    let quiet = Quiet::least(&rolegate);
    let address = rolegate.address();
    let since = Instant::now();
    let fates = on_one_thread(async {
        // Those who are served stay until all know their fate.
        let (all_known, known) = watch::channel(false);
        let (fate, mut fates) = tokio::sync::mpsc::channel(arrive);
        let mut clients = JoinSet::new();
        for place in 0..arrive {
            let (fate, mut known) = (fate.clone(), known.clone());
            clients.spawn(async move {
                let life = async {
                    let mut client = connect(place, address).await?;
                    client.write_all(b"PING\r\n").await?;
                    let mut pong = [0; PONG.len()];
                    client.read_exact(&mut pong).await?;
                    Ok::<_, io::Error>((client, pong))
                };
                let lived = timeout(Duration::from_secs(60), life).await;
                let mine = match &lived {
                    Ok(Ok((_, PONG))) => Fate::Served,
                    // The RST may come before anything was asked.
                    Ok(Err(error)) if is_reset(error) => Fate::Refused,
                    lived => Fate::Lost(format!("{lived:?}")),
                };
                fate.send(mine).await.unwrap();
                let _ = known.wait_for(|known| *known).await;
                drop(lived);
            });
        }
        let mut all = Vec::new();
        while all.len() < arrive {
            all.push(fates.recv().await.unwrap());
        }
        all_known.send_replace(true);
        clients.join_all().await;
        all
    });
    let took = since.elapsed();
    for fate in &fates {
        assert!(!matches!(fate, Fate::Lost(_)), "{fate:?}");
    }
    let count = fates.iter().filter(|fate| **fate == Fate::Served).count();
    println!("{arrive} came in {took:?}, and {count} were served");
    assert_eq!(count, served);
    let came = check_books(&rolegate);
    let refused = r#"rolegate_listener_refused_total{listener="redis",reason="max_connections"}"#;
    assert_eq!((came, rolegate.metric(refused)), (served as f64, (arrive - served) as f64));
    quiet.wait(&rolegate);
    check_log(&rolegate);
    assert_eq!(rolegate.client().call(&["PING"]).unwrap().text(), "PONG");
    assert!(rolegate.is_running());
}
