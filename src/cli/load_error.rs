//! The problems and warnings of a configuration as text: one line each, with file, line and column, as compilers write them.

use std::io::{self, Write};
use std::path::Path;

use crate::chain::chain;
use crate::config::{LoadError, Problem};
use crate::escape::escaped;

/// Writes why the configuration cannot be loaded: every warning, then every problem.
pub(super) fn write(error: &LoadError, err: &mut dyn Write) -> io::Result<()> {
    match error {
        LoadError::Unreadable { .. } => writeln!(err, "orderd: {}", chain(error)),
        LoadError::Invalid { path, problems, warnings, .. } => {
            write_warnings(warnings, path, err)?;
            problems.iter().try_for_each(|problem| writeln!(err, "error: {}", line(problem, path)))
        }
    }
}

/// Writes a line for each warning.
pub(super) fn write_warnings(warnings: &[Problem], file: &Path, err: &mut dyn Write) -> io::Result<()> {
    warnings.iter().try_for_each(|warning| writeln!(err, "warning: {}", line(warning, file)))
}

/// `/etc/orderd/orderd.toml:12:3: consumers.order.workers: must be at least 1, is 0`. A problem that is not in the file has
/// no position; of a missing key, it is that of its section.
fn line(problem: &Problem, file: &Path) -> String {
    let text = match (problem.line, problem.column) {
        (Some(line), Some(column)) if problem.is_syntax_error() => {
            format!("{}:{line}:{column}: {}", file.display(), problem.message)
        }
        (Some(line), Some(column)) => format!("{}:{line}:{column}: {problem}", file.display()),
        // Set by, or about, a variable or an argument.
        _ if problem.set_by.is_some() || problem.path.to_ascii_uppercase().starts_with("ORDERD_") => {
            problem.to_string()
        }
        _ => format!("{}: {problem}", file.display()),
    };
    escaped(&text)
}
