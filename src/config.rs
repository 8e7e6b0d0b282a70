//! The configuration: a YAML file, read as it is written (`file`), then checked as a whole
//! (`check`) into a [`Config`] that cannot be wrong.

mod admission;
mod changes;
mod check;
mod file;
mod pool;
mod section;
mod tls;
mod units;

use std::{
    fmt, fs,
    io::Read,
    num::NonZero,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretSlice};

pub use self::{
    tls::{ListenerTls, PeerTls},
    units::{Bind, Endpoint, HostPort, parse_duration},
};
use crate::topology::{Admission, Hold, OnUnexplainedHeir, ProxyProtocol, Role, Timeouts};

/// The file that `rolegate` reads when none is named.
pub const DEFAULT_FILE: &str = "proxy.yaml";

/// Clients at once, where the config does not say and the limit of open files allows it.
pub const DEFAULT_MAX_CONNECTIONS: u32 = 10_000;

/// No configuration or password file may be larger, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// In the order of the file; at least one.
    pub listeners: Vec<Listener>,
    /// In the order of the file; at least one.
    pub pools: Vec<Pool>,
    /// Where metrics, health, status and orders are served; nowhere if absent.
    pub admin: Option<Admin>,
    /// How to log.
    pub log: Log,
    /// How long sessions may go on after a stop was asked for.
    pub shutdown_timeout: Duration,
    /// How sessions end after a stop.
    pub drain: Drain,
    /// How long sessions may go on after another process has taken over.
    pub hard_stop_after: Duration,
    /// Where each pool's memory is kept over restarts; nowhere if absent.
    pub state_dir: Option<PathBuf>,
    /// TCP's congestion control, by its name in the system; the system's own choice if absent.
    pub congestion: Option<Arc<str>>,
    /// Clients at once; [`DEFAULT_MAX_CONNECTIONS`], or as many as the limit of open files allows, if
    /// absent.
    pub max_connections: Option<NonZero<u32>>,
    /// Threads that run sessions; one for each core the process may use if absent.
    pub workers: Option<NonZero<u32>>,
    /// As whom a process goes on that was started as root, once it listens: a name or a number.
    pub user: Option<Arc<str>>,
    /// The group beside it, a name or a number; the user's own if absent.
    pub group: Option<Arc<str>>,
    /// What it was read from.
    pub source: Source,
    /// What is allowed and yet hardly meant, each with file, line and column as errors have them.
    pub warnings: Vec<String>,
}

/// HTTP for operators. Its Debug output shows no token.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens.
    pub bind: Bind,
    /// What a request that changes something must show: 16 to 1024 visible ASCII characters. Without
    /// one, only a local `bind` takes such requests.
    pub token: Option<SecretSlice<u8>>,
}

impl PartialEq for Admin {
    fn eq(&self, other: &Self) -> bool {
        let token = |admin: &Self| admin.token.as_ref().map(|t| t.expose_secret().to_vec());
        self.bind == other.bind && token(self) == token(other)
    }
}

/// How listeners and their sessions end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// From the moment `/ready` says no to the moment listeners close.
    pub delay: Duration,
    /// What is left is closed bit by bit over so long, until the end of the shutdown timeout.
    pub pace: Duration,
}

/// Where a config came from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its text.
    pub text: Arc<str>,
    /// The files that it names and that were read with it.
    pub files: Vec<SeenFile>,
}

/// A file as it was when it was read.
#[derive(Clone, Debug)]
pub struct SeenFile {
    path: PathBuf,
    seen: Marks,
}

/// What tells one state of a file from another without reading it.
type Marks = (u64, u64, u64, i64, i64);

impl SeenFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is another one by now.
    pub fn has_changed(&self) -> bool {
        fs::metadata(&self.path).map(|metadata| marks(&metadata)).ok() != Some(self.seen)
    }
}

fn marks(metadata: &fs::Metadata) -> Marks {
    (metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

/// One name under `listeners`.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Its name.
    pub name: Arc<str>,
    /// Where it accepts; at least one.
    pub binds: Vec<Bind>,
    /// The place of its pool in [`Config::pools`].
    pub pool: usize,
    /// The role its clients get.
    pub role: Role,
    /// What becomes of clients while no backend is served.
    pub hold: Hold,
    /// Who may come in.
    pub admission: Admission,
    /// Its clients come by way of a load balancer that tells who they are.
    pub proxy: Option<ProxyProtocol>,
    /// When sessions end on which nothing moves.
    pub timeouts: Timeouts,
    /// Its clients speak TLS.
    pub tls: Option<ListenerTls>,
}

/// One name under `pools`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Its name.
    pub name: Arc<str>,
    /// In the order of the file; at least one.
    pub backends: Vec<Backend>,
    /// How checks log in.
    pub auth: Option<Auth>,
    /// The backends speak TLS.
    pub tls: Option<PeerTls>,
    /// How checks are made.
    pub check: Check,
    /// How long a session may wait for its backend's connection.
    pub connect_timeout: Duration,
    /// So many unused connections to the served backend are kept for new clients.
    pub preconnect: usize,
    /// The Sentinels that watch this pool, if they are to be heard.
    pub sentinel: Option<Sentinel>,
    /// What to do about an heir that nothing explains.
    pub on_unexplained_heir: OnUnexplainedHeir,
}

