//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};

use crate::config::{DEFAULT_FILE, parse_duration};

/// One TCP address that always leads to the Redis or Valkey master.
#[derive(Debug, Parser)]
#[command(
    name = "rolegate",
    version,
    after_help = "Exit codes: 0 done, 1 failed (address in use, nobody answers, check --connect found something, …), \
                  2 bad config or usage, 3 status: a listener's pool is not served.\n\
                  Signals: SIGTERM or SIGINT stops after sessions ended or shutdown_timeout; a second one at once.\n\
                  SIGHUP reads the config again. SIGUSR2 hands over to a new process of the same program file.\n\
                  When something is wrong: explain, status, check --connect; docs/when-something-is-wrong.md has every \
                  log message, reason and metric."
)]
pub struct Cli {
    /// The config file
    #[arg(short = 'f', long = "file", value_name = "FILE", default_value = DEFAULT_FILE, global = true)]
    pub file: PathBuf,

    /// Check the config file and exit, like the command `check`
    #[arg(short = 'c', long = "check")]
    check: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the proxy (the default)
    Run,
    /// Check the config file and exit
    Check {
        /// Then ask every backend and Sentinel: reachable, credentials, ACL rules, role, version, replication
        #[arg(long)]
        connect: bool,
    },
    /// Ask the rolegate that runs with this config what it serves and why
    Explain {
        /// Only this pool
        pool: Option<String>,
    },
    /// Show pools, backends and listeners of the rolegate that runs with this config as a table
    ///
    /// Exit codes: 0 the pool of every listener is served, 3 one is not, 1 nobody answers.
    Status {
        /// Show it again and again, with rates instead of sums, until Ctrl-C
        #[arg(
            long,
            value_name = "INTERVAL",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "1s",
            value_parser = interval
        )]
        watch: Option<Duration>,
    },
    /// Let the rolegate that runs with this config read it again
    Reload,
    /// Let the rolegate that runs with this config take no new clients on a listener
    Drain {
        /// The listener's name
        #[arg(value_parser = name)]
        listener: String,
    },
}

impl Cli {
    /// What to do.
    pub fn command(&self) -> Command {
        match &self.command {
            Some(command @ Command::Check { .. }) => command.clone(),
            _ if self.check => Command::Check { connect: false },
            Some(command) => command.clone(),
            None => Command::Run,
        }
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|every| (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(every))
        .ok_or_else(|| "a whole number with ms, s, m or h, from 100ms to 1h".to_owned())
}

/// What may stand in a request's path as it is.
fn name(text: &str) -> Result<String, String> {
    let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.is_empty() || !text.chars().all(sane) {
        return Err("the name of a listener: letters, digits, dots, dashes, underscores".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(arguments: &[&str]) -> Option<Command> {
        let arguments = ["rolegate"].iter().chain(arguments);
        Cli::try_parse_from(arguments).ok().map(|cli| cli.command())
    }

    #[test]
    fn what_is_asked_for_is_what_is_done() {
        use Command as C;
        let watch = |arguments: &[&str]| match command(arguments) {
            Some(C::Status { watch }) => watch,
            other => panic!("{other:?}"),
        };
        assert!(matches!(command(&[]), Some(C::Run)));
        assert!(matches!(command(&["-c"]), Some(C::Check { connect: false })));
        assert!(matches!(command(&["check", "--connect"]), Some(C::Check { connect: true })));
        assert!(matches!(command(&["-c", "check", "--connect"]), Some(C::Check { connect: true })));
        assert_eq!(watch(&["status"]), None);
        assert_eq!(watch(&["status", "--watch"]), Some(Duration::from_secs(1)));
        assert_eq!(watch(&["status", "--watch=200ms"]), Some(Duration::from_millis(200)));
        for wrong in ["--watch=0s", "--watch=2", "--watch=2h", "--watch=x"] {
            assert!(command(&["status", wrong]).is_none(), "{wrong}");
        }
        assert!(matches!(command(&["drain", "redis"]), Some(C::Drain { .. })));
        for wrong in [&["drain"][..], &["drain", "a b"], &["drain", "x/../y"], &["reload", "x"]] {
            assert!(command(wrong).is_none(), "{wrong:?}");
        }
    }
}
