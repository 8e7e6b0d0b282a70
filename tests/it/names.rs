//! Backends and Sentinels by host name: rolegate runs with an `/etc` whose hosts change under it.

use std::{
    fs::{self, File},
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{
    Client, Group, Node, PASSWORD, Rolegate, Sentinels, config, eventually, free_port,
    with_sentinels,
};

/// The folder that takes the place of `/etc`.
struct Etc(TempDir);

impl Etc {
    fn new(hosts: &[(&str, &str)]) -> Self {
        let etc = Self(TempDir::new().unwrap());
        fs::write(etc.0.path().join("nsswitch.conf"), "hosts: files\n").unwrap();
        fs::write(etc.0.path().join("host.conf"), "multi on\n").unwrap();
        etc.set(hosts);
        etc
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn hosts(&self) -> PathBuf {
        self.path().join("hosts")
    }

    /// Names, and where they are now. No lookup sees half of it.
    fn set(&self, hosts: &[(&str, &str)]) {
        let draft = self.path().join("draft");
        fs::write(&draft, lines(hosts)).unwrap();
        fs::rename(draft, self.hosts()).unwrap();
    }

    /// From now on every lookup hangs, until it is released.
    fn hang(&self) -> PathBuf {
        fs::remove_file(self.hosts()).unwrap();
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, self.hosts(), kind, 0o600.into(), 0).unwrap();
        self.hosts()
    }

    /// Lets the lookup that hangs go on, and those that come.
    fn release(&self, hosts: &[(&str, &str)]) {
        let mut pipe = File::options().read(true).write(true).open(self.hosts()).unwrap();
        self.set(hosts);
        pipe.write_all(lines(hosts).as_bytes()).unwrap();
    }
}

fn lines(hosts: &[(&str, &str)]) -> String {
    hosts.iter().map(|(name, ip)| format!("{ip} {name}\n")).collect()
}

/// In front of redis.test at this port, looked up as often as may be.
fn config_of_name(port: u16) -> String {
    let config = config(&[([127, 0, 0, 1], port).into()], None);
    config
        .replace("n0: '127.0.0.1:", "n0: 'redis.test:")
        .replace("fall: 2", "fall: 2, resolve: 100ms")
}

fn resolved(rolegate: &Rolegate) -> Option<SocketAddr> {
    let address = rolegate.status()["pools"]["main"]["backends"]["n0"]["resolved"].take();
    address.as_str()?.parse().ok()
}

/// Connections that the node has besides the one that asks.
fn connections(node: &Node) -> usize {
    node.call(&["CLIENT", "LIST"]).text().lines().count() - 1
}

#[test]
fn a_name_that_moves_is_another_node() {
    let old = Node::start(&[]);
    let new: SocketAddr = ([127, 0, 0, 2], old.port()).into();
    let etc = Etc::new(&[("redis.test", "127.0.0.1")]);
    let rolegate = Rolegate::start_in(etc.path(), &config_of_name(old.port()));
    rolegate.wait_ready();
    let mut session = rolegate.client();
    session.call(&["SET", "who", "old"]).unwrap();

    // Nothing answers there yet, so nobody is served, although the old node lives.
    etc.set(&[("redis.test", "127.0.0.2")]);
    assert_eq!(session.end().1, std::io::ErrorKind::ConnectionReset);
    rolegate.wait_failure("n0", "refused");
    let refusal = rolegate.client().call(&["PING"]).unwrap().text();
    assert!(refusal.starts_with("MASTERDOWN"), "{refusal}");
    eventually("nothing is left on the old node", || (connections(&old) == 0).then_some(()));
    let moved = rolegate.wait_log("name has other addresses");
    assert_eq!(moved["from"], format!("127.0.0.1:{}", old.port()));
    assert_eq!(moved["to"], new.to_string());

    let node = Node::start_at(new, &[]);
    node.call(&["SET", "who", "new"]);
    rolegate.wait_ready();
    assert_eq!(resolved(&rolegate), Some(new));
    let mut session = rolegate.client();
    assert_eq!(session.call(&["GET", "who"]).unwrap().text(), "new");
    let chosen = rolegate.status()["pools"]["main"]["chosen"]["rule"].take();
    assert_eq!(chosen, "restarted", "it is not taken for the process that was served");

    // To one that answers at once.
    let epoch = rolegate.status()["pools"]["main"]["epoch"].as_u64().unwrap();
    etc.set(&[("redis.test", "127.0.0.1")]);
    assert_eq!(session.end().1, std::io::ErrorKind::ConnectionReset);
    eventually("the other one is served", || {
        (resolved(&rolegate) == Some(old.address())).then_some(())
    });
    rolegate.wait_ready();
    let mut session = rolegate.client();
    assert_eq!(session.call(&["GET", "who"]).unwrap().text(), "old");
    assert!(rolegate.status()["pools"]["main"]["epoch"].as_u64().unwrap() > epoch);
    eventually("nothing is left on the new node", || (connections(&node) == 0).then_some(()));
}

#[test]
fn a_new_node_that_refuses_the_login_does_not_keep_the_old_one_served() {
    let old = Node::start_with_password(&[]);
    let new = ([127, 0, 0, 2], old.port()).into();
    let _new = Node::start_at(new, &["requirepass another"]);
    let etc = Etc::new(&[("redis.test", "127.0.0.1")]);
    let auth = format!("    auth: {{ password: '{PASSWORD}' }}\n    check:");
    let config = config_of_name(old.port()).replace("    check:", &auth);
    let rolegate = Rolegate::start_in(etc.path(), &config);
    rolegate.wait_ready();
    let mut session = Client::login(rolegate.address(), PASSWORD).unwrap();
    etc.set(&[("redis.test", "127.0.0.2")]);
    assert_eq!(session.end().1, std::io::ErrorKind::ConnectionReset);
    rolegate.wait_failure("n0", "wrongpass");
    let line = rolegate.wait_log("backend is down");
    let left = format!("its name has left {}", old.address());
    assert!(line["words"].as_str().unwrap().starts_with(&left), "{line}");
    assert_ne!(rolegate.status()["pools"]["main"]["verdict"], "serve");
    etc.set(&[("redis.test", "127.0.0.1")]);
    rolegate.wait_ready();
}

#[test]
fn a_silent_node_is_left_when_its_name_moves() {
    let old = Node::start(&[]);
    let node = Node::start_at(([127, 0, 0, 2], old.port()).into(), &[]);
    let etc = Etc::new(&[("redis.test", "127.0.0.1")]);
    // Silence alone would keep the link for an hour.
    let config = config_of_name(old.port()).replace("fall: 2, resolve: 100ms", "fall: 1000");
    let rolegate = Rolegate::start_in(etc.path(), &config.replace("timeout: 500ms", "timeout: 4s"));
    rolegate.wait_ready();
    old.freeze();
    etc.set(&[("redis.test", "127.0.0.2")]);
    eventually("the new address is served", || {
        (resolved(&rolegate) == Some(node.address())).then_some(())
    });
    rolegate.wait_ready();
    rolegate.client().call(&["PING"]).unwrap();
    old.thaw();
}

#[test]
fn what_a_name_resolved_to_last_stays_while_dns_is_down() {
    let mut node = Node::start(&[]);
    let etc = Etc::new(&[("redis.test", "127.0.0.1")]);
    let rolegate = Rolegate::start_in(etc.path(), &config_of_name(node.port()));
    rolegate.wait_ready();
    let mut session = rolegate.client();
    etc.set(&[]);
    let line = rolegate.wait_log("name does not resolve");
    assert_eq!(line["name"], format!("redis.test:{}", node.port()));
    assert_eq!(line["stays"], node.address().to_string());
    assert!(line["advice"].as_str().unwrap().contains("DNS"));
    let before = rolegate.checks("n0");
    eventually("checks go on", || (rolegate.checks("n0") > before + 10.0).then_some(()));
    assert_eq!(rolegate.status()["pools"]["main"]["epoch"], 1);
    session.call(&["PING"]).unwrap();

    // Also over new connections.
    node.kill();
    rolegate.wait_failure("n0", "refused");
    node.restart();
    rolegate.wait_ready();
    rolegate.client().call(&["PING"]).unwrap();

    etc.set(&[("redis.test", "127.0.0.1")]);
    rolegate.wait_log("name resolves again");
    assert_eq!(rolegate.log("name does not resolve").len(), 1);
    assert_eq!(rolegate.log("name resolves again").len(), 1);
}

#[test]
fn a_reload_while_dns_is_down_keeps_what_is_known() {
    let node = Node::start(&[]);
    let etc = Etc::new(&[("redis.test", "127.0.0.1")]);
    let config = config_of_name(node.port());
    let rolegate = Rolegate::start_in(etc.path(), &config);
    rolegate.wait_ready();
    let mut session = rolegate.client();
    etc.set(&[]);
    rolegate.wait_log("name does not resolve");
    // That takes another probe.
    assert!(rolegate.reload(&config.replace("fall: 2", "fall: 3")));
    let before = rolegate.checks("n0");
    eventually("checks go on", || (rolegate.checks("n0") > before + 3.0).then_some(()));
    session.call(&["PING"]).unwrap();
    assert!(rolegate.log("backend is down").is_empty());
    assert_eq!(rolegate.status()["pools"]["main"]["epoch"], 1);
}

#[test]
fn a_name_may_resolve_later() {
    let node = Node::start(&[]);
    let etc = Etc::new(&[]);
    let config = config_of_name(node.port()).replace("resolve: 100ms", "resolve: 1h");
    let rolegate = Rolegate::start_in(etc.path(), &config);
    let failure = rolegate.wait_failure("n0", "unresolved");
    assert!(failure["error"]["words"].is_string(), "{failure}");
    etc.set(&[("redis.test", "127.0.0.1")]);
    // Long before the hour is over, as its checks fail.
    rolegate.wait_ready();
}

#[test]
fn a_lookup_that_hangs_stops_nothing_and_takes_one_thread() {
    let mut node = Node::start(&[]);
    let etc = Etc::new(&[("redis.test", "127.0.0.1")]);
    let mut rolegate = Rolegate::start_in(etc.path(), &config_of_name(node.port()));
    rolegate.wait_ready();
    let threads = rolegate.threads();
    etc.hang();
    node.kill();
    // Each failed check wants a lookup.
    rolegate.wait_failure("n0", "refused");
    let (before, since) = (rolegate.checks("n0"), Instant::now());
    eventually("checks go on", || {
        (rolegate.checks("n0") > before + 20.0 && since.elapsed() > Duration::from_secs(3))
            .then_some(())
    });
    assert!(rolegate.threads() <= threads + 1, "{} of {threads}", rolegate.threads());
    node.restart();
    rolegate.wait_ready();
    let line = rolegate.wait_log("name does not resolve");
    assert_eq!(line["error"], "no answer in 5 s");
    etc.release(&[("redis.test", "127.0.0.1")]);
    rolegate.wait_log("name resolves again");

    etc.hang();
    rolegate.signal(Signal::TERM);
    assert_eq!(rolegate.wait_exit(), Some(0));
}

#[test]
fn a_first_lookup_that_hangs_is_said_to() {
    let node = Node::start(&[]);
    let etc = Etc::new(&[]);
    etc.hang();
    let rolegate = Rolegate::start_in(etc.path(), &config_of_name(node.port()));
    let failure = rolegate.wait_failure("n0", "unresolved");
    assert_eq!(failure["error"]["words"], "the lookup has not ended yet");
    etc.release(&[("redis.test", "127.0.0.1")]);
    rolegate.wait_ready();
}

#[test]
fn each_address_of_a_name_is_tried() {
    let node = Node::start_at(([127, 0, 0, 2], free_port()).into(), &[]);
    let hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"].map(|ip| ("redis.test", ip));
    let etc = Etc::new(&hosts);
    let rolegate = Rolegate::start_in(etc.path(), &config_of_name(node.address().port()));
    rolegate.wait_ready();
    assert_eq!(resolved(&rolegate), Some(node.address()));
    let mut session = rolegate.client();
    // The address that is in use stays one of them: nothing changes.
    etc.set(&hosts[..2]);
    rolegate.wait_log("name has other addresses");
    eventually("the name has two addresses", || {
        let logged = rolegate.log("name has other addresses");
        (logged.last()?["to"].as_str()?.matches("127.0.0.").count() == 2).then_some(())
    });
    let before = rolegate.checks("n0");
    eventually("checks go on", || (rolegate.checks("n0") > before + 3.0).then_some(()));
    session.call(&["PING"]).unwrap();
    assert_eq!(rolegate.status()["pools"]["main"]["epoch"], 1);
}

#[test]
fn a_group_by_name_fails_over() {
    let group = Group::start(3);
    let names = ["n0.test", "n1.test", "n2.test"];
    let etc = Etc::new(&names.map(|name| (name, "127.0.0.1")));
    let mut config = group.config();
    for (node, name) in group.nodes.iter().zip(names) {
        let named = format!("{name}:{}", node.port());
        config = config.replace(&node.address().to_string(), &named);
    }
    let rolegate = Rolegate::start_in(etc.path(), &config);
    rolegate.wait_master("n0");
    etc.set(&[]);
    group.nodes[1].promote();
    group.nodes[0].follow(&group.nodes[1]);
    group.nodes[2].follow(&group.nodes[1]);
    rolegate.wait_master("n1");
    Client::login(rolegate.address(), PASSWORD).unwrap().call(&["SET", "a", "b"]).unwrap();
}

#[test]
fn a_sentinel_by_name() {
    let group = Group::start(2);
    let sentinels = Sentinels::start(&group);
    let etc = Etc::new(&[]);
    let address = sentinels.nodes[0].address();
    let name = format!("sentinel.test:{}", address.port());
    let config = with_sentinels(&group.config(), &[address]).replace(&address.to_string(), &name);
    let config = config.replace("fall: 2", "fall: 2, resolve: 100ms");
    let rolegate = Rolegate::start_in(etc.path(), &config);
    let says = || rolegate.status()["pools"]["main"]["sentinels"][&name].take();
    let wait = |up: bool, words: &str| {
        eventually(&format!("the Sentinel says {words:?}"), || {
            let status = says();
            (status["up"] == up && status["says"].as_str()?.contains(words)).then_some(())
        });
    };
    wait(false, "unresolved");
    etc.set(&[("sentinel.test", "127.0.0.1")]);
    wait(true, "names n0");
    // Its connection is good, yet it is not the Sentinel of the config any more.
    etc.set(&[("sentinel.test", "127.0.0.2")]);
    wait(false, "refused");
    etc.set(&[("sentinel.test", "127.0.0.1")]);
    wait(true, "names n0");
}
