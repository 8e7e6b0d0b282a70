//! TLS as the config has it. The files are read while it is checked, so that whatever is wrong with
//! them is found by `rolegate check`. No message shows what is in a file.

mod trust;

use std::{fmt, path::Path, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use secrecy::{ExposeSecret, SecretSlice};

use super::{
    file::{Fault, Node},
    read_limited,
    section::{Checker, MS, Section, quoted},
};

/// TLS on a listener.
#[derive(Clone)]
pub struct ListenerTls {
    /// What clients shake hands with.
    pub acceptor: Arc<ServerConfig>,
    /// For a client's handshake.
    pub handshake_timeout: Duration,
    /// What was read from files.
    identity: Identity,
    client_ca: Vec<CertificateDer<'static>>,
}

impl PartialEq for ListenerTls {
    fn eq(&self, other: &Self) -> bool {
        let Self { acceptor: _, handshake_timeout, identity, client_ca } = self;
        (handshake_timeout, identity, client_ca)
            == (&other.handshake_timeout, &other.identity, &other.client_ca)
    }
}

/// TLS towards backends or Sentinels.
#[derive(Clone)]
pub struct PeerTls {
    /// How checks, and sessions unless they are passed through, shake hands.
    pub connector: Arc<ClientConfig>,
    /// Clients speak TLS with the backends themselves: their bytes pass untouched.
    pub passthrough: bool,
    /// The certificates of the peers are not verified.
    pub insecure: bool,
    /// Whom all certificates have to name; each the host of its peer's address if absent, all of
    /// which can be names then.
    pub server_name: Option<ServerName<'static>>,
    /// What was read from files, or is the system's.
    ca: Vec<CertificateDer<'static>>,
    identity: Option<Identity>,
}

impl PartialEq for PeerTls {
    fn eq(&self, other: &Self) -> bool {
        let Self { connector: _, passthrough, insecure, server_name, ca, identity } = self;
        (passthrough, insecure, server_name, ca, identity)
            == (&other.passthrough, &other.insecure, &other.server_name, &other.ca, &other.identity)
    }
}

// rustls shows more than is fit to be read.
impl fmt::Debug for ListenerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ListenerTls");
        shown.field("handshake_timeout", &self.handshake_timeout).finish_non_exhaustive()
    }
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passthrough, insecure, server_name, .. } = self;
        let mut shown = f.debug_struct("PeerTls");
        shown.field("passthrough", passthrough).field("insecure", insecure);
        shown.field("server_name", server_name).finish_non_exhaustive()
    }
}

/// A certificate with its chain, and its key. The Debug output does not show the key.
#[derive(Clone, Debug)]
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    /// The file as it is.
    key: SecretSlice<u8>,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key.expose_secret() == other.key.expose_secret()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

