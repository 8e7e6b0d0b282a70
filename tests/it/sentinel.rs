//! Sentinels explain a failover; they never decide alone, and may all be gone.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{
    Client, Fake, FakeConnection, Group, PASSWORD, Reply, Rolegate, Sentinels, bulk, eventually,
    with_sentinels,
};

const AGREE: &str = r#"rolegate_pool_sentinel_agree{pool="main"}"#;

fn pool(rolegate: &Rolegate) -> serde_json::Value {
    rolegate.status()["pools"]["main"].take()
}

fn start() -> (Group, Sentinels, Rolegate) {
    let group = Group::start(3);
    let sentinels = Sentinels::start(&group);
    let config = with_sentinels(&group.config(), &sentinels.addresses());
    let config = config.replace("hold: { timeout: 0s }", "hold: { timeout: 1m }");
    let rolegate = Rolegate::start_ready(&config);
    agree(&rolegate, 3.0);
    (group, sentinels, rolegate)
}

fn agree(rolegate: &Rolegate, count: f64) {
    eventually(&format!("{count} Sentinels agree"), || {
        (rolegate.metric(AGREE) == count).then_some(())
    });
}

fn rules(rolegate: &Rolegate) -> Vec<String> {
    let lines = rolegate.log("verdict changed");
    lines.iter().map(|line| line["rule"].as_str().unwrap().to_owned()).collect()
}

