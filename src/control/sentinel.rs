//! Listens to the Sentinels of a pool, and asks them: one kept connection each, over which events
//! are pushed (RESP3) and questions are answered.

mod examine;

use std::{sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, ErrorKind, Pipeline, ProtocolVersion, PushInfo, PushKind,
    RedisConnectionInfo, RedisError, Value,
};
use secrecy::ExposeSecret;
use tokio::{
    sync::{Notify, mpsc},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::warn;

pub(super) use self::examine::{Examined, examine};
use super::{
    council::{Event, Said},
    reply,
    route::{Problem, Route},
    wire::Wire,
};
use crate::{
    config::{self, Auth, Check, Endpoint, HostPort},
    topology::{Address, Failure},
};

/// From one question to the next while nothing happens.
const INTERVAL: Duration = Duration::from_secs(1);

/// Questions start at least so far apart, and those that only an event calls for, so far.
const MIN_GAP: Duration = Duration::from_millis(5);
const EVENT_GAP: Duration = Duration::from_millis(50);

/// From one question to the next a Sentinel may send so many bytes. An answer has about 1,000, and
/// all events of a failover together 3,000.
const MAX_BYTES: usize = 64 * 1024;

/// Between attempts to connect; doubled each time.
const RETRY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_millis(1000);

/// News and events that wait at the most. Events beyond are dropped; the next question makes up
/// for them.
const QUEUE: usize = 256;

/// Given up on a Sentinel that acknowledges nothing for so long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Everything that Sentinel tells about a failover.
const CHANNELS: [&str; 16] = [
    "+switch-master",
    "+odown",
    "-odown",
    "+try-failover",
    "+elected-leader",
    "+failover-state-select-slave",
    "+selected-slave",
    "+failover-state-send-slaveof-noone",
    "+failover-state-wait-promotion",
    "+promoted-slave",
    "+failover-state-reconf-slaves",
    "+failover-end",
    "+failover-end-for-timeout",
    "-failover-abort-not-elected",
    "-failover-abort-no-good-slave",
    "-failover-abort-slave-timeout",
];

/// What one Sentinel said, as the monitor gets it.
#[derive(Debug)]
pub(super) enum News {
    /// It answered.
    Answered { place: usize, asked: Instant, said: Said },
    /// It told of something.
    Event { place: usize, event: Event },
    /// It is not heard; `gone` if nothing listens at its address.
    Silent { place: usize, asked: Instant, why: String, gone: bool },
}

/// All Sentinels of a pool. They are heard until this is dropped.
pub(super) struct Sentinels {
    tasks: Vec<Sentinel>,
    running: Vec<AbortHandle>,
    questions: Vec<Arc<Notify>>,
}

/// One of them.
struct Sentinel {
    pool: Arc<str>,
    place: usize,
    name: String,
    master_name: String,
    auth: Option<Auth>,
    route: Route,
    timeout: Duration,
    news: mpsc::Sender<News>,
    question: Arc<Notify>,
}

impl Sentinels {
    /// The timeout of checks is for one question, and for a connection.
    pub(super) fn new(
        pool: &Arc<str>,
        config: &config::Sentinel,
        check: &Check,
    ) -> (Self, mpsc::Receiver<News>) {
        let (news, receiver) = mpsc::channel(QUEUE);
        let questions: Vec<_> = config.addresses.iter().map(|_| Arc::default()).collect();
        let tasks = config.addresses.iter().zip(&questions).enumerate();
        let tasks = tasks.map(|(place, (address, question))| Sentinel {
            pool: pool.clone(),
            place,
            name: address.to_string(),
            master_name: config.master_name.clone(),
            auth: config.auth.clone(),
            route: Route::new(
                Endpoint::Host(address.clone()),
                config.tls.as_ref(),
                check.timeout,
                check.resolve,
            ),
            timeout: check.timeout,
            news: news.clone(),
            question: Arc::clone(question),
        });
        (Self { tasks: tasks.collect(), running: Vec::new(), questions }, receiver)
    }

    /// Starts to listen, once.
    pub(super) fn spawn(&mut self, tasks: &mut JoinSet<()>) {
        self.running.extend(self.tasks.drain(..).map(|sentinel| tasks.spawn(sentinel.run())));
    }

    /// Asks all of them at once.
    pub(super) fn ask_now(&self) {
        self.questions.iter().for_each(|question| question.notify_one());
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        self.running.iter().for_each(AbortHandle::abort);
    }
}

impl Sentinel {
    /// Listens and asks until the monitor is gone.
    async fn run(self) {
        tokio::select! {
            () = Box::pin(self.route.keep()) => {}
            () = self.listen() => {}
        }
    }

    async fn listen(&self) {
        let mut changes = self.route.changes();
        let mut retry = *RETRY.start();
        loop {
            let mut asked = Instant::now();
            let (events, pushed) = mpsc::channel(QUEUE);
            let problem = match timeout(self.timeout, self.connect(events)).await {
                Err(_) => Problem { failure: Failure::Timeout, words: None },
                Ok(Err(problem)) => problem,
                Ok(Ok((wire, address))) => {
                    let talk = self.converse(wire, pushed, &mut asked, &mut retry);
                    let moved = async {
                        while self.route.holds(&address) {
                            changes.next().await;
                        }
                    };
                    tokio::select! {
                        problem = talk => match problem {
                            Some(problem) => problem,
                            None => return,
                        },
                        // Another address is another Sentinel.
                        () = moved => continue,
                    }
                }
            };
            self.route.look_again();
            let gone = problem.failure == Failure::Refused;
            let why = match &problem.words {
                Some(words) => format!("{} ({words})", problem.failure),
                None => problem.failure.to_string(),
            };
            let news = News::Silent { place: self.place, asked, why, gone };
            if self.news.send(news).await.is_err() {
                return;
            }
            let pause = retry.mul_f64(0.5 + 0.5 * fastrand::f64());
            tokio::select! {
                () = sleep(pause) => {}
                () = self.question.notified() => sleep(MIN_GAP).await,
                () = changes.next() => sleep(MIN_GAP).await,
            }
            retry = (retry * 2).min(*RETRY.end());
        }
    }

    async fn connect(&self, events: mpsc::Sender<PushInfo>) -> Result<(Wire, Address), Problem> {
        let (mut wire, address) = connect(&self.route, self.auth.as_ref(), events).await?;
        if let Some((channel, error)) = subscribe(&mut wire).await? {
            let (pool, sentinel) = (&*self.pool, &*self.name);
            let (error, advice) = (
                reply::tidy(&error.to_string()),
                "allow the user +subscribe and all channels (&*), or failovers are noticed later",
            );
            warn!(pool, sentinel, channel, error, advice, "cannot subscribe");
        }
        Ok((wire, address))
    }

    /// Talks over one connection until it is of no more use. `None` when the monitor is gone.
    async fn converse(
        &self,
        mut wire: Wire,
        mut pushed: mpsc::Receiver<PushInfo>,
        asked: &mut Instant,
        retry: &mut Duration,
    ) -> Option<Problem> {
        let questions = questions(&self.master_name);
        let place = self.place;
        loop {
            *asked = Instant::now();
            let replies = match timeout(self.timeout, wire.send(&questions)).await {
                Err(_) => return Some(Problem { failure: Failure::Timeout, words: None }),
                Ok(Err(problem)) => return Some(problem),
                Ok(Ok(replies)) => replies,
            };
            match said(replies) {
                Ok(said) => {
                    *retry = *RETRY.start();
                    let news = News::Answered { place, asked: *asked, said };
                    self.news.send(news).await.ok()?;
                }
                Err(Problem { failure, words }) => {
                    let why = words.unwrap_or_else(|| failure.to_string());
                    let news = News::Silent { place, asked: *asked, why, gone: false };
                    self.news.send(news).await.ok()?;
                }
            }
            let mut next = *asked + INTERVAL.mul_f64(1.0 - 0.1 * fastrand::f64());
            loop {
                tokio::select! {
                    biased;
                    Some(push) = pushed.recv() => {
                        let Some(event) = event(&push, &self.master_name) else {
                            continue;
                        };
                        self.news.send(News::Event { place, event }).await.ok()?;
                        next = next.min(*asked + EVENT_GAP);
                    }
                    () = self.question.notified() => break,
                    () = wire.cut() => {
                        return Some(Problem { failure: Failure::Cut, words: None });
                    }
                    () = sleep_until(next) => break,
                }
            }
            sleep_until(*asked + MIN_GAP).await;
        }
    }
}

/// Connects and logs in.
async fn connect(
    route: &Route,
    auth: Option<&Auth>,
    events: mpsc::Sender<PushInfo>,
) -> Result<(Wire, Address), Problem> {
    let (stream, address) = route.connect(PATIENCE).await?;
    let mut info = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
    if let Some(auth) = auth {
        let password = String::from_utf8_lossy(auth.password.expose_secret()).into_owned();
        info = info.set_username(auth.username.as_deref().unwrap_or("default"));
        info = info.set_password(password);
    }
    let push = move |event| events.try_send(event).map_err(|_| ());
    let config = AsyncConnectionConfig::new().set_push_sender(push);
    match Wire::new(stream, MAX_BYTES, info, config).await {
        Err(Problem { failure: Failure::Cut, .. }) if route.wants_tls(&address).await => {
            Err(Problem { failure: Failure::TlsWanted, words: None })
        }
        wire => Ok((wire?, address)),
    }
}

/// Subscribes to all channels, up to the first that is refused: gives it, and the reason.
async fn subscribe(wire: &mut Wire) -> Result<Option<(&'static str, RedisError)>, Problem> {
    for channel in CHANNELS {
        let Err(error) = wire.subscribe(channel).await else {
            continue;
        };
        if error.is_io_error() || error.kind() == ErrorKind::Parse {
            return Err(Problem { failure: Failure::Cut, words: None });
        }
        return Ok(Some((channel, error)));
    }
    Ok(None)
}

/// Both questions about a master.
fn questions(master_name: &str) -> Pipeline {
    let mut questions = Pipeline::new();
    questions.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master_name);
    questions.cmd("SENTINEL").arg("MASTER").arg(master_name);
    questions
}

