//! The rules of the house, checked: layers, file sizes, headers, leftovers.

use std::fs;
use std::path::{Path, PathBuf};

/// Rank of each module at the top of `src/`. A module imports only modules of a lower rank, and its own.
const RANKS: &[(&str, u8)] = &[
    ("domain", 0),
    ("message", 0),
    ("backoff", 0),
    ("delay", 0),
    ("chain", 0),
    ("ledger", 1),
    ("recovery", 1),
    ("topology", 1),
    ("telemetry", 1),
    ("shutdown", 1),
    ("control", 1),
    ("instance", 1),
    ("watchdog", 1),
    ("tls", 1),
    ("systemd", 2),
    ("config", 2),
    ("config_watcher", 3),
    ("supervisor", 2),
    ("handlers", 2),
    ("metrics", 3),
    ("management", 3),
    ("pipeline", 4),
    ("amqp", 3),
    ("reconcile", 4),
    ("status", 5),
    ("admin", 6),
    ("app", 6),
    ("cli", 6),
    ("lib", 7),
    ("main", 7),
];

/// `message` names delays in its queue names, which are as basic as it is.
const SAME_RANK: &[(&str, &str)] =
    &[("message", "delay"), ("app", "cli"), ("cli", "app"), ("app", "admin"), ("cli", "admin")];

/// Files are split before they have this many lines, tests not counted.
const MAX_LINES: usize = 500;

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The text before the unit tests.
    fn code(&self) -> &str {
        self.text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default()
    }

    /// `amqp` for `src/amqp/connect.rs`, `app` for `src/app.rs`.
    fn module(&self) -> String {
        let below = self.path.strip_prefix(root().join("src")).unwrap();
        let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
        first.trim_end_matches(".rs").to_owned()
    }

    fn is_test(&self) -> bool {
        self.path.file_stem().is_some_and(|stem| stem.to_str().unwrap().ends_with("tests"))
            || self.path.components().any(|part| part.as_os_str() == "tests")
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(Source { text: fs::read_to_string(&path).unwrap(), path });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn all_sources() -> Vec<Source> {
    ["src", "tests", "examples", "benches"].into_iter().flat_map(sources).collect()
}

fn rank(module: &str) -> u8 {
    let known = RANKS.iter().find(|(name, _)| *name == module);
    known.unwrap_or_else(|| panic!("module {module:?} has no rank in tests/offline/tidy.rs")).1
}

fn imports(code: &str) -> Vec<String> {
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines
        .flat_map(|line| line.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>())
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect())
        .filter(|name: &String| !name.is_empty())
        .collect()
}

fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn a_module_imports_only_lower_ranks() {
    let mut complaints = Vec::new();
    for source in sources("src") {
        let module = source.module();
        for imported in imports(source.code()) {
            let allowed = imported == module
                || rank(&imported) < rank(&module)
                || SAME_RANK.contains(&(module.as_str(), imported.as_str()));
            if !allowed {
                complaints.push(format!("{}: {module} imports {imported}", source.path.display()));
            }
        }
    }
    assert_none(complaints);
}

#[test]
fn only_amqp_admin_knows_the_client_library() {
    let elsewhere = sources("src").into_iter().filter(|source| !source.path.starts_with(root().join("src/amqp/admin")));
    let users = elsewhere.filter(|source| source.text.contains("amqprs::")).map(|s| s.path.display().to_string());
    assert_none(users.collect());
}

#[test]
fn files_say_what_they_own() {
    let silent = all_sources().into_iter().filter(|source| !source.text.starts_with("//! "));
    assert_none(silent.map(|source| format!("{}: opens without //!", source.path.display())).collect());
}

#[test]
fn files_are_short() {
    let count = |source: &Source| source.code().lines().count();
    let long = sources("src").into_iter().filter(|source| !source.is_test() && count(source) >= MAX_LINES);
    assert_none(long.map(|source| format!("{}: {} lines", source.path.display(), count(&source))).collect());
}

#[test]
fn nothing_is_left_over() {
    // Put together here so that this file does not contain them.
    let leftovers = [["dbg", "!("].concat(), ["FIX", "ME"].concat(), ["TO", "DO"].concat(), ["todo", "!("].concat()];
    let mut complaints = Vec::new();
    for source in all_sources() {
        for (number, line) in source.text.lines().enumerate() {
            if leftovers.iter().any(|leftover| line.contains(leftover.as_str())) {
                complaints.push(format!("{}:{}: {line}", source.path.display(), number + 1));
            }
        }
    }
    assert_none(complaints);
}

#[test]
fn the_top_level_holds_only_what_belongs_there() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "config",
        "examples",
        "tests",
        "benches",
        "Dockerfile",
        "Makefile",
        "docs",
        "README.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "CHANGELOG.md",
        "target",
        "proptest-regressions",
    ];
    let names = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_none(names.filter(|name| !name.starts_with('.') && !allowed.contains(&name.as_str())).collect());
}

#[test]
fn the_checks_see_something() {
    assert!(sources("src").len() > 20);
    assert!(imports("use crate::domain::Order;\n// crate::amqp\n").contains(&"domain".to_owned()));
    assert!(!imports("// crate::amqp").contains(&"amqp".to_owned()));
    assert!(Path::new(&root()).join("src/lib.rs").exists());
}
