//! Metrics, health and status over HTTP.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    process::Command,
    time::Duration,
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

/// A configuration with these settings of the admin.
fn admin_with(settings: &str) -> String {
    nobody().replace("admin: { bind: 127.0.0.1:0 }", &format!("admin: {{ {settings} }}"))
}

/// Status code and whole response to a POST with these headers.
fn post(rolegate: &Rolegate, path: &str, headers: &str) -> (u16, String) {
    rolegate.request(&format!("POST {path} HTTP/1.1\r\n{headers}\r\n"))
}

const LOCAL: &str = "Host: localhost:9101\r\n";

/// Whether the order went through to the process, whatever became of it there.
fn obeyed(code: u16) -> bool {
    [200, 422, 503].contains(&code)
}

#[test]
fn orders_are_taken_from_this_host_and_from_no_browser() {
    let rolegate = Rolegate::start(&nobody());
    for path in ["/reload", "/drain/redis"] {
        assert!(obeyed(post(&rolegate, path, LOCAL).0));
        assert!(obeyed(post(&rolegate, path, "Host: [::1]\r\nContent-Length: 0\r\n").0));
        assert!(obeyed(rolegate.request(&format!("POST {path} HTTP/1.0\r\n\r\n")).0));
        for wrong in [
            "Host: evil.example\r\n",
            "Host: 10.0.0.1:9101\r\n",
            "Host: localhost\r\nOrigin: null\r\n",
            "Host: localhost\r\nOrigin: http://localhost:9101\r\n",
            "Host: localhost\r\nReferer: http://evil.example/\r\n",
            "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
        ] {
            assert_eq!(post(&rolegate, path, wrong).0, 403, "{wrong}");
        }
        let (code, response) = rolegate.request(&format!("GET {path} HTTP/1.1\r\n{LOCAL}\r\n"));
        assert!(code == 405 && response.to_lowercase().contains("allow: post\r\n"), "{response}");
    }
    let (code, response) = post(&rolegate, "/drain/other", LOCAL);
    assert!(code == 404 && response.contains("no such listener; there are redis"), "{response}");
    assert_eq!(post(&rolegate, "/drain/", LOCAL).0, 404);
    assert_eq!(post(&rolegate, "/drain", LOCAL).0, 404);
    assert_eq!(rolegate.request("OPTIONS /reload HTTP/1.1\r\nHost: localhost\r\n\r\n").0, 405);
}

#[test]
fn with_a_token_orders_need_it_everywhere_and_what_reads_does_not() {
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "hunter2hunter2hu\n").unwrap();
    for bind in ["127.0.0.1:0", "0.0.0.0:0"] {
        let config = admin_with(&format!("bind: {bind}, token_file: '{}'", token.display()));
        let rolegate = Rolegate::start(&config);
        let right = "Host: any.example\r\nAuthorization: Bearer hunter2hunter2hu\r\n";
        assert!(obeyed(post(&rolegate, "/reload", right).0));
        for wrong in
            ["", "Authorization: Bearer hunter2hunter2hX\r\n", "Authorization: Basic x\r\n"]
        {
            let (code, response) = post(&rolegate, "/reload", &format!("{LOCAL}{wrong}"));
            assert!(code == 401 && response.contains("admin.token_file"), "{response}");
            assert!(response.to_lowercase().contains("www-authenticate: bearer"), "{response}");
            assert!(!response.contains("hunter2"), "{response}");
        }
        // Guessing fills no log.
        for _ in 0..200 {
            assert_eq!(post(&rolegate, "/drain/redis", LOCAL).0, 401);
        }
        let lines = rolegate.log("refused an admin request that would change something");
        assert!((1..=10).contains(&lines.len()), "{}", lines.len());
        assert_eq!((&lines[0]["why"], &lines[0]["level"]), (&"token".into(), &"WARN".into()));
        for path in ["/live", "/metrics", "/status", "/explain"] {
            let (code, text) = rolegate.get(path);
            assert!(code == 200 && !text.contains("hunter2"), "{path}");
        }
        assert!(!rolegate.output().contains("hunter2"));
    }
}

#[test]
fn other_hosts_may_order_nothing_without_a_token() {
    let rolegate = Rolegate::start(&admin_with("bind: 0.0.0.0:0"));
    let (code, response) = post(&rolegate, "/reload", LOCAL);
    assert!(code == 403 && response.contains("no admin.token_file"), "{response}");
    assert_eq!(rolegate.get("/live").0, 200);
    let line = rolegate.wait_log("the config has something that is hardly meant");
    assert_eq!(line["level"], "WARN");
    assert!(line["warning"].as_str().unwrap().contains("there is no admin.token_file"), "{line}");
}

