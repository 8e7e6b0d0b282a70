//! A client of the load: a connection that sends requests made beforehand, and compares replies.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
};
use socket2::{Domain, Socket, Type};

use crate::support::encode;

/// So much of a reply is compared, which is all of a small one; of the rest only the length.
const HEAD: usize = 64;
/// What one read takes at the most.
const BUFFER: usize = 256 * 1024;
/// So many connect at the same time at the most, fewer than wait in the queue of a Redis (511).
const WAVE: usize = 100;
/// Ample for anything to happen on a connection.
pub const STALLED: Duration = Duration::from_secs(20);

/// Commands that go out in one piece, and what has to come back.
#[derive(Clone, Default)]
pub struct Exchange {
    request: Vec<u8>,
    head: Vec<u8>,
    length: usize,
}

impl Exchange {
    pub fn then(mut self, command: &[&[u8]], reply: &[u8]) -> Self {
        self.request.extend(encode(command));
        let missing = HEAD - self.head.len();
        self.head.extend(reply.iter().take(missing));
        self.length += reply.len();
        self
    }

    /// Whether a reply may go on with these bytes after so many others.
    fn allows(&self, got: usize, bytes: &[u8]) -> bool {
        let head = self.head.get(got..).unwrap_or_default();
        let length = head.len().min(bytes.len());
        got + bytes.len() <= self.length && head[..length] == bytes[..length]
    }
}

/// Waits for connections, and holds what they read.
pub struct Poll {
    epoll: OwnedFd,
    buffer: Vec<u8>,
}

impl Poll {
    pub fn new() -> Self {
        let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
        Self { epoll, buffer: vec![0; BUFFER] }
    }

    /// Waits so long at the most, and replaces the events.
    pub fn wait(&self, events: &mut Vec<Event>, limit: Duration) -> io::Result<()> {
        events.clear();
        events.reserve(512);
        let limit = Timespec::try_from(limit).unwrap();
        match epoll::wait(&self.epoll, spare_capacity(events), Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Which connection an event is about.
pub fn number(event: &Event) -> usize {
    usize::try_from(event.data.u64()).unwrap()
}

/// A connection with one exchange under way, or done.
pub struct Session<'a> {
    stream: TcpStream,
    exchange: &'a Exchange,
    sent: usize,
    got: usize,
    pub began: Instant,
}

impl<'a> Session<'a> {
    /// Begins to connect, and with the exchange as soon as that is done.
    pub fn open(
        poll: &Poll,
        number: usize,
        address: SocketAddr,
        exchange: &'a Exchange,
    ) -> io::Result<Self> {
        let began = Instant::now();
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Err(error)
                if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
            {
                return Err(error);
            }
            _ => {}
        }
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&poll.epoll, &socket, EventData::new_u64(number as u64), flags)?;
        let mut session = Self { stream: socket.into(), exchange, sent: 0, got: 0, began };
        session.write()?;
        Ok(session)
    }

    /// Sends the next request.
    pub fn begin(&mut self, exchange: &'a Exchange, now: Instant) -> io::Result<()> {
        (self.exchange, self.sent, self.got, self.began) = (exchange, 0, 0, now);
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        let rest = &self.exchange.request[self.sent..];
        if rest.is_empty() {
            return Ok(());
        }
        match self.stream.write(rest) {
            // What is left goes out when there is room again.
            Ok(count) => self.sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Goes on after this event; true when the exchange is done by it.
    pub fn advance(&mut self, poll: &mut Poll, event: &Event) -> io::Result<bool> {
        self.write()?;
        if { event.flags } == EventFlags::OUT {
            return Ok(false);
        }
        loop {
            let count = match self.stream.read(&mut poll.buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            let bytes = &poll.buffer[..count];
            if !self.exchange.allows(self.got, bytes) {
                let text = String::from_utf8_lossy(&bytes[..count.min(HEAD)]).into_owned();
                return Err(io::Error::new(ErrorKind::InvalidData, text));
            }
            self.got += count;
            if self.got == self.exchange.length {
                return Ok(true);
            }
            if count < BUFFER {
                return Ok(false);
            }
        }
    }
}

/// Opens so many sessions that have done this exchange.
pub fn gather<'a>(
    poll: &mut Poll,
    address: SocketAddr,
    count: usize,
    exchange: &'a Exchange,
) -> io::Result<Vec<Session<'a>>> {
    let mut sessions: Vec<Session<'a>> = Vec::with_capacity(count);
    let (mut done, mut events) = (0, Vec::new());
    let mut last = Instant::now();
    while done < count {
        while sessions.len() < count.min(done + WAVE) {
            sessions.push(Session::open(poll, sessions.len(), address, exchange)?);
        }
        poll.wait(&mut events, Duration::from_millis(100))?;
        for event in &events {
            if sessions[number(event)].advance(poll, event)? {
                done += 1;
                last = Instant::now();
            }
        }
        if last.elapsed() > STALLED {
            return Err(io::Error::other(format!("only {done} of {count} clients got through")));
        }
    }
    Ok(sessions)
}
