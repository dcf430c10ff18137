//! The documentation agrees with the program: all links resolve, and the reference pages are complete.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use orderd::domain::OrderDocument;
use orderd::formats::Format;
use orderd::reconcile::FindingKind;

/// Longest README, in lines.
const README_LINES: usize = 150;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// README, CHANGELOG, the page about the examples and every page below docs/.
fn pages() -> Vec<PathBuf> {
    let mut pages = ["README.md", "CHANGELOG.md", "examples/README.md"].map(|page| root().join(page)).to_vec();
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { pages.push(path) }
        }
    }
    pages
}

/// The anchors that GitHub generates for a page's headings.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
    headings.map(|heading| heading.to_lowercase().replace(|c| !kept(c), "").replace(' ', "-")).collect()
}

/// The targets of all Markdown links.
fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    for path in pages() {
        let page = fs::read_to_string(&path).unwrap();
        for link in links(&page).filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let found = target.exists()
                && anchor
                    .is_none_or(|anchor| anchors(&fs::read_to_string(&target).unwrap()).contains(&anchor.to_owned()));
            if !found {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_readme_stays_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= README_LINES, "{lines} lines; move text to docs/");
}

#[test]
fn the_readme_says_that_services_must_honour_the_idempotency_key() {
    let readme = read("README.md");
    let promise = readme.split("\n\n").find(|part| part.starts_with("**The promise.**")).expect("there is a promise");
    assert!(promise.contains("`Idempotency-Key`"), "{promise}");
}

/// The keys of the annotated default file by section, with `<name>` in place of a queue's or consumer's name.
fn default_keys() -> BTreeMap<String, Vec<String>> {
    let (mut keys, mut section) = (BTreeMap::<_, Vec<_>>::new(), String::new());
    for line in read("config/orderd.toml").lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let item = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
            let mut parts: Vec<_> = item.unwrap_or(name).split('.').collect();
            if let [first @ ("queues" | "consumers" | "formats" | "notify"), _, rest @ ..] = parts.as_slice() {
                parts = [&[*first, "<name>"], rest].concat();
            }
            let path = parts.join(".");
            section = if item.is_some() { format!("[{path}]") } else { path };
        } else if let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.contains(' ')) {
            keys.entry(section.clone()).or_default().push(key.to_owned());
        }
    }
    keys
}

#[test]
fn the_configuration_reference_lists_every_key_in_its_section() {
    let reference = read("docs/reference/config.md");
    let keys = default_keys();
    assert!(keys.len() > 10, "{keys:?}");
    for (section, keys) in keys {
        let heading = format!("`[{section}]`");
        let part = reference.split("\n##").find(|part| part.lines().next().is_some_and(|line| line.contains(&heading)));
        let part = part.unwrap_or_else(|| panic!("no heading for {heading}"));
        for key in keys {
            let row = [format!("\n| `{key}` |"), format!("\n| `{section}.{key}` |")];
            assert!(row.iter().any(|row| part.contains(row)), "{heading} lacks {key}");
        }
    }
}

#[test]
fn the_formats_reference_shows_the_built_in_formats_as_they_are() {
    let reference = read("docs/reference/formats.md");
    let blocks: Vec<_> = reference.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    for name in ["shopify", "woocommerce"] {
        let block =
            blocks.iter().find(|block| block.starts_with(&format!("[formats.my_{name}]"))).expect("its TOML is shown");
        let format = load(block).formats.remove(&format!("my_{name}")).unwrap();
        assert_eq!(format.spec(), Format::built_in(name).unwrap().spec(), "{name}");
    }
    let example = blocks.iter().find(|block| block.starts_with("[formats.webshop]")).unwrap();
    assert!(load(example).formats.contains_key("webshop"));
    let with_charges = blocks.iter().find(|block| block.starts_with("[formats.with_charges]")).unwrap();
    let order =
        r#"{"id": "a", "product": "Pen", "quantity": 2, "price": 5, "shipping": 3, "discount": 1, "total": 12}"#;
    let format = &load(with_charges).formats["with_charges"];
    let Ok(OrderDocument::Placed(order)) = format.read(order, None) else { panic!("it is an order") };
    assert_eq!(order.check().unwrap().total.to_string(), "12");
}

