//! Laws of decoding pgoutput: it undoes encoding, takes the exact length only, and never panics.

#![allow(clippy::as_conversions, reason = "lengths of values made here")]

use bytes::{BufMut, Bytes};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::change::Datum;

/// What Postgres would send. For tests only: we never send pgoutput.
pub(crate) fn encode(message: &Message) -> Bytes {
    let mut out = Vec::new();
    match message {
        Message::Begin(it) => {
            out.put_u8(b'B');
            out.put_u64(it.final_lsn.0);
            out.put_i64(it.commit_time_us);
            out.put_u32(it.xid);
        }
        Message::Commit(it) => {
            out.put_slice(b"C\0");
            out.put_u64(it.commit_lsn.0);
            out.put_u64(it.end_lsn.0);
            out.put_i64(it.commit_time_us);
        }
        Message::Origin { lsn, name } => {
            out.put_u8(b'O');
            out.put_u64(lsn.0);
            put_string(name, &mut out);
        }
        Message::Relation(it) => put_relation(it, &mut out),
        Message::Type { oid, namespace, name } => {
            out.put_u8(b'Y');
            out.put_u32(*oid);
            put_namespace(namespace, &mut out);
            put_string(name, &mut out);
        }
        Message::Insert { relation, new } => {
            out.put_u8(b'I');
            out.put_u32(relation.0);
            put_tuple(b'N', new, &mut out);
        }
        Message::Update { relation, old, new } => {
            out.put_u8(b'U');
            out.put_u32(relation.0);
            if let Some(old) = old {
                put_old(old, &mut out);
            }
            put_tuple(b'N', new, &mut out);
        }
        Message::Delete { relation, old } => {
            out.put_u8(b'D');
            out.put_u32(relation.0);
            put_old(old, &mut out);
        }
        Message::Truncate { relations, cascade, restart_identity } => {
            out.put_u8(b'T');
            out.put_u32(relations.len() as u32);
            out.put_u8(u8::from(*cascade) | u8::from(*restart_identity) << 1);
            relations.iter().for_each(|it| out.put_u32(it.0));
        }
        Message::Message(LogicalMessage { transactional, lsn, prefix, content }) => {
            out.put_u8(b'M');
            out.put_u8(u8::from(*transactional));
            out.put_u64(lsn.0);
            put_string(prefix, &mut out);
            out.put_u32(content.len() as u32);
            out.put_slice(content);
        }
    }
    out.into()
}

fn put_string(text: &str, out: &mut Vec<u8>) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_namespace(name: &str, out: &mut Vec<u8>) {
    put_string(if name == "pg_catalog" { "" } else { name }, out);
}

