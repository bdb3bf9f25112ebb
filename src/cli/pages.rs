//! A list of the API server's, page by page.

use anyhow::Context as _;
use kube::{Client, api::ListParams, core::Request};
use serde::Deserialize;

/// How many objects a page has at most.
const PAGE: u32 = 500;

/// The pages of the list of a resource of the core group.
pub(super) struct Pages {
    client: Client,
    resource: &'static str,
    path: String,
    /// None after the last page.
    next: Option<ListParams>,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    metadata: ListMetadata,
}

#[derive(Default, Deserialize)]
struct ListMetadata {
    #[serde(default, rename = "continue")]
    next: String,
}

impl Pages {
    /// Returns what a field selector selects in one namespace or, with none, in all.
    pub(super) fn new(
        client: &Client,
        resource: &'static str,
        namespace: Option<&str>,
        fields: &str,
    ) -> Self {
        let path = namespace.map_or_else(
            || format!("/api/v1/{resource}"),
            |namespace| format!("/api/v1/namespaces/{namespace}/{resource}"),
        );
        Self {
            client: client.clone(),
            resource,
            path,
            next: Some(ListParams::default().limit(PAGE).fields(fields)),
        }
    }

    /// Returns the next page, as the API server wrote it; none after the last one.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        let Some(parameters) = self.next.take() else {
            return Ok(None);
        };
        let resource = self.resource;
        let request = Request::new(&self.path).list(&parameters)?;
        let answer = self.client.request_text(request).await;
        let text = answer.with_context(|| format!("cannot read {resource}"))?;
        let list: List =
            serde_json::from_str(&text).with_context(|| format!("the list of {resource} cannot be read"))?;
        if !list.metadata.next.is_empty() {
            self.next = Some(parameters.continue_token(&list.metadata.next));
        }
        Ok(Some(text))
    }
}
