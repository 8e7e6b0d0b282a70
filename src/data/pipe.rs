//! Pipes for splice(2), through which bulk goes from socket to socket without leaving the kernel.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::time::Instant;

/// What a pipe is asked to hold. It may hold more, as it counts pieces, not bytes.
const CAPACITY: usize = 256 * 1024;

/// Pipes that one worker has at the most; flows that get none copy.
pub(super) const MAX: usize = 32;

/// Before the system is asked again that gave none.
const PAUSE: Duration = Duration::from_secs(1);

thread_local! {
    static IDLE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static ALLOWED: Cell<usize> = const { Cell::new(MAX) };
    /// The system gave none then.
    static REFUSED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A pipe of this worker, and what is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    held: usize,
}

impl Pipe {
    /// From now on this worker has so many at the most.
    pub(super) fn allow(count: usize) {
        ALLOWED.set(count.min(MAX));
    }

    /// An empty one; `None` where the worker has enough, or the system gives none.
    pub(super) fn take() -> Option<Self> {
        if let Some(pipe) = IDLE.with_borrow_mut(Vec::pop) {
            return Some(pipe);
        }
        if COUNT.get() >= ALLOWED.get() || REFUSED.get().is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        let pipe = Self::new().ok();
        REFUSED.set(pipe.is_none().then(Instant::now));
        pipe
    }

    fn new() -> rustix::io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // The system keeps the pipes of a user who has many small (`fs.pipe-user-pages-soft`): they
        // would cost more than they save.
        fcntl_setpipe_size(&writer, CAPACITY)?;
        COUNT.set(COUNT.get() + 1);
        Ok(Self { reader, writer, held: 0 })
    }

    /// For the next flow that needs one. Must be empty.
    pub(super) fn give_back(self) {
        debug_assert!(self.is_empty());
        IDLE.with_borrow_mut(|idle| idle.push(self));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes what a socket has. Must be empty: only then does "would block" mean the socket.
    pub(super) fn fill(&mut self, from: impl AsFd) -> io::Result<u64> {
        // Never with MORE, which holds back the end of a message.
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        self.held = splice(from, None, &self.writer, None, CAPACITY, flags)?;
        Ok(self.held as u64)
    }

    /// Gives a socket what it takes. Must not be empty.
    pub(super) fn drain(&mut self, to: impl AsFd) -> io::Result<()> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        match splice(&self.reader, None, to, None, self.held, flags)? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            n => {
                self.held -= n;
                Ok(())
            }
        }
    }

    /// Whether an error of [`Self::fill`] means that the system does not splice here.
    pub(super) fn is_unfit(error: &io::Error) -> bool {
        matches!(
            Errno::from_io_error(error),
            Some(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::NOMEM)
        )
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // At the thread's end the count may be gone before the pipe.
        let _ = COUNT.try_with(|count| count.set(count.get() - 1));
    }
}