/// The meaning of the replies to both questions.
fn said(replies: Vec<Value>) -> Result<Said, Problem> {
    let mut replies = replies.into_iter();
    let mut next = || replies.next().unwrap_or(Value::Nil);
    let address = match next() {
        Value::Array(parts) => address(&parts),
        Value::Nil => None,
        Value::ServerError(error) => return Err(reply::server(&error)),
        _ => return Err(unexpected()),
    };
    let about = match next() {
        // It watches no master of this name.
        Value::ServerError(error) if address.is_none() && error.code() == "ERR" => {
            return Ok(Said::default());
        }
        Value::ServerError(error) => return Err(reply::server(&error)),
        other => fields(other).ok_or_else(unexpected)?,
    };
    let epoch = field(&about, "config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    let flags = field(&about, "flags").unwrap_or_default();
    Ok(Said {
        named: address.map(|address| (address, epoch)),
        failover: flags.split(',').any(|flag| flag == "failover_in_progress"),
    })
}

/// The names and values of a reply, in RESP2 as in RESP3.
fn fields(reply: Value) -> Option<Vec<(Value, Value)>> {
    match reply {
        Value::Map(fields) => Some(fields),
        Value::Array(flat) => {
            Some(flat.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
        }
        _ => None,
    }
}

fn field(fields: &[(Value, Value)], name: &str) -> Option<String> {
    fields.iter().find(|(key, _)| text(key).as_deref() == Some(name)).and_then(|(_, v)| text(v))
}

/// The meaning of an event, if it is about this master.
fn event(push: &PushInfo, master_name: &str) -> Option<Event> {
    if push.kind != PushKind::Message {
        return None;
    }
    let [channel, words] = &push.data[..] else {
        return None;
    };
    let (channel, words) = (text(channel)?, text(words)?);
    let words: Vec<_> = words.split(' ').collect();
    // `+switch-master` names the master first, events of a replica name it after an @.
    let about = match words[..] {
        ["master", name, ..] => name,
        ["slave", _, _, _, "@", name, ..] => name,
        [name, ..] => name,
        [] => return None,
    };
    if about != master_name {
        return None;
    }
    let replica = match words[..] {
        ["slave", _, host, port, ..] => {
            port.parse().ok().and_then(|port| HostPort::new(host, port))
        }
        _ => None,
    };
    Some(match channel.as_str() {
        "+failover-end" | "+failover-end-for-timeout" | "+switch-master" => Event::Ends,
        abort if abort.starts_with("-failover-abort") => Event::Ends,
        "+odown" | "-odown" => Event::Other,
        // A replica that is reconfigured after the promotion is no heir.
        "+selected-slave"
        | "+failover-state-send-slaveof-noone"
        | "+failover-state-wait-promotion"
        | "+promoted-slave" => Event::Goes(replica),
        _ => Event::Goes(None),
    })
}

fn address(parts: &[Value]) -> Option<HostPort> {
    let [host, port] = parts else {
        return None;
    };
    HostPort::new(&text(host)?, text(port)?.parse().ok()?)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

fn unexpected() -> Problem {
    Problem {
        failure: Failure::Protocol,
        words: Some("a reply to SENTINEL of the wrong kind: is this a Sentinel?".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn message(channel: &str, words: &str) -> PushInfo {
        PushInfo { kind: PushKind::Message, data: vec![bulk(channel), bulk(words)] }
    }

    fn at(port: u16) -> HostPort {
        HostPort { host: "10.0.0.1".to_owned(), port }
    }

    #[test]
    fn answers_of_resp2_and_resp3() {
        let address = Value::Array(vec![bulk("10.0.0.1"), bulk("7001")]);
        let fields = [("flags", "master,o_down,failover_in_progress"), ("config-epoch", "4")];
        let map = fields.map(|(key, value)| (bulk(key), bulk(value)));
        let flat = map.iter().flat_map(|(key, value)| [key.clone(), value.clone()]);
        let expected = Said { named: Some((at(7001), 4)), failover: true };
        let flat = Value::Array(flat.collect());
        assert_eq!(said(vec![address.clone(), flat]).unwrap(), expected);
        assert_eq!(said(vec![address, Value::Map(map.to_vec())]).unwrap(), expected);
    }

    #[test]
    fn a_master_that_it_does_not_know_is_no_vote() {
        let error = redis::parse_redis_value(b"-ERR No such master with that name\r\n").unwrap();
        assert_eq!(said(vec![Value::Nil, error]).unwrap(), Said::default());
    }

    #[test]
    fn a_user_that_may_not_ask_is_a_problem() {
        let error = redis::parse_redis_value(b"-NOPERM no permissions\r\n").unwrap();
        assert_eq!(said(vec![error.clone(), error.clone()]).unwrap_err().failure, Failure::NoPerm);
        let address = Value::Array(vec![bulk("10.0.0.1"), bulk("7001")]);
        assert_eq!(said(vec![address, error]).unwrap_err().failure, Failure::NoPerm);
    }

    #[test]
    fn events_as_sentinel_sends_them() {
        let selected = "slave 10.0.0.1:7002 10.0.0.1 7002 @ main 10.0.0.1 7001";
        let told = |channel, words| event(&message(channel, words), "main");
        assert_eq!(told("+selected-slave", selected), Some(Event::Goes(Some(at(7002)))));
        assert_eq!(told("+promoted-slave", selected), Some(Event::Goes(Some(at(7002)))));
        let master = "master main 10.0.0.1 7001";
        assert_eq!(told("+try-failover", master), Some(Event::Goes(None)));
        assert_eq!(told("-failover-abort-no-good-slave", master), Some(Event::Ends));
        assert_eq!(told("+odown", "master main 10.0.0.1 7001 #quorum 2/2"), Some(Event::Other));
        let switch = "main 10.0.0.1 7001 10.0.0.1 7002";
        assert_eq!(told("+switch-master", switch), Some(Event::Ends));
        assert_eq!(told("+switch-master", "other 10.0.0.1 7001 10.0.0.1 7002"), None);
        assert_eq!(told("+try-failover", "master other 10.0.0.1 7001"), None);
        assert_eq!(told("+selected-slave", &selected.replace("@ main", "@ other")), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..100), words in "\\PC{0,60}") {
            if let Ok(value) = redis::parse_redis_value(&bytes) {
                let _ = said(vec![value.clone(), value]);
            }
            let _ = event(&message("+selected-slave", &words), "main");
        }
    }
}
