//! JSON pointers (RFC 6901): parses them, and finds all values that a set of pointers names in one pass over a document.
//!
//! Pure. Values stay the text they are in the document, so that no number is ever converted. As an extension, `*` as a whole
//! segment stands for each element of a list, where a pointer may name several values.

use std::fmt;
use std::str::FromStr;

use serde_json::value::RawValue;

use crate::domain::{JsonError, list_items, object_values};

/// Longest pointer, in bytes.
pub const MAX_POINTER_BYTES: usize = 512;
/// Most segments of a pointer.
const MAX_SEGMENTS: usize = 16;
/// Most values that a pointer with `*` may name.
pub const MAX_VALUES: usize = 1_000;
/// The segment that stands for each element of a list.
const EACH: &str = "*";

/// A place in a document, or in one of its lists' elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    /// Without escapes.
    segments: Vec<String>,
}

/// The text is no pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PointerError {
    /// It does not begin with a slash.
    #[error("must begin with \"/\", such as \"/order/id\"")]
    NoSlash,
    /// It begins with a slash, although it is relative to an item.
    #[error("must not begin with \"/\": it is relative to the item, such as \"price\" or \"price/amount\"")]
    Slash,
    /// `~` is not followed by `0` or `1`.
    #[error("must write \"~\" as \"~0\" and \"/\" in a name as \"~1\"")]
    Escape,
    /// It names several values, where there can be one only.
    #[error(
        "must not contain \"*\" here: it stands for each element of a list, and only shipping, fees, tax and discount add up several"
    )]
    Each,
    /// It is too long.
    #[error("must have at most {MAX_SEGMENTS} segments and {MAX_POINTER_BYTES} bytes")]
    TooLong,
}

impl Pointer {
    /// A pointer that is relative to an item: without the first slash.
    ///
    /// # Errors
    /// [`PointerError`].
    pub fn relative(text: &str) -> Result<Self, PointerError> {
        if text.starts_with('/') { Err(PointerError::Slash) } else { Self::of_segments(text) }
    }

    fn of_segments(text: &str) -> Result<Self, PointerError> {
        let segments = text.split('/').map(unescaped).collect::<Result<Vec<_>, _>>()?;
        if segments.len() > MAX_SEGMENTS || text.len() > MAX_POINTER_BYTES {
            return Err(PointerError::TooLong);
        }
        Ok(Pointer { segments })
    }

    /// The pointer, if it names one value only.
    ///
    /// # Errors
    /// [`PointerError::Each`].
    pub fn to_one(self) -> Result<Self, PointerError> {
        if self.segments.iter().any(|segment| segment == EACH) { Err(PointerError::Each) } else { Ok(self) }
    }
}

fn unescaped(segment: &str) -> Result<String, PointerError> {
    let mut parts = segment.split('~');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (escaped, rest) = match part.as_bytes().first() {
            Some(b'0') => ('~', &part[1..]),
            Some(b'1') => ('/', &part[1..]),
            _ => return Err(PointerError::Escape),
        };
        text.push(escaped);
        text.push_str(rest);
    }
    Ok(text)
}

impl FromStr for Pointer {
    type Err = PointerError;

    fn from_str(text: &str) -> Result<Self, PointerError> {
        Self::of_segments(text.strip_prefix('/').ok_or(PointerError::NoSlash)?)
    }
}

/// The notation of an absolute pointer.
impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.segments.iter().try_for_each(|segment| write!(f, "/{}", segment.replace('~', "~0").replace('/', "~1")))
    }
}

/// Pointers as a tree, by which all their values are found together. Each pointer has a number: that of the call that added it.
#[derive(Debug, Clone, Default)]
pub(super) struct PointerTree {
    nodes: Node,
    count: usize,
}

#[derive(Debug, Clone, Default)]
struct Node {
    /// The numbers of the pointers that end here.
    ends: Vec<usize>,
    children: Vec<(String, Node)>,
}

/// The values of all pointers, by the pointers' numbers.
#[derive(Debug)]
pub(super) struct Found<'a> {
    values: Vec<Vec<&'a RawValue>>,
}

impl<'a> Found<'a> {
    /// The only value of a pointer, if the document has it.
    pub fn one(&self, number: usize) -> Option<&'a str> {
        self.values[number].first().map(|value| value.get())
    }

    /// All values of a pointer.
    pub fn all(&self, number: usize) -> impl Iterator<Item = &'a str> + '_ {
        self.values[number].iter().map(|value| value.get())
    }
}

/// Why the pointers' values cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FindError {
    /// A part of the document is no JSON object, or has a name twice.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A list is too long.
    #[error("has more than {MAX_VALUES} values at {0}")]
    TooMany(String),
}

impl PointerTree {
    /// Adds a pointer. Returns its number.
    pub fn add(&mut self, pointer: &Pointer) -> usize {
        let number = self.count;
        self.count += 1;
        let mut node = &mut self.nodes;
        for segment in &pointer.segments {
            let known = node.children.iter().position(|(name, _)| name == segment);
            let index = known.unwrap_or_else(|| {
                node.children.push((segment.clone(), Node::default()));
                node.children.len() - 1
            });
            node = &mut node.children[index].1;
        }
        node.ends.push(number);
        number
    }

