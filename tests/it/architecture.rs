//! The rooms of ARCHITECTURE.md: who may import whom.

use std::{fs, path::Path};

/// A room, and the rooms that it may import. `config` and `topology` are plain data.
const ROOMS: [(&str, &[&str]); 17] = [
    ("main", &["app", "cli", "config", "lifecycle", "logging", "remote"]),
    ("app", &["admin", "config", "control", "data", "lifecycle", "metrics", "net", "topology"]),
    ("cli", &["config"]),
    ("control/election", &["topology"]),
    ("control/health", &["topology"]),
    ("control/evidence", &["topology"]),
    ("control/council", &["config"]),
    ("control", &["config", "control", "metrics", "net", "topology"]),
    ("data", &["metrics", "net", "topology"]),
    ("admin", &["metrics", "net", "topology"]),
    ("config", &["topology"]),
    ("metrics", &["topology"]),
    ("net", &["config", "topology"]),
    ("remote", &["config", "topology"]),
    ("logging", &["config"]),
    ("lifecycle", &[]),
    ("topology", &[]),
];

/// Every room named in `crate::x` or `crate::{x, y::…}`.
fn imports(source: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, word) in source.match_indices("crate::").chain(source.match_indices("rolegate::")) {
        let rest = &source[at + word.len()..];
        match rest.strip_prefix('{') {
            None => rooms.push(name(rest)),
            Some(list) => {
                let mut depth = 0;
                let mut start = true;
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && !c.is_whitespace() => {
                            start = false;
                            rooms.push(name(&list[i..]));
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    rooms
}

fn name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The part that ships, without the tests at a file's end.
fn shipped(source: &str) -> &str {
    source.split("#[cfg(test)]").next().unwrap_or(source)
}

fn visit(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            visit(&entry.path(), found);
        } else if entry.path().extension().is_some_and(|e| e == "rs") {
            let path = entry.path().with_extension("");
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
            let file = path.strip_prefix(root).unwrap().display().to_string();
            found.push((file, fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

/// What ships, file by file: its path in `src` without the ending, and its text without tests.
pub fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 15, "{}", files.len());
    // Tests of the election, in files of their own.
    let tests = ["changes", "vectors", "simulation"].map(|test| format!("control/election/{test}"));
    files.retain(|(file, _)| !tests.iter().any(|test| file.starts_with(test)));
    files.into_iter().map(|(file, source)| (file, shipped(&source).to_owned())).collect()
}

#[test]
fn rooms_import_only_what_they_may() {
    for (file, source) in sources().iter().filter(|(file, _)| file != "lib") {
        let inside = |room: &str| file == room || file.starts_with(&format!("{room}/"));
        let (room, allowed) = ROOMS
            .iter()
            .find(|(room, _)| inside(room))
            .unwrap_or_else(|| panic!("no room: {file}"));
        let own = room.split('/').next().unwrap();
        for import in imports(source) {
            let fine = allowed.contains(&import.as_str()) || (import == own && !room.contains('/'));
            assert!(fine, "src/{file}.rs is in the room {room} and imports {import}");
        }
    }
}

#[test]
fn the_pure_core_has_no_clock_no_tasks_and_no_io() {
    let pure = [
        "election",
        "election/decision",
        "election/field",
        "election/incumbent",
        "health",
        "council",
        "evidence",
        "reply",
    ];
    for file in pure.map(|file| format!("src/control/{file}.rs")) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&file);
        let source = fs::read_to_string(path).unwrap();
        for word in ["tokio", "Instant", "SystemTime", "std::net", "std::io", "async ", "fastrand"]
        {
            assert!(!shipped(&source).contains(word), "{file} has {word}");
        }
    }
}

#[test]
fn no_decision_depends_on_the_time_of_day() {
    // A certificate is valid until some day. All else is measured with the monotonic clock, which
    // `std::time::Instant` is, too; clippy asks for tokio's.
    let may = ["src/config/tls.rs", "src/config/tls/trust.rs"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let file = path.strip_prefix(root).unwrap().display().to_string();
            let source = fs::read_to_string(&path).unwrap();
            for word in ["SystemTime", "UNIX_EPOCH", "UnixTime", "chrono::", ".modified(", "clock_"]
            {
                let is_there = shipped(&source).contains(word);
                assert!(!is_there || may.contains(&file.as_str()), "{file} has {word}");
            }
        }
    }
    assert!(files > 50, "{files}");
}

#[test]
fn imports_are_found_in_every_shape() {
    let source =
        "use crate::{\n    a::{b, c},\n    d,\n};\nuse crate::e::F;\nfn f(x: crate::g::H) {}";
    assert_eq!(imports(source), ["a", "d", "e", "g"]);
}
