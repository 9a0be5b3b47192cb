//! A request's query string: every parameter is known, and given once.
//!
//! A misspelled parameter that is ignored would be an answer to another question.

use axum::extract::Query;
use axum::http::{StatusCode, Uri};

use crate::gateway::problem::Problem;

/// More are no question that a person or a program has thought of.
const PARAMETERS_MAX: usize = 50;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads them all; `known` is asked about each name.
    ///
    /// # Errors
    /// 400: one is unknown or given twice.
    pub fn read(uri: &Uri, known: impl Fn(&str) -> bool) -> Result<Self, Problem> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|_| bad_parameter("the query string can't be read"))?;
        let mut all: Vec<(String, String)> = Vec::new();
        for (name, value) in pairs.0 {
            let shown: String = name.chars().take(40).collect();
            if !known(&name) {
                return Err(bad_parameter(format!("there is no parameter \"{shown}\" here")));
            }
            if all.iter().any(|(it, _)| *it == name) || all.len() == PARAMETERS_MAX {
                return Err(bad_parameter(format!("give \"{shown}\" once")));
            }
            all.push((name, value));
        }
        Ok(Self(all))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// 400, about the query string.
pub fn bad_parameter(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-parameter", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_is_known_and_given_once() {
        for (text, expected) in [
            ("/x", Ok(vec![])),
            ("/x?a=1&b=%20+%C3%A9", Ok(vec![("a", "1"), ("b", "  é")])),
            ("/x?a", Ok(vec![("a", "")])),
            ("/x?a=1&a=1", Err(400)),
            ("/x?c=1", Err(400)),
        ] {
            let uri = text.parse().unwrap();
            let found = Parameters::read(&uri, |it| ["a", "b"].contains(&it));
            let found = found.as_ref().map(|it| it.iter().collect::<Vec<_>>());
            assert_eq!(found.map_err(|it| it.status().as_u16()), expected, "{text}");
        }
    }
}
