//! Checks of the source code itself: layers, import cycles, file sizes, headers, debugging leftovers, top-level files.

#[path = "tidy/imports.rs"]
mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use imports::{Imports, ModulePath, imports};

/// Files are split before they have this many lines, tests not counted.
const MAX_LINES: usize = 500;

/// The one module that uses amqprs.
const AMQP_ADMIN: [&str; 2] = ["amqp", "admin"];

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The text before the unit tests.
    fn code(&self) -> &str {
        let tests = ["\n#[cfg(test)]\nmod tests {", "\n#[cfg(test)]\npub(super) mod tests {"];
        let end = tests.iter().filter_map(|start| self.text.find(start)).min();
        &self.text[..end.unwrap_or(self.text.len())]
    }

    /// `["amqp", "connect"]` for `src/amqp/connect.rs`, `["amqp"]` for `src/amqp/mod.rs`, `[]` for `src/lib.rs`.
    fn module(&self) -> ModulePath {
        let below = self.path.strip_prefix(root().join("src")).unwrap().with_extension("");
        let mut module: ModulePath = below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
            module.pop();
        }
        module
    }

    fn is_test(&self) -> bool {
        self.path.file_stem().is_some_and(|stem| stem.to_str().unwrap().ends_with("tests"))
            || self.path.strip_prefix(root().join("src")).is_ok_and(|below| below.iter().any(|part| part == "tests"))
    }

    fn shown_path(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
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
            // What cargo-fuzz builds is in `tests/fuzz/target`.
            if path.is_dir() {
                folders.extend((!path.ends_with("target")).then_some(path));
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

/// The files of the product, by module, with what each imports. Tests may import anything.
fn modules() -> BTreeMap<ModulePath, (Source, Imports)> {
    let product = sources("src").into_iter().filter(|source| !source.is_test());
    product
        .map(|source| {
            let module = source.module();
            let imports = imports(&module, &source.text);
            (module, (source, imports))
        })
        .collect()
}

fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// The rank of each top-level module, read from the map in `src/lib.rs`. A rank is followed by the names of its modules;
/// text in parentheses is ignored.
fn ranks() -> BTreeMap<String, u32> {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let map = lib.split("//! ```text\n//! rank").nth(1).expect("the map begins with a line \"rank\"");
    let map = map.split("//! ```").next().unwrap();
    let mut ranks = BTreeMap::new();
    let (mut rank, mut remark) = (None, 0);
    for word in map.replace("//!", " ").replace('(', " ( ").replace(')', " ) ").split_whitespace() {
        match (word, word.parse()) {
            ("(", _) => remark += 1,
            (")", _) => remark -= 1,
            _ if remark > 0 => {}
            (_, Ok(number)) => rank = Some(number),
            (name, Err(_)) => {
                let former = ranks.insert(name.to_owned(), rank.expect("the map begins with a rank"));
                assert!(former.is_none(), "{name} is in the map twice");
            }
        }
    }
    ranks
}

#[test]
fn the_map_names_every_module() {
    let mapped: BTreeSet<String> = ranks().into_keys().collect();
    let existing: BTreeSet<String> = modules().into_keys().filter_map(|module| module.first().cloned()).collect();
    assert_eq!(mapped, existing);
}

/// Two modules that import each other violate this, too.
#[test]
fn a_module_imports_only_lower_ranks() {
    let ranks = ranks();
    let mut violations = BTreeSet::new();
    for (module, (source, imports)) in modules() {
        let Some(importing) = module.first() else { continue };
        for imported in imports.paths.iter().filter_map(|path| path.first()).filter(|name| ranks.contains_key(*name)) {
            if imported != importing && ranks[imported] >= ranks[importing] {
                violations.insert(format!("{}: {importing} imports {imported}", source.shown_path()));
            }
        }
    }
    assert_none(violations.into_iter().collect());
}

/// This holds inside a module, too: none of its files or folders depend on each other, directly or through others. Only a
/// folder's `mod.rs` and the files below it may.
#[test]
fn no_modules_import_each_other_in_a_cycle() {
    let modules = modules();
    // For each module: which of its direct children import which other ones.
    let mut imported: BTreeMap<ModulePath, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (module, (_, imports)) in &modules {
        for path in &imports.paths {
            let target = defining_module(&modules, path, 0);
            let common = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
            if common < module.len() && common < target.len() {
                let children = imported.entry(module[..common].to_vec()).or_default();
                children.entry(module[common].clone()).or_default().insert(target[common].clone());
            }
        }
    }
    let mut violations = Vec::new();
    for (parent, children) in &imported {
        if let Some(cycle) = cycle(children) {
            violations.push(format!("in src/{}: {}", parent.join("/"), cycle.join(" -> ")));
        }
    }
    assert_none(violations);
}

/// The module whose file defines what a path names: re-exports are followed.
fn defining_module(modules: &BTreeMap<ModulePath, (Source, Imports)>, path: &[String], followed: usize) -> ModulePath {
    let mut module = Vec::new();
    for (at, segment) in path.iter().enumerate() {
        module.push(segment.clone());
        if modules.contains_key(&module) {
            continue;
        }
        module.pop();
        let reexport = modules.get(&module).and_then(|(_, imports)| imports.names.get(segment));
        return match reexport {
            Some(target) if followed < 10 && target.as_slice() != path => {
                let target: ModulePath = target.iter().chain(&path[at + 1..]).cloned().collect();
                defining_module(modules, &target, followed + 1)
            }
            Some(_) | None => module,
        };
    }
    module
}

/// A cycle in a graph: the names on it, with the first one repeated at the end.
fn cycle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit<'g>(
        graph: &'g BTreeMap<String, BTreeSet<String>>,
        name: &'g String,
        visiting: &mut Vec<&'g String>,
        done: &mut BTreeSet<&'g String>,
    ) -> Option<Vec<String>> {
        if let Some(start) = visiting.iter().position(|earlier| *earlier == name) {
            return Some(visiting[start..].iter().copied().chain([name]).cloned().collect());
        }
        if !done.insert(name) {
            return None;
        }
        visiting.push(name);
        let found = graph.get(name).into_iter().flatten().find_map(|next| visit(graph, next, visiting, done));
        visiting.pop();
        found
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|name| visit(graph, name, &mut Vec::new(), &mut done))
}

