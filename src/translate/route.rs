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
        /// The query joins on every column, and NULL joins with nothing. A key that is computed
        /// from the row may well come of a NULL.
        joins: bool,
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
                            joins: !lookup.steps.is_empty(),
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
        Start::Lookup { columns, joins } => {
            let mut values = Vec::with_capacity(columns.len());
            for column in columns {
                match image.value(column) {
                    Value::Text(text) => values.push(Some(text.into_owned())),
                    Value::Null => values.push(None),
                    Value::Missing | Value::Unavailable => {
                        touched.sweeps.insert(id.build);
                        return;
                    }
                }
            }
            if !joins || values.iter().all(Option::is_some) {
                touched.lookups.insert((id, values));
            }
        }
    }
}
