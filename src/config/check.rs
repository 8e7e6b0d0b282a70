//! From the YAML as written to a [`Config`]: which keys there are and what they allow. Reports every
//! fault at once; no message shows what stands under `auth`.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
    slice,
    sync::Arc,
    time::Duration,
};

use secrecy::SecretSlice;

use super::{
    Admin, Bind, Config, Drain, Listener, Log, LogFormat, Pool, Source,
    file::{Fault, Node, Value},
    read_secret,
    section::{Checker, HOUR, Section, found, join, quoted},
    units::MAX_PATH,
};
use crate::topology::{Hold, Role};

/// How long the admin's token may be, in bytes: what cannot be guessed, and fits a request's head.
const MIN_TOKEN: usize = 16;
const MAX_TOKEN: usize = 1024;

/// The name of a user or a group is not longer, in bytes.
const MAX_ACCOUNT: usize = 32;

const LEVELS: [(&str, tracing::Level); 5] = [
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("info", tracing::Level::INFO),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];

/// The configuration and the warnings about it, or all that is wrong.
pub(super) fn check(root: &Node, text: &str) -> Result<(Config, Vec<Fault>), Vec<Fault>> {
    let mut checker = Checker::default();
    let config = checker.config(root, text);
    match config {
        Some(config) if checker.faults.is_empty() => Ok((config, checker.warnings)),
        _ => Err(checker.faults),
    }
}

impl Checker {
    fn config(&mut self, root: &Node, text: &str) -> Option<Config> {
        let known = [
            "listeners",
            "pools",
            "admin",
            "congestion",
            "drain",
            "group",
            "hard_stop_after",
            "log",
            "max_connections",
            "shutdown_timeout",
            "state_dir",
            "user",
            "workers",
        ];
        let top = self.section(root, "", &known)?;
        let pools = self.required(&top, "pools").map(|node| self.pools(node));
        let pools = pools.unwrap_or_default();
        let listeners = self.required(&top, "listeners").map(|node| self.listeners(node, &pools));
        let (listeners, mut bound) = listeners.unwrap_or_default();
        let admin = top.get("admin").and_then(|node| self.admin(node, &mut bound));
        self.no_loops(&bound);
        let shutdown_timeout = self.duration(
            &top,
            "shutdown_timeout",
            Duration::from_secs(10),
            Duration::ZERO..=24 * HOUR,
        );
        let user = top.get("user").and_then(|node| self.account(node, "user"));
        let group = top.get("group").and_then(|node| {
            if top.get("user").is_none() {
                let message =
                    "group has no use: found no user beside it; add that, or leave it out";
                self.fault(node.id, message.to_owned());
            }
            self.account(node, "group")
        });
        Some(Config {
            listeners,
            pools,
            admin,
            log: self.log(top.get("log")),
            state_dir: top.get("state_dir").and_then(|node| self.state_dir(node)),
            drain: self.drain(top.get("drain"), shutdown_timeout),
            hard_stop_after: self.duration(
                &top,
                "hard_stop_after",
                HOUR,
                Duration::ZERO..=7 * 24 * HOUR,
            ),
            shutdown_timeout,
            max_connections: self.limit(&top, "max_connections"),
            congestion: top.get("congestion").and_then(|node| self.congestion(node)),
            workers: top
                .get("workers")
                .and_then(|_| NonZero::new(self.count(&top, "workers", 1, 1..=1024))),
            user,
            group,
            source: Source { text: text.into(), files: std::mem::take(&mut self.files) },
            warnings: Vec::new(),
        })
    }

    /// A backend that is a listener of this process would be checked through itself.
    fn no_loops(&mut self, bound: &[(Bind, String)]) {
        for (path, address, id) in std::mem::take(&mut self.backends) {
            if let Some((bind, owner)) = bound.iter().find(|(bind, _)| bind.is_reached_by(&address))
            {
                let message = format!(
                    "{path} is this rolegate itself: found {address}, and {owner} has {bind}; \
                     allowed are the addresses of Redis nodes"
                );
                self.fault(id, message);
            }
        }
    }

