//! The commands that ask a running rolegate, or what its config names.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{
    Client, Fake, Group, Node, PASSWORD, Rolegate, Sentinels, config, eventually, free_port,
    with_sentinels, write_config,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rolegate");
const ADMIN: &str = "admin: { bind: 127.0.0.1:0 }";

/// The command line with a config file, whose admin has a port of its own.
struct Cli {
    config: String,
    file: PathBuf,
    _folder: TempDir,
}

impl Cli {
    fn new(config: &str) -> Self {
        let admin = ADMIN.replace(":0", &format!(":{}", free_port()));
        let config = config.replace(ADMIN, &admin);
        let (folder, file) = write_config(&config);
        Self { config, file, _folder: folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).arg("-f").arg(&self.file).stdin(Stdio::null());
        command
    }

    /// Exit code, output and errors.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command(arguments).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|t| String::from_utf8(t).unwrap());
        (output.status.code().unwrap(), out, err)
    }

    /// Exit code and output of `check --connect`.
    fn survey(&self) -> (i32, String) {
        let (code, out, _) = self.run(&["check", "--connect"]);
        (code, out)
    }
}

/// The line about this subject.
fn line<'a>(text: &'a str, subject: &str) -> &'a str {
    let found = text.lines().find(|line| line.contains(subject));
    found.unwrap_or_else(|| panic!("no {subject} in {text}"))
}

