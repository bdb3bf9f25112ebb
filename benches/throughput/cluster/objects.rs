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
        platform::Architectures,
        presence::{Presence, Proof},
        time::Timestamp,
    },
};
use rustls::pki_types::ServerName;
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

/// Creates the MirroredImages of these numbers, as the companion would have written them: there, and
/// seen at that time; and returns how long it took.
pub fn create_images(
    cluster: &Cluster,
    numbers: Range<usize>,
    verified_at: Timestamp,
    last_used: Timestamp,
) -> Result<Duration> {
    let proof = Proof {
        digest: image::digest(image::manifest().as_bytes()).parse()?,
        media_type: MediaType::OciManifest,
        architectures: Architectures::ALL,
        size: Some(image::manifest().len().try_into()?),
        public: None,
    };
    let presence = Presence::Present(proof);
    let last_used = serde_json::from_value(last_used.to_string().into())?;
    let used = Some(last_used);
    create(cluster, numbers, move |number| {
        let key = format!("docker.io/{}", payload::image(number));
        let mut spec = api::image::spec(MIRROR, &key, &presence, verified_at);
        spec.last_used.clone_from(&used);
        let object = MirroredImage::new(&MirroredImage::object_name(MIRROR, &key), spec);
        Ok((IMAGES.to_owned(), serde_json::to_string(&object)?))
    })
}

/// Creates what `object` returns for each number: the path of its collection, and itself.
pub fn create(
    cluster: &Cluster,
    numbers: Range<usize>,
    object: impl Fn(usize) -> Result<(String, String)> + Send + Sync + 'static,
) -> Result<Duration> {
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let address = address(cluster)?;
    let tls = TlsConnector::from(cluster.authority.client());
    let next = Arc::new(AtomicUsize::new(numbers.start));
    let object = Arc::new(object);
    runtime.block_on(async {
        let mut lanes = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (tls, next, object) = (tls.clone(), Arc::clone(&next), Arc::clone(&object));
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
                    let (path, body) = object(number)?;
                    let request = format!(
                        "POST {path} HTTP/1.1\r\nHost: kubernetes\r\nAuthorization: Bearer {}\r\n\
                         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                        User::Admin.token(),
                        body.len()
                    );
                    stream.write_all(request.as_bytes()).await?;
                    stream.flush().await?;
                    let answer = answers.next(&mut stream, false).await?;
                    ensure!(
                        answer.status == 201,
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
