//! `[alerts]`: reads and checks the section, and shows it.

use std::time::Duration;

use serde::Serialize;

use crate::config::{HandlerSettings, Section, duration, serialize_duration, value_parser};
use crate::notify::{NotifySettings, OperatorChannelSettings};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// The checked section.
#[derive(Debug, Clone)]
pub struct AlertSettings {
    /// Where alerts go.
    pub channel: OperatorChannelSettings,
    /// When they open, end and are sent.
    pub times: AlertTimes,
    /// When dead letters are a cause.
    pub dead_letters: DeadLetterLimit,
}

/// When alerts open, end and are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlertTimes {
    /// How long a cause must last before its alert opens; default 1 min.
    pub open_after: Duration,
    /// How long a cause must be gone before its alert ends; default 5 min.
    pub resolved_after: Duration,
    /// The shortest time between two messages; default 5 min.
    pub interval: Duration,
    /// How often an alert that stays open is reported again; `None`, the default: never.
    pub repeat: Option<Duration>,
}

/// When a consumer's dead letters are a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetterLimit {
    /// This many with the same reason; default 1.
    pub count: u64,
    /// Within this time; default 10 min.
    pub window: Duration,
}

/// As in the file.
#[derive(Serialize)]
struct Keys<'s> {
    channel: &'s str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    to: &'s [String],
    #[serde(serialize_with = "serialize_duration")]
    open_after: Duration,
    #[serde(serialize_with = "serialize_duration")]
    resolved_after: Duration,
    #[serde(serialize_with = "serialize_duration")]
    interval: Duration,
    repeat: String,
    dead_letters: u64,
    #[serde(serialize_with = "serialize_duration")]
    dead_letter_window: Duration,
}

impl AlertSettings {
    /// Reads the section. Returns it, and the notification channels that remain for customers.
    pub fn read(mut section: Section<'_>, notify: &NotifySettings) -> (HandlerSettings, HandlerSettings) {
        let channel = OperatorChannelSettings::read(&mut section, notify);
        let times = AlertTimes {
            open_after: section.optional_or(
                "open_after",
                60 * SECOND,
                &value_parser::duration(Duration::ZERO..=3600 * SECOND),
            ),
            resolved_after: section.optional_or("resolved_after", 300 * SECOND, &value_parser::duration(SECOND..=DAY)),
            interval: section.optional_or("interval", 300 * SECOND, &value_parser::duration(Duration::ZERO..=DAY)),
            repeat: section.optional_or(
                "repeat",
                None,
                &value_parser::or_off(value_parser::duration(3600 * SECOND..=30 * DAY)),
            ),
        };
        let dead_letters = DeadLetterLimit {
            count: section.optional_or("dead_letters", 1, &value_parser::number(1..=1_000_000)),
            window: section.optional_or("dead_letter_window", 600 * SECOND, &value_parser::duration(SECOND..=DAY)),
        };
        section.finish();
        let Some(channel) = channel else {
            return (HandlerSettings::none(), notify.clone().into_handler_settings());
        };
        let customers = channel.customers(notify);
        let settings = AlertSettings { channel, times, dead_letters };
        (HandlerSettings::new(&settings.keys(), settings.check_lines(), settings.clone()), customers)
    }

