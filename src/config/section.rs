//! Reads one section of a configuration: takes each key by name and shape, and reports wrong types, wrong
//! values and unknown keys, all of them. It knows no key itself.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;

use super::layers::{Table, Value, join};
use super::report::Report;
use super::shape;

/// Where systemd puts the credentials of a unit.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// Longest path, as Linux has it.
pub(super) const LONGEST_PATH: usize = 4096;

/// What every section of one configuration shares.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub report: Report,
    /// Every path that was asked for, so that a test can hold the default file against it.
    pub asked: RefCell<BTreeSet<String>>,
    /// `$CREDENTIALS_DIRECTORY`, if it is set.
    credentials: Option<PathBuf>,
    /// Whether every user of this machine can read the configuration file.
    pub is_open: bool,
}

impl Reading {
    /// In a process with these variables, from a file that everybody may read or not.
    pub(super) fn with(environment: &[(OsString, OsString)], is_open: bool) -> Self {
        let set = environment.iter().find(|(name, value)| name == CREDENTIALS && !value.is_empty());
        Reading { credentials: set.map(|(_, value)| PathBuf::from(value)), is_open, ..Reading::default() }
    }
}

/// A section whose keys are being read.
pub(super) struct Section<'r> {
    pub path: String,
    table: Table,
    known: Vec<&'static str>,
    reading: &'r Reading,
}

/// Reads a value, or says what it must be.
pub(super) type Shape<'s, T> = &'s dyn Fn(&Value) -> Result<T, String>;

impl<'r> Section<'r> {
    pub(super) fn new(path: String, table: Table, reading: &'r Reading) -> Self {
        Section { path, table, known: Vec::new(), reading }
    }

    pub(super) fn report(&self) -> &'r Report {
        &self.reading.report
    }

    pub(super) fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.reading.asked.borrow_mut().insert(self.key(key));
        self.table.remove(key)
    }

    /// A key that may be missing.
    pub(super) fn optional<T>(&mut self, key: &'static str, shape: Shape<'_, T>) -> Option<T> {
        let value = self.take(key)?;
        shape(&value).map_err(|message| self.report().problem(&self.key(key), message)).ok()
    }

    /// A file's path, which may begin with `$CREDENTIALS_DIRECTORY/`: whoever runs orderd knows where that is.
    pub(super) fn file(&mut self, key: &'static str) -> Option<PathBuf> {
        let text = self.optional(key, &shape::text(LONGEST_PATH))?;
        let Some(name) = text.strip_prefix('$') else { return Some(PathBuf::from(text)) };
        let name = name.strip_prefix(CREDENTIALS).and_then(|rest| rest.strip_prefix('/'));
        let problem = match (name, &self.reading.credentials) {
            (Some(name), Some(directory)) => return Some(directory.join(name)),
            (Some(_), None) => {
                format!("cannot use {text:?}: ${CREDENTIALS} is not set; systemd sets it with LoadCredential")
            }
            (None, _) => format!("must be a path or begin with \"${CREDENTIALS}/\", is {text:?}"),
        };
        self.report().problem(&self.key(key), problem);
        None
    }

    /// A key with a default, which also stands in for a wrong value until the problems are told.
    pub(super) fn or<T>(&mut self, key: &'static str, default: T, shape: Shape<'_, T>) -> T {
        self.optional(key, shape).unwrap_or(default)
    }

    /// A key that must be there.
    pub(super) fn required<T>(&mut self, key: &'static str, hint: &str, shape: Shape<'_, T>) -> Option<T> {
        if !self.table.contains_key(key) {
            self.report().problem(&self.key(key), format!("is missing{hint}"));
        }
        self.optional(key, shape)
    }

    /// A list: of the file as it is; of the environment as a TOML array or separated by commas.
    pub(super) fn list<T>(&mut self, key: &'static str, most: usize, shape: Shape<'_, T>) -> Option<Vec<T>> {
        let path = self.key(key);
        let items = match items(self.take(key)?) {
            Ok(items) => items,
            Err(message) => {
                self.report().problem(&path, message);
                return None;
            }
        };
        if items.len() > most {
            self.report().problem(&path, format!("must have at most {most} items, has {}", items.len()));
        }
        let read: Vec<Option<T>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                let problem = |message: String| self.report().problem(&format!("{path}[{index}]"), message);
                shape(item).map_err(problem).ok()
            })
            .collect();
        read.into_iter().collect()
    }

    /// A section in this one; empty if it is missing.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'r> {
        self.optional_section(key).unwrap_or_else(|| Section::new(self.key(key), Table::new(), self.reading))
    }

    /// A section in this one, if it is there.
    pub(super) fn optional_section(&mut self, key: &'static str) -> Option<Section<'r>> {
        let path = self.key(key);
        match self.take(key)? {
            Value::Table(table) => Some(Section::new(path, table, self.reading)),
            other => {
                self.report().problem(&path, not_a_section(&other));
                None
            }
        }
    }

    /// Consumes a section of named sections, such as `[queues.<name>]`.
    pub(super) fn into_named(self) -> Vec<(String, Section<'r>)> {
        let path = self.path;
        let reading = self.reading;
        let named = self.table.into_iter().filter_map(|(name, value)| {
            let path = join(&path, &name);
            match value {
                Value::Table(table) => Some((name, Section::new(path, table, reading))),
                other => {
                    reading.report.problem(&path, not_a_section(&other));
                    None
                }
            }
        });
        named.collect()
    }

    /// Reports the keys that nobody asked for. Their values are never shown: a misspelt password is one.
    pub(super) fn finish(self) {
        for key in self.table.keys() {
            let hint = did_you_mean(key, self.known.iter().copied());
            self.reading.report.problem(&join(&self.path, key), format!("unknown key{hint}"));
        }
    }
}

fn not_a_section(value: &Value) -> String {
    match value {
        Value::Untyped(_) => "is a section: set the keys in it".to_owned(),
        other => format!("must be a section, is {other}"),
    }
}

fn items(value: Value) -> Result<Vec<Value>, String> {
    let text = match value {
        Value::List(items) => return Ok(items),
        Value::Untyped(text) => text,
        other => return Err(format!("must be a list, is {other}")),
    };
    let array = format!("items = {text}");
    if let Ok(mut layers) = super::layers::Layers::read(&array)
        && let Some(Value::List(items)) = layers.root.remove("items")
    {
        return Ok(items);
    }
    if text.trim_start().starts_with('[') && text.contains(['"', '\'']) {
        return Err("must be a TOML array or separated by commas".to_owned());
    }
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    Ok(items.map(|item| Value::Untyped(item.to_owned())).collect())
}

/// `; did you mean "prefetch"?`, if a candidate is near enough.
pub(super) fn did_you_mean<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> String {
    const NEAR: f64 = 0.8;
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, candidate)| format!("; did you mean {candidate:?}?"))
}

/// `a, b and c`, each quoted.
pub(super) fn listed(names: &[impl Display]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => "none".to_owned(),
    }
}
