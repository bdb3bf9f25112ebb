//! What a registry means by an answer that is not the one wanted.
//!
//! One status stands for many things (a 403 for at least five), and one thing has many statuses: the tag that may
//! not be moved is a 400, 403, 409 or 412, as the registry is. So the codes and the words count too, and the status
//! alone decides only whether trying again may help.

use std::time::Duration;

use super::reason::Reason;
use crate::domain::digest::Algorithm;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A manifest or a blob of the source.
    Read,
    /// Whether the mirror has something.
    Look,
    /// An upload to be begun.
    Begin,
    /// A blob, whole or in a piece.
    Upload,
    /// A manifest to be taken.
    Manifest(Manifest),
}

/// What is known of a manifest that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whether it was pushed under a tag, and not under its digest.
    pub by_tag: bool,
    /// Whether it lists what was left out.
    pub is_sparse: bool,
    /// Whether it names layers that are kept elsewhere.
    pub names_foreign: bool,
    pub algorithm: Algorithm,
}

/// An answer that is not the one wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    /// The codes of a registry's error body.
    pub codes: Vec<Box<str>>,
    /// What it says, cleaned and with a bound.
    pub words: Box<str>,
    /// The path and query that were asked for: registries quote the names in it, which people choose as they like.
    pub asked: Box<str>,
    /// The wait that it asks for.
    pub retry_after: Option<Duration>,
    /// Whether somebody answered to whom the registry had sent us.
    pub is_elsewhere: bool,
}

/// What to make of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not there.
    Missing,
    /// Wait that long, or as long as one sees fit, and ask again.
    Wait(Option<Duration>),
    /// It may go better the next time; if it never does, for this reason.
    Again(Reason),
    /// The upload is gone: begin another one.
    UploadGone,
    /// The body was too long for somebody: send it in pieces.
    TooLarge,
    /// It lacks what the manifest names.
    Incomplete,
    /// Nothing but another setting helps.
    Never(Reason),
}

impl Refusal {
    /// Returns what is meant.
    pub fn verdict(&self, step: Step) -> Verdict {
        use Verdict::{Again, Incomplete, Missing, Never, TooLarge, UploadGone, Wait};
        if self.asks_to_wait() {
            return Wait(self.retry_after);
        }
        match (self.status, step) {
            (401, Step::Read) => Never(Reason::SourceUnauthorized),
            (401, _) => Never(Reason::Unauthorized),
            // An address that was signed for a while is signed anew when the registry is asked again.
            (400..=499, Step::Read) if self.is_elsewhere => Again(Reason::RegistryError),
            (404, Step::Read | Step::Look) => Missing,
            (403, Step::Read) => Never(Reason::SourceUnauthorized),
            (403, Step::Look) => Never(Reason::PushForbidden),
            (507, _) => Never(Reason::QuotaExceeded),
            (500, Step::Manifest(manifest)) if manifest.names_foreign => Never(Reason::ForeignLayersRefused),
            (408 | 425 | 499 | 500..=599, Step::Read | Step::Look) => Again(Reason::RegistryError),
            (408 | 425 | 499 | 500..=599, _) => Again(Reason::MirrorNotWritable),
            (_, Step::Read | Step::Look) => Never(Reason::RegistryError),
            (404, Step::Begin) if self.lacks_repository() => Never(Reason::RepositoryMissing),
            (_, Step::Begin | Step::Upload) if self.says(&["quota", "limitexceeded", "limit exceeded"]) => {
                Never(Reason::QuotaExceeded)
            }
            (_, Step::Begin) => Never(self.of_beginning()),
            (413, Step::Upload) => TooLarge,
            (416, Step::Upload) if self.says(&["too large", "exceed", "body"]) => TooLarge,
            (404 | 416, Step::Upload) => UploadGone,
            (400, Step::Upload) if self.is_one_of(&["BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"]) => {
                UploadGone
            }
            // The bytes were right when they left.
            (400, Step::Upload) if self.is_one_of(&["DIGEST_INVALID", "SIZE_INVALID"]) => {
                Again(Reason::DigestMismatch)
            }
            (400, Step::Upload) => Again(Reason::RegistryError),
            (_, Step::Upload) => Never(self.of_right()),
            (_, Step::Manifest(manifest)) => self.of_manifest(manifest).map_or(Incomplete, Never),
        }
    }

