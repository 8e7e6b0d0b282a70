//! Which cores the proxy gets, and which everything else.

use std::{fs, time::Duration};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// What a process or thread may run on.
#[derive(Clone, Copy, PartialEq)]
pub enum Place {
    /// The one core of a proxy with one thread.
    Proxy,
    /// All the others.
    Rest,
    Everywhere,
}

pub struct Cores {
    all: CpuSet,
    proxy: CpuSet,
    rest: CpuSet,
}

impl Cores {
    pub fn find() -> Self {
        let all = sched_getaffinity(None).unwrap();
        // The last: the first has more interrupts than others.
        let last = (0..CpuSet::MAX_CPU).rfind(|core| all.is_set(*core)).unwrap();
        let mut proxy = CpuSet::new();
        proxy.set(last);
        let mut rest = all;
        rest.unset(last);
        if rest.count() == 0 {
            rest = all;
        }
        Self { all, proxy, rest }
    }

    pub fn count(&self, place: Place) -> u32 {
        self.set(place).count()
    }

    fn set(&self, place: Place) -> &CpuSet {
        match place {
            Place::Proxy => &self.proxy,
            Place::Rest => &self.rest,
            Place::Everywhere => &self.all,
        }
    }

    /// How long its cores have been idle in all.
    pub fn idle(&self, place: Place) -> Duration {
        let set = self.set(place);
        let stat = fs::read_to_string("/proc/stat").unwrap();
        let ticks = |line: &str| {
            let (core, times) = line.strip_prefix("cpu")?.split_once(' ')?;
            let is_there = set.is_set(core.parse().ok()?);
            // Idle, and waiting for a disk.
            let idle = times.split(' ').skip(3).take(2).filter_map(|time| time.parse::<u64>().ok());
            is_there.then(|| idle.sum::<u64>())
        };
        let ticks: u64 = stat.lines().filter_map(ticks).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Runs this thread there for as long as `work` takes. Threads and processes that it starts
    /// stay there.
    pub fn on<T>(&self, place: Place, work: impl FnOnce() -> T) -> T {
        sched_setaffinity(None, self.set(place)).unwrap();
        let _back = Back(&self.all);
        work()
    }
}

/// Lets the thread run everywhere again, also after a panic.
struct Back<'a>(&'a CpuSet);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, self.0);
    }
}
