//! What a round cost the clients of one proxy.

use std::{
    collections::HashSet,
    fmt,
    time::{Duration, Instant},
};

use crate::writers::{Ack, Span};

pub struct Times {
    pub event: Instant,
    /// When B became the master.
    pub promoted: Option<Span>,
    pub end: Instant,
}

#[derive(Default)]
pub struct Outcome {
    pub column: &'static str,
    /// From the event until B was seen as the master.
    pub promoted: Option<Duration>,
    /// How much earlier than it was seen that can have happened.
    pub blur: Duration,
    /// The longest time between two acks of a writer that keeps its connection.
    pub gap: Duration,
    /// The same of the writer that reconnects for each write.
    pub churn: Duration,
    pub acks: usize,
    pub lost: usize,
    /// Of these acked once B was seen as the master.
    pub stale: usize,
    /// Of these acked later than 40 ms after that.
    pub late: usize,
    /// Acks of A from the promotion until 110 ms after it was seen.
    pub early: usize,
    /// When the first and the last lost write were acked, in ms after B was seen as the master, or
    /// after the event where B was not promoted.
    pub span: Option<(f64, f64)>,
    pub log: Option<String>,
}

impl Outcome {
    /// `writers` are the acks of each, and whether it reconnects; `old` is the port of A.
    pub fn new(
        column: &'static str,
        times: &Times,
        old: u16,
        writers: &[(bool, Vec<Ack>)],
        members: &HashSet<String>,
    ) -> Self {
        let gap = |of_churn: bool| {
            let some = writers.iter().filter(|(churn, _)| *churn == of_churn);
            some.map(|(_, acks)| longest_gap(acks, times)).max().unwrap_or_default()
        };
        let acks: Vec<_> = writers.iter().flat_map(|(_, acks)| acks).collect();
        let seen = times.promoted.map(|span| span.seen);
        let after = |ack: &Ack, ms| seen.is_some_and(|at| ack.at > at + Duration::from_millis(ms));
        let mut lost: Vec<_> = acks.iter().filter(|ack| !members.contains(&ack.member)).collect();
        lost.sort_by_key(|ack| ack.at);
        let early = acks.iter().filter(|ack| {
            let begun = times.promoted.is_some_and(|span| ack.at > span.after);
            ack.node == old && begun && !after(ack, 110)
        });
        let zero = seen.unwrap_or(times.event);
        let relative = |at: Instant| match at.checked_duration_since(zero) {
            Some(later) => later.as_secs_f64() * 1e3,
            None => -(zero - at).as_secs_f64() * 1e3,
        };
        Self {
            column,
            promoted: seen.map(|at| at - times.event),
            blur: times.promoted.map(|span| span.seen - span.after).unwrap_or_default(),
            gap: gap(false),
            churn: gap(true),
            acks: acks.len(),
            lost: lost.len(),
            stale: lost.iter().filter(|ack| after(ack, 0)).count(),
            late: lost.iter().filter(|ack| after(ack, 40)).count(),
            early: early.count(),
            span: lost.first().zip(lost.last()).map(|(a, b)| (relative(a.at), relative(b.at))),
            log: None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { column, gap, churn, acks, lost, stale, late, early, .. } = self;
        write!(out, "{column}: ")?;
        if let Some(promoted) = self.promoted {
            let blur = self.blur.as_secs_f64() * 1e3;
            write!(out, "promotion {} ms (at most {blur:.1} earlier), ", promoted.as_millis())?;
        }
        write!(out, "gap {} ms, churn {} ms, ", gap.as_millis(), churn.as_millis())?;
        write!(out, "lost {lost} of {acks}, stale {stale}, late {late}, A's early acks {early}")?;
        match self.span {
            Some((first, last)) => write!(out, ", lost from {first:+.1} to {last:+.1} ms"),
            None => Ok(()),
        }
    }
}

/// The longest time without an ack that ends after the event.
fn longest_gap(acks: &[Ack], times: &Times) -> Duration {
    let mut from = times.event;
    let mut longest = Duration::ZERO;
    for at in acks.iter().map(|ack| ack.at).filter(|at| *at < times.end).chain([times.end]) {
        if at > times.event {
            longest = longest.max(at - from);
        }
        from = at;
    }
    longest
}
