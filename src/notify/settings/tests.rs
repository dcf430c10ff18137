//! Sections of channels, right and wrong.

use std::fs;
use std::time::Duration;

use super::NotifySettings;
use crate::config::{Config, LoadError};
use crate::handlers;

fn load(directory: &tempfile::TempDir, notify: &str) -> Result<crate::config::Loaded, Vec<String>> {
    let file = directory.path().join("orderd.toml");
    fs::write(&file, format!("{notify}\n")).unwrap();
    let sources = crate::config::Sources { file: Some(file), ..handlers::sources() };
    Config::load(&sources).map_err(|error| match error {
        LoadError::Invalid { problems, .. } => problems.iter().map(ToString::to_string).collect(),
        LoadError::Unreadable { .. } => panic!("{error}"),
    })
}

#[test]
fn a_faulty_template_is_an_error_for_check_and_reload_but_the_rest_of_the_configuration_can_be_used() {
    let directory = tempfile::tempdir().unwrap();
    let (templates, file) = (directory.path().join("templates"), directory.path().join("orderd.toml"));
    fs::create_dir_all(templates.join("de")).unwrap();
    let config = format!(
        "[notify.email]\ntype = \"smtp\"\naddress = \"localhost\"\nfrom = \"Lamps <a@example.com>\"\ntemplates = {templates:?}\n\
         [notify.ops]\ntype = \"smtp\"\naddress = \"localhost\"\nfrom = \"Lamps <a@example.com>\"\ntemplates = {templates:?}\n\
         [alerts]\nchannel = \"ops\"\nto = [\"ops@example.com\"]\n"
    );
    let usable = |config: &str| {
        fs::write(&file, config).unwrap();
        Config::load_usable(&crate::config::Sources { file: Some(file.clone()), ..handlers::sources() })
    };
    let keys = |config: &str| usable(config).unwrap().0.config.notify.keys()["email"].clone();
    let write = |text: &str| fs::write(templates.join("de/processed.txt"), format!("Subject: x\n\n{text}\n")).unwrap();
    write("{{ ordr_id }}");
    assert!(load(&directory, &config).unwrap_err().iter().any(|problem| problem.contains("de/processed.txt:3")));
    let (loaded, held_up) = usable(&config).unwrap();
    assert_eq!(held_up.len(), 2, "one for each channel: {held_up:?}");
    let settings = loaded.config.consumers["notification"].notify.constructor::<NotifySettings>().unwrap();
    assert!(settings.0["email"].fault().unwrap().starts_with("de/processed.txt:3: unknown variable"));
    let faulty = keys(&config);
    assert!(usable(&format!("{config}\n[log]\nkep = 1\n")).is_err(), "another error is one for all");
    write("{{ order_id }}");
    assert!(usable(&config).unwrap().1.is_empty());
    assert_ne!(faulty, keys(&config), "or a reload would find no change");
    fs::remove_dir_all(&templates).unwrap();
    assert_eq!(usable(&config).unwrap().1.len(), 2);
    let missing = keys(&config);
    fs::create_dir_all(&templates).unwrap();
    assert_ne!(missing, keys(&config), "or a reload would find no change");
}

const EMAIL: &str = "[notify.email]\ntype = \"smtp\"\naddress = \"localhost\"\nfrom = \"Lamps <a@example.com>\"\n";

#[test]
fn a_relative_directory_of_templates_is_found_wherever_orderd_is_started() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("templates/en")).unwrap();
    fs::write(directory.path().join("templates/en/shipped.short.txt"), "x\n").unwrap();
    let loaded = load(&directory, &format!("{EMAIL}templates = \"templates\"")).unwrap();
    assert_eq!(loaded.config.notify.directories(), [directory.path().join("templates")]);
}

