//! Every metric of the process: one struct, typed labels, one registry.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::{
    domain::{
        health::State,
        image::Class,
        mirror::Mode,
        presence,
        reason::{Outcome, Reason},
        time::Timestamp,
    },
    server::Counts,
};

/// The process's metrics. Clones share the same values.
#[derive(Clone, Debug)]
pub struct Metrics {
    decisions: Family<DecisionLabels, Counter>,
    reviews: Family<ReviewLabels, Counter>,
    review_seconds: Family<ModeLabel, Histogram, fn() -> Histogram>,
    of_reviews: Arc<[OfReviews; Mode::ALL.len()]>,
    probes: Family<ProbeLabels, Counter>,
    mirror_health: Family<HealthLabels, Gauge>,
    images: Family<ImagesLabels, Gauge>,
    sweeps: Family<SweepLabels, Counter>,
    configuration_loads: Family<ResultLabel, Counter>,
    demand_dropped: Counter,
    copies: CopyMetrics,
    cluster: ClusterMetrics,
    certificate_not_after: Gauge,
    certificate_replacements: Gauge,
    certificate_faults: Gauge,
    admission_server: Counts,
    admin_server: Counts,
}

/// Members of the families that every review touches, taken out at their first use: to find one costs
/// a hash and a lock.
#[derive(Debug)]
struct OfReviews {
    decisions: [[OnceLock<Counter>; Reason::ALL.len()]; Outcome::ALL.len()],
    answers: [OnceLock<Counter>; ReviewAnswer::ALL.len()],
    seconds: OnceLock<Histogram>,
}

impl OfReviews {
    const fn new() -> Self {
        Self {
            decisions: [const { [const { OnceLock::new() }; Reason::ALL.len()] }; Outcome::ALL.len()],
            answers: [const { OnceLock::new() }; ReviewAnswer::ALL.len()],
            seconds: OnceLock::new(),
        }
    }
}

/// What a process tells that fills mirrors.
#[derive(Clone, Debug, Default)]
struct CopyMetrics {
    copies: Family<CopyLabels, Counter>,
    bytes: Family<MirrorLabel, Counter>,
    under_way: Family<MirrorLabel, Gauge>,
    waiting: Family<MirrorLabel, Gauge>,
    refreshes: Family<RefreshLabel, Counter>,
    moved: Family<MirrorLabel, Gauge>,
}

/// What a process tells that follows an API server.
#[derive(Clone, Debug, Default)]
struct ClusterMetrics {
    state_stale: Family<MirrorLabel, Gauge>,
    watch_silence: Family<WatchLabel, Gauge>,
    watch_failures: Family<WatchLabel, Counter>,
    writes: Family<WriteLabels, Counter>,
    leading: Gauge,
    sweep_finished: Family<SweepClassLabels, Gauge>,
    mirror_condition: Family<ConditionLabels, Gauge>,
    rescues: Family<RescueLabels, Counter>,
    stuck_pods: Gauge,
    pull_secrets: Family<PullSecretLabel, Gauge>,
}

macro_rules! label_value {
    ($($type:ty),+) => {
        $(impl EncodeLabelValue for Label<$type> {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
                self.0.as_str().encode(encoder)
            }
        })+
    };
}

/// A domain enum as a label value: its `as_str`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Label<T>(T);

label_value!(Outcome, Reason, State);

