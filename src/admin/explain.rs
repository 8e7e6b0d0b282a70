//! The text of `/explain`: what is served and why, for an operator at 3 am.

use std::{fmt::Write, time::Duration};

use tokio::time::Instant;

use super::State;
use crate::topology::{BackendStatus, Published, Verdict};

/// Every pool, or the one of this name; `None` if there is none.
pub(super) fn text(state: &State, pool: Option<&str>) -> Option<String> {
    let wanted = |published: &&Published| pool.is_none_or(|name| *name == *published.pool);
    let shown = state.shown.borrow().clone();
    let pools: Vec<_> = shown.pools.iter().filter(wanted).map(explain).collect();
    (!pools.is_empty()).then(|| pools.join("\n"))
}

fn explain(pool: &Published) -> String {
    let view = pool.view.borrow().clone();
    let status = pool.status().clone();
    let now = Instant::now();
    let since = ago(now.saturating_duration_since(view.since));
    let mut text = String::new();
    let mut line = |line: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{line}");
    };
    let epoch = view.epoch;
    match &view.verdict {
        Verdict::Serve(served) => {
            let (backend, address) = (&served.backend, &served.address);
            line(format!(
                "pool {}: serves {backend} at {address}, for {since} (epoch {epoch})",
                pool.pool
            ));
            let reason = &served.reason;
            line(format!("  chosen: {} [{}]", reason.words, reason.rule.as_str()));
        }
        Verdict::Hold(_) => {
            line(format!("pool {}: serves nobody yet, for {since} (epoch {epoch})", pool.pool));
        }
        Verdict::Refuse(_) => {
            line(format!("pool {}: serves nobody, for {since} (epoch {epoch})", pool.pool));
        }
    }
    line(format!("  now: {} [{}]", status.reason.words, status.reason.rule.as_str()));
    if let Some(advice) = status.reason.rule.advice() {
        line(format!("  to do: {advice}"));
    }
    line("  backends:".to_owned());
    let width = status.backends.iter().map(|backend| backend.name.len()).max().unwrap_or(0);
    for backend in &status.backends {
        line(format!("    {:width$}  {}", backend.name, sentence(backend, now)));
    }
    if let Some(agreed) = &status.sentinel_view {
        line(format!("  Sentinels: {agreed}"));
        for sentinel in &status.sentinels {
            line(format!("    {}  {}", sentinel.address, sentinel.says));
        }
    }
    text
}

fn sentence(backend: &BackendStatus, now: Instant) -> String {
    let mut words = format!("{}; {}", backend.address, backend.evidence);
    if let Some(check) = &backend.last_check {
        let age = ago(now.saturating_duration_since(check.at));
        let _ = match &check.error {
            None => write!(words, " (checked {age} ago)"),
            Some((failure, Some(said))) => {
                write!(words, " (check failed {age} ago: {failure}, {said})")
            }
            Some((failure, None)) => write!(words, " (check failed {age} ago: {failure})"),
        };
    }
    words
}

/// A duration as people say it.
fn ago(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..2 => format!("{} ms", duration.as_millis()),
        2..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