#[test]
fn a_language_without_templates_is_warned_of_and_the_name_of_a_language_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let with = |language: &str| load(&directory, &format!("{EMAIL}language = {language:?}"));
    for (language, warnings) in [("de", 0), ("de-AT", 0), ("fr", 1)] {
        let warned = with(language).unwrap().warnings;
        let warned = warned.iter().filter(|warning| warning.path == "notify.email.language").count();
        assert_eq!(warned, warnings, "{language}");
    }
    assert!(with("english").unwrap_err()[0].starts_with("notify.email.language: "));
}

#[test]
fn a_key_of_another_type_of_channel_is_refused_with_the_type_that_has_it() {
    let directory = tempfile::tempdir().unwrap();
    for (config, path, of) in [
        (format!("{EMAIL}preset = \"sms\""), "notify.email.preset", "webhook"),
        ("[notify.file]\ntype = \"log\"\nfrom = \"a@example.com\"".to_owned(), "notify.file.from", "smtp"),
    ] {
        let problems = load(&directory, &config).unwrap_err();
        assert!(problems.len() == 1 && problems[0].starts_with(path) && problems[0].contains(of), "{problems:?}");
    }
}

#[test]
fn the_keys_of_a_channel_name_the_templates_that_are_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let templates = directory.path().join("templates");
    fs::create_dir_all(templates.join("fr")).unwrap();
    fs::write(templates.join("fr/shipped.short.txt"), "x\n").unwrap();
    let config = format!(
        "[notify.email]\ntype = \"smtp\"\naddress = \"localhost\"\nfrom = \"a@example.com\"\ntemplates = {templates:?}\n"
    );
    let keys = load(&directory, &config).unwrap().config.notify.keys()["email"].clone();
    let named: Vec<&String> = keys.as_object().unwrap().keys().filter(|key| key.starts_with("templates")).collect();
    assert!(named.iter().any(|key| *key == "templates[fr/shipped.short.txt]"), "{named:?}");
    assert!(!named.iter().any(|key| key.starts_with("templates[en/")), "{named:?}");
}

#[test]
fn every_fault_of_every_channel_is_reported_at_once_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("templates/en")).unwrap();
    fs::write(directory.path().join("templates/en/failed.txt"), "Subject: x\n\n{{ ordr }}\n").unwrap();
    let templates = directory.path().join("templates");
    let problems = load(
        &directory,
        &format!(
            r#"
            [notify.email]
            type = "smtp"
            tls = "none"
            address = "smtp.example.com"
            username = "orderd"
            password_file = "/nonexistent/password"
            from = "Lamps\r\nBcc: eve@example.com"
            list_unsubscribe = "javascript:alert(1)"
            templates = {templates:?}
            timeout = "1h"
            fallback = "nowhere"
            colour = "red"

            [notify.sms]
            type = "webhook"
            body = "{{\"a\": \"{{{{ text }}}}\"}}"
            time_zone = "Atlantis/Capital"
            language = "../en"

            [notify.fax]
            type = "fax"

            [notify."a.b"]
            type = "log"
            fallback = "sms"
            "#
        ),
    )
    .unwrap_err();
    for path in [
        "notify.email.password_file",
        "notify.email.from",
        "notify.email.list_unsubscribe",
        "notify.email.templates[en/failed.txt:3]",
        "notify.email.timeout",
        "notify.email.colour",
        "notify.sms.http",
        "notify.sms.body",
        "notify.sms.time_zone",
        "notify.sms.language",
        "notify.fax.type",
    ] {
        assert!(problems.iter().any(|problem| problem.contains(path)), "{path}: {problems:#?}");
    }
}

