//! How fast a lost master is left, and what an idle session costs, on real Redis processes.
//!
//! `cargo bench --bench failover [-- ROUNDS]` prints a Markdown table, and fails where a median
//! misses its goal.
#![allow(missing_docs, clippy::disallowed_types, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::allow_attributes_without_reason)]

#[path = "../tests/it/support/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub)]
mod support;

use std::time::{Duration, Instant};

use support::{Client, Group, PASSWORD, Rolegate};

const IDLE: u64 = 1000;

fn main() {
    let rounds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(10);
    let mut missed = false;
    let mut milliseconds = |row: &str, goal: f64, measure: fn() -> Duration| {
        let mut took: Vec<_> = (0..rounds).map(|_| measure().as_secs_f64() * 1e3).collect();
        took.sort_by(f64::total_cmp);
        let (low, median, high) = (took[0], took[took.len() / 2], took[took.len() - 1]);
        println!("| {row} | {goal} ms | {low:.1} / {median:.1} / {high:.1} ms |");
        missed |= median > goal;
    };
    println!("| event | goal | min / median / max of {rounds} |\n|---|---|---|");
    milliseconds("kill -9 of the master to the idle client's reset", 20.0, killed);
    milliseconds("kill -9 of the master to the first refused new client", 20.0, refused);
    milliseconds("REPLICAOF on the master to the idle client's reset", 120.0, demoted);
    let (idle, total) = idle();
    println!("| memory of {IDLE} idle sessions | 4096 KiB | {idle} KiB (process: {total} KiB) |");
    missed |= idle > 4096;
    std::process::exit(missed.into());
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
    let at = Instant::now();
    control.call(&["REPLICAOF", "127.0.0.1", &group.nodes[1].port().to_string()]).unwrap();
    client.end();
    at.elapsed()
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