#[test]
fn the_commented_format_of_the_default_file_is_valid() {
    let file = read("config/orderd.toml");
    let commented =
        file.lines().skip_while(|line| *line != "#[formats.webshop]").take_while(|line| !line.starts_with('['));
    let lines = commented.filter_map(|line| line.strip_prefix('#').filter(|line| !line.starts_with(' ')));
    // A document has a list of items or a single product, and an item has a price or a total.
    let section: String =
        lines.filter(|line| !line.starts_with("total = \"line_")).map(|line| format!("{line}\n")).collect();
    let spec = load(&section).formats["webshop"].spec().unwrap().clone();
    assert!(spec.line.is_some() && spec.items.is_some() && spec.discount.is_some(), "{spec:?}");
}

/// Loads the default configuration with these further sections.
fn load(sections: &str) -> orderd::config::Config {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("{}\n{sections}", read("config/orderd.toml"))).unwrap();
    let sources = orderd::config::Sources { file: Some(file.path().to_owned()), ..orderd::handlers::sources() };
    orderd::config::Config::load(&sources).unwrap_or_else(|error| panic!("{error}")).config
}

#[test]
fn the_findings_reference_lists_every_kind() {
    let reference = read("docs/reference/findings.md");
    for kind in FindingKind::ALL {
        let name = format!("`{}`", kind.as_str());
        let row = reference.lines().find(|line| line.starts_with("| `") && line.contains(&name));
        let level = if kind.requires_action() { "error" } else { "warn" };
        assert!(row.is_some_and(|row| row.contains(&format!("| {level} |"))), "{name} at {level}");
    }
}

fn help(arguments: &[&str]) -> String {
    let output = crate::orderd().args(arguments).arg("--help").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_command_reference_lists_every_command_with_its_options() {
    let reference = read("docs/reference/cli.md");
    let help_text = help(&[]);
    let commands =
        help_text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<_> = commands
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.len() > 8, "{commands:?}");
    for command in commands {
        let heading = |line: &str| line.contains(&format!("`orderd {command}"));
        let part = reference.split("\n## ").find(|part| part.lines().next().is_some_and(heading));
        let part = part.unwrap_or_else(|| panic!("no heading for {command}"));
        let help_text = help(&[command]);
        let options = help_text.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
        let options = options.map(|word| word.trim_end_matches([',', '.', ';', ':'])).filter(|option| {
            option[2..].chars().all(|c| c.is_ascii_lowercase() || c == '-')
                && !["--config", "--set", "--help"].contains(option)
        });
        for option in options {
            assert!(part.contains(option), "{command} lacks {option}");
        }
    }
}

#[test]
fn the_command_reference_quotes_the_output_of_check() {
    let reference = read("docs/reference/cli.md");
    let block =
        reference.split("```\n").find(|block| block.starts_with("configuration  ")).expect("its output is quoted");
    let mut check = crate::orderd();
    let output =
        check.args(["check", "--config", "config/orderd.toml"]).current_dir(root()).env_clear().output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let stale: Vec<_> = block
        .lines()
        .filter(|line| line.trim() != "…" && !printed.lines().any(|printed| printed.trim_end() == line.trim_end()))
        .collect();
    assert!(stale.is_empty(), "{stale:#?}");
}

/// All source text, with string literals that span lines joined.
fn sources() -> String {
    let (mut text, mut folders) = (String::new(), vec![root().join("src")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { text.push_str(&fs::read_to_string(path).unwrap()) }
        }
    }
    text.split("\\\n").map(str::trim_start).collect()
}

#[test]
fn every_message_that_the_guides_explain_exists_in_the_source() {
    let (sources, mut unknown, mut count) = (sources(), Vec::new(), 0);
    for page in ["docs/operations/runbook.md", "docs/operations/security.md"] {
        let page = read(page);
        let tables = page.split("\n| ").skip(1).filter_map(|row| row.split(" | ").next());
        let quoted = tables.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>());
        for message in quoted.filter(|text| text.contains(' ')) {
            count += 1;
            // An ellipsis stands for a value, which may be in quotes.
            let parts: Vec<_> = message.split('…').map(|part| part.trim_matches('"').trim()).collect();
            if !parts.iter().all(|part| sources.contains(part)) {
                unknown.push(message);
            }
        }
    }
    assert!(count > 15, "{count}");
    assert!(unknown.is_empty(), "{unknown:#?}");
}
