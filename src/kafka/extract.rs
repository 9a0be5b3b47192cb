//! Extracts: a table's changes in another topic, with some of the columns, some of the rows, or in
//! another format. The table's own topic stays whole, since key paths start from its images.
//!
//! A row filter is of rows, so an UPDATE may let a row in or out: in, it is an INSERT there; out, a
//! DELETE. What the old row was must be known for that; under a replica identity that does not send
//! it (which the config is held against, but the stream may be older than what was altered since)
//! the row is published or deleted either way: the last record of a key is right even so.
//!
//! **Invariant:** the last record of a key in the topic is the row as it is, if it passes, or a
//! tombstone, or there is none.

use std::sync::Arc;

use crate::change::{Change, Datum, OldRow, Span, Tuple};
use crate::config::KafkaConfig;
use crate::config::topics::{Declaration, Format};
use crate::kafka::envelope::TableShape;
use crate::kafka::topics::WantedTopic;
use crate::postgres::row_filter::{BoundFilter, RowFilter, Value, Verdict};

/// A topic that a table's changes go to besides its own, or its own if that is no plain envelope.
#[derive(Debug)]
pub struct Extract {
    /// Of the columns that it has.
    pub shape: Arc<TableShape>,
    /// Where these are in the table's rows.
    places: Vec<usize>,
    /// Whether columns of the table are in its old rows, by their place there.
    in_identity: Vec<bool>,
    filter: Option<BoundFilter>,
    /// What the config names and the table does not have now.
    pub missing: Vec<String>,
    pub wanted: WantedTopic,
    /// Its records have the headers of CloudEvents.
    pub cloud_events: bool,
}

impl Extract {
    /// All that are declared of a table.
    pub fn all(config: &KafkaConfig, shape: &TableShape) -> Vec<Self> {
        let mut all = Vec::new();
        let keyed = !shape.key_columns.is_empty();
        let plain = |it: &Declaration| it.format == Format::Json && !it.cloudevents;
        let own = config.table_declaration(&shape.topic);
        if let Some(declared) = own.filter(|it| !plain(it)) {
            let wanted = WantedTopic::of_table(config, &shape.topic, keyed);
            all.push(Self::new((declared, &[], None), shape, wanted));
        }
        for declared in &config.topics {
            if let Some(it) = &declared.extract
                && config.table_topic(&it.table) == *shape.topic
            {
                let wanted = WantedTopic::of_extract(config, declared, keyed);
                let part = (declared, &it.columns[..], it.filter.as_ref());
                all.push(Self::new(part, shape, wanted));
            }
        }
        all
    }

    /// The key's columns are there even if they are not listed: without them there is no record.
    fn new(
        (declared, names, filter): (&Declaration, &[String], Option<&RowFilter>),
        shape: &TableShape,
        wanted: WantedTopic,
    ) -> Self {
        let columns = &shape.relation.columns;
        let listed = |name: &String| names.is_empty() || names.contains(name);
        let places: Vec<usize> = (0..columns.len())
            .filter(|nth| listed(&columns[*nth].name) || shape.key_columns.contains(nth))
            .collect();
        let read = filter.into_iter().flat_map(|it| it.columns()).map(str::to_owned);
        let missing = names.iter().cloned().chain(read);
        let missing = missing.filter(|name| columns.iter().all(|it| it.name != *name)).collect();
        let topic = wanted.name.as_str().into();
        Self {
            shape: Arc::new(shape.narrowed(topic, &places).formatted(declared.format)),
            places,
            in_identity: columns.iter().map(|it| it.in_identity).collect(),
            filter: filter.map(|it| it.bind(&shape.relation)),
            missing,
            wanted,
            cloud_events: declared.cloudevents,
        }
    }

    /// What a change of the table is in this topic. None: nothing.
    pub fn change(&self, change: &Change) -> Option<Change> {
        let relation = Arc::clone(&self.shape.relation);
        match change {
            Change::Insert { new, .. } => {
                let passes = self.passes(|nth| new.get(nth)) != Verdict::Fails;
                passes.then(|| Change::Insert { relation, new: self.narrow(new) })
            }
            Change::Update { old, new, .. } => self.update(old.as_ref(), new),
            Change::Delete { old, .. } => {
                let passes = self.passes(|nth| self.old_value(old, nth)) != Verdict::Fails;
                passes.then(|| Change::Delete { relation, old: self.narrow_old(old) })
            }
            Change::Truncate { cascade, restart_identity, .. } => Some(Change::Truncate {
                relations: vec![relation],
                cascade: *cascade,
                restart_identity: *restart_identity,
            }),
        }
    }

    /// What a row that a copy has read is in this topic. None: it does not pass.
    pub fn row(&self, row: &Tuple) -> Option<Tuple> {
        (self.passes(|nth| row.get(nth)) != Verdict::Fails).then(|| self.narrow(row))
    }

