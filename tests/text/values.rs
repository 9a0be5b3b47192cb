//! Random values of Postgres' types, as the text that casts read, and how JSON is compared.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::value::RawValue;

/// The settings that every session of ours pins, for a session that is not.
pub const PINNED: &str =
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres';
    SET extra_float_digits = 1; SET bytea_output = 'hex'; SET quote_all_identifiers = off;";

/// Types to be made in the namespace that stands for `$s`.
pub const OBJECTS: &str = r#"
CREATE TYPE $s.mood AS ENUM ('so so', 'good "very"', 'bad,\really');
CREATE DOMAIN $s.price AS numeric(12, 2);
CREATE DOMAIN $s.numbers AS int[];
CREATE TYPE $s.inner_row AS
  ("a ""b" int, when_ timestamptz, tags text[], gone int, mood $s.mood);
ALTER TYPE $s.inner_row DROP ATTRIBUTE gone;
CREATE TYPE $s.outer_row AS
  (p $s.price, n $s.numbers, i $s.inner_row, l $s.inner_row[], j jsonb, b bool);
CREATE DOMAIN $s.row_domain AS $s.outer_row;
CREATE TYPE $s.words AS RANGE (subtype = text, multirange_type_name = $s.wordses);
"#;

pub type Generator = fn(&mut StdRng) -> String;

