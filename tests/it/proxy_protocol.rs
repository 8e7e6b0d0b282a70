//! Clients that come by way of a load balancer, which tells who they are in a PROXY header.

use std::{
    io::{ErrorKind, Write},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{
    Authority, Client, Node, Reply, Rolegate, check_config, config, encode, eventually,
    identity_keys, with_listener_tls, write_config,
};

/// A configuration in front of one node, behind a load balancer on this host.
fn behind(node: &Node, keys: &str) -> String {
    let keys = format!("pool: main, proxy_protocol: required, trusted: 127.0.0.0/8{keys},");
    config(&[node.address()], None).replace("pool: main,", &keys)
}

fn refused(rolegate: &Rolegate, reason: &str) -> f64 {
    rolegate.metric(&format!(
        r#"rolegate_listener_refused_total{{listener="redis",reason="{reason}"}}"#
    ))
}

fn sessions(rolegate: &Rolegate) -> f64 {
    rolegate.metric(r#"rolegate_listener_sessions_total{listener="redis"}"#)
}

/// Version 1 for a client at this address.
fn text(ip: &str, port: u16) -> Vec<u8> {
    let family = if ip.contains(':') { "TCP6 {} ::1" } else { "TCP4 {} 127.0.0.1" };
    format!("PROXY {} {port} 6379\r\n", family.replace("{}", ip)).into_bytes()
}

/// Version 2: command, family and protocol, and the rest.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend([0x20 | command, family]);
    bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    bytes.extend(rest);
    bytes
}

/// A client that begins with these bytes.
fn begin(rolegate: &Rolegate, bytes: &[u8]) -> Client {
    let mut client = rolegate.client();
    client.send_raw(bytes).unwrap();
    client
}

fn is_served(client: &mut Client) {
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
}

fn is_reset(mut client: Client) -> bool {
    client.end().1 == ErrorKind::ConnectionReset
}

#[test]
fn the_access_line_shows_the_address_of_the_header() {
    let node = Node::start(&[]);
    let rolegate = Rolegate::start_ready(&behind(&node, ""));
    let four = [10, 1, 2, 3, 127, 0, 0, 1, 0x1f, 0x90, 0, 80];
    let mut six = [0; 36];
    (six[0], six[15], six[33]) = (0xfd, 1, 7);
    // One that is ignored, and one of more bytes than a packet has.
    let tlvs = [&four[..], &[4, 0, 1, 9], &[0xe0, 0x0b, 0xb8], &[7; 3000]].concat();
    let own = "127.0.0.1:";
    for (header, address) in [
        (text("10.1.2.3", 8080), "10.1.2.3:8080"),
        (text("fd00::1", 7), "[fd00::1]:7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), own),
        (b"PROXY UNKNOWN ffff::1 and more\r\n".to_vec(), own),
        (binary(1, 0x11, &four), "10.1.2.3:8080"),
        (binary(1, 0x21, &six), "[fd00::1]:7"),
        (binary(1, 0x11, &tlvs), "10.1.2.3:8080"),
        (binary(0, 0, &[]), own),
        (binary(0, 0x11, &four), own),
    ] {
        let before = rolegate.log("session closed").len();
        let mut client = begin(&rolegate, &header);
        is_served(&mut client);
        drop(client);
        let line =
            eventually("the session ends", || rolegate.log("session closed").get(before).cloned());
        let shown = line["client"].as_str().unwrap();
        assert!(shown == address || address == own && shown.starts_with(own), "{line}");
        // The header is none of the client's bytes.
        assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&14.into(), &7.into()));
    }
    // Redis has only ever seen commands.
    assert_eq!(node.call(&["INFO", "errorstats"]).text().matches("errorstat_").count(), 0);
}