    /// Whether it is one of the many forms of "too many requests".
    pub fn asks_to_wait(&self) -> bool {
        const WORDS: [&str; 5] = [
            "rate limit",
            "ratelimit",
            "too many requests",
            "toomanyrequests",
            "rate exceeded",
        ];
        match self.status {
            429 => true,
            400 | 403 | 405 => self.is_one_of(&["TOOMANYREQUESTS"]) || self.says(&WORDS),
            503 => self.retry_after.is_some(),
            _ => false,
        }
    }

    fn of_beginning(&self) -> Reason {
        match self.status {
            405 => Reason::MirrorReadOnly,
            400 if self.is_one_of(&["NAME_INVALID"]) => Reason::NameNotAllowed,
            404 => Reason::RepositoryMissing,
            403 => self.of_right(),
            _ => Reason::RegistryError,
        }
    }

    /// Returns what somebody means who forbids.
    fn of_right(&self) -> Reason {
        if self.says(&["quota"]) {
            Reason::QuotaExceeded
        } else if self.says(&["read-only", "read only", "readonly", "proxy"]) || self.status == 405 {
            Reason::MirrorReadOnly
        } else if self.status == 403 {
            Reason::PushForbidden
        } else {
            Reason::RegistryError
        }
    }

    /// Returns why a manifest was refused; none if what it names is not there.
    fn of_manifest(&self, manifest: Manifest) -> Option<Reason> {
        let Manifest {
            by_tag,
            is_sparse,
            names_foreign,
            algorithm,
        } = manifest;
        let is_immutable = self.is_one_of(&["TAG_IMMUTABLE", "TAG_ALREADY_EXISTS"])
            || self.says(&[
                "immutable",
                "immutability",
                "does not allow updating",
                "cannot be overwritten",
                "disallowed",
            ]);
        let is_policy = self.says(&["polic", "vulnerab", "scan", "signature", "signed"]);
        let lacks = self.is_one_of(&["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"]);
        Some(match self.status {
            _ if by_tag && is_immutable => Reason::TagImmutable,
            404 if self.lacks_repository() => Reason::RepositoryMissing,
            _ if self.says(&["quota", "limitexceeded"]) => Reason::QuotaExceeded,
            412 if is_policy => Reason::PolicyRefused,
            409 | 412 if by_tag => Reason::TagImmutable,
            415 => Reason::MediaTypeRefused,
            405 => Reason::MirrorReadOnly,
            400 | 404 if self.is_one_of(&["NAME_INVALID"]) => Reason::NameNotAllowed,
            400 if self.is_one_of(&["DIGEST_INVALID"]) && algorithm != Algorithm::Sha256 => {
                Reason::DigestAlgorithmRefused
            }
            400 | 404 if is_sparse && (lacks || self.codes.is_empty()) => Reason::SparseIndexRefused,
            400 if names_foreign => Reason::ForeignLayersRefused,
            _ if lacks => return None,
            // Artifactory, where a tag may not be moved.
            403 if by_tag && self.is_one_of(&["MANIFEST_INVALID"]) => Reason::TagImmutable,
            403 if is_policy => Reason::PolicyRefused,
            403 => self.of_right(),
            404 => Reason::RepositoryMissing,
            400 if self.is_one_of(&["UNSUPPORTED"]) || self.says(&["media type", "mediatype", "schema"]) => {
                Reason::MediaTypeRefused
            }
            _ => Reason::ManifestRefused,
        })
    }

    /// Whether it says by its code that there is no such repository. Its words quote the repository's name then, and
    /// tell nothing.
    fn lacks_repository(&self) -> bool {
        self.is_one_of(&["NAME_UNKNOWN"])
    }

    fn is_one_of(&self, codes: &[&str]) -> bool {
        self.codes.iter().any(|code| codes.contains(&&**code))
    }

