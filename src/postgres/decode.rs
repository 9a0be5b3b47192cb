//! Checked reading of the bytes that Postgres sends, shared by all decoders of the protocol.
//!
//! A [`Reader`] never panics and never looks past its end: each read says what it wanted, so that
//! an error names the field. Longer values are slices that share the message's buffer, not copies.
//! It never guesses: what is too short, too long or unknown is a [`DecodeError`], since to skip
//! what we do not understand would be to lose a change.

use bytes::Bytes;

use crate::lsn::Lsn;

/// Bytes from Postgres that are not what the manual says.
///
/// Nearly every variant means the same to the caller, that the session must halt: Postgres would
/// send the same bytes again. They differ in what a person has to look at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends within a field.
    #[error("the message ends within {what}: {needed} bytes needed, {left} left")]
    Truncated { what: &'static str, needed: usize, left: usize },
    /// The message goes on after its last field.
    #[error("{count} bytes follow the end of {what}")]
    TrailingBytes { what: &'static str, count: usize },
    /// A letter that says what follows, and that the manual does not have (yet).
    #[error("unknown {what} {:?}", char::from(*.letter))]
    UnknownType { what: &'static str, letter: u8 },
    /// Text that is not UTF-8, though we ask for that client_encoding. A database in SQL_ASCII
    /// can hold such text: convert the database, or leave the column out of the publication.
    #[error("{what} is not valid UTF-8; is the database's encoding SQL_ASCII?")]
    InvalidText { what: &'static str },
    /// A length or count that is negative.
    #[error("{what} is {count}, which is no count")]
    InvalidCount { what: &'static str, count: i64 },
    /// A value in binary format, which we never ask for.
    #[error("a column's value came in binary format; START_REPLICATION must not ask for it")]
    BinaryValue,
    /// A value's text that its type cannot have printed under the settings we pin.
    #[error("the text of a value is not that of a {kind}; is a session setting overridden?")]
    MalformedValue { kind: &'static str },
    /// The catalog that we see is not yet as far as the stream: ALTER TYPE waits for a standby.
    #[error(
        "a value of a composite type has {found} attributes, but its type {known} and never more; \
         if ALTER TYPE waits for a synchronous standby, so do we"
    )]
    OtherAttributes { found: usize, known: usize },
}

impl DecodeError {
    /// Whether the same bytes may be decoded later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::OtherAttributes { .. } => true,
            Self::Truncated { .. }
            | Self::TrailingBytes { .. }
            | Self::UnknownType { .. }
            | Self::InvalidText { .. }
            | Self::InvalidCount { .. }
            | Self::BinaryValue
            | Self::MalformedValue { .. } => false,
        }
    }
}

/// A place in a message. All integers are big-endian, as everywhere in Postgres' protocol.
#[derive(Debug, Clone)]
pub struct Reader {
    data: Bytes,
    /// Never greater than `data.len()`.
    at: usize,
}

impl Reader {
    pub fn new(data: Bytes) -> Self {
        Self { data, at: 0 }
    }

    /// Bytes not yet read.
    pub fn left(&self) -> usize {
        self.data.len() - self.at
    }

    /// Bytes read so far, which is the place of the next one in [`Reader::data`].
    pub fn position(&self) -> usize {
        self.at
    }

    /// The whole message, from its first byte; to share it.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Passes over `count` bytes and returns where they started.
    pub fn skip(&mut self, count: usize, what: &'static str) -> Result<usize, DecodeError> {
        self.need(count, what)?;
        let start = self.at;
        self.at += count;
        Ok(start)
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(what).map(|[it]| it)
    }

    pub fn i16(&mut self, what: &'static str) -> Result<i16, DecodeError> {
        self.array(what).map(i16::from_be_bytes)
    }

    pub fn i32(&mut self, what: &'static str) -> Result<i32, DecodeError> {
        self.array(what).map(i32::from_be_bytes)
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        self.array(what).map(i64::from_be_bytes)
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_be_bytes)
    }

    pub fn lsn(&mut self, what: &'static str) -> Result<Lsn, DecodeError> {
        self.u64(what).map(Lsn)
    }

    /// A count of two bytes, followed by at least `each` bytes for every one of what it counts: so
    /// a count that the message cannot hold is refused before anything is allocated for it.
    pub fn count16(&mut self, each: usize, what: &'static str) -> Result<usize, DecodeError> {
        let count = self.i16(what)?;
        self.checked_count(i64::from(count), each, what)
    }

    /// As [`Reader::count16`], with a count of four bytes.
    pub fn count32(&mut self, each: usize, what: &'static str) -> Result<usize, DecodeError> {
        let count = self.i32(what)?;
        self.checked_count(i64::from(count), each, what)
    }

    /// The next `count` bytes, sharing the message's buffer.
    pub fn bytes(&mut self, count: usize, what: &'static str) -> Result<Bytes, DecodeError> {
        let start = self.skip(count, what)?;
        Ok(self.data.slice(start..start + count))
    }

    /// All that is left.
    pub fn rest(&mut self) -> Bytes {
        let start = self.at;
        self.at = self.data.len();
        self.data.slice(start..)
    }

    /// Text up to a zero byte, which is passed over (the manual's `String`).
    pub fn string(&mut self, what: &'static str) -> Result<String, DecodeError> {
        let rest = &self.data[self.at..];
        let length = rest.iter().position(|&it| it == 0).ok_or(DecodeError::Truncated {
            what,
            needed: rest.len() + 1,
            left: rest.len(),
        })?;
        let text = std::str::from_utf8(&rest[..length])
            .map_err(|_| DecodeError::InvalidText { what })?
            .to_owned();
        self.at += length + 1;
        Ok(text)
    }

    /// The message is read: nothing may follow.
    pub fn finish(self, what: &'static str) -> Result<(), DecodeError> {
        match self.left() {
            0 => Ok(()),
            count => Err(DecodeError::TrailingBytes { what, count }),
        }
    }

    fn checked_count(
        &self,
        count: i64,
        each: usize,
        what: &'static str,
    ) -> Result<usize, DecodeError> {
        let count =
            usize::try_from(count).map_err(|_| DecodeError::InvalidCount { what, count })?;
        self.need(count.saturating_mul(each), what)?;
        Ok(count)
    }

    fn need(&self, needed: usize, what: &'static str) -> Result<(), DecodeError> {
        let left = self.left();
        if needed > left { Err(DecodeError::Truncated { what, needed, left }) } else { Ok(()) }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let left = self.left();
        let truncated = DecodeError::Truncated { what, needed: N, left };
        let bytes = *self.data[self.at..].first_chunk().ok_or(truncated)?;
        self.at += N;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_are_big_endian() {
        let mut reader = Reader::new(Bytes::from_static(&[1, 0xFF, 0xFE, 0, 0, 1, 2, 9]));
        assert_eq!(reader.u8("a"), Ok(1));
        assert_eq!(reader.i16("b"), Ok(-2));
        assert_eq!(reader.u32("c"), Ok(258));
        let short = DecodeError::Truncated { what: "d", needed: 8, left: 1 };
        assert_eq!(reader.lsn("d"), Err(short));
        assert_eq!(reader.left(), 1, "a failed read reads nothing");
        let trailing = DecodeError::TrailingBytes { what: "it", count: 1 };
        assert_eq!(reader.finish("it"), Err(trailing));
    }

    #[test]
    fn text_ends_with_a_zero_and_is_utf8() {
        let mut reader = Reader::new(Bytes::from_static(b"\xC3\xA4\0\0\xFF\0open"));
        assert_eq!(reader.string("a"), Ok("ä".to_owned()));
        assert_eq!(reader.string("b"), Ok(String::new()));
        assert_eq!(reader.clone().string("c"), Err(DecodeError::InvalidText { what: "c" }));
        assert_eq!(reader.skip(2, "c"), Ok(4));
        let open = DecodeError::Truncated { what: "d", needed: 5, left: 4 };
        assert_eq!(reader.string("d"), Err(open));
        assert_eq!(reader.rest(), "open");
    }

    #[test]
    fn a_count_is_checked_against_what_is_left() {
        let count = |bytes: &'static [u8]| Reader::new(Bytes::from_static(bytes)).count16(2, "n");
        assert_eq!(count(&[0, 1, 7, 7]), Ok(1));
        let short = DecodeError::Truncated { what: "n", needed: 4, left: 3 };
        assert_eq!(count(&[0, 2, 7, 7, 7]), Err(short));
        let negative = DecodeError::InvalidCount { what: "n", count: -1 };
        assert_eq!(count(&[0xFF, 0xFF, 7]), Err(negative));
    }

    proptest! {
        #[test]
        fn slices_share_the_buffer(data: Vec<u8>, count in 0usize..40) {
            let data = Bytes::from(data);
            let mut reader = Reader::new(data.clone());
            match reader.bytes(count, "it") {
                Ok(slice) => {
                    prop_assert_eq!(&slice, &data[..count]);
                    prop_assert!(slice.is_empty() || slice.as_ptr() == data.as_ptr());
                }
                Err(_) => prop_assert!(count > data.len()),
            }
        }
    }
}
