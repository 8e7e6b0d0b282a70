//! Another process takes over; sockets come from elsewhere; a service manager is told.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener},
    os::unix::net::{UnixDatagram, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::Signal;
use tempfile::tempdir;

use crate::support::{Client, Group, Node, PASSWORD, Rolegate, SOON, config, eventually};

fn lives(client: &mut Client) -> bool {
    client.call(&["PING"]).is_ok_and(|reply| reply.text() == "PONG")
}

/// Whether any process of this id is left, zombies apart.
fn is_gone(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    status.is_empty() || status.contains("State:\tZ")
}

#[test]
fn no_client_is_refused_while_a_new_process_takes_over_and_old_sessions_stay_supervised() {
    let group = Group::start(2);
    let mut rolegate = Rolegate::start_ready(&group.config());
    let address = rolegate.address();
    let mut old_session = Client::login(address, PASSWORD).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (stop, served) = (stop.clone(), served.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut client = Client::login(address, PASSWORD).expect("nobody is refused");
                    assert!(lives(&mut client), "every client is served");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let wait_served = |more: u64| {
        let before = served.load(Ordering::Relaxed);
        eventually("clients are served", || {
            (served.load(Ordering::Relaxed) > before + more).then_some(())
        });
    };
    wait_served(100);
    let last = rolegate.upgrade();
    wait_served(200);
    stop.store(true, Ordering::Relaxed);
    load.into_iter().for_each(|thread| thread.join().unwrap());
    // The new process answers at the same address, and counts from zero.
    let mut new_session = Client::login(address, PASSWORD).unwrap();
    assert!(lives(&mut old_session) && lives(&mut new_session));
    assert!(rolegate.is_running());
    assert_eq!(rolegate.log("rolegate runs").len(), 2);
    assert_eq!(rolegate.get("/ready").0, 200);
    assert_eq!(rolegate.log("took over from the process before").len(), 1);

    let [old, new] = &group.nodes[..] else { unreachable!() };
    new.promote();
    old.follow(new);
    assert_eq!(old_session.end().1, ErrorKind::ConnectionReset);
    assert_eq!(new_session.end().1, ErrorKind::ConnectionReset);
    // Its last session has ended.
    assert_eq!(rolegate.wait_exit(), Some(0));
    eventually("the new process serves the new master", || {
        let mut client = Client::login(address, PASSWORD).ok()?;
        (client.call(&["SET", "a", "b"]).ok()?.text() == "OK").then_some(())
    });
    Rolegate::signal_successor(last, Signal::TERM);
    eventually("the new process ends", || is_gone(last).then_some(()));
}

#[test]
fn a_new_process_that_cannot_start_takes_nothing_over() {
    let node = Node::start(&[]);
    let good = config(&[node.address()], None);
    let rolegate = Rolegate::start_ready(&good);
    let mut client = rolegate.client();
    rolegate.write_config("nonsense");
    rolegate.signal(Signal::USR2);
    let line = rolegate.wait_log("not taken over; this process goes on");
    assert!(line["why"].as_str().unwrap().contains("it has ended"), "{line}");
    assert!(lives(&mut client) && lives(&mut rolegate.client()));
    // The next try may go well.
    rolegate.write_config(&good);
    rolegate.upgrade();
    assert!(lives(&mut client) && lives(&mut rolegate.client()));
}

#[test]
fn a_process_that_does_not_serve_what_the_one_before_serves_takes_nothing_over() {
    let group = Group::start(2);
    let config = group.config();
    let rolegate = Rolegate::start_ready(&config);
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    // A stranger that says it is a master, too: the new process would have to guess.
    let stranger = Node::start_with_password(&[]);
    let replica = format!("n1: '{}'", group.nodes[1].address());
    rolegate.write_config(&config.replace(&replica, &format!("n1: '{}'", stranger.address())));
    rolegate.signal(Signal::USR2);
    let line = rolegate.wait_log("not taken over; this process goes on");
    assert!(line["why"].as_str().unwrap().contains("it has ended"), "{line}");
    assert!(lives(&mut client));
}

#[test]
fn old_sessions_end_after_hard_stop_after_or_a_stop() {
    let node = Node::start(&[]);
    let config = config(&[node.address()], None);
    for settings in ["hard_stop_after: 500ms\n", "shutdown_timeout: 0s\n"] {
        let mut rolegate = Rolegate::start_ready(&format!("{config}{settings}"));
        let mut client = rolegate.client();
        assert!(lives(&mut client));
        rolegate.upgrade();
        if settings.starts_with("shutdown") {
            assert!(lives(&mut client));
            rolegate.signal(Signal::TERM);
        }
        client.end();
        assert_eq!(rolegate.wait_exit(), Some(0));
    }
}

#[test]
fn sockets_that_are_passed_are_used() {
    let node = Node::start(&[]);
    let [first, second, unused] = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let address: SocketAddr = first.local_addr().unwrap();
    let config = config(&[node.address()], None)
        .replace("bind: 127.0.0.1:0, pool", &format!("bind: '{address}', pool"));
    let sockets = [first, second, unused];
    let rolegate = Rolegate::start_with(&config, |command| {
        let mappings = sockets
            .into_iter()
            .zip(3..)
            .map(|(socket, child_fd)| FdMapping { parent_fd: socket.into(), child_fd });
        command.fd_mappings(mappings.collect()).unwrap();
        // The second is known by its name alone, as the config leaves the port to the system.
        command.env("LISTEN_FDS", "3").env("LISTEN_FDNAMES", "any:admin.bind:other");
    });
    rolegate.wait_ready();
    assert_eq!(rolegate.address(), address);
    assert!(lives(&mut rolegate.client()));
    let line = rolegate.wait_log("a socket was passed that is not used");
    assert_eq!(line["name"], "other");
}

/// What a service manager hears, one message after the other.
fn hear(manager: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    let length = manager.recv(&mut bytes).expect("it says something");
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

fn wait_word(manager: &UnixDatagram, word: &str) -> String {
    eventually(word, || Some(hear(manager)).filter(|heard| heard.contains(word)))
}

#[test]
fn a_service_manager_is_told_what_happens() {
    let node = Node::start(&[]);
    let folder = tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let config = config(&[node.address()], None);
    let mut rolegate = Rolegate::start_with(&config, |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    });
    wait_word(&manager, "READY=1");
    wait_word(&manager, "WATCHDOG=1");
    assert!(rolegate.reload(&config));
    wait_word(&manager, "RELOADING=1");
    wait_word(&manager, "READY=1");
    rolegate.wait_ready();
    let client = rolegate.client();
    let process = rolegate.upgrade();
    wait_word(&manager, &format!("MAINPID={process}"));
    wait_word(&manager, "READY=1");
    wait_word(&manager, "WATCHDOG=1");
    drop(client);
    assert_eq!(rolegate.wait_exit(), Some(0));
    Rolegate::signal_successor(process, Signal::TERM);
    wait_word(&manager, "STOPPING=1");
}

#[test]
fn a_unix_socket_is_handed_over_with_its_file() {
    let node = Node::start(&[]);
    let folder = tempdir().unwrap();
    let path = folder.path().join("redis.sock");
    let bind = format!("bind: [127.0.0.1:0, 'unix:{}'], pool", path.display());
    let config = config(&[node.address()], None).replace("bind: 127.0.0.1:0, pool", &bind);
    let mut rolegate = Rolegate::start_ready(&config);
    let process = rolegate.upgrade();
    assert_eq!(rolegate.wait_exit(), Some(0));
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"PING\r\n").unwrap();
    let mut reply = [0; 7];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"+PONG\r\n");
    drop(client);
    Rolegate::signal_successor(process, Signal::TERM);
    eventually("the file goes with the last process", || (!path.exists()).then_some(()));
}

#[test]
fn both_processes_take_over_a_renewed_password() {
    let group = Group::start(1);
    let folder = tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, PASSWORD).unwrap();
    let auth = format!("password_file: '{}'", file.display());
    let config = group.config().replace(&format!("password: '{PASSWORD}'"), &auth);
    let rolegate = Rolegate::start_ready(&config);
    let mut client = Client::login(rolegate.address(), PASSWORD).unwrap();
    rolegate.upgrade();
    group.nodes[0].call(&["CONFIG", "SET", "requirepass", "another-one"]);
    fs::write(&file, "another-one").unwrap();
    eventually("both say so", || {
        (rolegate.log("took over a file that the config names").len() == 2).then_some(())
    });
    assert!(lives(&mut client));
    assert_eq!(rolegate.log("serves without checks").len(), 0);
}
