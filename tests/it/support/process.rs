//! What the system tells about any process.

use std::{fs, time::Duration};

/// How long all its threads have run.
pub fn cpu_time(process: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    // A thread may end meanwhile.
    let ran = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.map(Result::unwrap).filter_map(ran).sum())
}

/// How many files it has open. Pipes for bulk, which workers keep, are left out.
pub fn descriptors(process: u32) -> usize {
    let files = fs::read_dir(format!("/proc/{process}/fd")).unwrap().map(Result::unwrap);
    // One may be closed meanwhile.
    let links = files.filter_map(|file| fs::read_link(file.path()).ok());
    links.filter(|link| !link.to_string_lossy().starts_with("pipe:")).count()
}
