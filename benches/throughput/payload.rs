//! The reviews that are sent: Pods as an API server sends them at CREATE, rendered once. For each
//! request only the UID and the numbers in the image names are patched, so that making a request
//! costs next to nothing.
//!
//! Apart from the reviews of the tests, which have what decides alone: these are as long as real ones, and
//! the bench within one process has them too.

use std::ops::Range;

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

/// Stands for the number in an image's name; as long as that number is.
const SLOT: &str = "######";

/// Stands for the number in the review's UID.
const UID_SLOT: &str = "@@@@@@@@@@@@";

/// Images of which the bench sends Pods, by number. They differ in their number only.
#[derive(Clone, Copy, Debug)]
pub struct Images {
    pub first: usize,
    pub count: usize,
}

impl Images {
    /// Returns the number of an image of the review of this number, for Pods of `width` images.
    pub const fn number(self, review: usize, width: usize, place: usize) -> usize {
        self.first + (review * width + place) % self.count
    }
}

/// Returns an image as users write it.
pub fn image(number: usize) -> String {
    image_at(&format!("{number:06}"))
}

fn image_at(number: &str) -> String {
    format!("acme/payments-{number}:v1.27.3")
}

/// One review, ready to be sent but for its numbers.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The whole request, head and body.
    bytes: Vec<u8>,
    head: usize,
    /// A Pod has none.
    uid: Option<usize>,
    images: Vec<usize>,
}

impl Payload {
    /// Returns a review of a Pod with so many init containers and containers, for a request to this
    /// path.
    pub fn new(path: &str, init_containers: usize, containers: usize) -> Result<Self> {
        let body = serde_json::to_string(&review(init_containers, containers))?;
        Self::render(&head(path, body.len()), &body, init_containers + containers)
    }

    /// Returns a review of a plain Pod whose one image is another host's.
    pub fn of_host(path: &str, host: &str) -> Result<Self> {
        let mut pod = pod(0, 1);
        pod["spec"]["containers"][0]["image"] = format!("{host}/{}", image_at(SLOT)).into();
        let body = serde_json::to_string(&review_of(pod))?;
        Self::render(&head(path, body.len()), &body, 1)
    }

    /// Returns a review with a body of its own, which has no numbers but, if any, that of its UID.
    pub fn of_body(path: &str, body: &str) -> Result<Self> {
        Self::render(&head(path, body.len()), body, 0)
    }

    /// Returns the request of a user who lets the API server try to create such a Pod.
    pub fn dry_run(namespace: &str, token: &str, init_containers: usize, containers: usize) -> Result<Self> {
        let mut pod = pod(init_containers, containers);
        pod["metadata"]["namespace"] = namespace.into();
        // What the API server makes of it itself.
        if let Some(metadata) = pod["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        for account in ["serviceAccount", "serviceAccountName"] {
            pod["spec"][account] = "default".into();
        }
        // Only sidecars may have one.
        let prepare = pod["spec"]["initContainers"].as_array_mut().into_iter();
        prepare
            .flatten()
            .filter_map(Value::as_object_mut)
            .for_each(|container| drop(container.remove("livenessProbe")));
        let body = serde_json::to_string(&pod)?;
        let head = format!(
            "POST /api/v1/namespaces/{namespace}/pods?dryRun=All HTTP/1.1\r\nHost: kubernetes\r\n\
             Authorization: Bearer {token}\r\nContent-Length: {}\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\n\r\n",
            body.len()
        );
        Self::render(&head, &body, init_containers + containers)
    }

    fn render(head: &str, body: &str, width: usize) -> Result<Self> {
        let images: Vec<usize> = body
            .match_indices(SLOT)
            .map(|(position, _)| position + head.len())
            .collect();
        ensure!(images.len() == width, "each container has one image");
        Ok(Self {
            head: head.len(),
            uid: body.find(UID_SLOT).map(|position| position + head.len()),
            bytes: [head, body].concat().into_bytes(),
            images,
        })
    }

