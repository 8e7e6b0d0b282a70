//! Metrics, health and status over HTTP.

use std::{
    fs,
    io::{Read, Write},
    process::Command,
};

use tempfile::TempDir;

use crate::support::{Group, Node, Rolegate, config, eventually, free_port, write_config};

#[test]
fn every_promised_series_is_there() {
    let group = Group::start(2);
    let rolegate = Rolegate::start_ready(&group.config());
    let mut client = rolegate.client();
    client.call(&["PING"]).unwrap();
    // From the check on that follows the first verdict.
    let incumbent = r#"rolegate_pool_verdict{pool="main",reason="incumbent",verdict="serve"}"#;
    eventually("one more check", || (rolegate.metric(incumbent) == 1.0).then_some(()));
    let series = [
        (r#"rolegate_backend_up{backend="n0",pool="main"}"#, 1.0),
        (r#"rolegate_backend_role{backend="n0",pool="main",role="master"}"#, 1.0),
        (r#"rolegate_backend_role{backend="n0",pool="main",role="replica"}"#, 0.0),
        (r#"rolegate_backend_role{backend="n1",pool="main",role="replica"}"#, 1.0),
        (r#"rolegate_pool_master{backend="n0",pool="main"}"#, 1.0),
        (r#"rolegate_pool_master{backend="n1",pool="main"}"#, 0.0),
        (r#"rolegate_pool_master_changes_total{pool="main"}"#, 0.0),
        (r#"rolegate_pool_conflict{pool="main"}"#, 0.0),
        (r#"rolegate_pool_verdict{pool="main",reason="incumbent",verdict="serve"}"#, 1.0),
        (r#"rolegate_pool_verdict{pool="main",reason="only_master",verdict="serve"}"#, 0.0),
        (r#"rolegate_pool_verdict{pool="main",reason="unexplained_heir",verdict="hold"}"#, 0.0),
        (r#"rolegate_pool_conflict_seconds_total{pool="main"}"#, 0.0),
        (r#"rolegate_pool_lineage_refusals_total{pool="main"}"#, 0.0),
        (r#"rolegate_pool_hints_total{hint="check_cut",pool="main"}"#, 0.0),
        (r#"rolegate_pool_failover_duration_seconds_count{pool="main"}"#, 0.0),
        (r#"rolegate_listener_held{listener="redis"}"#, 0.0),
        (r#"rolegate_listener_held_total{listener="redis"}"#, 0.0),
        (r#"rolegate_listener_hold_timeouts_total{listener="redis"}"#, 0.0),
        (r#"rolegate_check_failures_total{backend="n0",pool="main",reason="timeout"}"#, 0.0),
        (r#"rolegate_listener_sessions{listener="redis"}"#, 1.0),
        (r#"rolegate_listener_sessions_total{listener="redis"}"#, 1.0),
        (r#"rolegate_listener_bytes_total{direction="in",listener="redis"}"#, 14.0),
        (r#"rolegate_sessions_closed_total{listener="redis",reason="revoked"}"#, 0.0),
        (r#"rolegate_connect_failures_total{backend="n0",pool="main"}"#, 0.0),
        (r#"rolegate_accept_errors_total{listener="redis"}"#, 0.0),
    ];
    let text = rolegate.get("/metrics").1;
    for (name, value) in series {
        assert!(text.contains(&format!("{name} {value}\n")), "{name} {value}\n{text}");
    }
    for name in [
        "rolegate_pool_without_master_seconds_total{",
        "rolegate_build_info{version=",
        "rolegate_check_duration_seconds_bucket{",
    ] {
        assert!(text.contains(name), "{name}");
    }
    let (_, response) = rolegate.request("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(response.to_lowercase().contains("content-type: text/plain; version=0.0.4"));
}

#[test]
fn status_tells_what_is_known_of_each_backend() {
    let group = Group::start(2);
    let rolegate = Rolegate::start_ready(&group.config());
    let mut client = rolegate.client();
    client.call(&["PING"]).unwrap();
    let status = rolegate.status();
    let pool = &status["pools"]["main"];
    assert_eq!((&pool["verdict"], &pool["master"]), (&"serve".into(), &"n0".into()));
    assert!(pool["age_seconds"].is_number() && pool["reason"].is_string());
    let master = &pool["backends"]["n0"];
    assert_eq!(master["role"], "master");
    assert_eq!(master["replid"], group.nodes[0].info("master_replid").unwrap());
    assert_eq!(master["run_id"], group.nodes[0].info("run_id").unwrap());
    assert!(master["last_check"]["latency_ms"].is_number());
    assert_eq!(pool["backends"]["n1"]["link_up"], true);
    assert_eq!(status["listeners"]["redis"]["sessions"], 1);
}

/// A configuration whose only backend is not there.
fn nobody() -> String {
    config(&["127.0.0.1:1".parse().unwrap()], None)
}

#[test]
fn unknown_paths_wrong_methods_and_head() {
    let rolegate = Rolegate::start(&nobody());
    assert_eq!(rolegate.get("/live").0, 200);
    assert_eq!(rolegate.get("/ready").0, 503);
    assert_eq!(rolegate.get("/nothing").0, 404);
    let (code, response) = rolegate.request("POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(code, 405);
    assert!(response.to_lowercase().contains("allow: get, head"), "{response}");
    let (code, response) = rolegate.request("HEAD /live HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(code == 200 && response.ends_with("\r\n\r\n"), "{response}");
}

#[test]
fn oversized_broken_and_slow_requests_are_cut() {
    let rolegate = Rolegate::start(&nobody());
    let long = format!("GET /live HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert!(matches!(rolegate.request(&long).0, 0 | 431), "{}", rolegate.request(&long).0);
    assert_eq!(rolegate.request("\0\u{1}\r\n\r\n").0, 400);
    assert_eq!(rolegate.request("PING\r\n\r\n").0, 400);

    // More clients that say nothing than may talk at once: they delay the others, not for ever.
    let mut slow: Vec<_> = (0..80).map(|_| rolegate.admin_stream()).collect();
    slow[0].write_all(b"GET /live HT").unwrap();
    assert_eq!(rolegate.get("/live").0, 200);
    assert_eq!(slow[0].read(&mut [0; 10]).unwrap_or(0), 0, "a slow request gets no answer");
}

#[test]
fn explain_says_in_words_what_is_served_and_why() {
    let mut group = Group::start(3);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.yaml");
    let admin = format!("bind: 127.0.0.1:{}", free_port());
    let config =
        group.config().replace("admin: { bind: 127.0.0.1:0", &format!("admin: {{ {admin}"));
    fs::write(&file, &config).unwrap();
    let explain = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
        let output = command.args(arguments).arg("-f").arg(&file).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|t| String::from_utf8(t).unwrap());
        (output.status.code(), out, err)
    };
    let (code, _, error) = explain(&["explain"]);
    assert!(code == Some(1) && error.contains("does it run with this config?"), "{error}");

    let rolegate = Rolegate::start_ready(&config);
    let (code, text, _) = explain(&["explain"]);
    assert_eq!(code, Some(0));
    for words in ["pool main: serves n0 at 127.0.0.1:", "followed by n1, n2: served", "link up"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(explain(&["explain", "main"]).1.lines().count(), text.lines().count());
    let (code, _, error) = explain(&["explain", "other"]);
    assert_eq!((code, error.as_str()), (Some(1), "rolegate: no such pool; there are main\n"));

    group.nodes[0].kill();
    rolegate.wait_failure("n0", "refused");
    let text = explain(&["explain"]).1;
    for words in ["pool main: serves nobody, for ", "to do: start the master", "n0  127.0.0.1:"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(rolegate.request("POST /explain/main HTTP/1.1\r\nHost: x\r\n\r\n").0, 405);
}

#[test]
fn without_an_admin_address_explain_says_so() {
    let node = Node::start(&[]);
    let config = config(&[node.address()], None).replace("admin: { bind: 127.0.0.1:0 }\n", "");
    let (_folder, file) = write_config(&config);
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
    let output = command.arg("explain").arg("-f").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("the config has no admin.bind"));
}
