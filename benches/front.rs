//! What stands in front of a group beside rolegate, and to which node it leads.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::support::{Client, Group, Node, PASSWORD, Reply, free_port};

/// HAProxy with the usual checks for a Redis master, as fast as they go.
pub struct Haproxy {
    child: Child,
    addresses: Vec<SocketAddr>,
    _folder: TempDir,
}

impl Haproxy {
    /// In front of each of these groups, with more lines in its sections `global` and `defaults`.
    /// So many failed checks in a row make a server down.
    pub fn start(groups: &[&Group], fall: u32, global: &[&str], defaults: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("haproxy.cfg");
        let addresses: Vec<SocketAddr> =
            groups.iter().map(|_| (Ipv4Addr::LOCALHOST, free_port()).into()).collect();
        let lines = |lines: &[&str]| lines.iter().map(|line| format!("  {line}\n")).collect();
        let [global, defaults]: [String; 2] = [lines(global), lines(defaults)];
        let section = |(group, bind): (&&Group, &SocketAddr)| section(group, *bind, fall);
        let sections: String = groups.iter().zip(&addresses).map(section).collect();
        let config = format!(
            "global\n{global}\
             defaults\n  mode tcp\n  timeout connect 4s\n  timeout client 60s\n  \
             timeout server 60s\n{defaults}{sections}"
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
        Self { child, addresses, _folder: folder }
    }

    pub fn is_installed() -> bool {
        Command::new("haproxy").arg("-v").output().is_ok_and(|output| output.status.success())
    }

    /// Where it accepts, for each group.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn section(group: &Group, bind: SocketAddr, fall: u32) -> String {
    let servers: String = (group.nodes.iter().zip(["a", "b", "c"]))
        .map(|(node, name)| {
            let address = node.address();
            format!(
                "  server {name} {address} check inter 100ms fall {fall} rise 1 \
                 on-marked-down shutdown-sessions\n"
            )
        })
        .collect();
    format!(
        "listen redis{}\n  bind {bind}\n  option tcp-check\n  tcp-check connect\n  \
         tcp-check send AUTH\\ {PASSWORD}\\r\\n\n  tcp-check expect string +OK\n  \
         tcp-check send PING\\r\\n\n  tcp-check expect string +PONG\n  \
         tcp-check send info\\ replication\\r\\n\n  tcp-check expect string role:master\n  \
         tcp-check send QUIT\\r\\n\n  tcp-check expect string +OK\n{servers}",
        bind.port()
    )
}

/// A connection through a proxy, and the port of the node at its other end.
pub fn login(address: SocketAddr, timeout: Duration) -> io::Result<(Client, u16)> {
    let mut client = Client::connect(address)?;
    client.set_read_timeout(timeout);
    for command in [&["AUTH", PASSWORD][..], &["CONFIG", "GET", "port"]] {
        match client.call(command)? {
            Reply::Simple(_) => {}
            Reply::Array(pair) => {
                let port = pair.last().and_then(|port| port.text().parse().ok());
                return Ok((client, port.ok_or(io::ErrorKind::InvalidData)?));
            }
            other => return Err(io::Error::other(other.text())),
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Whether many new clients in a row come to this node: HAProxy takes every node for good until
/// its first check.
pub fn leads_to(address: SocketAddr, node: &Node) -> bool {
    let port = || login(address, Duration::from_secs(2)).ok().map(|(_, port)| port);
    (0..30).all(|_| port() == Some(node.port()))
}
