//! What the catalog says of every relation that a plan reads, as hashes to compare by (A11).
//!
//! Some changes have no event: a retyped column, a partition attached, a table taken out of the
//! publication, a redefined view. They show here, and whoever sees a difference resolves the
//! mappings anew and sweeps. A fingerprint is a set of *parts* with names, so that a difference
//! can be said in words, and so that what no document depends on (a column that nobody reads, a
//! new label of an enum) makes none.
//!
//! **Invariant:** it is taken in the snapshot that the plan was resolved in, or an older one:
//! every function of the catalog that looks past the snapshot is left out, so that what a plan
//! has seen too early only makes a difference at the next look, and none is missed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// `$1`: OIDs as `text[]`; `$2`: the publication. Rows: OID, and a JSON object of its parts. A
/// relation that is gone has no row.
///
/// Members are the relation and all that inherit from it, partitions too; `line` leads from each
/// to all it inherits from, as a publication of the root holds for its leaves. Partitions have the
/// columns of their root by law, so columns are of the relation alone. A materialized view polls
/// anyway, and its refresh, which may come every minute, is no difference. `xmin` of a catalog row
/// tells that it was changed and changed back. What VACUUM and ANALYZE write in place is not in
/// `rest`.
pub const FINGERPRINT_SQL: &str = "\
WITH RECURSIVE
wanted AS (SELECT DISTINCT w.oid::pg_catalog.oid AS oid FROM unnest($1::text[]) AS w(oid)),
family(root, oid) AS (
  SELECT oid, oid FROM wanted
  UNION
  SELECT f.root, i.inhrelid FROM family f JOIN pg_catalog.pg_inherits i ON i.inhparent = f.oid),
line(member, oid) AS (
  SELECT oid, oid FROM family
  UNION
  SELECT l.member, i.inhparent FROM line l JOIN pg_catalog.pg_inherits i ON i.inhrelid = l.oid),
published AS (
  SELECT l.member, string_agg(concat_ws(':', r.oid, r.xmin), ',' ORDER BY r.oid) AS text
  FROM line l JOIN pg_catalog.pg_publication_rel r ON r.prrelid = l.oid
  JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid AND p.pubname = $2::text
  GROUP BY l.member),
members AS (
  SELECT f.root, c.oid,
    concat_ws(':', c.oid, c.relkind, c.relpersistence,
      CASE WHEN c.relkind <> 'm' THEN c.relfilenode END) AS storage,
    concat_ws(':', n.nspname, c.relname, (
      SELECT string_agg(concat_ws(':', i.inhparent, i.xmin), ',' ORDER BY i.inhparent)
      FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid)) AS place,
    concat_ws(':', c.relreplident, (
      SELECT string_agg(concat_ws(':', i.indisprimary, i.indisreplident, i.indkey), ','
        ORDER BY i.indkey::text)
      FROM pg_catalog.pg_index i
      WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident))) AS identity,
    coalesce(p.text, 'no') AS published, c.xmin::text AS touched,
    (to_jsonb(c) - ARRAY['relpages', 'reltuples', 'relallvisible', 'relallfrozen',
      'relfrozenxid', 'relminmxid'])::text AS rest
  FROM family f JOIN pg_catalog.pg_class c ON c.oid = f.oid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN published p ON p.member = c.oid),
type_use(root, oid) AS (
  SELECT a.attrelid, a.atttypid FROM pg_catalog.pg_attribute a JOIN wanted w ON w.oid = a.attrelid
  WHERE a.attnum > 0 AND a.atttypid >= 16384
  UNION
  SELECT u.root, n.oid
  FROM type_use u JOIN pg_catalog.pg_type t ON t.oid = u.oid
  CROSS JOIN LATERAL (
    SELECT t.typelem UNION ALL SELECT t.typbasetype
    UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
      WHERE t.typrelid <> 0 AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid
  ) AS n(oid)
  WHERE n.oid >= 16384),
