//! Schemas as Kafka Connect's JsonConverter reads them (`schemas.enable = true`): beside each key
//! and value, so that Connect's sinks and Debezium's transformations know the types.
//!
//! A column's type is one that its values really have: numerics and whatever Connect has no type
//! for are strings, with Debezium's semantic name where their form is the one that the name means.
//! JSON has no NaN and no infinities, and JsonConverter reads their strings as 0: a float that is
//! none of JSON's numbers is null.

use std::sync::Arc;

use super::source::push_text;
use super::table::TableShape;
use crate::postgres::text::Kind;
use crate::relation::ReplicaIdentity;

/// What stands before a key and a value: `{"schema":…,"payload":`
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Schemas {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// A field's type in Connect, its semantic name, and how its value is written.
fn connect_type(type_oid: u32, kind: &Kind) -> (&'static str, Option<&'static str>, Kind) {
    const JSON: Option<&str> = Some("io.debezium.data.Json");
    match (type_oid, kind) {
        (21, _) => ("int16", None, Kind::Number),
        (23, _) => ("int32", None, Kind::Number),
        (20, _) => ("int64", None, Kind::Number),
        (700, _) => ("float", None, Kind::Finite),
        (701, _) => ("double", None, Kind::Finite),
        (2950, _) => ("string", Some("io.debezium.data.Uuid"), Kind::Text),
        (142, _) => ("string", Some("io.debezium.data.Xml"), Kind::Text),
        (_, Kind::Bool) => ("boolean", None, Kind::Bool),
        (_, Kind::TimestampTz) => {
            ("string", Some("io.debezium.time.ZonedTimestamp"), Kind::TimestampTz)
        }
        (_, Kind::Json) => ("string", JSON, Kind::Text),
        (_, Kind::Hstore | Kind::Array { .. } | Kind::Vector(_) | Kind::Composite(_)) => {
            ("string", JSON, Kind::Quoted(Arc::new(kind.clone())))
        }
        (_, Kind::Timestamp | Kind::Quoted(_) | Kind::Finite) => ("string", None, kind.clone()),
        // A numeric keeps all its digits; so does a domain, whatever it is over.
        (_, Kind::Number | Kind::Text) => ("string", None, Kind::Text),
    }
}

/// How the columns are written, and the schemas that say so.
pub(super) fn schemas(shape: &TableShape) -> (Vec<Kind>, Schemas) {
    let columns = || shape.relation.columns.iter().zip(&shape.kinds);
    let kinds = columns().map(|(it, kind)| connect_type(it.type_oid, kind).2).collect();
    // The key of a table that is gone is its whole row, which may have nulls.
    let whole_row = shape.relation.replica_identity == ReplicaIdentity::Full
        && shape.key_columns.len() == shape.relation.columns.len();
    let field = |nth: usize, out: &mut Vec<u8>| {
        let column = &shape.relation.columns[nth];
        let (connect, name, kind) = connect_type(column.type_oid, &shape.kinds[nth]);
        out.extend_from_slice(format!(r#"{{"type":"{connect}","optional":"#).as_bytes());
        let needed = shape.key_columns.contains(&nth) && !whole_row && kind != Kind::Finite;
        out.extend_from_slice(if needed { b"false" } else { b"true" });
        if let Some(name) = name {
            out.extend_from_slice(format!(r#","name":"{name}","version":1"#).as_bytes());
        }
        out.extend_from_slice(br#","field":"#);
        push_text(&column.name, out);
        out.push(b'}');
    };
    let fields = |places: &mut dyn Iterator<Item = usize>, out: &mut Vec<u8>| {
        for (at, nth) in places.enumerate() {
            if at > 0 {
                out.push(b',');
            }
            field(nth, out);
        }
    };
    let (topic, mut key) = (&shape.topic, br#"{"schema":{"type":"struct","fields":["#.to_vec());
    fields(&mut shape.key_columns.iter().copied(), &mut key);
    let end = format!(r#"],"optional":false,"name":"{topic}.Key","version":1}},"payload":"#);
    key.extend_from_slice(end.as_bytes());

    let mut value = br#"{"schema":{"type":"struct","fields":["#.to_vec();
    for image in ["before", "after"] {
        value.extend_from_slice(br#"{"type":"struct","fields":["#);
        fields(&mut (0..shape.kinds.len()), &mut value);
        let end =
            format!(r#"],"optional":true,"name":"{topic}.Value","version":1,"field":"{image}"}},"#);
        value.extend_from_slice(end.as_bytes());
    }
    value.extend_from_slice(SOURCE_AND_REST.as_bytes());
    let end = format!(r#"],"optional":false,"name":"{topic}.Envelope","version":1}},"payload":"#);
    value.extend_from_slice(end.as_bytes());
    (kinds, Schemas { key, value })
}

/// The envelope's fields behind the images.
const SOURCE_AND_REST: &str = concat!(
    r#"{"type":"struct","fields":["#,
    r#"{"type":"string","optional":false,"field":"version"},"#,
    r#"{"type":"string","optional":false,"field":"connector"},"#,
    r#"{"type":"string","optional":false,"field":"name"},"#,
    r#"{"type":"int64","optional":false,"field":"ts_ms"},"#,
    r#"{"type":"string","optional":true,"field":"snapshot"},"#,
    r#"{"type":"string","optional":false,"field":"db"},"#,
    r#"{"type":"string","optional":true,"field":"sequence"},"#,
    r#"{"type":"int64","optional":true,"field":"ts_us"},"#,
    r#"{"type":"int64","optional":true,"field":"ts_ns"},"#,
    r#"{"type":"string","optional":false,"field":"schema"},"#,
    r#"{"type":"string","optional":false,"field":"table"},"#,
    r#"{"type":"int64","optional":true,"field":"txId"},"#,
    r#"{"type":"int64","optional":true,"field":"lsn"},"#,
    r#"{"type":"int64","optional":true,"field":"xmin"}"#,
    r#"],"optional":false,"name":"onelog.Source","version":1,"field":"source"},"#,
    r#"{"type":"struct","fields":[{"type":"string","optional":false,"field":"id"},"#,
    r#"{"type":"int64","optional":false,"field":"total_order"},"#,
    r#"{"type":"int64","optional":false,"field":"data_collection_order"}"#,
    r#"],"optional":true,"name":"event.block","version":1,"field":"transaction"},"#,
    r#"{"type":"string","optional":false,"field":"op"},"#,
    r#"{"type":"int64","optional":true,"field":"ts_ms"},"#,
    r#"{"type":"int64","optional":true,"field":"ts_us"},"#,
    r#"{"type":"int64","optional":true,"field":"ts_ns"}"#,
);
