//! What a webhook adds to the creation of a Pod through an API server.
//!
//! An API server that gets a patch has much more to do than one that is told to go on, whatever the patch: it
//! encodes the Pod, patches it, decodes it, compares, and goes through its own admission once more. So besides
//! the bare echo there are one whose patch is the smallest there is, and one whose patch is Kagami's; and besides
//! Kagami as it rewrites there is Kagami in audit mode, which decides the same and patches nothing. The bar is
//! held for Kagami as it rewrites against the echo that answers alike: what the answer costs the API server is
//! held by its size and the number of its operations. The others are printed beside it.
//!
//! Beside another build, what both add to the smallest patch is compared, each registered as its manifest says.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use kagami::domain::time::Timestamp;
use serde_json::{Value, json};

use super::{
    super::{
        bench::{Bench, PATH, Rival, median, one_connection},
        client::{Expected, Load, Target, closed_loop},
        e2e::{
            admission::Calls,
            cluster::{Namespace, User},
            eventually,
            tools::Tools,
        },
        echo::{ADMIT, ANSWER, LABEL, PATCH},
        payload::{Images, Payload},
        report::Bars,
        roles::Build,
    },
    objects::{address, create_images},
    place::{Place, with_healthy_mirror},
};

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// Images that Kagami knows.
const KNOWN: usize = 1_000;

/// Pods created at once.
const AT_ONCE: [usize; 2] = [1, 8];

/// How much longer a round is than elsewhere: an API server creates a few hundred Pods a second, and collects its
/// garbage in between, so that a short round's median says little.
const LONGER: u32 = 3;

/// Init containers and containers of each Pod: those of the larger reviews.
const SHAPE: (usize, usize) = (2, 3);

/// The answer to the review of such a Pod whose images are all rewritten: it got as small as it is with much work.
const ANSWER_BYTES: usize = 3_715;
const ANSWER_OPERATIONS: usize = 11;

/// How much of what another build adds to the smallest patch may be left.
const SHARE: f64 = 0.5;

/// Who is compared.
const WITHOUT: &str = "no webhook";
const ECHO: &str = "echo";
const LABELS: &str = "echo that adds a label";
const PATCHES: &str = "echo of Kagami's patch";
const AUDITS: &str = "Kagami, audit mode";
const REWRITES: &str = "Kagami";
const OTHER: &str = "Kagami, other build";

impl Bench {
    /// Creates Pods without a webhook, with the echo and with Kagami in turn.
    pub fn creates(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        println!("\nPods created through an API server (dryRun=All)");
        with_healthy_mirror(tools, &self.own, |place, _, now| {
            self.creates_in(place, now, bars)
        })
    }

