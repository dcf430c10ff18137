//! The texts of notifications: templates by language and event, and what becomes of one with the content of an event.
//!
//! ```text
//! source   the files: those that come with orderd
//! directory   a directory of templates that replace or extend them, and files in it that are not used
//! fault    what is wrong with one
//! check    renders every template with sample events, and names what is wrong with file and line
//! samples  these events      names   the filters, tests and variables that a template names
//! ```
//! A template sees the values of an event as text only: what an order contains is never a template, never markup and never a
//! second line. It has no access to files, and a limit on its work and its output.

mod check;
mod directory;
mod fault;
mod names;
mod samples;
mod source;

use std::borrow::Cow;
use std::io;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, context, escape_formatter,
};
use rust_decimal::Decimal;

use super::content::{Content, one_line};
use super::language::Style;

pub(super) use check::{is_name, unknown_names};
pub(super) use directory::read_directory;
pub(super) use fault::{TemplateFault, shown};
pub(super) use samples::samples;
pub(super) use source::TemplateFiles;

/// What one template may do: instructions of the engine. A line of an order takes about fifty.
const MAX_FUEL: u64 = 1_000_000;
/// The longest text or HTML of a notification, in bytes. The products of an order have at most 512 KiB, and six times as much when all of
/// it has to be escaped in HTML.
const MAX_OUTPUT_BYTES: usize = 4 << 20;
/// The longest subject, in characters.
const MAX_SUBJECT_CHARS: usize = 200;
/// The language that every built-in template exists in.
pub(super) const BASE_LANGUAGE: &str = "en";
/// What the template of a subject is named after its file.
const SUBJECT: &str = "#subject";

/// The templates of one channel, compiled.
#[derive(Debug)]
pub(super) struct Templates {
    environment: Environment<'static>,
    options: TemplateOptions,
}

/// What templates need besides the event.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TemplateOptions {
    /// The name of the shop.
    pub shop: String,
    /// The language of a customer without one, or with one that there are no templates for.
    pub language: String,
    pub zone: TimeZone,
}

/// An e-mail's texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MailTexts {
    /// The language that was found.
    pub language: String,
    /// One line.
    pub subject: String,
    pub text: String,
    pub html: Option<String>,
}

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenderError {
    /// There is no template for the event in any language.
    #[error("there is no template for the event {0:?}")]
    UnknownEvent(String),
    /// A template failed.
    #[error("cannot render {0}")]
    Failed(TemplateFault),
}

impl Templates {
    /// Compiles all templates.
    ///
    /// # Errors
    /// What is wrong with each that cannot be compiled.
    pub fn new(files: &TemplateFiles, options: &TemplateOptions) -> Result<Self, Vec<TemplateFault>> {
        let mut environment = environment(options);
        let mut faults = Vec::new();
        for (name, source) in files.iter() {
            let (subject, body) = split_subject(name, source);
            if let Some(subject) = subject {
                let added = environment.add_template_owned([name, SUBJECT].concat(), subject);
                faults.extend(added.err().map(|error| TemplateFault::of(name, &error)));
            } else if source::needs_subject(name) {
                faults.push(TemplateFault::new(name, Some(1), "must begin with a line \"Subject: …\""));
            }
            let added = environment.add_template_owned(name.to_owned(), body);
            faults.extend(added.err().map(|error| TemplateFault::of(name, &error)));
        }
        let templates = Templates { environment, options: options.clone() };
        if faults.is_empty() { Ok(templates) } else { Err(faults) }
    }

    /// What they were compiled with.
    pub fn options(&self) -> &TemplateOptions {
        &self.options
    }

    /// What is wrong with the templates when they are rendered with sample events.
    pub fn check(&self) -> Vec<TemplateFault> {
        check::check(self)
    }

    /// The texts of an e-mail.
    ///
    /// # Errors
    /// There is no template, or it failed.
    pub fn mail(&self, content: &Content) -> Result<MailTexts, RenderError> {
        let (language, name) = self.find(content, ".txt")?;
        let html = name.replace(".txt", ".html");
        let html = self.has(&html).then(|| self.render(&html, content, &language)).transpose()?;
        let subject = self.render(&[&name, SUBJECT].concat(), content, &language)?;
        let text = self.render(&name, content, &language)?;
        let text = text.trim_start_matches('\n').to_owned();
        Ok(MailTexts { subject: shortened_subject(&subject), text, html, language })
    }

    /// The language of the short text, or that of the customer if there is none.
    pub fn language(&self, content: &Content) -> String {
        let languages = self.languages(content);
        self.find(content, ".short.txt")
            .map_or_else(|_| languages.into_iter().next().unwrap_or_default(), |found| found.0)
    }

    /// A short text, for chats and text messages.
    ///
    /// # Errors
    /// There is no template, or it failed.
    pub fn short(&self, content: &Content) -> Result<String, RenderError> {
        let (language, name) = self.find(content, ".short.txt")?;
        // Spaces that do not break would double the length of a text message, in which they have no code.
        Ok(self.render(&name, content, &language)?.trim().replace(['\u{a0}', '\u{202f}'], " "))
    }

    fn has(&self, name: &str) -> bool {
        self.environment.get_template(name).is_ok()
    }

    /// The languages in which a text is looked for: the customer's, the same without its region, the channel's, English.
    fn languages(&self, content: &Content) -> Vec<String> {
        let wanted = content.recipient.locale.as_deref().map(|locale| locale.to_ascii_lowercase().replace('_', "-"));
        let general =
            wanted.as_deref().and_then(|locale| locale.split_once('-')).map(|(language, _)| language.to_owned());
        let last = [self.options.language.clone(), BASE_LANGUAGE.to_owned()];
        wanted.into_iter().chain(general).chain(last).collect()
    }

