//! What differs between two configs, in words.

use super::{Backend, Config, Listener, Pool};

/// The keys whose values differ.
fn differing(keys: &[(&'static str, bool)]) -> String {
    let keys = keys.iter().filter(|(_, is_same)| !is_same).map(|(key, _)| *key);
    keys.collect::<Vec<_>>().join(", ")
}

impl Config {
    /// What a change to `new` changes, one line for each listener, pool, backend and other key. No line
    /// shows a value. What only holds from the next start on says so.
    pub fn changes(&self, new: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for listener in &self.listeners {
            match new.listeners.iter().find(|other| other.name == listener.name) {
                None => lines.push(format!("listener {}: removed", listener.name)),
                Some(other) => {
                    let is_pool_same = self.pools[listener.pool].name == new.pools[other.pool].name;
                    let keys = listener.differing(other, is_pool_same);
                    if !keys.is_empty() {
                        lines.push(format!("listener {}: changed {keys}", listener.name));
                    }
                }
            }
        }
        let is_known = |name: &str| self.listeners.iter().any(|listener| *listener.name == *name);
        let added = new.listeners.iter().filter(|listener| !is_known(&listener.name));
        lines.extend(added.map(|listener| format!("listener {}: added", listener.name)));

        for pool in &self.pools {
            match new.pools.iter().find(|other| other.name == pool.name) {
                None => lines.push(format!("pool {}: removed", pool.name)),
                Some(other) => lines.extend(pool.changes(other)),
            }
        }
        let is_known = |name: &str| self.pools.iter().any(|pool| *pool.name == *name);
        let added = new.pools.iter().filter(|pool| !is_known(&pool.name));
        lines.extend(added.map(|pool| format!("pool {}: added", pool.name)));

        let now = differing(&[
            ("admin", self.admin == new.admin),
            ("drain", self.drain == new.drain),
            ("hard_stop_after", self.hard_stop_after == new.hard_stop_after),
            ("log.level", self.log.level == new.log.level),
            ("max_connections", self.max_connections == new.max_connections),
            ("shutdown_timeout", self.shutdown_timeout == new.shutdown_timeout),
        ]);
        if !now.is_empty() {
            lines.push(format!("changed {now}"));
        }
        let later = self.needs_restart(new);
        if !later.is_empty() {
            lines.push(format!("changed {later}: that holds from the next start on"));
        }
        lines
    }

    /// The keys that differ and that a running process cannot change.
    pub fn needs_restart(&self, new: &Self) -> String {
        differing(&[
            ("congestion", self.congestion == new.congestion),
            ("group", self.group == new.group),
            ("log.format", self.log.format == new.log.format),
            ("state_dir", self.state_dir == new.state_dir),
            ("user", self.user == new.user),
            ("workers", self.workers == new.workers),
        ])
    }
}

impl Listener {
    fn differing(&self, new: &Self, is_pool_same: bool) -> String {
        // Named one by one, so that a new field is not forgotten here.
        let Self { name: _, binds, pool: _, role, hold, tls, admission, proxy, timeouts } = self;
        differing(&[
            ("bind", *binds == new.binds),
            ("pool", is_pool_same),
            ("role", *role == new.role),
            ("hold", *hold == new.hold),
            ("tls", *tls == new.tls),
            ("limits", *admission == new.admission),
            ("proxy_protocol", *proxy == new.proxy),
            ("timeouts", *timeouts == new.timeouts),
        ])
    }
}

impl Pool {
    fn changes(&self, new: &Self) -> Vec<String> {
        let Self {
            name,
            backends,
            auth,
            tls,
            check,
            connect_timeout,
            preconnect,
            sentinel,
            on_unexplained_heir,
        } = self;
        let keys = differing(&[
            ("auth", *auth == new.auth),
            ("tls", *tls == new.tls),
            ("check", *check == new.check),
            ("connect_timeout", *connect_timeout == new.connect_timeout),
            ("preconnect", *preconnect == new.preconnect),
            ("sentinel", *sentinel == new.sentinel),
            ("on_unexplained_heir", *on_unexplained_heir == new.on_unexplained_heir),
        ]);
        let mut lines = Vec::new();
        let find = |list: &[Backend], backend: &Backend| {
            list.iter().find(|other| other.name == backend.name).cloned()
        };
        for backend in backends {
            match find(&new.backends, backend) {
                None => lines.push(format!("pool {name}: backend {} removed", backend.name)),
                Some(other) if other != *backend => {
                    lines
                        .push(format!("pool {name}: backend {} has another address", backend.name));
                }
                Some(_) => {}
            }
        }
        let added = new.backends.iter().filter(|backend| find(backends, backend).is_none());
        lines.extend(added.map(|backend| format!("pool {name}: backend {} added", backend.name)));
        if !keys.is_empty() {
            lines.push(format!("pool {name}: changed {keys}"));
        }
        lines
    }
}
