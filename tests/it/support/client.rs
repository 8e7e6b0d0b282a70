//! A Redis client that hides nothing: it sends bytes and reads replies one by one.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    thread::{self, JoinHandle},
    time::Duration,
};

use super::SOON;

/// One RESP2 or RESP3 reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Self>),
}

impl Reply {
    pub fn text(&self) -> String {
        match self {
            Self::Simple(text) | Self::Error(text) => text.clone(),
            Self::Int(number) => number.to_string(),
            Self::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Nil => "(nil)".to_owned(),
            Self::Array(items) => items.iter().map(Self::text).collect::<Vec<_>>().join(" "),
        }
    }
}

/// A connection, also one over TLS.
pub trait Connection: Read + Write + Send {
    /// Says that nothing more will be sent.
    fn finish(&mut self);
}

impl Connection for TcpStream {
    fn finish(&mut self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

/// A connection. Reads fail after [`SOON`].
pub struct Client {
    stream: BufReader<Box<dyn Connection>>,
    socket: TcpStream,
}

impl Client {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        Self::new(socket, |socket| Ok(Box::new(socket)))
    }

    /// Over a unix socket.
    pub fn connect_unix(path: &Path) -> io::Result<Self> {
        let socket = OwnedFd::from(UnixStream::connect(path)?).into();
        Self::new(socket, |socket| Ok(Box::new(socket)))
    }

    /// Connects, and speaks over what this makes of the socket.
    pub fn over(
        address: SocketAddr,
        wrap: impl FnOnce(TcpStream) -> io::Result<Box<dyn Connection>>,
    ) -> io::Result<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        Self::new(socket, wrap)
    }

    fn new(
        socket: TcpStream,
        wrap: impl FnOnce(TcpStream) -> io::Result<Box<dyn Connection>>,
    ) -> io::Result<Self> {
        socket.set_read_timeout(Some(SOON))?;
        socket.set_write_timeout(Some(SOON))?;
        let stream = BufReader::new(wrap(socket.try_clone()?)?);
        Ok(Self { stream, socket })
    }

    /// Connects and logs in.
    pub fn login(address: SocketAddr, password: &str) -> io::Result<Self> {
        let mut client = Self::connect(address)?;
        match client.call(&["AUTH", password])? {
            Reply::Simple(_) => Ok(client),
            other => Err(io::Error::other(other.text())),
        }
    }

    pub fn call(&mut self, command: &[&str]) -> io::Result<Reply> {
        self.send(command)?;
        self.read()
    }

    pub fn send(&mut self, command: &[&str]) -> io::Result<()> {
        let command: Vec<_> = command.iter().map(|word| word.as_bytes()).collect();
        self.send_raw(&encode(&command))
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    /// Sends the command again and again from another thread, until the connection breaks.
    pub fn flood(&self, command: &[&str]) -> JoinHandle<()> {
        let mut stream = self.socket.try_clone().unwrap();
        let command: Vec<_> = command.iter().map(|word| word.as_bytes()).collect();
        let command = encode(&command);
        thread::spawn(move || while stream.write_all(&command).is_ok() {})
    }

    /// Says that nothing more will be sent; replies can still be read.
    pub fn finish(&mut self) {
        self.stream.get_mut().finish();
    }

    /// Closes with a RST.
    pub fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }

    pub fn set_read_timeout(&mut self, timeout: Duration) {
        self.socket.set_read_timeout(Some(timeout)).unwrap();
    }

    /// Reads one reply. `UnexpectedEof` at a FIN, `ConnectionReset` at a RST.
    pub fn read(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let (kind, rest) = line.split_at(1);
        Ok(match kind {
            "+" => Reply::Simple(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Int(rest.parse().unwrap()),
            "_" => Reply::Nil,
            "$" | "=" => match rest.parse::<usize>() {
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    self.stream.read_exact(&mut bytes)?;
                    bytes.truncate(length);
                    Reply::Bulk(bytes)
                }
                Err(_) => Reply::Nil,
            },
            "*" | ">" | "~" => self.read_many(rest.parse().unwrap_or(0))?,
            "%" => self.read_many(2 * rest.parse::<usize>().unwrap())?,
            other => panic!("not RESP: {other}{rest}"),
        })
    }

    fn read_many(&mut self, count: usize) -> io::Result<Reply> {
        (0..count).map(|_| self.read()).collect::<io::Result<_>>().map(Reply::Array)
    }

    /// Reads everything until the other side ends the connection, and counts it.
    pub fn drain(&mut self) -> u64 {
        let mut count = 0;
        loop {
            match self.stream.fill_buf().map(<[u8]>::len) {
                Ok(0) | Err(_) => return count,
                Ok(length) => {
                    self.stream.consume(length);
                    count += length as u64;
                }
            }
        }
    }

    /// Waits until the other side ends the connection, and tells how. Replies that come before
    /// are collected.
    pub fn end(&mut self) -> (Vec<Reply>, io::ErrorKind) {
        let mut replies = Vec::new();
        loop {
            match self.read() {
                Ok(reply) => replies.push(reply),
                Err(error) => return (replies, error.kind()),
            }
        }
    }
}

/// A command as an array of bulk strings.
pub fn encode(command: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}
