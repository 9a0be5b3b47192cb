//! A search that clients may run: the body of an Elasticsearch query, written by an operator, with
//! places for a client's values (pure).
//!
//! A place is a whole string of the body: `"{{name}}"`, `"{{count:integer}}"`,
//! `"{{size:integer=10}}"`. What is put there is a JSON value of that type, so that no value can be
//! more than a value, whatever is in it.
//!
//! **Invariant:** a body that was filled differs from the template in its places only.

use serde_json::{Map, Value};

/// Elasticsearch would make its answer of as many documents at once.
pub const SIZE_MAX: u64 = 100;
/// Elasticsearch's own limit for `from` + `size` (`index.max_result_window`).
const WINDOW_MAX: u64 = 10_000;
/// What a person types; longer texts make many clauses.
const TEXT_CHARACTERS_MAX: usize = 1_000;
/// Where a value would be code, a pattern that is slow on purpose, or the name of another index.
const NO_PLACE_BELOW: &[&str] = &[
    "script",
    "script_fields",
    "script_score",
    "runtime_mappings",
    "query_string",
    "regexp",
    "wildcard",
    "wrapper",
    "index",
    "indexed_shape",
    "more_like_this",
    "percolate",
];
/// Parameters that every read has.
const TAKEN: &[&str] = &["fields", "access_token"];

#[derive(Debug, Clone, PartialEq)]
pub struct SearchTemplate {
    body: Value,
    pub parameters: Vec<SearchParameter>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SearchParameter {
    pub name: String,
    kind: Kind,
    /// None: a client must give it.
    default: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Integer,
    Number,
    Boolean,
}

impl Kind {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "text" => Self::Text,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    fn article_and_name(self) -> &'static str {
        match self {
            Self::Text => "a text of at most 1000 characters",
            Self::Integer => "an integer",
            Self::Number => "a number",
            Self::Boolean => "true or false",
        }
    }

    /// The value that a text of a query string stands for.
    fn read(self, text: &str) -> Option<Value> {
        let value = match self {
            Self::Text => Value::from(text),
            Self::Integer => Value::from(text.parse::<i64>().ok()?),
            Self::Number => Value::from(text.parse::<f64>().ok().filter(|it| it.is_finite())?),
            Self::Boolean => Value::from(text.parse::<bool>().ok()?),
        };
        self.accepts(&value).then_some(value)
    }

    fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Text => {
                value.as_str().is_some_and(|it| it.chars().count() <= TEXT_CHARACTERS_MAX)
            }
            Self::Integer => value.is_i64(),
            Self::Number => value.is_number(),
            Self::Boolean => value.is_boolean(),
        }
    }
}

/// A value as a client gives it.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    /// In a query string, where everything is text.
    Text(String),
    Json(Value),
}

impl SearchTemplate {
    /// Reads the body of a query.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let body: Value = serde_json::from_str(text)
            .map_err(|error| format!("body must be JSON, and is not: {error}"))?;
        if !body.is_object() {
            return Err("body must be the JSON object that a search is sent with".to_owned());
        }
        let mut parameters = Vec::new();
        collect(&body, false, &mut parameters)?;
        let template = Self { body, parameters };
        for name in ["size", "from"] {
            let place = |it: &Value| it.as_str().is_some_and(|it| it.contains("{{"));
            if template.body.get(name).is_some_and(|it| !it.is_u64() && !place(it)) {
                return Err(format!("{name} must be a number, or a parameter's place"));
            }
        }
        if template.body.get("size").and_then(Value::as_u64).is_some_and(|it| it > SIZE_MAX) {
            return Err(format!("size is at most {SIZE_MAX}"));
        }
        Ok(template)
    }

    /// The body with a client's values.
    ///
    /// # Errors
    /// What is wrong with them, as a sentence.
    pub fn fill(&self, given: Vec<(String, Given)>) -> Result<Value, String> {
        let mut values = Map::new();
        for (name, given) in given {
            let known = self.parameters.iter().find(|it| it.name == name);
            let Some(parameter) = known else {
                let shown: String = name.chars().take(40).collect();
                return Err(format!("there is no parameter \"{shown}\" here"));
            };
            let kind = parameter.kind;
            let value = match given {
                Given::Text(text) => kind.read(&text),
                Given::Json(value) => Some(value).filter(|it| kind.accepts(it)),
            };
            let wrong = || format!("{name} must be {}", kind.article_and_name());
            values.insert(name.clone(), value.ok_or_else(wrong)?);
        }
        for parameter in &self.parameters {
            if !values.contains_key(&parameter.name) {
                let missing = || format!("give {}", parameter.name);
                let default = parameter.default.clone().ok_or_else(missing)?;
                values.insert(parameter.name.clone(), default);
            }
        }
        let mut body = self.body.clone();
        put(&mut body, &values);
        check_window(&body)?;
        Ok(body)
    }
}

