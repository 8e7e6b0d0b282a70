//! Real redis-server and redis-sentinel processes, each in a folder of its own.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Client, Reply, eventually, free_port};

/// The password of every node of a [`Group`].
pub const PASSWORD: &str = "it-secret-93";

/// One process. It ends with the test.
pub struct Node {
    child: Child,
    program: &'static str,
    host: Ipv4Addr,
    port: u16,
    folder: TempDir,
    password: Option<&'static str>,
}

impl Node {
    /// Starts a redis-server with these lines of configuration beside the usual ones.
    pub fn start(lines: &[&str]) -> Self {
        Self::start_program("redis-server", Ipv4Addr::LOCALHOST, None, lines)
    }

    /// The same, with [`PASSWORD`].
    pub fn start_with_password(lines: &[&str]) -> Self {
        let auth = [format!("requirepass {PASSWORD}"), format!("masterauth {PASSWORD}")];
        let lines: Vec<_> = auth.iter().map(String::as_str).chain(lines.iter().copied()).collect();
        Self::start_program("redis-server", Ipv4Addr::LOCALHOST, Some(PASSWORD), &lines)
    }

    /// A redis-server at this address of the loopback, which must be free.
    pub fn start_at(address: SocketAddr, lines: &[&str]) -> Self {
        let SocketAddr::V4(v4) = address else { panic!("{address}") };
        Self::start_on("redis-server", *v4.ip(), v4.port(), None, lines).unwrap()
    }

    fn start_program(
        program: &'static str,
        host: Ipv4Addr,
        password: Option<&'static str>,
        lines: &[&str],
    ) -> Self {
        // Another process may take the port between the look and the start.
        for _ in 0..5 {
            if let Some(node) = Self::start_on(program, host, free_port(), password, lines) {
                return node;
            }
        }
        panic!("{program} does not start");
    }

