//! JSON over several lines without parsing it: every value stays the text that Postgres wrote, all
//! digits of its numbers and the order of its fields included. Pure.

/// Indents JSON by two spaces a level. What is no JSON comes out as some other text.
pub fn pretty(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut rest = json.chars().peekable();
    let line = |text: &mut String, depth: usize| {
        text.push('\n');
        text.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(it) = rest.next() {
        if in_string {
            text.push(it);
            in_string = escaped || it != '"';
            escaped = !escaped && it == '\\';
            continue;
        }
        match it {
            '{' | '[' => {
                text.push(it);
                while rest.next_if(|it| it.is_ascii_whitespace()).is_some() {}
                if let Some(closing) = rest.next_if(|it| matches!(it, '}' | ']')) {
                    text.push(closing);
                } else {
                    depth += 1;
                    line(&mut text, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut text, depth);
                text.push(it);
            }
            ',' => {
                text.push(it);
                line(&mut text, depth);
            }
            ':' => text.push_str(": "),
            it if it.is_ascii_whitespace() => {}
            it => {
                in_string = it == '"';
                text.push(it);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn digits_and_order_stay() {
        let json =
            r#"{"b": 1.000000000000000000010, "a":[], "c" : {"x":[1,2]}, "s":"a\\\": {,}" }"#;
        let expected = "{\n  \"b\": 1.000000000000000000010,\n  \"a\": [],\n  \"c\": {\n    \"x\": [\n      1,\n      2\n    ]\n  },\n  \"s\": \"a\\\\\\\": {,}\"\n}";
        assert_eq!(pretty(json), expected);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            Just(json!(null)),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((".{0,4}", inner), 0..4)
                    .prop_map(|it| Value::Object(it.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// serde_json's own pretty printer is the oracle.
        #[test]
        fn it_is_what_a_parser_would_print(value in value()) {
            let expected = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(pretty(&value.to_string()), expected.clone());
            prop_assert_eq!(pretty(&expected), expected);
        }
    }
}
