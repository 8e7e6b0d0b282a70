//! The documentation for operators: nothing that rolegate says or takes is missing there, and nothing
//! there is of the past.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use rolegate::{
    config::Config,
    metrics::{CloseReason, Refusal},
    topology::{Failure, Hint, Rule},
};
use serde_json::{Value, json};

use crate::{
    architecture::sources,
    support::{Node, Rolegate, config},
};

const PAGE: &str = "docs/when-something-is-wrong.md";

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// What stands under the heading with these words, up to the next one of the same rank or a higher.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let is_it =
        |line: &&str| line.starts_with('#') && line.trim_start_matches('#').trim() == heading;
    let line = text.lines().find(is_it).unwrap_or_else(|| panic!("no heading {heading}"));
    let rank = line.chars().take_while(|c| *c == '#').count();
    let start = text.find(&format!("\n{line}\n")).unwrap() + line.len() + 2;
    let mut end = text.len();
    for (at, _) in text[start..].match_indices("\n#") {
        if text[start + at + 1..].chars().take_while(|c| *c == '#').count() <= rank {
            end = start + at;
            break;
        }
    }
    &text[start..end]
}

/// The rows of the tables in this text, cell by cell.
fn rows(text: &str) -> Vec<Vec<&str>> {
    text.lines().filter(|line| line.starts_with("| ")).map(cells).collect()
}

/// What stands between the bars that are not escaped.
fn cells(row: &str) -> Vec<&str> {
    let is_bar = |at: &usize| !row[..*at].ends_with('\\');
    let bars: Vec<_> = row.match_indices('|').map(|(at, _)| at).filter(is_bar).collect();
    bars.windows(2).map(|pair| row[pair[0] + 1..pair[1]].trim()).collect()
}

/// Everything between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The words in the first cells of the tables under this heading.
fn words_under(text: &str, heading: &str) -> BTreeSet<String> {
    let rows = rows(section(text, heading));
    rows.iter().flat_map(|row| quoted(row[0])).map(str::to_owned).collect()
}

/// Fails with what only one of the two has.
fn assert_same(what: &str, real: &BTreeSet<String>, documented: &BTreeSet<String>) {
    let missing: Vec<_> = real.difference(documented).collect();
    let stale: Vec<_> = documented.difference(real).collect();
    assert!(missing.is_empty(), "{what}: not documented: {missing:?}");
    assert!(stale.is_empty(), "{what}: documented, and there is no such: {stale:?}");
}

#[test]
fn every_reason_is_on_the_page() {
    let page = read(PAGE);
    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let kinds: [(&str, BTreeSet<String>); 5] = [
        ("Verdict rules", own(&Rule::ALL.map(Rule::as_str))),
        ("Check failures", own(&Failure::ALL.map(Failure::as_str))),
        ("Close reasons", own(&CloseReason::ALL.map(CloseReason::as_str))),
        ("Refused clients", own(&Refusal::ALL.map(Refusal::as_str))),
        ("Hints", own(&Hint::ALL.map(Hint::as_str))),
    ];
    for (heading, words) in kinds {
        assert_same(&format!("{PAGE}, {heading}"), &words, &words_under(&page, heading));
    }
}

#[test]
fn every_log_message_is_on_the_page_at_its_level_with_its_fields() {
    let mut written: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for (file, source) in sources() {
        for line in log_lines(&source).unwrap_or_else(|what| panic!("src/{file}.rs: {what}")) {
            written.entry((line.level, line.message)).or_default().extend(line.fields);
        }
    }
    assert!(written.len() > 40, "the scanner finds only {written:?}");
    let page = read(PAGE);
    for level in LEVELS {
        let rows = rows(section(section(&page, "Log messages"), level));
        let rows: BTreeMap<_, _> =
            rows.iter().filter_map(|row| Some((quoted(row[0]).pop()?, row))).collect();
        let messages = |(of, message): &(&str, String)| (*of == level).then(|| message.clone());
        let real = written.keys().filter_map(messages).collect();
        let documented = rows.keys().map(|message| (*message).to_owned()).collect();
        assert_same(&format!("{PAGE}, log messages, {level}"), &real, &documented);
        for message in real {
            let fields = quoted(rows[&*message][1]).into_iter().map(str::to_owned).collect();
            let what = format!("{PAGE}, log messages, {level}, the fields of {message:?}");
            assert_same(&what, &written[&(level, message)], &fields);
        }
    }
}

