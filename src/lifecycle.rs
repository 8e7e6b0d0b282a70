//! What the process has with its system: what it inherits, signals, what a service manager is told,
//! and the rank of its threads.

pub mod inherit;
mod supervisor;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::debug;

pub use self::supervisor::Supervisor;

/// Between the 0 of most programs and the -20 of those that nothing may delay.
const CONTROL_NICE: i32 = -10;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To stop; this is the signal's name.
    Stop(&'static str),
    /// To read the config again.
    Reload,
    /// To hand over to a new process.
    Upgrade,
}

/// SIGTERM, SIGINT, SIGHUP and SIGUSR2.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user2: Signal,
}

impl Signals {
    /// Takes the signals from their default action, which is to kill the process.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.user2.recv() => Asked::Upgrade,
        }
    }
}

/// The rank (nice) of the calling thread.
pub fn rank() -> i32 {
    getpriority_process(None).unwrap_or(0)
}

/// Lets the calling thread run before the others when all want to: checks keep their pace while
/// the workers burn every core. Threads that it starts later are preferred, too.
pub fn prefer_this_thread() {
    // Linux takes it for the thread. Without CAP_SYS_NICE or a LimitNICE the thread stays as it is.
    if let Err(error) = setpriority_process(None, CONTROL_NICE) {
        debug!(error = error.to_string(), "checks have no priority over data");
    }
}
