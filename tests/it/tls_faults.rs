//! Where TLS is wrong on a side, or only one of the two speaks it.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::support::{
    Authority, Fake, Node, Reply, Rolegate, SOON, Secured, ca_key, config, eventually,
    identity_keys, with_listener_tls, with_pool_tls,
};

#[test]
fn every_fault_of_a_backend_has_its_reason() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let expired = Secured::start(&authority, &authority.sign_expired(&["127.0.0.1"]), "no");
    let other_name = Secured::start(&authority, &authority.sign(&["redis.internal"]), "no");
    let untrusted = Secured::start(&authority, &stranger.sign(&["127.0.0.1"]), "no");
    let wants_certificate = Secured::start(&authority, &authority.sign(&["127.0.0.1"]), "yes");
    let plain = Node::start(&[]);
    let chatty = Fake::start(|mut connection| {
        connection.send("-ERR this is no TLS\r\n")?;
        connection.drain()
    });
    let addresses = [
        expired.address,
        other_name.address,
        untrusted.address,
        wants_certificate.address,
        plain.address(),
        chatty.address(),
    ];
    let tls = format!("{}, {}", ca_key(&authority), identity_keys(&stranger.sign(&["us"])));
    let rolegate = Rolegate::start(&with_pool_tls(&config(&addresses, None), &tls));
    let reasons =
        ["tls_expired", "tls_name", "tls_untrusted", "tls_client_cert", "tls_plain", "tls_plain"];
    for (n, reason) in reasons.iter().enumerate() {
        let backend = format!("n{n}");
        rolegate.wait_failure(&backend, reason);
        let failures = format!(
            r#"rolegate_check_failures_total{{backend="{backend}",pool="main",reason="{reason}"}}"#
        );
        assert!(rolegate.metric(&failures) >= 1.0);
        let line = eventually("it is logged", || {
            let is_it = |l: &serde_json::Value| l["backend"] == backend && l["reason"] == *reason;
            rolegate.log("check failed").into_iter().find(is_it)
        });
        assert!(line["advice"].is_string(), "{line}");
    }
    // Without a certificate at all.
    let rolegate = Rolegate::start(&with_pool_tls(
        &config(&[wants_certificate.address], None),
        &ca_key(&authority),
    ));
    rolegate.wait_failure("n0", "tls_client_cert");
}

#[test]
fn a_plain_check_of_a_tls_port_says_so() {
    let authority = Authority::new();
    let redis = Secured::usual(&authority);
    Rolegate::start(&config(&[redis.address], None)).wait_failure("n0", "tls_wanted");
}

#[test]
fn a_hung_backend_is_no_plain_one() {
    let authority = Authority::new();
    let silent = Fake::start(|mut connection| connection.drain());
    let config = with_pool_tls(&config(&[silent.address()], None), &ca_key(&authority));
    Rolegate::start(&config).wait_failure("n0", "timeout");
}

#[test]
fn names_and_trust_are_as_configured() {
    let authority = Authority::new();
    let redis = Secured::start(&authority, &authority.sign(&["redis.internal"]), "no");
    let own = authority.self_signed("127.0.0.1");
    let alone = Secured::start(&authority, &own, "no");
    let ca = ca_key(&authority);
    let cases = [
        (redis.address, format!("{ca}, server_name: redis.internal")),
        (redis.address, "insecure: true".to_owned()),
        (alone.address, format!("ca: {}", own.certificate.display())),
    ];
    for (address, tls) in cases {
        let rolegate = Rolegate::start_ready(&with_pool_tls(&config(&[address], None), &tls));
        assert_eq!(rolegate.client().call(&["PING"]).unwrap().text(), "PONG");
        let warned = rolegate.log("certificates of backends are not verified").len();
        assert_eq!(warned, usize::from(tls.contains("insecure")));
    }
    // The certificate itself is trusted, for its own name alone.
    let tls = format!("ca: {}, server_name: redis.internal", own.certificate.display());
    let config = with_pool_tls(&config(&[alone.address], None), &tls);
    Rolegate::start(&config).wait_failure("n0", "tls_name");
}