    fn update(&self, old: Option<&OldRow>, new: &Tuple) -> Option<Change> {
        let relation = Arc::clone(&self.shape.relation);
        let now = self.passes(|nth| self.new_value(old, new, nth));
        let before = self.passes(|nth| match old {
            Some(old) => self.old_value(old, nth),
            // The identity's columns are what they were.
            None if self.in_identity.get(nth) == Some(&true) => new.get(nth),
            None => Some(Datum::UnchangedToast),
        });
        match (before, now) {
            (Verdict::Fails, Verdict::Fails) => None,
            (Verdict::Fails, Verdict::Passes | Verdict::Unsure) => {
                let whole = |nth| self.new_value(old, new, nth).unwrap_or(Datum::Null);
                let new = Tuple::from_datums(self.places.iter().map(|&nth| whole(nth)));
                Some(Change::Insert { relation, new })
            }
            (Verdict::Passes | Verdict::Unsure, Verdict::Fails) => {
                let same = || OldRow::Identity(self.narrow(new));
                let old = old.map_or_else(same, |it| self.narrow_old(it));
                Some(Change::Delete { relation, old })
            }
            (Verdict::Passes | Verdict::Unsure, Verdict::Passes | Verdict::Unsure) => {
                let (old, new) = (old.map(|it| self.narrow_old(it)), self.narrow(new));
                Some(Change::Update { relation, old, new })
            }
        }
    }

