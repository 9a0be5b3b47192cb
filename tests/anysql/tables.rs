//! A random application: tables whose key type, foreign keys, NULLs and column order differ from
//! seed to seed, and transactions on them.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

/// Few keys, so that rows meet.
const KEYS: u32 = 12;

/// What the keys are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KeyType {
    Int,
    Bigint,
    Uuid,
    Text,
}

#[derive(Debug)]
pub struct Tables {
    pub key: KeyType,
    sql: String,
}

impl KeyType {
    pub fn name(self) -> &'static str {
        match self {
            Self::Int => "integer",
            Self::Bigint => "bigint",
            Self::Uuid => "uuid",
            Self::Text => "text",
        }
    }

    pub fn value(self, nth: u32) -> String {
        match self {
            Self::Int | Self::Bigint => nth.to_string(),
            Self::Uuid => format!("md5('{nth}')::uuid"),
            Self::Text => format!("'key \"{nth}\" ü'"),
        }
    }
}

/// A column that refers to a table: with or without a constraint, with or without NULLs.
fn reference(random: &mut StdRng, key: KeyType, table: &str) -> String {
    let null = if random.random_bool(0.3) { " NOT NULL" } else { "" };
    let action = match random.random_range(0..4) {
        0 => format!(" REFERENCES {table} ON DELETE CASCADE ON UPDATE CASCADE"),
        1 if null.is_empty() => format!(" REFERENCES {table} ON DELETE SET NULL ON UPDATE CASCADE"),
        _ => String::new(),
    };
    format!("{}{null}{action}", key.name())
}

/// The columns of the table that most keys come from.
fn wide(k: &str, up: &str) -> Vec<String> {
    vec![
        format!("id {k} PRIMARY KEY"),
        "name text".into(),
        "slug varchar(20)".into(),
        format!("up_id {k}"),
        "n numeric".into(),
        "body jsonb".into(),
        "tags text[]".into(),
        "at timestamptz".into(),
        "loud text GENERATED ALWAYS AS (upper(name)) STORED".into(),
        format!("t_id {up}"),
    ]
}

impl Tables {
    pub fn new(random: &mut StdRng) -> Self {
        let all = [KeyType::Int, KeyType::Bigint, KeyType::Uuid, KeyType::Text];
        let key = *all.choose(random).unwrap();
        let k = key.name();
        let mut sql = String::new();
        let up = reference(random, key, "t");
        let mut tables = vec![
            (
                "t",
                vec![format!("id {k} PRIMARY KEY"), "label text".into(), "kind varchar(10)".into()],
            ),
            ("p", wide(k, &up)),
        ];
        let (c_p, c_t) = (reference(random, key, "p"), reference(random, key, "t"));
        tables.push((
            "c",
            vec![
                format!("id {k} PRIMARY KEY"),
                format!("p_id {c_p}"),
                format!("t_id {c_t}"),
                "label text".into(),
                "amount int".into(),
                "flag boolean".into(),
                "p_slug varchar".into(),
            ],
        ));
        let (g_c, g_t) = (reference(random, key, "c"), reference(random, key, "t"));
        tables.push((
            "g",
            vec![
                format!("id {k} PRIMARY KEY"),
                format!("c_id {g_c}"),
                format!("t_id {g_t}"),
                "label text".into(),
            ],
        ));
        tables.push((
            "l",
            vec![
                format!("p_id {k}"),
                format!("t_id {k}"),
                "note text".into(),
                "PRIMARY KEY (p_id, t_id)".into(),
            ],
        ));
        for (name, mut columns) in tables {
            columns.shuffle(random);
            sql.push_str(&format!(
                "CREATE TABLE {name} ({});\nALTER TABLE {name} REPLICA IDENTITY FULL;\n",
                columns.join(", ")
            ));
        }
        sql.push_str(
            "CREATE VIEW v1 AS SELECT c.id, c.p_id, c.label, t.label AS tag FROM c \
             LEFT JOIN t ON t.id = c.t_id;\n\
             CREATE VIEW v2 AS SELECT v1.*, g.label AS deep FROM v1 LEFT JOIN g ON g.c_id = v1.id;\n",
        );
        Self { key, sql }
    }

    /// The tables with their first rows.
    pub fn create(&self) -> String {
        let mut random = StdRng::seed_from_u64(7);
        let mut sql = self.sql.clone();
        for table in ["t", "p", "c", "g", "l"] {
            for _ in 0..KEYS {
                sql.push_str(&format!("{};\n", self.insert(&mut random, table)));
            }
        }
        sql
    }

    fn any(&self, random: &mut StdRng) -> String {
        self.key.value(random.random_range(0..KEYS))
    }

    fn any_or_null(&self, random: &mut StdRng) -> String {
        if random.random_bool(0.15) { "NULL".to_owned() } else { self.any(random) }
    }

