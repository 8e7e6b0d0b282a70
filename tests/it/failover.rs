//! The master changes: every session on the old one ends, and new clients land on the new one.

use std::{
    io::ErrorKind,
    net::Shutdown,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::support::{
    Client, Fake, Group, INFO_MASTER, Node, PASSWORD, Reply, Rolegate, Sentinels, config, encode,
    eventually, info_master,
};

/// Far more than any of these should take; the bench measures how long they do.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Four sessions through rolegate: idle, blocked, subscribed, and in the middle of a pipeline.
fn sessions(rolegate: &Rolegate) -> Vec<(&'static str, Client)> {
    let login = || Client::login(rolegate.address(), PASSWORD).unwrap();
    let idle = login();
    let mut blocked = login();
    blocked.send(&["BLPOP", "nothing", "0"]).unwrap();
    let mut subscribed = login();
    subscribed.call(&["SUBSCRIBE", "news"]).unwrap();
    let mut pipeline = login();
    let mut commands: Vec<u8> = (0..50).flat_map(|_| encode(&[b"INCR", b"n"])).collect();
    commands.extend(encode(&[b"BLPOP", b"nothing", b"0"]));
    commands.extend((0..50).flat_map(|_| encode(&[b"INCR", b"n"])));
    pipeline.send_raw(&commands).unwrap();
    for _ in 0..50 {
        pipeline.read().unwrap();
    }
    vec![("idle", idle), ("blocked", blocked), ("subscribed", subscribed), ("pipeline", pipeline)]
}

fn all_end(sessions: Vec<(&'static str, Client)>, since: Instant, within: Duration) {
    for (state, mut client) in sessions {
        client.set_read_timeout(within);
        let (_, end) = client.end();
        assert!(
            matches!(end, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof),
            "the {state} session: {end:?}"
        );
    }
    let took = since.elapsed();
    assert!(took < within, "all sessions ended after {took:?}");
}

/// The next connection writes to this node.
fn lands_on(rolegate: &Rolegate, node: &Node) {
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    client.call(&["SET", "where", &node.port().to_string()]).unwrap();
    assert_eq!(node.call(&["GET", "where"]).text(), node.port().to_string());
}

fn is_refused(rolegate: &Rolegate) {
    let (replies, end) = rolegate.client().end();
    assert!(
        matches!(&replies[..], [Reply::Error(error)] if error.starts_with("MASTERDOWN rolegate ")),
        "{replies:?}"
    );
    assert_eq!(end, ErrorKind::UnexpectedEof);
}

#[test]
fn a_killed_master() {
    let mut group = Group::start(3);
    let rolegate = Rolegate::start_ready(&group.config());
    let sessions = sessions(&rolegate);
    let killed = group.nodes[0].kill();
    all_end(sessions, killed, AT_ONCE);
    rolegate.wait_failure("n0", "refused");
    is_refused(&rolegate);
    let (code, reason) = rolegate.get("/ready");
    assert_eq!(code, 503);
    assert!(reason.contains("no backend is a proven master"), "{reason}");

    group.nodes[1].promote();
    rolegate.wait_master("n1");
    lands_on(&rolegate, &group.nodes[1]);
    assert_eq!(rolegate.metric(r#"rolegate_pool_master_changes_total{pool="main"}"#), 1.0);
}

#[test]
fn a_frozen_master_is_cut_after_its_silence_and_not_believed_when_it_wakes() {
    let group = Group::start(3);
    let rolegate = Rolegate::start_ready(&group.config());
    let sessions = sessions(&rolegate);
    let frozen = group.nodes[0].freeze();
    // fall 2 x timeout 500 ms of silence.
    all_end(sessions, frozen, Duration::from_secs(1) + AT_ONCE);
    rolegate.wait_failure("n0", "timeout");
    group.nodes[1].promote();
    rolegate.wait_master("n1");
    lands_on(&rolegate, &group.nodes[1]);

    let epoch = rolegate.status()["pools"]["main"]["epoch"].clone();
    group.nodes[0].thaw();
    eventually("two say that they are the master", || {
        (rolegate.metric(r#"rolegate_pool_conflict{pool="main"}"#) == 1.0).then_some(())
    });
    eventually("the old one is refuted", || {
        let refusals = r#"rolegate_pool_lineage_refusals_total{pool="main"}"#;
        (rolegate.metric(refusals) == 1.0).then_some(())
    });
    lands_on(&rolegate, &group.nodes[1]);
    assert_eq!(rolegate.status()["pools"]["main"]["epoch"], epoch);
}

#[test]
fn a_short_silence_changes_nothing() {
    let group = Group::start(2);
    let config = group.config().replace("fall: 2", "fall: 100");
    let rolegate = Rolegate::start_ready(&config);
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    group.nodes[0].freeze();
    rolegate.wait_log("check failed");
    group.nodes[0].thaw();
    rolegate.wait_log("checks pass again");
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
    assert_eq!(rolegate.status()["pools"]["main"]["epoch"], 1);
}

#[test]
fn a_demoted_master() {
    let group = Group::start(3);
    let rolegate = Rolegate::start_ready(&group.config());
    let sessions = sessions(&rolegate);
    let demoted = Instant::now();
    // Redis itself closes nothing but the blocked client.
    group.nodes[0].call(&["REPLICAOF", "127.0.0.1", &group.nodes[1].port().to_string()]);
    all_end(sessions, demoted, AT_ONCE);
    is_refused(&rolegate);
    group.nodes[1].promote();
    rolegate.wait_master("n1");
    lands_on(&rolegate, &group.nodes[1]);
    let revoked = r#"rolegate_sessions_closed_total{listener="redis",reason="revoked"}"#;
    assert!(rolegate.metric(revoked) >= 3.0);
}

#[test]
fn two_masters_at_the_start_are_never_served() {
    let nodes = [Node::start(&[]), Node::start(&[])];
    let rolegate = Rolegate::start(&config(&[nodes[0].address(), nodes[1].address()], None));
    let line = rolegate.wait_log("verdict changed");
    assert_eq!(line["rule"], "conflict");
    assert!(line["to"].as_str().unwrap().ends_with("nothing tells them apart: n0, n1"), "{line}");
    assert!(
        rolegate
            .log("verdict changed")
            .iter()
            .all(|l| l["to"].as_str().unwrap().starts_with("refuse"))
    );
}

#[test]
fn a_master_that_restarts_as_another_process_is_a_new_grant() {
    let mut node = Node::start(&[]);
    let rolegate = Rolegate::start_ready(&config(&[node.address()], None));
    let mut client = rolegate.client();
    client.call(&["PING"]).unwrap();
    node.kill();
    node.restart();
    assert_ne!(client.end().1, ErrorKind::WouldBlock);
    rolegate.wait_ready();
    assert!(rolegate.status()["pools"]["main"]["epoch"].as_u64().unwrap() >= 2);
    assert_eq!(rolegate.client().call(&["PING"]).unwrap().text(), "PONG");
}

#[test]
fn a_loading_node_is_not_served() {
    let mut node =
        Node::start(&["key-load-delay 1000", "loading-process-events-interval-bytes 1024"]);
    let mut client = node.client();
    client.call(&["DEBUG", "POPULATE", "2000"]).unwrap();
    client.call(&["SAVE"]).unwrap();
    node.kill();
    node.restart_only();
    let rolegate = Rolegate::start(&config(&[node.address()], None));
    rolegate.wait_failure("n0", "loading");
    assert_eq!(node.info("role").unwrap(), "master", "a loading node says that it is the master");
    is_refused(&rolegate);
    rolegate.wait_ready();
    assert_eq!(rolegate.client().call(&["DBSIZE"]).unwrap(), Reply::Int(2000));
}

#[test]
fn what_the_old_master_has_answered_is_delivered_before_the_reset() {
    // Fits into the client's kernel, which takes it without the client reading.
    const LENGTH: usize = 40_000;
    let demoted = Arc::new(AtomicBool::new(false));
    let fake = Fake::demotable(demoted.clone(), |connection, _| {
        connection.send(format!("${LENGTH}\r\n{}\r\n", "x".repeat(LENGTH)))
    });
    let rolegate = Rolegate::start_ready(&config(&[fake.address()], None));
    let mut client = rolegate.client();
    client.send(&["FETCH"]).unwrap();
    rolegate.wait_bytes_out(0.0);
    demoted.store(true, Ordering::Relaxed);
    let line = rolegate.wait_log("session closed");
    assert_eq!(line["reason"], "revoked");
    assert_eq!(client.read().unwrap(), Reply::Bulk(vec![b'x'; LENGTH]));
    assert_eq!(client.read().unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_client_that_reads_nothing_cannot_keep_its_lost_session() {
    let demoted = Arc::new(AtomicBool::new(false));
    let fake = Fake::demotable(demoted.clone(), |connection, _| {
        while connection.send([b'x'; 65536]).is_ok() {}
        Ok(())
    });
    let rolegate = Rolegate::start_ready(&config(&[fake.address()], None));
    let mut client = rolegate.client();
    client.send(&["FLOOD"]).unwrap();
    rolegate.wait_bytes_out(1e6);
    let since = Instant::now();
    demoted.store(true, Ordering::Relaxed);
    assert_eq!(rolegate.wait_log("session closed")["reason"], "revoked");
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
}

/// The story of the README: the master dies, Sentinel promotes a replica, the key is still there
/// through the same address.
#[test]
fn a_sentinel_failover_end_to_end() {
    let mut group = Group::start(3);
    let sentinels = Sentinels::start(&group);
    let rolegate = Rolegate::start_ready(&group.config());
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    client.call(&["SET", "key", "still there"]).unwrap();
    assert_eq!(client.call(&["WAIT", "2", "5000"]).unwrap(), Reply::Int(2));
    group.nodes[0].kill();
    let value = eventually("the key is back", || {
        Client::login(rolegate.address(), PASSWORD).ok()?.call(&["GET", "key"]).ok()
    });
    assert_eq!(value.text(), "still there");
    let mut writer = Client::login(rolegate.address(), PASSWORD).unwrap();
    assert_eq!(writer.call(&["SET", "key", "new"]).unwrap().text(), "OK");
    let master = rolegate.status()["pools"]["main"]["master"].as_str().unwrap().to_owned();
    let served = match master.as_str() {
        "n1" => group.nodes[1].port(),
        "n2" => group.nodes[2].port(),
        other => panic!("{other}"),
    };
    eventually("Sentinel names it, too", || (sentinels.master()? == served).then_some(()));
}

#[test]
fn what_a_broken_backend_has_answered_is_delivered_before_the_reset() {
    const LENGTH: usize = 1_000_000;
    let fake = Fake::master(|connection, _| {
        connection.send(format!("${LENGTH}\r\n{}\r\n", "x".repeat(LENGTH)))?;
        connection.command()?;
        SockRef::from(connection.stream()).set_linger(Some(Duration::ZERO))?;
        Err(ErrorKind::ConnectionReset.into())
    });
    let rolegate = Rolegate::start_ready(&config(&[fake.address()], None));
    let mut client = rolegate.client();
    client.send(&["FETCH"]).unwrap();
    // It has the whole reply.
    rolegate.wait_bytes_out(1_000_000.0);
    client.send(&["BREAK"]).unwrap();
    assert_eq!(client.read().unwrap(), Reply::Bulk(vec![b'x'; LENGTH]));
    assert_eq!(client.read().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(rolegate.wait_log("session closed")["reason"], "backend_reset");
}

#[test]
fn replies_that_came_before_a_crash_reach_a_slow_reader() {
    const LENGTH: usize = 1_500_000;
    let mut group = Group::start(1);
    group.nodes[0].call(&["SET", "big", &"x".repeat(LENGTH)]);
    let rolegate = Rolegate::start_ready(&group.config());
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    client.send(&["GET", "big"]).unwrap();
    // It has the whole reply.
    rolegate.wait_bytes_out(1_500_000.0);
    group.nodes[0].kill();
    rolegate.wait_failure("n0", "refused");
    assert_eq!(client.read().unwrap(), Reply::Bulk(vec![b'x'; LENGTH]));
}

#[test]
fn a_slow_client_gets_all_that_came_before_the_reset_of_its_backend() {
    let (demoted, reset) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let saw_reset = reset.clone();
    // More than fits on the way to a client that does not read.
    let fake = Fake::demotable(demoted.clone(), move |connection, _| {
        let error = connection.send(vec![b'x'; 64 << 20]).unwrap_err();
        saw_reset.store(error.kind() == ErrorKind::ConnectionReset, Ordering::Relaxed);
        Err(error)
    });
    let rolegate = Rolegate::start_ready(&config(&[fake.address()], None));
    let mut client = rolegate.client();
    client.send(&["FETCH"]).unwrap();
    let before = rolegate.wait_full();
    demoted.store(true, Ordering::Relaxed);
    // The backend does not wait for the client, which reads only now.
    eventually("the backend is reset", || reset.load(Ordering::Relaxed).then_some(()));
    let got = client.drain();
    let line = rolegate.wait_log("session closed");
    assert_eq!((&line["reason"], &line["bytes_out"]), (&"revoked".into(), &got.into()));
    assert!(got as f64 > before, "{got} bytes are no more than the {before} before the end");
}

#[test]
fn a_client_that_keeps_sending_into_a_crash_gets_its_replies() {
    const LENGTH: usize = 1_500_000;
    // The fake closes with unread input, as a killed process does: FIN or RST, then RST.
    let fake = Fake::master(|connection, command| {
        if command[0] == "FETCH" {
            return connection.send(format!("${LENGTH}\r\n{}\r\n", "x".repeat(LENGTH)));
        }
        connection.stream().shutdown(Shutdown::Write)?;
        connection.command()?;
        Err(ErrorKind::ConnectionReset.into())
    });
    let rolegate = Rolegate::start_ready(&config(&[fake.address()], None));
    let mut client = rolegate.client();
    client.send(&["FETCH"]).unwrap();
    // It has the whole reply.
    rolegate.wait_bytes_out(1_500_000.0);
    let flood = client.flood(&["MORE"]);
    // The client reads late, yet within the second that a slow client has.
    let late = Instant::now() + Duration::from_millis(300);
    while rolegate.log("session closed").is_empty() && Instant::now() < late {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert_eq!(client.read().unwrap(), Reply::Bulk(vec![b'x'; LENGTH]));
    flood.join().unwrap();
}

#[test]
fn a_client_on_its_way_to_a_lost_master_does_not_wait_for_it() {
    let demoted = Arc::new(AtomicBool::new(false));
    let new = Node::start(&[]);
    let master = Node::start(&[]);
    new.follow(&master);
    // In the place of the master that the other one follows.
    let info = info_master(&master.info("master_replid").unwrap());
    let old = Fake::once(demoted.clone(), true, &info);
    let config = config(&[old.address(), new.address()], None)
        .replace("hold: { timeout: 0s }", "hold: { timeout: 1m }")
        .replace("admin:", "    connect_timeout: 1m\nadmin:");
    let rolegate = Rolegate::start_ready(&config);
    let _full = old.fill_backlog();
    let mut client = rolegate.client();
    client.send(&["PING"]).unwrap();
    eventually("the session is open", || {
        (rolegate.metric(r#"rolegate_listener_sessions{listener="redis"}"#) == 1.0).then_some(())
    });
    new.promote();
    demoted.store(true, Ordering::Relaxed);
    rolegate.wait_master("n1");
    assert_eq!(client.read().unwrap().text(), "PONG");
}

#[test]
fn a_backend_that_takes_no_connection_is_named() {
    let connect_failures = r#"rolegate_connect_failures_total{backend="n0",pool="main"}"#;
    for (listens, reason) in [(true, "connect_timeout"), (false, "connect_failed")] {
        let fake = Fake::once(Arc::default(), listens, INFO_MASTER);
        let config =
            config(&[fake.address()], None).replace("admin:", "    connect_timeout: 200ms\nadmin:");
        let rolegate = Rolegate::start_ready(&config);
        let _full = fake.fill_backlog();
        assert_eq!(rolegate.client().end().1, ErrorKind::ConnectionReset);
        assert_eq!(rolegate.wait_log("session closed")["reason"], reason);
        assert_eq!(rolegate.metric(connect_failures), 1.0);
    }
}

#[test]
fn one_process_under_two_names_is_named_as_such() {
    let node = Node::start(&[]);
    let config = config(&[node.address()], None)
        .replace("backends: { ", &format!("backends: {{ twin: 'localhost:{}', ", node.port()));
    let rolegate = Rolegate::start(&config);
    eventually("the reason says it", || {
        rolegate.get("/ready").1.contains("are one process").then_some(())
    });
}
