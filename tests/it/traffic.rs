//! Bytes reach the other side untouched, whatever they mean.

use std::{io::ErrorKind, net::Shutdown};

use crate::support::{
    Client, Fake, Group, Node, PASSWORD, Reply, Rolegate, config, encode, eventually,
};

fn node_and_rolegate() -> (Node, Rolegate) {
    let node = Node::start(&[]);
    let rolegate = Rolegate::start_ready(&config(&[node.address()], None));
    (node, rolegate)
}

/// Bytes that repeat only after a long while, so that a lost or doubled piece shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i * 31) ^ (i >> 8) ^ (i >> 16)).to_le_bytes()[0]).collect()
}

#[test]
fn clients_log_in_by_themselves_and_write_to_the_master() {
    let group = Group::start(3);
    let rolegate = Rolegate::start_ready(&group.config());
    let mut client = rolegate.client();
    assert!(client.call(&["GET", "k"]).unwrap().text().starts_with("NOAUTH"));
    assert_eq!(client.call(&["AUTH", PASSWORD]).unwrap().text(), "OK");
    assert_eq!(client.call(&["SET", "k", "v"]).unwrap().text(), "OK");
    assert_eq!(client.call(&["GET", "k"]).unwrap().text(), "v");
    assert_eq!(group.nodes[0].call(&["GET", "k"]).text(), "v");
}

#[test]
fn a_long_pipeline_keeps_its_order() {
    let (_node, rolegate) = node_and_rolegate();
    let mut client = rolegate.client();
    let commands: Vec<u8> = (0..20_000).flat_map(|_| encode(&[b"INCR", b"n"])).collect();
    client.send_raw(&commands).unwrap();
    for n in 1..=20_000 {
        assert_eq!(client.read().unwrap(), Reply::Int(n));
    }
}

#[test]
fn pub_sub_monitor_and_pushes_arrive() {
    let (node, rolegate) = node_and_rolegate();
    let mut subscriber = rolegate.client();
    subscriber.call(&["SUBSCRIBE", "news"]).unwrap();
    let mut monitor = rolegate.client();
    assert_eq!(monitor.call(&["MONITOR"]).unwrap().text(), "OK");
    let mut tracker = rolegate.client();
    tracker.call(&["HELLO", "3"]).unwrap();
    tracker.call(&["CLIENT", "TRACKING", "ON"]).unwrap();
    tracker.call(&["GET", "tracked"]).unwrap();

    node.call(&["PUBLISH", "news", "hello"]);
    assert_eq!(subscriber.read().unwrap().text(), "message news hello");
    node.call(&["SET", "tracked", "1"]);
    assert_eq!(tracker.read().unwrap().text(), "invalidate tracked");
    eventually("MONITOR shows the write", || {
        monitor.read().unwrap().text().contains("\"tracked\" \"1\"").then_some(())
    });
}

#[test]
fn a_blocked_client_is_woken() {
    let (node, rolegate) = node_and_rolegate();
    let mut client = rolegate.client();
    client.send(&["BLPOP", "list", "0"]).unwrap();
    eventually("the client is blocked", || (node.info("blocked_clients")? == "1").then_some(()));
    node.call(&["RPUSH", "list", "item"]);
    assert_eq!(client.read().unwrap().text(), "list item");
}

