//! The keys of a step that a command performs: which program, with which arguments, environment and directory.
//!
//! It reads and checks values, and on request the file system; it never starts anything.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::config::value_parser::{one_of, text};
use crate::config::{Secret, Section, Value};

/// The most words of a command: the program and its arguments.
const MAX_WORDS: usize = 64;
/// The longest word of a command, or value in its environment, in bytes.
const MAX_WORD_BYTES: usize = 4096;
/// The most variables in the environment of a command.
const MAX_VARIABLES: usize = 64;
/// The longest name of a variable, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// The variables of orderd's own environment that every command gets.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];
/// Where a program without a slash in its name is looked up if orderd itself has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// The directory in which commands run by default.
const DEFAULT_DIRECTORY: &str = "/";

/// How a command performs calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandMode {
    /// It runs on, and answers one request a line.
    LongLived,
    /// It is started for each call, and its exit code is the answer.
    PerMessage,
}

/// The keys of a command step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommandSettings {
    /// The program, an absolute path or a name that is looked up in `PATH`, and its arguments.
    #[serde(rename = "command")]
    pub words: Vec<String>,
    /// Default: long-lived.
    pub mode: CommandMode,
    /// Its environment besides `PATH`, `HOME` and `LANG`. Values may be secrets.
    pub environment: BTreeMap<String, Secret>,
    /// The directory in which it runs; default `/`.
    #[serde(serialize_with = "directory")]
    pub working_directory: PathBuf,
}

fn directory<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl CommandSettings {
    /// Takes the keys `command`, `mode`, `environment` and `working_directory`. `None` without a command, `Some(None)` with a wrong
    /// one, which is reported.
    pub fn read(section: &mut Section<'_>) -> Option<Option<Self>> {
        let is_given = section.has("command");
        let words = section.list("command", MAX_WORDS, &word);
        let modes = [("long_lived", CommandMode::LongLived), ("per_message", CommandMode::PerMessage)];
        let mode = section.optional("mode", &one_of(&modes));
        let environment = section.optional("environment", &environment);
        let working_directory = section.optional("working_directory", &absolute_path);
        let Some(words) = words else {
            let keys = [
                ("mode", mode.is_some()),
                ("environment", environment.is_some()),
                ("working_directory", working_directory.is_some()),
            ];
            for (key, _) in keys.into_iter().filter(|(_, is_set)| *is_set && !is_given) {
                section.problem(key, "has no effect without command");
            }
            return is_given.then_some(None);
        };
        match words.first() {
            None => section.problem("command", "must have at least the program"),
            Some(program) if program.contains('/') && !program.starts_with('/') => {
                let problem = format!("must begin with an absolute path, or a name to look up in PATH, is {program:?}");
                section.problem("command", problem);
            }
            Some(_) => {}
        }
        Some((!words.is_empty()).then(|| CommandSettings {
            words,
            mode: mode.unwrap_or(CommandMode::LongLived),
            environment: environment.unwrap_or_default(),
            working_directory: working_directory.unwrap_or_else(|| DEFAULT_DIRECTORY.into()),
        }))
    }

    /// The settings from the keys of a step as they are serialized; `None` if it has no command. Values of the environment are
    /// redacted, so they cannot be started.
    pub fn from_keys(step: &serde_json::Value) -> Option<Self> {
        let texts = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let words: Vec<String> = step["command"].as_array()?.iter().filter_map(texts).collect();
        let environment = step["environment"].as_object().into_iter().flatten();
        (!words.is_empty()).then(|| CommandSettings {
            words,
            mode: CommandMode::LongLived,
            environment: environment.map(|(name, _)| (name.clone(), Secret::new(""))).collect(),
            working_directory: step["working_directory"].as_str().unwrap_or(DEFAULT_DIRECTORY).into(),
        })
    }

    /// The whole environment of the command.
    pub(super) fn variables(&self) -> BTreeMap<OsString, OsString> {
        let inherited = INHERITED.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
        let mut variables: BTreeMap<OsString, OsString> = inherited.collect();
        variables.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
        variables.extend(self.environment.iter().map(|(name, value)| (name.into(), value.expose().into())));
        variables
    }

    /// The file of the program.
    ///
    /// # Errors
    /// Why it cannot be executed: it does not exist, or it is no file, or not executable.
    pub fn executable(&self) -> io::Result<PathBuf> {
        let program = &self.words[0];
        if program.contains('/') {
            let path = PathBuf::from(program);
            return check_executable(&path).map(|()| path);
        }
        let variables = self.variables();
        let directories = variables.get(std::ffi::OsStr::new("PATH")).map(OsString::as_os_str).unwrap_or_default();
        // As execvp does: a file that cannot be executed is skipped.
        let candidates = directories.as_bytes().split(|byte| *byte == b':').filter(|directory| !directory.is_empty());
        let found = candidates
            .map(|directory| Path::new(std::ffi::OsStr::from_bytes(directory)).join(program))
            .find(|path| check_executable(path).is_ok());
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such program in PATH"))
    }

    /// Why the command cannot be started, if that can be seen: its program or its directory. `None` if both are there.
    pub fn problem(&self) -> Option<String> {
        if let Err(error) = self.executable() {
            return Some(format!("cannot execute {:?}: {error}", self.words[0]));
        }
        let directory = &self.working_directory;
        match fs::metadata(directory) {
            Ok(metadata) if metadata.is_dir() => None,
            Ok(_) => Some(format!("cannot run in {directory:?}: it is not a directory")),
            Err(error) => Some(format!("cannot run in {directory:?}: {error}")),
        }
    }
}

