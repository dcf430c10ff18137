//! The sources of templates: `<language>/<event>.txt`, `.html` and `.short.txt`, a layout for each language, and parts that others
//! include (`_order.txt`); and which names of files are templates. Pure, and never renders one.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::BASE_LANGUAGE;

const LAYOUTS: [&str; 2] = ["layout.txt", "layout.html"];

macro_rules! built_in {
    ($($name:literal),+ $(,)?) => {
        /// The templates that come with orderd.
        const BUILT_IN: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../../config/templates/", $name)))),+];
    };
}

built_in![
    "de/_order.html",
    "de/_order.txt",
    "de/cancelled.html",
    "de/cancelled.short.txt",
    "de/cancelled.txt",
    "de/failed.html",
    "de/failed.short.txt",
    "de/failed.txt",
    "de/layout.html",
    "de/layout.txt",
    "de/operator.html",
    "de/operator.short.txt",
    "de/operator.txt",
    "de/processed.html",
    "de/processed.short.txt",
    "de/processed.txt",
    "en/_order.html",
    "en/_order.txt",
    "en/cancelled.html",
    "en/cancelled.short.txt",
    "en/cancelled.txt",
    "en/failed.html",
    "en/failed.short.txt",
    "en/failed.txt",
    "en/layout.html",
    "en/layout.txt",
    "en/operator.html",
    "en/operator.short.txt",
    "en/operator.txt",
    "en/processed.html",
    "en/processed.short.txt",
    "en/processed.txt",
];

/// The templates of one channel, by name: `de/processed.txt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::notify) struct TemplateFiles(BTreeMap<String, String>);

impl TemplateFiles {
    /// Those that come with orderd.
    pub fn built_in() -> Self {
        TemplateFiles(BUILT_IN.iter().map(|(name, source)| ((*name).to_owned(), (*source).to_owned())).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, source)| (name.as_str(), source.as_str()))
    }

    /// The templates that differ from the built-in ones, each with a digest of its content, by which a reload finds out whether it has
    /// changed; "none" for a built-in one that is not used.
    pub fn changed(&self) -> BTreeMap<String, String> {
        let built_in = TemplateFiles::built_in();
        let names: BTreeSet<&String> = self.0.keys().chain(built_in.0.keys()).collect();
        let changed = names.into_iter().filter(|name| self.0.get(*name) != built_in.0.get(*name));
        changed
            .map(|name| (name.clone(), self.0.get(name).map_or_else(|| "none".to_owned(), |text| digest(text))))
            .collect()
    }

    /// Whether there are templates in this language, or in the same one without its region.
    pub fn has_language(&self, locale: &str) -> bool {
        let locale = locale.to_ascii_lowercase().replace('_', "-");
        let general = locale.split('-').next().unwrap_or_default();
        let is_text = |name: &str| !name.ends_with("/layout.txt") && !name.ends_with("/layout.html");
        self.0
            .keys()
            .filter(|name| is_text(name))
            .any(|name| name.split_once('/').is_some_and(|(language, _)| language == locale || language == general))
    }

    /// Whether there is a template of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Adds a template, or replaces it.
    pub fn insert(&mut self, name: String, source: String) {
        self.0.insert(name, source);
    }

    /// Removes a template.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// A language without a layout of its own has the English one.
    pub fn add_layouts(&mut self) {
        let languages: BTreeSet<String> =
            self.0.keys().filter_map(|name| name.split_once('/')).map(|(language, _)| language.to_owned()).collect();
        for language in languages {
            for layout in LAYOUTS {
                let base = self.0[&format!("{BASE_LANGUAGE}/{layout}")].clone();
                self.0.entry(format!("{language}/{layout}")).or_insert(base);
            }
        }
    }
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).fold(String::new(), |mut digest, byte| {
        write!(digest, "{byte:02x}").expect("writing to a string does not fail");
        digest
    })
}

/// Whether a text may be the name of an event: it is part of a template's name.
pub(super) fn is_event(event: &str) -> bool {
    (1..=64).contains(&event.len())
        && event.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
        && event != "layout"
        && !event.starts_with('_')
}

/// Whether it is a part of other templates, which they include: its name begins with an underscore.
pub(super) fn is_part(name: &str) -> bool {
    let file = name.rsplit_once('/').map_or(name, |(_, file)| file);
    event_of(file).and_then(|part| part.strip_prefix('_')).is_some_and(is_event)
}

/// The event, or `layout`, of a file that is a template.
pub(super) fn event_of(file: &str) -> Option<&str> {
    [".short.txt", ".txt", ".html"].iter().find_map(|ending| file.strip_suffix(ending))
}

/// Whether a file is a template.
pub(super) fn is_template(file: &str) -> bool {
    event_of(file).is_some_and(|event| is_event(event) || is_part(file) || LAYOUTS.contains(&file))
}

/// Whether the template is the text of an e-mail.
pub(super) fn needs_subject(name: &str) -> bool {
    name.ends_with(".txt") && !name.ends_with(".short.txt") && !name.ends_with("/layout.txt") && !is_part(name)
}
