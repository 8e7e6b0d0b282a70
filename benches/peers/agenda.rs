//! Which connection is to act when.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

#[derive(Default)]
pub struct Agenda(BinaryHeap<Reverse<(Instant, usize)>>);

impl Agenda {
    pub fn push(&mut self, at: Instant, number: usize) {
        self.0.push(Reverse((at, number)));
    }

    /// Takes the first whose time has come, and that time.
    pub fn pop(&mut self) -> Option<(Instant, usize)> {
        self.0.peek().filter(|Reverse((at, _))| *at <= Instant::now())?;
        self.0.pop().map(|Reverse(entry)| entry)
    }

    /// How long nobody acts, or a tenth of a second where that is less.
    pub fn pause(&self) -> Duration {
        let tick = Duration::from_millis(100);
        let next =
            self.0.peek().map(|Reverse((at, _))| at.saturating_duration_since(Instant::now()));
        next.map_or(tick, |next| next.min(tick))
    }
}