/// Writes one key after another until told to stop, reconnecting as often as it takes, and gives
/// the keys that were acknowledged.
fn writer(address: SocketAddr, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<String>> {
    std::thread::spawn(move || {
        let mut acknowledged = Vec::new();
        let mut client = None;
        for n in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let key = format!("key:{n}");
            let mut open = match client.take() {
                Some(open) => open,
                None => match Client::login(address, PASSWORD) {
                    Ok(open) => open,
                    Err(_) => continue,
                },
            };
            if matches!(open.call(&["SET", &key, "1"]), Ok(Reply::Simple(_))) {
                acknowledged.push(key);
                client = Some(open);
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
        acknowledged
    })
}

#[test]
fn a_planned_failover_loses_nothing_although_the_old_master_stays() {
    let (group, sentinels, rolegate) = start();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = writer(rolegate.address(), stop.clone());
    let answer = sentinels.nodes[0].call(&["SENTINEL", "FAILOVER", "it"]);
    assert_eq!(answer.text(), "OK");
    let new = eventually("another master is served", || {
        let master = pool(&rolegate)["master"].as_str()?.to_owned();
        (master != "n0").then_some(master)
    });
    assert_eq!(group.nodes[0].info("role").unwrap(), "master", "the old one does not know yet");
    // It says so for about 10 s, in which nothing may reach it.
    eventually("the old master is demoted", || {
        (group.nodes[0].info("role")? == "slave").then_some(())
    });
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.join().unwrap();
    let node: usize = new[1..].parse().unwrap();
    let mut there = group.nodes[node].client();
    let lost = acknowledged
        .iter()
        .filter(|key| there.call(&["EXISTS", key]).unwrap() != Reply::Int(1))
        .count();
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    assert_eq!(lost, 0, "of {}", acknowledged.len());
    let rules = rules(&rolegate);
    assert!(rules.ends_with(&["failover_begun".into(), "failover".into()]), "{rules:?}");
    agree(&rolegate, 3.0);
}

#[test]
fn an_accidentally_detached_replica_costs_nothing() {
    let (group, _sentinels, rolegate) = start();
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    let epoch = pool(&rolegate)["epoch"].clone();
    group.nodes[2].promote();
    eventually("it is kept", || (pool(&rolegate)["rule"] == "kept").then_some(()));
    assert_eq!(client.call(&["SET", "k", "v"]).unwrap().text(), "OK");
    let status = pool(&rolegate);
    assert_eq!((&status["epoch"], &status["master"]), (&epoch, &"n0".into()));
}

#[test]
fn a_failover_that_is_given_up_goes_back() {
    // A Sentinel that agrees, selects a replica and then gives up.
    let group = Group::start(2);
    let address = group.nodes[0].address();
    let replica = group.nodes[1].address();
    let go = Arc::new(AtomicBool::new(false));
    let abort = Arc::new(AtomicBool::new(false));
    let fakes: Vec<_> = (0..3)
        .map(|n| {
            let (go, abort) = (go.clone(), abort.clone());
            fake(move |connection, command| {
                let failing = n == 0 && go.load(Ordering::Relaxed);
                let aborted = abort.load(Ordering::Relaxed);
                if failing && command[1] == "MASTER" {
                    let words = format!(
                        "slave {replica} {} {} @ it {} {}",
                        replica.ip(),
                        replica.port(),
                        address.ip(),
                        address.port()
                    );
                    if aborted {
                        let words = format!("master it {} {}", address.ip(), address.port());
                        push(connection, "-failover-abort-slave-timeout", &words)?;
                    } else {
                        push(connection, "+selected-slave", &words)?;
                    }
                }
                names(connection, command, address, failing && !aborted)
            })
        })
        .collect();
    let rolegate = Rolegate::start_ready(&with_sentinels(&group.config(), &addresses(&fakes)));
    agree(&rolegate, 3.0);
    go.store(true, Ordering::Relaxed);
    eventually("it holds", || {
        rules(&rolegate).contains(&"failover_begun".to_owned()).then_some(())
    });
    let since = Instant::now();
    rolegate.wait_master("n0");
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!(rolegate.metric(r#"rolegate_pool_master_changes_total{pool="main"}"#), 0.0);
    // The claim that came to nothing is not believed a second time.
    abort.store(true, Ordering::Relaxed);
    eventually("it is over", || (!view(&rolegate).contains("promotes")).then_some(()));
    let epoch = pool(&rolegate)["epoch"].clone();
    abort.store(false, Ordering::Relaxed);
    eventually("it begins again", || view(&rolegate).contains("promotes").then_some(()));
    assert_eq!(pool(&rolegate)["epoch"], epoch);
}

fn view(rolegate: &Rolegate) -> String {
    pool(rolegate)["sentinel_view"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn sentinels_that_are_all_gone_change_nothing() {
    let (mut group, sentinels, rolegate) = start();
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    let epoch = pool(&rolegate)["epoch"].clone();
    drop(sentinels);
    agree(&rolegate, 0.0);
    assert_eq!(client.call(&["SET", "k", "v"]).unwrap().text(), "OK");
    assert_eq!(pool(&rolegate)["epoch"], epoch);
    // And a failover by hand goes as it would without them.
    group.nodes[0].kill();
    rolegate.wait_failure("n0", "refused");
    group.nodes[1].promote();
    rolegate.wait_master("n1");
}

/// A Sentinel that answers HELLO, SUBSCRIBE and PING, and leaves SENTINEL to the script.
fn fake(
    script: impl Fn(&mut FakeConnection, &[String]) -> io::Result<()> + Send + Sync + 'static,
) -> Fake {
    Fake::start(move |mut connection| {
        loop {
            let command = connection.command()?;
            match command[0].as_str() {
                "HELLO" => connection.send("%2\r\n+server\r\n+redis\r\n+proto\r\n:3\r\n")?,
                "SUBSCRIBE" => connection.send(format!(
                    ">3\r\n{}{}:1\r\n",
                    bulk("subscribe"),
                    bulk(&command[1])
                ))?,
                "SENTINEL" => script(&mut connection, &command)?,
                _ => connection.send("+OK\r\n")?,
            }
        }
    })
}

fn push(connection: &mut FakeConnection, channel: &str, words: &str) -> io::Result<()> {
    connection.send(format!(">3\r\n{}{}{}", bulk("message"), bulk(channel), bulk(words)))
}

/// Answers both questions.
fn names(
    connection: &mut FakeConnection,
    command: &[String],
    master: SocketAddr,
    failover: bool,
) -> io::Result<()> {
    names_text(connection, command, &master.ip().to_string(), master.port(), failover)
}

fn names_text(
    connection: &mut FakeConnection,
    command: &[String],
    host: &str,
    port: u16,
    failover: bool,
) -> io::Result<()> {
    let port = port.to_string();
    if command[1] == "GET-MASTER-ADDR-BY-NAME" {
        return connection.send(format!("*2\r\n{}{}", bulk(host), bulk(&port)));
    }
    let flags = if failover { "master,failover_in_progress" } else { "master" };
    connection.send(format!(
        "%2\r\n{}{}{}{}",
        bulk("flags"),
        bulk(flags),
        bulk("config-epoch"),
        bulk("7")
    ))
}

fn addresses(fakes: &[Fake]) -> Vec<SocketAddr> {
    fakes.iter().map(Fake::address).collect()
}

/// Waits until every Sentinel of the pool has answered or failed.
fn heard(rolegate: &Rolegate) {
    eventually("all Sentinels were asked", || {
        let sentinels = pool(rolegate)["sentinels"].as_object()?.clone();
        sentinels.values().all(|s| s["says"] != "has not answered yet").then_some(())
    });
}

/// Whatever the Sentinels do, the master of a healthy group is served without a break, and an heir
/// is served after the master has died.
fn does_not_matter(fakes: &[Fake]) {
    let mut group = Group::start(2);
    let rolegate = Rolegate::start_ready(&with_sentinels(&group.config(), &addresses(fakes)));
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    heard(&rolegate);
    for _ in 0..20 {
        assert_eq!(client.call(&["SET", "k", "v"]).unwrap().text(), "OK");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let status = pool(&rolegate);
    assert_eq!((&status["master"], &status["epoch"]), (&"n0".into(), &1.into()), "{status}");
    group.nodes[0].kill();
    rolegate.wait_failure("n0", "refused");
    group.nodes[1].promote();
    rolegate.wait_master("n1");
    assert!(matches!(client.end().1, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof));
}

#[test]
fn sentinels_that_know_nothing() {
    let nil = || {
        fake(|connection, command| {
            let nil = command[1] == "GET-MASTER-ADDR-BY-NAME";
            connection.send(if nil { "_\r\n" } else { "-ERR No such master with that name\r\n" })
        })
    };
    does_not_matter(&[nil(), nil(), nil()]);
}

#[test]
fn sentinels_that_name_no_address_or_an_unknown_one() {
    for (host, port) in [("0.0.0.0", 0), ("0.0.0.0", 6379), ("10.9.8.7", 6379), ("", 6379)] {
        let named = || fake(move |c, command| names_text(c, command, host, port, false));
        does_not_matter(&[named(), named(), named()]);
    }
}

#[test]
fn sentinels_that_are_silent_cut_or_talk_nonsense() {
    does_not_matter(&[
        Fake::start(|mut connection| connection.drain()),
        Fake::start(|_| Ok(())),
        Fake::start(|mut connection| {
            connection.send("\u{1}nonsense\r\n")?;
            connection.drain()
        }),
    ]);
}

#[test]
fn a_redis_in_the_place_of_a_sentinel_is_named_as_such() {
    let group = Group::start(1);
    let node = crate::support::Node::start(&[]);
    let rolegate = Rolegate::start_ready(&with_sentinels(&group.config(), &[node.address()]));
    eventually("it says what is wrong", || {
        let says = pool(&rolegate)["sentinels"].clone();
        let says = says[node.address().to_string()]["says"].as_str()?.to_owned();
        says.contains("unknown command").then_some(())
    });
    let up = format!(r#"rolegate_sentinel_up{{pool="main",sentinel="{}"}}"#, node.address());
    assert_eq!(rolegate.metric(&up), 0.0);
}

#[test]
fn one_lying_sentinel_does_not_move_the_master() {
    let group = Group::start(3);
    let truth = group.nodes[0].address();
    let lie = group.nodes[1].address();
    let honest = || fake(move |connection, command| names(connection, command, truth, false));
    let liar = fake(move |connection, command| {
        let words = format!("it {} {} {} {}", truth.ip(), truth.port(), lie.ip(), lie.port());
        push(connection, "+switch-master", &words)?;
        let words = format!("slave x {} {} @ it {} {}", lie.ip(), lie.port(), lie.ip(), lie.port());
        push(connection, "+selected-slave", &words)?;
        names(connection, command, lie, true)
    });
    let fakes = [honest(), liar, honest()];
    let rolegate = Rolegate::start_ready(&with_sentinels(&group.config(), &addresses(&fakes)));
    agree(&rolegate, 2.0);
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    for _ in 0..20 {
        assert_eq!(client.call(&["SET", "k", "v"]).unwrap().text(), "OK");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    assert_eq!(pool(&rolegate)["epoch"], 1);
}

#[test]
fn stale_sentinels_do_not_bring_back_the_old_master() {
    let group = Group::start(2);
    let old = group.nodes[0].address();
    let stale = || fake(move |connection, command| names(connection, command, old, false));
    let fakes = [stale(), stale(), stale()];
    let rolegate = Rolegate::start_ready(&with_sentinels(&group.config(), &addresses(&fakes)));
    agree(&rolegate, 3.0);
    // By hand, and the old one restarts empty as a master: it has no lineage to be refuted by.
    let mut group = group;
    group.nodes[0].kill();
    rolegate.wait_failure("n0", "refused");
    group.nodes[1].promote();
    rolegate.wait_master("n1");
    group.nodes[0].restart();
    eventually("two say that they are the master", || {
        (rolegate.metric(r#"rolegate_pool_conflict{pool="main"}"#) == 1.0).then_some(())
    });
    assert_eq!(pool(&rolegate)["master"], "n1");
    assert_eq!(rolegate.metric(AGREE), 0.0);
}

#[test]
fn sentinels_that_announce_other_addresses_are_understood() {
    let group = Group::start(2);
    let named = || fake(move |c, command| names_text(c, command, "Redis-A.internal", 6379, false));
    let fakes = [named(), named(), named()];
    let config = with_sentinels(&group.config(), &addresses(&fakes));
    let config = config
        .replace("master_name: it,", "master_name: it, announce: { n0: 'redis-a.internal:6379' },");
    let rolegate = Rolegate::start_ready(&config);
    agree(&rolegate, 3.0);
}

#[test]
fn a_sentinel_with_a_password_and_little_rights_is_enough() {
    let group = Group::start(2);
    let user = "user proxy on >secret -@all +sentinel|get-master-addr-by-name +sentinel|master \
                +subscribe allchannels";
    let sentinels = Sentinels::start_with(
        Ipv4Addr::LOCALHOST,
        &group,
        &["requirepass other", "sentinel sentinel-pass other", user],
        Some("other"),
    );
    let config = with_sentinels(&group.config(), &sentinels.addresses());
    let config = config.replace(
        "master_name: it,",
        "master_name: it, auth: { username: proxy, password: secret },",
    );
    let rolegate = Rolegate::start_ready(&config);
    agree(&rolegate, 3.0);
    assert!(rolegate.log("cannot subscribe").is_empty());
    let wrong = Rolegate::start_ready(&config.replace("password: secret }", "password: wrong }"));
    eventually("the refusal is named", || {
        let sentinels = pool(&wrong)["sentinels"].as_object()?.clone();
        sentinels.values().all(|s| s["says"] == "wrongpass").then_some(())
    });
    assert!(!wrong.output().contains("\"wrong\""));
}

#[test]
fn a_sentinel_that_never_stops_talking_is_cut_off() {
    let group = Group::start(2);
    let chatter = fake(|connection, _| {
        loop {
            push(connection, "+odown", "master it 127.0.0.1 1 #quorum 2/2")?;
        }
    });
    let rolegate = Rolegate::start_ready(&with_sentinels(&group.config(), &addresses(&[chatter])));
    eventually("it is cut off", || {
        let sentinels = pool(&rolegate)["sentinels"].as_object()?.clone();
        sentinels
            .values()
            .all(|s| s["says"].as_str().unwrap().starts_with("protocol"))
            .then_some(())
    });
    assert_eq!(pool(&rolegate)["master"], "n0");
}
