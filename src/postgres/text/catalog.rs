//! Which [`Kind`] a type is: built-in types by heart, all others from rows of the catalog.
//!
//! The rule is Postgres' own (`json_categorize_type` in its sources): a domain is its base type;
//! then the types that JSON knows; then arrays; then composites; the rest is text.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Composite, Kind};

/// Types with a lower OID are assigned by hand in Postgres' sources and never change.
const FIRST_GENERATED_OID: u32 = 10_000;

/// The type of an attribute that is no more.
const DROPPED: u32 = 0;

/// How deep domains, arrays and composites may contain each other: far more than anyone writes,
/// and a cycle, which Postgres does not allow, ends here.
const NESTING_MAX: usize = 32;

/// The arrays of built-in types that are text: `pg_type.oid` of the array.
const TEXT_ARRAYS: &[u32] = &[
    143, 271, 629, 651, 719, 775, 791, 1001, 1002, 1003, 1008, 1009, 1010, 1011, 1012, 1014, 1015,
    1017, 1018, 1019, 1027, 1028, 1034, 1040, 1041, 1182, 1183, 1187, 1263, 1270, 1561, 1563, 2201,
    2207, 2208, 2209, 2210, 2211, 2949, 2951, 3221, 3643, 3644, 3645, 3735, 3770, 3905, 3907, 3909,
    3911, 3913, 3927, 4073, 4090, 4097, 4192, 5039, 6150, 6151, 6152, 6153, 6155, 6157,
];

/// Rows for [`TypeRow::from_columns`]: the types whose OIDs are given as the text of an `oid[]`
/// (`{16387,16390}`), and all types that they are made of. All columns are text.
///
/// An array is a type of variable length that has an element: so are those of all versions, while
/// the handler of subscripts, which Postgres itself looks at, is there since 14 only. What an
/// hstore contains is not in the catalog; it is known by its cast to json.
pub const TYPE_ROWS_SQL: &str = "\
WITH RECURSIVE wanted (oid) AS (
  SELECT unnest($1::text::pg_catalog.oid[])
  UNION
  SELECT part.oid
  FROM wanted
  JOIN pg_catalog.pg_type t ON t.oid = wanted.oid
  CROSS JOIN LATERAL (
    SELECT t.typbasetype WHERE t.typtype = 'd'
    UNION ALL
    SELECT t.typelem WHERE t.typtype <> 'd' AND t.typlen = -1 AND t.typelem <> 0
    UNION ALL
    SELECT a.atttypid
    FROM pg_catalog.pg_attribute a
    WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
  ) part (oid)
)
SELECT t.oid::text,
  CASE
    WHEN EXISTS (
      SELECT FROM pg_catalog.pg_cast c
      WHERE c.castsource = t.oid AND c.casttarget = 114 AND c.castmethod = 'f'
    ) AND t.typname = 'hstore' THEN 'hstore'
    ELSE pg_catalog.format_type(t.oid, NULL)
  END,
  t.typtype::text,
  t.typcategory::text,
  CASE WHEN t.typtype <> 'd' AND t.typlen = -1 THEN t.typelem ELSE 0 END::pg_catalog.oid::text,
  coalesce(element.typdelim, t.typdelim)::text,
  t.typbasetype::text,
  coalesce((
    SELECT pg_catalog.json_agg(
      pg_catalog.json_build_array(a.attname::text, a.atttypid::pg_catalog.int8) ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a
    WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0
  )::text, '[]')
FROM (SELECT DISTINCT oid FROM wanted) wanted
JOIN pg_catalog.pg_type t ON t.oid = wanted.oid
LEFT JOIN pg_catalog.pg_type element ON element.oid = t.typelem AND t.typlen = -1
ORDER BY t.oid";

/// One type as [`TYPE_ROWS_SQL`] describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeRow {
    pub oid: u32,
    /// `format_type`'s name; exactly `hstore` for the hstore extension's type.
    pub name: String,
    /// `pg_type.typtype`
    pub typtype: u8,
    /// `pg_type.typcategory`
    pub category: u8,
    /// An array's element, else 0.
    pub element: u32,
    /// What stands between an array's elements.
    pub delimiter: u8,
    /// A domain's base type, else 0.
    pub base: u32,
    /// A composite's attributes in order, with their types: 0 for those that were dropped.
    pub attributes: Vec<(String, u32)>,
}

