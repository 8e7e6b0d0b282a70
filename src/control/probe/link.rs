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
    Answered, Problem,
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
    /// The last check that passed; no other process can ever answer on this connection.
    proven: Option<Answer>,
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
        let cut = tap.cut.clone();
        drivers.spawn(async move {
            driver.await;
            cut.cancel();
        });
        let proven = None;
        Ok(Self { connection, _driver: drivers, tap, address, logged_in: false, proven })
    }

    /// Whether the connection is of no more use.
    pub(super) fn is_cut(&self) -> bool {
        self.tap.cut.is_cancelled()
    }

    /// Whether a check has passed on this connection.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.is_some()
    }

    /// Resolves when the backend closes the connection, also while nothing is asked.
    pub(super) async fn cut(&self) {
        self.tap.cut.cancelled().await;
    }

    /// One full check. Gives the link back unless a new one is needed.
    pub(super) async fn ask(mut self, auth: Option<&Auth>) -> Answered {
        let auth = auth.filter(|_| !self.logged_in);
        let mut commands = Pipeline::new();
        if let Some(auth) = auth {
            commands.cmd("AUTH");
            commands.arg(&auth.username).arg(auth.password.expose_secret());
        }
        commands.cmd("PING").cmd("INFO").arg("replication");
        if self.proven.is_none() {
            commands.cmd("INFO").arg("server");
        }
        let replies = match self.send(&commands).await {
            Ok(replies) => replies,
            Err(problem) => return (None, Err(problem)),
        };
        let result = match self.read(replies, auth.is_some()) {
            Ok(answer) => {
                self.proven = Some(answer.clone());
                Ok(Observation::Passed(answer))
            }
            Err(problem) if problem.failure == Failure::Busy && self.is_proven() => {
                self.ask_busy(problem).await
            }
            Err(problem) => Err(problem),
        };
        let failure = result.as_ref().err().map(|problem| problem.failure);
        if failure == Some(Failure::NoAuth) {
            // The user is another than it was.
            self.logged_in = false;
        }
        // Any other refusal can end on this connection as well as on a new one.
        let lost = matches!(
            failure,
            Some(Failure::Cut | Failure::Denied | Failure::MaxClients | Failure::Protocol)
        );
        ((!lost).then_some(self), result)
    }

    /// During a script only HELLO tells the role. Servers before 6.0 have none, and then what was
    /// said before has to do.
    async fn ask_busy(&mut self, busy: Problem) -> Result<Observation, Problem> {
        let mut hello = Pipeline::new();
        hello.cmd("HELLO");
        let replies = self.send(&hello).await?;
        let role = replies.first().and_then(reply::hello_role);
        match (&self.proven, role) {
            (Some(proven), Some(role)) if proven.role != role => Err(busy),
            _ => Ok(Observation::StillBusy),
        }
    }

    async fn send(&mut self, commands: &Pipeline) -> Result<Vec<Value>, Problem> {
        self.tap.heard().received = 0;
        let replies = self.connection.send_packed_commands(commands, 0, commands.len()).await;
        let replies = replies.map_err(|error| self.tap.problem(&error))?;
        self.tap.heard().settled = true;
        Ok(replies)
    }

    fn read(&mut self, replies: Vec<Value>, login: bool) -> Result<Answer, Problem> {
        let mut replies = replies.into_iter();
        let mut next = || replies.next().unwrap_or(Value::Nil);
        if login {
            reply::login(&next())?;
            self.logged_in = true;
        }
        reply::pong(&next())?;
        let replication = reply::info(next())?;
        let role = replication.role()?;
        let run_id = match &self.proven {
            Some(proven) => proven.run_id.clone(),
            None => reply::info(next())?.text("run_id").unwrap_or_default(),
        };
        Ok(answer(self.address, role, run_id, &replication))
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
    /// The backend's FIN came, or this error of the stream.
    ended: Option<Result<(), io::ErrorKind>>,
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
            heard.ended = Some(Ok(()));
            self.cut.cancel();
        }
        Ok(())
    }

    /// Takes note of an error of the stream.
    fn fail(&self, error: io::Error) -> io::Error {
        self.heard().ended = Some(Err(error.kind()));
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
        let failure = match heard.ended {
            Some(Err(io::ErrorKind::InvalidData)) => Failure::Protocol,
            // The system gave up on a host that acknowledges nothing.
            Some(Err(io::ErrorKind::TimedOut)) => Failure::Timeout,
            Some(_) => Failure::Cut,
            // The stream is well; it is what came over it that the parser gave up on.
            None => Failure::Protocol,
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
