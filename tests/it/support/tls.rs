//! Certificates, and clients that speak TLS.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;

use super::{Client, Node, client::Connection, free_port};

/// A CA, and a folder with its certificate and with all that it has signed.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in files.
#[derive(Clone)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Of each its own: OpenSSL takes a certificate for self-signed whose issuer has its name.
        let name = format!("CA in {}", folder.path().display());
        params.distinguished_name.push(DnType::CommonName, name);
        fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    /// The file with its certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Signs a certificate for these names.
    pub fn sign(&self, names: &[&str]) -> Identity {
        self.sign_with(names, |_| ())
    }

    /// The same, but it expired long ago.
    pub fn sign_expired(&self, names: &[&str]) -> Identity {
        self.sign_with(names, |params| {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        })
    }

    fn sign_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        write(self.folder.path(), &certificate, &key.serialize_pem())
    }

    /// A certificate for this address that signed itself, and says that it is a CA.
    pub fn self_signed(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        write(self.folder.path(), &certificate, &key.serialize_pem())
    }

    /// The lines that let a redis-server or redis-sentinel speak TLS at this port.
    pub fn redis_lines(&self, identity: &Identity, port: u16, auth_clients: &str) -> Vec<String> {
        vec![
            format!("tls-port {port}"),
            format!("tls-cert-file {}", identity.certificate.display()),
            format!("tls-key-file {}", identity.key.display()),
            format!("tls-ca-cert-file {}", self.ca().display()),
            format!("tls-auth-clients {auth_clients}"),
        ]
    }

    /// A client that trusts this CA alone, connected after its handshake.
    pub fn client(&self, address: SocketAddr, identity: Option<&Identity>) -> io::Result<Client> {
        Client::over(address, |socket| Ok(Box::new(self.shake(socket, identity)?)))
    }

    /// The same over a connection that is there.
    pub fn shake(
        &self,
        mut socket: TcpStream,
        identity: Option<&Identity>,
    ) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = vec![CertificateDer::from_pem_file(&identity.certificate).unwrap()];
                let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(connection, socket))
    }
}

impl Connection for StreamOwned<ClientConnection, TcpStream> {
    fn finish(&mut self) {
        self.conn.send_close_notify();
        self.conn.complete_io(&mut self.sock).unwrap();
        self.sock.finish();
    }
}

/// A redis-server that speaks TLS at one port, and plain text at another for the test itself.
pub struct Secured {
    pub node: Node,
    pub address: SocketAddr,
}

impl Secured {
    /// With this certificate, for clients that need one (`yes`) or not (`no`).
    pub fn start(authority: &Authority, identity: &Identity, auth_clients: &str) -> Self {
        let port = free_port();
        let lines = authority.redis_lines(identity, port, auth_clients);
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        Self { node: Node::start(&lines), address: (Ipv4Addr::LOCALHOST, port).into() }
    }

    /// One with the usual certificate.
    pub fn usual(authority: &Authority) -> Self {
        Self::start(authority, &authority.sign(&["localhost", "127.0.0.1"]), "no")
    }
}

/// The key `ca` with this one.
pub fn ca_key(authority: &Authority) -> String {
    format!("ca: {}", authority.ca().display())
}

/// The keys `certificate` and `key`.
pub fn identity_keys(identity: &Identity) -> String {
    format!("certificate: {}, key: {}", identity.certificate.display(), identity.key.display())
}

/// The configuration with this `tls` for the pool.
pub fn with_pool_tls(config: &str, tls: &str) -> String {
    config.replace("pools:\n  main:\n", &format!("pools:\n  main:\n    tls: {{ {tls} }}\n"))
}

/// The configuration with this `tls` for the listener.
pub fn with_listener_tls(config: &str, tls: &str) -> String {
    config.replace("pool: main,", &format!("pool: main, tls: {{ {tls} }},"))
}

fn write(folder: &Path, certificate: &str, key: &str) -> Identity {
    let place = (0..).map(|n| folder.join(format!("{n}.pem"))).find(|path| !path.exists());
    let certificate_file = place.unwrap();
    let identity =
        Identity { key: certificate_file.with_extension("key"), certificate: certificate_file };
    fs::write(&identity.certificate, certificate).unwrap();
    fs::write(&identity.key, key).unwrap();
    identity
}
