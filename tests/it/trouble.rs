//! What the system does to rolegate, and what clients do who mean no good.

use std::{
    fs,
    io::{ErrorKind, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::tempdir;

use crate::support::{
    Client, Group, Node, PASSWORD, Rolegate, config, encode, eventually, free_port, write_config,
};

fn is_cut(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof)
}

/// A client that has sent its password and a write, and has read nothing.
fn writer(rolegate: &Rolegate, key: &str) -> Client {
    let mut client = rolegate.client();
    let bytes = [encode(&[b"AUTH", PASSWORD.as_bytes()]), encode(&[b"INCR", key.as_bytes()])];
    client.send_raw(&bytes.concat()).unwrap();
    client
}

#[test]
fn after_5_s_of_standing_still_nothing_reaches_the_old_master() {
    let group = Group::start(2);
    let [old, new] = &group.nodes[..] else { unreachable!() };
    // With connections that wait for clients, which lead to the old master, too.
    let rolegate = Rolegate::start_ready(
        &group.config().replace("    check:", "    preconnect: 4\n    check:"),
    );
    eventually("connections wait", || {
        (rolegate.metric(r#"rolegate_pool_preconnected{pool="main"}"#) == 4.0).then_some(())
    });
    let mut sessions: Vec<_> =
        (0..20).map(|_| Client::login(rolegate.address(), PASSWORD).unwrap()).collect();
    rolegate.freeze();
    new.promote();
    for client in &mut sessions {
        client.send(&["INCR", "late"]).unwrap();
    }
    let mut newcomers: Vec<_> = (0..20).map(|_| writer(&rolegate, "new")).collect();
    thread::park_timeout(Duration::from_secs(5));
    rolegate.thaw();
    for client in &mut sessions {
        assert!(is_cut(client.end().1));
    }
    // Who came meanwhile is served by the new master, or cut.
    let mut served = 0;
    for client in &mut newcomers {
        let replies = [client.read(), client.read()];
        if let [Ok(_), Ok(reply)] = replies {
            served += 1;
            assert!(matches!(reply, crate::support::Reply::Int(_)), "{reply:?}");
        }
    }
    rolegate.wait_master("n1");
    for key in ["late", "new"] {
        assert_eq!(old.call(&["GET", key]).text(), "(nil)", "{key}");
    }
    let counted = new.call(&["GET", "new"]).text().parse().unwrap_or(0);
    assert_eq!(counted, served);
}

#[test]
fn clients_that_wait_while_rolegate_stands_still_get_the_new_master() {
    let mut group = Group::start(2);
    let rolegate = Rolegate::start_ready(&group.config().replace("timeout: 0s", "timeout: 1h"));
    group.nodes[0].kill();
    rolegate.wait_failure("n0", "refused");
    let mut waiting: Vec<_> = (0..20).map(|_| writer(&rolegate, "held")).collect();
    eventually("they wait", || {
        (rolegate.metric(r#"rolegate_listener_held{listener="redis"}"#) == 20.0).then_some(())
    });
    rolegate.freeze();
    // The old master is back, without its data, and calls itself one until somebody tells it better.
    group.nodes[0].restart();
    group.nodes[1].promote();
    waiting.extend((0..20).map(|_| writer(&rolegate, "held")));
    thread::park_timeout(Duration::from_secs(5));
    rolegate.thaw();
    for client in &mut waiting {
        assert_eq!(client.read().unwrap().text(), "OK");
        client.read().unwrap();
    }
    assert_eq!(group.nodes[0].call(&["GET", "held"]).text(), "(nil)");
    assert_eq!(group.nodes[1].call(&["GET", "held"]).text(), "40");
}

#[test]
fn a_full_disk_stops_nothing_and_room_is_used_again() {
    let group = Group::start(2);
    let folder = tempdir().unwrap();
    let state = folder.path().display().to_string();
    let mount = format!("-t tmpfs -o size=64k none '{state}'");
    let config = format!("{}state_dir: '{state}'\n", group.config());
    let rolegate = Rolegate::start_mounted(&mount, &config);
    rolegate.wait_master("n0");
    let inside = PathBuf::from(format!("/proc/{}/root{state}", rolegate.process()));
    let run_id = |node: &Node| node.info("run_id").unwrap();
    let saved = |node: &Node| {
        let state = fs::read_to_string(inside.join("pool-main.json")).unwrap_or_default();
        state.contains(&run_id(node)).then_some(())
    };
    let [first, second] = &group.nodes[..] else { unreachable!() };
    eventually("the first master is saved", || saved(first));

    let mut filler = fs::File::create(inside.join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    second.promote();
    first.follow(second);
    rolegate.wait_master("n1");
    rolegate.wait_log("cannot save state");
    // What was saved before is whole, and what comes now fails as quietly.
    assert!(saved(first).is_some());
    first.promote();
    second.follow(first);
    rolegate.wait_master("n0");
    second.promote();
    first.follow(second);
    rolegate.wait_master("n1");
    assert_eq!(rolegate.log("cannot save state").len(), 1);
    assert!(Client::login(rolegate.address(), PASSWORD).is_ok());

    fs::remove_file(inside.join("filler")).unwrap();
    drop(filler);
    eventually("the last master is saved", || saved(second));
    rolegate.wait_log("saves state again");
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let node = Node::start(&[]);
    let port = free_port();
    let config = config(&[node.address()], None)
        .replace("bind: 127.0.0.1:0, pool", &format!("bind: 127.0.0.1:{port}, pool"));
    let (_folder, file) = write_config(&config);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_rolegate"))
        .arg("-f")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(full)
        .spawn()
        .unwrap();
    let is_served = || {
        let mut client = Client::connect(([127, 0, 0, 1], port).into()).ok()?;
        (client.call(&["PING"]).ok()?.text() == "PONG").then_some(())
    };
    for _ in 0..20 {
        eventually("clients are served", is_served);
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let ended = eventually("it ends", || child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn a_thread_that_ends_ends_the_process() {
    let config = config(&[([127, 0, 0, 1], 1).into()], None).replace("timeout: 0s", "timeout: 1h");
    let mut rolegate = Rolegate::start(&config);
    let mut waiting: Vec<_> = (0..100).map(|_| rolegate.client()).collect();
    eventually("they wait", || {
        (rolegate.metric(r#"rolegate_listener_held{listener="redis"}"#) == 100.0).then_some(())
    });
    // poll(2) takes no more descriptors than a process may have.
    rolegate.limit_descriptors(50);
    waiting.pop();
    assert_eq!(rolegate.wait_exit(), Some(1));
    rolegate.wait_log("cannot let clients wait");
    assert!(waiting.into_iter().all(|mut client| is_cut(client.end().1)));
}

#[test]
fn clients_that_say_nothing_go_and_slow_ones_delay_nobody() {
    let node = Node::start(&[]);
    let config = config(&[node.address()], None)
        .replace("pool: main,", "pool: main, idle_timeout: 3s, max_connections: 250,");
    let rolegate = Rolegate::start_ready(&config);
    let silent: Vec<_> = (0..100).map(|_| rolegate.client()).collect();
    let mut slow: Vec<_> =
        (0..100).map(|_| TcpStream::connect(rolegate.address()).unwrap()).collect();
    let mut said = b"*2\r\n$4\r\nECHO\r\n$1000\r\n".iter().chain(std::iter::repeat(&b'x'));
    let mut byte_each = || {
        let byte = *said.next().unwrap();
        slow.iter_mut().for_each(|client| client.write_all(&[byte]).expect("it may be slow"));
    };
    eventually("the silent ones are gone", || {
        byte_each();
        let since = Instant::now();
        let mut client = rolegate.client();
        assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        thread::park_timeout(Duration::from_millis(50));
        (rolegate.closed("idle_timeout") == 100.0).then_some(())
    });
    assert!(silent.into_iter().all(|mut client| is_cut(client.end().1)));
    // As many as may be there at once, and not one more.
    let mut more: Vec<_> = (0..150).map(|_| rolegate.client()).collect();
    for client in &mut more {
        assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
        byte_each();
    }
    assert!(is_cut(rolegate.client().end().1));
    byte_each();
}

#[test]
fn descriptors_that_are_said_to_be_passed_and_are_not_stop_no_start() {
    let node = Node::start(&[]);
    let config = config(&[node.address()], None);
    let long = "x:".repeat(10_000);
    let said = [
        ("LISTEN_FDS", "3"),
        ("LISTEN_FDS", "-1"),
        ("LISTEN_FDS", "2000000000"),
        ("LISTEN_FDS", "99999999999999"),
        ("LISTEN_FDNAMES", long.as_str()),
        ("LISTEN_FDNAMES", ":::\u{1b}[31m"),
    ];
    for (name, value) in said {
        let rolegate = Rolegate::start_with(&config, |command| {
            command.env("LISTEN_FDS", "2").env(name, value);
        });
        rolegate.wait_ready();
        assert_eq!(rolegate.client().call(&["PING"]).unwrap().text(), "PONG", "{name}={value}");
    }
}