/// Types by SQL name, and how to make the text of a random value.
pub const TYPES: &[(&str, Generator)] = &[
    ("bool", |rng| rng.random::<bool>().to_string()),
    ("int2", |rng| rng.random::<i16>().to_string()),
    ("int4", |rng| rng.random::<i32>().to_string()),
    ("int8", |rng| rng.random::<i64>().to_string()),
    ("oid", |rng| rng.random::<u32>().to_string()),
    ("float4", |rng| float(rng, f32::from_bits(rng.clone().random()).to_string())),
    ("float8", |rng| float(rng, f64::from_bits(rng.clone().random()).to_string())),
    ("float8", |rng| float(rng, rng.clone().random_range(-1000.0..1000.0f64).to_string())),
    ("numeric", numeric),
    ("numeric(20,5)", |rng| rng.random_range(-1e9..1e9f64).to_string()),
    ("$s.price", |rng| rng.random_range(-1e9..1e9f64).to_string()),
    ("money", |rng| rng.random_range(-1e6..1e6f64).to_string()),
    ("text", text),
    ("varchar(9)", |rng| text(rng).chars().take(9).collect()),
    ("char(5)", |rng| text(rng).chars().take(4).collect()),
    ("name", |rng| text(rng).chars().take(9).collect()),
    ("\"char\"", |rng| rng.random_range('!'..='z').to_string()),
    ("bytea", |rng| (0..rng.random_range(0..9)).fold("\\x".to_owned(), |it, _| it + "0f")),
    ("json", |rng| json(rng, 3)),
    ("jsonb", |rng| json(rng, 3)),
    ("uuid", |rng| format!("{:032x}", rng.random::<u128>())),
    ("date", |rng| special(rng, |rng| format!("{}{}", day(rng), era(rng)))),
    ("timestamp", |rng| special(rng, |rng| format!("{} {}{}", day(rng), time(rng), era(rng)))),
    ("timestamptz", |rng| {
        special(rng, |rng| format!("{} {}+05:30{}", day(rng), time(rng), era(rng)))
    }),
    ("timestamptz(0)", |rng| format!("{} {}-11{}", day(rng), time(rng), era(rng))),
    ("time", time),
    ("timetz", |rng| time(rng) + "+02:30"),
    ("interval", |rng| {
        format!("{} mon {} days {}", rng.random_range(-99..99), rng.random::<i16>(), time(rng))
    }),
    ("inet", |rng| format!("10.1.{}.7/{}", rng.random::<u8>(), rng.random_range(0..=32))),
    ("cidr", |rng| format!("10.{}.0.0/16", rng.random::<u8>())),
    ("macaddr", |rng| format!("08:00:2b:01:02:{:02x}", rng.random::<u8>())),
    ("bit(3)", |rng| format!("{:03b}", rng.random_range(0..8))),
    ("varbit", |rng| format!("{:b}", rng.random::<u16>())),
    ("pg_lsn", |rng| format!("{:X}/{:X}", rng.random::<u16>(), rng.random::<u32>())),
    ("point", |rng| format!("({},{})", rng.random::<i16>(), rng.random::<i8>())),
    ("box", |rng| format!("({},1),(-3,{})", rng.random::<i16>(), rng.random::<i8>())),
    ("int4range", |rng| format!("[{},{})", rng.random_range(-9..0), rng.random_range(1..9))),
    ("tstzrange", |rng| format!("[\"2020-01-01 {}\",)", time(rng))),
    ("numrange", |_| "empty".to_owned()),
    ("int8range", |rng| format!("({},]", rng.random::<i64>())),
    ("daterange", |rng| format!("[-infinity,{}]", day(rng))),
    ("tsrange", |rng| format!("(\"0044-03-15 {} BC\",infinity)", time(rng))),
    ("int4multirange", |rng| format!("{{[{},0),[5,9)}}", rng.random_range(-9..-1))),
    ("nummultirange", |rng| format!("{{[{},NaN]}}", numeric(rng).replace("NaN", "1.0"))),
    ("int8multirange", |_| "{}".to_owned()),
    ("datemultirange", |rng| format!("{{[{},4100-01-01),[9999-01-01,)}}", day(rng))),
    ("tsmultirange", |rng| format!("{{[2020-01-01,\"2020-01-02 {}\")}}", time(rng))),
    ("tstzmultirange", |rng| format!("{{[2020-01-01,\"2020-01-02 {}+07\")}}", time(rng))),
    ("$s.words", |rng| format!("[\"\",{}]", quoted(&format!("{}z", text(rng))))),
    ("$s.wordses", |rng| format!("{{[,{}]}}", quoted(&text(rng)))),
    ("line", |rng| format!("{{1,{},2.5}}", rng.random::<i8>())),
    ("lseg", |rng| format!("[({},1e300),(3,-0)]", rng.random::<f64>())),
    ("path", |rng| ["((0,0),(1,2.5))", "[(0,0),(1,1)]"].choose(rng).unwrap().to_string()),
    ("polygon", |rng| format!("((0,0),({},1),(NaN,Infinity))", rng.random::<i8>())),
    ("circle", |rng| format!("<(1,{}),2.5>", rng.random::<i8>())),
    ("macaddr8", |rng| format!("08:00:2b:01:02:03:04:{:02x}", rng.random::<u8>())),
    ("tsquery", |rng| format!("'a b' & !c | 'd\\'{}':*AB <2> e", rng.random::<u8>())),
    ("jsonpath", |rng| format!("$.\"a b\" ? (@ > {})", rng.random::<u8>())),
    ("xml", |rng| format!("<a b=\"{}\">&lt;\n\\ä</a>", rng.random::<u8>())),
    ("bpchar", |rng| format!("{}  ", text(rng))),
    ("refcursor", text),
    ("tid", |rng| format!("({},{})", rng.random::<u32>(), rng.random::<u16>())),
    ("xid", |rng| rng.random::<u32>().to_string()),
    ("cid", |rng| rng.random::<u32>().to_string()),
    ("xid8", |rng| rng.random::<u64>().to_string()),
    ("pg_snapshot", |rng| format!("10:{}:10,12", rng.random_range(20..u32::MAX))),
    ("txid_snapshot", |rng| format!("10:{}:", rng.random_range(20..u32::MAX))),
    ("aclitem", |_| "postgres=r*w/postgres".to_owned()),
    ("regclass", |rng| one_of(rng, &["pg_class", "information_schema.tables"])),
    ("regtype", |rng| one_of(rng, &["int", "timestamptz[]", "$s.mood", "\"char\"", "4294967295"])),
    ("regproc", |rng| one_of(rng, &["now", "-", "4294967295"])),
    ("regprocedure", |rng| one_of(rng, &["abs(numeric)", "-"])),
    ("regoper", |rng| one_of(rng, &["||/", "0"])),
    ("regoperator", |rng| one_of(rng, &["+(int4,int8)", "!!(none,tsquery)", "0"])),
    ("regconfig", |rng| one_of(rng, &["english", "simple"])),
    ("regdictionary", |_| "simple".to_owned()),
    ("regnamespace", |rng| one_of(rng, &["pg_catalog", "information_schema"])),
    ("regrole", |_| "postgres".to_owned()),
    ("regcollation", |rng| one_of(rng, &["\"C\"", "\"POSIX\""])),
    ("tsvector", |rng| format!("'a {}':1 'b\\\\c':2", rng.random::<u8>())),
    ("int2vector", |rng| format!("{} 2 -3", rng.random::<i16>())),
    ("oidvector", |rng| format!("{} 2 3", rng.random::<u32>())),
    ("$s.mood", |rng| ["so so", "good \"very\"", "bad,\\really"].choose(rng).unwrap().to_string()),
    ("$s.numbers", |rng| format!("[2:4]={{{},NULL,3}}", rng.random::<i16>())),
    ("$s.inner_row", inner_row),
    ("$s.outer_row", outer_row),
    ("$s.row_domain", outer_row),
];

