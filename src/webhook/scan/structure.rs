//! Where the strings and the brackets of a JSON text are, found for all of it at once.
//!
//! Each 64 bytes become a few numbers with one bit for each byte, the lowest for the first, so that
//! there is next to no branch that depends on the text (Langdale and Lemire, "Parsing Gigabytes of
//! JSON per Second", section 3.1).
//!
//! There are two loops on purpose: where the bits are used at once, LLVM (of Rust 1.95, for AVX2)
//! takes the vectors apart byte by byte instead.

#![expect(
    clippy::inline_always,
    reason = "what is not within `dispatch!` does not get the processor's instructions"
)]

use fearless_simd::{Level, Simd, dispatch, prelude::*, u8x64};

use super::{Scan, ScanError};

/// How many bytes one block tells of.
const SIZE: usize = 64;

/// The strings and brackets of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Structure {
    blocks: Vec<Block>,
    /// Where a backslash stands outside of strings; nothing is known of what follows.
    fault: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    /// The quotes that begin or end a string.
    quotes: u64,
    backslashes: u64,
    /// Backslashes and control characters, for which a string is not what it means.
    special: u64,
    /// Opening brackets outside of strings, square and curly ones, but for those of `{}` and `[]`.
    opens: u64,
    closes: u64,
    /// How many bits `opens` has, and `closes`.
    opened: u32,
    closed: u32,
}

impl Structure {
    /// Returns the memory that the structure of a text of so many bytes takes.
    pub(super) const fn cost(bytes: usize) -> usize {
        (bytes / SIZE + 1) * size_of::<Block>()
    }

    /// Finds what is in a text, with the best vector instructions of this processor.
    pub(super) fn of(text: &str) -> Self {
        Self::with(Level::new(), text)
    }

    fn with(level: Level, text: &str) -> Self {
        let bytes = text.as_bytes();
        dispatch!(level, simd => find(simd, bytes))
    }

    fn block(&self, index: usize) -> Scan<&Block> {
        self.blocks.get(index).ok_or(match self.fault {
            Some(position) => ScanError::Unexpected(position),
            None => ScanError::Truncated,
        })
    }

    /// Returns the position of the quote that closes a string whose inside begins at `start`, and
    /// whether the string stands for itself: no escapes, no control characters.
    pub(super) fn string_end(&self, start: usize) -> Scan<(usize, bool)> {
        let mut index = start / SIZE;
        let mut mask = u64::MAX << (start % SIZE);
        let mut special = 0;
        loop {
            let block = self.block(index)?;
            let quotes = block.quotes & mask;
            if quotes != 0 {
                let before = (quotes & quotes.wrapping_neg()) - 1;
                special |= block.special & mask & before;
                return Ok((index * SIZE + quotes.trailing_zeros() as usize, special == 0));
            }
            special |= block.special & mask;
            mask = u64::MAX;
            index += 1;
        }
    }

    /// Returns the position after the bracket that closes the container at `start`, which is not an
    /// empty one without white space.
    pub(super) fn container_end(&self, start: usize) -> Scan<usize> {
        let mut index = start / SIZE;
        let mut mask = u64::MAX << (start % SIZE);
        let mut depth = 0;
        loop {
            let block = self.block(index)?;
            if block.closed < depth {
                // Even if all closed before any opened, this container would stay open.
                depth = depth + block.opened - block.closed;
            } else {
                let mut brackets = (block.opens | block.closes) & mask;
                while brackets != 0 {
                    let bracket = brackets & brackets.wrapping_neg();
                    if block.opens & bracket != 0 {
                        depth += 1;
                    } else if depth <= 1 {
                        return Ok(index * SIZE + bracket.trailing_zeros() as usize + 1);
                    } else {
                        depth -= 1;
                    }
                    brackets ^= bracket;
                }
            }
            mask = u64::MAX;
            index += 1;
        }
    }
}

