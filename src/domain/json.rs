//! Writing JSON text into a growing buffer, for answers that are made once per review.

/// Appends a string literal with its quotes.
pub fn push_string(out: &mut String, text: &str) {
    out.push('"');
    push_escaped(out, text);
    out.push('"');
}

/// Appends the inside of a string literal.
pub fn push_escaped(out: &mut String, text: &str) {
    let mut rest = text;
    while let Some(position) = find_special(rest.as_bytes()) {
        // Every special byte is ASCII, so these are character boundaries.
        out.push_str(&rest[..position]);
        match rest.as_bytes()[position] {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            byte => {
                const HEX: [char; 16] = [
                    '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
                ];
                out.push_str("\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 0xf)]);
            }
        }
        rest = &rest[position + 1..];
    }
    out.push_str(rest);
}

/// Returns how long the text is that stands, escaped by [`push_escaped`], within a string literal.
pub fn unescaped_length(literal: &str) -> usize {
    let mut rest = literal.as_bytes();
    let mut length = 0;
    while let [first, after @ ..] = rest {
        length += 1;
        rest = match (first, after) {
            (b'\\', [b'u', ..]) => after.get(5..).unwrap_or_default(),
            (b'\\', [_, after @ ..]) => after,
            _ => after,
        };
    }
    length
}

/// Whether a text stands in a string literal as it is.
pub fn is_plain(text: &str) -> bool {
    find_special(text.as_bytes()).is_none()
}

/// Returns the position of the first byte that a string literal cannot hold as it is.
///
/// Looks at eight bytes as one number, because an answer holds some kilobytes of text.
fn find_special(bytes: &[u8]) -> Option<usize> {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    // The top bit of each byte that is below `limit`; those above the first such byte may be wrong.
    const fn below(word: u64, limit: u8) -> u64 {
        word.wrapping_sub(each(limit)) & !word & each(0x80)
    }
    let (words, tail) = bytes.as_chunks();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let special = below(word, b' ') | below(word ^ each(b'"'), 1) | below(word ^ each(b'\\'), 1);
        if special != 0 {
            return Some(8 * index + special.trailing_zeros() as usize / 8);
        }
    }
    let special = |byte: &u8| matches!(byte, 0..=0x1f | b'"' | b'\\');
    tail.iter()
        .position(special)
        .map(|position| bytes.len() - tail.len() + position)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(text in any::<String>()) {
            let mut json = String::new();
            push_string(&mut json, &text);
            prop_assert_eq!(unescaped_length(&json[1..json.len() - 1]), text.len());
            prop_assert_eq!(is_plain(&text), json.len() == text.len() + 2);
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }

        #[test]
        fn escapes_anywhere_read_back(text in "[a\"\\\\\u{0}-\u{21}\u{7f}é鏡]{0,40}") {
            let mut json = String::new();
            push_string(&mut json, &text);
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
