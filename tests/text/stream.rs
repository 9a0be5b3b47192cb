//! The law of `postgres::text` over the whole way: rows of random types, also of types made of
//! other types, come from a real walsender through decoder, assembler and writer as the `to_jsonb`
//! that Postgres gave when they were inserted.
//!
//! The database has every setting that changes the text of values set to something hostile: what
//! the replication connection pins must outrank it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onelog::change::{Change, Step};
use onelog::json::Object;
use onelog::kafka::envelope::{
    ChangeAt, EnvelopeWriter, SourceContext, TableShape, TransactionContext,
};
use onelog::lsn::Lsn;
use onelog::postgres::assemble::Assembler;
use onelog::postgres::connection::ReplicationConnection;
use onelog::postgres::pgoutput;
use onelog::postgres::text::TypeKinds;
use onelog::postgres::walsender::{WalMessage, decode_walsender};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio_postgres::{Client, NoTls};

use super::values::{Generator, OBJECTS, OF_EXTENSIONS, PINNED, TYPES, canonical, quoted};

/// As the tests of the whole path have it: a restart of a server on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Of random types; those of the first tables are every type that Postgres has.
const RANDOM_COLUMNS: usize = 150;

const COLUMNS_PER_TABLE: usize = 40;

const ROWS_PER_TABLE: usize = 25;

/// Levels of arrays, composites and domains in each other.
const DEPTH_MAX: u32 = 3;

