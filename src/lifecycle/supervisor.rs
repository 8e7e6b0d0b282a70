//! What the service manager is told, where there is one (systemd, `Type=notify`).

use std::time::Duration;

use sd_notify::{NotifyState, notify, watchdog_enabled};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::debug;

/// Tells the service manager what happens. Does nothing where there is none.
#[derive(Debug)]
pub struct Supervisor {
    watchdog: Option<Interval>,
}

impl Supervisor {
    /// Needs a runtime.
    pub fn new() -> Self {
        let watchdog = watchdog_enabled().filter(|patience| !patience.is_zero()).map(|patience| {
            // Twice as often as it wants to hear of us.
            let pause = (patience / 2).max(Duration::from_millis(1));
            let mut ticks = interval_at(Instant::now() + pause, pause);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Self { watchdog }
    }

    /// Clients are accepted, by the config of now.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// The config is read again.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    /// The process ends.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// Another process is the main one from now on.
    pub fn hand_over(&mut self, process: u32) {
        self.watchdog = None;
        tell(&[NotifyState::MainPid(process)]);
    }

    /// Tells that the process lives, as often as its service manager wants to hear. Never ends.
    pub async fn keep_alive(&mut self) {
        match &mut self.watchdog {
            Some(ticks) => loop {
                ticks.tick().await;
                tell(&[NotifyState::Watchdog]);
            },
            None => std::future::pending().await,
        }
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = notify(states) {
        debug!(error = error.to_string(), "cannot tell the service manager");
    }
}
