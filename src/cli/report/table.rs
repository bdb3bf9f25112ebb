//! A report as a person reads it: the images of all Pods, then what it comes to in each namespace.

use super::{Counts, ImageReport, PodReport, Report, owners, stuck};
use crate::{
    cli::{output::Table, passed_on},
    domain::foreign::Foreign,
};

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
    let mut wrong = Vec::new();
    for pod in &report.pods {
        if !all && pod.images.iter().all(is_nobodys) {
            counted_only += 1;
            continue;
        }
        for image in &pod.images {
            let PodReport { namespace, pod, .. } = pod;
            images.row([
                &Foreign(namespace),
                &Foreign(pod),
                &Foreign(&image.place),
                &Foreign(&short(&image.image)),
                &image.on_mirror.as_deref().unwrap_or("upstream"),
                &image.outcome,
                &image.reason,
                &image.mirror.as_deref().unwrap_or("-"),
            ]);
            if let Some(what) = &image.wrong {
                let (pod, place) = (Foreign(pod), Foreign(&image.place));
                wrong.push(format!("{pod} {place}: {}: {what}", Foreign(&image.image)));
            }
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
            &Foreign(name),
            &mode,
            &counts.pods,
            &counts.images,
            &counts.on_mirror,
            &counts.would_use_mirror,
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
        lines.append(&mut wrong);
        lines.push(String::new());
    }
    lines.extend(stuck::table(&report.stuck));
    lines.extend(owners::table(&report.owners_left_alone));
    lines.extend(passed_on(report));
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

/// Returns the table of images whose names Pods pass on, the first ones, and what it means.
fn passed_on(report: &Report) -> Vec<String> {
    let mut table = Table::new(&["NAMESPACE", "POD", "PLACE", "PASSES ON BY", "IMAGE"]);
    let pods = report.pods.iter();
    let all: Vec<_> = pods
        .flat_map(|pod| pod.passed_on.iter().map(move |found| (pod, found)))
        .collect();
    let (shown, more) = all.split_at(all.len().min(passed_on::SHOWN));
    for (pod, found) in shown {
        table.row([
            &Foreign(&pod.namespace),
            &Foreign(&pod.pod),
            &Foreign(&found.place),
            &Foreign(&found.by),
            &Foreign(&short(&found.image)),
        ]);
    }
    if table.is_empty() {
        return Vec::new();
    }
    let mut lines = table.lines();
    if !more.is_empty() {
        lines.push(format!("and {} more (--output json lists them)", more.len()));
    }
    lines.extend([passed_on::MEANING.to_owned(), String::new()]);
    lines
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
    use crate::cli::{passed_on::PassedOn, report::NamespaceReport};

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
            wrong: None,
            left_alone,
        }
    }

    fn report() -> Report {
        let pod = |namespace: &str, pod: &str, images: Vec<ImageReport>| PodReport {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            mode: "audit",
            images,
            passed_on: Vec::new(),
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
            stuck: Vec::new(),
            owners_left_alone: Vec::new(),
            refusals: Vec::new(),
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

    #[test]
    fn what_is_wrong_with_an_image_stands_below() {
        let mut report = report();
        let image = &mut report.pods[0].images[0];
        image.wrong = Some("it is blank".to_owned());
        " ".clone_into(&mut image.image);
        let told = of(&report, true);
        assert!(
            told.contains("\nleft containers.app: \" \": it is blank\n\n"),
            "{told}"
        );
    }

    #[test]
    fn names_that_are_passed_on_have_a_table_with_an_end() {
        let mut report = report();
        let found = |index: usize| PassedOn {
            place: "containers.app".to_owned(),
            by: "--image".to_owned(),
            image: format!("redis:{index}\n"),
        };
        report.pods[2].passed_on = vec![found(8)];
        let told = of(&report, false);
        let expected = "\nNAMESPACE  POD  PLACE           PASSES ON BY  IMAGE\n\
                        shop       web  containers.app  --image       \"redis:8\\n\"\nthese names";
        assert!(told.contains(expected), "{told}");
        report.pods[2].passed_on = (0..passed_on::SHOWN + 3).map(found).collect();
        let told = of(&report, false);
        assert!(
            told.contains("\nand 3 more (--output json lists them)\n"),
            "{told}"
        );
        assert_eq!(told.matches("--image  ").count(), passed_on::SHOWN, "{told}");
    }

    #[test]
    fn no_image_forges_a_row() {
        let mut report = report();
        report.pods[0].images[0].image = "redis:8\nshop  web  containers.app\u{1b}[2K".to_owned();
        let before = of(&self::report(), true);
        let told = of(&report, true);
        assert_eq!(told.lines().count(), before.lines().count(), "{told}");
        assert!(
            told.contains("\"redis:8\\nshop  web  containers.app\\u{1b}[2K\""),
            "{told}"
        );
    }
}