    fn start_on(
        program: &'static str,
        host: Ipv4Addr,
        port: u16,
        password: Option<&'static str>,
        lines: &[&str],
    ) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mut conf = format!(
            "port {port}\nbind {host}\nbind-source-addr {host}\ndir {}\nlogfile log\n",
            folder.path().display()
        );
        if program == "redis-server" {
            conf.push_str("save \"\"\nappendonly no\nrepl-diskless-sync-delay 0\n");
            conf.push_str("enable-debug-command yes\n");
        }
        conf.push_str(&lines.join("\n"));
        fs::write(folder.path().join("node.conf"), conf).unwrap();
        let child = spawn(program, &folder);
        let mut node = Self { child, program, host, port, folder, password };
        if node.is_up() {
            return Some(node);
        }
        eprintln!("{program} did not start on port {port}: {}", node.log());
        None
    }

    fn is_up(&mut self) -> bool {
        eventually("a started server answers or ends", || {
            if self.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            Client::connect(self.address()).ok()?.call(&["PING"]).ok().map(|_| true)
        })
    }

    pub fn address(&self) -> SocketAddr {
        (self.host, self.port).into()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection to the node itself, logged in.
    pub fn client(&self) -> Client {
        match self.password {
            Some(password) => Client::login(self.address(), password).unwrap(),
            None => Client::connect(self.address()).unwrap(),
        }
    }

    /// Sends one command to the node itself.
    pub fn call(&self, command: &[&str]) -> Reply {
        self.client().call(command).unwrap()
    }

    /// A field of INFO. `None` where there is none, or a failover cuts the connection.
    pub fn info(&self, field: &str) -> Option<String> {
        let mut client = match self.password {
            Some(password) => Client::login(self.address(), password).ok()?,
            None => Client::connect(self.address()).ok()?,
        };
        let info = client.call(&["INFO"]).ok()?.text();
        let mut lines = info.lines();
        lines
            .find_map(|line| line.split_once(':').filter(|(name, _)| *name == field))?
            .1
            .to_owned()
            .into()
    }

    /// Makes it a replica, and waits until its link is up.
    pub fn follow(&self, master: &Self) {
        self.call(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
        eventually("the replica follows", || {
            (self.info("master_link_status")? == "up"
                && self.info("master_port")? == master.port.to_string())
            .then_some(())
        });
    }

    pub fn promote(&self) {
        self.call(&["REPLICAOF", "NO", "ONE"]);
    }

    pub fn kill(&mut self) -> Instant {
        let at = Instant::now();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        at
    }

    /// Starts the killed process again, with the same port and folder.
    pub fn restart(&mut self) {
        self.child = spawn(self.program, &self.folder);
        assert!(self.is_up(), "{}", self.log());
    }

    /// As [`Self::restart`], without waiting for an answer.
    pub fn restart_only(&mut self) {
        self.child = spawn(self.program, &self.folder);
    }

    pub fn freeze(&self) -> Instant {
        let at = Instant::now();
        self.signal(Signal::STOP);
        at
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &str, folder: &TempDir) -> Child {
    let output =
        File::options().create(true).append(true).open(folder.path().join("output")).unwrap();
    Command::new(program)
        .arg(folder.path().join("node.conf"))
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; ./tests/run.sh installs it"))
}

/// A master and its replicas, all with [`PASSWORD`].
pub struct Group {
    pub nodes: Vec<Node>,
}

impl Group {
    /// `nodes[0]` is the master.
    pub fn start(size: usize) -> Self {
        let nodes: Vec<_> = (0..size).map(|_| Node::start_with_password(&[])).collect();
        for replica in &nodes[1..] {
            replica.follow(&nodes[0]);
        }
        Self { nodes }
    }

    /// The configuration of a rolegate in front of the group; backends are `n0`, `n1`, …
    pub fn config(&self) -> String {
        let addresses: Vec<_> = self.nodes.iter().map(Node::address).collect();
        config(&addresses, Some(PASSWORD))
    }
}

/// A configuration with free ports for rolegate itself.
pub fn config(backends: &[SocketAddr], password: Option<&str>) -> String {
    let backends: Vec<_> =
        backends.iter().enumerate().map(|(i, address)| format!("n{i}: '{address}'")).collect();
    let auth = password.map(|p| format!("    auth: {{ password: '{p}' }}\n")).unwrap_or_default();
    format!(
        "listeners:\n  redis: {{ bind: 127.0.0.1:0, pool: main, hold: {{ timeout: 0s }} }}\n\
         pools:\n  main:\n    backends: {{ {} }}\n{auth}    \
         check: {{ interval: 100ms, timeout: 500ms, fall: 2 }}\n\
         admin: {{ bind: 127.0.0.1:0 }}\nlog: {{ format: json, level: debug }}\n",
        backends.join(", ")
    )
}

/// A configuration of the kind of [`config`] with a pool and a listener for each of these groups,
/// named `p0`, `p1`, …
pub fn config_of_pools<'a>(groups: impl Iterator<Item = &'a Group> + Clone) -> String {
    let listener = |i: usize| {
        format!("  p{i}: {{ bind: 127.0.0.1:0, pool: p{i}, hold: {{ timeout: 0s }} }}\n")
    };
    let pool = |(i, group): (usize, &Group)| {
        let nodes = group.nodes.iter().enumerate();
        let backends: Vec<_> =
            nodes.map(|(n, node)| format!("n{n}: '{}'", node.address())).collect();
        let backends = backends.join(", ");
        format!("  p{i}:\n    backends: {{ {backends} }}\n    auth: {{ password: '{PASSWORD}' }}\n")
    };
    let count = groups.clone().count();
    let listeners: String = (0..count).map(listener).collect();
    let pools: String = groups.enumerate().map(pool).collect();
    format!(
        "listeners:\n{listeners}pools:\n{pools}admin: {{ bind: 127.0.0.1:0 }}\n\
         log: {{ format: json, level: info }}\n"
    )
}

/// The configuration with these Sentinels for the pool.
pub fn with_sentinels(config: &str, addresses: &[SocketAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(|address| format!("'{address}'")).collect();
    let addresses = addresses.join(", ");
    let sentinel = format!("    sentinel: {{ master_name: it, addresses: [{addresses}] }}\n");
    config.replace("admin:", &format!("{sentinel}admin:"))
}

/// Three Sentinels that watch a group's master, with quorum 2.
pub struct Sentinels {
    pub nodes: Vec<Node>,
}

impl Sentinels {
    pub fn start(group: &Group) -> Self {
        Self::start_with(Ipv4Addr::LOCALHOST, group, &[], None)
    }

    /// The same at this address of the loopback, from which they connect, too; with more lines of
    /// configuration, and the password that these set.
    pub fn start_with(
        host: Ipv4Addr,
        group: &Group,
        more: &[&str],
        password: Option<&'static str>,
    ) -> Self {
        Self::start_each(host, group, group.nodes[0].port(), |_| more.to_vec(), password)
    }

    /// The same with more lines for each, which may differ, and the master at this port.
    pub fn start_each<L: AsRef<str>>(
        host: Ipv4Addr,
        group: &Group,
        master: u16,
        more: impl Fn(usize) -> Vec<L>,
        password: Option<&'static str>,
    ) -> Self {
        let monitor = format!("sentinel monitor it 127.0.0.1 {master} 2");
        let auth = format!("sentinel auth-pass it {PASSWORD}");
        let lines = [
            monitor.as_str(),
            "sentinel down-after-milliseconds it 1000",
            "sentinel failover-timeout it 10000",
            &auth,
        ];
        let start = |n| {
            let more = more(n);
            let lines: Vec<_> = lines.iter().copied().chain(more.iter().map(L::as_ref)).collect();
            Node::start_program("redis-sentinel", host, password, &lines)
        };
        let nodes: Vec<_> = (0..3).map(start).collect();
        for node in &nodes {
            eventually("every Sentinel knows the group", || {
                let master = node.call(&["SENTINEL", "MASTER", "it"]);
                let Reply::Array(replicas) = node.call(&["SENTINEL", "REPLICAS", "it"]) else {
                    return None;
                };
                // One that it has not heard from yet would not be promoted.
                let heard = |replica: &Reply| {
                    field(replica, "flags").as_deref() == Some("slave")
                        && field(replica, "master-link-status").as_deref() == Some("ok")
                };
                (field(&master, "num-other-sentinels")? == "2"
                    && replicas.len() == group.nodes.len() - 1
                    && replicas.iter().all(heard))
                .then_some(())
            });
        }
        Self { nodes }
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Node::address).collect()
    }

    /// The port of the master that at least two of them name.
    pub fn master(&self) -> Option<u16> {
        let ask = |node: &Node| {
            let address = node.call(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "it"]).text();
            address.rsplit(' ').next()?.parse::<u16>().ok()
        };
        let named: Vec<_> = self.nodes.iter().filter_map(ask).collect();
        let often = |port: &&u16| named.iter().filter(|other| other == port).count() > 1;
        named.iter().find(often).copied()
    }
}

/// The value after this name in a Sentinel's list of names and values.
fn field(reply: &Reply, name: &str) -> Option<String> {
    let Reply::Array(fields) = reply else { return None };
    let at = fields.iter().position(|field| field.text() == name)?;
    Some(fields.get(at + 1)?.text())
}
