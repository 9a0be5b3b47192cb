//! What a view reads, asked of the catalog: tables, columns, views and functions.
//!
//! Runs in the transaction that made the temporary view, under an empty search_path. Relations
//! and functions come from the rule's own tree, not from `pg_depend` alone, which leaves out
//! everything that initdb made. Columns come from `pg_depend`; whole-row uses are not in it (A7)
//! and are found by `impact`.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error};

use super::family::{Family, families};
use crate::mapping::fingerprint::Fingerprint;
use crate::mapping::impact::facts::{ColumnFacts, FunctionFacts, Nested, TableFacts, Volatility};
use crate::mapping::plan::{Source, TableName};
use crate::relation::ReplicaIdentity;

/// Everything that a view reads, views within it opened up.
#[derive(Debug, Default)]
pub(super) struct Reached {
    /// By name; foreign tables, materialized views and the like too, with their obstacle.
    pub(super) tables: BTreeMap<TableName, TableFacts>,
    /// Those of `tables` that LOCK TABLE takes: plain and partitioned tables of users.
    pub(super) lockable: BTreeSet<TableName>,
    /// Canonical SQL by name.
    pub(super) views: BTreeMap<TableName, String>,
    pub(super) functions: Vec<FunctionFacts>,
    /// The columns of the view itself.
    pub(super) outputs: Vec<ColumnFacts>,
    /// Columns that `pg_depend` lists.
    pub(super) columns: BTreeMap<TableName, BTreeSet<String>>,
    /// Every relation that users made, views too.
    pub(super) oids: BTreeSet<u32>,
    /// Of `oids`; `resolve` fills it.
    pub(super) fingerprint: Fingerprint,
    /// Where the changes of each table are in the log.
    pub(super) sources: BTreeMap<TableName, Vec<Source>>,
    /// Of tables whose members all have the same.
    pub(super) identities: BTreeMap<TableName, ReplicaIdentity>,
    /// Relations that the role may not SELECT from.
    pub(super) forbidden: Vec<TableName>,
}

const VIEW_SQL: &str = "\
    SELECT pg_catalog.pg_get_viewdef(r.ev_class), r.ev_action::text \
    FROM pg_catalog.pg_rewrite r WHERE r.ev_class = $1 AND r.rulename = '_RETURN'";

const DEPENDENCIES_SQL: &str = "\
    SELECT DISTINCT d.refobjid, a.attname::text \
    FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid \
    LEFT JOIN pg_catalog.pg_attribute a \
      ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND a.attnum <> 0 \
    WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass \
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
      AND r.ev_class = $1 AND d.refobjid <> r.ev_class";

const RELATIONS_SQL: &str = "\
    SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, \
      pg_catalog.row_security_active(c.oid), \
      pg_catalog.has_table_privilege(c.oid, 'SELECT'), \
      c.oid < 16384 OR n.nspname IN ('pg_catalog', 'information_schema') \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.oid = ANY($1)";

const IDENTITY_SQL: &str = "\
    SELECT i.indrelid, i.indisprimary, i.indisreplident, a.attname::text \
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a \
      ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) \
    WHERE i.indrelid = ANY($1) AND (i.indisprimary OR i.indisreplident)";

