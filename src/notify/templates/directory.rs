//! A directory of templates, which replace and extend those that come with orderd. Reads files, and never renders one.
//!
//! Files that are not used although they look like templates are named with what to do, so that no template is missing without
//! anybody noticing. Hidden files, backups of editors and other files are skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::TemplateFiles;
use super::fault::TemplateFault;
use super::source::{event_of, is_event, is_part, is_template, needs_subject};
use crate::domain::is_locale;
use crate::files::read_limited;

/// The most files of a directory of templates.
const MAX_FILES: usize = 256;
/// The longest file, in bytes.
const MAX_FILE_BYTES: usize = 64 * 1024;
/// The endings, in lower case, of files that were probably meant as templates.
const SIMILAR_ENDINGS: [&str; 11] =
    [".txt", ".html", ".htm", ".text", ".j2", ".jinja", ".jinja2", ".tmpl", ".tpl", ".md", ".mjml"];
/// The endings of files that editors and administrators leave: backups and notes.
const UNNOTICED_ENDINGS: [&str; 5] = ["~", ".bak", ".orig", ".swp", ".old"];

/// The templates of a channel that has a directory.
#[derive(Debug)]
pub(in crate::notify) struct TemplateDirectory {
    /// The built-in templates, with those of the directory instead of and besides them.
    pub files: TemplateFiles,
    /// What is not used, and what to do.
    pub warnings: Vec<TemplateFault>,
}

/// Reads a directory. Blocks on the disk.
///
/// # Errors
/// What cannot be read.
pub(in crate::notify) fn read_directory(directory: &Path) -> Result<TemplateDirectory, Vec<TemplateFault>> {
    let mut reading = Reading::default();
    if let Err(error) = reading.read_root(directory) {
        reading.faults.push(TemplateFault::new("", None, &format!("cannot read {directory:?}: {error}")));
    }
    if reading.faults.is_empty() { Ok(reading.merged()) } else { Err(reading.faults) }
}

#[derive(Default)]
struct Reading {
    /// By name: `de/processed.txt`.
    sources: BTreeMap<String, String>,
    warnings: Vec<TemplateFault>,
    faults: Vec<TemplateFault>,
}

impl Reading {
    fn read_root(&mut self, directory: &Path) -> io::Result<()> {
        let mut languages: BTreeMap<String, String> = BTreeMap::new();
        for (name, path) in entries(directory)? {
            let language = name.to_ascii_lowercase().replace('_', "-");
            if !path.is_dir() {
                if is_similar(&name) {
                    let place = format!("en/{}", name.to_ascii_lowercase());
                    self.warn(&name, &format!("is not used: move it to the folder of its language, such as {place:?}"));
                }
            } else if !is_locale(&name) {
                if entries(&path)?.iter().any(|(file, _)| is_similar(file)) {
                    self.warn(
                        &name,
                        "is not used: the name of a folder must be a language, such as \"de\" or \"de-at\"",
                    );
                }
            } else if let Some(other) = languages.insert(language.clone(), name.clone()) {
                self.warn(&name, &format!("is the same language as {other:?}: keep one of the two folders"));
            } else {
                self.read_language(&language, &path)?;
            }
        }
        Ok(())
    }

    fn read_language(&mut self, language: &str, directory: &Path) -> io::Result<()> {
        for (file, path) in entries(directory)? {
            let name = format!("{language}/{file}");
            if path.is_dir() {
                if entries(&path)?.iter().any(|(file, _)| is_similar(file)) {
                    self.warn(
                        &name,
                        "is not used: the files of a language are in its folder, not in another one below it",
                    );
                }
            } else if is_template(&file) {
                if self.sources.len() == MAX_FILES {
                    return Err(io::Error::other(format!("there are more than {MAX_FILES} templates")));
                }
                match read_template(&path) {
                    Ok(source) => drop(self.sources.insert(name, source)),
                    Err(error) => self.faults.push(TemplateFault::new(&name, None, &error.to_string())),
                }
            } else if !is_unnoticed(&file) {
                // There is nothing else to put into the folder of a language.
                self.warn(&name, &format!("is not used: {}", better_name(&file)));
            }
        }
        Ok(())
    }

    fn warn(&mut self, file: &str, problem: &str) {
        self.warnings.push(TemplateFault::new(file, None, problem));
    }

    /// Puts the templates in the place of the built-in ones. The text and the HTML of an e-mail belong together: a text of the
    /// directory never goes with a built-in HTML part that says something else.
    fn merged(mut self) -> TemplateDirectory {
        let mut files = TemplateFiles::built_in();
        let built_in = TemplateFiles::built_in();
        let texts: BTreeSet<String> = self.sources.keys().filter(|name| needs_subject(name)).cloned().collect();
        for text in &texts {
            let html = text.replace(".txt", ".html");
            if built_in.has(&html) && !self.sources.contains_key(&html) {
                files.remove(&html);
                let problem = format!(
                    "replaces the text of an e-mail whose HTML part would still be the built-in one, so the e-mail has no HTML part: \
                     add {html:?}, empty if it is to have none"
                );
                self.warn(text, &problem);
            }
        }
        for (name, source) in std::mem::take(&mut self.sources) {
            let text = name.strip_suffix(".html").map(|event| format!("{event}.txt"));
            let is_layout = name.ends_with("/layout.html") || is_part(&name);
            if let Some(text) = text.filter(|text| !is_layout && !texts.contains(text)) {
                let problem = match built_in.has(&text) {
                    true => format!(
                        "replaces the HTML part of an e-mail whose text is still the built-in one: add {text:?}"
                    ),
                    false => format!("is not used: an e-mail needs a text, so add {text:?}"),
                };
                self.warn(&name, &problem);
            }
            if name.ends_with(".html") && !is_layout && source.trim().is_empty() {
                files.remove(&name);
            } else {
                files.insert(name, source);
            }
        }
        files.add_layouts();
        TemplateDirectory { files, warnings: self.warnings }
    }
}

