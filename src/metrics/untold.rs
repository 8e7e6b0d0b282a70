//! What is counted always and told in the log now and then, so that nobody can flood it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// From one log line to the next.
const GAP: Duration = Duration::from_secs(1);

/// Events of which at most one a second gets a log line.
#[derive(Debug, Default)]
pub struct Untold(Mutex<(u64, Option<Instant>)>);

impl Untold {
    /// Counts one. If it is time for a line, tells how many there were since the last one, with this.
    pub fn tell(&self) -> Option<u64> {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, told) = &mut *events;
        *count += 1;
        if told.is_some_and(|told| told.elapsed() < GAP) {
            return None;
        }
        *told = Some(Instant::now());
        Some(std::mem::take(count))
    }
}
