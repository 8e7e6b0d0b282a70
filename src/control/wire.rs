//! Connections that the `redis` crate speaks over: a line for questions, and a wire for events, too.
//! Both run over a stream of ours, which notices what the crate does not tell.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use redis::{
    AsyncConnectionConfig, Pipeline, RedisConnectionInfo, RedisError, RedisResult, Value,
    aio::MultiplexedConnection, parse_redis_value_async,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{reply, route::Problem, secured};
use crate::{net::tls::Stream, topology::Failure};

/// One system call takes so many bytes of them, which is more than most have.
const USUAL_REPLIES: usize = 2048;

/// So much of what a peer sends first is remembered: enough for an error's code.
const MAX_GREETING: usize = 64;

/// Commands as they go over a line.
pub(super) struct Questions {
    packed: Vec<u8>,
    count: usize,
}

impl Questions {
    pub(super) fn new(commands: &Pipeline) -> Self {
        Self { packed: commands.get_packed_pipeline(), count: commands.len() }
    }
}

/// A connection for questions, whose bytes the caller's own task moves: a reply wakes no other.
/// Its errors say what the peer said or did.
pub(super) struct Line(BufReader<Tapped>);

impl Line {
    /// The caller has the deadlines. A peer is given up that sends more than `max_bytes` between two
    /// questions.
    pub(super) fn new(stream: Stream, max_bytes: usize) -> Self {
        Self(BufReader::with_capacity(USUAL_REPLIES, Tapped::new(stream, max_bytes)))
    }

    fn tap(&self) -> &Tap {
        &self.0.get_ref().tap
    }

    /// Whether the connection is of no more use.
    pub(super) fn is_cut(&self) -> bool {
        self.tap().cut.is_cancelled()
    }

    /// Resolves when the peer closes the connection while nothing is asked. What it says unasked
    /// is dropped.
    pub(super) async fn cut(&mut self) {
        while !self.is_cut() {
            let unasked = self.0.fill_buf().await.map_or(0, <[u8]>::len);
            self.0.consume(unasked);
        }
    }

    /// One reply for each question; an error reply is a value.
    pub(super) async fn ask(&mut self, questions: &Questions) -> Result<Vec<Value>, Problem> {
        self.tap().forget_bytes();
        let replies = self.talk(&questions.packed, questions.count).await;
        let replies = replies.map_err(|error| {
            // What still comes would be taken for the reply to another question.
            self.tap().cut.cancel();
            self.tap().problem(&error)
        })?;
        self.tap().heard().settled = true;
        Ok(replies)
    }

    async fn talk(&mut self, commands: &[u8], count: usize) -> RedisResult<Vec<Value>> {
        self.0.consume(self.0.buffer().len());
        if let Err(error) = self.0.write_all(commands).await {
            // Who hangs up may have said why.
            let Tapped { stream, tap } = self.0.get_mut();
            let mut greeting = Vec::new();
            let error = stream.take_arrived(&mut greeting).err().unwrap_or(error);
            tap.take(&greeting)?;
            return Err(tap.fail(error).into());
        }
        // So that no parser has a buffer while nothing has come.
        self.0.fill_buf().await?;
        let mut parser = Default::default();
        let mut replies = Vec::with_capacity(count);
        while replies.len() < count {
            match parse_redis_value_async(&mut parser, &mut self.0).await? {
                // Nobody asked for it.
                Value::Push { .. } => {}
                reply => replies.push(reply),
            }
        }
        Ok(replies)
    }
}

/// A connection that has events, too. Its errors say what the peer said or did.
pub(super) struct Wire {
    connection: MultiplexedConnection,
    /// Moves the connection's bytes, and with the wire it ends.
    _driver: JoinSet<()>,
    tap: Arc<Tap>,
}

impl Wire {
    /// Logs in as `info` says. The caller has the deadlines. A peer is given up that sends more than
    /// `max_bytes` between two commands.
    pub(super) async fn new(
        stream: Stream,
        max_bytes: usize,
        info: RedisConnectionInfo,
        config: AsyncConnectionConfig,
    ) -> Result<Self, Problem> {
        let stream = Tapped::new(stream, max_bytes);
        let tap = stream.tap.clone();
        let (connection, driver) = MultiplexedConnection::new_with_config(
            &info.set_skip_set_lib_name(),
            stream,
            config.set_response_timeout(None),
        )
        .await
        .map_err(|error| tap.problem(&error))?;
        let mut drivers = JoinSet::new();
        let cut = tap.cut.clone();
        drivers.spawn(async move {
            driver.await;
            cut.cancel();
        });
        Ok(Self { connection, _driver: drivers, tap })
    }

    /// Resolves when the peer closes the connection, also while nothing is asked.
    pub(super) async fn cut(&self) {
        self.tap.cut.cancelled().await;
    }

    /// One reply for each command; an error reply is a value.
    pub(super) async fn send(&mut self, commands: &Pipeline) -> Result<Vec<Value>, Problem> {
        self.tap.forget_bytes();
        let replies = self.connection.send_packed_commands(commands, 0, commands.len()).await;
        let replies = replies.map_err(|error| self.tap.problem(&error))?;
        self.tap.heard().settled = true;
        Ok(replies)
    }

    /// Subscribes to one channel, on a connection with a push sender.
    pub(super) async fn subscribe(&mut self, channel: &str) -> Result<(), RedisError> {
        self.connection.subscribe(channel).await
    }
}

