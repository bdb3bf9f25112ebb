//! Text from outside, as people may safely see it: on terminals, in tables, logs and Events.
//!
//! Control characters would move the cursor, forge lines and rows; characters without a shape, and spaces
//! where nobody expects them, hide.

use std::{borrow::Cow, fmt};

/// A name from outside within a text of ours: as it is or, where there is a space in it or something that
/// would not be seen as what it is, in quotes with escapes.
#[derive(Clone, Copy, Debug)]
pub struct Foreign<'a>(pub &'a str);

impl fmt::Display for Foreign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0;
        let odd =
            text.is_empty() || text.starts_with('"') || text.contains(' ') || text.chars().any(is_unseen);
        if odd {
            f.pad(&format!(
                "\"{}\"",
                visible(&text.replace('\\', "\\\\").replace('"', "\\\""))
            ))
        } else {
            f.pad(text)
        }
    }
}

/// Returns a whole text of one line with escapes for what would not be seen as what it is.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unseen) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' | '\r' | '\t' => out.extend(character.escape_debug()),
            _ if is_unseen(character) => out.extend(character.escape_unicode()),
            _ => out.push(character),
        }
    }
    Cow::Owned(out)
}

/// Whether a character would not be seen as what it is: a control character, one without a shape, a space
/// other than the usual one, one that turns the direction of writing.
fn is_unseen(character: char) -> bool {
    match character {
        ' '..='~' => false,
        // Printable to the standard library, but nothing is seen there.
        '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' => true,
        // It escapes what is not printable, and two that are.
        _ => character.escape_debug().len() > 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_not_be_seen_is_quoted() {
        for (text, expected) in [
            ("nginx:1.27", "nginx:1.27"),
            ("é/鏡", "é/鏡"),
            ("x y", r#""x y""#),
            ("", r#""""#),
            (" ", r#"" ""#),
            ("nginx:1.27 ", r#""nginx:1.27 ""#),
            ("nginx:1.27\n", r#""nginx:1.27\n""#),
            ("nginx:1.27\r", r#""nginx:1.27\r""#),
            ("a\u{1b}[2Kb", r#""a\u{1b}[2Kb""#),
            ("a\u{202e}b", r#""a\u{202e}b""#),
            ("a\u{a0}b", r#""a\u{a0}b""#),
            ("a\u{200b}b", r#""a\u{200b}b""#),
            ("\u{feff}a", r#""\u{feff}a""#),
            ("\u{3164}", "\"\\u{3164}\""),
            ("\u{9b}2K", r#""\u{9b}2K""#),
            ("\"a\"", r#""\"a\"""#),
            ("a\"b\\", "a\"b\\"),
            ("a\"\n\\", r#""a\"\n\\""#),
        ] {
            assert_eq!(Foreign(text).to_string(), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_of_it_moves_a_cursor_or_ends_a_line(text in any::<String>()) {
            let shown = [Foreign(&text).to_string(), visible(&text).into_owned()];
            for shown in shown {
                let is_safe = |character: char| !character.is_control() && (character == ' ' || !character.is_whitespace());
                prop_assert!(shown.chars().all(is_safe), "{:?}", shown);
            }
        }

        #[test]
        fn different_texts_look_different(one in "[a\" \\\\\n]{0,4}", other in "[a\" \\\\\n]{0,4}") {
            prop_assert_eq!(one == other, Foreign(&one).to_string() == Foreign(&other).to_string());
        }
    }
}