const LEVELS: [&str; 4] = ["error", "warn", "info", "debug"];

#[derive(Debug, PartialEq)]
struct LogLine {
    level: &'static str,
    message: String,
    fields: Vec<String>,
}

/// Every log line that a source can write. An error if one has no message of its own.
fn log_lines(source: &str) -> Result<Vec<LogLine>, String> {
    let mut found = Vec::new();
    if source.contains("trace!(") || source.contains("event!(") {
        return Err("a line of a level that the page does not have".to_owned());
    }
    for level in LEVELS {
        let call = format!("{level}!(");
        for (at, _) in source.match_indices(&call) {
            let is_other = |c: char| c.is_alphanumeric() || c == '_';
            if source[..at].ends_with(is_other) {
                continue;
            }
            let mut parts = arguments(&source[at + call.len()..]);
            let message = parts.pop().unwrap_or_default();
            let message = message.strip_prefix('"').and_then(|message| message.strip_suffix('"'));
            let message = message.ok_or_else(|| format!("{call} without a message: {parts:?}"))?;
            let name = |field: &String| {
                let name = field.split('=').next().unwrap_or_default().trim();
                name.trim_start_matches(['%', '?']).to_owned()
            };
            let fields = parts.iter().map(name).collect();
            found.push(LogLine { level, message: message.to_owned(), fields });
        }
    }
    Ok(found)
}

/// What stands between the commas up to the closing parenthesis.
fn arguments(rest: &str) -> Vec<String> {
    let (mut parts, mut depth, mut is_text, mut is_escaped) =
        (vec![String::new()], 1, false, false);
    for c in rest.chars() {
        match c {
            _ if is_text => {
                is_text = is_escaped || c != '"';
                is_escaped = !is_escaped && c == '\\';
            }
            '"' => is_text = true,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        match c {
            _ if depth == 0 => break,
            ',' if depth == 1 && !is_text => parts.push(String::new()),
            _ => parts.last_mut().unwrap().push(c),
        }
    }
    let parts = parts.iter().map(|part| part.trim().to_owned());
    parts.filter(|part| !part.is_empty()).collect()
}

#[test]
fn log_lines_are_found_in_every_shape() {
    let source = r#"
        warn!(a, %b, c = f(x, "y, )"), "one (\"two\"), three",);
        tracing::error!("alone"); format!("no"); my_info!("no");"#;
    let line = |level, message: &str, fields: &[&str]| LogLine {
        level,
        message: message.to_owned(),
        fields: fields.iter().map(|field| (*field).to_owned()).collect(),
    };
    let expected =
        [line("error", "alone", &[]), line("warn", r#"one (\"two\"), three"#, &["a", "b", "c"])];
    assert_eq!(log_lines(source).unwrap(), expected);
    assert!(log_lines("info!(a, b)").is_err() && log_lines("trace!(\"a\")").is_err());
}

#[test]
fn every_fatal_error_is_on_the_page() {
    let mut beginnings = BTreeSet::new();
    for (_, source) in sources().iter().filter(|(file, _)| file == "app" || file == "remote") {
        for (at, call) in source.match_indices("#[error(") {
            let text = arguments(&source[at + call.len()..]).remove(0);
            // Up to what it names.
            let fixed = text.trim_matches('"').split(['{', ';', ',']).next().unwrap_or_default();
            beginnings.insert(fixed.trim_end().to_owned());
        }
    }
    // One that only repeats what the process said.
    beginnings.remove("");
    assert!(beginnings.len() > 8, "{beginnings:?}");
    let documented = words_under(&read(PAGE), "Fatal errors");
    assert_same(&format!("{PAGE}, Fatal errors"), &beginnings, &documented);
}

/// Every name of a metric in the source.
fn metrics() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, source) in sources() {
        for (at, _) in source.match_indices("\"rolegate_") {
            let name = source[at + 1..].split('"').next().unwrap_or_default();
            if name.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                names.insert(name.to_owned());
            }
        }
    }
    assert!(names.len() > 20, "{names:?}");
    names
}

