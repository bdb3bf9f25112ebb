//! A registry over real TCP that does what a registry does, but for what a test wants otherwise.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kagami::{
    domain::digest::Digest,
    registry::{Client, Credentials, Endpoint},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};

use crate::support::{
    images::{Image, digest},
    install_crypto,
};

/// A request whose body has not been read.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: BTreeMap<String, String>,
    /// How many requests with this method and kind came before.
    pub nth: usize,
    pub kind: Kind,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Ping,
    Manifest,
    Blob,
    Begin,
    Upload,
    Referrers,
    Other,
}

impl Ask {
    pub fn is(&self, method: &str, kind: Kind) -> bool {
        self.method == method && self.kind == kind
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    /// Returns the last part of the path: a tag, a digest.
    pub fn last(&self) -> &str {
        self.path().rsplit('/').next().unwrap()
    }

    pub fn query(&self, name: &str) -> Option<String> {
        let url = reqwest::Url::parse(&format!("http://x{}", self.target)).unwrap();
        let found = url.query_pairs().find(|(key, _)| key == name);
        found.map(|(_, value)| value.into_owned())
    }

    pub fn length(&self) -> usize {
        self.headers
            .get("content-length")
            .map_or(0, |length| length.parse().unwrap())
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike")]
    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = json!({"errors": [{"code": code, "message": message}]});
        Self::new(status)
            .header("Content-Type", "application/json")
            .body(body.to_string())
    }

    pub fn html(status: u16) -> Self {
        Self::new(status)
            .header("Content-Type", "text/html")
            .body("<html>no</html>")
    }
}

/// What is done with a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// What registries do.
    Usual,
    /// This, before the body is read.
    Early(Answer),
    /// This, once the body was read, which is dropped.
    Swallow(Answer),
    /// What registries do, and then another answer.
    Instead(Answer),
    /// So many bytes of the body are read, and then nothing happens any more.
    Stall(usize),
    /// So many bytes of the body are read, and the connection ends without an answer.
    Close(usize),
    /// So many bytes of the answer's body are sent, and the connection ends.
    Cut(usize),
    /// What registries answer, with another body, whose length is told or not.
    Body(Vec<u8>),
    /// The same without an end that is told.
    Unmeasured(Vec<u8>),
}

impl Act {
    /// This in a certain case, else what registries do.
    pub fn when(case: bool, act: Self) -> Self {
        if case { act } else { Self::Usual }
    }
}

type Quirk = Box<dyn Fn(&Ask) -> Act + Send + Sync>;

#[derive(Default)]
struct Content {
    blobs: BTreeMap<(String, String), Vec<u8>>,
    manifests: BTreeMap<(String, String), (String, Vec<u8>)>,
    uploads: BTreeMap<String, Vec<u8>>,
    asked: Vec<Ask>,
    counts: BTreeMap<(String, Kind), usize>,
    next: usize,
    /// The lengths of bodies that were received to their end.
    whole: Vec<usize>,
}

struct Shared {
    content: Mutex<Content>,
    quirk: Mutex<Arc<Quirk>>,
    features: Features,
}

/// What a registry can.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// List referrers.
    pub lists: bool,
    /// Send what is asked for in part in whole.
    pub no_ranges: bool,
    /// Take over blobs from other repositories, and from the same.
    pub no_mounts: bool,
    /// A tag that moves takes the manifest before it along if no other tag names it, as in Gitea.
    pub forgets: bool,
}

