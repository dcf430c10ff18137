//! Collects the problems and warnings of a configuration, and finds where their keys were written. It never adds a
//! value to a message.

use std::cell::RefCell;
use std::fmt;

use serde::Serialize;

use super::origin::{Origin, Origins};

/// A problem with a configuration, or a warning about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The key, such as `consumers.order.prefetch`; for a syntax error, its position: `line 3, column 7`.
    pub path: String,
    /// What is wrong: `must be at least 1, is 0`.
    pub message: String,
    /// The line in the file, from 1; `None` if the value was not written there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The column in that line, in characters from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// The environment variable or `--set` that set the value; `None` for the file and for missing keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_by: Option<String>,
}

impl Problem {
    /// Whether the file could not be parsed here: `path` is the position, not a key.
    pub fn is_syntax_error(&self) -> bool {
        self.path.starts_with("line ")
    }

    pub(super) fn in_file(path: String, message: String, line: usize, column: usize) -> Self {
        Problem { path, message, line: Some(line), column: Some(column), set_by: None }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)?;
        match &self.set_by {
            Some(origin) => write!(f, " (set by {origin})"),
            None => Ok(()),
        }
    }
}

/// One problem or warning.
#[derive(Debug)]
struct Reported {
    path: String,
    message: String,
    /// What is at fault, if that is not where the key was written.
    origin: Option<Origin>,
    /// Whether the daemon can start with it, see [`super::Section::deferred_problem`].
    is_deferred: bool,
}

/// The problems and warnings so far. Only the first problem of each path is kept, since others usually follow from it.
#[derive(Debug, Default)]
pub(super) struct Report {
    problems: RefCell<Vec<Reported>>,
    warnings: RefCell<Vec<Reported>>,
}

impl Report {
    pub(super) fn problem(&self, path: &str, message: impl Into<String>) {
        self.add_problem(Reported { path: path.to_owned(), message: message.into(), origin: None, is_deferred: false });
    }

    /// A problem that holds up only a part of the daemon.
    pub(super) fn deferred_problem(&self, path: &str, message: impl Into<String>) {
        self.add_problem(Reported { path: path.to_owned(), message: message.into(), origin: None, is_deferred: true });
    }

    /// A problem with a variable or a setting, at a path that was also written elsewhere.
    pub(super) fn problem_of(&self, origin: &Origin, path: &str, message: impl Into<String>) {
        let origin = Some(origin.clone());
        self.add_problem(Reported { path: path.to_owned(), message: message.into(), origin, is_deferred: false });
    }

    fn add_problem(&self, problem: Reported) {
        let mut problems = self.problems.borrow_mut();
        if !problems.iter().any(|known| known.path == problem.path) {
            problems.push(problem);
        }
    }

    /// Whether there are problems, and the daemon can start with all of them.
    pub(super) fn is_deferred(&self) -> bool {
        let problems = self.problems.borrow();
        !problems.is_empty() && problems.iter().all(|problem| problem.is_deferred)
    }

    pub(super) fn warning(&self, path: &str, message: impl Into<String>) {
        let warning = Reported { path: path.to_owned(), message: message.into(), origin: None, is_deferred: false };
        self.warnings.borrow_mut().push(warning);
    }

    /// Whether a problem was found at a path or below it.
    pub(super) fn has(&self, path: &str) -> bool {
        let is_within =
            |known: &str| known.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        self.problems.borrow().iter().any(|known| is_within(&known.path))
    }

    /// All problems and all warnings, each in the order of the file.
    pub(super) fn take_sorted(&self, origins: &Origins) -> (Vec<Problem>, Vec<Problem>) {
        let sorted = |found: &RefCell<Vec<Reported>>| {
            let with_origin = |Reported { path, message, origin: given, is_deferred: _ }: Reported| {
                (given.or_else(|| origin(origins, &path)), path, message)
            };
            let mut found: Vec<_> = found.take().into_iter().map(with_origin).collect();
            found.sort();
            found.into_iter().map(|(origin, path, message)| located(origin, path, message)).collect()
        };
        (sorted(&self.problems), sorted(&self.warnings))
    }
}

/// Where a key was written; for a missing key, where its section was written.
fn origin(origins: &Origins, path: &str) -> Option<Origin> {
    let mut path = path;
    loop {
        if let Some(origin) = origins.get(path) {
            return Some(origin.clone());
        }
        path = &path[..path.rfind(['.', '['])?];
    }
}

fn located(origin: Option<Origin>, path: String, message: String) -> Problem {
    match origin {
        Some(Origin::File { line, column }) => Problem::in_file(path, message, line, column),
        other => {
            let set_by = other.and_then(|origin| origin.set_by());
            Problem { path, message, line: None, column: None, set_by }
        }
    }
}