    /// Finds the values of all pointers in a JSON object.
    ///
    /// # Errors
    /// [`FindError`].
    pub fn find<'a>(&self, object: &'a str) -> Result<Found<'a>, FindError> {
        let mut found = Found { values: vec![Vec::new(); self.count] };
        self.nodes.find_in_object(object, &mut String::new(), &mut found)?;
        Ok(found)
    }
}

impl Node {
    fn find_in_object<'a>(&self, object: &'a str, path: &mut String, found: &mut Found<'a>) -> Result<(), FindError> {
        let names = self.children.iter().map(|(name, _)| name.as_str());
        let values = object_values(object, &names.collect::<Vec<_>>())?;
        for ((name, node), value) in self.children.iter().zip(values) {
            if let Some(value) = value {
                node.find(value, name, path, found)?;
            }
        }
        Ok(())
    }

    fn find<'a>(
        &self,
        value: &'a RawValue,
        name: &str,
        path: &mut String,
        found: &mut Found<'a>,
    ) -> Result<(), FindError> {
        for number in &self.ends {
            let values = &mut found.values[*number];
            if values.len() >= MAX_VALUES {
                return Err(FindError::TooMany(path.clone()));
            }
            values.push(value);
        }
        if self.children.is_empty() {
            return Ok(());
        }
        let length = path.len();
        path.push('/');
        path.push_str(name);
        match value.get().as_bytes() {
            [b'{', ..] => self.find_in_object(value.get(), path, found)?,
            [b'[', ..] => self.find_in_list(value.get(), path, found)?,
            // A value that has no parts, such as a customer that is null.
            _ => {}
        }
        path.truncate(length);
        Ok(())
    }

    fn find_in_list<'a>(&self, list: &'a str, path: &mut String, found: &mut Found<'a>) -> Result<(), FindError> {
        let list = list_items(list, MAX_VALUES).ok_or(JsonError::Empty)?;
        for (name, node) in &self.children {
            if name == EACH {
                if list.count > MAX_VALUES {
                    return Err(FindError::TooMany(path.clone()));
                }
                list.items.iter().try_for_each(|item| node.find(item, name, path, found))?;
            } else if let Some(item) = name.parse().ok().and_then(|index: usize| list.items.get(index)) {
                node.find(item, name, path, found)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"a": {"b/c": 1.50, "m~n": null, "l": [{"p": 10}, {"p": 20}, 7]}, "": "empty", "x": 5}"#;

    fn found(pointers: &[&str]) -> Vec<Vec<String>> {
        let mut tree = PointerTree::default();
        let numbers: Vec<_> = pointers.iter().map(|text| tree.add(&text.parse().unwrap())).collect();
        let found = tree.find(DOCUMENT).unwrap();
        numbers.into_iter().map(|number| found.all(number).map(str::to_owned).collect()).collect()
    }

    #[test]
    fn pointers_find_values_as_they_are_written() {
        let values = found(&["/a/b~1c", "/a/m~0n", "/", "/a/l/1/p", "/a/l/*/p", "/x", "/x/y", "/a/nothing", "/a/b~1c"]);
        let expected: [&[&str]; 9] =
            [&["1.50"], &["null"], &["\"empty\""], &["20"], &["10", "20"], &["5"], &[], &[], &["1.50"]];
        assert_eq!(values, expected);
    }

    #[test]
    fn a_text_that_is_no_pointer_is_refused() {
        let parse = |text: &str| text.parse::<Pointer>().unwrap_err();
        assert_eq!(
            [parse("id"), parse("/a~2"), parse("/a~")],
            [PointerError::NoSlash, PointerError::Escape, PointerError::Escape]
        );
        assert_eq!(parse(&"/a".repeat(17)), PointerError::TooLong);
        assert_eq!(Pointer::relative("/price"), Err(PointerError::Slash));
        assert_eq!("/a/*/b".parse::<Pointer>().unwrap().to_one(), Err(PointerError::Each));
        for text in ["/a/b~1c", "/m~0n/", "/0"] {
            assert_eq!(text.parse::<Pointer>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_document_that_cannot_be_read_whole_is_refused() {
        let find = |pointer: &str, document: &str| {
            let mut tree = PointerTree::default();
            tree.add(&pointer.parse().unwrap());
            tree.find(document).map(|found| found.values.len()).map_err(|error| error.to_string())
        };
        assert!(find("/a", "[1]").unwrap_err().contains("must be a JSON object"));
        assert!(find("/a/b", r#"{"a": {"b": 1, "b": 2}}"#).unwrap_err().contains("given twice"));
        let many = format!(r#"{{"a": [{}0]}}"#, "0,".repeat(MAX_VALUES));
        assert!(find("/a/*", &many).unwrap_err().contains("more than"));
        let deep = format!(r#"{{"a": {}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(find("/a", &deep).is_ok() && find("/a/0/0", &deep).is_ok());
    }
}
