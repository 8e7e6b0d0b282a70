//! How many clients the limit of open files allows.

use std::num::NonZero;

use super::AppError;
use crate::{
    config::{Config, DEFAULT_MAX_CONNECTIONS},
    data::worker::MAX_PIPES,
};

/// A session's two sockets.
const SESSION: u64 = 2;

/// Standard streams, signals, wake-ups, the control plane's runtime, the admin and some requests to it.
const BASE: u64 = 24;

/// Each worker's runtime.
const WORKER: u64 = 4;

/// A check's connection, and another while it is made anew.
const CHECK: u64 = 2;

/// What of the limit pipes for bulk may take: one part in so many.
const PIPES_SHARE: u64 = 8;

/// How the open files that the process may have are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Clients at once.
    pub(super) connections: usize,
    /// Pipes of each worker.
    pub(super) pipes: usize,
}

impl Budget {
    /// What comes first are checks, then what the config names, then pipes. Fails if the config wants
    /// more clients than fit.
    pub(super) fn new(config: &Config, workers: usize, limit: u64) -> Result<Self, AppError> {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let workers = count(workers.max(1));
        let checks = config.pools.iter().map(|pool| {
            let sentinels = pool.sentinel.as_ref().map_or(0, |sentinel| sentinel.addresses.len());
            CHECK * count(pool.backends.len() + sentinels) + count(pool.preconnect)
        });
        let sockets = config.listeners.iter().map(|listener| count(listener.binds.len()));
        let fixed = BASE + WORKER * workers + checks.sum::<u64>() + sockets.sum::<u64>();
        let pipes = (limit / PIPES_SHARE / (2 * workers)).min(count(MAX_PIPES));
        let others = fixed + 2 * pipes * workers;
        let fit = limit.saturating_sub(others) / SESSION;
        let wanted = config.max_connections.map_or(DEFAULT_MAX_CONNECTIONS, NonZero::get);
        let wanted = u64::from(wanted);
        if fit == 0 || config.max_connections.is_some() && fit < wanted {
            let wanted = if config.max_connections.is_some() { wanted } else { 1 };
            let needed = others.saturating_add(SESSION * wanted);
            return Err(AppError::Descriptors { wanted, needed, limit });
        }
        let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        Ok(Self { connections: size(fit.min(wanted)), pipes: size(pipes) })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn budget(rest: &str, limit: u64) -> Result<Budget, AppError> {
        let text = format!(
            "listeners: {{ l: {{ bind: '127.0.0.1:1', pool: p }} }}\n\
             pools: {{ p: {{ backends: {{ a: 'x:1', b: 'y:1' }} }} }}\n{rest}"
        );
        Budget::new(&Config::parse(Path::new("x.yaml"), &text).unwrap(), 2, limit)
    }

    #[test]
    fn what_fits_is_let_in_and_what_the_config_names_must_fit() {
        assert_eq!(budget("", 65_536).unwrap(), Budget { connections: 10_000, pipes: 32 });
        // 24 + 8 for workers + 4 for checks + 1 to listen + 128 for pipes are not for clients.
        assert_eq!(budget("", 1_024).unwrap(), Budget { connections: 429, pipes: 32 });
        assert_eq!(budget("", 60).unwrap(), Budget { connections: 9, pipes: 1 });
        assert_eq!(budget("max_connections: 429", 1_024).unwrap().connections, 429);
        let error = budget("max_connections: 430", 1_024).unwrap_err().to_string();
        assert!(
            error.contains("430") && error.contains("1025") && error.contains("1024"),
            "{error}"
        );
        assert!(budget("", 30).is_err());
        assert_eq!(budget("max_connections: 500000", u64::MAX).unwrap().connections, 500_000);
    }
}
