//! A step as `orderd check` shows it: what is called, when and how often, line by line. Pure; it shows no secret.

use super::breaker_settings::MIN_CALLS;
use super::command::{CommandMode, CommandSettings};
use super::http::HttpSettings;
use super::settings::{ServiceSettings, StepSettings, StepsSettings};
use super::when::When;
use crate::config::duration;
use crate::escape::escaped;

/// Longest command, in characters; the JSON output has all of it.
const MAX_COMMAND_CHARS: usize = 160;

impl StepsSettings {
    /// What `orderd check` prints about them.
    pub fn check_lines(&self, consumer: &str) -> Vec<String> {
        self.0.iter().enumerate().flat_map(|(index, step)| describe(step, consumer, index)).collect()
    }
}

/// The lines about the step at this position.
fn describe(step: &StepSettings, consumer: &str, index: usize) -> Vec<String> {
    let mut lines = vec![
        format!("step {} of consumer {consumer:?}: {:?}", index + 1, step.name),
        format!("  called    {} within {}", service(&step.service), duration::format(step.timeout)),
        match &step.undo {
            Some(undo) => format!("  undone    {} within {}", service(&undo.service), duration::format(undo.timeout)),
            None => "  undone    never".to_owned(),
        },
    ];
    if step.when != When::default() {
        lines.push(format!("  if        {}", condition(&step.when)));
    }
    if !step.emits.is_empty() {
        lines.push(format!("  may emit  {}", step.emits.join(", ")));
    }
    let at_once = match &step.service {
        ServiceSettings::Http(_) => step.max_concurrent.to_string(),
        ServiceSettings::Command(_) => format!("{}, or the number of workers if that is less", step.max_concurrent),
    };
    let retry_after = duration::format(step.retry_after_max);
    lines.push(format!("  limits    calls at the same time: {at_once}; Retry-After: {retry_after}"));
    if let Some(breaker) = step.circuit_breaker {
        let (open, window) = (duration::format(breaker.open), duration::format(breaker.window));
        let percent = breaker.failures * 100.0;
        lines.push(format!(
            "  breaker   not called for {open} if {percent} % of at least {MIN_CALLS} calls within {window} fail"
        ));
    }
    lines
}

fn service(service: &ServiceSettings) -> String {
    match service {
        ServiceSettings::Http(http) => http_call(http),
        ServiceSettings::Command(command) => command_call(command),
    }
}

/// The URL, and how orderd authenticates.
fn http_call(http: &HttpSettings) -> String {
    let headers: Vec<&str> = http.headers.keys().map(String::as_str).collect();
    let with = [
        http.bearer.is_some().then(|| "a bearer token".to_owned()),
        http.hmac_key.is_some().then(|| "a signature".to_owned()),
        http.tls.client.is_some().then(|| "a client certificate".to_owned()),
        (!headers.is_empty()).then(|| format!("the headers {}", headers.join(", "))),
    ];
    let with: Vec<String> = with.into_iter().flatten().collect();
    let with = if with.is_empty() { String::new() } else { format!(" with {}", with.join(", ")) };
    format!("POST {}{with}", http.url)
}

/// The program with its arguments, and how it is run. Values of the environment may be secrets.
fn command_call(command: &CommandSettings) -> String {
    let words: Vec<String> = command.words.iter().map(|word| format!("{word:?}")).collect();
    let words = cut(&words.join(" "));
    let mode = match command.mode {
        CommandMode::LongLived => "long-lived",
        CommandMode::PerMessage => "started for each call",
    };
    let names: Vec<&str> = command.environment.keys().map(String::as_str).collect();
    let environment =
        if names.is_empty() { String::new() } else { format!(", with the variables {}", cut(&names.join(", "))) };
    format!("command {words} ({mode}{environment})")
}

fn condition(when: &When) -> String {
    let field = when.pointer.as_ref().map(|pointer| match &when.equals {
        Some(value) => format!("{} of the message is {}", escaped(pointer), escaped(&value.to_string())),
        None => format!("{} of the message is there, and neither null nor false", escaped(pointer)),
    });
    let parts = [
        when.priority.map(|priority| format!("priority is {priority}")),
        when.min_total.map(|least| format!("the total is at least {least}")),
        when.currency.map(|currency| format!("the currency is {currency}")),
        field,
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_COMMAND_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::tests::read;

    #[test]
    fn check_shows_what_a_step_calls_when_and_how_often() {
        let steps = read(
            "[[consumers.order.steps]]\nname = \"charge\"\nhttp = { url = \"https://pay.example/charge?key=hidden\", headers = { X-Shop = \
             \"hidden\" } }\ntimeout = \"3s\"\nundo = { http = { url = \"https://pay.example/refund\" }, timeout = \"1m\" }\n\
             when = { priority = true, min_total = \"99.90\", currency = \"EUR\", pointer = \"/a\", equals = 1 }\n\
             emits = [\"order.payment.*\"]\nmax_concurrent = 2\nretry_after_max = \"1m\"\n\
             circuit_breaker = { open = \"5s\" }\n\
             [[consumers.order.steps]]\nname = \"ship\"\ncommand = [\"ship.sh\", \"a b\\n\"]\nmode = \"per_message\"\n\
             environment = { KEY = \"hidden\" }\nwhen = { pointer = \"/ship_to\" }\n\
             undo = { command = [\"ship.sh\", \"cancel\"], mode = \"per_message\" }",
        )
        .unwrap();
        let expected = [
            "step 1 of consumer \"order\": \"charge\"",
            "  called    POST https://pay.example/charge with the headers X-Shop within 3s",
            "  undone    POST https://pay.example/refund within 1m",
            "  if        priority is true and the total is at least 99.90 and the currency is EUR and /a of the message is 1",
            "  may emit  order.payment.*",
            "  limits    calls at the same time: 2; Retry-After: 1m",
            "  breaker   not called for 5s if 50 % of at least 10 calls within 30s fail",
            "step 2 of consumer \"order\": \"ship\"",
            "  called    command \"ship.sh\" \"a b\\n\" (started for each call, with the variables KEY) within 10s",
            "  undone    command \"ship.sh\" \"cancel\" (started for each call) within 10s",
            "  if        /ship_to of the message is there, and neither null nor false",
            "  limits    calls at the same time: 64, or the number of workers if that is less; Retry-After: 5m",
        ];
        assert_eq!(steps.check_lines("order"), expected);
    }

    #[test]
    fn check_cuts_a_long_command() {
        let long = format!("[[consumers.order.steps]]\nname = \"a\"\ncommand = [\"a\", \"{}\"]", "é".repeat(2_000));
        let lines = read(&long).unwrap().check_lines("order");
        assert!(lines[1].chars().count() < 220 && lines[1].contains('…'), "{}", lines[1]);
        assert_eq!(lines[2], "  undone    never");
    }
}
