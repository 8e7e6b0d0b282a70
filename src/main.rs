//! Arguments in, exit code out.

use std::{
    error::Error,
    io::{self, ErrorKind, Write, stderr, stdout},
    path::Path,
    process::ExitCode,
};

use clap::Parser;
use rolegate::{
    app::{self, Launch},
    cli::{Cli, Command},
    config::Config,
    lifecycle::{inherit::Inherited, privileges::RunAs},
    logging,
    remote::{Remote, Screen},
};
use tokio::runtime::Runtime;

/// All went well.
const DONE: u8 = 0;
/// Running failed, or what was asked for is not so.
const FAILED: u8 = 1;
/// The config or the arguments are bad; clap uses the same for usage.
const BAD_CONFIG: u8 = 2;
/// The pool of some listener is not served.
const NOT_SERVED: u8 = 3;

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
    match act(&cli, config, inherited) {
        Ok(code) => code.into(),
        Err(error) => {
            let _ = writeln!(stderr(), "rolegate: {error}");
            FAILED.into()
        }
    }
}

fn act(cli: &Cli, config: Config, inherited: Inherited) -> Result<u8, Box<dyn Error>> {
    match cli.command() {
        Command::Run => run(config, &cli.file, inherited)?,
        Command::Check { connect } => {
            for warning in &config.warnings {
                let _ = writeln!(stderr(), "{warning}");
            }
            // Another host may have it.
            if let Some(user) = &config.user
                && let Err(error) = RunAs::find(user, config.group.as_deref())
            {
                let _ =
                    writeln!(stderr(), "{}: warning: cannot run as {error}", cli.file.display());
            }
            print(&format!("{}: valid\n", cli.file.display()))?;
            if connect {
                let survey = on(runtime()?, app::survey(&config));
                print(&survey.to_string())?;
                return Ok(if survey.is_fine() { DONE } else { FAILED });
            }
        }
        Command::Explain { pool } => {
            let path =
                pool.map_or_else(|| "/explain".to_owned(), |pool| format!("/explain/{pool}"));
            print(&on(runtime()?, Remote::of(config)?.get(&path))?)?;
        }
        Command::Status { watch: None } => {
            let remote = Remote::of(config)?;
            let (table, served) = on(runtime()?, remote.status(Screen::of_output()))?;
            print(&table)?;
            return Ok(if served { DONE } else { NOT_SERVED });
        }
        Command::Status { watch: Some(every) } => {
            let remote = Remote::of(config)?;
            on(runtime()?, remote.watch(every, Screen::of_output(), write))?;
        }
        Command::Reload => print(&on(runtime()?, Remote::of(config)?.post("/reload"))?)?,
        Command::Drain { listener } => {
            let path = format!("/drain/{listener}");
            print(&on(runtime()?, Remote::of(config)?.post(&path))?)?;
        }
    }
    Ok(DONE)
}

fn run(config: Config, file: &Path, inherited: Inherited) -> Result<(), Box<dyn Error>> {
    let launch = Launch::of_this_process()?;
    let logging = logging::start(config.log)?;
    let set_level = |level| logging.set_level(level);
    Ok(on(runtime()?, app::run(config, file, launch, inherited, set_level))?)
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn on<T>(runtime: Runtime, task: impl Future<Output = T>) -> T {
    let result = runtime.block_on(task);
    // A name lookup may still block a thread; nothing waits for it.
    runtime.shutdown_background();
    result
}

/// Writes to standard output. Who reads no more has seen enough.
fn print(text: &str) -> io::Result<()> {
    write(text).or_else(|error| match error.kind() {
        ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error),
    })
}

fn write(text: &str) -> io::Result<()> {
    let mut out = stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}
