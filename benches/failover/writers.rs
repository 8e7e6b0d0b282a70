//! Clients that write all the time and remember every ack, and observers of a node's role.

use std::{
    io, mem,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    front::login,
    pause,
    support::{Client, PASSWORD, Reply},
};

const PACE: Duration = Duration::from_millis(10);
const TIMEOUT: Duration = Duration::from_secs(2);
/// Of the one writer that waits as clients without a timeout do.
const PATIENT: Duration = Duration::from_secs(60);
/// Between two looks at a node's role.
const LOOK: Duration = Duration::from_millis(2);

/// The set that takes every write.
pub const KEY: &str = "acked";

/// One write that was answered with success.
pub struct Ack {
    pub at: Instant,
    pub member: String,
    /// The port of the node that answered.
    pub node: u16,
}

struct Writer {
    name: String,
    address: SocketAddr,
    /// Connects anew for each write.
    churn: bool,
    timeout: Duration,
    acks: Mutex<Vec<Ack>>,
    stop: AtomicBool,
}

impl Writer {
    fn run(&self) {
        let mut session = None;
        let mut counter = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            counter += 1;
            let member = format!("{}:{counter}", self.name);
            let Ok(node) = self.write(&mut session, &member) else {
                session = None;
                pause(PACE);
                continue;
            };
            self.acks.lock().unwrap().push(Ack { at: Instant::now(), member, node });
            if self.churn {
                session = None;
            }
            pause(PACE.saturating_sub(began.elapsed()));
        }
    }

    /// Gives the port of the node that took the write.
    fn write(&self, session: &mut Option<(Client, u16)>, member: &str) -> io::Result<u16> {
        let (client, node) = match session {
            Some(session) => session,
            None => session.insert(login(self.address, self.timeout)?),
        };
        match client.call(&["SADD", KEY, member])? {
            Reply::Int(_) => Ok(*node),
            other => Err(io::Error::other(other.text())),
        }
    }
}

/// Everything that writes through one proxy: four that keep their connection, and one that does
/// not.
pub struct Writers(Vec<(Arc<Writer>, JoinHandle<()>)>);

impl Writers {
    pub fn start(column: &str, address: SocketAddr) -> Self {
        let start = |(phase, (name, churn, timeout))| {
            let name = format!("{column}-{name}");
            let (acks, stop) = Default::default();
            let writer = Arc::new(Writer { name, address, churn, timeout, acks, stop });
            let thread = thread::spawn({
                let writer = writer.clone();
                move || {
                    // Not all at the same moments, so that no moment is without a write.
                    pause(PACE * phase / 5);
                    writer.run();
                }
            });
            (writer, thread)
        };
        let kinds = [
            ("0", false, TIMEOUT),
            ("1", false, TIMEOUT),
            ("2", false, TIMEOUT),
            ("patient", false, PATIENT),
            ("churn", true, TIMEOUT),
        ];
        Self((0..).zip(kinds).map(start).collect())
    }

    /// The acks of the writer that has the fewest.
    pub fn progress(&self) -> usize {
        let counts = self.0.iter().map(|(writer, _)| writer.acks.lock().unwrap().len());
        counts.min().unwrap_or(0)
    }

    /// Says that no write shall begin any more.
    pub fn stop(&self) {
        for (writer, _) in &self.0 {
            writer.stop.store(true, Ordering::Relaxed);
        }
    }

    /// For each writer whether it is the one that reconnects, and its acks. The proxy must have
    /// ended, so that nobody waits for a reply.
    pub fn join(mut self) -> Vec<(bool, Vec<Ack>)> {
        self.stop();
        let join = |(writer, thread): (Arc<Writer>, JoinHandle<()>)| {
            thread.join().expect("a writer does not panic");
            (writer.churn, mem::take(&mut *writer.acks.lock().unwrap()))
        };
        mem::take(&mut self.0).into_iter().map(join).collect()
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// When the node was seen first with another role than before, and which.
type Roles = Arc<Mutex<Vec<(Span, String)>>>;

/// Something happened between these moments.
#[derive(Clone, Copy)]
pub struct Span {
    pub after: Instant,
    pub seen: Instant,
}

/// Asks a node for its role all the time, past every proxy.
pub struct Watch {
    roles: Roles,
    stop: Arc<AtomicBool>,
}

impl Watch {
    pub fn start(address: SocketAddr) -> Self {
        let watch = Self { roles: Arc::default(), stop: Arc::default() };
        let (roles, stop) = (watch.roles.clone(), watch.stop.clone());
        thread::spawn(move || {
            let mut before = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                // A node may be down or silent, and Sentinel cuts everybody as it promotes one.
                let _ = look(address, &roles, &stop, &mut before);
                pause(LOOK / 4);
            }
        });
        watch
    }

    /// When it took this role for the first time after that moment.
    pub fn first(&self, role: &str, after: Instant) -> Option<Span> {
        let roles = self.roles.lock().unwrap();
        roles.iter().find(|(span, seen)| span.seen > after && seen == role).map(|(span, _)| *span)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Looks over one connection until it breaks. `before` is when the question was sent that got the
/// last answer.
fn look(
    address: SocketAddr,
    roles: &Roles,
    stop: &AtomicBool,
    before: &mut Instant,
) -> io::Result<()> {
    let mut client = Client::connect(address)?;
    client.set_read_timeout(Duration::from_millis(300));
    client.call(&["AUTH", PASSWORD])?;
    let mut last = String::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let info = client.call(&["INFO", "replication"])?.text();
        let span = Span { after: *before, seen: Instant::now() };
        *before = asked;
        let role = info.lines().find_map(|line| line.strip_prefix("role:")).unwrap_or_default();
        if role != last {
            role.clone_into(&mut last);
            roles.lock().unwrap().push((span, last.clone()));
        }
        pause(LOOK);
    }
    Ok(())
}
