//! Asks one Sentinel once, and tells all that is wrong.

use std::time::Duration;

use redis::Value;
use tokio::{sync::mpsc, time::timeout};

use super::{QUEUE, connect, field, fields, questions, said, subscribe};
use crate::{
    config::Auth,
    control::{
        council::Said,
        reply,
        route::{Problem, Route},
    },
    topology::Failure,
};

/// All that one Sentinel tells when it is asked once.
pub(in crate::control) struct Examined {
    /// What the monitor would make of it.
    pub(in crate::control) said: Result<Said, Problem>,
    /// The ACL rules that the user lacks.
    pub(in crate::control) missing: Vec<&'static str>,
    /// The program and its version.
    pub(in crate::control) version: Option<String>,
    /// Whether it is a Sentinel at all.
    pub(in crate::control) is_sentinel: bool,
}

/// Asks a Sentinel once over a new connection, and hears every reply out. `deadline` is for all.
pub(in crate::control) async fn examine(
    route: &Route,
    auth: Option<&Auth>,
    master_name: &str,
    deadline: Duration,
) -> Result<Examined, Problem> {
    let examined = async {
        let (events, _unheard) = mpsc::channel(QUEUE);
        let (mut wire, _) = connect(route, auth, events).await?;
        let mut commands = questions(master_name);
        // Which every user may run.
        commands.cmd("HELLO");
        let mut replies = wire.send(&commands).await?;
        let hello = replies.pop().and_then(fields).unwrap_or_default();
        let about = |name| field(&hello, name);
        let is_sentinel = about("mode").is_some_and(|mode| mode == "sentinel");
        let lacks = |place: usize| match replies.get(place) {
            Some(Value::ServerError(error)) => error.code() == "NOPERM",
            _ => false,
        };
        let rules = ["+sentinel|get-master-addr-by-name", "+sentinel|master"];
        let mut missing: Vec<_> = (0..2).filter(|place| lacks(*place)).map(|p| rules[p]).collect();
        if is_sentinel && let Some((_, error)) = subscribe(&mut wire).await? {
            // Where the command is refused, nobody has looked at the channels yet.
            if !error.detail().unwrap_or_default().contains("channel") {
                missing.push("+subscribe");
            }
            missing.push("&*");
        }
        let version = about("version").zip(about("server"));
        let version =
            version.map(|(version, program)| reply::tidy(&format!("{program} {version}")));
        Ok(Examined { said: said(replies), missing, version, is_sentinel })
    };
    let silent = |_| Err(Problem { failure: Failure::Timeout, words: None });
    timeout(deadline, examined).await.unwrap_or_else(silent)
}
