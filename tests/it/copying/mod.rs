//! Copies: between real registries, and with registries and sources that fail in every way known.

mod companion;
mod fake;
mod real;
mod referrers;
mod sources;
mod tags;
mod targets;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use kagami::{
    domain::{answer::MediaType, platform::Platforms},
    registry::{
        Credentials,
        copy::{self, Copied, Job, Meter, Mirror, Settings, Trouble, Upstream},
        push::Patience,
    },
};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use self::fake::Fake;
use crate::{
    shared::mirror::image_mirror,
    support::{
        commands::Told,
        images::{Image, digest},
        kagami::text,
    },
};

/// Where images are at the source, and where they go.
const FROM: &str = "team/app";
const INTO: &str = "copies/team/app";

/// Limits in which a test ends.
fn settings() -> Settings {
    let milliseconds = |all: &[u64]| all.iter().copied().map(Duration::from_millis).collect();
    Settings {
        patience: Patience {
            answer: Duration::from_secs(10),
            stall: Duration::from_millis(500),
            commit: Duration::from_secs(10),
        },
        pause: Duration::from_millis(5),
        tries: 4,
        limited: Duration::from_secs(5),
        read_back: milliseconds(&[0, 20, 50, 100, 200, 400]),
        pieces: (1 << 20, 64 << 10),
        ..Settings::default()
    }
}

/// Returns how the image `1` of one fake is copied to another.
fn job(source: &Fake, mirror: &Fake) -> Job {
    job_as(source, mirror, None)
}

fn job_as(source: &Fake, mirror: &Fake, login: Option<Credentials>) -> Job {
    Job {
        upstream: Arc::new(Upstream::new(source.client(None), &settings())),
        repository: FROM.to_owned(),
        reference: "1".to_owned(),
        mirror: Arc::new(Mirror::new(mirror.client(login), &settings())),
        into: INTO.to_owned(),
        tag: "1".to_owned(),
        platforms: Platforms::ALL,
        referrers: false,
        verify: false,
        max_size: None,
        max_referrers: None,
        keeps_tag: false,
        own: None,
    }
}

async fn run(job: &Job) -> Result<Copied, Trouble> {
    copy::copy(job, &settings(), &Meter::default()).await
}

/// Returns bytes that look like nothing, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(length);
    bytes
}

/// Returns an image with these layers, which has these fields besides.
fn image(layers: Vec<Vec<u8>>, fields: &Value) -> Image {
    let config = br#"{"architecture":"amd64","os":"linux"}"#.to_vec();
    let descriptor = |media_type: &str, blob: &Vec<u8>| json!({"mediaType": media_type, "digest": digest(blob).to_string(), "size": blob.len()});
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OciManifest.as_str(),
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer)).collect::<Vec<_>>(),
    });
    json_patch::merge(&mut manifest, fields);
    let manifest = manifest.to_string().into_bytes();
    let mut blobs = layers;
    blobs.push(config);
    Image {
        media_type: MediaType::OciManifest,
        digest: digest(&manifest),
        manifest,
        blobs,
        children: Vec::new(),
    }
}

/// Returns an image of some layers, the largest of so many bytes.
fn of_size(bytes: usize) -> Image {
    image(vec![noise(1, bytes), noise(2, 1000), Vec::new()], &json!({}))
}

/// Returns where a registry is, as images name it.
fn host(url: &str) -> &str {
    url.split_once("://").unwrap().1
}

/// Runs `kagami copy` into a mirror of `from` at `to`, on a machine with this Docker configuration.
async fn copy(from: &str, to: &str, logins: &Value, arguments: &[&str]) -> Told {
    copy_reading(from, to, logins, arguments, None).await
}

/// The same with a file as standard input.
async fn copy_reading(
    from: &str,
    to: &str,
    logins: &Value,
    arguments: &[&str],
    input: Option<&Path>,
) -> Told {
    let mirror = image_mirror("main", "mirror.test", &[host(from)], to, &json!({}));
    command(&mirror, "main", logins, arguments, input).await
}

/// Runs it into a mirror with this name of a configuration with this one.
async fn copy_into(mirror: &Value, name: &str, arguments: &[&str]) -> Told {
    command(mirror, name, &json!({}), arguments, None).await
}

async fn command(
    mirror: &Value,
    name: &str,
    logins: &Value,
    arguments: &[&str],
    input: Option<&Path>,
) -> Told {
    let home = tempfile::tempdir().unwrap();
    fs::write(
        home.path().join("mirrors.yaml"),
        text(std::slice::from_ref(mirror)),
    )
    .unwrap();
    fs::create_dir(home.path().join(".docker")).unwrap();
    fs::write(home.path().join(".docker/config.json"), logins.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kagami"));
    command
        .arg("copy")
        .args(arguments)
        .args(["--to", name, "--config", "mirrors.yaml"])
        .current_dir(home.path())
        .env_clear()
        .env("HOME", home.path())
        .stdin(input.map_or_else(Stdio::null, |file| fs::File::open(file).unwrap().into()));
    let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    Told {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        complaints: String::from_utf8(output.stderr).unwrap(),
    }
}
