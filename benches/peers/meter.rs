//! What a proxy takes of the processors, and what other work takes of them meanwhile.

use std::{
    fs, process,
    time::{Duration, Instant},
};

use crate::{
    cores::{Cores, Place},
    figures::Figures,
    support::process::cpu_time,
};

pub struct Meter<'a> {
    pub cores: &'a Cores,
    /// Where the proxy runs.
    pub place: Place,
    pub proxy: Option<u32>,
}

pub struct Reading {
    at: Instant,
    proxy: Option<Duration>,
    /// What all that runs there for the benchmark has taken.
    ours: Duration,
    idle: Duration,
}

impl Meter<'_> {
    pub fn read(&self) -> Reading {
        let proxy = self.proxy.map(cpu_time);
        let ours = match self.place {
            Place::Proxy => proxy.unwrap_or_default(),
            _ => children().into_iter().chain([process::id()]).map(cpu_time).sum(),
        };
        Reading { at: Instant::now(), proxy, ours, idle: self.cores.idle(self.place) }
    }

    /// What so many requests since then have cost, and the share of other work.
    pub fn figures(&self, since: &Reading, requests: f64) -> Figures {
        let now = self.read();
        let took = (now.at - since.at).as_secs_f64();
        let ours = now.ours.saturating_sub(since.ours).as_secs_f64();
        let idle = now.idle.saturating_sub(since.idle).as_secs_f64();
        let other = 1.0 - (ours + idle) / (took * f64::from(self.cores.count(self.place)));
        let mut figures = Figures::from([("other %", other.max(0.0) * 100.0)]);
        if let (Some(before), Some(after)) = (since.proxy, now.proxy) {
            let ran = after.saturating_sub(before).as_secs_f64();
            figures.insert("CPU µs", ran * 1e6 / requests);
            figures.insert("busy %", ran / took * 100.0);
        }
        figures
    }
}

/// The processes that this one has started, and that it has not seen end.
pub fn children() -> Vec<u32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap);
    let list = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).ok();
    let lists: Vec<_> = tasks.filter_map(list).collect();
    lists.iter().flat_map(|list| list.split_whitespace()).map(|id| id.parse().unwrap()).collect()
}
