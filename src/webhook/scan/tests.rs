use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;

/// Reads a whole value with the cursor alone. Numbers are left to serde, as the cursor reads none.
fn read(cursor: &mut Cursor<'_>) -> Scan<Value> {
    match cursor.peek()? {
        b'"' => cursor.string().map(|text| Value::String(text.into_owned())),
        b't' | b'f' => cursor.boolean().map(Value::Bool),
        b'n' => {
            assert!(cursor.null()?);
            Ok(Value::Null)
        }
        b'[' => {
            let mut elements = Vec::new();
            cursor.array(|index, cursor| {
                assert_eq!(index, elements.len());
                elements.push(read(cursor)?);
                Ok(())
            })?;
            Ok(Value::Array(elements))
        }
        b'{' => {
            let mut members = Map::new();
            cursor.object(|key, cursor| {
                let value = read(cursor)?;
                members.insert(key.to_owned(), value);
                Ok(())
            })?;
            Ok(Value::Object(members))
        }
        _ => {
            let text = cursor.skip()?;
            serde_json::from_str(text).map_err(|_| ScanError::Unexpected(cursor.position()))
        }
    }
}

fn read_all(text: &str) -> Scan<Value> {
    let mut cursor = Cursor::new(text);
    let value = read(&mut cursor)?;
    cursor.end().map(|()| value)
}

