//! The load: clients that each send the next request when the reply to the last has come.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    agenda::Agenda,
    figures::Figures,
    meter::{Meter, Reading},
    session::{Exchange, Poll, STALLED, Session, gather, number},
    support::{Node, PASSWORD},
};

/// How long a load runs, and how long of that before it is measured.
#[derive(Clone, Copy)]
pub struct Window {
    pub warm_up: Duration,
    pub length: Duration,
}

/// When a client begins with its next exchange.
#[derive(Clone, Copy)]
pub enum Turn {
    AtOnce,
    /// Over a connection of its own.
    Connect,
    /// So long after it had to begin with the last, and as soon as that is done. What it waits for
    /// that counts as latency.
    Every(Duration),
}

/// Connections that a load over new ones makes, and how many of them before it is measured: each
/// holds a port for a minute, here and between the proxy and Redis.
const CONNECTIONS: usize = 5500;
const WARM_CONNECTIONS: usize = 500;

#[derive(Clone, Copy)]
pub enum Verb {
    Get,
    Set,
}

pub struct Load {
    pub clients: usize,
    /// Commands in an exchange.
    pub pipeline: usize,
    pub verb: Verb,
    /// Of the value.
    pub size: usize,
    pub turn: Turn,
}

/// What each client says first.
pub fn login() -> Exchange {
    Exchange::default().then(&[b"AUTH", PASSWORD.as_bytes()], b"+OK\r\n")
}

/// The key of the value of this size.
pub fn key(size: usize) -> String {
    format!("value:{size}")
}

pub fn value(size: usize) -> String {
    "x".repeat(size)
}

/// Puts a value of this size there for [`Verb::Get`].
pub fn store(node: &Node, size: usize) {
    node.call(&["SET", &key(size), &value(size)]);
}

impl Load {
    fn exchange(&self) -> Exchange {
        let (key, value) = (key(self.size), value(self.size));
        let first = match self.turn {
            Turn::Connect => login(),
            _ => Exchange::default(),
        };
        (0..self.pipeline).fold(first, |exchange, _| match self.verb {
            Verb::Get => {
                let reply = format!("${}\r\n{value}\r\n", self.size);
                exchange.then(&[b"GET", key.as_bytes()], reply.as_bytes())
            }
            Verb::Set => exchange.then(&[b"SET", key.as_bytes(), value.as_bytes()], b"+OK\r\n"),
        })
    }

    /// Runs it, and tells how fast it was and what it cost the proxy.
    pub fn run(
        &self,
        address: SocketAddr,
        meter: &Meter<'_>,
        window: Window,
    ) -> io::Result<Figures> {
        let mut poll = Poll::new();
        let (login, exchange) = (login(), self.exchange());
        let mut sessions = match self.turn {
            Turn::Connect => (0..self.clients)
                .map(|number| Session::open(&poll, number, address, &exchange))
                .collect::<io::Result<_>>()?,
            _ => gather(&mut poll, address, self.clients, &login)?,
        };
        let mut agenda = Agenda::default();
        for (number, session) in sessions.iter_mut().enumerate() {
            let now = Instant::now();
            match self.turn {
                Turn::Connect => {}
                Turn::AtOnce => session.begin(&exchange, now)?,
                Turn::Every(pace) => {
                    agenda.push(now + pace.mul_f64(number as f64 / self.clients as f64), number);
                }
            }
        }
        let mut latencies = Vec::with_capacity(1 << 20);
        let mut events = Vec::new();
        let start = Instant::now() + window.warm_up;
        let (mut measured, mut last) = (None, Instant::now());
        let mut opened = self.clients;
        loop {
            while let Some((due, number)) = agenda.pop() {
                sessions[number].begin(&exchange, due)?;
            }
            poll.wait(&mut events, agenda.pause())?;
            let mut now = Instant::now();
            for event in &events {
                let number = number(event);
                let session = &mut sessions[number];
                if !session.advance(&mut poll, event)? {
                    continue;
                }
                now = Instant::now();
                if measured.is_some() {
                    latencies
                        .push(u32::try_from((now - session.began).as_nanos()).unwrap_or(u32::MAX));
                }
                last = now;
                match self.turn {
                    Turn::Connect => {
                        *session = Session::open(&poll, number, address, &exchange)?;
                        opened += 1;
                    }
                    Turn::AtOnce => session.begin(&exchange, now)?,
                    Turn::Every(pace) => agenda.push(session.began + pace, number),
                }
            }
            let is_warm = match self.turn {
                Turn::Connect => opened >= WARM_CONNECTIONS,
                _ => now >= start,
            };
            match &measured {
                None if is_warm => measured = Some((now, meter.read())),
                Some((since, before)) if now >= *since + window.length || opened >= CONNECTIONS => {
                    return Ok(self.figures(latencies, now - *since, meter, before));
                }
                _ if last.elapsed() > STALLED => return Err(io::Error::other("no reply comes")),
                _ => {}
            }
        }
    }

    fn figures(
        &self,
        mut latencies: Vec<u32>,
        took: Duration,
        meter: &Meter<'_>,
        before: &Reading,
    ) -> Figures {
        latencies.sort_unstable();
        let at = |thousandths: usize| {
            let nanoseconds = latencies.get(latencies.len() * thousandths / 1000);
            nanoseconds.map_or(f64::NAN, |nanoseconds| f64::from(*nanoseconds) / 1e6)
        };
        let requests = (latencies.len() * self.pipeline) as f64;
        let mut figures = meter.figures(before, requests);
        figures.extend([
            ("requests/s", requests / took.as_secs_f64()),
            ("p50 ms", at(500)),
            ("p99 ms", at(990)),
            ("p99.9 ms", at(999)),
        ]);
        figures
    }
}
