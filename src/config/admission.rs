//! Who may come into a listener, and how long sessions may be idle.

use std::{net::IpAddr, slice, time::Duration};

use ipnet::{IpNet, Ipv4Net};

use super::{
    Bind,
    file::{Node, Value},
    section::{Checker, HOUR, MS, Section, found},
};
use crate::topology::{Admission, ProxyProtocol, Timeouts};

/// A load balancer sends its header with the first packet.
const PROXY_TIMEOUT: Duration = Duration::from_secs(5);

/// Clients rarely half-close, and those that do have little to wait for: Redis closes as well.
const HALF_CLOSE: Duration = Duration::from_secs(60);

impl Checker {
    pub(super) fn admission(&mut self, listener: &Section<'_>) -> Admission {
        Admission {
            max_connections: self.limit(listener, "max_connections"),
            max_connections_per_source: self.limit(listener, "max_connections_per_source"),
            accept_rate: self.limit(listener, "accept_rate"),
            allow: self.networks(listener, "allow"),
            deny: self.networks(listener, "deny"),
        }
    }

    pub(super) fn timeouts(&mut self, listener: &Section<'_>) -> Timeouts {
        let range = || Duration::ZERO..=24 * HOUR;
        Timeouts {
            idle: self.duration(listener, "idle_timeout", Duration::ZERO, range()),
            half_close: self.duration(listener, "half_close_timeout", HALF_CLOSE, range()),
        }
    }

    /// `proxy_protocol`, and what has a meaning beside it alone.
    pub(super) fn proxy_protocol(
        &mut self,
        listener: &Section<'_>,
        binds: &[Bind],
    ) -> Option<ProxyProtocol> {
        let choices = [("required", true), ("off", false)];
        let path = listener.at("proxy_protocol");
        let is_required = listener
            .get("proxy_protocol")
            .map_or(Some(false), |node| self.choice(node, &path, &choices))?;
        let proxy = ProxyProtocol {
            trusted: self.networks(listener, "trusted"),
            timeout: self.duration(
                listener,
                "proxy_timeout",
                PROXY_TIMEOUT,
                MS..=Duration::from_secs(60),
            ),
        };
        if !is_required {
            for key in ["trusted", "proxy_timeout"] {
                if let Some(node) = listener.get(key) {
                    let message = format!(
                        "{} has no use: found no proxy_protocol: required beside it; add that, or \
                         leave it out",
                        listener.at(key)
                    );
                    self.fault(node.id, message);
                }
            }
            return None;
        }
        let has_tcp = binds.iter().any(|bind| !matches!(bind, Bind::Unix { .. }));
        match listener.get("trusted") {
            None if has_tcp => {
                let message = format!(
                    "{} is missing; beside proxy_protocol it is required: name the networks of your \
                     load balancers, as whoever else may send the header can claim any address",
                    listener.at("trusted")
                );
                self.fault(listener.id, message);
            }
            Some(node) if !has_tcp && !binds.is_empty() => {
                let message = format!(
                    "{} has no use: found only unix sockets in {}, where the mode of the file says \
                     who may connect; leave it out",
                    listener.at("trusted"),
                    listener.at("bind")
                );
                self.fault(node.id, message);
            }
            _ => {}
        }
        Some(proxy)
    }

    /// A list of networks, or one.
    pub(super) fn networks(&mut self, section: &Section<'_>, key: &str) -> Vec<IpNet> {
        let nodes = match section.get(key) {
            None => return Vec::new(),
            Some(Node { value: Value::List(nodes), id }) => {
                if nodes.is_empty() {
                    let message = format!("{} is empty; name a network", section.at(key));
                    self.fault(*id, message);
                }
                nodes.as_slice()
            }
            Some(node) => slice::from_ref(node),
        };
        let networks = nodes.iter().filter_map(|node| self.network(node, &section.at(key)));
        networks.collect()
    }

    fn network(&mut self, node: &Node, path: &str) -> Option<IpNet> {
        let network = match &node.value {
            Value::Text(text) => parse_network(text),
            _ => None,
        };
        if network.is_none() {
            let message = format!(
                "{path} is not a network: found {}; allowed are addresses and networks such as \
                 10.0.0.0/8, \"fd00::/8\" and 192.0.2.1",
                found(node)
            );
            self.fault(node.id, message);
        }
        network
    }
}

/// `10.0.0.0/8`, or one address. One with bits set beyond its prefix is a slip.
fn parse_network(text: &str) -> Option<IpNet> {
    match text.parse::<IpNet>() {
        Ok(network) => Some(canonical(network)?).filter(|network| network.trunc() == *network),
        Err(_) => text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical().into()),
    }
}

/// IPv4 in IPv6 clothes as what it is: clients are judged so. `None` where it is a part of each.
fn canonical(network: IpNet) -> Option<IpNet> {
    let IpNet::V6(v6) = network else {
        return Some(network);
    };
    match v6.addr().to_ipv4_mapped() {
        None => Some(network),
        Some(ip) => Some(Ipv4Net::new(ip, v6.prefix_len().checked_sub(96)?).ok()?.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_as_people_write_them() {
        for right in ["10.0.0.0/8", "0.0.0.0/0", "fd00::/8", "::/0"] {
            assert_eq!(parse_network(right).unwrap().to_string(), right);
        }
        assert_eq!(parse_network("192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
        assert_eq!(parse_network("::ffff:192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
        assert_eq!(parse_network("::ffff:10.0.0.0/104").unwrap().to_string(), "10.0.0.0/8");
        for wrong in [
            "",
            "::ffff:0.0.0.0/90",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0",
            "localhost",
            "10.0.0.0/",
        ] {
            assert_eq!(parse_network(wrong), None, "{wrong}");
        }
    }
}
