//! Reads one section of a configuration: takes each key by name, parses its value, and reports every wrong type, wrong
//! value and unknown key. It never decides which keys there are.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::layers::{Table, Value, join};
use super::report::Report;
use super::suggestion::did_you_mean;
use super::value_parser;

/// The environment variable in which systemd passes the directory of the unit's credentials.
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";
/// Maximum length of a path, in bytes: Linux's PATH_MAX.
pub(super) const MAX_PATH_BYTES: usize = 4096;

/// What all sections of one configuration share while it is read.
#[derive(Debug, Default)]
pub(super) struct ReadContext {
    pub report: Report,
    /// The path of every key that can be set. A test compares the default file with it.
    pub known_paths: RefCell<BTreeSet<String>>,
    /// `$CREDENTIALS_DIRECTORY`, if it is set.
    credentials: Option<PathBuf>,
    /// The configuration file's directory, from which relative paths of files start.
    directory: PathBuf,
    /// Whether every user of this machine can read the configuration file.
    pub is_world_readable: bool,
}

impl ReadContext {
    /// The context in a process with these environment variables, of this configuration file. `is_world_readable` is about that file.
    pub(super) fn new(environment: &[(OsString, OsString)], file: &Path, is_world_readable: bool) -> Self {
        let variable = environment.iter().find(|(name, value)| name == CREDENTIALS_VARIABLE && !value.is_empty());
        ReadContext {
            credentials: variable.map(|(_, value)| PathBuf::from(value)),
            directory: directory_of(file),
            is_world_readable,
            ..ReadContext::default()
        }
    }
}

/// Where relative paths start: at the directory of the configuration file, wherever orderd is started. At the working directory, if the
/// file has none that could contain others, such as `/dev/stdin`.
fn directory_of(file: &Path) -> PathBuf {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    match absolute.parent() {
        Some(parent) if !parent.starts_with("/dev") && !parent.starts_with("/proc") => parent.to_owned(),
        Some(_) | None => std::env::current_dir().unwrap_or_default(),
    }
}

/// A section while its keys are read. Each key is taken once; [`Section::finish`] reports the remaining keys as unknown.
pub struct Section<'r> {
    path: String,
    table: Table,
    known: Vec<&'static str>,
    context: &'r ReadContext,
}

/// Parses and checks a value. The error says what the value must be: `must be at least 1, is 0`.
pub type ValueParser<'s, T> = &'s dyn Fn(&Value) -> Result<T, String>;

impl<'r> Section<'r> {
    pub(super) fn new(path: String, table: Table, context: &'r ReadContext) -> Self {
        Section { path, table, known: Vec::new(), context }
    }