/// Operator classes: `varchar` uses `text`'s, enums share `anyenum`'s, domains their base's.
const COLUMNS_SQL: &str = "\
    SELECT a.attrelid, a.attname::text, a.atttypid, pg_catalog.format_type(a.atttypid, NULL), \
      CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END, \
      t.typtype = 'e', a.attgenerated <> '', coalesce(k.collisdeterministic, true), \
      EXISTS (SELECT FROM pg_catalog.pg_opclass o \
        JOIN pg_catalog.pg_am m ON m.oid = o.opcmethod AND m.amname = 'btree' \
        JOIN pg_catalog.pg_amproc p ON p.amprocfamily = o.opcfamily AND p.amprocnum = 4 \
          AND p.amproclefttype = o.opcintype AND p.amprocrighttype = o.opcintype \
        WHERE o.opcdefault AND o.opcintype = CASE \
          WHEN t.typtype = 'e' THEN 'pg_catalog.anyenum'::pg_catalog.regtype::oid \
          WHEN t.oid = 1043 OR t.typbasetype = 1043 THEN 25 \
          WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END), \
      CASE WHEN k.oid <> t.typcollation THEN \
        pg_catalog.concat_ws('.', pg_catalog.quote_ident(kn.nspname), \
          pg_catalog.quote_ident(k.collname)) END, \
      e.oid, pg_catalog.format_type(e.oid, NULL), \
      CASE WHEN e.typtype = 'd' THEN e.typbasetype ELSE e.oid END, e.typtype = 'e' \
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
    LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typcategory = 'A' AND t.typlen = -1 \
    LEFT JOIN pg_catalog.pg_collation k ON k.oid = a.attcollation \
    LEFT JOIN pg_catalog.pg_namespace kn ON kn.oid = k.collnamespace \
    WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped \
    ORDER BY a.attrelid, a.attnum";

/// `adbin` names the functions, by which it is told whether onelog may compute the column too.
const GENERATED_SQL: &str = "\
    SELECT d.adrelid, a.attname::text, pg_catalog.pg_get_expr(d.adbin, d.adrelid), d.adbin::text \
    FROM pg_catalog.pg_attrdef d JOIN pg_catalog.pg_attribute a \
      ON a.attrelid = d.adrelid AND a.attnum = d.adnum \
    WHERE d.adrelid = ANY($1) AND a.attgenerated <> ''";

const FUNCTIONS_SQL: &str = "\
    SELECT DISTINCT p.proname::text, \
      p.oid < 16384 AND p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace, \
      p.provolatile::text, p.proisstrict, p.prokind = 'a', p.proretset \
    FROM pg_catalog.pg_proc p WHERE p.oid = ANY($1) ORDER BY 1";

/// Types whose text in an image is their input text: bool, int8, int2, int4, text, varchar, date,
/// timestamp, timestamptz, numeric, uuid. Floats are left out: JSON spells some otherwise.
const CARRIERS: &[u32] = &[16, 20, 21, 23, 25, 1043, 1082, 1114, 1184, 1700, 2950];

const JSONB_OID: u32 = 3802;

/// Of functions that initdb made.
const USER_OID_MIN: u32 = 16_384;

/// Carriers whose text in an image is not what `::text` prints: timestamp, timestamptz.
const OTHER_TEXT: &[u32] = &[1114, 1184];

/// What stands before a function's OID in a tree.
const FUNCTION_MARKERS: &[&str] = &[":funcid ", ":opfuncid ", ":aggfnoid ", ":winfnoid "];

/// Follows a view to everything that it reads.
pub(super) async fn reach(client: &Client, view: u32, publication: &str) -> Result<Reached, Error> {
    let mut reached = Reached::default();
    let outputs = client.query(COLUMNS_SQL, &[&vec![view]]).await?;
    reached.outputs = outputs.iter().map(column_facts).collect();
    let (mut waiting, mut seen) = (vec![view], BTreeSet::from([view]));
    let (mut tables, mut functions) = (BTreeMap::new(), BTreeSet::new());
    let mut columns: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    while let Some(view) = waiting.pop() {
        let mut relations = BTreeSet::new();
        let row = client.query_one(VIEW_SQL, &[&view]).await?;
        let tree: &str = row.get(1);
        relations.extend(numbers_after(tree, &[":relid "]));
        functions.extend(numbers_after(tree, FUNCTION_MARKERS));
        for row in client.query(DEPENDENCIES_SQL, &[&view]).await? {
            let relation: u32 = row.get(0);
            relations.insert(relation);
            let column: Option<String> = row.get(1);
            columns.entry(relation).or_default().extend(column);
        }
        let new: Vec<u32> = relations.into_iter().filter(|it| seen.insert(*it)).collect();
        for row in client.query(RELATIONS_SQL, &[&new]).await? {
            let relation = Relation::read(&row);
            if !relation.system {
                reached.oids.insert(relation.oid);
            }
            if !relation.selectable {
                reached.forbidden.push(relation.name.clone());
            }
            if relation.kind == "v" && !relation.system {
                waiting.push(relation.oid);
                let row = client.query_one(VIEW_SQL, &[&relation.oid]).await?;
                reached.views.insert(relation.name, strip(row.get(0)));
            } else {
                tables.insert(relation.oid, relation);
            }
        }
    }
    let oids: Vec<u32> = tables.keys().copied().collect();
    let families = families(client, &oids, publication).await?;
    add_tables(client, (&tables, families), &mut reached).await?;
    for (oid, relation) in &tables {
        let read = columns.remove(oid).unwrap_or_default();
        reached.columns.insert(relation.name.clone(), read);
    }
    let functions: Vec<u32> = functions.into_iter().collect();
    for row in client.query(FUNCTIONS_SQL, &[&functions]).await? {
        let volatility = match row.get(2) {
            "i" => Volatility::Immutable,
            "s" => Volatility::Stable,
            _ => Volatility::Volatile,
        };
        reached.functions.push(FunctionFacts {
            name: row.get(0),
            built_in: row.get(1),
            volatility,
            strict: row.get(3),
            aggregate: row.get(4),
            returns_set: row.get(5),
        });
    }
    Ok(reached)
}

