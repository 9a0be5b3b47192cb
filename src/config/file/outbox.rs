//! `[outbox]`: the defaults are those of [`OutboxConfig::default`].

use std::time::Duration;

use super::{checked, checks};
use crate::config::{OutboxColumns, OutboxConfig};
use crate::mistake::written::{Source, Table};
use crate::outbox::template::TopicTemplate;

pub(super) fn outbox(
    source: &Source<'_>,
    mut table: Table<'_, '_>,
    topic_prefix: &str,
) -> OutboxConfig {
    let default = OutboxConfig::default();
    let tables = table.take_strings("tables").map_or_else(Vec::new, |list| {
        let each = list.value.into_iter();
        each.filter_map(|it| checked(source, Some(it), checks::table_name)).collect()
    });
    let template = |it: &str| TopicTemplate::parse(it, topic_prefix);
    let topic = checked(source, table.take_string("topic"), template);
    let columns = columns(source, &mut table);
    let header_columns = table.take_strings("header_columns").map_or_else(Vec::new, |list| {
        let each = list.value.into_iter();
        each.filter_map(|it| checked(source, Some(it), checks::header_column)).collect()
    });
    let tombstones = table.take_bool("tombstones");
    let allow_null_key = table.take_bool("allow_null_key");
    let cleanup_after = table.take_interval("cleanup_after");
    table.finish();
    OutboxConfig {
        tables,
        topic: topic.unwrap_or(default.topic),
        columns,
        header_columns,
        tombstones: tombstones.unwrap_or(default.tombstones),
        allow_null_key: allow_null_key.unwrap_or(default.allow_null_key),
        cleanup_after: cleanup_after.unwrap_or(Duration::ZERO),
    }
}

fn columns(source: &Source<'_>, table: &mut Table<'_, '_>) -> OutboxColumns {
    let mut named = |key: &'static str| {
        let column = |it: &str| match it {
            "" => Err(format!("{key} must name a column")),
            name => Ok(name.to_owned()),
        };
        checked(source, table.take_string(key), column)
    };
    let default = OutboxColumns::default();
    let one = |name: Option<String>, default| name.map_or(default, |it| vec![it]);
    let headers = named("headers_column");
    OutboxColumns {
        id: one(named("id_column"), default.id),
        aggregate_type: one(named("aggregatetype_column"), default.aggregate_type),
        aggregate_id: one(named("aggregateid_column"), default.aggregate_id),
        kind: one(named("type_column"), default.kind),
        payload: one(named("payload_column"), default.payload),
        headers_named: headers.is_some(),
        headers: one(headers, default.headers),
        timestamp: named("timestamp_column"),
        partition: named("partition_column"),
    }
}
