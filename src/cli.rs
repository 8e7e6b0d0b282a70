//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::DEFAULT_FILE;

/// One TCP address that always leads to the Redis or Valkey master.
#[derive(Debug, Parser)]
#[command(
    name = "rolegate",
    version,
    after_help = "Exit codes: 0 done, 1 failed while running (address in use, …), 2 bad config or usage.\n\
                  Signals: SIGTERM or SIGINT stops after sessions ended or shutdown_timeout; a second one at once.\n\
                  SIGHUP reads the config again. SIGUSR2 hands over to a new process of the same program file."
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

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (the default)
    Run,
    /// Check the config file and exit
    Check,
    /// Ask the rolegate that runs with this config what it serves and why
    Explain {
        /// Only this pool
        pool: Option<String>,
    },
}

impl Cli {
    /// What to ask the running rolegate, if that is what to do.
    pub fn question(&self) -> Option<String> {
        match &self.command {
            Some(Command::Explain { pool: None }) => Some("/explain".to_owned()),
            Some(Command::Explain { pool: Some(pool) }) => Some(format!("/explain/{pool}")),
            _ => None,
        }
    }

    /// Whether only to check the config.
    pub fn only_checks(&self) -> bool {
        self.check || matches!(self.command, Some(Command::Check))
    }
}
