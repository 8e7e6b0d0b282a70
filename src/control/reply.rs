//! What the replies to a check mean. Pure.

use redis::{ServerError, Value};

use super::route::Problem;
use crate::topology::{Failure, Role};

/// A failure's words are cut to this length, in characters.
const MAX_WORDS: usize = 200;

/// The reply to AUTH. Its words are never kept: where AUTH is renamed, the server's error repeats
/// its arguments.
pub(super) fn login(reply: &Value) -> Result<(), Problem> {
    match reply {
        Value::Okay => Ok(()),
        Value::ServerError(error) => Err(Problem {
            failure: classify(error.code(), error.details().unwrap_or_default()),
            words: Some("in reply to AUTH".to_owned()),
        }),
        _ => Err(unexpected("AUTH")),
    }
}

/// The reply to PING.
pub(super) fn pong(reply: &Value) -> Result<(), Problem> {
    match reply {
        Value::SimpleString(pong) if pong == "PONG" => Ok(()),
        Value::ServerError(error) => Err(server(error)),
        _ => Err(unexpected("PING")),
    }
}

/// The reply to INFO.
pub(super) fn info(reply: Value) -> Result<Info, Problem> {
    match reply {
        Value::BulkString(bytes) => Ok(Info(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })),
        Value::ServerError(error) => Err(server(&error)),
        _ => Err(unexpected("INFO")),
    }
}

/// The role in a reply to HELLO: names and values by turns.
pub(super) fn hello_role(reply: &Value) -> Option<Role> {
    let Value::Array(fields) = reply else {
        return None;
    };
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        _ => None,
    };
    let role = fields.chunks(2).find(|pair| text(&pair[0]).as_deref() == Some("role"))?.get(1)?;
    match text(role)?.as_str() {
        "master" => Some(Role::Master),
        "replica" | "slave" => Some(Role::Replica),
        _ => None,
    }
}

/// The text of INFO: lines of `field:value`.
#[derive(Debug)]
pub(super) struct Info(String);

impl Info {
    fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    }

    /// Several fields, found in one pass.
    pub(super) fn fields<const N: usize>(&self, names: [&str; N]) -> [Option<&str>; N] {
        let mut found = [None; N];
        for line in self.0.lines() {
            for (name, found) in names.iter().zip(&mut found) {
                let value = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(':'));
                if found.is_none() && value.is_some() {
                    *found = value;
                    break;
                }
            }
        }
        found
    }

    /// The field as text that is fit to be shown.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.field(name).map(tidy)
    }

    pub(super) fn role(&self) -> Result<Role, Problem> {
        match self.field("role") {
            Some("master") => Ok(Role::Master),
            Some("slave") => Ok(Role::Replica),
            other => Err(Problem {
                failure: Failure::NoRole,
                words: other.map(|role| tidy(&format!("role:{role}"))),
            }),
        }
    }
}

/// What an error that came unasked and first on a connection means: `-DENIED` and
/// `-ERR max number of clients` are sent before the backend hangs up.
pub(super) fn classify_greeting(greeting: &[u8]) -> Option<Failure> {
    let text = String::from_utf8_lossy(greeting.strip_prefix(b"-")?);
    let line = text.lines().next()?;
    let (code, details) = line.split_once(' ').unwrap_or((line, ""));
    Some(classify(code, details))
}

pub(super) fn server(error: &ServerError) -> Problem {
    let details = error.details().unwrap_or_default();
    Problem {
        failure: classify(error.code(), details),
        words: Some(tidy(&format!("{} {details}", error.code()))),
    }
}

fn unexpected(command: &str) -> Problem {
    Problem {
        failure: Failure::Protocol,
        words: Some(format!("a reply to {command} of the wrong kind")),
    }
}

/// Texts as Redis 2.8 to 8 and Valkey 7 to 9 send them.
pub(super) fn classify(code: &str, details: &str) -> Failure {
    match code {
        "BUSY" => Failure::Busy,
        "DENIED" => Failure::Denied,
        "LOADING" => Failure::Loading,
        "MASTERDOWN" => Failure::MasterDown,
        "NOAUTH" => Failure::NoAuth,
        "NOPERM" => Failure::NoPerm,
        "WRONGPASS" => Failure::WrongPass,
        // Redis 5 and older.
        "ERR" if details.starts_with("invalid password") => Failure::WrongPass,
        "ERR" if details.starts_with("Client sent AUTH, but no password") => Failure::AuthNotSet,
        "ERR" if details.starts_with("AUTH <password> called without") => Failure::AuthNotSet,
        // In cluster mode it goes on with "+ cluster connections".
        "ERR" if details.starts_with("max number of clients") => Failure::MaxClients,
        _ => Failure::ErrorReply,
    }
}

