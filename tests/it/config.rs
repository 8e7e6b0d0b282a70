//! The config as its users meet it: through `rolegate check`.

use std::{fs, path::Path};

use tempfile::tempdir;

use crate::support::{Authority, check_config, write_config};

const GOOD: &str = "listeners:\n  redis: { bind: 127.0.0.1:6379, pool: main }\npools:\n  main:\n    backends: { a: 127.0.0.1:7001 }\n";

fn check(text: &str) -> (Option<i32>, String) {
    let (_folder, file) = write_config(text);
    let output = check_config(&file, &[("IT_SET", "x"), ("IT_EMPTY", "")]);
    let words = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), words.replace(&format!("{}:", file.display()), ""))
}

#[test]
fn every_error_has_its_place_and_words() {
    let pool = |rest: &str| format!("{GOOD}{rest}");
    let listener = |text: &str| GOOD.replace("bind: 127.0.0.1:6379, pool: main", text);
    let backend = |text: &str| GOOD.replace("{ a: 127.0.0.1:7001 }", text);
    let cases: Vec<(String, &[&str])> = vec![
        (String::new(), &["1:1: the file is not a mapping: found nothing"]),
        ("- a\n".into(), &["1:1: the file is not a mapping: found a list"]),
        ("a: [\n".into(), &["2:1: this is not valid YAML"]),
        ("{}\n".into(), &["1:1: pools is missing", "1:1: listeners is missing"]),
        (pool("port: 1\n"), &["6:1: unknown key: found \"port\"; allowed are listeners"]),
        (pool("amdin: 1\n"), &["6:1: unknown key: found \"amdin\", did you mean \"admin\"?"]),
        (pool("pools: {}\n"), &["6:1: duplicate key: found \"pools\" again"]),
        (
            pool("    check: { interval: 100 }\n"),
            &["6:24: pools.main.check.interval is a duration without a unit: found 100"],
        ),
        (
            pool("    check: { timeout: 1.5s }\n"),
            &["6:23: pools.main.check.timeout is not a duration: found \"1.5s\""],
        ),
        (
            pool("    check: { timeout: 0ms }\n"),
            &[
                "pools.main.check.timeout is out of range: found \"0ms\"; allowed is a whole number with ms, s, m or h, from 1ms to 1m",
            ],
        ),
        (
            pool("    check: { fall: 0 }\n"),
            &["6:20: pools.main.check.fall is not a count: found 0"],
        ),
        (pool("    check:\n"), &["pools.main.check is not a mapping: found nothing"]),
        (
            pool("    check: { resolve: 10ms }\n"),
            &["6:23: pools.main.check.resolve is out of range: found \"10ms\"", "from 100ms to 1h"],
        ),
        (
            pool("    check: { interval: 20ms, fast_interval: 30ms }\n"),
            &["pools.main.check.fast_interval is out of range: found \"30ms\"", "from 1ms to 20ms"],
        ),
        (
            listener("bind: 127.0.0.1:6379, pool: main, max_connections: 0"),
            &[
                "listeners.redis.max_connections is not a count: found 0; allowed is a number from 1",
            ],
        ),
        (
            listener("bind: 127.0.0.1:6379, pool: main, allow: [10.0.0.1/8, x], deny: []"),
            &[
                "listeners.redis.allow is not a network: found \"10.0.0.1/8\"",
                "found \"x\"; allowed are addresses and networks such as 10.0.0.0/8",
                "listeners.redis.deny is empty",
            ],
        ),
        (
            pool("    on_unexplained_heir: wait\n"),
            &["6:26: pools.main.on_unexplained_heir is unknown", "allowed are hold, keep, follow"],
        ),
        (
            pool("    sentinel: {}\n"),
            &[
                "pools.main.sentinel.master_name is missing",
                "pools.main.sentinel.addresses is missing",
            ],
        ),
        (
            pool("    sentinel: { master_name: 'a b', addresses: [] }\n"),
            &["master_name is not the name of a master: found \"a b\"", "addresses is empty"],
        ),
        (
            pool("    sentinel: { master_name: m, addresses: 127.0.0.1:26379 }\n"),
            &["6:44: pools.main.sentinel.addresses is not a list: found \"127.0.0.1:26379\""],
        ),
        (
            pool("    sentinel: { master_name: m, addresses: [a:1, a:1, 127.0.0.1:7001] }\n"),
            &["found a:1; every Sentinel has one vote", "has the address of backend a"],
        ),
        (
            pool("    sentinel: { master_name: m, addresses: [a:1, b:1], quorum: 3 }\n"),
            &["sentinel.quorum is not a count: found 3; allowed is a number from 1 to 2"],
        ),
        (
            pool("    sentinel: { master_name: m, addresses: [a:1], announce: { b: x:1 } }\n"),
            &["announce.b is no backend of this pool: found \"b\"", "allowed is a"],
        ),
        (
            pool("    sentinel: { master_name: m, addresses: [a:1], auth: { hunter2 } }\n"),
            &["unknown key in pools.main.sentinel.auth: found one that is not shown"],
        ),
        (
            listener("bind: 127.0.0.1:1, pool: main, hold: { max: 0, timeout: 2h, dry_run: 1 }"),
            &[
                "hold.timeout is out of range",
                "hold.max is not a count: found 0; allowed is a number from 1 to 65536",
                "hold.dry_run is not true or false: found 1",
            ],
        ),
        (pool("user: ''\n"), &["6:7: user is none: found \"\"; allowed are a name"]),
        (pool("user: 4294967295\n"), &["6:7: user is none: found 4294967295"]),
        (pool("user: [a]\n"), &["6:7: user is none: found a list"]),
        (pool("group: a b\n"), &["6:8: group has no use", "6:8: group is none: found \"a b\""]),
        (pool("state_dir: ''\n"), &["6:12: state_dir is empty"]),
        (
            pool("    auth: {}\n"),
            &["6:11: pools.main.auth needs exactly one source of the password: found none"],
        ),
        (pool("    auth: { username: x }\n"), &["found none"]),
        (
            pool("    auth: { password: !!int hunter2 }\n"),
            &["6:23: this is not valid YAML: a value does not fit its tag"],
        ),
        (
            pool("    auth: { password: 184467440737095516159 }\n"),
            &["6:23: pools.main.auth.password is not text: found a number"],
        ),
        (
            pool("    auth:\n      password: |\n        x\n"),
            &["7:17: pools.main.auth.password ends with a newline"],
        ),
        (
            backend("{ a: '[::1]:7001', b: '[0:0::1]:7001' }"),
            &["pools.main.backends.b has the address of a: found [::1]:7001 twice"],
        ),
        (
            pool("    auth: { hunter2: , hunter2: }\n"),
            &["duplicate key in pools.main.auth: found one that is not shown"],
        ),
        (pool("    check: { fall: 2.0 }\n"), &["pools.main.check.fall is not a count: found 2.0"]),
        (
            pool("shutdown_timeout: 25h\n"),
            &["6:19: shutdown_timeout is out of range: found \"25h\"", "from 0ms to 24h"],
        ),
        (
            backend("{ a: 127.0.0.1:6379 }"),
            &["5:20: pools.main.backends.a is this rolegate itself: found 127.0.0.1:6379"],
        ),
        (
            pool("    auth: { hunter2 }\n"),
            &["6:13: unknown key in pools.main.auth: found one that is not shown"],
        ),
        (
            pool("    auth: { password: x, password_env: IT_SET }\n"),
            &["6:11: pools.main.auth needs exactly one source", "found password and password_env"],
        ),
        (
            pool("    auth: { password_env: IT_UNSET }\n"),
            &["6:27: pools.main.auth.password_env names a variable that is not set"],
        ),
        (
            pool("    auth: { password_env: IT_EMPTY }\n"),
            &["6:27: pools.main.auth.password_env gives an empty password"],
        ),
        (
            pool("    auth: { password_file: /nonexistent }\n"),
            &["6:28: pools.main.auth.password_file names a file that cannot be read"],
        ),
        (
            pool("    auth: { password: 123 }\n"),
            &[
                "6:23: pools.main.auth.password is not text: found a number; allowed is text; put it in quotes",
            ],
        ),
        (
            pool("admin: { bind: 127.0.0.1:6379 }\n"),
            &[
                "6:16: admin.bind takes an address that is taken: found 127.0.0.1:6379, and listeners.redis.bind has 127.0.0.1:6379",
            ],
        ),
        (
            pool("log: { level: loud }\n"),
            &[
                "6:15: log.level is unknown: found \"loud\"; allowed are error, warn, info, debug, trace",
            ],
        ),
        (pool("log: { format: jsn }\n"), &["found \"jsn\", did you mean \"json\"?"]),
        (
            GOOD.replace(
                "  main:
",
                "  main:
    preconnect: -1
",
            ),
            &["5:17: pools.main.preconnect is not a count: found -1", "from 0 to 1024"],
        ),
        (
            pool("congestion: a-name-too-long-for-linux\n"),
            &["6:13: congestion is not a name", "of 1 to 15 letters"],
        ),
        (pool("workers: 0\n"), &["6:10: workers is not a count: found 0", "from 1 to 1024"]),
        (pool("shutdown_timeout: 10\n"), &["6:19: shutdown_timeout is a duration without a unit"]),
        (
            listener("bind: localhost:6379, pool: main"),
            &[
                "2:18: listeners.redis.bind is not an address to listen on: found \"localhost:6379\"",
            ],
        ),
        (listener("bind: [], pool: main"), &["listeners.redis.bind is empty"]),
        (
            listener("bind: [127.0.0.1:1, \"*:1\"], pool: main"),
            &["found *:1, and listeners.redis.bind has 127.0.0.1:1"],
        ),
        (listener("pool: main"), &["2:10: listeners.redis.bind is missing"]),
        (
            listener("bind: 127.0.0.1:1, pool: mian"),
            &[
                "2:37: listeners.redis.pool names an unknown pool: found \"mian\", did you mean \"main\"?; allowed is main",
            ],
        ),
        (
            listener("bind: 127.0.0.1:1, pool: main, role: replica"),
            &["listeners.redis.role is unknown: found \"replica\"; allowed is master"],
        ),
        (
            backend("{ a: unix:redis.sock }"),
            &["5:20: pools.main.backends.a is not an address", "unix:/PATH", "at most 107 bytes"],
        ),
        (
            backend(&format!("{{ a: unix:/{} }}", "x".repeat(107))),
            &["5:20: pools.main.backends.a is not an address", "at most 107 bytes"],
        ),
        (
            backend("{ a: unix:/run/a.sock, b: unix:/run/./a.sock }"),
            &["pools.main.backends.b has the address of a: found unix:/run/a.sock twice"],
        ),
        (
            GOOD.replace("127.0.0.1:7001", "unix:/run/a.sock")
                .replace("127.0.0.1:6379", "unix:/run//a.sock"),
            &["pools.main.backends.a is this rolegate itself: found unix:/run/a.sock"],
        ),
        (
            listener(&format!("bind: unix:/{}, pool: main", "x".repeat(107))),
            &["listeners.redis.bind is not an address to listen on", "at most 107 bytes"],
        ),
        (
            listener("bind: [unix:/run/a.sock, unix:/run/a.sock], pool: main"),
            &["found unix:/run/a.sock, and listeners.redis.bind has unix:/run/a.sock"],
        ),
        (
            listener("bind: unix:/run/a.sock, bind_mode: 660, pool: main"),
            &["2:47: listeners.redis.bind_mode is not text: found a number", "put it in quotes"],
        ),
        (
            listener("bind: unix:/run/a.sock, bind_mode: '0999', pool: main"),
            &["bind_mode is not the mode of a file: found \"0999\"", "\"0000\" to \"0777\""],
        ),
        (
            listener("bind: 127.0.0.1:1, bind_mode: '0660', pool: main"),
            &["listeners.redis.bind_mode has no use: found no unix:/PATH"],
        ),
        (
            GOOD.replace("127.0.0.1:7001", "unix:/run/a.sock")
                + "    sentinel: { master_name: m, addresses: [a:1] }\n",
            &["pools.main.sentinel.announce.a is missing, as a is a unix socket"],
        ),
        (backend("{}"), &["pools.main.backends is empty; at least one backend is needed"]),
        (
            backend("{ a: redis }"),
            &[
                "5:20: pools.main.backends.a is not an address: found \"redis\"; allowed are HOST:PORT",
            ],
        ),
        (
            backend("{ a: x:1, b: x:1 }"),
            &["pools.main.backends.b has the address of a: found x:1 twice"],
        ),
        (
            backend("{ a: x:1, a: y:1 }"),
            &["5:25: duplicate key in pools.main.backends: found \"a\" again"],
        ),
        (
            backend("{ 'a b': x:1 }"),
            &["5:17: pools.main.backends has a bad backend name: found \"a b\""],
        ),
        (
            backend("{ a: 'redis://:hunter2@x:1' }"),
            &["found text with an @ (not shown, it may hold a password)"],
        ),
        (
            GOOD.replace("127.0.0.1:6379", "*:6379"),
            &["2:", "this is not valid YAML", "put the address in quotes"],
        ),
        (GOOD.replace("127.0.0.1:6379", "[::]:6379"), &["2:", "put the address in quotes"]),
    ];
    for (text, expected) in cases {
        let (code, words) = check(&text);
        assert_eq!(code, Some(2), "{text}\n{words}");
        for part in expected {
            assert!(words.contains(part), "{text}\nwants {part:?}, has:\n{words}");
        }
        assert!(!words.contains("hunter2") && !words.contains("1844674"), "{words}");
        for line in words.lines() {
            let mut parts = line.splitn(3, ':');
            let position = [parts.next(), parts.next()].map(|p| p.unwrap().parse::<usize>());
            assert!(position.iter().all(Result::is_ok), "FILE:LINE:COL: {line}");
        }
    }
}

