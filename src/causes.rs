//! An error and its causes on one line, for logs, `/readyz` and the terminal.

use std::error::Error;

/// Each message once, outermost first: `cannot connect: connection refused`.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(it) = cause {
        let more = it.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = it.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        #[source]
        source: std::io::Error,
    }

    #[test]
    fn causes_are_said_once() {
        let cases = [("cannot prepare", "cannot prepare: disk full"), ("disk full", "disk full")];
        for (text, expected) in cases {
            let error = Layer { text, source: std::io::Error::other("disk full") };
            assert_eq!(with_causes(&error), expected);
        }
    }
}
