//! How fast a lost master is left, and what an idle session costs.

use std::{
    num::NonZero,
    thread,
    time::{Duration, Instant},
};

use crate::support::{Client, Group, PASSWORD, Rolegate, config_of_pools};

const IDLE: u64 = 1000;
const POOLS: usize = 100;

/// Prints the table, and tells which rows miss their goal.
pub fn run(rounds: usize) -> Vec<String> {
    let mut missed = Vec::new();
    let mut milliseconds = |row: &str, goal: f64, measure: fn() -> Duration| {
        let mut took: Vec<_> = (0..rounds).map(|_| measure().as_secs_f64() * 1e3).collect();
        took.sort_by(f64::total_cmp);
        let (low, median, high) = (took[0], took[took.len() / 2], took[took.len() - 1]);
        println!("| {row} | {goal} ms | {low:.1} / {median:.1} / {high:.1} ms |");
        if median > goal {
            missed.push(format!("basics: {row}: {median:.1} ms"));
        }
    };
    println!("| event | goal | min / median / max of {rounds} |\n|---|---|---|");
    milliseconds("kill -9 of the master to the idle client's reset", 20.0, killed);
    milliseconds("kill -9 of the master to the first refused new client", 20.0, refused);
    milliseconds("REPLICAOF on the master to the idle client's reset", 120.0, demoted);
    milliseconds("the same while all workers are saturated", 150.0, demoted_under_load);
    let (share, check) = many_pools();
    println!(
        "| {POOLS} pools of 3 backends, a check of each every 100 ms | 10 % of a core | {share:.1} % ({check:.0} µs a check) |"
    );
    if share > 10.0 {
        missed.push(format!("basics: {POOLS} pools: {share:.1} % of a core"));
    }
    let (idle, total) = idle();
    println!("| memory of {IDLE} idle sessions | 1536 KiB | {idle} KiB (process: {total} KiB) |");
    if idle > 1536 {
        missed.push(format!("basics: memory of {IDLE} idle sessions: {idle} KiB"));
    }
    missed
}

fn start() -> (Group, Rolegate) {
    let group = Group::start(2);
    let rolegate = Rolegate::start_ready(&group.config().replace("level: debug", "level: info"));
    (group, rolegate)
}

fn login(rolegate: &Rolegate) -> Client {
    Client::login(rolegate.address(), PASSWORD).unwrap()
}

fn killed() -> Duration {
    let (mut group, rolegate) = start();
    let mut client = login(&rolegate);
    let at = group.nodes[0].kill();
    client.end();
    at.elapsed()
}

fn refused() -> Duration {
    let (mut group, rolegate) = start();
    let at = group.nodes[0].kill();
    while Client::login(rolegate.address(), PASSWORD).is_ok() {}
    at.elapsed()
}

fn demoted() -> Duration {
    let (group, rolegate) = start();
    let mut client = login(&rolegate);
    let mut control = group.nodes[0].client();
    // Checks have the pace of peace then, and any phase.
    thread::park_timeout(Duration::from_millis(fastrand::u64(300..400)));
    let at = Instant::now();
    control.call(&["REPLICAOF", "127.0.0.1", &group.nodes[1].port().to_string()]).unwrap();
    client.end();
    at.elapsed()
}

/// The clients of another pool keep every worker busy all the time.
fn demoted_under_load() -> Duration {
    let groups = [Group::start(1), Group::start(2)];
    let rolegate = Rolegate::start_ready(&config_of_pools(groups.iter()));
    let login = |place| Client::login(rolegate.address_of(place), PASSWORD).unwrap();
    let flood = |_| {
        let mut client = login(0);
        let writer = client.flood(&["PING"]);
        let reader = thread::spawn(move || _ = client.drain());
        [writer, reader]
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let floods: Vec<_> = (0..2 * workers).flat_map(flood).collect();
    let mut client = login(1);
    let mut control = groups[1].nodes[0].client();
    // The queues fill, and the checks have any phase.
    thread::park_timeout(Duration::from_millis(fastrand::u64(300..400)));
    let at = Instant::now();
    let port = groups[1].nodes[1].port().to_string();
    control.call(&["REPLICAOF", "127.0.0.1", &port]).unwrap();
    client.end();
    let took = at.elapsed();
    drop(rolegate);
    for thread in floods {
        thread.join().unwrap();
    }
    took
}

/// The share of a core that checks cost in peace, in percent, and the microseconds of one.
fn many_pools() -> (f64, f64) {
    let group = Group::start(3);
    let rolegate = Rolegate::start_ready(&config_of_pools((0..POOLS).map(|_| &group)));
    let checks = || {
        let text = rolegate.get("/metrics").1;
        let counts =
            text.lines().filter(|l| l.starts_with("rolegate_check_duration_seconds_count"));
        counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    thread::park_timeout(Duration::from_secs(2));
    let (before, cpu, since) = (checks(), rolegate.cpu(), Instant::now());
    thread::park_timeout(Duration::from_secs(5));
    let (spent, took) = ((rolegate.cpu() - cpu).as_secs_f64(), since.elapsed().as_secs_f64());
    let checked = checks() - before;
    (spent / took * 100.0, spent / checked * 1e6)
}

fn idle() -> (u64, u64) {
    let (_group, rolegate) = start();
    let warm: Vec<_> = (0..20).map(|_| login(&rolegate)).collect();
    let before = rolegate.memory();
    let idle: Vec<_> = (0..IDLE).map(|_| login(&rolegate)).collect();
    let after = rolegate.memory();
    drop((warm, idle));
    (after.saturating_sub(before), after)
}
