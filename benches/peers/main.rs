//! What rolegate costs and how fast it is, beside HAProxy and nginx, on real Redis processes.
//! `cargo bench --bench peers -- --help` says how to choose.
//!
//! A proxy with one thread has the last core to itself, Redis and the load have the others. What
//! has as many threads as there are cores shares them with all else. The peers take turns in each
//! round, and ratios are those of a round, so that what is slower for a while is so for both sides.
//!
//! The load is made by this program, not by redis-benchmark, as both share a core with Redis on a
//! machine with two, and the cheaper one leaves the proxy to be the limit. Its own CPU for a request,
//! straight to Redis:
//!
//! | | this program | redis-benchmark |
//! |---|---|---|
//! | GET of 3 bytes, 50 clients | 6 µs | 12 µs |
//! | GET of 16 KiB, 20 clients | 8 µs | 18 µs |
//! | GET of 1 MiB, 4 clients | 180 µs | 380 µs |
//!
//! `--redis-benchmark` lets that make the load, as a check of this one.
//!
//! The CPU of a process is what the scheduler counted in nanoseconds, as ticks of 10 ms would want
//! longer runs. `other %` is what others took: of the core of a proxy with one thread, all that
//! neither the proxy nor idleness took; of all cores, what neither any process of the benchmark nor
//! idleness took.
#![allow(missing_docs, clippy::disallowed_types, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::allow_attributes_without_reason, unreachable_pub)]

mod agenda;
mod cases;
mod cleanup;
mod cores;
mod crowd;
mod fairness;
mod figures;
#[path = "../front.rs"]
#[allow(dead_code)]
mod front;
mod goals;
mod lab;
mod load;
mod meter;
mod peer;
mod redis_benchmark;
mod report;
mod session;
#[path = "../../tests/it/support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use serde_json::json;

use cases::Case;
use figures::{DISTURBED, Figures, Results, is_disturbed};
use lab::{CROWD, Lab};
use load::Window;
use peer::Peer;

/// Measures rolegate beside other proxies under the same load, and prints Markdown tables.
#[derive(Parser)]
#[command(
    override_usage = "cargo bench --bench peers -- [OPTIONS] [CASE...]",
    after_help = usage()
)]
struct Args {
    /// What runs (by default everything)
    #[arg(value_name = "CASE", hide_possible_values = true)]
    cases: Vec<Case>,
    /// How often each peer runs each case (by default 5 times)
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// One round of short runs, in less than two minutes: for a look, not for a verdict
    #[arg(long)]
    quick: bool,
    /// Let redis-benchmark make the load, where that can
    #[arg(long)]
    redis_benchmark: bool,
    /// Write all rounds there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Cargo gives it
    #[arg(long, hide = true)]
    bench: bool,
}

fn usage() -> String {
    let case = |case: &Case| format!("  {:<9} {}\n", case.name(), case.help());
    let cases: String = Case::value_variants().iter().map(case).collect();
    format!("Cases:\n{cases}")
}

