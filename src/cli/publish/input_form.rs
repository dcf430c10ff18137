//! Whether an input is one JSON object per line, judged by its first bytes: so that another form is one error that says how to
//! convert it, and not an error for each line. Pure.

use serde::de::IgnoredAny;

/// What compressed files begin with, and the programs that print their content.
const COMPRESSED: [(&[u8], &str); 5] = [
    (b"\x1f\x8b", "zcat"),
    (b"\x28\xb5\x2f\xfd", "zstdcat"),
    (b"\xfd7zXZ\0", "xzcat"),
    (b"BZh", "bzcat"),
    (b"PK\x03\x04", "unzip -p"),
];
/// A byte order mark of UTF-16, or a JSON object or list without one.
const UTF_16: [&[u8]; 6] = [b"\xff\xfe", b"\xfe\xff", b"{\0", b"[\0", b"\0{", b"\0["];

/// Why an input as a whole is not one JSON object per line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InputProblem {
    #[error("the input is compressed: decompress it first, as in `{0} FILE | orderd publish`")]
    Compressed(&'static str),
    #[error(
        "the input is UTF-16, it must be UTF-8: convert it, as in `iconv -f UTF-16 -t UTF-8 FILE | orderd publish`"
    )]
    Utf16,
    #[error("the input is a JSON list, it must be one object per line: `jq -c '.[]' FILE | orderd publish`")]
    List,
    #[error("a JSON object spans several lines, it must be one object per line: `jq -c . FILE | orderd publish`")]
    SeveralLines,
}

/// The problem of an input that begins with these bytes; `None` if there is none, or if only some of its lines are wrong.
/// `ended`: nothing follows them, or as much as is judged has been read.
pub(super) fn problem(beginning: &[u8], ended: bool) -> Option<InputProblem> {
    if let Some((_, program)) = COMPRESSED.iter().find(|(magic, _)| beginning.starts_with(magic)) {
        return Some(InputProblem::Compressed(program));
    }
    if UTF_16.iter().any(|mark| beginning.starts_with(mark)) {
        return Some(InputProblem::Utf16);
    }
    let text = beginning.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(beginning).trim_ascii_start();
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<IgnoredAny>();
    let end = match values.next()? {
        Ok(_) => values.byte_offset(),
        // As far as it was read, it is the beginning of a value.
        Err(error) if error.is_eof() => text.len(),
        Err(_) => return None,
    };
    let (value, rest) = text.split_at(end);
    let spans_lines = value.trim_ascii().contains(&b'\n');
    match text.first()? {
        b'[' if spans_lines || ended && rest.trim_ascii().is_empty() => Some(InputProblem::List),
        b'{' if spans_lines => Some(InputProblem::SeveralLines),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_over_several_lines_and_lists_are_one_problem_with_the_command_that_converts_them() {
        let pretty = b"\xEF\xBB\xBF\n{\n  \"id\": 1,\n  \"product\": \"Mouse\"\n}\n{\n  \"id\": 2\n}\n";
        for (input, expected) in [
            (&pretty[..], InputProblem::SeveralLines),
            (b"{ \"id\": 1,\n\"", InputProblem::SeveralLines),
            (b"{\r\n\"id\": 1", InputProblem::SeveralLines),
            (b"[\n{\"id\": 1},\n{\"id\": 2}\n]\n", InputProblem::List),
            (b"[{\"id\": 1}, {\"id\": 2}]\n", InputProblem::List),
            (b"[{\"id\": 1}, {\"id", InputProblem::List),
            (b"\n[", InputProblem::List),
        ] {
            assert_eq!(problem(input, true), Some(expected), "{}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn lines_that_are_wrong_by_themselves_are_no_problem_of_the_input() {
        for input in [
            &b""[..],
            b" \r\n",
            b"{\"id\": 1}\n{\"id\": 2}\n",
            b"{\"id\": 1}",
            b"{\"id\": \"half a line\n{\"id\": 2}\n",
            b"{\"id\": 1,\n{\"id\": 2}\n",
            b"{\"id\": 1",
            b"{\"id\": 1,\n",
            b"[1]\n{\"id\": 2}\n",
            b"id;product\n1;Mouse\n",
            b"nonsense",
            b"7\n",
        ] {
            assert_eq!(problem(input, true), None, "{}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn compressed_and_utf_16_inputs_name_the_program_that_converts_them() {
        for input in [&b"\xff\xfe{\0\"\0"[..], b"{\0\"\0", b"\0{\0\"", b"\xfe\xff\0{"] {
            assert_eq!(problem(input, false), Some(InputProblem::Utf16));
        }
        for (magic, program) in COMPRESSED {
            assert_eq!(problem(magic, false), Some(InputProblem::Compressed(program)));
        }
    }
}
