//! `kagami review` as a person runs it: what comes out means what went in.

use std::time::Duration;

use kagami::domain::answer::MediaType;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    commands::{Told, everything, run},
    faulty::{Action, Behaviour, Faulty, Reply},
    images::single,
};

/// What a busy machine adds, the start of a program included.
const SLACK: Duration = Duration::from_millis(1500);

/// Runs `kagami review` over a text, with a mirror that has everything, and time for a busy machine.
async fn review(input: impl AsRef<[u8]>) -> Told {
    let registry = Faulty::start(Behaviour::answer(everything)).await;
    run(
        &registry.url(),
        &["review", "input", "--budget", "20s"],
        input.as_ref(),
    )
    .await
}

#[tokio::test]
async fn only_images_and_annotations_change() {
    let told = review(
        "\
# Modes are octal here.
apiVersion: v1
kind: Pod
metadata:
  name: modes
  annotations: {a: \"0644\", b: \"1_000\", c: \"on\", d: \"12e3\", e: \"0x1F\", f: \"22:22\", g: \"~\"}
spec:
  containers:
  - name: app
    image: nginx:1.27 # the newest
    env: [{name: N, value: \"007\"}, {name: Y, value: \"y\"}]
  - {name: other, image: 'quay.io/other/app:1'}
  volumes:
  - {name: s, secret: {secretName: s, defaultMode: 0400}}
  - {name: c, configMap: {name: c, defaultMode: 0644, items: [{key: k, path: p, mode: 0755}]}}
---
# Nothing to rewrite.
apiVersion: v1
kind: ConfigMap
metadata: {name: odd}
data: {a: .inf, b: 0x1F}
",
    )
    .await;
    assert_eq!(told.code, 0, "{}", told.complaints);
    let image = single(MediaType::OciManifest, "any");
    let decisions = json!({
        "containers.app": {
            "outcome": "Rewritten", "reason": "Mirrored", "mirror": "main", "digest": image.digest.to_string(),
        },
    });
    let decisions = Value::String(decisions.to_string());
    let expected = format!(
        "\
# Modes are octal here.
apiVersion: v1
kind: Pod
metadata:
  name: modes
  annotations: {{\"original-image.kagami.dev/app\": \"nginx:1.27\", \"kagami.dev/decisions\": {decisions}, a: \"0644\", b: \"1_000\", c: \"on\", d: \"12e3\", e: \"0x1F\", f: \"22:22\", g: \"~\"}}
spec:
  containers:
  - name: app
    image: mirror.test/docker.io/library/nginx:1.27 # the newest
    env: [{{name: N, value: \"007\"}}, {{name: Y, value: \"y\"}}]
  - {{name: other, image: 'quay.io/other/app:1'}}
  volumes:
  - {{name: s, secret: {{secretName: s, defaultMode: 0400}}}}
  - {{name: c, configMap: {{name: c, defaultMode: 0644, items: [{{key: k, path: p, mode: 0755}}]}}}}
---
# Nothing to rewrite.
apiVersion: v1
kind: ConfigMap
metadata: {{name: odd}}
data: {{a: .inf, b: 0x1F}}
"
    );
    assert_eq!(told.out, expected);
}

#[tokio::test]
async fn without_an_image_to_rewrite_the_output_is_the_input() {
    let kept = "\
# Both stay upstream: no annotation says so, for it would roll the template out.
kind: Deployment
apiVersion: apps/v1
metadata:   {name: web}
spec:
  template:
    spec:
      containers:
      - image:   \"quay.io/other/app:1\"
        name: a
      - {name: b, image: missing}
";
    let odd = "\u{feff}a:   .inf\r\nkind: X\r\n---\r\n\u{feff}b: 0400\r\n...\r\n---\r\n# end";
    let json = "{\"kind\":\t\"PodList\", \"apiVersion\": \"v1\",\n\t\"items\": [ ]}";
    for input in [kept, odd, json] {
        let told = review(input).await;
        assert_eq!((told.code, told.out.as_str()), (0, input), "{}", told.complaints);
    }
}

#[tokio::test]
async fn what_no_edit_can_change_alone_is_written_anew() {
    let told = review(
        "\
# lost
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - &c {name: a, image: nginx}
  initContainers:
  - *c
  securityContext: {fsGroup: 0400, supplementalGroups: [1_000]}
  hostname: \"0400\"
---
# kept
kind: X
",
    )
    .await;
    assert_eq!(told.code, 0, "{}", told.complaints);
    assert!(
        told.complaints.contains("document 1: written anew"),
        "{}",
        told.complaints
    );
    assert!(told.out.ends_with("---\n# kept\nkind: X\n"), "{}", told.out);
    for expected in [
        "fsGroup: 256",
        "- 1000",
        "hostname: \"0400\"",
        "image: mirror.test/docker.io/library/nginx\n",
    ] {
        assert!(told.out.contains(expected), "no {expected} in\n{}", told.out);
    }
}

#[tokio::test]
async fn the_budget_is_the_commands() {
    // It is healthy, and says nothing of any image.
    let silent = Faulty::start(Behaviour::answer(|request| {
        if request.target == "/v2/" {
            Reply::json(200, &json!({})).into()
        } else {
            Action::Hang
        }
    }))
    .await;
    let pod = |index: usize| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{index}")},
            "spec": {"containers": [{"name": "a", "image": format!("app{index}:1")}]},
        })
    };
    let pods: Vec<String> = (0..300).map(|index| pod(index).to_string()).collect();
    let input = pods.join("\n---\n");
    let started = Instant::now();
    let told = run(
        &silent.url(),
        &["review", "input", "--budget", "1s"],
        input.as_bytes(),
    )
    .await;
    let took = started.elapsed();
    assert_eq!((told.code, told.out), (0, input));
    let exhausted = told.complaints.matches("BudgetExhausted").count();
    assert_eq!(exhausted, 300, "{}", told.complaints);
    assert!(took < Duration::from_secs(1) + SLACK, "{took:?}");
}

#[tokio::test]
async fn a_review_becomes_its_answer() {
    let review_of = crate::shared::reviews::review(&["nginx:1.27"]);
    for input in [
        review_of.to_string(),
        format!("# why\n---\n{review_of}\n---\nkind: X\n"),
    ] {
        let told = review(&input).await;
        assert_eq!(told.code, 0, "{}", told.complaints);
        let is_json = input.starts_with('{');
        let answer: Value = if is_json {
            serde_json::from_str(&told.out).unwrap()
        } else {
            assert!(told.out.ends_with("---\nkind: X\n"), "{}", told.out);
            kagami::state::file::decode_documents(&told.out)
                .unwrap()
                .remove(0)
        };
        assert_eq!(answer["response"]["uid"], review_of["request"]["uid"]);
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        assert!(told.complaints.contains("Rewritten"), "{}", told.complaints);
    }
}

const MIRRORED: &str = "mirror.test/docker.io/library/nginx:1.27";

/// Returns what a text becomes, as JSON, and checks how many images were rewritten in it.
#[track_caller]
fn rewritten(told: &Told, count: usize) -> Vec<Value> {
    assert_eq!(told.code, 0, "{}", told.complaints);
    assert_eq!(
        told.out.matches(MIRRORED).count(),
        count,
        "{}\n{}",
        told.out,
        told.complaints
    );
    kagami::state::file::decode_documents(&told.out).unwrap()
}

#[tokio::test]
async fn items_of_a_typed_list_are_of_its_type() {
    let pod =
        json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "nginx:1.27"}]}});
    let deployment =
        json!({"metadata": {"name": "d", "namespace": "shop"}, "spec": {"template": {"spec": pod["spec"]}}});
    let list = |kind: &str, version: &str, items: Value| json!({"kind": kind, "apiVersion": version, "items": items});
    for input in [
        list("PodList", "v1", json!([pod, pod])),
        list("DeploymentList", "apps/v1", json!([deployment, deployment])),
        list(
            "List",
            "v1",
            json!([
                list("PodList", "v1", json!([pod])),
                list("PodList", "v1", json!(null)),
                list("DeploymentList", "apps/v1", json!([deployment])),
            ]),
        ),
        json!([pod, {"kind": "Pod", "apiVersion": "v1", "metadata": pod["metadata"], "spec": pod["spec"]}]),
    ] {
        let told = review(input.to_string()).await;
        let read = rewritten(&told, 2);
        assert_eq!(read.len(), 1);
        assert_eq!(told.complaints.lines().count(), 3, "{}", told.complaints);
    }
    let told = review(list("DeploymentList", "apps/v1", json!([deployment])).to_string()).await;
    assert!(
        told.complaints.contains("shop       d    containers.c"),
        "{}",
        told.complaints
    );
}

