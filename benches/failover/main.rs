//! What losing a master costs the clients of rolegate, and beside it those of HAProxy, on real
//! Redis processes. `cargo bench --bench failover -- --help` says how to choose.
#![allow(missing_docs, clippy::disallowed_types, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::allow_attributes_without_reason, unreachable_pub)]

mod basics;
#[path = "../front.rs"]
#[allow(dead_code)]
mod front;
mod lab;
mod outcome;
mod scenarios;
#[path = "../../tests/it/support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;
mod writers;

use std::{panic, process, thread, time::Duration};

use clap::{Parser, ValueEnum};

use front::Haproxy;
use lab::enter_namespace;
use outcome::Outcome;
use scenarios::Scenario;

const EXPLAINED: &str = "
In every scenario five clients write through each proxy: four keep their connection (one of them
waits 60 s for a reply, the others 2 s), one connects anew for each write. A is the master, B and
C are its replicas, and three Sentinels with down-after 1000 promote B. The columns share each event.

  gap       longest time between two acks of a client, in ms, min / median / max of the rounds
  lost      acked writes that the last master does not have, in the worst round
  stale     lost writes that were acked after B was promoted
  late      lost writes that were acked later than 40 ms after that

The exit code is 1 when a round of rolegate misses the goal of a scenario, or the median of a row
of `basics` misses its goal.";

/// Measures what losing a master costs, and prints Markdown tables.
#[derive(Parser)]
#[command(
    override_usage = "cargo bench --bench failover -- [--no-haproxy] [ROUNDS] [SCENARIO...]",
    after_help = usage()
)]
struct Args {
    /// How often each runs (by default 3 times, and `basics` 10 times), and what runs (by default
    /// everything, which takes 7 minutes)
    #[arg(value_name = "ROUNDS or SCENARIO", value_parser = word)]
    words: Vec<Word>,
    /// Measure rolegate alone, also where HAProxy is installed
    #[arg(long)]
    no_haproxy: bool,
    /// Cargo gives it
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, PartialEq)]
enum Word {
    Rounds(usize),
    Basics,
    Scenario(Scenario),
}

fn usage() -> String {
    let mut text =
        "Scenarios:\n  basics     how fast a lost master is left; idle memory\n".to_owned();
    for value in Scenario::value_variants().iter().filter_map(Scenario::to_possible_value) {
        let help = value.get_help().map(ToString::to_string).unwrap_or_default();
        text += &format!("  {:<10} {help}\n", value.get_name());
    }
    text + EXPLAINED
}

fn word(text: &str) -> Result<Word, String> {
    match text.parse() {
        Ok(0) => Err("at least one round".to_owned()),
        Ok(rounds) => Ok(Word::Rounds(rounds)),
        Err(_) if text == "basics" => Ok(Word::Basics),
        Err(_) => match Scenario::from_str(text, false) {
            Ok(scenario) => Ok(Word::Scenario(scenario)),
            Err(_) => Err("--help has the names".to_owned()),
        },
    }
}

