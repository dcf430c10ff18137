//! A message body as text: decompresses it if its content encoding says so, removes a byte order mark, and checks that it
//! is UTF-8.
//!
//! Pure. The body itself is never changed: copies of a message keep its bytes.

use std::borrow::Cow;
use std::io::{self, Read, Write};

use flate2::Compression as Level;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Decompress, FlushDecompress, Status};

/// How much the output of a decompression grows by, in bytes.
const GROWTH: usize = 64 << 10;
/// Longest unknown content encoding that is shown, in bytes.
const SHOWN_ENCODING: usize = 32;

/// The body is not text in UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is text in another encoding.
    #[error("the body is {0}, it must be UTF-8")]
    OtherText(&'static str),
    /// It is not UTF-8; the position of the first invalid byte.
    #[error("the body is not UTF-8: invalid byte at offset {0}")]
    NotUtf8(usize),
    /// The content encoding is neither a supported compression nor UTF-8.
    #[error("unsupported content_encoding{0}: must be gzip, deflate, identity or empty")]
    UnknownEncoding(String),
    /// It is compressed, but has no content encoding.
    #[error("the body is compressed with gzip, but its content_encoding does not name gzip")]
    UndeclaredGzip,
    /// The compressed data is damaged or incomplete.
    #[error("the body cannot be decompressed: it is damaged or incomplete {0} data")]
    Damaged(&'static str),
    /// It is too long once decompressed.
    #[error("the decompressed body is longer than {0} bytes, the value of broker.max_body")]
    TooLong(usize),
}

impl BodyError {
    /// The stable code for `x-failure-code`.
    pub fn code(&self) -> &'static str {
        match self {
            BodyError::OtherText(_)
            | BodyError::NotUtf8(_)
            | BodyError::UnknownEncoding(_)
            | BodyError::UndeclaredGzip => "unsupported_encoding",
            BodyError::Damaged(_) => "invalid_compression",
            BodyError::TooLong(_) => "decompressed_too_large",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Deflate,
}

/// The text of a body with this `content_encoding`. A small compressed body can expand a thousandfold, so `max` limits it, in
/// bytes.
pub fn body_text<'a>(body: &'a [u8], content_encoding: Option<&str>, max: usize) -> Result<Cow<'a, str>, BodyError> {
    match content_encoding.map_or(Ok(None), compression)? {
        None if body.starts_with(&[0x1f, 0x8b]) => Err(BodyError::UndeclaredGzip),
        None => utf8(body).map(Cow::Borrowed),
        Some(compression) => {
            let body = match compression {
                Compression::Gzip => gunzip(body, max),
                Compression::Deflate => inflate(body, true, max).or_else(|error| match error {
                    BodyError::TooLong(_) => Err(error),
                    // Some programs send deflate without the zlib header that RFC 9110 requires.
                    _ => inflate(body, false, max),
                }),
            }?;
            let mark = body.len() - utf8(&body)?.len();
            let mut text = String::from_utf8(body).expect("checked on the line before");
            text.drain(..mark);
            Ok(Cow::Owned(text))
        }
    }
}

/// The length of a compressed body once it is decompressed, in bytes, but `max` at most; 0 for a body that is not compressed.
/// Damaged data counts up to the damage. It takes little memory, whatever the length.
pub fn decompressed_length(body: &[u8], content_encoding: Option<&str>, max: usize) -> usize {
    let length = |decoder: &mut dyn Read| {
        let mut counted = 0_u64;
        let mut buffer = [0; GROWTH];
        while let Ok(read @ 1..) = decoder.read(&mut buffer) {
            counted = counted.saturating_add(read as u64);
            if counted >= max as u64 {
                break;
            }
        }
        usize::try_from(counted).unwrap_or(max).min(max)
    };
    match content_encoding.map_or(Ok(None), compression) {
        Ok(Some(Compression::Gzip)) => length(&mut MultiGzDecoder::new(body)),
        Ok(Some(Compression::Deflate)) => {
            length(&mut ZlibDecoder::new(body)).max(length(&mut DeflateDecoder::new(body)))
        }
        Ok(None) | Err(_) => 0,
    }
}

/// A text as the body of a message with this `content_encoding`: compressed if that names a compression. `None` if [`body_text`] could
/// not read it then.
///
/// # Errors
/// It cannot be compressed.
pub fn encoded_body(text: Vec<u8>, content_encoding: Option<&str>) -> io::Result<Option<Vec<u8>>> {
    match content_encoding.map_or(Ok(None), compression) {
        Ok(None) => Ok(Some(text)),
        Ok(Some(Compression::Gzip)) => {
            let mut encoder = GzEncoder::new(Vec::new(), Level::default());
            encoder.write_all(&text)?;
            encoder.finish().map(Some)
        }
        Ok(Some(Compression::Deflate)) => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Level::default());
            encoder.write_all(&text)?;
            encoder.finish().map(Some)
        }
        Err(_) => Ok(None),
    }
}