    /// The first language that has the file.
    fn find(&self, content: &Content, ending: &str) -> Result<(String, String), RenderError> {
        // An event is part of a template's name.
        let is_name = source::is_event(&content.event);
        let found = self.languages(content).into_iter().filter(|_| is_name).find_map(|language| {
            let name = format!("{language}/{}{ending}", content.event);
            self.has(&name).then_some((language, name))
        });
        found.ok_or_else(|| RenderError::UnknownEvent(content.event.clone()))
    }

    fn render(&self, name: &str, content: &Content, language: &str) -> Result<String, RenderError> {
        self.render_with(name, content, language).map_err(|error| RenderError::Failed(TemplateFault::of(name, &error)))
    }

    fn render_with(&self, name: &str, content: &Content, language: &str) -> Result<String, Error> {
        self.render_values(name, context! { language, ..Value::from(Serde(content)) })
    }

    fn render_values(&self, name: &str, values: Value) -> Result<String, Error> {
        let mut output = LimitedOutput(Vec::new());
        self.environment.get_template(name)?.render_captured_to(values, &mut output)?;
        String::from_utf8(output.0).map_err(|_| Error::new(ErrorKind::BadSerialization, "the output is not UTF-8"))
    }
}

/// Refuses to become longer than a notification may be.
struct LimitedOutput(Vec<u8>);

impl io::Write for &mut LimitedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other(format!("the output is longer than {MAX_OUTPUT_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An engine that knows the name of the shop and the filters `money`, `date`, `time` and `datetime`, and no template yet.
pub(super) fn environment(options: &TemplateOptions) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(MAX_FUEL));
    environment.set_debug(true);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("only whitespace is configured"));
    environment.set_auto_escape_callback(|name| match name {
        name if name.ends_with(".html") => AutoEscape::Html,
        name if name.ends_with(".json") => AutoEscape::Json,
        _ => AutoEscape::None,
    });
    environment.set_formatter(format_value);
    // `{% extends "layout.txt" %}` is the layout of the same language.
    environment.set_path_join_callback(|name, parent| match parent.split_once('/') {
        Some((language, _)) if !name.contains('/') => Cow::Owned(format!("{language}/{name}")),
        Some(_) | None => Cow::Borrowed(name),
    });
    environment.add_global("shop", options.shop.clone());
    // Nothing that an order contains is written as it is. `check` refuses `autoescape`, which cannot be removed.
    environment.remove_filter("safe");
    environment.add_filter("tojson", to_json);
    environment.add_filter("money", money);
    let formats: [(&'static str, FormatTime); 3] =
        [("date", Style::date), ("time", Style::time), ("datetime", Style::datetime)];
    for (filter, format) in formats {
        let zone = options.zone.clone();
        let filtered = move |state: &State, at: Value| at_time(state, &at, |style, at| format(style, at, &zone));
        environment.add_filter(filter, filtered);
    }
    environment
}

/// Writes a time in the form of a language.
type FormatTime = fn(Style, Timestamp, &TimeZone) -> String;

/// Writes a value. Missing ones are empty, or null in JSON.
fn format_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let is_json = matches!(state.auto_escape(), AutoEscape::Json);
    if (value.is_none() || value.is_undefined()) && !is_json {
        return Ok(());
    }
    escape_formatter(out, state, value)
}

/// A value as JSON, which is escaped like any other text: its quotation marks would end an attribute in HTML.
fn to_json(state: &State, value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let json = minijinja::filters::tojson(value, indent, options)?;
    Ok(match state.auto_escape() {
        AutoEscape::Json => json,
        _ => Value::from(json.to_string()),
    })
}

fn style(state: &State) -> Style {
    let language = state.lookup("language");
    Style::of(language.as_ref().and_then(Value::as_str).unwrap_or(BASE_LANGUAGE))
}

/// An amount in the order's currency.
fn money(state: &State, amount: Value) -> Result<String, Error> {
    if amount.is_none() || amount.is_undefined() {
        return Ok(String::new());
    }
    if samples::is_any(&amount) {
        return Ok(amount.to_string());
    }
    let digits = amount.to_string();
    let number: Decimal =
        digits.parse().map_err(|_| Error::new(ErrorKind::InvalidOperation, "the filter money needs an amount"))?;
    let currency = state.lookup("currency");
    let currency = currency.as_ref().and_then(Value::as_str).and_then(|code| code.parse().ok());
    Ok(style(state).money(number, currency))
}

fn at_time(state: &State, at: &Value, format: impl Fn(Style, Timestamp) -> String) -> Result<String, Error> {
    if at.is_none() || at.is_undefined() {
        return Ok(String::new());
    }
    if samples::is_any(at) {
        return Ok(at.to_string());
    }
    let problem = || Error::new(ErrorKind::InvalidOperation, "the filters date, time and datetime need a time");
    let at = at.as_str().and_then(|at| at.parse().ok()).ok_or_else(problem)?;
    Ok(format(style(state), at))
}

/// The template of the subject, if the first line is one, and that of the rest with the same line numbers.
fn split_subject(name: &str, source: &str) -> (Option<String>, String) {
    let (first, rest) = source.split_once('\n').unwrap_or((source, ""));
    match first.strip_prefix("Subject:") {
        Some(subject) if source::needs_subject(name) => (Some(subject.trim().to_owned()), ["\n", rest].concat()),
        Some(_) | None => (None, source.to_owned()),
    }
}

/// A subject: one line of limited length.
fn shortened_subject(text: &str) -> String {
    one_line(text).chars().take(MAX_SUBJECT_CHARS).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests;