/// A view's text without its semicolon.
pub(super) fn strip(sql: &str) -> String {
    sql.trim().trim_end_matches(';').trim_end().to_owned()
}

/// The numbers behind the markers in a `pg_node_tree`, zeros left out.
fn numbers_after(tree: &str, markers: &[&str]) -> BTreeSet<u32> {
    let after = |marker: &&str| {
        let parts = tree.split(*marker).skip(1).map(str::to_owned);
        parts.collect::<Vec<String>>()
    };
    let number = |it: String| {
        let digits: String = it.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok().filter(|it| *it != 0)
    };
    markers.iter().flat_map(after).filter_map(number).collect()
}

struct Relation {
    oid: u32,
    name: TableName,
    kind: String,
    row_security: bool,
    selectable: bool,
    system: bool,
}

impl Relation {
    /// One of a user's, whose rows are its own or its partitions'.
    fn is_table(&self) -> bool {
        matches!(self.kind.as_str(), "r" | "p") && !self.system
    }

    fn read(row: &tokio_postgres::Row) -> Self {
        Self {
            oid: row.get(0),
            name: TableName { namespace: row.get(1), name: row.get(2) },
            kind: row.get(3),
            row_security: row.get(4),
            selectable: row.get(5),
            system: row.get(6),
        }
    }

    fn obstacles(&self, family: &Family) -> Vec<String> {
        let name = &self.name;
        let mut obstacles = Vec::new();
        let mut say = |sentence: &str| obstacles.push(format!("{name} {sentence}"));
        match self.kind.as_str() {
            _ if self.system => say("is a system catalog, whose changes are not published"),
            "r" | "p" => {}
            "m" => say("is a materialized view: its refresh is not published"),
            "f" => say("is a foreign table: its changes happen elsewhere"),
            "S" => say("is a sequence, whose changes are not published"),
            _ => say("is not a table"),
        }
        if self.row_security {
            say("has row-level security that applies to the daemon's role: which rows it sees \
                 depends on the policies");
        }
        if self.is_table() {
            obstacles.extend(family.obstacles(name));
        }
        obstacles
    }
}

/// What generated columns are computed from.
async fn add_expressions(
    client: &Client,
    (oids, families): (&[u32], &BTreeMap<u32, Family>),
    columns: &mut BTreeMap<u32, Vec<ColumnFacts>>,
) -> Result<(), Error> {
    for row in client.query(GENERATED_SQL, &[&oids]).await? {
        let (name, tree): (&str, &str) = (row.get(1), row.get(3));
        let built_in = numbers_after(tree, FUNCTION_MARKERS).iter().all(|it| *it < USER_OID_MIN);
        let of =
            columns.get_mut(&row.get(0)).and_then(|it| it.iter_mut().find(|it| it.name == name));
        // Whoever inherits the column may have another expression.
        let oid: u32 = row.get(0);
        let alone = families.get(&oid).is_some_and(|it| it.members.iter().all(|it| it.oid == oid));
        if let (Some(column), true) = (of, built_in && alone) {
            column.expression = row.get(2);
        }
    }
    Ok(())
}