    fn passes<'t>(&self, datum: impl Fn(usize) -> Option<Datum<'t>>) -> Verdict {
        let value = |nth| datum(nth).map_or(Value::Null, Value::from);
        self.filter.as_ref().map_or(Verdict::Passes, |it| it.verdict(&value))
    }

    /// Of a column of the old row; one that was not sent is as an unchanged TOASTed value is.
    fn old_value<'t>(&self, old: &'t OldRow, nth: usize) -> Option<Datum<'t>> {
        match old {
            OldRow::Full(row) => row.get(nth),
            OldRow::Identity(row) if self.in_identity.get(nth) == Some(&true) => row.get(nth),
            OldRow::Identity(_) => Some(Datum::UnchangedToast),
        }
    }

    /// Of a column of the new row, from the old one if it is not sent twice.
    fn new_value<'t>(
        &self,
        old: Option<&'t OldRow>,
        new: &'t Tuple,
        nth: usize,
    ) -> Option<Datum<'t>> {
        match (new.get(nth), old) {
            (Some(Datum::UnchangedToast), Some(old)) => self.old_value(old, nth),
            (datum, _) => datum,
        }
    }

    fn narrow(&self, row: &Tuple) -> Tuple {
        let span = |&nth: &usize| row.spans.get(nth).cloned().unwrap_or(Span::Null);
        Tuple { data: row.data.clone(), spans: self.places.iter().map(span).collect() }
    }

    fn narrow_old(&self, old: &OldRow) -> OldRow {
        match old {
            OldRow::Full(row) => OldRow::Full(self.narrow(row)),
            OldRow::Identity(row) => OldRow::Identity(self.narrow(row)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;
    use crate::postgres::text::TypeKinds;
    use crate::relation::{Column, Relation, RelationId, ReplicaIdentity};

    fn config(filter: &str) -> KafkaConfig {
        let text = format!(
            "[postgres]\nurl = \"postgres://onelog@localhost/app\"\ntables = [\"public.*\"]\n\
             [kafka]\nbrokers = \"localhost:9092\"\ntopic_prefix = \"app\"\n\
             [elasticsearch]\nurl = \"http://localhost:9200\"\n\
             [[topics]]\nname = \"few\"\nkind = \"entity\"\ntable = \"public.t\"\n\
             columns = [\"name\"]\nwhere = \"{filter}\"\n"
        );
        parse("config.toml".as_ref(), &text, &|_| None).unwrap().kafka
    }

    /// A table (id, kind, big, name) with primary key id.
    fn shape(replica_identity: ReplicaIdentity) -> TableShape {
        let full = replica_identity == ReplicaIdentity::Full;
        let column = |name: &str, type_oid| Column {
            name: name.to_owned(),
            type_oid,
            type_modifier: -1,
            in_identity: full || name == "id",
        };
        let relation = Relation {
            id: RelationId(1),
            namespace: "public".to_owned(),
            name: "t".to_owned(),
            replica_identity,
            columns: [("id", 23), ("kind", 25), ("big", 25), ("name", 25)]
                .map(|it| column(it.0, it.1))
                .into(),
        };
        let key = ["id".to_owned()];
        let topic = "app.public.t".into();
        TableShape::new(Arc::new(relation), topic, &key, &TypeKinds::new()).unwrap()
    }

    /// `id kind big name`: `-` is NULL, `?` was not sent.
    fn row(text: &str) -> Tuple {
        Tuple::from_datums(text.split(' ').map(|it| match it {
            "-" => Datum::Null,
            "?" => Datum::UnchangedToast,
            text => Datum::Text(text.as_bytes()),
        }))
    }

    fn told(row: &Tuple) -> String {
        let show = |it: Datum<'_>| match it {
            Datum::Null => "-".to_owned(),
            Datum::UnchangedToast => "?".to_owned(),
            Datum::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
        };
        row.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    /// `old -> new` as the extract's change; an old row in parentheses is the identity's.
    fn check(filter: &str, identity: ReplicaIdentity, change: &str) -> String {
        let shape = shape(identity);
        let extract = Extract::all(&config(filter), &shape).pop().unwrap();
        let relation = Arc::clone(&shape.relation);
        let old = |text: &str| match text.strip_prefix('(').and_then(|it| it.strip_suffix(')')) {
            Some(text) => OldRow::Identity(row(text)),
            None => OldRow::Full(row(text)),
        };
        let change = match change.split_once(" -> ").unwrap() {
            ("", new) => Change::Insert { relation, new: row(new) },
            ("same", new) => Change::Update { relation, old: None, new: row(new) },
            (it, "gone") => Change::Delete { relation, old: old(it) },
            (it, new) => Change::Update { relation, old: Some(old(it)), new: row(new) },
        };
        let told_old = |old: &OldRow| match old {
            OldRow::Full(row) => told(row),
            OldRow::Identity(row) => format!("({})", told(row)),
        };
        match extract.change(&change) {
            None => "nothing".to_owned(),
            Some(Change::Insert { new, .. }) => format!("c {}", told(&new)),
            Some(Change::Update { old, new, .. }) => {
                format!("u {} -> {}", old.as_ref().map_or("same".to_owned(), told_old), told(&new))
            }
            Some(Change::Delete { old, .. }) => format!("d {}", told_old(&old)),
            Some(Change::Truncate { .. }) => "t".to_owned(),
        }
    }

    #[test]
    fn a_row_enters_stays_in_and_leaves_the_topic() {
        use ReplicaIdentity::{Default, Full};
        let cases = [
            (Full, " -> 1 a B n", "c 1 n"),
            (Full, " -> 1 x B n", "nothing"),
            (Full, "1 a B n -> 1 a B m", "u 1 n -> 1 m"),
            (Full, "1 x B n -> 1 x B m", "nothing"),
            (Full, "1 x B n -> 1 a B m", "c 1 m"),
            (Full, "1 a B n -> 1 x B m", "d 1 n"),
            (Full, "1 a B n -> 1 - B m", "d 1 n"),
            // Another key is another row.
            (Full, "1 a B n -> 2 a B n", "u 1 n -> 2 n"),
            (Full, "1 x B n -> 2 a B n", "c 2 n"),
            (Full, "1 a B n -> 2 x B n", "d 1 n"),
            // What is not sent twice is what it was.
            (Full, "1 a B n -> 1 ? ? m", "u 1 n -> 1 m"),
            (Full, "1 x B n -> 1 ? ? m", "nothing"),
            (Full, "1 x B n -> 1 a ? ?", "c 1 n"),
            (Full, "1 a B n -> gone", "d 1 n"),
            (Full, "1 x B n -> gone", "nothing"),
            // Without the old row the key's last record is right, if there are more than need be.
            (Default, " -> 1 x B n", "nothing"),
            (Default, "same -> 1 a B n", "u same -> 1 n"),
            (Default, "same -> 1 x B n", "d (1 n)"),
            (Default, "same -> 1 ? B n", "u same -> 1 n"),
            (Default, "(1 - - -) -> 2 a B n", "u (1 -) -> 2 n"),
            (Default, "(1 - - -) -> 2 x B n", "d (1 -)"),
            (Default, "(1 - - -) -> gone", "d (1 -)"),
        ];
        for (identity, change, expected) in cases {
            assert_eq!(check("kind = 'a'", identity, change), expected, "{identity:?} {change}");
        }
    }

    #[test]
    fn a_filter_of_the_key_alone_needs_no_more_than_the_key() {
        use ReplicaIdentity::Default;
        let cases = [
            ("same -> 1 a B n", "nothing"),
            ("same -> 5 a B n", "u same -> 5 n"),
            ("(1 - - -) -> 5 a B n", "c 5 n"),
            ("(5 - - -) -> 1 a B n", "d (5 -)"),
            ("(1 - - -) -> gone", "nothing"),
            ("(5 - - -) -> gone", "d (5 -)"),
        ];
        for (change, expected) in cases {
            assert_eq!(check("id >= 5", Default, change), expected, "{change}");
        }
    }

    #[test]
    fn what_the_table_lacks_is_named_and_null_in_the_filter() {
        let shape = shape(ReplicaIdentity::Full);
        let extract = Extract::all(&config("gone IS NULL AND kind = 'a'"), &shape).pop().unwrap();
        assert_eq!(extract.missing, ["gone"]);
        assert!(extract.row(&row("1 a B n")).is_some());
        assert!(extract.row(&row("1 x B n")).is_none());
        assert!(
            Extract::all(&config("id = 1"), &shape.narrowed("app.public.u".into(), &[0]))
                .is_empty()
        );
    }
}
