//! Reading texts that people wrote, or programs that know of other encodings.

use std::{io::Read as _, path::Path};

use anyhow::Context as _;

use super::BadSettings;

/// Reads a file as text, or standard input for `-`.
pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    if path != Path::new("-") {
        return read_file(path);
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .context("cannot read standard input")?;
    text(path, bytes)
}

/// Reads a file as text.
pub(super) fn read_file(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path);
    text(
        path,
        bytes.map_err(|error| BadSettings::one(format!("{}: {error}", path.display())))?,
    )
}

fn text(path: &Path, bytes: Vec<u8>) -> anyhow::Result<String> {
    Ok(decode(bytes).map_err(|fault| BadSettings::one(format!("{}: {fault}", name(path))))?)
}

/// Returns a file's name for people.
pub(super) fn name(path: &Path) -> String {
    if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    }
}

/// Returns bytes as text; the error says what they are instead.
fn decode(bytes: Vec<u8>) -> Result<String, String> {
    let other = match bytes.as_slice() {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        // Of two ASCII characters one half each is 0.
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, 1..=255, 0, 1..=255, ..] | [1..=255, 0, 1..=255, 0, ..] => {
            Some("UTF-16, as PowerShell's `>` writes it")
        }
        _ => None,
    };
    if let Some(other) = other {
        return Err(format!("this is {other}: save it as UTF-8"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = memchr::memchr_iter(b'\n', valid).count() + 1;
        format!("line {line} is not UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_encodings_are_named() {
        let utf16 = |text: &str, little: bool| -> Vec<u8> {
            let bytes = |unit: u16| {
                if little {
                    unit.to_le_bytes()
                } else {
                    unit.to_be_bytes()
                }
            };
            text.encode_utf16().flat_map(bytes).collect()
        };
        for text in ["\u{feff}kind: Pod", "kind: Pod"] {
            for little in [true, false] {
                let told = decode(utf16(text, little)).unwrap_err();
                assert!(told.contains("UTF-16") && told.contains("UTF-8"), "{told}");
            }
        }
        assert!(
            decode(vec![0xff, 0xfe, 0, 0, b'a', 0, 0, 0])
                .unwrap_err()
                .contains("UTF-32")
        );
        assert_eq!(
            decode(b"a: 1\nb: \xe9\n".to_vec()).unwrap_err(),
            "line 2 is not UTF-8"
        );
        assert_eq!(decode("\u{feff}é".into()), Ok("\u{feff}é".to_owned()));
        assert_eq!(decode(Vec::new()), Ok(String::new()));
    }
}