/// A running registry. It ends when dropped.
pub struct Fake {
    url: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Fake {
    pub async fn start(quirk: impl Fn(&Ask) -> Act + Send + Sync + 'static) -> Self {
        Self::with(Features::default(), quirk).await
    }

    pub async fn usual() -> Self {
        Self::start(|_| Act::Usual).await
    }

    pub async fn with(features: Features, quirk: impl Fn(&Ask) -> Act + Send + Sync + 'static) -> Self {
        install_crypto();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            content: Mutex::default(),
            quirk: Mutex::new(Arc::new(Box::new(quirk))),
            features,
        });
        let of_all = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&of_all);
                // Peers that go away are the rule here.
                open.spawn(async move { drop(serve(stream, &shared).await) });
            }
        });
        Self {
            url,
            shared,
            accepting,
        }
    }

    /// Behaves otherwise from now on.
    pub fn set(&self, quirk: impl Fn(&Ask) -> Act + Send + Sync + 'static) {
        *self.shared.quirk.lock().unwrap() = Arc::new(Box::new(quirk));
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn client(&self, login: Option<Credentials>) -> Client {
        Client::new(&Endpoint {
            url: self.url.clone(),
            ca_bundle: None,
            trust: kagami::domain::mirror::Trust::default(),
            credentials: login,
        })
        .unwrap()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.shared.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an image there with all that belongs to it.
    pub fn hold(&self, repository: &str, tag: &str, image: &Image) {
        for child in &image.children {
            self.hold(repository, &child.digest.to_string(), child);
        }
        let mut content = self.content();
        for blob in &image.blobs {
            content
                .blobs
                .insert((repository.to_owned(), digest(blob).to_string()), blob.clone());
        }
        for reference in [tag, &image.digest.to_string()] {
            let manifest = (image.media_type.as_str().to_owned(), image.manifest.clone());
            content
                .manifests
                .insert((repository.to_owned(), reference.to_owned()), manifest);
        }
    }

    /// Loses a manifest.
    pub fn lose(&self, repository: &str, reference: &str) {
        let key = (repository.to_owned(), reference.to_owned());
        assert!(self.content().manifests.remove(&key).is_some());
    }

    /// Loses a blob.
    pub fn lose_blob(&self, repository: &str, digest: &Digest) {
        let key = (repository.to_owned(), digest.to_string());
        assert!(self.content().blobs.remove(&key).is_some());
    }

    /// Returns a manifest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<Vec<u8>> {
        let key = (repository.to_owned(), reference.to_owned());
        self.content().manifests.get(&key).map(|(_, bytes)| bytes.clone())
    }

    /// Whether an image is there with all that belongs to it.
    pub fn holds(&self, repository: &str, tag: &str, image: &Image) -> bool {
        let has_blob = |blob: &Vec<u8>| {
            let key = (repository.to_owned(), digest(blob).to_string());
            self.content().blobs.get(&key) == Some(blob)
        };
        self.manifest(repository, tag).as_ref() == Some(&image.manifest)
            && image.blobs.iter().all(has_blob)
            && image
                .children
                .iter()
                .all(|child| self.holds(repository, &child.digest.to_string(), child))
    }

    /// Whether nothing can be pulled: no manifest is there.
    pub fn shows_nothing(&self) -> bool {
        self.content().manifests.is_empty()
    }

    /// Whether a body of this length was received to its end.
    pub fn received(&self, length: usize) -> bool {
        self.content().whole.contains(&length)
    }

    /// Returns how many blobs are there.
    pub fn blobs(&self) -> usize {
        self.content().blobs.len()
    }

    pub fn asked(&self) -> Vec<Ask> {
        self.content().asked.clone()
    }

    /// Returns how often something was asked for.
    pub fn count(&self, method: &str, kind: Kind) -> usize {
        self.asked().iter().filter(|ask| ask.is(method, kind)).count()
    }
}

async fn serve(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_until(b'\n', &mut head).await? == 0 {
                return Ok(());
            }
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let mut words = lines.next().unwrap().split(' ');
        let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let headers: BTreeMap<_, _> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        assert!(
            !headers.contains_key("transfer-encoding"),
            "a length is always told"
        );
        let kind = kind(&target);
        let ask = {
            let mut content = shared.content.lock().unwrap();
            let count = content.counts.entry((method.clone(), kind)).or_default();
            let nth = *count;
            *count += 1;
            let ask = Ask {
                method,
                target,
                headers,
                nth,
                kind,
            };
            content.asked.push(ask.clone());
            ask
        };
        let quirk = Arc::clone(&shared.quirk.lock().unwrap());
        let act = quirk(&ask);
        let is_head = ask.method == "HEAD";
        match act {
            Act::Early(answer) => {
                let unread = ask.length() > 0;
                write(&mut stream, &answer, is_head, None).await?;
                if unread {
                    // As proxies do: the connection is closed, and what still comes is dropped for a while.
                    let mut rest = vec![0; 65536];
                    let until = tokio::time::timeout(Duration::from_millis(300), async {
                        while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
                    });
                    drop(until.await);
                    return Ok(());
                }
            }
            Act::Stall(bytes) => {
                let mut some = vec![0; bytes];
                stream.read_exact(&mut some).await?;
                std::future::pending::<()>().await;
            }
            Act::Close(bytes) => {
                let mut some = vec![0; bytes];
                stream.read_exact(&mut some).await?;
                return Ok(());
            }
            act => {
                let mut body = vec![0; ask.length()];
                stream.read_exact(&mut body).await?;
                shared.content.lock().unwrap().whole.push(body.len());
                let usual = match &act {
                    Act::Swallow(answer) => answer.clone(),
                    _ => usual(shared, &ask, &body),
                };
                match act {
                    Act::Instead(answer) => write(&mut stream, &answer, is_head, None).await?,
                    Act::Cut(bytes) => {
                        write(&mut stream, &usual, is_head, Some(bytes)).await?;
                        return Ok(());
                    }
                    Act::Body(body) => write(&mut stream, &Answer { body, ..usual }, is_head, None).await?,
                    Act::Unmeasured(body) => {
                        stream
                            .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                            .await?;
                        let (last, most) = body.split_last().unwrap();
                        stream.write_all(most).await?;
                        stream.flush().await?;
                        // In a piece of its own.
                        sleep(Duration::from_millis(50)).await;
                        stream.write_all(&[*last]).await?;
                        return stream.shutdown().await;
                    }
                    _ => write(&mut stream, &usual, is_head, None).await?,
                }
            }
        }
    }
}

