//! Asks every backend and every Sentinel once, and says what is wrong: `rolegate check --connect`.
//! What it finds is judged by the same code as in the running process, with nothing remembered.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{
    council::Council,
    election::{self, Decision, Election},
    evidence,
    monitor::sentinels::AddressBook,
    probe,
    route::{Problem, Route},
    sentinel,
};
use crate::{
    config::{Auth, Backend, Endpoint, HostPort, Pool, Sentinel},
    topology::{Failure, Role, State},
};

/// What was found in all pools, and how to show it: a line for each backend, Sentinel and pool, and
/// one for the sum.
#[derive(Debug)]
pub struct Survey {
    pools: Vec<(Arc<str>, Vec<Finding>)>,
}

/// What was found of one of them.
#[derive(Debug)]
struct Finding {
    subject: String,
    words: String,
    /// What is wrong needs something to be done.
    to_do: Option<String>,
}

impl Survey {
    /// Asks all backends and Sentinels of all pools at the same time. Takes two check timeouts at the
    /// most.
    pub async fn take(pools: &[Pool]) -> Self {
        let mut asked = JoinSet::new();
        for (place, pool) in pools.iter().cloned().enumerate() {
            asked.spawn(async move { (place, survey(&pool).await) });
        }
        let mut found = BTreeMap::new();
        while let Some(result) = asked.join_next().await {
            if let Ok((place, findings)) = result {
                found.insert(place, findings);
            }
        }
        let findings = |place| found.remove(&place).unwrap_or_else(defect);
        let names = pools.iter().map(|pool| pool.name.clone());
        let findings: Vec<_> = (0..pools.len()).map(findings).collect();
        Self { pools: names.zip(findings).collect() }
    }

    /// Whether nothing is wrong.
    pub fn is_fine(&self) -> bool {
        self.findings().all(|finding| finding.to_do.is_none())
    }

    fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.pools.iter().flat_map(|(_, findings)| findings)
    }
}

impl fmt::Display for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (pool, findings) in &self.pools {
            writeln!(f, "pool {pool}:")?;
            for Finding { subject, words, to_do } in findings {
                match to_do {
                    None => writeln!(f, "  ok     {subject}: {words}")?,
                    Some(to_do) => writeln!(f, "  WRONG  {subject}: {words}; to do: {to_do}")?,
                }
            }
        }
        let all = self.findings().count();
        match self.findings().filter(|finding| finding.to_do.is_some()).count() {
            0 => writeln!(f, "all {all} fine"),
            wrong => writeln!(f, "{wrong} of {all} wrong"),
        }
    }
}

/// A task of ours did not end well; its panic says why.
fn defect() -> Vec<Finding> {
    let words = "not asked: a defect of rolegate".to_owned();
    vec![Finding { subject: "pool".to_owned(), words, to_do: Some("report it".to_owned()) }]
}

async fn survey(pool: &Pool) -> Vec<Finding> {
    let (limit, resolve) = (pool.check.timeout, pool.check.resolve);
    let route = |backend: &Backend| {
        Arc::new(Route::new(backend.address.clone(), pool.tls.as_ref(), limit, resolve))
    };
    let routes: Vec<_> = pool.backends.iter().map(route).collect();
    let (examined, sentinels) = tokio::join!(ask_backends(pool, &routes), ask_sentinels(pool));
    let states: Vec<_> = examined.iter().map(state).collect();
    let names: Vec<_> = pool.backends.iter().map(|backend| backend.name.clone()).collect();

    let book = pool.sentinel.as_ref().map(|config| AddressBook::new(pool, config, routes));
    let council = pool.sentinel.as_ref().map(|config| council(config, &sentinels));
    let view = council
        .as_ref()
        .zip(book.as_ref())
        .map(|(council, book)| council.view(|address| book.place_of(address)));
    let members: Vec<_> = states
        .iter()
        .map(|state| election::Member { state, checked: Duration::ZERO, fresh: true })
        .collect();
    let mut election = Election::new(pool.on_unexplained_heir, None);
    let decision = election.decide(Duration::ZERO, &members, view.as_ref());

    let states: Vec<_> = states.iter().collect();
    // Nobody is served here, so no sentence says so.
    let unserved = Decision { serve: None, ..decision.clone() };
    let sentences = evidence::sentences(&names, &states, &unserved);
    let mut findings = Vec::new();
    for (place, (examined, sentence)) in examined.iter().zip(sentences).enumerate() {
        findings.push(of_backend(pool, place, examined, &sentence, &states));
    }
    if let (Some(config), Some(council), Some(book)) = (&pool.sentinel, &council, &book) {
        for (place, examined) in sentinels.iter().enumerate() {
            let name_of = |address: &_| book.place_of(address).map(|p| names[p].to_string());
            let says = council.says(place, name_of).0;
            let role = |address: &_| book.place_of(address).map(|place| states[place].role());
            findings.push(of_sentinel(config, place, examined, &says, role));
        }
    }
    findings.push(of_pool(&names, &states, &decision));
    findings
}

