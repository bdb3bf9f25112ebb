//! A report as a person reads it: the images of all Pods, then what it comes to in each namespace.

use super::{Counts, ImageReport, PodReport, Report};
use crate::cli::output::Table;

/// How many hex digits of a digest are shown.
const DIGEST_DIGITS: usize = 12;

/// Returns both tables. Pods that Kagami is not asked about, and that use no mirror, are only counted,
/// unless `all` are wanted.
pub(super) fn of(report: &Report, all: bool) -> String {
    let mut images = Table::new(&[
        "NAMESPACE",
        "POD",
        "PLACE",
        "IMAGE",
        "PULLS FROM",
        "DECISION",
        "REASON",
        "MIRROR",
    ]);
    let mut counted_only = 0_usize;
    for pod in &report.pods {
        if !all && pod.images.iter().all(is_nobodys) {
            counted_only += 1;
            continue;
        }
        for image in &pod.images {
            let PodReport { namespace, pod, .. } = pod;
            images.row([
                namespace,
                pod,
                &image.place,
                &short(&image.image),
                image.on_mirror.as_deref().unwrap_or("upstream"),
                image.outcome,
                image.reason,
                image.mirror.as_deref().unwrap_or("-"),
            ]);
        }
    }
    let mut namespaces = Table::new(&[
        "NAMESPACE",
        "MODE",
        "PODS",
        "IMAGES",
        "ON A MIRROR",
        "WOULD BE",
        "STAY UPSTREAM BECAUSE",
    ]);
    let mut row = |name: &str, mode: &str, counts: &Counts| {
        let kept: Vec<String> = counts
            .kept
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        namespaces.row([
            name,
            mode,
            &counts.pods.to_string(),
            &counts.images.to_string(),
            &counts.on_mirror.to_string(),
            &counts.would_use_mirror.to_string(),
            &kept.join(", "),
        ]);
    };
    for namespace in &report.namespaces {
        row(&namespace.namespace, namespace.mode, &namespace.counts);
    }
    if report.namespaces.len() > 1 {
        row("(all)", "", &report.total);
    }
    let mut lines = Vec::new();
    if !images.is_empty() {
        lines.extend(images.lines());
        lines.push(String::new());
    }
    if namespaces.is_empty() {
        lines.push("No Pod is running.".to_owned());
    } else {
        lines.extend(namespaces.lines());
    }
    if counted_only > 0 {
        let pods = if counted_only == 1 { "Pod" } else { "Pods" };
        lines.push(String::new());
        lines.push(format!(
            "Only counted: {counted_only} {pods} that Kagami is not asked about \
             (--namespace or --output json lists them)."
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn is_nobodys(image: &ImageReport) -> bool {
    image.left_alone && image.on_mirror.is_none()
}

/// Returns an image without most of its digest, which nobody reads.
fn short(image: &str) -> String {
    match image.split_once("@sha256:") {
        Some((name, digest)) => format!("{name}@sha256:{digest:.DIGEST_DIGITS$}…"),
        None => image.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::report::NamespaceReport;

    fn image(image: &str, on_mirror: Option<&str>, left_alone: bool) -> ImageReport {
        ImageReport {
            place: "containers.app".to_owned(),
            image: image.to_owned(),
            now: None,
            on_mirror: on_mirror.map(ToOwned::to_owned),
            outcome: if left_alone { "Kept" } else { "WouldRewrite" },
            reason: if left_alone { "ModeOff" } else { "Mirrored" },
            mirror: (!left_alone).then(|| "main".to_owned()),
            would_be: None,
            left_alone,
        }
    }

    fn report() -> Report {
        let pod = |namespace: &str, pod: &str, images: Vec<ImageReport>| PodReport {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            mode: "audit",
            images,
        };
        let counts = |pods, images, kept: &[(&'static str, usize)]| Counts {
            pods,
            images,
            on_mirror: 1,
            would_use_mirror: 2,
            kept: kept.iter().copied().collect(),
        };
        let namespace = |name: &str, mode, counts| NamespaceReport {
            namespace: name.to_owned(),
            mode,
            counts,
        };
        let digest = format!("ghcr.io/acme/app@sha256:{}", "0123456789abcdef".repeat(4));
        Report {
            namespaces: vec![
                namespace("other", "off", counts(2, 2, &[("ModeOff", 2)])),
                namespace("shop", "audit", counts(1, 2, &[])),
            ],
            total: counts(3, 4, &[("ImageMissing", 1), ("ModeOff", 2)]),
            pods: vec![
                pod("other", "left", vec![image("redis:8", Some("main"), true)]),
                pod("other", "nobodys", vec![image("redis:8", None, true)]),
                pod(
                    "shop",
                    "web",
                    vec![image("nginx:1.29", None, false), image(&digest, None, false)],
                ),
            ],
            notes: Vec::new(),
        }
    }

    #[test]
    fn tables_are_aligned_and_leave_out_what_is_nobodys() {
        insta::assert_snapshot!(of(&report(), false), @r"
        NAMESPACE  POD   PLACE           IMAGE                                  PULLS FROM  DECISION      REASON    MIRROR
        other      left  containers.app  redis:8                                main        Kept          ModeOff   -
        shop       web   containers.app  nginx:1.29                             upstream    WouldRewrite  Mirrored  main
        shop       web   containers.app  ghcr.io/acme/app@sha256:0123456789ab…  upstream    WouldRewrite  Mirrored  main

        NAMESPACE  MODE   PODS  IMAGES  ON A MIRROR  WOULD BE  STAY UPSTREAM BECAUSE
        other      off    2     2       1            2         ModeOff 2
        shop       audit  1     2       1            2
        (all)             3     4       1            2         ImageMissing 1, ModeOff 2

        Only counted: 1 Pod that Kagami is not asked about (--namespace or --output json lists them).
        ");
    }

    #[test]
    fn one_namespace_is_shown_whole() {
        let told = of(&report(), true);
        assert!(
            told.contains("nobodys") && !told.contains("Only counted"),
            "{told}"
        );
        assert_eq!(of(&Report::default(), true), "No Pod is running.\n");
    }
}
