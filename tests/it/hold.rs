//! Clients wait while no backend is served.

use std::{
    io::ErrorKind,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::support::{Client, Fake, Group, Node, PASSWORD, Reply, Rolegate, config, eventually};

const HELD: &str = r#"rolegate_listener_held{listener="redis"}"#;

fn with_hold(config: &str, hold: &str) -> String {
    config.replace("hold: { timeout: 0s }", &format!("hold: {{ {hold} }}"))
}

fn held(rolegate: &Rolegate, count: f64) {
    eventually(&format!("{count} clients wait"), || (rolegate.metric(HELD) == count).then_some(()));
}

fn closed(rolegate: &Rolegate, reason: &str) -> f64 {
    rolegate
        .metric(&format!(r#"rolegate_sessions_closed_total{{listener="redis",reason="{reason}"}}"#))
}

/// A master and its replica; the master is dead.
fn without_master(hold: &str) -> (Group, Rolegate) {
    let mut group = Group::start(2);
    let rolegate = Rolegate::start_ready(&with_hold(&group.config(), hold));
    group.nodes[0].kill();
    rolegate.wait_failure("n0", "refused");
    (group, rolegate)
}

#[test]
fn clients_wait_for_the_new_master_and_are_served() {
    let (group, rolegate) = without_master("timeout: 1m");
    let mut clients: Vec<_> = (0..20).map(|_| rolegate.client()).collect();
    for client in &mut clients {
        client.send(&["AUTH", PASSWORD]).unwrap();
        client.send(&["INCR", "n"]).unwrap();
    }
    held(&rolegate, 20.0);
    assert_eq!(rolegate.get("/ready"), (200, "ready\n".into()));
    assert_eq!(rolegate.status()["pools"]["main"]["verdict"], "refuse");
    group.nodes[1].promote();
    for client in &mut clients {
        assert_eq!(client.read().unwrap().text(), "OK");
        assert!(matches!(client.read().unwrap(), Reply::Int(_)));
    }
    assert_eq!(rolegate.metric(HELD), 0.0);
    assert_eq!(rolegate.metric(r#"rolegate_listener_held_total{listener="redis"}"#), 20.0);
    assert_eq!(group.nodes[1].call(&["GET", "n"]).text(), "20");
}

#[test]
fn who_came_first_is_served_first() {
    let (group, rolegate) = without_master("timeout: 1m");
    let mut clients = Vec::new();
    for n in 0..10_u8 {
        clients.push(rolegate.client());
        held(&rolegate, f64::from(n) + 1.0);
    }
    group.nodes[1].promote();
    rolegate.wait_master("n1");
    let mut ids = Vec::new();
    for client in &mut clients {
        client.call(&["AUTH", PASSWORD]).unwrap();
        let Reply::Int(id) = client.call(&["CLIENT", "ID"]).unwrap() else {
            panic!("no id");
        };
        ids.push(id);
    }
    // They are dealt out to the workers in turn, which then connect side by side.
    let workers = thread::available_parallelism().unwrap().get();
    for (first, second) in ids.iter().zip(ids.iter().skip(workers)) {
        assert!(first < second, "{ids:?} with {workers} workers");
    }
}

#[test]
fn who_waits_in_vain_is_told_why() {
    let (_group, rolegate) = without_master("timeout: 200ms");
    let since = Instant::now();
    let mut client = rolegate.client();
    // Unread input must not cost the client its answer.
    client.send(&["PING"]).unwrap();
    let (replies, end) = client.end();
    assert!(since.elapsed() >= Duration::from_millis(200));
    assert!(
        matches!(&replies[..], [Reply::Error(e)]
            if e == "MASTERDOWN rolegate serves no master of main: no backend is a proven master"),
        "{replies:?}"
    );
    assert_eq!(end, ErrorKind::UnexpectedEof);
    eventually("it is counted", || (closed(&rolegate, "hold_timeout") == 1.0).then_some(()));
    assert_eq!(rolegate.metric(r#"rolegate_listener_hold_timeouts_total{listener="redis"}"#), 1.0);
    eventually("not ready when the hold is over", || {
        (rolegate.get("/ready").0 == 503).then_some(())
    });
}

#[test]
fn without_error_reply_the_client_is_reset() {
    let (_group, rolegate) = without_master("timeout: 50ms, error_reply: false");
    let (replies, end) = rolegate.client().end();
    assert_eq!((replies, end), (vec![], ErrorKind::ConnectionReset));
}

#[test]
fn no_more_wait_than_may() {
    let (group, rolegate) = without_master("timeout: 1m, max: 3");
    let mut waiting: Vec<_> = (0..3).map(|_| rolegate.client()).collect();
    held(&rolegate, 3.0);
    let (replies, _) = rolegate.client().end();
    assert!(replies[0].text().starts_with("MASTERDOWN "), "{replies:?}");
    eventually("it is counted", || (closed(&rolegate, "hold_full") == 1.0).then_some(()));
    group.nodes[1].promote();
    for client in &mut waiting {
        assert_eq!(client.call(&["AUTH", PASSWORD]).unwrap().text(), "OK");
    }
}

#[test]
fn who_gives_up_leaves_the_queue() {
    let (group, rolegate) = without_master("timeout: 1m");
    let mut gone = rolegate.client();
    // What it has asked for must not be done when nobody is there to hear of it.
    gone.send(&["AUTH", PASSWORD]).unwrap();
    gone.send(&["SET", "gone", "1"]).unwrap();
    let mut stays = rolegate.client();
    held(&rolegate, 2.0);
    drop(gone);
    held(&rolegate, 1.0);
    eventually("it is counted", || (closed(&rolegate, "client_closed") == 1.0).then_some(()));
    group.nodes[1].promote();
    assert_eq!(stays.call(&["AUTH", PASSWORD]).unwrap().text(), "OK");
    assert_eq!(stays.call(&["EXISTS", "gone"]).unwrap(), Reply::Int(0));
}

#[test]
fn a_dry_run_only_counts() {
    let (_group, rolegate) = without_master("timeout: 1m, dry_run: true");
    assert_eq!(rolegate.get("/ready").0, 503);
    assert!(rolegate.client().end().0[0].text().starts_with("MASTERDOWN "));
    assert_eq!(rolegate.metric(r#"rolegate_listener_held_total{listener="redis"}"#), 1.0);
    eventually("it is refused", || (closed(&rolegate, "refused") == 1.0).then_some(()));
}

#[test]
fn a_new_process_is_not_ready_before_it_has_served() {
    let node = Node::start(&[]);
    let master = Node::start(&[]);
    node.follow(&master);
    let config = with_hold(&config(&[node.address()], None), "timeout: 1m");
    let rolegate = Rolegate::start(&config);
    rolegate.wait_log("verdict changed");
    assert_eq!(rolegate.get("/ready").0, 503);
    let mut early = rolegate.client();
    early.send(&["PING"]).unwrap();
    held(&rolegate, 1.0);
    node.promote();
    assert_eq!(early.read().unwrap().text(), "PONG");
}

#[test]
fn a_stop_ends_the_wait() {
    let (_group, mut rolegate) = without_master("timeout: 1m");
    let mut client = rolegate.client();
    held(&rolegate, 1.0);
    rolegate.signal(Signal::TERM);
    client.set_read_timeout(Duration::from_secs(5));
    assert!(matches!(client.end().1, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset));
    assert_eq!(rolegate.wait_exit(), Some(0));
}

#[test]
fn a_flapping_master_does_not_wind_up_the_wait_again() {
    // It refuses sessions, and its checks find a new process again and again.
    let node = Node::start(&[]);
    let fake = Fake::start({
        let address = node.address();
        move |connection| {
            drop(connection);
            let _ = Client::connect(address);
            Ok(())
        }
    });
    let config = with_hold(&config(&[fake.address()], None), "timeout: 300ms");
    let rolegate = Rolegate::start(&config);
    rolegate.wait_failure("n0", "cut");
    let since = Instant::now();
    assert!(rolegate.client().end().0[0].text().starts_with("MASTERDOWN "));
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

#[test]
fn a_client_that_meets_a_dead_master_is_moved_to_the_next() {
    // The crash is noticed by the client first: checks are an hour apart, and the check connection
    // outlives the listening socket.
    let replica = Node::start(&[]);
    let master = Node::start(&[]);
    replica.follow(&master);
    let demoted = std::sync::Arc::default();
    let info = crate::support::info_master(&master.info("master_replid").unwrap());
    let old = Fake::once(std::sync::Arc::clone(&demoted), false, &info);
    let config = with_hold(&config(&[old.address(), replica.address()], None), "timeout: 1m")
        .replace("interval: 100ms", "interval: 1h, fast_interval: 100ms")
        .replace("admin:", "    connect_timeout: 1m\nadmin:");
    let rolegate = Rolegate::start_ready(&config);
    eventually("checks are slow", || {
        let checks = r#"rolegate_check_duration_seconds_count{backend="n0",pool="main"}"#;
        (rolegate.metric(checks) >= 1.0).then_some(())
    });
    replica.promote();
    demoted.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut client = rolegate.client();
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
    rolegate.wait_master("n1");
    let hints = r#"rolegate_pool_hints_total{hint="connect_failed",pool="main"}"#;
    assert!(rolegate.metric(hints) >= 1.0);
}

#[test]
fn a_write_refused_as_readonly_is_noticed_at_once() {
    let group = Group::start(2);
    let config = with_hold(&group.config(), "timeout: 1m")
        .replace("interval: 100ms", "interval: 1h, fast_interval: 100ms, fast_for: 0s");
    let rolegate = Rolegate::start_ready(&config);
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    // Silent for all but the one who writes: no connection is closed.
    group.nodes[0].call(&["REPLICAOF", "127.0.0.1", &group.nodes[1].port().to_string()]);
    group.nodes[1].promote();
    assert!(client.call(&["SET", "k", "v"]).unwrap().text().starts_with("READONLY "));
    rolegate.wait_master("n1");
    let hints = r#"rolegate_pool_hints_total{hint="readonly",pool="main"}"#;
    assert!(rolegate.metric(hints) >= 1.0);
}

#[test]
fn an_idle_crowd_that_waits_costs_little_but_its_sockets() {
    let (_group, rolegate) = without_master("timeout: 1h, max: 2000");
    let warm: Vec<_> = (0..20).map(|_| rolegate.client()).collect();
    held(&rolegate, 20.0);
    let before = rolegate.memory();
    let crowd: Vec<_> = (0..1000).map(|_| rolegate.client()).collect();
    held(&rolegate, 1020.0);
    let grown = rolegate.memory().saturating_sub(before);
    assert!(grown < 1024, "{grown} KiB for 1000 clients");
    println!("1,000 clients that wait: {grown} KiB");
    drop((warm, crowd));
    held(&rolegate, 0.0);
}

#[test]
fn a_crowd_that_waited_is_served_to_the_last_client() {
    // More than the 511 that Redis lets wait for its accept.
    const CROWD: usize = 1000;
    let (group, rolegate) = without_master("timeout: 1m");
    let mut crowd: Vec<_> = (0..CROWD).map(|_| rolegate.client()).collect();
    for client in &mut crowd {
        client.send(&["AUTH", PASSWORD]).unwrap();
    }
    held(&rolegate, 1000.0);
    group.nodes[1].promote();
    for client in &mut crowd {
        assert_eq!(client.read().unwrap().text(), "OK");
    }
}
