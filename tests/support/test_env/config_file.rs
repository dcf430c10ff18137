//! The configuration file of a test environment, which a test edits while orderd runs.

use std::fs;
use std::path::PathBuf;

/// The configuration file of a test environment.
#[derive(Clone)]
pub struct ConfigFile {
    table: toml::Table,
    path: PathBuf,
}

impl ConfigFile {
    /// A file with these contents, not written yet.
    pub(super) fn new(contents: &str, path: PathBuf) -> Self {
        ConfigFile { table: contents.parse().unwrap(), path }
    }

    /// Sets a key such as `consumers.order.workers`, with the value as in an environment variable.
    pub fn set(&mut self, key: &str, value: &str) -> &mut Self {
        let (section, last) = key.rsplit_once('.').unwrap();
        let table = section.split('.').fold(&mut self.table, |table, part| {
            let inner = table.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            inner.as_table_mut().unwrap()
        });
        let text = |text: &str| toml::Value::String(text.to_owned());
        let value = match last {
            "delays" | "addresses" | "bindings" => toml::Value::Array(value.split(',').map(text).collect()),
            _ => value.parse::<toml::Value>().ok().filter(|value| !value.is_str()).unwrap_or_else(|| text(value)),
        };
        table.insert(last.to_owned(), value);
        self
    }

    /// Removes a key or a section.
    pub fn remove(&mut self, key: &str) -> &mut Self {
        let (section, last) = key.rsplit_once('.').unwrap();
        let table = section.split('.').fold(&mut self.table, |table, part| table[part].as_table_mut().unwrap());
        table.remove(last).unwrap_or_else(|| panic!("there is no {key}"));
        self
    }

    /// Writes the file, atomically.
    pub fn save(&self) {
        self.write(&toml::to_string(&self.table).unwrap());
    }

    /// Replaces the contents with any text, atomically.
    pub fn write(&self, text: &str) {
        let unfinished = self.path.with_extension("new");
        fs::write(&unfinished, text).unwrap();
        fs::rename(unfinished, &self.path).unwrap();
    }
}
