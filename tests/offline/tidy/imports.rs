//! Which modules a Rust source file names: in `use` declarations, groups included, and in paths in the code.
//!
//! A small tokenizer, not a parser: it knows comments, strings, `use` trees, inline modules and `#[cfg(test)]` items.

use std::collections::BTreeMap;

/// A path such as `crate::config::Config`, by its segments.
pub type ModulePath = Vec<String>;

/// What one file names.
#[derive(Debug, Default)]
pub struct Imports {
    /// Every path that begins with `crate`, `super` or `self`, absolute, without the leading `crate`.
    pub paths: Vec<ModulePath>,
    /// The names that the file's own `use` declarations bring into its scope, and their paths.
    pub names: BTreeMap<String, ModulePath>,
}

/// Reads the imports of the file of `module`, given by its segments below the crate (`["amqp", "connect"]`).
/// Items under `#[cfg(test)]` are ignored.
pub fn imports(module: &[String], source: &str) -> Imports {
    let tokens = without_tests(&tokens(source));
    let mut imports = Imports::default();
    // Inline modules, each with the depth of braces that it is closed at.
    let (mut inline, mut depth): (Vec<(String, usize)>, usize) = (Vec::new(), 0);
    let mut at = 0;
    while at < tokens.len() {
        let token = tokens[at].as_str();
        let scope: ModulePath = module.iter().cloned().chain(inline.iter().map(|(name, _)| name.clone())).collect();
        match token {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inline.retain(|(_, opened_at)| *opened_at <= depth);
            }
            "mod" if tokens.get(at + 2).is_some_and(|next| next == "{") => {
                depth += 1;
                inline.push((tokens[at + 1].clone(), depth));
                at += 2;
            }
            "use" if is_declaration(&tokens, at) => {
                let end = tokens[at..].iter().position(|token| token == ";").map_or(tokens.len(), |found| at + found);
                for (path, name) in use_tree(&tokens[at + 1..end]) {
                    // Other crates, and items of this file, have no absolute path here.
                    let Some(path) = absolute(&scope, &path).or_else(|| relative(&scope, &path)) else { continue };
                    if inline.is_empty() {
                        imports.names.insert(name, path.clone());
                    }
                    imports.paths.push(path);
                }
                at = end;
            }
            "crate" | "super" | "self" if tokens.get(at + 1).is_some_and(|next| next == "::") => {
                let mut path = vec![token.to_owned()];
                while tokens.get(at + 1).is_some_and(|next| next == "::")
                    && tokens.get(at + 2).is_some_and(|next| is_identifier(next))
                {
                    path.push(tokens[at + 2].clone());
                    at += 2;
                }
                imports.paths.extend(absolute(&scope, &path));
            }
            _ => {}
        }
        at += 1;
    }
    imports
}

/// `use` also stands in `impl Trait + use<'a>`.
fn is_declaration(tokens: &[String], at: usize) -> bool {
    tokens.get(at + 1).is_some_and(|next| next != "<")
}

/// All paths of a `use` tree, each with the name it brings into scope.
fn use_tree(tokens: &[String]) -> Vec<(ModulePath, String)> {
    let mut prefix: ModulePath = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "::" => {}
            "{" => {
                let group = &tokens[at + 1..tokens.len() - 1];
                let branches = split_at_commas(group).into_iter().flat_map(use_tree);
                return branches
                    .map(|(path, name)| {
                        let path = prefix.iter().cloned().chain(path.into_iter().filter(|word| word != "self"));
                        (path.collect(), name)
                    })
                    .collect();
            }
            "as" => return vec![(prefix, tokens[at + 1].clone())],
            word => prefix.push(word.to_owned()),
        }
    }
    let name = prefix.last().cloned().unwrap_or_default();
    vec![(prefix, name)]
}

