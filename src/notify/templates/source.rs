//! The files of templates: `<language>/<event>.txt`, `.html` and `.short.txt`, and a layout for each language. Reads files, and
//! never renders one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::BASE_LANGUAGE;
use super::fault::TemplateFault;
use crate::domain::is_locale;
use crate::files::read_limited;

/// The most files of a directory of templates.
const MAX_FILES: usize = 256;
/// The longest file, in bytes.
const MAX_FILE_BYTES: usize = 64 * 1024;
const LAYOUTS: [&str; 2] = ["layout.txt", "layout.html"];

macro_rules! built_in {
    ($($name:literal),+ $(,)?) => {
        /// The templates that come with orderd.
        const BUILT_IN: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../../config/templates/", $name)))),+];
    };
}

built_in![
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

    /// A fingerprint of all of them, by which a reload finds out whether one has changed.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (name, source) in &self.0 {
            for part in [name, source] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part.as_bytes());
            }
        }
        hash.finalize().iter().take(8).fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string does not fail");
            text
        })
    }

    /// A language without a layout of its own has the English one.
    fn add_layouts(&mut self) {
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

/// The built-in templates, with those of a directory instead of and besides them. Blocks on the disk.
///
/// # Errors
/// What cannot be read.
pub(in crate::notify) fn read_directory(directory: &Path) -> Result<TemplateFiles, Vec<TemplateFault>> {
    let mut files = TemplateFiles::built_in();
    let (mut faults, mut count) = (Vec::new(), 0);
    let mut read = |files: &mut TemplateFiles, language: &str, path: &Path| -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().into_owned();
            let name = format!("{}/{file}", language.to_ascii_lowercase().replace('_', "-"));
            if !is_template(&file) {
                continue;
            }
            count += 1;
            if count > MAX_FILES {
                return Err(io::Error::other(format!("there are more than {MAX_FILES} templates")));
            }
            match read_template(&entry.path()) {
                Ok(source) => drop(files.0.insert(name, source)),
                Err(error) => faults.push(TemplateFault::new(&name, None, &error.to_string())),
            }
        }
        Ok(())
    };
    let languages = || -> io::Result<Vec<(String, std::path::PathBuf)>> {
        let entries: Vec<fs::DirEntry> = fs::read_dir(directory)?.collect::<io::Result<_>>()?;
        let folders = entries.into_iter().map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
        Ok(folders.filter(|(name, path)| is_locale(name) && path.is_dir()).collect())
    };
    let found = languages()
        .and_then(|languages| languages.iter().try_for_each(|(language, path)| read(&mut files, language, path)));
    if let Err(error) = found {
        faults.push(TemplateFault::new("", None, &format!("cannot read {directory:?}: {error}")));
    }
    files.add_layouts();
    if faults.is_empty() { Ok(files) } else { Err(faults) }
}

fn read_template(path: &Path) -> io::Result<String> {
    let bytes = read_limited(path, MAX_FILE_BYTES)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it is longer than {MAX_FILE_BYTES} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))?;
    Ok(text.replace("\r\n", "\n"))
}

/// Whether a text may be the name of an event: it is part of a template's name.
pub(super) fn is_event(event: &str) -> bool {
    (1..=64).contains(&event.len())
        && event.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
        && event != "layout"
}

/// The event, or `layout`, of a file that is a template.
pub(super) fn event_of(file: &str) -> Option<&str> {
    [".short.txt", ".txt", ".html"].iter().find_map(|ending| file.strip_suffix(ending))
}

/// Editors leave other files.
fn is_template(file: &str) -> bool {
    event_of(file).is_some_and(|event| is_event(event) || LAYOUTS.contains(&file))
}

/// Whether the template is the text of an e-mail.
pub(super) fn needs_subject(name: &str) -> bool {
    name.ends_with(".txt") && !name.ends_with(".short.txt") && !name.ends_with("/layout.txt")
}
