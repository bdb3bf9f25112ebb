//! `spec.repository` of an ImageMirror: how a repository is named in the mirror.

use std::{fmt, str::FromStr};

use super::push_registry;
use crate::domain::image::{ParseReferenceError, Reference, check_path};

/// A template such as `{registry}/{repository}`.
///
/// `{repository}` stands in it exactly once and `{registry}` at most once, with a `/` between them:
/// a host has no `/`, so the one nearest to it tells where it ends, and nothing can be mapped to the
/// same text from two images (as `{registry}-{repository}` would `x.com/foo-bar` and `x.com-foo/bar`).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Piece {
    Literal(Box<str>),
    Registry,
    Repository,
}

/// Why a text is no [`Template`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseTemplateError {
    /// All images would be mapped to one place.
    #[error("cannot use repository template {0:?}: {{repository}} is missing")]
    RepositoryMissing(String),
    /// `{repository}` more than once.
    #[error("cannot use repository template {0:?}: {{repository}} may stand in it only once")]
    RepositoryRepeated(String),
    /// `{registry}` more than once.
    #[error("cannot use repository template {0:?}: {{registry}} may stand in it only once")]
    RegistryRepeated(String),
    /// No `/` between the two, so that two images could be mapped to one place.
    #[error(
        "cannot use repository template {0:?}: there must be a \"/\" between {{registry}} and {{repository}}, else two images could have one name"
    )]
    NotKeptApart(String),
    /// Something else in braces.
    #[error(
        "cannot use repository template {text:?}: {{{placeholder}}} is unknown, there are {{registry}} and {{repository}}"
    )]
    UnknownPlaceholder { text: String, placeholder: String },
    /// An opening brace without the closing one, or the other way round.
    #[error("cannot use repository template {0:?}: a brace has no partner")]
    UnpairedBrace(String),
    /// A slash at an end, or two in a row.
    #[error("cannot use repository template {0:?}: it must not begin or end with \"/\" or have two in a row")]
    EmptyComponent(String),
    /// What stands around the placeholders is not allowed in a repository's name.
    #[error("cannot use repository template {text:?}")]
    InvalidText {
        text: String,
        source: ParseReferenceError,
    },
}

impl Template {
    /// Whether images of different hosts have different names in the mirror; without that, the
    /// mirror may have only one source of one host.
    pub fn keeps_registries_apart(&self) -> bool {
        self.pieces.contains(&Piece::Registry)
    }

    /// Returns the number of bytes that the template adds to a host and a path.
    pub(super) fn literal_length(&self) -> usize {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Literal(text) => text.len(),
                Piece::Registry | Piece::Repository => 0,
            })
            .sum()
    }

    /// Appends what the repositories of all images of a host begin with in the mirror, as far as whole components go.
    pub(super) fn push_beginning(&self, out: &mut String, host: &str) {
        let begin = out.len();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.push_str(text),
                Piece::Registry => push_registry(out, host),
                Piece::Repository => break,
            }
        }
        let whole = out[begin..].rfind('/').map_or(0, |slash| slash + 1);
        out.truncate(begin + whole);
    }

    /// Appends the repository that an image has in the mirror, without the registry's own path.
    pub(super) fn push(&self, out: &mut String, image: &Reference<'_>) {
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.push_str(text),
                Piece::Registry => push_registry(out, image.host()),
                Piece::Repository => {
                    let [library, path] = image.path_parts();
                    out.push_str(library);
                    out.push_str(path);
                }
            }
        }
    }

    /// Returns what stands before and after the repository of an image of this host.
    pub(super) fn around(&self, host: &str) -> (String, String) {
        let (mut before, mut after) = (String::new(), String::new());
        let mut out = &mut before;
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.push_str(text),
                Piece::Registry => push_registry(out, host),
                Piece::Repository => out = &mut after,
            }
        }
        (before, after)
    }
}

impl FromStr for Template {
    type Err = ParseTemplateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        use ParseTemplateError as E;
        let owned = || text.to_owned();
        let pieces = split(text)?;

        match count(&pieces, &Piece::Repository) {
            0 => return Err(E::RepositoryMissing(owned())),
            1 => {}
            _ => return Err(E::RepositoryRepeated(owned())),
        }
        if count(&pieces, &Piece::Registry) > 1 {
            return Err(E::RegistryRepeated(owned()));
        }
        if !kept_apart(&pieces) {
            return Err(E::NotKeptApart(owned()));
        }

        // Hosts and repositories begin and end with a letter or a digit: what fits one fits all.
        let sample: String = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Literal(text) => text,
                Piece::Registry | Piece::Repository => "a",
            })
            .collect();
        if sample.split('/').any(str::is_empty) {
            return Err(E::EmptyComponent(owned()));
        }
        check_path(&sample).map_err(|source| E::InvalidText {
            text: owned(),
            source,
        })?;
        Ok(Self { pieces })
    }
}

fn split(text: &str) -> Result<Vec<Piece>, ParseTemplateError> {
    let unpaired = || ParseTemplateError::UnpairedBrace(text.to_owned());
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((literal, opened)) = rest.split_once('{') {
        push_literal(&mut pieces, literal).ok_or_else(unpaired)?;
        let (placeholder, after) = opened.split_once('}').ok_or_else(unpaired)?;
        pieces.push(match placeholder {
            "registry" => Piece::Registry,
            "repository" => Piece::Repository,
            _ => {
                return Err(ParseTemplateError::UnknownPlaceholder {
                    text: text.to_owned(),
                    placeholder: placeholder.to_owned(),
                });
            }
        });
        rest = after;
    }
    push_literal(&mut pieces, rest).ok_or_else(unpaired)?;
    Ok(pieces)
}

/// Appends a literal, unless it is empty; absent if it has a brace that nothing opened.
fn push_literal(pieces: &mut Vec<Piece>, literal: &str) -> Option<()> {
    if literal.contains('}') {
        return None;
    }
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal.into()));
    }
    Some(())
}

fn count(pieces: &[Piece], wanted: &Piece) -> usize {
    pieces.iter().filter(|piece| *piece == wanted).count()
}

/// Whether a slash stands between the two placeholders, or there is only one.
fn kept_apart(pieces: &[Piece]) -> bool {
    let mut placeholders = pieces
        .iter()
        .enumerate()
        .filter(|(_, piece)| !matches!(piece, Piece::Literal(_)));
    let (Some((first, _)), Some((second, _))) = (placeholders.next(), placeholders.next()) else {
        return true;
    };
    pieces
        .iter()
        .take(second)
        .skip(first + 1)
        .any(|piece| matches!(piece, Piece::Literal(text) if text.contains('/')))
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.pieces {
            f.write_str(match piece {
                Piece::Literal(text) => text,
                Piece::Registry => "{registry}",
                Piece::Repository => "{repository}",
            })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
