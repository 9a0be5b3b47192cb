//! From a change record to the keys it touches, and to the lookups that find the rest. Pure.
//!
//! Both images count, the old and the new: a moved row leaves one document and enters another. A
//! column that an image does not have means that the record was written under another definition
//! of the table; then no path can be trusted and the collection is swept (A13). So it is with an
//! update without its old image, where the plan counts on one.
//!
//! Records are told by their topic first: a partition's come under its own name on its root's.

use std::collections::{BTreeSet, HashMap};

use crate::document::DocumentKey;
use crate::document::pending::BuildId;
use crate::kafka::record::{ChangeRecord, Image, Op, Value};
use crate::mapping::plan::{CollectionPlan, Path, TableName};
use crate::relation::ReplicaIdentity;

/// One path of one build: which query finds keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId {
    pub build: BuildId,
    pub entry: usize,
    pub path: usize,
}

/// What a record leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub keys: BTreeSet<(BuildId, DocumentKey)>,
    /// Values of the path's columns, one list for each image, without repeats.
    pub lookups: BTreeSet<(PathId, Vec<Option<String>>)>,
    /// Collections of which nothing less than everything must be looked at.
    pub sweeps: BTreeSet<BuildId>,
}

#[derive(Debug)]
struct Route {
    build: BuildId,
    entry: usize,
    /// Whose records; None: all of the topic's.
    members: Option<BTreeSet<TableName>>,
    identity: ReplicaIdentity,
    /// What the entry reads of the table; None: all columns.
    columns: Option<BTreeSet<String>>,
    paths: Vec<(usize, Start)>,
}

#[derive(Debug, Clone)]
enum Start {
    Key(String),
    Lookup {
        columns: Vec<String>,
        /// Of `columns`: given as JSON.
        json: BTreeSet<String>,
        /// NULL joins with nothing, but a value that is computed may well come of one.
        strict: bool,
    },
}

/// Which builds a table's changes concern.
#[derive(Debug, Default)]
pub struct Router {
    by_topic: HashMap<String, Vec<Route>>,
}

impl Router {
    /// Routes the plan's tables to `build` from now on. `topic_of` names a table's topic.
    pub fn add(
        &mut self,
        build: BuildId,
        plan: &CollectionPlan,
        topic_of: impl Fn(&TableName) -> String,
    ) {
        for (nth, entry) in plan.entries.iter().enumerate() {
            for table in &entry.tables {
                let paths = entry.paths.iter().enumerate().filter(|(_, it)| it.table == table.name);
                let paths = paths.map(|(at, it)| {
                    let start = match &it.path {
                        Path::InRow { column } => Start::Key(column.clone()),
                        Path::Lookup(lookup) => Start::Lookup {
                            columns: lookup.columns.clone(),
                            json: lookup.json.clone(),
                            strict: lookup.strict,
                        },
                    };
                    (at, start)
                });
                let paths: Vec<(usize, Start)> = paths.collect();
                for source in &table.sources {
                    let route = Route {
                        build,
                        entry: nth,
                        members: source.members.clone(),
                        // What nothing is known of promises least.
                        identity: table.identity.unwrap_or(ReplicaIdentity::Default),
                        columns: table.columns.clone(),
                        paths: paths.clone(),
                    };
                    self.by_topic.entry(topic_of(&source.topic)).or_default().push(route);
                }
            }
        }
    }

    /// Forgets a build.
    pub fn remove(&mut self, build: BuildId) {
        for routes in self.by_topic.values_mut() {
            routes.retain(|it| it.build != build);
        }
        self.by_topic.retain(|_, routes| !routes.is_empty());
    }

    /// What a record of `topic` touches in all builds.
    pub fn touched(&self, topic: &str, record: &ChangeRecord<'_>) -> Touched {
        let mut touched = Touched::default();
        let table = TableName {
            namespace: record.namespace.clone().into_owned(),
            name: record.table.clone().into_owned(),
        };
        for route in self.by_topic.get(topic).into_iter().flatten() {
            if route.members.as_ref().is_some_and(|it| !it.contains(&table)) {
                continue;
            }
            if record.op == Op::Truncate {
                touched.sweeps.insert(route.build);
                continue;
            }
            let columns = route.columns.as_ref();
            if record.op == Op::Update && !record.columns_changed_under(route.identity, columns) {
                continue;
            }
            let full = route.identity == ReplicaIdentity::Full;
            if full && record.op == Op::Update && record.before.is_none() {
                touched.sweeps.insert(route.build);
                continue;
            }
            for image in [&record.before, &record.after].into_iter().flatten() {
                for (at, start) in &route.paths {
                    let id = PathId { build: route.build, entry: route.entry, path: *at };
                    follow(id, start, image, &mut touched);
                }
            }
        }
        touched
    }
}