    fn listeners(&mut self, node: &Node, pools: &[Pool]) -> (Vec<Listener>, Vec<(Bind, String)>) {
        let mut listeners = Vec::new();
        let mut bound = Vec::new();
        let known = [
            "bind",
            "bind_mode",
            "pool",
            "role",
            "hold",
            "tls",
            "max_connections",
            "max_connections_per_source",
            "accept_rate",
            "allow",
            "deny",
            "proxy_protocol",
            "trusted",
            "proxy_timeout",
            "idle_timeout",
            "half_close_timeout",
        ];
        for (name, node) in self.named(node, "listeners", "listener") {
            let path = join("listeners", &name);
            let Some(section) = self.section(node, &path, &known) else {
                continue;
            };
            let binds = match self.required(&section, "bind") {
                Some(node) => self.binds(node, &section.at("bind"), &mut bound),
                None => Vec::new(),
            };
            let binds = self.with_mode(&section, binds);
            let pool = self.required(&section, "pool").and_then(|node| {
                let wanted = self.text(node, &section.at("pool"))?;
                let found = pools.iter().position(|pool| *pool.name == *wanted);
                if found.is_none() {
                    let names: Vec<_> = pools.iter().map(|pool| pool.name.as_ref()).collect();
                    let wrong = format!("{} names an unknown pool", section.at("pool"));
                    self.not_among(node.id, &wrong, wanted, &names);
                }
                found
            });
            let role = section.get("role").map_or(Some(Role::Master), |node| {
                self.choice(node, &section.at("role"), &[("master", Role::Master)])
            });
            let hold = self.hold(section.get("hold"), &section.at("hold"));
            let (admission, timeouts) = (self.admission(&section), self.timeouts(&section));
            let proxy = self.proxy_protocol(&section, &binds);
            let passes = pool.and_then(|pool| pools[pool].tls.as_ref());
            let tls = match section.get("tls") {
                Some(node) if passes.is_some_and(|tls| tls.passthrough) => {
                    let message = format!(
                        "{} is in the way: found it before a pool with tls.passthrough, whose \
                         clients speak TLS with the backends themselves; remove one of the two",
                        section.at("tls")
                    );
                    self.fault(node.id, message);
                    None
                }
                Some(node) => self.listener_tls(node, &section.at("tls")),
                None => None,
            };
            if let (Some(pool), Some(role)) = (pool, role) {
                listeners.push(Listener {
                    name,
                    binds,
                    pool,
                    role,
                    hold,
                    tls,
                    admission,
                    proxy,
                    timeouts,
                });
            }
        }
        (listeners, bound)
    }

    fn binds(&mut self, node: &Node, path: &str, bound: &mut Vec<(Bind, String)>) -> Vec<Bind> {
        let nodes = match &node.value {
            Value::List(nodes) if nodes.is_empty() => {
                self.fault(node.id, format!("{path} is empty; at least one address is needed"));
                return Vec::new();
            }
            Value::List(nodes) => nodes.as_slice(),
            _ => slice::from_ref(node),
        };
        nodes.iter().filter_map(|node| self.bind(node, path, bound)).collect()
    }

    fn bind(&mut self, node: &Node, path: &str, bound: &mut Vec<(Bind, String)>) -> Option<Bind> {
        let text = self.text(node, path)?;
        let Some(bind) = Bind::parse(text) else {
            self.fault(
                node.id,
                format!(
                    "{path} is not an address to listen on: found {}; allowed are IP:PORT, \
                     \"[IPV6]:PORT\" and \"*:PORT\" with a port from 0 to 65535, and \
                     unix:/PATH with a path of at most {MAX_PATH} bytes",
                    quoted(text)
                ),
            );
            return None;
        };
        if let Some((other, owner)) = bound.iter().find(|(other, _)| bind.overlaps(other)) {
            let message = format!(
                "{path} takes an address that is taken: found {bind}, and {owner} has {other}; \
                 every listener needs its own"
            );
            self.fault(node.id, message);
            return None;
        }
        bound.push((bind.clone(), path.to_owned()));
        Some(bind)
    }

    fn admin(&mut self, node: &Node, bound: &mut Vec<(Bind, String)>) -> Option<Admin> {
        let section = self.section(node, "admin", &["bind", "bind_mode", "token_file"])?;
        let token = section.get("token_file").map(|node| self.token(node, "admin.token_file"));
        let node = self.required(&section, "bind")?;
        let bind = self.bind(node, "admin.bind", bound)?;
        let bind = self.with_mode(&section, vec![bind]).pop()?;
        if token.is_none() && !bind.is_local() {
            let message = format!(
                "admin.bind {bind} is reached from other hosts and there is no admin.token_file: \
                 reload and drain over HTTP are refused; add one, or bind to 127.0.0.1"
            );
            self.warnings.push(Fault { id: node.id, message });
        }
        Some(Admin { bind, token: token.flatten() })
    }

    fn token(&mut self, node: &Node, path: &str) -> Option<SecretSlice<u8>> {
        let file = self.text(node, path)?;
        match read_secret(Path::new(file)).and_then(|(token, file)| {
            self.files.push(file);
            let sane = token.iter().all(u8::is_ascii_graphic) && token.len() <= MAX_TOKEN;
            if token.len() < MIN_TOKEN || !sane {
                return Err(format!(
                    "names a file whose content is no token: found {} bytes (not shown); allowed \
                      are {MIN_TOKEN} to {MAX_TOKEN} visible ASCII characters on one line, as from \
                      `openssl rand -hex 32`",
                    token.len()
                ));
            }
            Ok(token)
        }) {
            Ok(token) => Some(SecretSlice::from(token)),
            // The text may be the token itself, so no message repeats it.
            Err(problem) => {
                self.fault(node.id, format!("{path} {problem}"));
                None
            }
        }
    }

