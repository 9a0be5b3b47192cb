//! An event's own time, from a column or a field, as Kafka has it: milliseconds since 1970.

use std::time::UNIX_EPOCH;

/// Text as Postgres prints a timestamp under `TimeZone = UTC`, ISO 8601 in UTC, or the milliseconds
/// themselves. None: anything else, as `infinity`, or a time zone that is not UTC.
pub(super) fn epoch_ms(text: &str) -> Option<i64> {
    if let Ok(ms) = text.parse::<i64>() {
        return Some(ms);
    }
    let utc = ["+00:00", "+00", "Z"].into_iter().find_map(|zone| text.strip_suffix(zone));
    let time = humantime::parse_rfc3339_weak(utc.unwrap_or(text)).ok()?;
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).ok(),
        Err(before) => i64::try_from(before.duration().as_millis()).ok().map(|it| -it),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_time_and_what_is_not() {
        let noon = Some(1_709_208_000_500);
        let cases = [
            ("2024-02-29 12:00:00.5+00", noon),
            ("2024-02-29 12:00:00.500000", noon),
            ("2024-02-29T12:00:00.5Z", noon),
            ("2024-02-29T12:00:00.5+00:00", noon),
            ("1709208000500", noon),
            ("1970-01-01 00:00:00+00", Some(0)),
            ("2024-02-29T12:00:00+05:30", None),
            ("infinity", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(epoch_ms(text), expected, "{text}");
        }
    }
}
