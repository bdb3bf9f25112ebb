//! A cursor over JSON text that reads what is needed and skips the rest.
//!
//! What is skipped is checked for balanced brackets and closed strings only: the API server sent
//! it, and nothing of it comes back in the answer. What is read is read strictly. Nothing here
//! recurses, so nesting costs no stack.

mod structure;

use std::borrow::Cow;

use structure::Structure;

/// Why a text is not the JSON that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScanError {
    #[error("the JSON ends too early")]
    Truncated,
    #[error("unexpected character at byte {0}")]
    Unexpected(usize),
    #[error("a string with an invalid escape or a control character at byte {0}")]
    Escape(usize),
    #[error("{0:?} appears twice")]
    Duplicate(&'static str),
    #[error("more {0} than are looked at")]
    TooMany(&'static str),
}

/// Returns what a text of so many bytes costs of memory while it is read, itself included.
pub(crate) const fn cost(bytes: usize) -> usize {
    bytes + Structure::cost(bytes)
}

/// A position in a JSON text.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    text: &'a str,
    structure: Structure,
    /// Never inside of a string, so that both tell the same of where strings are.
    position: usize,
}

type Scan<T> = Result<T, ScanError>;

impl<'a> Cursor<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            text,
            structure: Structure::of(text),
            position: 0,
        }
    }

    /// Returns the offset of the next byte.
    pub(crate) const fn position(&self) -> usize {
        self.position
    }

    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    /// Returns the next byte that is no white space, without taking it.
    pub(crate) fn peek(&mut self) -> Scan<u8> {
        loop {
            match self.bytes().get(self.position) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.position += 1,
                Some(byte) => return Ok(*byte),
                None => return Err(ScanError::Truncated),
            }
        }
    }

    const fn unexpected<T>(&self) -> Scan<T> {
        Err(ScanError::Unexpected(self.position))
    }

    fn take(&mut self, expected: u8) -> Scan<()> {
        if self.peek()? == expected {
            self.position += 1;
            Ok(())
        } else {
            self.unexpected()
        }
    }

    /// Takes a `null` if one is next.
    pub(crate) fn null(&mut self) -> Scan<bool> {
        if self.peek()? != b'n' {
            return Ok(false);
        }
        self.literal("null").map(|()| true)
    }

    fn literal(&mut self, literal: &str) -> Scan<()> {
        if self.bytes()[self.position..].starts_with(literal.as_bytes()) {
            self.position += literal.len();
            Ok(())
        } else {
            self.unexpected()
        }
    }

    /// Takes a boolean; `null` is false.
    pub(crate) fn boolean(&mut self) -> Scan<bool> {
        match self.peek()? {
            b't' => self.literal("true").map(|()| true),
            b'f' => self.literal("false").map(|()| false),
            b'n' => self.literal("null").map(|()| false),
            _ => self.unexpected(),
        }
    }

    /// Takes a string, borrowed unless it has escapes. `null` is an empty string, as in Go.
    pub(crate) fn string(&mut self) -> Scan<Cow<'a, str>> {
        match self.peek()? {
            b'"' => self.quoted(),
            b'n' => self.literal("null").map(|()| Cow::Borrowed("")),
            _ => self.unexpected(),
        }
    }

    /// Takes a string whose opening quote is next.
    fn quoted(&mut self) -> Scan<Cow<'a, str>> {
        let start = self.position;
        let (end, plain) = self.structure.string_end(start + 1)?;
        self.position = end + 1;
        if plain {
            Ok(Cow::Borrowed(&self.text[start + 1..end]))
        } else {
            self.unescaped(start)
        }
    }

    /// Returns what the string at `start` means, which has just been taken.
    #[cold]
    fn unescaped(&self, start: usize) -> Scan<Cow<'a, str>> {
        serde_json::from_str(&self.text[start..self.position])
            .map(Cow::Owned)
            .map_err(|_| ScanError::Escape(start))
    }

    /// Takes an object, handing each key with the cursor at its value. `null` is an empty object.
    pub(crate) fn object(&mut self, mut member: impl FnMut(&str, &mut Self) -> Scan<()>) -> Scan<()> {
        if self.null()? {
            return Ok(());
        }
        self.take(b'{')?;
        if self.peek()? == b'}' {
            self.position += 1;
            return Ok(());
        }
        loop {
            if self.peek()? != b'"' {
                return self.unexpected();
            }
            let key = self.quoted()?;
            self.take(b':')?;
            member(&key, self)?;
            match self.peek()? {
                b',' => self.position += 1,
                b'}' => {
                    self.position += 1;
                    return Ok(());
                }
                _ => return self.unexpected(),
            }
        }
    }

    /// Takes an array, handing each index with the cursor at its element. `null` is an empty array.
    pub(crate) fn array(&mut self, mut element: impl FnMut(usize, &mut Self) -> Scan<()>) -> Scan<()> {
        if self.null()? {
            return Ok(());
        }
        self.take(b'[')?;
        if self.peek()? == b']' {
            self.position += 1;
            return Ok(());
        }
        for index in 0.. {
            element(index, self)?;
            match self.peek()? {
                b',' => self.position += 1,
                b']' => {
                    self.position += 1;
                    return Ok(());
                }
                _ => return self.unexpected(),
            }
        }
        self.unexpected()
    }

    /// Passes over one value, whatever it is, and returns its text.
    pub(crate) fn skip(&mut self) -> Scan<&'a str> {
        let first = self.peek()?;
        let start = self.position;
        self.position = match first {
            b'"' => self.structure.string_end(start + 1)?.0 + 1,
            b'{' | b'[' => match self.bytes().get(start + 1) {
                Some(b'}' | b']') => start + 2,
                _ => self.structure.container_end(start)?,
            },
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
                let rest = &self.bytes()[start..];
                let length = rest
                    .iter()
                    .position(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'E' | b'+' | b'-' | b'.'));
                start + length.unwrap_or(rest.len())
            }
            _ => return self.unexpected(),
        };
        Ok(&self.text[start..self.position])
    }

    /// Checks that nothing but white space is left.
    pub(crate) fn end(&mut self) -> Scan<()> {
        match self.peek() {
            Err(ScanError::Truncated) => Ok(()),
            _ => self.unexpected(),
        }
    }
}

#[cfg(test)]
mod tests;