fn put_relation(it: &Relation, out: &mut Vec<u8>) {
    out.put_u8(b'R');
    out.put_u32(it.id.0);
    put_namespace(&it.namespace, out);
    put_string(&it.name, out);
    out.put_u8(match it.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    out.put_u16(it.columns.len() as u16);
    for column in &it.columns {
        out.put_u8(u8::from(column.in_identity));
        put_string(&column.name, out);
        out.put_u32(column.type_oid);
        out.put_i32(column.type_modifier);
    }
}

fn put_old(old: &OldRow, out: &mut Vec<u8>) {
    match old {
        OldRow::Identity(tuple) => put_tuple(b'K', tuple, out),
        OldRow::Full(tuple) => put_tuple(b'O', tuple, out),
    }
}

fn put_tuple(kind: u8, tuple: &Tuple, out: &mut Vec<u8>) {
    out.put_u8(kind);
    out.put_u16(tuple.len() as u16);
    for datum in tuple.iter() {
        match datum {
            Datum::Null => out.put_u8(b'n'),
            Datum::UnchangedToast => out.put_u8(b'u'),
            Datum::Text(text) => {
                out.put_u8(b't');
                out.put_u32(text.len() as u32);
                out.put_slice(text);
            }
        }
    }
}

/// Tuples are equal here when their values are: the decoded one shares the message's buffer.
fn normal(message: Message) -> Message {
    let tuple = |it: Tuple| Tuple::from_datums(it.iter());
    let old = |it: OldRow| match it {
        OldRow::Identity(it) => OldRow::Identity(tuple(it)),
        OldRow::Full(it) => OldRow::Full(tuple(it)),
    };
    match message {
        Message::Insert { relation, new } => Message::Insert { relation, new: tuple(new) },
        Message::Update { relation, old: before, new } => {
            Message::Update { relation, old: before.map(old), new: tuple(new) }
        }
        Message::Delete { relation, old: before } => Message::Delete { relation, old: old(before) },
        other => other,
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("pg_catalog".to_owned()), "[a-zä]{1,9}"]
}

fn any_tuple() -> impl Strategy<Value = Tuple> {
    let datum = prop_oneof![
        Just(None),
        Just(Some(None)),
        vec(any::<u8>(), 0..12).prop_map(|it| Some(Some(it))),
    ];
    vec(datum, 0..6).prop_map(|values| {
        Tuple::from_datums(values.iter().map(|it| match it {
            None => Datum::Null,
            Some(None) => Datum::UnchangedToast,
            Some(Some(text)) => Datum::Text(text),
        }))
    })
}

fn any_old() -> impl Strategy<Value = OldRow> {
    prop_oneof![any_tuple().prop_map(OldRow::Identity), any_tuple().prop_map(OldRow::Full)]
}

fn any_relation() -> impl Strategy<Value = Relation> {
    let identity = prop_oneof![Just(b'd'), Just(b'n'), Just(b'f'), Just(b'i')];
    let column = (name(), any::<u32>(), any::<i32>(), any::<bool>()).prop_map(
        |(name, type_oid, type_modifier, in_identity)| Column {
            name,
            type_oid,
            type_modifier,
            in_identity,
        },
    );
    (any::<u32>(), name(), name(), identity, vec(column, 0..5)).prop_map(
        |(id, namespace, name, letter, columns)| Relation {
            id: RelationId(id),
            namespace,
            name,
            replica_identity: ReplicaIdentity::from_letter(letter).unwrap(),
            columns,
        },
    )
}

fn any_message() -> impl Strategy<Value = Message> {
    let id = || any::<u32>().prop_map(RelationId);
    let lsn = || any::<u64>().prop_map(Lsn);
    prop_oneof![
        (lsn(), any::<i64>(), any::<u32>()).prop_map(|(final_lsn, commit_time_us, xid)| {
            Message::Begin(Begin { final_lsn, commit_time_us, xid })
        }),
        (lsn(), lsn(), any::<i64>()).prop_map(|(commit_lsn, end_lsn, commit_time_us)| {
            Message::Commit(Commit { commit_lsn, end_lsn, commit_time_us })
        }),
        (lsn(), name()).prop_map(|(lsn, name)| Message::Origin { lsn, name }),
        any_relation().prop_map(Message::Relation),
        (any::<u32>(), name(), name()).prop_map(|(oid, namespace, name)| Message::Type {
            oid,
            namespace,
            name
        }),
        (id(), any_tuple()).prop_map(|(relation, new)| Message::Insert { relation, new }),
        (id(), proptest::option::of(any_old()), any_tuple())
            .prop_map(|(relation, old, new)| Message::Update { relation, old, new }),
        (id(), any_old()).prop_map(|(relation, old)| Message::Delete { relation, old }),
        (vec(id(), 0..5), any::<bool>(), any::<bool>()).prop_map(
            |(relations, cascade, restart_identity)| Message::Truncate {
                relations,
                cascade,
                restart_identity
            }
        ),
        (any::<bool>(), lsn(), name(), vec(any::<u8>(), 0..12)).prop_map(
            |(transactional, lsn, prefix, content)| Message::Message(LogicalMessage {
                transactional,
                lsn,
                prefix,
                content: content.into()
            })
        ),
    ]
}

#[test]
fn what_is_not_pgoutput_is_refused() {
    let truncated = |what, needed, left| DecodeError::Truncated { what, needed, left };
    let unknown = |what, letter| DecodeError::UnknownType { what, letter };
    let negative = |what, count| DecodeError::InvalidCount { what, count };
    let cases: &[(&[u8], DecodeError)] = &[
        (b"", truncated("the message's type", 1, 0)),
        (b"S\0", unknown("pgoutput message", b'S')),
        (b"I\0\0\0\x01O\0\0", unknown("kind of row in Insert", b'O')),
        (b"D\0\0\0\x01N\0\0", unknown("kind of row in Delete", b'N')),
        (b"U\0\0\0\x01K\0\0K\0\0", unknown("kind of row in Update", b'K')),
        (b"I\0\0\0\x01N\0\x01x", unknown("kind of value", b'x')),
        (b"I\0\0\0\x01N\0\x01b\0\0\0\x01a", DecodeError::BinaryValue),
        (b"I\0\0\0\x01N\xFF\xFFn", negative("a row's count of columns", -1)),
        (b"I\0\0\0\x01N\x7F\xFFn", truncated("a row's count of columns", 32767, 1)),
        (b"I\0\0\0\x01N\0\x01t\xFF\xFF\xFF\xFE", negative("a value's length", -2)),
        (b"T\xFF\xFF\xFF\xFF\0", negative("Truncate's count of relations", -1)),
        (b"T\x7F\xFF\xFF\xFF\0", truncated("Truncate's count of relations", 8589934588, 0)),
        (b"R\0\0\0\x01\0t\0x\0\0", unknown("replica identity", b'x')),
        (b"M\x01\0\0\0\0\0\0\0\x05p\0\xFF\xFF\xFF\xFF", negative("Message's length", -1)),
        (b"M\x01\0\0\0\0\0\0\0\x05p\0\x7F\0\0\0ab", truncated("Message's length", 0x7F00_0000, 2)),
        (b"M\x01\0\0\0\0\0\0\0\x05pp", truncated("Message's prefix", 3, 2)),
        (b"R\0\0\0\x01\0\xFF\0d\0\0", DecodeError::InvalidText { what: "Relation's name" }),
    ];
    for (bytes, expected) in cases {
        assert_eq!(decode(Bytes::from_static(bytes)), Err(expected.clone()), "{bytes:?}");
    }
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(message in any_message()) {
        let bytes = encode(&message);
        prop_assert_eq!(decode(bytes).map(normal), Ok(normal(message)));
    }

    #[test]
    fn only_the_exact_length_decodes(message in any_message(), extra: u8) {
        let bytes = encode(&message);
        for length in 0..bytes.len() {
            prop_assert!(decode(bytes.slice(..length)).is_err());
        }
        let mut longer = bytes.to_vec();
        longer.push(extra);
        prop_assert!(decode(longer.into()).is_err());
    }

    #[test]
    fn nothing_panics(letter in "[BCDIMORTUYx]", tail in vec(any::<u8>(), 0..80)) {
        let bytes: Bytes = [letter.as_bytes(), &tail].concat().into();
        if let Ok(Message::Insert { new, .. }) = decode(bytes.clone()) {
            // The values of whatever decoded lie within the message.
            prop_assert_eq!(new.iter().count(), new.len());
            prop_assert_eq!(new.data, bytes);
        }
    }

    #[test]
    fn a_flipped_byte_does_not_panic(message in any_message(), at: prop::sample::Index, byte: u8) {
        let mut bytes = encode(&message).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(decoded) = decode(bytes.into()) {
            normal(decoded);
        }
    }
}
