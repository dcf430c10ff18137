//! The layers of a configuration: the file, overridden by the environment, overridden by the command line.
//!
//! It knows keys and where each value was written, never what a key means.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use toml::de::{DeTable, DeValue};

use super::environment_name::EnvironmentName;
use super::origin::{Origin, Origins};
use super::report::{Problem, Report};
use super::suggestion::did_you_mean;

/// A value as it was written; its type is not checked yet.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(i128),
    /// A number with a fraction.
    Float(f64),
    /// `true` or `false`.
    Boolean(bool),
    /// A date or a time, which no key accepts.
    Time,
    /// An array.
    List(Vec<Value>),
    /// A section.
    Table(Table),
    /// From the environment or the command line, where everything is text: the key that reads it knows its type.
    Untyped(String),
}

/// A section's values, by key.
pub type Table = BTreeMap<String, Value>;

/// Maximum length of a value shown in a problem, in characters.
const MAX_SHOWN_CHARS: usize = 60;

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) | Value::Untyped(text) => {
                let shown: String = text.chars().take(MAX_SHOWN_CHARS).collect();
                let more = if shown.len() < text.len() { "…" } else { "" };
                write!(f, "{shown:?}{more}")
            }
            Value::Integer(number) => write!(f, "{number}"),
            Value::Float(number) => write!(f, "{number:?}"),
            Value::Boolean(truth) => write!(f, "{truth}"),
            Value::Time => f.write_str("a date or time"),
            Value::List(_) => f.write_str("a list"),
            Value::Table(_) => f.write_str("a section"),
        }
    }
}

/// All layers, merged.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub root: Table,
    pub origins: Origins,
}

/// The path of a key in a section, quoted where TOML would quote it.
pub(super) fn join(section: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if section.is_empty() { key } else { format!("{section}.{key}") }
}

impl Layers {
    /// Reads the file, the lowest layer.
    ///
    /// # Errors
    /// Every syntax error, with line and column. Never shows the line itself: it may contain a password.
    pub(super) fn read(text: &str) -> Result<Self, Vec<Problem>> {
        let (document, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let mut problems: Vec<_> = errors.iter().map(|error| syntax_problem(text, error)).collect();
            problems.sort_by_key(|problem| (problem.line, problem.column));
            return Err(problems);
        }
        Ok(Self::from_document(text, document.get_ref()))
    }

    /// Reads as much of the file as possible despite syntax errors.
    pub(super) fn read_recoverable(text: &str) -> Self {
        let (document, _) = DeTable::parse_recoverable(text);
        Self::from_document(text, document.get_ref())
    }

    fn from_document(text: &str, document: &DeTable<'_>) -> Self {
        let lines = LinePositions::new(text);
        let mut layers = Layers::default();
        layers.root = layers.table(&lines, "", document);
        layers
    }

    fn table(&mut self, lines: &LinePositions<'_>, path: &str, table: &DeTable<'_>) -> Table {
        table
            .iter()
            .map(|(key, value)| {
                let name = key.get_ref().to_string();
                let path = join(path, &name);
                self.origins.insert(path.clone(), lines.origin(key.span().start));
                (name, self.value(lines, &path, value.get_ref()))
            })
            .collect()
    }