type Examined<T> = Result<T, Problem>;

async fn ask_backends(pool: &Pool, routes: &[Arc<Route>]) -> Vec<Examined<probe::Examined>> {
    let (auth, check) = (pool.auth.clone().map(Arc::new), pool.check);
    let tasks = routes.iter().cloned().map(|route| {
        let auth = auth.clone();
        async move { probe::examine(&route, auth.as_deref(), check).await }
    });
    at_once(tasks).await
}

async fn ask_sentinels(pool: &Pool) -> Vec<Examined<sentinel::Examined>> {
    let Some(config) = &pool.sentinel else {
        return Vec::new();
    };
    let (timeout, resolve) = (pool.check.timeout, pool.check.resolve);
    let tasks = config.addresses.iter().cloned().map(|address| {
        let (auth, name) = (config.auth.clone(), config.master_name.clone());
        let route = Route::new(Endpoint::Host(address), config.tls.as_ref(), timeout, resolve);
        async move {
            tokio::select! {
                () = route.keep() => Err(Problem { failure: Failure::Unresolved, words: None }),
                examined = sentinel::examine(&route, auth.as_ref(), &name, timeout) => examined,
            }
        }
    });
    at_once(tasks).await
}

/// What each of the tasks gives, in their order.
async fn at_once<T: Send + 'static>(
    tasks: impl Iterator<Item = impl Future<Output = Examined<T>> + Send + 'static>,
) -> Vec<Examined<T>> {
    let mut asked = JoinSet::new();
    let mut found: Vec<_> = tasks
        .enumerate()
        .map(|(place, task)| {
            asked.spawn(async move { (place, task.await) });
            Err(Problem { failure: Failure::Timeout, words: None })
        })
        .collect();
    while let Some(result) = asked.join_next().await {
        if let Ok((place, result)) = result {
            found[place] = result;
        }
    }
    found
}

fn state(examined: &Examined<probe::Examined>) -> State {
    match examined {
        Ok(probe::Examined { answer: Ok(answer), .. }) => State::Up(answer.clone()),
        Ok(probe::Examined { answer: Err(problem), .. }) | Err(problem) => {
            State::Down(problem.failure)
        }
    }
}

fn council(config: &Sentinel, examined: &[Examined<sentinel::Examined>]) -> Council {
    let mut council = Council::new(config.addresses.len(), config.quorum);
    for (place, examined) in examined.iter().enumerate() {
        match examined.as_ref().map(|examined| &examined.said) {
            Ok(Ok(said)) => council.answered(place, Duration::ZERO, said.clone()),
            Ok(Err(problem)) | Err(problem) => {
                let gone = problem.failure == Failure::Refused;
                council.silent(place, Duration::ZERO, problem.to_string(), gone);
            }
        }
    }
    council
}

fn of_backend(
    pool: &Pool,
    place: usize,
    examined: &Examined<probe::Examined>,
    sentence: &str,
    states: &[&State],
) -> Finding {
    let Backend { name, address, .. } = &pool.backends[place];
    let subject = format!("backend {name} at {address}");
    let examined = match examined {
        Ok(examined) => examined,
        Err(problem) => {
            let to_do = Some(problem.failure.advice().to_owned());
            return Finding { subject, words: problem.to_string(), to_do };
        }
    };
    let version = examined.version.as_ref().map(|version| format!("{version}, "));
    let version = version.unwrap_or_default();
    let answer = match &examined.answer {
        Ok(answer) => answer,
        Err(problem) => {
            let to_do = acl_line(pool.auth.as_ref(), &examined.missing);
            let to_do = to_do.unwrap_or_else(|| problem.failure.advice().to_owned());
            return Finding { subject, words: format!("{version}{problem}"), to_do: Some(to_do) };
        }
    };
    let mut words = format!("{version}{sentence}");
    let leads = |state: &&State| {
        state.answer().is_some_and(|a| a.role == Role::Master && a.replid == answer.replid)
    };
    let to_do = if answer.role == Role::Master {
        None
    } else if answer.link_up != Some(true) {
        let master = examined.follows.as_deref().unwrap_or("its master");
        words.push_str(&format!(", follows {master}"));
        Some(format!("is {master} up, and does it take this replica's masteruser and masterauth?"))
    } else if !states.iter().any(leads) {
        let master = examined.follows.as_deref().unwrap_or("a master");
        words.push_str(&format!(", follows {master}"));
        Some(
            "make it a replica of the pool's master (REPLICAOF), or add its master to the backends"
                .to_owned(),
        )
    } else {
        None
    };
    Finding { subject, words, to_do }
}