async fn write(
    stream: &mut BufReader<TcpStream>,
    answer: &Answer,
    is_head: bool,
    at_most: Option<usize>,
) -> std::io::Result<()> {
    use std::fmt::Write as _;
    let mut text = format!("HTTP/1.1 {} Fake\r\n", answer.status);
    for (name, value) in &answer.headers {
        write!(text, "{name}: {value}\r\n").unwrap();
    }
    if !answer.headers.iter().any(|(name, _)| name == "Content-Length") {
        write!(text, "Content-Length: {}\r\n", answer.body.len()).unwrap();
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).await?;
    if !is_head {
        let length = at_most.unwrap_or(usize::MAX).min(answer.body.len());
        stream.write_all(&answer.body[..length]).await?;
    }
    stream.flush().await?;
    if at_most.is_some() {
        // What was sent arrives before the end does.
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn kind(target: &str) -> Kind {
    let path = target.split('?').next().unwrap();
    if path == "/v2/" {
        Kind::Ping
    } else if path.ends_with("/blobs/uploads/") {
        Kind::Begin
    } else if path.contains("/blobs/uploads/") {
        Kind::Upload
    } else if path.contains("/blobs/") {
        Kind::Blob
    } else if path.contains("/manifests/") {
        Kind::Manifest
    } else if path.contains("/referrers/") {
        Kind::Referrers
    } else {
        Kind::Other
    }
}

/// What a registry does.
#[expect(clippy::too_many_lines, reason = "all of it in one place")]
fn usual(shared: &Shared, ask: &Ask, body: &[u8]) -> Answer {
    let mut content = shared.content.lock().unwrap();
    let content = &mut *content;
    let repository = ask.path().strip_prefix("/v2/").unwrap_or_default();
    let part = match ask.kind {
        Kind::Manifest => "/manifests/",
        Kind::Referrers => "/referrers/",
        _ => "/blobs/",
    };
    let repository = repository.split(part).next().unwrap().to_owned();
    let key = (repository.clone(), ask.last().to_owned());
    match (ask.method.as_str(), &ask.kind) {
        (_, Kind::Ping) => Answer::new(200)
            .header("Content-Type", "application/json")
            .header("Docker-Distribution-Api-Version", "registry/2.0")
            .body("{}"),
        ("GET" | "HEAD", Kind::Manifest) => match content.manifests.get(&key) {
            None => Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
            Some((media_type, bytes)) => Answer::new(200)
                .header("Content-Type", media_type)
                .header("Docker-Content-Digest", digest(bytes))
                .header("Content-Length", bytes.len())
                .body(bytes.clone()),
        },
        ("GET" | "HEAD", Kind::Blob) => match content.blobs.get(&key) {
            None => Answer::error(404, "BLOB_UNKNOWN", "blob unknown"),
            Some(bytes) => {
                let range = ask.headers.get("range").filter(|_| !shared.features.no_ranges);
                let from = range.map(|range| {
                    // Who asks for the first bytes alone gets the rest as well.
                    let (from, _) = range.trim_start_matches("bytes=").split_once('-').unwrap();
                    from.parse::<usize>().unwrap()
                });
                match from {
                    Some(from) => Answer::new(206)
                        .header(
                            "Content-Range",
                            format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()),
                        )
                        .body(&bytes[from..]),
                    None => Answer::new(200)
                        .header("Content-Length", bytes.len())
                        .body(bytes.clone()),
                }
            }
        },
        ("POST", Kind::Begin) => {
            if let (Some(mount), Some(from)) = (ask.query("mount"), ask.query("from"))
                && !shared.features.no_mounts
                && let Some(blob) = content.blobs.get(&(from, mount.clone())).cloned()
            {
                content.blobs.insert((repository, mount), blob);
                return Answer::new(201);
            }
            content.next += 1;
            let id = content.next.to_string();
            content.uploads.insert(id.clone(), Vec::new());
            // Relative, with a query that must stay as it is.
            Answer::new(202).header(
                "Location",
                format!("/v2/{repository}/blobs/uploads/{id}?_state=a%2Fb%3D%3D&n={id}"),
            )
        }
        ("PATCH" | "PUT", Kind::Upload) => {
            let id = ask.last().to_owned();
            if !ask.target.contains(&format!("?_state=a%2Fb%3D%3D&n={id}")) {
                return Answer::error(400, "BLOB_UPLOAD_INVALID", "the state is another");
            }
            let Some(upload) = content.uploads.get_mut(&id) else {
                return Answer::error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown");
            };
            upload.extend_from_slice(body);
            if ask.method == "PATCH" {
                let end = upload.len() - 1;
                return Answer::new(202)
                    .header("Range", format!("0-{end}"))
                    .header("Location", &ask.target);
            }
            let whole = content.uploads.remove(&id).unwrap();
            let promised = ask.query("digest").unwrap();
            if digest(&whole).to_string() != promised {
                return Answer::error(400, "DIGEST_INVALID", "digest invalid");
            }
            content.blobs.insert((repository, promised), whole);
            Answer::new(201)
        }
        ("PUT", Kind::Manifest) => {
            let before = content.manifests.get(&key).map(|(_, bytes)| bytes.clone());
            let answer = put_manifest(content, &repository, ask, body);
            if let Some(before) = before.filter(|before| shared.features.forgets && before != body) {
                forget(content, &repository, &before);
            }
            answer
        }
        ("GET", Kind::Referrers) if shared.features.lists => {
            let subject = ask.last();
            let entries: Vec<Value> = content
                .manifests
                .iter()
                .filter(|((of, reference), _)| *of == repository && reference.starts_with("sha256:"))
                .filter_map(|((_, reference), (media_type, bytes))| {
                    let manifest: Value = serde_json::from_slice(bytes).unwrap();
                    (manifest["subject"]["digest"] == subject)
                        .then(|| json!({"digest": reference, "mediaType": media_type, "size": bytes.len()}))
                })
                .collect();
            let list = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
            Answer::new(200)
                .header("Content-Type", OCI_INDEX)
                .body(list.to_string())
        }
        _ => Answer::error(404, "UNSUPPORTED", "nothing is here"),
    }
}

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Loses a manifest that no tag names.
fn forget(content: &mut Content, repository: &str, manifest: &[u8]) {
    let is_tagged = content.manifests.iter().any(|((of, reference), (_, bytes))| {
        of == repository && !reference.contains(':') && bytes == manifest
    });
    if !is_tagged {
        let key = (repository.to_owned(), digest(manifest).to_string());
        content.manifests.remove(&key);
    }
}

/// Takes a manifest if all is there that it names.
fn put_manifest(content: &mut Content, repository: &str, ask: &Ask, body: &[u8]) -> Answer {
    let manifest: Value = serde_json::from_slice(body).unwrap();
    let own = digest(body).to_string();
    let named = |key: &str| manifest[key].as_array().cloned().unwrap_or_default();
    let missing = |kind: &str, descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        let body = json!({"errors": [{"code": kind, "message": "unknown", "detail": {"digest": digest}}]});
        Answer::new(404)
            .header("Content-Type", "application/json")
            .body(body.to_string())
    };
    for blob in named("layers")
        .iter()
        .chain(Some(&manifest["config"]).filter(|config| !config.is_null()))
    {
        let key = (repository.to_owned(), blob["digest"].as_str().unwrap().to_owned());
        if !content.blobs.contains_key(&key) {
            return missing("MANIFEST_BLOB_UNKNOWN", blob);
        }
    }
    // A list of referrers may name what it likes.
    for child in named("manifests")
        .iter()
        .filter(|_| !ask.last().starts_with("sha256-"))
    {
        let key = (
            repository.to_owned(),
            child["digest"].as_str().unwrap().to_owned(),
        );
        if !content.manifests.contains_key(&key) {
            return missing("MANIFEST_UNKNOWN", child);
        }
    }
    let media_type = ask.headers["content-type"].clone();
    for reference in [ask.last(), &own] {
        let key = (repository.to_owned(), reference.to_owned());
        content.manifests.insert(key, (media_type.clone(), body.to_vec()));
    }
    Answer::new(201).header("Docker-Content-Digest", own)
}
