//! The keys of a channel about its texts: the directory of templates, the shop's name, the language and the time zone. Reads and
//! renders the templates, and reports what is wrong with them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::tz::TimeZone;

use super::{ChannelKind, MAX_TEXT_BYTES, NotifySettings};
use crate::config::{Section, Value, value_parser};
use crate::domain::is_locale;
use crate::escape::escaped;
use crate::notify::templates::{
    BASE_LANGUAGE, TemplateFault, TemplateFiles, TemplateOptions, Templates, read_directory,
};

/// The templates of a channel.
#[derive(Debug, Clone)]
pub(in crate::notify) struct TextSettings {
    pub directory: Option<PathBuf>,
    /// The built-in ones if there is a fault.
    pub files: TemplateFiles,
    /// What is wrong with the templates, so that the channel's notifications are held.
    pub fault: Option<String>,
    pub options: TemplateOptions,
    pub(super) zone_name: Option<String>,
    /// Whether the channel itself says how the shop is called.
    pub(super) names_shop: bool,
}

impl NotifySettings {
    /// Channels without a name of the shop have that of the first sender of e-mail.
    pub(super) fn name_shop(&mut self, reporter: &Section<'_>) {
        let sender = self.0.values().find_map(|channel| match &channel.kind {
            ChannelKind::Smtp(smtp, _) => smtp.sender.from.name.clone(),
            ChannelKind::Webhook(..) | ChannelKind::Log => None,
        });
        for (name, channel) in &mut self.0 {
            let texts = match &mut channel.kind {
                ChannelKind::Smtp(_, texts) | ChannelKind::Webhook(_, _, texts) if !texts.names_shop => texts,
                ChannelKind::Smtp(..) | ChannelKind::Webhook(..) | ChannelKind::Log => continue,
            };
            match &sender {
                Some(sender) => texts.options.shop.clone_from(sender),
                None => reporter.subsection_warning(
                    name,
                    "shop",
                    format!("is missing: texts call the shop {:?}; give its name, here or in the \"from\" of a channel of e-mail", texts.options.shop),
                ),
            }
        }
    }

    /// The directories of templates, each once.
    pub(super) fn template_directories(&self) -> Vec<PathBuf> {
        let directories = self.0.values().filter_map(|channel| match &channel.kind {
            ChannelKind::Smtp(_, texts) | ChannelKind::Webhook(_, _, texts) => texts.directory.clone(),
            ChannelKind::Log => None,
        });
        directories.collect::<BTreeSet<PathBuf>>().into_iter().collect()
    }
}

impl TextSettings {
    /// What `orderd check` prints about them.
    pub(super) fn shown(&self) -> String {
        let zone = self.zone_name.as_deref().unwrap_or("UTC");
        let templates = match &self.directory {
            Some(directory) => format!("templates of {}", escaped(&directory.to_string_lossy())),
            None => "built-in templates".to_owned(),
        };
        format!("{templates}, in {:?} for customers without a language, times in {zone}", self.options.language)
    }

    /// `shop` is the default of the shop's name.
    pub(super) fn read(section: &mut Section<'_>, shop: Option<String>, name: &str) -> Option<Self> {
        let directory = section.file("templates");
        let shop_name = section.optional("shop", &value_parser::text(MAX_TEXT_BYTES));
        let language = |value: &Value| {
            let text = value_parser::text(MAX_TEXT_BYTES)(value)?.to_ascii_lowercase().replace('_', "-");
            is_locale(&text).then_some(text).ok_or_else(|| format!("must be a language such as \"de\", is {value}"))
        };
        let language = section.optional_or("language", BASE_LANGUAGE.to_owned(), &language);
        let zone_name = section.optional("time_zone", &value_parser::text(MAX_TEXT_BYTES));
        let zone = match zone_name.as_deref().map(TimeZone::get) {
            None => TimeZone::UTC,
            Some(Ok(zone)) => zone,
            Some(Err(_)) => {
                let name = zone_name.as_deref().unwrap_or_default();
                section.problem("time_zone", format!("{}, is {name:?}", zone_problem()));
                TimeZone::UTC
            }
        };
        let shop = shop_name.or(shop);
        let names_shop = shop.is_some();
        let shop = shop.unwrap_or_else(|| name.to_owned());
        let files = match &directory {
            None => Ok(TemplateFiles::built_in()),
            Some(directory) => read_directory(directory).map(|read| {
                for TemplateFault { file, problem, .. } in &read.warnings {
                    section.part_warning("templates", file, problem.clone());
                }
                read.files
            }),
        };
        if let Ok(files) = &files
            && !files.has_language(&language)
        {
            section.warning(
                "language",
                format!(
                    "is {language:?}, but there are no templates in this language: texts are in English without them"
                ),
            );
        }
        let options = TemplateOptions { shop, language, zone };
        let checked = files.and_then(|files| {
            let templates = Templates::new(&files, &options)?;
            // A test checks the built-in ones.
            let faults = if files == TemplateFiles::built_in() { Vec::new() } else { templates.check() };
            if faults.is_empty() { Ok(files) } else { Err(faults) }
        });
        let (files, fault) = match checked {
            Ok(files) => (files, None),
            Err(faults) => {
                faults.iter().for_each(|fault| report_fault(section, fault));
                let more = faults.len().checked_sub(2).map(|rest| format!("; faults in all: {}", rest + 2));
                let first = faults.first().map(ToString::to_string).unwrap_or_default();
                (TemplateFiles::built_in(), Some(first + &more.unwrap_or_default()))
            }
        };
        Some(TextSettings { directory, files, fault, options, zone_name, names_shop })
    }
}

/// Why there is no such time zone. UTC is known without the system's database.
fn zone_problem() -> &'static str {
    match jiff::tz::db().is_definitively_empty() {
        true => {
            "cannot be used: this system has no database of time zones; install it (on Debian: apt-get install tzdata), or set TZDIR to \
             its directory"
        }
        false => "must be a time zone that this system knows, such as \"Europe/Berlin\"",
    }
}

/// Only the first problem of a path is kept, so each has a path of its own.
fn report_fault(section: &Section<'_>, fault: &TemplateFault) {
    let TemplateFault { file, line, problem } = fault;
    let part = line.map_or_else(|| file.clone(), |line| format!("{file}:{line}"));
    section.deferred_problem("templates", &part, problem.clone());
}
