//! Connections that wait for clients.

use crate::support::{Client, Group, Node, PASSWORD, Reply, Rolegate, config, eventually};

fn ready(rolegate: &Rolegate) -> f64 {
    rolegate.metric(r#"rolegate_pool_preconnected{pool="main"}"#)
}

fn wait_ready(rolegate: &Rolegate, count: f64) {
    eventually("connections wait", || (ready(rolegate) == count).then_some(()));
}

/// The configuration with so many of them for the pool.
fn with_preconnect(config: &str, count: usize) -> String {
    config.replace("pools:\n  main:\n", &format!("pools:\n  main:\n    preconnect: {count}\n"))
}

/// The node's connections that have never said a word, by their ids.
fn unused(node: &Node) -> Vec<i64> {
    let list = node.call(&["CLIENT", "LIST"]).text();
    let unused = list.lines().filter(|line| line.contains(" cmd=NULL "));
    unused.filter_map(|line| line.strip_prefix("id=")?.split(' ').next()?.parse().ok()).collect()
}

fn id(client: &mut Client) -> i64 {
    let Reply::Int(id) = client.call(&["CLIENT", "ID"]).unwrap() else { panic!("no id") };
    id
}

#[test]
fn a_new_client_gets_a_connection_that_waited() {
    let node = Node::start(&[]);
    let config = with_preconnect(&config(&[node.address()], None), 5);
    // Three for one worker, two for the other.
    let rolegate = Rolegate::start_ready(&format!("{config}workers: 2\n"));
    wait_ready(&rolegate, 5.0);
    let mut clients = Vec::new();
    for _ in 0..20 {
        let waiting = eventually("five wait", || Some(unused(&node)).filter(|ids| ids.len() == 5));
        let mut client = rolegate.client();
        assert!(waiting.contains(&id(&mut client)), "a connection that was there before");
        wait_ready(&rolegate, 5.0);
        clients.push(client);
    }
    assert_eq!(rolegate.metric(r#"rolegate_listener_sessions{listener="redis"}"#), 20.0);
    drop(clients);
    rolegate.wait_no_sessions();
}

#[test]
fn nobody_gets_a_connection_to_the_old_master() {
    let group = Group::start(2);
    let config = with_preconnect(&group.config(), 4);
    let rolegate = Rolegate::start_ready(&config);
    wait_ready(&rolegate, 4.0);
    let [old, new] = &group.nodes[..] else { unreachable!() };
    assert_eq!(unused(old).len(), 4);
    new.promote();
    old.follow(new);
    rolegate.wait_master("n1");
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    assert_eq!(client.call(&["SET", "k", "v"]).unwrap().text(), "OK");
    assert_eq!(new.call(&["GET", "k"]).text(), "v");
    eventually("all have moved", || {
        (unused(old).is_empty() && unused(new).len() == 4).then_some(())
    });
}

#[test]
fn a_connection_that_redis_has_closed_is_not_used() {
    let node = Node::start(&["timeout 1"]);
    let config = with_preconnect(&config(&[node.address()], None), 4);
    let rolegate = Rolegate::start_ready(&format!("{config}workers: 1\n"));
    wait_ready(&rolegate, 4.0);
    eventually("redis has closed them all", || unused(&node).is_empty().then_some(()));
    assert_eq!(rolegate.client().call(&["PING"]).unwrap().text(), "PONG");
    // And the shelf has new ones.
    eventually("others wait", || (!unused(&node).is_empty()).then_some(()));
}

#[test]
fn a_master_that_is_full_is_not_asked_again_and_again() {
    let node = Node::start(&["maxclients 10"]);
    let mut asking = node.client();
    let mut rejected = || {
        let stats = asking.call(&["INFO", "stats"]).unwrap().text();
        let count = |line: &str| line.strip_prefix("rejected_connections:")?.parse().ok();
        stats.lines().find_map(count).unwrap()
    };
    let config = with_preconnect(&config(&[node.address()], None), 50);
    let rolegate = Rolegate::start_ready(&format!("{config}workers: 1\n"));
    eventually("the node is full", || (rejected() > 0).then_some(()));
    eventually("what was rejected does not wait", || (ready(&rolegate) <= 10.0).then_some(()));
    let before: i64 = rejected();
    for _ in 0..20 {
        let _ = rolegate.client().call(&["PING"]);
    }
    // One each of those clients who find no room, and one more filling of the shelf.
    let more = rejected() - before;
    assert!(more <= 20 + 50, "{more}");
}

#[test]
fn a_master_that_is_lost_takes_the_waiting_connections_with_it() {
    let mut node = Node::start(&[]);
    let config = with_preconnect(&config(&[node.address()], None), 4);
    let rolegate = Rolegate::start_ready(&config);
    wait_ready(&rolegate, 4.0);
    node.kill();
    wait_ready(&rolegate, 0.0);
    let refused = Client::connect(rolegate.address()).and_then(|mut client| client.call(&["PING"]));
    assert!(refused.is_err() || refused.unwrap().text().starts_with("MASTERDOWN"));
    node.restart_only();
    wait_ready(&rolegate, 4.0);
    assert_eq!(rolegate.client().call(&["PING"]).unwrap().text(), "PONG");
}