fn float(rng: &mut StdRng, text: String) -> String {
    let special = ["NaN", "Infinity", "-Infinity", "-0", "1e20", "1e-7", "5e-38", "1.5e15", "1e16"];
    if rng.random_bool(0.3) { special.choose(rng).unwrap().to_string() } else { text }
}

fn one_of(rng: &mut StdRng, texts: &[&str]) -> String {
    texts.choose(rng).unwrap().to_string()
}

/// As ranges, arrays and composites quote a part.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn numeric(rng: &mut StdRng) -> String {
    if rng.random_bool(0.1) {
        return ["NaN", "Infinity", "-Infinity", "0.000"].choose(rng).unwrap().to_string();
    }
    let digits = |rng: &mut StdRng| -> String {
        (0..rng.random_range(1..40)).map(|_| rng.random_range('0'..='9')).collect()
    };
    format!("{}{}.{}", if rng.random() { "-" } else { "" }, digits(rng), digits(rng))
}

pub fn text(rng: &mut StdRng) -> String {
    const PARTS: &[&str] = &[
        "a",
        "Z",
        " ",
        "\"",
        "\\",
        "'",
        ",",
        "{",
        "}",
        "(",
        ")",
        ";",
        "NULL",
        "null",
        "\n",
        "\t",
        "\r",
        "\u{1}",
        "\u{8}",
        "\u{C}",
        "\u{1F}",
        "\u{7F}",
        "\u{85}",
        "\u{2028}",
        "ä",
        "€",
        "𝄞",
        "/",
        "=>",
        "long enough for eight bytes",
    ];
    (0..rng.random_range(0..7)).map(|_| *PARTS.choose(rng).unwrap()).collect()
}

/// Without exponents and repeated keys, which `to_jsonb(json)` rewrites and we keep.
fn json(rng: &mut StdRng, depth: u32) -> String {
    let string = |rng: &mut StdRng| serde_json::to_string(&text(rng)).unwrap();
    match rng.random_range(0..if depth == 0 { 4 } else { 6 }) {
        0 => "null".to_owned(),
        1 => rng.random::<bool>().to_string(),
        2 => format!("{}.50", rng.random::<i64>()),
        3 => string(rng),
        4 => {
            let parts: Vec<_> = (0..rng.random_range(0..4)).map(|_| json(rng, depth - 1)).collect();
            format!("[{}]", parts.join(",\n "))
        }
        _ => {
            let member = |rng: &mut StdRng| (string(rng), json(rng, depth - 1));
            let parts: BTreeMap<_, _> = (0..rng.random_range(0..4)).map(|_| member(rng)).collect();
            let parts: Vec<_> =
                parts.iter().map(|(key, value)| format!("{key}: {value}")).collect();
            format!("{{{}}}", parts.join(", "))
        }
    }
}

fn special(rng: &mut StdRng, otherwise: Generator) -> String {
    match rng.random_range(0..10) {
        0 => "infinity".to_owned(),
        1 => "-infinity".to_owned(),
        _ => otherwise(rng),
    }
}

