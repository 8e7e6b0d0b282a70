//! The tables, and what they were measured on.

use std::{fs, process::Command};

use crate::{
    cases::Case,
    cores::{Cores, Place},
    figures::Results,
    peer::Peer,
};

/// Absolute values of these cases, medians over the rounds.
pub fn medians(results: &Results, cases: &[Case], names: &[&'static str]) -> String {
    let mut table = format!("| case | peer | {} |\n", names.join(" | "));
    table += &format!("|---|---|{}\n", "---|".repeat(names.len()));
    for case in cases {
        for peer in case.peers().into_iter().filter(|peer| results.has(*case, *peer)) {
            let cell = |name: &&'static str| {
                results.median(*case, peer, name).map_or_else(String::new, number)
            };
            let cells: Vec<_> = names.iter().map(cell).collect();
            table += &format!("| {} | {} | {} |\n", case.name(), peer.name(), cells.join(" | "));
        }
    }
    table
}

/// rolegate beside the others.
pub const BESIDE_OTHERS: [[Peer; 2]; 4] = [
    [Peer::Rolegate1, Peer::Haproxy1],
    [Peer::Rolegate1, Peer::Splice1],
    [Peer::Rolegate1, Peer::Nginx1],
    [Peer::RolegateAll, Peer::HaproxyAll],
];

/// The proxies beside no proxy.
pub const BESIDE_DIRECT: [[Peer; 2]; 3] =
    [[Peer::Rolegate1, Peer::Direct], [Peer::Haproxy1, Peer::Direct], [Peer::Nginx1, Peer::Direct]];

/// One peer beside another, medians over the rounds of the ratios in each round.
pub fn ratios(
    results: &Results,
    cases: &[Case],
    pairs: &[[Peer; 2]],
    names: &[&'static str],
) -> String {
    let heads = pairs.iter().map(|[one, other]| format!(" {} : {} |", one.name(), other.name()));
    let lines = "---|".repeat(pairs.len());
    let mut table = format!("| case |{}\n|---|{lines}\n", heads.collect::<String>());
    for case in cases {
        let cell = |pair: &[Peer; 2]| {
            let ratio = |name: &&'static str| {
                results.ratio(*case, *pair, name).map(|ratio| format!("{ratio:.2}"))
            };
            format!(" {} |", names.iter().filter_map(ratio).collect::<Vec<_>>().join(" / "))
        };
        let cells: String = pairs.iter().map(cell).collect();
        table += &format!("| {} |{cells}\n", case.name());
    }
    table
}

/// Three digits, or all before the point.
fn number(value: f64) -> String {
    match value.abs() {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The machine and the versions of everything, a line each.
pub fn machine(cores: &Cores) -> Vec<String> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let kernel = read("/proc/sys/kernel/osrelease");
    vec![
        format!(
            "{}, {} cores, Linux {}",
            model.unwrap_or("?"),
            cores.count(Place::Everywhere),
            kernel.trim()
        ),
        version(env!("CARGO_BIN_EXE_rolegate"), "--version"),
        version("redis-server", "--version"),
        version("haproxy", "-v"),
        version("nginx", "-v"),
    ]
}

fn version(program: &str, argument: &str) -> String {
    let Ok(output) = Command::new(program).arg(argument).output() else {
        return format!("{program}: not installed");
    };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}