#[test]
fn all_errors_come_in_one_run_in_the_order_of_the_file() {
    let text = GOOD
        .replace("127.0.0.1:6379", "nowhere")
        .replace("pool: main", "pool: mian")
        .replace("127.0.0.1:7001", "nowhere")
        + "loog: 1\n";
    let (code, words) = check(&text);
    assert_eq!(code, Some(2));
    let places: Vec<_> = words.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(places, ["2:18", "2:33", "5:20", "6:1"], "{words}");
}

#[test]
fn good_configs_of_every_kind() {
    let folder = tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "pass\n").unwrap();
    let good = [
        GOOD.to_owned(),
        format!("\u{feff}{GOOD}"),
        GOOD.replace('\n', "\r\n"),
        GOOD.replace("127.0.0.1:6379", "\"[::ffff:127.0.0.1]:6379\""),
        format!("{GOOD}    auth: {{ password_file: {} }}\n", secret.display()),
        format!("{GOOD}    auth: {{ username: u, password_env: IT_SET }}\n"),
        GOOD.replace(
            "pool: main",
            "pool: main, max_connections: 9, max_connections_per_source: 2, accept_rate: 100, \
             allow: [10.0.0.0/8, \"::1\"], deny: 10.1.0.0/16, idle_timeout: 1h, half_close_timeout: 0s",
        ),
        format!("{GOOD}max_connections: 5000\n"),
        GOOD.replace("127.0.0.1:6379", "\"*:6379\""),
        GOOD.replace("127.0.0.1:6379", "\"[::]:6379\""),
        GOOD.replace("127.0.0.1:6379", "[127.0.0.1:6379, \"[::1]:6379\"]"),
        GOOD.replace("{ a: 127.0.0.1:7001 }", "{ a: \"[::1]:7001\", b: redis.local:7001 }"),
        GOOD.replace(
            "127.0.0.1:6379, pool",
            "[unix:/run/a.sock, 127.0.0.1:1], bind_mode: '0600', pool",
        ),
        GOOD.replace("127.0.0.1:7001", "unix:/run/b.sock")
            + "    sentinel: { master_name: m, addresses: [a:1], announce: { a: b:1 } }\n",
        format!("{GOOD}admin: {{ bind: unix:/run/admin.sock, bind_mode: '666' }}\n"),
        format!(
            "{GOOD}shutdown_timeout: 0s\nlog: {{ format: json, level: debug }}\nadmin: {{ bind: \"127.0.0.1:9101\" }}\n"
        ),
    ];
    for text in &good {
        assert_eq!(check(text), (Some(0), String::new()), "{text}");
    }
}