#[test]
fn a_header_may_come_byte_by_byte_and_with_the_first_command() {
    let node = Node::start(&[]);
    let rolegate = Rolegate::start_ready(&behind(&node, ""));
    let four = [10, 1, 2, 3, 127, 0, 0, 1, 0x1f, 0x90, 0, 80];
    let ping = encode(&[b"PING"]);
    for header in [text("10.1.2.3", 8080), binary(1, 0x11, &four), binary(0, 0, &[])] {
        let mut client = rolegate.client();
        for byte in header.iter().chain(&ping) {
            client.send_raw(&[*byte]).unwrap();
        }
        assert_eq!(client.read().unwrap().text(), "PONG");
        let value = vec![b'x'; 300_000];
        let set = encode(&[b"SET", b"key", &value]);
        let mut client = begin(&rolegate, &[&header[..], &set, &ping].concat());
        assert_eq!(client.read().unwrap().text(), "OK");
        assert_eq!(client.read().unwrap().text(), "PONG");
        assert_eq!(client.call(&["STRLEN", "key"]).unwrap(), Reply::Int(300_000));
    }
}

#[test]
fn tls_follows_the_header() {
    let node = Node::start(&[]);
    let authority = Authority::new();
    let identity = authority.sign(&["localhost", "127.0.0.1"]);
    let config = with_listener_tls(&behind(&node, ""), &identity_keys(&identity));
    let rolegate = Rolegate::start_ready(&config);
    let mut client = Client::over(rolegate.address(), |mut socket| {
        socket.write_all(&text("10.1.2.3", 8080))?;
        Ok(Box::new(authority.shake(socket, None)?))
    })
    .unwrap();
    is_served(&mut client);
    drop(client);
    assert_eq!(rolegate.wait_log("session closed")["client"], "10.1.2.3:8080");
    // A plain client behind the same load balancer is told, as anywhere.
    let mut plain = begin(&rolegate, &text("10.1.2.4", 8080));
    plain.send(&["PING"]).unwrap();
    assert!(plain.read().unwrap().text().contains("this port speaks TLS"));
    // One that shakes hands without a header.
    let error = authority.client(rolegate.address(), None).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(refused(&rolegate, "proxy_missing"), 1.0);
}

#[test]
fn what_is_no_header_is_reset_and_counted_once() {
    let node = Node::start(&[]);
    let rolegate = Rolegate::start_ready(&behind(&node, ""));
    let ping = encode(&[b"PING"]);
    let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 100]].concat();
    let cases: [(&[u8], &str); 9] = [
        (&ping, "proxy_missing"),
        (b"PING\r\n", "proxy_missing"),
        (&[0xff; 3000], "proxy_missing"),
        (b"PROXY TCP4 10.1.2.3 8080\r\n", "proxy_malformed"),
        (b"PROXY TCP4 10.1.2.3 127.0.0.1 8080 80\n", "proxy_malformed"),
        (&binary(1, 0x12, &[0; 12]), "proxy_malformed"),
        (&binary(7, 0x11, &[0; 12]), "proxy_malformed"),
        (&long, "proxy_too_long"),
        (&binary(1, 0x11, &[0; 4081]), "proxy_too_long"),
    ];
    for (bytes, reason) in cases {
        let before = refused(&rolegate, reason);
        assert!(is_reset(begin(&rolegate, bytes)), "{reason}");
        assert_eq!(refused(&rolegate, reason), before + 1.0);
    }
    let line = &rolegate.log("client refused")[0];
    assert_eq!((&line["reason"], &line["client"]), (&"proxy_missing".into(), &"127.0.0.1".into()));
    assert!(line["advice"].as_str().unwrap().contains("send-proxy"), "{line}");
    assert!(rolegate.log("client refused").len() < cases.len(), "once a second at the most");
    rolegate.wait_no_sessions();
    assert_eq!((sessions(&rolegate), rolegate.log("session closed").len()), (0.0, 0));
    // Who leaves by itself is a session that ended, once.
    drop(rolegate.client());
    rolegate.wait_closed("client_closed", 1.0);
    drop(begin(&rolegate, b"PROXY TCP4 "));
    rolegate.wait_closed("client_closed", 2.0);
    assert_eq!(sessions(&rolegate), 2.0);
    rolegate.wait_no_sessions();
    is_served(&mut begin(&rolegate, &text("10.1.2.3", 8080)));
}

