//! `[[topics]]`: what somebody has said of topics, by name or by pattern, and what follows from it
//! and from the kind for a topic's settings in Kafka.
//!
//! A topic is as the first declaration says that has its name; the others say nothing of it. What
//! a table's own topic must be for those who read it is not up to a declaration: rows without a
//! key are never compacted, and no command's retention eats the changes of a table.

use std::time::Duration;

use globset::GlobBuilder;

use crate::config::KafkaConfig;
use crate::postgres::row_filter::RowFilter;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What a topic is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The newest value of each key is what counts: compacted, once old values were kept for a while.
    Entity,
    /// What happened is a fact for ever.
    Event,
    /// What somebody is to do: of no use once it is long done.
    Command,
    Request,
    Response,
}

impl Kind {
    /// How long records are kept that nothing else keeps. None: for ever.
    fn retention(self) -> Option<Duration> {
        match self {
            Self::Entity | Self::Event => None,
            // Time to mend whoever does not carry them out, over a weekend.
            Self::Command => Some(7 * DAY),
            // Whoever has asked has given up long before.
            Self::Request | Self::Response => Some(DAY),
        }
    }

    /// Whether a table's own changes may be of this kind.
    fn is_of_tables(self) -> bool {
        matches!(self, Self::Entity | Self::Event)
    }
}

/// Kafka's `cleanup.policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CleanupPolicy {
    Compact,
    Delete,
    CompactDelete,
}

impl CleanupPolicy {
    pub fn compacts(self) -> bool {
        self != Self::Delete
    }

    pub fn deletes(self) -> bool {
        self != Self::Compact
    }
}

/// For how long records are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Forever,
    For(Duration),
}

/// One `[[topics]]`: what is not said is as the kind and `[kafka]` have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Declaration {
    /// A topic's name, or a pattern with `*` and `?`.
    pub name: String,
    pub kind: Kind,
    pub cleanup_policy: Option<CleanupPolicy>,
    pub min_compaction_lag: Option<Duration>,
    pub retention: Option<Retention>,
    pub partitions: Option<i32>,
    pub replication_factor: Option<i32>,
    /// It is a topic besides the own one of a table.
    pub extract: Option<TableTopic>,
    pub format: Format,
    /// Records have CloudEvents' headers.
    pub cloudevents: bool,
}

/// What of a table goes to another topic than its own.
#[derive(Debug, Clone, PartialEq)]
pub struct TableTopic {
    /// `namespace.table`; a partitioned one by its root.
    pub table: String,
    /// Empty: all.
    pub columns: Vec<String>,
    pub filter: Option<RowFilter>,
}

/// How the changes of a table are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Debezium's envelope, the one that mappings read.
    Json,
    /// The row alone, or nothing for one that was deleted.
    Flat,
    /// The envelope beside its schema, as Kafka Connect's JsonConverter has it.
    JsonWithSchema,
}

impl Declaration {
    /// Of one topic, as its kind has it.
    pub fn of_kind(name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            cleanup_policy: None,
            min_compaction_lag: None,
            retention: None,
            partitions: None,
            replication_factor: None,
            extract: None,
            format: Format::Json,
            cloudevents: false,
        }
    }

    /// It names one topic, which is made whether or not anybody writes to it.
    pub fn is_exact(&self) -> bool {
        !self.name.contains(['*', '?'])
    }

    pub fn has(&self, topic: &str) -> bool {
        if self.is_exact() {
            return self.name == topic;
        }
        // The name has been checked; were it no pattern, it would be of no topic.
        let glob = GlobBuilder::new(&self.name).literal_separator(false).build();
        glob.is_ok_and(|it| it.compile_matcher().is_match(topic))
    }

    fn policy(&self) -> CleanupPolicy {
        self.cleanup_policy.unwrap_or(match self.kind {
            Kind::Entity => CleanupPolicy::Compact,
            Kind::Event | Kind::Command | Kind::Request | Kind::Response => CleanupPolicy::Delete,
        })
    }

    fn settings(&self, kafka: &KafkaConfig) -> TopicSettings {
        let policy = self.policy();
        let retention = self.retention.or(self.kind.retention().map(Retention::For));
        TopicSettings {
            policy,
            min_compaction_lag: self.min_compaction_lag.unwrap_or(kafka.min_compaction_lag),
            retention: retention.unwrap_or(Retention::Forever),
            append_time: self.kind == Kind::Entity,
        }
    }
}

/// What Kafka is to be told of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSettings {
    pub policy: CleanupPolicy,
    /// Only if it is compacted.
    pub min_compaction_lag: Duration,
    /// Only if its records are deleted at all.
    pub retention: Retention,
    /// Records have the time of the broker's clock, not their writer's.
    pub append_time: bool,
}

impl TopicSettings {
    pub fn named(self) -> Vec<(&'static str, String)> {
        let policy = match self.policy {
            CleanupPolicy::Compact => "compact",
            CleanupPolicy::Delete => "delete",
            CleanupPolicy::CompactDelete => "compact,delete",
        };
        let mut all = vec![("cleanup.policy", policy.to_owned())];
        if self.append_time {
            // By the broker's clock: the lag and the translator's age check go by it (B15).
            all.push(("message.timestamp.type", "LogAppendTime".to_owned()));
        }
        if self.policy.compacts() {
            let lag = self.min_compaction_lag.as_millis().to_string();
            all.push(("min.compaction.lag.ms", lag));
        }
        if self.policy.deletes() {
            let retention = match self.retention {
                Retention::Forever => "-1".to_owned(),
                Retention::For(time) => time.as_millis().to_string(),
            };
            all.push(("retention.ms", retention));
            all.push(("retention.bytes", "-1".to_owned()));
        }
        all
    }
}