/// The branches of a group: separated by commas outside of inner groups.
fn split_at_commas(tokens: &[String]) -> Vec<&[String]> {
    let (mut branches, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 0 => {
                branches.push(&tokens[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    branches.push(&tokens[start..]);
    branches.retain(|branch| !branch.is_empty());
    branches
}

/// A path without its leading `crate`, `self` and `super`s; `None` if it begins with none of them.
fn absolute(scope: &[String], path: &[String]) -> Option<ModulePath> {
    let mut base = match path.first()?.as_str() {
        "crate" => Vec::new(),
        "self" | "super" => scope.to_vec(),
        _ => return None,
    };
    for word in path {
        match word.as_str() {
            "crate" | "self" => {}
            "super" => drop(base.pop()),
            word => base.push(word.to_owned()),
        }
    }
    Some(base)
}

/// `pub use model::Config` in `config/mod.rs` names a child of `config`.
fn relative(scope: &[String], path: &[String]) -> Option<ModulePath> {
    let is_crate = ["std", "core", "alloc"].contains(&path.first()?.as_str());
    (!is_crate).then(|| scope.iter().chain(path).cloned().collect())
}

fn is_identifier(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// Leaves out each item that `#[cfg(test)]` stands before.
fn without_tests(tokens: &[String]) -> Vec<String> {
    const ATTRIBUTE: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if !tokens[at..].iter().zip(ATTRIBUTE).all(|(token, expected)| token == expected)
            || tokens.len() < at + ATTRIBUTE.len()
        {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        // An item ends with a semicolon, or with the brace that closes its body.
        let mut depth = 0;
        while at < tokens.len() {
            match tokens[at].as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            let is_end = depth == 0 && (tokens[at] == ";" || tokens[at] == "}");
            at += 1;
            if is_end {
                break;
            }
        }
    }
    kept
}

/// Identifiers, `::`, and single characters. Comments are left out, and so is what strings and characters contain.
fn tokens(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let starts_with = |at: usize, text: &str| text.chars().enumerate().all(|(n, c)| chars.get(at + n) == Some(&c));
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < chars.len() {
        let c = chars[at];
        if starts_with(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if starts_with(at, "/*") {
            while at < chars.len() && !starts_with(at, "*/") {
                at += 1;
            }
            at += 2;
        } else if let Some(hashes) = raw_string(&chars[at..]) {
            let end = format!("\"{}", "#".repeat(hashes));
            at += 1;
            while chars[at] != '"' {
                at += 1;
            }
            at += 1;
            while at < chars.len() && !starts_with(at, &end) {
                at += 1;
            }
            at += end.len();
        } else if c == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if c == '\'' && chars.get(at + 1) == Some(&'\\') {
            at += 3;
            while at < chars.len() && chars[at] != '\'' {
                at += 1;
            }
            at += 1;
        } else if c == '\'' && chars.get(at + 2) == Some(&'\'') {
            at += 3;
        } else if c.is_alphabetic() || c == '_' {
            let start = at;
            while chars.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_') {
                at += 1;
            }
            tokens.push(chars[start..at].iter().collect());
        } else if starts_with(at, "::") {
            tokens.push("::".to_owned());
            at += 2;
        } else {
            if !c.is_whitespace() {
                tokens.push(c.to_string());
            }
            at += 1;
        }
    }
    tokens
}

/// The number of `#` of a raw string that begins here, such as `r#"…"#` or `br"…"`.
fn raw_string(chars: &[char]) -> Option<usize> {
    let chars = chars.strip_prefix(&['b']).unwrap_or(chars).strip_prefix(&['r'])?;
    let hashes = chars.iter().take_while(|c| **c == '#').count();
    (chars.get(hashes) == Some(&'"')).then_some(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &str) -> Vec<String> {
        let module = ["amqp".to_owned(), "publish".to_owned(), "owner".to_owned()];
        imports(&module, source).paths.iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn groups_and_nested_groups_are_seen() {
        let source = "use crate::{config::{self, Config as Settings}, domain, message::{Delivery, names}};";
        assert_eq!(paths(source), ["config", "config::Config", "domain", "message::Delivery", "message::names"]);
    }

    #[test]
    fn super_is_resolved_however_often_it_is_repeated() {
        assert_eq!(
            paths("use super::super::frame::Frame; use super::list;"),
            ["amqp::frame::Frame", "amqp::publish::list"]
        );
        assert_eq!(paths("mod inner { use super::super::list; }"), ["amqp::publish::list"]);
    }

    #[test]
    fn paths_in_the_code_are_seen() {
        assert_eq!(
            paths("fn f() -> crate::config::Config { crate::domain::new() }"),
            ["config::Config", "domain::new"]
        );
    }

    #[test]
    fn tests_comments_and_strings_name_nothing() {
        let source = r##"
            // use crate::admin;
            /* crate::admin */
            const TEXT: &str = "crate::admin";
            const RAW: &str = r#"" crate::admin"#;
            const QUOTE: char = '"'; const OTHER: char = '\'';
            #[cfg(test)]
            use crate::admin;
            #[cfg(test)]
            mod tests { use crate::admin; fn f() { if true {} } }
            use crate::config;
        "##;
        assert_eq!(paths(source), ["config"]);
    }

    #[test]
    fn a_name_is_known_with_its_path() {
        let module = ["config".to_owned()];
        let imports = imports(&module, "mod model; pub use model::{Config, Queue as Q}; use std::fmt;");
        assert_eq!(imports.names["Config"].join("::"), "config::model::Config");
        assert_eq!(imports.names["Q"].join("::"), "config::model::Queue");
        assert!(!imports.names.contains_key("fmt"));
    }
}
