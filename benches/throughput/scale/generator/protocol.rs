//! What is said over HTTP (Kubernetes' API concepts).

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::store::{Change, Name, News, Object, Refusal, Store, Wish};

/// Objects that a watch from the beginning tells at once.
const AT_ONCE: usize = 500;

/// How often a watch is told how far it is.
const BOOKMARK: Duration = Duration::from_mins(1);

/// How long a watch lasts that does not say.
const WATCH: Duration = Duration::from_mins(30);

pub fn router(store: Store) -> Router {
    Router::new().fallback(answer).with_state(store)
}

/// What a request speaks of.
#[derive(Clone, Debug)]
struct Target {
    /// The resource's path without a namespace: `api/v1/pods`.
    resource: String,
    api_version: String,
    kind: &'static str,
    namespace: Box<str>,
    name: Option<Box<str>>,
    status: bool,
}

impl Target {
    fn of(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, rest) = parts.split_at_checked(if parts[0] == "api" { 2 } else { 3 })?;
        let (namespace, rest) = match rest {
            // Of a Namespace itself only the status is below it.
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && *rest != ["status"] => {
                (*namespace, rest)
            }
            rest => ("", rest),
        };
        let (plural, name, status) = match rest {
            [plural] => (*plural, None, false),
            [plural, name] => (*plural, Some(*name), false),
            [plural, name, "status"] => (*plural, Some(*name), true),
            _ => return None,
        };
        let kind = match plural {
            "pods" => "Pod",
            "namespaces" => "Namespace",
            "nodes" => "Node",
            "secrets" => "Secret",
            "leases" => "Lease",
            "events" => "Event",
            "customresourcedefinitions" => "CustomResourceDefinition",
            "imagemirrors" => "ImageMirror",
            "mirroredimages" => "MirroredImage",
            _ => return None,
        };
        Some(Self {
            resource: format!("{}/{plural}", group.join("/")),
            api_version: group[1..].join("/"),
            kind,
            namespace: namespace.into(),
            name: name.map(Box::from),
            status,
        })
    }
}

type Query = HashMap<String, String>;

/// Returns the query of a request, decoded.
fn query_of(uri: &Uri) -> Query {
    let url = reqwest::Url::parse(&format!("http://generator/?{}", uri.query().unwrap_or_default()));
    url.map(|url| url.query_pairs().into_owned().collect())
        .unwrap_or_default()
}

/// Which objects a list or watch is about, and how much of each it is told.
#[derive(Clone, Debug)]
struct Selector {
    namespace: Box<str>,
    /// Field, whether it is to have this value or another, and the value.
    fields: Vec<(String, bool, String)>,
    metadata_only: bool,
}

impl Selector {
    fn of(target: &Target, query: &Query, headers: &HeaderMap) -> Result<Self, Refusal> {
        if query
            .get("labelSelector")
            .is_some_and(|labels| !labels.is_empty())
        {
            return Err(Refusal::Invalid("label selectors are not known here"));
        }
        let fields = query.get("fieldSelector").map_or("", String::as_str);
        let fields = fields.split(',').filter(|field| !field.is_empty()).map(|field| {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            // `a=b`, `a==b` and `a!=b`.
            let (name, equal) = name.strip_suffix('!').map_or((name, true), |name| (name, false));
            let value = value.trim_start_matches('=');
            match name {
                "metadata.name" | "metadata.namespace" | "status.phase" => {
                    Ok((name.to_owned(), equal, value.to_owned()))
                }
                _ => Err(Refusal::Invalid("this field selector is not known here")),
            }
        });
        let accept = headers
            .get(header::ACCEPT)
            .and_then(|accept| accept.to_str().ok());
        Ok(Self {
            namespace: target.namespace.clone(),
            fields: fields.collect::<Result<_, _>>()?,
            metadata_only: accept.is_some_and(|accept| accept.contains("as=PartialObjectMetadata")),
        })
    }

    fn selects(&self, object: &Object) -> bool {
        let (namespace, name) = &object.name;
        let right = |(field, equal, value): &(String, bool, String)| {
            let found = match field.as_str() {
                "metadata.name" => name,
                "metadata.namespace" => namespace,
                _ => &object.phase,
            };
            (**found == **value) == *equal
        };
        (self.namespace.is_empty() || self.namespace == *namespace) && self.fields.iter().all(right)
    }

    /// Returns what is told of an object.
    fn render(&self, object: &Object) -> Bytes {
        if !self.metadata_only {
            return object.json.clone();
        }
        let mut value = object.value();
        let metadata = value["metadata"].take();
        let outline = json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        });
        outline.to_string().into()
    }

    /// Returns the line that tells of a change, if it is one to those who select so.
    fn line(&self, change: &Change) -> Option<Vec<u8>> {
        let was = change.before.as_ref().is_some_and(|before| self.selects(before));
        let is = !change.deleted && self.selects(&change.last);
        let kind = match (was, is) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        Some(line(kind, &self.render(&change.last)))
    }
}

fn line(kind: &str, object: &[u8]) -> Vec<u8> {
    let start = format!("{{\"type\":\"{kind}\",\"object\":");
    [start.as_bytes(), object, b"}\n"].concat()
}

