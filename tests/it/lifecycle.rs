//! Start, stop, signals and exit codes.

use std::{
    io::{BufRead, BufReader, ErrorKind},
    net::TcpListener,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::support::{Client, Node, Rolegate, config, eventually, write_config};

fn served(settings: &str) -> (Node, Rolegate, Client) {
    let node = Node::start(&[]);
    let config = format!("{}{settings}", config(&[node.address()], None));
    let rolegate = Rolegate::start_ready(&config);
    let mut client = rolegate.client();
    client.call(&["PING"]).unwrap();
    (node, rolegate, client)
}

fn refuses_connections(rolegate: &Rolegate) -> bool {
    Client::connect(rolegate.address()).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn sessions_may_end_by_themselves_after_a_stop() {
    for signal in [Signal::TERM, Signal::INT] {
        let (_node, mut rolegate, mut client) = served("shutdown_timeout: 1h\n");
        rolegate.signal(signal);
        eventually("no new clients", || refuses_connections(&rolegate).then_some(()));
        assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
        assert_eq!(rolegate.get("/ready"), (503, "draining: rolegate is stopping\n".into()));
        assert_eq!(rolegate.get("/live").0, 200);
        drop(client);
        assert_eq!(rolegate.wait_exit(), Some(0));
    }
}

#[test]
fn sessions_are_cut_after_the_shutdown_timeout() {
    let (_node, mut rolegate, mut client) = served("shutdown_timeout: 300ms\n");
    rolegate.signal(Signal::TERM);
    let (_, end) = client.end();
    assert!(matches!(end, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{end:?}");
    assert_eq!(rolegate.wait_exit(), Some(0));
    let line = rolegate.wait_log("session closed");
    assert_eq!((&line["reason"], &line["bytes_in"]), (&"shutdown".into(), &14.into()));
}

#[test]
fn sessions_stay_supervised_while_they_end() {
    let (node, rolegate, mut client) = served("shutdown_timeout: 1h\n");
    rolegate.signal(Signal::TERM);
    rolegate.wait_log("stopping: no new clients, sessions may end");
    node.call(&["REPLICAOF", "127.0.0.1", "1"]);
    assert_eq!(client.end().1, ErrorKind::ConnectionReset);
}

#[test]
fn a_second_signal_stops_at_once() {
    let (_node, mut rolegate, _client) = served("shutdown_timeout: 1h\n");
    rolegate.signal(Signal::TERM);
    rolegate.wait_log("stopping: no new clients, sessions may end");
    assert!(rolegate.is_running());
    let since = Instant::now();
    rolegate.signal(Signal::TERM);
    assert_eq!(rolegate.wait_exit(), Some(0));
    assert!(since.elapsed().as_secs() < 10);
}

#[test]
fn a_taken_address_is_named_and_ends_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let wrong = [
        ("listeners:\n  redis: { bind: 127.0.0.1:0", "listeners.redis.bind"),
        ("admin: { bind: 127.0.0.1:0", "admin.bind"),
    ];
    for (place, key) in wrong {
        let text = config(&["127.0.0.1:1".parse().unwrap()], None)
            .replace(place, &place.replace(":0", &format!(":{port}")));
        let (_folder, file) = write_config(&text);
        let output =
            Command::new(env!("CARGO_BIN_EXE_rolegate")).arg("-f").arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(words.contains(&format!("127.0.0.1:{port} ({key})")), "{words}");
    }
}

#[test]
fn bad_usage_ends_with_2_and_version_and_help_with_0() {
    let code = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
        let output = command.args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(code(&["--nonsense"]).0, Some(2));
    assert_eq!(code(&["-f", "/nonexistent.yaml"]).0, Some(2));
    assert_eq!(
        code(&["--version"]),
        (Some(0), format!("rolegate {}\n", env!("CARGO_PKG_VERSION")))
    );
    assert_eq!(code(&["--help"]).0, Some(0));
}

#[test]
fn the_text_log_is_for_people() {
    let node = Node::start(&[]);
    let text = config(&[node.address()], None).replace("format: json", "format: text");
    let (_folder, file) = write_config(&text);
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
    let mut child = command.arg("-f").arg(&file).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let served = lines.map_while(Result::ok).find(|line| line.contains("verdict changed"));
    child.kill().unwrap();
    child.wait().unwrap();
    let served = served.expect("a line for the verdict");
    let words =
        ["INFO", "pool=\"main\"", "to=\"serve n0 at ", "evidence=\"n0: says role:master, replid "];
    assert!(words.iter().all(|word| served.contains(word)), "{served}");
}

#[test]
fn a_congestion_control_that_the_system_has_not_ends_the_start() {
    let config = format!("{}congestion: nonesuch\n", config(&[([127, 0, 0, 1], 1).into()], None));
    let (_folder, file) = write_config(&config);
    let output = Command::new(env!("CARGO_BIN_EXE_rolegate")).arg("-f").arg(&file).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("cannot use congestion nonesuch: "), "{words}");
    assert!(words.contains("allowed here: "), "{words}");
}

#[test]
fn sessions_work_with_the_congestion_control_of_the_config() {
    let (_node, _rolegate, mut client) = served("congestion: reno\n");
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
}

#[test]
fn ready_says_no_before_listeners_close() {
    let (_node, mut rolegate, mut client) =
        served("shutdown_timeout: 0s\ndrain: { delay: 1s, pace: 0s }\n");
    let since = Instant::now();
    rolegate.signal(Signal::TERM);
    eventually("not ready", || (rolegate.get("/ready").0 == 503).then_some(()));
    // As a client that has not heard of it.
    assert_eq!(rolegate.client().call(&["PING"]).unwrap().text(), "PONG");
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
    assert_eq!(rolegate.wait_exit(), Some(0));
    assert!(since.elapsed() >= Duration::from_secs(1), "{:?}", since.elapsed());
}

#[test]
fn what_is_left_is_closed_bit_by_bit() {
    let (_node, mut rolegate, first) = served("shutdown_timeout: 2s\ndrain: { pace: 1500ms }\n");
    let mut clients: Vec<_> = (0..60).map(|_| rolegate.client()).collect();
    clients.push(first);
    for client in &mut clients {
        client.call(&["PING"]).unwrap();
    }
    let since = Instant::now();
    rolegate.signal(Signal::TERM);
    let ends = clients.into_iter().map(|mut client| {
        thread::spawn(move || {
            client.end();
            since.elapsed()
        })
    });
    let mut ends: Vec<_> =
        ends.collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect();
    ends.sort();
    let (first, last) = (ends[0], ends[60]);
    assert!(first >= Duration::from_millis(490), "{ends:?}");
    assert!(last - first >= Duration::from_secs(1), "{ends:?}");
    assert_eq!(rolegate.wait_exit(), Some(0));
}