impl EncodeLabelValue for Label<Mode> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.as_label().encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    mode: Label<Mode>,
    outcome: Label<Outcome>,
    reason: Label<Reason>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabel {
    mode: Label<Mode>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    mode: Label<Mode>,
    answer: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabels {
    mirror: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HealthLabels {
    mirror: String,
    state: Label<State>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MirrorLabel {
    mirror: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WatchLabel {
    watch: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ImagesLabels {
    mirror: String,
    presence: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SweepLabels {
    mirror: String,
    class: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SweepClassLabels {
    mirror: String,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabels {
    mirror: String,
    condition: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RescueLabels {
    mirror: String,
    direction: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PullSecretLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefreshLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CopyLabels {
    mirror: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// How a review was answered, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReviewAnswer {
    /// With a patch.
    Patched,
    /// Without.
    Unchanged,
    /// Without, because of a fault inside Kagami or in the review.
    Fault,
    /// The body was no review at all, or too large: an HTTP error.
    Refused,
    /// There were too many large ones at once: an HTTP error that asks to try again.
    NoRoom,
}

impl ReviewAnswer {
    const ALL: [Self; 5] = [
        Self::Patched,
        Self::Unchanged,
        Self::Fault,
        Self::Refused,
        Self::NoRoom,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Patched => "patched",
            Self::Unchanged => "unchanged",
            Self::Fault => "fault",
            Self::Refused => "refused",
            Self::NoRoom => "no_room",
        }
    }
}

/// Returns `ok` or `error`, the values of every `result` label that has only these two.
const fn ok_or_error(ok: bool) -> &'static str {
    if ok { "ok" } else { "error" }
}

impl Metrics {
    /// Returns the metrics and the registry that prints them.
    pub fn new() -> (Self, Registry) {
        let metrics = Self {
            // From 50 µs to 1.6 s: a decision from memory and one that waits for its whole budget.
            review_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_05, 2.0, 16))
            }),
            decisions: Family::default(),
            reviews: Family::default(),
            of_reviews: Arc::new([const { OfReviews::new() }; Mode::ALL.len()]),
            probes: Family::default(),
            mirror_health: Family::default(),
            images: Family::default(),
            sweeps: Family::default(),
            configuration_loads: Family::default(),
            demand_dropped: Counter::default(),
            copies: CopyMetrics::default(),
            cluster: ClusterMetrics::default(),
            certificate_not_after: Gauge::default(),
            certificate_replacements: Gauge::default(),
            certificate_faults: Gauge::default(),
            admission_server: Counts::default(),
            admin_server: Counts::default(),
        };
        let mut registry = Registry::with_prefix("kagami");
        let Self {
            decisions,
            reviews,
            review_seconds,
            of_reviews: _,
            probes,
            mirror_health,
            images,
            sweeps,
            configuration_loads,
            demand_dropped,
            copies,
            cluster,
            certificate_not_after,
            certificate_replacements,
            certificate_faults,
            admission_server,
            admin_server,
        } = metrics.clone();
        registry.register("decisions", "Decisions about images", decisions);
        registry.register("reviews", "Admission reviews by how they were answered", reviews);
        registry.register_with_unit(
            "review_duration",
            "Time from a review's last byte to its answer",
            Unit::Seconds,
            review_seconds,
        );
        registry.register(
            "probes",
            "Probes of a mirror for one image within a review",
            probes,
        );
        registry.register(
            "mirror_health",
            "1 for the state that a mirror's health is in",
            mirror_health,
        );
        registry.register("images", "Images known by what is known of them", images);
        registry.register("sweeps", "Sweeps by how they ended", sweeps);
        registry.register(
            "configuration_loads",
            "Times the configuration was read",
            configuration_loads,
        );
        registry.register(
            "demand_dropped",
            "New images not handed on because the queue was full",
            demand_dropped,
        );
        registry.register_with_unit(
            "certificate_not_after",
            "Expiry of the serving certificate, since the Unix epoch",
            Unit::Seconds,
            certificate_not_after,
        );
        registry.register(
            "certificate_replacements",
            "Times the serving certificate was replaced since the start",
            certificate_replacements,
        );
        registry.register(
            "certificate_faults",
            "Times a new serving certificate was refused since the start",
            certificate_faults,
        );
        copies.register(&mut registry);
        cluster.register(&mut registry);
        for (listener, counts) in [("admission", admission_server), ("admin", admin_server)] {
            register_server(&mut registry, listener, counts);
        }
        (metrics, registry)
    }

    /// Counts decisions that are the same.
    pub fn decided(&self, mode: Mode, outcome: Outcome, reason: Reason, images: u64) {
        let decisions = &self.of_reviews[mode as usize].decisions;
        let counter = decisions[outcome as usize][reason as usize].get_or_init(|| {
            self.decisions.get_or_create_owned(&DecisionLabels {
                mode: Label(mode),
                outcome: Label(outcome),
                reason: Label(reason),
            })
        });
        counter.inc_by(images);
    }

    /// Counts one review and its time.
    pub fn reviewed(&self, mode: Mode, answer: ReviewAnswer, took: Duration) {
        let OfReviews { answers, seconds, .. } = &self.of_reviews[mode as usize];
        let mode = Label(mode);
        let counter = answers[answer as usize].get_or_init(|| {
            let answer = answer.as_str();
            self.reviews.get_or_create_owned(&ReviewLabels { mode, answer })
        });
        counter.inc();
        seconds
            .get_or_init(|| self.review_seconds.get_or_create_owned(&ModeLabel { mode }))
            .observe(took.as_secs_f64());
    }

    /// Counts one probe of a mirror within a review.
    pub fn probed(&self, mirror: &str, result: &'static str) {
        self.probes
            .get_or_create(&ProbeLabels {
                mirror: mirror.to_owned(),
                result,
            })
            .inc();
    }

    /// Sets the state of a mirror's health.
    pub fn set_health(&self, mirror: &str, now: State) {
        for state in State::ALL {
            let labels = HealthLabels {
                mirror: mirror.to_owned(),
                state: Label(state),
            };
            self.mirror_health
                .get_or_create(&labels)
                .set(i64::from(state == now));
        }
    }

    /// Sets the numbers of images of which something is known.
    pub fn set_images(&self, mirror: &str, counts: presence::Counts) {
        for (presence, number) in counts.by_name() {
            let labels = ImagesLabels {
                mirror: mirror.to_owned(),
                presence,
            };
            self.images
                .get_or_create(&labels)
                .set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }

    /// Sets whether the shared state of a mirror is too old to be believed.
    pub fn set_stale(&self, mirror: &str, stale: bool) {
        let mirror = mirror.to_owned();
        self.cluster
            .state_stale
            .get_or_create(&MirrorLabel { mirror })
            .set(stale.into());
    }

    /// Sets how a watch of the API server fares: the time since its last answer, if there was one,
    /// and its failures since the start.
    pub fn set_watch(&self, watch: &'static str, silence: Option<Duration>, failures: u64) {
        let labels = WatchLabel { watch };
        let seconds = silence.map_or(-1, |silence| i64::try_from(silence.as_secs()).unwrap_or(i64::MAX));
        self.cluster.watch_silence.get_or_create(&labels).set(seconds);
        let counter = self.cluster.watch_failures.get_or_create(&labels);
        counter.inc_by(failures.saturating_sub(counter.get()));
    }

    /// Forgets the silence of a watch that nobody misses.
    pub fn forget_watch(&self, watch: &'static str) {
        self.cluster.watch_silence.remove(&WatchLabel { watch });
    }

    /// Forgets the silence of watches that nobody follows any more.
    pub fn forget_watches(&self) {
        self.cluster.watch_silence.clear();
    }

    /// Forgets a mirror that is configured no more.
    pub fn forget_mirror(&self, mirror: &str) {
        self.cluster.state_stale.remove(&MirrorLabel {
            mirror: mirror.to_owned(),
        });
        for state in State::ALL {
            self.mirror_health.remove(&HealthLabels {
                mirror: mirror.to_owned(),
                state: Label(state),
            });
        }
        self.set_copies(mirror, None);
        for class in Class::ALL {
            self.cluster.sweep_finished.remove(&SweepClassLabels {
                mirror: mirror.to_owned(),
                class: class.as_str(),
            });
        }
        for (presence, _) in presence::Counts::default().by_name() {
            self.images.remove(&ImagesLabels {
                mirror: mirror.to_owned(),
                presence,
            });
        }
    }

    /// Counts the end of a copy into a mirror: `Copied`, or the reason why it failed.
    pub fn copied(&self, mirror: &str, result: &'static str) {
        let mirror = mirror.to_owned();
        self.copies
            .copies
            .get_or_create(&CopyLabels { mirror, result })
            .inc();
    }

    /// Counts bytes that were sent to a mirror, of copies that came to an end or not.
    pub fn copied_bytes(&self, mirror: &str, bytes: u64) {
        if bytes > 0 {
            let mirror = mirror.to_owned();
            self.copies
                .bytes
                .get_or_create(&MirrorLabel { mirror })
                .inc_by(bytes);
        }
    }

    /// Sets how many copies into a mirror are under way, and how many images wait for one; none where it is not filled.
    pub fn set_copies(&self, mirror: &str, numbers: Option<(usize, usize)>) {
        let label = MirrorLabel {
            mirror: mirror.to_owned(),
        };
        let CopyMetrics {
            under_way, waiting, ..
        } = &self.copies;
        let numbers = numbers.map(|(under_way, waiting)| [under_way, waiting]);
        for (at, gauge) in [under_way, waiting].into_iter().enumerate() {
            match numbers {
                Some(numbers) => {
                    let number = i64::try_from(numbers[at]).unwrap_or(i64::MAX);
                    gauge.get_or_create(&label).set(number);
                }
                None => drop(gauge.remove(&label)),
            }
        }
    }

    /// Counts a question to an upstream registry what a tag means.
    pub fn tag_was_refreshed(&self, result: &'static str) {
        self.copies
            .refreshes
            .get_or_create(&RefreshLabel { result })
            .inc();
    }

    /// Sets how many tags of a mirror are known to have moved; none where nobody asks.
    pub fn set_moved_tags(&self, mirror: &str, count: Option<usize>) {
        let label = MirrorLabel {
            mirror: mirror.to_owned(),
        };
        match count {
            Some(count) => {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.copies.moved.get_or_create(&label).set(count);
            }
            None => drop(self.copies.moved.remove(&label)),
        }
    }

    /// Counts the end of a sweep: `complete` or `aborted`.
    pub fn swept(&self, mirror: &str, class: &'static str, complete: bool) {
        let result = if complete { "complete" } else { "aborted" };
        self.sweeps
            .get_or_create(&SweepLabels {
                mirror: mirror.to_owned(),
                class,
                result,
            })
            .inc();
    }

    /// Sets the end of a mirror's last complete sweep.
    pub fn sweep_finished(&self, mirror: &str, class: &'static str, at: Timestamp) {
        let labels = SweepClassLabels {
            mirror: mirror.to_owned(),
            class,
        };
        let seconds = i64::try_from(at.as_millis() / 1000).unwrap_or(i64::MAX);
        self.cluster.sweep_finished.get_or_create(&labels).set(seconds);
    }

    /// Sets what a condition of an ImageMirror says; none where that is not known.
    pub fn set_condition(&self, mirror: &str, condition: &'static str, holds: Option<bool>) {
        let labels = ConditionLabels {
            mirror: mirror.to_owned(),
            condition,
        };
        let value = holds.map_or(-1, i64::from);
        self.cluster.mirror_condition.get_or_create(&labels).set(value);
    }

    /// Forgets the conditions of all ImageMirrors.
    pub fn forget_conditions(&self) {
        self.cluster.mirror_condition.clear();
    }

    /// Counts one write to the API server.
    pub fn wrote(&self, kind: &'static str, result: &'static str) {
        self.cluster
            .writes
            .get_or_create(&WriteLabels { kind, result })
            .inc();
    }

    /// Counts what became of the image of a stuck container.
    pub fn rescued(&self, mirror: &str, direction: &'static str, outcome: &'static str) {
        let labels = RescueLabels {
            mirror: mirror.to_owned(),
            direction,
            outcome,
        };
        self.cluster.rescues.get_or_create(&labels).inc();
    }

    /// Sets how many stuck Pods wait to be turned.
    pub fn set_stuck(&self, pods: usize) {
        self.cluster
            .stuck_pods
            .set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// Sets in how many namespaces pull secrets are wanted, are in place, and are kept out by somebody else's.
    pub fn set_pull_secrets(&self, wanted: usize, in_place: usize, foreign: usize) {
        for (state, number) in [("wanted", wanted), ("in_place", in_place), ("foreign", foreign)] {
            self.cluster
                .pull_secrets
                .get_or_create(&PullSecretLabel { state })
                .set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }

    /// Sets whether this companion leads.
    pub fn set_leading(&self, leading: bool) {
        self.cluster.leading.set(i64::from(leading));
    }

    /// Counts one reading of the configuration.
    pub fn configured(&self, ok: bool) {
        self.configuration_loads
            .get_or_create(&ResultLabel {
                result: ok_or_error(ok),
            })
            .inc();
    }

    /// Counts an image that was not handed on.
    pub fn demand_was_dropped(&self) {
        self.demand_dropped.inc();
    }

    /// Sets what is known of the serving certificate.
    pub fn set_certificate(&self, not_after: Timestamp, replacements: u64, faults: u64) {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.certificate_not_after
            .set(number(not_after.as_millis() / 1000));
        self.certificate_replacements.set(number(replacements));
        self.certificate_faults.set(number(faults));
    }

    /// Returns what the admission listener counts in.
    pub fn admission_server(&self) -> Counts {
        self.admission_server.clone()
    }

    /// Returns what the admin listener counts in.
    pub fn admin_server(&self) -> Counts {
        self.admin_server.clone()
    }
}

impl CopyMetrics {
    fn register(self, registry: &mut Registry) {
        let Self {
            copies,
            bytes,
            under_way,
            waiting,
            refreshes,
            moved,
        } = self;
        registry.register(
            "copies",
            "Copies of images into a mirror by how they ended: Copied, or why not",
            copies,
        );
        registry.register_with_unit("copied", "Bytes sent to a mirror by copies", Unit::Bytes, bytes);
        registry.register(
            "copies_under_way",
            "Copies into a mirror that are under way",
            under_way,
        );
        registry.register(
            "copies_waiting",
            "Images that a mirror lacks, or has as they were before, and that wait for a copy; those that failed lately are left out",
            waiting,
        );
        registry.register(
            "tag_refreshes",
            "Questions to upstream registries what a tag means, by what was answered: Found, Missing, or why nobody can tell",
            refreshes,
        );
        registry.register(
            "tags_moved",
            "Tags that are known to mean another image upstream than on a mirror",
            moved,
        );
    }
}

impl ClusterMetrics {
    fn register(self, registry: &mut Registry) {
        let Self {
            state_stale,
            watch_silence,
            watch_failures,
            writes,
            leading,
            sweep_finished,
            mirror_condition,
            rescues,
            stuck_pods,
            pull_secrets,
        } = self;
        registry.register("writes", "Writes to the API server by how they ended", writes);
        registry.register("leading", "Whether this companion leads: 1 or 0", leading);
        registry.register_with_unit(
            "sweep_finished",
            "End of the last complete sweep, since the Unix epoch",
            Unit::Seconds,
            sweep_finished,
        );
        registry.register(
            "mirror_condition",
            "What a condition of an ImageMirror says: 1 True, 0 False, -1 Unknown; told by the companion that leads",
            mirror_condition,
        );
        registry.register(
            "rescues",
            "Containers of stuck Pods by what became of their image: done, told (the policy allows no more), changed \
             (the Pod was another one by then), refused (so it was, or a policy forbids it; tried again less and less \
             often), error (tried again); by direction: back to what was written, forward to a mirror, or evicted for \
             an image volume",
            rescues,
        );
        registry.register(
            "stuck_pods",
            "Pods whose images cannot be pulled from a mirror and that wait to be turned back",
            stuck_pods,
        );
        registry.register(
            "pull_secrets",
            "Namespaces by their pull secret: wanted (mirrors that need one serve them), in_place (they have it, with the \
             logins of now), foreign (somebody else's Secret has its name); told by the companion that leads",
            pull_secrets,
        );
        registry.register(
            "state_stale",
            "1 while the shared state of a mirror is too old to be believed",
            state_stale,
        );
        registry.register_with_unit(
            "watch_silence",
            "Time since the API server last answered a watch; -1 if it never did",
            Unit::Seconds,
            watch_silence,
        );
        registry.register(
            "watch_failures",
            "Times a watch of the API server failed and was tried again",
            watch_failures,
        );
    }
}

/// Registers what one listener counts, with the listener's name as label.
fn register_server(registry: &mut Registry, listener: &'static str, counts: Counts) {
    let Counts {
        accepted,
        open,
        handshakes_failed,
        cut,
        displaced,
        panicked,
    } = counts;
    let registry = registry.sub_registry_with_label(("listener".into(), listener.into()));
    registry.register("connections_accepted", "Connections taken", accepted);
    registry.register("connections_open", "Connections open now", open);
    registry.register(
        "handshakes_failed",
        "TLS handshakes that failed or took too long",
        handshakes_failed,
    );
    registry.register(
        "connections_cut",
        "Connections cut because the client was too slow",
        cut,
    );
    registry.register(
        "connections_displaced",
        "Connections whose client was waited for and that made way for new ones",
        displaced,
    );
    registry.register("connections_panicked", "Connections that a panic ended", panicked);
}
