//! Bytes of the server cut into messages: a type byte, a length that counts itself, a body. Pure.
//!
//! Ours because `postgres_protocol::message::backend::Message::parse` does not know
//! CopyBothResponse, and because the bodies of CopyData must be slices of the read buffer: copying
//! each row once would cost more than cutting it.
//!
//! Invariant: memory is bounded by what has arrived, never by what a length claims, and stays flat
//! after a large message.
//!
//! <https://www.postgresql.org/docs/current/protocol-overview.html#PROTOCOL-MESSAGE-CONCEPTS>

use bytes::{Buf, Bytes, BytesMut};

/// Fresh buffers are this large: room for several reads of 64 KiB, and small enough that a payload
/// which somebody keeps does not hold much memory.
const CHUNK_BYTES: usize = 256 * 1024;

/// Each read gets at least this much room, so that what piled up fits.
const ROOM_BYTES: usize = 64 * 1024;

/// Postgres never sends more in one message (`PQ_LARGE_MESSAGE_LIMIT`, `MaxAllocSize`): 1 GiB.
const BODY_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// Type byte and length.
const HEAD_BYTES: usize = 5;

/// One message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) tag: u8,
    pub(crate) body: Bytes,
}

/// A length that no message can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server sent a message {tag:#04x} of {length} bytes, but messages have 4 to 1 GiB")]
pub(crate) struct FramingError {
    tag: u8,
    length: u32,
}

/// What was received and not yet taken.
#[derive(Debug)]
pub(crate) struct Inbox {
    buffer: BytesMut,
    /// Size of the present allocation.
    allocated: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { buffer: BytesMut::with_capacity(CHUNK_BYTES), allocated: CHUNK_BYTES }
    }

    /// The buffer to read into: append only, with at least 64 KiB of room.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        let spare = self.buffer.capacity() - self.buffer.len();
        if spare < ROOM_BYTES && !(self.allocated <= CHUNK_BYTES && self.reclaim()) {
            // Doubling: a large message is copied a few times at most, and a length without
            // bytes behind it allocates nothing.
            let size = CHUNK_BYTES.max(self.buffer.len().saturating_mul(2));
            let mut fresh = BytesMut::with_capacity(size);
            fresh.extend_from_slice(&self.buffer);
            (self.buffer, self.allocated) = (fresh, size);
        }
        &mut self.buffer
    }

    /// Uses the present allocation again, if nobody holds a slice of it.
    fn reclaim(&mut self) -> bool {
        self.buffer.try_reclaim(ROOM_BYTES)
    }

    /// The next message, or None if its bytes are not all here yet.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FramingError> {
        let Some((&tag, rest)) = self.buffer.split_first() else { return Ok(None) };
        let Some(length) = rest.first_chunk::<4>().map(|it| u32::from_be_bytes(*it)) else {
            return Ok(None);
        };
        let body = usize::try_from(length)
            .ok()
            .and_then(|it| it.checked_sub(4))
            .filter(|&it| it <= BODY_BYTES_MAX)
            .ok_or(FramingError { tag, length })?;
        if self.buffer.len() < HEAD_BYTES + body {
            return Ok(None);
        }
        self.buffer.advance(HEAD_BYTES);
        Ok(Some(Frame { tag, body: self.buffer.split_to(body).freeze() }))
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    fn encoded(frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (tag, body) in frames {
            out.put_u8(*tag);
            out.put_u32(u32::try_from(body.len()).unwrap() + 4);
            out.put_slice(body);
        }
        out
    }

    fn taken(inbox: &mut Inbox, into: &mut Vec<(u8, Vec<u8>)>) {
        while let Some(frame) = inbox.next().unwrap() {
            into.push((frame.tag, frame.body.to_vec()));
        }
    }

    #[test]
    fn lengths_that_no_message_has_are_refused() {
        for length in [0u32, 3, 0x4000_0005, u32::MAX] {
            let mut inbox = Inbox::new();
            inbox.room().put_u8(b'd');
            inbox.room().put_u32(length);
            assert_eq!(inbox.next(), Err(FramingError { tag: b'd', length }));
        }
    }

    #[test]
    fn a_large_message_leaves_no_large_buffer() {
        let (mut inbox, mut got) = (Inbox::new(), Vec::new());
        let large = vec![(b'd', vec![7; 5_000_000])];
        for piece in encoded(&large).chunks(ROOM_BYTES) {
            inbox.room().extend_from_slice(piece);
            taken(&mut inbox, &mut got);
        }
        assert!(got == large);
        let small = encoded(&[(b'd', vec![1; 1000])]);
        for _ in 0..10_000 {
            inbox.room().extend_from_slice(&small);
            taken(&mut inbox, &mut Vec::new());
        }
        assert_eq!(inbox.allocated, CHUNK_BYTES);
        assert!(inbox.buffer.capacity() <= CHUNK_BYTES);
    }

    proptest! {
        #[test]
        fn messages_survive_any_cut(
            frames: Vec<(u8, Vec<u8>)>,
            size in 1..50usize,
        ) {
            let (mut inbox, mut got) = (Inbox::new(), Vec::new());
            for piece in encoded(&frames).chunks(size) {
                inbox.room().extend_from_slice(piece);
                taken(&mut inbox, &mut got);
            }
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let mut inbox = Inbox::new();
            inbox.room().extend_from_slice(&bytes);
            while let Ok(Some(_)) = inbox.next() {}
        }
    }
}
