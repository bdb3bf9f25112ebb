//! `kagami review`: answers a review, or rewrites Pods and workloads, from a file.

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    BadSettings,
    arguments::ReviewArguments,
    oneshot::{self, Asked, Once},
    output::{self, Table},
};
use crate::{
    domain::{decision::Probing, mirror::Mode},
    state::{
        file::{decode_documents, encode_document},
        replica::Images,
    },
};

/// Where Pod templates stand in the kinds that have one, as JSON pointers.
const TEMPLATES: [(&str, &str); 9] = [
    ("Pod", ""),
    ("PodTemplate", "/template"),
    ("Deployment", "/spec/template"),
    ("ReplicaSet", "/spec/template"),
    ("ReplicationController", "/spec/template"),
    ("StatefulSet", "/spec/template"),
    ("DaemonSet", "/spec/template"),
    ("Job", "/spec/template"),
    ("CronJob", "/spec/jobTemplate/spec/template"),
];

pub(super) async fn run(arguments: ReviewArguments) -> anyhow::Result<()> {
    let ReviewArguments {
        file,
        once,
        heal,
        mode,
        namespace,
    } = arguments;
    let text = oneshot::read_input(&file)?;
    let name = if file.as_os_str() == "-" {
        "standard input".to_owned()
    } else {
        file.display().to_string()
    };
    let documents = decode_documents(&text).map_err(|mut fault| {
        fault.file.clone_from(&name);
        BadSettings::one(fault.to_string())
    })?;
    if documents.is_empty() {
        return Err(BadSettings::one(format!("{name}: there is no document in it")).into());
    }
    let asked = Asked {
        images: Images::All,
        namespace,
        probing: Probing::Hosted,
        heal: heal.heal,
    };
    let reviewer = Reviewer {
        once: Once::start(&once, asked).await?,
        mode: mode.map(Mode::from),
    };
    reviewer.once.notes.iter().for_each(|note| output::complain(note));
    let json = text.trim_start().starts_with(['{', '[']);
    let mut out = String::new();
    for (index, mut document) in documents.into_iter().enumerate() {
        reviewer.document(&mut document).await?;
        if json {
            out.push_str(&serde_json::to_string_pretty(&document)?);
            out.push('\n');
        } else {
            if index > 0 {
                out.push_str("---\n");
            }
            out.push_str(&encode_document(&document));
        }
    }
    let mut table = Table::new(&[
        "NAMESPACE",
        "POD",
        "PLACE",
        "OUTCOME",
        "REASON",
        "MIRROR",
        "IMAGE",
    ]);
    for decision in reviewer.once.admission.recent() {
        table.row([
            &decision.namespace,
            &decision.pod,
            &decision.place,
            decision.outcome,
            decision.reason,
            decision.mirror.as_deref().unwrap_or("-"),
            decision.rewritten.as_deref().unwrap_or(&decision.image),
        ]);
    }
    if table.is_empty() {
        output::complain("no image was decided about: there is no Pod, or nothing that creates one, in it");
    } else {
        table.lines().iter().for_each(|line| output::complain(line));
    }
    output::print(&out)
}

struct Reviewer {
    once: Once,
    mode: Option<Mode>,
}

impl Reviewer {
    /// Answers a review in place, or rewrites what creates Pods. Everything else stays as it is.
    async fn document(&self, document: &mut Value) -> anyhow::Result<()> {
        let kind = document["kind"].as_str().unwrap_or_default().to_owned();
        if kind == "AdmissionReview" {
            let namespace = document["request"]["namespace"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            *document = self.answer(document, &namespace).await?;
            return Ok(());
        }
        if kind == "List" || kind.ends_with("List") {
            for item in document["items"].as_array_mut().into_iter().flatten() {
                Box::pin(self.document(item)).await?;
            }
            return Ok(());
        }
        let Some((_, pointer)) = TEMPLATES.iter().find(|(known, _)| *known == kind) else {
            return Ok(());
        };
        let namespace = document["metadata"]["namespace"]
            .as_str()
            .unwrap_or(&self.once.namespace)
            .to_owned();
        let owner = document["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if let Some(pod) = document.pointer_mut(pointer) {
            self.rewrite(pod, &namespace, &owner).await?;
        }
        Ok(())
    }

    /// Rewrites one Pod or Pod template as admission would.
    async fn rewrite(&self, pod: &mut Value, namespace: &str, owner: &str) -> anyhow::Result<()> {
        let Some(fields) = pod.as_object() else {
            return Ok(());
        };
        // Pods have metadata; a template may do without, and a name it never has.
        let mut object = fields.clone();
        let metadata = object.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.entry("name").or_insert_with(|| json!(owner));
        }
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "review",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "operation": "CREATE",
                "namespace": namespace,
                "object": object,
            },
        });
        let answer = self.answer(&review, namespace).await?;
        let Some(patch) = answer["response"]["patch"].as_str() else {
            return Ok(());
        };
        let patch: json_patch::Patch =
            serde_json::from_slice(&STANDARD.decode(patch)?).context("the patch does not decode")?;
        if pod.get("metadata").is_none_or(Value::is_null) {
            pod["metadata"] = json!({});
        }
        json_patch::patch(pod, &patch).context("the patch does not apply")
    }

    async fn answer(&self, review: &Value, namespace: &str) -> anyhow::Result<Value> {
        let body = serde_json::to_vec(review)?;
        let mode = self.mode.unwrap_or_else(|| self.once.mode_of(namespace));
        let answer = self.once.admission.review(mode, &body, None).await?;
        Ok(serde_json::from_slice(&answer)?)
    }
}
