//! Loading: reads the file, overlays environment and command line, checks the result, and reports every problem in one go.
//!
//! It reads files, and the clock only to check the dates in certificates. It never connects to the broker.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use super::handler::HandlerRegistry;
use super::layers::{Layers, Value};
use super::model::Config;
use super::report::Problem;
use super::section::ReadContext;
use super::{check, read, secret};
use crate::files::read_limited;

/// The annotated default configuration.
pub const DEFAULT_FILE: &str = include_str!("../../config/orderd.toml");
/// The configuration file, unless `--config` or `$ORDERD_CONFIG` names another.
pub const DEFAULT_PATH: &str = "/etc/orderd/orderd.toml";
/// Maximum size of the configuration file, in bytes.
pub(crate) const MAX_FILE_BYTES: usize = 1 << 20;

/// Where a configuration comes from.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file of `--config`; else `$ORDERD_CONFIG`, else [`DEFAULT_PATH`].
    pub file: Option<PathBuf>,
    /// `key=value` settings of the command line, such as `consumers.order.workers=8`.
    pub settings: Vec<String>,
    /// The environment variables, as in [`std::env::vars_os`].
    pub environment: Vec<(OsString, OsString)>,
    /// The handlers that consumers may name: `handlers::REGISTRY`, except in tests.
    pub handlers: HandlerRegistry,
}

/// Shows which settings and environment variables there are, but not their values, which may be secrets, even those of
/// other programs.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.settings.iter().map(|setting| setting.split('=').next().unwrap_or_default());
        let variables = self.environment.iter().map(|(name, _)| name);
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("settings", &settings.collect::<Vec<_>>())
            .field("environment", &variables.collect::<Vec<_>>())
            .finish()
    }
}

impl Sources {
    /// The sources of this process: its arguments and its environment.
    pub fn from_process(file: Option<PathBuf>, settings: Vec<String>, handlers: HandlerRegistry) -> Self {
        Sources { file, settings, environment: std::env::vars_os().collect(), handlers }
    }

    /// The file to read.
    pub fn path(&self) -> PathBuf {
        let from_variable = || {
            let variable = self.environment.iter().find(|(name, _)| name.eq_ignore_ascii_case("ORDERD_CONFIG"));
            variable.map(|(_, value)| value).filter(|value| !value.is_empty()).map(PathBuf::from)
        };
        self.file.clone().or_else(from_variable).unwrap_or_else(|| PathBuf::from(DEFAULT_PATH))
    }
}

/// A configuration that passed its checks.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works but is probably wrong, in the order of the file.
    pub warnings: Vec<Problem>,
    /// The file it was read from.
    pub path: PathBuf,
    /// The keys that the file, the environment or the command line sets.
    pub written: WrittenKeys,
}

/// The paths of keys that were set, and not left to their defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WrittenKeys(BTreeSet<String>);

impl WrittenKeys {
    /// Whether this key or one below it was set.
    pub fn has(&self, key: &str) -> bool {
        let from =
            self.0.range::<str, _>((Bound::Included(key), Bound::Unbounded)).take_while(|path| path.starts_with(key));
        from.map(|path| &path[key.len()..]).any(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }
}

/// Why there is no configuration. Exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read configuration file {path:?} (name another one with --config FILE)")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file was read, and the configuration is invalid. Displays as one line.
    #[error("{}", AllProblems(path, problems))]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Every problem, in the order of the file.
        problems: Vec<Problem>,
        /// Every warning, in the order of the file.
        warnings: Vec<Problem>,
        /// What was read, with defaults in place of what has problems: for further warnings. `None` if the file is no TOML.
        read: Option<Box<Config>>,
        /// Whether the daemon can start with what was read, because the problems hold up only parts of it.
        is_usable: bool,
    },
}

struct AllProblems<'e>(&'e Path, &'e [Problem]);

impl fmt::Display for AllProblems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.1.len() == 1 { "" } else { "s" };
        write!(f, "configuration {:?} has {} problem{plural}", self.0, self.1.len())?;
        let separators = std::iter::once(": ").chain(std::iter::repeat("; "));
        separators.zip(self.1).try_for_each(|(separator, problem)| write!(f, "{separator}{problem}"))
    }
}

/// Reads a configuration file, or one byte more than allowed, which parsing refuses.
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    read_limited(path, MAX_FILE_BYTES)
}

impl Config {
    /// Loads and checks a configuration.
    ///
    /// Command-line settings override the environment, which overrides the file, which overrides the defaults. A file with
    /// neither `[queues]` nor `[consumers]` gets those of [`DEFAULT_FILE`].
    ///
    /// # Errors
    /// An unreadable file, or every problem with the configuration.
    pub fn load(sources: &Sources) -> Result<Loaded, LoadError> {
        let path = sources.path();
        let bytes = match read_file(&path) {
            Ok(bytes) => bytes,
            Err(source) => return Err(LoadError::Unreadable { path, source }),
        };
        Self::from_bytes(&bytes, path, sources)
    }