impl KafkaConfig {
    /// Has a topic made that somebody speaks of elsewhere: as it is declared, else as `kind` has it.
    pub fn declare(&mut self, topic: &str, kind: Kind) {
        let declared = match self.declaration(topic) {
            Some(it) if it.is_exact() => return,
            Some(pattern) => Declaration { name: topic.to_owned(), ..pattern.clone() },
            None => Declaration::of_kind(topic, kind),
        };
        self.topics.push(declared);
    }

    /// What is said of a topic that events or anybody else's records go to.
    pub fn declaration(&self, topic: &str) -> Option<&Declaration> {
        self.topics.iter().find(|it| it.has(topic))
    }

    /// What is said of a table's own topic.
    pub fn table_declaration(&self, topic: &str) -> Option<&Declaration> {
        let mut of_tables = self.topics.iter().filter(|it| it.kind.is_of_tables());
        of_tables.find(|it| it.extract.is_none() && it.has(topic))
    }

    /// A table's own topic, or an extract as declared: `keyed` if its records have keys.
    pub fn table_settings(&self, declared: Option<&Declaration>, keyed: bool) -> TopicSettings {
        let declared = declared.map(|it| it.settings(self));
        let mut settings = declared.unwrap_or(TopicSettings {
            policy: CleanupPolicy::Compact,
            min_compaction_lag: self.min_compaction_lag,
            retention: Retention::Forever,
            append_time: true,
        });
        settings.append_time = true;
        if !keyed {
            // Compaction refuses null keys.
            settings.policy = CleanupPolicy::Delete;
        }
        settings
    }

    /// A topic of events, or whatever it is declared as.
    pub fn event_settings(&self, topic: &str) -> TopicSettings {
        let declared = self.declaration(topic).map(|it| it.settings(self));
        declared.unwrap_or(TopicSettings {
            policy: CleanupPolicy::Delete,
            min_compaction_lag: self.min_compaction_lag,
            retention: Retention::Forever,
            append_time: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;

    fn kafka(topics: &str) -> KafkaConfig {
        let text = format!(
            "[postgres]\nurl = \"postgres://onelog@localhost/app\"\ntables = [\"public.*\"]\n\
             [kafka]\nbrokers = \"localhost:9092\"\ntopic_prefix = \"app\"\n\
             [elasticsearch]\nurl = \"http://localhost:9200\"\n{topics}"
        );
        parse("config.toml".as_ref(), &text, &|_| None).unwrap().kafka
    }

    fn shown(settings: TopicSettings) -> String {
        let all = settings.named();
        all.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_kind_is_its_settings_and_what_is_said_wins() {
        let cases = [
            ("", "cleanup.policy=delete retention.ms=-1 retention.bytes=-1"),
            ("kind = \"event\"", "cleanup.policy=delete retention.ms=-1 retention.bytes=-1"),
            (
                "kind = \"entity\"",
                "cleanup.policy=compact message.timestamp.type=LogAppendTime \
                 min.compaction.lag.ms=604800000",
            ),
            (
                "kind = \"command\"",
                "cleanup.policy=delete retention.ms=604800000 retention.bytes=-1",
            ),
            (
                "kind = \"request\"",
                "cleanup.policy=delete retention.ms=86400000 retention.bytes=-1",
            ),
            (
                "kind = \"response\"\nretention = \"1h\"",
                "cleanup.policy=delete retention.ms=3600000 retention.bytes=-1",
            ),
            (
                "kind = \"command\"\nretention = \"forever\"",
                "cleanup.policy=delete retention.ms=-1 retention.bytes=-1",
            ),
            (
                "kind = \"event\"\ncleanup_policy = \"compact,delete\"\nretention = \"30d\"\n\
                 min_compaction_lag = \"8d\"",
                "cleanup.policy=compact,delete min.compaction.lag.ms=691200000 \
                 retention.ms=2592000000 retention.bytes=-1",
            ),
        ];
        for (said, expected) in cases {
            let said = match said {
                "" => String::new(),
                said => format!("[[topics]]\nname = \"pay.*\"\n{said}\n"),
            };
            let declared = kafka(&said);
            assert_eq!(shown(declared.event_settings("pay.card.v1")), expected, "{said}");
            let other = shown(declared.event_settings("repay"));
            assert_eq!(other, shown(kafka("").event_settings("any")), "{said}");
        }
    }

    #[test]
    fn a_table_keeps_what_its_readers_need() {
        let compacted = "cleanup.policy=compact message.timestamp.type=LogAppendTime \
                         min.compaction.lag.ms=604800000";
        let kept = "cleanup.policy=delete message.timestamp.type=LogAppendTime retention.ms=-1 \
                    retention.bytes=-1";
        let at =
            |name: &str, kind: &str| format!("[[topics]]\nname = \"{name}\"\nkind = \"{kind}\"\n");
        let said = |kind: &str| at("app.*", kind);
        let cases = [
            (String::new(), true, compacted),
            (String::new(), false, kept),
            (said("entity"), true, compacted),
            (said("entity"), false, kept),
            (said("event"), true, kept),
            (said("command"), true, compacted),
            // The first that may be a table's.
            (said("request") + &at("app.public.*", "event") + &at("*", "entity"), true, kept),
        ];
        for (said, keyed, expected) in cases {
            let settings = {
                let kafka = kafka(&said);
                kafka.table_settings(kafka.table_declaration("app.public.t"), keyed)
            };
            assert_eq!(shown(settings), expected, "{said}, keyed: {keyed}");
        }
    }
}
