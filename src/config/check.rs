//! From the YAML as written to a [`Config`]: which keys there are and what they allow. Reports every
//! fault at once; no message shows what stands under `auth`.

use std::{env, os::unix::ffi::OsStringExt, path::Path, slice, time::Duration};

use secrecy::SecretSlice;

use super::{
    Auth, Backend, Bind, Check, Config, HostPort, Listener, Log, LogFormat, Pool,
    file::{Fault, Node, Value},
    read_limited,
    section::{Checker, found, join, quoted},
};
use crate::topology::Role;

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

const LEVELS: [(&str, tracing::Level); 5] = [
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("info", tracing::Level::INFO),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];

pub(super) fn check(root: &Node) -> Result<Config, Vec<Fault>> {
    let mut checker = Checker::default();
    let config = checker.config(root);
    match config {
        Some(config) if checker.faults.is_empty() => Ok(config),
        _ => Err(checker.faults),
    }
}

impl Checker {
    fn config(&mut self, root: &Node) -> Option<Config> {
        let known = ["listeners", "pools", "admin", "log", "shutdown_timeout"];
        let top = self.section(root, "", &known)?;
        let pools = self.required(&top, "pools").map(|node| self.pools(node));
        let pools = pools.unwrap_or_default();
        let listeners = self.required(&top, "listeners").map(|node| self.listeners(node, &pools));
        let (listeners, mut bound) = listeners.unwrap_or_default();
        let admin = top.get("admin").and_then(|node| self.admin(node, &mut bound));
        self.no_loops(&bound);
        Some(Config {
            listeners,
            pools,
            admin,
            log: self.log(top.get("log")),
            shutdown_timeout: self.duration(
                &top,
                "shutdown_timeout",
                Duration::from_secs(10),
                Duration::ZERO..=24 * HOUR,
            ),
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
        for (name, node) in self.named(node, "listeners", "listener") {
            let path = join("listeners", &name);
            let Some(section) = self.section(node, &path, &["bind", "pool", "role"]) else {
                continue;
            };
            let binds = match self.required(&section, "bind") {
                Some(node) => self.binds(node, &section.at("bind"), &mut bound),
                None => Vec::new(),
            };
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
            if let (Some(pool), Some(role)) = (pool, role) {
                listeners.push(Listener { name, binds, pool, role });
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
                     \"[IPV6]:PORT\" and \"*:PORT\" with a port from 0 to 65535",
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
        bound.push((bind, path.to_owned()));
        Some(bind)
    }

    fn admin(&mut self, node: &Node, bound: &mut Vec<(Bind, String)>) -> Option<Bind> {
        let section = self.section(node, "admin", &["bind"])?;
        let node = self.required(&section, "bind")?;
        self.bind(node, "admin.bind", bound)
    }

    fn pools(&mut self, node: &Node) -> Vec<Pool> {
        let mut pools = Vec::new();
        for (name, node) in self.named(node, "pools", "pool") {
            let path = join("pools", &name);
            let known = ["backends", "auth", "check", "connect_timeout"];
            let Some(section) = self.section(node, &path, &known) else {
                continue;
            };
            let backends = match self.required(&section, "backends") {
                Some(node) => self.backends(node, &section.at("backends")),
                None => Vec::new(),
            };
            let auth = section.get("auth").and_then(|node| self.auth(node, &section.at("auth")));
            let check = self.check(section.get("check"), &section.at("check"));
            let connect_timeout = self.duration(
                &section,
                "connect_timeout",
                Duration::from_secs(1),
                MS..=Duration::from_secs(300),
            );
            pools.push(Pool { name, backends, auth, check, connect_timeout });
        }
        pools
    }

    fn backends(&mut self, node: &Node, path: &str) -> Vec<Backend> {
        let mut backends: Vec<Backend> = Vec::new();
        for (name, node) in self.named(node, path, "backend") {
            let path = join(path, &name);
            let Some(text) = self.text(node, &path) else {
                continue;
            };
            let Some(address) = HostPort::parse(text) else {
                self.fault(
                    node.id,
                    format!(
                        "{path} is not an address: found {}; allowed are HOST:PORT, IP:PORT and \
                         \"[IPV6]:PORT\" with a port from 1 to 65535",
                        quoted(text)
                    ),
                );
                continue;
            };
            if let Some(other) = backends.iter().find(|other| other.address == address) {
                let message = format!(
                    "{path} has the address of {}: found {address} twice; every backend of a pool \
                     needs its own",
                    other.name
                );
                self.fault(node.id, message);
            }
            self.backends.push((path, address.clone(), node.id));
            backends.push(Backend { name, address });
        }
        backends
    }

    fn auth(&mut self, node: &Node, path: &str) -> Option<Auth> {
        const SOURCES: [&str; 3] = ["password", "password_env", "password_file"];
        let section =
            self.section(node, path, &["username", SOURCES[0], SOURCES[1], SOURCES[2]])?;
        let username = section.get("username").map(|node| {
            let at = section.at("username");
            let text = self.text(node, &at)?;
            if text.is_empty() {
                self.fault(node.id, format!("{at} is empty; name a user or leave the key out"));
            }
            Some(text.to_owned())
        });
        let given: Vec<_> = SOURCES.iter().filter(|key| section.get(key).is_some()).collect();
        let [source] = given[..] else {
            let found = match given[..] {
                [] => "none".to_owned(),
                _ => given.iter().map(|key| **key).collect::<Vec<_>>().join(" and "),
            };
            self.fault(
                section.id,
                format!(
                    "{path} needs exactly one source of the password: found {found}; allowed is \
                     one of {}",
                    SOURCES.join(", ")
                ),
            );
            return None;
        };
        let node = section.get(source)?;
        let text = self.text(node, &section.at(source))?;
        // The text may be a password in the wrong place, so no message repeats it.
        let password = match *source {
            "password_env" => env::var_os(text).map(OsStringExt::into_vec).ok_or_else(|| {
                "names a variable that is not set; set it for this process, or name another"
                    .to_owned()
            }),
            "password_file" => read_password(Path::new(text)),
            _ if text.ends_with('\n') => {
                Err("ends with a newline; write it on one line, in quotes".to_owned())
            }
            _ => Ok(text.as_bytes().to_vec()),
        };
        let password = password.and_then(|password| {
            if password.is_empty() {
                return Err("gives an empty password; at least one byte is needed".to_owned());
            }
            Ok(password)
        });
        match password {
            Ok(password) => {
                Some(Auth { username: username.flatten(), password: SecretSlice::from(password) })
            }
            Err(problem) => {
                self.fault(node.id, format!("{} {problem}", section.at(source)));
                None
            }
        }
    }

    fn check(&mut self, node: Option<&Node>, path: &str) -> Check {
        let default = Check { interval: 100 * MS, timeout: 500 * MS, fall: 2 };
        let Some(section) =
            node.and_then(|node| self.section(node, path, &["interval", "timeout", "fall"]))
        else {
            return default;
        };
        Check {
            interval: self.duration(&section, "interval", default.interval, MS..=HOUR),
            timeout: self.duration(
                &section,
                "timeout",
                default.timeout,
                MS..=Duration::from_secs(60),
            ),
            fall: section.get("fall").map_or(default.fall, |node| {
                match &node.value {
                    Value::Number(text) => text.parse().ok().filter(|n| (1..=1000).contains(n)),
                    _ => None,
                }
                .unwrap_or_else(|| {
                    let message = format!(
                        "{} is not a count: found {}; allowed is a number from 1 to 1000",
                        section.at("fall"),
                        found(node)
                    );
                    self.fault(node.id, message);
                    default.fall
                })
            }),
        }
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

fn read_password(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes =
        read_limited(file).map_err(|error| format!("names a file that cannot be read: {error}"))?;
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    Ok(bytes)
}
