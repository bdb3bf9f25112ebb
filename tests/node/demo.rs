//! The fourth act of `scripts/demo`: a Pod was sent to a mirror that died before its node pulled, and comes back by
//! itself. All of it is real: a node as the tests have it, and Kagami as users install it.
#![allow(clippy::print_stdout, reason = "this is shown to people")]

use std::{
    env,
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::Instant,
};

use serde_json::{Value, json};

use crate::{
    hangs::{events, gated, open, status},
    install_cryptography,
    shared::{admission::image, chart::stdout, cluster::Namespace, eventually, tools::Tools},
    support::{
        chart::Use,
        images::{self, FOREVER},
        kagami::{Mirrored, image_mirror},
        machine,
        node::{self, Node},
        pods::until_rewritten,
        registry::Registry,
    },
};

/// Set by `scripts/demo`, to a step.
const DEMO: &str = "KAGAMI_DEMO";

/// As people write it. Nothing here reaches out of the machine: a registry of its own has the name of the real one.
const WRITTEN: &str = "nginx:1.27";
const UPSTREAM: &str = "registry-1.docker.io";
const MIRRORED: &str = "mirror.test/docker.io/library/nginx:1.27";

/// What the script asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// To print why there can be no node here, if so.
    Check,
    Act,
}

/// The step that this process was started for, if it was not for tests.
pub(crate) fn wanted() -> Option<Step> {
    Some(match &*env::var(DEMO).ok()? {
        "check" => Step::Check,
        _ => Step::Act,
    })
}

pub(crate) fn show(step: Step) -> ExitCode {
    let Some(cgroup) = machine::cgroup() else {
        return match (machine::check(), step) {
            (Ok(()), Step::Act) => machine::enter(),
            (Ok(()), Step::Check) => ExitCode::SUCCESS,
            (Err(reason), _) => {
                println!("{reason}");
                ExitCode::FAILURE
            }
        };
    };
    let tools = match Tools::find().and_then(|tools| tools.with(node::PROGRAMS)) {
        Ok(tools) => tools,
        Err(reason) => {
            println!("{reason}");
            return ExitCode::FAILURE;
        }
    };
    install_cryptography();
    let paint = Paint::new();
    paint.note("starting etcd, the API server, containerd and kubelet, and Kagami by its chart");
    let node = Node::start(tools, &cgroup);
    node.install_kagami();
    act(&node, &paint);
    ExitCode::SUCCESS
}

fn act(node: &Node, paint: &Paint) {
    let cluster = &node.cluster;
    let _kagami = Use::shared(node);
    let upstream = Registry::start(node, UPSTREAM);
    let mut mirror = Registry::start(node, "mirror.test");
    let image_of_both = images::shell("nginx", FOREVER);
    upstream.push(cluster, "library/nginx", "1.27", &image_of_both);
    mirror.push(cluster, "docker.io/library/nginx", "1.27", &image_of_both);
    let _mirrored = Mirrored::new(node, &image_mirror(node, &mirror, &["docker.io"]));
    let namespace = cluster.namespace_named("shop", Some("enforce"));
    until_rewritten(&namespace, &[WRITTEN.to_owned()], &[MIRRORED.to_owned()]);

    // Scheduling gates stand for what may lie between admission and pull: a node that has to come up first, say.
    let created = namespace.create_pod(&gated("web", &[("web", WRITTEN)])).success();
    let began = Instant::now();
    assert_eq!(image(&created, "web"), MIRRORED);
    paint.line(began, Paint::GREEN, "Created", "it waits for a node");
    more(&format!("the node is to pull {}", paint.bold(MIRRORED)));
    let mut alone = gated("without", &[("web", MIRRORED)]);
    alone["metadata"]["labels"] = json!({"kagami.dev/mode": "off"});
    namespace.create_pod(&alone).success();
    mirror.kill();
    paint.line(began, Paint::YELLOW, "The mirror dies", "");
    open(&namespace, "web");
    open(&namespace, "without");

    follow(&namespace, paint, began);
    paint.note("beside it the same Pod, which Kagami may not touch (label kagami.dev/mode: off), waits on:");
    eventually("it waits", || {
        let pod = namespace.pod("without");
        let waiting = &status(&pod, "web")["state"]["waiting"]["reason"];
        (waiting == "ErrImagePull" || waiting == "ImagePullBackOff").then_some(())
    });
    more(&paint.bold("$ kubectl get pods"));
    for line in stdout(&namespace.kubectl(&["get", "pods"])).lines() {
        more(line);
    }
}

/// Shows what becomes of the Pod until it runs.
fn follow(namespace: &Namespace<'_>, paint: &Paint, began: Instant) {
    let mut shown = String::new();
    let mut is_back = false;
    let failure = |message: &Value| paint.line(began, Paint::YELLOW, "ErrImagePull", cause(message));
    eventually("the Pod runs", || {
        let pod = namespace.pod("web");
        let state = &status(&pod, "web")["state"];
        let reason = state["waiting"]["reason"].as_str().unwrap_or_default();
        if !is_back && image(&pod, "web") == WRITTEN {
            is_back = true;
            if shown != "ErrImagePull" {
                // That was quicker than a look at the Pod; its Event stays.
                let why = eventually("kubelet tells why", || {
                    let events = events(namespace, "web", "Failed", "spec.containers{web}");
                    let mut messages = events.into_iter().map(|mut event| event["message"].take());
                    messages.find(|message| {
                        message
                            .as_str()
                            .is_some_and(|text| text.starts_with("Failed to pull"))
                    })
                });
                failure(&why);
            }
            paint.line(
                began,
                Paint::GREEN,
                "Rescued",
                "Kagami gives it its own image back",
            );
            more(&format!("the node is to pull {}", paint.bold(WRITTEN)));
        } else if !is_back && reason != shown {
            reason.clone_into(&mut shown);
            match reason {
                "" => (),
                "ErrImagePull" => failure(&state["waiting"]["message"]),
                _ => paint.line(began, Paint::YELLOW, reason, "a node takes it and pulls"),
            }
        }
        state["running"].is_object().then(|| {
            let restarts = &status(&pod, "web")["restartCount"];
            paint.line(began, Paint::GREEN, "Running", &format!("restarts: {restarts}"));
        })
    });
}

/// The end of kubelet's message, which says what went wrong.
fn cause(message: &Value) -> &str {
    let message = message.as_str().unwrap_or_default();
    message.rsplit(": ").next().unwrap_or_default()
}

/// A line that goes on with what stands above.
fn more(text: &str) {
    println!("            {text}");
}

/// How it looks, as the rest of the demo.
struct Paint {
    is_coloured: bool,
}

impl Paint {
    const GREEN: &str = "\u{1b}[32m";
    const YELLOW: &str = "\u{1b}[33m";

    fn new() -> Self {
        let is_coloured =
            io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        Self { is_coloured }
    }

    fn painted(&self, how: &str, text: &str) -> String {
        if self.is_coloured {
            format!("{how}{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    fn bold(&self, text: &str) -> String {
        self.painted("\u{1b}[1m", text)
    }

    fn note(&self, text: &str) {
        println!("  {}", self.painted("\u{1b}[2m", text));
    }

    fn line(&self, began: Instant, colour: &str, what: &str, more: &str) {
        let after = format!("{:4.1} s", began.elapsed().as_secs_f64());
        let what = self.painted(colour, &format!("{what:<18}"));
        println!("{}", format!("  {after}  {what} {more}").trim_end());
    }
}
