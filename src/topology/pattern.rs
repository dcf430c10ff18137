//! Topic patterns: which are valid, what they match, and whether two of them overlap. Pure.

/// The longest routing key and the longest pattern: both are AMQP short strings.
pub const MAX_KEY_BYTES: usize = 255;

/// The problem with a topic pattern, or `None`. Stricter than RabbitMQ, for which `order*` is the literal word "order*"
/// and an empty word is a word: both are most likely mistakes.
pub fn problem(pattern: &str) -> Option<String> {
    if pattern.len() > MAX_KEY_BYTES {
        return Some(format!("must be at most {MAX_KEY_BYTES} bytes, is {}", pattern.len()));
    }
    for word in pattern.split('.') {
        if word.is_empty() {
            return Some("must be words separated by single dots".to_owned());
        }
        if word.len() > 1 && word.contains(['*', '#']) {
            return Some(format!("must use \"*\" and \"#\" as whole words only, has {word:?}"));
        }
        if word.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Some("must not contain spaces or control characters".to_owned());
        }
    }
    None
}

/// Whether a pattern matches a routing key: `*` stands for one word, `#` for any number of them.
pub fn matches(pattern: &str, key: &str) -> bool {
    // The words of a key are literal, even `*` and `#`.
    overlap(&words(pattern), &key.split('.').map(Word::Literal).collect::<Vec<_>>())
}

/// Whether some routing key matches both patterns.
pub fn overlaps(a: &str, b: &str) -> bool {
    overlap(&words(a), &words(b))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Word<'p> {
    Literal(&'p str),
    One,
    Any,
}

fn words(pattern: &str) -> Vec<Word<'_>> {
    let word = |word| match word {
        "*" => Word::One,
        "#" => Word::Any,
        literal => Word::Literal(literal),
    };
    pattern.split('.').map(word).collect()
}

/// Dynamic programming, from the ends backwards: `row[j]` is whether some routing key matches both `a` from word i on and
/// `b` from word j on, and `next_row` is the same for i + 1. At most 128 × 128 cells.
fn overlap(a: &[Word<'_>], b: &[Word<'_>]) -> bool {
    let mut next_row = vec![false; b.len() + 1];
    for i in (0..=a.len()).rev() {
        let mut row = vec![false; b.len() + 1];
        for j in (0..=b.len()).rev() {
            row[j] = match (a.get(i), b.get(j)) {
                (None, None) => true,
                (Some(Word::Any), Some(Word::Any)) => next_row[j] || row[j + 1],
                (Some(Word::Any), other) => next_row[j] || (other.is_some() && row[j + 1]),
                (other, Some(Word::Any)) => row[j + 1] || (other.is_some() && next_row[j]),
                (Some(Word::Literal(x)), Some(Word::Literal(y))) => x == y && next_row[j + 1],
                (Some(_), Some(_)) => next_row[j + 1],
                (None, Some(_)) | (Some(_), None) => false,
            };
        }
        next_row = row;
    }
    next_row[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_rabbitmq_matches() {
        for (pattern, key, expected) in [
            ("order.normal.*", "order.normal.eu", true),
            ("order.normal.*", "order.normal", false),
            ("order.normal.*", "order.normal.eu.berlin", false),
            ("order.priority.#", "order.priority", true),
            ("order.priority.#", "order.priority.a.b", true),
            ("order.priority.#", "order.normal.a", false),
            ("#", "anything.at.all", true),
            ("#.end", "end", true),
            ("*.#.*", "one", false),
            ("*.#.*", "one.two", true),
            ("order.a", "order.*", false),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn overlap_is_found_and_symmetric() {
        for (a, b, expected) in [
            ("order.normal.*", "order.priority.#", false),
            ("order.#", "order.normal.*", true),
            ("order.*.eu", "order.normal.*", true),
            ("a.#.z", "a.b.#", true),
            ("a.#.z", "#.y", false),
            ("#", "#", true),
            ("*", "#.#", true),
            ("*", "*.*", false),
        ] {
            assert_eq!(overlaps(a, b), expected, "{a} {b}");
            assert_eq!(overlaps(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn a_pattern_is_words_and_wildcards() {
        for good in ["order.normal.*", "#", "a", "order.*.x.#", "Größe.1"] {
            assert_eq!(problem(good), None, "{good}");
        }
        for bad in ["", "order.", ".order", "a..b", "order.n*", "order. x", "#*"] {
            assert!(problem(bad).is_some(), "{bad:?}");
        }
        assert!(problem(&"a".repeat(256)).is_some());
    }
}
