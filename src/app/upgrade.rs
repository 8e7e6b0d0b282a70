//! Hands over to a new process of the same program file, which may be another version: it gets the
//! listening sockets, so that no client is refused, and this process goes on with its sessions.

use std::{
    env,
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use tokio::{
    net::UnixStream,
    time::{Instant, timeout_at},
};

use crate::lifecycle::inherit::{NAMES, READY, UPGRADE};

/// How long the new process may take until it accepts clients. It waits for its first checks.
const PATIENCE: Duration = Duration::from_secs(30);

/// The first descriptor that is passed, by systemd's convention.
const FIRST: i32 = 3;

/// How this process was started, to start the next one in the same way.
#[derive(Debug)]
pub struct Launch {
    program: PathBuf,
    arguments: Vec<OsString>,
    rank: i32,
}

impl Launch {
    /// Must be called at the start: later the program's file may be another one.
    pub fn of_this_process() -> io::Result<Self> {
        let program = env::current_exe()?;
        let arguments = env::args_os().skip(1).collect();
        Ok(Self { program, arguments, rank: crate::lifecycle::rank() })
    }

    /// The program's file.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }
}

/// The process that takes over.
#[derive(Debug)]
pub(super) struct Successor {
    child: Child,
    line: UnixStream,
    deadline: Instant,
    heard: Vec<u8>,
}

impl Successor {
    /// Starts it with these listening sockets and their names.
    pub(super) fn start<'a>(
        launch: &Launch,
        sockets: impl Iterator<Item = (String, &'a (impl AsFd + 'a))>,
    ) -> io::Result<Self> {
        let (names, sockets): (Vec<_>, Vec<_>) = sockets.unzip();
        let mappings = sockets.iter().zip(FIRST..).map(|(socket, child_fd)| {
            let parent_fd = socket.as_fd().try_clone_to_owned()?;
            Ok(FdMapping { parent_fd, child_fd })
        });
        let mappings: Vec<_> = mappings.collect::<io::Result<_>>()?;
        let (line, its_end) = StdUnixStream::pair()?;
        line.set_nonblocking(true)?;
        let mut command = Command::new(&launch.program);
        command
            .args(&launch.arguments)
            .stdin(Stdio::from(OwnedFd::from(its_end)))
            .env(UPGRADE, launch.rank.to_string())
            .env("LISTEN_FDS", mappings.len().to_string())
            .env(NAMES, names.join(":"))
            .env_remove("LISTEN_PID")
            .env_remove("WATCHDOG_PID")
            .fd_mappings(mappings)
            .map_err(io::Error::other)?;
        let child = command.spawn()?;
        let line = UnixStream::from_std(line)?;
        Ok(Self { child, line, deadline: Instant::now() + PATIENCE, heard: Vec::new() })
    }

    /// Its process.
    pub(super) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it accepts clients; else tells why it does not. May be dropped and called again.
    pub(super) async fn ready(&mut self) -> Result<(), String> {
        while self.heard != READY {
            match timeout_at(self.deadline, self.line.readable()).await {
                Err(_) => return Err(format!("it was not ready in {} s", PATIENCE.as_secs())),
                Ok(Err(error)) => return Err(error.to_string()),
                Ok(Ok(())) => {}
            }
            let mut bytes = [0; READY.len()];
            let rest = READY.len() - self.heard.len();
            match self.line.try_read(&mut bytes[..rest]) {
                Ok(0) => {
                    return Err("it has ended; its own lines tell why".to_owned());
                }
                Ok(read) => {
                    self.heard.extend_from_slice(&bytes[..read]);
                    if !READY.starts_with(&self.heard) {
                        return Err("it speaks another language".to_owned());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Tells it that it is the main process now.
    pub(super) fn confirm(self) -> Child {
        // One that has gone meanwhile cannot be helped.
        let _ = self.line.try_write(b"\n");
        self.child
    }

    /// Ends it, should it still run.
    pub(super) fn give_up(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// What is made of these words, which come one by one, from a process that ends then.
    fn made_of(words: &[Vec<u8>]) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (line, mut its_end) = StdUnixStream::pair().unwrap();
            line.set_nonblocking(true).unwrap();
            let child = Command::new("true").spawn().unwrap();
            let line = UnixStream::from_std(line).unwrap();
            let deadline = Instant::now() + PATIENCE;
            let mut successor = Successor { child, line, deadline, heard: Vec::new() };
            for word in words {
                its_end.write_all(word).unwrap();
                // As when a signal comes meanwhile.
                let _ = timeout_at(Instant::now(), successor.ready()).await;
            }
            drop(its_end);
            let ready = successor.ready().await;
            successor.give_up();
            ready
        })
    }

    #[test]
    fn only_one_that_says_so_is_ready() {
        let word = |text: &str| text.as_bytes().to_vec();
        assert_eq!(made_of(&[word("ready\n")]), Ok(()));
        assert_eq!(made_of(&[word("re"), word("ady"), word("\n")]), Ok(()));
        for other in ["", "ready", "xready\n", "READY\n", "error\n"] {
            assert!(made_of(&[word(other)]).is_err(), "{other:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nothing_else_is_taken_for_ready(
            words in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..4)
        ) {
            let is_ready = words.concat().starts_with(READY);
            prop_assert_eq!(made_of(&words).is_ok(), is_ready);
        }
    }
}
