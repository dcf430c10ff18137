//! A problem with a template, with its file and line. Pure.

use std::error::Error as _;
use std::fmt;

use minijinja::{Error, ErrorKind};

use super::SUBJECT;

/// What to write instead of a field that not every event has.
const UNDEFINED_HINT: &str = "; not every event has it: write `is defined` to test it, or `| default(\"\")`";

/// A problem with a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::notify) struct TemplateFault {
    /// Below the directory of templates: `de/processed.txt`. Empty for the directory.
    pub file: String,
    pub line: Option<usize>,
    pub problem: String,
}

impl TemplateFault {
    pub fn new(file: &str, line: Option<usize>, problem: &str) -> Self {
        TemplateFault { file: file.to_owned(), line, problem: problem.to_owned() }
    }

    /// The error of the engine. The file is the one that it names: a layout, for example.
    pub fn of(file: &str, error: &Error) -> Self {
        let name = error.name().unwrap_or(file);
        let name = name.strip_suffix(SUBJECT).unwrap_or(name);
        TemplateFault { file: name.to_owned(), line: error.line(), problem: shown(error) }
    }
}

/// What the engine says, without the place.
pub(in crate::notify) fn shown(error: &Error) -> String {
    let parts = [
        Some(error.kind().to_string()),
        error.detail().map(str::to_owned),
        error.source().map(|cause| cause.to_string()),
    ];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join(": ");
    match error.kind() {
        ErrorKind::UndefinedError => text + UNDEFINED_HINT,
        _ => text,
    }
}

impl fmt::Display for TemplateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.problem),
            None if self.file.is_empty() => f.write_str(&self.problem),
            None => write!(f, "{}: {}", self.file, self.problem),
        }
    }
}