fn status(code: StatusCode, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code.as_u16(), "reason": reason, "message": message,
    })
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        let (code, reason, message) = match refusal {
            Refusal::NotFound => (StatusCode::NOT_FOUND, "NotFound", "it is not there"),
            Refusal::Exists => (StatusCode::CONFLICT, "AlreadyExists", "it is there already"),
            Refusal::Conflict => (StatusCode::CONFLICT, "Conflict", "the object has been modified"),
            Refusal::Invalid(message) => (StatusCode::BAD_REQUEST, "BadRequest", message),
        };
        json_response(code, status(code, reason, message).to_string())
    }
}

fn json_response(code: StatusCode, body: impl Into<Body>) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
}

async fn answer(
    State(store): State<Store>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(target) = Target::of(uri.path()) else {
        return Refusal::NotFound.into();
    };
    let query = query_of(&uri);
    let answered = match (method, target.name.clone()) {
        (Method::GET, None) => Selector::of(&target, &query, &headers).and_then(|selector| {
            if query
                .get("watch")
                .is_some_and(|watch| watch == "true" || watch == "1")
            {
                Ok(follow(store, target, selector, &query))
            } else {
                list(&store, &target, &selector, &query)
            }
        }),
        (Method::GET, Some(name)) => {
            let object = store.get(&target.resource, &(target.namespace.clone(), name));
            let selector = Selector::of(&target, &Query::new(), &headers);
            selector.and_then(|selector| {
                let object = object.ok_or(Refusal::NotFound)?;
                Ok(json_response(StatusCode::OK, selector.render(&object)))
            })
        }
        (method, name) => {
            let code = if method == Method::POST {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            write(&store, &method, &target, name, &headers, &body)
                .map(|object| json_response(code, object.json.clone()))
        }
    };
    answered.unwrap_or_else(Response::from)
}

/// Answers with one page of a list. Pages are not of one moment; all carry the version of the first, so that a
/// watch from there on tells what changed in between.
fn list(store: &Store, target: &Target, selector: &Selector, query: &Query) -> Result<Response, Refusal> {
    let limit = query.get("limit").and_then(|limit| limit.parse().ok());
    let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX - 1);
    let token = query.get("continue").filter(|token| !token.is_empty());
    let token = token.map(|token| {
        let mut parts = token.splitn(3, ':');
        let version: u64 = parts.next()?.parse().ok()?;
        Some((version, (parts.next()?.into(), parts.next()?.into())))
    });
    let token: Option<(u64, Name)> = match token {
        Some(token) => Some(token.ok_or(Refusal::Invalid("no such continue token"))?),
        None => None,
    };
    let page = store.page(&target.resource, token.as_ref().map(|(_, name)| name), limit);
    let version = token.map_or(page.version, |(version, _)| version);
    let next = page.objects.last().filter(|_| page.more);
    let next = next.map_or_else(String::new, |last| {
        format!("{version}:{}:{}", last.name.0, last.name.1)
    });
    let (kind, api_version) = if selector.metadata_only {
        ("PartialObjectMetadata", "meta.k8s.io/v1")
    } else {
        (target.kind, target.api_version.as_str())
    };
    let metadata = json!({"resourceVersion": version.to_string(), "continue": next});
    let mut body = format!(
        "{{\"kind\":\"{kind}List\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":["
    )
    .into_bytes();
    let selected = page.objects.iter().filter(|object| selector.selects(object));
    for (number, object) in selected.enumerate() {
        if number > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&selector.render(object));
    }
    body.extend_from_slice(b"]}");
    if !page.more {
        store.note_listed(&target.resource);
    }
    Ok(json_response(StatusCode::OK, body))
}

/// A watch under way.
struct Follow {
    store: Store,
    target: Target,
    selector: Selector,
    changed: watch::Receiver<u64>,
    /// Everything up to this version was told.
    from: u64,
    /// Whether it is still to be told what is there: what comes after the last name told.
    beginning: bool,
    told: Option<Name>,
    /// How often watches had been told to begin anew when it began.
    expired: u64,
    bookmarks: bool,
    bookmark: Instant,
    end: Instant,
    ended: bool,
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.store.note_end_of_watch(&self.target.resource);
    }
}

fn follow(store: Store, target: Target, selector: Selector, query: &Query) -> Response {
    let is = |key: &str| {
        query
            .get(key)
            .is_some_and(|value| value == "true" || value == "1")
    };
    let now = Instant::now();
    let lasts = query
        .get("timeoutSeconds")
        .and_then(|seconds| seconds.parse().ok());
    let from = query
        .get("resourceVersion")
        .and_then(|version| version.parse().ok());
    // From no version at all a watch begins with what is there, too.
    let beginning = is("sendInitialEvents") || from.is_none_or(|from: u64| from == 0);
    let expired = store.note_watch(&target.resource);
    let follow = Follow {
        changed: store.subscribe(),
        from: from.unwrap_or_default(),
        beginning,
        told: None,
        expired,
        bookmarks: is("allowWatchBookmarks"),
        bookmark: now + BOOKMARK,
        end: now + lasts.map_or(WATCH, Duration::from_secs),
        ended: false,
        store,
        target,
        selector,
    };
    let lines = stream::unfold(follow, async |mut follow| {
        let lines = follow.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(lines)), follow))
    });
    json_response(StatusCode::OK, Body::from_stream(lines))
}