/// Whether a content encoding names a compression that [`body_text`] reads.
pub fn is_compressed(content_encoding: Option<&str>) -> bool {
    matches!(content_encoding.map_or(Ok(None), compression), Ok(Some(_)))
}

/// The compression that a content encoding names. Spring writes `gzip:UTF-8`; many clients name the character set only.
fn compression(content_encoding: &str) -> Result<Option<Compression>, BodyError> {
    let unknown = || BodyError::UnknownEncoding(shown(content_encoding));
    let mut found = None;
    for part in content_encoding.split([',', ':']) {
        let compression = match part.trim().to_ascii_lowercase().as_str() {
            "" | "identity" | "utf-8" | "utf8" | "us-ascii" | "ascii" => continue,
            "utf-16" | "utf-16le" | "utf-16be" => return Err(BodyError::OtherText("UTF-16")),
            "utf-32" | "utf-32le" | "utf-32be" => return Err(BodyError::OtherText("UTF-32")),
            "gzip" | "x-gzip" => Compression::Gzip,
            "deflate" => Compression::Deflate,
            _ => return Err(unknown()),
        };
        if found.replace(compression).is_some() {
            return Err(unknown());
        }
    }
    Ok(found)
}

/// An encoding's name in quotes. Nothing of what does not look like one, which may be a value of another field.
fn shown(content_encoding: &str) -> String {
    let is_name = |c: char| c.is_ascii_alphabetic() || ", :-_.".contains(c);
    let is_short = content_encoding.len() <= SHOWN_ENCODING;
    if is_short && content_encoding.chars().all(is_name) { format!(" {content_encoding:?}") } else { String::new() }
}

fn gunzip(body: &[u8], max: usize) -> Result<Vec<u8>, BodyError> {
    let mut text = Vec::new();
    let mut decoder = MultiGzDecoder::new(body).take((max as u64).saturating_add(1));
    decoder.read_to_end(&mut text).map_err(|_| BodyError::Damaged("gzip"))?;
    if text.len() > max { Err(BodyError::TooLong(max)) } else { Ok(text) }
}

/// Inflates. flate2's readers accept deflate data that ends too early; this does not.
fn inflate(body: &[u8], zlib_header: bool, max: usize) -> Result<Vec<u8>, BodyError> {
    let damaged = || BodyError::Damaged("deflate");
    let (mut stream, mut text, mut rest) = (Decompress::new(zlib_header), Vec::new(), body);
    loop {
        text.reserve(GROWTH);
        let (consumed, produced) = (stream.total_in(), stream.total_out());
        let status = stream.decompress_vec(rest, &mut text, FlushDecompress::None).map_err(|_| damaged())?;
        rest = usize::try_from(stream.total_in() - consumed)
            .ok()
            .and_then(|count| rest.get(count..))
            .ok_or_else(damaged)?;
        if text.len() > max {
            return Err(BodyError::TooLong(max));
        }
        match status {
            Status::StreamEnd if rest.is_empty() => return Ok(text),
            Status::StreamEnd => return Err(damaged()),
            Status::Ok | Status::BufError => {
                if (consumed, produced) == (stream.total_in(), stream.total_out()) {
                    return Err(damaged());
                }
            }
        }
    }
}

/// The text without its byte order mark. JSON begins with two ASCII characters, so a zero among the first four bytes
/// shows UTF-16 or UTF-32.
fn utf8(body: &[u8]) -> Result<&str, BodyError> {
    let body = match *body {
        [0xef, 0xbb, 0xbf, ..] => &body[3..],
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] | [0, 0, 0, _, ..] | [_, 0, 0, 0, ..] => {
            return Err(BodyError::OtherText("UTF-32"));
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..] => return Err(BodyError::OtherText("UTF-16")),
        _ => body,
    };
    std::str::from_utf8(body).map_err(|error| BodyError::NotUtf8(error.valid_up_to()))
}

#[cfg(test)]
mod tests {
    use flate2::write::DeflateEncoder;

    use super::*;

