//! Answers of many megabytes: JSON that is written in parts while it is sent, so that it takes little memory besides the values themselves.
//!
//! It never decides what is answered.

use std::io::{self, Write};

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{Stream, StreamExt, unfold};
use serde::Serialize;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::spawn_blocking;

use super::progress::Progress;
use super::response::content_type;
use crate::escape::json_escaped;

/// The size of a part before characters are escaped, in bytes. A slow client has some seconds to receive each.
const PART: usize = 64 << 10;
/// Parts that wait to be sent.
const WAITING_PARTS: usize = 2;

/// Answers 200 with the value that `make` returns, which may take long. What is `held` is dropped together with the value, once all of it
/// is written or the client is gone.
pub(super) fn streamed_json<T: Serialize>(
    make: impl FnOnce() -> T + Send + 'static,
    held: impl Send + 'static,
    progress: Option<Progress>,
) -> Response {
    let parts = written_parts(move |writer| {
        let value = make();
        let written = serde_json::to_writer(writer, &value).map_err(io::Error::from);
        drop((value, held));
        written
    });
    answer_in_parts("application/json", parts, progress)
}

/// What `write` writes, in parts. It runs on a thread of its own, and waits there for a slow client as long as the connection does. If the
/// client is gone, its next write fails.
pub(super) fn written_parts(
    write: impl FnOnce(&mut PartWriter) -> io::Result<()> + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let (parts, receiver) = channel(WAITING_PARTS);
    spawn_blocking(move || {
        let mut writer = PartWriter { part: Vec::with_capacity(PART), parts };
        // An error means that the client is gone.
        let _ = write(&mut writer).and_then(|()| writer.finish());
    });
    unfold(Some(receiver), |receiver| async {
        let mut receiver = receiver?;
        Some(match receiver.recv().await {
            Some(Part::More(bytes)) => (Ok(bytes), Some(receiver)),
            Some(Part::Last(bytes)) => (Ok(bytes), None),
            None => (Err(io::Error::other("the answer was not written to its end")), None),
        })
    })
}

/// Answers 200 with these parts.
pub(super) fn answer_in_parts(
    kind: &'static str,
    parts: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    progress: Option<Progress>,
) -> Response {
    let sent = parts.inspect(move |_| progress.iter().for_each(Progress::advanced));
    (StatusCode::OK, content_type(kind), Body::from_stream(sent)).into_response()
}

/// A part of an answer. One that has no last part is not complete.
#[derive(Debug)]
enum Part {
    More(Bytes),
    Last(Bytes),
}

/// Collects what is written, and hands on each part of it.
pub(super) struct PartWriter {
    part: Vec<u8>,
    parts: Sender<Part>,
}

impl PartWriter {
    /// Takes the text out of the part; the beginning of a character at its end remains there.
    fn take_text(&mut self) -> io::Result<Bytes> {
        let whole = match std::str::from_utf8(&self.part) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        };
        let mut rest = Vec::with_capacity(PART);
        rest.extend(self.part.drain(whole..));
        let text = String::from_utf8(std::mem::replace(&mut self.part, rest));
        let text = text.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Bytes::from(json_escaped(&text)))
    }

    fn send(&self, part: Part) -> io::Result<()> {
        self.parts.blocking_send(part).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn finish(mut self) -> io::Result<()> {
        let last = self.take_text()?;
        self.send(Part::Last(last))
    }
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        if self.part.len() >= PART {
            let text = self.take_text()?;
            self.send(Part::More(text))?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::to_bytes;
    use serde_json::{Value, json};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::admin::progress::Phase;

    #[tokio::test]
    async fn an_answer_in_parts_is_the_whole_value_with_its_escapes() {
        // Characters of 1 to 4 bytes, one of which is escaped by JSON and one only for terminals, at each place of a part.
        let text = "a\u{1}ü\u{202e}€😀\"".repeat(40_000);
        for text in [String::new(), "x".repeat(PART), "ü".repeat(PART), text] {
            let value = json!({"id": 1, "body": text});
            let made = value.clone();
            let answer = streamed_json(move || made, (), None);
            assert_eq!(answer.headers()["content-type"], "application/json");
            let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), value);
            assert_eq!(body, json_escaped(&value.to_string()).as_bytes(), "as answers that are not sent in parts");
        }
    }

    #[tokio::test]
    async fn an_answer_in_parts_is_progress_with_each_part_and_holds_its_permit_until_it_is_written() {
        let (permits, progress) = (Arc::new(Semaphore::new(1)), Progress::default());
        let hold = || Arc::clone(&permits).try_acquire_owned().unwrap();
        let answer = streamed_json(|| "x".repeat(10 * PART), hold(), Some(progress.clone()));
        let mut parts = answer.into_body().into_data_stream();
        for _ in 0..3 {
            progress.set(Phase::Answer);
            assert_eq!(parts.next().await.unwrap().unwrap().len(), PART);
            assert!(matches!(progress.get(), Phase::Part(_)));
        }
        assert_eq!(permits.available_permits(), 0, "most of it is not written");
        while let Some(part) = parts.next().await {
            part.unwrap();
        }
        // The client is gone before the end, or the value cannot be made.
        drop(permits.acquire().await.unwrap());
        drop(streamed_json(|| "x".repeat(10 * PART), hold(), None));
        drop(permits.acquire().await.unwrap());
        let failed = streamed_json(|| -> Value { panic!("in a test") }, hold(), None);
        assert!(to_bytes(failed.into_body(), usize::MAX).await.is_err(), "it is no complete answer");
        drop(permits.acquire().await.unwrap());
    }
}
