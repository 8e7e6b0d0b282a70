//! TLS on listeners, towards backends and Sentinels, and passed through.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
};

use crate::support::{
    Authority, Client, Fake, Group, Node, PASSWORD, Reply, Rolegate, SOON, Secured, Sentinels,
    ca_key, check_config, config, eventually, free_port, identity_keys, with_listener_tls,
    with_pool_tls, with_sentinels, write_config,
};

/// Values of many sizes in both directions, pub/sub, and a client that says that it has done.
fn traffic(mut connect: impl FnMut() -> Client) {
    let mut client = connect();
    for size in [0, 1, 16_384, 16_385, 1 << 20, 64 << 20] {
        let value: Vec<u8> = (0..size).map(|i: u32| i.to_le_bytes()[i as usize % 3]).collect();
        client.send_raw(&crate::support::encode(&[b"SET", b"k", &value])).unwrap();
        assert_eq!(client.read().unwrap().text(), "OK", "{size}");
        client.send(&["GET", "k"]).unwrap();
        assert!(client.read().unwrap() == Reply::Bulk(value), "{size}");
    }
    let mut subscriber = connect();
    subscriber.call(&["SUBSCRIBE", "c"]).unwrap();
    assert_eq!(client.call(&["PUBLISH", "c", "m"]).unwrap(), Reply::Int(1));
    assert_eq!(subscriber.read().unwrap().text(), "message c m");
    let mut pipeline = Vec::new();
    for n in 0..10_000 {
        pipeline.extend(crate::support::encode(&[b"ECHO", n.to_string().as_bytes()]));
    }
    client.send_raw(&pipeline).unwrap();
    for n in 0..10_000 {
        assert_eq!(client.read().unwrap().text(), n.to_string());
    }
}

#[test]
fn tls_clients_in_front_of_a_plain_redis() {
    let authority = Authority::new();
    let node = Node::start(&[]);
    let identity = authority.sign(&["localhost"]);
    let config = with_listener_tls(&config(&[node.address()], None), &identity_keys(&identity));
    let rolegate = Rolegate::start_ready(&config);
    traffic(|| authority.client(rolegate.address(), None).unwrap());
    rolegate.wait_no_sessions();
    assert_eq!(rolegate.closed("client_closed"), 2.0);
}

#[test]
fn plain_clients_in_front_of_a_tls_redis() {
    let authority = Authority::new();
    let redis = Secured::usual(&authority);
    let rolegate =
        Rolegate::start_ready(&with_pool_tls(&config(&[redis.address], None), &ca_key(&authority)));
    traffic(|| rolegate.client());
    rolegate.wait_no_sessions();
    assert_eq!(rolegate.closed("client_closed"), 2.0);
}

#[test]
fn tls_on_both_sides_with_client_certificates_on_both() {
    let authority = Authority::new();
    let redis = Secured::start(&authority, &authority.sign(&["127.0.0.1"]), "yes");
    let own = authority.sign(&["localhost"]);
    let pool = format!("{}, {}", ca_key(&authority), identity_keys(&own));
    let listener = format!("{}, client_{}", identity_keys(&own), ca_key(&authority));
    let config =
        with_listener_tls(&with_pool_tls(&config(&[redis.address], None), &pool), &listener);
    let rolegate = Rolegate::start_ready(&config);
    let known = authority.sign(&["app"]);
    traffic(|| authority.client(rolegate.address(), Some(&known)).unwrap());

    // Without a certificate, and with one of another CA.
    let elsewhere = Authority::new();
    let stranger = elsewhere.sign(&["app"]);
    for (n, identity) in [None, Some(&stranger)].into_iter().enumerate() {
        // In TLS 1.3 a client learns of it with its first read.
        let refused = authority
            .client(rolegate.address(), identity)
            .and_then(|mut client| client.call(&["PING"]));
        let error = refused.err().unwrap().to_string();
        assert!(error.contains("alert"), "it is told why: {error}");
        rolegate.wait_closed("tls_client_cert", n as f64 + 1.0);
    }
    let lines = rolegate.log("client is not understood");
    assert_eq!(lines[0]["reason"], "tls_client_cert");
    assert!(lines[0]["advice"].as_str().unwrap().contains("tls.client_ca"), "{lines:?}");
}

