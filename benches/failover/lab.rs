//! What a scenario runs on: three nodes, Sentinels, the proxies, and the namespace around them.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    front::{Haproxy, leads_to},
    pause,
    support::{Group, Node, Rolegate, Sentinels, with_sentinels},
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
        Self::Haproxy(Haproxy::start(&[group], 1, &["maxconn 2000"], &[]))
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
            Self::Haproxy(haproxy) => haproxy.addresses()[0],
        }
    }

    pub fn log(&self) -> Option<String> {
        match self {
            Self::Rolegate(rolegate) => Some(rolegate.output()),
            Self::Haproxy(_) => None,
        }
    }

    /// Waits until new clients come to this node.
    pub fn wait_leads_to(&self, node: &Node) -> Option<()> {
        within(Duration::from_secs(20), || leads_to(self.address(), node).then_some(()))
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