    fn creates_in(&self, place: &Place<'_>, now: Timestamp, bars: &mut Bars) -> Result<()> {
        let cluster = place.cluster;
        create_images(cluster, 0..KNOWN, now, now)?;
        let kagami = self.replica_of(place, KNOWN)?;
        let images = Images {
            first: 0,
            count: KNOWN,
        };
        let review = Payload::new(PATH, SHAPE.0, SHAPE.1)?;
        let target = self.target(&kagami, &review, images, Expected::Rewritten);
        let answer = one_connection(&target, async |connection| {
            Ok(connection.answer(0, true).await?.to_vec())
        })?;
        hold_answer(&answer, bars)?;
        fs::write(self.folder.path().join(ANSWER), answer)?;
        let (echo, echoes) = self.echo(&[(SHAPE.0, SHAPE.1, 0)])?;
        let echo_address = echoes.first().context("one payload")?.address;

        let without = cluster.namespace_named("without", None);
        let registered = |build: &Build, name: &str, address: SocketAddr, path: &str| {
            let namespace = cluster.namespace_named(name, Some("enforce"));
            self.register(build, &namespace, address, path)?;
            anyhow::Ok(namespace)
        };
        let in_namespace = |name: &str, address, path: &str| registered(&self.own, name, address, path);
        let with_echo = in_namespace("echo", echo_address, ADMIT)?;
        let with_label = in_namespace("echo-label", echo_address, LABEL)?;
        let with_patch = in_namespace("echo-patch", echo_address, PATCH)?;
        let with_audit = in_namespace("kagami-audit", kagami.admission, "/mutate/audit")?;
        let with_kagami = in_namespace("kagami", kagami.admission, "/mutate/enforce")?;
        let rival = |name: &str, namespace: &Namespace<'_>, process, rewritten| {
            let payload = Payload::dry_run(&namespace.name, User::Admin.token(), SHAPE.0, SHAPE.1)?;
            let target = Target {
                address: address(cluster)?,
                process,
                tls: cluster.authority.client(),
                payload,
                images,
                expected: Expected::Created { rewritten },
            };
            anyhow::Ok(Rival {
                name: name.to_owned(),
                target,
            })
        };
        let (echo, kagami) = (echo.id(), kagami.process.id());
        let mut rivals = vec![
            // There is no server of its own.
            rival(WITHOUT, &without, std::process::id(), false)?,
            rival(ECHO, &with_echo, echo, false)?,
            rival(AUDITS, &with_audit, kagami, false)?,
            rival(LABELS, &with_label, echo, false)?,
            rival(PATCHES, &with_patch, echo, true)?,
            rival(REWRITES, &with_kagami, kagami, true)?,
        ];
        let mut namespaces = vec![&with_echo, &with_label, &with_patch, &with_audit, &with_kagami];
        let other = self.other.as_ref().map(|build| {
            let (other, _) = self.replica_of_build(build, place, KNOWN)?;
            let namespace = registered(build, "kagami-other", other.admission, "/mutate/enforce")?;
            anyhow::Ok((other, namespace))
        });
        let other = other.transpose()?;
        if let Some((other, namespace)) = &other {
            rivals.push(rival(OTHER, namespace, other.process.id(), true)?);
            namespaces.push(namespace);
        }
        for connections in AT_ONCE {
            self.created(connections, &rivals, bars)?;
        }
        for namespace in namespaces {
            let calls = Calls::read(&cluster.metrics(), &webhook(namespace));
            ensure!(
                calls.answered > 0
                    && calls
                        == Calls {
                            answered: calls.answered,
                            ..Calls::default()
                        },
                "the webhook of {} was to answer everything: {calls:?}",
                namespace.name
            );
        }
        Ok(())
    }

    /// Lets the API server call a webhook for the Pods of a namespace, as the manifest of a build says.
    fn register(
        &self,
        build: &Build,
        namespace: &Namespace<'_>,
        address: SocketAddr,
        path: &str,
    ) -> Result<()> {
        let bundle = self.authority.bundle();
        let mut manifest: Value = serde_saphyr::from_str(&build.webhook_configuration()?)?;
        manifest["metadata"]["name"] = namespace.name.as_str().into();
        let webhooks = manifest["webhooks"].as_array_mut().context("webhooks")?;
        webhooks.retain(|webhook| webhook["name"] == "enforce.kagami.dev");
        for entry in webhooks {
            entry["name"] = webhook(namespace).into();
            entry["clientConfig"] = json!({"url": format!("https://{address}{path}"), "caBundle": bundle});
            let selected = json!({
                "key": "kubernetes.io/metadata.name", "operator": "In", "values": [namespace.name],
            });
            let expressions = entry["namespaceSelector"]["matchExpressions"].as_array_mut();
            expressions.context("matchExpressions")?.push(selected);
        }
        namespace.cluster.create(CONFIGURATIONS, &manifest).success();
        // A new configuration reaches the API server's admission a moment after it is stored.
        let mut payload = Payload::dry_run(&namespace.name, User::Admin.token(), SHAPE.0, SHAPE.1)?;
        payload.number(
            0,
            Images {
                first: 0,
                count: KNOWN,
            },
        );
        let pod = serde_json::from_slice(payload.body())?;
        eventually("the API server calls the webhook", || {
            let path = format!("{}?dryRun=All", namespace.path("pods"));
            namespace.cluster.create(&path, &pod).success();
            (Calls::read(&namespace.cluster.metrics(), &webhook(namespace)).answered > 0).then_some(())
        });
        Ok(())
    }

    fn created(&self, connections: usize, rivals: &[Rival], bars: &mut Bars) -> Result<()> {
        let mut loads = vec![Vec::<Load>::new(); rivals.len()];
        for round in 0..self.plan.rounds {
            // There and back: what one leaves to the API server to clean up, the next one pays for.
            for position in 0..rivals.len() {
                let back = rivals.len() - 1 - position;
                let turn = if round.is_multiple_of(2) { position } else { back };
                let rival = &rivals[turn];
                let load = closed_loop(&rival.target, connections, self.plan.round * LONGER);
                loads[turn].push(load.with_context(|| rival.name.clone())?);
            }
        }
        println!(
            "  {:>7} {:<22} {:>7} {:>8} {:>8} {:>13} {:>15}",
            "at once", "webhook", "Pods/s", "p50 ms", "p99 ms", "p50 more, ms", "webhook CPU µs"
        );
        let of = |name: &str| {
            let mut named = rivals.iter().zip(&loads).filter(|(rival, _)| rival.name == name);
            named.next().map_or(&[][..], |(_, loads)| loads.as_slice())
        };
        // Each round against the one beside it: what disturbs one mostly disturbs both.
        let more = |name: &str, than: &str| {
            let pairs = of(name).iter().zip(of(than));
            median(pairs.map(|(own, other)| own.percentile(50) - other.percentile(50)))
        };
        for (rival, loads) in rivals.iter().zip(&loads) {
            let figure = |figure: &dyn Fn(&Load) -> f64| median(loads.iter().map(figure));
            let cpu = if rival.target.process == std::process::id() {
                "-".to_owned()
            } else {
                format!("{:.0}", figure(&Load::cpu_per_review))
            };
            println!(
                "  {connections:>7} {:<22} {:>7.0} {:>8.3} {:>8.3} {:>13.3} {cpu:>15}",
                rival.name,
                figure(&Load::per_second),
                figure(&|load| load.percentile(50)),
                figure(&|load| load.percentile(99)),
                more(&rival.name, WITHOUT),
            );
        }
        println!(
            "  {connections:>7} above the bare echo's p50, ms: {:.3} the smallest patch, {:.3} Kagami's patch, \
             {:.3} Kagami in audit mode, {:.3} Kagami",
            more(LABELS, ECHO),
            more(PATCHES, ECHO),
            more(AUDITS, ECHO),
            more(REWRITES, ECHO),
        );
        let name = format!("Pod create, {connections} at once: p50 above the same answer's");
        bars.at_most(name, more(REWRITES, PATCHES), 0.5, "ms");
        if let Some(other) = &self.other {
            let (own, before) = (more(REWRITES, LABELS), more(OTHER, LABELS));
            println!(
                "  {connections:>7} above the smallest patch's p50, ms: {own:.3} Kagami, {before:.3} {}",
                other.name
            );
            let name = format!(
                "Pod create, {connections} at once: p50 above the smallest patch's, against {}'s",
                other.name
            );
            bars.at_most(name, own / before, SHARE, "×");
        }
        Ok(())
    }
}

/// Holds what an API server gets to work on.
fn hold_answer(answer: &[u8], bars: &mut Bars) -> Result<()> {
    let review: Value = serde_json::from_slice(answer)?;
    let patch = review["response"]["patch"].as_str().context("no patch")?;
    let operations: Vec<Value> = serde_json::from_slice(&BASE64.decode(patch)?)?;
    let held = [
        ("bytes of the answer", answer.len(), ANSWER_BYTES),
        ("operations in its patch", operations.len(), ANSWER_OPERATIONS),
    ];
    for (what, figure, limit) in held {
        let [figure, limit] =
            [figure, limit].map(|number| f64::from(u32::try_from(number).unwrap_or(u32::MAX)));
        bars.at_most(format!("Pod create, 5 images: {what}"), figure, limit, "");
    }
    Ok(())
}

/// The name of a namespace's webhook, by which the API server counts.
fn webhook(namespace: &Namespace<'_>) -> String {
    format!("enforce.{}.kagami.dev", namespace.name)
}
