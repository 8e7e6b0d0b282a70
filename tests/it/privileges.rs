//! The user as whom it runs: root for as long as it has to be, or anybody from the start.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{
    Client, Node, PASSWORD, Rolegate, config, eventually, free_port, write_config,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rolegate");

/// A number that no user has.
const ID: u32 = 65532;

/// Takes every right but that of being this user.
const SETPRIV: &str = "setpriv --reuid 65532 --regid 65532 --clear-groups --bounding-set=-all \
                       --inh-caps=-all --ambient-caps=-all --no-new-privs";

/// Whether this test may go on, which only root can; else says so.
fn is_root() -> bool {
    let is_root = rustix::process::getuid().is_root();
    if !is_root {
        println!("skipped: only root can test this");
    }
    is_root
}

/// A folder that everybody may read, with a configuration.
fn place(config: &str) -> (TempDir, PathBuf) {
    let (folder, file) = write_config(config);
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    (folder, file)
}

/// The program where everybody may run it.
fn program(folder: &Path) -> PathBuf {
    let program = folder.join("rolegate");
    if fs::hard_link(PROGRAM, &program).is_err() {
        fs::copy(PROGRAM, &program).unwrap();
    }
    program
}

/// Whether the user may run the program where it is.
fn is_reachable() -> bool {
    let may = |path: &Path| fs::metadata(path).is_ok_and(|file| file.mode() & 0o001 != 0);
    Path::new(PROGRAM).ancestors().filter(|path| !path.as_os_str().is_empty()).all(may)
}

/// What `/proc` tells of each thread.
fn threads(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap()).collect()
}

