//! What all cases run on.

use std::io;

use rustix::process::{Resource, getrlimit};

use crate::{
    cores::{Cores, Place},
    figures::Figures,
    load::{Load, Turn, Window, store},
    meter::Meter,
    peer::{Peer, Proxy},
    redis_benchmark,
    support::Group,
};

/// Clients of the cases with many of them, where there are descriptors enough.
pub const CROWD: usize = 5000;

pub struct Lab {
    pub cores: Cores,
    pub window: Window,
    pub crowd: usize,
    /// Whether redis-benchmark makes the load.
    redis_benchmark: bool,
    /// Beside the core of the proxy, and on all cores.
    groups: [Group; 2],
}

/// A Redis with all values. Without replicas, which would take of each write more of the cores than
/// the proxy.
fn group(cores: &Cores, place: Place) -> Group {
    let group = cores.on(place, || Group::start(1));
    for size in [3, 16 << 10, 1 << 20] {
        store(&group.nodes[0], size);
    }
    group
}

impl Lab {
    pub fn new(window: Window, redis_benchmark: bool) -> Self {
        rolegate::net::raise_descriptor_limit();
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        // A session has two descriptors in the proxy.
        let fit = usize::try_from(limit.saturating_sub(500) / 2).unwrap();
        let cores = Cores::find();
        let groups = [Place::Rest, Place::Everywhere].map(|place| group(&cores, place));
        Self { cores, window, crowd: CROWD.min(fit), redis_benchmark, groups }
    }

    /// Starts it where it is to run, in front of these groups.
    pub fn start(&self, peer: Peer, groups: &[&Group]) -> Proxy {
        let [place, _] = peer.places();
        self.cores.on(place, || peer.start(groups, self.crowd + 100))
    }

    pub fn meter(&self, peer: Peer, proxy: &Proxy) -> Meter<'_> {
        let [place, _] = peer.places();
        Meter { cores: &self.cores, place, proxy: proxy.process() }
    }

    pub fn relay(&self, peer: Peer, load: &Load) -> io::Result<Figures> {
        let [_, rest] = peer.places();
        // Ports that connections to another Redis hold are free for this one.
        let fresh = matches!(load.turn, Turn::Connect).then(|| group(&self.cores, rest));
        let kept = &self.groups[usize::from(rest == Place::Everywhere)];
        let proxy = self.start(peer, &[fresh.as_ref().unwrap_or(kept)]);
        let meter = self.meter(peer, &proxy);
        self.cores.on(rest, || match self.redis_benchmark {
            true => redis_benchmark::run(load, proxy.address(0), &meter),
            false => load.run(proxy.address(0), &meter, self.window),
        })
    }
}
