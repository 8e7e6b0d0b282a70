//! Every answer to a check has its name; only silence waits.

use std::{
    net::SocketAddr,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::support::{Fake, INFO_MASTER, Node, PASSWORD, Rolegate, config, eventually, free_port};

pub fn in_front_of(address: SocketAddr, password: Option<&str>) -> Rolegate {
    Rolegate::start(&config(&[address], password))
}

/// Checks completed so far.
pub fn checks(rolegate: &Rolegate) -> f64 {
    rolegate.checks("n0")
}

#[test]
fn a_missing_or_wrong_password() {
    let node = Node::start_with_password(&[]);
    in_front_of(node.address(), None).wait_failure("n0", "noauth");
    let rolegate = in_front_of(node.address(), Some("hunter2-wrong"));
    let backend = rolegate.wait_failure("n0", "wrongpass");
    assert!(backend["error"]["advice"].as_str().unwrap().contains("password"));
    let failures = r#"rolegate_check_failures_total{backend="n0",pool="main",reason="wrongpass"}"#;
    eventually("failures are counted, and logged once", || {
        (rolegate.metric(failures) > 3.0).then_some(())
    });
    assert_eq!(rolegate.log("check failed").len(), 1);

    let open = Node::start(&[]);
    in_front_of(open.address(), Some(PASSWORD)).wait_failure("n0", "auth_not_set");
}

#[test]
fn a_password_is_never_shown() {
    let node = Node::start(&[]);
    // A server on which AUTH has another name repeats the arguments of the unknown command.
    let renamed = Node::start(&["rename-command AUTH LOGIN"]);
    for address in [node.address(), renamed.address()] {
        let rolegate = in_front_of(address, Some("hunter2-secret"));
        eventually("checks fail", || {
            rolegate.status()["pools"]["main"]["backends"]["n0"]["error"]["reason"]
                .is_string()
                .then_some(())
        });
        for shown in [rolegate.output(), rolegate.get("/status").1, rolegate.get("/metrics").1] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}

#[test]
fn an_acl_user_needs_ping_and_info_only() {
    let user = |rules: &str| Node::start(&[&format!("user check on >{PASSWORD} -@all {rules}")]);
    let config = |node: &Node| {
        config(&[node.address()], Some(PASSWORD)).replace("auth: {", "auth: { username: check,")
    };
    let node = user("+ping +info");
    Rolegate::start_ready(&config(&node));
    for rules in ["+ping", "+info"] {
        let node = user(rules);
        Rolegate::start(&config(&node)).wait_failure("n0", "noperm");
    }
}

#[test]
fn a_replica_without_its_master_that_serves_no_stale_data() {
    let mut master = Node::start(&[]);
    let replica = Node::start(&["replica-serve-stale-data no"]);
    replica.follow(&master);
    let rolegate = in_front_of(replica.address(), None);
    eventually("it is a replica", || {
        let role = r#"rolegate_backend_role{backend="n0",pool="main",role="replica"}"#;
        (rolegate.metric(role) == 1.0).then_some(())
    });
    assert_eq!(rolegate.metric(r#"rolegate_backend_up{backend="n0",pool="main"}"#), 1.0);
    master.kill();
    rolegate.wait_failure("n0", "masterdown");
}

#[test]
fn nothing_there_a_sentinel_and_a_silent_host() {
    let nothing: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    in_front_of(nothing, None).wait_failure("n0", "refused");

    let silent = Fake::start(|mut connection| connection.drain());
    in_front_of(silent.address(), None).wait_failure("n0", "timeout");

    let sentinel = Fake::start(|mut connection| {
        loop {
            let command = connection.command()?;
            connection.answer_check(&command, "")?;
        }
    });
    in_front_of(sentinel.address(), None).wait_failure("n0", "no_role");

    let config =
        config(&[], None).replace("backends: {  }", "backends: { n0: 'no.such.host.invalid:1' }");
    Rolegate::start(&config).wait_failure("n0", "unresolved");
}

#[test]
fn a_name_is_resolved() {
    let node = Node::start(&[]);
    let config = config(&[node.address()], None).replace("127.0.0.1:", "localhost:");
    let config = config.replace("bind: localhost", "bind: 127.0.0.1");
    assert_eq!(Rolegate::start_ready(&config).client().call(&["PING"]).unwrap().text(), "PONG");
}

#[test]
fn a_long_script_is_not_a_failure() {
    let node = Node::start(&["busy-reply-threshold 50"]);
    let rolegate = Rolegate::start_ready(&config(&[node.address()], None));
    let mut session = rolegate.client();
    session.call(&["PING"]).unwrap();
    let mut script = node.client();
    script.send(&["EVAL", "while true do end", "0"]).unwrap();
    let mut control = node.client();
    eventually("the server is busy", || {
        control.call(&["PING"]).unwrap().text().starts_with("BUSY").then_some(())
    });
    let before = checks(&rolegate);
    eventually("many checks meet the script", || (checks(&rolegate) > before + 30.0).then_some(()));
    assert_eq!(rolegate.get("/ready").0, 200);

    // A connection that has proven nothing yet learns nothing from a busy server.
    in_front_of(node.address(), None).wait_failure("n0", "busy");

    control.call(&["SCRIPT", "KILL"]).unwrap();
    script.read().unwrap();
    assert_eq!(session.call(&["PING"]).unwrap().text(), "PONG");
    assert_eq!(rolegate.status()["pools"]["main"]["epoch"], 1);
}

#[test]
fn a_cut_check_connection_is_noticed_at_once_and_means_check_again() {
    let node = Node::start(&[]);
    let config =
        config(&[node.address()], None).replace("interval: 100ms", "interval: 1h, fast_for: 0s");
    let rolegate = Rolegate::start_ready(&config);
    for _ in 0..5 {
        let before = rolegate.wait_idle("n0");
        node.call(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        eventually("the check is made again", || (rolegate.checks("n0") > before).then_some(()));
    }
    let status = rolegate.status();
    assert_eq!(status["pools"]["main"]["epoch"], 1);
    assert_eq!(status["pools"]["main"]["backends"]["n0"]["error"], serde_json::Value::Null);
    assert!(rolegate.log("check failed").is_empty());
}

#[test]
fn a_role_is_seen_within_the_interval_over_one_kept_connection() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let fake = Fake::start(move |mut connection| {
        count.fetch_add(1, Ordering::Relaxed);
        loop {
            let command = connection.command()?;
            connection.answer_check(&command, INFO_MASTER)?;
        }
    });
    let rolegate = Rolegate::start_ready(&config(&[fake.address()], None));
    eventually("ten checks", || (checks(&rolegate) >= 10.0).then_some(()));
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[test]
fn a_role_that_changed_just_before_a_script_is_seen() {
    let node = Node::start(&["busy-reply-threshold 50"]);
    let config = config(&[node.address()], None).replace("interval: 100ms", "interval: 2s");
    let rolegate = Rolegate::start_ready(&config);
    let mut script = node.client();
    script.send(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    script.send(&["EVAL", "while true do end", "0"]).unwrap();
    rolegate.wait_failure("n0", "busy");
    node.call(&["SCRIPT", "KILL"]);
}

#[test]
fn a_script_that_outlasts_the_silence_allowed_is_down_and_then_back() {
    // As shipped, Redis says nothing for 5 s before it says -BUSY.
    let node = Node::start(&["busy-reply-threshold 2000"]);
    let rolegate = Rolegate::start_ready(&config(&[node.address()], None));
    let mut script = node.client();
    script.send(&["EVAL", "while true do end", "0"]).unwrap();
    assert_eq!(rolegate.wait_log("backend is down")["reason"], "timeout");
    rolegate.wait_failure("n0", "busy");
    node.call(&["SCRIPT", "KILL"]);
    rolegate.wait_ready();
}