fn main() {
    let mut args = Args::parse();
    let rounds = usize::from(args.rounds.unwrap_or(if args.quick { 1 } else { 5 }));
    if args.cases.is_empty() {
        args.cases = Case::value_variants().to_vec();
    }
    if args.redis_benchmark {
        args.cases.retain(|case| case.relays());
    }
    let (warm_up, length) = if args.quick { (150, 500) } else { (250, 1200) };
    let _folder = cleanup::begin();
    let [warm_up, length] = [warm_up, length].map(Duration::from_millis);
    let lab = Lab::new(Window { warm_up, length }, args.redis_benchmark);
    let again = if args.quick { 0 } else { 2 };
    let mut notes = BTreeSet::new();
    let results = measure(&lab, &args.cases, rounds, again, &mut notes);
    notes.insert("rolegate and HAProxy check every 100 ms, with a timeout of 500 ms and fall 2; nginx checks \
         nothing"
            .to_owned(),
    );
    if lab.crowd < CROWD {
        notes.insert(format!("the descriptors suffice for {} clients, not {CROWD}", lab.crowd));
    }
    let (disturbed, all) = results.disturbed();
    if disturbed > 0 {
        notes.insert(format!(
            "other work disturbed {disturbed} of {all} runs (`other %` over {DISTURBED})"
        ));
    }

    let machine = report::machine(&lab.cores);
    let command =
        env::args().skip(1).filter(|word| word != "--bench").collect::<Vec<_>>().join(" ");
    let command = format!("cargo bench --bench peers -- {command}");
    println!(
        "{}\n\n`{}`, {rounds} rounds\n",
        machine.join("  \n"),
        command.trim_end_matches(" -- ")
    );
    let (relays, others): (Vec<Case>, Vec<Case>) =
        args.cases.iter().partition(|case| case.relays());
    if !relays.is_empty() {
        println!("{}", report::medians(&results, &relays, relays[0].figures()));
        println!("requests/s / p99 / CPU:\n");
        println!(
            "{}",
            report::ratios(
                &results,
                &relays,
                &report::BESIDE_OTHERS,
                &["requests/s", "p99 ms", "CPU µs"]
            )
        );
    }
    for case in others {
        println!("{}", report::medians(&results, &[case], case.figures()));
        if case == Case::Fairness {
            println!("p99 beside : alone, beside the same without a proxy:\n");
            let (pairs, figure) = (&report::BESIDE_DIRECT, "p99 beside : alone");
            println!("{}", report::ratios(&results, &[case], pairs, &[figure]));
        }
    }
    // They are about this program's own load.
    if !args.redis_benchmark {
        println!("{}", goals::table(&results));
    }
    for note in &notes {
        println!("* {note}");
    }
    if let Some(file) = args.json {
        let all = json!({ "command": command, "machine": machine, "notes": notes, "runs": results.json() });
        fs::write(file, format!("{all:#}\n")).unwrap();
    }
}

/// All rounds. Who goes first changes from round to round. A disturbed run is done again, so many
/// times at the most.
fn measure(
    lab: &Lab,
    cases: &[Case],
    rounds: usize,
    again: usize,
    notes: &mut BTreeSet<String>,
) -> Results {
    let missing = |peer: &Peer| Some((*peer, peer.missing()?));
    let missing: BTreeMap<_, _> = Peer::ALL.iter().filter_map(missing).collect();
    for program in missing.values().collect::<BTreeSet<_>>() {
        notes.insert(format!("{program} is not installed, so it was not run"));
    }
    let mut results = Results::default();
    for round in 1..=rounds {
        for case in cases {
            let mut peers = case.peers();
            peers.retain(|peer| !missing.contains_key(peer));
            let first = round % peers.len().max(1);
            peers.rotate_left(first);
            for peer in peers {
                let name = format!("{}, {}", case.name(), peer.name());
                let began = Instant::now();
                let mut run = once(lab, *case, peer);
                for _ in 0..again {
                    if run.as_ref().is_ok_and(is_disturbed) {
                        run = once(lab, *case, peer);
                    }
                }
                let took = began.elapsed();
                match run {
                    Ok(figures) => {
                        eprintln!("round {round}, {name}: {figures:.3?}, {took:.1?}");
                        results.push(round, *case, peer, figures);
                    }
                    Err(why) => {
                        eprintln!("round {round}, {name}: failed: {why}");
                        notes.insert(format!("{name}: failed in round {round}: {why}"));
                    }
                }
            }
        }
    }
    results
}

/// An error says why there is nothing to compare.
fn once(lab: &Lab, case: Case, peer: Peer) -> Result<Figures, String> {
    let run = AssertUnwindSafe(|| case.run(peer, lab).map_err(|error| error.to_string()));
    panic::catch_unwind(run).unwrap_or_else(|_| Err("panicked".to_owned()))
}
