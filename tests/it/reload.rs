//! A new config while clients are served.

use std::{
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
};

use rustix::process::Signal;
use tempfile::tempdir;

use crate::support::{
    Client, Group, Node, PASSWORD, Rolegate, config, config_of_pools, eventually, free_port,
};

/// The configuration of a group, with a port for its listener that stays.
fn config_at(group: &Group, port: u16) -> String {
    group.config().replace("bind: 127.0.0.1:0, pool", &format!("bind: 127.0.0.1:{port}, pool"))
}

fn login(rolegate: &Rolegate) -> Client {
    Client::login(rolegate.address(), PASSWORD).unwrap()
}

fn lives(client: &mut Client) -> bool {
    client.call(&["PING"]).is_ok_and(|reply| reply.text() == "PONG")
}

fn epoch(rolegate: &Rolegate) -> u64 {
    rolegate.status()["pools"]["main"]["epoch"].as_u64().unwrap()
}

fn refuses(address: SocketAddr) -> bool {
    Client::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn sessions_from_before_a_reload_live_on_and_stay_supervised() {
    let group = Group::start(2);
    let before = group.config();
    let rolegate = Rolegate::start_ready(&before);
    let mut client = login(&rolegate);
    let old_epoch = epoch(&rolegate);
    let after = before
        .replace("hold: { timeout: 0s }", "hold: { timeout: 1s }, max_connections: 10")
        .replace(
            "interval: 100ms, timeout: 500ms, fall: 2",
            "interval: 50ms, timeout: 400ms, fall: 3",
        )
        .replace("level: debug", "level: info")
        .replace("    check:", "    connect_timeout: 2s\n    check:");
    assert!(rolegate.reload(&after));
    assert_eq!(
        rolegate.changes(),
        [
            "listener redis: changed hold, limits",
            "pool main: changed check, connect_timeout",
            "changed log.level"
        ]
    );
    assert!(lives(&mut client));
    assert_eq!(epoch(&rolegate), old_epoch, "what is served has not changed");
    assert_eq!(rolegate.log("session closed").len(), 0);

    let [old, new] = &group.nodes[..] else { unreachable!() };
    new.promote();
    old.follow(new);
    assert_eq!(client.end().1, ErrorKind::ConnectionReset);
    rolegate.wait_master("n1");
    assert!(lives(&mut login(&rolegate)));
    // The new level holds.
    assert_eq!(rolegate.log("session closed").len(), 0);
    rolegate.wait_no_sessions();
}

#[test]
fn a_config_with_errors_changes_nothing_and_every_error_is_told() {
    let group = Group::start(1);
    let config = group.config();
    let rolegate = Rolegate::start_ready(&config);
    let mut client = login(&rolegate);
    let bad = config.replace("fall: 2", "fall: 0").replace("timeout: 0s }", "timeout: 2 }");
    assert!(!rolegate.reload(&bad));
    let errors: Vec<_> = rolegate.log("cannot reload");
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0]["error"].as_str().unwrap().contains("hold.timeout"), "{errors:?}");

    // What the system refuses is found before anything changes.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let another = format!(
        "listeners:\n  other: {{ bind: [127.0.0.1:{}, 127.0.0.1:{port}], pool: main }}\n",
        free_port()
    );
    let bad = config.replace("listeners:\n", &another).replace("level: debug", "level: info");
    assert!(!rolegate.reload(&bad));
    let error = rolegate.log("cannot reload").pop().unwrap()["error"].as_str().unwrap().to_owned();
    assert!(error.contains(&format!("127.0.0.1:{port} (listeners.other.bind)")), "{error}");
    assert!(rolegate.status()["listeners"]["other"].is_null());

    assert!(!rolegate.reload(&format!("{config}max_connections: 9000000\n")));
    assert!(lives(&mut client) && lives(&mut login(&rolegate)));
    assert!(rolegate.reload(&config));
    assert_eq!(rolegate.changes(), ["nothing has changed"]);
}

