//! What a scenario runs on: three nodes, Sentinels, the proxies, and the namespace around them.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    pause,
    support::{Group, Node, PASSWORD, Rolegate, Sentinels, free_port, with_sentinels},
    writers::login,
};

/// Waits until the condition gives a value.
pub fn within<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let value = condition();
        if value.is_some() || Instant::now() > deadline {
            return value;
        }
        pause(Duration::from_millis(2));
    }
}

/// The master A, and its replicas B and C, of which Sentinel prefers B.
pub fn group(lines: &[&str]) -> Group {
    let node = |more: &[&str]| Node::start_with_password(&[lines, more].concat());
    let nodes = vec![node(&[]), node(&[]), node(&["replica-priority 200"])];
    for replica in &nodes[1..] {
        replica.follow(&nodes[0]);
    }
    Group { nodes }
}

/// A proxy that is measured.
pub enum Proxy {
    Rolegate(Rolegate),
    Haproxy(Haproxy),
}

impl Proxy {
    pub fn rolegate(group: &Group, sentinels: Option<&Sentinels>) -> Self {
        // As shipped, where clients wait for the new master.
        let config = group.config().replace(", hold: { timeout: 0s }", "");
        let mut config = config.replace("level: debug", "level: info");
        if let Some(sentinels) = sentinels {
            config = with_sentinels(&config, &sentinels.addresses());
        }
        Self::Rolegate(Rolegate::start_ready(&config))
    }

    pub fn haproxy(group: &Group) -> Self {
        Self::Haproxy(Haproxy::start(group))
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Rolegate(_) => "rolegate",
            Self::Haproxy(_) => "haproxy-tuned",
        }
    }

    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Rolegate(rolegate) => rolegate.address(),
            Self::Haproxy(haproxy) => haproxy.address,
        }
    }

    pub fn log(&self) -> Option<String> {
        match self {
            Self::Rolegate(rolegate) => Some(rolegate.output()),
            Self::Haproxy(_) => None,
        }
    }

    /// Waits until many new clients in a row come to this node: HAProxy takes every node for
    /// good until its first check.
    pub fn wait_leads_to(&self, node: &Node) -> Option<()> {
        let leads = || login(self.address(), Duration::from_secs(2)).ok().map(|(_, port)| port);
        within(Duration::from_secs(20), || {
            (0..30).all(|_| leads() == Some(node.port())).then_some(())
        })
    }
}

/// HAProxy with the usual checks for a Redis master, as fast as they go.
pub struct Haproxy {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Haproxy {
    fn start(group: &Group) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("haproxy.cfg");
        let port = free_port();
        let servers: String = (group.nodes.iter().zip(["a", "b", "c"]))
            .map(|(node, name)| {
                let address = node.address();
                format!(
                    "  server {name} {address} check inter 100ms fall 1 rise 1 \
                     on-marked-down shutdown-sessions\n"
                )
            })
            .collect();
        let config = format!(
            "global\n  maxconn 2000\n\
             defaults\n  mode tcp\n  timeout connect 4s\n  timeout client 60s\n  \
             timeout server 60s\n\
             listen redis\n  bind 127.0.0.1:{port}\n  option tcp-check\n  tcp-check connect\n  \
             tcp-check send AUTH\\ {PASSWORD}\\r\\n\n  tcp-check expect string +OK\n  \
             tcp-check send PING\\r\\n\n  tcp-check expect string +PONG\n  \
             tcp-check send info\\ replication\\r\\n\n  tcp-check expect string role:master\n  \
             tcp-check send QUIT\\r\\n\n  tcp-check expect string +OK\n{servers}"
        );
        fs::write(&file, config).unwrap();
        let child = Command::new("haproxy")
            .args(["-db", "-q", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, address: (Ipv4Addr::LOCALHOST, port).into(), _folder: folder }
    }

    pub fn is_installed() -> bool {
        Command::new("haproxy").arg("-v").output().is_ok_and(|output| output.status.success())
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Set for the process that runs in a namespace of its own.
const INSIDE: &str = "ROLEGATE_BENCH_NAMESPACE";

/// Starts this program once more, in a network namespace of its own in which packets can be
/// dropped, and does not return; or tells why that is not possible. Inside it returns `Ok`.
pub fn enter_namespace() -> Result<(), String> {
    if env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let script = "export PATH=\"$PATH:/usr/sbin:/sbin\"; ip link set lo up && nft 'add table ip \
        bench; add chain ip bench out { type filter hook output priority 0; }' && exec \"$0\" \"$@\"";
    // Not root: where the system lets users make namespaces, that does as well.
    let mut reason = String::new();
    for flags in ["-n", "-rn"] {
        let mut command = Command::new("unshare");
        command.arg(flags).args(["sh", "-c", script]);
        match command.arg("true").output() {
            Ok(output) if output.status.success() => {
                let mut command = Command::new("unshare");
                command.arg(flags).args(["sh", "-c", script]);
                let program = env::current_exe().map_err(|error| error.to_string())?;
                let error = command.arg(program).args(env::args_os().skip(1)).env(INSIDE, "1");
                return Err(error.exec().to_string());
            }
            Ok(output) if reason.is_empty() => {
                reason = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            }
            Ok(_) => {}
            Err(error) => reason = format!("unshare: {error}"),
        }
    }
    Err(format!("needs root, unshare, ip and nft ({reason})"))
}

/// Packets from an address to a node that vanish until this is dropped.
pub struct Cut;

impl Cut {
    pub fn new(from: Ipv4Addr, to: &Node) -> Self {
        nft(&format!("add rule ip bench out ip saddr {from} tcp dport {} drop", to.port()));
        Self
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        nft("flush chain ip bench out");
    }
}

fn nft(command: &str) {
    assert!(env::var_os(INSIDE).is_some(), "packets are dropped only in a namespace of our own");
    assert!(Command::new("nft").arg(command).status().unwrap().success(), "nft {command}");
}
