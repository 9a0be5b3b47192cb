//! A table and those that belong to it: the partitions of a root, and what inherits from a table.
//!
//! Postgres decodes a change under the name of the member whose row it is, while a mapping names
//! the whole: so a table is followed by its members. What is true of the whole must be true of
//! each: that it is published, that it is logged at all, that its old images hold a column.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error};

use crate::mapping::plan::{Source, TableName};
use crate::relation::ReplicaIdentity;

/// `pg_partition_root` and `pg_publication_tables` may see further than the snapshot, which makes
/// a difference at the next look and hides none.
const MEMBERS_SQL: &str = "\
    WITH RECURSIVE family(root, oid) AS ( \
      SELECT w.oid, w.oid FROM unnest($1::pg_catalog.oid[]) AS w(oid) \
      UNION \
      SELECT f.root, i.inhrelid FROM family f \
      JOIN pg_catalog.pg_inherits i ON i.inhparent = f.oid), \
    published AS MATERIALIZED ( \
      SELECT p.schemaname, p.tablename FROM pg_catalog.pg_publication_tables p \
      WHERE p.pubname = $2) \
    SELECT f.root, c.oid, n.nspname::text, c.relname::text, tn.nspname::text, t.relname::text, \
      c.relkind::text, c.relpersistence::text, c.relreplident::text, p.tablename IS NOT NULL \
    FROM family f JOIN pg_catalog.pg_class c ON c.oid = f.oid \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    JOIN pg_catalog.pg_class t \
      ON t.oid = coalesce(pg_catalog.pg_partition_root(c.oid)::pg_catalog.oid, c.oid) \
    JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace \
    LEFT JOIN published p ON p.schemaname = n.nspname AND p.tablename = c.relname \
    WHERE c.relkind IN ('r', 'p', 'f') ORDER BY f.root, n.nspname, c.relname";

/// One table of a family that has rows of its own.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) oid: u32,
    pub(super) name: TableName,
    /// Gives the topic its name.
    pub(super) topic: TableName,
    pub(super) foreign: bool,
    pub(super) logged: bool,
    pub(super) identity: ReplicaIdentity,
    pub(super) published: bool,
}

/// The members of one table, itself among them unless it is partitioned.
#[derive(Debug, Clone, Default)]
pub(super) struct Family {
    pub(super) members: Vec<Member>,
    /// The table is partitioned, and the root of its partitions.
    is_root: bool,
}

/// The families of tables, by the table's OID.
pub(super) async fn families(
    client: &Client,
    tables: &[u32],
    publication: &str,
) -> Result<BTreeMap<u32, Family>, Error> {
    let mut families: BTreeMap<u32, Family> = BTreeMap::new();
    for row in client.query(MEMBERS_SQL, &[&tables, &publication]).await? {
        let (table, oid): (u32, u32) = (row.get(0), row.get(1));
        let name = TableName { namespace: row.get(2), name: row.get(3) };
        let topic = TableName { namespace: row.get(4), name: row.get(5) };
        let family = families.entry(table).or_default();
        let (kind, persistence, letter): (&str, &str, &str) = (row.get(6), row.get(7), row.get(8));
        if kind == "p" {
            family.is_root |= table == oid && name == topic;
            continue;
        }
        let letter = letter.as_bytes().first().copied().unwrap_or(0);
        family.members.push(Member {
            oid,
            name,
            topic,
            foreign: kind == "f",
            logged: persistence == "p",
            // A letter that we do not know promises nothing.
            identity: ReplicaIdentity::from_letter(letter).unwrap_or(ReplicaIdentity::Nothing),
            published: row.get(9),
        });
    }
    Ok(families)
}

impl Family {
    /// Of all members alike; None: they differ, or there are none.
    pub(super) fn identity(&self) -> Option<ReplicaIdentity> {
        let first = self.members.first()?.identity;
        self.members.iter().all(|it| it.identity == first).then_some(first)
    }