fn of_sentinel(
    config: &Sentinel,
    place: usize,
    examined: &Examined<sentinel::Examined>,
    says: &str,
    role_of: impl Fn(&HostPort) -> Option<Option<Role>>,
) -> Finding {
    let subject = format!("Sentinel {}", config.addresses[place]);
    let examined = match examined {
        Ok(examined) => examined,
        Err(problem) => {
            let to_do = match problem.failure {
                Failure::NoAuth => "it wants a password: set sentinel.auth in the pool",
                Failure::WrongPass => "it refuses the username or password of sentinel.auth",
                Failure::AuthNotSet => "it has no password: remove sentinel.auth",
                Failure::Unresolved => "its name does not resolve: check the config and DNS",
                Failure::Refused => "nothing listens on this address: is the Sentinel running?",
                Failure::Protocol => "is this the port of a Sentinel?",
                Failure::NoResources => problem.failure.advice(),
                _ => "is this Sentinel well, and does the network reach it?",
            };
            return Finding { subject, words: problem.to_string(), to_do: Some(to_do.to_owned()) };
        }
    };
    let version = examined.version.as_ref().map(|version| format!("{version}, "));
    let version = version.unwrap_or_default();
    let words = format!("{version}{says}");
    let name = &config.master_name;
    let to_do = if !examined.is_sentinel {
        Some("this is no Sentinel: name its port, often 26379".to_owned())
    } else if let Some(line) = acl_line(config.auth.as_ref(), &examined.missing) {
        Some(line)
    } else {
        match examined.said.as_ref().map(|said| said.named.as_ref()) {
            Err(_) => Some("is this the port of a Sentinel?".to_owned()),
            Ok(None) => Some(format!(
                "it watches no master named {name}: set sentinel.master_name as in `sentinel \
                 monitor NAME …`"
            )),
            Ok(Some((address, _))) => match role_of(address) {
                None => Some(format!(
                    "if that is one of the backends, tell which: `announce: {{ BACKEND: {address} }}` \
                     under sentinel; else add it to the backends"
                )),
                Some(Some(Role::Master)) => None,
                Some(_) => Some(
                    "what it names is no master in sight: wait for its failover, or correct it"
                        .to_owned(),
                ),
            },
        }
    };
    let words = match examined.missing.as_slice() {
        [] => words,
        missing => format!("{words}, may not {}", missing.join(" ")),
    };
    Finding { subject, words, to_do }
}

/// The command that gives the checks' user what it lacks.
fn acl_line(auth: Option<&Auth>, missing: &[&str]) -> Option<String> {
    let user = auth.and_then(|auth| auth.username.as_deref()).unwrap_or("default");
    (!missing.is_empty()).then(|| format!("ACL SETUSER {user} {}", missing.join(" ")))
}

fn of_pool(names: &[Arc<str>], states: &[&State], decision: &Decision) -> Finding {
    let about: Vec<_> = decision.about.iter().map(|place| &*names[*place]).collect();
    let (rule, why) = (decision.rule.as_str(), decision.rule.words(&about));
    let served = match decision.serve {
        Some(place) => format!("a start would serve {}: {why} [{rule}]", names[place]),
        None => format!("a start would serve nobody: {why} [{rule}]"),
    };
    let is_master = |place: &usize| states[*place].role() == Some(Role::Master);
    let masters: Vec<_> = (0..names.len()).filter(is_master).map(|place| &*names[place]).collect();
    let words = match masters[..] {
        [] => format!("no master; {served}"),
        [master] => format!("one master, {master}; {served}"),
        _ => format!("{} masters, {}; {served}", masters.len(), masters.join(", ")),
    };
    let advice = match (decision.serve, masters.len()) {
        (Some(_), 1) => None,
        (Some(_), _) => Some("make the wrong ones replicas of the right one (REPLICAOF)"),
        (None, _) => {
            Some(decision.rule.advice().unwrap_or("ask again: this passes by itself as a rule"))
        }
    };
    let to_do = advice.map(str::to_owned);
    Finding { subject: "verdict".to_owned(), words, to_do }
}