impl Checker {
    pub(super) fn listener_tls(&mut self, node: &Node, path: &str) -> Option<ListenerTls> {
        let known = ["certificate", "key", "client_ca", "handshake_timeout"];
        let section = self.section(node, path, &known)?;
        let handshake_timeout = self.duration(
            &section,
            "handshake_timeout",
            Duration::from_secs(5),
            MS..=Duration::from_secs(60),
        );
        let client_ca = match section.get("client_ca") {
            Some(node) => Some((node, self.certificates(node, &section.at("client_ca"))?)),
            None => None,
        };
        self.required(&section, "certificate")?;
        let (identity, key, key_node) = self.identity(&section)?;
        let builder = ServerConfig::builder_with_provider(provider());
        let built = builder.with_safe_default_protocol_versions().and_then(|builder| {
            let Some((_, client_ca)) = &client_ca else {
                return Ok(builder.with_no_client_auth());
            };
            let roots = Arc::new(trust::roots(client_ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
            Ok(builder.with_client_cert_verifier(verifier))
        });
        let builder = match built {
            Ok(builder) => builder,
            Err(error) => {
                let id = client_ca.map_or(section.id, |(node, _)| node.id);
                let at = section.at("client_ca");
                self.fault(id, format!("{at} names a file that cannot be used: {error}"));
                return None;
            }
        };
        match builder.with_single_cert(identity.chain.clone(), key) {
            Ok(acceptor) => Some(ListenerTls {
                acceptor: Arc::new(acceptor),
                handshake_timeout,
                identity,
                client_ca: client_ca.map(|(_, client_ca)| client_ca).unwrap_or_default(),
            }),
            Err(error) => {
                self.unfit_key(key_node, &section, &error);
                None
            }
        }
    }

    /// `peers` are addresses as the config has them, and their hosts.
    pub(super) fn peer_tls<'a>(
        &mut self,
        node: &Node,
        path: &str,
        may_pass: bool,
        peers: impl Iterator<Item = (String, &'a str)>,
    ) -> Option<PeerTls> {
        let mut known = vec!["ca", "server_name", "certificate", "key", "insecure"];
        if may_pass {
            known.push("passthrough");
        }
        let section = self.section(node, path, &known)?;
        let insecure = self.flag(&section, "insecure", false);
        let passthrough = may_pass && self.flag(&section, "passthrough", false);
        let server_name = match section.get("server_name") {
            Some(node) => Some(self.server_name(node, &section.at("server_name"))?),
            None => None,
        };
        if server_name.is_none() {
            for (peer, _) in peers.filter(|(_, host)| ServerName::try_from(*host).is_err()) {
                let message = format!(
                    "{} is needed: found {peer}, whose host no certificate can name; allowed is a \
                     DNS name or an IP address",
                    section.at("server_name")
                );
                self.fault(section.id, message);
            }
        }
        let ca = match section.get("ca") {
            Some(node) if insecure => {
                let at = section.at("ca");
                let message = format!(
                    "{at} has no use beside insecure: true, which verifies nothing; remove one"
                );
                self.fault(node.id, message);
                return None;
            }
            Some(node) => self.certificates(node, &section.at("ca"))?,
            None if insecure => Vec::new(),
            None => self.system_roots(&section, path)?,
        };
        let identity = match (section.get("certificate"), section.get("key")) {
            (Some(_), _) => Some(self.identity(&section)?),
            (None, Some(node)) => {
                let (key, certificate) = (section.at("key"), section.at("certificate"));
                self.fault(node.id, format!("{key} has no use without {certificate}; add that"));
                return None;
            }
            (None, None) => None,
        };
        let verifier = match trust::verifier(&ca, insecure, provider()) {
            Ok(verifier) => verifier,
            Err(error) => {
                let id = section.get("ca").map_or(section.id, |node| node.id);
                let at = section.at("ca");
                self.fault(id, format!("{at} names a file that cannot be used: {error}"));
                return None;
            }
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map(|builder| builder.dangerous().with_custom_certificate_verifier(verifier));
        let (identity, connector, key_node) = match (identity, builder) {
            (Some((identity, key, key_node)), Ok(builder)) => {
                let chain = identity.chain.clone();
                (Some(identity), builder.with_client_auth_cert(chain, key), key_node)
            }
            (None, Ok(builder)) => (None, Ok(builder.with_no_client_auth()), section.id),
            (_, Err(error)) => (None, Err(error), section.id),
        };
        match connector {
            Ok(connector) => {
                let connector = Arc::new(connector);
                Some(PeerTls { connector, passthrough, insecure, server_name, ca, identity })
            }
            Err(error) => {
                self.unfit_key(key_node, &section, &error);
                None
            }
        }
    }

    fn server_name(&mut self, node: &Node, path: &str) -> Option<ServerName<'static>> {
        let text = self.text(node, path)?;
        let name = ServerName::try_from(text.to_owned());
        if name.is_err() {
            let message = format!(
                "{path} is not a name: found {}; allowed is a DNS name or an IP address, as the \
                 certificate has it",
                quoted(text)
            );
            self.fault(node.id, message);
        }
        name.ok()
    }

    /// The certificate and the key, which may stand in one file, and the node of the latter.
    fn identity(
        &mut self,
        section: &Section<'_>,
    ) -> Option<(Identity, PrivateKeyDer<'static>, usize)> {
        let node = section.get("certificate")?;
        let chain = self.certificates(node, &section.at("certificate"));
        if let Some(chain) = &chain {
            self.validity(node, &section.at("certificate"), &chain[0]);
        }
        let (key_node, at) = match section.get("key") {
            Some(key) => (key, section.at("key")),
            None => (node, section.at("certificate")),
        };
        let bytes = SecretSlice::from(self.bytes(key_node, &at)?);
        match PrivateKeyDer::from_pem_slice(bytes.expose_secret()) {
            Ok(key) => Some((Identity { chain: chain?, key: bytes }, key, key_node.id)),
            Err(_) => {
                let is_encrypted = |text: &str| text.contains("ENCRYPTED");
                let found = match str::from_utf8(bytes.expose_secret()) {
                    Ok(text) if is_encrypted(text) => "an encrypted one",
                    _ => "none",
                };
                let hint = if section.get("key").is_some() {
                    "allowed is PEM, not encrypted"
                } else {
                    "allowed is PEM, not encrypted; a key in a file of its own goes under key"
                };
                let message =
                    format!("{at} names a file without a private key: found {found}; {hint}");
                self.fault(key_node.id, message);
                None
            }
        }
    }

    fn bytes(&mut self, node: &Node, path: &str) -> Option<Vec<u8>> {
        let text = self.text(node, path)?;
        match read_limited(Path::new(text)) {
            Ok((bytes, file)) => {
                self.files.push(file);
                Some(bytes)
            }
            Err(error) => {
                let message = format!(
                    "{path} names a file that cannot be read: {error}; found {}",
                    quoted(text)
                );
                self.fault(node.id, message);
                None
            }
        }
    }

    /// At least one.
    fn certificates(&mut self, node: &Node, path: &str) -> Option<Vec<CertificateDer<'static>>> {
        let bytes = self.bytes(node, path)?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        let problem = match found {
            Ok(found) if found.is_empty() => "found none".to_owned(),
            Ok(found) => {
                match found.iter().find_map(|der| ParsedCertificate::try_from(der).err()) {
                    None => return Some(found),
                    Some(error) => format!("found one that is broken ({error})"),
                }
            }
            Err(error) => format!("found broken PEM ({error})"),
        };
        let message =
            format!("{path} names a file without certificates: {problem}; allowed is PEM");
        self.fault(node.id, message);
        None
    }

    /// Warns of an own certificate that nobody will accept. It is no error: a restart for another
    /// reason must not fail for it, and take down what does not need it.
    fn validity(&mut self, node: &Node, path: &str, certificate: &CertificateDer<'static>) {
        use rustls::{CertificateError as Wrong, Error::InvalidCertificate};
        let Ok(parsed) = ParsedCertificate::try_from(certificate) else {
            return;
        };
        let algorithms = provider().signature_verification_algorithms.all;
        let (roots, now) = (RootCertStore::empty(), UnixTime::now());
        // Nobody has signed it, as far as this call is told; the time is looked at before that.
        let result =
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, algorithms);
        let days =
            |from: UnixTime, to: UnixTime| to.as_secs().saturating_sub(from.as_secs()) / 86400;
        let message = match result {
            Err(InvalidCertificate(Wrong::ExpiredContext { time, not_after })) => format!(
                "{path} names a certificate that has expired: found one that was valid until {} days \
                 ago; put a new one there",
                days(not_after, time)
            ),
            Err(InvalidCertificate(Wrong::NotValidYetContext { time, not_before })) => format!(
                "{path} names a certificate that is not valid yet: found one that will be in {} days; \
                 put another one there, or set the clock",
                days(time, not_before)
            ),
            _ => return,
        };
        self.warnings.push(Fault { id: node.id, message });
    }

    fn unfit_key(&mut self, key: usize, section: &Section<'_>, error: &rustls::Error) {
        let (path, certificate) = (section.at("key"), section.at("certificate"));
        let message = match error {
            rustls::Error::InconsistentKeys(_) => {
                format!(
                    "{path} does not fit: found the key of another certificate than {certificate} has"
                )
            }
            error => format!("{path} and {certificate} cannot be used together: {error}"),
        };
        self.fault(key, message);
    }

    fn system_roots(
        &mut self,
        section: &Section<'_>,
        path: &str,
    ) -> Option<Vec<CertificateDer<'static>>> {
        let found = rustls_native_certs::load_native_certs().certs;
        if found.is_empty() {
            let message = format!(
                "{path} trusts nobody: this system has no CA certificates (ca-certificates, \
                 SSL_CERT_FILE); install them, or name a file with ca"
            );
            self.fault(section.id, message);
            return None;
        }
        // The system's may hold one that rustls does not take, and the order differs each time.
        let mut found: Vec<_> = found
            .into_iter()
            .filter(|der| trust::roots(std::slice::from_ref(der)).is_ok())
            .collect();
        found.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        found.dedup();
        Some(found)
    }
}
