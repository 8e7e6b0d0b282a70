//! What stands under `pools`. No message shows what stands under `auth`.

use std::{env, os::unix::ffi::OsStringExt, path::Path, time::Duration};

use secrecy::{ExposeSecret, SecretSlice};

use super::{
    Auth, Backend, Check, Endpoint, HostPort, Pool, Sentinel,
    file::{Node, Value},
    read_secret,
    section::{Checker, HOUR, MS, found, join, quoted},
    units::MAX_PATH,
};
use crate::topology::OnUnexplainedHeir;

const HEIRS: [(&str, OnUnexplainedHeir); 3] = [
    ("hold", OnUnexplainedHeir::Hold),
    ("keep", OnUnexplainedHeir::Keep),
    ("follow", OnUnexplainedHeir::Follow),
];

impl Checker {
    pub(super) fn pools(&mut self, node: &Node) -> Vec<Pool> {
        let mut pools = Vec::new();
        for (name, node) in self.named(node, "pools", "pool") {
            let path = join("pools", &name);
            let known = [
                "backends",
                "auth",
                "tls",
                "check",
                "connect_timeout",
                "preconnect",
                "sentinel",
                "on_unexplained_heir",
            ];
            let Some(section) = self.section(node, &path, &known) else {
                continue;
            };
            let backends = match self.required(&section, "backends") {
                Some(node) => self.backends(node, &section.at("backends")),
                None => Vec::new(),
            };
            let auth = section.get("auth").and_then(|node| self.auth(node, &section.at("auth")));
            let hosts = backends.iter().map(|backend| &backend.address);
            let hosts = hosts.map(|address| (address.to_string(), address.host()));
            let tls = section
                .get("tls")
                .and_then(|node| self.peer_tls(node, &section.at("tls"), true, hosts));
            let check = self.check(section.get("check"), &section.at("check"));
            let connect_timeout = self.duration(
                &section,
                "connect_timeout",
                Duration::from_secs(1),
                MS..=Duration::from_secs(300),
            );
            let preconnect = self.count(&section, "preconnect", 0, 0..=1024);
            let sentinel = section
                .get("sentinel")
                .and_then(|node| self.sentinel(node, &section.at("sentinel"), &backends));
            let on_unexplained_heir = section
                .get("on_unexplained_heir")
                .and_then(|node| self.choice(node, &section.at("on_unexplained_heir"), &HEIRS))
                .unwrap_or(OnUnexplainedHeir::Hold);
            pools.push(Pool {
                name,
                backends,
                auth,
                tls,
                check,
                connect_timeout,
                preconnect: usize::try_from(preconnect).unwrap_or(usize::MAX),
                sentinel,
                on_unexplained_heir,
            });
        }
        pools
    }

