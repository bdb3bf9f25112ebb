//! Manifests of others, through `kagami review` and a real API server. `scripts/manifests-of-others` runs
//! this; no other run does.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use kagami::domain::answer::MediaType;
use serde_json::{Value, json};

use crate::{
    asked::comparable,
    support::{
        cluster::Cluster,
        images::{Image, single},
    },
};

/// Folder with the manifests.
pub(crate) const FOLDER: &str = "KAGAMI_MANIFESTS";

const REGISTRY: &str = "mirror.test";

/// Where images of others mostly are.
const SOURCES: [&str; 8] = [
    "docker.io",
    "quay.io",
    "ghcr.io",
    "gcr.io",
    "registry.k8s.io",
    "public.ecr.aws",
    "us-central1-docker.pkg.dev",
    "mcr.microsoft.com",
];

/// What became of one file.
struct Outcome {
    took: Duration,
    /// KiB at the most.
    memory: u64,
    told: String,
    /// What the API server makes of a file: its objects, and what it refuses.
    before: (Vec<Value>, Vec<String>),
    after: (Vec<Value>, Vec<String>),
    byte_for_byte: bool,
}

pub(crate) fn of_others_mean_the_same_afterwards(cluster: &Cluster) {
    let folder = PathBuf::from(env::var_os(FOLDER).unwrap());
    let own = cluster.folder().join("manifests");
    fs::create_dir_all(&own).unwrap();
    let config = own.join("mirrors.yaml");
    let sources = SOURCES.map(|prefix| json!({"prefix": prefix}));
    let mirror = json!({
        "apiVersion": "kagami.dev/v1alpha1",
        "kind": "ImageMirror",
        "metadata": {"name": "main"},
        "spec": {
            "registry": REGISTRY, "kind": "Hosted", "sources": sources,
            "endpoint": {"url": start_registry()},
        },
    });
    fs::write(&config, mirror.to_string()).unwrap();
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|file| {
            ["yaml", "yml", "json"]
                .map(Some)
                .contains(&file.extension().and_then(|end| end.to_str()))
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "there is no manifest in {}", folder.display());
    let mut wrong = Vec::new();
    eprintln!(
        "{:<48} {:>8} {:>8} {:>7} {:>7} {:>7}  same",
        "file", "time", "memory", "images", "objects", "refused"
    );
    let mut told = String::new();
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let outcome = outcome(cluster, &config, &own, &file);
        let Outcome {
            took, memory, before, ..
        } = &outcome;
        let same = same(&outcome);
        let rewritten = outcome.told.matches(" Rewritten ").count();
        let took = took.as_millis();
        let memory = memory / 1024;
        let (objects, refused) = (before.0.len(), before.1.len());
        let how = match (&same, outcome.byte_for_byte) {
            (Err(_), _) => "NO",
            (Ok(()), true) => "byte for byte",
            (Ok(()), false) => "yes",
        };
        eprintln!("{name:<48} {took:>5} ms {memory:>4} MiB {rewritten:>7} {objects:>7} {refused:>7}  {how}");
        told.extend(["\n== ", &name, "\n", &outcome.told]);
        if let Err(difference) = same {
            wrong.push(format!("{name}: {difference}"));
        }
    }
    eprintln!("{told}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn outcome(cluster: &Cluster, config: &Path, own: &Path, file: &Path) -> Outcome {
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kagami"))
        .arg("review")
        .arg(file)
        .arg("--config")
        .arg(config)
        .args(["--budget", "20s", "--left-alone", "kagami-system"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(fs::File::create(own.join("out")).unwrap())
        .stderr(fs::File::create(own.join("told")).unwrap())
        .spawn()
        .unwrap();
    let mut memory = 0;
    let status = loop {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse().ok());
        memory = memory.max(peak.unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        thread::sleep(Duration::from_millis(1));
    };
    let took = started.elapsed();
    let told = fs::read_to_string(own.join("told")).unwrap();
    assert!(status.success(), "{}: {told}", file.display());
    let (input, output) = (fs::read(file).unwrap(), fs::read(own.join("out")).unwrap());
    // What lives in a namespace of the file itself is refused as long as there is none.
    for object in read_by_api(cluster, own, &input).0 {
        if let ("Namespace", Some(name)) = (
            object["kind"].as_str().unwrap_or_default(),
            object["metadata"]["name"].as_str(),
        ) {
            cluster.kubectl(&["create", "namespace", name]);
        }
    }
    Outcome {
        took,
        memory,
        told,
        before: read_by_api(cluster, own, &input),
        after: read_by_api(cluster, own, &output),
        byte_for_byte: input == output,
    }
}

/// Returns what the API server would make of a file, and what it refuses.
fn read_by_api(cluster: &Cluster, own: &Path, text: &[u8]) -> (Vec<Value>, Vec<String>) {
    let file = own.join("read.yaml");
    fs::write(&file, text).unwrap();
    let output = cluster.kubectl(&[
        "create",
        "--dry-run=server",
        "--output",
        "json",
        "--filename",
        file.to_str().unwrap(),
    ]);
    let objects = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let objects = objects.map(|object| comparable(object.unwrap())).collect();
    let refused = String::from_utf8_lossy(&output.stderr);
    (objects, refused.lines().map(ToOwned::to_owned).collect())
}

/// Whether both files make the same but for images and Kagami's annotations; else where they differ.
fn same(outcome: &Outcome) -> Result<(), String> {
    let Outcome { before, after, .. } = outcome;
    if before.1 != after.1 {
        return Err(format!("refused is {:#?}\nand was {:#?}", after.1, before.1));
    }
    if before.0.len() != after.0.len() {
        return Err(format!("{} objects were {}", after.0.len(), before.0.len()));
    }
    let mut images = BTreeMap::new();
    for (before, after) in before.0.iter().zip(&after.0) {
        differences(before, after, &mut Vec::new(), &mut images)?;
    }
    Ok(())
}

fn differences<'a>(
    before: &'a Value,
    after: &'a Value,
    path: &mut Vec<String>,
    images: &mut BTreeMap<&'a str, &'a str>,
) -> Result<(), String> {
    match (before, after) {
        (Value::Object(one), Value::Object(other)) if one.len() == other.len() => {
            for (name, value) in one {
                path.push(name.clone());
                differences(value, other.get(name).unwrap_or(&Value::Null), path, images)?;
                path.pop();
            }
            Ok(())
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                path.push(index.to_string());
                differences(one, other, path, images)?;
                path.pop();
            }
            Ok(())
        }
        (Value::String(one), Value::String(other))
            if path
                .last()
                .is_some_and(|name| name == "image" || name == "reference")
                && one != other
                && other.starts_with(REGISTRY)
                && *images.entry(one).or_insert(other) == other =>
        {
            Ok(())
        }
        _ if before == after => Ok(()),
        _ => Err(format!("{} is {after} and was {before}", path.join("."))),
    }
}

