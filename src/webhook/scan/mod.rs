//! A cursor over JSON text that reads what is needed and skips the rest.
//!
//! What is skipped is checked for balanced brackets and closed strings only: the API server sent
//! it, and nothing of it comes back in the answer. What is read is read strictly. Nothing here
//! recurses, so nesting costs no stack.

use std::borrow::Cow;

use wide::u8x16;

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
}

/// A position in a JSON text.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    text: &'a str,
    position: usize,
}

type Scan<T> = Result<T, ScanError>;

impl<'a> Cursor<'a> {
    pub(crate) const fn new(text: &'a str) -> Self {
        Self { text, position: 0 }
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
        if self.null()? {
            return Ok(Cow::Borrowed(""));
        }
        let start = self.position;
        let (raw, plain) = self.raw_string()?;
        if plain {
            return Ok(Cow::Borrowed(raw));
        }
        serde_json::from_str(&self.text[start..self.position])
            .map(Cow::Owned)
            .map_err(|_| ScanError::Escape(start))
    }

    /// Takes a string and returns what stands between its quotes, escapes and all, and whether that is
    /// also what it means.
    fn raw_string(&mut self) -> Scan<(&'a str, bool)> {
        self.take(b'"')?;
        let start = self.position;
        let (end, plain) = string_end(self.bytes(), start)?;
        self.position = end + 1;
        Ok((&self.text[start..end], plain))
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
            let key = self.string()?;
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
        match first {
            b'"' => {
                self.raw_string()?;
            }
            b'{' | b'[' => self.position = container_end(self.bytes(), start)?,
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
                let rest = &self.bytes()[start..];
                let length = rest
                    .iter()
                    .position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t'));
                self.position = start + length.unwrap_or(rest.len());
            }
            _ => return self.unexpected(),
        }
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

/// Returns the position of the quote that closes a string whose inside begins at `start`, and whether
/// the string stands for itself: no escapes, no control characters.
fn string_end(bytes: &[u8], start: usize) -> Scan<(usize, bool)> {
    let mut position = start;
    let mut plain = true;
    loop {
        let rest = bytes.get(position..).ok_or(ScanError::Truncated)?;
        let stop = match rest.first_chunk() {
            Some(chunk) => {
                let chunk = u8x16::new(*chunk);
                let control = chunk.min(u8x16::splat(0x1f)).simd_eq(chunk);
                let quote = chunk.simd_eq(u8x16::splat(b'"'));
                let stops = control | quote | chunk.simd_eq(u8x16::splat(b'\\'));
                // Without a stop there are more zeros than bytes.
                stops.to_bitmask().trailing_zeros().min(16) as usize
            }
            None => rest
                .iter()
                .position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f))
                .ok_or(ScanError::Truncated)?,
        };
        position += stop;
        match rest.get(stop) {
            Some(b'"') => return Ok((position, plain)),
            Some(b'\\') => (plain, position) = (false, position + 2),
            Some(0..=0x1f) => (plain, position) = (false, position + 1),
            _ => {}
        }
    }
}

/// Returns the position after the bracket that closes the container at `start`.
///
/// Most of a review is skipped, so this looks at 64 bytes at a time, a bit of a number for each, and
/// has next to no branch that depends on what it sees.
fn container_end(bytes: &[u8], start: usize) -> Scan<usize> {
    let mut depth = 0;
    let mut position = start;
    // What the block before left: all ones within a string, one after a backslash.
    let (mut in_string, mut escaped_first) = (0_u64, 0);
    while position < bytes.len() {
        let block = Block::read(&bytes[position..]);
        let mut escaped = escaped_first;
        escaped_first = 0;
        let mut backslashes = block.backslashes & !escaped;
        while backslashes != 0 {
            let backslash = backslashes & backslashes.wrapping_neg();
            escaped |= backslash << 1;
            escaped_first = backslash >> 63;
            backslashes &= !(backslash | backslash << 1);
        }
        let strings = parity(block.quotes & !escaped) ^ in_string;
        in_string = if strings >> 63 == 1 { u64::MAX } else { 0 };
        let outside = block.backslashes & !strings;
        if outside != 0 {
            return Err(ScanError::Unexpected(position + outside.trailing_zeros() as usize));
        }
        let opens = block.opens & !strings;
        let mut closes = block.closes & !strings;
        if closes.count_ones() < depth {
            // Even if all closed before any opened, this container would stay open.
            depth = depth + opens.count_ones() - closes.count_ones();
        } else {
            let mut closed = 0;
            while closes != 0 {
                let close = closes & closes.wrapping_neg();
                closed += 1;
                if depth + (opens & (close - 1)).count_ones() == closed {
                    return Ok(position + close.trailing_zeros() as usize + 1);
                }
                closes &= !close;
            }
            depth = depth + opens.count_ones() - closed;
        }
        position += Block::SIZE;
    }
    Err(ScanError::Truncated)
}

/// What kinds of bytes there are in 64 of them: the lowest bit is for the first.
struct Block {
    quotes: u64,
    backslashes: u64,
    opens: u64,
    closes: u64,
}

impl Block {
    const SIZE: usize = 64;

    /// Reads the next block; what is missing at the end is nothing of interest.
    fn read(bytes: &[u8]) -> Self {
        let Some(block) = bytes.first_chunk::<{ Self::SIZE }>() else {
            let mut padded = [b' '; Self::SIZE];
            padded[..bytes.len()].copy_from_slice(bytes);
            return Self::read(&padded);
        };
        let mut kinds = Self { quotes: 0, backslashes: 0, opens: 0, closes: 0 };
        let (chunks, _) = block.as_chunks::<16>();
        for (index, chunk) in chunks.iter().enumerate() {
            let chunk = u8x16::new(*chunk);
            // Square and curly brackets differ in this bit alone.
            let curly = chunk | u8x16::splat(b'{' ^ b'[');
            let bits = |equal: u8x16| u64::from(equal.to_bitmask()) << (16 * index);
            kinds.quotes |= bits(chunk.simd_eq(u8x16::splat(b'"')));
            kinds.backslashes |= bits(chunk.simd_eq(u8x16::splat(b'\\')));
            kinds.opens |= bits(curly.simd_eq(u8x16::splat(b'{')));
            kinds.closes |= bits(curly.simd_eq(u8x16::splat(b'}')));
        }
        kinds
    }
}

/// Returns for each bit whether an odd number of bits is set up to and with it.
const fn parity(mut bits: u64) -> u64 {
    bits ^= bits << 1;
    bits ^= bits << 2;
    bits ^= bits << 4;
    bits ^= bits << 8;
    bits ^= bits << 16;
    bits ^ bits << 32
}

#[cfg(test)]
mod tests;
