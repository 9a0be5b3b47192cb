//! `pg_logical_emit_message` as Debezium's `m` records: key `{"prefix":…}`, content in base64.

use super::source::push_text;

pub(super) fn write_key(prefix: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"prefix":"#);
    push_text(prefix, out);
    out.push(b'}');
}

/// `,"message":{"prefix":…,"content":…}`
pub(super) fn write(prefix: &str, content: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(br#","message":{"prefix":"#);
    push_text(prefix, out);
    out.extend_from_slice(br#","content":""#);
    write_base64(content, out);
    out.extend_from_slice(br#""}"#);
}

/// RFC 4648, section 4, with padding.
fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    out.reserve(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |nth: usize| chunk.get(nth).copied().unwrap_or(0);
        let (a, b, c) = (byte(0), byte(1), byte(2));
        let sextets = [a >> 2, (a & 3) << 4 | b >> 4, (b & 15) << 2 | c >> 6, c & 63];
        for (nth, sextet) in sextets.into_iter().enumerate() {
            let sent = nth <= chunk.len();
            out.push(if sent { LETTERS[usize::from(sextet)] } else { b'=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_rfc_4648() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, expected) in cases {
            let mut out = Vec::new();
            write_base64(plain.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