/// How many hits, and from where on.
fn check_window(body: &Value) -> Result<(), String> {
    let number = |name: &str, otherwise: u64| match body.get(name) {
        None => Ok(otherwise),
        Some(value) => value.as_u64().ok_or(format!("{name} must be 0 or more")),
    };
    let (size, from) = (number("size", 10)?, number("from", 0)?);
    if size > SIZE_MAX {
        return Err(format!("size is at most {SIZE_MAX}"));
    }
    if from > WINDOW_MAX - size {
        return Err(format!("from and size together are at most {WINDOW_MAX}"));
    }
    Ok(())
}

/// Finds all places. `refused`: none may be here.
fn collect(
    value: &Value,
    refused: bool,
    parameters: &mut Vec<SearchParameter>,
) -> Result<(), String> {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name.contains("{{") {
                    return Err(format!("a parameter can't be a name: \"{name}\""));
                }
                collect(value, refused || NO_PLACE_BELOW.contains(&name.as_str()), parameters)?;
            }
        }
        Value::Array(items) => {
            for item in items {
                collect(item, refused, parameters)?;
            }
        }
        Value::String(text) if text.contains("{{") => {
            let parameter = place(text)?;
            if refused {
                return Err(format!(
                    "a client's value may not stand where \"{text}\" does: it would be code, a \
                     pattern or an index' name there, not a value"
                ));
            }
            match parameters.iter().find(|it| it.name == parameter.name) {
                Some(known) if *known == parameter => {}
                Some(_) => {
                    return Err(format!("write {} the same at each place", parameter.name));
                }
                None => parameters.push(parameter),
            }
        }
        _ => {}
    }
    Ok(())
}

/// Reads `{{name:kind=default}}`.
fn place(text: &str) -> Result<SearchParameter, String> {
    let wrong = || {
        format!(
            "a parameter's place is a whole string, such as \"{{{{name}}}}\" or \
             \"{{{{size:integer=10}}}}\" (text, integer, number, boolean), not \"{text}\""
        )
    };
    let inner = text.strip_prefix("{{").and_then(|it| it.strip_suffix("}}")).ok_or_else(wrong)?;
    let (declared, default) = match inner.split_once('=') {
        Some((declared, default)) => (declared, Some(default)),
        None => (inner, None),
    };
    let (name, kind) = declared.split_once(':').unwrap_or((declared, "text"));
    let kind = Kind::named(kind).ok_or_else(wrong)?;
    let valid = |it: u8| it.is_ascii_alphanumeric() || it == b'_';
    if name.is_empty() || name.len() > 40 || !name.bytes().all(valid) {
        return Err(wrong());
    }
    if TAKEN.contains(&name) {
        return Err(format!("{name} has a meaning of its own: name the parameter otherwise"));
    }
    let default = match default {
        Some(text) => {
            let wrong = || format!("the default of {name} must be {}", kind.article_and_name());
            Some(kind.read(text).ok_or_else(wrong)?)
        }
        None => None,
    };
    Ok(SearchParameter { name: name.to_owned(), kind, default })
}

