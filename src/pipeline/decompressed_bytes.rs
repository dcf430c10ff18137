//! Limits what the decompressed bodies of one consumer take together.
//!
//! The broker's deliveries are limited by their size as they are received, and a small compressed body can expand a
//! thousandfold. It decompresses nothing itself.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::message::Message;

/// What decompressed bodies may take together, in bytes, if `broker.max_body` is not more.
const MIN_LIMIT: usize = 32 << 20;

/// The bytes that further decompressed bodies may take.
#[derive(Debug)]
pub struct DecompressedBytes {
    room: Arc<Semaphore>,
    max_body: usize,
}

/// The room of one body. Free again once this is dropped.
pub(super) type Room = OwnedSemaphorePermit;

impl DecompressedBytes {
    /// `max_body`: the longest body once it is decompressed. There is always room for one.
    pub fn new(max_body: usize) -> Self {
        let limit = MIN_LIMIT.max(max_body).min(Semaphore::MAX_PERMITS);
        DecompressedBytes { room: Arc::new(Semaphore::new(limit)), max_body }
    }

    /// Waits until there is room for the decompressed body. `None` for a body that is not compressed, which needs none. The
    /// future is cancel-safe, and boxed because few deliveries need it.
    pub(super) fn room_for(&self, message: &Message) -> Option<BoxFuture<'static, Room>> {
        let bytes = u32::try_from(message.decompressed_length(self.max_body)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room);
        (bytes > 0).then(|| {
            async move { room.acquire_many_owned(bytes).await.expect("the semaphore is never closed") }.boxed()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::message::Properties;

    fn message(bytes: usize, content_encoding: Option<&str>) -> Message {
        let body = vec![b' '; bytes];
        let body = match content_encoding {
            Some(_) => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&body).unwrap();
                encoder.finish().unwrap()
            }
            None => body,
        };
        let properties = Properties { content_encoding: content_encoding.map(str::to_owned), ..Properties::default() };
        Message { body: body.into(), properties, ..Message::default() }
    }

    #[tokio::test]
    async fn compressed_bodies_wait_until_there_is_room_for_what_they_expand_to() {
        let bytes = DecompressedBytes::new(16 << 20);
        let room = |message: &Message| bytes.room_for(message).unwrap();
        let large = message(16 << 20, Some("gzip"));
        let (first, _second) = (room(&large).await, room(&large).await);
        assert!(room(&message(1, Some("gzip"))).now_or_never().is_none(), "32 MiB are taken");
        assert!(bytes.room_for(&message(64 << 20, None)).is_none(), "not compressed");
        drop(first);
        assert!(room(&message(1, Some("gzip"))).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_bomb_takes_the_room_of_the_longest_body_and_no_more() {
        for max_body in [1 << 20, 64 << 20] {
            let bytes = DecompressedBytes::new(max_body);
            assert!(bytes.room_for(&message(80 << 20, Some("gzip"))).unwrap().now_or_never().is_some(), "{max_body}");
        }
    }
}
