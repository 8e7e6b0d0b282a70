//! Who may come in, and how many at once.

use std::{net::IpAddr, num::NonZero, time::Duration};

use ipnet::IpNet;

/// The rules of a listener about its clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// So many at once; without it only the limit of the process counts.
    pub max_connections: Option<NonZero<u32>>,
    /// So many at once from one address.
    pub max_connections_per_source: Option<NonZero<u32>>,
    /// So many in a second; those that are too early wait to be accepted.
    pub accept_rate: Option<NonZero<u32>>,
    /// Only these may come; all if it is empty.
    pub allow: Vec<IpNet>,
    /// These may not come, also if they are allowed.
    pub deny: Vec<IpNet>,
}

impl Admission {
    /// Whether a client may come from this address. One that is IPv4 in IPv6 clothes counts as IPv4.
    pub fn permits(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        !holds(&self.deny, source) && (self.allow.is_empty() || holds(&self.allow, source))
    }
}

/// A load balancer in front tells who its clients are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Who may tell. At a unix socket that is a matter of its file's mode.
    pub trusted: Vec<IpNet>,
    /// How long after its connection the header may come.
    pub timeout: Duration,
}

impl ProxyProtocol {
    /// Whether the peer at this address may tell; one without an address came over a unix socket.
    pub fn trusts(&self, peer: Option<IpAddr>) -> bool {
        peer.is_none_or(|peer| holds(&self.trusted, peer.to_canonical()))
    }
}

fn holds(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

/// When a session ends on which nothing moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Neither side has sent anything for so long; zero is never.
    pub idle: Duration,
    /// One side has closed, and the other has sent nothing for so long; zero is never.
    pub half_close: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_balancer_is_trusted_in_either_clothes() {
        let trusted = vec!["10.0.0.0/24".parse().unwrap(), "fd00::1/128".parse().unwrap()];
        let proxy = ProxyProtocol { trusted, timeout: Duration::ZERO };
        let trusts = |ip: &str| proxy.trusts(Some(ip.parse().unwrap()));
        assert!(trusts("10.0.0.9") && trusts("::ffff:10.0.0.9") && trusts("fd00::1"));
        assert!(!trusts("10.0.1.9") && !trusts("fd00::2") && !trusts("127.0.0.1"));
        assert!(proxy.trusts(None), "the mode of the socket's file has let it in");
    }

    #[test]
    fn deny_goes_before_allow_and_an_empty_list_allows_all() {
        let network = |text: &str| vec![text.parse().unwrap()];
        let may = |rules: &Admission, ip: &str| rules.permits(ip.parse().unwrap());
        let all = Admission::default();
        assert!(may(&all, "10.0.0.1") && may(&all, "::1"));
        let some = Admission {
            allow: network("10.0.0.0/8"),
            deny: network("10.0.0.0/24"),
            ..Admission::default()
        };
        assert!(may(&some, "10.0.1.1") && may(&some, "::ffff:10.0.1.1"));
        assert!(!may(&some, "10.0.0.1") && !may(&some, "192.168.0.1") && !may(&some, "::1"));
    }
}
