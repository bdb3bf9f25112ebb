//! The closed list of why an image was not copied, with what to change. Names that
//! [`crate::domain::reason`] has too mean the same.

use crate::domain::reason::closed_list;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $advice:literal,)+) => {
        closed_list! {
            /// Why an image, or what belongs to it, was not copied.
            Reason {
                $($(#[doc = $doc])+ $name,)+
            }
        }

        impl Reason {
            /// Returns what to change, for people.
            pub const fn advice(self) -> &'static str {
                match self {
                    $(Self::$name => $advice,)+
                }
            }
        }
    };
}

impl Reason {
    /// Returns the reason of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == name)
    }
}

reasons! {
    /// The image is no valid reference.
    InvalidReference => "write it as it stands in a Pod",
    /// The mirror has no source for this image.
    NoMirror => "add its registry to spec.sources of the mirror",
    /// The mirror's source excludes this image.
    Excluded => "spec.sources[].exclude of the mirror names it",
    /// The mirror's reference would be longer than references may be.
    NameTooLong => "a shorter spec.registry or spec.repository makes room",
    /// The mirror's registry refuses this name.
    NameNotAllowed => "another spec.repository of the mirror may be taken",
    /// Upstream does not hold this image.
    ImageMissing => "look at its name and tag; some registries say so of what needs a login",
    /// A part of the image is gone upstream, while its manifest is still there.
    ImageVanished => "upstream deleted a part of it; another tag may be whole",
    /// The image has a form that is not copied.
    UnsupportedManifest => "build it anew with a tool of today",
    /// The index lists nothing for the platforms that are wanted.
    PlatformMissing => "want other platforms, or all",
    /// The image is larger than is copied.
    ImageTooLarge => "spec.copy.maxImageSize of the mirror may be raised",
    /// As much was copied for the namespace within a day as may be.
    NamespaceLimitReached => "it is copied a day after the first of that; spec.copy.maxBytesPerDay of the mirror may be raised",
    /// Upstream gives the image to those who log in only, and its source is for everybody.
    Private => "spec.sources[].access: Private, with a namespaceSelector, says who may have it",
    /// What came is not what its digest promises.
    DigestMismatch => "its sender, or something on the way, changed it; nothing of it was kept",
    /// Upstream refused the credentials, or asks for some.
    SourceUnauthorized => "spec.sources[].credentials names a login for it; kagami copy takes one from a Docker configuration",
    /// The mirror refused the credentials, or asks for some.
    Unauthorized => "spec.copy.credentials names a login that may push; kagami copy takes one from a Docker configuration",
    /// The login may not push there.
    PushForbidden => "give it the right to push to this repository, and if the registry wants projects made first, make one",
    /// The repository is not there, and pushing does not make it.
    RepositoryMissing => "make the project or repository first, or let the registry make it on push",
    /// A registry, or its token service, asked to be asked less often, for longer than was waited.
    RateLimited => "try later; a login may have a higher limit",
    /// The mirror's registry does not write at all.
    MirrorReadOnly => "it is read-only, or a pull-through cache: mirrors of kind Hosted take copies",
    /// The mirror takes no uploads at the moment.
    MirrorNotWritable => "look at its disk and its log: a full disk shows so while reading goes on",
    /// The mirror's quota is used up.
    QuotaExceeded => "raise the quota of the project, or delete from it",
    /// The mirror refuses uploads of this size.
    BodyTooLarge => "raise what its proxy lets through (nginx: client_max_body_size)",
    /// The mirror lost an upload again and again.
    UploadLost => "are there several replicas without session affinity, without one http.secret or without shared storage?",
    /// The mirror says that it has a blob, and that it has not.
    MirrorInconsistent => "restart it if its garbage was collected (distribution keeps what it had in its cache)",
    /// The mirror does not take images of this media type.
    MediaTypeRefused => "zot: http.compat [docker2s2]; Quay: FEATURE_GENERAL_OCI_SUPPORT and ALLOWED_OCI_ARTIFACT_TYPES; distribution: policy.repository.classes",
    /// The mirror takes an index only together with all that it lists.
    SparseIndexRefused => "copy all platforms, or allow it (distribution v3: validation.manifests.indexes.platforms: none)",
    /// The mirror does not take layers that are kept elsewhere.
    ForeignLayersRefused => "distribution: validation.manifests.urls.allow",
    /// The mirror knows no such digest.
    DigestAlgorithmRefused => "copy by an sha256 digest, or to a registry that knows sha512",
    /// The mirror does not let the tag be moved.
    TagImmutable => "take away the immutability, or use the image by its digest, which is there",
    /// A policy of the mirror forbids it.
    PolicyRefused => "look at the policies of the project: scanning, signatures",
    /// The mirror refuses the manifest.
    ManifestRefused => "what it said tells why",
    /// What was pushed cannot be read back.
    NotReadBack => "the mirror took it and does not show it: look at its storage and caches",
    /// A registry cannot be reached, or does not go on.
    Unreachable => "look at its address, its certificate and the way to it",
    /// A registry's answer proves nothing.
    RegistryError => "look at the registry's log",
    /// A fault inside Kagami.
    Internal => "tell the makers of Kagami",
}