/// Fit for a log line: one line, no control characters, bounded.
pub(super) fn tidy(text: &str) -> String {
    let text = text.trim();
    if text.len() <= MAX_WORDS && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return text.to_owned();
    }
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(MAX_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(info: &str) -> Info {
        super::info(Value::BulkString(info.as_bytes().to_vec())).unwrap()
    }

    #[test]
    fn every_text_of_every_version_has_its_name() {
        let texts = [
            ("-LOADING Redis is loading the dataset in memory", Failure::Loading),
            ("-LOADING Valkey is loading the dataset in memory", Failure::Loading),
            ("-BUSY Redis is busy running a script. You can only call", Failure::Busy),
            ("-MASTERDOWN Link with MASTER is down and", Failure::MasterDown),
            ("-NOAUTH Authentication required.", Failure::NoAuth),
            ("-WRONGPASS invalid username-password pair", Failure::WrongPass),
            ("-ERR invalid password", Failure::WrongPass),
            ("-ERR Client sent AUTH, but no password is set", Failure::AuthNotSet),
            ("-ERR AUTH <password> called without any password configured", Failure::AuthNotSet),
            ("-NOPERM this user has no permissions to run the 'info' command", Failure::NoPerm),
            ("-DENIED Redis is running in protected mode", Failure::Denied),
            ("-DENIED Running in protected mode", Failure::Denied),
            ("-ERR max number of clients reached", Failure::MaxClients),
            ("-ERR max number of clients + cluster connections reached", Failure::MaxClients),
            ("-ERR unknown command 'PING'", Failure::ErrorReply),
            ("-", Failure::ErrorReply),
        ];
        for (text, failure) in texts {
            let failure = (!text[1..].is_empty()).then_some(failure);
            assert_eq!(classify_greeting(text.as_bytes()), failure, "{text}");
        }
        assert_eq!(classify_greeting(b"+OK"), None);
    }

    #[test]
    fn a_role_is_named_or_the_check_fails() {
        assert_eq!(text("# Replication\r\nrole:master\r\n").role().unwrap(), Role::Master);
        assert_eq!(text("role:slave\r\nmaster_host:x\r\n").role().unwrap(), Role::Replica);
        for other in ["", "# role:master\r\n", "role:active-replica\r\n", "xrole:master\r\n"] {
            assert_eq!(text(other).role().unwrap_err().failure, Failure::NoRole, "{other:?}");
        }
    }

    #[test]
    fn hello_tells_the_role() {
        let field = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let hello = |role: &str| {
            Value::Array(vec![field("proto"), Value::Int(2), field("role"), field(role)])
        };
        assert_eq!(hello_role(&hello("master")), Some(Role::Master));
        assert_eq!(hello_role(&hello("replica")), Some(Role::Replica));
        assert_eq!(hello_role(&hello("sentinel")), None);
        assert_eq!(hello_role(&Value::Array(vec![field("role")])), None);
        assert_eq!(hello_role(&Value::Nil), None);
    }

    #[test]
    fn a_reply_to_auth_is_never_repeated() {
        let mut parsed = redis::parse_redis_value(
            b"-ERR unknown command 'AUTH', with args beginning with: 'hunter2'\r\n",
        );
        let reply = match &mut parsed {
            Ok(value) => value.clone(),
            Err(error) => panic!("{error}"),
        };
        let problem = login(&reply).unwrap_err();
        assert!(!format!("{problem:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = classify_greeting(&bytes);
            if let Ok(value) = redis::parse_redis_value(&bytes) {
                let _ = (hello_role(&value), login(&value).is_ok(), pong(&value).is_ok());
            }
            let info = info(Value::BulkString(bytes)).unwrap();
            let _ = (info.role(), info.fields(["master_replid", "master_replid2"]));
            let words = info.text("master_replid").unwrap_or_default();
            prop_assert!(words.chars().count() <= MAX_WORDS);
        }

        #[test]
        fn fields_are_found_in_any_order(offset in any::<u64>(), before in "([a-z_]{1,9}:[a-z0-9]{0,9}\r\n){0,5}") {
            let info = text(&format!("{before}offset_x:{offset}\r\nrole:slave\r\n"));
            let [role, found] = info.fields(["role", "offset_x"]);
            prop_assert_eq!(role, Some("slave"));
            prop_assert_eq!(found.and_then(|offset| offset.parse().ok()), Some(offset));
        }
    }
}