    const MAX: usize = 4 << 20;
    const TEXT: &str = r#"{"id": "ä"}"#;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Level::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(text: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Level::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn raw_deflate(text: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Level::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_body_is_read_in_every_encoding_that_producers_use() {
        let bom = [b"\xef\xbb\xbf", TEXT.as_bytes()].concat();
        for (body, encoding) in [
            (TEXT.as_bytes().to_vec(), None),
            (TEXT.as_bytes().to_vec(), Some("")),
            (TEXT.as_bytes().to_vec(), Some("Identity")),
            (TEXT.as_bytes().to_vec(), Some("UTF-8")),
            (bom.clone(), None),
            (gzip(TEXT.as_bytes()), Some("gzip")),
            (gzip(TEXT.as_bytes()), Some(" GZip ")),
            (gzip(TEXT.as_bytes()), Some("gzip:UTF-8")),
            (gzip(&bom), Some("x-gzip")),
            (zlib(TEXT.as_bytes()), Some("deflate")),
            (raw_deflate(TEXT.as_bytes()), Some("DEFLATE")),
        ] {
            assert_eq!(body_text(&body, encoding, MAX).unwrap(), TEXT, "{encoding:?}");
        }
    }

    #[test]
    fn a_text_is_encoded_as_its_body_was() {
        for encoding in [None, Some("UTF-8"), Some("gzip"), Some("gzip:UTF-8"), Some("deflate")] {
            let body = encoded_body(TEXT.as_bytes().to_vec(), encoding).unwrap().unwrap();
            assert_eq!(body == TEXT.as_bytes(), !is_compressed(encoding), "{encoding:?}");
            assert_eq!(body_text(&body, encoding, MAX).unwrap(), TEXT, "{encoding:?}");
        }
        for encoding in ["br", "UTF-16", "gzip, gzip"] {
            assert_eq!(encoded_body(TEXT.as_bytes().to_vec(), Some(encoding)).unwrap(), None, "{encoding}");
        }
    }

    #[test]
    fn a_body_in_another_encoding_is_refused_with_its_cause() {
        let utf16 = |mark: &[u16]| {
            let units = mark.iter().copied().chain(TEXT.encode_utf16());
            units.flat_map(u16::to_le_bytes).collect::<Vec<_>>()
        };
        let utf32 = TEXT.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect::<Vec<_>>();
        let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 5].to_vec();
        for (body, encoding, expected) in [
            (utf16(&[]), None, BodyError::OtherText("UTF-16")),
            (utf16(&[0xfeff]), None, BodyError::OtherText("UTF-16")),
            (utf32, None, BodyError::OtherText("UTF-32")),
            (b"{\"a\":\"\xff\"}".to_vec(), None, BodyError::NotUtf8(6)),
            (b"{}".to_vec(), Some("br"), BodyError::UnknownEncoding(" \"br\"".to_owned())),
            (b"{}".to_vec(), Some("gzip, gzip"), BodyError::UnknownEncoding(" \"gzip, gzip\"".to_owned())),
            (b"{}".to_vec(), Some("4111 1111 1111 1111"), BodyError::UnknownEncoding(String::new())),
            (b"{}".to_vec(), Some("ada@example.com"), BodyError::UnknownEncoding(String::new())),
            (gzip(b"{}"), None, BodyError::UndeclaredGzip),
            (cut(gzip(TEXT.as_bytes())), Some("gzip"), BodyError::Damaged("gzip")),
            (b"{}".to_vec(), Some("gzip"), BodyError::Damaged("gzip")),
            (cut(zlib(TEXT.as_bytes())), Some("deflate"), BodyError::Damaged("deflate")),
            (cut(raw_deflate(TEXT.as_bytes())), Some("deflate"), BodyError::Damaged("deflate")),
        ] {
            assert_eq!(body_text(&body, encoding, MAX), Err(expected), "{encoding:?} {body:x?}");
        }
    }

    #[test]
    fn the_length_of_a_decompressed_body_is_counted_up_to_the_limit() {
        let zeros = vec![b' '; MAX + 1];
        for (compress, encoding) in
            [(gzip as fn(&[u8]) -> Vec<u8>, "gzip"), (zlib, "deflate"), (raw_deflate, "deflate")]
        {
            let length = |text: &[u8]| decompressed_length(&compress(text), Some(encoding), MAX);
            assert_eq!((length(TEXT.as_bytes()), length(&zeros)), (TEXT.len(), MAX), "{encoding}");
        }
        for encoding in [None, Some("utf-8"), Some("br")] {
            assert_eq!(decompressed_length(TEXT.as_bytes(), encoding, MAX), 0);
        }
        assert_eq!(decompressed_length(b"{}", Some("gzip"), MAX), 0);
    }

    #[test]
    fn a_body_that_expands_without_end_is_refused_at_the_limit() {
        let zeros = vec![b' '; MAX + 1];
        for (body, encoding) in [(gzip(&zeros), "gzip"), (zlib(&zeros), "deflate"), (raw_deflate(&zeros), "deflate")] {
            assert_eq!(body_text(&body, Some(encoding), MAX), Err(BodyError::TooLong(MAX)), "{encoding}");
        }
    }
}