async fn add_tables(
    client: &Client,
    (relations, families): (&BTreeMap<u32, Relation>, BTreeMap<u32, Family>),
    reached: &mut Reached,
) -> Result<(), Error> {
    let oids: Vec<u32> = relations.keys().copied().collect();
    let mut columns: BTreeMap<u32, Vec<ColumnFacts>> = BTreeMap::new();
    for row in client.query(COLUMNS_SQL, &[&oids]).await? {
        columns.entry(row.get(0)).or_default().push(column_facts(&row));
    }
    add_expressions(client, (&oids, &families), &mut columns).await?;
    let (mut primary, mut chosen) = (BTreeMap::new(), BTreeMap::new());
    let members: Vec<u32> = families.values().flat_map(|it| &it.members).map(|it| it.oid).collect();
    for row in client.query(IDENTITY_SQL, &[&members]).await? {
        for (nth, keys) in [(1, &mut primary), (2, &mut chosen)] {
            if row.get::<_, bool>(nth) {
                let keys: &mut BTreeSet<String> = keys.entry(row.get::<_, u32>(0)).or_default();
                keys.insert(row.get(3));
            }
        }
    }
    for (oid, relation) in relations {
        let columns = columns.remove(oid).unwrap_or_default();
        let nobody = Family::default();
        let family = families.get(oid).unwrap_or(&nobody);
        // Where no member is, no row is: whatever comes later shows in the fingerprint.
        let mut identity: BTreeSet<String> = columns.iter().map(|it| it.name.clone()).collect();
        for member in &family.members {
            let held = match member.identity {
                ReplicaIdentity::Full => continue,
                ReplicaIdentity::Default => primary.get(&member.oid),
                ReplicaIdentity::Index => chosen.get(&member.oid),
                ReplicaIdentity::Nothing => None,
            };
            identity.retain(|it| held.is_some_and(|held| held.contains(it)));
        }
        let mut obstacles = relation.obstacles(family);
        if obstacles.is_empty() && identity.is_empty() {
            obstacles.push(format!(
                "{} has neither a primary key nor a replica identity, so that its changes have \
                 no old image",
                relation.name
            ));
        }
        let published = relation.is_table() && family.is_published();
        if relation.is_table() {
            reached.lockable.insert(relation.name.clone());
            reached.sources.insert(relation.name.clone(), family.sources(&relation.name));
            let identity = family.identity().map(|it| (relation.name.clone(), it));
            reached.identities.extend(identity);
        }
        let facts = TableFacts {
            name: relation.name.clone(),
            oid: *oid,
            columns,
            published,
            identity,
            obstacles,
        };
        reached.tables.insert(relation.name.clone(), facts);
    }
    Ok(())
}

fn column_facts(row: &tokio_postgres::Row) -> ColumnFacts {
    let (base, is_enum, deterministic): (u32, bool, bool) = (row.get(4), row.get(5), row.get(7));
    let carrier = |base: u32, is_enum: bool| (is_enum || CARRIERS.contains(&base)) && deterministic;
    let element: Option<(u32, u32)> = row.get::<_, Option<u32>>(10).zip(row.get(12));
    let nested = match element {
        _ if base == JSONB_OID => Some(Nested::Json),
        Some((type_oid, base)) if carrier(base, row.get(13)) => {
            Some(Nested::Array { type_oid, type_name: row.get(11) })
        }
        Some(_) | None => None,
    };
    ColumnFacts {
        name: row.get(1),
        type_oid: row.get(2),
        type_name: row.get(3),
        carrier: carrier(base, is_enum),
        same_text: is_enum || !OTHER_TEXT.contains(&base),
        equal_image: row.get::<_, bool>(8) && deterministic,
        generated: row.get(6),
        expression: None,
        nested,
        collation: row.get(9),
    }
}
