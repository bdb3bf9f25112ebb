//! Pull secrets: the logins of mirrors, in the namespaces that they serve and nowhere else.

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    copies::webhook,
    guards::refused,
    rights::RBAC,
    secrets::create_or_replace,
    support::{
        admission::{decision, image, pod},
        chart::Chart,
        cluster::{Cluster, Namespace, User},
        companion::{Companion, MIRRORS, Place, alone},
        eventually,
        http::Answer,
        mirror::REGISTRY,
    },
};

const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

/// The Secret of Kagami's own namespace that the login comes from.
const LOGIN: &str = "nodes";

const FLAG: &[&str] = &["--pull-secrets"];

/// The policy about pull secrets, in force for every companion. Its end is that of the test.
struct Policy<'a> {
    cluster: &'a Cluster,
    paths: Vec<String>,
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        for path in self.paths.iter().rev() {
            self.cluster.delete(path);
        }
    }
}

/// Puts the chart's policy about pull secrets in force; `edit` changes its text.
fn policy<'a>(chart: &Chart<'_>, cluster: &'a Cluster, edit: impl Fn(&str) -> String) -> Policy<'a> {
    let mut paths = Vec::new();
    for (kind, path) in [
        ("ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
        (
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        ),
    ] {
        let mut documents = chart.of_kind(kind);
        documents.retain(|document| {
            let name = document["metadata"]["name"].as_str().unwrap();
            name.ends_with("-companion-pull-secrets")
        });
        let [document] = &documents[..] else {
            panic!("{documents:?}")
        };
        let document: Value = serde_json::from_str(&edit(&document.to_string())).unwrap();
        let path = format!("{ADMISSION}/{path}");
        cluster.create(&path, &document).success();
        paths.push(format!(
            "{path}/{}",
            document["metadata"]["name"].as_str().unwrap()
        ));
    }
    Policy { cluster, paths }
}

/// Holds the companions of a place by the chart's policy.
fn hold<'a>(place: &Place<'a>) -> Policy<'a> {
    let release = format!("pulls-{}", place.own.name);
    let chart = Chart::new(
        place.cluster,
        &release,
        &place.own.name,
        "{pullSecrets: {enabled: true}}",
    );
    let account = format!(
        "request.userInfo.username == 'system:serviceaccount:{}:{release}-kagami-companion'",
        place.own.name
    );
    policy(&chart, place.cluster, |text| {
        text.replace(&account, "'companions' in request.userInfo.groups")
    })
}

/// Gives the mirror a pull secret, and lets it serve namespaces with a label of this place.
fn ask_for_login(place: &Place<'_>) {
    place.patch_mirror(&json!({"spec": {
        "pullSecret": {"secretRef": {"name": LOGIN}},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": null, "pull": place.own.name}},
    }}));
}

fn put_login(place: &Place<'_>, password: &str) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": LOGIN},
        "type": "kubernetes.io/basic-auth",
        "stringData": {"username": "node", "password": password},
    });
    create_or_replace(place, &secret);
}

/// Creates a namespace that the mirror serves.
fn served<'a>(place: &Place<'a>, mode: &str) -> Namespace<'a> {
    let namespace = place.cluster.namespace(Some(mode));
    label(&namespace, &json!({"pull": place.own.name}));
    namespace
}

/// Changes a namespace's labels.
fn label(namespace: &Namespace<'_>, labels: &Value) {
    let path = format!("/api/v1/namespaces/{}", namespace.name);
    let patch = json!({"metadata": {"labels": labels}});
    let cluster = namespace.cluster;
    cluster
        .patch(User::Admin, "application/merge-patch+json", &path, &patch)
        .success();
}

fn found(namespace: &Namespace<'_>) -> Option<Value> {
    let answer = namespace.cluster.get(&namespace.path("secrets/kagami-pull"));
    (answer.status == 200).then(|| answer.success())
}

/// The logins of a pull secret, by key: user and password.
fn logins(secret: &Value) -> Value {
    let config = secret["data"][".dockerconfigjson"].as_str().unwrap();
    let config: Value = serde_json::from_slice(&BASE64.decode(config).unwrap()).unwrap();
    config["auths"].clone()
}