fn field(status: &str, name: &str) -> String {
    let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The nice of a process's first thread.
fn nice(process: u32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().parse().unwrap()
}

/// No thread has anything of root.
fn has_nothing_of_root(process: u32) {
    let threads = threads(process);
    assert!(threads.len() >= 4, "{threads:?}");
    for thread in threads {
        for name in ["Uid:", "Gid:"] {
            assert_eq!(field(&thread, name), "65532 65532 65532 65532", "{thread}");
        }
        assert_eq!(field(&thread, "Groups:"), "65532", "{thread}");
        for name in ["CapEff:", "CapPrm:", "CapAmb:"] {
            assert_eq!(field(&thread, name), "0000000000000000", "{thread}");
        }
    }
}

/// Ports that only root may have, if this system has such.
fn low_ports() -> Option<[u16; 2]> {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first.trim().parse::<u16>().unwrap() < 1024 {
        println!("left out: this system lets everybody have low ports");
        return None;
    }
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut free = (600..1024).rev().filter(is_free);
    Some([free.next()?, free.next()?])
}

fn refusal(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn root_binds_and_reads_and_is_gone_before_a_client_comes() {
    if !is_root() {
        return;
    }
    let node = Node::start_with_password(&[]);
    let low = low_ports();
    let port = low.map_or_else(free_port, |ports| ports[0]);
    let (folder, file) = place("");
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    chown(&run, Some(ID), Some(ID)).unwrap();
    let (secret, state, socket) =
        (folder.path().join("secret"), folder.path().join("state"), run.join("redis.sock"));
    fs::write(&secret, PASSWORD).unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    let bind = format!("bind: ['127.0.0.1:{port}', 'unix:{}']", socket.display());
    let config = config(&[node.address()], Some(PASSWORD))
        .replace(
            &format!("password: '{PASSWORD}'"),
            &format!("password_file: {}", secret.display()),
        )
        .replacen("bind: 127.0.0.1:0", &bind, 1);
    let plain = format!("{config}state_dir: {}\n", state.display());
    let config = format!("{plain}user: 65532\ngroup: 65532\n");
    fs::write(&file, &config).unwrap();

    let mut rolegate = Rolegate::start_with_file(&file);
    rolegate.wait_ready();
    let line = rolegate.wait_log("gave up root");
    assert_eq!((&line["uid"], &line["gid"]), (&ID.into(), &ID.into()));
    has_nothing_of_root(rolegate.process());
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
    has_nothing_of_root(rolegate.process());
    // What it has to write is its own.
    let owner = |path: &Path| fs::metadata(path).map(|file| (file.uid(), file.gid())).ok();
    assert_eq!(owner(&socket), Some((ID, ID)));
    assert_eq!(owner(&state), Some((ID, ID)));
    let remembered = state.join("pool-main.json");
    assert_eq!(eventually("the master is remembered", || owner(&remembered)), (ID, ID));
    // Nobody but root can read the password again, which it is told; all else is fine.
    let lacking = rolegate.log("the user lacks a right");
    let files: Vec<_> = lacking.iter().map(|line| line["file"].as_str().unwrap()).collect();
    let secret = secret.display().to_string();
    if is_reachable() {
        assert_eq!(files, [&secret]);
    }
    let line = lacking.iter().find(|line| line["file"] == *secret).unwrap();
    assert_eq!(line["user"], "65532");

    // Checks have their preference, as far as the system lets root give it.
    {
        let (_folder, file) = place(&plain.replace(&bind, "bind: 127.0.0.1:0"));
        let root = Rolegate::start_with_file(&file);
        assert_eq!(nice(rolegate.process()), nice(root.process()));
    }

    // What it may no longer do is refused, and says why.
    fs::set_permissions(&secret, Permissions::from_mode(0o644)).unwrap();
    let reload = |config: &str| {
        let count = |message: &str| rolegate.log(message).len();
        let before = (count("reloaded"), count("not reloaded"));
        fs::write(&file, config).unwrap();
        rolegate.signal(Signal::HUP);
        eventually("the config is read again", || {
            match (count("reloaded") - before.0, count("not reloaded") - before.1) {
                (0, 0) => None,
                (taken, _) => Some(taken > 0),
            }
        })
    };
    let with = |port: u16| {
        config.replace(&bind, &format!("{}, '127.0.0.1:{port}']", &bind[..bind.len() - 1]))
    };
    if let Some([_, other]) = low {
        assert!(!reload(&with(other)));
        let line = rolegate.wait_log("cannot reload");
        let words = line["error"].as_str().unwrap();
        assert!(words.contains("low ports") && words.contains("uid 65532"), "{words}");
    }
    assert!(reload(&with(free_port())));
    assert!(reload(&config.replace("user: 65532", "user: 65533")));
    assert_eq!(
        rolegate.changes().pop().unwrap(),
        "changed user: that holds from the next start on"
    );
    drop(client);
    rolegate.signal(Signal::TERM);
    assert_eq!(rolegate.wait_exit(), Some(0));
    assert!(!socket.exists(), "it may remove the file");
}

#[test]
fn what_the_user_may_not_do_later_is_told_at_once() {
    if !is_root() {
        return;
    }
    let node = Node::start(&[]);
    let folder = TempDir::new().unwrap();
    let (state, socket) = (folder.path().join("state"), folder.path().join("run/redis.sock"));
    for folder in [&state, socket.parent().unwrap()] {
        fs::create_dir(folder).unwrap();
    }
    let bind = format!("bind: ['127.0.0.1:0', 'unix:{}']", socket.display());
    let config = config(&[node.address()], None).replacen("bind: 127.0.0.1:0", &bind, 1);
    let config = format!("{config}state_dir: {}\nuser: 65532\ngroup: 65532\n", state.display());
    let file = folder.path().join("proxy.yaml");
    fs::write(&file, config).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let mut rolegate = Rolegate::start_with_file(&file);
    rolegate.wait_ready();
    let told = rolegate.log("the user lacks a right");
    for (path, advice) in [
        (&*file, "every reload fails"),
        (&state, "no master is remembered"),
        (socket.parent().unwrap(), "the socket's file stays"),
    ] {
        let line = told.iter().find(|line| *path.to_string_lossy() == line["file"]);
        let line = line.unwrap_or_else(|| panic!("nothing is told of {}", path.display()));
        assert!(line["advice"].as_str().unwrap().contains(advice), "{line}");
    }
    // It stops nothing.
    assert_eq!(rolegate.client().call(&["PING"]).unwrap().text(), "PONG");
    rolegate.signal(Signal::HUP);
    rolegate.wait_log("not reloaded");
    assert_eq!(rolegate.client().call(&["PING"]).unwrap().text(), "PONG");
    rolegate.signal(Signal::TERM);
    assert_eq!(rolegate.wait_exit(), Some(0));
}

#[test]
fn an_upgrade_goes_on_as_the_user() {
    if !is_root() {
        return;
    }
    if !is_reachable() {
        println!("skipped: other users cannot run {PROGRAM}");
        return;
    }
    let node = Node::start(&[]);
    let config = config(&[node.address()], None) + "user: 65532\ngroup: 65532\n";
    let (folder, file) = place(&config);
    chown(folder.path(), Some(ID), Some(ID)).unwrap();
    let socket = folder.path().join("redis.sock");
    let bind = format!("bind: ['127.0.0.1:0', 'unix:{}']", socket.display());
    fs::write(&file, config.replacen("bind: 127.0.0.1:0", &bind, 1)).unwrap();
    let mut rolegate = Rolegate::start_with_file(&file);
    rolegate.wait_ready();
    let address = rolegate.address();
    let next = rolegate.upgrade();
    assert_eq!(rolegate.wait_exit(), Some(0));
    has_nothing_of_root(next);
    assert_eq!(rolegate.log("gave up root").len(), 1, "there is nothing left to give up");
    for mut client in [Client::connect(address).unwrap(), Client::connect_unix(&socket).unwrap()] {
        assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
    }
    Rolegate::signal_successor(next, Signal::TERM);
    eventually("it is gone, and the file with it", || (!socket.exists()).then_some(()));
}

#[test]
fn any_user_without_rights_runs_it_on_a_read_only_root() {
    if !is_root() {
        return;
    }
    let read_only = "mount --make-rprivate / && mount -o remount,bind,ro /";
    let try_it = Command::new("unshare").args(["-m", "sh", "-c", read_only]).output();
    if !try_it.as_ref().is_ok_and(|output| output.status.success()) {
        println!("skipped: no mount namespace with a read-only root here: {try_it:?}");
        return;
    }
    let node = Node::start(&[]);
    let port = free_port();
    let config = config(&[node.address()], None).replacen(
        "bind: 127.0.0.1:0",
        &format!("bind: '127.0.0.1:{port}'"),
        1,
    );
    let (folder, file) = place(&config);
    let script = format!("{read_only} && exec {SETPRIV} \"$0\" -f \"$1\"");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]).arg(program(folder.path())).arg(&file);
    let mut rolegate = Rolegate::start_command(&mut command);
    rolegate.wait_ready();
    assert_eq!(rolegate.address().port(), port);
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", rolegate.process())).unwrap();
    let root = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{root}");
    for thread in threads(rolegate.process()) {
        for name in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:", "CapBnd:"] {
            assert_eq!(field(&thread, name), "0000000000000000", "{thread}");
        }
        assert_eq!(field(&thread, "Uid:"), "65532 65532 65532 65532");
    }
    let mut client = rolegate.client();
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
    fs::write(&file, config.replace("interval: 100ms", "interval: 50ms")).unwrap();
    rolegate.signal(Signal::HUP);
    rolegate.wait_log("reloaded");
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
    rolegate.signal(Signal::TERM);
    drop(client);
    assert_eq!(rolegate.wait_exit(), Some(0));
}

