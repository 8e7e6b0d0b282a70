//! One kept connection to a backend, and the questions that go over it.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Pipeline, RedisConnectionInfo, Value, aio::MultiplexedConnection,
};
use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    Problem,
    reply::{self, Info},
};
use crate::{
    config::Auth,
    control::health::Observation,
    net,
    topology::{Answer, Failure, Role},
};

/// All replies of one check together may not be longer, in bytes. INFO replication has about 100
/// for each replica.
const MAX_REPLIES: usize = 1 << 20;

/// So much of what a backend sends first is remembered: enough for an error's code.
const MAX_GREETING: usize = 64;

pub(super) struct Link {
    connection: MultiplexedConnection,
    /// Moves the connection's bytes, and with the link it ends.
    _driver: JoinSet<()>,
    tap: Arc<Tap>,
    address: SocketAddr,
    logged_in: bool,
    /// Known once a check has passed; no other process can ever answer on this connection.
    run_id: Option<String>,
}

impl Link {
    pub(super) async fn new(
        stream: TcpStream,
        address: SocketAddr,
        patience: Duration,
    ) -> Result<Self, Problem> {
        net::set_user_timeout(&stream, patience).map_err(|error| Problem::io(&error))?;
        let tap = Arc::new(Tap::default());
        let (connection, driver) = MultiplexedConnection::new_with_config(
            &RedisConnectionInfo::default().set_skip_set_lib_name(),
            Tapped { stream, tap: tap.clone() },
            // The probe has the deadline.
            AsyncConnectionConfig::new().set_response_timeout(None),
        )
        .await
        .map_err(|error| tap.problem(&error))?;
        let mut drivers = JoinSet::new();
        drivers.spawn(driver);
        Ok(Self { connection, _driver: drivers, tap, address, logged_in: false, run_id: None })
    }

    /// Whether the backend has closed the connection.
    pub(super) fn is_cut(&self) -> bool {
        self.tap.cut.is_cancelled()
    }

    /// Resolves when the backend closes the connection, also while nothing is asked.
    pub(super) async fn cut(&self) {
        self.tap.cut.cancelled().await;
    }

    /// One full check. Gives the link back unless a new one is needed.
    pub(super) async fn ask(
        mut self,
        auth: Option<&Auth>,
    ) -> (Option<Self>, Result<Observation, Problem>) {
        let answer = self.question(auth).await;
        match answer {
            Ok(answer) => (Some(self), Ok(Observation::Passed(answer))),
            Err(problem) if problem.failure == Failure::Busy && self.run_id.is_some() => {
                (Some(self), Ok(Observation::StillBusy))
            }
            Err(problem) => {
                if problem.failure == Failure::NoAuth {
                    self.logged_in = false;
                }
                // Any other refusal can end on this connection as well as on a new one.
                let lost = matches!(
                    problem.failure,
                    Failure::Protocol | Failure::Denied | Failure::MaxClients
                );
                let keep = !lost && !self.is_cut();
                (keep.then_some(self), Err(problem))
            }
        }
    }

    async fn question(&mut self, auth: Option<&Auth>) -> Result<Answer, Problem> {
        let auth = auth.filter(|_| !self.logged_in);
        let mut commands = Pipeline::new();
        if let Some(auth) = auth {
            commands.cmd("AUTH");
            commands.arg(&auth.username).arg(auth.password.expose_secret());
        }
        commands.cmd("PING").cmd("INFO").arg("replication");
        if self.run_id.is_none() {
            commands.cmd("INFO").arg("server");
        }
        self.tap.heard().received = 0;
        let replies = self
            .connection
            .send_packed_commands(&commands, 0, commands.len())
            .await
            .map_err(|error| self.tap.problem(&error))?;
        self.tap.heard().settled = true;

        let mut replies = replies.into_iter();
        let mut next = || replies.next().unwrap_or(Value::Nil);
        if auth.is_some() {
            reply::login(&next())?;
            self.logged_in = true;
        }
        reply::pong(&next())?;
        let replication = reply::info(next())?;
        let role = replication.role()?;
        if self.run_id.is_none() {
            let server = reply::info(next())?;
            self.run_id = Some(server.text("run_id").unwrap_or_default());
        }
        Ok(answer(self.address, role, self.run_id.clone().unwrap_or_default(), &replication))
    }
}

fn answer(address: SocketAddr, role: Role, run_id: String, replication: &Info) -> Answer {
    let offset = match role {
        Role::Master => "master_repl_offset",
        Role::Replica => "slave_repl_offset",
    };
    Answer {
        address,
        role,
        run_id,
        replid: replication.text("master_replid").unwrap_or_default(),
        replid2: replication.text("master_replid2").filter(|id| id.contains(|c| c != '0')),
        offset: replication.number(offset),
        link_up: replication.text("master_link_status").map(|status| status == "up"),
    }
}

/// What the stream under the connection notices. The `redis` crate tells neither when an idle
/// connection ends, nor what a backend said unasked, nor does it bound a reply.
#[derive(Debug, Default)]
struct Tap {
    cut: CancellationToken,
    heard: Mutex<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    /// Bytes since the check began.
    received: usize,
    /// The first bytes of the connection.
    greeting: Vec<u8>,
    /// A check has had all its replies: what came first is no reason for what comes later.
    settled: bool,
    /// How reading ended, unless with the backend's FIN.
    error: Option<io::ErrorKind>,
}

impl Tap {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of bytes that came; none is the backend's FIN.
    fn take(&self, bytes: &[u8]) -> io::Result<()> {
        let mut heard = self.heard();
        let room = MAX_GREETING - heard.greeting.len();
        heard.greeting.extend_from_slice(&bytes[..bytes.len().min(room)]);
        heard.received += bytes.len();
        if heard.received > MAX_REPLIES {
            let words = format!("the replies are longer than {MAX_REPLIES} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, words));
        }
        if bytes.is_empty() {
            self.cut.cancel();
        }
        Ok(())
    }

    /// Takes note of an error of the stream.
    fn fail(&self, error: io::Error) -> io::Error {
        self.heard().error = Some(error.kind());
        self.cut.cancel();
        error
    }

    /// Why the connection failed. An error that the backend sent before it hung up tells more than
    /// the hang-up. It may repeat the password, so its words are dropped.
    fn problem(&self, error: &redis::RedisError) -> Problem {
        let heard = self.heard();
        let greeting = reply::classify_greeting(&heard.greeting);
        if let Some(failure) = greeting.filter(|_| !heard.settled) {
            return Problem { failure, words: None };
        }
        let failure = match heard.error {
            Some(io::ErrorKind::InvalidData) => Failure::Protocol,
            // The system gave up on a host that acknowledges nothing.
            Some(io::ErrorKind::TimedOut) => Failure::Timeout,
            _ if self.cut.is_cancelled() => Failure::Cut,
            // The stream is well; it is what came over it that the parser gave up on.
            _ => Failure::Protocol,
        };
        let words = match failure {
            Failure::Protocol => "a reply that is not RESP, or is too long".to_owned(),
            _ => reply::tidy(&error.to_string()),
        };
        Problem { failure, words: Some(words) }
    }
}

/// The connection's stream, with a tap on what comes in.
struct Tapped {
    stream: TcpStream,
    tap: Arc<Tap>,
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        let read = read.and_then(|()| self.tap.take(&buf.filled()[before..]));
        Poll::Ready(read.map_err(|error| self.tap.fail(error)))
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        Poll::Ready(written.map_err(|error| self.tap.fail(error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
