//! Accepts clients and hands them to the workers, on one thread for all listeners.

use std::{
    io::{self, PipeReader},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::Arc,
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{SocketFlags, acceptfrom_with},
};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{
    hold::{self, Holds},
    session::{Session, Shared},
    worker::Workers,
};
use crate::net;

/// Clients that one socket may bring before the others have their turn.
const TURN: usize = 64;

/// A bound, non-blocking socket and what its sessions share.
pub struct Listener {
    socket: TcpListener,
    shared: Arc<Shared>,
    /// The last accept failed for want of something.
    failing: bool,
}

impl Listener {
    /// Accepts nothing yet.
    pub fn new(socket: TcpListener, shared: Arc<Shared>) -> Self {
        Self { socket, shared, failing: false }
    }

    /// Takes the clients that wait, up to a turn's worth. False if descriptors or memory ran out.
    fn accept(&mut self, holds: &mut Holds, workers: &Workers) -> bool {
        for _ in 0..TURN {
            match accept(&self.socket) {
                Ok((client, peer)) => {
                    if self.failing {
                        self.failing = false;
                        info!(listener = &*self.shared.listener, "accepts clients again");
                    }
                    holds.admit(Session::new(client, peer, self.shared.clone()), workers);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if net::is_client_gone(&error) => {}
                Err(error) => {
                    self.shared.metrics.accept_errors.inc();
                    if !self.failing {
                        self.failing = true;
                        let error = error.to_string();
                        let advice = "raise the limit of open files; new clients wait or are reset";
                        warn!(listener = &*self.shared.listener, error, advice, "cannot accept");
                    }
                    return false;
                }
            }
        }
        true
    }
}

/// Accepts, on a thread of its own, until the other end of `stop` is closed: a storm of clients
/// delays neither checks nor sessions. The receiver resolves when the thread ends.
pub fn start(
    listeners: Vec<Listener>,
    workers: Workers,
    holds: Holds,
    stop: PipeReader,
) -> io::Result<oneshot::Receiver<()>> {
    let (ending, end) = oneshot::channel();
    thread::Builder::new().name("rolegate-accept".to_owned()).spawn(move || {
        if let Err(error) = run(listeners, &workers, holds, &stop) {
            error!(error = error.to_string(), "cannot wait for clients");
        }
        drop(ending);
    })?;
    Ok(end)
}

/// Accepts, whatever goes wrong with a client.
fn run(
    mut listeners: Vec<Listener>,
    workers: &Workers,
    mut holds: Holds,
    stop: &PipeReader,
) -> io::Result<()> {
    let pause = Timespec { tv_sec: 0, tv_nsec: i64::from(net::RESOURCES_PAUSE.subsec_nanos()) };
    loop {
        let mut fds: Vec<_> = [stop.as_fd(), holds.wake_fd()]
            .into_iter()
            .chain(listeners.iter().map(|listener| listener.socket.as_fd()))
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .chain(holds.fds().map(|fd| PollFd::from_borrowed_fd(fd, hold::GONE)))
            .collect();
        let timeout = holds.timeout().and_then(|timeout| Timespec::try_from(timeout).ok());
        wait(&mut fds, timeout.as_ref())?;
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            return Ok(());
        }
        let (sockets, held) = ready[2..].split_at(listeners.len());
        if held.contains(&true) {
            holds.drop_gone(held);
        }
        holds.turn(workers);
        let mut exhausted = false;
        for (listener, ready) in listeners.iter_mut().zip(sockets) {
            exhausted |= *ready && !listener.accept(&mut holds, workers);
        }
        if exhausted {
            wait(&mut [PollFd::new(stop, PollFlags::IN)], Some(&pause))?;
        }
    }
}

fn accept(socket: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (client, peer) = acceptfrom_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let peer = peer.and_then(|peer| peer.try_into().ok());
    Ok((client.into(), peer.unwrap_or_else(|| ([0; 4], 0).into())))
}

fn wait(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> io::Result<()> {
    match poll(fds, timeout) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
