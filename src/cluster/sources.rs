//! What is read from the API server, and how soon a change of it must be known.

use std::time::Duration;

use super::watch::{Source, named};
use crate::{
    api::{HEALTH_LEASE, ORIGINALS_CONFIG_MAP, OWNERS_CONFIG_MAP, PROBE_SECRET, PULL_SECRET},
    domain::pod::RUNNING,
};

/// How long one watch request lasts where what it tells must be known soon. Watches are cheap to
/// renew, and that is how a dead connection is noticed.
const SOON: Duration = Duration::from_secs(15);

/// The same where later will do.
const LATER: Duration = Duration::from_mins(1);

/// How many objects a page has where a list is taken in pages: of Pods that is some megabytes.
const PAGE: Option<u32> = Some(500);

pub fn mirrors() -> Source {
    Source {
        name: "imagemirrors",
        path: "/apis/kagami.dev/v1alpha1/imagemirrors".to_owned(),
        fields: None,
        metadata_only: false,
        page: PAGE,
        dispensable: false,
        renew: SOON,
    }
}

pub fn images() -> Source {
    Source {
        name: "mirroredimages",
        path: "/apis/kagami.dev/v1alpha1/mirroredimages".to_owned(),
        fields: None,
        metadata_only: false,
        // They are small and many: one list of all costs an API server about half of what a stream does.
        page: None,
        // Where nothing changes, only the end of a request tells how far the watch has come; until then no
        // sweep of a new leader is believed.
        dispensable: false,
        renew: SOON,
    }
}

pub fn namespaces() -> Source {
    Source {
        name: "namespaces",
        path: "/api/v1/namespaces".to_owned(),
        fields: None,
        metadata_only: true,
        page: PAGE,
        dispensable: false,
        renew: LATER,
    }
}

pub fn nodes() -> Source {
    Source {
        name: "nodes",
        path: "/api/v1/nodes".to_owned(),
        fields: None,
        metadata_only: true,
        page: PAGE,
        dispensable: false,
        renew: LATER,
    }
}

/// The Secrets of Kagami's own namespace.
pub fn secrets(namespace: &str) -> Source {
    Source {
        name: "secrets",
        path: format!("/api/v1/namespaces/{namespace}/secrets"),
        fields: None,
        metadata_only: false,
        page: PAGE,
        dispensable: false,
        renew: SOON,
    }
}

/// The Pods that run. One that is done is told as deleted.
pub fn pods() -> Source {
    Source {
        name: "pods",
        path: "/api/v1/pods".to_owned(),
        fields: Some(RUNNING.to_owned()),
        metadata_only: false,
        page: PAGE,
        dispensable: false,
        renew: SOON,
    }
}

/// The heartbeat, in Kagami's own namespace.
pub fn lease(namespace: &str) -> Source {
    Source {
        name: "lease",
        path: format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
        fields: Some(named(HEALTH_LEASE)),
        metadata_only: false,
        page: PAGE,
        dispensable: false,
        renew: SOON,
    }
}

/// What is noted of owners that fight rewrites, in Kagami's own namespace.
pub fn owners(namespace: &str) -> Source {
    Source {
        name: "owners",
        path: format!("/api/v1/namespaces/{namespace}/configmaps"),
        fields: Some(named(OWNERS_CONFIG_MAP)),
        metadata_only: false,
        page: PAGE,
        dispensable: true,
        renew: SOON,
    }
}

/// The originals that Pods record, in Kagami's own namespace.
pub fn originals(namespace: &str) -> Source {
    Source {
        name: "originals",
        fields: Some(named(ORIGINALS_CONFIG_MAP)),
        ..owners(namespace)
    }
}

/// Where single objects are asked for; `metadata_only` is whether their metadata is enough.
pub fn one_of(path: String, metadata_only: bool) -> Source {
    Source {
        name: "owners",
        path,
        fields: None,
        metadata_only,
        page: PAGE,
        dispensable: false,
        renew: LATER,
    }
}

/// What stands in namespaces under the name of pull secrets. The right to list and watch objects of one name is held to
/// requests that select that name, in the whole cluster too (kubernetes v1.36, `apiserver/pkg/endpoints/request`).
pub fn pull_secrets() -> Source {
    Source {
        name: "pullsecrets",
        path: "/api/v1/secrets".to_owned(),
        fields: Some(named(PULL_SECRET)),
        metadata_only: false,
        page: PAGE,
        dispensable: false,
        renew: SOON,
    }
}

/// The read credentials of mirrors, in Kagami's own namespace; a webhook has them as files.
pub fn credentials(namespace: &str) -> Source {
    Source {
        name: "secrets",
        path: format!("/api/v1/namespaces/{namespace}/secrets"),
        fields: Some(named(PROBE_SECRET)),
        metadata_only: false,
        page: PAGE,
        dispensable: false,
        renew: LATER,
    }
}