#[test]
fn only_amqp_admin_uses_the_client_library() {
    let elsewhere =
        sources("src").into_iter().filter(|source| !source.module().starts_with(&AMQP_ADMIN.map(str::to_owned)));
    let users = elsewhere.filter(|source| source.text.contains("amqprs::")).map(|source| source.shown_path());
    assert_none(users.collect());
}

#[test]
fn every_file_opens_with_a_header() {
    let without = all_sources().into_iter().filter(|source| !source.text.starts_with("//! "));
    assert_none(without.map(|source| format!("{}: opens without //!", source.shown_path())).collect());
}

#[test]
fn files_are_short() {
    let count = |source: &Source| source.code().lines().count();
    let long = sources("src").into_iter().filter(|source| !source.is_test() && count(source) >= MAX_LINES);
    assert_none(long.map(|source| format!("{}: {} lines", source.shown_path(), count(&source))).collect());
}

#[test]
fn nothing_is_left_over_from_debugging() {
    // Put together here so that this file does not contain them.
    let leftovers = [["dbg", "!("].concat(), ["FIX", "ME"].concat(), ["TO", "DO"].concat(), ["todo", "!("].concat()];
    let mut violations = Vec::new();
    for source in all_sources() {
        for (number, line) in source.text.lines().enumerate() {
            if leftovers.iter().any(|leftover| line.contains(leftover.as_str())) {
                violations.push(format!("{}:{}: {line}", source.shown_path(), number + 1));
            }
        }
    }
    assert_none(violations);
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
        "docs",
        "Dockerfile",
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "target",
        "proptest-regressions",
    ];
    let names = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_none(names.filter(|name| !name.starts_with('.') && !allowed.contains(&name.as_str())).collect());
}

#[test]
fn the_checks_find_modules_imports_and_cycles() {
    let modules = modules();
    assert!(modules.len() > 100);
    let imported: usize = modules.values().map(|(_, imports)| imports.paths.len()).sum();
    assert!(imported > 500, "{imported}");
    let config: ModulePath = ["config", "Config"].map(str::to_owned).into();
    assert_eq!(defining_module(&modules, &config, 0), ["config", "model"], "re-exports are followed");
    let graph = |edges: &[(&str, &str)]| {
        edges.iter().fold(BTreeMap::<String, BTreeSet<String>>::new(), |mut graph, (from, to)| {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
            graph
        })
    };
    assert_eq!(cycle(&graph(&[("a", "b"), ("a", "c"), ("b", "c")])), None);
    let found = cycle(&graph(&[("a", "b"), ("b", "c"), ("c", "b")])).unwrap();
    assert_eq!(found, ["b", "c", "b"]);
}