fn follow(id: PathId, start: &Start, image: &Image<'_>, touched: &mut Touched) {
    match start {
        Start::Key(column) => match image.value(column) {
            Value::Text(text) => {
                touched.keys.insert((id.build, DocumentKey(text.into_owned())));
            }
            Value::Null => {}
            Value::Missing | Value::Unavailable => {
                touched.sweeps.insert(id.build);
            }
        },
        Start::Lookup { columns, json, strict } => {
            let mut values = Vec::with_capacity(columns.len());
            for column in columns {
                let value = match json.contains(column) {
                    true => image.json(column),
                    false => image.value(column),
                };
                match value {
                    Value::Text(text) => values.push(Some(text.into_owned())),
                    Value::Null => values.push(None),
                    Value::Missing | Value::Unavailable => {
                        touched.sweeps.insert(id.build);
                        return;
                    }
                }
            }
            if !strict || values.iter().all(Option::is_some) {
                touched.lookups.insert((id, values));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::record;
    use crate::mapping::Nest;
    use crate::mapping::plan::{OccurrencePath, Source, TableRead};

    fn name(name: &str) -> TableName {
        TableName { namespace: "public".to_owned(), name: name.to_owned() }
    }

    /// A build that reads `p` and has its key from column `k`.
    fn router(identity: ReplicaIdentity, members: Option<BTreeSet<TableName>>) -> Router {
        let mut plan = crate::document::build::test_plan(&[(Nest::Top, false)]);
        plan.entries[0].tables.push(TableRead {
            name: name("p"),
            oid: 1,
            columns: Some(BTreeSet::from(["k".to_owned()])),
            published: true,
            identity: Some(identity),
            sources: vec![Source { topic: name("p"), members }],
            identity_lacks: BTreeSet::new(),
        });
        let path = Path::InRow { column: "k".to_owned() };
        plan.entries[0].paths.push(OccurrencePath {
            table: name("p"),
            alias: "p".to_owned(),
            path,
        });
        let mut router = Router::default();
        router.add(1, &plan, |it| it.to_string());
        router
    }

    /// The keys and the number of sweeps of a record of table `table` on the topic of `p`.
    fn touched(router: &Router, table: &str, op: &str, images: (&str, &str)) -> (String, usize) {
        let (before, after) = images;
        let text = format!(
            r#"{{"before":{before},"after":{after},"op":"{op}",
                "source":{{"schema":"public","table":"{table}"}}}}"#
        );
        let headers = [
            (record::HEADER_LSN, "0/1"),
            (record::HEADER_TXID, "5"),
            (record::HEADER_TIMELINE, "1"),
            (record::HEADER_SYSTEM, "7"),
        ];
        let headers = headers.map(|(name, value)| (name, Some(value.as_bytes())));
        let record = record::parse(Some(text.as_bytes()), headers).unwrap().unwrap();
        let touched = router.touched("public.p", &record);
        let keys: Vec<String> = touched.keys.into_iter().map(|(_, it)| it.0).collect();
        (keys.join(" "), touched.sweeps.len())
    }

    #[test]
    fn a_root_is_touched_by_every_partition_and_a_partition_by_itself() {
        let row = ("null", r#"{"k":5}"#);
        let root = router(ReplicaIdentity::Full, None);
        assert_eq!(touched(&root, "p_unheard_of", "c", row), ("5".to_owned(), 0));
        let leaf = router(ReplicaIdentity::Full, Some(BTreeSet::from([name("p1")])));
        assert_eq!(touched(&leaf, "p1", "c", row), ("5".to_owned(), 0));
        assert_eq!(touched(&leaf, "p2", "c", row), (String::new(), 0));
        assert_eq!(touched(&leaf, "p1", "t", ("null", "null")), (String::new(), 1));
    }

    #[test]
    fn an_update_without_the_old_image_that_the_plan_counts_on_is_a_sweep() {
        let cases = [
            (ReplicaIdentity::Full, ("null", r#"{"k":5}"#), ("", 1)),
            (ReplicaIdentity::Full, (r#"{"k":4}"#, r#"{"k":5}"#), ("4 5", 0)),
            (ReplicaIdentity::Full, (r#"{"k":null}"#, r#"{"k":null}"#), ("", 0)),
            (ReplicaIdentity::Full, (r#"{"x":1}"#, r#"{"x":1,"k":5}"#), ("5", 1)),
            // Under the default identity there is none when the key is the same.
            (ReplicaIdentity::Default, ("null", r#"{"k":5}"#), ("5", 0)),
        ];
        for (identity, images, (keys, sweeps)) in cases {
            let found = touched(&router(identity, None), "p", "u", images);
            assert_eq!(found, (keys.to_owned(), sweeps), "{identity:?} {images:?}");
        }
    }
}
