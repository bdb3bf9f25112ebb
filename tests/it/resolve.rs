//! `kagami resolve` answers in time whatever happens: whoever waits for the image can go on.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use hyper_util::service::TowerToHyperService;
use kagami::{
    clock,
    domain::answer::MediaType,
    server::{Counts, Limits, Server},
    tasks::shutdown,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep},
};

use crate::support::{
    faulty::{Action, Behaviour, Faulty, Reply},
    images,
};

const BUDGET: Duration = Duration::from_secs(4);

/// What a busy machine adds, the start of a program included.
const SLACK: Duration = Duration::from_millis(1200);

async fn run(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kagami"));
    command
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .stdin(Stdio::null());
    spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// It printed the images as they were given, and ended with this code.
#[track_caller]
fn assert_as_given(output: &Output, code: i32) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{told}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "nginx:1\nredis\n");
}

#[tokio::test]
async fn bad_settings_leave_the_images_as_given() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("mirrors.yaml");
    fs::write(&file, "kind: ImageMirrow\n").unwrap();
    let file = file.to_str().unwrap();
    let broken = run(home.path(), &["resolve", "--config", file, "nginx:1", "redis"]).await;
    assert_as_given(&broken, 2);
    let absent = run(
        home.path(),
        &["resolve", "--config", "no-such.yaml", "nginx:1", "redis"],
    )
    .await;
    assert_as_given(&absent, 2);
    let no_cluster = run(home.path(), &["resolve", "nginx:1", "redis"]).await;
    assert_as_given(&no_cluster, 2);
}

/// An API server that takes its time for each answer, with one mirror that it calls healthy.
async fn slow_api_server(pause: Duration, endpoint: String, running: &mut JoinSet<()>) -> String {
    let answer = async |State((pause, value)): State<(Duration, Value)>| {
        sleep(pause).await;
        if value.is_null() {
            return (
                StatusCode::NOT_FOUND,
                Json(json!({"kind": "Status", "code": 404})),
            );
        }
        (StatusCode::OK, Json(value))
    };
    let at = clock::now().to_string();
    let mirror = json!({
        "metadata": {"name": "main", "resourceVersion": "1"},
        "spec": {
            "registry": "mirror.test", "kind": "Hosted", "sources": [{"prefix": "docker.io"}],
            "endpoint": {"url": endpoint}, "health": {"timeout": "10s"},
        },
        "status": {"health": {"state": "Healthy", "reason": "", "since": at, "provenSince": at}},
    });
    let list = |items: Value| json!({"metadata": {"resourceVersion": "1"}, "items": items});
    let lease = json!({
        "metadata": {"name": "kagami-health", "resourceVersion": "1"},
        "spec": {"renewTime": at},
    });
    let mut router = Router::new();
    for (path, value) in [
        ("/apis/kagami.dev/v1alpha1/imagemirrors", list(json!([mirror]))),
        ("/apis/kagami.dev/v1alpha1/mirroredimages", list(json!([]))),
        (
            "/apis/coordination.k8s.io/v1/namespaces/kagami/leases/kagami-health",
            lease,
        ),
    ] {
        router = router.route(path, get(answer).with_state((pause, value)));
    }
    let router = router.fallback_service(get(answer).with_state((pause, Value::Null)));
    let (trigger, shutdown) = shutdown();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Server {
        name: "API",
        listener,
        tls: None,
        service: TowerToHyperService::new(router),
        limits: Limits::default(),
        counts: Counts::default(),
    };
    running.spawn(async move {
        server.run(shutdown).await.unwrap();
        drop(trigger);
    });
    url
}

#[tokio::test]
async fn a_slow_cluster_and_a_silent_mirror_share_one_budget() {
    let silent = Faulty::start(Behaviour::Silent).await;
    let mut running = JoinSet::new();
    let url = slow_api_server(Duration::from_millis(800), silent.url(), &mut running).await;
    let home = tempfile::tempdir().unwrap();
    let kubeconfig = home.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "a", "cluster": {"server": url}}],
        "users": [{"name": "a", "user": {}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "current-context": "a",
    });
    fs::write(&kubeconfig, config.to_string()).unwrap();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let since = Instant::now();
    let output = run(
        home.path(),
        &[
            "resolve",
            "--kubeconfig",
            kubeconfig,
            "--kagami-namespace",
            "kagami",
            "--verbose",
            "--budget",
            "4s",
            "nginx:1",
            "redis",
        ],
    )
    .await;
    let took = since.elapsed();
    assert_as_given(&output, 0);
    // The mirror was asked, and not waited for longer than the cluster left.
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("BudgetExhausted"), "{told}");
    assert!(took < BUDGET + SLACK, "{took:?}\n{told}");
}

#[tokio::test]
async fn the_form_is_the_one_that_is_asked_for() {
    let image = images::single(MediaType::OciManifest, "nginx");
    let served = image.clone();
    let registry = Faulty::start(Behaviour::answer(move |request| {
        let reply = match request.target.as_str() {
            "/v2/" => Reply::json(200, &json!({})),
            target if target.contains("/library/nginx/") => Reply::new(200)
                .content_type(served.media_type.as_str())
                .header("Docker-Content-Digest", &served.digest.to_string())
                .body(served.manifest.clone()),
            _ => Reply::error(404, "MANIFEST_UNKNOWN"),
        };
        Action::Reply(reply)
    }))
    .await;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("mirrors.yaml");
    let mirror = json!({
        "apiVersion": "kagami.dev/v1alpha1", "kind": "ImageMirror", "metadata": {"name": "main"},
        "spec": {
            "registry": "mirror.test", "kind": "Hosted", "sources": [{"prefix": "docker.io"}],
            "endpoint": {"url": registry.url()}, "tags": {"pin": "Digest"},
        },
    });
    fs::write(&file, mirror.to_string()).unwrap();
    let digest = &image.digest;
    let pinned = format!("nginx:1@{digest}");
    let other = format!("redis:8@{digest}");
    let nginx = "mirror.test/docker.io/library/nginx";
    let both = format!("{nginx}:1@{digest}");
    for (form, expected) in [
        ("", [both.clone(), both.clone(), other.clone()]),
        ("--form=tag", [format!("{nginx}:1"), both.clone(), other.clone()]),
        ("--form=both", [both.clone(), both.clone(), other.clone()]),
        // What is not on the mirror too: whoever asks for a digest has a tool that refuses both.
        (
            "--form=digest",
            [
                format!("{nginx}@{digest}"),
                format!("{nginx}@{digest}"),
                format!("redis@{digest}"),
            ],
        ),
    ] {
        let mut arguments = vec![
            "resolve",
            "--config",
            file.to_str().unwrap(),
            "nginx:1",
            &pinned,
            &other,
        ];
        arguments.extend(Some(form).filter(|form| !form.is_empty()));
        let output = run(home.path(), &arguments).await;
        let told = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{form}: {told}");
    }
}
