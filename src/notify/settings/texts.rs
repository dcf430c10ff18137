//! The keys of a channel about its texts: the directory of templates, the shop's name, the language and the time zone. Reads and
//! renders the templates, and reports what is wrong with them.

use std::path::PathBuf;

use jiff::tz::TimeZone;

use super::MAX_TEXT_BYTES;
use crate::config::{Section, Value, value_parser};
use crate::domain::is_locale;
use crate::notify::templates::{
    BASE_LANGUAGE, TemplateFault, TemplateFiles, TemplateOptions, Templates, read_directory,
};

/// The templates of a channel.
#[derive(Debug, Clone)]
pub(in crate::notify) struct TextSettings {
    pub directory: Option<PathBuf>,
    pub files: TemplateFiles,
    pub options: TemplateOptions,
    pub(super) zone_name: Option<String>,
    /// Whether the channel itself says how the shop is called.
    pub(super) names_shop: bool,
}

impl TextSettings {
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
                section.problem("time_zone", "must be a time zone such as \"Europe/Berlin\"");
                TimeZone::UTC
            }
        };
        let shop = shop_name.or(shop);
        let names_shop = shop.is_some();
        let shop = shop.unwrap_or_else(|| name.to_owned());
        let options = TemplateOptions { shop, language, zone };
        let files = match &directory {
            None => Ok(TemplateFiles::built_in()),
            Some(directory) => read_directory(directory).map(|read| {
                for TemplateFault { file, problem, .. } in &read.warnings {
                    section.part_warning("templates", file, problem.clone());
                }
                read.files
            }),
        };
        let checked = files.and_then(|files| {
            let templates = Templates::new(&files, &options)?;
            // A test checks the built-in ones.
            let faults = if files == TemplateFiles::built_in() { Vec::new() } else { templates.check() };
            if faults.is_empty() { Ok(files) } else { Err(faults) }
        });
        match checked {
            Ok(files) => Some(TextSettings { directory, files, options, zone_name, names_shop }),
            Err(faults) => {
                for fault in faults {
                    report_fault(section, &fault);
                }
                None
            }
        }
    }
}

/// Only the first problem of a path is kept, so each has a path of its own.
fn report_fault(section: &Section<'_>, fault: &TemplateFault) {
    let TemplateFault { file, line, problem } = fault;
    match (file.as_str(), line) {
        ("", _) => section.problem("templates", problem.clone()),
        (file, None) => section.part_problem("templates", file, problem.clone()),
        (file, Some(line)) => section.part_problem("templates", &format!("{file}:{line}"), problem.clone()),
    }
}