/// The Sentinels of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Sentinel {
    /// The pool's name in `sentinel monitor NAME`.
    pub master_name: String,
    /// In the order of the file; at least one.
    pub addresses: Vec<HostPort>,
    /// How to log in at the Sentinels.
    pub auth: Option<Auth>,
    /// They speak TLS.
    pub tls: Option<PeerTls>,
    /// So many have to agree.
    pub quorum: usize,
    /// Backends, by place, that the Sentinels know by another address.
    pub announce: Vec<(usize, HostPort)>,
}

/// One Redis address of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Its name in logs and metrics.
    pub name: Arc<str>,
    /// Where it is.
    pub address: Endpoint,
}

/// What a check logs in with. Its Debug output shows no password.
#[derive(Clone, Debug)]
pub struct Auth {
    /// The ACL user; without one, `AUTH password` means the user `default`.
    pub username: Option<String>,
    /// Any bytes, at least one.
    pub password: SecretSlice<u8>,
}

impl PartialEq for Auth {
    fn eq(&self, other: &Self) -> bool {
        (&self.username, self.password.expose_secret())
            == (&other.username, other.password.expose_secret())
    }
}

/// How a pool's backends are checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Check {
    /// From the start of one check to the start of the next, at the most.
    pub interval: Duration,
    /// The same while anything is in doubt.
    pub fast_interval: Duration,
    /// A doubt that brings nothing new counts as one for so long.
    pub fast_for: Duration,
    /// For a whole check: connect, log in, PING and INFO.
    pub timeout: Duration,
    /// So many silent timeouts in a row make a backend down.
    pub fall: u32,
    /// Host names are looked up so often, and when something goes wrong.
    pub resolve: Duration,
}

impl Check {
    /// How long a backend may acknowledge nothing before its host counts as gone.
    pub fn patience(&self) -> Duration {
        (self.timeout * self.fall).max(Duration::from_secs(1))
    }

    /// How old the last check of a backend may get while this process runs: an interval, the
    /// timeouts of a silent one, one more over a new connection, and one to be sure.
    pub fn lease_patience(&self) -> Duration {
        (self.interval + self.timeout * (self.fall + 2)).max(Duration::from_secs(1))
    }
}

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Log {
    /// As text or JSON.
    pub format: LogFormat,
    /// Nothing less severe than this is written.
    pub level: tracing::Level,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Self, ConfigErrors> {
        match read_limited(file) {
            Ok((bytes, _)) => match String::from_utf8(bytes) {
                Ok(text) => Self::parse(file, &text),
                Err(error) => Err(ConfigErrors::at_start(
                    file,
                    format!(
                        "the file is not UTF-8 text: found byte {} that is none; allowed is YAML in UTF-8",
                        error.utf8_error().valid_up_to()
                    ),
                )),
            },
            Err(error) => Err(ConfigErrors::at_start(
                file,
                format!(
                    "cannot read the file: {error}; name a readable YAML file with -f FILE (default ./{DEFAULT_FILE})"
                ),
            )),
        }
    }

    /// Checks a text that was read from `file`, which errors name.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigErrors> {
        // Some editors begin a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let root = file::read(text).map_err(|error| ConfigErrors::new(file, vec![error]))?;
        let errors = |faults| ConfigErrors::new(file, file::locate(text, faults));
        let (mut config, warnings) = check::check(&root, text).map_err(errors)?;
        let located = |error: ConfigError| {
            let message = format!("warning: {}", error.message);
            ConfigErrors::new(file, vec![ConfigError { message, ..error }]).to_string()
        };
        config.warnings = file::locate(text, warnings).into_iter().map(located).collect();
        Ok(config)
    }
}

fn read_limited(path: &Path) -> std::io::Result<(Vec<u8>, SeenFile)> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path)?;
    // From before the read: what changes meanwhile is another state.
    let seen = SeenFile { path: path.to_owned(), seen: marks(&file.metadata()?) };
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other(format!("larger than {MAX_FILE} bytes")));
    }
    Ok((bytes, seen))
}

/// What a file of its own keeps secret, without the newline that editors add. The error says what is
/// wrong with the file.
fn read_secret(file: &Path) -> Result<(Vec<u8>, SeenFile), String> {
    let (mut bytes, file) =
        read_limited(file).map_err(|error| format!("names a file that cannot be read: {error}"))?;
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    Ok((bytes, file))
}

/// Everything that is wrong with a file, in its order.
#[derive(Debug)]
pub struct ConfigErrors {
    file: String,
    errors: Vec<ConfigError>,
}

/// One error: what is wrong, what was found, what is allowed. Lines and columns count from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConfigError {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) message: String,
}

impl ConfigErrors {
    fn new(file: &Path, errors: Vec<ConfigError>) -> Self {
        Self { file: file.display().to_string(), errors }
    }

    fn at_start(file: &Path, message: String) -> Self {
        Self::new(file, vec![ConfigError { line: 1, column: 1, message }])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{}:{}: {}", self.file, error.line, error.column, error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // Files made of the right words in wrong places.
        #[test]
        fn no_file_panics_and_every_error_has_a_place(
            lines in prop::collection::vec(
                "( {0,6})(listeners|pools|main|backends|auth|password|check|fall|bind|a|- )(: ?)\
                 (\\{|\\[|127.0.0.1:1|\"\\*:1\"|100ms|-1|x@y|~|main|\\}|\\])?",
                0..12,
            )
        ) {
            let text = lines.join("\n");
            if let Err(errors) = Config::parse(Path::new("x.yaml"), &text) {
                prop_assert!(!errors.errors.is_empty());
                prop_assert!(errors.errors.iter().all(|e| e.line >= 1 && e.column >= 1));
            }
        }
    }
}