    /// Whether the changes of every member are published.
    pub(super) fn is_published(&self) -> bool {
        self.members.iter().all(|it| it.published && it.logged && !it.foreign)
    }

    /// Where the changes of `table` are.
    pub(super) fn sources(&self, table: &TableName) -> Vec<Source> {
        if self.is_root {
            return vec![Source { topic: table.clone(), members: None }];
        }
        let mut topics: BTreeMap<&TableName, BTreeSet<TableName>> = BTreeMap::new();
        for member in &self.members {
            topics.entry(&member.topic).or_default().insert(member.name.clone());
        }
        let source = |(topic, members): (&TableName, _)| Source {
            topic: topic.clone(),
            members: Some(members),
        };
        topics.into_iter().map(source).collect()
    }

    /// Why changes of some member are not seen, a sentence each.
    pub(super) fn obstacles(&self, table: &TableName) -> Vec<String> {
        let sentence = |it: &Member| {
            let whose = if it.name == *table {
                it.name.to_string()
            } else {
                format!("{}, which belongs to {table},", it.name)
            };
            match it {
                Member { foreign: true, .. } => {
                    Some(format!("{whose} is a foreign table: its changes happen elsewhere"))
                }
                Member { logged: false, .. } => Some(format!(
                    "{whose} is not logged, so its changes are not seen: ALTER TABLE {} SET LOGGED",
                    it.name.quoted()
                )),
                Member { published: false, .. } => Some(format!(
                    "{whose} is not published, so its changes are not seen; add it to [postgres] \
                     tables and run `onelog prepare`"
                )),
                Member { .. } => None,
            }
        };
        self.members.iter().filter_map(sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> TableName {
        TableName { namespace: "public".to_owned(), name: name.to_owned() }
    }

    fn member(of: &str, topic: &str) -> Member {
        Member {
            oid: 1,
            name: name(of),
            topic: name(topic),
            foreign: false,
            logged: true,
            identity: ReplicaIdentity::Full,
            published: true,
        }
    }

    #[test]
    fn a_root_has_all_of_its_topic_and_a_partition_its_own() {
        let members = vec![member("p1", "p"), member("p2", "p")];
        let root = Family { members: members.clone(), is_root: true };
        assert_eq!(root.sources(&name("p")), [Source { topic: name("p"), members: None }]);
        let middle = Family { members, is_root: false };
        let both = BTreeSet::from([name("p1"), name("p2")]);
        assert_eq!(
            middle.sources(&name("p_mid")),
            [Source { topic: name("p"), members: Some(both) }]
        );
        let heirs = Family { members: vec![member("a", "a"), member("b", "b")], is_root: false };
        let topics: Vec<_> = heirs.sources(&name("a")).into_iter().map(|it| it.topic).collect();
        assert_eq!(topics, [name("a"), name("b")]);
    }

    #[test]
    fn the_whole_is_what_every_member_is() {
        let whole = Family { members: vec![member("a", "a"), member("b", "b")], is_root: false };
        assert!(whole.is_published() && whole.obstacles(&name("a")).is_empty());
        assert_eq!(whole.identity(), Some(ReplicaIdentity::Full));
        type Spoil = fn(&mut Member);
        let cases: [(Spoil, &str); 3] = [
            (|it| it.published = false, "public.b, which belongs to public.a, is not published"),
            (|it| it.logged = false, "ALTER TABLE \"public\".\"b\" SET LOGGED"),
            (|it| it.foreign = true, "is a foreign table"),
        ];
        for (spoil, expected) in cases {
            let mut family = whole.clone();
            spoil(&mut family.members[1]);
            assert!(!family.is_published());
            let said = family.obstacles(&name("a")).join("\n");
            assert!(said.contains(expected), "{said}");
        }
        let mut mixed = whole;
        mixed.members[1].identity = ReplicaIdentity::Default;
        assert_eq!(mixed.identity(), None);
    }
}