#[test]
fn what_is_wrong_with_certificates_is_said_where_they_are_named() {
    let authority = Authority::new();
    let (good, other) = (authority.sign(&["a"]), authority.sign(&["a"]));
    let expired = authority.sign_expired(&["a"]);
    let show = |path: &Path| path.display().to_string();
    let (cert, key, other_key) = (show(&good.certificate), show(&good.key), show(&other.key));
    let (old, old_key, ca) =
        (show(&expired.certificate), show(&expired.key), show(&authority.ca()));
    let folder = tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        show(&path)
    };
    let encrypted = file(
        "encrypted",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\naHVudGVyMg==\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let broken = file("broken", "-----BEGIN CERTIFICATE-----\nhunter2=\n");
    let nonsense =
        file("nonsense", "-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n");
    let listener = |tls: &str| GOOD.replace("pool: main", &format!("pool: main, tls: {{ {tls} }}"));
    let pool = |tls: &str| format!("{GOOD}    tls: {{ {tls} }}\n");
    let cases = [
        (listener(""), "2:51: listeners.redis.tls.certificate is missing; it is required"),
        (
            listener("certificate: /nonexistent, key: /nonexistent"),
            "2:66: listeners.redis.tls.certificate names a file that cannot be read: No such file",
        ),
        (
            listener("certificate: /nonexistent, key: /nonexistent"),
            "2:85: listeners.redis.tls.key names a file that cannot be read: No such file",
        ),
        (
            listener(&format!("certificate: {key}")),
            "without certificates: found none; allowed is PEM",
        ),
        (listener(&format!("certificate: {broken}")), "without certificates: found broken PEM"),
        (
            listener(&format!("certificate: {nonsense}")),
            "without certificates: found one that is broken",
        ),
        (
            listener(&format!("certificate: {cert}")),
            "tls.certificate names a file without a private key: found none; allowed is PEM, not \
             encrypted; a key in a file of its own goes under key",
        ),
        (
            listener(&format!("certificate: {cert}, key: {encrypted}")),
            "tls.key names a file without a private key: found an encrypted one; allowed is PEM",
        ),
        (
            listener(&format!("certificate: {cert}, key: {other_key}")),
            "tls.key does not fit: found the key of another certificate than",
        ),
        (
            listener(&format!("certificate: {cert}, key: {key}, client_ca: {key}")),
            "listeners.redis.tls.client_ca names a file without certificates: found none",
        ),
        (
            listener(&format!("certificate: {cert}, key: {key}, handshake_timeout: 2m")),
            "tls.handshake_timeout is out of range: found \"2m\"",
        ),
        (
            listener(&format!("cert: {cert}")),
            "2:53: unknown key in listeners.redis.tls: found \"cert\"",
        ),
        (pool("ca: /nonexistent"), "6:16: pools.main.tls.ca names a file that cannot be read"),
        (
            pool(&format!("ca: {ca}, insecure: true")),
            "6:16: pools.main.tls.ca has no use beside insecure",
        ),
        (pool(&format!("ca: {ca}, insecure: yes")), "pools.main.tls.insecure is not true or false"),
        (
            pool(&format!("ca: {ca}, key: {key}")),
            "tls.key has no use without pools.main.tls.certificate",
        ),
        (
            pool(&format!("ca: {ca}, certificate: {cert}, key: {other_key}")),
            "pools.main.tls.key does not fit: found the key of another certificate",
        ),
        (
            pool(&format!("ca: {ca}, server_name: 'not a name'")),
            "pools.main.tls.server_name is not a name: found \"not a name\"",
        ),
        (
            pool(&format!("ca: {ca}")).replace("127.0.0.1:7001", "redis-:7001"),
            "6:10: pools.main.tls.server_name is needed: found redis-:7001",
        ),
        (
            format!(
                "{GOOD}    sentinel: {{ master_name: m, addresses: [a:1], tls: {{ passthrough: true }} }}\n"
            ),
            "unknown key in pools.main.sentinel.tls: found \"passthrough\"",
        ),
        (
            listener(&format!("certificate: {cert}, key: {key}"))
                + &format!("    tls: {{ ca: {ca}, passthrough: true }}\n"),
            "2:51: listeners.redis.tls is in the way: found it before a pool with tls.passthrough",
        ),
    ];
    for (text, expected) in cases {
        let (code, words) = check(&text);
        assert_eq!(code, Some(2), "{text}\n{words}");
        assert!(words.contains(expected), "{text}\nwants {expected:?}, has:\n{words}");
        assert!(!words.contains("hunter2") && !words.contains("aHVud"), "{words}");
    }
    for text in [
        listener(&format!("certificate: {cert}, key: {key}, client_ca: {ca}")),
        pool(&format!("ca: {ca}, certificate: {cert}, key: {key}, server_name: 10.0.0.1")),
        pool("insecure: true, passthrough: true"),
        pool(&format!("ca: {ca}")).replace("127.0.0.1:7001", "\"[::1]:7001\""),
    ] {
        assert_eq!(check(&text), (Some(0), String::new()), "{text}");
    }
    // A restart for another reason must not fail for it.
    for text in [
        listener(&format!("certificate: {old}, key: {old_key}")),
        pool(&format!("ca: {ca}, certificate: {old}, key: {old_key}")),
    ] {
        let (code, words) = check(&text);
        let warning =
            "tls.certificate names a certificate that has expired: found one that was valid until";
        assert!(code == Some(0) && words.contains(warning), "{text}\n{words}");
    }
}