/// The template's own strings only: what was put in is not looked at again.
fn put(value: &mut Value, values: &Map<String, Value>) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|it| put(it, values)),
        Value::Array(items) => items.iter_mut().for_each(|it| put(it, values)),
        Value::String(text) => {
            let parameter = text.contains("{{").then(|| place(text).ok()).flatten();
            if let Some(filled) = parameter.and_then(|it| values.get(&it.name)) {
                *value = filled.clone();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn given(pairs: &[(&str, &str)]) -> Vec<(String, Given)> {
        let pairs = pairs.iter();
        pairs.map(|(name, it)| ((*name).to_owned(), Given::Text((*it).to_owned()))).collect()
    }

    const TEMPLATE: &str = r#"{"query":{"bool":{"must":[{"match":{"name":"{{q}}"}}],
        "filter":[{"term":{"same":"{{q}}"}},{"range":{"n":{"gte":"{{least:number=0.5}}"}}}]}},
        "size":"{{size:integer=10}}","from":"{{from:integer=0}}","explain":"{{why:boolean=false}}"}"#;

    #[test]
    fn values_are_put_in_with_their_types() {
        let template = SearchTemplate::parse(TEMPLATE).unwrap();
        let filled = |pairs| template.fill(given(pairs));
        let body = filled(&[("q", "x")]).unwrap();
        let own = |body: &Value| [&body["size"], &body["from"], &body["explain"]].map(Clone::clone);
        assert_eq!(own(&body), [json!(10), json!(0), json!(false)]);
        assert_eq!(body.pointer("/query/bool/filter/1/range/n/gte"), Some(&json!(0.5)));
        let body = filled(&[("q", "x"), ("size", "3"), ("why", "true"), ("least", "-2")]).unwrap();
        assert_eq!(own(&body), [json!(3), json!(0), json!(true)]);
        for (pairs, expected) in [
            (&[][..], "give q"),
            (&[("q", "x"), ("size", "many")], "size must be an integer"),
            (&[("q", "x"), ("size", "1.5")], "size must be an integer"),
            (&[("q", "x"), ("size", "-1")], "size must be 0 or more"),
            (&[("q", "x"), ("size", "101")], "size is at most 100"),
            (&[("q", "x"), ("from", "9991")], "from and size together are at most 10000"),
            (&[("q", "x"), ("from", "99999999999999999999")], "from must be an integer"),
            (&[("q", "x"), ("least", "NaN")], "least must be a number"),
            (&[("q", "x"), ("why", "1")], "why must be true or false"),
            (&[("q", "x"), ("query", "{}")], "there is no parameter \"query\" here"),
        ] {
            assert_eq!(filled(pairs).unwrap_err(), expected);
        }
        let long = "x".repeat(TEXT_CHARACTERS_MAX + 1);
        assert!(filled(&[("q", &long)]).is_err());
        let object = vec![("q".to_owned(), Given::Json(json!({ "query": "x" })))];
        assert_eq!(
            template.fill(object).unwrap_err(),
            "q must be a text of at most 1000 characters"
        );
    }

    /// What differs from the template is the place, and it is the very text.
    #[test]
    fn a_value_is_never_more_than_a_value() {
        let template = SearchTemplate::parse(TEMPLATE).unwrap();
        for hostile in [
            r#""}},"script":{"source":"x"#,
            "{{q}}",
            "{{size:integer=10}}",
            "\"}}",
            "\\\"",
            "\u{0}\n\u{2028}",
            "}]}}",
        ] {
            let body = template.fill(given(&[("q", hostile)])).unwrap();
            let mut expected: Value = serde_json::from_str(TEMPLATE).unwrap();
            expected["query"]["bool"]["must"][0]["match"]["name"] = hostile.into();
            expected["query"]["bool"]["filter"][0]["term"]["same"] = hostile.into();
            expected["query"]["bool"]["filter"][1]["range"]["n"]["gte"] = json!(0.5);
            (expected["size"], expected["from"], expected["explain"]) =
                (json!(10), json!(0), json!(false));
            let through_text: Value = serde_json::from_str(&body.to_string()).unwrap();
            assert_eq!(through_text, expected, "{hostile}");
        }
    }

    #[test]
    fn a_template_that_could_be_misused_is_a_mistake() {
        for (body, expected) in [
            ("{", "must be JSON"),
            ("[]", "JSON object"),
            (r#"{"a":"x {{q}}"}"#, "whole string"),
            (r#"{"a":"{{q}} {{p}}"}"#, "whole string"),
            (r#"{"a":"{{q:date}}"}"#, "whole string"),
            (r#"{"a":"{{}}"}"#, "whole string"),
            (r#"{"{{q}}":1}"#, "can't be a name"),
            (r#"{"a":"{{q}}","b":"{{q:integer}}"}"#, "the same at each place"),
            (r#"{"a":"{{n:integer=x}}"}"#, "the default of n must be an integer"),
            (r#"{"a":"{{fields}}"}"#, "a meaning of its own"),
            (r#"{"size":101}"#, "size is at most 100"),
            (r#"{"size":1.5}"#, "size must be a number"),
            (r#"{"from":"1"}"#, "from must be a number"),
            (r#"{"query":{"query_string":{"query":"{{q}}"}}}"#, "would be code"),
            (r#"{"query":{"script":{"script":{"params":["{{q}}"]}}}}"#, "would be code"),
            (r#"{"query":{"terms":{"a":{"index":"{{q}}"}}}}"#, "would be code"),
        ] {
            let found = SearchTemplate::parse(body).unwrap_err();
            assert!(found.contains(expected), "{body}: {found}");
        }
    }
}