#[tokio::test]
async fn well_known_kinds_of_others_are_looked_into() {
    let text = "\
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: r}
spec:
  template:
    spec: {containers: [{name: a, image: nginx:1.27}]}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: k}
spec:
  template:
    spec: {containers: [{image: nginx:1.27}]}
---
# Of the core: it has no Pods.
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {ports: [{port: 80}]}
---
apiVersion: batch.volcano.sh/v1alpha1
kind: Job
metadata: {name: v}
spec:
  tasks:
  - {name: a, template: {spec: {containers: [{name: a, image: nginx:1.27}]}}}
  - {name: b, template: {spec: {initContainers: [{name: a, image: nginx:1.27}]}}}
---
apiVersion: template.openshift.io/v1
kind: Template
metadata: {name: t}
objects:
- apiVersion: apps.openshift.io/v1
  kind: DeploymentConfig
  metadata: {name: d, annotations: null}
  spec:
    template:
      metadata: {annotations: null}
      spec:
        containers:
        - {name: a, image: ' '}
        - {name: b, image: nginx:1.27}
        - {name: c, image: '${IMAGE}'}
---
apiVersion: tekton.dev/v1
kind: Task
metadata: {name: build}
spec:
  steps:
  - name: make
    image: nginx:1.27
    script: 'true'
  - image: $(params.image)
  sidecars:
  - {name: db, image: nginx:1.27}
