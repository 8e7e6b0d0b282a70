//! Arguments in, exit code out.

use std::{
    io::{Write, stderr, stdout},
    path::Path,
    process::ExitCode,
};

use clap::Parser;
use rolegate::{
    app::{self, Launch},
    cli::Cli,
    config::Config,
    lifecycle::inherit::Inherited,
    logging, remote,
};

/// Running failed.
const FAILED: u8 = 1;
/// The config or the arguments are bad; clap uses the same for usage.
const BAD_CONFIG: u8 = 2;

fn main() -> ExitCode {
    // First of all: it changes the environment, which no thread may read meanwhile.
    let inherited = Inherited::take();
    let cli = Cli::parse();
    let config = match Config::load(&cli.file) {
        Ok(config) => config,
        Err(errors) => {
            // Nobody may be reading; the exit code tells as well.
            let _ = writeln!(stderr(), "{errors}");
            return BAD_CONFIG.into();
        }
    };
    if cli.only_checks() {
        let _ = writeln!(stdout(), "{}: valid", cli.file.display());
        return ExitCode::SUCCESS;
    }
    if let Some(question) = cli.question() {
        return match remote::get(config.admin, &question) {
            Ok(answer) => {
                let _ = write!(stdout(), "{answer}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                let _ = writeln!(stderr(), "rolegate: {error}");
                FAILED.into()
            }
        };
    }
    match run(config, &cli.file, inherited) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(stderr(), "rolegate: {error}");
            FAILED.into()
        }
    }
}

fn run(
    config: Config,
    file: &Path,
    inherited: Inherited,
) -> Result<(), Box<dyn std::error::Error>> {
    let launch = Launch::of_this_process()?;
    let logging = logging::start(config.log)?;
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = control
        .block_on(app::run(config, file, launch, inherited, |level| logging.set_level(level)));
    // A name lookup may still block a thread; nothing waits for it.
    control.shutdown_background();
    Ok(result?)
}