fn day(rng: &mut StdRng) -> String {
    let year = if rng.random() { rng.random_range(1..4000) } else { 2024 };
    format!("{year:04}-{:02}-{:02}", rng.random_range(1..=12), rng.random_range(1..=28))
}

fn time(rng: &mut StdRng) -> String {
    let seconds = rng.random_range(0..86_400);
    let fraction = match rng.random_range(0..3) {
        0 => String::new(),
        1 => ".5".to_owned(),
        _ => format!(".{:06}", rng.random_range(0..1_000_000)),
    };
    format!("{:02}:{:02}:{:02}{fraction}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn era(rng: &mut StdRng) -> &'static str {
    if rng.random_bool(0.2) { " BC" } else { "" }
}

/// A part of a composite's or array's text: quoted, or nothing.
pub fn part(rng: &mut StdRng, generate: Generator) -> String {
    if rng.random_bool(0.2) {
        return String::new();
    }
    quoted(&generate(rng))
}

fn inner_row(rng: &mut StdRng) -> String {
    let number = part(rng, |rng| rng.random::<i32>().to_string());
    let when = part(rng, |rng| format!("{} {}", day(rng), time(rng)));
    let tags = part(rng, |rng| {
        let tags: Vec<_> = (0..3).map(|_| part(rng, text)).filter(|it| !it.is_empty()).collect();
        format!("{{{}}}", tags.join(","))
    });
    let mood = part(rng, |_| "bad,\\really".to_owned());
    format!("({number},{when},{tags},{mood})")
}

fn outer_row(rng: &mut StdRng) -> String {
    let price = part(rng, |rng| rng.random_range(-1e6..1e6f64).to_string());
    let numbers = part(rng, |rng| format!("{{{{1,{}}},{{NULL,4}}}}", rng.random::<i8>()));
    let inner = part(rng, inner_row);
    let list = part(rng, |rng| {
        let rows: Vec<_> = (0..2)
            .map(|_| part(rng, inner_row))
            .map(|it| if it.is_empty() { "NULL".to_owned() } else { it })
            .collect();
        format!("{{{}}}", rows.join(","))
    });
    let json = part(rng, |rng| json(rng, 2));
    let flag = part(rng, |rng| rng.random::<bool>().to_string());
    format!("({price},{numbers},{inner},{list},{json},{flag})")
}

/// Types of extensions that come with Postgres: `(extension, type, text)`.
pub const OF_EXTENSIONS: &[(&str, &str, Generator)] = &[
    ("hstore", "hstore", |rng| {
        let (key, value) = (quoted(&text(rng)), quoted(&text(rng)));
        format!("{key}=>NULL, x=>{value}, \"\"=>\"\"")
    }),
    ("citext", "citext", text),
    ("ltree", "ltree", |rng| format!("Top.a_{}.B", rng.random::<u8>())),
    ("ltree", "lquery", |_| "Top.*{1,2}.!a|b@*".to_owned()),
    ("cube", "cube", |rng| format!("({},2),(3,-4.5)", rng.random::<i8>())),
    ("seg", "seg", |rng| format!("{} .. 1e9", rng.random::<u8>())),
    ("intarray", "query_int", |rng| format!("1&(2|!{})", rng.random::<u8>())),
    ("isn", "isbn13", |_| "978-0-393-04002-9".to_owned()),
];

/// JSON with its keys sorted and its white space gone, but every digit of its numbers kept.
pub fn canonical(json: &str) -> String {
    match json.trim_start().as_bytes()[0] {
        b'{' => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(json).unwrap();
            let member =
                |(key, value): (&String, &&RawValue)| format!("{key:?}:{}", canonical(value.get()));
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
        }
        b'[' => {
            let parts: Vec<&RawValue> = serde_json::from_str(json).unwrap();
            let parts: Vec<_> = parts.iter().map(|it| canonical(it.get())).collect();
            format!("[{}]", parts.join(","))
        }
        b'"' => format!("{:?}", serde_json::from_str::<String>(json).unwrap()),
        _ => json.trim().to_owned(),
    }
}
