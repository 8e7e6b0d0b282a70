//! What is done as root before its rights are given up, and what the user is told that will not work after.

use std::{
    fs, io,
    os::unix::fs::lchown,
    path::{Path, PathBuf},
};

use tracing::{info, warn};

use super::{AppError, plan::Plan};
use crate::{
    config::{Bind, Config},
    lifecycle::{
        allow_preference, prefer_this_thread,
        privileges::{Need, RunAs, may},
    },
    net,
};

/// As whom the process is to go on, if that is another user than now.
pub(super) fn successor_of_root(config: &Config) -> Result<Option<RunAs>, AppError> {
    let Some(user) = &config.user else {
        return Ok(None);
    };
    let run_as = RunAs::find(user, config.group.as_deref())?;
    Ok((!run_as.is_current()?).then_some(run_as))
}

/// Goes on as this user, who gets what it has to write. `program` is what an upgrade starts.
pub(super) fn give_up(
    run_as: &RunAs,
    plan: &Plan,
    file: &Path,
    program: &Path,
) -> Result<(), AppError> {
    let config = &plan.config;
    let (uid, gid) = run_as.ids();
    allow_preference();
    prefer_this_thread();
    for socket in plan.files() {
        if let Err(error) = socket.give(uid, gid) {
            let (file, error) = (socket.path().display().to_string(), error.to_string());
            let advice = "it stays root's, and stays after a stop unless the user may remove it";
            warn!(file, uid, error, advice, "cannot give the file of a unix socket to the user");
        }
    }
    if let Some(folder) = &config.state_dir
        && let Err(error) = make_folder(folder, uid, gid)
    {
        let (file, error) = (folder.display().to_string(), error.to_string());
        let advice = "make it, and its parents, and give it to the user";
        warn!(file, uid, error, advice, "cannot make state_dir for the user");
    }
    run_as.take()?;
    let user = config.user.as_deref();
    info!(user, uid, gid, "gave up root");
    // Root may choose what others may not.
    if let Some(name) = &config.congestion {
        net::try_congestion(name)
            .map_err(|error| AppError::Congestion { name: name.clone(), error })?;
    }
    for (need, path, advice) in needs(config, file, program) {
        if let Err(error) = may(need, &path) {
            let (file, error) = (path.display().to_string(), error.to_string());
            warn!(file, user, error, advice, "the user lacks a right");
        }
    }
    Ok(())
}

/// Makes the last folder of a path, if it is missing.
fn make_folder(folder: &Path, uid: u32, gid: u32) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| lchown(folder, Some(uid), Some(gid))),
    }
}

/// What the process has to do later with which file, and what to do where it may not.
fn needs(config: &Config, file: &Path, program: &Path) -> Vec<(Need, PathBuf, &'static str)> {
    let read = "let the user read it; until then no change of it is taken over";
    let write = "let the user write to the folder; until then no master is remembered";
    let remove =
        "let the user write to the folder; until then the socket's file stays after a stop";
    let execute = "let the user run it; until then SIGUSR2 hands over to nobody";
    let mut needs = vec![
        (Need::Read, file.to_owned(), "let the user read it; until then every reload fails"),
        (Need::Execute, program.to_owned(), execute),
    ];
    needs.extend(config.source.files.iter().map(|seen| (Need::Read, seen.path().to_owned(), read)));
    if let Some(folder) = &config.state_dir {
        needs.push((Need::Write, folder.clone(), write));
        let states =
            config.pools.iter().map(|pool| folder.join(format!("pool-{}.json", pool.name)));
        let forgets = "let the user read it; until then the last master is not remembered";
        needs.extend(
            states.filter(|state| state.exists()).map(|state| (Need::Read, state, forgets)),
        );
    }
    let binds = config.listeners.iter().flat_map(|listener| &listener.binds);
    for bind in binds.chain(config.admin.iter().map(|admin| &admin.bind)) {
        if let Bind::Unix { path, .. } = bind
            && let Some(folder) = path.parent()
        {
            needs.push((Need::Write, folder.to_owned(), remove));
        }
    }
    needs
}
