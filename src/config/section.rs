//! Reads mappings and values, and collects what is wrong with them.
//!
//! A message says what is wrong, what was found and what is allowed. None shows text with an `@`,
//! which may be a URL with a password.

use std::{collections::HashSet, num::NonZero, ops::RangeInclusive, sync::Arc, time::Duration};

use super::{
    Endpoint, SeenFile,
    file::{Fault, Key, Node, Value},
    units::{parse_duration, show_duration},
};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// No limit is larger.
const MAX_LIMIT: u32 = 10_000_000;

/// A name that the user gives is not longer, in bytes.
const MAX_NAME: usize = 64;

/// Collects faults, and what can be judged only when all is read.
#[derive(Default)]
pub(super) struct Checker {
    pub(super) faults: Vec<Fault>,
    /// What is allowed and yet hardly meant.
    pub(super) warnings: Vec<Fault>,
    /// Every backend's key, address and node, to be held against the listeners.
    pub(super) backends: Vec<(String, Endpoint, usize)>,
    /// Other files that were read.
    pub(super) files: Vec<SeenFile>,
}

/// A mapping whose keys are known, and where it stands in the file.
pub(super) struct Section<'a> {
    path: String,
    pub(super) id: usize,
    entries: &'a [(Key, Node)],
}

impl<'a> Section<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|(k, _)| k.text == key).map(|(_, node)| node)
    }

    pub(super) fn at(&self, key: &str) -> String {
        join(&self.path, key)
    }
}

impl Checker {
    /// A mapping with known keys. Reports another kind of value, unknown keys and doubled ones.
    pub(super) fn section<'a>(
        &mut self,
        node: &'a Node,
        path: &str,
        known: &[&str],
    ) -> Option<Section<'a>> {
        let entries = self.entries(node, path)?;
        for (key, _) in entries {
            if !known.contains(&key.text.as_str()) {
                let hint = did_you_mean(&key.text, known);
                let shown = if hint.is_empty() { key_of(path, key) } else { quoted(&key.text) };
                let (place, allowed) = (inside(path), allowed(known));
                self.fault(key.id, format!("unknown key{place}: found {shown}{hint}; {allowed}"));
            }
        }
        Some(Section { path: path.to_owned(), id: node.id, entries })
    }

    /// A mapping whose keys are names that the user gives. Reports bad, doubled and missing ones.
    pub(super) fn named<'a>(
        &mut self,
        node: &'a Node,
        path: &str,
        what: &str,
    ) -> Vec<(Arc<str>, &'a Node)> {
        let Some(entries) = self.entries(node, path) else {
            return Vec::new();
        };
        if entries.is_empty() {
            self.fault(node.id, format!("{path} is empty; at least one {what} is needed"));
        }
        let mut seen = HashSet::new();
        let mut named = Vec::new();
        for (key, node) in entries {
            let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if key.text.is_empty() || key.text.len() > MAX_NAME || !key.text.chars().all(sane) {
                self.fault(
                    key.id,
                    format!(
                        "{path} has a bad {what} name: found {}; allowed are 1 to 64 letters, \
                         digits, dots, dashes and underscores",
                        quoted(&key.text)
                    ),
                );
            } else if seen.insert(&key.text) {
                named.push((Arc::from(key.text.as_str()), node));
            }
        }
        named
    }

    fn entries<'a>(&mut self, node: &'a Node, path: &str) -> Option<&'a [(Key, Node)]> {
        let Value::Map(entries) = &node.value else {
            let place = if path.is_empty() { "the file" } else { path };
            self.fault(
                node.id,
                format!(
                    "{place} is not a mapping: found {}; allowed are `key: value` entries",
                    node.value.kind()
                ),
            );
            return None;
        };
        let mut seen = HashSet::new();
        for (key, _) in entries {
            if !seen.insert(&key.text) {
                let (place, shown) = (inside(path), key_of(path, key));
                self.fault(
                    key.id,
                    format!("duplicate key{place}: found {shown} again; each key is allowed once"),
                );
            }
        }
        Some(entries)
    }

    pub(super) fn required<'a>(&mut self, section: &Section<'a>, key: &str) -> Option<&'a Node> {
        let node = section.get(key);
        if node.is_none() {
            self.fault(section.id, format!("{} is missing; it is required", section.at(key)));
        }
        node
    }

    pub(super) fn text<'a>(&mut self, node: &'a Node, path: &str) -> Option<&'a str> {
        if let Value::Text(text) = &node.value {
            return Some(text);
        }
        let hint = match node.value {
            Value::Number(_) | Value::Bool(_) => "; put it in quotes if it is meant as text",
            _ => "",
        };
        let message =
            format!("{path} is not text: found {}; allowed is text{hint}", node.value.kind());
        self.fault(node.id, message);
        None
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        node: &Node,
        path: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let text = self.text(node, path)?;
        let choice = choices.iter().find(|(name, _)| *name == text);
        if choice.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.not_among(node.id, &format!("{path} is unknown"), text, &names);
        }
        choice.map(|(_, value)| *value)
    }

    /// Reports a text that is none of these names.
    pub(super) fn not_among(&mut self, id: usize, wrong: &str, text: &str, names: &[&str]) {
        let (found, hint) = (quoted(text), did_you_mean(text, names));
        self.fault(id, format!("{wrong}: found {found}{hint}; {}", allowed(names)));
    }

    pub(super) fn duration(
        &mut self,
        section: &Section<'_>,
        key: &str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(node) = section.get(key) else {
            return default;
        };
        let value = match &node.value {
            Value::Text(text) => parse_duration(text),
            _ => None,
        };
        if let Some(value) = value.filter(|value| range.contains(value)) {
            return value;
        }
        let wrong = match (&node.value, value) {
            (_, Some(_)) => "is out of range",
            (Value::Number(_), None) => "is a duration without a unit",
            _ => "is not a duration",
        };
        let message = format!(
            "{} {wrong}: found {}; allowed is a whole number with ms, s, m or h, from {} to {}",
            section.at(key),
            found(node),
            show_duration(*range.start()),
            show_duration(*range.end()),
        );
        self.fault(node.id, message);
        default
    }

    pub(super) fn count(
        &mut self,
        section: &Section<'_>,
        key: &str,
        default: u32,
        range: RangeInclusive<u32>,
    ) -> u32 {
        let Some(node) = section.get(key) else {
            return default;
        };
        let value = match &node.value {
            Value::Number(text) => text.parse().ok().filter(|n| range.contains(n)),
            _ => None,
        };
        value.unwrap_or_else(|| {
            let (start, end) = (range.start(), range.end());
            let message = format!(
                "{} is not a count: found {}; allowed is a number from {start} to {end}",
                section.at(key),
                found(node)
            );
            self.fault(node.id, message);
            default
        })
    }

    /// A count from 1 that nothing bounds unless it is there.
    pub(super) fn limit(&mut self, section: &Section<'_>, key: &str) -> Option<NonZero<u32>> {
        section.get(key)?;
        NonZero::new(self.count(section, key, 1, 1..=MAX_LIMIT))
    }

    pub(super) fn flag(&mut self, section: &Section<'_>, key: &str, default: bool) -> bool {
        let Some(node) = section.get(key) else {
            return default;
        };
        if let Value::Bool(value) = node.value {
            return value;
        }
        let message = format!("{} is not true or false: found {}", section.at(key), found(node));
        self.fault(node.id, message);
        default
    }

    pub(super) fn fault(&mut self, id: usize, message: String) {
        self.faults.push(Fault { id, message });
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Where a key stands; the top of the file needs no words.
fn inside(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" in {path}") }
}

