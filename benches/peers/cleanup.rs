//! Nothing of what this program has started stays behind, also when it is told to stop.

use std::{fs, process, thread};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    runtime::Builder,
    select,
    signal::unix::{SignalKind, signal},
};

use crate::meter::children;

/// A folder for all temporary files, which is gone with this or after SIGINT, SIGTERM or SIGHUP,
/// as all child processes are.
pub fn begin() -> TempDir {
    let folder = TempDir::new().unwrap();
    tempfile::env::override_temp_dir(folder.path()).unwrap();
    let path = folder.path().to_owned();
    let runtime = Builder::new_current_thread().enable_io().build().unwrap();
    let [mut interrupt, mut terminate, mut hangup] = {
        let _inside = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .map(|kind| signal(kind).unwrap())
    };
    thread::spawn(move || {
        runtime.block_on(async {
            select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        for child in children() {
            let child = Pid::from_raw(i32::try_from(child).unwrap()).unwrap();
            let _ = kill_process(child, Signal::KILL);
        }
        let _ = fs::remove_dir_all(path);
        process::exit(130);
    });
    folder
}
