//! Many objects, created fast.

use std::{
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kagami::{
    api::{self, v1alpha1::MirroredImage},
    domain::{
        answer::MediaType,
        image::KeyRef,
        platform::Platforms,
        presence::{Presence, Proof},
        time::Timestamp,
    },
};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};
use tokio_rustls::TlsConnector;

use super::super::{
    answers::Answers,
    e2e::{
        cluster::{Cluster, User},
        companion::IMAGES,
    },
    image, payload,
    roles::MIRROR,
};

/// Connections over which objects are created; more only wait for the API server's CPU.
const CONNECTIONS: usize = 16;

/// Returns where the API server listens.
pub fn address(cluster: &Cluster) -> Result<SocketAddr> {
    let address = cluster.url.strip_prefix("https://").context("an https address")?;
    Ok(address.parse()?)
}

/// Returns the MirroredImage that a companion writes of an image that it saw at that time.
pub fn mirrored_image(
    mirror: &str,
    key: &str,
    verified_at: Timestamp,
    last_used: Timestamp,
) -> Result<MirroredImage> {
    let proof = Proof {
        digest: image::digest(image::manifest().as_bytes()).parse()?,
        media_type: MediaType::OciManifest,
        // As every build writes it that does not know the image's configuration: else an older one would have
        // to write each anew.
        platforms: Platforms::ASSUMED,
        size: Some(image::manifest().len().try_into()?),
        public: None,
    };
    let mut spec = api::image::spec(
        mirror,
        KeyRef::parse(key)?,
        &Presence::Present(proof),
        verified_at,
    );
    spec.last_used = Some(serde_json::from_value(last_used.to_string().into())?);
    Ok(MirroredImage::to_write(
        &MirroredImage::object_name(mirror, key),
        spec,
        None,
    ))
}

/// Creates the MirroredImages of these numbers, as the companion would have written them: there, and
/// seen at that time; and returns how long it took.
pub fn create_images(
    cluster: &Cluster,
    numbers: Range<usize>,
    verified_at: Timestamp,
    last_used: Timestamp,
) -> Result<Duration> {
    write_all(cluster, numbers, move |number| {
        let object = mirrored_image(MIRROR, &key(number), verified_at, last_used)?;
        Ok(Write::create(IMAGES, serde_json::to_string(&object)?))
    })
}

/// Writes them again, as the companion does once a day of each image that is used. The API server keeps a record of who
/// set which field of an object from its creation until it is told not to.
pub fn write_images_again(
    cluster: &Cluster,
    numbers: Range<usize>,
    last_used: Timestamp,
) -> Result<Duration> {
    write_all(cluster, numbers, move |number| {
        let object = mirrored_image(MIRROR, &key(number), last_used, last_used)?;
        let path = format!("{IMAGES}/{}", MirroredImage::object_name(MIRROR, &key(number)));
        let change = json!({
            "metadata": {"managedFields": object.metadata.managed_fields},
            "spec": {"lastUsed": object.spec.last_used},
        });
        Ok(Write::merge(path, change.to_string()))
    })
}

fn key(number: usize) -> String {
    format!("docker.io/{}", payload::image(number))
}

/// One write to the API server.
#[derive(Debug)]
pub struct Write {
    method: &'static str,
    content: &'static str,
    path: String,
    body: String,
}

impl Write {
    /// Returns the creation of an object in a collection.
    pub fn create(path: impl Into<String>, body: String) -> Self {
        Self {
            method: "POST",
            content: "application/json",
            path: path.into(),
            body,
        }
    }

    /// Returns a merge patch of an object.
    pub fn merge(path: impl Into<String>, body: String) -> Self {
        Self {
            method: "PATCH",
            content: "application/merge-patch+json",
            path: path.into(),
            body,
        }
    }
}

/// Writes what `write` returns for each number, over many connections, and returns how long it took.
pub fn write_all(
    cluster: &Cluster,
    numbers: Range<usize>,
    write: impl Fn(usize) -> Result<Write> + Send + Sync + 'static,
) -> Result<Duration> {
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let address = address(cluster)?;
    let tls = TlsConnector::from(cluster.authority.client());
    let next = Arc::new(AtomicUsize::new(numbers.start));
    let write = Arc::new(write);
    runtime.block_on(async {
        let mut lanes = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (tls, next, write) = (tls.clone(), Arc::clone(&next), Arc::clone(&write));
            lanes.spawn(async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let mut stream = tls.connect(ServerName::from(address.ip()), stream).await?;
                let mut answers = Answers::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        return anyhow::Ok(());
                    }
                    let Write {
                        method,
                        content,
                        path,
                        body,
                    } = write(number)?;
                    let request = format!(
                        "{method} {path} HTTP/1.1\r\nHost: kubernetes\r\nAuthorization: Bearer {}\r\n\
                         Content-Type: {content}\r\nContent-Length: {}\r\n\r\n{body}",
                        User::Admin.token(),
                        body.len()
                    );
                    stream.write_all(request.as_bytes()).await?;
                    stream.flush().await?;
                    let answer = answers.next(&mut stream, false).await?;
                    ensure!(
                        matches!(answer.status, 200 | 201),
                        "status {}: {}",
                        answer.status,
                        answer.text()
                    );
                }
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane??;
        }
        Ok(start.elapsed())
    })
}
