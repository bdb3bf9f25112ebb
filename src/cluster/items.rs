//! The items of a list, one after the other while the list comes in.

use std::mem;

use memchr::memchr2;
use serde::Deserialize;

use super::watch::Failure;

/// The longest item, and the longest that all else of a list may be: etcd takes no object of more than 1.5 MiB.
const LONGEST: usize = 8 * 1024 * 1024;

/// What stands before a list's items.
const ITEMS: &[u8] = b"\"items\"";

/// A list without its items.
#[derive(Debug, Deserialize)]
pub(super) struct Outline {
    #[serde(default)]
    pub(super) metadata: ListMeta,
}

/// What a list says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    #[serde(default)]
    pub(super) resource_version: String,
    #[serde(default, rename = "continue")]
    pub(super) next: String,
}

/// Splits the JSON of a list.
///
/// It is no reader of JSON: what an item holds, and what stands around the items, is read by one, and what is no JSON
/// is found there.
#[derive(Debug, Default)]
pub(super) struct Items {
    /// What came of the list without its items.
    outline: Vec<u8>,
    /// Where the last string of the outline begins.
    string: usize,
    /// What came of an item.
    item: Vec<u8>,
    /// Brackets that are open.
    depth: usize,
    /// The items come now.
    within: bool,
    in_string: bool,
    escaped: bool,
}

impl Items {
    /// Takes in what came, and hands on each item that ends in it.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut handle: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        loop {
            if self.in_string && !self.escaped {
                // Most of what there is stands in strings, and nothing of it is looked at but their ends.
                let text = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
                self.push(&bytes[..text]);
                bytes = &bytes[text..];
            }
            let Some((byte, rest)) = bytes.split_first() else {
                return self.within_bounds();
            };
            bytes = rest;
            let ends = self.take(*byte);
            self.within_bounds()?;
            if ends {
                handle(&self.item)?;
                self.item.clear();
            }
        }
    }

    fn within_bounds(&self) -> Result<(), Failure> {
        if self.item.len().max(self.outline.len()) > LONGEST {
            return Err(Failure::Broken("the list holds something too long".to_owned()));
        }
        Ok(())
    }

    /// Takes in the next byte. Returns whether an item ends.
    fn take(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            self.push(&[byte]);
            return false;
        }
        let before = self.depth;
        match byte {
            b'"' => {
                self.in_string = true;
                self.string = self.outline.len();
            }
            b'[' if self.depth == 1 && self.is_at_items() => {
                self.outline.push(b'[');
                self.depth += 1;
                self.within = true;
                return false;
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        if self.within {
            if self.depth == 1 {
                self.within = false;
            } else if before == 2 && self.depth == 2 {
                // A comma, or space.
                return false;
            }
        }
        self.push(&[byte]);
        self.within && before == 3 && self.depth == 2
    }

    fn push(&mut self, bytes: &[u8]) {
        let to = if self.within {
            &mut self.item
        } else {
            &mut self.outline
        };
        to.extend_from_slice(bytes);
    }

    /// Whether what came last is the name of the items.
    fn is_at_items(&self) -> bool {
        let last = self.outline.get(self.string..).unwrap_or_default();
        last.strip_prefix(ITEMS)
            .is_some_and(|after| after.trim_ascii() == b":")
    }

    /// Returns what the list says of itself, once all of it came.
    pub(super) fn end(&mut self) -> Result<ListMeta, Failure> {
        let outline = mem::take(&mut self.outline);
        serde_json::from_slice(&outline)
            .map(|Outline { metadata }| metadata)
            .map_err(|error| Failure::Broken(format!("the list cannot be read: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Splits a list that comes in pieces of that size.
    fn split(list: &str, size: usize) -> Result<(Vec<String>, ListMeta), Failure> {
        let mut items = Items::default();
        let mut found = Vec::new();
        for piece in list.as_bytes().chunks(size) {
            items.feed(piece, |item| {
                found.push(String::from_utf8(item.to_vec()).unwrap());
                Ok(())
            })?;
        }
        Ok((found, items.end()?))
    }

    #[track_caller]
    fn check(list: &str, expected: &[Value]) {
        for size in [1, 2, 3, 7, 64, 1 << 20] {
            let (found, metadata) = split(list, size).unwrap();
            let found: Vec<Value> = found
                .iter()
                .map(|item| serde_json::from_str(item).unwrap())
                .collect();
            assert_eq!(found, expected, "{size}");
            assert_eq!(metadata.resource_version, "17", "{size}");
            assert_eq!(metadata.next, "", "{size}");
        }
    }

    #[test]
    fn a_list_falls_into_its_items_however_it_comes() {
        let odd = json!({
            "metadata": {"name": "a\"]}\\", "items": [{"x": [1, {}]}, "}", "\\\""]},
            "items": [{"items": []}],
            "spec": {"text": "{\"items\":[{", "n": [[], [[1.5e3]], null, true]},
        });
        let items = [json!({}), odd.clone(), json!({"ä\u{1f600}": "\u{7}"}), odd];
        let metadata = json!({"resourceVersion": "17", "note": "\"items\":[{\"no\":1}]"});
        // In the order of a server that writes lists while it goes, and of one that writes maps.
        let first = json!({"kind": "L", "apiVersion": "v1", "metadata": metadata, "items": items});
        let last = json!({"apiVersion": "v1", "items": items, "kind": "L", "metadata": metadata});
        for list in [first, last] {
            check(&list.to_string(), &items);
            check(&serde_json::to_string_pretty(&list).unwrap(), &items);
        }
        for none in ["[]", " [ ]", "null"] {
            check(
                &format!(r#"{{"metadata":{{"resourceVersion":"17"}},"items" :{none}}}"#),
                &[],
            );
        }
        check(r#"{"metadata":{"resourceVersion":"17","continue":""}}"#, &[]);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for list in [
            "",
            "{",
            r#"{"items":[{}"#,
            r#"{"items":[{}]"#,
            "[]x",
            r#"{"items":[{}]}}"#,
        ] {
            let read = split(list, 5);
            assert!(matches!(read, Err(Failure::Broken(_))), "{list}: {read:?}");
        }
        let endless = format!(r#"{{"items":[{{"a":"{}"#, "x".repeat(LONGEST));
        assert!(matches!(split(&endless, 1 << 16), Err(Failure::Broken(_))));
    }
}
