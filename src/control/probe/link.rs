//! One kept connection to a backend, and the questions that go over it.

use std::sync::{Arc, LazyLock};

use redis::{Pipeline, Value};
use secrecy::ExposeSecret;

use super::{Answered, Problem};
use crate::{
    config::Auth,
    control::{
        health::Observation,
        reply::{self, Info},
        wire::{Line, Questions},
    },
    net::tls::Stream,
    topology::{Address, Answer, Failure, Role},
};

/// All replies of one check together may not be longer, in bytes. INFO replication has about 100
/// for each replica.
const MAX_REPLIES: usize = 1 << 20;

pub(super) struct Link {
    line: Line,
    address: Address,
    logged_in: bool,
    /// The last check that passed; no other process can ever answer on this connection.
    proven: Option<Answer>,
}

/// All that one backend tells when it is asked once.
pub(in crate::control) struct Examined {
    /// What a check would make of it.
    pub(in crate::control) answer: Result<Answer, Problem>,
    /// The ACL rules that the user lacks.
    pub(in crate::control) missing: Vec<&'static str>,
    /// The program and its version.
    pub(in crate::control) version: Option<String>,
    /// `host:port` of its master, by its own words.
    pub(in crate::control) follows: Option<String>,
}

impl Link {
    pub(super) fn new(stream: Stream, address: Address) -> Self {
        let line = Line::new(stream, MAX_REPLIES);
        Self { line, address, logged_in: false, proven: None }
    }

    /// Where it leads.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Whether the connection is of no more use.
    pub(super) fn is_cut(&self) -> bool {
        self.line.is_cut()
    }

    /// Whether a check has passed on this connection.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.is_some()
    }

    /// Resolves when the backend closes the connection while nothing is asked.
    pub(super) async fn cut(&mut self) {
        self.line.cut().await;
    }

    /// One full check. Gives the link back unless a new one is needed.
    pub(super) async fn ask(mut self: Box<Self>, auth: Option<Arc<Auth>>) -> Answered {
        let auth = auth.as_deref().filter(|_| !self.logged_in);
        let replies = if auth.is_none() && self.is_proven() {
            // The same for nearly every check, so it is built once.
            static USUAL: LazyLock<Questions> = LazyLock::new(|| questions(None, false));
            self.line.ask(&USUAL).await
        } else {
            self.line.ask(&questions(auth, !self.is_proven())).await
        };
        let replies = match replies {
            Ok(replies) => replies,
            Err(problem) => return (None, Err(problem)),
        };
        let result = match self.read(replies, auth.is_some()) {
            Ok(answer) => {
                match &mut self.proven {
                    Some(proven) if proven.claims_the_same(&answer) => {}
                    proven => *proven = Some(answer.clone()),
                }
                Ok(Observation::Passed(answer))
            }
            Err(problem) if problem.failure == Failure::Busy && self.is_proven() => {
                self.ask_busy(problem).await
            }
            Err(problem) => Err(problem),
        };
        let failure = result.as_ref().err().map(|problem| problem.failure);
        if failure == Some(Failure::NoAuth) {
            // The user is another than it was.
            self.logged_in = false;
        }
        // Any other refusal can end on this connection as well as on a new one.
        let lost = matches!(
            failure,
            Some(
                Failure::Cut
                    | Failure::Denied
                    | Failure::MaxClients
                    | Failure::Protocol
                    | Failure::Tls
                    | Failure::TlsClientCert
            )
        );
        ((!lost).then_some(self), result)
    }

    /// Asks what a first check asks, and takes each reply for itself, so that all that is wrong is
    /// told at once.
    pub(super) async fn examine(mut self, auth: Option<&Auth>) -> Result<Examined, Problem> {
        let mut replies = self.line.ask(&questions(auth, true)).await?.into_iter();
        let mut next = || replies.next().unwrap_or(Value::Nil);
        if auth.is_some() {
            reply::login(&next())?;
        }
        let pong = reply::pong(&next());
        let (replication, about) = (reply::info(next()), reply::info(next()));
        let lacks = |problem: Option<&Problem>| {
            problem.is_some_and(|problem| problem.failure == Failure::NoPerm)
        };
        let mut missing = Vec::new();
        if lacks(pong.as_ref().err()) {
            missing.push("+ping");
        }
        if lacks(replication.as_ref().err()) || lacks(about.as_ref().err()) {
            missing.push("+info");
        }
        let follows = replication.as_ref().ok().and_then(|replication| {
            let [host, port] = replication.fields(["master_host", "master_port"]);
            Some(reply::tidy(&format!("{}:{}", host?, port?)))
        });
        let version = about.as_ref().ok().and_then(|about| {
            let [valkey, redis] = about.fields(["valkey_version", "redis_version"]);
            let redis = redis.map(|version| format!("Redis {version}"));
            valkey.map(|version| format!("Valkey {version}")).or(redis)
        });
        let answer = pong.and(replication).and_then(|replication| {
            let run_id = about?.text("run_id").unwrap_or_default();
            Ok(answer(self.address, replication.role()?, run_id, &replication))
        });
        let version = version.as_deref().map(reply::tidy);
        Ok(Examined { answer, missing, version, follows })
    }

    /// During a script only HELLO tells the role. Servers before 6.0 have none, and then what was
    /// said before has to do.
    async fn ask_busy(&mut self, busy: Problem) -> Result<Observation, Problem> {
        let mut hello = Pipeline::new();
        hello.cmd("HELLO");
        let replies = self.line.ask(&Questions::new(&hello)).await?;
        let role = replies.first().and_then(reply::hello_role);
        match (&self.proven, role) {
            (Some(proven), Some(role)) if proven.role != role => Err(busy),
            _ => Ok(Observation::StillBusy),
        }
    }

    fn read(&mut self, replies: Vec<Value>, login: bool) -> Result<Answer, Problem> {
        let mut replies = replies.into_iter();
        let mut next = || replies.next().unwrap_or(Value::Nil);
        if login {
            reply::login(&next())?;
            self.logged_in = true;
        }
        reply::pong(&next())?;
        let replication = reply::info(next())?;
        let role = replication.role()?;
        let run_id = match &self.proven {
            Some(proven) => proven.run_id.clone(),
            None => reply::info(next())?.text("run_id").unwrap_or_default(),
        };
        Ok(answer(self.address.clone(), role, run_id, &replication))
    }
}

fn questions(auth: Option<&Auth>, with_server: bool) -> Questions {
    let mut commands = Pipeline::new();
    if let Some(auth) = auth {
        commands.cmd("AUTH").arg(&auth.username).arg(auth.password.expose_secret());
    }
    commands.cmd("PING").cmd("INFO").arg("replication");
    if with_server {
        commands.cmd("INFO").arg("server");
    }
    Questions::new(&commands)
}

fn answer(address: Address, role: Role, run_id: String, replication: &Info) -> Answer {
    let offset = match role {
        Role::Master => "master_repl_offset",
        Role::Replica => "slave_repl_offset",
    };
    let [replid, replid2, offset, link] =
        replication.fields(["master_replid", "master_replid2", offset, "master_link_status"]);
    Answer {
        address,
        role,
        run_id,
        replid: replid.map(reply::tidy).unwrap_or_default(),
        replid2: replid2.filter(|id| id.contains(|c| c != '0')).map(reply::tidy),
        offset: offset.and_then(|offset| offset.trim().parse().ok()),
        link_up: link.map(|status| status == "up"),
    }
}
