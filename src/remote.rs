//! Asks the rolegate that runs with a config, over its admin address.

mod status;
mod table;

use std::{io, time::Duration};

use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, sleep_until, timeout},
};

use self::status::Report;
pub use self::table::Screen;
use crate::{
    config::{Admin, Config},
    topology::Address,
};

/// For an answer. What reads is answered at once; an order has the time that the admin gives it.
const READ_PATIENCE: Duration = Duration::from_secs(5);
const ORDER_PATIENCE: Duration = Duration::from_secs(12);

/// No answer is longer, in bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The config has no admin address.
    #[error("the config has no admin.bind, so the running rolegate cannot be asked; add one")]
    NoAdmin,
    /// Nobody answers.
    #[error(
        "no rolegate answers at {address} (admin.bind): {error}; does it run with this config?"
    )]
    Silent {
        /// Where it was asked.
        address: String,
        /// The system's reason.
        error: io::Error,
    },
    /// It answered with an error.
    #[error("{0}")]
    Answer(String),
    /// It answers with something else than a status.
    #[error("what answers at {address} (admin.bind) gives no status of rolegate: {error}")]
    NoStatus {
        /// Where it was asked.
        address: String,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// What it said cannot be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// The running process, as it is asked.
#[derive(Debug)]
pub struct Remote {
    admin: Admin,
}

impl Remote {
    /// The one that runs with this config.
    pub fn of(config: Config) -> Result<Self, RemoteError> {
        config.admin.map(|admin| Self { admin }).ok_or(RemoteError::NoAdmin)
    }

    /// What a GET of this path answers.
    pub async fn get(&self, path: &str) -> Result<String, RemoteError> {
        self.ask("GET", path, READ_PATIENCE).await
    }

    /// What a POST to this path answers. Shows the config's token, if there is one.
    pub async fn post(&self, path: &str) -> Result<String, RemoteError> {
        self.ask("POST", path, ORDER_PATIENCE).await
    }

    /// A table of everything, and whether the pools of all listeners are served.
    pub async fn status(&self, screen: Screen) -> Result<(String, bool), RemoteError> {
        let report = self.report().await?;
        Ok((status::table(&report, None, screen), report.is_served()))
    }

    /// Writes the table again and again, until SIGINT comes or nobody reads it any more. Goes on
    /// while rolegate does not answer.
    pub async fn watch(
        &self,
        every: Duration,
        screen: Screen,
        mut write: impl FnMut(&str) -> io::Result<()>,
    ) -> Result<(), RemoteError> {
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let mut last: Option<(Instant, Report)> = None;
        loop {
            let asked = Instant::now();
            let answer = tokio::select! {
                answer = self.report() => answer,
                _ = &mut interrupt => return Ok(()),
            };
            let text = match answer {
                Ok(report) => {
                    let before = last.as_ref().map(|(at, report)| (asked - *at, report));
                    let text = status::table(&report, before, screen);
                    last = Some((asked, report));
                    text
                }
                Err(error) => {
                    let since = last.as_ref().map(|(at, _)| at.elapsed().as_secs_f64());
                    let since = since.map(table::duration);
                    let since = since.map_or_else(String::new, |s| format!(" for {s}"));
                    format!("no answer{since}, trying again: {error}\n")
                }
            };
            let block = if screen.is_terminal {
                // Home, and clear from there: the old table is written over.
                format!("\x1b[H\x1b[2J{text}")
            } else {
                format!("{text}\n")
            };
            match write(&block) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
            tokio::select! {
                () = sleep_until(asked + every) => {}
                _ = &mut interrupt => return Ok(()),
            }
        }
    }

    async fn report(&self) -> Result<Report, RemoteError> {
        let text = self.get("/status").await?;
        serde_json::from_str(&text)
            .map_err(|error| RemoteError::NoStatus { address: self.address(), error })
    }

    fn address(&self) -> String {
        self.admin.bind.reachable().to_string()
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        patience: Duration,
    ) -> Result<String, RemoteError> {
        let answer = timeout(patience, self.request(method, path)).await;
        let answer = answer.unwrap_or_else(|_| {
            let text = format!("no answer within {} s", patience.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        });
        match answer {
            Ok((200, body)) => Ok(body),
            Ok((_, body)) => Err(RemoteError::Answer(body.trim_end().to_owned())),
            Err(error) => Err(RemoteError::Silent { address: self.address(), error }),
        }
    }

    async fn request(&self, method: &str, path: &str) -> io::Result<(u16, String)> {
        let mut head = format!("{method} {path} HTTP/1.0\r\n").into_bytes();
        if let (Some(token), "POST") = (&self.admin.token, method) {
            head.extend_from_slice(b"Authorization: Bearer ");
            head.extend_from_slice(token.expose_secret());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        match self.admin.bind.reachable() {
            Address::Tcp(address) => converse(TcpStream::connect(address).await?, &head).await,
            Address::Unix(path) => converse(UnixStream::connect(path).await?, &head).await,
        }
    }
}

/// Sends a request, and gives the code and the body of the answer.
async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &[u8],
) -> io::Result<(u16, String)> {
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    // To HTTP/1.0 the body comes as it is, and ends with the connection.
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.ok_or_else(|| io::Error::other("this is not HTTP"))?;
    Ok((code, table::clean(body)))
}
