//! The closed lists of outcomes and reasons. They stand on Pods, in audit logs and as metric
//! labels, so they are an interface: a name once given stays.

use std::fmt;

/// What happens to one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The mirror's reference was written.
    Rewritten,
    /// It would have been, but the effective mode is warn or audit.
    WouldRewrite,
    /// The image stays as written.
    Kept,
}

/// Makes a closed list of names: an enum whose names are what users see, and whose documentation is one sentence for
/// people.
macro_rules! closed_list {
    ($(#[doc = $about:literal])+ $list:ident { $($(#[doc = $doc:literal])+ $name:ident,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $list {
            $($(#[doc = $doc])+ $name,)+
        }

        impl $list {
            /// Every one, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Returns the name as users see it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }

            /// Returns one sentence for people.
            pub const fn explanation(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }

        impl std::fmt::Display for $list {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

pub(in crate::domain) use closed_list;

closed_list! {
    /// Why an image is rewritten or kept.
    Reason {
        /// The mirror is healthy and the manifest was seen there, recently enough.
        Mirrored,
        /// The image already names a mirror.
        AlreadyMirrored,
        /// No mirror has a source for this image.
        NoMirror,
        /// The mirror's source excludes this image.
        Excluded,
        /// The mirror does not serve this namespace, or another one keeps the image for the namespaces that it serves.
        NamespaceNotServed,
        /// The mirror, the namespace or the Pod is switched off.
        ModeOff,
        /// The brake is on: nothing is rewritten in the whole cluster.
        Paused,
        /// The mirror fails its health checks.
        MirrorUnhealthy,
        /// The mirror takes longer to answer than it usually does, or just failed once; it is being asked again.
        MirrorSuspected,
        /// The mirror's health is not known yet.
        MirrorUnknown,
        /// The shared state is too old to be believed.
        StateStale,
        /// The mirror does not hold this image.
        ImageMissing,
        /// Nobody has looked for this image on the mirror yet, or not recently enough.
        ImageUnknown,
        /// The tag means another image upstream than on the mirror.
        ImageMoved,
        /// The mirror answered with another digest than asked for.
        DigestMismatch,
        /// The mirror holds this image, but not for a platform that the Pod
        /// may land on, as far as is known.
        PlatformMissing,
        /// Upstream does not give this image to everybody.
        Private,
        /// The mirror refused Kagami's credentials, or asks for some.
        Unauthorized,
        /// The mirror, or its token service, asked to be asked less often.
        RateLimited,
        /// The mirror's answer proves nothing.
        RegistryError,
        /// The answer did not come within the review's time budget.
        BudgetExhausted,
        /// The mirror needs a pull secret that is not in place in this namespace.
        PullSecretNotReady,
        /// The pull policy is Never: nothing is pulled.
        PullNever,
        /// The mirror is used only while upstream fails, and upstream works.
        UpstreamPreferred,
        /// The Pod's owner compares images and would fight a rewrite.
        OwnerExcluded,
        /// The Pod's owner kept recreating rewritten Pods.
        OwnerLoop,
        /// The mirror's reference would be longer than references may be.
        NameTooLong,
        /// The Pod names too many images, or it or its annotations would become too large.
        PodTooLarge,
        /// The image is no valid reference, or one that cannot be proven.
        InvalidReference,
        /// The image is a placeholder that an injector replaces before anybody pulls.
        Placeholder,
        /// A fault inside Kagami.
        Internal,
    }
}

impl Reason {
    /// Returns the reason of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == name)
    }
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 3] = [Self::Rewritten, Self::WouldRewrite, Self::Kept];

    /// Returns the outcome's name as users see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rewritten => "Rewritten",
            Self::WouldRewrite => "WouldRewrite",
            Self::Kept => "Kept",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