/// What stands in the file, for keys that hold no secret.
pub(super) fn found(node: &Node) -> String {
    match &node.value {
        Value::Text(text) => quoted(text),
        Value::Number(text) => text.clone(),
        other => other.kind().to_owned(),
    }
}

/// A key as it may be shown: one under `auth` may be the password itself.
fn key_of(path: &str, key: &Key) -> String {
    if path.ends_with(".auth") {
        "one that is not shown, it may be a password".to_owned()
    } else {
        quoted(&key.text)
    }
}

pub(super) fn quoted(text: &str) -> String {
    if text.contains('@') {
        return "text with an @ (not shown, it may hold a password)".to_owned();
    }
    let short: String = text.chars().take(60).collect();
    format!("{short:?}{}", if short.len() < text.len() { "…" } else { "" })
}

fn did_you_mean(found: &str, names: &[&str]) -> String {
    if found.len() > MAX_NAME {
        return String::new();
    }
    let near = |name: &&&str| strsim::damerau_levenshtein(found, name) <= 1 + name.len() / 4;
    let nearest = names.iter().filter(near).min_by_key(|n| strsim::damerau_levenshtein(found, n));
    nearest.map(|name| format!(", did you mean {name:?}?")).unwrap_or_default()
}

fn allowed(names: &[&str]) -> String {
    match names {
        [] => "none is defined".to_owned(),
        [one] => format!("allowed is {one}"),
        _ => format!("allowed are {}", names.join(", ")),
    }
}