#[test]
fn a_password_is_never_sent_in_plain_text_to_another_machine_and_a_fallback_leads_somewhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("password");
    fs::write(&password, "hunter2\n").unwrap();
    let channel = |name: &str, host: &str, fallback: &str| {
        format!(
            "[notify.{name}]\ntype = \"smtp\"\naddress = \"{host}:25\"\ntls = \"none\"\nusername = \"u\"\n\
             password_file = {password:?}\nfrom = \"a@example.com\"\nfallback = \"{fallback}\"\n"
        )
    };
    let problems = load(&directory, &channel("email", "smtp.example.com", "email")).unwrap_err();
    assert!(problems.iter().any(|problem| problem.contains("notify.email.tls")), "{problems:?}");
    let cycle = [channel("a", "127.0.0.1", "b"), channel("b", "127.0.0.1", "a")].concat();
    let problems = load(&directory, &cycle).unwrap_err();
    assert!(problems.iter().any(|problem| problem.contains("notify.a.fallback")), "{problems:?}");
    let plain = |from: &str| {
        format!(
            "[notify.a]\ntype = \"smtp\"\naddress = \"localhost\"\ntls = \"none\"\nusername = \"u\"\npassword_file = {password:?}\nfrom = \"{from}\"\n"
        )
    };
    let loaded = load(&directory, &plain("a@example.com")).unwrap();
    let changed = load(&directory, &plain("b@example.com")).unwrap();
    let changes = crate::config::changes(&loaded.config, &changed.config, &changed.written);
    assert_eq!(changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>(), ["notify.a.from"]);
    fs::write(&password, "hunter3\n").unwrap();
    let renewed = load(&directory, &plain("a@example.com")).unwrap();
    let changes = crate::config::changes(&loaded.config, &renewed.config, &renewed.written);
    assert_eq!(changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>(), ["notify.a.password_file"]);
    assert!(!format!("{changes:?} {:?}", loaded.config).contains("hunter"));
}

#[test]
fn a_default_channel_that_does_not_exist_is_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let warnings = |notify: &str| {
        let loaded = load(&directory, notify).unwrap();
        loaded.warnings.iter().filter(|warning| warning.to_string().contains("default_channel")).count()
    };
    assert_eq!(warnings(""), 0);
    assert_eq!(warnings("[notify.email]\ntype = \"log\""), 0);
    assert_eq!(warnings("[notify.sms]\ntype = \"log\""), 1);
}

const SERVER: &str = "type = \"smtp\"\ntls = \"none\"\naddress = \"localhost\"\nfrom = \"a@example.com\"\n";

#[test]
fn the_timeouts_of_the_longest_chain_of_fallbacks_count_toward_the_brokers_ack_timeout() {
    let directory = tempfile::tempdir().unwrap();
    let chain = |timeout: &str| {
        let channel = |name: &str, more: &str| format!("[notify.{name}]\n{SERVER}timeout = \"{timeout}\"\n{more}");
        let fallbacks =
            [("a", "b"), ("b", "c"), ("c", "d")].map(|(name, next)| channel(name, &format!("fallback = \"{next}\"\n")));
        [fallbacks.concat(), channel("d", ""), "[notify.email]\ntype = \"log\"\n".to_owned()].concat()
    };
    let loaded = load(&directory, &chain("2m")).unwrap();
    let consumer = &loaded.config.consumers["notification"];
    // The answer to one e-mail besides: after one that was sent no fallback is tried.
    assert_eq!(consumer.attempt_time(), consumer.timeout + Duration::from_secs((8 + 5) * 60));
    assert!(loaded.config.longest_holds()[&consumer.queue] >= consumer.attempt_time());
    let retries = |immediate: u32| format!("[consumers.notification.retry]\nimmediate = {immediate}\n");
    let warned = |notify: &str| {
        let default = crate::config::DEFAULT_FILE.replace("immediate = 1", "immediate = 3");
        let loaded = load(&directory, &[&default, "\n", notify].concat()).unwrap();
        loaded.warnings.iter().any(|warning| warning.to_string().contains("consumers.notification.retry.immediate"))
    };
    let _ = retries;
    assert!(warned(&chain("2m")) && !warned(&chain("1s")));
}

#[test]
fn a_fallback_that_keeps_notifications_from_the_customer_is_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let warned = |last: &str| {
        let middle = format!("[notify.middle]\n{SERVER}fallback = \"last\"\n[notify.last]\n{last}");
        let loaded = load(&directory, &format!("[notify.email]\n{SERVER}fallback = \"middle\"\n{middle}")).unwrap();
        loaded.warnings.iter().filter(|warning| warning.to_string().contains(".fallback")).count()
    };
    assert_eq!(warned("type = \"log\"\n"), 2);
    assert_eq!(warned(SERVER), 0);
}

