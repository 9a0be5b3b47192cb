//! What the server says in an ErrorResponse, and whether trying again can help. Pure.
//!
//! Never fails: a malformed ErrorResponse still is an error, with fewer fields.
//!
//! <https://www.postgresql.org/docs/current/protocol-error-fields.html>

/// An error of the server, with the fields that a person needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{severity}: {message} (SQLSTATE {code}){}{}",
    Labelled("detail", detail),
    Labelled("hint", hint)
)]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`.
    pub severity: String,
    /// SQLSTATE: five characters.
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl ServerError {
    /// Reads the body of an ErrorResponse: fields of one type byte and a NUL-ended text, ended by
    /// a NUL. Text that is not UTF-8 (before the encoding is agreed) is shown as well as it can be.
    pub(crate) fn parse(body: &[u8]) -> Self {
        let mut error = Self {
            severity: "ERROR".to_owned(),
            code: String::new(),
            message: "the server sent an error without a message".to_owned(),
            detail: None,
            hint: None,
        };
        for field in body.split(|&it| it == 0) {
            let Some((kind, text)) = field.split_first() else { break };
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                b'S' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
        }
        error
    }

    /// Whether the same attempt may succeed later without anybody changing anything: the slot is
    /// still held by our predecessor (55006), the server starts, stops or was told to end us
    /// (57P0x), the connection broke on its side (08), or it lacks resources (53).
    ///
    /// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
    pub fn is_transient(&self) -> bool {
        self.code == "55006" || ["57P0", "08", "53"].iter().any(|it| self.code.starts_with(it))
    }

    /// Class 28: who we are, or how we come, is not accepted.
    pub fn is_authentication(&self) -> bool {
        self.code.starts_with("28")
    }
}

/// `; label: text`, or nothing.
struct Labelled<'a>(&'static str, &'a Option<String>);

impl std::fmt::Display for Labelled<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1 {
            Some(text) => write!(f, "; {}: {text}", self.0),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_read_and_shown() {
        let body = b"SFATAL\0VFATAL\0C28P01\0Mno\0Dwhy\0Hdo\0Fauth.c\0\0";
        let error = ServerError::parse(body);
        assert_eq!(error.to_string(), "FATAL: no (SQLSTATE 28P01); detail: why; hint: do");
        assert!(error.is_authentication() && !error.is_transient());
    }

    #[test]
    fn only_what_time_heals_is_transient() {
        let cases = [
            ("55006", true),
            ("57P01", true),
            ("57P03", true),
            ("08006", true),
            ("53300", true),
            ("42704", false),
            ("28P01", false),
            ("57014", false),
            ("", false),
        ];
        for (code, expected) in cases {
            let error = ServerError::parse(format!("C{code}\0\0").as_bytes());
            assert_eq!(error.is_transient(), expected, "{code}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body: Vec<u8>) {
            drop(ServerError::parse(&body).to_string());
        }
    }
}
