//! What is measured: rolegate, what it is compared with, and how each is started.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{
    cores::Place,
    front::{Haproxy, leads_to},
    support::{Group, Rolegate, config_of_pools, eventually, free_port},
};

const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Direct,
    Rolegate1,
    Haproxy1,
    Splice1,
    Nginx1,
    RolegateAll,
    HaproxyAll,
}

impl Peer {
    pub const ALL: [Self; 7] = [
        Self::Rolegate1,
        Self::Haproxy1,
        Self::Splice1,
        Self::Nginx1,
        Self::RolegateAll,
        Self::HaproxyAll,
        Self::Direct,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Rolegate1 => "rolegate-1",
            Self::Haproxy1 => "haproxy-1",
            Self::Splice1 => "haproxy-1-splice",
            Self::Nginx1 => "nginx-1",
            Self::RolegateAll => "rolegate-all",
            Self::HaproxyAll => "haproxy-all",
        }
    }

    /// Where it runs, and where everything else does.
    pub fn places(self) -> [Place; 2] {
        match self {
            Self::RolegateAll | Self::HaproxyAll => [Place::Everywhere; 2],
            _ => [Place::Proxy, Place::Rest],
        }
    }

    /// The program that it needs, and that is not installed.
    pub fn missing(self) -> Option<&'static str> {
        let nginx = || Command::new("nginx").arg("-v").output().is_ok_and(|o| o.status.success());
        match self {
            Self::Haproxy1 | Self::Splice1 | Self::HaproxyAll => {
                (!Haproxy::is_installed()).then_some("haproxy")
            }
            Self::Nginx1 => (!nginx()).then_some("nginx"),
            _ => None,
        }
    }

    /// Starts it in front of these groups, for so many clients, and waits until it leads to the
    /// master of each.
    pub fn start(self, groups: &[&Group], clients: usize) -> Proxy {
        // Checks as those of rolegate: a Redis under load may answer late.
        let maxconn = format!("maxconn {clients}");
        let haproxy = |global: &[&str], defaults: &[&str]| {
            let global = [&[maxconn.as_str(), "maxpipes 100"], global].concat();
            let defaults = [&["timeout check 500ms"], defaults].concat();
            Proxy::Haproxy(Haproxy::start(groups, 2, &global, &defaults))
        };
        let proxy = match self {
            Self::Direct => Proxy::None(groups.iter().map(|g| g.nodes[0].address()).collect()),
            Self::Rolegate1 => Proxy::rolegate(groups, "workers: 1\n"),
            Self::RolegateAll => Proxy::rolegate(groups, ""),
            Self::Haproxy1 => haproxy(&["nbthread 1"], &[]),
            Self::Splice1 => haproxy(&["nbthread 1"], &["option splice-auto"]),
            Self::HaproxyAll => haproxy(&[], &[]),
            Self::Nginx1 => Proxy::Nginx(Nginx::start(groups)),
        };
        for (place, group) in groups.iter().enumerate() {
            let what = format!("{} leads to the master", self.name());
            eventually(&what, || leads_to(proxy.address(place), &group.nodes[0]).then_some(()));
        }
        proxy
    }
}

/// A running one. It ends with this.
pub enum Proxy {
    None(Vec<SocketAddr>),
    Rolegate(Rolegate),
    Haproxy(Haproxy),
    Nginx(Nginx),
}

impl Proxy {
    /// As shipped, where clients wait for the new master.
    fn rolegate(groups: &[&Group], more: &str) -> Self {
        let config = config_of_pools(groups.iter().copied());
        let config = config.replace(", hold: { timeout: 0s }", "");
        Self::Rolegate(Rolegate::start_ready(&format!("{more}{config}")))
    }

    /// Where it accepts clients of this group.
    pub fn address(&self, group: usize) -> SocketAddr {
        match self {
            Self::None(addresses) => addresses[group],
            Self::Rolegate(rolegate) => rolegate.address_of(group),
            Self::Haproxy(haproxy) => haproxy.addresses()[group],
            Self::Nginx(nginx) => nginx.addresses[group],
        }
    }

    pub fn process(&self) -> Option<u32> {
        match self {
            Self::None(_) => None,
            Self::Rolegate(rolegate) => Some(rolegate.process()),
            Self::Haproxy(haproxy) => Some(haproxy.process()),
            Self::Nginx(nginx) => Some(nginx.child.id()),
        }
    }
}

/// nginx with its stream module, which leads to the first node of each group and checks nothing.
pub struct Nginx {
    child: Child,
    addresses: Vec<SocketAddr>,
    _folder: TempDir,
}

impl Nginx {
    fn start(groups: &[&Group]) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("nginx.conf");
        let addresses: Vec<SocketAddr> =
            groups.iter().map(|_| (Ipv4Addr::LOCALHOST, free_port()).into()).collect();
        let load = match Path::new(STREAM_MODULE).exists() {
            true => format!("load_module {STREAM_MODULE};\n"),
            false => String::new(),
        };
        let server = |(group, bind): (&&Group, &SocketAddr)| {
            format!("  server {{ listen {bind}; proxy_pass {}; }}\n", group.nodes[0].address())
        };
        let servers: String = groups.iter().zip(&addresses).map(server).collect();
        // One process that works: the master process would be one more to stop.
        let config = format!(
            "{load}daemon off;\nmaster_process off;\npid {};\nerror_log stderr crit;\n\
             events {{ worker_connections 16000; }}\nstream {{\n{servers}}}\n",
            folder.path().join("pid").display(),
        );
        fs::write(&file, config).unwrap();
        let child = Command::new("nginx")
            .args(["-e", "stderr", "-p"])
            .arg(folder.path())
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, addresses, _folder: folder }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
