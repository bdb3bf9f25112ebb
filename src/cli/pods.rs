//! The running Pods of a cluster, page by page.

use anyhow::Context as _;
use kube::Client;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::pages::Pages;
use crate::{
    domain::pod::{Pod, RUNNING},
    webhook,
};

/// The pages of the list of running Pods.
pub(super) struct RunningPods(Pages);

/// One page, as the API server wrote it.
pub(super) struct Page(String);

/// A Pod of a page.
pub(super) struct Item<'a> {
    pub(super) namespace: &'a str,
    pub(super) text: &'a str,
}

#[derive(Deserialize)]
struct Items<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
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

impl RunningPods {
    /// Returns the Pods of one namespace or, with none, of all.
    pub(super) fn new(client: &Client, namespace: Option<&str>) -> Self {
        Self(Pages::new(client, "pods", namespace, RUNNING))
    }

    /// Returns the next page; none after the last one.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Page>> {
        Ok(self.0.next().await?.map(Page))
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
