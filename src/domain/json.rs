//! Writing JSON text into a growing buffer, for answers that are made once per review.

/// Appends a string literal with its quotes.
pub fn push_string(out: &mut String, text: &str) {
    out.push('"');
    push_escaped(out, text);
    out.push('"');
}

/// Appends a number.
pub fn push_number(out: &mut String, number: usize) {
    if number >= 10 {
        push_number(out, number / 10);
    }
    out.push(char::from(b"0123456789"[number % 10]));
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
    let find = |word: [u8; 8]| {
        let word = u64::from_le_bytes(word);
        // With its second bit turned, the quote follows the control characters: 0x20, and no other
        // character comes below 0x21.
        let special = below(word ^ each(2), 0x21) | below(word ^ each(b'\\'), 1);
        (special != 0).then_some(special.trailing_zeros() as usize / 8)
    };
    let Some(last) = bytes.last_chunk() else {
        return bytes
            .iter()
            .position(|byte| matches!(byte, 0..=0x1f | b'"' | b'\\'));
    };
    let (words, _) = bytes.as_chunks();
    for (index, word) in words.iter().enumerate() {
        if let Some(position) = find(*word) {
            return Some(8 * index + position);
        }
    }
    // The last eight bytes once more, where some of them were in no whole word.
    find(*last).map(|position| bytes.len() - 8 + position)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_are_written_as_everywhere(number in any::<usize>(), shift in 0..64_u32) {
            let mut json = String::new();
            push_number(&mut json, number >> shift);
            prop_assert_eq!(json, (number >> shift).to_string());
        }

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