#[test]
fn a_value_of_64_mb_comes_back_as_it_was_sent() {
    let (node, rolegate) = node_and_rolegate();
    let mut client = rolegate.client();
    let value = pattern(64 << 20);
    client.send_raw(&encode(&[b"SET", b"big", &value])).unwrap();
    assert_eq!(client.read().unwrap().text(), "OK");
    assert_eq!(node.call(&["STRLEN", "big"]), Reply::Int(64 << 20));
    client.send(&["GET", "big"]).unwrap();
    let Reply::Bulk(back) = client.read().unwrap() else { panic!("no value") };
    assert!(back == value, "the value has changed on its way");
    let moved =
        rolegate.metric(r#"rolegate_listener_bytes_total{direction="in",listener="redis"}"#);
    assert!(moved > f64::from(64 << 20), "counted while the session is open: {moved}");
}

#[test]
fn a_client_that_half_closes_still_gets_its_replies() {
    let (_node, rolegate) = node_and_rolegate();
    let mut client = rolegate.client();
    let commands: Vec<u8> = (0..100).flat_map(|_| encode(&[b"INCR", b"n"])).collect();
    client.send_raw(&commands).unwrap();
    client.finish();
    let (replies, end) = client.end();
    assert_eq!(replies, (1..=100).map(Reply::Int).collect::<Vec<_>>());
    assert_eq!(end, ErrorKind::UnexpectedEof);
}

#[test]
fn half_close_travels_in_both_directions() {
    // The fake answers only after the client's FIN has come through.
    let fake = Fake::master(|connection, command| {
        assert_eq!(command, ["ASK"]);
        connection.drain()?;
        connection.send(":7\r\n")
    });
    let rolegate = Rolegate::start_ready(&config(&[fake.address()], None));
    let mut client = rolegate.client();
    client.send(&["ASK"]).unwrap();
    client.finish();
    assert_eq!(client.read().unwrap(), Reply::Int(7));

    // And one that hangs up its own side first still gets what the client sends.
    let fake = Fake::master(|connection, command| {
        assert_eq!(command, ["BYE"]);
        connection.send("+last words\r\n")?;
        connection.stream().shutdown(Shutdown::Write)?;
        let after = connection.command()?;
        assert_eq!(after, ["REPORT"]);
        // Told by the close reason below: only a session whose both sides are done ends so.
        connection.drain()
    });
    let rolegate = Rolegate::start_ready(&config(&[fake.address()], None));
    let mut client = rolegate.client();
    assert_eq!(client.call(&["BYE"]).unwrap().text(), "last words");
    assert_eq!(client.end().1, ErrorKind::UnexpectedEof);
    client.send(&["REPORT"]).unwrap();
    client.finish();
    let line = rolegate.wait_log("session closed");
    assert_eq!(line["reason"], "backend_closed");
}

#[test]
fn the_backends_goodbye_arrives_before_its_close() {
    let (_node, rolegate) = node_and_rolegate();
    let mut client = rolegate.client();
    client.send(&["QUIT"]).unwrap();
    let (replies, end) = client.end();
    assert_eq!(replies, [Reply::Simple("OK".into())]);
    assert_eq!(end, ErrorKind::UnexpectedEof);
    drop(client);
    let line = rolegate.wait_log("session closed");
    assert_eq!(line["reason"], "backend_closed");
    assert_eq!((&line["backend"], &line["bytes_out"]), (&"n0".into(), &5.into()));
}

#[test]
fn a_client_that_does_not_read_costs_bounded_memory_and_slows_nobody() {
    let node = Node::start(&[]);
    // Redis is silent while it copies so much.
    let config = config(&[node.address()], None).replace("fall: 2", "fall: 100");
    let rolegate = Rolegate::start_ready(&config);
    node.client().send_raw(&encode(&[b"SET", b"big", &pattern(16 << 20)])).unwrap();
    eventually("the value is there", || {
        (node.call(&["STRLEN", "big"]) == Reply::Int(16 << 20)).then_some(())
    });
    let before = rolegate.memory();
    let mut slow: Vec<Client> = (0..4).map(|_| rolegate.client()).collect();
    for client in &mut slow {
        for _ in 0..4 {
            client.send(&["GET", "big"]).unwrap();
        }
    }
    // 256 MB want out.
    rolegate.wait_full();
    let grown = rolegate.memory().saturating_sub(before);
    assert!(grown < 4096, "4 sessions that wait took {grown} KiB");

    let mut other = rolegate.client();
    for _ in 0..1000 {
        assert_eq!(other.call(&["PING"]).unwrap().text(), "PONG");
    }
    for client in &mut slow {
        let Reply::Bulk(value) = client.read().unwrap() else { panic!("no value") };
        assert_eq!(value.len(), 16 << 20);
    }
}

#[test]
fn a_client_that_is_gone_frees_its_backend_connection() {
    let (node, rolegate) = node_and_rolegate();
    let mut client = rolegate.client();
    client.send(&["BLPOP", "nothing", "0"]).unwrap();
    eventually("the client is blocked", || (node.info("blocked_clients")? == "1").then_some(()));
    drop(client);
    eventually("the backend's client is gone", || {
        (node.info("blocked_clients")? == "0").then_some(())
    });
    rolegate.wait_no_sessions();
}