    /// Whether one of these stands in what it says, in any case. One that stands in what was asked for too says nothing:
    /// it may be quoted.
    fn says(&self, words: &[&str]) -> bool {
        let said = self.words.to_ascii_lowercase();
        let asked = self.asked.to_ascii_lowercase();
        let code = |word: &str| {
            self.codes
                .iter()
                .any(|code| code.to_ascii_lowercase().contains(word))
        };
        words
            .iter()
            .any(|word| (said.contains(word) && !asked.contains(word)) || code(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Manifest = Manifest {
        by_tag: true,
        is_sparse: false,
        names_foreign: false,
        algorithm: Algorithm::Sha256,
    };

    #[track_caller]
    fn check(step: Step, status: u16, code: &str, words: &str, expected: Verdict) {
        check_asked(step, "/v2/team/app/", status, code, words, expected);
    }

    #[track_caller]
    fn check_asked(step: Step, asked: &str, status: u16, code: &str, words: &str, expected: Verdict) {
        let refusal = Refusal {
            asked: asked.into(),
            status,
            codes: Some(code)
                .filter(|code| !code.is_empty())
                .map(Into::into)
                .into_iter()
                .collect(),
            words: words.into(),
            retry_after: None,
            is_elsewhere: false,
        };
        assert_eq!(
            refusal.verdict(step),
            expected,
            "{step:?} {asked} {status} {code} {words}"
        );
    }

    #[test]
    fn every_shape_of_too_many_is_one() {
        for step in [
            Step::Read,
            Step::Look,
            Step::Begin,
            Step::Upload,
            Step::Manifest(PLAIN),
        ] {
            check(step, 429, "", "", Verdict::Wait(None));
            check(
                step,
                403,
                "",
                "You have exceeded a secondary rate limit.",
                Verdict::Wait(None),
            );
            check(step, 400, "TOOMANYREQUESTS", "Rate exceeded", Verdict::Wait(None));
            check(
                step,
                403,
                "DENIED",
                "toomanyrequests: slow down",
                Verdict::Wait(None),
            );
        }
    }

    /// Registries quote the repository, which people name as they like.
    #[test]
    fn a_repository_that_is_missing_is_no_quota_whatever_its_name_is() {
        let words = "The repository with name 'hub/quota' does not exist in the registry with id '1'";
        for step in [Step::Begin, Step::Manifest(PLAIN)] {
            check(
                step,
                404,
                "NAME_UNKNOWN",
                words,
                Verdict::Never(Reason::RepositoryMissing),
            );
        }
    }

    #[test]
    fn a_word_that_stands_in_the_image_s_own_name_says_nothing() {
        let denied = "access to repository envoyproxy/RateLimit denied";
        let forbidden = Verdict::Never(Reason::PushForbidden);
        let asked = "/v2/docker.io/envoyproxy/ratelimit/blobs/uploads/";
        check_asked(Step::Begin, asked, 403, "DENIED", denied, forbidden);
        check(Step::Begin, 403, "DENIED", denied, Verdict::Wait(None));
        check_asked(
            Step::Begin,
            asked,
            403,
            "",
            "a secondary rate limit",
            Verdict::Wait(None),
        );
        let tagged = Step::Manifest(PLAIN);
        let words = "tag 'read-only' of project/quota: denied";
        check_asked(
            tagged,
            "/v2/project/quota/manifests/read-only",
            403,
            "DENIED",
            words,
            forbidden,
        );
        check(
            tagged,
            403,
            "DENIED",
            words,
            Verdict::Never(Reason::QuotaExceeded),
        );
        // A code is the registry's own.
        let code = "LimitExceeded";
        let full = Verdict::Never(Reason::QuotaExceeded);
        check_asked(Step::Begin, "/v2/limitexceeded/", 403, code, "", full);
    }

    /// What registries in the field say of tags that may not be moved, quotas, read-only registries and policies.
    #[test]
    fn who_refuses_a_manifest_is_told_apart_by_its_words() {
        let by_tag = Step::Manifest(PLAIN);
        let never = Verdict::Never;
        for (status, code, words) in [
            (
                412,
                "PRECONDITION",
                "Failed to process request due to 'x' configured as immutable.",
            ),
            (409, "TAG_IMMUTABLE", "manifest tag is immutable"),
            (400, "", "Repository does not allow updating assets: main"),
            (403, "MANIFEST_INVALID", "manifest invalid"),
            (
                400,
                "TAG_INVALID",
                "The image tag '1' already exists in the 'a' repository and cannot be overwritten because the tag is immutable.",
            ),
            (
                405,
                "UNSUPPORTED",
                "The operation is disallowed on this registry, repository or image.",
            ),
        ] {
            check(by_tag, status, code, words, never(Reason::TagImmutable));
        }
        check(
            by_tag,
            403,
            "DENIED",
            "adding 3 bytes will exceed the configured upper limit quota",
            never(Reason::QuotaExceeded),
        );
        check(
            by_tag,
            405,
            "UNSUPPORTED",
            "the operation is unsupported",
            never(Reason::MirrorReadOnly),
        );
        check(
            by_tag,
            412,
            "PRECONDITION",
            "current image with 3 vulnerabilities cannot be pushed",
            never(Reason::PolicyRefused),
        );
        check(
            by_tag,
            403,
            "DENIED",
            "requested access to the resource is denied",
            never(Reason::PushForbidden),
        );
        check(
            by_tag,
            415,
            "MANIFEST_INVALID",
            "",
            never(Reason::MediaTypeRefused),
        );
        check(
            by_tag,
            400,
            "UNSUPPORTED",
            "Invalid JSON syntax",
            never(Reason::MediaTypeRefused),
        );
        check(by_tag, 401, "UNAUTHORIZED", "", never(Reason::Unauthorized));
        check(by_tag, 404, "NAME_UNKNOWN", "", never(Reason::RepositoryMissing));
        check(by_tag, 400, "NAME_INVALID", "", never(Reason::NameNotAllowed));
        check(by_tag, 413, "", "", never(Reason::ManifestRefused));
        check(
            by_tag,
            400,
            "MANIFEST_INVALID",
            "",
            never(Reason::ManifestRefused),
        );
        check(by_tag, 404, "MANIFEST_BLOB_UNKNOWN", "", Verdict::Incomplete);
        check(by_tag, 400, "MANIFEST_BLOB_UNKNOWN", "", Verdict::Incomplete);
        check(
            by_tag,
            500,
            "UNKNOWN",
            "",
            Verdict::Again(Reason::MirrorNotWritable),
        );
    }

    #[test]
    fn what_a_manifest_is_tells_what_is_meant() {
        let never = Verdict::Never;
        let sparse = Step::Manifest(Manifest {
            is_sparse: true,
            ..PLAIN
        });
        for (status, code) in [
            (404, "MANIFEST_UNKNOWN"),
            (400, "MANIFEST_BLOB_UNKNOWN"),
            (404, ""),
        ] {
            check(sparse, status, code, "", never(Reason::SparseIndexRefused));
        }
        let foreign = Step::Manifest(Manifest {
            names_foreign: true,
            ..PLAIN
        });
        check(foreign, 500, "UNKNOWN", "", never(Reason::ForeignLayersRefused));
        check(
            foreign,
            400,
            "MANIFEST_BLOB_UNKNOWN",
            "",
            never(Reason::ForeignLayersRefused),
        );
        let long = Step::Manifest(Manifest {
            algorithm: Algorithm::Sha512,
            ..PLAIN
        });
        check(
            long,
            400,
            "DIGEST_INVALID",
            "",
            never(Reason::DigestAlgorithmRefused),
        );
    }

    #[test]
    fn uploads_begin_anew_come_in_pieces_or_end() {
        let (begin, upload, never) = (Step::Begin, Step::Upload, Verdict::Never);
        check(Step::Look, 403, "DENIED", "", never(Reason::PushForbidden));
        check(begin, 405, "UNSUPPORTED", "", never(Reason::MirrorReadOnly));
        check(
            begin,
            403,
            "DENIED",
            "project is a proxy cache",
            never(Reason::MirrorReadOnly),
        );
        check(begin, 403, "DENIED", "", never(Reason::PushForbidden));
        check(begin, 404, "NAME_UNKNOWN", "", never(Reason::RepositoryMissing));
        check(
            begin,
            500,
            "UNKNOWN",
            "",
            Verdict::Again(Reason::MirrorNotWritable),
        );
        check(upload, 413, "", "<html>", Verdict::TooLarge);
        check(upload, 416, "", "request body is too large", Verdict::TooLarge);
        check(upload, 416, "RANGE_INVALID", "", Verdict::UploadGone);
        check(upload, 404, "BLOB_UPLOAD_UNKNOWN", "", Verdict::UploadGone);
        check(
            upload,
            400,
            "BLOB_UPLOAD_INVALID",
            "cannot be updated",
            Verdict::UploadGone,
        );
        check(
            upload,
            400,
            "DIGEST_INVALID",
            "",
            Verdict::Again(Reason::DigestMismatch),
        );
        check(
            upload,
            403,
            "DENIED",
            "quota exceeded",
            never(Reason::QuotaExceeded),
        );
        check(upload, 504, "", "", Verdict::Again(Reason::MirrorNotWritable));
    }
}
