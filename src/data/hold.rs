//! Clients that wait for a backend to be served: in the order in which they came, bounded, and each
//! at the cost of its socket alone. They wait on a thread of their own, which has nothing else to do.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{session::Parked, worker::Workers};
use crate::metrics::CloseReason;

/// What poll(2) tells of a client that gives up, whatever it has sent before.
const GONE: PollFlags =
    PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR).union(PollFlags::NVAL);

/// All clients that wait, by listener.
#[derive(Debug)]
pub struct Holds {
    queues: BTreeMap<usize, VecDeque<Parked>>,
    returned: mpsc::Receiver<Parked>,
    wake: Arc<OwnedFd>,
}

/// How sessions get back to the queue, and how the queue learns of a new View.
#[derive(Clone, Debug)]
pub struct Returns {
    // As many as there are sessions at the most.
    sessions: mpsc::Sender<Parked>,
    wake: Arc<OwnedFd>,
}

impl Returns {
    /// Makes the holding thread look at the Views, and at the stop, again.
    pub fn wake(&self) {
        // It only fails where the thread is awake or gone.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Lets a session wait for a View that serves.
    pub(super) fn hold(&self, session: Parked) {
        match self.sessions.send(session) {
            Ok(()) => self.wake(),
            // Nobody waits any more.
            Err(mpsc::SendError(session)) => session.close(CloseReason::Shutdown),
        }
    }
}

impl Holds {
    /// Nobody waits.
    pub fn new() -> io::Result<(Self, Returns)> {
        let (sessions, returned) = mpsc::channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let queues = BTreeMap::new();
        Ok((Self { queues, returned, wake: wake.clone() }, Returns { sessions, wake }))
    }

    /// Lets clients wait, on a thread of its own, until `stop` and a wake. The receiver resolves when
    /// the thread ends.
    pub fn start(
        self,
        workers: Workers,
        stop: CancellationToken,
    ) -> io::Result<oneshot::Receiver<()>> {
        let (ending, end) = oneshot::channel();
        thread::Builder::new().name("rolegate-hold".to_owned()).spawn(move || {
            if let Err(error) = self.run(&workers, &stop) {
                let error = error.to_string();
                let advice = "the process ends; the system is out of memory, or this is a defect of rolegate";
                error!(error, advice, "cannot let clients wait");
            }
            drop(ending);
        })?;
        Ok(end)
    }

    fn run(mut self, workers: &Workers, stop: &CancellationToken) -> io::Result<()> {
        loop {
            self.turn(workers);
            // After the turn, which takes the wake that comes with it.
            if stop.is_cancelled() {
                return Ok(());
            }
            let held = self.queues.values().flatten();
            let mut fds: Vec<_> = [PollFd::new(&self.wake, PollFlags::IN)]
                .into_iter()
                .chain(held.map(|session| PollFd::from_borrowed_fd(session.as_fd(), GONE)))
                .collect();
            let timeout = self.timeout().and_then(|timeout| Timespec::try_from(timeout).ok());
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<_> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready.contains(&true) {
                self.drop_gone(&ready);
            }
        }
    }

    /// How long until the next one has waited for long enough.
    fn timeout(&self) -> Option<Duration> {
        let next = self.queues.values().flatten().map(deadline).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Lets those go who gave up, by their place in all queues.
    fn drop_gone(&mut self, gone: &[bool]) {
        let mut gone = gone.iter().copied();
        for queue in self.queues.values_mut() {
            for session in std::mem::take(queue) {
                if gone.next().unwrap_or(false) {
                    session.leave_hold().close(CloseReason::ClientClosed);
                } else {
                    queue.push_back(session);
                }
            }
        }
    }

    /// Takes the sessions that found no backend, and moves on whoever waits no longer.
    fn turn(&mut self, workers: &Workers) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
        while let Ok(session) = self.returned.try_recv() {
            self.insert(session, workers);
        }
        let now = Instant::now();
        for queue in self.queues.values_mut() {
            let Some(shared) = queue.front().map(|session| session.shared().clone()) else {
                continue;
            };
            let serves = shared.view.borrow().verdict.served().is_some();
            for session in std::mem::take(queue) {
                if shared.gate.is_closed() {
                    session.leave_hold().close(CloseReason::Shutdown);
                } else if serves {
                    workers.take(session.leave_hold());
                } else if deadline(&session) <= now {
                    dismiss(session.leave_hold(), CloseReason::HoldTimeout, workers);
                } else {
                    queue.push_back(session);
                }
            }
        }
        self.queues.retain(|_, queue| !queue.is_empty());
    }

    fn insert(&mut self, session: Parked, workers: &Workers) {
        let shared = session.shared().clone();
        let rules = shared.hold;
        if rules.timeout.is_zero() || rules.dry_run {
            if rules.dry_run {
                shared.metrics.held_total.inc();
            }
            return dismiss(session, CloseReason::Refused, workers);
        }
        let queue = self.queues.entry(shared.place).or_default();
        if queue.len() >= rules.max {
            return dismiss(session, CloseReason::HoldFull, workers);
        }
        // One that comes back has its old place.
        let at = queue.partition_point(|other| other.opened() <= session.opened());
        queue.insert(at, session.enter_hold());
    }
}

fn deadline(session: &Parked) -> Instant {
    session.held_since() + session.shared().hold.timeout
}

/// Closes a client that gets no backend, by way of a worker if it is to be told why.
fn dismiss(session: Parked, reason: CloseReason, workers: &Workers) {
    if reason == CloseReason::HoldTimeout {
        session.shared().metrics.hold_timeouts.inc();
    }
    if session.shared().hold.error_reply && session.shared().may_tell() {
        workers.take(session.dismissed(reason));
    } else {
        session.close(reason);
    }
}