/// The entries of a directory with their names, without hidden ones, sorted.
fn entries(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries: Vec<fs::DirEntry> = fs::read_dir(directory)?.collect::<io::Result<_>>()?;
    let named = entries.into_iter().map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
    let mut named: Vec<(String, PathBuf)> = named.filter(|(name, _)| !name.starts_with('.')).collect();
    named.sort();
    Ok(named)
}

/// Whether the name is that of a template, or nearly.
fn is_similar(file: &str) -> bool {
    let name = file.to_lowercase();
    !is_unnoticed(file) && SIMILAR_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Whether it was certainly not meant as a template.
fn is_unnoticed(file: &str) -> bool {
    let name = file.to_lowercase();
    name.starts_with("readme") || UNNOTICED_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// What the file should be called.
fn better_name(file: &str) -> String {
    let name = file.to_lowercase();
    if name == "layout.short.txt" {
        return "only the texts of e-mails have a layout".to_owned();
    }
    let event = event_of(file).or_else(|| event_of(&name));
    match event {
        Some(event) if is_event(&event.to_lowercase()) => format!("rename it to {name:?}"),
        Some(_) => "the name of an event has at most 64 lower-case letters, digits, \"_\" and \"-\"".to_owned(),
        None => "the names of templates end with \".txt\", \".html\" or \".short.txt\"".to_owned(),
    }
}

fn read_template(path: &Path) -> io::Result<String> {
    let bytes = read_limited(path, MAX_FILE_BYTES)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it is longer than {MAX_FILE_BYTES} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))?;
    Ok(text.replace("\r\n", "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[&str]) -> TemplateDirectory {
        let directory = tempfile::tempdir().unwrap();
        for name in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "Subject: x\n\ny").unwrap();
        }
        read_directory(directory.path()).unwrap()
    }

    #[test]
    fn a_file_that_would_be_ignored_is_named_with_what_to_do() {
        for (file, named, action) in [
            ("processed.txt", "processed.txt", "\"en/processed.txt\""),
            ("de/Shipped.txt", "de/Shipped.txt", "\"shipped.txt\""),
            ("de/shipped.TXT", "de/shipped.TXT", "\"shipped.txt\""),
            ("de/my order.txt", "de/my order.txt", "lower-case"),
            ("de/shipped.htm", "de/shipped.htm", "\".html\""),
            ("de/shipped.html.j2", "de/shipped.html.j2", "\".html\""),
            ("de/shipped.html", "de/shipped.html", "\"de/shipped.txt\""),
            ("de/layout.short.txt", "de/layout.short.txt", "layout"),
            ("de/processed", "de/processed", "\".html\""),
            ("xx/foo.md", "xx/foo.md", "\".html\""),
            ("german/foo.md", "german", "language"),
            ("de/mails/processed.txt", "de/mails", "below"),
            ("to-customers/processed.txt", "to-customers", "language"),
            ("en/processed.txt", "en/processed.txt", "\"en/processed.html\""),
            ("en/processed.html", "en/processed.html", "\"en/processed.txt\""),
        ] {
            let warnings = read(&[file]).warnings;
            assert!(
                matches!(&warnings[..], [only] if only.file == named && only.problem.contains(action)),
                "{file}: {warnings:?}"
            );
        }
        assert_eq!(read(&["de_AT/processed.short.txt", "de-at/failed.short.txt"]).warnings.len(), 1);
        let unnoticed = [
            "README.md",
            "logo.png",
            ".processed.txt.swp",
            "..data/processed.txt",
            "en/processed.txt~",
            "de/README.md",
            "en/layout.html",
            "en/_order.html",
            "fr/_footer.txt",
            "fr/shipped.txt",
            "fr/shipped.html",
            "fr/processed.short.txt",
        ];
        assert_eq!(read(&unnoticed).warnings, Vec::new());
    }

    #[test]
    fn a_replaced_text_never_goes_with_a_built_in_html_part_that_says_something_else() {
        assert!(!read(&["en/processed.txt"]).files.has("en/processed.html"));
        assert!(read(&["en/processed.txt", "en/processed.html"]).files.has("en/processed.html"));
        assert!(read(&["en/processed.short.txt", "en/layout.txt"]).files.has("en/processed.html"));
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("en")).unwrap();
        fs::write(directory.path().join("en/processed.txt"), "Subject: x\n\ny").unwrap();
        fs::write(directory.path().join("en/processed.html"), "\n").unwrap();
        let read = read_directory(directory.path()).unwrap();
        assert!(!read.files.has("en/processed.html") && read.warnings.is_empty(), "{:?}", read.warnings);
    }
}