#[test]
fn the_shipped_config_and_every_example_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("proxy.yaml")];
    for entry in fs::read_dir(root.join("examples")).unwrap() {
        files.extend(
            entry
                .map(|entry| entry.path())
                .ok()
                .filter(|p| p.extension().is_some_and(|e| e == "yaml")),
        );
    }
    // Those are Prometheus's.
    files.retain(|file| !file.ends_with("alerts.yaml"));
    assert!(files.len() > 2, "{files:?}");
    // The certificates that an example names are elsewhere here than where it is used.
    let authority = Authority::new();
    let identity = authority.sign(&["redis.example.com"]);
    let installed = tempdir().unwrap();
    for (name, made) in [
        ("ca.pem", authority.ca()),
        ("redis.pem", identity.certificate),
        ("redis.key", identity.key),
    ] {
        fs::copy(made, installed.path().join(name)).unwrap();
    }
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let here = installed.path().display().to_string();
        let (_folder, file) = write_config(&text.replace("/etc/rolegate/tls", &here));
        let output = check_config(&file, &[("REDIS_PASSWORD", "x")]);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words}");
    }
}

#[test]
fn an_admin_that_others_reach_without_a_token_is_a_warning() {
    let folder = tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "0123456789abcdef\n").unwrap();
    let warned = |admin: &str| {
        let (code, words) = check(&format!("{GOOD}admin: {{ {admin} }}\n"));
        assert_eq!(code, Some(0), "{words}");
        words
    };
    for bind in ["'*:9101'", "0.0.0.0:9101", "'[::]:9101'", "10.0.0.1:9101"] {
        let words = warned(&format!("bind: {bind}"));
        assert!(words.starts_with("6:16: warning: admin.bind "), "{words}");
        assert!(words.contains("reload and drain over HTTP are refused"), "{words}");
        assert_eq!(words.lines().count(), 1, "{words}");
        let with = format!("bind: {bind}, token_file: '{}'", token.display());
        assert_eq!(warned(&with), "");
    }
    for bind in ["127.0.0.1:9101", "127.1.2.3:9101", "'[::1]:9101'"] {
        assert_eq!(warned(&format!("bind: {bind}")), "");
    }
}

