//! From the YAML as written to a [`Config`]: checks everything and reports every fault at once.
//!
//! A message says what is wrong, what was found and what is allowed. It never shows what stands
//! under `auth`, nor text with an `@`, which may be a URL with a password.

use std::{collections::HashSet, env, fs, io::Read, os::unix::ffi::OsStringExt, sync::Arc};
use std::{ops::RangeInclusive, path::Path, time::Duration};

use secrecy::SecretSlice;

use super::{
    Auth, Backend, Bind, Check, Config, HostPort, Listener, Log, LogFormat, MAX_FILE, Pool,
    file::{Fault, Key, Node, Value},
    units::parse_duration,
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

#[derive(Default)]
struct Checker {
    faults: Vec<Fault>,
}

/// A mapping whose keys are known, and where it stands in the file.
struct Section<'a> {
    path: String,
    id: usize,
    entries: &'a [(Key, Node)],
}

impl<'a> Section<'a> {
    fn get(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|(k, _)| k.text == key).map(|(_, node)| node)
    }

    fn at(&self, key: &str) -> String {
        join(&self.path, key)
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
        Some(Config {
            listeners,
            pools: pools.into_iter().map(|(_, pool)| pool).collect(),
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

    fn listeners(
        &mut self,
        node: &Node,
        pools: &[(Arc<str>, Pool)],
    ) -> (Vec<Listener>, Vec<(Bind, String)>) {
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
                let found = pools.iter().find(|(name, _)| **name == *wanted);
                if found.is_none() {
                    let names: Vec<_> = pools.iter().map(|(name, _)| name.as_ref()).collect();
                    self.fault(
                        node.id,
                        format!(
                            "{} names an unknown pool: found {}{}; {}",
                            section.at("pool"),
                            quoted(wanted),
                            did_you_mean(wanted, &names),
                            allowed(&names, "no pool is defined"),
                        ),
                    );
                }
                found.map(|(name, _)| name.clone())
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
            _ => std::slice::from_ref(node),
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

    fn pools(&mut self, node: &Node) -> Vec<(Arc<str>, Pool)> {
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
            let pool = Pool { name: name.clone(), backends, auth, check, connect_timeout };
            pools.push((name, pool));
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

    /// A mapping with known keys. Reports another kind of value, unknown keys and doubled ones.
    fn section<'a>(&mut self, node: &'a Node, path: &str, known: &[&str]) -> Option<Section<'a>> {
        let entries = self.entries(node, path)?;
        for (key, _) in entries {
            if !known.contains(&key.text.as_str()) {
                let place = if path.is_empty() { String::new() } else { format!(" in {path}") };
                self.fault(
                    key.id,
                    format!(
                        "unknown key{place}: found {}{}; {}",
                        quoted(&key.text),
                        did_you_mean(&key.text, known),
                        allowed(known, "no key is allowed here")
                    ),
                );
            }
        }
        Some(Section { path: path.to_owned(), id: node.id, entries })
    }

    /// A mapping whose keys are names that the user gives. Reports bad, doubled and missing ones.
    fn named<'a>(&mut self, node: &'a Node, path: &str, what: &str) -> Vec<(Arc<str>, &'a Node)> {
        let Some(entries) = self.entries(node, path) else {
            return Vec::new();
        };
        if entries.is_empty() {
            self.fault(node.id, format!("{path} is empty; at least one {what} is needed"));
        }
        let mut seen = HashSet::new();
        let mut named = Vec::new();
        for (key, node) in entries {
            let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if key.text.is_empty() || key.text.len() > 64 || !key.text.chars().all(sane) {
                self.fault(
                    key.id,
                    format!(
                        "{path} has a bad {what} name: found {}; allowed are 1 to 64 letters, \
                         digits, dots, dashes and underscores",
                        quoted(&key.text)
                    ),
                );
            } else if seen.insert(&key.text) {
                named.push((Arc::from(key.text.as_str()), node));
            }
        }
        named
    }

    fn entries<'a>(&mut self, node: &'a Node, path: &str) -> Option<&'a [(Key, Node)]> {
        let Value::Map(entries) = &node.value else {
            let place = if path.is_empty() { "the file" } else { path };
            self.fault(
                node.id,
                format!(
                    "{place} is not a mapping: found {}; allowed are `key: value` entries",
                    node.value.kind()
                ),
            );
            return None;
        };
        let mut seen = HashSet::new();
        for (key, _) in entries {
            if !seen.insert(&key.text) {
                let place = if path.is_empty() { String::new() } else { format!(" in {path}") };
                self.fault(
                    key.id,
                    format!(
                        "duplicate key{place}: found {} again; each key is allowed once",
                        quoted(&key.text)
                    ),
                );
            }
        }
        Some(entries)
    }

    fn required<'a>(&mut self, section: &Section<'a>, key: &str) -> Option<&'a Node> {
        let node = section.get(key);
        if node.is_none() {
            self.fault(section.id, format!("{} is missing; it is required", section.at(key)));
        }
        node
    }

    fn text<'a>(&mut self, node: &'a Node, path: &str) -> Option<&'a str> {
        if let Value::Text(text) = &node.value {
            return Some(text);
        }
        let hint = match node.value {
            Value::Number(_) | Value::Bool(_) => "; put it in quotes if it is meant as text",
            _ => "",
        };
        let message =
            format!("{path} is not text: found {}; allowed is text{hint}", node.value.kind());
        self.fault(node.id, message);
        None
    }

    fn choice<T: Copy>(&mut self, node: &Node, path: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(node, path)?;
        let choice = choices.iter().find(|(name, _)| *name == text);
        if choice.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.fault(
                node.id,
                format!(
                    "{path} is unknown: found {}{}; {}",
                    quoted(text),
                    did_you_mean(text, &names),
                    allowed(&names, "")
                ),
            );
        }
        choice.map(|(_, value)| *value)
    }

    fn duration(
        &mut self,
        section: &Section<'_>,
        key: &str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(node) = section.get(key) else {
            return default;
        };
        let value = match &node.value {
            Value::Text(text) => parse_duration(text),
            _ => None,
        };
        if let Some(value) = value.filter(|value| range.contains(value)) {
            return value;
        }
        let wrong = match (&node.value, value) {
            (_, Some(_)) => "is out of range",
            (Value::Number(_), None) => "is a duration without a unit",
            _ => "is not a duration",
        };
        let message = format!(
            "{} {wrong}: found {}; allowed is a whole number with ms, s, m or h, from {:?} to {:?}",
            section.at(key),
            found(node),
            range.start(),
            range.end(),
        );
        self.fault(node.id, message);
        default
    }

    fn fault(&mut self, id: usize, message: String) {
        self.faults.push(Fault { id, message });
    }
}

fn read_password(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
        .map_err(|error| format!("names a file that cannot be read: {error}"))?;
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    Ok(bytes)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// What stands in the file, for keys that hold no secret.
fn found(node: &Node) -> String {
    match &node.value {
        Value::Text(text) => quoted(text),
        Value::Number(text) => text.clone(),
        other => other.kind().to_owned(),
    }
}

fn quoted(text: &str) -> String {
    if text.contains('@') {
        return "text with an @ (not shown, it may hold a password)".to_owned();
    }
    let short: String = text.chars().take(60).collect();
    format!("{short:?}{}", if short.len() < text.len() { "…" } else { "" })
}

fn did_you_mean(found: &str, names: &[&str]) -> String {
    let near = |name: &&&str| strsim::damerau_levenshtein(found, name) <= 1 + name.len() / 4;
    let nearest = names.iter().filter(near).min_by_key(|n| strsim::damerau_levenshtein(found, n));
    nearest.map(|name| format!(", did you mean {name:?}?")).unwrap_or_default()
}

fn allowed(names: &[&str], none: &str) -> String {
    match names {
        [] => none.to_owned(),
        [one] => format!("allowed is {one}"),
        _ => format!("allowed are {}", names.join(", ")),
    }
}
