//! What each registry is asked for: an image, what becomes of it, and when it is asked for.

use kagami::domain::{
    answer::MediaType,
    digest::{Algorithm, Digest},
};
use reqwest::{Method, StatusCode, header};
use serde_json::json;
use sha2::Digest as _;

use super::makes::Place;
use crate::support::images::{self, Image, Target};

/// A row of the table.
pub struct Row {
    pub what: &'static str,
    /// The image's name without tag and digest. Its first part tells which mirror it is mapped to.
    pub repository: &'static str,
    content: Content,
    form: Form,
    pub fate: Fate,
    /// When its cell is read.
    pub stage: Stage,
    /// Whether it is asked for in the stages before as well.
    pub known: bool,
    /// Whether only a health check that comes upon it can tell what became of it in a pull-through cache.
    pub by_chance: bool,
}

/// What is in the repository to begin with.
#[derive(Clone, Copy)]
enum Content {
    Nothing,
    Image(MediaType),
    Artifact,
    /// An image under its SHA-512.
    Sha512,
    /// An image without a tag.
    Untagged,
}

/// How a Pod names it.
#[derive(Clone, Copy)]
enum Form {
    Tag,
    Digest,
    Both,
    /// A tag that is not there, in a repository that is.
    OtherTag,
    OtherDigest,
}

/// What happens to it, at the beginning of its stage.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Stays,
    LosesArm64,
    LosesAllPlatforms,
    LosesLayer,
    TagMoves,
    IsDeleted,
}

/// What has happened to the registry when a cell is read, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Stocked,
    /// Tags were moved and images deleted.
    Changed,
    /// Its own garbage collection has run.
    Collected,
    /// The registry is dead; of a pull-through cache its upstream.
    Dead,
}

impl Stage {
    pub const ALL: [Self; 4] = [Self::Stocked, Self::Changed, Self::Collected, Self::Dead];
}

const OCI: Content = Content::Image(MediaType::OciManifest);
const INDEX: Content = Content::Image(MediaType::OciIndex);
const LIST: Content = Content::Image(MediaType::DockerList);

const PLATFORMS: [&str; 2] = ["amd64", "arm64"];
const TAG: &str = "1";

/// The row that tells what Kagami thinks of the mirror itself, in the last stage.
pub const HEALTH: &str = "dead: the mirror's health";

