//! Who may change something over HTTP.

use std::net::IpAddr;

use hyper::{
    StatusCode,
    header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN, REFERER},
    http::{request::Parts, uri::Authority},
};
use secrecy::{ExposeSecret, SecretSlice};
use subtle::ConstantTimeEq;
use tracing::warn;

use crate::metrics::Untold;

/// Who may change something; by default nobody. Its Debug output shows no token.
#[derive(Debug, Default)]
pub struct Access {
    token: Option<SecretSlice<u8>>,
    local: bool,
    refused: Untold,
}

/// Why a request may not change anything.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// The token is missing or wrong.
    Token,
    /// Other hosts reach this address, and there is no token.
    Remote,
    /// It comes from a web page, or may come from one.
    Browser,
}

impl Denial {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Token => StatusCode::UNAUTHORIZED,
            Self::Remote | Self::Browser => StatusCode::FORBIDDEN,
        }
    }

    /// What to do, for whoever asked.
    pub(super) fn words(&self) -> &'static str {
        match self {
            Self::Token => {
                "this needs the header `Authorization: Bearer TOKEN` with the content of \
                 admin.token_file; `rolegate reload` and `rolegate drain` send it by themselves\n"
            }
            Self::Remote => {
                "refused: admin.bind is reached from other hosts and the config has no \
                 admin.token_file; add one, or bind to 127.0.0.1\n"
            }
            Self::Browser => {
                "refused: without admin.token_file only a Host of this machine (127.0.0.1, [::1], \
                 localhost) is taken, and nothing from a browser (Origin, Referer, Sec-Fetch-Site)\n"
            }
        }
    }
}

impl Access {
    /// With a token, whoever shows it. Without one, whoever reaches an address that is `local`.
    pub fn new(token: Option<SecretSlice<u8>>, local: bool) -> Self {
        Self { token, local, refused: Untold::default() }
    }

    /// Whether this request may change something.
    pub(super) fn check(&self, head: &Parts, peer: &str) -> Result<(), Denial> {
        let denial = match &self.token {
            Some(token) if shows(&head.headers, token.expose_secret()) => return Ok(()),
            Some(_) => Denial::Token,
            None if !self.local => Denial::Remote,
            None if is_of_this_machine(head) && !is_from_browser(&head.headers) => return Ok(()),
            None => Denial::Browser,
        };
        self.log(&denial, peer);
        Err(denial)
    }

    fn log(&self, denial: &Denial, peer: &str) {
        let Some(requests) = self.refused.tell() else {
            return;
        };
        let (why, advice) = match denial {
            Denial::Token => (
                "token",
                "its token is missing or not that of admin.token_file; if it was none of you, find out who it was",
            ),
            Denial::Remote => {
                ("no token_file", "give admin a token_file, or bind it to the loopback")
            }
            Denial::Browser => (
                "browser",
                "it came from a web page, or calls this host by another name than localhost",
            ),
        };
        warn!(peer, why, requests, advice, "refused an admin request that would change something");
    }
}

/// Whether the request shows this token. How long that takes tells its length at the most.
fn shows(headers: &HeaderMap, token: &[u8]) -> bool {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let (Some(given), None) = (given.next(), given.next()) else {
        return false;
    };
    let Some((scheme, given)) = given.as_bytes().split_at_checked("Bearer ".len()) else {
        return false;
    };
    scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.ct_eq(token))
}

/// Whether every name by which the request calls this process is one of this machine: a web page
/// may reach us under its own name, when that resolves to the loopback.
fn is_of_this_machine(head: &Parts) -> bool {
    let named = head.headers.get_all(HOST).iter();
    let mut named = named.map(|host| host.to_str().ok().and_then(|host| host.parse().ok()));
    let authority = head.uri.authority();
    let is_local = |authority: &Authority| {
        let host = authority.host().trim_matches(['[', ']']);
        host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    };
    authority.is_none_or(is_local) && named.all(|host| host.as_ref().is_some_and(is_local))
}

/// Whether it has a header that no browser leaves out and nobody else needs.
fn is_from_browser(headers: &HeaderMap) -> bool {
    [ORIGIN.as_str(), REFERER.as_str(), "sec-fetch-site"]
        .iter()
        .any(|name| headers.contains_key(*name))
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn head(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::post("/reload");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn check(token: Option<&str>, local: bool, headers: &[(&str, &str)]) -> Result<(), Denial> {
        let token = token.map(|token| SecretSlice::from(token.as_bytes().to_vec()));
        Access::new(token, local).check(&head(headers), "x")
    }

    #[test]
    fn with_a_token_only_the_very_token_is_enough() {
        let token = "0123456789abcdef";
        let with = |value: &str| check(Some(token), true, &[("authorization", value)]);
        assert_eq!(with("Bearer 0123456789abcdef"), Ok(()));
        assert_eq!(with("bearer 0123456789abcdef"), Ok(()));
        for wrong in [
            "Bearer 0123456789abcdeF",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
            "Bearer",
            "",
        ] {
            assert_eq!(with(wrong), Err(Denial::Token), "{wrong}");
        }
        let right = ("authorization", "Bearer 0123456789abcdef");
        assert_eq!(check(Some(token), true, &[]), Err(Denial::Token));
        assert_eq!(check(Some(token), true, &[right, right]), Err(Denial::Token));
        // Whoever has the token may come from anywhere.
        let from = [right, ("host", "proxy.example:9101"), ("origin", "http://x")];
        assert_eq!(check(Some(token), false, &from), Ok(()));
    }

    #[test]
    fn without_a_token_only_this_machine_and_no_browser() {
        assert_eq!(check(None, true, &[]), Ok(()));
        for host in ["localhost", "LocalHost:9101", "127.0.0.1:9101", "127.9.9.9", "[::1]:9101"] {
            assert_eq!(check(None, true, &[("host", host)]), Ok(()), "{host}");
            assert_eq!(check(None, false, &[("host", host)]), Err(Denial::Remote), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "::1", "", "a b", "@"] {
            assert_eq!(check(None, true, &[("host", host)]), Err(Denial::Browser), "{host}");
        }
        for header in ["origin", "referer", "sec-fetch-site"] {
            let headers = [("host", "localhost"), (header, "null")];
            assert_eq!(check(None, true, &headers), Err(Denial::Browser), "{header}");
        }
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(check(None, true, &two), Err(Denial::Browser));
    }

    #[test]
    fn no_debug_output_shows_the_token() {
        let access = Access::new(Some(SecretSlice::from(b"0123456789abcdef".to_vec())), true);
        let shown = format!("{access:?}");
        assert!(!shown.contains("0123") && !shown.contains("48, 49"), "{shown}");
    }
}
