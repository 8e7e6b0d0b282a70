//! Thousands of clients: what they cost while they do nothing, and how they get from one master to
//! the next.

use std::{
    fs, io,
    net::SocketAddr,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    agenda::Agenda,
    figures::Figures,
    lab::Lab,
    load::login,
    peer::Peer,
    session::{Exchange, Poll, Session, gather, number},
    support::{Group, Node},
};

/// How long a client waits that was refused.
const BACKOFF: Duration = Duration::from_millis(5);
/// So many connect again between two looks at what has happened.
const AT_ONCE: usize = 16;
/// Until everybody has to be back.
const LIMIT: Duration = Duration::from_secs(30);

/// KiB of the proxy's own memory for each session that has passed a command on and then sleeps.
pub fn idle(lab: &Lab, peer: Peer) -> io::Result<Figures> {
    let [_, rest] = peer.places();
    let group = lab.cores.on(rest, || Group::start(2));
    let proxy = lab.start(peer, &[&group]);
    let process = proxy.process().ok_or(io::ErrorKind::NotFound)?;
    let exchange = login().then(&[b"PING"], b"+PONG\r\n");
    lab.cores.on(rest, || {
        let mut poll = Poll::new();
        let warm = gather(&mut poll, proxy.address(0), 50, &exchange)?;
        let before = memory(process)?;
        let mut poll = Poll::new();
        let sessions = gather(&mut poll, proxy.address(0), lab.crowd, &exchange)?;
        let grown = memory(process)?.saturating_sub(before);
        drop((warm, sessions));
        Ok(Figures::from([("PSS KiB a session", grown as f64 / lab.crowd as f64)]))
    })
}

/// Its proportional share of the memory it uses, in KiB.
fn memory(process: u32) -> io::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let size = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    size.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// How a master ends.
#[derive(Clone, Copy)]
pub enum Event {
    Kill,
    Demote,
}

impl Event {
    /// Lets it happen, and tells when it did.
    fn happen(self, [a, b]: &mut [Node; 2]) -> Instant {
        match self {
            Self::Kill => {
                let at = a.kill();
                b.promote();
                at
            }
            Self::Demote => {
                b.promote();
                let at = Instant::now();
                a.call(&["REPLICAOF", "127.0.0.1", &b.port().to_string()]);
                at
            }
        }
    }
}

/// What happens to the clients of a master that ends, until all are at the next.
pub fn drop_all(lab: &Lab, peer: Peer, event: Event) -> io::Result<Figures> {
    let group = Group::start(2);
    let proxy = lab.start(peer, &[&group]);
    let [before, after] = [0, 1].map(|node| to_node(&group.nodes[node]));
    let Ok(mut nodes) = <[Node; 2]>::try_from(group.nodes) else { unreachable!("two nodes") };
    let after = (peer != Peer::Direct).then_some(&after);
    let mut crowd = Crowd::gather(proxy.address(0), lab.crowd, &before, after)?;
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| tell.send(event.happen(&mut nodes)));
        crowd.run()
    })?;
    let event = told.recv().map_err(io::Error::other)?;
    Ok(crowd.figures(event))
}

/// The exchange that succeeds only with this node.
fn to_node(node: &Node) -> Exchange {
    let port = node.port();
    let reply = format!("*2\r\n$4\r\nport\r\n$5\r\n{port}\r\n");
    login().then(&[b"CONFIG", b"GET", b"port"], reply.as_bytes())
}

struct Member<'a> {
    session: Option<Session<'a>>,
    closed: Option<Instant>,
    back: Option<Instant>,
}

struct Crowd<'a> {
    address: SocketAddr,
    poll: Poll,
    members: Vec<Member<'a>>,
    /// Who connects again, and when.
    queue: Agenda,
    /// Where they do not come back to, as without a proxy, there is nothing.
    after: Option<&'a Exchange>,
    refused: usize,
}

impl<'a> Crowd<'a> {
    fn gather(
        address: SocketAddr,
        count: usize,
        before: &'a Exchange,
        after: Option<&'a Exchange>,
    ) -> io::Result<Self> {
        let mut poll = Poll::new();
        let sessions = gather(&mut poll, address, count, before)?;
        let member = |session| Member { session: Some(session), closed: None, back: None };
        let members = sessions.into_iter().map(member).collect();
        Ok(Self { address, poll, members, queue: Agenda::default(), after, refused: 0 })
    }

    /// Until everybody has been closed and is back.
    fn run(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + LIMIT;
        let mut events = Vec::new();
        while !self.members.iter().all(|member| self.is_over(member)) {
            if Instant::now() > deadline {
                let count = |is: fn(&Member<'_>) -> bool| {
                    self.members.iter().filter(|member| is(member)).count()
                };
                return Err(io::Error::other(format!(
                    "in {LIMIT:?} {} of {} clients were closed, and {} came back",
                    count(|member| member.closed.is_some()),
                    self.members.len(),
                    count(|member| member.back.is_some()),
                )));
            }
            self.poll.wait(&mut events, self.queue.pause())?;
            for event in &events {
                let number = number(event);
                let member = &mut self.members[number];
                let Some(session) = &mut member.session else { continue };
                match session.advance(&mut self.poll, event) {
                    Ok(false) => {}
                    Ok(true) => member.back = Some(Instant::now()),
                    Err(_) => self.lose(number),
                }
            }
            // This thread is all clients at once: what happens to some is seen before others act.
            if let (true, Some(after)) = (events.is_empty(), self.after) {
                self.connect_again(after);
            }
        }
        Ok(())
    }

    fn is_over(&self, member: &Member<'_>) -> bool {
        let end = if self.after.is_some() { member.back } else { member.closed };
        end.is_some()
    }

    /// A few of those whose time has come.
    fn connect_again(&mut self, after: &'a Exchange) {
        for _ in 0..AT_ONCE {
            let Some((_, number)) = self.queue.pop() else { break };
            match Session::open(&self.poll, number, self.address, after) {
                Ok(session) => self.members[number].session = Some(session),
                Err(_) => self.lose(number),
            }
        }
    }

    /// Its connection is over. The first time it connects again at once.
    fn lose(&mut self, number: usize) {
        let member = &mut self.members[number];
        let now = Instant::now();
        (member.session, member.back) = (None, None);
        match member.closed {
            None => {
                member.closed = Some(now);
                self.queue.push(now, number);
            }
            Some(_) => {
                self.refused += 1;
                self.queue.push(now + BACKOFF, number);
            }
        }
    }

    fn figures(&self, event: Instant) -> Figures {
        let last =
            |of: fn(&Member<'_>) -> Option<Instant>| self.members.iter().filter_map(of).max();
        let first = self.members.iter().filter_map(|member| member.closed).min().unwrap_or(event);
        let since = |at: Instant, from| at.saturating_duration_since(from).as_secs_f64() * 1e3;
        let mut figures = Figures::from([("first closed ms", since(first, event))]);
        if let Some(at) = last(|member| member.closed) {
            figures.insert("last closed ms", since(at, event));
            figures.insert("first to last closed ms", since(at, first));
        }
        if let Some(at) = last(|member| member.back) {
            figures.insert("all back ms", since(at, event));
            figures.insert("first closed to all back ms", since(at, first));
            figures.insert("refused", self.refused as f64);
        }
        figures
    }
}
