//! Content digests: `sha256:` and `sha512:` with their full length of lower-case hex.

use std::{fmt, str::FromStr};

/// A digest that Kagami can check: sha256 with 64 or sha512 with 128 lower-case hex digits.
///
/// Other algorithms are legal in the grammar of references, but nothing that Kagami asks can prove
/// them, so they are refused here and their images stay upstream.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Box<str>);

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

impl Digest {
    /// Returns the digest as it is written: `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the hash function.
    pub fn algorithm(&self) -> Algorithm {
        if self.0.starts_with("sha512:") {
            Algorithm::Sha512
        } else {
            Algorithm::Sha256
        }
    }

    /// Returns the digest made of an algorithm and the hash's raw bytes, if their number fits.
    pub fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Option<Self> {
        use std::fmt::Write as _;
        let (prefix, length) = match algorithm {
            Algorithm::Sha256 => ("sha256:", 32),
            Algorithm::Sha512 => ("sha512:", 64),
        };
        if hash.len() != length {
            return None;
        }
        let mut text = String::with_capacity(prefix.len() + 2 * length);
        text.push_str(prefix);
        for byte in hash {
            write!(text, "{byte:02x}").ok()?;
        }
        Some(Self(text.into_boxed_str()))
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
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
