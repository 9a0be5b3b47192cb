//! Which topic an event goes to: text with `{aggregatetype}` and `{type}` in it.

use super::Refusal;

/// A template, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTemplate {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    AggregateType,
    Kind,
}

impl TopicTemplate {
    /// Takes `text` apart. `{topic_prefix}` is that of `[kafka]`.
    ///
    /// # Errors
    /// What is wrong with it, for the one who wrote it.
    pub fn parse(text: &str, topic_prefix: &str) -> Result<Self, String> {
        let text = text.replace("{topic_prefix}", topic_prefix);
        let (mut parts, mut rest) = (Vec::new(), text.as_str());
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after
                .split_once('}')
                .ok_or_else(|| format!("\"{{{after}\" in topic lacks its closing brace"))?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(match name {
                "aggregatetype" => Part::AggregateType,
                "type" => Part::Kind,
                _ => {
                    return Err(format!(
                        "topic knows {{aggregatetype}}, {{type}} and {{topic_prefix}}, not \
                         {{{name}}}"
                    ));
                }
            });
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|it| *it != Part::Text(String::new()));
        let valid = |it: u8| it.is_ascii_alphanumeric() || b"._-".contains(&it);
        let texts = parts.iter().filter_map(|it| match it {
            Part::Text(text) => Some(text),
            Part::AggregateType | Part::Kind => None,
        });
        if let Some(wrong) = texts.into_iter().find(|it| !it.bytes().all(valid)) {
            return Err(format!(
                "topic must be of a-z, A-Z, 0-9, \".\", \"_\" and \"-\" beside its braces, not \
                 \"{wrong}\""
            ));
        }
        if parts.is_empty() {
            return Err("topic must not be empty: \"outbox.event.{aggregatetype}\"".to_owned());
        }
        Ok(Self { parts })
    }

    /// Whether `{aggregatetype}` is in it.
    pub fn needs_aggregate_type(&self) -> bool {
        self.parts.contains(&Part::AggregateType)
    }

    pub(super) fn topic(
        &self,
        aggregate_type: Option<&str>,
        kind: Option<&str>,
    ) -> Result<String, Refusal> {
        let mut topic = String::new();
        for part in &self.parts {
            topic.push_str(match part {
                Part::Text(text) => text,
                Part::AggregateType => {
                    aggregate_type.ok_or(Refusal::Missing { field: "aggregatetype" })?
                }
                Part::Kind => kind.ok_or(Refusal::Missing { field: "type" })?,
            });
        }
        Ok(topic)
    }
}