parts AS (
  SELECT m.root, k.part, string_agg(k.text, ' ' ORDER BY m.oid) AS text
  FROM members m CROSS JOIN LATERAL (VALUES ('storage', m.storage), ('partitions', m.place),
    ('identity', m.identity), ('publication', m.published), ('touched', m.touched),
    ('rest', m.rest)) AS k(part, text)
  GROUP BY m.root, k.part
  UNION ALL
  SELECT w.oid, 'publication options', (
    SELECT concat_ws(':', p.oid, p.xmin) FROM pg_catalog.pg_publication p
    WHERE p.pubname = $2::text)
  FROM wanted w
  UNION ALL
  SELECT c.oid, 'security', CASE WHEN c.relrowsecurity THEN concat_ws(':', c.relforcerowsecurity,
    c.relowner, (SELECT concat_ws(':', r.rolname, r.rolsuper, r.rolbypassrls)
      FROM pg_catalog.pg_roles r WHERE r.rolname = current_user),
    (SELECT string_agg(to_jsonb(l)::text, ',' ORDER BY l.oid)
      FROM pg_catalog.pg_policy l WHERE l.polrelid = c.oid)) END
  FROM pg_catalog.pg_class c JOIN wanted w ON w.oid = c.oid
  UNION ALL
  SELECT r.ev_class, 'definition', concat_ws(':', r.xmin, r.ev_action, c.reloptions)
  FROM pg_catalog.pg_rewrite r JOIN wanted w ON w.oid = r.ev_class
  JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
  WHERE r.rulename = '_RETURN'
  UNION ALL
  SELECT a.attrelid, 'column ' || a.attname, concat_ws(':', a.attnum, a.atttypid, a.atttypmod,
    a.attcollation, a.attgenerated, CASE WHEN a.attgenerated <> '' THEN d.adbin END)
  FROM pg_catalog.pg_attribute a JOIN wanted w ON w.oid = a.attrelid
  JOIN pg_catalog.pg_class c ON c.oid = w.oid AND c.relkind IN ('r', 'p', 'm', 'f')
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT a.attrelid, 'columns', string_agg(a.attname, ',' ORDER BY a.attnum)
  FROM pg_catalog.pg_attribute a JOIN wanted w ON w.oid = a.attrelid
  WHERE a.attnum > 0 AND NOT a.attisdropped GROUP BY a.attrelid
  UNION ALL
  SELECT u.root, 'type ' || t.oid, concat_ws(':', t.typname, (
    SELECT string_agg(concat_ws(':', a.attname, a.atttypid), ',' ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a
    WHERE t.typrelid <> 0 AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped))
  FROM type_use u JOIN pg_catalog.pg_type t ON t.oid = u.oid
  UNION ALL
  SELECT u.root, 'label ' || e.oid, e.enumlabel
  FROM type_use u JOIN pg_catalog.pg_enum e ON e.enumtypid = u.oid)
SELECT p.root::text, (jsonb_object_agg(p.part, left(md5(coalesce(p.text, '')), 12))
  || jsonb_build_object('name', concat_ws('.', n.nspname, c.relname)))::text
FROM parts p JOIN pg_catalog.pg_class c ON c.oid = p.root
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
GROUP BY p.root, n.nspname, c.relname";

const COLUMN: &str = "column ";
/// The list of all columns, which counts where rows are used whole (A7).
const COLUMNS: &str = "columns";
const NAME: &str = "name";
const TOUCHED: &str = "touched";
const REST: &str = "rest";

/// The parts of one relation, by name.
type Parts = BTreeMap<String, String>;

/// The relations of a plan, or of all plans, by OID.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fingerprint {
    relations: BTreeMap<u32, Parts>,
}

/// The answer to [`FINGERPRINT_SQL`] has another form than it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the catalog's answer about relation {oid} is not understood")]
pub struct FingerprintError {
    pub oid: String,
}

impl Fingerprint {
    /// Takes in a row of [`FINGERPRINT_SQL`].
    pub fn add(&mut self, oid: &str, parts: &str) -> Result<(), FingerprintError> {
        let wrong = || FingerprintError { oid: oid.to_owned() };
        let number = oid.parse().map_err(|_| wrong())?;
        self.relations.insert(number, serde_json::from_str(parts).map_err(|_| wrong())?);
        Ok(())
    }

    /// Leaves out the columns of a relation that are not among those that are read.
    pub fn keep_columns(&mut self, oid: u32, read: &BTreeSet<String>) {
        if let Some(parts) = self.relations.get_mut(&oid) {
            parts.remove(COLUMNS);
            parts.retain(|part, _| part.strip_prefix(COLUMN).is_none_or(|it| read.contains(it)));
        }
    }

    /// Adds another entry's relations. One that changed between the two is none of both, so that
    /// the next comparison finds a difference.
    pub fn merge(&mut self, other: Self) {
        for (oid, parts) in other.relations {
            let mine = self.relations.entry(oid).or_default();
            for (part, hash) in parts {
                let torn = mine.get(&part).is_some_and(|it| *it != hash);
                mine.insert(part, if torn { "torn".to_owned() } else { hash });
            }
        }
    }

