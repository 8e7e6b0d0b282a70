//! Too many clients, too few descriptors.

use std::{
    io::ErrorKind,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Client, Group, Node, PASSWORD, Rolegate, config, config_of_pools, eventually,
};

#[test]
fn running_out_of_descriptors_does_not_end_the_listener() {
    let node = Node::start(&[]);
    let rolegate = Rolegate::start_with_descriptors(&config(&[node.address()], None), 60);
    rolegate.wait_ready();
    let many: Vec<Client> = (0..100).map(|_| rolegate.client()).collect();
    rolegate.wait_log("cannot accept");
    assert_eq!(rolegate.log("cannot accept").len(), 1, "once, not for every try");
    drop(many);
    rolegate.wait_log("accepts clients again");
    eventually("a client is served again", || {
        let reply = Client::connect(rolegate.address()).ok()?.call(&["PING"]).ok()?;
        (reply.text() == "PONG").then_some(())
    });
    rolegate.wait_no_sessions();
    assert!(rolegate.metric(r#"rolegate_accept_errors_total{listener="redis"}"#) >= 1.0);
}

#[test]
fn a_thousand_idle_sessions_cost_less_than_2_mb() {
    let node = Node::start(&[]);
    let rolegate = Rolegate::start_ready(&config(&[node.address()], None));
    // The buffers of the workers are no session's.
    let mut warm: Vec<Client> = (0..20).map(|_| rolegate.client()).collect();
    warm.iter_mut().for_each(|client| drop(client.call(&["PING"]).unwrap()));
    let before = rolegate.memory();
    let mut idle: Vec<Client> = (0..1000).map(|_| rolegate.client()).collect();
    idle.iter_mut().for_each(|client| drop(client.call(&["PING"]).unwrap()));
    let grown = rolegate.memory().saturating_sub(before);
    // The bench holds it at 1.5.
    assert!(grown < 2048, "{grown} KiB");
    println!("1,000 idle sessions: {grown} KiB");
}

#[test]
fn clients_that_all_come_at_once_are_all_served() {
    let node = Node::start(&[]);
    let rolegate = Rolegate::start_ready(&config(&[node.address()], None));
    let mut clients: Vec<Client> = (0..1500).map(|_| rolegate.client()).collect();
    for client in &mut clients {
        client.send(&["PING"]).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.read().unwrap().text(), "PONG");
    }
    drop(clients);
    rolegate.wait_no_sessions();
}

#[test]
fn checks_go_on_when_descriptors_have_run_out() {
    let node = Node::start(&[]);
    let rolegate = Rolegate::start_with_descriptors(&config(&[node.address()], None), 60);
    rolegate.wait_ready();
    let mut first = rolegate.client();
    first.call(&["PING"]).unwrap();
    let _many: Vec<Client> = (0..100).map(|_| rolegate.client()).collect();
    rolegate.wait_log("cannot accept");
    // Now the check's connection needs a new descriptor, more than once.
    let check = || {
        let list = node.call(&["CLIENT", "LIST"]).text();
        let line = list.lines().find(|line| line.contains(" cmd=info "))?.to_owned();
        Some(line.strip_prefix("id=")?.split(' ').next()?.to_owned())
    };
    for _ in 0..3 {
        let old = eventually("there is a check", check);
        node.call(&["CLIENT", "KILL", "ID", &old]);
        eventually("there is another", || check().filter(|new| *new != old));
    }
    assert_eq!(first.call(&["PING"]).unwrap().text(), "PONG");
    assert_eq!(rolegate.log("backend is down").len(), 0);
}

#[test]
fn checks_do_not_wait_behind_data() {
    let groups = [Group::start(1), Group::start(2)];
    let rolegate = Rolegate::start_ready(&config_of_pools(groups.iter()));
    let login = |place| Client::login(rolegate.address_of(place), PASSWORD).unwrap();
    let workers = thread::available_parallelism().unwrap().get();
    let floods: Vec<_> = (0..2 * workers)
        .flat_map(|_| {
            let mut client = login(0);
            let writer = client.flood(&["PING"]);
            [writer, thread::spawn(move || _ = client.drain())]
        })
        .collect();
    let mut client = login(1);
    let out = || rolegate.metric(r#"rolegate_listener_bytes_total{direction="out",listener="p0"}"#);
    let before = out();
    eventually("much data moves", || (out() > before + 1e7).then_some(()));
    let since = Instant::now();
    let [old, new] = &groups[1].nodes[..] else { unreachable!() };
    old.call(&["REPLICAOF", "127.0.0.1", &new.port().to_string()]);
    assert_eq!(client.end().1, ErrorKind::ConnectionReset);
    // The bench measures it: one interval of 100 ms and some milliseconds.
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    println!("control and data together: {:?} on the processors", rolegate.cpu());
    drop(rolegate);
    for thread in floods {
        thread.join().unwrap();
    }
}
