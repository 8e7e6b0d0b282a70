//! Unix sockets for clients, for the admin, and towards backends.

use std::{
    fs,
    io::ErrorKind,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{
    Client, Group, Node, PASSWORD, Reply, Rolegate, Sentinels, eventually, with_sentinels,
    write_config,
};

/// A group whose nodes also listen on unix sockets, and a place for those of rolegate.
struct Place {
    folder: TempDir,
    group: Group,
}

impl Place {
    fn start(size: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let nodes = (0..size).map(|n| {
            let path = folder.path().join(format!("n{n}.sock"));
            Node::start_with_password(&[
                &format!("unixsocket {}", path.display()),
                "unixsocketperm 700",
            ])
        });
        let nodes: Vec<_> = nodes.collect();
        for replica in &nodes[1..] {
            replica.follow(&nodes[0]);
        }
        Self { folder, group: Group { nodes } }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn address(&self, name: &str) -> String {
        format!("unix:{}", self.path(name).display())
    }

    /// Everything over unix sockets.
    fn config(&self) -> String {
        let mut config = self.group.config();
        for (n, node) in self.group.nodes.iter().enumerate() {
            let address = node.address().to_string();
            config = config.replace(&address, &self.address(&format!("n{n}.sock")));
        }
        let listener = format!("redis: {{ bind: {}", self.address("redis.sock"));
        let admin = format!("admin: {{ bind: {}", self.address("admin.sock"));
        config
            .replace("redis: { bind: 127.0.0.1:0", &listener)
            .replace("admin: { bind: 127.0.0.1:0", &admin)
    }

    fn connect(&self) -> Client {
        Client::connect_unix(&self.path("redis.sock")).unwrap()
    }

    fn login(&self) -> Client {
        let mut client = self.connect();
        assert_eq!(client.call(&["AUTH", PASSWORD]).unwrap().text(), "OK");
        client
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// What a rolegate says that cannot start.
fn refusal(config: &str) -> String {
    let (_folder, file) = write_config(config);
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
    let output = command.arg("-f").arg(file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn everything_over_unix_sockets() {
    let place = Place::start(3);
    let config = place.config();
    let mut rolegate = Rolegate::start_ready(&config);
    let mut client = place.login();
    // Bulk, which goes through the kernel.
    let value = "0123456789abcdef".repeat(1 << 18);
    assert_eq!(client.call(&["SET", "bulk", &value]).unwrap().text(), "OK");
    for _ in 0..3 {
        assert_eq!(client.call(&["GET", "bulk"]).unwrap(), Reply::Bulk(value.clone().into()));
    }
    client.send(&["INCR", "n"]).unwrap();
    client.finish();
    let (replies, end) = client.end();
    assert_eq!((replies, end), (vec![Reply::Int(1)], ErrorKind::UnexpectedEof));

    let line = rolegate.wait_log("session closed");
    assert_eq!((&line["client"], &line["reason"]), (&"unix".into(), &"client_closed".into()));
    let status = rolegate.status();
    assert_eq!(status["listeners"]["redis"]["addresses"][0], place.address("redis.sock"));
    assert_eq!(status["pools"]["main"]["backends"]["n1"]["address"], place.address("n1.sock"));
    assert_eq!(status["pools"]["main"]["backends"]["n1"]["resolved"], place.address("n1.sock"));

    let (_folder, file) = write_config(&config);
    let mut explain = Command::new(env!("CARGO_BIN_EXE_rolegate"));
    let output = explain.arg("explain").arg("-f").arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let serves = format!("pool main: serves n0 at {}", place.address("n0.sock"));
    assert!(text.starts_with(&serves), "{text}");

    rolegate.signal(Signal::TERM);
    assert_eq!(rolegate.wait_exit(), Some(0));
    assert!(!place.path("redis.sock").exists() && !place.path("admin.sock").exists());
}

#[test]
fn a_failover_cuts_sessions_and_serves_the_next() {
    let mut place = Place::start(3);
    let rolegate = Rolegate::start_ready(&place.config());
    let mut idle = place.login();
    let mut subscriber = place.login();
    subscriber.call(&["SUBSCRIBE", "news"]).unwrap();
    // Redis itself closes neither.
    let next = place.group.nodes[1].port().to_string();
    place.group.nodes[0].call(&["REPLICAOF", "127.0.0.1", &next]);
    for client in [&mut idle, &mut subscriber] {
        let (_, end) = client.end();
        assert!(matches!(end, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{end}");
        // The next use fails at once.
        assert_eq!(client.send(&["SET", "lost", "1"]).unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
    place.group.nodes[1].promote();
    rolegate.wait_master("n1");
    place.login().call(&["SET", "who", "n1"]).unwrap();
    assert_eq!(place.group.nodes[1].call(&["GET", "who"]).text(), "n1");
    assert_eq!(place.group.nodes[1].call(&["EXISTS", "lost"]), Reply::Int(0));

    let mut session = place.login();
    place.group.nodes[1].kill();
    session.end();
    rolegate.wait_failure("n1", "refused");
    place.group.nodes[2].promote();
    rolegate.wait_master("n2");
    place.login().call(&["SET", "who", "n2"]).unwrap();
    // Its socket file is stale until then.
    place.group.nodes[1].restart();
    eventually("n1 is back", || {
        let n1 = rolegate.status()["pools"]["main"]["backends"]["n1"].take();
        (n1["state"] == "up").then_some(())
    });
}

#[test]
fn replies_that_had_arrived_are_delivered() {
    const LENGTH: usize = 64 * 1024;
    let place = Place::start(2);
    let rolegate = Rolegate::start_ready(&place.config());
    place.group.nodes[0].call(&["SET", "value", &"x".repeat(LENGTH)]);
    let mut client = place.login();
    // A slow one: the way to it fills up, and rolegate keeps what comes.
    for _ in 0..200 {
        client.send(&["GET", "value"]).unwrap();
    }
    let came = rolegate.wait_full();
    assert!(came > 2.0 * LENGTH as f64, "{came}");
    let next = place.group.nodes[1].port().to_string();
    place.group.nodes[0].call(&["REPLICAOF", "127.0.0.1", &next]);
    rolegate.wait_log("verdict changed");
    let got = client.drain() + 5;
    rolegate.wait_no_sessions();
    let line = rolegate.wait_log("session closed");
    assert_eq!(line["reason"], "revoked");
    assert_eq!(line["bytes_out"].as_u64().unwrap(), got, "all that came, and `+OK` before");
    assert!(got as f64 >= came);
}

#[test]
fn who_waits_in_vain_is_told_why() {
    let mut place = Place::start(2);
    let config = place.config().replace("hold: { timeout: 0s }", "hold: { timeout: 300ms }");
    let rolegate = Rolegate::start_ready(&config);
    place.group.nodes[0].kill();
    rolegate.wait_failure("n0", "refused");
    let mut client = place.connect();
    // Unread when it is told.
    client.send(&["PING"]).unwrap();
    let reply = client.read().unwrap().text();
    assert!(reply.starts_with("MASTERDOWN rolegate serves no master of main"), "{reply}");
    assert_eq!(client.end().1, ErrorKind::UnexpectedEof);

    // And who gives up leaves.
    let held = r#"rolegate_listener_held{listener="redis"}"#;
    let waiting = place.connect();
    eventually("it waits", || (rolegate.metric(held) == 1.0).then_some(()));
    drop(waiting);
    eventually("it is gone", || (rolegate.metric(held) == 0.0).then_some(()));
}

#[test]
fn clients_that_wait_are_served_by_the_next_master() {
    let mut place = Place::start(2);
    let config = place.config().replace("hold: { timeout: 0s }", "hold: { timeout: 1m }");
    let rolegate = Rolegate::start_ready(&config);
    place.group.nodes[0].kill();
    rolegate.wait_failure("n0", "refused");
    let mut client = place.connect();
    client.send(&["AUTH", PASSWORD]).unwrap();
    client.send(&["SET", "who", "waited"]).unwrap();
    place.group.nodes[1].promote();
    assert_eq!(client.read().unwrap().text(), "OK");
    assert_eq!(client.read().unwrap().text(), "OK");
    assert_eq!(place.group.nodes[1].call(&["GET", "who"]).text(), "waited");
}

#[test]
fn a_planned_failover_by_sentinel() {
    let place = Place::start(3);
    let sentinels = Sentinels::start(&place.group);
    let announced = place.group.nodes.iter().enumerate();
    let announced: Vec<_> =
        announced.map(|(n, node)| format!("n{n}: '{}'", node.address())).collect();
    let announce = format!("master_name: it, announce: {{ {} }}", announced.join(", "));
    let config = with_sentinels(&place.config(), &sentinels.addresses());
    let rolegate = Rolegate::start_ready(&config.replace("master_name: it", &announce));
    let agree = r#"rolegate_pool_sentinel_agree{pool="main"}"#;
    eventually("the Sentinels name n0", || (rolegate.metric(agree) == 3.0).then_some(()));
    sentinels.nodes[0].call(&["SENTINEL", "FAILOVER", "it"]);
    let heir = eventually("another is served", || {
        let master = rolegate.status()["pools"]["main"]["master"].take();
        master.as_str().filter(|name| *name != "n0").map(str::to_owned)
    });
    assert!(heir == "n1" || heir == "n2", "{heir}");
    place.login().call(&["SET", "a", "b"]).unwrap();
}

#[test]
fn a_stale_file_is_replaced_and_a_live_one_is_not() {
    let place = Place::start(1);
    let config = place.config();
    let mut rolegate = Rolegate::start_ready(&config);
    let words = refusal(&config.replace("admin.sock", "other.sock"));
    assert!(!place.path("other.sock").exists());
    let named = format!("{} (listeners.redis.bind)", place.address("redis.sock"));
    assert!(words.contains(&named) && words.contains("in use"), "{words}");
    place.login().call(&["PING"]).unwrap();

    rolegate.signal(Signal::KILL);
    rolegate.wait_exit();
    assert!(place.path("redis.sock").exists());
    let rolegate = Rolegate::start_ready(&config);
    place.login().call(&["PING"]).unwrap();
    drop(rolegate);

    let admin = place.path("admin.sock");
    fs::remove_file(&admin).unwrap();
    let live = UnixListener::bind(&admin).unwrap();
    let words = refusal(&config);
    assert!(words.contains("(admin.bind)") && words.contains("in use"), "{words}");
    drop(live);
    fs::remove_file(&admin).unwrap();
    fs::write(&admin, "precious").unwrap();
    let words = refusal(&config);
    assert!(words.contains("a file that is no socket is in its place"), "{words}");
    assert_eq!(fs::read_to_string(&admin).unwrap(), "precious");
    let words = refusal(&config.replace("admin.sock", "no/such/folder.sock"));
    assert!(words.contains("No such file or directory"), "{words}");
}

#[test]
fn a_reload_makes_changes_and_removes_files() {
    let place = Place::start(1);
    let redis = format!("bind: {}", place.address("redis.sock"));
    let config = place.config().replace(&redis, &format!("{redis}, bind_mode: '0600'"));
    let rolegate = Rolegate::start_ready(&config);
    let mut session = place.login();
    assert!(rolegate.reload(&config.replace("0600", "0666")));
    assert_eq!(mode(&place.path("redis.sock")), 0o666);
    place.login().call(&["PING"]).unwrap();

    let moved = config.replace("redis.sock", "moved.sock");
    assert!(rolegate.reload(&moved.replace("admin.sock", "moved-admin.sock")));
    for (old, new) in [("redis.sock", "moved.sock"), ("admin.sock", "moved-admin.sock")] {
        assert!(place.path(new).exists(), "{new}");
        eventually("the old file goes", || (!place.path(old).exists()).then_some(()));
    }
    assert_eq!(session.call(&["PING"]).unwrap().text(), "PONG");
    Client::connect_unix(&place.path("moved.sock")).unwrap();
}

#[test]
fn files_have_the_mode_of_the_config() {
    let place = Place::start(1);
    let list = format!("bind: [{}, 127.0.0.1:0], bind_mode: '0606'", place.address("redis.sock"));
    let config = place.config().replace(&format!("bind: {}", place.address("redis.sock")), &list);
    let rolegate = Rolegate::start_ready(&config);
    assert_eq!(mode(&place.path("redis.sock")), 0o606);
    assert_eq!(mode(&place.path("admin.sock")), 0o660);
    // The other address of the list.
    Client::login(rolegate.address_of(1), PASSWORD).unwrap().call(&["PING"]).unwrap();
    place.login().call(&["PING"]).unwrap();
}

#[test]
fn a_backend_whose_file_is_missing_or_closed_to_us_is_named() {
    let mut place = Place::start(2);
    let rolegate = Rolegate::start_ready(&place.config());
    place.group.nodes[1].kill();
    fs::remove_file(place.path("n1.sock")).unwrap();
    let failure = rolegate.wait_failure("n1", "refused");
    assert!(failure["error"]["advice"].as_str().unwrap().contains("is the backend running?"));
    eventually("the words are the system's", || {
        let n1 = rolegate.status()["pools"]["main"]["backends"]["n1"].take();
        n1["error"]["words"].as_str()?.contains("No such file").then_some(())
    });
}

#[test]
fn spare_connections_over_unix_sockets() {
    let place = Place::start(1);
    let config = place.config().replace("  main:\n", "  main:\n    preconnect: 2\n");
    let rolegate = Rolegate::start_ready(&config);
    let ready = r#"rolegate_pool_preconnected{pool="main"}"#;
    eventually("two wait", || (rolegate.metric(ready) == 2.0).then_some(()));
    place.login().call(&["SET", "a", "b"]).unwrap();
}