/// Any JSON value, a few levels deep, with every kind of string.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z\"\\\\/{}\\[\\],:\\u{0}-\\u{1f}é鏡😀]{0,8}".prop_map(Value::String),
        any::<String>().prop_map(Value::String),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::vec(("[a-c\"\\\\é\\n]{0,3}", inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Writes a value with white space everywhere and, if asked, every character of its strings escaped.
fn write(out: &mut String, value: &Value, space: &str, escape: bool) {
    let string = |out: &mut String, text: &str| {
        if escape {
            out.push('"');
            for unit in text.encode_utf16() {
                write!(out, "\\u{unit:04X}").unwrap();
            }
            out.push('"');
        } else {
            out.push_str(&Value::from(text).to_string());
        }
    };
    out.push_str(space);
    match value {
        Value::String(text) => string(out, text),
        Value::Array(elements) => {
            out.push('[');
            for (position, element) in elements.iter().enumerate() {
                out.push_str(if position > 0 { "," } else { "" });
                write(out, element, space, escape);
            }
            out.push_str(space);
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (position, (key, member)) in members.iter().enumerate() {
                out.push_str(if position > 0 { "," } else { "" });
                out.push_str(space);
                string(out, key);
                out.push_str(space);
                out.push(':');
                write(out, member, space, escape);
            }
            out.push_str(space);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
    out.push_str(space);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_serde_reads_is_read_alike(value in value(), space in "[ \t\r\n]{0,2}", escape in any::<bool>()) {
        let mut text = String::new();
        write(&mut text, &value, &space, escape);
        let expected: Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(read_all(&text), Ok(expected));
    }

    #[test]
    fn exactly_one_value_is_skipped(value in value(), space in "[ \t\r\n]{0,2}", escape in any::<bool>()) {
        let mut text = String::new();
        write(&mut text, &value, &space, escape);
        let listed = format!("[{text},\"after\"]");
        let mut cursor = Cursor::new(&listed);
        let mut skipped = "";
        cursor.array(|index, cursor| {
            if index == 0 {
                skipped = cursor.skip()?;
            } else {
                assert_eq!(cursor.string()?, "after");
            }
            Ok(())
        }).unwrap();
        cursor.end().unwrap();
        prop_assert_eq!(skipped, text.trim_matches([' ', '\t', '\r', '\n']));
    }

    /// What is read may not differ from what serde reads, however broken the text is.
    #[test]
    fn what_is_no_json_is_refused_or_skipped(
        value in value(),
        cut in any::<prop::sample::Index>(),
        junk in "[\\[\\]{}\",:\\\\ tfn0-9e.\\-\\u{0}-\\u{1f}é]{0,4}",
        drop in 0..3_usize,
    ) {
        let text: Vec<char> = value.to_string().chars().collect();
        let at = cut.index(text.len() + 1);
        let rest = text.iter().skip(at + drop);
        let broken: String = text[..at].iter().copied().chain(junk.chars()).chain(rest.copied()).collect();
        let expected = serde_json::from_str::<Value>(&broken);
        match read_all(&broken) {
            Ok(read) => prop_assert_eq!(Some(read), expected.ok(), "{}", broken),
            Err(error) => prop_assert!(expected.is_err(), "{}: {}", broken, error),
        }
    }

    #[test]
    fn no_text_makes_it_panic_or_loop(text in "[\\[\\]{}\",:\\\\ \ttfnu0-9é😀]{0,40}") {
        drop(read_all(&text));
        let mut cursor = Cursor::new(&text);
        while cursor.skip().is_ok() {}
        prop_assert!(cursor.position() <= text.len() + 1);
        let mut cursor = Cursor::new(&text);
        let inside = |cursor: &mut Cursor<'_>| cursor.skip().map(|_| ());
        drop((cursor.clone().boolean(), cursor.clone().null(), cursor.clone().string()));
        let _ = (cursor.clone().object(|_, cursor| inside(cursor)), cursor.array(|_, cursor| inside(cursor)));
    }
}

#[track_caller]
fn check_skip(text: &str, expected: Scan<&str>) {
    assert_eq!(Cursor::new(text).skip(), expected, "{text}");
}

#[track_caller]
fn check_string(text: &str, expected: Scan<&str>) {
    assert_eq!(
        Cursor::new(text).string().as_deref(),
        expected.as_ref().map(|text| *text),
        "{text}"
    );
}

#[test]
fn strings_are_read_strictly() {
    check_string(r#""""#, Ok(""));
    check_string("null", Ok(""));
    check_string(r#""a\u0000b\"\\""#, Ok("a\0b\"\\"));
    check_string(r#""\ud83d\ude00""#, Ok("😀"));
    for lone in [r#""\ud83d""#, r#""\ude00""#, r#""\ud83dx""#, r#""\ud83d\u0041""#] {
        check_string(lone, Err(ScanError::Escape(0)));
    }
    check_string(r#""\x""#, Err(ScanError::Escape(0)));
    check_string(r#""\u12""#, Err(ScanError::Escape(0)));
    for raw in ["\"a\nb\"", "\"\0\"", "\"\u{1f}\"", "\"\\n\t\""] {
        assert!(Cursor::new(raw).string().is_err(), "{raw:?}");
    }
    for truncated in ["\"", "\"\\", "\"\\\"", "\"\\u", ""] {
        check_string(truncated, Err(ScanError::Truncated));
    }
    check_string("7", Err(ScanError::Unexpected(0)));
    check_string("nul", Err(ScanError::Unexpected(0)));
}

#[test]
fn brackets_that_do_not_close_end_the_reading() {
    for text in ["[", "{\"a\":", "[[]", "{\"a", "[\"]", "{\"\\"] {
        check_skip(text, Err(ScanError::Truncated));
    }
    for text in ["]", "}", ",", ":", "x"] {
        check_skip(text, Err(ScanError::Unexpected(0)));
    }
    check_skip("[]]", Ok("[]"));
    check_skip(r#"["]\"]"] x"#, Ok(r#"["]\"]"]"#));
}

#[test]
fn depth_costs_no_stack() {
    let depth = 100_000;
    let text = format!(
        "{{\"deep\":{}{},\"after\":true}}",
        "[".repeat(depth),
        "]".repeat(depth)
    );
    let mut after = false;
    let mut cursor = Cursor::new(&text);
    let read = cursor.object(|key, cursor| {
        if key == "after" {
            after = cursor.boolean()?;
        } else {
            assert_eq!(cursor.skip()?.len(), 2 * depth);
        }
        Ok(())
    });
    assert_eq!((read, after, cursor.end()), (Ok(()), true, Ok(())));
    check_skip(&"{\"a\":[".repeat(depth), Err(ScanError::Truncated));
}
