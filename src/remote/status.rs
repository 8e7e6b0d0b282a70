//! The table that `rolegate status` shows, made from the JSON of `/status`.

use std::{fmt, marker::PhantomData, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::table::{Cell, Colour, Page, Screen, bytes, count, duration};

/// What there is nothing of.
const NONE: &str = "-";

/// The entries of a JSON object, in its order.
#[derive(Debug)]
struct Named<T>(Vec<(String, T)>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Named(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

impl<T> Named<T> {
    fn get(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value)
    }
}

/// As much of `/status` as is shown.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    version: String,
    state: String,
    uptime_seconds: f64,
    listeners: Named<Listener>,
    pools: Named<Pool>,
}

#[derive(Debug, Deserialize)]
struct Listener {
    addresses: Vec<String>,
    pool: String,
    role: String,
    sessions: i64,
    sessions_total: u64,
    #[serde(default)]
    drained: bool,
    #[serde(default)]
    held: i64,
    #[serde(default)]
    bytes_in: u64,
    #[serde(default)]
    bytes_out: u64,
}

#[derive(Debug, Deserialize)]
struct Pool {
    verdict: String,
    master: Option<String>,
    rule: String,
    reason: String,
    advice: Option<String>,
    chosen: Option<Chosen>,
    age_seconds: f64,
    backends: Named<Backend>,
    sentinel_view: Option<String>,
    #[serde(default)]
    sentinels: Named<Sentinel>,
}

#[derive(Debug, Deserialize)]
struct Chosen {
    rule: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Backend {
    address: String,
    state: String,
    role: Option<String>,
    resolved: Option<String>,
    replid: Option<String>,
    offset: Option<u64>,
    link_up: Option<bool>,
    last_check: Option<Check>,
    #[serde(default)]
    checks_total: u64,
    error: Option<Failed>,
}

#[derive(Debug, Deserialize)]
struct Check {
    age_seconds: f64,
    latency_ms: f64,
}

#[derive(Debug, Deserialize)]
struct Failed {
    reason: String,
    words: Option<String>,
    advice: String,
}

#[derive(Debug, Deserialize)]
struct Sentinel {
    up: bool,
    says: String,
}

impl Report {
    /// Whether the pool of every listener is served.
    pub(super) fn is_served(&self) -> bool {
        let served = |pool: &str| self.pools.get(pool).is_some_and(|pool| pool.verdict == "serve");
        self.listeners.0.iter().all(|(_, listener)| served(&listener.pool))
    }
}

/// The whole table. Rates are shown with the report of some time `before`.
pub(super) fn table(
    report: &Report,
    before: Option<(Duration, &Report)>,
    screen: Screen,
) -> String {
    let mut page = Page::new(screen);
    let uptime = duration(report.uptime_seconds);
    let title = format!("rolegate {}, {}, up for {uptime}", report.version, report.state);
    page.words(0, &title, Colour::Head);
    for (name, pool) in &report.pools.0 {
        page.gap();
        show_pool(&mut page, name, pool);
    }
    page.gap();
    show_listeners(&mut page, report, before);
    page.into_text()
}

fn show_pool(page: &mut Page, name: &str, pool: &Pool) {
    let since = duration(pool.age_seconds);
    let served = pool.master.as_deref().unwrap_or(NONE);
    let (verdict, colour) = match pool.verdict.as_str() {
        "serve" => {
            let backend = pool.backends.get(served);
            let at = backend.map_or(NONE, |b| b.resolved.as_deref().unwrap_or(&b.address));
            (format!("serves {served} at {at}, for {since}"), Colour::Good)
        }
        "hold" => (format!("serves nobody yet, for {since}"), Colour::Doubt),
        _ => (format!("serves nobody, for {since}"), Colour::Bad),
    };
    page.words(0, &format!("pool {name}: {verdict}"), colour);
    if let Some(chosen) = &pool.chosen {
        page.words(2, &format!("chosen: {} [{}]", chosen.reason, chosen.rule), Colour::Plain);
    }
    if pool.chosen.as_ref().is_none_or(|chosen| chosen.rule != pool.rule) {
        page.words(2, &format!("now: {} [{}]", pool.reason, pool.rule), Colour::Plain);
    }
    if let Some(advice) = &pool.advice {
        page.words(2, &format!("to do: {advice}"), Colour::Bad);
    }
    let master = pool.backends.get(served);
    let rows: Vec<_> = pool.backends.0.iter().map(|(name, b)| b.row(name, master)).collect();
    let head = ["BACKEND", "ROLE", "STATE", "CHECKED", "TOOK", "CHECKS", "REPLICATION", "ADDRESS"];
    page.rows(2, &head, &rows);
    if let Some(view) = &pool.sentinel_view {
        page.words(2, &format!("Sentinels: {view}"), Colour::Plain);
        for (address, sentinel) in &pool.sentinels.0 {
            let colour = if sentinel.up { Colour::Plain } else { Colour::Bad };
            page.words(4, &format!("{address}  {}", sentinel.says), colour);
        }
    }
}

impl Backend {
    fn row(&self, name: &str, master: Option<&Self>) -> (Vec<Cell>, Vec<String>) {
        let state = Cell::text(&self.state).colour(match self.state.as_str() {
            "up" => Colour::Good,
            "down" => Colour::Bad,
            _ => Colour::Doubt,
        });
        let check = self.last_check.as_ref();
        let age = check.map(|check| format!("{} ago", duration(check.age_seconds)));
        let took = check.map(|check| format!("{:.1} ms", check.latency_ms));
        let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
        let cells = vec![
            Cell::name(name),
            Cell::text(self.role.as_deref().unwrap_or(NONE)),
            state,
            Cell::right(or_none(age)),
            Cell::right(or_none(took)),
            #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
            Cell::right(count(self.checks_total as f64)),
            Cell::text(or_none(self.replication(master))),
            Cell::text(&self.address),
        ];
        let notes = self.error.as_ref().map(|error| {
            let words = error.words.as_ref().map(|words| format!(" ({words})"));
            format!("{}{}: {}", error.reason, words.unwrap_or_default(), error.advice)
        });
        (cells, notes.into_iter().collect())
    }

    /// Where it is in its master's stream.
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    fn replication(&self, master: Option<&Self>) -> Option<String> {
        if self.link_up == Some(false) {
            return Some("link down".to_owned());
        }
        let offset = self.offset?;
        let ahead = master
            .filter(|master| {
                self.role.as_deref() == Some("replica") && master.replid == self.replid
            })
            .and_then(|master| master.offset);
        // Both were not asked at the same time.
        let behind =
            ahead.map(|ahead| format!("{} behind", bytes(ahead.saturating_sub(offset) as f64)));
        Some(behind.unwrap_or_else(|| format!("at {offset}")))
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn show_listeners(page: &mut Page, report: &Report, before: Option<(Duration, &Report)>) {
    let row = |(name, now): &(String, Listener)| {
        let old = before.and_then(|(passed, old)| Some((passed, old.listeners.get(name)?)));
        let figure = |of: fn(&Listener) -> u64, show: fn(f64) -> String| match old {
            None if before.is_none() => show(of(now) as f64),
            None => NONE.to_owned(),
            // Counts that went back are those of another process.
            Some((passed, old)) => match of(now).checked_sub(of(old)) {
                Some(more) => show(more as f64 / passed.as_secs_f64().max(0.001)),
                None => NONE.to_owned(),
            },
        };
        let cells = vec![
            Cell::name(name),
            Cell::name(&now.pool),
            Cell::text(&now.role),
            Cell::right(now.sessions.to_string()),
            Cell::right(now.held.to_string()),
            Cell::right(figure(|listener| listener.sessions_total, count)),
            Cell::right(figure(|listener| listener.bytes_in, bytes)),
            Cell::right(figure(|listener| listener.bytes_out, bytes)),
            Cell::text(now.addresses.join(", ")),
        ];
        let drained = now.drained.then(|| "drained: takes no new clients".to_owned());
        (cells, drained.into_iter().collect())
    };
    let rows: Vec<_> = report.listeners.0.iter().map(row).collect();
    let [new, input, output] =
        if before.is_some() { ["NEW/S", "IN/S", "OUT/S"] } else { ["EVER", "IN", "OUT"] };
    let head = ["LISTENER", "POOL", "ROLE", "SESSIONS", "WAITING", new, input, output, "ADDRESSES"];
    page.rows(0, &head, &rows);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A report with this listener of this address, which has had so many sessions and bytes.
    fn report(name: &str, address: &str, total: u64) -> Report {
        serde_json::from_value(as_json(name, address, total)).unwrap()
    }

    fn as_json(name: &str, address: &str, total: u64) -> serde_json::Value {
        let backend = |role: &str, link: &str, offset: u64| {
            format!(
                r#"{{"address": "{address}", "state": "up", "role": "{role}", "evidence": "", "resolved": "10.0.0.1:6379",
                "replid": "a", "offset": {offset}, "link_up": {link}, "checks_total": 1234567,
                "last_check": {{"age_seconds": 0.05, "latency_ms": 0.44}}, "error": null}}"#
            )
        };
        let (master, near) = (backend("master", "null", 5000), backend("replica", "true", 3000));
        let (ahead, cut) = (backend("replica", "true", 5001), backend("replica", "false", 0));
        let json = format!(
            r#"{{"version": "1.2.3", "state": "running", "uptime_seconds": 90000.5, "new": [1],
            "listeners": {{"{name}": {{"addresses": ["{address}", "[::1]:6379"], "pool": "main", "role": "master",
                "sessions": 7, "sessions_total": {total}, "held": 2, "bytes_in": {total}, "bytes_out": 0}}}},
            "pools": {{"main": {{"verdict": "serve", "master": "{name}", "rule": "incumbent", "reason": "it is",
                "advice": null, "chosen": {{"rule": "heir", "reason": "it was"}}, "age_seconds": 61.0, "epoch": 1,
                "backends": {{"{name}": {master}, "near": {near}, "ahead": {ahead}, "cut": {cut}}},
                "sentinel_view": null, "sentinels": {{}}}}}}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn screen(width: usize) -> Screen {
        Screen { width, colours: false, is_terminal: true }
    }

    #[test]
    fn a_table_fits_into_80_columns_also_with_long_names() {
        let long = "a-very-long-name-of-a-node-in-some-datacenter.example";
        for name in ["redis1", long] {
            for address in ["10.0.0.1:6379", "redis-1.redis.production.svc.cluster.local:6379"] {
                let table = table(&report(name, address, 999_999_999), None, screen(80));
                let fits = table.lines().all(|line| line.chars().count() <= 80);
                assert!(fits && table.contains(address), "{table}");
                assert!(name != long || table.contains("a-very-l…r.example"), "{table}");
            }
        }
    }

    #[test]
    fn replicas_show_how_far_they_are_behind_the_served_master() {
        let table = table(&report("m", "a:1", 9), None, screen(100));
        let shown = |name: &str, words: &str| {
            let mut lines = table.lines();
            lines.any(|line| line.trim_start().starts_with(name) && line.contains(words))
        };
        assert!(shown("m ", "at 5000") && shown("near ", "2.0 KiB behind"), "{table}");
        assert!(shown("ahead ", "0 B behind") && shown("cut ", "link down"), "{table}");
    }

    #[test]
    fn rates_are_of_the_time_between_and_not_across_a_restart() {
        let row = |now: u64, before: u64| {
            let before = report("m", "a:1", before);
            let after = Duration::from_secs(2);
            let table = table(&report("m", "a:1", now), Some((after, &before)), screen(100));
            assert!(table.contains("NEW/S"), "{table}");
            table.lines().last().unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row(2100, 100)[3..9], ["7", "2", "1", "k", "1000", "B"]);
        assert_eq!(row(10, 100)[3..7], ["7", "2", "-", "-"]);
    }

    #[test]
    fn all_is_served_if_the_pools_of_all_listeners_are() {
        let mut report = report("m", "a:1", 9);
        assert!(report.is_served());
        report.pools.0[0].1.verdict = "hold".to_owned();
        assert!(!report.is_served());
        report.pools.0.clear();
        assert!(!report.is_served());
    }

    proptest! {
        // What answers at the address may be anything.
        #[test]
        fn no_answer_panics(
            name in "\\PC{0,30}",
            number in prop_oneof![
                any::<f64>().prop_map(|number| serde_json::json!(number)),
                any::<i64>().prop_map(|number| serde_json::json!(number)),
                any::<u64>().prop_map(|number| serde_json::json!(number)),
                "\\PC{0,9}".prop_map(|text| serde_json::json!(text)),
                Just(serde_json::Value::Null),
            ],
            place in any::<prop::sample::Index>(),
            width in 40usize..160,
        ) {
            let mut odd = as_json("m", "a:1", 9);
            let mut places = Vec::new();
            let mut todo = vec![String::new()];
            while let Some(path) = todo.pop() {
                match odd.pointer(&path) {
                    Some(serde_json::Value::Object(map)) => {
                        todo.extend(map.keys().map(|key| format!("{path}/{key}")));
                    }
                    Some(serde_json::Value::Array(list)) => {
                        todo.extend((0..list.len()).map(|at| format!("{path}/{at}")));
                    }
                    _ => places.push(path),
                }
            }
            *odd.pointer_mut(place.get::<String>(&places)).unwrap() = number;
            odd["pools"]["main"]["reason"] = name.clone().into();
            odd["listeners"][&name] = odd["listeners"]["m"].clone();
            if let Ok(odd) = serde_json::from_value::<Report>(odd) {
                let usual = report("m", "a:1", 9);
                let _ = odd.is_served();
                for before in [None, Some((Duration::ZERO, &usual))] {
                    prop_assert!(!table(&odd, before, screen(width)).is_empty());
                }
                let _ = table(&usual, Some((Duration::from_secs(1), &odd)), screen(width));
            }
        }
    }
}
