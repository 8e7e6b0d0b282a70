//! Whether big values of one pool slow down small ones of another on the same worker.

use std::{
    array,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::gettid;

use crate::{
    figures::Figures,
    lab::Lab,
    load::{Load, Turn, Verb, Window, key, store},
    peer::Peer,
    session::STALLED,
    support::{Group, PASSWORD, encode, eventually},
};

const BIG: usize = 64 << 20;
const READERS: usize = 2;

/// Of each small client. That is 2,000 requests a second in all, far below what fills a core, so
/// that what slows them down is not that they are many.
const PACE: Duration = Duration::from_millis(25);

pub fn run(lab: &Lab, peer: Peer) -> io::Result<Figures> {
    let [_, rest] = peer.places();
    let start = |size| {
        let group = Group::start(1);
        store(&group.nodes[0], size);
        group
    };
    let small = lab.cores.on(rest, || start(3));
    let big = lab.cores.on(rest, || {
        let start = || {
            stand_back();
            start(BIG)
        };
        thread::scope(|scope| scope.spawn(start).join().expect("Redis starts"))
    });
    let proxy = lab.start(peer, &[&small, &big]);
    let (verb, turn) = (Verb::Get, Turn::Every(PACE));
    let load = Load { clients: 50, pipeline: 1, verb, size: 3, turn };
    // Few requests want more time.
    let window = Window { length: lab.window.length * 2, ..lab.window };
    let run = || load.run(proxy.address(0), &lab.meter(peer, &proxy), window);
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    lab.cores.on(rest, || {
        let alone = run()?;
        let (beside, rate) = thread::scope(|scope| -> io::Result<_> {
            let stop_all = Stop(&stop);
            let readers: [_; READERS] = array::from_fn(|_| {
                scope.spawn(|| {
                    stand_back();
                    read(proxy.address(1), &stop, &count)
                })
            });
            let so_far = || count.load(Ordering::Relaxed);
            eventually("big values are read", || {
                let failed = readers.iter().any(thread::ScopedJoinHandle::is_finished);
                (failed || so_far() > BIG as u64).then_some(())
            });
            let (since, before) = (Instant::now(), so_far());
            let beside = run()?;
            let rate = (so_far() - before) as f64 / since.elapsed().as_secs_f64();
            drop(stop_all);
            for reader in readers {
                let read = reader.join().expect("a reader does not panic");
                read.map_err(|error| io::Error::other(format!("a reader of big values: {error}")))?;
            }
            Ok((beside, rate))
        })?;
        let [p99, other] = ["p99 ms", "other %"].map(|name| {
            let value = |figures: &Figures| figures.get(name).copied().unwrap_or_default();
            [value(&alone), value(&beside)]
        });
        Ok(Figures::from([
            ("p99 alone ms", p99[0]),
            ("p99 beside ms", p99[1]),
            ("p99 beside : alone", p99[1] / p99[0]),
            ("read MB/s", rate / 1e6),
            ("other %", other[0].max(other[1])),
        ]))
    })
}

/// Tells the readers to stop, also after a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets this thread, and what it starts, run only when nobody else wants its core: what reads big
/// values, and the Redis that it reads them from, do so where they share one with the small load,
/// so that only the proxy can be what slows that down.
fn stand_back() {
    let thread = gettid().as_raw_nonzero().to_string();
    let status = Command::new("chrt").args(["--idle", "--pid", "0", &thread]).status();
    assert!(status.unwrap().success(), "chrt");
}

/// Reads the big value again and again over one connection.
fn read(address: SocketAddr, stop: &AtomicBool, count: &AtomicU64) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(STALLED))?;
    let mut buffer = vec![0; 256 << 10];
    stream.write_all(&encode(&[b"AUTH", PASSWORD.as_bytes()]))?;
    stream.read_exact(&mut buffer[.."+OK\r\n".len()])?;
    let request = encode(&[b"GET", key(BIG).as_bytes()]);
    let length = format!("${BIG}\r\n").len() + BIG + "\r\n".len();
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&request)?;
        let mut reply = (&mut stream).take(length as u64);
        while reply.limit() > 0 && !stop.load(Ordering::Relaxed) {
            let read = reply.read(&mut buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            count.fetch_add(read as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}
