//! Where a value was written: in the file, the environment or on the command line.

use std::collections::BTreeMap;
use std::fmt;

/// Where a value was written. Problems are sorted by it: first the file from top to bottom, then the variables by name, then
/// the settings by key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// Line and column count from 1, the column in characters.
    File { line: usize, column: usize },
    /// The variable's name.
    Environment(String),
    /// The key of a `--set`.
    Setting(String),
}

/// Where each key was written, by its path.
pub(super) type Origins = BTreeMap<String, Origin>;

impl Origin {
    /// The number of the layer: a higher one overrides a lower one.
    pub(super) fn layer(&self) -> u8 {
        match self {
            Origin::File { .. } => 0,
            Origin::Environment(_) => 1,
            Origin::Setting(_) => 2,
        }
    }

    /// The variable or the setting; `None` for the file.
    pub(super) fn set_by(&self) -> Option<String> {
        match self {
            Origin::File { .. } => None,
            Origin::Environment(_) | Origin::Setting(_) => Some(self.to_string()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { line, column } => write!(f, "line {line}, column {column}"),
            Origin::Environment(name) => f.write_str(name),
            Origin::Setting(key) => write!(f, "--set {key}"),
        }
    }
}
