//! Content digests: `sha256:` and `sha512:` with their full length of lower-case hex.

use std::{fmt, str::FromStr};

/// A digest that Kagami can check: sha256 with 64 or sha512 with 128 lower-case hex digits.
///
/// Kept as the hash's own bytes, because the presence index holds one for each image. Other
/// algorithms are legal in the grammar of references, but nothing that Kagami asks can prove them,
/// so they are refused here and their images stay upstream.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    Sha256([u8; 32]),
    /// Rare, so it does not make the other one larger.
    Sha512(Box<[u8; 64]>),
}

/// Why a text is no [`Digest`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// No `algorithm:hex` form at all.
    #[error("invalid digest {0:?}: expected sha256:<64 hex digits> or sha512:<128 hex digits>")]
    Malformed(String),
    /// An algorithm other than sha256 and sha512.
    #[error("unsupported digest algorithm in {0:?}")]
    UnsupportedAlgorithm(String),
}

/// The hash function of a [`Digest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

/// Each byte in hex. Answers tell a digest for each image, so it is looked up by the pair.
const PAIRS: [[u8; 2]; 256] = {
    let (digits, mut pairs, mut byte) = (b"0123456789abcdef", [[0; 2]; 256], 0);
    while byte < pairs.len() {
        pairs[byte] = [digits[byte / 16], digits[byte % 16]];
        byte += 1;
    }
    pairs
};

impl Digest {
    /// Appends the digest as it is written: `algorithm:hex`.
    pub fn push_to(&self, out: &mut String) {
        let (prefix, hash) = match self {
            Self::Sha256(hash) => ("sha256:", &hash[..]),
            Self::Sha512(hash) => ("sha512:", &hash[..]),
        };
        let mut hex = [0; 128];
        for (pair, byte) in hex.as_chunks_mut::<2>().0.iter_mut().zip(hash) {
            *pair = PAIRS[usize::from(*byte)];
        }
        out.push_str(prefix);
        out.push_str(str::from_utf8(&hex[..2 * hash.len()]).expect("hex digits are ASCII"));
    }

    /// Whether this is how the digest is written.
    pub fn is(&self, text: &str) -> bool {
        text.parse().is_ok_and(|digest: Self| digest == *self)
    }

    /// Returns the hash function.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Returns the digest made of an algorithm and the hash's raw bytes, if their number fits.
    pub fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Option<Self> {
        Some(match algorithm {
            Algorithm::Sha256 => Self::Sha256(hash.try_into().ok()?),
            Algorithm::Sha512 => Self::Sha512(Box::new(hash.try_into().ok()?)),
        })
    }

    /// Checks a text without allocating; what it accepts, `from_str` accepts.
    pub fn validate(text: &str) -> Result<(), ParseDigestError> {
        let malformed = || ParseDigestError::Malformed(text.to_owned());
        let (algorithm, hex) = text.split_once(':').ok_or_else(malformed)?;
        let length = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            "" => return Err(malformed()),
            _ => return Err(ParseDigestError::UnsupportedAlgorithm(text.to_owned())),
        };
        if hex.len() == length
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            Ok(())
        } else {
            Err(malformed())
        }
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        Self::validate(text)?;
        // The prefixes of both algorithms are equally long.
        let hex = &text.as_bytes()["sha256:".len()..];
        Ok(if text.starts_with("sha512:") {
            Self::Sha512(Box::new(decode(hex)))
        } else {
            Self::Sha256(decode(hex))
        })
    }
}

/// Returns the bytes that so many lower-case hex digits stand for.
fn decode<const N: usize>(hex: &[u8]) -> [u8; N] {
    const fn value(digit: u8) -> u8 {
        match digit {
            b'a'..=b'f' => digit - b'a' + 10,
            _ => digit - b'0',
        }
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_chunks::<2>().0) {
        *byte = value(pair[0]) << 4 | value(pair[1]);
    }
    bytes
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.push_to(&mut text);
        f.pad(&text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_again() {
        let hex = "0123456789abcdef".repeat(8);
        for text in [format!("sha256:{}", &hex[..64]), format!("sha512:{hex}")] {
            let digest: Digest = text.parse().unwrap();
            assert_eq!(digest.to_string(), text);
            assert!(digest.is(&text) && !digest.is(&text.replace('f', "0")) && !digest.is(&text[1..]));
        }
        let first = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef].repeat(4);
        let digest = Digest::from_hash(Algorithm::Sha256, &first).unwrap();
        assert!(digest.is(&format!("sha256:{}", &hex[..64])));
        assert_eq!(Digest::from_hash(Algorithm::Sha512, &first), None);
    }
}