fn main() {
    let Args { mut words, no_haproxy, .. } = Args::parse();
    let rounds = words.iter().find_map(|word| match word {
        Word::Rounds(rounds) => Some(*rounds),
        _ => None,
    });
    words.retain(|word| !matches!(word, Word::Rounds(_)));
    if words.is_empty() {
        words.push(Word::Basics);
        words.extend(Scenario::value_variants().iter().copied().map(Word::Scenario));
    }
    let namespace = match words.contains(&Word::Scenario(Scenario::Asym)) {
        true => enter_namespace(),
        false => Ok(()),
    };

    let mut missed = Vec::new();
    if words.contains(&Word::Basics) {
        missed.extend(basics::run(rounds.unwrap_or(10)));
        println!();
    }
    let haproxy = match (no_haproxy, Haproxy::is_installed()) {
        (true, _) => Err("not run"),
        (false, false) => Err("not installed"),
        (false, true) => Ok(()),
    };
    let rounds = rounds.unwrap_or(3);
    let mut header = Some(format!(
        "| scenario | goal | promotion: min / median / max of {rounds}, ms | rolegate | haproxy-tuned |\n\
         |---|---|---|---|---|"
    ));
    for word in words {
        let Word::Scenario(scenario) = word else { continue };
        if let Some(header) = header.take() {
            println!("{header}");
        }
        let (name, goal) = (scenario.name(), scenario.goal());
        if let (Scenario::Asym, Err(why)) = (scenario, &namespace) {
            println!("| {name} | {goal} | | skipped: {why} | |");
            continue;
        }
        let outcomes = play(scenario, rounds, haproxy.is_ok(), &mut missed);
        let column = |name: &str| -> Vec<&Outcome> {
            outcomes.iter().filter(|outcome| outcome.column == name).collect()
        };
        let [rolegate, other] = ["rolegate", "haproxy-tuned"].map(column);
        let promoted: Option<Vec<_>> = rolegate.iter().map(|outcome| outcome.promoted).collect();
        println!(
            "| {name} | {goal} | {} | {} | {} |",
            spread(promoted.unwrap_or_default()),
            cell(&rolegate, scenario),
            haproxy.map_or_else(str::to_owned, |()| cell(&other, scenario)),
        );
    }
    for miss in &missed {
        eprintln!("missed: {miss}");
    }
    process::exit((!missed.is_empty()).into());
}

/// All rounds of a scenario. What misses its goal is added to the list.
fn play(
    scenario: Scenario,
    rounds: usize,
    haproxy: bool,
    missed: &mut Vec<String>,
) -> Vec<Outcome> {
    let name = scenario.name();
    let mut outcomes = Vec::new();
    let mut void = 0;
    let mut round = 1;
    while round <= rounds {
        let result = panic::catch_unwind(|| scenario.run(haproxy));
        let results = match result.unwrap_or_else(|_| Err("panicked".to_owned())) {
            Ok(results) => results,
            Err(why) => {
                eprintln!("{name}, round {round}: void: {why}");
                void += 1;
                if void > 2 {
                    missed.push(format!("{name}: too many void rounds"));
                    break;
                }
                continue;
            }
        };
        for mut outcome in results {
            let log = outcome.log.take();
            eprintln!("{name}, round {round}: {outcome}");
            let misses = scenario.misses(&outcome).join("; ");
            if outcome.column == "rolegate" && !misses.is_empty() {
                eprintln!("{}", log.unwrap_or_default());
                missed.push(format!("{name}, round {round}: {misses}"));
            }
            outcomes.push(outcome);
        }
        round += 1;
    }
    outcomes
}

fn cell(outcomes: &[&Outcome], scenario: Scenario) -> String {
    let worst = |count: fn(&Outcome) -> usize| outcomes.iter().map(|o| count(o)).max().unwrap_or(0);
    let mut cell = format!(
        "gap {}; churn {}; lost {}",
        spread(outcomes.iter().map(|outcome| outcome.gap).collect()),
        spread(outcomes.iter().map(|outcome| outcome.churn).collect()),
        worst(|outcome| outcome.lost)
    );
    if worst(|outcome| outcome.lost) > 0 && scenario != Scenario::Detach {
        cell += &format!(", stale {}", worst(|outcome| outcome.stale));
    }
    if scenario == Scenario::Asym {
        cell += &format!(", late {}", worst(|outcome| outcome.late));
    }
    cell
}

/// Min, median and max in milliseconds; where there is only one, just that.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let mut ms = times.iter().map(|time| time.as_millis());
    match times.len() {
        0 => String::new(),
        1 => ms.next().unwrap().to_string(),
        count => {
            let [low, median, high] = [0, count / 2, count - 1].map(|i| times[i].as_millis());
            format!("{low} / {median} / {high}")
        }
    }
}

/// Lets time pass where time itself is what is meant: a pace, or a part of a scenario.
#[allow(clippy::disallowed_methods)]
fn pause(time: Duration) {
    thread::sleep(time);
}
