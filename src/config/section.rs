//! Reads one section of a configuration: takes each key by name and shape, and reports every wrong type, wrong value and
//! unknown key. It never decides which keys there are.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use super::layers::{Table, Value, join};
use super::report::Report;
use super::shape;
use super::suggestion::did_you_mean;

/// The variable with the directory of a unit's credentials, which systemd sets.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// Longest path, in bytes: Linux's PATH_MAX.
pub(super) const LONGEST_PATH: usize = 4096;

/// Shared by all sections of one configuration while it is read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub report: Report,
    /// The path of every key that can be set, so that a test can compare the default file with it.
    pub known_paths: RefCell<BTreeSet<String>>,
    /// `$CREDENTIALS_DIRECTORY`, if it is set.
    credentials: Option<PathBuf>,
    /// Whether every user of this machine can read the configuration file.
    pub is_open: bool,
}

impl Reading {
    /// In a process with these environment variables. `is_open`: every user of this machine can read the file.
    pub(super) fn with(environment: &[(OsString, OsString)], is_open: bool) -> Self {
        let set = environment.iter().find(|(name, value)| name == CREDENTIALS && !value.is_empty());
        Reading { credentials: set.map(|(_, value)| PathBuf::from(value)), is_open, ..Reading::default() }
    }
}

/// A section while its keys are read. Each key is taken once; [`Section::finish`] reports the keys that were not taken.
pub struct Section<'r> {
    path: String,
    table: Table,
    known: Vec<&'static str>,
    reading: &'r Reading,
}

/// Reads a value, or says what it must be: `must be at least 1, is 0`.
pub type Shape<'s, T> = &'s dyn Fn(&Value) -> Result<T, String>;

impl<'r> Section<'r> {
    pub(super) fn new(path: String, table: Table, reading: &'r Reading) -> Self {
        Section { path, table, known: Vec::new(), reading }
    }

    pub(super) fn report(&self) -> &'r Report {
        &self.reading.report
    }

    /// The path of the section: `consumers.order`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path of a key in it: `consumers.order.workers`.
    pub fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Reports a problem with a key. The first problem of each path is kept.
    pub fn problem(&self, key: &str, message: impl Into<String>) {
        self.report().problem(&self.key(key), message);
    }

    /// Reports a problem with the section as a whole.
    pub fn own_problem(&self, message: impl Into<String>) {
        self.report().problem(&self.path, message);
    }

    /// Reports a warning about a key.
    pub fn warning(&self, key: &str, message: impl Into<String>) {
        self.report().warning(&self.key(key), message);
    }

    /// Reports a warning about the section as a whole.
    pub fn own_warning(&self, message: impl Into<String>) {
        self.report().warning(&self.path, message);
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.reading.known_paths.borrow_mut().insert(self.key(key));
        self.table.remove(key)
    }

    /// A key that may be missing. `None` also for a wrong value, which is reported.
    pub fn optional<T>(&mut self, key: &'static str, shape: Shape<'_, T>) -> Option<T> {
        let value = self.take(key)?;
        shape(&value).map_err(|message| self.problem(key, message)).ok()
    }

    /// The path of a file, which may begin with `$CREDENTIALS_DIRECTORY/`, where systemd puts the unit's credentials.
    pub fn file(&mut self, key: &'static str) -> Option<PathBuf> {
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
        self.problem(key, problem);
        None
    }

    /// A key with a default. The default also stands in for a wrong value, which is reported.
    pub fn or<T>(&mut self, key: &'static str, default: T, shape: Shape<'_, T>) -> T {
        self.optional(key, shape).unwrap_or(default)
    }

    /// A key that must be there. `hint` follows the problem that it is missing.
    pub fn required<T>(&mut self, key: &'static str, hint: &str, shape: Shape<'_, T>) -> Option<T> {
        if !self.table.contains_key(key) {
            self.problem(key, format!("is missing{hint}"));
        }
        self.optional(key, shape)
    }

    /// A list of at most `most` items. In the environment it is a TOML array or separated by commas. `None` also if an item
    /// is wrong, which is reported.
    pub fn list<T>(&mut self, key: &'static str, most: usize, shape: Shape<'_, T>) -> Option<Vec<T>> {
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

    /// A section in this one; an empty one if it is missing.
    pub fn section(&mut self, key: &'static str) -> Section<'r> {
        self.optional_section(key).unwrap_or_else(|| Section::new(self.key(key), Table::new(), self.reading))
    }

    /// A section in this one, if it is there.
    pub fn optional_section(&mut self, key: &'static str) -> Option<Section<'r>> {
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

    /// A copy of what was not taken yet, whose problems and warnings go to another report.
    pub(super) fn copy<'o>(&self, reading: &'o Reading) -> Section<'o> {
        Section { path: self.path.clone(), table: self.table.clone(), known: Vec::new(), reading }
    }

    /// Takes the keys that were taken from a copy.
    pub(super) fn take_as(&mut self, copy: &Section<'_>) {
        self.table.retain(|key, _| copy.table.contains_key(key));
        self.known.extend(&copy.known);
    }

    /// Reports the keys that were not taken as unknown. Their values are never shown: one may be a password whose key is
    /// misspelt.
    pub fn finish(self) {
        for key in self.table.keys() {
            let hint = did_you_mean(key, self.known.iter().copied());
            self.problem(key, format!("unknown key{hint}"));
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
