//! `orderd check --connect`: looks whether the programs of steps can be executed. It starts none.

use serde::Serialize;
use serde_json::Value;

use crate::config::Config;
use crate::steps::CommandSettings;

/// Whether the program of a step is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepCommandReport {
    /// `<consumer>.<step>`, or `<consumer>.<step>.undo`.
    pub step: String,
    /// The program.
    pub program: String,
    /// Why it cannot be started, as far as that can be seen; `None` if nothing is wrong.
    pub error: Option<String>,
}

/// Looks at the programs of all steps and undos.
pub(super) fn look(config: &Config) -> Vec<StepCommandReport> {
    let mut reports = Vec::new();
    let mut add = |service: &Value, step: String| {
        let Some(settings) = CommandSettings::from_keys(service) else { return };
        let program = settings.words[0].clone();
        // Values are redacted here, so a `PATH` of its own is not known.
        let has_own_path = settings.environment.contains_key("PATH") && !program.contains('/');
        let error = if has_own_path { None } else { settings.problem() };
        reports.push(StepCommandReport { step, program, error });
    };
    for (consumer, settings) in &config.consumers {
        let keys = settings.handler_settings.keys();
        for step in keys.get("steps").and_then(Value::as_array).into_iter().flatten() {
            let name = format!("{consumer}.{}", step["name"].as_str().unwrap_or_default());
            add(step, name.clone());
            add(&step["undo"], format!("{name}.undo"));
        }
    }
    reports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DEFAULT_FILE;
    use crate::handlers;

    #[test]
    fn a_program_that_is_missing_or_not_executable_is_named_with_its_step() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        std::fs::write(&data, "").unwrap();
        let file = format!(
            "{DEFAULT_FILE}\n[[consumers.order.steps]]\nname = \"charge\"\ncommand = [\"sh\", \"-c\", \"exit 1\"]\n\
             undo = {{ command = [{data:?}] }}\n[[consumers.priority.steps]]\nname = \"ship\"\ncommand = [\"/nowhere/ship\"]\n\
             [[consumers.priority.steps]]\nname = \"pack\"\ncommand = [\"sh\"]\nworking_directory = {data:?}\n\
             [[consumers.priority.steps]]\nname = \"wrap\"\ncommand = [\"wrap\"]\nenvironment = {{ PATH = \"/opt\" }}\n"
        );
        let loaded = Config::from_bytes(file.as_bytes(), "orderd.toml".into(), &handlers::sources()).unwrap();
        let found = look(&loaded.config);
        let wrong: Vec<_> = found.iter().map(|report| (report.step.as_str(), report.error.is_some())).collect();
        let expected = [
            ("order.charge", false),
            ("order.charge.undo", true),
            ("priority.ship", true),
            ("priority.pack", true),
            ("priority.wrap", false),
        ];
        assert_eq!(wrong, expected, "{found:?}");
    }
}