    fn value(&mut self, lines: &LinePositions<'_>, path: &str, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => {
                let integer = i128::from_str_radix(number.as_str(), number.radix());
                Value::Integer(integer.unwrap_or(if number.as_str().starts_with('-') { i128::MIN } else { i128::MAX }))
            }
            DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(truth) => Value::Boolean(*truth),
            DeValue::Datetime(_) => Value::Time,
            DeValue::Array(items) => {
                let items = items.iter().enumerate().map(|(index, item)| {
                    let path = format!("{path}[{index}]");
                    self.origins.insert(path.clone(), lines.origin(item.span().start));
                    self.value(lines, &path, item.get_ref())
                });
                Value::List(items.collect())
            }
            DeValue::Table(table) => Value::Table(self.table(lines, path, table)),
        }
    }

    /// Overrides values with the environment: `ORDERD_CONSUMERS__ORDER__WORKERS=8`, in upper or lower case. Of the other
    /// variables, those that look like a mistyped setting cause a warning.
    pub(super) fn overlay_environment(&mut self, variables: &[(OsString, OsString)], report: &Report) {
        let mut settings = Vec::new();
        for (name, value) in variables {
            match name.to_str() {
                Some(name) => settings.push((name.to_owned(), value)),
                None if name.as_encoded_bytes().to_ascii_lowercase().starts_with(b"orderd_") => {
                    report.warning(&name.to_string_lossy(), "sets nothing: the name is not UTF-8");
                }
                None => {}
            }
        }
        settings.sort();
        for (name, value) in settings {
            let key = match EnvironmentName::of(&name) {
                EnvironmentName::Setting(key) => key,
                EnvironmentName::Mistyped(message) => {
                    report.warning(&name, message);
                    continue;
                }
                EnvironmentName::Foreign => continue,
            };
            let path = self.environment_path(&key);
            match value.to_str() {
                Some(text) => self.overlay(&path, text, Origin::Environment(name), report),
                None => report.problem(&name, "is not UTF-8"),
            }
        }
    }

    /// Overrides values with `key=value` settings of the command line: `consumers.order.workers=8`.
    pub(super) fn overlay_settings(&mut self, settings: &[String], report: &Report) {
        for setting in settings {
            let Some((key, value)) = setting.split_once('=') else {
                // The text is not shown: it may be a password without its key.
                report.problem("--set", "must be KEY=VALUE, such as consumers.order.workers=8");
                continue;
            };
            let path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
            if path.last().is_some_and(|last| last == "password") {
                let message =
                    "must not be on the command line, which every user of this machine can read: give password_file";
                report.problem(key.trim(), message);
                continue;
            }
            self.overlay(&path, value, Origin::Setting(key.trim().to_owned()), report);
        }
    }

    /// Reports consumers and queues that exist only because a variable or a setting names them, without the key that each of
    /// them needs: their names are probably misspelt.
    pub(super) fn reject_misspelt_names(&mut self, report: &Report) {
        for (section, needed) in [("consumers", "queue"), ("queues", "bindings")] {
            let Some(Value::Table(named)) = self.root.get_mut(section) else { continue };
            let is_misspelt = |name: &str, value: &Value| {
                let origin = self.origins.get(&join(section, name));
                let is_overlaid = origin.is_some_and(|origin| origin.layer() > 0);
                is_overlaid && matches!(value, Value::Table(table) if !table.contains_key(needed))
            };
            let (misspelt, known): (Vec<String>, Vec<String>) =
                named.keys().cloned().partition(|name| is_misspelt(name, &named[name]));
            for name in misspelt {
                let hint = did_you_mean(&name, known.iter().map(String::as_str));
                report.problem(&join(section, &name), format!("is not in the configuration file{hint}"));
                named.remove(&name);
            }
        }
    }

    /// The path of the key that a variable sets. Two underscores separate its parts, except within the name of a queue or a
    /// consumer that is in the file.
    fn environment_path(&self, key: &str) -> Vec<String> {
        let named = ["queues", "consumers"].into_iter().find_map(|section| {
            let rest = key.strip_prefix(section)?.strip_prefix("__")?;
            let Some(Value::Table(table)) = self.root.get(section) else { return None };
            let names = table.keys().filter_map(|name| {
                let rest = rest.strip_prefix(&name.to_ascii_lowercase())?.strip_prefix("__")?;
                Some((name, rest))
            });
            let (name, rest) = names.max_by_key(|(name, _)| name.len())?;
            Some((vec![section.to_owned(), name.clone()], rest.to_owned()))
        });
        let (mut path, rest) = named.unwrap_or((Vec::new(), key.to_owned()));
        path.extend(rest.split("__").map(str::to_owned));
        path
    }

    fn overlay(&mut self, keys: &[String], text: &str, origin: Origin, report: &Report) {
        let Some((last, sections)) = keys.split_last() else { return };
        let mut path = String::new();
        let mut table = &mut self.root;
        for key in sections {
            path = join(&path, key);
            self.origins.entry(path.clone()).or_insert_with(|| origin.clone());
            match table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new())) {
                Value::Table(inner) => table = inner,
                _ => {
                    report.problem_of(&origin, &path, "is not a section, so no key in it can be set");
                    return;
                }
            }
        }
        let section = path;
        let path = join(&section, last);
        if let Some(first) = self.origins.get(&path).filter(|first| first.layer() == origin.layer()) {
            report.problem_of(&origin, &path, format!("is set twice, the first time by {first}"));
            return;
        }
        if let Some(Value::Table(_)) = table.get(last) {
            report.problem_of(&origin, &path, "is a section, which cannot be set: set the keys in it");
            return;
        }
        // A password in a higher layer replaces a password file in a lower one, and vice versa.
        let alternative = match last.as_str() {
            "password" => join(&section, "password_file"),
            "password_file" => join(&section, "password"),
            _ => String::new(),
        };
        if self.origins.get(&alternative).is_some_and(|previous| previous.layer() < origin.layer()) {
            table.remove(if last == "password" { "password_file" } else { "password" });
            self.origins.remove(&alternative);
        }
        let nested = [format!("{path}["), format!("{path}.")];
        self.origins.retain(|known, _| !nested.iter().any(|prefix| known.starts_with(prefix.as_str())));
        self.origins.insert(path, origin);
        table.insert(last.clone(), Value::Untyped(text.to_owned()));
    }
}

fn syntax_problem(text: &str, error: &toml::de::Error) -> Problem {
    let origin = LinePositions::new(text).origin(error.span().map_or(0, |span| span.start));
    let Origin::File { line, column } = origin else { unreachable!("positions of a file are in the file") };
    let value = error.span().map_or("", |span| &text[text.floor_char_boundary(span.start)..]);
    let message = match error.message() {
        // What the parser expects where a value is missing or text lacks its quotes. The value is not shown.
        "string values must be quoted, expected literal string"
        | "invalid boolean, expected `true`"
        | "invalid boolean, expected `false`" => match value.starts_with(['\n', '\r', '#']) || value.is_empty() {
            true => "a value is missing after \"=\"".to_owned(),
            false => "the value is no number, true or false, so it must be text in quotes".to_owned(),
        },
        other => other.replace('\n', ", "),
    };
    Problem::in_file(format!("line {line}, column {column}"), message, line, column)
}

/// Turns offsets into lines and columns.
struct LinePositions<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> LinePositions<'t> {
    fn new(text: &'t str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        LinePositions { text, starts }
    }

    /// Lines and columns count from 1, columns in characters.
    fn origin(&self, offset: usize) -> Origin {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[line - 1];
        Origin::File { line, column: self.text[start..offset].chars().count() + 1 }
    }
}