const HOSTILE: &[(&str, &str)] = &[
    ("datestyle", "'German, DMY'"),
    ("timezone", "'Asia/Kathmandu'"),
    ("intervalstyle", "iso_8601"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-15"),
    ("quote_all_identifiers", "on"),
    ("search_path", "s, information_schema"),
    ("xmloption", "document"),
    ("array_nulls", "off"),
    ("default_transaction_read_only", "on"),
    ("client_encoding", "LATIN1"),
];

/// A type and how to make the text of a value.
#[derive(Clone)]
struct Type {
    name: String,
    delimiter: char,
    form: Form,
}

#[derive(Clone)]
enum Form {
    Base(Generator),
    Array(Box<Type>),
    Row(Vec<Type>),
}

impl Type {
    fn base(name: &str, generate: Generator) -> Self {
        // The one type of Postgres whose arrays have no commas.
        let delimiter = if name == "box" { ';' } else { ',' };
        Self { name: name.replace("$s", "s"), delimiter, form: Form::Base(generate) }
    }

    fn array(element: Self) -> Self {
        let name = format!("{}[]", element.name);
        Self { name, delimiter: element.delimiter, form: Form::Array(Box::new(element)) }
    }

    fn value(&self, rng: &mut StdRng) -> String {
        match &self.form {
            Form::Base(generate) => generate(rng).replace("$s", "s"),
            Form::Array(element) => element.list(rng),
            Form::Row(parts) => {
                let part = |it: &Self, rng: &mut StdRng| match rng.random_bool(0.2) {
                    true => String::new(),
                    false => quoted(&it.value(rng)),
                };
                let parts: Vec<_> = parts.iter().map(|it| part(it, rng)).collect();
                format!("({})", parts.join(","))
            }
        }
    }

    /// The text of an array of this type: of up to three dimensions, perhaps with lower bounds.
    fn list(&self, rng: &mut StdRng) -> String {
        let lengths: Vec<usize> =
            (0..rng.random_range(0..=3)).map(|_| rng.random_range(1..=2)).collect();
        if lengths.is_empty() {
            return "{}".to_owned();
        }
        let bounds: String = match rng.random_bool(0.3) {
            false => String::new(),
            true => {
                let mut bound = |it: &usize| {
                    let low = rng.random_range(-3..=3);
                    format!("[{low}:{}]", low + i32::try_from(*it).unwrap() - 1)
                };
                lengths.iter().map(&mut bound).collect::<String>() + "="
            }
        };
        bounds + &self.dimension(&lengths, rng)
    }

    fn dimension(&self, lengths: &[usize], rng: &mut StdRng) -> String {
        let Some((length, inner)) = lengths.split_first() else {
            return match rng.random_bool(0.2) {
                true => "NULL".to_owned(),
                false => quoted(&self.value(rng)),
            };
        };
        let parts: Vec<_> = (0..*length).map(|_| self.dimension(inner, rng)).collect();
        format!("{{{}}}", parts.join(&self.delimiter.to_string()))
    }
}

/// Makes random types, and remembers the SQL that creates them.
struct Types {
    known: Vec<Type>,
    sql: String,
    made: usize,
}

impl Types {
    fn new() -> Self {
        let mut known: Vec<Type> = TYPES.iter().map(|it| Type::base(it.0, it.1)).collect();
        for (_, name, generate) in OF_EXTENSIONS {
            known.push(Type::base(&format!("public.{name}"), *generate));
        }
        Self { known, sql: String::new(), made: 0 }
    }

    fn create(&mut self, kind: &str, what: &str) -> String {
        self.made += 1;
        let name = format!("s.made_{}", self.made);
        self.sql += &format!("CREATE {kind} {name} AS {what};\n");
        name
    }

    fn domain(&mut self, base: Type) -> Type {
        let name = self.create("DOMAIN", &base.name);
        Type { name, ..base }
    }

    fn random(&mut self, depth: u32, rng: &mut StdRng) -> Type {
        match rng.random_range(0..if depth == 0 { 1 } else { 6 }) {
            0 => self.known.choose(rng).unwrap().clone(),
            1 => {
                let base = self.random(depth - 1, rng);
                self.domain(base)
            }
            2 | 3 => {
                let element = self.random(depth - 1, rng);
                // An array of arrays is one type with more dimensions, unless a domain is between.
                let is_array = element.name.ends_with(']');
                Type::array(if is_array { self.domain(element) } else { element })
            }
            _ => {
                let names = ["a", "b \"c\"", "", "ä\\", "e"];
                let parts: Vec<Type> = (0..rng.random_range(0..names.len()))
                    .map(|_| self.random(depth - 1, rng))
                    .collect();
                let columns: Vec<_> = parts
                    .iter()
                    .zip(names)
                    .map(|(it, name)| format!("\"{}_\" {}", name.replace('"', "\"\""), it.name))
                    .collect();
                let name = self.create("TYPE", &format!("({})", columns.join(", ")));
                Type { name, delimiter: ',', form: Form::Row(parts) }
            }
        }
    }
}

async fn connect(url: &str) -> (Client, tokio::task::JoinSet<()>) {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    (client, driver)
}

/// A database of the test's own; dropped with everything in it.
struct Database {
    name: String,
    url: String,
    admin: Client,
    _driver: tokio::task::JoinSet<()>,
}

impl Database {
    async fn new() -> Self {
        let server = std::env::var("ONELOG_TEST_POSTGRES")
            .expect("ONELOG_TEST_POSTGRES is not set: run make test");
        let name = format!("text_{}", std::process::id());
        let (admin, driver) = connect(&server).await;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
        Self { name, url, admin, _driver: driver }
    }

    async fn make_hostile(&self) {
        for (setting, value) in HOSTILE {
            let sql = format!("ALTER DATABASE {} SET {setting} = {value}", self.name);
            self.admin.batch_execute(&sql).await.unwrap();
        }
    }

    async fn drop(self) {
        let slot = format!("SELECT pg_drop_replication_slot('{}')", self.name);
        self.admin.batch_execute(&slot).await.unwrap();
        let database = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        self.admin.batch_execute(&database).await.unwrap();
    }
}

/// A session as Postgres' own defaults have it, to be asked for `to_jsonb`.
async fn oracle(url: &str) -> (Client, tokio::task::JoinSet<()>) {
    let (client, driver) = connect(url).await;
    client.batch_execute(PINNED).await.unwrap();
    let more = "SET search_path = pg_catalog; SET array_nulls = on; SET xmloption = content; \
                SET default_transaction_read_only = off; SET client_encoding = 'UTF8'";
    client.batch_execute(more).await.unwrap();
    (client, driver)
}

/// Tables of these columns with random rows: what `to_jsonb` says of each, in order.
async fn fill(client: &Client, columns: &[Type], rng: &mut StdRng) -> Vec<String> {
    let mut rows = Vec::new();
    for (table, columns) in columns.chunks(COLUMNS_PER_TABLE).enumerate() {
        let (mut list, mut values) = (Vec::new(), Vec::new());
        for (nth, column) in columns.iter().enumerate() {
            list.push(format!("c{nth} {}", column.name));
            values.push(format!("(${}::text)::{}", nth + 1, column.name));
        }
        let create = format!("CREATE TABLE s.t{table} ({})", list.join(", "));
        client.batch_execute(&create).await.unwrap_or_else(|it| panic!("{create}: {it:?}"));
        let insert = format!(
            "INSERT INTO s.t{table} AS t VALUES ({}) RETURNING to_jsonb(t.*)::text",
            values.join(", ")
        );
        let insert = client.prepare(&insert).await.unwrap();
        for _ in 0..ROWS_PER_TABLE {
            let texts: Vec<Option<String>> =
                columns.iter().map(|it| rng.random_bool(0.9).then(|| it.value(rng))).collect();
            let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = texts
                .iter()
                .map(|it| -> &(dyn tokio_postgres::types::ToSql + Sync) { it })
                .collect();
            let row = client.query_one(&insert, &parameters).await;
            let row =
                row.unwrap_or_else(|it| panic!("{:?}: {columns:?} {texts:?}", it.as_db_error()));
            rows.push(row.get(0));
        }
    }
    rows
}

impl std::fmt::Debug for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// The rows that the slot brings, as the records' `after`.
async fn streamed(database: &Database, client: &Client, count: usize) -> Vec<String> {
    let url = database.url.parse().unwrap();
    let connection = ReplicationConnection::connect(&url).await.unwrap();
    let options = [("proto_version", "1"), ("publication_names", "s")];
    let mut stream = connection.start_replication(&database.name, Lsn(0), &options).await.unwrap();
    let (name, db) = ("app".to_owned(), database.name.clone());
    let mut writer = EnvelopeWriter::new(&SourceContext { name, db, timeline: 1, system_id: 1 });
    let (mut assembler, mut rows) = (Assembler::new(), Vec::new());
    let mut shape: Option<TableShape> = None;
    while rows.len() < count {
        let mut batch: Vec<Bytes> = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.next_batch(&mut batch)).await;
        read.expect("the stream goes on").unwrap();
        for bytes in batch {
            let WalMessage::XLogData { body, .. } = decode_walsender(bytes).unwrap() else {
                continue;
            };
            match assembler.push(pgoutput::decode(body).unwrap()).unwrap() {
                Some(Step::Begin(begin)) => writer.begin(&TransactionContext {
                    final_lsn: begin.final_lsn,
                    last_commit_lsn: None,
                    commit_time_us: begin.commit_time_us,
                    xid: begin.xid,
                    xid_wide: u64::from(begin.xid),
                    correlation: Vec::new(),
                }),
                Some(Step::Change(change)) => {
                    let Change::Insert { relation, .. } = &change else { panic!("{change:?}") };
                    if shape.as_ref().is_none_or(|it| !Arc::ptr_eq(&it.relation, relation)) {
                        let oids: Vec<u32> =
                            relation.columns.iter().map(|it| it.type_oid).collect();
                        let mut kinds = TypeKinds::new();
                        kinds.add_rows(&super::type_rows(client, &oids).await).unwrap();
                        let new = TableShape::new(Arc::clone(relation), "t".into(), &[], &kinds);
                        shape = Some(new.unwrap());
                    }
                    let at = ChangeAt { lsn: Lsn(1), now_us: 1 };
                    let records = writer.write(shape.as_ref().unwrap(), &change, at);
                    let record = records.unwrap().next().unwrap();
                    let value: Object<'_> = serde_json::from_slice(record.value.unwrap()).unwrap();
                    rows.push(value.get("after").unwrap().to_owned());
                }
                _ => {}
            }
        }
    }
    stream.stop().await.unwrap();
    rows
}

