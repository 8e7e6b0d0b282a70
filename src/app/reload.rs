//! Reads the config again, and the secrets that it names.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::{Level, error, info, warn};

use super::{AppError, plan::Plan, running::Running};
use crate::config::{Config, ConfigErrors, SeenFile};

/// How often to look whether a file with a secret is another than the one that was read.
const LOOK: Duration = Duration::from_secs(1);

/// How long reading may take. On a file system that hangs, a thread waits on.
const PATIENCE: Duration = Duration::from_secs(5);

/// The config that runs, and the file from which the next one comes.
pub(super) struct Reloader {
    file: Arc<Path>,
    config: Config,
    limit: u64,
    /// The last attempt to renew them failed.
    failing: bool,
    /// A look at the files that has not ended. There is never a second one.
    look: Option<JoinHandle<bool>>,
}

/// What changed, in one text.
fn told(changes: &[String], between: &str) -> String {
    if changes.is_empty() { "nothing has changed".to_owned() } else { changes.join(between) }
}

impl Reloader {
    pub(super) fn new(config: Config, file: &Path, limit: u64) -> Self {
        Self { file: file.into(), config, limit, failing: false, look: None }
    }

    /// The config that runs.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Reads the config file and changes to what it says. Tells what changed, or else what is wrong,
    /// which leaves everything as it was. The outer error ends the process.
    pub(super) async fn reload(
        &mut self,
        running: &mut Running,
        set_level: impl Fn(Level),
    ) -> Result<Result<String, String>, AppError> {
        let file = self.file.clone();
        let read = move || Config::load(&file);
        let drained = running.drained();
        let mut result = self.change(running, read, Vec::new(), set_level).await?;
        if let Ok(changes) = &mut result {
            let again = |name: &Arc<str>| format!("listener {name}: takes clients again");
            let config = &self.config.listeners;
            let opened = drained.iter().filter(|name| config.iter().any(|one| one.name == **name));
            changes.extend(opened.map(again));
        }
        let result = result.map(|changes| told(&changes, "\n"));
        match &result {
            Ok(changes) => {
                for change in changes.lines() {
                    info!(change, "reload");
                }
                for warning in &self.config.warnings {
                    warn!(warning, "the config has something that is hardly meant");
                }
                info!(file = %self.file.display(), "reloaded");
            }
            Err(errors) => {
                for error in errors.lines() {
                    error!(error, "cannot reload");
                }
                let advice =
                    "the config that ran before goes on; mend the errors above and reload again";
                error!(file = %self.file.display(), advice, "not reloaded");
            }
        }
        Ok(result)
    }

    /// Resolves when a file with a secret is another than the one that was read.
    pub(super) async fn secrets_changed(&mut self) {
        loop {
            sleep(LOOK).await;
            let files = &self.config.source.files;
            if files.is_empty() {
                continue;
            }
            let look = self.look.get_or_insert_with(|| {
                let files = files.clone();
                spawn_blocking(move || files.iter().any(SeenFile::has_changed))
            });
            let changed = look.await;
            self.look = None;
            if changed.unwrap_or(false) {
                return;
            }
        }
    }

    /// Takes over what the files say now that the running config names; its own file may be half
    /// written, and is not read.
    pub(super) async fn renew_secrets(
        &mut self,
        running: &mut Running,
        set_level: impl Fn(Level),
    ) -> Result<(), AppError> {
        let (file, text) = (self.file.clone(), self.config.source.text.clone());
        let read = move || Config::parse(&file, &text);
        // A drained listener is opened by an order alone.
        let closed = running.drained();
        match self.change(running, read, closed, set_level).await? {
            Ok(changes) => {
                self.failing = false;
                let changes = told(&changes, "; ");
                info!(changes, "took over a file that the config names");
            }
            Err(errors) => self.tell_failed(&errors),
        }
        Ok(())
    }

    /// The same in a process that ends: for the checks of its sessions alone.
    pub(super) async fn renew_pools(&mut self, running: &mut Running) {
        let (file, text) = (self.file.clone(), self.config.source.text.clone());
        let read = spawn_blocking(move || Config::parse(&file, &text));
        match timeout(PATIENCE, read).await {
            Ok(Ok(Ok(new))) => {
                running.change_pools(&new).await;
                let changes = self.config.changes(&new).join("; ");
                info!(changes, "took over a file that the config names");
                self.config = new;
                self.failing = false;
            }
            Ok(Ok(Err(errors))) => self.tell_failed(&errors.to_string()),
            Ok(Err(_)) | Err(_) => self.tell_failed("it was not read in time"),
        }
    }

    /// It may be half written. The next look comes soon.
    fn tell_failed(&mut self, errors: &str) {
        if !self.failing {
            let advice =
                "what was read before goes on; mend the file, which is looked at every second";
            warn!(errors, advice, "cannot take over a file that the config names");
        }
        self.failing = true;
    }

    async fn change(
        &mut self,
        running: &mut Running,
        read: impl FnOnce() -> Result<Config, ConfigErrors> + Send + 'static,
        closed: Vec<Arc<str>>,
        set_level: impl Fn(Level),
    ) -> Result<Result<Vec<String>, String>, AppError> {
        let new = match timeout(PATIENCE, spawn_blocking(read)).await {
            Ok(Ok(Ok(new))) => new,
            Ok(Ok(Err(errors))) => return Ok(Err(errors.to_string())),
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                return Ok(Err(format!(
                    "the config, or a file that it names, was not read in {seconds} s: does its file system hang?"
                )));
            }
            Ok(Err(error)) => return Ok(Err(format!("cannot read the config: {error}"))),
        };
        let base = &running.base;
        let congestion = base.congestion.clone();
        let planned = Plan::new(
            new.clone(),
            Some(running),
            closed,
            Vec::new(),
            base.worker_count,
            self.limit,
            congestion.as_ref(),
        );
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let changes = self.config.changes(&new);
        running.apply(plan).await?;
        set_level(new.log.level);
        self.config = new;
        Ok(Ok(changes))
    }
}