#[test]
fn a_key_may_stand_in_the_file_of_its_certificate() {
    let authority = Authority::new();
    let node = Node::start(&[]);
    let identity = authority.sign(&["localhost"]);
    let both = [&identity.certificate, &identity.key].map(|f| fs::read_to_string(f).unwrap());
    fs::write(&identity.certificate, both.concat()).unwrap();
    let tls = format!("certificate: {}", identity.certificate.display());
    let rolegate =
        Rolegate::start_ready(&with_listener_tls(&config(&[node.address()], None), &tls));
    let mut client = authority.client(rolegate.address(), None).unwrap();
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
}

#[test]
fn both_ends_of_a_session_are_said_over_tls() {
    let authority = Authority::new();
    let redis = Secured::usual(&authority);
    let identity = authority.sign(&["localhost"]);
    let config = with_listener_tls(
        &with_pool_tls(&config(&[redis.address], None), &ca_key(&authority)),
        &identity_keys(&identity),
    );
    let rolegate = Rolegate::start_ready(&config);
    // Redis closes: a clean end, which rustls tells apart from a cut one.
    let socket = TcpStream::connect(rolegate.address()).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut client = authority.shake(socket, None).unwrap();
    client.write_all(b"QUIT\r\n").unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).expect("close_notify comes before the FIN");
    assert_eq!(answer, b"+OK\r\n");
    drop(client);
    rolegate.wait_closed("backend_closed", 1.0);
    // The client closes.
    let mut client = authority.client(rolegate.address(), None).unwrap();
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
    client.finish();
    assert_eq!(client.end(), (vec![], ErrorKind::UnexpectedEof));
    rolegate.wait_closed("client_closed", 1.0);
}

#[test]
fn a_half_closed_client_gets_all_its_replies() {
    let authority = Authority::new();
    // One that goes on after the client's FIN, which Redis does not.
    let slow = Fake::master(|connection, command| {
        assert_eq!(command[0], "SLOW");
        connection.drain()?;
        connection.send("$5\r\nafter\r\n")
    });
    let identity = authority.sign(&["localhost"]);
    let config = with_listener_tls(&config(&[slow.address()], None), &identity_keys(&identity));
    let rolegate = Rolegate::start_ready(&config);
    let mut client = authority.client(rolegate.address(), None).unwrap();
    client.send(&["SLOW"]).unwrap();
    client.finish();
    assert_eq!(client.read().unwrap().text(), "after");
}

#[test]
fn bytes_pass_through_while_checks_speak_tls() {
    let authority = Authority::new();
    let redis = Secured::start(&authority, &authority.sign(&["localhost", "127.0.0.1"]), "no");
    let tls = format!("{}, passthrough: true", ca_key(&authority));
    let config = with_pool_tls(&config(&[redis.address], None), &tls);
    let rolegate = Rolegate::start_ready(&config);
    traffic(|| authority.client(rolegate.address(), None).unwrap());
    assert_eq!(rolegate.closed("tls_on_plain"), 0.0);
    let (_folder, file) =
        write_config(&with_listener_tls(&config, &identity_keys(&authority.sign(&["x"]))));
    let output = check_config(&file, &[]);
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("listeners.redis.tls is in the way"), "{words}");
}

/// Two nodes with TLS ports beside their plain ones, and replicas over TLS.
fn group(authority: &Authority, size: usize) -> (Group, Vec<SocketAddr>) {
    let identity = authority.sign(&["localhost", "127.0.0.1"]);
    let ports: Vec<_> = (0..size).map(|_| free_port()).collect();
    let start = |port: &u16| {
        let mut lines = authority.redis_lines(&identity, *port, "no");
        lines.push("tls-replication yes".to_owned());
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        Node::start_with_password(&lines)
    };
    let nodes: Vec<_> = ports.iter().map(start).collect();
    for replica in &nodes[1..] {
        replica.call(&["REPLICAOF", "127.0.0.1", &ports[0].to_string()]);
        eventually("the replica follows", || {
            (replica.info("master_link_status")? == "up").then_some(())
        });
    }
    let addresses = ports.iter().map(|port| (Ipv4Addr::LOCALHOST, *port).into()).collect();
    (Group { nodes }, addresses)
}