#[test]
fn status_is_a_table_that_fits_and_its_exit_code_tells_whether_all_is_served() {
    let mut group = Group::start(3);
    let cli = Cli::new(&group.config());
    let (code, out, error) = cli.run(&["status"]);
    assert!(code == 1 && out.is_empty() && error.contains("no rolegate answers at"), "{error}");

    let rolegate = Rolegate::start_ready(&cli.config);
    let mut client = rolegate.client();
    client.call(&["PING"]).unwrap();
    let (code, table, error) = cli.run(&["status"]);
    assert_eq!((code, error.as_str()), (0, ""), "{table}");
    assert!(!table.contains('\x1b') && table.lines().all(|line| line.len() <= 100), "{table}");
    for words in ["rolegate 0.", ", running, up for ", "pool main: serves n0 at 127.0.0.1:"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    let cells = |subject| line(&table, subject).split_whitespace().collect::<Vec<_>>();
    let master = cells("  n0 ");
    assert!(master[..3] == ["n0", "master", "up"] && master.contains(&"at"), "{table}");
    let replica = cells("  n1 ");
    assert!(replica[..3] == ["n1", "replica", "up"] && replica.contains(&"behind"), "{table}");
    // A session, nobody waits, one ever, and the bytes of PING and of -NOAUTH.
    let listener = cells("redis ");
    let expected = ["redis", "main", "master", "1", "0", "1", "14", "B", "34", "B"];
    assert_eq!(listener[..10], expected, "{table}");

    group.nodes[0].kill();
    rolegate.wait_failure("n0", "refused");
    let (code, table, _) = cli.run(&["status"]);
    assert_eq!(code, 3, "{table}");
    for words in ["pool main: serves nobody, for ", "[no_master]", "to do: start the master"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    assert!(line(&table, "refused (").contains("is the backend"), "{table}");
}

#[test]
fn status_has_the_figures_of_the_metrics() {
    let node = Node::start(&[]);
    let rolegate = Rolegate::start_ready(&config(&[node.address()], None));
    rolegate.client().call(&["PING"]).unwrap();
    rolegate.wait_no_sessions();
    let status = rolegate.status();
    let listener = &status["listeners"]["redis"];
    let figures = ["bytes_in", "bytes_out", "held", "sessions_total"].map(|key| &listener[key]);
    assert_eq!(figures, [14, 7, 0, 1]);
    let checks = &status["pools"]["main"]["backends"]["n0"]["checks_total"];
    assert!(checks.as_f64().unwrap() >= 1.0 && checks.as_f64().unwrap() <= rolegate.checks("n0"));
}

#[test]
fn status_watches_with_rates_goes_on_without_an_answer_and_ends_on_ctrl_c() {
    let node = Node::start(&[]);
    let cli = Cli::new(&config(&[node.address()], None));
    let mut rolegate = Rolegate::start_ready(&cli.config);
    let mut watch =
        cli.command(&["status", "--watch=100ms"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut wait = |words: &str| lines.find(|line| line.contains(words)).expect("another block");
    wait("EVER");
    wait("NEW/S");
    // As much as the client sends from now on is seen as a rate.
    let client = rolegate.client();
    let flood = client.flood(&["PING"]);
    let moves = |line: &String| line.starts_with("redis ") && line.contains("iB");
    assert!(lines.by_ref().any(|line| moves(&line)));
    drop(client);

    rolegate.signal(Signal::KILL);
    rolegate.wait_exit();
    flood.join().unwrap();
    let mut wait = |words: &str| lines.find(|line| line.contains(words)).expect("another block");
    let silent = wait("trying again");
    assert!(silent.contains("no rolegate answers at 127.0.0.1:"), "{silent}");
    let _again = Rolegate::start_ready(&cli.config);
    wait("pool main: serves n0");
    kill_process(Pid::from_child(&watch), Signal::INT).unwrap();
    assert!(lines.all(|line| !line.contains('\x1b')), "no terminal, no codes");
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[test]
fn nobody_who_reads_the_table_is_no_panic() {
    let node = Node::start(&[]);
    let cli = Cli::new(&config(&[node.address()], None));
    let _rolegate = Rolegate::start_ready(&cli.config);
    for arguments in [&["status", "--watch=100ms"][..], &["status"], &["check", "--connect"]] {
        let mut command = cli.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let status = eventually("it ends", || child.try_wait().unwrap());
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        assert_eq!((status.code(), error.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn what_answers_need_not_be_rolegate() {
    let cli = Cli::new(&config(&[([127, 0, 0, 1], 1).into()], None));
    let port = cli.config.split("admin: { bind: 127.0.0.1:").nth(1).unwrap();
    let port: u16 = port.split(' ').next().unwrap().parse().unwrap();
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let answers = [
        "HTTP/1.0 200 OK\r\n\r\n{\"state\": 1}",
        "+PONG\r\n",
        "",
        "HTTP/1.0 200 OK\r\n\r\n\x1b[2J",
    ];
    let words = ["gives no status of rolegate", "not HTTP", "not HTTP", "gives no status"];
    for (answer, words) in answers.into_iter().zip(words) {
        let thread = std::thread::spawn({
            let listener = listener.try_clone().unwrap();
            move || {
                use std::io::Write;
                let mut stream = listener.accept().unwrap().0;
                let _ = stream.read(&mut [0; 1000]);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        let (code, _, error) = cli.run(&["status"]);
        thread.join().unwrap();
        assert!(code == 1 && error.contains(words) && !error.contains('\x1b'), "{error}");
    }
}

#[test]
fn orders_reach_the_process_and_unknown_listeners_are_named() {
    let node = Node::start(&[]);
    let cli = Cli::new(&config(&[node.address()], None));
    let (code, _, error) = cli.run(&["reload"]);
    assert!(code == 1 && error.contains("no rolegate answers at"), "{error}");
    let rolegate = Rolegate::start_ready(&cli.config);
    let (code, _, error) = cli.run(&["drain", "other"]);
    assert_eq!((code, error.as_str()), (1, "rolegate: no such listener; there are redis\n"));
    let nothing = (0, "nothing has changed\n".to_owned(), String::new());
    assert_eq!(cli.run(&["reload"]), nothing);
    assert_eq!(rolegate.wait_log("ordered over HTTP")["order"], "reload");
    assert_eq!(cli.run(&["drain"]).0, 2);
}

#[test]
fn check_connect_says_that_all_is_well() {
    let group = Group::start(3);
    let sentinels = Sentinels::start(&group);
    let cli = Cli::new(&with_sentinels(&group.config(), &sentinels.addresses()));
    let (code, text) = cli.survey();
    assert_eq!(code, 0, "{text}");
    let master = line(&text, "backend n0 at 127.0.0.1:");
    assert!(master.starts_with("  ok ") && master.contains("followed by n1, n2"), "{text}");
    assert!(master.contains("Redis ") || master.contains("Valkey "), "{text}");
    assert!(line(&text, "backend n1 at").contains("replica of n0"), "{text}");
    assert_eq!(text.matches("names n0 (config-epoch 0)").count(), 3, "{text}");
    assert!(line(&text, "verdict:").contains("one master, n0; a start would serve n0"), "{text}");
    assert_eq!(text.lines().last(), Some("all 7 fine"), "{text}");
    assert!(!text.contains(PASSWORD));
}

#[test]
fn check_connect_names_the_acl_rule_that_is_missing() {
    let node = Node::start(&[]);
    let set = |rules: &str| {
        let words: Vec<_> =
            format!("ACL SETUSER gate {rules}").split(' ').map(str::to_owned).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        assert_eq!(node.call(&words).text(), "OK");
    };
    let auth = format!("    auth: {{ username: gate, password: '{PASSWORD}' }}\n    check:");
    let cli = Cli::new(&config(&[node.address()], None).replace("    check:", &auth));
    let wrong = |to_do: &str| {
        let (code, text) = cli.survey();
        let found = line(&text, "backend n0").to_owned();
        assert!(code == 1 && found.starts_with("  WRONG ") && found.ends_with(to_do), "{text}");
        assert!(!text.contains(PASSWORD), "{text}");
    };
    wrong("the backend refuses the pool's username or password: correct auth in the pool");
    set(&format!("on >{PASSWORD} -@all"));
    wrong("to do: ACL SETUSER gate +ping +info");
    set("+ping");
    wrong("to do: ACL SETUSER gate +info");
    set("+info -ping");
    wrong("to do: ACL SETUSER gate +ping");
    // What it says is enough.
    set("+ping");
    let (code, text) = cli.survey();
    assert_eq!((code, text.lines().last()), (0, Some("all 2 fine")), "{text}");
}

#[test]
fn check_connect_sees_what_is_wrong_with_backends() {
    let group = Group::start(2);
    // A second master, one without a password, one that is not there, and a replica of a stranger.
    let other = Node::start_with_password(&[]);
    let open = Node::start(&[]);
    let lost = Node::start_with_password(&["replicaof 127.0.0.1 1"]);
    let silent = Fake::start(|mut connection| connection.drain());
    let addresses = [
        group.nodes[0].address(),
        group.nodes[1].address(),
        other.address(),
        open.address(),
        "127.0.0.1:1".parse().unwrap(),
        lost.address(),
        silent.address(),
    ];
    let config = config(&addresses, Some(PASSWORD)).replace("timeout: 500ms", "timeout: 2s");
    let named = "n8: 'no-such-host.invalid:6379', n0:";
    let cli = Cli::new(&config.replace("n0:", named));
    let (code, text) = cli.survey();
    assert_eq!(code, 1, "{text}");
    let findings = [
        ("backend n0 ", "  ok ", "followed by n1"),
        ("backend n1 ", "  ok ", "replica of n0"),
        ("backend n2 ", "  ok ", "says role:master"),
        ("backend n3 ", "WRONG", "the backend has none: remove auth"),
        ("backend n4 ", "WRONG", "refused (Connection refused"),
        ("backend n5 ", "WRONG", "link down, follows 127.0.0.1:1; to do: is 127.0.0.1:1 up"),
        ("backend n6 ", "WRONG", "timeout; to do: the backend is silent"),
        ("backend n8 ", "WRONG", "unresolved ("),
        ("verdict:", "WRONG", "2 masters, n0, n2; a start would serve"),
    ];
    for (subject, fine, words) in findings {
        let found = line(&text, subject);
        assert!(found.contains(fine) && found.contains(words), "{words}: {text}");
    }
    assert_eq!(text.lines().last(), Some("6 of 9 wrong"), "{text}");
    assert!(!text.contains(PASSWORD));
}

#[test]
fn check_connect_sees_what_is_wrong_with_sentinels() {
    let group = Group::start(2);
    let user = format!("user gate on >{PASSWORD} -@all +sentinel|master");
    let all = format!("user all on >{PASSWORD} ~* &* +@all");
    let sentinels = Sentinels::start_with([127, 0, 0, 1].into(), &group, &[&user, &all], None);
    let text = with_sentinels(&group.config(), &sentinels.addresses());
    let survey = |text: &str| Cli::new(text).survey();
    let as_user = |name: &str| {
        let auth = format!("sentinel: {{ auth: {{ username: {name}, password: '{PASSWORD}' }},");
        text.replace("sentinel: {", &auth)
    };
    assert_eq!(survey(&as_user("all")).0, 0);
    let (code, found) = survey(&as_user("gate"));
    let missing = "ACL SETUSER gate +sentinel|get-master-addr-by-name +subscribe &*";
    assert!(code == 1 && found.matches(missing).count() == 3, "{found}");
    let (code, found) = survey(&as_user("nobody"));
    assert!(code == 1 && found.matches("refuses the username or password").count() == 3, "{found}");
    let (code, found) = survey(&text.replace("master_name: it", "master_name: other"));
    assert!(code == 1 && found.matches("it watches no master named other").count() == 3, "{found}");
    // They know it by another address than the config.
    let port = group.nodes[0].port();
    let (code, found) = survey(
        &text.replace(&format!("n0: '127.0.0.1:{port}'"), &format!("n0: 'localhost:{port}'")),
    );
    assert_eq!(code, 0, "what it resolves to is known: {found}");
    let (code, found) = survey(&text.replace(&format!("n0: '127.0.0.1:{port}', "), ""));
    let announce = format!("`announce: {{ BACKEND: 127.0.0.1:{port} }}`");
    assert!(code == 1 && found.matches(&announce).count() == 3, "{found}");
    // A data node in the place of a Sentinel, and nothing at all.
    let node = Node::start(&[]);
    let nobody = "127.0.0.1:1".parse().unwrap();
    let (code, found) = survey(&with_sentinels(&group.config(), &[node.address(), nobody]));
    let data = line(&found, &format!("Sentinel {}", node.address()));
    assert!(code == 1 && data.contains("this is no Sentinel"), "{found}");
    assert!(line(&found, "Sentinel 127.0.0.1:1:").contains("is the Sentinel running?"), "{found}");
}

#[test]
fn check_connect_of_a_bad_config_asks_nobody() {
    let (_folder, file) = write_config("listeners: {}\n");
    let output =
        Command::new(PROGRAM).args(["check", "--connect", "-f"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
}

#[test]
fn the_token_is_sent_by_the_command_line_itself() {
    let node = Node::start(&[]);
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "0123456789abcdef\n").unwrap();
    let with_token = format!("admin: {{ token_file: '{}', bind:", token.display());
    let cli = Cli::new(&config(&[node.address()], None));
    let config = cli.config.replace("admin: { bind:", &with_token);
    fs::write(&cli.file, &config).unwrap();
    let rolegate = Rolegate::start_ready(&config);
    cli.run(&["reload"]);
    assert_eq!(rolegate.wait_log("ordered over HTTP")["order"], "reload");
    fs::write(&token, "0123456789abcdeX\n").unwrap();
    let (code, _, error) = cli.run(&["drain", "redis"]);
    assert!(code == 1 && error.contains("admin.token_file"), "{error}");
    assert!(!error.contains("0123456789") && !rolegate.output().contains("0123456789"));
    assert!(Client::connect(rolegate.address()).is_ok());
}

#[test]
fn a_reload_brings_a_new_token_and_a_bad_config_changes_nothing() {
    let node = Node::start(&[]);
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "first-token-of-it").unwrap();
    let config = config(&[node.address()], None);
    let admin = format!("admin: {{ token_file: '{}', bind:", token.display());
    let open = Cli::new(&config);
    let rolegate = Rolegate::start_with_file(&open.file);
    // The config that asks for a token is the one that the running process reads.
    let locked = open.config.replace("admin: { bind:", &admin);
    fs::write(&open.file, &locked).unwrap();
    let (code, out, error) = open.run(&["reload"]);
    assert_eq!((code, out.as_str(), error.as_str()), (0, "changed admin\n", ""));
    let post = |token: &str| {
        let head = format!("Host: x\r\nAuthorization: Bearer {token}\r\n");
        rolegate.request(&format!("POST /reload HTTP/1.1\r\n{head}\r\n"))
    };
    assert_eq!((post("first-token-of-it").0, post("other-token-of-it").0), (200, 401));
    // Another content of the file is taken over without being asked for.
    fs::write(&token, "other-token-of-it").unwrap();
    eventually("the new token counts", || (post("other-token-of-it").0 == 200).then_some(()));
    assert_eq!(post("first-token-of-it").0, 401);
    // Every error comes back, and nothing has changed.
    fs::write(&open.file, "listeners: {}\nloog: 1\n").unwrap();
    let (code, answer) = post("other-token-of-it");
    assert!(code == 422 && answer.contains(":2:1: unknown key"), "{answer}");
    assert!(answer.contains("pools is missing"), "{answer}");
    assert_eq!(open.run(&["reload"]).0, 2);
    rolegate.wait_ready();
}

#[test]
fn a_drained_listener_takes_nobody_until_a_reload_opens_it() {
    let node = Node::start(&[]);
    let port = free_port();
    let base = config(&[node.address()], None)
        .replace("bind: 127.0.0.1:0, pool", &format!("bind: 127.0.0.1:{port}, pool"))
        .replace("pools:", "  other: { bind: 127.0.0.1:0, pool: main }\npools:");
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "hunter2hunter2hunter2").unwrap();
    let admin = format!("bind: 127.0.0.1:{}, token_file: '{}'", free_port(), token.display());
    let base = base.replace(ADMIN, &format!("admin: {{ {admin} }}"));
    let cli = Cli::new(&format!("{base}shutdown_timeout: 1h\n"));
    let rolegate = Rolegate::start_with_file(&cli.file);
    rolegate.wait_ready();
    let lives = |client: &mut Client| client.call(&["PING"]).is_ok();
    let mut client = rolegate.client();
    let mut other = Client::connect(rolegate.address_of(1)).unwrap();
    assert!(lives(&mut client) && lives(&mut other));

    let (code, words, error) = cli.run(&["drain", "redis"]);
    assert!(code == 0 && words.contains("a reload opens it again"), "{words}{error}");
    eventually("no new clients", || Client::connect(rolegate.address()).is_err().then_some(()));
    assert!(lives(&mut client) && lives(&mut other), "sessions may end by themselves");
    let (code, reasons) = rolegate.get("/ready");
    assert!(code == 503 && reasons == "listener redis: drained\n", "{reasons}");
    assert_eq!(rolegate.status()["listeners"]["redis"]["drained"], true);
    assert!(cli.run(&["drain", "redis"]).1.contains("drained already"));
    drop(client);
    rolegate.wait_log("listener is drained");

    // A renewed file is no order.
    fs::write(&token, "hunter3hunter3hunter3").unwrap();
    rolegate.wait_log("took over a file that the config names");
    assert_eq!(rolegate.status()["listeners"]["redis"]["drained"], true);
    assert!(Client::connect(rolegate.address()).is_err());

    let (code, words, error) = cli.run(&["reload"]);
    assert!(code == 0 && words == "listener redis: takes clients again\n", "{words}{error}");
    rolegate.wait_ready();
    assert!(lives(&mut rolegate.client()) && lives(&mut other));
}
