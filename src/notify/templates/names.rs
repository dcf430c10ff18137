//! The names that a template uses, with their lines: filters, tests, other templates, and the variables that it sets itself.
//! They are found in parts too that no sample reaches. Pure.
//!
//! It knows just enough of the syntax for that, and never decides whether a name exists.

/// One name, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name<'s> {
    pub kind: NameKind,
    pub text: &'s str,
    /// From 1.
    pub line: usize,
}

/// What a name is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameKind {
    /// `| name`, or `{% filter name %}`
    Filter,
    /// `is name`
    Test,
    /// `{% include "name" %}`, and other tags that must find it
    Template,
    /// `{% autoescape … %}`
    Escaping,
    /// Set by the template itself: a loop, `set`, `with` or `macro`.
    Local,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token<'s> {
    Word(&'s str),
    Text(&'s str),
    Sign(char),
}

/// Every name in this source.
pub(super) fn names(source: &str) -> Vec<Name<'_>> {
    let mut names = Vec::new();
    let (mut at, mut is_raw) = (0, false);
    while let Some(found) = source[at..].find('{') {
        let start = at + found;
        let (end, is_tag) = match source.as_bytes().get(start + 1) {
            Some(b'#') if !is_raw => {
                at = source[start..].find("#}").map_or(source.len(), |end| start + end + 2);
                continue;
            }
            Some(b'{') if !is_raw => ("}}", false),
            Some(b'%') => ("%}", true),
            _ => {
                at = start + 1;
                continue;
            }
        };
        let (tokens, next) = tokens(source, start + 2, end);
        let words: Vec<Token<'_>> = tokens.iter().map(|(token, _)| *token).collect();
        match words.first() {
            Some(Token::Word("raw")) if is_tag && !is_raw => is_raw = true,
            Some(Token::Word("endraw")) if is_tag => is_raw = false,
            _ if is_raw => {}
            _ => {
                let line = |offset: usize| source[..offset].matches('\n').count() + 1;
                let found = found_in(&words, is_tag);
                names.extend(found.map(|(index, kind, text)| Name { kind, text, line: line(tokens[index].1) }));
            }
        }
        at = next;
    }
    names
}

/// The tokens up to this end, each with its offset, and the offset after the end.
fn tokens<'s>(source: &'s str, start: usize, end: &str) -> (Vec<(Token<'s>, usize)>, usize) {
    let mut tokens = Vec::new();
    let mut at = start;
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        if rest.starts_with(end) {
            return (tokens, at + end.len());
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if c == '"' || c == '\'' {
            let mut escaped = false;
            let close = rest[1..].char_indices().find(|(_, next)| {
                let closes = *next == c && !escaped;
                escaped = *next == '\\' && !escaped;
                closes
            });
            let length = close.map_or(rest.len(), |(index, _)| index + 2);
            tokens.push((Token::Text(rest[1..length].trim_end_matches(c)), at));
            length
        } else if is_word(c) {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            tokens.push((Token::Word(&rest[..length]), at));
            length
        } else {
            if !c.is_whitespace() && !matches!(c, '-' | '+') {
                tokens.push((Token::Sign(c), at));
            }
            c.len_utf8()
        };
        at += length;
    }
    (tokens, source.len())
}

/// The names in one tag or expression, each with the index of its token.
fn found_in<'t, 's>(tokens: &'t [Token<'s>], is_tag: bool) -> impl Iterator<Item = (usize, NameKind, &'s str)> + 't {
    let tag = match tokens.first() {
        Some(Token::Word(tag)) if is_tag => *tag,
        _ => "",
    };
    let end_of_locals = match tag {
        "for" => tokens.iter().position(|token| *token == Token::Word("in")).unwrap_or(tokens.len()),
        "set" | "with" | "macro" | "call" | "import" | "from" => tokens.len(),
        _ => 0,
    };
    let may_be_missing = tokens.contains(&Token::Word("missing"));
    tokens.iter().enumerate().filter_map(move |(index, token)| {
        let before = |count: usize| index.checked_sub(count).map(|index| tokens[index]);
        let kind = match token {
            Token::Text(_)
                if index == 1 && matches!(tag, "include" | "extends" | "import" | "from") && !may_be_missing =>
            {
                NameKind::Template
            }
            Token::Word("autoescape") if index == 0 && is_tag => NameKind::Escaping,
            Token::Word("not") => return None,
            Token::Word(_) if before(1) == Some(Token::Sign('|')) => NameKind::Filter,
            Token::Word(_) if index == 1 && tag == "filter" => NameKind::Filter,
            Token::Word(_) if before(1) == Some(Token::Word("is")) => NameKind::Test,
            Token::Word(_) if before(1) == Some(Token::Word("not")) && before(2) == Some(Token::Word("is")) => {
                NameKind::Test
            }
            Token::Word(_) if index > 0 && index < end_of_locals => NameKind::Local,
            Token::Word(_) | Token::Text(_) | Token::Sign(_) => return None,
        };
        match token {
            Token::Word(text) | Token::Text(text) => Some((index, kind, *text)),
            Token::Sign(_) => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_every_part_of_a_template_and_in_no_text_or_comment() {
        let source = "{# | a #}{{ '| b' ~ x|upper | money(\"|c\") }}\n{% if x is not odd and y is defined %}{% raw %}{{ z | d }}\n\
            {% endraw %}{% endif %}{% include 'p.txt' %}{% include 'q.txt' ignore missing %}\n{%- for a, b in c | items -%}{% endfor %}\
            {% filter title %}| e{% endfilter %}{ | f{% autoescape false %}";
        let found: Vec<(NameKind, &str, usize)> =
            names(source).into_iter().map(|name| (name.kind, name.text, name.line)).collect();
        assert_eq!(
            found,
            [
                (NameKind::Filter, "upper", 1),
                (NameKind::Filter, "money", 1),
                (NameKind::Test, "odd", 2),
                (NameKind::Test, "defined", 2),
                (NameKind::Template, "p.txt", 3),
                (NameKind::Local, "a", 4),
                (NameKind::Local, "b", 4),
                (NameKind::Filter, "items", 4),
                (NameKind::Filter, "title", 4),
                (NameKind::Escaping, "autoescape", 4),
            ]
        );
        for broken in ["{{", "{% if '", "{#", "{{ \"\\", "é{{ é|é", "{% for"] {
            names(broken);
        }
    }
}
