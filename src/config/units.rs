//! Durations and addresses, as people write them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use crate::topology::Address;

/// What the system has room for in the address of a unix socket, in bytes.
pub(super) const MAX_PATH: usize = 107;

/// The mode of a unix socket's file, unless the config has another.
const DEFAULT_MODE: u32 = 0o660;

/// Parses a whole number with one of the units ms, s, m or h.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// Writes a duration as [`parse_duration`] reads it.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let fits = units.iter().find(|(size, _)| millis > 0 && millis.is_multiple_of(*size));
    fits.map_or_else(|| format!("{millis}ms"), |(size, unit)| format!("{}{unit}", millis / size))
}

/// A host name or IP address, and a port other than 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A name or an address, without brackets.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

impl HostPort {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = split(text)?;
        Self::new(host, port.parse().ok()?)
    }

    /// `None` if the host can be no name and no address, or the port is 0.
    pub fn new(host: &str, port: u16) -> Option<Self> {
        let port = Some(port).filter(|&port| port != 0)?;
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_name = !host.is_empty() && host.len() <= 253 && host.chars().all(named);
        // All digits and dots, yet no address: a slip, not a name.
        let is_slip = host.chars().all(|c| c.is_ascii_digit() || c == '.');
        // One spelling for each address, so that two backends can be told apart.
        let host = match host.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().to_string(),
            Err(_) if is_name && !is_slip => host.to_ascii_lowercase(),
            Err(_) => return None,
        };
        Some(Self { host, port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where a backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A host and a port.
    Host(HostPort),
    /// The file of a unix socket on this host, as an absolute path of at most 107 bytes.
    Unix(Arc<Path>),
}

impl Endpoint {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("unix:") {
            Some(path) => parse_path(path).map(Self::Unix),
            None => HostPort::parse(text).map(Self::Host),
        }
    }

    /// The name or address of the host; empty for a unix socket.
    pub fn host(&self) -> &str {
        match self {
            Self::Host(address) => &address.host,
            Self::Unix(_) => "",
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An absolute path that fits a socket's address; in one spelling, as far as it alone tells.
fn parse_path(text: &str) -> Option<Arc<Path>> {
    let path: Box<Path> = Path::new(text).components().collect::<std::path::PathBuf>().into();
    let fits = path.is_absolute() && text.len() <= MAX_PATH && !text.contains('\0');
    (fits && path.file_name().is_some() && !text.ends_with('/')).then(|| path.into())
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// Every IPv4 and, where the system has it, every IPv6 address, with this port.
    All(u16),
    /// This address. `[::]` takes IPv4 clients too.
    One(SocketAddr),
    /// A unix socket.
    Unix {
        /// Its file, as an absolute path of at most 107 bytes.
        path: Arc<Path>,
        /// Who may use it, as in chmod.
        mode: u32,
    },
}

impl Bind {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Some(Self::Unix { path: parse_path(path)?, mode: DEFAULT_MODE });
        }
        let (host, port) = split(text)?;
        let port = port.parse().ok()?;
        match host {
            "" | "*" => Some(Self::All(port)),
            // An IPv4 address in IPv6 clothes can only be bound as what it is.
            _ => {
                Some(Self::One(SocketAddr::new(host.parse::<IpAddr>().ok()?.to_canonical(), port)))
            }
        }
    }

    /// The IP address and port; for [`Bind::All`] the IPv6 one.
    fn address(&self) -> Option<SocketAddr> {
        match *self {
            Self::All(port) => Some(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)),
            Self::One(address) => Some(address),
            Self::Unix { .. } => None,
        }
    }

    /// Its port; `None` for a unix socket.
    pub fn port(&self) -> Option<u16> {
        self.address().map(|address| address.port())
    }

    /// Whether the system chooses a free port.
    pub fn is_any_port(&self) -> bool {
        self.address().is_some_and(|address| address.port() == 0)
    }

    /// Whether a socket that listens at this address is the one to bind.
    pub fn is_at(&self, address: &Address) -> bool {
        match (self, address) {
            // Without IPv6 all addresses are those of IPv4.
            (Self::All(port), Address::Tcp(at)) => at.ip().is_unspecified() && at.port() == *port,
            (Self::One(own), Address::Tcp(at)) => own == at,
            (Self::Unix { path, .. }, Address::Unix(at)) => path == at,
            _ => false,
        }
    }

    /// Whether both are one place; the modes of a unix socket may differ.
    pub fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix { path: a, .. }, Self::Unix { path: b, .. }) => a == b,
            _ => self == other,
        }
    }

    /// Where to connect to it from this host: what listens on all addresses is asked on the loopback.
    pub fn reachable(&self) -> Address {
        let mut address = match self {
            // Takes IPv4 as well, which also a host without IPv6 has.
            Self::All(port) => (Ipv4Addr::LOCALHOST, *port).into(),
            Self::One(address) => *address,
            Self::Unix { path, .. } => return Address::Unix(path.clone()),
        };
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        Address::Tcp(address)
    }

    /// Whether only this host reaches it.
    pub fn is_local(&self) -> bool {
        self.address().is_none_or(|address| address.ip().is_loopback())
    }

    /// Whether a backend there would be this very process, as far as the address alone tells: a
    /// wildcard is only known to take the loopback addresses.
    pub(super) fn is_reached_by(&self, backend: &Endpoint) -> bool {
        let (own, backend) = match (self, self.address(), backend) {
            (Self::Unix { path, .. }, _, Endpoint::Unix(other)) => return path == other,
            (_, Some(own), Endpoint::Host(backend)) => (own, backend),
            _ => return false,
        };
        let ip = match backend.host.as_str() {
            "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
            host => host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical()),
        };
        own.port() == backend.port
            && ip.is_some_and(|ip| {
                // To connect to the unspecified address means to this host.
                let here = ip.is_loopback() || ip.is_unspecified();
                ip == own.ip() || here && covers(own.ip(), ip)
            })
    }

    /// Whether both cannot be bound at once. Port 0 is never the same port twice.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = match (self, other, self.address(), other.address()) {
            (Self::Unix { path: a, .. }, Self::Unix { path: b, .. }, ..) => return a == b,
            (_, _, Some(a), Some(b)) => (a, b),
            _ => return false,
        };
        a.port() == b.port() && a.port() != 0 && (covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(port) => write!(f, "*:{port}"),
            Self::One(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Whether a socket bound to the wide address takes clients of the narrow one.
fn covers(wide: IpAddr, narrow: IpAddr) -> bool {
    wide == Ipv6Addr::UNSPECIFIED
        || wide == Ipv4Addr::UNSPECIFIED && narrow.is_ipv4()
        || wide == narrow
}

/// Splits `host:port`; an IPv6 host must stand in brackets.
fn split(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    let digits = port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|inner| inner.contains(':'))?,
        None => Some(host).filter(|host| !host.contains([':', ']']))?,
    };
    digits.then_some((host, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(parse_duration("2s"), Some(Duration::from_secs(2)));
        assert_eq!(parse_duration("3m"), Some(Duration::from_secs(180)));
        assert_eq!(parse_duration("1h"), Some(Duration::from_secs(3600)));
        for text in ["0ms", "1ms", "1500ms", "2s", "90s", "3m", "24h"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
        for wrong in ["", "100", "ms", "-1s", "1.5s", "1 s", "1S", "1d", "99999999999999999999s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn backend_addresses() {
        for right in ["127.0.0.1:6379", "redis-1.local:7001", "[::1]:6379", "a_b:1"] {
            assert_eq!(HostPort::parse(right).unwrap().to_string(), right);
        }
        assert_eq!(HostPort::parse("[0:0::1]:1").unwrap().to_string(), "[::1]:1");
        assert_eq!(HostPort::parse("Redis.Local:1").unwrap().to_string(), "redis.local:1");
        let wrong = [
            "",
            "redis",
            "redis:",
            "redis:0",
            "redis:65536",
            "::1:6379",
            "[::1]",
            "[redis]:1",
            "a b:1",
            "*:6379",
            ":6379",
            "1.2.3:6379",
            "a:+1",
        ];
        for wrong in wrong {
            assert_eq!(HostPort::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn bind_addresses() {
        assert_eq!(Bind::parse("*:6379"), Some(Bind::All(6379)));
        assert_eq!(Bind::parse(":6379"), Some(Bind::All(6379)));
        assert_eq!(Bind::parse("[::]:6379").unwrap().to_string(), "[::]:6379");
        assert_eq!(Bind::parse("127.0.0.1:0").unwrap().to_string(), "127.0.0.1:0");
        for wrong in ["localhost:6379", "6379", "127.0.0.1", "127.0.0.1:x", "[::]6379", "::"] {
            assert_eq!(Bind::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_wide_bind_overlaps_a_narrow_one() {
        let overlap = |a: &str, b: &str| {
            let (a, b) = (Bind::parse(a).unwrap(), Bind::parse(b).unwrap());
            assert_eq!(a.overlaps(&b), b.overlaps(&a));
            a.overlaps(&b)
        };
        assert!(overlap("127.0.0.1:1", "127.0.0.1:1"));
        assert!(overlap("0.0.0.0:1", "127.0.0.1:1"));
        assert!(overlap("*:1", "127.0.0.1:1"));
        assert!(overlap("[::]:1", "0.0.0.0:1"));
        assert!(!overlap("127.0.0.1:1", "127.0.0.2:1"));
        assert!(!overlap("0.0.0.0:1", "[::1]:1"));
        assert!(!overlap("*:1", "*:2"));
        assert!(!overlap("127.0.0.1:0", "127.0.0.1:0"));
        assert!(overlap("unix:/a", "unix:/./a"));
        assert!(!overlap("unix:/a", "unix:/b"));
        assert!(!overlap("unix:/a", "*:1"));
    }

    #[test]
    fn paths_of_unix_sockets() {
        let longest = format!("unix:/{}", "x".repeat(MAX_PATH - 1));
        for right in ["unix:/run/redis.sock", "unix:/a", &longest] {
            assert_eq!(Endpoint::parse(right).unwrap().to_string(), right);
            assert_eq!(Bind::parse(right).unwrap().to_string(), right);
        }
        let too_long = format!("{longest}x");
        for wrong in ["unix:", "unix:redis.sock", "unix:/", "unix:/run/", "unix:/a\0b", &too_long] {
            assert_eq!(Endpoint::parse(wrong), None, "{wrong}");
            assert_eq!(Bind::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_backend_that_is_the_listener_itself_is_seen() {
        let reached = |bind: &str, backend: &str| {
            Bind::parse(bind).unwrap().is_reached_by(&Endpoint::parse(backend).unwrap())
        };
        assert!(reached("127.0.0.1:1", "127.0.0.1:1"));
        assert!(reached("*:1", "localhost:1"));
        assert!(reached("[::]:1", "[::1]:1"));
        assert!(reached("[::]:1", "127.0.0.1:1"));
        assert!(reached("127.0.0.1:1", "LOCALHOST:1"));
        assert!(reached("*:1", "0.0.0.0:1"));
        assert!(!reached("0.0.0.0:1", "[::1]:1"));
        assert!(!reached("*:1", "10.0.0.1:1"));
        assert!(!reached("127.0.0.1:1", "127.0.0.1:2"));
        assert!(!reached("*:1", "redis:1"));
        assert!(reached("unix:/run/a.sock", "unix:/run//./a.sock"));
        assert!(!reached("unix:/run/a.sock", "unix:/run/b.sock"));
        assert!(!reached("unix:/run/a.sock", "localhost:1"));
        assert!(!reached("*:1", "unix:/run/a.sock"));
        assert_eq!(Bind::parse("[::ffff:1.2.3.4]:1").unwrap().to_string(), "1.2.3.4:1");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,40}") {
            let _ = (parse_duration(&text), Endpoint::parse(&text), Bind::parse(&text));
        }

        #[test]
        fn what_is_shown_is_what_is_read(host in "[a-z][a-z0-9-]{0,20}", port in 1u16..) {
            let text = format!("{host}:{port}");
            prop_assert_eq!(HostPort::parse(&text).unwrap().to_string(), text);
        }
    }
}