#[test]
fn every_metric_is_in_the_readme_and_on_the_page() {
    let node = Node::start(&[]);
    let shown = Rolegate::start_ready(&config(&[node.address()], None)).get("/metrics").1;
    let families = shown.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for family in families {
        assert!(metrics().contains(family), "src does not have the name {family} as it is");
    }
    for file in ["README.md", PAGE] {
        let documented = words_under(&read(file), "Metrics");
        assert_same(&format!("{file}, Metrics"), &metrics(), &documented);
    }
}

/// Keys whose values are mappings with names as keys.
const NAMED: [&str; 4] = ["listeners", "pools", "backends", "announce"];

/// Every key that the config takes below this one, as the errors about an unknown one tell.
fn accepted(path: &[&str]) -> BTreeSet<String> {
    let nested = path.iter().rev().fold(json!({ "no-such-key": 1 }), |inner, key| {
        let mut outer = serde_json::Map::new();
        outer.insert((*key).to_owned(), inner);
        Value::Object(outer)
    });
    let place = if path.is_empty() { String::new() } else { format!(" in {}", path.join(".")) };
    let errors = Config::parse(Path::new("x"), &nested.to_string()).unwrap_err().to_string();
    let fault = errors.lines().find(|line| line.contains(&format!(" unknown key{place}: ")));
    let Some((_, allowed)) = fault.and_then(|fault| fault.rsplit_once("allowed are ")) else {
        return BTreeSet::from([path.join(".")]);
    };
    let below = allowed.split(", ").flat_map(|key| {
        let mut path = path.to_vec();
        path.push(key);
        if NAMED.contains(&key) {
            path.push("NAME");
        }
        accepted(&path)
    });
    below.collect()
}

#[test]
fn every_key_of_the_config_is_in_the_readme() {
    let readme = read("README.md");
    let (mut documented, mut alike) = (BTreeSet::new(), Vec::new());
    for row in rows(section(&readme, "Configuration")) {
        let mut group = String::new();
        for key in quoted(row[0]) {
            let key = if key.starts_with('.') { format!("{group}{key}") } else { key.to_owned() };
            group = key.rsplit_once('.').map(|(group, _)| group.to_owned()).unwrap_or_default();
            // One that has the keys of another is a section itself.
            match row[2].split_once("keys as in `").map(|(_, rest)| quoted_up_to(rest)) {
                Some(model) => alike.push((key, model.to_owned())),
                None => drop(documented.insert(key)),
            }
        }
    }
    let real = accepted(&[]);
    assert!(real.len() > 60, "{real:?}");
    // Those of a section that has the keys of another have their rows there.
    let of_its_own = real.into_iter().filter(|key| {
        let model = alike.iter().find_map(|(section, model)| {
            Some(format!("{model}{}", key.strip_prefix(&**section).filter(|k| k.starts_with('.'))?))
        });
        model.is_none_or(|model| !documented.contains(&model))
    });
    let of_its_own = of_its_own.collect();
    // A section's own row, for what it is when it is absent.
    let is_section = |key: &String| accepted(&key.split('.').collect::<Vec<_>>()).len() > 1;
    documented.retain(|key| !is_section(key));
    assert_same("README.md, Configuration", &of_its_own, &documented);
}

fn quoted_up_to(text: &str) -> &str {
    text.split('`').next().unwrap_or_default()
}

/// Names of metrics in an expression, without what Prometheus adds to a histogram's.
fn metrics_in(expression: &str) -> Vec<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let bare = |word: &str| {
        let word = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        word.map(str::to_owned)
    };
    let names = words.filter(|word| word.starts_with("rolegate_"));
    names.map(|name| bare(name).unwrap_or_else(|| name.to_owned())).collect()
}