    fn backends(&mut self, node: &Node, path: &str) -> Vec<Backend> {
        let mut backends: Vec<Backend> = Vec::new();
        for (name, node) in self.named(node, path, "backend") {
            let path = join(path, &name);
            let Some(address) = self.endpoint(node, &path) else {
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
            "password_file" => read_secret(Path::new(text)).map(|(password, file)| {
                self.files.push(file);
                password
            }),
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
        let default = Check {
            interval: 100 * MS,
            fast_interval: 10 * MS,
            fast_for: Duration::from_secs(30),
            timeout: 500 * MS,
            fall: 2,
            resolve: Duration::from_secs(10),
        };
        let known = ["interval", "fast_interval", "fast_for", "timeout", "fall", "resolve"];
        let Some(section) = node.and_then(|node| self.section(node, path, &known)) else {
            return default;
        };
        let interval = self.duration(&section, "interval", default.interval, MS..=HOUR);
        let fast_interval = default.fast_interval.min(interval);
        Check {
            interval,
            fast_interval: self.duration(&section, "fast_interval", fast_interval, MS..=interval),
            fast_for: self.duration(&section, "fast_for", default.fast_for, Duration::ZERO..=HOUR),
            timeout: self.duration(
                &section,
                "timeout",
                default.timeout,
                MS..=Duration::from_secs(60),
            ),
            fall: self.count(&section, "fall", default.fall, 1..=1000),
            resolve: self.duration(&section, "resolve", default.resolve, 100 * MS..=HOUR),
        }
    }

    fn sentinel(&mut self, node: &Node, path: &str, backends: &[Backend]) -> Option<Sentinel> {
        let known = ["master_name", "addresses", "auth", "tls", "quorum", "announce"];
        let section = self.section(node, path, &known)?;
        let master_name = self
            .required(&section, "master_name")
            .and_then(|node| self.master_name(node, &section.at("master_name")));
        let addresses = self
            .required(&section, "addresses")
            .map(|node| self.sentinel_addresses(node, &section.at("addresses"), backends))
            .unwrap_or_default();
        let auth = section.get("auth").and_then(|node| self.auth(node, &section.at("auth")));
        if let Some(auth) = &auth
            && str::from_utf8(auth.password.expose_secret()).is_err()
        {
            let at = section.at("auth");
            self.fault(section.id, format!("{at} has a password that is not UTF-8 text"));
        }
        let hosts = addresses.iter().map(|address| (address.to_string(), address.host.as_str()));
        let tls = section
            .get("tls")
            .and_then(|node| self.peer_tls(node, &section.at("tls"), false, hosts));
        let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let quorum = self.count(&section, "quorum", count / 2 + 1, 1..=count.max(1));
        let announce = section
            .get("announce")
            .map(|node| self.announce(node, &section.at("announce"), backends))
            .unwrap_or_default();
        for (place, backend) in backends.iter().enumerate() {
            let is_announced = announce.iter().any(|(announced, _)| *announced == place);
            if matches!(backend.address, Endpoint::Unix(_)) && !is_announced {
                let message = format!(
                    "{} is missing, as {} is a unix socket: add the HOST:PORT by which the Sentinels \
                     know it",
                    join(&section.at("announce"), &backend.name),
                    backend.name
                );
                self.fault(section.id, message);
            }
        }
        Some(Sentinel {
            master_name: master_name?,
            addresses,
            auth,
            tls,
            quorum: usize::try_from(quorum).unwrap_or(usize::MAX),
            announce,
        })
    }

    fn master_name(&mut self, node: &Node, path: &str) -> Option<String> {
        let text = self.text(node, path)?;
        // What Sentinel itself accepts, and what its events can be split by.
        let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || !text.chars().all(sane) {
            let message = format!(
                "{path} is not the name of a master: found {}; allowed are letters, digits, dots, \
                 dashes and underscores, as in `sentinel monitor NAME …`",
                quoted(text)
            );
            self.fault(node.id, message);
            return None;
        }
        Some(text.to_owned())
    }

    fn sentinel_addresses(
        &mut self,
        node: &Node,
        path: &str,
        backends: &[Backend],
    ) -> Vec<HostPort> {
        let Value::List(nodes) = &node.value else {
            let found = found(node);
            let message = format!(
                "{path} is not a list: found {found}; allowed is [HOST:PORT, …], one for each Sentinel"
            );
            self.fault(node.id, message);
            return Vec::new();
        };
        if nodes.is_empty() {
            self.fault(node.id, format!("{path} is empty; at least one Sentinel is needed"));
        }
        let mut addresses = Vec::new();
        for node in nodes {
            let Some(address) = self.host_port(node, path) else {
                continue;
            };
            let endpoint = Endpoint::Host(address.clone());
            let backend = backends.iter().find(|backend| backend.address == endpoint);
            if addresses.contains(&address) {
                let message = format!(
                    "{path} has an address twice: found {address}; every Sentinel has one vote"
                );
                self.fault(node.id, message);
            } else if let Some(backend) = backend {
                let message = format!(
                    "{path} has the address of backend {}: found {address}; allowed are the \
                     addresses of Sentinels, often with port 26379",
                    backend.name
                );
                self.fault(node.id, message);
            } else {
                self.backends.push((path.to_owned(), endpoint, node.id));
                addresses.push(address);
            }
        }
        addresses
    }

    fn announce(
        &mut self,
        node: &Node,
        path: &str,
        backends: &[Backend],
    ) -> Vec<(usize, HostPort)> {
        let mut announced: Vec<(usize, HostPort)> = Vec::new();
        for (name, node) in self.named(node, path, "backend") {
            let path = join(path, &name);
            let place = backends.iter().position(|backend| backend.name == name);
            let Some(place) = place else {
                let names: Vec<_> = backends.iter().map(|backend| backend.name.as_ref()).collect();
                let wrong = format!("{path} is no backend of this pool");
                self.not_among(node.id, &wrong, &name, &names);
                continue;
            };
            let Some(address) = self.host_port(node, &path) else {
                continue;
            };
            if announced.iter().any(|(_, other)| *other == address) {
                let message = format!(
                    "{path} is announced twice: found {address}; every backend has its own address"
                );
                self.fault(node.id, message);
            }
            announced.push((place, address));
        }
        announced
    }

    fn endpoint(&mut self, node: &Node, path: &str) -> Option<Endpoint> {
        let text = self.text(node, path)?;
        let address = Endpoint::parse(text);
        if address.is_none() {
            let message = format!(
                "{path} is not an address: found {}; allowed are HOST:PORT, IP:PORT and \
                 \"[IPV6]:PORT\" with a port from 1 to 65535, and unix:/PATH with a path of at most \
                 {MAX_PATH} bytes",
                quoted(text)
            );
            self.fault(node.id, message);
        }
        address
    }

    fn host_port(&mut self, node: &Node, path: &str) -> Option<HostPort> {
        let text = self.text(node, path)?;
        let address = HostPort::parse(text);
        if address.is_none() {
            let message = format!(
                "{path} is not an address: found {}; allowed are HOST:PORT, IP:PORT and \
                 \"[IPV6]:PORT\" with a port from 1 to 65535",
                quoted(text)
            );
            self.fault(node.id, message);
        }
        address
    }
}
