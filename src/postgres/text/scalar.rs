//! Values without parts: numbers, strings, booleans, timestamps.
//!
//! Strings are the hot path. They are looked at eight bytes at a time, and copied whole when
//! nothing in them needs an escape.

use crate::postgres::decode::DecodeError;

/// Appends `text` as a JSON string, quotes included.
pub fn write_string(text: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    if std::str::from_utf8(text).is_err() {
        return Err(DecodeError::InvalidText { what: "a value" });
    }
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut rest = text;
    loop {
        let plain = plain_prefix(rest);
        out.extend_from_slice(&rest[..plain]);
        let Some((&byte, after)) = rest[plain..].split_first() else { break };
        escape(byte, out);
        rest = after;
    }
    out.push(b'"');
    Ok(())
}

/// Whether a JSON string cannot have the byte as it is: RFC 8259, section 7.
fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// The length of the longest prefix without a byte that needs an escape.
fn plain_prefix(text: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    const SPACE: u64 = u64::from_ne_bytes([0x20; 8]);
    const QUOTE: u64 = u64::from_ne_bytes([b'"'; 8]);
    const BACKSLASH: u64 = u64::from_ne_bytes([b'\\'; 8]);
    // The classic "has a byte less than n" and "has a byte equal to n": exact about whether there
    // is one, which is all that is asked here.
    let is_plain = |word: u64| {
        let (quote, backslash) = (word ^ QUOTE, word ^ BACKSLASH);
        let control = word.wrapping_sub(SPACE) & !word;
        let quote = quote.wrapping_sub(ONES) & !quote;
        let backslash = backslash.wrapping_sub(ONES) & !backslash;
        (control | quote | backslash) & HIGH == 0
    };
    let mut at = 0;
    while let Some(&chunk) = text[at..].first_chunk::<8>() {
        if !is_plain(u64::from_ne_bytes(chunk)) {
            break;
        }
        at += 8;
    }
    let tail = &text[at..];
    at + tail.iter().position(|&it| needs_escape(it)).unwrap_or(tail.len())
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        0x08 => b'b',
        0x09 => b't',
        0x0A => b'n',
        0x0C => b'f',
        0x0D => b'r',
        _ => {
            let digit = |nibble: u8| HEX[usize::from(nibble)];
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Booleans print as `t` and `f`.
pub(super) fn write_bool(text: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    out.extend_from_slice(match text {
        b"t" => b"true".as_slice(),
        b"f" => b"false".as_slice(),
        _ => return Err(DecodeError::MalformedValue { kind: "boolean" }),
    });
    Ok(())
}

/// json and jsonb, which are JSON already.
pub(super) fn write_verbatim(text: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    if text.is_empty() {
        return Err(DecodeError::MalformedValue { kind: "json" });
    }
    if std::str::from_utf8(text).is_err() {
        return Err(DecodeError::InvalidText { what: "a json value" });
    }
    out.extend_from_slice(text);
    Ok(())
}

/// A number keeps its digits; JSON has no NaN and no infinities, so they become strings; what has
/// an exponent (a float) is written out, and -0 is 0, as `to_jsonb` goes through numeric.
pub(super) fn write_number(text: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let malformed = Err(DecodeError::MalformedValue { kind: "number" });
    if let b"NaN" | b"Infinity" | b"-Infinity" = text {
        return write_string(text, out);
    }
    let unsigned = text.strip_prefix(b"-").unwrap_or(text);
    let (whole, rest) = split_digits(unsigned);
    let (fraction, rest) = match rest.strip_prefix(b".") {
        Some(rest) => split_digits(rest),
        None => (&b""[..], rest),
    };
    let has_point = unsigned.len() > whole.len() + rest.len();
    if whole.is_empty() || has_point && fraction.is_empty() {
        return malformed;
    }
    if whole.len() > 1 && whole[0] == b'0' {
        return malformed;
    }
    let zero = [whole, fraction].into_iter().flatten().all(|&it| it == b'0');
    let negative = unsigned.len() < text.len() && !zero;
    let Some(exponent) = rest.strip_prefix(b"e") else {
        if !rest.is_empty() {
            return malformed;
        }
        out.extend_from_slice(if negative { text } else { unsigned });
        return Ok(());
    };
    let exponent: Option<i32> = std::str::from_utf8(exponent).ok().and_then(|it| it.parse().ok());
    // No float that Postgres prints is beyond 1e308 or 5e-324.
    let Some(exponent) = exponent.filter(|it| (-400..=400).contains(it)) else { return malformed };
    if negative {
        out.push(b'-');
    }
    write_plain(whole, fraction, exponent, out);
    Ok(())
}

fn split_digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|it| !it.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

/// Writes `whole.fraction * 10^exponent` without an exponent.
fn write_plain(whole: &[u8], fraction: &[u8], exponent: i32, out: &mut Vec<u8>) {
    let shift = usize::try_from(exponent.unsigned_abs()).unwrap_or(usize::MAX);
    let zeros = |count: usize| std::iter::repeat_n(b'0', count);
    if exponent >= 0 {
        let moved = shift.min(fraction.len());
        let digits = || whole.iter().chain(&fraction[..moved]).copied();
        let start = out.len();
        out.extend(digits().chain(zeros(shift - moved)).skip_while(|&it| it == b'0'));
        if out.len() == start {
            out.push(b'0');
        }
        if moved < fraction.len() {
            out.push(b'.');
            out.extend_from_slice(&fraction[moved..]);
        }
    } else {
        let moved = shift.min(whole.len());
        let kept = whole.len() - moved;
        out.extend_from_slice(if kept == 0 { b"0" } else { &whole[..kept] });
        out.push(b'.');
        out.extend(zeros(shift - moved));
        out.extend_from_slice(&whole[kept..]);
        out.extend_from_slice(fraction);
    }
}

/// `2024-02-29 12:00:00.5+05:30 BC` has a T for its first space and minutes in its offset.
pub(super) fn write_timestamp(
    text: &[u8],
    zoned: bool,
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    let malformed = DecodeError::MalformedValue { kind: "timestamp" };
    if let b"infinity" | b"-infinity" = text {
        return write_string(text, out);
    }
    let plain = |it: &u8| it.is_ascii_alphanumeric() || b"-+:. ".contains(it);
    if !text.iter().all(plain) {
        return Err(malformed);
    }
    let Some(space) = text.iter().position(|&it| it == b' ') else { return Err(malformed) };
    let (date, time) = (&text[..space], &text[space + 1..]);
    let end = time.iter().position(|&it| it == b' ').unwrap_or(time.len());
    let (time, era) = time.split_at(end);
    out.push(b'"');
    out.extend_from_slice(date);
    out.push(b'T');
    out.extend_from_slice(time);
    if zoned {
        let Some(sign) = time.iter().rposition(|it| b"+-".contains(it)) else {
            return Err(malformed);
        };
        if !time[sign..].contains(&b':') {
            out.extend_from_slice(b":00");
        }
    }
    out.extend_from_slice(era);
    out.push(b'"');
    Ok(())
}