fn expected(password: &str) -> Value {
    json!({format!("{REGISTRY}/docker.io/"): {"username": "node", "password": password}})
}

/// Waits until a namespace's Secret has the login with this password, or is not there.
fn until_held(namespace: &Namespace<'_>, password: Option<&str>) {
    eventually(&format!("{} has {password:?}", namespace.name), || {
        let held = found(namespace).map(|secret| logins(&secret));
        (held == password.map(expected)).then_some(())
    });
}

/// Waits until the status names these namespaces, and the condition has this reason.
fn until_told(place: &Place<'_>, namespaces: &[&Namespace<'_>], reason: &str) -> Value {
    let mut names: Vec<_> = namespaces
        .iter()
        .map(|namespace| namespace.name.as_str())
        .collect();
    names.sort_unstable();
    eventually(&format!("{reason} with {names:?}"), || {
        let mirror = place.mirror();
        let status = &mirror["status"];
        let mut conditions = status["conditions"].as_array()?.iter();
        let condition = conditions.find(|condition| condition["type"] == "PullSecretsInPlace")?;
        let is_so = status["pullSecretNamespaces"] == json!(names) && condition["reason"] == reason;
        is_so.then(|| condition.clone())
    })
}

/// Waits until the metrics count so many namespaces.
fn until_counted(companion: &Companion, counts: [(&str, i32); 3]) {
    eventually(&format!("the metrics count {counts:?}"), || {
        let (_, metrics) = companion.listeners.get("/metrics").unwrap();
        let is_told = |(state, count): (&str, i32)| {
            metrics.contains(&format!("kagami_pull_secrets{{state=\"{state}\"}} {count}\n"))
        };
        counts.into_iter().all(is_told).then_some(())
    });
}

/// Waits until a new Pod is decided upon so, and returns it as it was stored.
fn until_decided(namespace: &Namespace<'_>, reason: &str) -> Value {
    let mut number = 0;
    eventually(reason, || {
        number += 1;
        let name = format!("{}-{number}", reason.to_lowercase());
        let pod = namespace.create_pod(&pod(&name, "nginx:1.29")).success();
        let decided = pod["metadata"]["annotations"]["kagami.dev/decisions"].is_string();
        (decided && decision(&pod, "app")["reason"] == reason).then_some(pod)
    })
}

/// Whether nothing that people may see of a companion and its mirror has this text.
fn assert_untold(place: &Place<'_>, companion: &Companion, namespaces: &[&Namespace<'_>], secrets: &[&str]) {
    let (_, metrics) = companion.listeners.get("/metrics").unwrap();
    let (_, status) = companion.listeners.get("/status").unwrap();
    let mut seen = vec![
        companion.process.log(),
        metrics,
        status,
        place.mirror()["status"].to_string(),
    ];
    for namespace in namespaces {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", namespace.name);
        seen.push(place.cluster.get(&path).body);
    }
    for secret in secrets {
        let encoded = BASE64.encode(secret);
        for text in &seen {
            assert!(
                !text.contains(secret) && !text.contains(&encoded),
                "{secret} in {text}"
            );
        }
    }
}