    fn text(random: &mut StdRng) -> &'static str {
        ["NULL", "''", "'a'", "'A'", "'b \"quoted\"'", "'ünï'", "'a,b'"].choose(random).unwrap()
    }

    /// A column and a new value.
    fn column(&self, random: &mut StdRng, table: &str) -> (&'static str, String) {
        let text = Self::text(random).to_owned();
        let names: &[&str] = match table {
            "t" => &["label", "kind"],
            "p" => &["name", "slug", "up_id", "n", "body", "tags", "at", "t_id"],
            "c" => &["p_id", "p_id", "t_id", "label", "amount", "flag", "p_slug"],
            "g" => &["c_id", "c_id", "t_id", "label"],
            _ => &["note"],
        };
        let name = *names.choose(random).unwrap();
        let value = match name {
            "up_id" | "p_id" | "t_id" | "c_id" => self.any_or_null(random),
            "n" => ["1", "1.0", "1.00", "2.5", "NULL"].choose(random).unwrap().to_string(),
            "kind" | "slug" | "p_slug" => {
                ["'x'", "'y'", "'z'", "NULL"].choose(random).unwrap().to_string()
            }
            "body" => {
                let items = r#"'{"items": [{"n": 1}, {"n": 2}], "s": "x"}'"#;
                [items, r#"'{"items": []}'"#, "'null'", "NULL"].choose(random).unwrap().to_string()
            }
            "tags" => ["'{a,b}'", "'[0:1]={a,b}'", "'{}'", "'{b,NULL}'", "NULL"]
                .choose(random)
                .unwrap()
                .to_string(),
            "at" => ["'2026-01-02 03:04:05+02'", "'2026-01-02 23:30:00Z'", "NULL"]
                .choose(random)
                .unwrap()
                .to_string(),
            "amount" => random.random_range(0..4).to_string(),
            "flag" => ["true", "false", "NULL"].choose(random).unwrap().to_string(),
            _ => text,
        };
        (name, value)
    }

    fn insert(&self, random: &mut StdRng, table: &str) -> String {
        if table == "l" {
            let (p, t, note) = (self.any(random), self.any(random), Self::text(random));
            return format!(
                "INSERT INTO l (p_id, t_id, note) VALUES ({p}, {t}, {note}) ON CONFLICT DO NOTHING"
            );
        }
        let mut columns: Vec<(&str, String)> = vec![("id", self.any(random))];
        for _ in 0..12 {
            let column = self.column(random, table);
            if columns.iter().all(|it| it.0 != column.0) {
                columns.push(column);
            }
        }
        // A reference that must be there, is.
        for name in ["p_id", "t_id", "c_id"] {
            let has = match table {
                "c" => name != "c_id",
                "g" => name != "p_id",
                "p" => name == "t_id",
                _ => false,
            };
            if has {
                columns.retain(|it| it.0 != name);
                let target = name.trim_end_matches("_id");
                let seed: u32 = random.random_range(0..1_000);
                columns.push((
                    name,
                    format!("(SELECT id FROM {target} ORDER BY md5(id::text || '{seed}') LIMIT 1)"),
                ));
            }
        }
        let names: Vec<&str> = columns.iter().map(|it| it.0).collect();
        let values: Vec<&str> = columns.iter().map(|it| it.1.as_str()).collect();
        format!(
            "INSERT INTO {table} ({}) VALUES ({}) ON CONFLICT DO NOTHING",
            names.join(", "),
            values.join(", ")
        )
    }

    fn statement(&self, random: &mut StdRng) -> String {
        let table = *["p", "p", "c", "c", "c", "g", "g", "t", "l"].choose(random).unwrap();
        let key = if table == "l" { "p_id" } else { "id" };
        let one = self.any(random);
        match random.random_range(0..10) {
            0..=2 => self.insert(random, table),
            3 => format!("DELETE FROM {table} WHERE {key} = {one}"),
            4 => {
                let other = self.any(random);
                format!("UPDATE {table} SET {key} = {other} WHERE {key} = {one}")
            }
            _ => {
                let (column, value) = self.column(random, table);
                let few = if random.random_bool(0.1) {
                    "true".to_owned()
                } else {
                    format!("{key} = {one}")
                };
                format!("UPDATE {table} SET {column} = {value} WHERE {few}")
            }
        }
    }

    /// Whole transactions, some rolled back, some with savepoints.
    pub fn transactions(&self, seed: u64, count: usize) -> Vec<String> {
        let mut random = StdRng::seed_from_u64(seed);
        let transaction = |_| {
            let mut sql = "BEGIN;".to_owned();
            for _ in 0..random.random_range(1..5) {
                if random.random_bool(0.1) {
                    let undone = self.statement(&mut random);
                    sql.push_str(&format!("SAVEPOINT s; {undone}; ROLLBACK TO s;"));
                }
                sql.push_str(&format!("{};", self.statement(&mut random)));
            }
            sql.push_str(if random.random_bool(0.1) { "ROLLBACK" } else { "COMMIT" });
            sql
        };
        (0..count).map(transaction).collect()
    }
}
