//! Reads `[admin]` alone, from a configuration whose other sections may be wrong: whoever wants to know what a daemon
//! makes of a broken file must reach it.

use super::layers::Layers;
use super::load::{LoadError, Sources, text};
use super::model::Admin;
use super::read;
use super::report::Problem;
use super::section::{Reading, Section};

/// The `[admin]` of a configuration, from file, environment and settings. Of a file with syntax errors, what could be
/// made out; it may then say less than whoever wrote it meant.
///
/// # Errors
/// An unreadable file, or what is wrong with `[admin]` itself.
pub fn admin_alone(sources: &Sources) -> Result<Admin, LoadError> {
    let path = sources.path();
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(LoadError::Unreadable { path, source }),
    };
    let reading = Reading::default();
    let mut layers = match text(&bytes) {
        Ok(text) => Layers::recovered(text),
        Err(problems) => return Err(LoadError::Invalid { path, problems, warnings: Vec::new() }),
    };
    layers.overlay_environment(&sources.environment, &reading.report);
    layers.overlay_settings(&sources.settings, &reading.report);
    let admin = read::admin(Section::new(String::new(), layers.root, &reading).section("admin"));
    let (problems, warnings) = reading.report.take_sorted(&layers.origins);
    let ours = |problem: &Problem| problem.path == "admin" || problem.path.starts_with("admin.");
    let problems: Vec<_> = problems.into_iter().filter(ours).collect();
    if problems.is_empty() { Ok(admin) } else { Err(LoadError::Invalid { path, problems, warnings }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, settings: &[&str]) -> Result<Admin, LoadError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orderd.toml");
        std::fs::write(&path, file).unwrap();
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        admin_alone(&Sources { file: Some(path), settings, ..Sources::default() })
    }

    #[test]
    fn what_is_wrong_elsewhere_does_not_matter() {
        for broken in [
            "[consumers.order]\nworkers = 0\n[admin]\nlisten = \"127.0.0.1:7\"\n",
            "[broker]\nvirtual_host = = 3\n[admin]\nlisten = \"127.0.0.1:7\"\n",
            "[admin]\nlisten = \"127.0.0.1:7\"\n[broker\n",
            "[nonsense]\nlisten = 1\n[admin]\nlisten = \"127.0.0.1:7\"\n[broker]\npassword_file = \"/nowhere\"\n",
        ] {
            assert_eq!(read(broken, &[]).unwrap().listen, Some("127.0.0.1:7".parse().unwrap()), "{broken}");
        }
        let set = read("[consumers.order]\nworkers = 0\n", &["admin.listen=127.0.0.1:8", "broker.x=y"]);
        assert_eq!(set.unwrap().listen, Some("127.0.0.1:8".parse().unwrap()));
    }

    #[test]
    fn what_is_wrong_with_it_does() {
        for broken in ["admin = 3\n", "[admin]\nlisten = \"here\"\n", "[admin]\ntoken_file = \"/nowhere\"\n"] {
            assert!(matches!(read(broken, &[]), Err(LoadError::Invalid { .. })), "{broken}");
        }
    }
}