/// Every row but that one.
pub const ROWS: &[Row] = &[
    row("image, by tag", "docker.io/makes/tag", OCI, Form::Tag),
    row("image, by digest", "docker.io/makes/digest", OCI, Form::Digest),
    row(
        "image, by tag and digest",
        "docker.io/makes/both",
        OCI,
        Form::Both,
    ),
    row("index, by tag", "docker.io/makes/index", INDEX, Form::Tag),
    row(
        "index, by digest",
        "docker.io/makes/index-digest",
        INDEX,
        Form::Digest,
    ),
    row(
        "Docker image, by tag",
        "docker.io/makes/docker",
        Content::Image(MediaType::DockerManifest),
        Form::Tag,
    ),
    row("Docker list, by tag", "docker.io/makes/list", LIST, Form::Tag),
    row(
        "artifact, by tag",
        "docker.io/makes/artifact",
        Content::Artifact,
        Form::Tag,
    ),
    row("path of nine parts", "docker.io/a/b/c/d/e/f/g/h", OCI, Form::Tag),
    row(
        "name with `__` and `--`",
        "docker.io/makes/a__b--c",
        OCI,
        Form::Tag,
    ),
    row(
        "image, by SHA-512",
        "docker.io/makes/sha512",
        Content::Sha512,
        Form::Digest,
    ),
    row("absent tag", "docker.io/makes/absent-tag", OCI, Form::OtherTag),
    row(
        "absent digest",
        "docker.io/makes/absent-digest",
        OCI,
        Form::OtherDigest,
    ),
    row(
        "absent repository",
        "docker.io/makes/absent",
        Content::Nothing,
        Form::Tag,
    ),
    row(
        "absent name with `__` and `--`",
        "docker.io/makes/absent__b--c",
        Content::Nothing,
        Form::Tag,
    ),
    row(
        "absent first part",
        "mcr.microsoft.com/makes/absent",
        Content::Nothing,
        Form::Tag,
    ),
    row(
        "index without its arm64 image",
        "docker.io/makes/half",
        INDEX,
        Form::Tag,
    )
    .that(Fate::LosesArm64),
    row(
        "index without any image",
        "docker.io/makes/hollow",
        INDEX,
        Form::Tag,
    )
    .that(Fate::LosesAllPlatforms)
    .by_chance(),
    row("image without its layer", "docker.io/makes/layer", OCI, Form::Tag).that(Fate::LosesLayer),
    row("right password", "quay.io/makes/locked", OCI, Form::Tag),
    row("no password", "ghcr.io/makes/locked", OCI, Form::Tag),
    row("wrong password", "registry.k8s.io/makes/locked", OCI, Form::Tag),
    row("changed: tag that moved", "docker.io/makes/moved", OCI, Form::Tag)
        .that(Fate::TagMoves)
        .at(Stage::Changed, true),
    row(
        "changed: digest that the tag moved from",
        "docker.io/makes/moved-from",
        OCI,
        Form::Digest,
    )
    .that(Fate::TagMoves)
    .at(Stage::Changed, true),
    row(
        "changed: deleted image, known before",
        "docker.io/makes/deleted",
        OCI,
        Form::Tag,
    )
    .that(Fate::IsDeleted)
    .at(Stage::Changed, true),
    row(
        "changed: deleted image, new",
        "docker.io/makes/deleted-new",
        OCI,
        Form::Tag,
    )
    .that(Fate::IsDeleted)
    .at(Stage::Changed, false),
    row(
        "collected: image, by tag",
        "docker.io/makes/swept",
        OCI,
        Form::Tag,
    )
    .at(Stage::Collected, false),
    row(
        "collected: index, known before",
        "docker.io/makes/swept-index",
        INDEX,
        Form::Tag,
    )
    .at(Stage::Collected, true),
    row(
        "collected: index, new",
        "docker.io/makes/swept-new",
        INDEX,
        Form::Tag,
    )
    .at(Stage::Collected, false)
    .by_chance(),
    row(
        "collected: Docker list, new",
        "docker.io/makes/swept-list",
        LIST,
        Form::Tag,
    )
    .at(Stage::Collected, false)
    .by_chance(),
    row(
        "collected: image without a tag",
        "docker.io/makes/swept-untagged",
        Content::Untagged,
        Form::Digest,
    )
    .at(Stage::Collected, false),
    row(
        "dead: known image, by tag",
        "docker.io/makes/known",
        OCI,
        Form::Tag,
    )
    .at(Stage::Dead, true),
    row(
        "dead: known image, by digest",
        "docker.io/makes/known-digest",
        OCI,
        Form::Digest,
    )
    .at(Stage::Dead, true),
    row("dead: new image, by tag", "docker.io/makes/new", OCI, Form::Tag).at(Stage::Dead, false),
    row(
        "dead: new image, by digest",
        "docker.io/makes/new-digest",
        OCI,
        Form::Digest,
    )
    .at(Stage::Dead, false),
];

const fn row(what: &'static str, repository: &'static str, content: Content, form: Form) -> Row {
    Row {
        what,
        repository,
        content,
        form,
        fate: Fate::Stays,
        stage: Stage::Stocked,
        known: false,
        by_chance: false,
    }
}

/// An image that is in its place, as Pods and nodes name it.
pub struct Stocked {
    pub row: &'static Row,
    image: Option<Image>,
    /// Tag or digest by which a node asks.
    pub reference: String,
    /// The image in a Pod.
    pub name: String,
}

impl Row {
    const fn that(mut self, fate: Fate) -> Self {
        self.fate = fate;
        self
    }

    const fn at(mut self, stage: Stage, known: bool) -> Self {
        self.stage = stage;
        self.known = known;
        self
    }

    const fn by_chance(mut self) -> Self {
        self.by_chance = true;
        self
    }

    /// Whether it is asked for in a stage.
    pub fn is_asked_at(&self, stage: Stage) -> bool {
        self.stage == stage || self.known && stage < self.stage
    }

    fn image(&self) -> Option<Image> {
        match self.content {
            Content::Nothing => None,
            Content::Image(media_type) if media_type.is_index() => {
                Some(images::index(media_type, &PLATFORMS, self.repository))
            }
            Content::Image(media_type) => Some(images::single(media_type, self.repository)),
            Content::Artifact => Some(images::chart(self.repository)),
            Content::Sha512 | Content::Untagged => {
                Some(images::single(MediaType::OciManifest, self.repository))
            }
        }
    }