#[test]
fn a_token_file_is_checked_and_never_shown() {
    let folder = tempdir().unwrap();
    let token = folder.path().join("token");
    let file = token.display().to_string();
    let check = |content: &[u8]| {
        fs::write(&token, content).unwrap();
        check(&format!("{GOOD}admin: {{ bind: 127.0.0.1:1, token_file: '{file}' }}\n"))
    };
    let long = "x".repeat(1024);
    for good in ["hunter2hunter2hu", "hunter2hunter2hu\r\n", &long] {
        assert_eq!(check(good.as_bytes()), (Some(0), String::new()));
    }
    let longer = "x".repeat(1025);
    let words = "6:41: admin.token_file names a file whose content is no token: found ";
    for wrong in [
        "",
        "\n",
        "hunter2hunter2h",
        "hunter2 hunter2 hunter2",
        "hunter2hunter2hunter2\n\n",
        "hunter2hunter2hünter2",
        &longer,
    ] {
        let (code, error) = check(wrong.as_bytes());
        assert!(code == Some(2) && error.starts_with(words), "{error}");
        assert!(error.contains("allowed are 16 to 1024 visible") && !error.contains("hunter"));
    }
    fs::remove_file(&token).unwrap();
    let text = format!("{GOOD}admin: {{ bind: 127.0.0.1:1, token_file: hunter2hunter2 }}\n");
    let (code, error) = self::check(&text);
    assert!(code == Some(2) && error.contains("token_file names a file that cannot be read"));
    assert!(!error.contains("hunter2"), "{error}");
}