#[test]
fn a_failover_by_sentinels_that_speak_tls() {
    let authority = Authority::new();
    let (group, addresses) = group(&authority, 3);
    let identity = authority.sign(&["localhost", "127.0.0.1"]);
    let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
    let lines = |n: usize| {
        let mut lines = authority.redis_lines(&identity, ports[n], "no");
        lines.push("tls-replication yes".to_owned());
        lines
    };
    let sentinels =
        Sentinels::start_each(Ipv4Addr::LOCALHOST, &group, addresses[0].port(), lines, None);
    let at: Vec<_> = ports.iter().map(|port| (Ipv4Addr::LOCALHOST, *port).into()).collect();
    let base = with_pool_tls(&config(&addresses, Some(PASSWORD)), &ca_key(&authority))
        .replace("hold: { timeout: 0s }", "hold: { timeout: 1m }");
    let tls = |tls: &str| {
        with_sentinels(&base, &at).replace("master_name: it,", &format!("master_name: it, {tls}"))
    };
    let rolegate = Rolegate::start_ready(&tls(&format!("tls: {{ {} }},", ca_key(&authority))));
    let agree = r#"rolegate_pool_sentinel_agree{pool="main"}"#;
    eventually("all agree", || (rolegate.metric(agree) == 3.0).then_some(()));
    // Others are not heard, and it is said why.
    let stranger = Authority::new();
    for (config, expected) in [
        (tls(&format!("tls: {{ {} }},", ca_key(&stranger))), "tls_untrusted"),
        (tls(""), "tls_wanted"),
    ] {
        let deaf = Rolegate::start_ready(&config);
        eventually("it says what is wrong", || {
            let sentinels = deaf.status()["pools"]["main"]["sentinels"].as_object()?.clone();
            let says = |s: &serde_json::Value| s["says"].as_str().unwrap().starts_with(expected);
            sentinels.values().all(says).then_some(())
        });
    }
    assert_eq!(sentinels.nodes[0].call(&["SENTINEL", "FAILOVER", "it"]).text(), "OK");
    let new = eventually("another master is served", || {
        let master = rolegate.status()["pools"]["main"]["master"].as_str()?.to_owned();
        (master != "n0").then_some(master)
    });
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    assert_eq!(client.call(&["SET", "k", "v"]).unwrap().text(), "OK", "{new}");
    let rules: Vec<_> = rolegate.log("verdict changed").iter().map(|l| l["rule"].clone()).collect();
    assert!(rules.ends_with(&["failover_begun".into(), "failover".into()]), "{rules:?}");
}

#[test]
fn connections_that_wait_have_shaken_hands() {
    let authority = Authority::new();
    let redis = Secured::usual(&authority);
    let config = with_pool_tls(&config(&[redis.address], None), &ca_key(&authority))
        .replace("pools:\n  main:\n", "pools:\n  main:\n    preconnect: 4\n");
    let rolegate = Rolegate::start_ready(&format!("{config}workers: 1\n"));
    let ready = r#"rolegate_pool_preconnected{pool="main"}"#;
    eventually("connections wait", || (rolegate.metric(ready) == 4.0).then_some(()));
    let unused = || {
        let list = redis.node.call(&["CLIENT", "LIST"]).text();
        let unused = list.lines().filter(|line| line.contains(" cmd=NULL "));
        let id = |line: &str| line.strip_prefix("id=")?.split(' ').next()?.parse::<i64>().ok();
        unused.filter_map(id).collect::<Vec<_>>()
    };
    for _ in 0..10 {
        let waiting = eventually("four wait", || Some(unused()).filter(|ids| ids.len() == 4));
        let Reply::Int(id) = rolegate.client().call(&["CLIENT", "ID"]).unwrap() else {
            panic!("no id");
        };
        assert!(waiting.contains(&id), "a connection that was there before");
    }
}

#[test]
fn a_revoked_session_gets_the_replies_that_had_come() {
    let authority = Authority::new();
    let (group, addresses) = group(&authority, 2);
    let identity = authority.sign(&["localhost"]);
    let config = with_listener_tls(
        &with_pool_tls(&config(&addresses, Some(PASSWORD)), &ca_key(&authority)),
        &identity_keys(&identity),
    );
    let rolegate = Rolegate::start_ready(&config);
    let mut client = authority.client(rolegate.address(), None).unwrap();
    assert_eq!(client.call(&["AUTH", PASSWORD]).unwrap().text(), "OK");
    let value = vec![b'x'; 4 << 20];
    client.send_raw(&crate::support::encode(&[b"SET", b"k", &value])).unwrap();
    assert_eq!(client.read().unwrap().text(), "OK");
    // Nobody reads, so replies pile up in rolegate and on both sides of it.
    for _ in 0..8 {
        client.send(&["GET", "k"]).unwrap();
    }
    let came = rolegate.wait_full();
    group.nodes[1].promote();
    group.nodes[0].call(&["REPLICAOF", "127.0.0.1", &addresses[1].port().to_string()]);
    eventually("it is revoked", || (rolegate.log("verdict changed").len() > 1).then_some(()));
    // It is given a second to take them.
    let got = client.drain() as f64;
    assert!(got >= came - 100.0, "{got} of {came}");
    rolegate.wait_closed("revoked", 1.0);
    let mut again = authority.client(rolegate.address(), None).unwrap();
    assert_eq!(again.call(&["AUTH", PASSWORD]).unwrap().text(), "OK");
}