#[test]
fn listeners_come_and_go() {
    let group = Group::start(1);
    let ports = [free_port(), free_port()];
    let address = |place: usize| SocketAddr::from(([127, 0, 0, 1], ports[place]));
    let base = config_at(&group, ports[0]).replace("admin:", "shutdown_timeout: 1h\nadmin:");
    let second = format!("  second: {{ bind: 127.0.0.1:{}, pool: main }}\n", ports[1]);
    let both = base.replace("pools:", &format!("{second}pools:"));
    let rolegate = Rolegate::start_ready(&base);
    let mut first = login(&rolegate);
    assert!(rolegate.reload(&both));
    assert_eq!(rolegate.changes(), ["listener second: added"]);
    let mut client = Client::login(address(1), PASSWORD).unwrap();
    assert!(lives(&mut client));

    // Its sessions may end by themselves.
    assert!(rolegate.reload(&base));
    assert_eq!(rolegate.changes().pop().unwrap(), "listener second: removed");
    eventually("no new clients", || refuses(address(1)).then_some(()));
    assert!(lives(&mut client) && lives(&mut first));
    let series = r#"rolegate_listener_sessions{listener="second"}"#;
    assert_eq!(rolegate.metric(series), 1.0);
    drop(client);
    rolegate.wait_log("listener is drained");
    assert!(!rolegate.get("/metrics").1.contains(r#"listener="second""#));

    // Or are closed in time.
    assert!(rolegate.reload(&both));
    let mut client = Client::login(address(1), PASSWORD).unwrap();
    assert!(lives(&mut client));
    assert!(rolegate.reload(&base.replace("1h", "500ms")));
    assert!(matches!(client.end().1, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset));
    assert!(lives(&mut first));

    // An address can go from one listener to another.
    let renamed = base.replace("  redis: {", "  other: {");
    assert!(rolegate.reload(&renamed));
    assert!(lives(&mut first));
    assert!(lives(&mut Client::login(address(0), PASSWORD).unwrap()));
    assert_eq!(rolegate.metric(r#"rolegate_listener_sessions_total{listener="other"}"#), 1.0);
}

#[test]
fn backends_come_and_go_without_a_gap_for_the_others() {
    let group = Group::start(3);
    let all = group.config();
    let without = |n: usize| {
        let backend = format!("n{n}: '{}'", group.nodes[n].address());
        all.replace(&format!("{backend}, "), "").replace(&format!(", {backend}"), "")
    };
    let rolegate = Rolegate::start_ready(&without(2));
    let mut client = login(&rolegate);
    let old_epoch = epoch(&rolegate);
    assert!(rolegate.reload(&all));
    assert_eq!(rolegate.changes(), ["pool main: backend n2 added"]);
    let role = r#"rolegate_backend_role{backend="n2",pool="main",role="replica"}"#;
    eventually("the new one is checked", || (rolegate.metric(role) == 1.0).then_some(()));
    assert!(rolegate.reload(&without(1)));
    assert_eq!(rolegate.changes().pop().unwrap(), "pool main: backend n1 removed");
    assert!(!rolegate.get("/metrics").1.contains(r#"backend="n1""#));
    assert!(rolegate.status()["pools"]["main"]["backends"]["n1"].is_null());
    // The order of the file means nothing.
    assert!(rolegate.reload(&all));
    assert!(lives(&mut client));
    assert_eq!(epoch(&rolegate), old_epoch);

    // The lineage is known on: what is promoted next is served.
    group.nodes[2].promote();
    group.nodes[1].follow(&group.nodes[2]);
    group.nodes[0].follow(&group.nodes[2]);
    rolegate.wait_master("n2");
    assert_eq!(client.end().1, ErrorKind::ConnectionReset);

    // Sessions on a backend that is removed end.
    let mut client = login(&rolegate);
    assert!(rolegate.reload(&without(2)));
    assert_eq!(client.end().1, ErrorKind::ConnectionReset);
    eventually("nobody is served", || {
        rolegate.status()["pools"]["main"]["master"].is_null().then_some(())
    });
}

#[test]
fn pools_come_and_go_and_a_listener_leads_to_another_one() {
    let groups = [Group::start(1), Group::start(1)];
    let both = config_of_pools(groups.iter());
    let rolegate = Rolegate::start_ready(&both);
    let mut clients = [0, 1].map(|n| Client::login(rolegate.address_of(n), PASSWORD).unwrap());
    groups[1].nodes[0].call(&["SET", "who", "p1"]);
    let moved =
        both.replace("p0: { bind: 127.0.0.1:0, pool: p0", "p0: { bind: 127.0.0.1:0, pool: p1");
    assert!(rolegate.reload(&moved));
    assert_eq!(rolegate.changes(), ["listener p0: changed pool"]);
    let end = clients[0].end().1;
    assert!(matches!(end, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{end:?}");
    let mut client = Client::login(rolegate.address_of(0), PASSWORD).unwrap();
    assert_eq!(client.call(&["GET", "who"]).unwrap().text(), "p1");
    assert!(lives(&mut clients[1]));

    let (start, end) = (moved.find("  p0:\n").unwrap(), moved.find("  p1:\n").unwrap());
    let without = format!("{}{}", &moved[..start], &moved[end..]);
    assert!(rolegate.reload(&without));
    assert_eq!(rolegate.changes().pop().unwrap(), "pool p0: removed");
    rolegate.wait_log("pool is not watched any more");
    assert!(!rolegate.get("/metrics").1.contains(r#"pool="p0""#));
    assert!(lives(&mut client));
    assert!(rolegate.reload(&moved));
    eventually("the pool is watched again", || {
        (rolegate.status()["pools"]["p0"]["verdict"] == "serve").then_some(())
    });
}

#[test]
fn clients_that_wait_go_on_waiting() {
    let group = Group::start(1);
    group.nodes[0].call(&["REPLICAOF", "127.0.0.1", "1"]);
    let config = group.config().replace("timeout: 0s", "timeout: 1h");
    let rolegate = Rolegate::start(&config);
    let mut client = rolegate.client();
    client.send(&["AUTH", PASSWORD]).unwrap();
    let held = r#"rolegate_listener_held{listener="redis"}"#;
    eventually("it waits", || (rolegate.metric(held) == 1.0).then_some(()));
    assert!(rolegate.reload(&config.replace("fall: 2", "fall: 3")));
    assert_eq!(rolegate.metric(held), 1.0);
    group.nodes[0].promote();
    assert_eq!(client.read().unwrap().text(), "OK");
}

#[test]
fn what_only_a_start_can_change_says_so() {
    let node = Node::start(&[]);
    let config = config(&[node.address()], None);
    let rolegate = Rolegate::start_ready(&config);
    assert!(rolegate.reload(&format!("{config}workers: 7\ncongestion: reno\n")));
    assert_eq!(
        rolegate.changes(),
        ["changed congestion, workers: that holds from the next start on"]
    );
    assert!(!rolegate.get("/metrics").1.contains(r#"worker="6""#));
}

#[test]
fn a_file_that_hangs_is_given_up() {
    let node = Node::start(&[]);
    let base = config(&[node.address()], None);
    let mut rolegate = Rolegate::start_ready(&base);
    let folder = tempdir().unwrap();
    // To open it waits for somebody who writes.
    let pipe = folder.path().join("password");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let auth = format!("    auth: {{ password_file: '{}' }}\n    check:", pipe.display());
    assert!(!rolegate.reload(&base.replace("    check:", &auth)));
    let error = rolegate.log("cannot reload").pop().unwrap();
    assert!(error["error"].as_str().unwrap().contains("was not read in 5 s"), "{error}");
    assert!(lives(&mut rolegate.client()));
    rolegate.signal(Signal::TERM);
    assert_eq!(rolegate.wait_exit(), Some(0));
}

/// A group whose password stands in a file.
fn with_password_file(group: &Group, file: &std::path::Path) -> String {
    fs::write(file, PASSWORD).unwrap();
    let auth = format!("password: '{PASSWORD}'");
    group.config().replace(&auth, &format!("password_file: '{}'", file.display()))
}

fn set_password(group: &Group, old: &str, new: &str) {
    for node in &group.nodes {
        let mut client = Client::login(node.address(), old).unwrap();
        client.call(&["CONFIG", "SET", "masterauth", new]).unwrap();
        client.call(&["CONFIG", "SET", "requirepass", new]).unwrap();
    }
}

/// Cuts checks and clients, but no replica.
fn cut_all(group: &Group, password: &str) {
    for node in &group.nodes {
        let mut client = Client::login(node.address(), password).unwrap();
        client.call(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).unwrap();
    }
}

fn rule(rolegate: &Rolegate) -> String {
    rolegate.status()["pools"]["main"]["rule"].as_str().unwrap().to_owned()
}

#[test]
fn a_password_file_that_changes_is_read_again() {
    let group = Group::start(2);
    let folder = tempdir().unwrap();
    let file = folder.path().join("password");
    let rolegate = Rolegate::start_ready(&with_password_file(&group, &file));
    let mut client = login(&rolegate);
    set_password(&group, PASSWORD, "another-one");
    // An empty file is one that is being written.
    fs::write(&file, "").unwrap();
    rolegate.wait_log("cannot take over a file that the config names");
    fs::write(&file, "another-one\n").unwrap();
    let line = rolegate.wait_log("took over a file that the config names");
    assert_eq!(line["changes"], "pool main: changed auth");
    assert!(lives(&mut client));
    cut_all(&group, "another-one");
    eventually("new checks pass", || {
        let backends = rolegate.status()["pools"]["main"]["backends"].take();
        let passes =
            |name: &str| backends[name]["state"] == "up" && backends[name]["error"].is_null();
        (passes("n0") && passes("n1")).then_some(())
    });
    assert_eq!(rolegate.log("backend is down").len(), 0);
    assert!(!rolegate.output().contains("another-one"));
}

#[test]
fn a_password_that_is_refused_everywhere_takes_no_data_down() {
    let group = Group::start(3);
    let folder = tempdir().unwrap();
    let file = folder.path().join("password");
    let rolegate = Rolegate::start_ready(&with_password_file(&group, &file));
    let old_epoch = epoch(&rolegate);
    set_password(&group, PASSWORD, "another-one");
    cut_all(&group, "another-one");
    eventually("the master is kept", || (rule(&rolegate) == "fail_static").then_some(()));
    let line = rolegate.wait_log("serves without checks");
    assert_eq!((&line["level"], &line["backend"]), (&"ERROR".into(), &"n0".into()));
    let verdict = r#"rolegate_pool_verdict{pool="main",reason="fail_static",verdict="serve"}"#;
    assert_eq!(rolegate.metric(verdict), 1.0);
    let mut client = Client::login(rolegate.address(), "another-one").unwrap();
    assert!(lives(&mut client));
    assert_eq!(rolegate.get("/ready").0, 200);

    fs::write(&file, "another-one").unwrap();
    eventually("checks pass again", || (rule(&rolegate) == "incumbent").then_some(()));
    rolegate.wait_log("checks decide again");
    assert!(lives(&mut client));
    assert_eq!(epoch(&rolegate), old_epoch);
}