    /// Loads a configuration also if it has problems that hold up only parts of the daemon, such as faulty templates of notifications.
    /// Returns it with these problems.
    ///
    /// # Errors
    /// An unreadable file, or every problem with the configuration if one is of another kind.
    pub fn load_usable(sources: &Sources) -> Result<(Loaded, Vec<Problem>), LoadError> {
        match Self::load(sources) {
            Ok(loaded) => Ok((loaded, Vec::new())),
            Err(LoadError::Invalid { path, problems, warnings, read: Some(config), is_usable: true }) => {
                let loaded = Loaded { config: *config, warnings, path, written: WrittenKeys::default() };
                Ok((loaded, problems))
            }
            Err(error) => Err(error),
        }
    }

    /// Loads the configuration from the content of its file.
    pub(crate) fn from_bytes(bytes: &[u8], path: PathBuf, sources: &Sources) -> Result<Loaded, LoadError> {
        let context = ReadContext::new(&sources.environment, &path, secret::is_world_readable(&path));
        match parse(bytes, sources, &context) {
            Ok((config, mut warnings, written)) => {
                warnings.extend(missing_newline(bytes));
                Ok(Loaded { config, warnings, path, written })
            }
            Err(ConfigErrors { problems, mut warnings, read, is_usable }) => {
                warnings.extend(missing_newline(bytes));
                Err(LoadError::Invalid { path, problems, warnings, read, is_usable })
            }
        }
    }
}

/// A reload rejects a file without a final newline because it may be truncated, so loading warns about it.
fn missing_newline(bytes: &[u8]) -> Option<Problem> {
    if bytes.is_empty() || bytes.ends_with(b"\n") {
        return None;
    }
    let line = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
    let message = "the last line does not end with a newline: a reload would reject the file as truncated";
    Some(Problem::in_file(format!("line {line}"), message.to_owned(), line, 1))
}

/// Whether a file has `[queues]` or `[consumers]`. Without both, it gets the default ones.
pub(crate) fn has_workload(bytes: &[u8]) -> bool {
    let layers = utf8_text(bytes).and_then(Layers::read);
    layers.is_ok_and(|layers| layers.root.contains_key("queues") || layers.root.contains_key("consumers"))
}

#[derive(Debug)]
pub(super) struct ConfigErrors {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    pub read: Option<Box<Config>>,
    pub is_usable: bool,
}

/// Loads a configuration from the content of its file, with the overrides and handlers of `sources`. Returns it with its
/// warnings and the keys that were set.
pub(super) fn parse(
    bytes: &[u8],
    sources: &Sources,
    context: &ReadContext,
) -> Result<(Config, Vec<Problem>, WrittenKeys), ConfigErrors> {
    let not_toml = |problems| ConfigErrors { problems, warnings: Vec::new(), read: None, is_usable: false };
    let mut layers = utf8_text(bytes).and_then(Layers::read).map_err(not_toml)?;
    if !layers.root.contains_key("queues") && !layers.root.contains_key("consumers") {
        add_default_workload(&mut layers);
    }
    layers.overlay_environment(&sources.environment, &context.report);
    layers.overlay_settings(&sources.settings, &context.report);
    layers.reject_misspelt_names(&context.report);
    let config = read::config(layers.root, sources.handlers, context);
    check::check(&config, sources.handlers, &context.report);
    secret::warn_about_exposed_passwords(&config, &layers.origins, context);
    let is_usable = context.report.is_deferred();
    let (problems, warnings) = context.report.take_sorted(&layers.origins);
    if !problems.is_empty() {
        return Err(ConfigErrors { problems, warnings, read: Some(Box::new(config)), is_usable });
    }
    Ok((config, warnings, WrittenKeys(layers.origins.into_keys().collect())))
}

pub(super) fn utf8_text(bytes: &[u8]) -> Result<&str, Vec<Problem>> {
    let at_start = |message: String| vec![Problem::in_file("line 1, column 1".to_owned(), message, 1, 1)];
    if bytes.len() > MAX_FILE_BYTES {
        return Err(at_start(format!("the file must be at most {MAX_FILE_BYTES} bytes, is {}", bytes.len())));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        vec![Problem::in_file(format!("line {line}"), "the file is not UTF-8".to_owned(), line, 1)]
    })
}

fn add_default_workload(layers: &mut Layers) {
    let defaults = Layers::read(DEFAULT_FILE).expect("the default file is valid TOML; a test reads it");
    let workload = defaults.root.into_iter().filter(|(key, _)| key == "queues" || key == "consumers");
    layers.root.extend(workload.filter(|(_, value)| matches!(value, Value::Table(_))));
}