    pub(super) fn report(&self) -> &'r Report {
        &self.context.report
    }

    /// The path of the section: `consumers.order`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The full path of a key in this section: `consumers.order.workers`.
    pub fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Reports a problem with a key. Only the first problem of each path is kept.
    pub fn problem(&self, key: &str, message: impl Into<String>) {
        self.report().problem(&self.key(key), message);
    }

    /// Reports a problem with the section as a whole.
    pub fn section_problem(&self, message: impl Into<String>) {
        self.report().problem(&self.path, message);
    }

    /// Reports a warning about a key.
    pub fn warning(&self, key: &str, message: impl Into<String>) {
        self.report().warning(&self.key(key), message);
    }

    /// Reports a warning about the section as a whole.
    pub fn section_warning(&self, message: impl Into<String>) {
        self.report().warning(&self.path, message);
    }

    /// Whether a key is given and was not taken yet.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.context.known_paths.borrow_mut().insert(self.key(key));
        self.table.remove(key)
    }

    /// A key that may be missing. `None` also stands for a wrong value, which is reported.
    pub fn optional<T>(&mut self, key: &'static str, parse: ValueParser<'_, T>) -> Option<T> {
        let value = self.take(key)?;
        parse(&value).map_err(|message| self.problem(key, message)).ok()
    }

    /// A key whose value is the path of a file or a directory. A relative one starts at the directory of the configuration file. It may begin
    /// with `$CREDENTIALS_DIRECTORY/`, where systemd puts the unit's credentials.
    pub fn file(&mut self, key: &'static str) -> Option<PathBuf> {
        let text = self.optional(key, &value_parser::text(MAX_PATH_BYTES))?;
        let Some(name) = text.strip_prefix('$') else { return Some(self.context.directory.join(text)) };
        let name = name.strip_prefix(CREDENTIALS_VARIABLE).and_then(|rest| rest.strip_prefix('/'));
        let problem = match (name, &self.context.credentials) {
            (Some(name), Some(directory)) => return Some(directory.join(name)),
            (Some(_), None) => {
                format!("cannot use {text:?}: ${CREDENTIALS_VARIABLE} is not set; systemd sets it with LoadCredential")
            }
            (None, _) => format!("must be a path or begin with \"${CREDENTIALS_VARIABLE}/\", is {text:?}"),
        };
        self.problem(key, problem);
        None
    }

    /// A key with a default. The default also stands in for a wrong value, which is reported.
    pub fn optional_or<T>(&mut self, key: &'static str, default: T, parse: ValueParser<'_, T>) -> T {
        self.optional(key, parse).unwrap_or(default)
    }

    /// A mandatory key. If it is missing, the problem reads `is missing` followed by `hint`.
    pub fn required<T>(&mut self, key: &'static str, hint: &str, parse: ValueParser<'_, T>) -> Option<T> {
        if !self.table.contains_key(key) {
            self.problem(key, format!("is missing{hint}"));
        }
        self.optional(key, parse)
    }

    /// A list of at most `max` items. In the environment it is a TOML array or comma-separated. `None` if it is missing or
    /// an item is wrong, which is reported.
    pub fn list<T>(&mut self, key: &'static str, max: usize, parse: ValueParser<'_, T>) -> Option<Vec<T>> {
        let path = self.key(key);
        let items = match items(self.take(key)?) {
            Ok(items) => items,
            Err(message) => {
                self.report().problem(&path, message);
                return None;
            }
        };
        if items.len() > max {
            self.report().problem(&path, format!("must have at most {max} items, has {}", items.len()));
        }
        let read: Vec<Option<T>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                let problem = |message: String| self.report().problem(&format!("{path}[{index}]"), message);
                parse(item).map_err(problem).ok()
            })
            .collect();
        read.into_iter().collect()
    }

    /// A subsection; an empty one if it is missing.
    pub fn section(&mut self, key: &'static str) -> Section<'r> {
        self.optional_section(key).unwrap_or_else(|| Section::new(self.key(key), Table::new(), self.context))
    }

    /// A subsection, if it is present.
    pub fn optional_section(&mut self, key: &'static str) -> Option<Section<'r>> {
        let path = self.key(key);
        match self.take(key)? {
            Value::Table(table) => Some(Section::new(path, table, self.context)),
            other => {
                self.report().problem(&path, not_a_section(&other));
                None
            }
        }
    }

    /// The subsections in a list of at most `max`, such as `[[consumers.<name>.steps]]`; none if it is missing.
    pub fn sections(&mut self, key: &'static str, max: usize) -> Vec<Section<'r>> {
        let path = self.key(key);
        let Some(value) = self.take(key) else { return Vec::new() };
        let items = match items(value) {
            Ok(items) => items,
            Err(message) => {
                self.report().problem(&path, message);
                return Vec::new();
            }
        };
        if items.len() > max {
            self.report().problem(&path, format!("must have at most {max} items, has {}", items.len()));
        }
        let sections = items.into_iter().enumerate().filter_map(|(index, item)| {
            let path = format!("{path}[{index}]");
            match item {
                Value::Table(table) => Some(Section::new(path, table, self.context)),
                other => {
                    self.report().problem(&path, not_a_section(&other));
                    None
                }
            }
        });
        sections.collect()
    }

    /// The values of a subsection whose keys are not known, such as HTTP headers; at most `max`. Without those that are wrong,
    /// which is reported.
    pub fn named_values<T>(
        &mut self,
        key: &'static str,
        max: usize,
        parse: &dyn Fn(&str, &Value) -> Result<T, String>,
    ) -> BTreeMap<String, T> {
        let Some(section) = self.optional_section(key) else { return BTreeMap::new() };
        if section.table.len() > max {
            section.section_problem(format!("must have at most {max} keys, has {}", section.table.len()));
        }
        let values = section.table.iter().filter_map(|(name, value)| {
            let problem = |message: String| section.report().problem(&join(&section.path, name), message);
            parse(name, value).map_err(problem).ok().map(|value| (name.clone(), value))
        });
        values.collect()
    }

    /// The subsections of a section whose keys are names, such as `[queues.<name>]`.
    pub(super) fn into_named_sections(self) -> Vec<(String, Section<'r>)> {
        let path = self.path;
        let context = self.context;
        let named = self.table.into_iter().filter_map(|(name, value)| {
            let path = join(&path, &name);
            match value {
                Value::Table(table) => Some((name, Section::new(path, table, context))),
                other => {
                    context.report.problem(&path, not_a_section(&other));
                    None
                }
            }
        });
        named.collect()
    }

    /// The subsections of a section whose keys are names, and the section itself for problems with them.
    pub fn named_sections(self) -> (Self, Vec<(String, Section<'r>)>) {
        let empty = Section::new(self.path.clone(), Table::new(), self.context);
        (empty, self.into_named_sections())
    }

    /// Reports a problem with what a key names or, if it is not empty, with a part of that, such as one of its files. It holds up only
    /// a part of the daemon: `check` and a reload refuse it, but it keeps neither the daemon from starting nor other commands from
    /// working. The code that reads the key holds up that part.
    pub fn deferred_problem(&self, key: &str, part: &str, message: impl Into<String>) {
        let key = self.key(key);
        let path = if part.is_empty() { key } else { format!("{key}[{part}]") };
        self.report().deferred_problem(&path, message);
    }

    /// Reports a warning about a part of what a key names, such as one of its files.
    pub fn part_warning(&self, key: &str, part: &str, message: impl Into<String>) {
        self.report().warning(&format!("{}[{part}]", self.key(key)), message);
    }

    /// Reports a problem with a key of a subsection.
    pub fn subsection_problem(&self, name: &str, key: &str, message: impl Into<String>) {
        self.report().problem(&join(&self.key(name), key), message);
    }

    /// Reports a warning about a key of a subsection.
    pub fn subsection_warning(&self, name: &str, key: &str, message: impl Into<String>) {
        self.report().warning(&join(&self.key(name), key), message);
    }

    /// Whether a problem with this key was reported.
    pub fn has_problem(&self, key: &str) -> bool {
        self.report().has(&self.key(key))
    }

    /// A copy of the keys that were not taken yet, which reports to another context.
    pub(super) fn copy_remaining<'o>(&self, context: &'o ReadContext) -> Section<'o> {
        Section { path: self.path.clone(), table: self.table.clone(), known: Vec::new(), context }
    }

    /// Takes the keys that were taken from a copy.
    pub(super) fn take_keys_taken_from(&mut self, copy: &Section<'_>) {
        self.table.retain(|key, _| copy.table.contains_key(key));
        self.known.extend(&copy.known);
    }

    /// Reports every key that was not taken as an unknown key. Values are never shown: one may be a password whose key is
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
        other => format!("must be a table, is {other}"),
    }
}

pub(super) fn items(value: Value) -> Result<Vec<Value>, String> {
    let text = match value {
        Value::List(items) => return Ok(items),
        Value::Untyped(text) => text,
        Value::Text(text) => return Err(format!("must be a list, such as [{text:?}], is {text:?}")),
        other => return Err(format!("must be a list, is {other}")),
    };
    let array = format!("items = {text}");
    if let Ok(mut layers) = super::layers::Layers::read(&array)
        && let Some(Value::List(items)) = layers.root.remove("items")
    {
        return Ok(items);
    }
    if text.trim_start().starts_with('[') && text.contains(['"', '\'']) {
        return Err("must be a TOML array or comma-separated".to_owned());
    }
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    Ok(items.map(|item| Value::Untyped(item.to_owned())).collect())
}