";
    let told = review(text).await;
    let read = rewritten(&told, 7);
    let task = &read[5];
    assert_eq!(task["spec"]["steps"][0]["image"], MIRRORED);
    assert_eq!(task["spec"]["sidecars"][0]["image"], MIRRORED);
    // Tekton's Pods have the annotations of their Task.
    let annotations = &task["metadata"]["annotations"];
    assert_eq!(annotations["original-image.kagami.dev/step-make"], "nginx:1.27");
    assert_eq!(annotations["original-image.kagami.dev/sidecar-db"], "nginx:1.27");
    // Knative names a container that has no name.
    let annotations = &read[1]["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(
        annotations["original-image.kagami.dev/user-container"],
        "nginx:1.27"
    );
    let template = &read[4]["objects"][0]["spec"]["template"];
    assert_eq!(
        template["metadata"]["annotations"]["original-image.kagami.dev/b"],
        "nginx:1.27"
    );
    for expected in [
        "\" \": it is blank: in OpenShift's templates a trigger fills it in",
        "${IMAGE}: it is a parameter that somebody has yet to fill in",
        "$(params.image): it is a parameter that somebody has yet to fill in",
    ] {
        assert!(
            told.complaints.contains(expected),
            "no {expected} in\n{}",
            told.complaints
        );
    }
}

#[tokio::test]
async fn what_is_not_looked_into_is_counted_by_kind() {
    let text = "\
apiVersion: argoproj.io/v1alpha1
kind: Workflow
spec: {templates: [{name: a, container: {image: nginx:1.27}}]}
---
apiVersion: argoproj.io/v1alpha1
kind: Workflow
spec: {templates: [{name: a, container: {image: nginx:1.27}}]}
---
apiVersion: example.com/v1
kind: Deployment
spec: {pods: {spec: {containers: [{name: a, image: nginx:1.27}]}}}
---
apiVersion: example.com/v1
kind: Other
spec: {containers: {type: array, image: {type: string}}}
---
image: nginx:1.27
replicas: 2
";
    let told = review(text).await;
    assert_eq!((told.code, told.out.as_str()), (0, text), "{}", told.complaints);
    let expected = "\
no image was decided about: there is no Pod, or nothing that creates one, in it
not looked into, although images stand in it: 1 × Deployment (example.com/v1)
not looked into, although images stand in it: 2 × Workflow (argoproj.io/v1alpha1)
document 5: not looked into, because it has no kind
";
    assert_eq!(told.complaints, expected);
}

#[tokio::test]
async fn what_is_no_object_is_refused() {
    let utf16: Vec<u8> = "kind: Pod\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (input, expected) in [
        (
            "Error from server (NotFound)\n".as_bytes(),
            "1: document 1: is text, not an object",
        ),
        (b"kind: X\n---\n7\n", "3: document 2: is a number, not an object"),
        (
            b"[{\"kind\": \"X\"}, \"a\"]",
            "1: document 1: is a list of something else than objects",
        ),
        (b"", "there is no document in it"),
        (b"# nothing\n", "there is no document in it"),
        (
            &utf16,
            "this is UTF-16, as PowerShell's `>` writes it: save it as UTF-8",
        ),
        (b"kind: X\na: \xe9\n", "line 2 is not UTF-8"),
    ] {
        let told = review(input).await;
        assert_eq!((told.code, told.out.as_str()), (2, ""), "{}", told.complaints);
        assert!(
            told.complaints.contains(expected),
            "no {expected} in {}",
            told.complaints
        );
        assert_eq!(told.complaints.lines().count(), 1, "{}", told.complaints);
    }
}

#[tokio::test]
async fn what_no_api_server_takes_is_passed_on_as_it_is() {
    for input in [
        "null\n",
        "kind: Pod\nmetadata: web\nspec: {containers: [{name: a, image: \"nginx:1.27\"}]}\n",
        "kind: Pod\nmetadata: {annotations: none}\nspec: {containers: [{name: a, image: \"nginx:1.27\"}]}\n",
        "apiVersion: apps/v1\nkind: Deployment\nspec: {template: web}\n",
        "apiVersion: serving.knative.dev/v1\nkind: Service\nspec: {template: {spec: x}}\n",
    ] {
        let input = format!("kind: ConfigMap\n---\n{input}");
        let told = review(&input).await;
        assert_eq!(
            (told.code, told.out.as_str()),
            (0, input.as_str()),
            "{}",
            told.complaints
        );
    }
}

