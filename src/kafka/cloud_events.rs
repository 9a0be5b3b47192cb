//! CloudEvents' attributes as headers of a record: the Kafka binding's binary mode, version 1.0.2.

use std::time::{Duration, UNIX_EPOCH};

use crate::kafka::envelope::Header;

/// Context attributes of one event.
#[derive(Debug, Clone, Copy)]
pub struct CloudEvent<'a> {
    /// Unique with `source`, and the same when the event is published again.
    pub id: &'a str,
    /// A URI reference.
    pub source: &'a str,
    pub kind: &'a str,
    pub subject: Option<&'a str>,
    /// Since 1970.
    pub time_ms: i64,
    /// None: there is no value.
    pub content_type: Option<&'a str>,
}

impl CloudEvent<'_> {
    pub fn add_to(self, headers: &mut Vec<Header>) {
        let time = Duration::from_millis(u64::try_from(self.time_ms).unwrap_or(0));
        let time = humantime::format_rfc3339_millis(UNIX_EPOCH + time).to_string();
        let all = [
            ("ce_specversion", Some("1.0")),
            ("ce_id", Some(self.id)),
            ("ce_source", Some(self.source)),
            ("ce_type", Some(self.kind)),
            ("ce_subject", self.subject),
            ("ce_time", Some(&time)),
            ("content-type", self.content_type),
        ];
        for (name, value) in all {
            // What somebody has said of the event wins.
            if let Some(value) = value
                && headers.iter().all(|it| it.0 != name)
            {
                headers.push((name.to_owned(), value.to_owned()));
            }
        }
    }
}