/// Why a type's kind is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    /// A type that no row describes. Dropped meanwhile, or not asked for.
    #[error("type {oid} is not in the catalog; was it dropped while its table was published?")]
    Unknown { oid: u32 },
    /// The catalog's answer is not what [`TYPE_ROWS_SQL`] selects.
    #[error("column {nth} of a type's catalog row is malformed")]
    MalformedRow { nth: usize },
    #[error("type {oid} contains other types more than {NESTING_MAX} levels deep")]
    TooDeep { oid: u32 },
}

impl TypeError {
    /// Whether asking the catalog again can help: the type may have been altered in between.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unknown { .. } => true,
            Self::MalformedRow { .. } | Self::TooDeep { .. } => false,
        }
    }
}

impl TypeRow {
    /// Reads a row of [`TYPE_ROWS_SQL`].
    pub fn from_columns(columns: &[Option<&str>]) -> Result<Self, TypeError> {
        let text =
            |nth: usize| columns.get(nth).copied().flatten().ok_or(TypeError::MalformedRow { nth });
        let oid =
            |nth: usize| text(nth)?.parse::<u32>().map_err(|_| TypeError::MalformedRow { nth });
        let letter = |nth: usize| match text(nth)?.as_bytes() {
            [letter] => Ok(*letter),
            _ => Err(TypeError::MalformedRow { nth }),
        };
        Ok(Self {
            oid: oid(0)?,
            name: text(1)?.to_owned(),
            typtype: letter(2)?,
            category: letter(3)?,
            element: oid(4)?,
            delimiter: letter(5)?,
            base: oid(6)?,
            attributes: serde_json::from_str(text(7)?)
                .map_err(|_| TypeError::MalformedRow { nth: 7 })?,
        })
    }
}

/// The kinds of the types seen so far. Built-in ones need no row.
#[derive(Debug, Clone, Default)]
pub struct TypeKinds {
    known: HashMap<u32, Kind>,
}

impl TypeKinds {
    pub fn new() -> Self {
        Self::default()
    }

    /// The kind of a type; None: ask the catalog with [`TYPE_ROWS_SQL`].
    pub fn get(&self, oid: u32) -> Option<Kind> {
        built_in(oid).or_else(|| self.known.get(&oid).cloned())
    }

    /// Adds one type, or replaces it after it was altered.
    pub fn insert(&mut self, oid: u32, kind: Kind) {
        self.known.insert(oid, kind);
    }

    /// Adds types from the catalog, in any order, or replaces them. Adds none if one is not known.
    pub fn add_rows(&mut self, rows: &[TypeRow]) -> Result<(), TypeError> {
        let by_oid: HashMap<u32, &TypeRow> = rows.iter().map(|it| (it.oid, it)).collect();
        let kinds = rows
            .iter()
            .map(|it| Ok((it.oid, self.resolve(it.oid, &by_oid, NESTING_MAX)?)))
            .collect::<Result<Vec<_>, TypeError>>()?;
        self.known.extend(kinds);
        Ok(())
    }

    fn resolve(
        &self,
        oid: u32,
        rows: &HashMap<u32, &TypeRow>,
        levels_left: usize,
    ) -> Result<Kind, TypeError> {
        if let Some(kind) = built_in(oid) {
            return Ok(kind);
        }
        let Some(row) = rows.get(&oid) else {
            return self.known.get(&oid).cloned().ok_or(TypeError::Unknown { oid });
        };
        let levels_left = levels_left.checked_sub(1).ok_or(TypeError::TooDeep { oid })?;
        let part = |oid| self.resolve(oid, rows, levels_left);
        Ok(match row.typtype {
            b'd' => part(row.base)?,
            b'c' => {
                let live = row.attributes.iter().filter(|it| it.1 != DROPPED);
                let attributes = live
                    .map(|(name, oid)| Ok((name.clone(), part(*oid)?)))
                    .collect::<Result<Vec<_>, TypeError>>()?;
                let dropped = row.attributes.iter().map(|it| it.1 == DROPPED).collect();
                let before = match self.known.get(&oid) {
                    Some(Kind::Composite(before)) => Some(&**before),
                    _ => None,
                };
                Kind::Composite(Arc::new(Composite::read(attributes, dropped, before)))
            }
            _ if row.element != 0 => {
                Kind::Array { element: Arc::new(part(row.element)?), delimiter: row.delimiter }
            }
            _ if row.name == "hstore" => Kind::Hstore,
            _ => Kind::Text,
        })
    }
}

