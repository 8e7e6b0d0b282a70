//! The same load made by redis-benchmark, to check the one that this program makes.

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::{Command, Stdio},
};

use crate::{
    figures::Figures,
    load::{Load, Turn, Verb, key, value},
    meter::Meter,
    support::PASSWORD,
};

/// Without warm-up, for a number of requests that takes a second or two.
pub fn run(load: &Load, address: SocketAddr, meter: &Meter<'_>) -> io::Result<Figures> {
    let (keep_alive, requests) = match (load.turn, load.size) {
        (Turn::Connect, _) => ("0", 5_000),
        (_, 3) => ("1", 40_000 * load.pipeline),
        (_, size) => ("1", (1 << 30) / size.max(40 << 10)),
    };
    let mut command = Command::new("redis-benchmark");
    command.args(["-h", "127.0.0.1", "-a", PASSWORD, "--csv", "-k", keep_alive]);
    let port = usize::from(address.port());
    for (option, number) in
        [("-p", port), ("-c", load.clients), ("-P", load.pipeline), ("-n", requests)]
    {
        command.args([option, &number.to_string()]);
    }
    match load.verb {
        Verb::Get => command.arg("GET"),
        // The value comes from its standard input.
        Verb::Set => command.args(["-x", "SET"]),
    };
    command.arg(key(load.size)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let before = meter.read();
    let mut child = command.spawn()?;
    if let (Some(mut input), Verb::Set) = (child.stdin.take(), load.verb) {
        input.write_all(value(load.size).as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let mut figures = meter.figures(&before, requests as f64);
    // Its own time on a processor is not known here, so neither is that of others.
    figures.retain(|name, _| *name == "CPU µs");
    // "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms",
    // "p99_latency_ms","max_latency_ms"
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().last().unwrap_or_default();
    let cells: Vec<_> = last.split("\",\"").collect();
    for (name, column) in [("requests/s", 1), ("p50 ms", 4), ("p99 ms", 6)] {
        let cell = cells.get(column).and_then(|cell| cell.parse().ok());
        figures.insert(name, cell.ok_or_else(|| io::Error::other(format!("it said {text:?}")))?);
    }
    Ok(figures)
}
