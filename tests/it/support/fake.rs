//! A scripted fake Redis, for faults that no real server shows.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    iter,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use super::SOON;

/// INFO as a master with nothing special answers it.
pub const INFO_MASTER: &str = "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n\
    master_replid:8f9d9b3c1f0a4f6f8a3d0f4a5b6c7d8e9f001122\r\n\
    master_replid2:0000000000000000000000000000000000000000\r\nmaster_repl_offset:42\r\n";

/// The same with this replid.
pub fn info_master(replid: &str) -> String {
    INFO_MASTER.replace("8f9d9b3c1f0a4f6f8a3d0f4a5b6c7d8e9f001122", replid)
}

/// The same of a replica.
pub fn info_replica() -> String {
    replica(INFO_MASTER)
}

fn replica(info: &str) -> String {
    info.replace("role:master", "role:slave")
}

/// A listening socket, and a thread for each connection. All end with the test process.
pub struct Fake {
    address: SocketAddr,
}

impl Fake {
    /// Runs the script on every connection; the connection closes when the script returns.
    pub fn start(
        script: impl Fn(FakeConnection) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(script);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let script = script.clone();
                stream.set_read_timeout(Some(SOON * 3)).unwrap();
                stream.set_nodelay(true).unwrap();
                thread::spawn(move || script(FakeConnection { stream: BufReader::new(stream) }));
            }
        });
        Self { address }
    }

    /// A master that answers every check, and hands other commands to the script.
    pub fn master(
        script: impl Fn(&mut FakeConnection, &[String]) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::demotable(Arc::default(), script)
    }

    /// The same, but it says that it is a replica while the flag is set.
    pub fn demotable(
        demoted: Arc<AtomicBool>,
        script: impl Fn(&mut FakeConnection, &[String]) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |connection| connection.serve(INFO_MASTER, &demoted, &script))
    }

    /// A master (a replica while the flag is set) that is checked over the one connection that it
    /// ever accepts. Others are refused, or while it `listens` wait in a backlog of one.
    pub fn once(demoted: Arc<AtomicBool>, listens: bool, info: &str) -> Self {
        let info = info.to_owned();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        thread::spawn(move || -> io::Result<()> {
            let connection = FakeConnection { stream: BufReader::new(listener.accept()?.0) };
            let _listener = listens.then_some(listener);
            connection.serve(&info, &demoted, |_, _| Ok(()))
        });
        Self { address }
    }

    /// Takes every place in the backlog of [`Self::once`], as long as the result lives.
    pub fn fill_backlog(&self) -> Vec<TcpStream> {
        let wait = Duration::from_millis(200);
        iter::from_fn(|| TcpStream::connect_timeout(&self.address, wait).ok()).collect()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The fake's side of a connection.
pub struct FakeConnection {
    stream: BufReader<TcpStream>,
}

impl FakeConnection {
    /// Answers checks, as a replica while the flag is set, and hands the rest to the script.
    fn serve(
        mut self,
        info: &str,
        demoted: &AtomicBool,
        script: impl Fn(&mut Self, &[String]) -> io::Result<()>,
    ) -> io::Result<()> {
        let replica = replica(info);
        loop {
            let command = self.command()?;
            let info = if demoted.load(Ordering::Relaxed) { &replica } else { info };
            if !self.answer_check(&command, info)? {
                script(&mut self, &command)?;
            }
        }
    }

    /// The next command, an array of bulk strings.
    pub fn command(&mut self) -> io::Result<Vec<String>> {
        let count = self.number('*')?;
        (0..count)
            .map(|_| {
                let mut bytes = vec![0; self.number('$')? + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            })
            .collect()
    }

    fn number(&mut self, kind: char) -> io::Result<usize> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let number = line.strip_prefix(kind).and_then(|rest| rest.trim().parse().ok());
        number.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes.as_ref())
    }

    /// Answers PING and INFO; false for any other command.
    pub fn answer_check(&mut self, command: &[String], replication: &str) -> io::Result<bool> {
        let words: Vec<_> = command.iter().map(String::as_str).collect();
        match words[..] {
            ["PING"] => self.send("+PONG\r\n")?,
            ["INFO", "replication"] => self.send(bulk(replication))?,
            ["INFO", "server"] => self.send(bulk("# Server\r\nrun_id:fake\r\n"))?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Reads and drops everything until the other side closes.
    pub fn drain(&mut self) -> io::Result<()> {
        io::copy(&mut self.stream, &mut io::sink()).map(drop)
    }

    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }
}

/// A bulk string.
pub fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}