#[inline(always)]
fn find<S: Simd>(simd: S, bytes: &[u8]) -> Structure {
    let (whole, rest) = bytes.as_chunks::<SIZE>();
    // What is missing at the end is nothing of interest.
    let mut last = [b' '; SIZE];
    last[..rest.len()].copy_from_slice(rest);
    let mut blocks = Vec::with_capacity(whole.len() + 1);
    for chunk in whole {
        blocks.push(Block::read(simd, chunk));
    }
    blocks.push(Block::read(simd, &last));

    let mut state = State::default();
    for (index, block) in blocks.iter_mut().enumerate() {
        let outside = state.resolve(block);
        if outside != 0 {
            blocks.truncate(index + 1);
            let fault = Some(index * SIZE + outside.trailing_zeros() as usize);
            return Structure { blocks, fault };
        }
    }
    Structure { blocks, fault: None }
}

impl Block {
    /// Reads what is where, strings or not.
    #[inline(always)]
    fn read<S: Simd>(simd: S, chunk: &[u8; SIZE]) -> Self {
        let chunk = u8x64::from_slice(simd, chunk);
        // Square and curly brackets differ in this bit alone.
        let curly = chunk | (b'{' ^ b'[');
        Self {
            quotes: chunk.simd_eq(b'"').to_bitmask(),
            backslashes: chunk.simd_eq(b'\\').to_bitmask(),
            special: chunk.simd_lt(0x20).to_bitmask(),
            opens: curly.simd_eq(b'{').to_bitmask(),
            closes: curly.simd_eq(b'}').to_bitmask(),
            opened: 0,
            closed: 0,
        }
    }
}

/// What a block leaves to the next.
#[derive(Default)]
struct State {
    /// All ones within a string.
    in_string: u64,
    /// One after a backslash that escapes.
    escaped: u64,
}

impl State {
    /// Leaves in a block the quotes that are not escaped, and the brackets outside of strings. Returns
    /// the backslashes outside of strings; what follows the first of them is left out.
    #[inline(always)]
    fn resolve(&mut self, block: &mut Block) -> u64 {
        let mut escaped = self.escaped;
        self.escaped = 0;
        let mut escaping = block.backslashes & !escaped;
        while escaping != 0 {
            let backslash = escaping & escaping.wrapping_neg();
            escaped |= backslash << 1;
            self.escaped = backslash >> 63;
            escaping &= !(backslash | backslash << 1);
        }
        block.quotes &= !escaped;
        let strings = parity(block.quotes) ^ self.in_string;
        self.in_string = if strings >> 63 == 1 { u64::MAX } else { 0 };
        let outside = block.backslashes & !strings;
        let known = (outside & outside.wrapping_neg()).wrapping_sub(1);
        block.quotes &= known;
        block.special |= block.backslashes;
        block.opens &= known & !strings;
        block.closes &= known & !strings;
        // Half of the brackets of managed fields are those of `{}`, which change nothing.
        let empty = block.opens & block.closes >> 1;
        block.opens ^= empty;
        block.closes ^= empty << 1;
        block.opened = block.opens.count_ones();
        block.closed = block.closes.count_ones();
        outside
    }
}

/// Returns for each bit whether an odd number of bits is set up to and with it.
#[inline(always)]
const fn parity(mut bits: u64) -> u64 {
    bits ^= bits << 1;
    bits ^= bits << 2;
    bits ^= bits << 4;
    bits ^= bits << 8;
    bits ^= bits << 16;
    bits ^ bits << 32
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The other tests see only the best instructions of the machine that they run on.
        #[test]
        fn all_vector_instructions_find_the_same(
            text in "([{}\\[\\],:]|\"x{0,40}\"|\\\\\"|\\\\\\\\|\"|[ \n\u{1}\u{1f}\u{7f}é鏡]){0,200}",
        ) {
            let best = Level::new();
            let levels = [
                best.as_sse4_2().map(Level::Sse4_2),
                best.as_avx2().map(Level::Avx2),
                Some(best),
            ];
            let baseline = Structure::with(Level::baseline(), &text);
            for level in levels.into_iter().flatten() {
                prop_assert_eq!(&Structure::with(level, &text), &baseline, "{:?}", level);
            }
        }
    }
}