    /// Returns the number of images.
    pub const fn width(&self) -> usize {
        self.images.len()
    }

    /// Returns the review's UID at a number.
    pub fn uid(number: usize) -> String {
        format!("9c1d8f4e-5a0b-4c36-8d77-{number:012}")
    }

    /// Makes this the review of that number, with images to match.
    pub fn number(&mut self, review: usize, images: Images) {
        let width = self.images.len();
        if let Some(uid) = self.uid {
            write_digits(&mut self.bytes, uid..uid + UID_SLOT.len(), review);
        }
        for (place, position) in self.images.iter().copied().enumerate() {
            let number = images.number(review, width, place);
            write_digits(&mut self.bytes, position..position + SLOT.len(), number);
        }
    }

    /// Returns the request as it is now.
    pub fn request(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the review as it is now.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.head..]
    }
}

fn head(path: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: kagami.kagami.svc:443\r\n\
         User-Agent: kube-apiserver-admission\r\nContent-Length: {length}\r\n\
         Accept: application/json, */*\r\nContent-Type: application/json\r\n\
         Accept-Encoding: gzip\r\n\r\n"
    )
}

/// Returns a review's body around a Pod.
pub fn review_of(pod: Value) -> Value {
    let mut review = review(0, 1);
    review["request"]["object"] = pod;
    review
}

/// Returns a Pod of one container, `app-0`, as an API server has it.
pub fn pod_with(namespace: &str, name: &str, image: &str) -> Value {
    let mut pod = pod(0, 1);
    pod["metadata"]["namespace"] = namespace.into();
    pod["metadata"]["name"] = name.into();
    pod["spec"]["containers"][0]["image"] = image.into();
    pod
}

/// Makes of a Pod as an API server has it one that a user creates.
pub fn as_user(pod: &mut Value) {
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        // Who owns a Pod that does not exist is deleted with it.
        metadata.remove("ownerReferences");
    }
    for account in ["serviceAccount", "serviceAccountName"] {
        pod["spec"][account] = "default".into();
    }
}

/// Returns a Pod of one container, whose name and image have this number, as its user creates it.
pub fn pod_of(number: usize) -> Result<String> {
    pod_called(&format!("payments-{number:06}"), &image(number))
}

/// The same with a name and an image of its own.
pub fn pod_called(name: &str, image: &str) -> Result<String> {
    let mut pod = pod(0, 1);
    pod["metadata"] = json!({"name": name});
    pod["spec"]["containers"][0]["image"] = image.into();
    for account in ["serviceAccount", "serviceAccountName"] {
        pod["spec"][account] = "default".into();
    }
    Ok(serde_json::to_string(&pod)?)
}

fn write_digits(bytes: &mut [u8], range: Range<usize>, mut number: usize) {
    for byte in bytes[range].iter_mut().rev() {
        *byte = b"0123456789"[number % 10];
        number /= 10;
    }
}

/// Returns an AdmissionReview with the fields that an API server sends for a Pod of a ReplicaSet.
fn review(init_containers: usize, containers: usize) -> Value {
    let user = json!({
        "username": "system:serviceaccount:kube-system:replicaset-controller",
        "uid": "f4a7c9b1-62de-4c0a-9a52-1f0c6e5b7d39",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
    });
    let of_pods = json!({"group": "", "version": "v1", "resource": "pods"});
    let pod_kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": format!("9c1d8f4e-5a0b-4c36-8d77-{UID_SLOT}"),
            "kind": pod_kind,
            "resource": of_pods,
            "requestKind": pod_kind,
            "requestResource": of_pods,
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": user,
            "object": pod(init_containers, containers),
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

fn pod(init_containers: usize, containers: usize) -> Value {
    let list = |names: &str, number: usize| -> Vec<Value> {
        (0..number)
            .map(|index| {
                let mut container = container(&format!("{names}-{index}"));
                if init_containers == 0 && containers == 1 {
                    // The small Pod is a plain one.
                    let fields = container.as_object_mut().into_iter();
                    fields.for_each(|fields| fields.retain(|key, _| !RICH.contains(&key.as_str())));
                }
                container
            })
            .collect()
    };
    let mut spec = json!({
        "volumes": [
            {"name": "config", "configMap": {"name": "payments", "defaultMode": 420}},
            {"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef":
                    {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            ]}},
        ],
    });
    if init_containers > 0 {
        spec["initContainers"] = list("prepare", init_containers).into();
    }
    spec["containers"] = list("app", containers).into();
    let rest = json!({
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "payments",
        "serviceAccount": "payments",
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "schedulerName": "default-scheduler",
        "tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
             "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
             "tolerationSeconds": 300},
        ],
        "priority": 0,
        "enableServiceLinks": true,
        "preemptionPolicy": "PreemptLowerPriority",
    });
    append(&mut spec, rest);
    let mut metadata = json!({
        "generateName": "payments-7c9d8b6f4d-",
        "namespace": "shop",
        "creationTimestamp": null,
        "labels": {"app.kubernetes.io/name": "payments", "pod-template-hash": "7c9d8b6f4d"},
    });
    if init_containers > 0 {
        metadata["annotations"] = json!({
            "prometheus.io/scrape": "true",
            "prometheus.io/port": "9090",
            "checksum/config": "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
        });
    }
    let owner = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "payments-7c9d8b6f4d",
        "uid": "3d2f5b7e-8c41-4f2a-b1d6-6e0f9a7c5b24", "controller": true, "blockOwnerDeletion": true,
    }]);
    append(
        &mut metadata,
        json!({"ownerReferences": owner, "managedFields": managed_fields(&spec)}),
    );
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": {}})
}

/// What plain containers do without.
const RICH: [&str; 4] = ["env", "livenessProbe", "ports", "securityContext"];

fn container(name: &str) -> Value {
    json!({
        "name": name,
        "image": image_at(SLOT),
        "args": ["--listen=:8080", "--log-format=json"],
        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
        "env": [
            {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef":
                {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}},
            {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "database", "key": "url"}}},
        ],
        "resources": {"limits": {"memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/payments", "readOnly": true},
            {"name": "kube-api-access-x7k2p", "readOnly": true,
             "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
        ],
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"},
            "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {"capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": false},
    })
}

/// Returns what the API server notes of who set which field: it lists nearly every one.
fn managed_fields(spec: &Value) -> Value {
    let mut fields = Map::new();
    for (key, value) in spec.as_object().into_iter().flatten() {
        let owned = match key.as_str() {
            "containers" | "initContainers" => by_name(value, true),
            "volumes" => by_name(value, false),
            _ => json!({}),
        };
        fields.insert(format!("f:{key}"), owned);
    }
    json!([{
        "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
        "time": "2026-11-03T09:12:44Z", "fieldsType": "FieldsV1",
        "fieldsV1": {
            "f:metadata": {
                "f:generateName": {},
                "f:labels": {".": {}, "f:app.kubernetes.io/name": {}, "f:pod-template-hash": {}},
                "f:ownerReferences": {".": {}, "k:{\"uid\":\"3d2f5b7e-8c41-4f2a-b1d6-6e0f9a7c5b24\"}": {}},
            },
            "f:spec": fields,
        },
    }])
}

fn by_name(list: &Value, all: bool) -> Value {
    let mut fields = Map::new();
    for entry in list.as_array().into_iter().flatten() {
        let mut owned = Map::new();
        owned.insert(".".to_owned(), json!({}));
        // What admission plugins inject (the token's volume) has no owner.
        for key in entry
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
            .filter(|_| all)
        {
            owned.insert(format!("f:{key}"), json!({}));
        }
        fields.insert(format!("k:{{\"name\":{}}}", entry["name"]), owned.into());
    }
    fields.into()
}

fn append(object: &mut Value, more: Value) {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
}