    pub fn oids(&self) -> impl Iterator<Item = u32> + '_ {
        self.relations.keys().copied()
    }

    /// What has changed since, a phrase each: parts that are gone or have another hash. Parts that
    /// only `now` has concern nobody.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (oid, parts) in &self.relations {
            let name = parts.get(NAME).map_or("a relation", String::as_str);
            let Some(new) = now.relations.get(oid) else {
                found.push(format!("{name}: dropped"));
                continue;
            };
            let differs = |part: &&String| {
                let counts = !matches!(part.as_str(), TOUCHED | REST);
                counts && new.get(*part) != parts.get(*part)
            };
            let before = found.len();
            found.extend(parts.keys().filter(differs).map(|it| format!("{name}: {it}")));
            if found.len() == before && changed_back(parts, new) {
                found.push(format!("{name}: changed and changed back"));
            }
        }
        found
    }

    /// Of the relations that are in `of`, those that were changed since, and changed back: their
    /// rows in the catalog are new, but say the same. Changes in between may have had no events.
    pub fn changed_back(&self, now: &Self, of: &Self) -> Vec<String> {
        let both =
            of.oids().filter_map(|it| Some((self.relations.get(&it)?, now.relations.get(&it)?)));
        both.filter(|(old, new)| changed_back(old, new))
            .map(|(_, new)| new.get(NAME).cloned().unwrap_or_default())
            .map(|name| format!("{name}: changed and changed back"))
            .collect()
    }

    /// For the note in an index.
    pub fn to_text(&self) -> String {
        let parts = |it: &Parts| -> Map<String, Value> {
            it.iter().map(|(part, hash)| (part.clone(), hash.as_str().into())).collect()
        };
        let all: Map<String, Value> =
            self.relations.iter().map(|(oid, it)| (oid.to_string(), parts(it).into())).collect();
        Value::Object(all).to_string()
    }

    /// None: the text is not ours.
    pub fn from_text(text: &str) -> Option<Self> {
        Some(Self { relations: serde_json::from_str(text).ok()? })
    }
}

/// A row of `pg_class` that is new and says the same as before: something was altered and altered
/// back between two looks. Other changes to it (a new column, a GRANT) show in `rest`.
fn changed_back(old: &Parts, new: &Parts) -> bool {
    old.get(TOUCHED) != new.get(TOUCHED) && old.get(REST) == new.get(REST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(parts: &[(&str, &str)]) -> Fingerprint {
        let parts: BTreeMap<&str, &str> =
            parts.iter().copied().chain([("name", "public.t")]).collect();
        let mut fingerprint = Fingerprint::default();
        fingerprint.add("20000", &serde_json::to_string(&parts).unwrap()).unwrap();
        fingerprint
    }

    #[test]
    fn only_what_documents_depend_on_makes_a_difference() {
        let read = BTreeSet::from(["a".to_owned()]);
        let mut before = one(&[
            ("storage", "1"),
            ("column a", "1"),
            ("column b", "1"),
            ("columns", "1"),
            ("touched", "1"),
            ("rest", "1"),
        ]);
        let whole = before.clone();
        before.keep_columns(20_000, &read);
        let now = |storage, a, touched, rest| {
            one(&[
                ("storage", storage),
                ("column a", a),
                ("column b", "2"),
                ("columns", "2"),
                ("label 9", "new"),
                ("touched", touched),
                ("rest", rest),
            ])
        };
        let cases = [
            ("nothing that counts", now("1", "1", "1", "1"), vec![]),
            ("a new column elsewhere", now("1", "1", "2", "2"), vec![]),
            ("rewritten", now("2", "1", "1", "1"), vec!["public.t: storage"]),
            ("retyped", now("1", "2", "2", "2"), vec!["public.t: column a"]),
            (
                "altered and back",
                now("1", "1", "2", "1"),
                vec!["public.t: changed and changed back"],
            ),
            ("dropped", Fingerprint::default(), vec!["public.t: dropped"]),
        ];
        for (what, now, expected) in cases {
            assert_eq!(before.differences(&now), expected, "{what}");
        }
        let said = ["public.t: column b", "public.t: columns"];
        assert_eq!(whole.differences(&now("1", "1", "2", "2")), said, "rows are used whole");
    }

    #[test]
    fn a_fingerprint_survives_its_text() {
        let it = one(&[("storage", "1")]);
        assert_eq!(Fingerprint::from_text(&it.to_text()), Some(it));
        assert_eq!(Fingerprint::from_text(""), None);
        assert!(Fingerprint::default().add("x", "{}").is_err());
    }

    #[test]
    fn entries_that_saw_different_things_are_torn() {
        let mut both = one(&[("storage", "1")]);
        both.merge(one(&[("storage", "2")]));
        for now in [one(&[("storage", "1")]), one(&[("storage", "2")])] {
            assert_eq!(both.differences(&now), ["public.t: storage"]);
        }
    }

    #[test]
    fn altered_back_between_two_looks_is_seen() {
        let (first, second) =
            (one(&[("touched", "1"), ("rest", "1")]), one(&[("touched", "2"), ("rest", "1")]));
        let said = ["public.t: changed and changed back"];
        assert_eq!(first.changed_back(&second, &first), said);
        assert!(first.changed_back(&second, &Fingerprint::default()).is_empty());
        assert!(first.changed_back(&first, &first).is_empty());
    }
}
