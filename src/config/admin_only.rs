//! Reads only `[admin]`, from a configuration whose other sections may be invalid: commands such as `orderd status` must
//! reach the daemon even then.

use std::path::PathBuf;

use super::admin;
use super::layers::Layers;
use super::load::{LoadError, Sources, read_file, utf8_text};
use super::model::Admin;
use super::read;
use super::report::Problem;
use super::section::{ReadContext, Section};

/// The `[admin]` section of a configuration, from file, environment and command line. If the file has
/// syntax errors, some of its keys may be lost; their defaults then apply. The users' tokens do not matter: who runs a command may not be
/// allowed to read them.
///
/// # Errors
/// An unreadable file, or the problems with `[admin]`.
pub fn load_admin(sources: &Sources) -> Result<Admin, LoadError> {
    let path = sources.path();
    let bytes = match read_file(&path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(LoadError::Unreadable { path, source }),
    };
    let (admin, problems, warnings) = match utf8_text(&bytes) {
        Ok(text) => read_admin(text, sources),
        Err(problems) => {
            return Err(LoadError::Invalid { path, problems, warnings: Vec::new(), read: None, is_usable: false });
        }
    };
    if problems.is_empty() {
        Ok(admin)
    } else {
        Err(LoadError::Invalid { path, problems, warnings, read: None, is_usable: false })
    }
}

/// Like [`load_admin`], but if the configuration file cannot be used, only the environment and the command line count.
pub fn load_admin_or_default(sources: &Sources) -> Option<Admin> {
    let bytes = read_file(&sources.path()).unwrap_or_default();
    [utf8_text(&bytes).unwrap_or_default(), ""].into_iter().find_map(|text| {
        let (admin, problems, _) = read_admin(text, sources);
        problems.is_empty().then_some(admin)
    })
}

/// The ledger's directory, from a configuration whose other keys may be invalid. `None` if it cannot be determined.
pub fn load_ledger_directory(sources: &Sources) -> Option<PathBuf> {
    let bytes = read_file(&sources.path()).ok()?;
    let context = ReadContext::default();
    let mut layers = Layers::read_recoverable(utf8_text(&bytes).ok()?);
    layers.overlay_environment(&sources.environment, &context.report);
    layers.overlay_settings(&sources.settings, &context.report);
    let ledger = read::ledger(Section::new(String::new(), layers.root, &context).section("ledger"));
    let (problems, _) = context.report.take_sorted(&layers.origins);
    (!problems.iter().any(|problem| problem.path == "ledger.directory")).then_some(ledger.directory)
}

/// The section with its problems, and the warnings of all sections.
fn read_admin(text: &str, sources: &Sources) -> (Admin, Vec<Problem>, Vec<Problem>) {
    let context = ReadContext::default();
    let mut layers = Layers::read_recoverable(text);
    layers.overlay_environment(&sources.environment, &context.report);
    layers.overlay_settings(&sources.settings, &context.report);
    let admin = admin::admin(Section::new(String::new(), layers.root, &context).section("admin"));
    let (problems, warnings) = context.report.take_sorted(&layers.origins);
    let ours = |problem: &Problem| {
        problem.path == "admin" || problem.path.starts_with("admin.") && !problem.path.starts_with("admin.users")
    };
    (admin, problems.into_iter().filter(ours).collect(), warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, settings: &[&str]) -> Result<Admin, LoadError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orderd.toml");
        std::fs::write(&path, file).unwrap();
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        load_admin(&Sources { file: Some(path), settings, ..Sources::default() })
    }

    #[test]
    fn problems_in_other_sections_do_not_matter() {
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
    fn problems_in_the_section_itself_are_errors() {
        for broken in ["admin = 3\n", "[admin]\nlisten = \"here\"\n", "[admin]\nhosts = 3\n"] {
            assert!(matches!(read(broken, &[]), Err(LoadError::Invalid { .. })), "{broken}");
        }
    }

    #[test]
    fn the_address_comes_from_the_valid_part_of_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orderd.toml");
        let listen = |file: Option<&str>, settings: &[&str]| {
            let _ = match file {
                Some(file) => std::fs::write(&path, file),
                None => std::fs::remove_file(&path),
            };
            let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
            load_admin_or_default(&Sources { file: Some(path.clone()), settings, ..Sources::default() })
                .map(|admin| admin.listen.unwrap().to_string())
        };
        let open = "[admin]\nlisten = \"0.0.0.0:7\"\nusers = [{name = \"ada\", role = \"viewer\", token_file = \"/nowhere\"}]\n";
        assert_eq!(listen(Some(open), &[]).as_deref(), Some("0.0.0.0:7"));
        let by_default = listen(Some("[admin]\nlisten = \"here\"\n"), &[]);
        assert_eq!(by_default.as_deref(), Some("127.0.0.1:9640"));
        assert_eq!(listen(None, &["admin.listen=127.0.0.1:8"]).as_deref(), Some("127.0.0.1:8"));
        assert_eq!(listen(None, &["admin.listen=here"]), None);
    }
}
