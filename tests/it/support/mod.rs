//! What tests start and talk to.

mod client;
mod fake;
pub mod process;
mod redis;
mod rolegate;
mod tls;

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

pub use self::{
    client::{Client, Reply, encode},
    fake::{Fake, FakeConnection, INFO_MASTER, bulk, info_master, info_replica},
    redis::{Group, Node, PASSWORD, Sentinels, config, config_of_pools, with_sentinels},
    rolegate::{Rolegate, check_config, write_config},
    tls::{Authority, Secured, ca_key, identity_keys, with_listener_tls, with_pool_tls},
};

/// Ample for anything that should happen soon, also on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until the condition gives a value; fails with `what` when it does not in time.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "did not happen in {SOON:?}: {what}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// A port that nothing listens on, outside the range from which the system takes local ports.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let start = std::process::id().wrapping_mul(331) % 20_000;
        let offset = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(10_000 + (start + offset) % 20_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