#[test]
fn a_tls_client_that_waits_is_served_or_told_why() {
    let authority = Authority::new();
    let (mut group, addresses) = group(&authority, 2);
    let identity = authority.sign(&["localhost"]);
    let base = with_listener_tls(
        &with_pool_tls(&config(&addresses, Some(PASSWORD)), &ca_key(&authority)),
        &identity_keys(&identity),
    );
    let hold =
        |time: &str| base.replace("hold: { timeout: 0s }", &format!("hold: {{ timeout: {time} }}"));
    let waits = Rolegate::start_ready(&hold("1m"));
    let in_vain = Rolegate::start_ready(&hold("300ms"));
    group.nodes[0].kill();
    waits.wait_failure("n0", "refused");
    in_vain.wait_failure("n0", "refused");
    // The handshake comes after the wait.
    let mut refused = authority.client(in_vain.address(), None).unwrap();
    let (replies, end) = refused.end();
    assert!(replies[0].text().starts_with("MASTERDOWN "), "{replies:?}");
    assert_eq!(end, ErrorKind::UnexpectedEof);
    let address = waits.address();
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut client = authority.client(address, None)?;
            client.call(&["AUTH", PASSWORD])
        });
        eventually("it waits", || {
            (waits.metric(r#"rolegate_listener_held{listener="redis"}"#) == 1.0).then_some(())
        });
        group.nodes[1].promote();
        assert_eq!(client.join().unwrap().unwrap().text(), "OK");
    });
}