/// The values that an expression compares the label `reason` with.
fn reasons_in(expression: &str) -> Vec<&str> {
    let values = expression.match_indices("reason").filter_map(|(at, word)| {
        let rest = expression[at + word.len()..].trim_start_matches(['=', '!', '~']);
        rest.strip_prefix('"')?.split('"').next()
    });
    values.flat_map(|value| value.split('|')).collect()
}

#[test]
fn alerts_use_what_there_is_and_lead_to_the_page() {
    let file: Value = serde_yaml::from_str(&read("examples/alerts.yaml")).unwrap();
    let (page, metrics) = (read(PAGE), metrics());
    let mut all_reasons: BTreeSet<&str> = Rule::ALL.map(Rule::as_str).into();
    all_reasons.extend(CloseReason::ALL.map(CloseReason::as_str));
    all_reasons.extend(Refusal::ALL.map(Refusal::as_str));
    all_reasons.extend(Failure::ALL.map(Failure::as_str));
    let mut seen = BTreeSet::new();
    for group in file["groups"].as_array().unwrap() {
        assert!(group["name"].is_string());
        for rule in group["rules"].as_array().unwrap() {
            let name = rule["alert"].as_str().unwrap();
            assert!(seen.insert(name), "{name} is there twice");
            let keys: BTreeSet<_> = rule.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(keys, ["alert", "annotations", "expr", "for", "labels"].into(), "{name}");
            let expression = rule["expr"].as_str().unwrap();
            for metric in metrics_in(expression) {
                assert!(metrics.contains(&metric), "{name}: there is no metric {metric}");
            }
            for reason in reasons_in(expression) {
                assert!(all_reasons.contains(reason), "{name}: there is no reason {reason}");
            }
            let wait = rule["for"].as_str().unwrap();
            assert!(wait.ends_with(['s', 'm']) && wait[..wait.len() - 1].parse::<u32>().is_ok());
            assert!(matches!(rule["labels"]["severity"].as_str(), Some("critical" | "warning")));
            let of =
                |annotation: &str| rule["annotations"][annotation].as_str().unwrap_or_default();
            assert!(!of("summary").is_empty(), "{name}");
            let heading = of("page").strip_prefix(&format!("{PAGE}#")).unwrap_or_default();
            let rows = headings(&page).into_iter().find(|(anchor, _)| anchor == heading);
            let (_, heading) = rows.unwrap_or_else(|| panic!("{name}: no heading {}", of("page")));
            let rows = words_under(&page, heading);
            assert!(rows.contains(of("row")), "{name}: no row {:?} under {heading}", of("row"));
            assert!(page.contains(&format!("`{name}`")), "{PAGE} does not name the alert {name}");
        }
    }
    assert!(seen.len() > 10, "{seen:?}");
    for row in rows(section(&page, "Metrics")) {
        for name in quoted(row[2]).into_iter().filter(|name| name.starts_with("Rolegate")) {
            assert!(
                seen.contains(name),
                "{PAGE} names an alert {name} that is not in the examples"
            );
        }
    }
}

/// The headings of a text, each with its anchor.
fn headings(text: &str) -> Vec<(String, &str)> {
    let mut is_code = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        is_code ^= line.starts_with("```");
        if !is_code && line.starts_with('#') {
            let words = line.trim_start_matches('#').trim();
            let kept =
                words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            lines.push((kept.collect::<String>().to_lowercase().replace(' ', "-"), words));
        }
    }
    lines
}

#[test]
fn every_link_leads_somewhere() {
    for file in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", PAGE] {
        let text = read(file);
        let folder = Path::new(file).parent().unwrap();
        for (at, _) in text.match_indices("](") {
            let link = text[at + 2..].split(')').next().unwrap();
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = if path.is_empty() { Path::new(file).to_owned() } else { folder.join(path) };
            let full = Path::new(env!("CARGO_MANIFEST_DIR")).join(&path);
            assert!(full.exists(), "{file}: {link} leads nowhere");
            if !anchor.is_empty() {
                let text = read(&path.display().to_string());
                let found = headings(&text).iter().any(|(heading, _)| heading == anchor);
                assert!(found, "{file}: {link} has no such heading");
            }
        }
    }
}