    fn keys(&self) -> Keys<'_> {
        let AlertSettings { channel, times, dead_letters } = self;
        Keys {
            channel: &channel.name,
            to: &channel.to,
            open_after: times.open_after,
            resolved_after: times.resolved_after,
            interval: times.interval,
            repeat: times.repeat.map_or_else(|| "off".to_owned(), duration::format),
            dead_letters: dead_letters.count,
            dead_letter_window: dead_letters.window,
        }
    }

    fn check_lines(&self) -> Vec<String> {
        let to = &self.channel.to;
        let to = if to.is_empty() { String::new() } else { format!(" to {}", to.join(", ")) };
        let AlertTimes { open_after, resolved_after, interval, repeat } = self.times;
        let DeadLetterLimit { count, window } = self.dead_letters;
        let mut line = format!(
            "alerts go through channel {:?}{to}: once a cause has lasted {}, and again once it has been gone for {}; dead letters: \
             {count} with the same reason within {}",
            self.channel.name,
            duration::format(open_after),
            duration::format(resolved_after),
            duration::format(window)
        );
        if !interval.is_zero() {
            line.push_str(&format!("; at most one message every {}", duration::format(interval)));
        }
        if let Some(repeat) = repeat {
            line.push_str(&format!("; what stays open is repeated every {}", duration::format(repeat)));
        }
        self.channel.check_lines().into_iter().chain([line]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, LoadError, Loaded, Sources};
    use crate::handlers;

    const SMTP: &str = "type = \"smtp\"\naddress = \"localhost\"\ntls = \"none\"\nfrom = \"Lamps <a@example.com>\"\n";
    const CHAT: &str = "type = \"webhook\"\npreset = \"slack\"\nhttp = { url = \"http://127.0.0.1:1/\" }\n";

    fn load(file: &str) -> Result<Loaded, Vec<String>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orderd.toml");
        std::fs::write(&path, file).unwrap();
        Config::load(&Sources { file: Some(path), ..handlers::sources() }).map_err(|error| match error {
            LoadError::Invalid { problems, .. } => problems.iter().map(ToString::to_string).collect(),
            LoadError::Unreadable { .. } => panic!("{error}"),
        })
    }

    fn channels(config: &Config) -> Vec<String> {
        config.consumers["notification"].notify.keys().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn every_fault_of_the_section_is_a_problem_of_its_key() {
        let email = format!("[notify.email]\n{SMTP}");
        let ops = format!("{email}[notify.ops]\n{SMTP}");
        let chat = format!("{email}[notify.chat]\n{CHAT}");
        let sms = CHAT.replace("slack", "sms");
        for (file, path) in [
            (format!("{ops}[alerts]\nto = [\"a@example.com\"]"), "alerts.channel"),
            (format!("{ops}[alerts]\nchannel = \"opps\""), "alerts.channel"),
            ("[alerts]\nchannel = \"ops\"".to_owned(), "alerts.channel"),
            (format!("{ops}[alerts]\nchannel = \"ops\""), "alerts.to"),
            (format!("{ops}[alerts]\nchannel = \"ops\"\nto = []"), "alerts.to"),
            (
                format!("{ops}[alerts]\nchannel = \"ops\"\nto = [\"a@example.com\", \"a@b, c@example.com\"]"),
                "alerts.to[1]",
            ),
            (format!("{ops}[alerts]\nchannel = \"ops\"\nto = [\"root@localhost\"]"), "alerts.to[0]"),
            (
                format!("{ops}[alerts]\nchannel = \"ops\"\nto = [\"a@example.com\\r\\nBcc: b@example.com\"]"),
                "alerts.to[0]",
            ),
            (format!("{chat}[alerts]\nchannel = \"chat\"\nto = [\"a@example.com\"]"), "alerts.to"),
            (format!("{chat}fallback = \"email\"\n[alerts]\nchannel = \"chat\""), "alerts.to"),
            (format!("{email}[notify.sms]\n{sms}[alerts]\nchannel = \"sms\""), "alerts.channel"),
            (format!("{email}[alerts]\nchannel = \"email\"\nto = [\"a@example.com\"]"), "alerts.channel"),
            (format!("{chat}[notify.all]\n{CHAT}fallback = \"chat\"\n[alerts]\nchannel = \"chat\""), "alerts.channel"),
            (format!("{chat}[alerts]\nchannel = \"chat\"\nopen_after = \"2h\""), "alerts.open_after"),
            (format!("{chat}[alerts]\nchannel = \"chat\"\nresolved_after = \"0s\""), "alerts.resolved_after"),
            (format!("{chat}[alerts]\nchannel = \"chat\"\nrepeat = \"1m\""), "alerts.repeat"),
            (format!("{chat}[alerts]\nchannel = \"chat\"\ndead_letters = 0"), "alerts.dead_letters"),
            (format!("{chat}[alerts]\nchannel = \"chat\"\nevery = \"1m\""), "alerts.every"),
        ] {
            let problems = load(&file).err().unwrap_or_default();
            assert!(problems.len() == 1 && problems[0].starts_with(&format!("{path}:")), "{file}\n{problems:?}");
        }
    }

    #[test]
    fn a_channel_with_a_fault_of_its_own_causes_no_second_problem() {
        let problems = load("[notify.ops]\ntype = \"fax\"\n[alerts]\nchannel = \"ops\"").unwrap_err();
        assert!(problems.len() == 1 && problems[0].starts_with("notify.ops.type:"), "{problems:?}");
    }

    #[test]
    fn customers_keep_all_channels_but_those_that_reach_operators_by_themselves() {
        let file = format!(
            "[notify.email]\n{SMTP}[notify.backup]\n{CHAT}[notify.ops]\n{CHAT}fallback = \"backup\"\n[notify.sms]\n{CHAT}
             [alerts]\nchannel = \"ops\"\n"
        );
        let loaded = load(&file).unwrap();
        assert_eq!((channels(&loaded.config), loaded.warnings.len()), (vec!["email".to_owned(), "sms".to_owned()], 0));
        let file = format!(
            "[notify.email]\n{SMTP}[notify.ops]\n{CHAT}fallback = \"email\"\n[alerts]\nchannel = \"ops\"\nto = [\"Ops <o@example.com>\"]"
        );
        let config = load(&file).unwrap().config;
        assert_eq!(channels(&config), ["email"]);
        assert_eq!(config.alerts.constructor::<AlertSettings>().unwrap().channel.to, ["o@example.com"]);
        assert!(load("").unwrap().config.alerts.constructor::<AlertSettings>().is_none(), "off by default");
    }

    #[test]
    fn a_file_is_a_channel_of_alerts_too() {
        let loaded = load("[notify.ops]\ntype = \"log\"\n[alerts]\nchannel = \"ops\"\nrepeat = \"1d\"\n").unwrap();
        assert_eq!((channels(&loaded.config), loaded.warnings.len()), (Vec::new(), 0));
        let keys = loaded.config.alerts.keys();
        assert_eq!((&keys["repeat"], &keys["interval"]), (&"1d".into(), &"5m".into()));
        assert!(loaded.config.alerts.check_lines().len() == 2);
    }
}
