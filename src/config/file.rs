//! The YAML as written: a tree that keeps every entry, also the doubled ones, and finds the line
//! and column of any node again.
//!
//! `serde_yaml` tells positions only with errors. So a node carries its number in reading order,
//! and the rare pass that needs positions reads the text again and fails on purpose at that number.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::ConfigError;

/// So many errors are shown at the most.
const MAX_ERRORS: usize = 100;

/// One value of the file.
#[derive(Debug, PartialEq)]
pub(super) struct Node {
    /// Its number in reading order.
    pub(super) id: usize,
    pub(super) value: Value,
}

/// Its Debug output shows no content, which may be a password.
#[derive(PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// The left side of an entry.
#[derive(Debug, PartialEq)]
pub(super) struct Key {
    pub(super) id: usize,
    pub(super) text: String,
}

/// What is wrong with the node of this number.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) id: usize,
    pub(super) message: String,
}

impl Value {
    /// What a person calls such a value.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

/// Reads the text into a tree, or tells where its YAML breaks.
pub(super) fn read(text: &str) -> Result<Node, ConfigError> {
    pass(text, usize::MAX).map_err(|error| {
        let (line, column) = position(&error);
        let words = error.to_string();
        // The parser repeats its position in its words.
        let mut words = words.split(" at line ").next().unwrap_or_default();
        if words.contains("invalid ") {
            // Words about a value repeat it, and it may be a password.
            words = "a value does not fit its tag, or is of a kind that has no use here";
        }
        let hint = text.lines().nth(line.saturating_sub(1)).and_then(quoting_hint).unwrap_or("");
        ConfigError { line, column, message: format!("this is not valid YAML: {words}{hint}") }
    })
}

/// Gives each fault its line and column, in the order of the file.
pub(super) fn locate(text: &str, faults: Vec<Fault>) -> Vec<ConfigError> {
    let more = faults.len().saturating_sub(MAX_ERRORS);
    let mut errors: Vec<_> = faults
        .into_iter()
        .take(MAX_ERRORS)
        .map(|fault| {
            let (line, column) = match pass(text, fault.id) {
                Ok(_) => (1, 1),
                Err(error) => position(&error),
            };
            ConfigError { line, column, message: fault.message }
        })
        .collect();
    errors.sort_by_key(|error| (error.line, error.column));
    if let Some(last) = errors.last_mut().filter(|_| more > 0) {
        last.message.push_str(&format!(" (and {more} more errors)"));
    }
    errors
}

/// `*` and `[` mean something else in YAML, and common addresses start with them.
fn quoting_hint(line: &str) -> Option<&'static str> {
    let star = line.split([' ', ',', '[']).any(|word| word.starts_with("*:"));
    (star || line.contains("[:"))
        .then_some("; put the address in quotes, as in \"*:6379\" or \"[::]:6379\"")
}

fn position(error: &serde_yaml::Error) -> (usize, usize) {
    error.location().map_or((1, 1), |at| (at.line().max(1), at.column().max(1)))
}

fn pass(text: &str, stop_at: usize) -> Result<Node, serde_yaml::Error> {
    let next = Cell::new(0);
    NodeSeed { next: &next, stop_at }.deserialize(serde_yaml::Deserializer::from_str(text))
}

/// Reads one node, numbers it, and fails at the number that is looked for.
#[derive(Clone, Copy)]
struct NodeSeed<'a> {
    next: &'a Cell<usize>,
    stop_at: usize,
}

impl NodeSeed<'_> {
    fn number<E: serde::de::Error>(self) -> Result<usize, E> {
        let id = self.next.get();
        self.next.set(id + 1);
        if id == self.stop_at { Err(E::custom("here")) } else { Ok(id) }
    }

    fn scalar<E: serde::de::Error>(self, value: Value) -> Result<Node, E> {
        Ok(Node { id: self.number()?, value })
    }
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeSeed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, a list, text, a number or a boolean without a tag")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Node, E> {
        self.scalar(Value::Null)
    }

    // An empty file.
    fn visit_none<E: serde::de::Error>(self) -> Result<Node, E> {
        self.visit_unit()
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Node, E> {
        self.scalar(Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Node, E> {
        self.scalar(Value::Number(value.to_string()))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Node, E> {
        self.scalar(Value::Number(value.to_string()))
    }

    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<Node, E> {
        self.scalar(Value::Number(value.to_string()))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Node, E> {
        self.scalar(Value::Number(value.to_string()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        self.scalar(Value::Number(format!("{value:?}")))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Node, E> {
        self.scalar(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let id = self.number()?;
        let mut list = Vec::new();
        while let Some(node) = seq.next_element_seed(self)? {
            list.push(node);
        }
        Ok(Node { id, value: Value::List(list) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let id = self.number()?;
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(KeySeed(self))? {
            entries.push((key, map.next_value_seed(self)?));
        }
        Ok(Node { id, value: Value::Map(entries) })
    }
}

/// Reads a key as the text it is written with, also where YAML sees a number or a boolean.
struct KeySeed<'a>(NodeSeed<'a>);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain key")
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Key, E> {
        Ok(Key { id: self.0.number()?, text: value.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keeps_order_and_doubled_keys_and_finds_each_again() {
        let text = "b: 1\na:\n  - x\n  - {y: true}\nb: ~\n";
        let root = read(text).unwrap();
        let Value::Map(entries) = &root.value else { panic!("{root:?}") };
        let keys: Vec<_> = entries.iter().map(|(key, _)| key.text.as_str()).collect();
        assert_eq!(keys, ["b", "a", "b"]);
        let faults = entries
            .iter()
            .map(|(key, _)| Fault { id: key.id, message: key.text.clone() })
            .collect();
        let found: Vec<_> =
            locate(text, faults).into_iter().map(|e| (e.line, e.column, e.message)).collect();
        assert_eq!(found, [(1, 1, "b".into()), (2, 1, "a".into()), (5, 1, "b".into())]);
    }

    #[test]
    fn nested_values_have_their_own_position() {
        let text = "pools:\n  main:\n    check: { interval: 100ms }\n";
        let root = read(text).unwrap();
        let mut node = &root;
        while let Value::Map(entries) = &node.value {
            node = &entries[0].1;
        }
        assert_eq!(node.value, Value::Text("100ms".into()));
        let found = locate(text, vec![Fault { id: node.id, message: String::new() }]);
        assert_eq!((found[0].line, found[0].column), (3, 24));
    }

    #[test]
    fn an_unquoted_star_is_explained() {
        let error = read("listeners:\n  redis:\n    bind: *:6379\n").unwrap_err();
        assert_eq!(error.line, 3);
        assert!(error.message.contains("put the address in quotes"), "{}", error.message);
    }

    #[test]
    fn alias_bombs_and_deep_nesting_end_in_an_error() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let alias = format!("*a{}", i - 1);
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", [alias.as_str(); 10].join(",")));
        }
        assert!(read(&bomb).is_err());
        assert!(read(&"[".repeat(10_000)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = read(&text);
        }

        #[test]
        fn no_yaml_looking_text_panics(text in "([a-z*&!|>{}\\[\\]:,#'\" \n-]|: |\n  ){0,80}") {
            if let Ok(root) = read(&text) {
                let found = locate(&text, vec![Fault { id: root.id, message: String::new() }]);
                prop_assert!(found[0].line >= 1);
            }
        }
    }
}