#[test]
fn a_breaker_that_a_silent_server_can_never_open_is_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let warned = |more: &str| {
        let loaded = load(&directory, &format!("[notify.email]\n{SERVER}{more}")).unwrap();
        loaded.warnings.iter().any(|warning| warning.to_string().contains("notify.email.circuit_breaker"))
    };
    assert!(!warned(""));
    assert!(warned("max_connections = 1\n"));
    assert!(!warned("max_connections = 1\ncircuit_breaker = { window = \"5m\" }\n"));
    assert!(warned("timeout = \"2m\"\n"));
}

#[test]
fn consumers_of_notifications_with_different_default_channels_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let second = |default: &str| {
        let queue =
            "[queues.texts]\nbindings = [\"order.notification.sms\"]\n[consumers.texts]\nhandler = \"notification\"\n";
        let file = [crate::config::DEFAULT_FILE, "\n", queue, "queue = \"texts\"\n", default].concat();
        load(&directory, &file)
    };
    let problems = second("default_channel = \"sms\"\n").unwrap_err();
    assert!(problems.iter().any(|problem| problem.contains("consumers.texts.default_channel")), "{problems:?}");
    assert!(second("").is_ok());
}

#[test]
fn the_path_of_a_chats_url_is_never_shown() {
    let directory = tempfile::tempdir().unwrap();
    let chat = r#"
        [notify.chat]
        type = "webhook"
        preset = "slack"
        http = { url = "https://hooks.example.com/services/T0/SECRET?a=HIDDEN" }
        "#;
    let loaded = load(&directory, chat).unwrap();
    let shown = format!("{:?} {:?}", loaded.config, loaded.config.notify.check_lines());
    assert!(shown.contains("hooks.example.com"), "{shown}");
    assert!(!shown.contains("SECRET") && !shown.contains("HIDDEN"), "{shown}");
}

#[test]
fn a_text_message_begins_with_the_name_of_the_shop_and_not_with_that_of_its_channel() {
    let sms = "[notify.a_sms]\ntype = \"webhook\"\npreset = \"sms\"\nhttp = { url = \"http://127.0.0.1:1/\" }\n";
    let mail =
        "[notify.email]\ntype = \"smtp\"\naddress = \"127.0.0.1\"\ntls = \"none\"\nfrom = \"Lamps <a@example.com>\"\n";
    let shop = |notify: &str| {
        let loaded = load(&tempfile::tempdir().unwrap(), notify).unwrap();
        let keys = serde_json::to_value(&loaded.config.notify).unwrap();
        let warnings =
            loaded.warnings.iter().filter(|warning| warning.to_string().contains("notify.a_sms.shop")).count();
        (keys["a_sms"]["shop"].as_str().unwrap().to_owned(), warnings)
    };
    assert_eq!(shop(&format!("{sms}{mail}")), ("Lamps".to_owned(), 0));
    assert_eq!(shop(&format!("{sms}shop = \"Bulbs\"\n{mail}")), ("Bulbs".to_owned(), 0));
    assert_eq!(shop(sms), ("a_sms".to_owned(), 1));
}

#[test]
fn a_template_file_that_is_not_used_is_a_warning_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("templates/de")).unwrap();
    fs::write(directory.path().join("templates/de/Shipped.txt"), "Subject: x\n\ny\n").unwrap();
    let templates = directory.path().join("templates");
    let mail =
        "[notify.email]\ntype = \"smtp\"\naddress = \"127.0.0.1\"\ntls = \"none\"\nfrom = \"Lamps <a@example.com>\"";
    let loaded = load(&directory, &format!("{mail}\ntemplates = {templates:?}")).unwrap();
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.iter().any(|text| text.contains("notify.email.templates[de/Shipped.txt]")), "{warnings:?}");
}