/// The kind of a type of `pg_type.dat`. None for generated OIDs, and for the row types of a few
/// system tables.
fn built_in(oid: u32) -> Option<Kind> {
    let array = |element: Kind| Kind::Array { element: Arc::new(element), delimiter: b',' };
    Some(match oid {
        16 => Kind::Bool,
        20 | 21 | 23 | 700 | 701 | 1700 => Kind::Number,
        114 | 3802 => Kind::Json,
        1114 => Kind::Timestamp,
        1184 => Kind::TimestampTz,
        22 => Kind::Vector(Arc::new(Kind::Number)),
        30 => Kind::Vector(Arc::new(Kind::Text)),
        1000 => array(Kind::Bool),
        1005 | 1007 | 1016 | 1021 | 1022 | 1231 => array(Kind::Number),
        199 | 3807 => array(Kind::Json),
        1115 => array(Kind::Timestamp),
        1185 => array(Kind::TimestampTz),
        1006 => array(Kind::Vector(Arc::new(Kind::Number))),
        1013 => array(Kind::Vector(Arc::new(Kind::Text))),
        1020 => Kind::Array { element: Arc::new(Kind::Text), delimiter: b';' },
        0 | 71 | 75 | 81 | 83 | 210 | 270 | 272 | 273 => return None,
        FIRST_GENERATED_OID.. => return None,
        _ if TEXT_ARRAYS.contains(&oid) => array(Kind::Text),
        _ => Kind::Text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(oid: u32, typtype: u8, element: u32, base: u32) -> TypeRow {
        let (name, attributes) = (format!("t{oid}"), Vec::new());
        TypeRow { oid, name, typtype, category: b'U', element, delimiter: b',', base, attributes }
    }

    #[test]
    fn parts_are_found_in_any_order() {
        let mut composite = row(20_001, b'c', 0, 0);
        composite.attributes = vec![("a".to_owned(), 20_002), ("b".to_owned(), 23)];
        let rows = [
            row(20_000, b'd', 0, 20_003),
            composite,
            row(20_002, b'e', 0, 0),
            row(20_003, b'b', 20_001, 0),
        ];
        let mut kinds = TypeKinds::new();
        kinds.add_rows(&rows).unwrap();
        let attributes = [("a".to_owned(), Kind::Text), ("b".to_owned(), Kind::Number)];
        let composite = Kind::Composite(Arc::new(Composite::new(attributes.to_vec())));
        let array = Kind::Array { element: Arc::new(composite), delimiter: b',' };
        assert_eq!(kinds.get(20_000), Some(array));
        assert_eq!(kinds.get(20_004), None);
        assert_eq!(kinds.get(16), Some(Kind::Bool));
    }

    #[test]
    fn what_is_not_known_is_said() {
        let mut kinds = TypeKinds::new();
        let unknown = kinds.add_rows(&[row(20_000, b'e', 0, 0), row(20_001, b'd', 0, 20_009)]);
        assert_eq!(unknown, Err(TypeError::Unknown { oid: 20_009 }));
        assert_eq!(kinds.get(20_000), None, "all or none");
        let cycle = [row(20_000, b'd', 0, 20_001), row(20_001, b'd', 0, 20_000)];
        assert_eq!(kinds.add_rows(&cycle), Err(TypeError::TooDeep { oid: 20_000 }));
        let columns = ["1", "t", "d", "U", "0", ",", "x", "[]"].map(Some);
        assert_eq!(TypeRow::from_columns(&columns), Err(TypeError::MalformedRow { nth: 6 }));
    }
}