#[test]
fn a_stopping_rolegate_takes_no_orders() {
    let node = Node::start(&[]);
    let config = format!("{}shutdown_timeout: 1h\n", config(&[node.address()], None));
    let rolegate = Rolegate::start_ready(&config);
    let mut client = rolegate.client();
    client.call(&["PING"]).unwrap();
    rolegate.signal(rustix::process::Signal::TERM);
    rolegate.wait_log("stopping: no new clients, sessions may end");
    let (code, response) = post(&rolegate, "/reload", LOCAL);
    assert!(code == 503 && response.contains("rolegate is stopping"), "{response}");
}

#[test]
fn who_sends_byte_by_byte_is_cut_and_delays_nobody() {
    let rolegate = Rolegate::start(&nobody());
    let mut slow: Vec<_> = (0..20).map(|_| rolegate.admin_stream()).collect();
    let since = std::time::Instant::now();
    let mut bytes = b"GET /live HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'x'));
    // A byte at a time, as long as anybody takes it.
    eventually("all of them are cut", || {
        let byte = *bytes.next().unwrap();
        slow.retain_mut(|stream| stream.write_all(&[byte]).is_ok());
        assert_eq!(rolegate.get("/live").0, 200);
        slow.is_empty().then_some(())
    });
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    // A body that never comes, and an answer that nobody reads.
    let mut body = rolegate.admin_stream();
    body.write_all(b"POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nx")
        .unwrap();
    let mut answer = String::new();
    let _ = body.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
}

#[test]
fn hundreds_of_broken_requests_leave_no_trace() {
    let mut rolegate = Rolegate::start(&nobody());
    let mut random = fastrand::Rng::with_seed(93);
    let open = |rolegate: &Rolegate| {
        fs::read_dir(format!("/proc/{}/fd", rolegate.process())).unwrap().count()
    };
    assert_eq!(rolegate.get("/metrics").0, 200);
    let (files, memory) = (open(&rolegate), rolegate.memory());
    let whole: [&[u8]; 6] = [
        b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /drain/redis HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET /explain/main HTTP/1.0\r\n\r\n",
        b"HEAD http://localhost/metrics HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    ];
    let mut kept = Vec::new();
    for round in 0..600 {
        let mut bytes = whole[random.usize(..whole.len())].to_vec();
        match round % 8 {
            // Noise.
            0 => bytes = (0..random.usize(..4096)).map(|_| random.u8(..)).collect(),
            // Broken off.
            1 => bytes.truncate(random.usize(..bytes.len())),
            // Bytes that are others.
            2 => (0..4).for_each(|_| {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }),
            // A head without end, and one of too many fields.
            3 => bytes.splice(4..4, vec![b'/'; 1 << random.usize(10..18)]).for_each(drop),
            4 => {
                let end = bytes.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2;
                bytes.splice(end..end, b"a: b\r\n".repeat(1 << random.usize(4..14)));
            }
            // A body that is not as long as is said.
            5 => {
                let length = ["-1", "99999999999999999999", "5, 6", "1000000", "0x5"];
                let length = length[random.usize(..length.len())];
                bytes = format!(
                    "POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\nx"
                )
                .into();
            }
            // A huge body.
            6 => {
                bytes =
                    b"POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048576\r\n\r\n"
                        .to_vec();
                bytes.resize(bytes.len() + (1 << 20), b'x');
            }
            // Several at once.
            _ => bytes = bytes.repeat(random.usize(2..50)),
        }
        let mut stream = rolegate.admin_stream();
        let _ = stream.write_all(&bytes);
        if random.bool() {
            let _ = stream.shutdown(Shutdown::Write);
        }
        match random.u8(..8) {
            // Who leaves without a word of it stays for a while.
            0 if kept.len() < 40 => kept.push(stream),
            1..4 => drop(stream),
            _ => {
                let _ = stream.set_read_timeout(Some(Duration::from_millis(5)));
                let _ = stream.read(&mut [0; 512]);
            }
        }
        if round % 50 == 0 {
            assert_eq!(rolegate.get("/live").0, 200);
        }
    }
    assert_eq!(rolegate.get("/live").0, 200);
    drop(kept);
    eventually("all descriptors are given back", || (open(&rolegate) <= files).then_some(()));
    let grown = rolegate.memory().saturating_sub(memory);
    assert!(grown < 16 * 1024, "{grown} KiB more");
    assert!(rolegate.is_running());
    assert!(!rolegate.output().contains("a defect of rolegate"), "{}", rolegate.output());
}
