//! What is wrong with templates: each is rendered with sample events, and names that do not exist are found even where no sample
//! comes along. Pure.

use std::collections::HashSet;

use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind, Template, context};

use super::fault::TemplateFault;
use super::names::{Name, NameKind, names};
use super::samples::{AnyValue, KNOWN_EVENTS, samples};
use super::source::{event_of, is_event};
use super::{SUBJECT, Templates};

/// What a template may use besides the names of [`super::Content`]: what orderd adds, and the functions of MiniJinja.
const GLOBALS: [&str; 6] = ["shop", "language", "range", "dict", "namespace", "debug"];

/// Every problem, the first of each line.
pub(super) fn check(templates: &Templates) -> Vec<TemplateFault> {
    let mut faults: Vec<TemplateFault> = Vec::new();
    let mut add = |fault: TemplateFault| {
        if !faults.iter().any(|known| known.file == fault.file && known.line == fault.line) {
            faults.push(fault);
        }
    };
    for (name, template) in templates.environment.templates() {
        let file = name.strip_suffix(SUBJECT).unwrap_or(name);
        let (language, base) = file.split_once('/').unwrap_or(("", file));
        let problems = unknown_names(&templates.environment, &template, language, is_name);
        problems.into_iter().for_each(|(line, problem)| add(TemplateFault::new(file, line, &problem)));
        let Some(event) = event_of(base).filter(|event| is_event(event)) else { continue };
        for sample in samples(event) {
            let fault = match KNOWN_EVENTS.contains(&event) {
                true => {
                    templates.render_with(name, &sample, language).err().map(|error| TemplateFault::of(file, &error))
                }
                false => own_event_fault(templates, name, context! { language, ..Value::from(Serde(&sample)) }),
            };
            fault.into_iter().for_each(&mut add);
        }
    }
    faults
}

/// Renders the template of an event whose fields are not known. Ignores what fails because the kind of a field is not known either.
fn own_event_fault(templates: &Templates, name: &str, values: Value) -> Option<TemplateFault> {
    let body = AnyValue::default();
    let error = templates.render_values(name, context! { body => Value::from_object(body.clone()), ..values }).err()?;
    let fault = TemplateFault::of(name.strip_suffix(SUBJECT).unwrap_or(name), &error);
    let depends_on_kind = !matches!(
        error.kind(),
        ErrorKind::UndefinedError
            | ErrorKind::UnknownFilter
            | ErrorKind::UnknownFunction
            | ErrorKind::UnknownTest
            | ErrorKind::UnknownMethod
            | ErrorKind::TemplateNotFound
            | ErrorKind::MissingArgument
            | ErrorKind::TooManyArguments
            | ErrorKind::OutOfFuel
    );
    let uses_body = || {
        let file = error.name().unwrap_or(name);
        let template = templates.environment.get_template(file).ok()?;
        let line = template.source().lines().nth(error.line()?.checked_sub(1)?)?;
        let locals = names(template.source()).into_iter().filter(|name| name.kind == NameKind::Local);
        Some(locals.map(|name| name.text).chain(["body"]).any(|local| has_word(line, local)))
    };
    let is_ignored = depends_on_kind && body.was_used() && uses_body().unwrap_or(true);
    (!is_ignored).then_some(fault)
}

/// The names in a template that do not exist, each with its line. `language` is where the templates are that it names.
pub(in crate::notify) fn unknown_names(
    environment: &Environment<'_>,
    template: &Template<'_, '_>,
    language: &str,
    is_variable: impl Fn(&str) -> bool,
) -> Vec<(Option<usize>, String)> {
    let source = template.source();
    let undeclared: HashSet<String> = template.undeclared_variables(false);
    let variables = undeclared.iter().filter(|name| !is_variable(name)).map(|name| {
        let line = source.lines().position(|line| has_word(line, name)).map(|index| index + 1);
        (line, format!("unknown variable {name:?}"))
    });
    let others = names(source).into_iter().filter_map(|Name { kind, text, line }| {
        let mut state = environment.empty_state();
        let problem = match kind {
            NameKind::Filter => is_kind(state.apply_filter(text, &[]).err(), ErrorKind::UnknownFilter, "filter", text),
            NameKind::Test => is_kind(state.perform_test(text, &[]).err(), ErrorKind::UnknownTest, "test", text),
            NameKind::Template => {
                let joined = if text.contains('/') { text.to_owned() } else { format!("{language}/{text}") };
                environment.get_template(&joined).is_err().then(|| format!("there is no template {text:?}"))
            }
            NameKind::Escaping => {
                Some("autoescape is not allowed: what an order contains is always escaped".to_owned())
            }
            NameKind::Local => None,
        };
        problem.map(|problem| (Some(line), problem))
    });
    let mut found: Vec<(Option<usize>, String)> = variables.chain(others).collect();
    found.sort();
    found
}

/// The problem if trying a name without arguments shows that there is none.
fn is_kind(error: Option<minijinja::Error>, kind: ErrorKind, what: &str, name: &str) -> Option<String> {
    error.filter(|error| error.kind() == kind).map(|_| format!("unknown {what} {name:?}"))
}

/// Whether all events have this name.
pub(in crate::notify) fn is_name(name: &str) -> bool {
    let sample = &samples(KNOWN_EVENTS[0])[0];
    let names = serde_json::to_value(sample).expect("a sample consists of plain values");
    GLOBALS.contains(&name) || names.get(name).is_some()
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        !line[..at].ends_with(is_part)
            && !line[at + word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
    })
}