/// Starts a registry that has every tag and digest of every repository, and returns its address.
fn start_registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let image = single(MediaType::OciManifest, "any");
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let image = image.clone();
            thread::spawn(move || answer_all(connection, &image));
        }
    });
    format!("http://{address}")
}

fn answer_all(mut connection: TcpStream, image: &Image) {
    let mut lines = BufReader::new(connection.try_clone().unwrap())
        .lines()
        .map_while(Result::ok);
    while let Some(request) = lines.next() {
        // The head ends with an empty line; no request has a body.
        while lines.next().is_some_and(|line| !line.is_empty()) {}
        let reference = request.split([' ', '/']).rev().nth(2).unwrap_or_default();
        let (kind, digest, body) = if request.contains("/manifests/") {
            // A digest that is asked for is the one of the answer: nobody looks at the body's.
            let own = image.digest.to_string();
            let digest = if reference.starts_with("sha256:") {
                reference
            } else {
                &own
            };
            (
                image.media_type.as_str(),
                digest.to_owned(),
                image.manifest.as_slice(),
            )
        } else {
            ("application/json", String::new(), b"{}".as_slice())
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {digest}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let is_head = request.starts_with("HEAD ");
        let body = if is_head { b"" } else { body };
        if connection.write_all(&[head.as_bytes(), body].concat()).is_err() {
            return;
        }
    }
}
