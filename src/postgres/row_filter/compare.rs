//! Values of a type in their text form, compared as Postgres compares them.

use std::cmp::Ordering;

use super::Literal;

/// How values of a type are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Bool,
    Number,
    Text,
    /// `character(n)`: blanks at the end do not count.
    Padded,
    Uuid,
    /// Dates and timestamps.
    Time,
}

impl Class {
    /// By `pg_type.oid`.
    pub(super) fn of(type_oid: u32) -> Self {
        match type_oid {
            16 => Self::Bool,
            20 | 21 | 23 | 700 | 701 | 1700 => Self::Number,
            1042 => Self::Padded,
            2950 => Self::Uuid,
            1082 | 1114 | 1184 => Self::Time,
            _ => Self::Text,
        }
    }
}

/// text, varchar and name: what is equal by its bytes.
pub(super) fn is_text(type_oid: u32) -> bool {
    matches!(type_oid, 25 | 1043 | 19)
}

/// What a literal must be that values of a class are compared with; None: it is.
pub(super) fn unfit(class: Class, literal: &Literal) -> Option<&'static str> {
    let (fits, expected) = match (class, literal) {
        (Class::Bool, it) => (matches!(it, Literal::Bool(_)), "TRUE or FALSE"),
        (Class::Number, Literal::Number(it)) | (Class::Number, Literal::Text(it)) => {
            (Number::parse(it.as_bytes()).is_some(), "a number")
        }
        (Class::Number, Literal::Bool(_)) => (false, "a number"),
        (Class::Time, Literal::Text(it)) => {
            (Time::parse(it.as_bytes()).is_some(), "'2026-01-31' or '2026-01-31 12:00:00' (UTC)")
        }
        (Class::Time, _) => (false, "'2026-01-31' or '2026-01-31 12:00:00' (UTC)"),
        (Class::Uuid, Literal::Text(it)) => {
            let valid = |(nth, byte): (usize, u8)| match nth {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            };
            (it.len() == 36 && it.bytes().enumerate().all(valid), "a uuid as a string")
        }
        (Class::Uuid, _) => (false, "a uuid as a string"),
        (Class::Text | Class::Padded, it) => (matches!(it, Literal::Text(_)), "a string"),
    };
    (!fits).then_some(expected)
}

/// How a value compares with a literal; None: not at all.
pub(super) fn order(class: Class, value: &[u8], literal: &Literal) -> Option<Ordering> {
    match (class, literal) {
        (Class::Bool, Literal::Bool(it)) => Some((value == b"t").cmp(it)),
        (Class::Number, Literal::Number(it) | Literal::Text(it)) => {
            Some(Number::parse(value)?.cmp(&Number::parse(it.as_bytes())?))
        }
        (Class::Time, Literal::Text(it)) => {
            Some(Time::parse(value)?.cmp(&Time::parse(it.as_bytes())?))
        }
        (Class::Uuid, Literal::Text(it)) => Some(value.cmp(it.to_ascii_lowercase().as_bytes())),
        (Class::Padded, Literal::Text(it)) => {
            Some(value.trim_ascii_end().cmp(it.as_bytes().trim_ascii_end()))
        }
        (Class::Text, Literal::Text(it)) => Some(value.cmp(it.as_bytes())),
        _ => None,
    }
}

/// A number of any size: ± 0.digits × 10^exponent, without zeros around the digits.
#[derive(Debug, PartialEq, Eq)]
enum Number {
    Finite {
        negative: bool,
        exponent: i64,
        digits: Vec<u8>,
    },
    NegativeInfinity,
    Infinity,
    /// As Postgres has it: equal to itself and greater than all others.
    Nan,
}

impl Number {
    fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"NaN" => return Some(Self::Nan),
            b"Infinity" => return Some(Self::Infinity),
            b"-Infinity" => return Some(Self::NegativeInfinity),
            _ => {}
        }
        let (negative, unsigned) = match text.strip_prefix(b"-") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let at = unsigned.iter().position(|it| matches!(it, b'e' | b'E'));
        let (mantissa, written) = unsigned.split_at(at.unwrap_or(unsigned.len()));
        let exponent: i64 = match written.get(1..) {
            None => 0,
            Some(it) => std::str::from_utf8(it).ok()?.parse::<i32>().ok()?.into(),
        };
        let point = mantissa.iter().position(|&it| it == b'.').unwrap_or(mantissa.len());
        let digits: Vec<u8> = mantissa.iter().copied().filter(|&it| it != b'.').collect();
        let one_point = digits.len() + 1 >= mantissa.len();
        if digits.is_empty() || !one_point || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let first = digits.iter().position(|&it| it != b'0');
        let Some(first) = first else {
            return Some(Self::Finite { negative: false, exponent: i64::MIN, digits: Vec::new() });
        };
        let last = digits.iter().rposition(|&it| it != b'0').map_or(0, |it| it + 1);
        let shift = i64::try_from(point).ok()? - i64::try_from(first).ok()?;
        let digits = digits[first..last].to_vec();
        Some(Self::Finite { negative, exponent: exponent + shift, digits })
    }

    fn rank(&self) -> u8 {
        match self {
            Self::NegativeInfinity => 0,
            Self::Finite { negative: true, .. } => 1,
            Self::Finite { negative: false, .. } => 2,
            Self::Infinity => 3,
            Self::Nan => 4,
        }
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (
                Self::Finite { negative: a, exponent, digits },
                Self::Finite { negative: b, exponent: other_exponent, digits: other_digits },
            ) if a == b => {
                let order = exponent.cmp(other_exponent).then_with(|| digits.cmp(other_digits));
                if *a { order.reverse() } else { order }
            }
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A date or a timestamp: infinity's sign, the year (1 BC is 0), and the rest in a form whose order
/// is that of its bytes.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Time {
    infinite: i8,
    year: i32,
    rest: Vec<u8>,
}

impl Time {
    /// `2026-01-31`, `2026-01-31 12:00:00.5`, with `+00`, with ` BC`; `infinity`, `-infinity`.
    fn parse(text: &[u8]) -> Option<Self> {
        let infinite = |infinite| Some(Self { infinite, year: 0, rest: Vec::new() });
        match text {
            b"infinity" => return infinite(1),
            b"-infinity" => return infinite(-1),
            _ => {}
        }
        let (text, before_christ) = match text.strip_suffix(b" BC") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let text = text.strip_suffix(b"+00").unwrap_or(text);
        let dash = text.iter().position(|&it| it == b'-')?;
        let (year, rest) = text.split_at_checked(dash)?;
        let year: i32 = std::str::from_utf8(year).ok()?.parse().ok()?;
        let year = if before_christ { 1 - year } else { year };
        let pattern = b"-00-00 00:00:00";
        let (date, fraction) = rest.split_at(rest.len().min(pattern.len()));
        let fits = |(found, expected): (&u8, &u8)| match expected {
            b'0' => found.is_ascii_digit(),
            it => found == it,
        };
        let whole = date.len() == 6 || date.len() == pattern.len();
        if dash < 4 || !whole || !date.iter().zip(pattern).all(fits) {
            return None;
        }
        let fraction = match fraction {
            [] => fraction,
            [b'.', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => digits,
            _ => return None,
        };
        let zeros = fraction.iter().rposition(|&it| it != b'0').map_or(0, |it| it + 1);
        let mut rest = date.to_vec();
        rest.extend_from_slice(&pattern[date.len()..]);
        rest.extend_from_slice(&fraction[..zeros]);
        Some(Self { infinite: 0, year, rest })
    }
}
