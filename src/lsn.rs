//! Positions in the write-ahead log.
//!
//! An [`Lsn`] is a place in the WAL; a [`Position`] is a place in the *order of changes*. They are
//! kept apart because rows of concurrent transactions interleave in the WAL: only the end of a
//! commit may ever be confirmed, and only a `Position` says which of two changes came first.

use std::fmt;
use std::str::FromStr;

/// A position in the write-ahead log, shown as Postgres shows it: `16/B374D848`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an LSN, which is two hexadecimal numbers of at most eight digits and a slash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an LSN such as 16/B374D848")]
pub struct ParseLsnError(pub String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| -> Option<u64> {
            let plain = digits.bytes().all(|it| it.is_ascii_hexdigit());
            if plain && (1..=8).contains(&digits.len()) {
                u64::from_str_radix(digits, 16).ok()
            } else {
                None
            }
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

/// The total order of changes: by the transaction's commit, then by place within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// LSN of the commit record.
    pub commit_lsn: Lsn,
    /// Place of the change in its transaction, from 0.
    pub ordinal: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_an_lsn_is_refused() {
        for text in ["", "/", "1", "1/", "/1", "1/2/3", "G/1", "+1/2", "123456789/1", "1/ 2"] {
            assert_eq!(text.parse::<Lsn>(), Err(ParseLsnError(text.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn an_lsn_survives_its_text(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse::<Lsn>(), Ok(Lsn(value)));
        }
    }
}
