//! The messages inside CopyData of a replication stream: XLogData and keepalive from the server,
//! the status update from us. Pure.
//!
//! Invariant: only the exact length decodes, and no input panics. The bytes of XLogData's body are
//! pgoutput's, and are handed on as a slice of the read buffer, without a copy.
//!
//! <https://www.postgresql.org/docs/current/protocol-replication.html>

use bytes::{BufMut, Bytes, BytesMut};

use crate::lsn::Lsn;
use crate::postgres::decode::{DecodeError, Reader};

/// What the walsender says. Times are microseconds since 2000-01-01 UTC, by the server's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalMessage {
    /// A piece of the stream: one pgoutput message.
    XLogData {
        /// Where this piece begins; zero for messages that have no place of their own.
        start: Lsn,
        /// The server's end of WAL when it was sent.
        end: Lsn,
        sent_us: i64,
        body: Bytes,
    },
    /// Sent when the stream is idle, or when the server wants a sign of life.
    Keepalive {
        /// How far the server has sent.
        wal_end: Lsn,
        sent_us: i64,
        /// True: answer at once, or the server closes the connection after `wal_sender_timeout`.
        reply_requested: bool,
    },
}

/// XLogData (`w`) or primary keepalive (`k`).
pub fn decode_walsender(bytes: Bytes) -> Result<WalMessage, DecodeError> {
    let mut reader = Reader::new(bytes);
    match reader.u8("a message of the walsender")? {
        b'w' => Ok(WalMessage::XLogData {
            start: reader.lsn("XLogData's start")?,
            end: reader.lsn("XLogData's end")?,
            sent_us: reader.i64("XLogData's time")?,
            body: reader.rest(),
        }),
        b'k' => {
            let wal_end = reader.lsn("a keepalive's end of WAL")?;
            let sent_us = reader.i64("a keepalive's time")?;
            let reply_requested = match reader.u8("a keepalive's flag")? {
                0 => false,
                1 => true,
                letter => {
                    return Err(DecodeError::UnknownType { what: "keepalive's flag", letter });
                }
            };
            reader.finish("a keepalive")?;
            Ok(WalMessage::Keepalive { wal_end, sent_us, reply_requested })
        }
        letter => Err(DecodeError::UnknownType { what: "message of the walsender", letter }),
    }
}

/// How far we are. The server may forget all WAL before `flushed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyStatusUpdate {
    pub received: Lsn,
    /// What must never be sent again: becomes the slot's `confirmed_flush_lsn`.
    pub flushed: Lsn,
    pub applied: Lsn,
    /// Microseconds since 2000-01-01 UTC, by our clock.
    pub now_us: i64,
    /// True: the server answers with a keepalive at once.
    pub reply_requested: bool,
}

impl StandbyStatusUpdate {
    /// Appends the payload of a CopyData message.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(b'r');
        out.put_u64(self.received.0);
        out.put_u64(self.flushed.0);
        out.put_u64(self.applied.0);
        out.put_i64(self.now_us);
        out.put_u8(u8::from(self.reply_requested));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(message: &WalMessage) -> Vec<u8> {
        let mut out = Vec::new();
        match message {
            WalMessage::XLogData { start, end, sent_us, body } => {
                out.put_u8(b'w');
                out.put_u64(start.0);
                out.put_u64(end.0);
                out.put_i64(*sent_us);
                out.put_slice(body);
            }
            WalMessage::Keepalive { wal_end, sent_us, reply_requested } => {
                out.put_u8(b'k');
                out.put_u64(wal_end.0);
                out.put_i64(*sent_us);
                out.put_u8(u8::from(*reply_requested));
            }
        }
        out
    }

    fn any_message() -> impl Strategy<Value = WalMessage> {
        let data = (any::<u64>(), any::<u64>(), any::<i64>(), any::<Vec<u8>>()).prop_map(
            |(start, end, sent_us, body)| WalMessage::XLogData {
                start: Lsn(start),
                end: Lsn(end),
                sent_us,
                body: body.into(),
            },
        );
        let keepalive = (any::<u64>(), any::<i64>(), any::<bool>()).prop_map(
            |(end, sent_us, reply_requested)| WalMessage::Keepalive {
                wal_end: Lsn(end),
                sent_us,
                reply_requested,
            },
        );
        prop_oneof![data, keepalive]
    }

    #[test]
    fn a_status_update_is_what_the_manual_draws() {
        let mut out = BytesMut::new();
        let (received, flushed, applied) = (Lsn(1), Lsn(2), Lsn(3));
        StandbyStatusUpdate { received, flushed, applied, now_us: -2, reply_requested: true }
            .encode(&mut out);
        let expected = b"r\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\
                         \xff\xff\xff\xff\xff\xff\xff\xfe\x01";
        assert_eq!(&out[..], expected);
    }

    #[test]
    fn what_is_not_a_message_is_refused() {
        let flag = [&b"k"[..], &[0; 16], &[2]].concat();
        let long = [&b"k"[..], &[0; 18]].concat();
        let cases = [
            (vec![], "the message ends within a message of the walsender: 1 bytes needed, 0 left"),
            (vec![b'x', 0], "unknown message of the walsender 'x'"),
            (flag, "unknown keepalive's flag '\\u{2}'"),
            (long, "1 bytes follow the end of a keepalive"),
        ];
        for (bytes, expected) in cases {
            let error = decode_walsender(bytes.into()).expect_err("it is no message");
            assert_eq!(error.to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn a_message_survives_its_bytes(message in any_message()) {
            prop_assert_eq!(decode_walsender(encoded(&message).into()), Ok(message));
        }

        #[test]
        fn only_the_exact_length_decodes(message in any_message()) {
            let bytes = encoded(&message);
            // A body has no length of its own: it is the rest, so only the head is cut.
            let head = if bytes[0] == b'w' { 25 } else { bytes.len() };
            for length in 0..head {
                let cut = Bytes::copy_from_slice(&bytes[..length]);
                let refused = decode_walsender(cut);
                prop_assert!(matches!(refused, Err(DecodeError::Truncated { .. })), "{refused:?}");
            }
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            drop(decode_walsender(bytes.into()));
        }
    }
}
