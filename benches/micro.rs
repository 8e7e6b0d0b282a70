//! What the control plane's pure parts cost: reading a configuration, reading INFO, deciding.
//! `cargo bench --bench micro` runs them all, `cargo bench --bench micro -- election` some.
#![allow(missing_docs, clippy::unwrap_used)]
#![allow(clippy::allow_attributes_without_reason, unreachable_pub)]

use std::{fmt::Write as _, fs, hint::black_box, path::Path, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use redis::Value;
use rolegate::{
    config::{self, Config},
    control::election::{Decision, Election, Member},
    net,
    topology::{self, Answer, Failure, OnUnexplainedHeir, Role, Rule, State},
};

/// The reader of INFO is private: this is its very file, which looks for the rooms above.
#[path = "../src/control/name.rs"]
#[allow(dead_code, reason = "the bench reads INFO only")]
mod name;
#[path = "../src/control/reply.rs"]
#[allow(dead_code, unused_imports)]
mod reply;
#[path = "../src/control/route.rs"]
#[allow(dead_code)]
mod route;
#[path = "../src/control/secured.rs"]
#[allow(dead_code, unused_imports)]
mod secured;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn config(c: &mut Criterion) {
    // The shipped one reads its password from the environment, which a benchmark should not set.
    let shipped = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.yaml")).unwrap();
    let shipped = shipped.replace("password_env: REDIS_PASSWORD", "password: secret");
    let (mut listeners, mut pools) = (String::new(), String::new());
    for i in 0..100 {
        let port = 10_000 + i;
        writeln!(listeners, "  l{i}: {{ bind: '127.0.0.1:{port}', pool: p{i} }}").unwrap();
        writeln!(pools, "  p{i}:\n    auth: {{ password: secret }}\n    backends:").unwrap();
        for j in 0..3 {
            writeln!(pools, "      redis{j}: 10.0.{i}.{j}:6379").unwrap();
        }
    }
    let hundred = format!("listeners:\n{listeners}pools:\n{pools}");
    let mut group = c.benchmark_group("config");
    for (name, text) in [("proxy.yaml", shipped), ("100 pools", hundred)] {
        let parse = || Config::parse(Path::new("proxy.yaml"), black_box(&text)).unwrap();
        parse();
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |b| b.iter(parse));
    }
    group.finish();
}

/// INFO replication of a master with so many replicas, as Redis 7 sends it.
fn info_text(replicas: usize) -> String {
    let mut text = format!("# Replication\r\nrole:master\r\nconnected_slaves:{replicas}\r\n");
    for i in 0..replicas {
        let line = "state=online,offset=123456789,lag=0";
        write!(text, "slave{i}:ip=10.0.0.{i},port=6379,{line}\r\n").unwrap();
    }
    let zeros = "0".repeat(40);
    text + &format!(
        "master_failover_state:no-failover\r\nmaster_replid:{A}\r\nmaster_replid2:{zeros}\r\n\
         master_repl_offset:123456789\r\nsecond_repl_offset:-1\r\nrepl_backlog_active:1\r\n\
         repl_backlog_size:1048576\r\nrepl_backlog_histlen:1048576\r\n"
    )
}

/// All that a check reads of INFO.
fn info(c: &mut Criterion) {
    let names = ["master_replid", "master_replid2", "master_repl_offset", "master_link_status"];
    let mut group = c.benchmark_group("info");
    for replicas in [2, 100] {
        let text = info_text(replicas);
        group.throughput(Throughput::Bytes(text.len() as u64));
        let replied = || Value::BulkString(text.clone().into_bytes());
        let read = |reply| {
            let info = reply::info(reply).unwrap();
            assert_eq!(info.role().unwrap(), Role::Master);
            info.fields(names).map(|field| field.map(reply::tidy))
        };
        assert_eq!(read(replied())[0].as_deref(), Some(A));
        group.bench_function(BenchmarkId::new("replicas", replicas), |b| {
            b.iter_batched(replied, read, BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn backend(place: usize, role: Role, replid: &str, replid2: Option<&str>) -> State {
    State::Up(Answer {
        address: ([10, 0, 0, 1], u16::try_from(place).unwrap()).into(),
        role,
        run_id: format!("{place:040}"),
        replid: replid.to_owned(),
        replid2: replid2.map(str::to_owned),
        offset: Some(123_456_789),
        link_up: (role == Role::Replica).then_some(true),
    })
}

/// One decision: of an election whose incumbent goes on, of one that knows of none and sees two
/// masters, and of one that remembers the old master and sees its heir.
fn election(c: &mut Criterion) {
    let master = |place, replid, replid2| backend(place, Role::Master, replid, replid2);
    let replica = |place, replid, replid2| backend(place, Role::Replica, replid, replid2);
    let mut group = c.benchmark_group("election");
    for count in [10, 100, 1000] {
        let mut steady = vec![master(0, A, None)];
        steady.extend((1..count).map(|place| replica(place, A, None)));
        let mut conflict = vec![master(0, A, None), master(1, B, None)];
        conflict.extend((2..count).map(|place| replica(place, [A, B][place % 2], None)));
        let mut heir = vec![State::Down(Failure::Timeout), master(1, B, Some(A))];
        heir.extend((2..count).map(|place| replica(place, B, Some(A))));
        let decide = |election: &mut Election, states: &[State]| {
            let member = |state| Member { state, checked: Duration::ZERO, fresh: true };
            let members: Vec<_> = states.iter().map(member).collect();
            election.decide(Duration::from_secs(1), black_box(&members), None)
        };
        let served = |states: &[State]| {
            let mut election = Election::new(OnUnexplainedHeir::Hold, None);
            decide(&mut election, states);
            election.memory().cloned()
        };
        let incumbent = served(&steady);
        let cases = [
            ("steady", &steady, incumbent.clone(), 2, (Rule::Incumbent, Some(0))),
            ("conflict", &conflict, None, 1, (Rule::Conflict, None)),
            ("heir", &heir, incumbent, 1, (Rule::Heir, Some(1))),
        ];
        group.throughput(Throughput::Elements(count as u64));
        for (name, states, memory, decisions, expected) in cases {
            let fresh = || {
                let mut election = Election::new(OnUnexplainedHeir::Hold, memory.clone());
                (1..decisions).for_each(|_| drop(decide(&mut election, states)));
                election
            };
            let Decision { rule, serve, .. } = decide(&mut fresh(), states);
            assert_eq!((rule, serve), expected, "{name}");
            group.bench_function(BenchmarkId::new(name, count), |b| {
                b.iter_batched_ref(fresh, |e| decide(e, states), BatchSize::SmallInput);
            });
        }
    }
    group.finish();
}

criterion_group!(benches, config, info, election);
criterion_main!(benches);
