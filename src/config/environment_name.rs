//! Which environment variables are settings. Pure.
//!
//! Variables that begin with `ORDERD_` may also be of others: Kubernetes sets `ORDERD_PORT` for a service named `orderd`, and
//! scripts have variables of their own. It never looks at a value.

use super::suggestion::did_you_mean;

/// The sections of a configuration. A test compares them with those that are read.
pub(super) const SECTIONS: [&str; 15] = [
    "admin",
    "alerts",
    "broker",
    "consumers",
    "dead_letters",
    "formats",
    "ledger",
    "log",
    "management",
    "notify",
    "queues",
    "reload",
    "runtime",
    "shutdown",
    "topology",
];

/// What the name of a variable means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EnvironmentName {
    /// A setting: the part after `ORDERD_`, in lower case.
    Setting(String),
    /// No setting, but similar to one; with a warning.
    Mistyped(String),
    /// Not about the configuration, or `ORDERD_CONFIG`.
    Foreign,
}

impl EnvironmentName {
    pub(super) fn of(name: &str) -> Self {
        let lower = name.to_ascii_lowercase();
        let Some(key) = lower.strip_prefix("orderd_") else { return EnvironmentName::Foreign };
        let mistyped = |hint: String| EnvironmentName::Mistyped(format!("sets nothing{hint}"));
        match key.split_once("__") {
            Some((section, rest)) if SECTIONS.contains(&section) && !rest.is_empty() => {
                EnvironmentName::Setting(key.to_owned())
            }
            Some((section, "")) if SECTIONS.contains(&section) => mistyped(": it names no key".to_owned()),
            Some((section, _)) => {
                mistyped(format!(": there is no section {section:?}{}", did_you_mean(section, SECTIONS)))
            }
            None if key == "config" || key.starts_with("test") || is_of_kubernetes(key) => EnvironmentName::Foreign,
            None if key.starts_with('_') || SECTIONS.iter().any(|section| begins_with_section(key, section)) => {
                mistyped(": two underscores separate a section from its key, as in ORDERD_LOG__LEVEL".to_owned())
            }
            None => match did_you_mean(key, ["config"]) {
                hint if hint.is_empty() => EnvironmentName::Foreign,
                _ => mistyped("; did you mean ORDERD_CONFIG?".to_owned()),
            },
        }
    }
}

/// Whether the key's first word is the section, in singular or plural.
fn begins_with_section(key: &str, section: &str) -> bool {
    let word = key.split('_').next().unwrap_or_default();
    word.trim_end_matches('s') == section.trim_end_matches('s')
}

/// The variables that Kubernetes sets in each container for a service whose name begins with `orderd`.
fn is_of_kubernetes(key: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (of_port, rest) = match key.rsplit_once("port_") {
        Some((before, rest)) => (before.is_empty() || before.ends_with('_'), rest),
        None => (false, ""),
    };
    key == "port"
        || key.ends_with("_port")
        || key.ends_with("service_host")
        || key.contains("service_port")
        || of_port && is_number(rest.split('_').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_two_underscores_after_a_section_are_settings() {
        for name in ["ORDERD_LOG__LEVEL", "orderd_consumers__order__workers", "ORDERD_BROKER__NONSENSE"] {
            assert!(matches!(EnvironmentName::of(name), EnvironmentName::Setting(_)), "{name}");
        }
        for name in [
            "ORDERD_PORT",
            "ORDERD_SERVICE_HOST",
            "ORDERD_SERVICE_PORT",
            "ORDERD_SERVICE_PORT_ADMIN",
            "ORDERD_PORT_9640_TCP",
            "ORDERD_PORT_9640_TCP_ADDR",
            "ORDERD_ADMIN_PORT",
            "ORDERD_ADMIN_SERVICE_HOST",
            "ORDERD_ADMIN_PORT_9640_TCP_PROTO",
            "ORDERD_CONFIG",
            "ORDERD_TEST_THING",
            "ORDERD_BACKUP_DIR",
            "ORDERD_VERSION",
            "ORDERD_",
            "ORDERDX__Y",
            "PATH",
        ] {
            assert_eq!(EnvironmentName::of(name), EnvironmentName::Foreign, "{name}");
        }
        for name in [
            "ORDERD__X",
            "ORDERD_CONSUMER_ORDER_WORKERS",
            "ORDERD_LOGS_DIR",
            "ORDERD_LOG_LEVEL",
            "ORDERD_BROKER",
            "ORDERD_CONSUMER__ORDER__WORKERS",
            "ORDERD_CONFG",
            "ORDERD_LOG__",
        ] {
            assert!(matches!(EnvironmentName::of(name), EnvironmentName::Mistyped(_)), "{name}");
        }
    }
}