pub(crate) fn a_login_stands_where_its_mirror_serves_and_nowhere_else(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let _policy = hold(&place);
    let passwords = ["first-geheim-1", "other-geheim-2", "third-geheim-3"];
    put_login(&place, passwords[0]);
    ask_for_login(&place);
    let (blue, audit) = (served(&place, "enforce"), served(&place, "audit"));
    let other = cluster.namespace(Some("enforce"));
    label(
        &place.own,
        &json!({"pull": place.own.name, "kagami.dev/mode": "enforce"}),
    );
    let companion = place.start("companion-a", FLAG);
    until_told(&place, &[&blue], "InPlace");
    let secret = found(&blue).unwrap();
    assert_eq!(secret["type"], "kubernetes.io/dockerconfigjson");
    assert_eq!(
        secret["metadata"]["labels"],
        json!({"kagami.dev/pull-secret": "true"})
    );
    assert_eq!(logins(&secret), expected(passwords[0]));

    // The webhook goes by the companion's word.
    place.wait_for_health("Healthy");
    let (registration, webhook_of_blue) = webhook(&place, &blue);
    let stored = until_decided(&blue, "Mirrored");
    assert!(image(&stored, "app").starts_with(REGISTRY), "{stored}");
    assert_eq!(
        stored["spec"]["imagePullSecrets"],
        json!([{"name": "kagami-pull"}])
    );
    drop((registration, webhook_of_blue));

    // Another login, and another namespace.
    put_login(&place, passwords[1]);
    until_held(&blue, Some(passwords[1]));
    until_told(&place, &[&blue], "InPlace");
    label(&audit, &json!({"kagami.dev/mode": "enforce"}));
    until_held(&audit, Some(passwords[1]));
    until_told(&place, &[&blue, &audit], "InPlace");

    // One that is broken stays in place for a while.
    let broken = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": LOGIN},
        "type": "kubernetes.io/basic-auth", "stringData": {"username": "node", "password": "line\nfeed"},
    });
    create_or_replace(&place, &broken);
    until_told(&place, &[&blue, &audit], "SecretFaulty");
    // Also where another companion begins, which never knew the good one.
    let version = |namespace| found(namespace).unwrap()["metadata"]["resourceVersion"].clone();
    let before = version(&blue);
    companion.process.terminate();
    let companion = place.start("companion-b", FLAG);
    until_counted(&companion, [("wanted", 2), ("in_place", 2), ("foreign", 0)]);
    until_told(&place, &[&blue, &audit], "SecretFaulty");
    assert_eq!(version(&blue), before);
    put_login(&place, passwords[1]);
    until_told(&place, &[&blue, &audit], "InPlace");

    // Who is not served any more loses it, also while nobody leads.
    label(&blue, &json!({"pull": null}));
    until_held(&blue, None);
    until_told(&place, &[&audit], "InPlace");
    assert_untold(&place, &companion, &[&blue, &audit, &place.own], &passwords);
    companion.process.terminate();
    label(&audit, &json!({"kagami.dev/mode": "warn"}));
    label(&blue, &json!({"pull": place.own.name}));
    put_login(&place, passwords[2]);
    let companion = place.start("companion-a", FLAG);
    until_held(&blue, Some(passwords[2]));
    until_held(&audit, None);
    until_told(&place, &[&blue], "InPlace");

    // A mirror that may do no more than tell, one that is the place of others, and the end of the login.
    place.patch_mirror(&json!({"spec": {"mode": "Audit"}}));
    until_told(&place, &[], "ModeTooWeak");
    until_held(&blue, None);
    place.patch_mirror(&json!({"spec": {"mode": "Enforce"}}));
    until_held(&blue, Some(passwords[2]));
    cluster
        .delete(&place.own.path(&format!("secrets/{LOGIN}")))
        .success();
    until_told(&place, &[], "SecretNotFound");
    until_held(&blue, None);
    put_login(&place, passwords[0]);
    until_held(&blue, Some(passwords[0]));
    place.patch_mirror(&json!({"spec": {"pullSecret": null}}));
    until_told(&place, &[], "NotAsked");
    until_held(&blue, None);
    for namespace in [&other, &place.own, &place.served] {
        assert!(found(namespace).is_none(), "{}", namespace.name);
    }
    // None was ever written there either.
    let writes = cluster.writes_of(|user| user["groups"].to_string().contains("companions"));
    let touched = |namespace: &Namespace<'_>| {
        writes.iter().any(|write| {
            let object = &write["objectRef"];
            object["namespace"] == namespace.name && object["name"] == "kagami-pull"
        })
    };
    assert!(touched(&blue), "the log has what was written");
    for namespace in [&other, &place.own, &place.served] {
        assert!(!touched(namespace), "{}", namespace.name);
    }
    assert_untold(&place, &companion, &[&blue, &audit, &place.own], &passwords);
}