#[test]
fn slow_headers_are_cut_in_time_while_others_are_served() {
    let node = Node::start(&[]);
    let rolegate = Rolegate::start_ready(&behind(&node, ", proxy_timeout: 500ms"));
    let since = Instant::now();
    let mut slow: Vec<Client> = (0..50).map(|_| begin(&rolegate, b"PROXY ")).collect();
    slow.extend((0..50).map(|_| rolegate.client()));
    let mut served = Duration::ZERO;
    let mut drips = 0;
    while drips < 60 && slow[0].send_raw(b"x").is_ok() {
        let start = Instant::now();
        is_served(&mut begin(&rolegate, &text("10.1.2.3", 8080)));
        served = served.max(start.elapsed());
        drips += 1;
        // One byte now and then does not wind the deadline up.
        std::thread::park_timeout(Duration::from_millis(20));
    }
    assert!(drips > 3 && served < Duration::from_secs(5), "{drips}, {served:?}");
    for mut client in slow {
        // The one that wrote on has seen the reset by that.
        let (replies, _) = client.end();
        assert!(replies.is_empty());
    }
    assert!(since.elapsed() >= Duration::from_millis(490), "{:?}", since.elapsed());
    eventually("all are counted", || (refused(&rolegate, "proxy_timeout") == 100.0).then_some(()));
    assert_eq!(refused(&rolegate, "proxy_too_long"), 0.0);
    rolegate.wait_no_sessions();
}

#[test]
fn a_peer_that_is_not_trusted_is_reset() {
    let node = Node::start(&[]);
    let config = behind(&node, "").replace("127.0.0.0/8", "[10.0.0.0/8, 'fd00::/8']");
    let rolegate = Rolegate::start_ready(&config);
    // Unread bytes and a close before it has read may both end the client.
    assert!(is_reset(rolegate.client()));
    let mut client = rolegate.client();
    let _ = client.send_raw(&text("10.1.2.3", 8080));
    client.end();
    assert_eq!(refused(&rolegate, "proxy_untrusted"), 2.0);
    let line = rolegate.wait_log("client refused");
    assert_eq!(
        (&line["reason"], &line["client"]),
        (&"proxy_untrusted".into(), &"127.0.0.1".into())
    );
    assert_eq!(sessions(&rolegate), 0.0);
}

#[test]
fn rules_about_sources_judge_the_address_of_the_header() {
    let node = Node::start(&[]);
    let rules =
        ", allow: [10.0.0.0/8, 127.0.0.1], deny: 10.66.0.0/16, max_connections_per_source: 2";
    let rolegate = Rolegate::start_ready(&behind(&node, rules));
    let mut first = begin(&rolegate, &text("10.1.2.3", 1));
    let mut second = begin(&rolegate, &text("10.1.2.3", 2));
    is_served(&mut first);
    is_served(&mut second);
    assert!(is_reset(begin(&rolegate, &text("10.1.2.3", 3))));
    assert_eq!(refused(&rolegate, "source_max_connections"), 1.0);
    assert_eq!(rolegate.wait_log("client refused")["client"], "10.1.2.3");
    // Others come from the same load balancer.
    is_served(&mut begin(&rolegate, &text("10.1.2.4", 3)));
    drop(first);
    eventually("there is room again", || {
        begin(&rolegate, &text("::ffff:10.1.2.3", 4)).call(&["PING"]).ok()
    });
    assert!(is_reset(begin(&rolegate, &text("10.66.1.1", 5))));
    assert!(is_reset(begin(&rolegate, &text("192.0.2.1", 5))));
    assert_eq!(refused(&rolegate, "denied"), 2.0);
    // A health check of the load balancer has its own address.
    is_served(&mut begin(&rolegate, &binary(0, 0, &[])));
    drop(second);
    rolegate.wait_no_sessions();
}

