//! An object store that speaks S3 (SeaweedFS), in which a registry may keep its data.

use std::{fs, process::Command};

use serde_json::{Value, json};

use super::node::{self, Node};
use crate::shared::{eventually, process::Process};

/// Programs of `scripts/tools` that it consists of.
pub(crate) const PROGRAMS: &[&str] = &["weed"];

const BUCKET: &str = "registry";
const KEY: &str = "registry";
const SECRET: &str = "through-the-looking-glass";

/// The one object store of the machine: it has its usual ports.
#[derive(Debug)]
pub(crate) struct ObjectStore {
    _process: Process,
    url: String,
}

impl ObjectStore {
    /// Starts it at the node's address with one bucket, of which it gives nothing to strangers.
    pub(crate) fn start(node: &Node) -> Self {
        let cluster = &node.cluster;
        let folder = cluster.folder().join("object-store");
        fs::create_dir(&folder).unwrap();
        let identities = json!({"identities": [{
            "name": "registry",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }]});
        let path = |name: &str| folder.join(name).display().to_string();
        fs::write(folder.join("identities.json"), identities.to_string()).unwrap();
        let arguments = [
            "server".to_owned(),
            format!("-dir={}", folder.display()),
            format!("-ip={}", node::ADDRESS),
            "-master.telemetry=false".to_owned(),
            "-master.volumeSizeLimitMB=64".to_owned(),
            "-volume.preStopSeconds=0".to_owned(),
            format!("-filer.localSocket={}", path("filer.sock")),
            "-s3".to_owned(),
            format!("-s3.config={}", path("identities.json")),
            format!("-s3.localSocket={}", path("s3.sock")),
            "-s3.port.iceberg=0".to_owned(),
            "-s3.port.lance=0".to_owned(),
        ];
        let mut command = Command::new(cluster.tools.path("weed"));
        let mut process = Process::start("weed", command.args(arguments), cluster.folder());
        // Buckets are folders of the file server below.
        let bucket = format!("http://{}:8888/buckets/{BUCKET}/", node::ADDRESS);
        eventually("the object store has its bucket", || {
            process.assert_alive();
            let answer = cluster.http.send(cluster.http.client.post(&bucket)).ok()?;
            (answer.status == 201).then_some(())
        });
        let store = Self {
            _process: process,
            url: format!("http://{}:8333", node::ADDRESS),
        };
        eventually("the object store speaks S3", || {
            let url = format!("{}/{BUCKET}/", store.url);
            let answer = cluster.http.send(cluster.http.client.get(&url)).ok()?;
            (answer.status == 403).then_some(())
        });
        store
    }

    /// What a registry (distribution) is to be told of it.
    pub(crate) fn settings(&self) -> Value {
        json!({"s3": {
            "region": "us-east-1",
            "regionendpoint": self.url,
            "bucket": BUCKET,
            "accesskey": KEY,
            "secretkey": SECRET,
            "secure": false,
            "forcepathstyle": true,
        }})
    }
}
