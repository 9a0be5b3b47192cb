//! Cases known by heart, and that nothing panics. That the cases are right is for Postgres to say,
//! in `tests/text.rs`.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn array(element: Kind) -> Kind {
    Kind::Array { element: Arc::new(element), delimiter: b',' }
}

fn pair() -> Kind {
    composite(vec![("a".to_owned(), Kind::Number), ("b \"".to_owned(), Kind::Text)])
}

fn composite(attributes: Vec<(String, Kind)>) -> Kind {
    Kind::Composite(Arc::new(Composite::new(attributes)))
}

fn json(kind: &Kind, text: &[u8]) -> Result<String, DecodeError> {
    let mut out = Vec::new();
    write_json(kind, text, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

#[track_caller]
fn check(kind: &Kind, text: &str, expected: &str) {
    assert_eq!(json(kind, text.as_bytes()).as_deref(), Ok(expected), "{text}");
}

#[track_caller]
fn check_refused(kind: &Kind, texts: &[&str]) {
    for text in texts {
        assert!(json(kind, text.as_bytes()).is_err(), "{kind:?} {text}");
    }
}

#[test]
fn scalars() {
    check(&Kind::Bool, "t", "true");
    check(&Kind::Bool, "f", "false");
    check(&Kind::Json, "{\"a\":\n1}", "{\"a\":\n1}");
    check(&Kind::Timestamp, "2024-02-29 12:00:00.5", "\"2024-02-29T12:00:00.5\"");
    check(&Kind::Timestamp, "0044-03-15 00:00:00 BC", "\"0044-03-15T00:00:00 BC\"");
    check(&Kind::Timestamp, "-infinity", "\"-infinity\"");
    check(&Kind::TimestampTz, "2024-02-29 12:00:00+00", "\"2024-02-29T12:00:00+00:00\"");
    check(&Kind::TimestampTz, "0044-03-15 00:00:00+00 BC", "\"0044-03-15T00:00:00+00:00 BC\"");
    check(&Kind::TimestampTz, "1890-01-01 00:00:00-05:30", "\"1890-01-01T00:00:00-05:30\"");
    check_refused(&Kind::Bool, &["", "true", "tt"]);
    check_refused(&Kind::Json, &[""]);
    check_refused(&Kind::Timestamp, &["", "2024-02-29", "\" \"", "2024-02-29 12:00\\"]);
    check_refused(&Kind::TimestampTz, &["2024-02-29 12:00:00"]);
}

#[test]
fn numbers() {
    for text in ["0", "-1", "1.50", "0.00", "123456789012345678901234567890.10"] {
        check(&Kind::Number, text, text);
    }
    for (text, expected) in [
        ("NaN", "\"NaN\""),
        ("-Infinity", "\"-Infinity\""),
        ("-0", "0"),
        ("1e+20", "100000000000000000000"),
        ("-1.25e+20", "-125000000000000000000"),
        ("1.2345e+02", "123.45"),
        ("1.5e-07", "0.00000015"),
        ("12.5e-1", "1.25"),
        ("0e+5", "0"),
    ] {
        check(&Kind::Number, text, expected);
    }
    let refused =
        ["", "-", "+1", "1.", ".1", "01", "1e", "1e+999999", "nan", "1 ", "--1", "0x1", "1.2.3"];
    check_refused(&Kind::Number, &refused);
}

#[test]
fn strings_are_escaped() {
    check(&Kind::Text, "", "\"\"");
    check(&Kind::Text, "plain äöü 𝄞 \u{7F}", "\"plain äöü 𝄞 \u{7F}\"");
    check(
        &Kind::Text,
        "a\"b\\c/\n\r\t\u{8}\u{C}\u{1}\u{1F}",
        r#""a\"b\\c/\n\r\t\b\f\u0001\u001f""#,
    );
    let refused = DecodeError::InvalidText { what: "a value" };
    assert_eq!(json(&Kind::Text, b"a\xFF"), Err(refused));
}

#[test]
fn arrays() {
    let numbers = array(Kind::Number);
    check(&numbers, "{}", "[]");
    check(&numbers, "{1,NULL,-2.5}", "[1,null,-2.5]");
    check(&numbers, "{{1,2},{3,4}}", "[[1,2],[3,4]]");
    check(&numbers, "[0:1][-2:-1]={{1,2},{3,4}}", "[[1,2],[3,4]]");
    check(
        &array(Kind::Text),
        r#"{a b,"","NULL","a\"b\\","{}"}"#,
        r#"["a b","","NULL","a\"b\\","{}"]"#,
    );
    check(&array(Kind::Json), r#"{"{\"a\": [1, 2]}",1}"#, r#"[{"a": [1, 2]},1]"#);
    check(&array(array(Kind::Number)), r#"{"{1,2}"}"#, "[[1,2]]");
    let boxes = Kind::Array { element: Arc::new(Kind::Text), delimiter: b';' };
    check(&boxes, "{(1,1),(0,0);(2,2),(1,1)}", r#"["(1,1),(0,0)","(2,2),(1,1)"]"#);
    check(&Kind::Vector(Arc::new(Kind::Number)), "1 2", "[1,2]");
    check(&Kind::Vector(Arc::new(Kind::Number)), "", "[]");
    let refused =
        ["", "{", "}", "{1", "{1,}", "{,}", "{1}}", "{{1}", "{1}x", "[0:1]{1}", "[x]={1}"];
    check_refused(&numbers, &refused);
    check_refused(&numbers, &["{{{{{{{1}}}}}}}"]);
    check_refused(&array(Kind::Text), &[r#"{"a}"#, r#"{"a\"#, r#"{"a"b}"#, r#"{a"b}"#]);
}

#[test]
fn composites() {
    check(&pair(), "(1,x)", r#"{"a":1,"b \"":"x"}"#);
    check(&pair(), "(,)", r#"{"a":null,"b \"":null}"#);
    check(&pair(), r#"(,"")"#, r#"{"a":null,"b \"":""}"#);
    check(&pair(), r#"(1,"a ""b"" \\ (,)")"#, r#"{"a":1,"b \"":"a \"b\" \\ (,)"}"#);
    check(
        &array(pair()),
        r#"{"(1,x)","(2,\"y \"\"z\")",NULL}"#,
        r#"[{"a":1,"b \"":"x"},{"a":2,"b \"":"y \"z"},null]"#,
    );
    check(&composite(Vec::new()), "()", "{}");
    check_refused(&pair(), &["", "(", "(1,x", "(1,x)y", "(1,x,y)", "1,x", "(1,\"x)"]);
    check(&pair(), "(1)", r#"{"a":1}"#); // of before the other was added
    let other = DecodeError::OtherAttributes { found: 3, known: 2 };
    assert_eq!(json(&pair(), b"(1,x,y)"), Err(other));
}

#[test]
fn hstore() {
    check(&Kind::Hstore, "", "{}");
    check(&Kind::Hstore, r#""a"=>"1", "b \"\\"=>NULL"#, r#"{"a":"1","b \"\\":null}"#);
    check_refused(
        &Kind::Hstore,
        &["a", "\"a\"", "\"a\"=>", "\"a\"=>1", "\"a\"=>\"1\",", "\"a\"=>NULL,x"],
    );
}

/// A composite type as it is after ALTER TYPE.
fn altered(before: Vec<(String, Kind)>, now: Vec<(String, Kind)>, dropped: bool) -> Kind {
    let mut places = vec![false; now.len()];
    if dropped {
        places.insert(0, true);
    }
    Kind::Composite(Arc::new(Composite::read(now, places, Some(&Composite::new(before)))))
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let scalar = prop_oneof![
        Just(Kind::Bool),
        Just(Kind::Number),
        Just(Kind::Text),
        Just(Kind::Timestamp),
        Just(Kind::TimestampTz),
        Just(Kind::Hstore),
        Just(Kind::Vector(Arc::new(Kind::Number))),
    ];
    scalar.prop_recursive(3, 8, 3, |kind| {
        prop_oneof![
            kind.clone().prop_map(array),
            vec(("[a-z\"]{1,3}", kind.clone()), 0..3).prop_map(composite),
            (vec(("[a-z]", kind.clone()), 1..3), vec(("[a-z]", kind), 0..3), any::<bool>())
                .prop_map(|(before, now, dropped)| altered(before, now, dropped)),
        ]
    })
}

proptest! {
    #[test]
    fn a_string_reads_back(text: String) {
        let written = json(&Kind::Text, text.as_bytes()).unwrap();
        prop_assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
    }

    #[test]
    fn a_float_keeps_its_value(value: f64) {
        prop_assume!(value.is_finite());
        let written = json(&Kind::Number, format!("{value:e}").as_bytes()).unwrap();
        prop_assert_eq!(written.parse::<f64>().unwrap(), value);
        prop_assert!(!written.contains('e'));
    }

    #[test]
    fn what_is_written_is_json(kind in any_kind(), text in r#"[\[\]{}()"\\,=>: 01Netf+.-]{0,12}"#) {
        if let Ok(written) = json(&kind, text.as_bytes()) {
            let read = serde_json::from_str::<serde::de::IgnoredAny>(&written);
            prop_assert!(read.is_ok(), "{written}");
        }
    }

    #[test]
    fn nothing_panics(kind in any_kind(), text in vec(any::<u8>(), 0..40)) {
        json(&kind, &text).ok();
    }
}