#[tokio::test]
async fn a_raw_helm_template_is_told_as_what_it_is() {
    for (input, line) in [
        ("{{- if .Values.on }}\nkind: Pod\n{{- end }}\n", 1),
        (
            "kind: Pod\nspec:\n  {{- with .Values.x }}\n  a: b\n  {{- end }}\n",
            3,
        ),
        (
            "kind: Pod\nspec:\n  containers:\n  - image: {{ .Values.image }}\n",
            4,
        ),
    ] {
        let told = review(input).await;
        assert_eq!((told.code, told.out.as_str()), (2, ""), "{}", told.complaints);
        let expected = format!("line {line} is of a template: render it first, as with `helm template`");
        assert!(
            told.complaints.contains(&expected),
            "no {expected} in {}",
            told.complaints
        );
    }
    let quoted = "kind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - {name: a, image: \"{{ .Values.image }}\"}\n";
    let told = review(quoted).await;
    assert_eq!((told.code, told.out.as_str()), (0, quoted), "{}", told.complaints);
    assert!(
        told.complaints
            .contains("render it first, as with `helm template`"),
        "{}",
        told.complaints
    );
}

#[tokio::test]
async fn istios_placeholder_is_told_as_what_it_is() {
    let text = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: gateway, namespace: ingress}
spec:
  selector: {matchLabels: {app: gateway}}
  template:
    metadata:
      labels: {app: gateway, sidecar.istio.io/inject: \"true\"}
      annotations: {inject.istio.io/templates: gateway}
    spec: {containers: [{name: istio-proxy, image: auto}]}
";
    let told = review(text).await;
    assert_eq!((told.code, told.out.as_str()), (0, text), "{}", told.complaints);
    assert!(
        told.complaints.contains("Kept     Placeholder"),
        "{}",
        told.complaints
    );
}

#[tokio::test]
async fn images_that_are_passed_on_to_programs_are_told() {
    let told = review(
        "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: operator}
spec:
  template:
    spec:
      containers:
      - name: operator
        image: org/operator:v1
        args: [--prometheus-config-reloader=docker.io/org/reloader:v1, --listen=localhost:8080]
        env:
        - {name: OPERATOR_IMAGE_NAME, value: org/operator:v1}
        - {name: RELATED_IMAGES, value: \"org/a:1,quay.io/org/b:1\"}
---
apiVersion: v1
kind: Pod
metadata: {name: mine, labels: {kagami.dev/mode: \"off\"}}
spec: {containers: [{name: a, image: org/operator:v1, args: [--image=org/operator:v1]}]}
",
    )
    .await;
    assert_eq!(told.code, 0, "{}", told.complaints);
    let lines: Vec<_> = told
        .complaints
        .lines()
        .filter(|line| line.contains("passes on"))
        .collect();
    assert_eq!(
        lines,
        [
            "operator containers.operator: --prometheus-config-reloader passes on docker.io/org/reloader:v1",
            "operator containers.operator: OPERATOR_IMAGE_NAME passes on org/operator:v1",
            "operator containers.operator: RELATED_IMAGES passes on org/a:1",
        ],
        "{}",
        told.complaints
    );
    assert!(
        told.complaints.contains("docs/neighbours.md"),
        "{}",
        told.complaints
    );

    // The same of an AdmissionReview, and only so many lines.
    let values: Vec<_> = (0..9).map(|index| format!("org/a:{index}")).collect();
    let container = |index: usize| {
        json!({
            "name": format!("c{index}"), "image": "nginx:1.27",
            "env": [{"name": "IMAGES", "value": values.join(",")}],
        })
    };
    let pod = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"containers": [container(0)]},
        })
    };
    let mut review_of = crate::shared::reviews::review(&["nginx:1.27"]);
    review_of["request"]["object"]["spec"]["containers"][0]["env"] = container(0)["env"].clone();
    let told = review(review_of.to_string()).await;
    assert!(
        told.complaints.contains(": IMAGES passes on org/a:8\n"),
        "{}",
        told.complaints
    );
    let list = json!({"apiVersion": "v1", "kind": "PodList", "items": [pod("a"), pod("b"), pod("c")]});
    let told = review(list.to_string()).await;
    assert_eq!(
        told.complaints.matches(" passes on ").count(),
        20,
        "{}",
        told.complaints
    );
    assert!(told.complaints.contains("\nand 7 more\n"), "{}", told.complaints);
}