/// Whether the file is there and some user may execute it. The command itself runs as orderd's user, which need not be the one
/// that asks.
fn check_executable(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    let problem = |text: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    if !metadata.is_file() {
        return problem("it is not a file");
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return problem("it is not executable");
    }
    Ok(())
}

fn word(value: &Value) -> Result<String, String> {
    without_nul(match value {
        // An argument may be empty.
        Value::Text(text) if text.is_empty() => String::new(),
        Value::Text(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Time
        | Value::List(_)
        | Value::Table(_)
        | Value::Untyped(_) => text(MAX_WORD_BYTES)(value)?,
    })
}

fn absolute_path(value: &Value) -> Result<PathBuf, String> {
    let path = without_nul(text(MAX_WORD_BYTES)(value)?)?;
    if path.starts_with('/') { Ok(path.into()) } else { Err(format!("must be an absolute path, is {value}")) }
}

/// A problem never shows a value: it may be a secret.
fn environment(value: &Value) -> Result<BTreeMap<String, Secret>, String> {
    let Value::Table(table) = value else {
        return Err("must be a table such as { NAME = \"value\" }".to_owned());
    };
    if table.len() > MAX_VARIABLES {
        return Err(format!("must have at most {MAX_VARIABLES} variables, has {}", table.len()));
    }
    let variable = |(name, value): (&String, &Value)| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !name.bytes().all(is_allowed)
            || name.starts_with(|c: char| c.is_ascii_digit())
            || name.len() > MAX_NAME_BYTES
        {
            return Err(format!(
                "must have names of at most {MAX_NAME_BYTES} letters, digits and underscores, has {name:?}"
            ));
        }
        match value {
            Value::Text(text) if text.len() > MAX_WORD_BYTES => {
                Err(format!("must have values of at most {MAX_WORD_BYTES} bytes; that of {name} is longer"))
            }
            Value::Text(text) if text.contains('\0') => Err(format!("must not contain NUL; the value of {name} does")),
            Value::Text(text) => Ok((name.clone(), Secret::new(text))),
            Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Time
            | Value::List(_)
            | Value::Table(_)
            | Value::Untyped(_) => Err(format!("must have text in quotes as values; that of {name} is none")),
        }
    };
    table.iter().map(variable).collect()
}

fn without_nul(text: String) -> Result<String, String> {
    if text.contains('\0') { Err("must not contain NUL".to_owned()) } else { Ok(text) }
}
