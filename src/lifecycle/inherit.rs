//! What a process finds at its start: listening sockets that systemd opened for it, or that an older
//! rolegate hands over.

use std::{
    env, io,
    io::{Read, Write},
    net::TcpListener,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    time::Duration,
};

use listenfd::ListenFd;
use rustix::process::setpriority_process;

/// Set for the process that takes over: the rank with which the older one was started.
pub const UPGRADE: &str = "ROLEGATE_UPGRADE";

/// The names of the sockets, in systemd's words.
pub const NAMES: &str = "LISTEN_FDNAMES";

/// More sockets than anybody passes. Each number up to what is said is looked at.
const MAX_PASSED: u64 = 65_536;

/// How long the older one may take to say that this is the main process now. It says so at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was found.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Listening sockets and their names; a name that nobody gave is empty.
    pub sockets: Vec<(String, Passed)>,
    /// Descriptors that are something else, in words.
    pub unusable: Vec<String>,
    /// The older rolegate, if there is one.
    pub predecessor: Option<Predecessor>,
}

/// A listening socket that was passed.
#[derive(Debug)]
pub enum Passed {
    /// Of TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

/// The older rolegate, which accepts clients until this one is ready.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

impl Inherited {
    /// Takes what was passed. Must be called once, before the process has any other thread.
    pub fn take() -> Self {
        let names = env::var(NAMES).unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut inherited = Self { predecessor: Predecessor::find(), ..Self::default() };
        let said = env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        let mut passed = if said <= MAX_PASSED {
            ListenFd::from_env()
        } else {
            inherited.unusable.push(format!("LISTEN_FDS: {said} are more than {MAX_PASSED}"));
            ListenFd::empty()
        };
        for number in 0..passed.len() {
            let name = names.next().unwrap_or_default();
            let tcp = passed.take_tcp_listener(number).map(|socket| socket.map(Passed::Tcp));
            let any = tcp.or_else(|_| {
                passed.take_unix_listener(number).map(|socket| socket.map(Passed::Unix))
            });
            match any {
                Ok(Some(socket)) => inherited.sockets.push((name, socket)),
                Ok(None) => {}
                Err(error) => inherited.unusable.push(format!("{name}: {error}")),
            }
        }
        inherited
    }
}

impl Predecessor {
    fn find() -> Option<Self> {
        let rank = env::var(UPGRADE).ok()?;
        // The thread that started this process goes before others; this one's workers must not.
        let _ = setpriority_process(None, rank.parse().unwrap_or(0));
        let line = io::stdin().as_fd().try_clone_to_owned().ok()?;
        Some(Self(UnixStream::from(line)))
    }

    /// Tells it that clients are accepted here now, and waits until it has told the service manager who
    /// the main process is.
    pub fn take_over(mut self) -> io::Result<()> {
        self.0.set_read_timeout(Some(PATIENCE))?;
        self.0.set_write_timeout(Some(PATIENCE))?;
        self.0.write_all(READY)?;
        // Its word, or its end.
        self.0.read(&mut [0]).map(drop)
    }
}

/// What the new process says when it accepts clients.
pub const READY: &[u8] = b"ready\n";
