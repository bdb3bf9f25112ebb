//! An image of an upstream registry that a mirror holds as well, and Kagami, installed by its chart.

use serde_json::Value;

use super::{
    chart::Use,
    images::{self, FOREVER},
    kagami::{Mirrored, image_mirror},
    pods::until_rewritten,
    registry::Registry,
};
use crate::shared::{
    cluster::Namespace,
    companion::{wait_for_health, wait_for_image},
    images::Image,
};

const REPOSITORY: &str = "team/web";
const TAG: &str = "1";

#[derive(Debug)]
pub(crate) struct Scene<'a> {
    /// Opted in.
    pub(crate) namespace: Namespace<'a>,
    pub(crate) upstream: Registry,
    pub(crate) mirror: Registry,
    /// What users write, and what becomes of it.
    pub(crate) written: [String; 1],
    pub(crate) mirrored: [String; 1],
    image: Image,
    digest: String,
    // Dropped in this order.
    _mirrored: Mirrored<'a>,
    pub(crate) kagami: Use<'a>,
}

impl<'a> Scene<'a> {
    /// Waits until the image is rewritten. `change` may change the ImageMirror's spec before it is created.
    pub(crate) fn new(kagami: Use<'a>, name: &str, change: impl FnOnce(&mut Value)) -> Self {
        let cluster = &kagami.node.cluster;
        let upstream = Registry::start(kagami.node, &format!("up.{name}.test"));
        let mirror = Registry::start(kagami.node, &format!("mirror.{name}.test"));
        let image = images::shell(name, FOREVER);
        let digest = upstream.push(cluster, REPOSITORY, TAG, &image);
        let mut object = image_mirror(kagami.node, &mirror, &[&upstream.host()]);
        change(&mut object["spec"]);
        let written = format!("{}/{REPOSITORY}:{TAG}", upstream.host());
        let scene = Self {
            namespace: cluster.namespace(Some("enforce")),
            mirrored: [format!("{}/{written}", mirror.host())],
            written: [written],
            image,
            digest,
            _mirrored: Mirrored::new(kagami.node, &object),
            upstream,
            mirror,
            kagami,
        };
        scene.push_to_mirror();
        until_rewritten(&scene.namespace, &scene.written, &scene.mirrored);
        scene
    }

    /// Pushes the image to the mirror.
    pub(crate) fn push_to_mirror(&self) {
        let cluster = &self.kagami.node.cluster;
        let digest = self.mirror.push(cluster, &self.repository(), TAG, &self.image);
        assert_eq!(digest, self.digest);
    }

    /// The image by its digest, as users write it and as the mirror has it.
    pub(crate) fn by_digest(&self) -> [String; 2] {
        [&self.written, &self.mirrored].map(|[image]| {
            let (name, _) = image.rsplit_once(':').unwrap();
            format!("{name}@{}", self.digest)
        })
    }

    /// The mirror answers with something else when asked for the digest: the same manifest, with a space more.
    pub(crate) fn swap_on_mirror(&self) {
        let other = [&self.image.manifest[..], b" "].concat();
        self.mirror.answer_with(&self.digest, &other);
    }

    /// Deletes the image from the mirror.
    pub(crate) fn delete_from_mirror(&self) {
        let cluster = &self.kagami.node.cluster;
        self.mirror.delete(cluster, &self.repository(), &self.digest);
    }

    /// Waits until the companion has shared that the mirror holds the image, because a Pod uses it.
    pub(crate) fn until_known(&self) {
        self.until_image(&self.written[0], "Present");
    }

    /// Waits until the companion has shared this of an image, as users write it.
    pub(crate) fn until_image(&self, image: &str, presence: &str) {
        wait_for_image(&self.kagami.node.cluster, &self.mirror.name, image, presence);
    }

    /// Waits until the companion has shared this of the mirror's health.
    pub(crate) fn until_health(&self, state: &str) {
        wait_for_health(&self.kagami.node.cluster, &self.mirror.name, state);
    }

    /// The image without its tag, as users write it and as the mirror has it.
    pub(crate) fn repository(&self) -> String {
        format!("{}/{REPOSITORY}", self.upstream.host())
    }
}
