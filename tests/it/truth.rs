//! Several nodes say that they are the master, and rolegate knows which of them is right.

use std::{fs, io::ErrorKind, path::Path};

use tempfile::TempDir;

use crate::support::{Client, Group, Node, PASSWORD, Rolegate, config, eventually};

fn pool(rolegate: &Rolegate) -> serde_json::Value {
    rolegate.status()["pools"]["main"].take()
}

fn wait_rule(rolegate: &Rolegate, rule: &str) {
    eventually(&format!("the rule {rule} decides"), || {
        (pool(rolegate)["rule"] == rule).then_some(())
    });
}

fn conflict(rolegate: &Rolegate) {
    eventually("two say that they are the master", || {
        (rolegate.metric(r#"rolegate_pool_conflict{pool="main"}"#) == 1.0).then_some(())
    });
}

/// Where a new connection's write arrives.
fn written_to(rolegate: &Rolegate, group: &Group) -> Option<usize> {
    let mut client = Client::login(rolegate.address(), PASSWORD).ok()?;
    let mark = format!("{:?}", std::time::Instant::now());
    client.call(&["SET", "where", &mark]).ok()?;
    group.nodes.iter().position(|n| n.call(&["GET", "where"]).text() == mark)
}

fn policy(group: &Group, policy: &str) -> String {
    group.config().replace("admin:", &format!("    on_unexplained_heir: {policy}\nadmin:"))
}

#[test]
fn of_two_nodes_the_heir_wins_at_once_and_the_old_master_stays_out() {
    let group = Group::start(2);
    let rolegate = Rolegate::start_ready(&group.config());
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    group.nodes[1].promote();
    rolegate.wait_master("n1");
    assert_eq!(client.end().1, ErrorKind::ConnectionReset);
    conflict(&rolegate);
    assert_eq!(written_to(&rolegate, &group), Some(1));
    wait_rule(&rolegate, "incumbent");
    let status = pool(&rolegate);
    assert_eq!(status["chosen"]["rule"], "heir");
    let evidence = status["backends"]["n0"]["evidence"].as_str().unwrap();
    assert!(evidence.contains("not the master any more, as n1 went on from it"), "{evidence}");
    assert_eq!(rolegate.metric(r#"rolegate_pool_lineage_refusals_total{pool="main"}"#), 1.0);
    assert!(
        rolegate.metric(r#"rolegate_pool_failover_duration_seconds_count{pool="main"}"#) == 1.0
    );
}

#[test]
fn a_detached_replica_is_doubted_for_a_while_and_then_left_alone() {
    let group = Group::start(3);
    let rolegate = Rolegate::start_ready(&group.config());
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    group.nodes[2].promote();
    let doubt = r#"rolegate_pool_verdict{pool="main",reason="unexplained_heir",verdict="hold"}"#;
    eventually("in doubt", || (rolegate.metric(doubt) == 1.0).then_some(()));
    assert_eq!(client.end().1, ErrorKind::ConnectionReset);
    wait_rule(&rolegate, "kept");
    assert_eq!(pool(&rolegate)["master"], "n0");
    assert_eq!(written_to(&rolegate, &group), Some(0));
    assert_eq!(rolegate.metric(r#"rolegate_pool_master_changes_total{pool="main"}"#), 0.0);
    group.nodes[2].follow(&group.nodes[0]);
    wait_rule(&rolegate, "incumbent");
    assert_eq!(pool(&rolegate)["epoch"], 3);
}

#[test]
fn when_the_followers_move_the_heir_is_served() {
    let group = Group::start(3);
    let rolegate = Rolegate::start_ready(&group.config());
    group.nodes[1].promote();
    group.nodes[2].follow(&group.nodes[1]);
    rolegate.wait_master("n1");
    // The old master never noticed.
    conflict(&rolegate);
    assert_eq!(written_to(&rolegate, &group), Some(1));
}

#[test]
fn with_keep_a_detached_replica_costs_nothing() {
    let group = Group::start(3);
    let rolegate = Rolegate::start_ready(&policy(&group, "keep"));
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    group.nodes[2].promote();
    wait_rule(&rolegate, "kept");
    assert_eq!(client.call(&["PING"]).unwrap().text(), "PONG");
    assert_eq!(pool(&rolegate)["epoch"], 1);
}

#[test]
fn with_follow_the_heir_is_served_at_once() {
    let group = Group::start(3);
    let rolegate = Rolegate::start_ready(&policy(&group, "follow"));
    group.nodes[2].promote();
    rolegate.wait_master("n2");
    assert_eq!(written_to(&rolegate, &group), Some(2));
}

#[test]
fn siblings_are_refused_until_one_gives_way() {
    let group = Group::start(3);
    let rolegate = Rolegate::start_ready(&group.config());
    let nodes = &group.nodes;
    // The first checks of the two must not come between the promotions.
    rolegate.freeze();
    nodes[1].promote();
    nodes[2].promote();
    rolegate.thaw();
    wait_rule(&rolegate, "conflict");
    assert_eq!(pool(&rolegate)["verdict"], "refuse");
    let (code, reason) = rolegate.get("/ready");
    assert_eq!(code, 503);
    assert!(reason.contains("nothing tells them apart: n1, n2"), "{reason}");
    nodes[2].follow(&nodes[1]);
    rolegate.wait_master("n1");
}

#[test]
fn a_restarted_master_whose_replicas_wait_for_it_is_served() {
    let mut group = Group::start(3);
    let rolegate = Rolegate::start_ready(&group.config());
    group.nodes[0].kill();
    rolegate.wait_failure("n0", "refused");
    group.nodes[0].restart();
    rolegate.wait_master("n0");
    assert_eq!(pool(&rolegate)["chosen"]["rule"], "restarted");
}

#[test]
fn a_restarted_master_alone_is_refused() {
    let mut group = Group::start(3);
    let rolegate = Rolegate::start_ready(&group.config());
    for node in &mut group.nodes {
        node.kill();
    }
    rolegate.wait_failure("n2", "refused");
    group.nodes[0].restart();
    wait_rule(&rolegate, "gone");
    let status = pool(&rolegate);
    assert_eq!(status["verdict"], "refuse");
    assert!(status["advice"].as_str().unwrap().contains("out of sight"), "{status}");
    // The replicas forgot nothing that they are told of.
    group.nodes[1].restart();
    group.nodes[1].follow(&group.nodes[0]);
    rolegate.wait_master("n0");
}

#[test]
fn a_frozen_master_that_wakes_goes_on_if_nobody_took_its_place() {
    let group = Group::start(3);
    let rolegate = Rolegate::start_ready(&group.config());
    group.nodes[0].freeze();
    rolegate.wait_failure("n0", "timeout");
    group.nodes[0].thaw();
    rolegate.wait_master("n0");
    assert_eq!(pool(&rolegate)["chosen"]["rule"], "returned");
    assert_eq!(rolegate.metric(r#"rolegate_pool_master_changes_total{pool="main"}"#), 0.0);
}

#[test]
fn a_cut_check_connection_does_not_make_the_master_doubtful() {
    let group = Group::start(2);
    let config = group.config().replace("interval: 100ms", "interval: 1h, fast_for: 0s");
    let rolegate = Rolegate::start_ready(&config);
    rolegate.wait_idle("n0");
    group.nodes[0].call(&["CLIENT", "KILL", "TYPE", "normal"]);
    eventually("the cut was noticed", || {
        let hints = r#"rolegate_pool_hints_total{hint="check_cut",pool="main"}"#;
        (rolegate.metric(hints) >= 1.0).then_some(())
    });
    wait_rule(&rolegate, "incumbent");
    assert_eq!(pool(&rolegate)["epoch"], 1);
}

/// A pool of two unrelated masters, of which `n1` was served by the rolegate that wrote the state.
fn remembered(folder: &Path) -> (Vec<Node>, String) {
    let nodes = vec![Node::start(&[]), Node::start(&[])];
    let both = config(&[nodes[0].address(), nodes[1].address()], None);
    let config = format!("{both}state_dir: '{}'\n", folder.display());
    nodes[0].follow(&nodes[1]);
    let rolegate = Rolegate::start_ready(&config);
    rolegate.wait_master("n1");
    eventually("the state is saved", || {
        let state = fs::read_to_string(folder.join("pool-main.json")).ok()?;
        state.contains(&nodes[1].info("run_id")?).then_some(())
    });
    drop(rolegate);
    // A new data set, and a new lineage with it.
    let other = Node::start(&[]);
    nodes[0].follow(&other);
    nodes[0].promote();
    (nodes, config)
}

#[test]
fn what_was_served_is_remembered_over_a_restart() {
    let folder = TempDir::new().unwrap();
    let (_nodes, config) = remembered(folder.path());
    // Without the memory nothing tells the two apart.
    let cold = Rolegate::start(&config.replace("state_dir", "# state_dir"));
    wait_rule(&cold, "conflict");
    let rolegate = Rolegate::start(&config);
    eventually("the memory is used", || {
        rolegate.log("remembers the last master").pop().map(|line| {
            assert_eq!(line["backend"], "n1");
        })
    });
    wait_rule(&rolegate, "conflict");
}

#[test]
fn a_useless_state_file_is_reported_and_replaced() {
    for damage in ["", "{", "{\"version\":1}", "\u{0}\u{1}garbage"] {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("pool-main.json");
        fs::write(&file, damage).unwrap();
        let node = Node::start(&[]);
        let config = config(&[node.address()], None);
        let config = format!("{config}state_dir: '{}'\n", folder.path().display());
        let rolegate = Rolegate::start_ready(&config);
        rolegate.wait_log("cannot use the state file");
        eventually("a new one is written", || {
            fs::read_to_string(&file).ok()?.contains("\"backend\": \"n0\"").then_some(())
        });
    }
}

#[test]
fn a_state_dir_that_cannot_be_written_stops_nothing() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("a file");
    fs::write(&file, "").unwrap();
    let node = Node::start(&[]);
    let config = config(&[node.address()], None);
    let rolegate = Rolegate::start_ready(&format!("{config}state_dir: '{}'\n", file.display()));
    rolegate.wait_log("cannot save state");
    assert_eq!(rolegate.client().call(&["PING"]).unwrap().text(), "PONG");
    fs::remove_file(&file).unwrap();
    rolegate.wait_log("saves state again");
    assert!(file.join("pool-main.json").is_file());
}

#[test]
fn a_proxy_that_starts_in_the_middle_of_a_conflict_chooses_as_the_one_that_saw_it() {
    let group = Group::start(3);
    let saw = Rolegate::start_ready(&group.config());
    group.nodes[0].freeze();
    saw.wait_failure("n0", "timeout");
    group.nodes[1].promote();
    group.nodes[2].follow(&group.nodes[1]);
    group.nodes[0].thaw();
    conflict(&saw);
    let late = Rolegate::start_ready(&group.config());
    for rolegate in [&saw, &late] {
        assert_eq!(pool(rolegate)["master"], "n1");
        assert_eq!(written_to(rolegate, &group), Some(1));
    }
}

#[test]
fn a_cold_start_with_most_backends_out_of_sight_is_refused() {
    let mut group = Group::start(3);
    group.nodes[1].kill();
    group.nodes[2].kill();
    let rolegate = Rolegate::start(&group.config());
    wait_rule(&rolegate, "minority");
    group.nodes[1].restart();
    group.nodes[1].follow(&group.nodes[0]);
    rolegate.wait_master("n0");
}

#[test]
fn checks_are_fast_while_in_doubt_and_slow_in_peace() {
    let mut group = Group::start(2);
    let config = group.config().replace("interval: 100ms", "interval: 1h, fast_for: 2s");
    let rolegate = Rolegate::start_ready(&config);
    let before = rolegate.wait_idle("n1");
    // The cut connection is noticed at once, and then the other node is watched closely.
    group.nodes[0].kill();
    eventually("many checks", || (rolegate.checks("n1") > before + 20.0).then_some(()));
    // A doubt that brings nothing new ends.
    rolegate.wait_idle("n1");
}

#[test]
fn what_clients_sent_while_rolegate_itself_stood_still_does_not_reach_the_old_master() {
    let group = Group::start(2);
    let config = group.config().replace("timeout: 500ms", "timeout: 200ms");
    let rolegate = Rolegate::start_ready(&config);
    let mut clients: Vec<_> =
        (0..20).map(|_| Client::login(rolegate.address(), PASSWORD).unwrap()).collect();
    rolegate.freeze();
    group.nodes[1].promote();
    for client in &mut clients {
        client.send(&["INCR", "late"]).unwrap();
    }
    // As a machine that is paused: longer than checks may be old, 1 s here.
    std::thread::park_timeout(std::time::Duration::from_millis(1500));
    rolegate.thaw();
    for client in &mut clients {
        assert!(matches!(client.end().1, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof));
    }
    rolegate.wait_master("n1");
    assert_eq!(group.nodes[0].call(&["GET", "late"]).text(), "(nil)");
}
