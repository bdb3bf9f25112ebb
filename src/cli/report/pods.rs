//! The running Pods of a cluster, page by page.

use anyhow::Context as _;
use kube::{Client, api::ListParams, core::Request};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    domain::pod::{Pod, RUNNING},
    webhook,
};

/// How many Pods a page has at most.
const PAGE: u32 = 500;

/// The pages of the list of running Pods.
pub(super) struct Pages {
    client: Client,
    path: String,
    /// None after the last page.
    next: Option<ListParams>,
}

/// One page, as the API server wrote it.
pub(super) struct Page(String);

/// A Pod of a page.
pub(super) struct Item<'a> {
    pub(super) namespace: &'a str,
    text: &'a str,
}

#[derive(Deserialize)]
struct Items<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
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

#[derive(Deserialize)]
struct Outline<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    // The names of namespaces have nothing that JSON escapes.
    #[serde(borrow)]
    namespace: &'a str,
}

impl Pages {
    /// Returns the Pods of one namespace or, with none, of all.
    pub(super) fn new(client: &Client, namespace: Option<&str>) -> Self {
        let path = namespace.map_or_else(
            || "/api/v1/pods".to_owned(),
            |namespace| format!("/api/v1/namespaces/{namespace}/pods"),
        );
        Self {
            client: client.clone(),
            path,
            next: Some(ListParams::default().limit(PAGE).fields(RUNNING)),
        }
    }

    /// Returns the next page; none after the last one.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Page>> {
        let Some(parameters) = self.next.take() else {
            return Ok(None);
        };
        let request = Request::new(&self.path).list(&parameters)?;
        let answer = self.client.request_text(request).await;
        let text = answer.map_err(|error| match error {
            // Its message says everything; the chain would say it twice.
            kube::Error::Api(status) => {
                anyhow::anyhow!("cannot read pods: {} ({})", status.message, status.code)
            }
            error => anyhow::Error::new(error).context("cannot read pods"),
        })?;
        let list: List = serde_json::from_str(&text).context("the list of Pods cannot be read")?;
        if !list.metadata.next.is_empty() {
            self.next = Some(parameters.continue_token(&list.metadata.next));
        }
        Ok(Some(Page(text)))
    }
}

impl Page {
    pub(super) fn pods(&self) -> anyhow::Result<Vec<Item<'_>>> {
        let Items { items } = serde_json::from_str(&self.0)?;
        let mut pods = Vec::with_capacity(items.len());
        for raw in items {
            let outline: Outline<'_> =
                serde_json::from_str(raw.get()).context("a Pod without a namespace")?;
            pods.push(Item {
                namespace: outline.metadata.namespace,
                text: raw.get(),
            });
        }
        Ok(pods)
    }
}

impl<'a> Item<'a> {
    /// Returns the Pod as admission reads it.
    pub(super) fn pod(&self) -> Option<Pod<'a>> {
        webhook::read_pod(self.text)
    }
}
