//! What is read from the API server, and how soon a change of it must be known.

use std::time::Duration;

use super::watch::Source;
use crate::api::{HEALTH_LEASE, PROBE_SECRET};

/// How long one watch request lasts where what it tells must be known soon. Watches are cheap to
/// renew, and that is how a dead connection is noticed.
const SOON: Duration = Duration::from_secs(15);

/// The same where later will do.
const LATER: Duration = Duration::from_mins(1);

pub fn mirrors() -> Source {
    Source {
        name: "imagemirrors",
        path: "/apis/kagami.dev/v1alpha1/imagemirrors".to_owned(),
        only: None,
        metadata_only: false,
        renew: SOON,
    }
}

pub fn images() -> Source {
    Source {
        name: "mirroredimages",
        path: "/apis/kagami.dev/v1alpha1/mirroredimages".to_owned(),
        only: None,
        metadata_only: false,
        // Where nothing changes, only the end of a request tells how far the watch has come; until then no
        // sweep of a new leader is believed.
        renew: SOON,
    }
}

pub fn namespaces() -> Source {
    Source {
        name: "namespaces",
        path: "/api/v1/namespaces".to_owned(),
        only: None,
        metadata_only: true,
        renew: LATER,
    }
}

/// The heartbeat, in Kagami's own namespace.
pub fn lease(namespace: &str) -> Source {
    Source {
        name: "lease",
        path: format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
        only: Some(HEALTH_LEASE.to_owned()),
        metadata_only: false,
        renew: SOON,
    }
}

/// The read credentials of mirrors, in Kagami's own namespace; a webhook has them as files.
pub fn credentials(namespace: &str) -> Source {
    Source {
        name: "secrets",
        path: format!("/api/v1/namespaces/{namespace}/secrets"),
        only: Some(PROBE_SECRET.to_owned()),
        metadata_only: false,
        renew: LATER,
    }
}