#[test]
fn those_who_have_said_nothing_yet_have_a_place_and_lose_it_once() {
    let node = Node::start(&[]);
    let rules = ", max_connections: 3, max_connections_per_source: 1";
    let rolegate = Rolegate::start_ready(&behind(&node, rules));
    let silent: Vec<Client> = (0..3).map(|_| begin(&rolegate, b"PROXY TCP4 10.1.2.3 ")).collect();
    let open = || rolegate.metric(r#"rolegate_listener_sessions{listener="redis"}"#);
    eventually("they are in", || (open() == 3.0).then_some(()));
    assert!(is_reset(rolegate.client()), "before it can say anything");
    assert_eq!(refused(&rolegate, "listener_max_connections"), 1.0);
    assert_eq!(sessions(&rolegate), 0.0);
    for client in silent {
        client.reset();
    }
    rolegate.wait_closed("client_reset", 3.0);
    rolegate.wait_no_sessions();
    assert_eq!((sessions(&rolegate), rolegate.log("session closed").len()), (3.0, 3));
    // All places are free again, and the one of the source was never taken.
    let mut clients: Vec<Client> =
        (4..7).map(|n| begin(&rolegate, &text(&format!("10.1.2.{n}"), n))).collect();
    clients.iter_mut().for_each(is_served);
    drop(clients);
    rolegate.wait_no_sessions();
    let workers = || {
        let text = rolegate.get("/metrics").1;
        let lines = text.lines().filter(|line| line.starts_with("rolegate_worker_sessions{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    eventually("no worker has any left", || (workers() == 0.0).then_some(()));
}

#[test]
fn a_held_client_keeps_its_source() {
    let node = Node::start(&[]);
    node.call(&["REPLICAOF", "127.0.0.1", "1"]);
    let config = behind(&node, ", max_connections_per_source: 1")
        .replace("hold: { timeout: 0s }", "hold: { timeout: 15s }");
    let rolegate = Rolegate::start(&config);
    eventually("it is checked", || (rolegate.checks("n0") >= 1.0).then_some(()));
    let mut held = begin(&rolegate, &[text("10.1.2.3", 9), encode(&[b"PING"])].concat());
    let waiting = || rolegate.metric(r#"rolegate_listener_held{listener="redis"}"#);
    eventually("it waits", || (waiting() == 1.0).then_some(()));
    assert!(is_reset(begin(&rolegate, &text("10.1.2.3", 10))));
    // A connection without its header waits for that first.
    let _silent = rolegate.client();
    assert_eq!(waiting(), 1.0);
    node.promote();
    assert_eq!(held.read().unwrap().text(), "PONG");
    assert!(is_reset(begin(&rolegate, &text("10.1.2.3", 11))));
    assert_eq!(refused(&rolegate, "source_max_connections"), 2.0);
    drop(held);
    assert_eq!(rolegate.wait_log("session closed")["client"], "10.1.2.3:9");
    is_served(&mut begin(&rolegate, &text("10.1.2.3", 12)));
}

#[test]
fn a_unix_socket_takes_headers_from_whoever_its_mode_lets_in() {
    let node = Node::start(&[]);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("redis.sock");
    let config = behind(&node, ", deny: 10.66.0.0/16")
        .replace("trusted: 127.0.0.0/8, ", "")
        .replacen("bind: 127.0.0.1:0", &format!("bind: unix:{}", path.display()), 1);
    let rolegate = Rolegate::start_ready(&config);
    for (header, shown) in [
        (text("10.1.2.3", 9), "10.1.2.3:9"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "unix"),
        (binary(1, 0x31, &[b'x'; 216]), "unix"),
    ] {
        let before = rolegate.log("session closed").len();
        let mut client = Client::connect_unix(&path).unwrap();
        for byte in header {
            client.send_raw(&[byte]).unwrap();
        }
        is_served(&mut client);
        drop(client);
        let line =
            eventually("the session ends", || rolegate.log("session closed").get(before).cloned());
        assert_eq!(line["client"], shown);
    }
    let mut client = Client::connect_unix(&path).unwrap();
    client.send_raw(&text("10.66.1.1", 9)).unwrap();
    client.end();
    assert_eq!(refused(&rolegate, "denied"), 1.0);
}

#[test]
fn a_reload_changes_it_for_those_who_come_from_then_on() {
    let node = Node::start(&[]);
    let stop = "shutdown_timeout: 500ms\n";
    let plain = config(&[node.address()], None) + stop;
    let mut rolegate = Rolegate::start_ready(&plain);
    let mut before = rolegate.client();
    is_served(&mut before);
    assert!(rolegate.reload(&(behind(&node, ", proxy_timeout: 1m") + stop)));
    assert_eq!(rolegate.changes(), ["listener redis: changed proxy_protocol"]);
    is_served(&mut before);
    is_served(&mut begin(&rolegate, &text("10.1.2.3", 9)));
    let mut without = rolegate.client();
    without.send(&["PING"]).unwrap();
    assert!(is_reset(without));
    // One that has said nothing yet does not keep a stop.
    let mut silent = rolegate.client();
    let open = || rolegate.metric(r#"rolegate_listener_sessions{listener="redis"}"#);
    eventually("it is in", || (open() == 2.0).then_some(()));
    drop(before);
    let since = Instant::now();
    rolegate.signal(Signal::TERM);
    silent.end();
    assert_eq!(rolegate.wait_exit(), Some(0));
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
}

#[test]
fn what_belongs_together_is_checked() {
    let good = "listeners:\n  redis: { bind: 127.0.0.1:6379, pool: main }\npools:\n  main:\n    \
                backends: { a: 127.0.0.1:7001 }\n";
    let check = |listener: &str| {
        let config = good.replace("bind: 127.0.0.1:6379", listener);
        let (_folder, file) = write_config(&config);
        let output = check_config(&file, &[]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for keys in [
        "bind: 127.0.0.1:6379, proxy_protocol: required, trusted: 10.0.0.0/8, proxy_timeout: 1s",
        "bind: 127.0.0.1:6379, proxy_protocol: off",
        "bind: unix:/run/a.sock, proxy_protocol: required",
        "bind: [unix:/run/a.sock, 127.0.0.1:6379], proxy_protocol: required, trusted: [10.0.0.1]",
    ] {
        assert_eq!(check(keys), (Some(0), String::new()), "{keys}");
    }
    for (keys, words) in [
        ("bind: 127.0.0.1:6379, proxy_protocol: required", "listeners.redis.trusted is missing"),
        ("bind: 127.0.0.1:6379, trusted: 10.0.0.0/8", "listeners.redis.trusted has no use"),
        ("bind: 127.0.0.1:6379, proxy_timeout: 1s", "listeners.redis.proxy_timeout has no use"),
        (
            "bind: 127.0.0.1:6379, proxy_protocol: optional, trusted: 10.0.0.0/8",
            "listeners.redis.proxy_protocol is unknown: found \"optional\"; allowed are required, off",
        ),
        (
            "bind: 127.0.0.1:6379, proxy_protocol: required, trusted: []",
            "listeners.redis.trusted is empty",
        ),
        (
            "bind: 127.0.0.1:6379, proxy_protocol: required, trusted: lb1",
            "listeners.redis.trusted is not a network",
        ),
        (
            "bind: unix:/run/a.sock, proxy_protocol: required, trusted: 10.0.0.0/8",
            "found only unix sockets in listeners.redis.bind",
        ),
        (
            "bind: 127.0.0.1:6379, proxy_protocol: required, trusted: 10.0.0.0/8, proxy_timeout: 0s",
            "listeners.redis.proxy_timeout is out of range",
        ),
    ] {
        let (code, shown) = check(keys);
        assert!(code == Some(2) && shown.contains(words), "{keys}: {shown}");
    }
}
