//! What each peer has to do.

use std::io;

use clap::ValueEnum;

use crate::{
    crowd::{self, Event},
    fairness,
    figures::Figures,
    lab::Lab,
    load::{Load, Turn, Verb},
    peer::Peer,
};

const KIB_16: usize = 16 << 10;
const MIB: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// GET of 3 bytes, 1 client
    #[value(name = "get-1")]
    Get1,
    /// GET of 3 bytes, 50 clients
    #[value(name = "get-50")]
    Get50,
    /// GET of 3 bytes, 500 clients
    #[value(name = "get-500")]
    Get500,
    /// SET of 3 bytes, 50 clients
    #[value(name = "set-50")]
    Set50,
    /// GET of 3 bytes, 50 clients with pipelines of 16
    GetP16,
    /// SET of 3 bytes, 50 clients with pipelines of 16
    SetP16,
    /// GET of 16 KiB, 20 clients
    #[value(name = "get-16k")]
    Get16k,
    /// SET of 16 KiB, 20 clients
    #[value(name = "set-16k")]
    Set16k,
    /// GET of 1 MiB, 4 clients
    #[value(name = "get-1m")]
    Get1m,
    /// SET of 1 MiB, 4 clients
    #[value(name = "set-1m")]
    Set1m,
    /// A new connection for each GET of 3 bytes, 50 clients
    Connect,
    /// Memory of 5,000 sessions that do nothing
    Idle,
    /// kill -9 of the master under 5,000 sessions
    Kill,
    /// REPLICAOF on the master under 5,000 sessions
    Demote,
    /// GET of 3 bytes, 50 clients, beside two readers of 64 MiB values of another pool
    Fairness,
}

impl Case {
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub fn help(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| Some(value.get_help()?.to_string())).unwrap_or_default()
    }

    pub fn peers(self) -> Vec<Peer> {
        let takes_part = |peer: &Peer| match (self, peer) {
            (Self::Kill, Peer::Direct) => true,
            (Self::Kill | Self::Demote, _) => matches!(peer, Peer::RolegateAll | Peer::HaproxyAll),
            (Self::Fairness, Peer::RolegateAll | Peer::HaproxyAll) => false,
            (Self::Idle, Peer::Direct) => false,
            (_, Peer::Splice1) => {
                matches!(self, Self::Get16k | Self::Set16k | Self::Get1m | Self::Set1m)
            }
            _ => true,
        };
        Peer::ALL.into_iter().filter(takes_part).collect()
    }

    pub fn relays(self) -> bool {
        !matches!(self, Self::Idle | Self::Kill | Self::Demote | Self::Fairness)
    }

    /// What is measured, in the order of its table.
    pub fn figures(self) -> &'static [&'static str] {
        match self {
            Self::Idle => &["PSS KiB a session"],
            Self::Kill | Self::Demote => &[
                "first closed ms",
                "last closed ms",
                "first to last closed ms",
                "all back ms",
                "first closed to all back ms",
                "refused",
            ],
            Self::Fairness => {
                &["p99 alone ms", "p99 beside ms", "p99 beside : alone", "read MB/s", "other %"]
            }
            _ => &["requests/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU µs", "busy %", "other %"],
        }
    }

    /// Runs it once.
    pub fn run(self, peer: Peer, lab: &Lab) -> io::Result<Figures> {
        let (clients, pipeline, verb, size) = match self {
            Self::Get1 => (1, 1, Verb::Get, 3),
            Self::Get50 | Self::Connect => (50, 1, Verb::Get, 3),
            Self::Get500 => (500, 1, Verb::Get, 3),
            Self::Set50 => (50, 1, Verb::Set, 3),
            Self::GetP16 => (50, 16, Verb::Get, 3),
            Self::SetP16 => (50, 16, Verb::Set, 3),
            Self::Get16k => (20, 1, Verb::Get, KIB_16),
            Self::Set16k => (20, 1, Verb::Set, KIB_16),
            Self::Get1m => (4, 1, Verb::Get, MIB),
            Self::Set1m => (4, 1, Verb::Set, MIB),
            Self::Idle => return crowd::idle(lab, peer),
            Self::Kill => return crowd::drop_all(lab, peer, Event::Kill),
            Self::Demote => return crowd::drop_all(lab, peer, Event::Demote),
            Self::Fairness => return fairness::run(lab, peer),
        };
        let turn = if self == Self::Connect { Turn::Connect } else { Turn::AtOnce };
        lab.relay(peer, &Load { clients, pipeline, verb, size, turn })
    }
}
