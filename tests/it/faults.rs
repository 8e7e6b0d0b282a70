//! What no real server does to a check, from a scripted fake.

use std::{
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::checks::{checks, in_front_of};
use crate::support::{
    Fake, FakeConnection, INFO_MASTER, Rolegate, bulk, config, eventually, info_replica,
};

/// Answers every command of a check with the same bytes.
fn always(bytes: &'static [u8]) -> Fake {
    Fake::start(move |mut connection| {
        loop {
            connection.command()?;
            connection.send(bytes)?;
        }
    })
}

#[test]
fn garbage_and_replies_of_the_wrong_kind() {
    let answers: [&[u8]; 6] = [
        b"\0\xff\xfe garbage \r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b":1\r\n",
        b"+OK\r\n",
        b"*2147483647\r\n*2147483647\r\n*2147483647\r\n!",
        b"$-2\r\n$99999999999999999999\r\n",
    ];
    for answer in answers {
        let fake = always(answer);
        let rolegate = in_front_of(fake.address(), None);
        let what = String::from_utf8_lossy(answer).into_owned();
        eventually(&format!("{what:?} fails the check"), || {
            let state = rolegate.status()["pools"]["main"]["backends"]["n0"]["state"].take();
            (state == "down").then_some(())
        });
        let backend = rolegate.status()["pools"]["main"]["backends"]["n0"].take();
        let reason = backend["error"]["reason"].as_str().unwrap().to_owned();
        assert!(reason == "protocol" || reason == "timeout", "{what:?}: {reason}");
        assert!(rolegate.log("a defect of rolegate: please report this panic").is_empty());
    }
}

#[test]
fn a_reply_without_end_is_cut_off() {
    let fake = Fake::start(|mut connection| {
        connection.command()?;
        connection.send("+PONG\r\n$1000000000\r\n")?;
        loop {
            connection.send([b'x'; 65536])?;
        }
    });
    let rolegate = in_front_of(fake.address(), None);
    rolegate.wait_failure("n0", "protocol");
    let before = rolegate.memory();
    let start = checks(&rolegate);
    eventually("more such checks", || (checks(&rolegate) > start + 20.0).then_some(()));
    let grown = rolegate.memory().saturating_sub(before);
    assert!(grown < 8192, "{grown} KiB");
}

#[test]
fn replies_in_one_byte_pieces_and_a_long_info() {
    let long: String = (0..200)
        .map(|n| format!("slave{n}:ip=10.0.0.{n},port=6379,state=online,offset=42,lag=0\r\n"))
        .collect();
    let info = format!("{INFO_MASTER}{long}");
    assert!(info.len() > 4096);
    let fake = Fake::start(move |mut connection: FakeConnection| {
        let answer = |connection: &mut FakeConnection| -> std::io::Result<()> {
            let command = connection.command()?;
            let reply = match command[0].as_str() {
                "PING" => "+PONG\r\n".to_owned(),
                _ => bulk(&info),
            };
            // In pieces first, at full speed later.
            let (slow, fast) = reply.split_at(reply.len().min(100));
            slow.bytes().try_for_each(|byte| connection.send([byte]))?;
            connection.send(fast)
        };
        loop {
            answer(&mut connection)?;
        }
    });
    let rolegate = in_front_of(fake.address(), None);
    rolegate.wait_ready();
    assert_eq!(rolegate.status()["pools"]["main"]["backends"]["n0"]["offset"], 42);
}

#[test]
fn errors_that_come_unasked_before_the_hang_up() {
    let greetings = [
        ("-DENIED Redis is running in protected mode because ...\r\n", "denied"),
        ("-DENIED Running in protected mode because ...\r\n", "denied"),
        ("-ERR max number of clients reached\r\n", "maxclients"),
    ];
    for (greeting, reason) in greetings {
        let fake = Fake::start(move |mut connection| connection.send(greeting));
        in_front_of(fake.address(), None).wait_failure("n0", reason);
    }
}

#[test]
fn a_backend_that_resets_or_closes_at_once() {
    let closes = Fake::start(|_| Ok(()));
    in_front_of(closes.address(), None).wait_failure("n0", "cut");

    let resets = Fake::start(|connection| {
        socket2::SockRef::from(connection.stream()).set_linger(Some(Duration::ZERO))
    });
    in_front_of(resets.address(), None).wait_failure("n0", "cut");
}

#[test]
fn a_backend_that_cuts_after_every_answer_is_not_checked_without_pause() {
    let fake = Fake::start(|mut connection| {
        for _ in 0..3 {
            let command = connection.command()?;
            connection.answer_check(&command, INFO_MASTER)?;
        }
        Err(ErrorKind::ConnectionAborted.into())
    });
    let rolegate = in_front_of(fake.address(), None);
    rolegate.wait_ready();
    let (before, since) = (checks(&rolegate), Instant::now());
    eventually("some checks", || (checks(&rolegate) > before + 50.0).then_some(()));
    let rate = (checks(&rolegate) - before) / since.elapsed().as_secs_f64();
    assert!(rate < 400.0, "{rate} checks a second");
}

#[test]
fn a_push_before_the_reply_is_passed_over() {
    let fake = Fake::start(|mut connection| {
        loop {
            let command = connection.command()?;
            connection.send(">2\r\n+invalidate\r\n*1\r\n+key\r\n")?;
            connection.answer_check(&command, INFO_MASTER)?;
        }
    });
    in_front_of(fake.address(), None).wait_ready();
}

#[test]
fn what_a_connection_said_first_is_not_why_it_is_cut_later() {
    let first = AtomicBool::new(true);
    let fake = Fake::start(move |mut connection| {
        let loading = if first.swap(false, Ordering::Relaxed) { 2 } else { 0 };
        for check in 0..10 {
            let ping = connection.command()?;
            if check < loading {
                connection.send("-LOADING Redis is loading the dataset in memory\r\n")?;
            } else {
                connection.answer_check(&ping, INFO_MASTER)?;
            }
            // INFO server is asked until a check has passed.
            for _ in 0..if check <= loading { 2 } else { 1 } {
                let command = connection.command()?;
                connection.answer_check(&command, INFO_MASTER)?;
            }
        }
        // Cut in the middle of the next check.
        connection.command().map(drop)
    });
    let rolegate = in_front_of(fake.address(), None);
    rolegate.wait_ready();
    let before = checks(&rolegate);
    eventually("the link is cut a few times", || (checks(&rolegate) > before + 20.0).then_some(()));
    let failed = rolegate.log("check failed");
    assert!(failed.iter().all(|line| line["reason"] == "loading"), "{failed:?}");
    assert!(rolegate.log("backend is down").is_empty());
}

#[test]
fn a_refused_login_is_tried_again_on_the_same_connection() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let fake = Fake::start(move |mut connection| {
        count.fetch_add(1, Ordering::Relaxed);
        let mut logins = 0;
        loop {
            let command = connection.command()?;
            if command[0] == "AUTH" {
                logins += 1;
                let refused = "-WRONGPASS invalid username-password pair\r\n";
                connection.send(if logins < 5 { refused } else { "+OK\r\n" })?;
            } else if logins < 5 {
                connection.send("-NOAUTH Authentication required.\r\n")?;
            } else {
                connection.answer_check(&command, INFO_MASTER)?;
            }
        }
    });
    let rolegate = in_front_of(fake.address(), Some("secret"));
    rolegate.wait_failure("n0", "wrongpass");
    rolegate.wait_ready();
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[test]
fn a_new_process_that_says_nothing_is_not_taken_for_the_old_one() {
    let swapped = Arc::new(AtomicBool::new(false));
    let swap = swapped.clone();
    let fake = Fake::start(move |mut connection| {
        if swap.load(Ordering::Relaxed) {
            return connection.drain();
        }
        while !swap.load(Ordering::Relaxed) {
            let command = connection.command()?;
            connection.answer_check(&command, INFO_MASTER)?;
        }
        Ok(())
    });
    // The old process would get 100 timeouts.
    let config = config(&[fake.address()], None).replace("fall: 2", "fall: 100");
    let rolegate = Rolegate::start_ready(&config);
    swapped.store(true, Ordering::Relaxed);
    rolegate.wait_failure("n0", "timeout");
    assert_eq!(rolegate.get("/ready").0, 503);
}

#[test]
fn an_error_and_then_garbage_does_not_keep_a_dead_connection() {
    let first = AtomicBool::new(true);
    let fake = Fake::start(move |mut connection| {
        let broken = first.swap(false, Ordering::Relaxed);
        loop {
            let command = connection.command()?;
            if broken {
                connection
                    .send("-LOADING Redis is loading the dataset in memory\r\n!garbage\r\n")?;
            } else {
                connection.answer_check(&command, INFO_MASTER)?;
            }
        }
    });
    in_front_of(fake.address(), None).wait_ready();
}

#[test]
fn busy_is_believed_only_from_the_connection_that_passed() {
    // Busy at first, then a pass, then garbage; on every later connection a replica.
    let first = AtomicBool::new(true);
    let fake = Fake::start(move |mut connection| {
        if first.swap(false, Ordering::Relaxed) {
            connection.command()?;
            connection.send("-BUSY Redis is busy running a script.\r\n".repeat(3))?;
            connection.command()?;
            connection.command()?;
            for _ in 0..3 {
                let command = connection.command()?;
                connection.answer_check(&command, INFO_MASTER)?;
            }
            connection.command()?;
            connection.send("\x01garbage\r\n")?;
            return connection.drain();
        }
        let replica = info_replica();
        loop {
            let command = connection.command()?;
            connection.answer_check(&command, &replica)?;
        }
    });
    let rolegate = in_front_of(fake.address(), None);
    eventually("it is seen as a replica", || {
        let role = r#"rolegate_backend_role{backend="n0",pool="main",role="replica"}"#;
        (rolegate.metric(role) == 1.0).then_some(())
    });
    assert_eq!(rolegate.get("/ready").0, 503);
}

/// A master that answers its first check, then says nothing for so long, then answers again. Any
/// connection but the first answers at once.
fn silent_for(pause: Duration) -> (Fake, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let fake = Fake::start(move |mut connection| {
        let first = count.fetch_add(1, Ordering::Relaxed) == 0;
        for n in 0.. {
            let command = connection.command()?;
            // The first check has three commands.
            if first && n == 3 {
                thread::park_timeout(pause);
            }
            connection.answer_check(&command, INFO_MASTER)?;
        }
        Ok(())
    });
    (fake, connections)
}

#[test]
fn a_late_answer_of_the_same_process_is_waited_for() {
    let (fake, connections) = silent_for(Duration::from_millis(1200));
    let config = config(&[fake.address()], None).replace("fall: 2", "fall: 100");
    let rolegate = Rolegate::start_ready(&config);
    rolegate.wait_log("check failed");
    rolegate.wait_log("checks pass again");
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    assert_eq!(rolegate.status()["pools"]["main"]["epoch"], 1);
}

#[test]
fn a_connection_that_stays_silent_is_given_up() {
    let (fake, connections) = silent_for(Duration::from_secs(3600));
    let rolegate = Rolegate::start_ready(&config(&[fake.address()], None));
    rolegate.wait_log("backend is down");
    rolegate.wait_ready();
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

#[test]
fn a_connection_that_has_proven_nothing_gets_one_timeout() {
    // Silent from the start, or after -LOADING.
    for loading in [false, true] {
        let first = AtomicBool::new(true);
        let fake = Fake::start(move |mut connection| {
            if first.swap(false, Ordering::Relaxed) {
                if loading {
                    for _ in 0..3 {
                        connection.command()?;
                    }
                    connection.send("-LOADING Redis is loading the dataset\r\n".repeat(3))?;
                }
                return connection.drain();
            }
            loop {
                let command = connection.command()?;
                connection.answer_check(&command, INFO_MASTER)?;
            }
        });
        // With all its timeouts the first connection would last for 50 s.
        let config = config(&[fake.address()], None).replace("fall: 2", "fall: 100");
        Rolegate::start(&config).wait_ready();
    }
}

#[test]
fn a_login_that_the_backend_forgot_is_made_again() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let fake = Fake::start(move |mut connection| {
        count.fetch_add(1, Ordering::Relaxed);
        let (mut logins, mut answers) = (0, 0);
        loop {
            let command = connection.command()?;
            if command[0] == "AUTH" {
                logins += 1;
                connection.send("+OK\r\n")?;
            } else if logins == 1 && answers >= 7 {
                connection.send("-NOAUTH Authentication required.\r\n")?;
            } else {
                answers += 1;
                connection.answer_check(&command, INFO_MASTER)?;
            }
        }
    });
    let rolegate = Rolegate::start_ready(&config(&[fake.address()], Some("secret")));
    assert_eq!(rolegate.wait_log("backend is down")["reason"], "noauth");
    rolegate.wait_ready();
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}
