//! Every name that stands on Pods and Namespaces. They are an interface: a name once given stays.

/// Label of namespaces and Pods: `enforce`, `warn`, `audit` or `off`.
pub const MODE_LABEL: &str = "kagami.dev/mode";

/// Annotation of Pods: JSON, place → outcome, reason and mirror.
pub const DECISIONS_ANNOTATION: &str = "kagami.dev/decisions";

/// Prefix of the Pod annotations that keep a container's image as the user wrote it; the
/// container's name follows.
pub const ORIGINAL_IMAGE_PREFIX: &str = "original-image.kagami.dev/";

/// Prefix of the Pod annotations that keep an image volume's reference as the user wrote it; the
/// volume's name follows.
pub const ORIGINAL_VOLUME_PREFIX: &str = "original-volume.kagami.dev/";

/// Name of the Secret, one in each served namespace, with which kubelets pull from mirrors.
pub const PULL_SECRET: &str = "kagami-pull";

/// Label by which such a Secret is known as Kagami's; its value is `true`. One without it is somebody else's.
pub const PULL_SECRET_LABEL: &str = "kagami.dev/pull-secret";

/// Annotation of Pods: JSON, place → the image that it was turned from, the one that it was turned to, and when.
pub const RESCUED_ANNOTATION: &str = "kagami.dev/rescued";

/// Annotation of the object by which a kubelet shows a static Pod. What stands in its spec is not what runs.
pub const STATIC_POD_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// How long the name of a namespace may be (RFC 1123, as the API server has it). Whoever reaches the admission endpoint
/// may write anything in its place.
pub const NAMESPACE_LIMIT: usize = 63;