#[test]
fn a_user_that_cannot_be_is_told_why_at_the_start() {
    let config = config(&[([127, 0, 0, 1], 1).into()], None);
    let start = |keys: &str| {
        let (_folder, file) = write_config(&format!("{config}{keys}\n"));
        Command::new(PROGRAM).arg("-f").arg(file).output().unwrap()
    };
    let words = refusal(start("user: no-such-user"));
    assert!(
        words.contains("cannot run as user no-such-user: there is none of this name"),
        "{words}"
    );
    let words = refusal(start("user: 424242"));
    assert!(words.contains("its group is not known here; set group, too"), "{words}");
    let words = refusal(start("user: 424242\ngroup: no-such-group"));
    assert!(words.contains("there is no group no-such-group here"), "{words}");
    // `check` may run on another host.
    let (folder, file) = place(&format!("{config}user: no-such-user\n"));
    let output = Command::new(PROGRAM).arg("check").arg("-f").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("warning: cannot run as user no-such-user"), "{words}");
    if !is_root() {
        return;
    }
    fs::write(&file, format!("{config}user: root\n")).unwrap();
    let script = format!("exec {SETPRIV} \"$0\" -f \"$1\"");
    let mut command = Command::new("sh");
    let command = command.args(["-c", &script]).arg(program(folder.path())).arg(&file);
    let words = refusal(command.output().unwrap());
    assert!(words.contains("only root may change its user"), "{words}");
    assert!(words.contains("uid 65532 with gid 65532"), "{words}");
    // To be the user already is fine.
    fs::write(&file, format!("{config}user: 65532\ngroup: 65532\n")).unwrap();
    let rolegate = Rolegate::start_command(command);
    assert_eq!(rolegate.log("gave up root").len(), 0);
    if let Some([low, _]) = low_ports() {
        let bind = format!("bind: '127.0.0.1:{low}'");
        fs::write(&file, config.replacen("bind: 127.0.0.1:0", &bind, 1)).unwrap();
        let words = refusal(command.output().unwrap());
        assert!(words.contains("low ports") && words.contains("uid 65532"), "{words}");
    }
}