/// What the stream under the connection notices. The `redis` crate tells neither when an idle
/// connection ends, nor what a backend said unasked, nor does it bound a reply.
#[derive(Debug, Default)]
struct Tap {
    max_bytes: usize,
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
    /// What TLS has to do with that.
    tls: Option<Problem>,
}

impl Tap {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_bytes(&self) {
        self.heard().received = 0;
    }

    /// Takes note of bytes that came; none is the backend's FIN.
    fn take(&self, bytes: &[u8]) -> io::Result<()> {
        let mut heard = self.heard();
        let room = MAX_GREETING - heard.greeting.len();
        heard.greeting.extend_from_slice(&bytes[..bytes.len().min(room)]);
        heard.received += bytes.len();
        if heard.received > self.max_bytes {
            let words = format!("the replies are longer than {} bytes", self.max_bytes);
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
        let mut heard = self.heard();
        heard.ended = Some(Err(error.kind()));
        heard.tls = secured::problem(&error);
        drop(heard);
        self.cut.cancel();
        error
    }

    /// Why the connection failed. An error that the backend sent before it hung up tells more than
    /// the hang-up. It may repeat the password, so its words are dropped.
    fn problem(&self, error: &RedisError) -> Problem {
        let mut heard = self.heard();
        if let Some(problem) = heard.tls.take() {
            return problem;
        }
        let greeting = reply::classify_greeting(&heard.greeting);
        if let Some(failure) = greeting.filter(|_| !heard.settled) {
            return Problem { failure, words: None };
        }
        if let Some(code) = error.code().filter(|_| heard.ended.is_none()) {
            // The peer refused the login. Its words may repeat the password.
            return Problem {
                failure: reply::classify(code, error.detail().unwrap_or_default()),
                words: None,
            };
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
    stream: Stream,
    tap: Arc<Tap>,
}

impl Tapped {
    fn new(stream: Stream, max_bytes: usize) -> Self {
        Self { stream, tap: Arc::new(Tap { max_bytes, ..Tap::default() }) }
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::{
        net::{TcpListener, TcpStream},
        runtime,
        time::timeout,
    };

    use super::*;

    const MAX_BYTES: usize = 4096;

    /// Asks two questions over a line and over a wire at whose other end these pieces come, and then
    /// the end. Tells whether the line was answered.
    fn ask(pieces: &[Vec<u8>]) -> Option<bool> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let both = async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let connect = async || {
                let address = listener.local_addr().unwrap();
                let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
                (Stream::Plain(near.unwrap()), far.unwrap().0)
            };
            let say = async |mut far: TcpStream| {
                far.set_nodelay(true).unwrap();
                for piece in pieces {
                    // The other side may have heard enough.
                    let _ = far.write_all(piece).await;
                    tokio::task::yield_now().await;
                }
                let _ = far.shutdown().await;
                far
            };
            let mut questions = Pipeline::new();
            questions.cmd("PING").cmd("INFO");

            let (near, far) = connect().await;
            let mut line = Line::new(near, MAX_BYTES);
            let packed = Questions::new(&questions);
            let (answered, _far) = tokio::join!(line.ask(&packed), say(far));
            let is_answered = answered.is_ok_and(|replies| replies.len() == 2);
            assert!(is_answered || line.is_cut(), "what comes later answers nothing");

            let (near, far) = connect().await;
            let talk = async {
                let info = RedisConnectionInfo::default();
                let config = AsyncConnectionConfig::new();
                let mut wire = Wire::new(near, MAX_BYTES, info, config).await?;
                wire.send(&questions).await
            };
            let _ = tokio::join!(talk, say(far));
            is_answered
        };
        runtime.block_on(async { timeout(Duration::from_secs(20), both).await.ok() })
    }

    #[test]
    fn replies_come_in_any_pieces_and_nothing_else_is_one() {
        let replies = b"+PONG\r\n$5\r\nab\r\nc\r\n";
        for at in 0..replies.len() {
            let (one, other) = replies.split_at(at);
            assert_eq!(ask(&[one.to_vec(), other.to_vec()]), Some(true), "{at}");
            assert_eq!(ask(&[one.to_vec()]), Some(false), "{at}");
        }
        let long = [b"+PONG\r\n$9000\r\n".to_vec(), vec![b'x'; 9000], b"\r\n".to_vec()];
        assert_eq!(ask(&long), Some(false));
        let deep = b"*1\r\n".repeat(900);
        assert_eq!(ask(&[deep]), Some(false));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn no_words_of_a_peer_panic_or_keep_a_check(
            pieces in prop::collection::vec(
                prop_oneof![
                    // What looks like RESP, of either version.
                    "[-+:$*%~>|=(,#_!](-?[0-9]{0,3}|2147483647|18446744073709551616|t|inf|nan)\r\n"
                        .prop_map(String::into_bytes),
                    "[-+:,(][A-Z]{0,9} [ -~]{0,30}\r\n".prop_map(String::into_bytes),
                    "[$=][0-9]\r\n[ -~]{0,9}\r\n".prop_map(String::into_bytes),
                    prop::collection::vec(any::<u8>(), 0..40),
                ],
                0..12,
            )
        ) {
            prop_assert!(ask(&pieces).is_some(), "it ends with the connection");
        }
    }
}