impl Follow {
    /// Waits for what is to be told next.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if self.ended {
                return None;
            }
            if self.beginning {
                return Some(self.begin());
            }
            self.changed.mark_unchanged();
            match self.store.news(&self.target.resource, self.from, self.expired) {
                News::Expired => {
                    self.ended = true;
                    let status = status(StatusCode::GONE, "Expired", "too old resource version");
                    return Some(line("ERROR", status.to_string().as_bytes()));
                }
                News::Changes(changes, version) => {
                    self.from = version;
                    let lines: Vec<_> = changes
                        .iter()
                        .filter_map(|change| self.selector.line(change))
                        .collect();
                    if !lines.is_empty() {
                        return Some(lines.concat());
                    }
                }
            }
            tokio::select! {
                changed = self.changed.changed() => self.ended = changed.is_err(),
                () = sleep_until(self.end) => {
                    self.ended = true;
                    return self.bookmarks.then(|| self.bookmark(false));
                }
                () = sleep_until(self.bookmark), if self.bookmarks => {
                    self.bookmark = Instant::now() + BOOKMARK;
                    return Some(self.bookmark(false));
                }
            }
        }
    }

    /// Tells some of what is there, and that it was all.
    fn begin(&mut self) -> Vec<u8> {
        let page = self
            .store
            .page(&self.target.resource, self.told.as_ref(), AT_ONCE);
        if self.told.is_none() {
            self.from = page.version;
        }
        let selected = page.objects.iter().filter(|object| self.selector.selects(object));
        let mut lines: Vec<Vec<u8>> = selected
            .map(|object| line("ADDED", &self.selector.render(object)))
            .collect();
        self.told = page.objects.last().map(|last| last.name.clone());
        if !page.more {
            self.beginning = false;
            self.store.note_listed(&self.target.resource);
            lines.push(self.bookmark(true));
        }
        lines.concat()
    }

    fn bookmark(&self, of_the_beginning: bool) -> Vec<u8> {
        let mut metadata = json!({"resourceVersion": self.from.to_string(), "creationTimestamp": null});
        if of_the_beginning {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let Target {
            kind, api_version, ..
        } = &self.target;
        let object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        line("BOOKMARK", object.to_string().as_bytes())
    }
}

/// Carries out what changes an object.
fn write(
    store: &Store,
    method: &Method,
    target: &Target,
    name: Option<Box<str>>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Arc<Object>, Refusal> {
    let sent: Value = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(body).map_err(|_| Refusal::Invalid("the body is no JSON"))?
    };
    let named = name.or_else(|| sent["metadata"]["name"].as_str().map(Box::from));
    let name = (
        target.namespace.clone(),
        named.ok_or(Refusal::Invalid("there is no name"))?,
    );
    let may = |present: &Object, version: &Value| match version.as_str() {
        Some(version) if !version.is_empty() && version != present.version.to_string() => {
            Err(Refusal::Conflict)
        }
        _ => Ok(()),
    };
    store.change(&target.resource, name, |present| match *method {
        Method::POST if present.is_some() => Err(Refusal::Exists),
        Method::POST => Ok(Wish::Put(sent)),
        Method::PUT => {
            let present = present.ok_or(Refusal::NotFound)?;
            may(present, &sent["metadata"]["resourceVersion"])?;
            Ok(Wish::Put(target.merge(present.value(), sent)))
        }
        Method::PATCH => {
            let present = present.ok_or(Refusal::NotFound)?;
            let mut next = present.value();
            let content = headers
                .get(header::CONTENT_TYPE)
                .and_then(|kind| kind.to_str().ok());
            if content == Some("application/json-patch+json") {
                let patch: json_patch::Patch =
                    serde_json::from_value(sent).map_err(|_| Refusal::Invalid("this is no JSON patch"))?;
                json_patch::patch(&mut next, &patch).map_err(|_| Refusal::Invalid("it does not apply"))?;
            } else if content == Some("application/merge-patch+json") {
                json_patch::merge(&mut next, &sent);
            } else {
                return Err(Refusal::Invalid("this kind of patch is not known here"));
            }
            may(present, &next["metadata"]["resourceVersion"])?;
            Ok(Wish::Put(target.merge(present.value(), next)))
        }
        Method::DELETE => {
            let present = present.ok_or(Refusal::NotFound)?;
            may(present, &sent["preconditions"]["resourceVersion"])?;
            Ok(Wish::Delete)
        }
        _ => Err(Refusal::Invalid("this method is not known here")),
    })
}

impl Target {
    /// Returns the object of which the part is new that this request may change.
    fn merge(&self, mut present: Value, mut sent: Value) -> Value {
        if self.status {
            present["status"] = sent["status"].take();
            return present;
        }
        if self.kind == "ImageMirror" {
            sent["status"] = present["status"].take();
        }
        sent
    }
}