    /// The unix sockets among them with the section's `bind_mode`.
    fn with_mode(&mut self, section: &Section<'_>, mut binds: Vec<Bind>) -> Vec<Bind> {
        let Some(node) = section.get("bind_mode") else {
            return binds;
        };
        let path = section.at("bind_mode");
        let Some(text) = self.text(node, &path) else {
            return binds;
        };
        let octal = text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
        let parsed = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777);
        let Some(parsed) = parsed else {
            let message = format!(
                "{path} is not the mode of a file: found {}; allowed are \"0000\" to \"0777\", in \
                 quotes, as in chmod",
                quoted(text)
            );
            self.fault(node.id, message);
            return binds;
        };
        let mut is_used = binds.is_empty();
        for bind in &mut binds {
            if let Bind::Unix { mode, .. } = bind {
                *mode = parsed;
                is_used = true;
            }
        }
        if !is_used {
            let message = format!(
                "{path} has no use: found no unix:/PATH in {}; leave it out",
                section.at("bind")
            );
            self.fault(node.id, message);
        }
        binds
    }

    fn hold(&mut self, node: Option<&Node>, path: &str) -> Hold {
        let default =
            Hold { timeout: Duration::from_secs(10), max: 1024, error_reply: true, dry_run: false };
        let known = ["timeout", "max", "error_reply", "dry_run"];
        let Some(section) = node.and_then(|node| self.section(node, path, &known)) else {
            return default;
        };
        let max = self.count(&section, "max", 1024, 1..=65536);
        Hold {
            timeout: self.duration(&section, "timeout", default.timeout, Duration::ZERO..=HOUR),
            max: usize::try_from(max).unwrap_or(usize::MAX),
            error_reply: self.flag(&section, "error_reply", default.error_reply),
            dry_run: self.flag(&section, "dry_run", default.dry_run),
        }
    }

    fn drain(&mut self, node: Option<&Node>, shutdown_timeout: Duration) -> Drain {
        let default = Drain { delay: Duration::ZERO, pace: shutdown_timeout / 2 };
        let Some(section) = node.and_then(|node| self.section(node, "drain", &["delay", "pace"]))
        else {
            return default;
        };
        Drain {
            delay: self.duration(&section, "delay", default.delay, Duration::ZERO..=HOUR),
            pace: self.duration(&section, "pace", default.pace, Duration::ZERO..=shutdown_timeout),
        }
    }

    fn state_dir(&mut self, node: &Node) -> Option<PathBuf> {
        let text = self.text(node, "state_dir")?;
        if text.is_empty() {
            self.fault(node.id, "state_dir is empty; allowed is the path of a folder".to_owned());
            return None;
        }
        Some(text.into())
    }

    /// A user or a group: its name or its number.
    fn account(&mut self, node: &Node, path: &str) -> Option<Arc<str>> {
        let text = match &node.value {
            Value::Text(text) | Value::Number(text) => text.as_str(),
            _ => "",
        };
        let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
        // The highest number means "none" to the system.
        let is_number = text.parse().is_ok_and(|number: u32| number < u32::MAX);
        let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_name = text.len() <= MAX_ACCOUNT && !text.starts_with('-') && text.chars().all(sane);
        if text.is_empty() || if is_digits { !is_number } else { !is_name } {
            let message = format!(
                "{path} is none: found {}; allowed are a name of up to {MAX_ACCOUNT} letters, digits, dots, \
                 dashes and underscores, or a number",
                found(node)
            );
            self.fault(node.id, message);
            return None;
        }
        Some(text.into())
    }

    fn congestion(&mut self, node: &Node) -> Option<Arc<str>> {
        let text = self.text(node, "congestion")?;
        if text.is_empty() || text.len() > 15 {
            let message = format!(
                "congestion is not a name: found {}; allowed is a name of 1 to 15 letters from \
                 `sysctl net.ipv4.tcp_allowed_congestion_control`",
                quoted(text)
            );
            self.fault(node.id, message);
            return None;
        }
        Some(text.into())
    }

    fn log(&mut self, node: Option<&Node>) -> Log {
        let mut log = Log { format: LogFormat::Text, level: tracing::Level::INFO };
        let Some(section) = node.and_then(|node| self.section(node, "log", &["format", "level"]))
        else {
            return log;
        };
        if let Some(node) = section.get("format") {
            let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
            log.format = self.choice(node, "log.format", &formats).unwrap_or(log.format);
        }
        if let Some(node) = section.get("level") {
            log.level = self.choice(node, "log.level", &LEVELS).unwrap_or(log.level);
        }
        log
    }
}
