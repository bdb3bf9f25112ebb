//! Plain scalars as Kubernetes reads them.
//!
//! API tools read YAML 1.1 as sigs.k8s.io/yaml does (goyaml.v2, `resolve.go`): `0400` is 256, `1_000` a
//! thousand, `on` true, `0x1F` 31; `22:22` and dates are text.

use serde_json::Value;

/// Returns what a scalar without quotes and tag means. What JSON has no value for (`.inf`, `.nan`) is its
/// text: the API server would refuse it.
pub(super) fn value(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let number = match text.as_bytes() {
        [b'0'..=b'9' | b'+' | b'-', ..] => {
            let plain = text.replace('_', "");
            integer(&plain).or_else(|| float(&plain))
        }
        [b'.', ..] => float(text),
        _ => None,
    };
    number.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Whether a scalar without quotes and tag is a number that JSON does not have.
pub(super) fn is_beyond_json(text: &str) -> bool {
    matches!(text, ".nan" | ".NaN" | ".NAN")
        || matches!(
            text.strip_prefix(['+', '-']).unwrap_or(text),
            ".inf" | ".Inf" | ".INF"
        )
}

/// Reads an integer as Go does, its base told by the prefix (`strconv.ParseInt` with base 0).
fn integer(text: &str) -> Option<Value> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("+", &text[1..]),
        _ => ("", text),
    };
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // The parser would take a sign of its own.
    if !digits.starts_with(|first: char| first.is_digit(base)) {
        return None;
    }
    let size = u64::from_str_radix(digits, base).ok()?;
    match sign {
        "" => Some(size.into()),
        "+" => i64::try_from(size).ok().map(Value::from),
        _ => i64::try_from(-i128::from(size)).ok().map(Value::from),
    }
}

/// Reads a float of the form that goyaml.v2 knows (`yamlStyleFloat`).
fn float(text: &str) -> Option<Value> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let formed = are_digits(whole) && are_digits(part) && !(whole.is_empty() && part.is_empty());
    let exponent = exponent.map(|exponent| exponent.strip_prefix(['+', '-']).unwrap_or(exponent));
    if !formed || exponent.is_some_and(|exponent| exponent.is_empty() || !are_digits(exponent)) {
        return None;
    }
    // Infinity is what does not fit; Go takes that for text.
    serde_json::Number::from_f64(text.parse().ok()?).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::state::file::encode_document;

    #[test]
    fn scalars_mean_what_kubernetes_reads() {
        for (text, expected) in [
            ("0400", json!(256)),
            ("0644", json!(420)),
            ("-0755", json!(-493)),
            ("0o17", json!(15)),
            ("0x1F", json!(31)),
            ("0b11", json!(3)),
            ("1_000", json!(1000)),
            ("08", json!(8.0)),
            ("0", json!(0)),
            ("+7", json!(7)),
            ("9223372036854775807", json!(i64::MAX)),
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("18446744073709551616", json!(18_446_744_073_709_551_616.0)),
            ("12e3", json!(12000.0)),
            ("1.", json!(1.0)),
            (".5", json!(0.5)),
            ("1e400", json!("1e400")),
            ("on", json!(true)),
            ("y", json!(true)),
            ("Off", json!(false)),
            ("~", json!(null)),
            ("", json!(null)),
            // Text.
            ("oN", json!("oN")),
            ("22:22", json!("22:22")),
            ("2001-01-01", json!("2001-01-01")),
            ("_1", json!("_1")),
            ("0x", json!("0x")),
            ("0x-1", json!("0x-1")),
            ("-", json!("-")),
            (".", json!(".")),
            ("1e", json!("1e")),
            ("1.2.3", json!("1.2.3")),
            ("nginx:1.27", json!("nginx:1.27")),
            (".inf", json!(".inf")),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
        }
        for text in [".inf", "-.Inf", "+.INF", ".nan"] {
            assert!(is_beyond_json(text), "{text}");
        }
    }

    #[test]
    fn what_is_written_anew_stays_text() {
        for text in [
            "0400", "1_000", "on", "y", "0x1F", "0o7", ".inf", "~", "", "12e3", "null", "-", "=", "<<",
        ] {
            let written = encode_document(&json!({"a": text, "b": [text], text: 1}));
            let read = super::super::document::read(&written).unwrap().remove(0);
            assert_eq!(
                read.value().unwrap(),
                json!({"a": text, "b": [text], text: 1}),
                "{written}"
            );
        }
    }
}
