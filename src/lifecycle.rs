//! What the process has with its system: what it inherits, signals, what a service manager is told,
//! its user, and the rank of its threads.

pub mod inherit;
pub mod privileges;
mod supervisor;

use rustix::process::{
    Resource, Rlimit, getpriority_process, getrlimit, setpriority_process, setrlimit,
};
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

/// Lets [`prefer_this_thread`] also work in a process that takes over and is not root, as a LimitNICE
/// does.
pub fn allow_preference() {
    // The system counts from 20 downwards. Nothing above the limit means no limit.
    let wanted = u64::from((20 - CONTROL_NICE).unsigned_abs());
    let limit = getrlimit(Resource::Nice);
    let at_least = |limit: Option<u64>| limit.map(|limit| limit.max(wanted));
    let raised = Rlimit { current: at_least(limit.current), maximum: at_least(limit.maximum) };
    if let Err(error) = setrlimit(Resource::Nice, raised) {
        debug!(error = error.to_string(), "cannot allow checks to have priority over data");
    }
}

/// Lets the calling thread run before the others when all want to: checks keep their pace while
/// the workers burn every core. Threads that it starts later are preferred, too.
pub fn prefer_this_thread() {
    // Linux takes it for the thread. Without CAP_SYS_NICE or a LimitNICE the thread stays as it is.
    if let Err(error) = setpriority_process(None, CONTROL_NICE) {
        debug!(error = error.to_string(), "checks have no priority over data");
    }
}