/// What differs between two rows, column by column: a whole row is no reading matter.
#[track_caller]
fn compare(found: &str, expected: &str, columns: &[Type]) {
    if canonical(found) == canonical(expected) {
        return;
    }
    let [found, expected] =
        [found, expected].map(|it| serde_json::from_str::<Object<'_>>(it).unwrap());
    for (nth, column) in columns.iter().enumerate() {
        let name = format!("c{nth}");
        let [found, expected] = [&found, &expected].map(|it| canonical(it.get(&name).unwrap()));
        assert_eq!(found, expected, "{}", column.name);
    }
    panic!("other columns: {found:?} {expected:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_any_type_are_streamed_as_to_jsonb_writes_them() {
    let seed = std::env::var("ONELOG_TEST_SEED").map_or(1, |it| it.parse().unwrap());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut types = Types::new();
    let mut columns = types.known.clone();
    columns.extend(types.known.clone().into_iter().map(Type::array).filter(|it| {
        // No name for it; a domain over an array is made below.
        !it.name.contains("[][]")
    }));
    for _ in 0..RANDOM_COLUMNS {
        columns.push(types.random(DEPTH_MAX, &mut rng));
    }
    let database = Database::new().await;
    database.make_hostile().await;
    let (client, _driver) = oracle(&database.url).await;
    let extensions: BTreeSet<&str> = OF_EXTENSIONS.iter().map(|it| it.0).collect();
    for extension in extensions {
        let sql = format!("CREATE EXTENSION {extension} SCHEMA public");
        client.batch_execute(&sql).await.unwrap();
    }
    client.batch_execute("CREATE SCHEMA s").await.unwrap();
    client.batch_execute(&OBJECTS.replace("$s", "s")).await.unwrap();
    client.batch_execute(&types.sql).await.unwrap();
    client.batch_execute("CREATE PUBLICATION s FOR ALL TABLES").await.unwrap();
    let slot =
        format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", database.name);
    client.batch_execute(&slot).await.unwrap();
    let expected = fill(&client, &columns, &mut rng).await;
    let found = streamed(&database, &client, expected.len()).await;
    for (nth, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let first = nth / ROWS_PER_TABLE * COLUMNS_PER_TABLE;
        let last = columns.len().min(first + COLUMNS_PER_TABLE);
        compare(found, expected, &columns[first..last]);
    }
    drop(client);
    database.drop().await;
}

/// What has no text that could be written into a column, or no column that could have it.
const WITHOUT_VALUES: &[&str] = &[
    "pg_node_tree",
    "gtsvector",
    "pg_ndistinct",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
];

#[tokio::test]
async fn no_built_in_type_is_left_out() {
    let (client, _driver) = super::connect().await;
    let sql = "SELECT format_type(oid, NULL) FROM pg_type
               WHERE oid < 10000 AND typtype NOT IN ('c', 'p', 'd') AND typelem = 0
                 AND typname::text <> ALL ($1)";
    let mut tested = BTreeSet::new();
    for (name, _) in TYPES.iter().filter(|it| !it.0.contains('$')) {
        let sql = "SELECT format_type($1::text::regtype, NULL)";
        tested.insert(client.query_one(sql, &[&name]).await.unwrap().get::<_, String>(0));
    }
    let rows = client.query(sql, &[&WITHOUT_VALUES]).await.unwrap();
    let left_out: Vec<String> =
        rows.iter().map(|it| it.get(0)).filter(|it| !tested.contains(it)).collect();
    assert_eq!(left_out, Vec::<String>::new(), "add them to TYPES");
}