    /// Puts it where it belongs; none if the registry does not take such a thing.
    pub async fn stock(&'static self, place: &Place) -> Option<Stocked> {
        let image = self.image();
        let target = place.target(self.repository);
        let mut digest = image.as_ref().map(|image| image.digest.to_string());
        if let Some(image) = &image {
            let uploads = format!("/v2/{}/blobs/uploads/", self.repository);
            if status(&target, Method::POST, &uploads).await != StatusCode::ACCEPTED {
                return None;
            }
            let under = match self.content {
                Content::Sha512 | Content::Untagged => image.digest.to_string(),
                _ => TAG.to_owned(),
            };
            target.push(self.repository, &under, image).await;
            if under != TAG {
                // Version 2.8 collects no garbage at all if one repository never had a tag.
                let beside = images::single(image.media_type, &format!("{} beside", self.repository));
                target.push(self.repository, TAG, &beside).await;
            }
        }
        if let (Content::Sha512, Some(image)) = (self.content, &image) {
            let hash = sha2::Sha512::digest(&image.manifest);
            let long = Digest::from_hash(Algorithm::Sha512, &hash).unwrap().to_string();
            let path = format!("{}/v2/{}/manifests/{long}", target.url, self.repository);
            let put = target
                .request(Method::PUT, &path)
                .header(header::CONTENT_TYPE, image.media_type.as_str())
                .body(image.manifest.clone());
            if put.send().await.unwrap().status() != StatusCode::CREATED {
                return None;
            }
            digest = Some(long);
        }
        let digest = digest.unwrap_or_default();
        let zeros = format!("sha256:{}", "0".repeat(64));
        let (reference, suffix) = match self.form {
            Form::Tag => (TAG.to_owned(), format!(":{TAG}")),
            Form::Digest => (digest.clone(), format!("@{digest}")),
            Form::Both => (digest.clone(), format!(":{TAG}@{digest}")),
            Form::OtherTag => ("absent".to_owned(), ":absent".to_owned()),
            Form::OtherDigest => (zeros.clone(), format!("@{zeros}")),
        };
        Some(Stocked {
            row: self,
            image,
            reference,
            name: format!("{}{suffix}", self.repository),
        })
    }
}

impl Stocked {
    /// Lets happen to it what is to happen; false if the registry offers no way.
    pub async fn befall(&self, place: &Place) -> bool {
        let target = place.target(self.row.repository);
        let Some(image) = &self.image else { return true };
        let delete = async |kind: &str, digest: &Digest| {
            let path = format!("/v2/{}/{kind}/{digest}", self.row.repository);
            status(&target, Method::DELETE, &path).await == StatusCode::ACCEPTED
        };
        match self.row.fate {
            Fate::Stays => true,
            Fate::LosesArm64 => delete("manifests", &image.children[1].digest).await,
            Fate::LosesAllPlatforms => {
                delete("manifests", &image.children[0].digest).await
                    && delete("manifests", &image.children[1].digest).await
            }
            Fate::LosesLayer => delete("blobs", &images::digest(&image.blobs[1])).await,
            Fate::IsDeleted => delete("manifests", &image.digest).await,
            Fate::TagMoves => {
                let other = images::single(image.media_type, &format!("{} moved", self.row.repository));
                target.push(self.row.repository, TAG, &other).await;
                true
            }
        }
    }
}

async fn status(target: &Target, method: Method, path: &str) -> StatusCode {
    let request = target.request(method, &format!("{}{path}", target.url));
    request.body(Vec::new()).send().await.unwrap().status()
}

/// What an index or image names, for those who pull.
pub fn named_by(manifest: &serde_json::Value) -> Vec<(&'static str, String)> {
    let digest =
        |descriptor: &serde_json::Value| descriptor["digest"].as_str().unwrap_or_default().to_owned();
    if let Some(entries) = manifest["manifests"].as_array() {
        let own = json!({"architecture": "amd64", "os": "linux"});
        let chosen = entries.iter().find(|entry| entry["platform"] == own);
        return chosen
            .map(|entry| ("manifests", digest(entry)))
            .into_iter()
            .collect();
    }
    let layers = manifest["layers"].as_array().into_iter().flatten();
    let blobs = [&manifest["config"]].into_iter().chain(layers);
    blobs.map(|blob| ("blobs", digest(blob))).collect()
}