#[test]
fn a_plain_client_on_a_tls_port_is_told() {
    let authority = Authority::new();
    let node = Node::start(&[]);
    let identity = authority.sign(&["localhost"]);
    let config = with_listener_tls(&config(&[node.address()], None), &identity_keys(&identity));
    let rolegate = Rolegate::start_ready(&config);
    for n in 1..=20 {
        let mut client = rolegate.client();
        client.send(&["SET", "k", "v"]).unwrap();
        let (replies, end) = client.end();
        assert!(replies[0].text().contains("this port speaks TLS"), "{replies:?}");
        assert_eq!(end, ErrorKind::UnexpectedEof);
        drop(client);
        rolegate.wait_closed("plain_on_tls", f64::from(n));
    }
    assert_eq!(node.call(&["EXISTS", "k"]), Reply::Int(0));
    let lines = rolegate.log("client is not understood");
    assert!(lines.len() < 10, "one a second: {lines:?}");
    assert_eq!((&lines[0]["reason"], &lines[0]["left_out"]), (&"plain_on_tls".into(), &0.into()));
    // One that only looks whether the port is open is no fault.
    drop(TcpStream::connect(rolegate.address()).unwrap());
    rolegate.wait_closed("client_closed", 1.0);
}

#[test]
fn a_tls_client_on_a_plain_port_is_noticed() {
    let authority = Authority::new();
    let redis = Secured::usual(&authority);
    let plain = Rolegate::start_ready(&config(&[redis.node.address()], None));
    let tls = with_pool_tls(&config(&[redis.address], None), &ca_key(&authority));
    let encrypting = Rolegate::start_ready(&tls);
    for rolegate in [plain, encrypting] {
        assert!(authority.client(rolegate.address(), None).is_err());
        rolegate.wait_closed("tls_on_plain", 1.0);
        let line = rolegate.wait_log("client is not understood");
        assert_eq!(line["reason"], "tls_on_plain");
        assert!(line["advice"].as_str().unwrap().contains("passthrough"));
        // The same bytes later in a session are data.
        let mut client = rolegate.client();
        assert_eq!(client.call(&["SET", "k", "v"]).unwrap().text(), "OK");
        client.send_raw(b"*2\r\n$4\r\nECHO\r\n$3\r\n").unwrap();
        client.send_raw(&[22, 3, 1, b'\r', b'\n']).unwrap();
        assert_eq!(client.read().unwrap(), Reply::Bulk(vec![22, 3, 1]));
    }
}

#[test]
fn clients_whose_handshake_fails_have_their_reasons() {
    let authority = Authority::new();
    let node = Node::start(&[]);
    let tls =
        format!("{}, handshake_timeout: 200ms", identity_keys(&authority.sign(&["localhost"])));
    let rolegate =
        Rolegate::start_ready(&with_listener_tls(&config(&[node.address()], None), &tls));
    // One that stops in the middle, and one that never begins.
    for (n, begins) in [&[22, 3, 1, 2, 0][..], &[]].into_iter().enumerate() {
        let since = Instant::now();
        let mut slow = TcpStream::connect(rolegate.address()).unwrap();
        slow.set_read_timeout(Some(SOON)).unwrap();
        slow.write_all(begins).unwrap();
        let _ = slow.read(&mut [0; 64]);
        assert!(since.elapsed() >= Duration::from_millis(150), "{:?}", since.elapsed());
        rolegate.wait_closed("tls_timeout", n as f64 + 1.0);
    }
    // One that trusts another CA.
    assert!(Authority::new().client(rolegate.address(), None).is_err());
    rolegate.wait_closed("tls_untrusted", 1.0);
    // One that begins well and goes on with nonsense.
    let mut broken = TcpStream::connect(rolegate.address()).unwrap();
    broken.write_all(&[22, 3, 1, 0, 4, 9, 9, 9, 9]).unwrap();
    rolegate.wait_closed("tls_failed", 1.0);
}