pub(crate) fn what_stands_there_already_is_somebodys_or_kagamis(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let _policy = hold(&place);
    put_login(&place, "geheim-1");
    ask_for_login(&place);
    let (taken, free) = (served(&place, "enforce"), served(&place, "enforce"));
    let theirs = json!({
        "metadata": {"name": "kagami-pull"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": r#"{"auths":{"theirs.test":{"username":"a","password":"b"}}}"#},
    });
    let theirs = cluster.create(&taken.path("secrets"), &theirs).success();
    let companion = place.start("companion-a", FLAG);
    let told = until_told(&place, &[&free], "SecretOfAnother");
    assert!(!told.to_string().contains(&taken.name), "{told}");
    eventually("an Event tells of it", || {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", taken.name);
        let events = cluster.get(&path).success();
        let mut events = events["items"].as_array()?.iter();
        let is_it = |event: &&Value| {
            event["reason"] == "PullSecretNotReady" && event["regarding"]["name"] == "kagami-pull"
        };
        events.find(is_it).map(drop)
    });
    place.wait_for_health("Healthy");
    let (_registration, _webhook) = webhook(&place, &taken);
    let kept = until_decided(&taken, "PullSecretNotReady");
    assert_eq!(image(&kept, "app"), "nginx:1.29");
    assert_eq!(kept["spec"]["imagePullSecrets"], Value::Null);
    put_login(&place, "geheim-2");
    until_held(&free, Some("geheim-2"));
    assert_eq!(found(&taken), Some(theirs), "it is as it was");
    until_counted(&companion, [("wanted", 2), ("in_place", 1), ("foreign", 1)]);

    // He makes room.
    let path = taken.path("secrets/kagami-pull");
    cluster.delete(&path).success();
    until_held(&taken, Some("geheim-2"));
    until_told(&place, &[&taken, &free], "InPlace");
    until_decided(&taken, "Mirrored");
    // One that is being deleted hinders nothing: no Secret can be made there any more.
    let going = served(&place, "enforce");
    until_told(&place, &[&taken, &free, &going], "InPlace");
    cluster
        .delete(&format!("/api/v1/namespaces/{}", going.name))
        .success();
    until_held(&going, None);
    until_told(&place, &[&taken, &free], "InPlace");
    // Whatever he does to Kagami's is mended.
    cluster.delete(&path).success();
    until_held(&taken, Some("geheim-2"));
    let merge = |patch: &Value| {
        let patched = cluster.patch(User::Admin, "application/merge-patch+json", &path, patch);
        patched.success()
    };
    merge(&json!({"data": {".dockerconfigjson": BASE64.encode(r#"{"auths":{}}"#)}}));
    until_held(&taken, Some("geheim-2"));
    let before = merge(&json!({"immutable": true, "metadata": {"annotations": {"a": "b"}}}));
    put_login(&place, "geheim-3");
    until_held(&taken, Some("geheim-3"));
    assert_ne!(
        found(&taken).unwrap()["metadata"]["uid"],
        before["metadata"]["uid"]
    );
    // Without its label it is his.
    merge(&json!({"metadata": {"labels": null}}));
    until_told(&place, &[&free], "SecretOfAnother");
    // Where two mirrors have one place, and serve other namespaces, a login for one would open the other's images.
    let mut second = place.mirror();
    second["metadata"] = json!({"name": format!("{}-second", place.name)});
    second["spec"]["namespaceSelector"] = json!({"matchLabels": {"pull": "nobody"}});
    // While such a mirror is but prepared, and has nothing to keep, it is told and nothing is taken away.
    let login = second["spec"].as_object_mut().unwrap().remove("pullSecret");
    second["spec"]["mode"] = json!("Off");
    cluster.create(MIRRORS, &second).success();
    eventually("AccessNotSeparated is told", || {
        let mirror = place.mirror();
        let mut conditions = mirror["status"]["conditions"].as_array()?.iter();
        let condition = conditions.find(|condition| condition["type"] == "AccessNotSeparated")?;
        (condition["status"] == "True").then_some(())
    });
    put_login(&place, "geheim-4");
    until_held(&free, Some("geheim-4"));
    put_login(&place, "geheim-3");
    until_told(&place, &[&free], "SecretOfAnother");
    let path = format!("{MIRRORS}/{}-second", place.name);
    let login = json!({"spec": {"pullSecret": login}});
    let merge = "application/merge-patch+json";
    cluster.patch(User::Admin, merge, &path, &login).success();
    until_told(&place, &[], "AccessNotSeparated");
    until_held(&free, None);
    cluster
        .delete(&format!("{MIRRORS}/{}-second", place.name))
        .success();
    until_held(&free, Some("geheim-3"));
}

pub(crate) fn without_the_flag_none_is_placed(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    put_login(&place, "geheim-1");
    ask_for_login(&place);
    let blue = served(&place, "enforce");
    // What an earlier companion told, which had it.
    let path = format!("{}/{}/status", MIRRORS, place.name);
    let before = json!({"status": {"pullSecretNamespaces": [blue.name]}});
    cluster
        .patch(User::Admin, "application/merge-patch+json", &path, &before)
        .success();
    let _companion = place.start("companion-a", &[]);
    until_told(&place, &[], "SwitchedOff");
    assert!(found(&blue).is_none());
}

/// The companion's account, with exactly the rights that the chart gives it.
struct Account<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Account<'_> {
    /// Sends a request that changes nothing even where it is let through.
    fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let path = format!("{path}?dryRun=All");
        self.cluster.request_by(&self.name, method, &path, body)
    }

    fn create(&self, namespace: &Namespace<'_>, more: &Value) -> Answer {
        self.send(Method::POST, &namespace.path("secrets"), Some(&ours(more)))
    }

    fn patch(&self, namespace: &Namespace<'_>, operation: &Value) -> Answer {
        self.send(Method::PATCH, &of(namespace), Some(&json!([operation])))
    }

    fn delete(&self, namespace: &Namespace<'_>) -> Answer {
        self.send(Method::DELETE, &of(namespace), None)
    }
}

/// A Secret of Kagami's, changed by a merge patch.
fn ours(more: &Value) -> Value {
    let mut secret = json!({
        "metadata": {"name": "kagami-pull", "labels": {"kagami.dev/pull-secret": "true"}},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": r#"{"auths":{}}"#},
    });
    json_patch::merge(&mut secret, more);
    secret
}

fn of(namespace: &Namespace<'_>) -> String {
    namespace.path("secrets/kagami-pull")
}

pub(crate) fn the_companion_is_held_to_its_pull_secrets(cluster: &Cluster) {
    // A companion of another test would remove what is labelled as Kagami's here.
    let _alone = alone();
    let home = cluster.namespace(None);
    let values = "{pullSecrets: {enabled: true}, leftAlone: [left-alone-by-guards]}";
    let chart = Chart::new(cluster, "guards-pulls", &home.name, values);
    chart.apply(&RBAC);
    let account = Account {
        cluster,
        name: format!("{}:guards-pulls-kagami-companion", home.name),
    };
    let place = cluster.namespace(Some("enforce"));
    let audit = cluster.namespace(Some("audit"));
    let left_alone = cluster.namespace_named("left-alone-by-guards", Some("enforce"));
    let token = json!({
        "metadata": {"name": "token", "annotations": {"kubernetes.io/service-account.name": "default"}},
        "type": "kubernetes.io/service-account-token",
    });
    let system = "/api/v1/namespaces/kube-system/secrets";

    // What RBAC alone allows, and so what stands on the policy: any Secret anywhere, and with it a token of anybody.
    eventually("the roles are in force", || {
        (account.send(Method::POST, system, Some(&token)).status == 201).then_some(())
    });
    let stored = place.path("secrets");
    cluster.create(&stored, &ours(&json!({}))).success();
    // Also to take away what is somebody else's, of that name.
    let theirs = ours(&json!({"metadata": {"labels": null}}));
    for namespace in [&audit, &left_alone] {
        cluster.create(&namespace.path("secrets"), &theirs).success();
        assert_eq!(account.delete(namespace).status, 200);
    }
    // But nothing that has another name.
    let other = json!({"metadata": {"name": "other"}});
    cluster.create(&stored, &other).success();
    for method in [Method::GET, Method::DELETE, Method::PATCH] {
        let answer = account.send(method, &place.path("secrets/other"), Some(&json!([])));
        assert_eq!(answer.status, 403, "{}", answer.body);
    }

    let _policy = policy(&chart, cluster, str::to_owned);
    eventually("the policy is in force", || {
        let answer = account.send(Method::POST, system, Some(&token));
        answer.body.contains("no Secret but kagami-pull").then_some(())
    });
    let fresh = cluster.namespace(Some("enforce"));
    what_is_made_and_changed(&account, &home, [&fresh, &place, &audit, &left_alone]);
    // Somebody else's: by no operation, not even by labelling it first.
    let labels =
        json!({"op": "add", "path": "/metadata/labels", "value": {"kagami.dev/pull-secret": "true"}});
    for namespace in [&audit, &left_alone] {
        refused(&account.delete(namespace), "that has no label");
        refused(&account.patch(namespace, &labels), "that has no label");
    }
    // What is Kagami's may go wherever it is, but where it never is.
    label(&place, &json!({"kagami.dev/mode": null}));
    eventually("the namespace has opted out", || {
        let answer = account.patch(&place, &content());
        answer
            .body
            .contains("only in namespaces labelled enforce")
            .then_some(())
    });
    assert_eq!(account.delete(&place).status, 200);
    for namespace in ["kube-system", &home.name] {
        let path = format!("/api/v1/namespaces/{namespace}/secrets");
        cluster.create(&path, &ours(&json!({}))).success();
        let path = format!("{path}/kagami-pull");
        let answer = account.send(Method::DELETE, &path, None);
        cluster.delete(&path).success();
        refused(&answer, "no kagami-pull in this namespace");
    }
    // Others are not meant.
    let theirs = json!({"metadata": {"name": "kagami-pull"}});
    cluster.create(&fresh.path("secrets"), &theirs).success();
}

/// Another content for a Secret that is there.
fn content() -> Value {
    let config = BASE64.encode(r#"{"auths":{"a":{}}}"#);
    json!({"op": "add", "path": "/data/.dockerconfigjson", "value": config})
}

fn what_is_made_and_changed(account: &Account<'_>, home: &Namespace<'_>, places: [&Namespace<'_>; 4]) {
    let [fresh, place, audit, left_alone] = places;
    let answer = account.create(fresh, &json!({}));
    assert_eq!(answer.status, 201, "{}", answer.body);
    assert_eq!(account.patch(place, &content()).status, 200);
    assert_eq!(account.delete(place).status, 200);

    for (more, told) in [
        (json!({"metadata": {"name": "mine"}}), "no Secret but kagami-pull"),
        (
            json!({"type": "Opaque"}),
            "but of type kubernetes.io/dockerconfigjson",
        ),
        (json!({"metadata": {"labels": null}}), "that has no label"),
        (
            json!({"metadata": {"labels": {"kagami.dev/pull-secret": "false"}}}),
            "that has no label",
        ),
        (
            json!({"metadata": {"finalizers": ["example.com/x"]}}),
            "no finalizers and owners",
        ),
    ] {
        refused(&account.create(fresh, &more), told);
    }
    for (operation, told) in [
        (
            json!({"op": "remove", "path": "/metadata/labels/kagami.dev~1pull-secret"}),
            "that has no label",
        ),
        (
            json!({"op": "add", "path": "/metadata/finalizers", "value": ["example.com/x"]}),
            "no finalizers and owners",
        ),
    ] {
        refused(&account.patch(place, &operation), told);
    }
    for (namespace, told) in [
        (audit, "only in namespaces labelled enforce"),
        (left_alone, "leaves this namespace alone"),
        (home, "no kagami-pull in this namespace"),
    ] {
        refused(&account.create(namespace, &json!({})), told);
    }
    let system = "/api/v1/namespaces/kube-system/secrets";
    let answer = account.send(Method::POST, system, Some(&ours(&json!({}))));
    refused(&answer, "no kagami-pull in this namespace");
}