#[test]
fn a_client_that_has_shaken_hands_may_wait_again() {
    // Its backend dies between the handshake and the connection, and it is moved to the next.
    let authority = Authority::new();
    let replica = Node::start(&[]);
    let master = Node::start(&[]);
    replica.follow(&master);
    let demoted = std::sync::Arc::default();
    let info = crate::support::info_master(&master.info("master_replid").unwrap());
    let old = Fake::once(std::sync::Arc::clone(&demoted), false, &info);
    let identity = authority.sign(&["localhost"]);
    let config = with_listener_tls(
        &config(&[old.address(), replica.address()], None),
        &identity_keys(&identity),
    )
    .replace("hold: { timeout: 0s }", "hold: { timeout: 1m }")
    .replace("interval: 100ms", "interval: 1h, fast_interval: 100ms")
    .replace("admin:", "    connect_timeout: 1m\nadmin:");
    let rolegate = Rolegate::start_ready(&config);
    demoted.store(true, std::sync::atomic::Ordering::Relaxed);
    let address = rolegate.address();
    let mut client = authority.client(address, None).unwrap();
    client.send(&["PING"]).unwrap();
    eventually("it waits", || {
        (rolegate.metric(r#"rolegate_listener_held{listener="redis"}"#) == 1.0).then_some(())
    });
    replica.promote();
    assert_eq!(client.read().unwrap().text(), "PONG");
    rolegate.wait_master("n1");
}

#[test]
fn a_crowd_of_tls_sessions_ends_with_the_last_byte() {
    let authority = Authority::new();
    let redis = Secured::usual(&authority);
    let identity = authority.sign(&["localhost"]);
    let config = with_listener_tls(
        &with_pool_tls(&config(&[redis.address], None), &ca_key(&authority)),
        &identity_keys(&identity),
    );
    let rolegate = Rolegate::start_ready(&config);
    let mut crowd: Vec<_> =
        (0..50).map(|_| authority.client(rolegate.address(), None).unwrap()).collect();
    for client in &mut crowd {
        client.send(&["INCR", "n"]).unwrap();
    }
    for client in &mut crowd {
        assert!(matches!(client.read().unwrap(), Reply::Int(_)));
    }
    drop(crowd);
    rolegate.wait_no_sessions();
    assert_eq!(redis.node.call(&["GET", "n"]).text(), "50");
}

/// The certificate that the listener shows.
fn shown(authority: &Authority, rolegate: &Rolegate) -> Vec<u8> {
    let socket = TcpStream::connect(rolegate.address()).unwrap();
    let client = authority.shake(socket, None).unwrap();
    client.conn.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn a_certificate_that_is_renewed_is_taken_over_and_sessions_go_on() {
    let authority = Authority::new();
    let node = Node::start(&[]);
    let identity = authority.sign(&["localhost"]);
    let config = with_listener_tls(&config(&[node.address()], None), &identity_keys(&identity));
    let rolegate = Rolegate::start_ready(&config);
    let mut client = authority.client(rolegate.address(), None).unwrap();
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
    let first = shown(&authority, &rolegate);
    // Half of it: the key of another certificate.
    let renewed = authority.sign(&["localhost"]);
    fs::copy(&renewed.key, &identity.key).unwrap();
    let line = rolegate.wait_log("cannot take over a file that the config names");
    assert!(line["errors"].as_str().unwrap().contains("tls.key does not fit"), "{line}");
    assert_eq!(shown(&authority, &rolegate), first);
    fs::copy(&renewed.certificate, &identity.certificate).unwrap();
    eventually("the new one is shown", || (shown(&authority, &rolegate) != first).then_some(()));
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
}

#[test]
fn a_reload_changes_tls_on_both_sides() {
    let authority = Authority::new();
    let (group, addresses) = group(&authority, 2);
    let base = config(&addresses, Some(PASSWORD));
    let with_ca = |authority: &Authority| with_pool_tls(&base, &ca_key(authority));
    let rolegate = Rolegate::start_ready(&with_ca(&authority));
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    // A CA that has signed none of them: nobody is let in, and the master stays.
    let stranger = Authority::new();
    assert!(rolegate.reload(&with_ca(&stranger)));
    assert_eq!(rolegate.changes(), ["pool main: changed tls"]);
    rolegate.wait_failure("n0", "tls_untrusted");
    rolegate.wait_failure("n1", "tls_untrusted");
    assert_eq!(rolegate.status()["pools"]["main"]["rule"], "fail_static");
    assert_eq!(client.call(&["SET", "k", "v"]).unwrap().text(), "OK");
    // New sessions are held to it, too.
    assert!(Client::login(rolegate.address(), PASSWORD).is_err());

    let identity = authority.sign(&["localhost"]);
    assert!(rolegate.reload(&with_listener_tls(&with_ca(&authority), &identity_keys(&identity))));
    eventually("checks pass again", || {
        (rolegate.status()["pools"]["main"]["rule"] == "incumbent").then_some(())
    });
    assert_eq!(client.call(&["GET", "k"]).unwrap().text(), "v");
    let mut secured = authority.client(rolegate.address(), None).unwrap();
    assert_eq!(secured.call(&["AUTH", PASSWORD]).unwrap().text(), "OK");
    // Both are supervised.
    group.nodes[1].promote();
    group.nodes[0].call(&["REPLICAOF", "127.0.0.1", &addresses[1].port().to_string()]);
    for mut client in [client, secured] {
        assert_eq!(client.end().1, ErrorKind::ConnectionReset);
    }
}

#[test]
fn an_idle_tls_session_costs_bounded_memory() {
    const CROWD: u16 = 200;
    let authority = Authority::new();
    let redis = Secured::usual(&authority);
    let identity = authority.sign(&["localhost"]);
    let config = with_listener_tls(
        &with_pool_tls(&config(&[redis.address], None), &ca_key(&authority)),
        &identity_keys(&identity),
    );
    let rolegate = Rolegate::start_ready(&config);
    let connect = |count: u16| -> Vec<_> {
        let client = |_| {
            let mut client = authority.client(rolegate.address(), None).unwrap();
            assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
            client
        };
        (0..count).map(client).collect()
    };
    let _warm = connect(20);
    let before = rolegate.memory();
    let _crowd = connect(CROWD);
    let grown = rolegate.memory().saturating_sub(before) / u64::from(CROWD);
    println!("an idle session with TLS on both sides: {grown} KiB");
    assert!(grown < 64, "{grown} KiB for each");
}
