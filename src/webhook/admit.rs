//! One review: decide, probe within the budget, settle.
//!
//! Whatever goes wrong, the answer is `allowed: true` without a change, and says why. The only
//! network IO of a review is the one await between `decide` and `settle`.

use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use serde::Serialize;
use tokio::{sync::mpsc, time::Instant};

use super::{
    probes::Probes,
    respond::{self, AdmissionResponse, Audit},
    review::{Question, Review},
    scan::ScanError,
};
use crate::{
    clock,
    domain::{
        decision::{self, CandidateDecision, Decision, Probe, Probing, Request, decide},
        image::Reference,
        mirror::Mode,
        names::NAMESPACE_LIMIT,
        patch,
        reason::{Outcome, Reason},
        snapshot::Snapshot,
        time::Timestamp,
    },
    metrics::{Metrics, ReviewAnswer},
    state::{Demand, Store, Why},
    telemetry::{Sample, Throttle},
};

/// How many decisions a second are kept for `/status`: enough for a person, nothing under load.
const RECENT_PER_SECOND: u32 = 100;

/// How many faults of one reason are logged in a second.
const FAULTS_PER_SECOND: u32 = 5;

/// How reviews are answered.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest that a review may wait for probes.
    pub budget: Duration,
    pub probing: Probing,
    /// Whether images that were rewritten earlier may go back to their originals.
    pub heal: bool,
    /// How many decisions are kept for people to look at.
    pub recent: usize,
}

/// Answers reviews. Clones share everything.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    probes: Probes,
    metrics: Metrics,
    demand: Option<mpsc::Sender<Demand>>,
    limits: Limits,
    recent: Mutex<VecDeque<RecentDecision>>,
    sample: Sample,
    faults: Throttle<Reason>,
}

/// A decision as `/status` shows it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecentDecision {
    #[serde(serialize_with = "as_text")]
    pub at: Timestamp,
    pub namespace: String,
    pub pod: String,
    pub place: String,
    pub image: String,
    pub outcome: &'static str,
    pub reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewritten: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn as_text<S: serde::Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

/// The body is no AdmissionReview: there is no UID to answer to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the AdmissionReview: {0}")]
pub struct NoReview(String);

/// Why a review is not decided.
struct Fault {
    reason: Reason,
    why: String,
}

impl Fault {
    fn internal(why: impl Into<String>) -> Self {
        Self {
            reason: Reason::Internal,
            why: why.into(),
        }
    }
}

/// Reads a review and what it asks. What stands before a fault is in the review all the same, for the
/// UID to answer to may be there.
fn read(body: &[u8]) -> (Review<'_>, Result<Question<'_>, Fault>) {
    // Invalid UTF-8 ends the text early.
    let text = simdutf8::compat::from_utf8(body);
    let valid = text.is_ok();
    let text =
        text.unwrap_or_else(|error| std::str::from_utf8(&body[..error.valid_up_to()]).unwrap_or_default());
    let mut review = Review::default();
    let read = std::panic::catch_unwind(AssertUnwindSafe(|| {
        review.read(text)?;
        Ok(review.question())
    }));
    let asked = match read {
        Ok(Ok(question)) if valid => Ok(question),
        Ok(Err(error @ ScanError::TooMany(_))) => Err(Fault {
            reason: Reason::PodTooLarge,
            why: error.to_string(),
        }),
        Ok(Err(error)) if valid => Err(Fault::internal(error.to_string())),
        Err(_) => Err(Fault::internal("panicked while reading")),
        Ok(_) => Err(Fault::internal("invalid UTF-8")),
    };
    (review, asked)
}

impl Admission {
    /// Returns an admission that decides from `store`, probes with `probes` and hands images that
    /// nobody knows to `demand`, if there is somebody to take them.
    pub fn new(
        store: Store,
        probes: Probes,
        metrics: Metrics,
        demand: Option<mpsc::Sender<Demand>>,
        limits: Limits,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            probes,
            metrics,
            demand,
            limits,
            recent: Mutex::default(),
            sample: Sample::new(RECENT_PER_SECOND),
            faults: Throttle::new(FAULTS_PER_SECOND),
        }))
    }

    /// Answers a review. `timeout` is how long the caller waits for the answer.
    pub async fn review(
        &self,
        mode: Mode,
        body: &[u8],
        timeout: Option<Duration>,
    ) -> Result<Vec<u8>, NoReview> {
        let started = Instant::now();
        let (answer, how) = self.0.review(mode, body, timeout, started).await;
        self.0.metrics.reviewed(mode, how, started.elapsed());
        answer
    }

    /// Counts a review that was not read.
    pub(super) fn refused(&self, mode: Mode, how: ReviewAnswer, took: Duration) {
        self.0.metrics.reviewed(mode, how, took);
    }

    /// Returns the one snapshot that a review is decided by, and gives its Pod what others of the namespace record of its
    /// images.
    pub fn begin(&self, request: &mut Request<'_>) -> Arc<Snapshot> {
        self.0.begin(request)
    }

    /// Decides about a Pod's images, waiting for probes until `deadline`. With `dry_run`, images that
    /// nobody knows are not handed on.
    pub async fn decide<'r>(
        &self,
        snapshot: &Arc<Snapshot>,
        request: &'r Request<'r>,
        dry_run: bool,
        deadline: Instant,
    ) -> Vec<Decision<'r>> {
        self.0.decide(snapshot, request, dry_run, deadline).await
    }

    /// Returns an admission that shares everything with this one but the decisions kept for people.
    pub fn apart(&self) -> Self {
        let Inner {
            store,
            probes,
            metrics,
            demand,
            limits,
            ..
        } = &*self.0;
        Self::new(
            store.clone(),
            probes.clone(),
            metrics.clone(),
            demand.clone(),
            *limits,
        )
    }

    /// Returns the latest decisions, newest last.
    pub fn recent(&self) -> Vec<RecentDecision> {
        let recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().cloned().collect()
    }
}

impl Inner {
    async fn review(
        &self,
        mode: Mode,
        body: &[u8],
        timeout: Option<Duration>,
        started: Instant,
    ) -> (Result<Vec<u8>, NoReview>, ReviewAnswer) {
        let (review, asked) = read(body);
        if review.uid.is_empty() {
            let why = asked.map_or_else(|fault| fault.why, |_| "no request.uid".to_owned());
            self.log_fault(Reason::Internal, "", &why);
            return (Err(NoReview(why)), ReviewAnswer::Refused);
        }
        let answered = match asked {
            Ok(question) => {
                let answer = self.answer(&review, question, mode, timeout, started);
                let answered = AssertUnwindSafe(answer).catch_unwind().await;
                answered.map_err(|_| Fault::internal("panicked"))
            }
            Err(fault) => Err(fault),
        };
        let (answer, how) = answered.unwrap_or_else(|fault| self.unchanged(&review, mode, &fault));
        (Ok(answer), how)
    }

    /// Answers what a review asks.
    async fn answer(
        &self,
        review: &Review<'_>,
        question: Question<'_>,
        mode: Mode,
        timeout: Option<Duration>,
        started: Instant,
    ) -> (Vec<u8>, ReviewAnswer) {
        let Question::Pod(operation, pod) = question else {
            let answer = AdmissionResponse {
                api_version: &review.api_version,
                uid: &review.uid,
                ..AdmissionResponse::default()
            };
            return (answer.write(), ReviewAnswer::Unchanged);
        };
        let mut request = Request {
            namespace: &review.namespace,
            mode,
            operation,
            heal: self.limits.heal,
            pod,
        };
        let budget = match timeout {
            Some(timeout) => self
                .limits
                .budget
                .min(timeout.saturating_sub(Duration::from_secs(1))),
            None => self.limits.budget,
        };
        let snapshot = self.begin(&mut request);
        let decisions = self
            .decide(&snapshot, &request, review.dry_run, started + budget)
            .await;
        self.answer_pod(&review.uid, &request, &snapshot, decisions, started)
    }

    /// Answers a review that could not be decided.
    fn unchanged(&self, review: &Review<'_>, mode: Mode, fault: &Fault) -> (Vec<u8>, ReviewAnswer) {
        let Fault { reason, why } = fault;
        self.log_fault(*reason, &review.uid, why);
        let answer = AdmissionResponse {
            api_version: &review.api_version,
            uid: &review.uid,
            audit: Audit::Fault(*reason, why),
            ..AdmissionResponse::default()
        };
        let how = if *reason == Reason::Internal {
            ReviewAnswer::Fault
        } else {
            // Nobody counted its images.
            self.metrics.decided(mode, Outcome::Kept, *reason, 1);
            ReviewAnswer::Unchanged
        };
        (answer.write(), how)
    }

    fn begin(&self, request: &mut Request<'_>) -> Arc<Snapshot> {
        let snapshot = self.store.snapshot();
        snapshot.lent.lend(request.namespace, &mut request.pod);
        snapshot
    }

    async fn decide<'r>(
        &self,
        snapshot: &Arc<Snapshot>,
        request: &'r Request<'r>,
        dry_run: bool,
        deadline: Instant,
    ) -> Vec<Decision<'r>> {
        let plan = decide(
            snapshot,
            &self.store.index(),
            request,
            self.limits.probing,
            clock::now(),
        );
        if !dry_run {
            self.demand(snapshot, &plan.unknown);
        }
        let findings = if plan.probes.is_empty() {
            Vec::new()
        } else {
            self.probes.make(snapshot, &plan.probes, deadline).await
        };
        let decisions = plan.settle(snapshot, &findings);
        if !dry_run && request.mode == Mode::Enforce {
            self.want(snapshot, request.namespace, &decisions);
        }
        decisions
    }

    /// Answers what was decided about a Pod.
    fn answer_pod(
        &self,
        uid: &str,
        request: &Request<'_>,
        snapshot: &Snapshot,
        mut decisions: Vec<Decision<'_>>,
        started: Instant,
    ) -> (Vec<u8>, ReviewAnswer) {
        let routing = &snapshot.routing;
        let patch = if let Ok(patch) = patch::patch(request, routing, &decisions) {
            patch
        } else {
            decision::keep_all(&mut decisions, Reason::PodTooLarge);
            None
        };
        self.tell(request, snapshot, &decisions, started);
        let answer = AdmissionResponse {
            api_version: "",
            uid,
            patch: patch.as_deref(),
            audit: Audit::Decisions(&decisions, routing),
            warnings: respond::warnings(request.mode, request.operation, &decisions),
        };
        let how = if patch.is_some() {
            ReviewAnswer::Patched
        } else {
            ReviewAnswer::Unchanged
        };
        (answer.write(), how)
    }

    /// Counts and logs the decisions of a review that was `started` then.
    fn tell(&self, request: &Request<'_>, snapshot: &Snapshot, decisions: &[Decision<'_>], started: Instant) {
        // One command's decisions are all wanted; a server's are a sample.
        let keep = match self.limits.recent {
            0 => false,
            usize::MAX => true,
            _ => self.sample.takes(started.into_std()),
        };
        // Mostly all of a Pod's images are decided alike.
        for alike in decisions.chunk_by(|a, b| (a.outcome, a.reason) == (b.outcome, b.reason)) {
            let new = alike.iter().filter(|decision| !decision.is_repeated()).count();
            if let (Some(first), Ok(count @ 1..)) = (alike.first(), u64::try_from(new)) {
                self.metrics
                    .decided(request.mode, first.outcome, first.reason, count);
            }
        }
        // Mostly one mirror has all of a Pod's images.
        for alike in decisions.chunk_by(|a, b| (a.outcome, a.mirror) == (b.outcome, b.mirror)) {
            if let Some(Decision {
                outcome: Outcome::Rewritten,
                mirror: Some(mirror),
                ..
            }) = alike.first()
            {
                self.store.used(&snapshot.routing.mirror(*mirror).name);
            }
        }
        let verbose = tracing::enabled!(tracing::Level::DEBUG);
        for decision in decisions {
            let mirror = decision
                .mirror
                .map(|mirror| snapshot.routing.mirror(mirror).name.as_str());
            if verbose {
                tracing::debug!(
                    pod.namespace = request.namespace,
                    pod.name = &*request.pod.name,
                    place = %decision.label(),
                    image.from = decision.image,
                    image.to = decision.rewritten.as_deref(),
                    outcome = decision.outcome.as_str(),
                    reason = decision.reason.as_str(),
                    mirror,
                    "decided",
                );
            }
            if keep {
                let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
                if recent.len() >= self.limits.recent {
                    recent.pop_front();
                }
                recent.push_back(RecentDecision {
                    at: clock::now(),
                    namespace: request.namespace.to_owned(),
                    pod: request.pod.name.to_string(),
                    place: decision.label().to_string(),
                    image: decision.image.to_owned(),
                    outcome: decision.outcome.as_str(),
                    reason: decision.reason.as_str(),
                    mirror: mirror.map(ToOwned::to_owned),
                    rewritten: decision.rewritten.clone(),
                });
            }
            if decision.outcome == Outcome::Kept && decision.reason == Reason::BudgetExhausted {
                self.log_fault(decision.reason, request.namespace, decision.image);
            }
        }
    }

    /// Hands images that nobody knows to whoever keeps the state up to date.
    fn demand(&self, snapshot: &Snapshot, unknown: &[Probe]) {
        let Some(taker) = &self.demand else { return };
        for probe in unknown {
            let demand = Demand {
                mirror: snapshot.routing.mirror(probe.mirror).name.clone(),
                key: probe.key.clone(),
                why: Why::New,
            };
            if taker.try_send(demand).is_err() {
                self.metrics.demand_was_dropped();
            }
        }
    }

    /// Tells whoever fills mirrors which images Pods would have from them and they lack, or have as they were before.
    fn want(&self, snapshot: &Snapshot, namespace: &str, decisions: &[Decision<'_>]) {
        let Some(taker) = &self.demand else { return };
        // It is kept with each image.
        if namespace.len() > NAMESPACE_LIMIT {
            return;
        }
        for decision in decisions {
            let lacks = |candidate: &&CandidateDecision| {
                let settings = snapshot.routing.mirror(candidate.mirror);
                matches!(candidate.reason, Reason::ImageMissing | Reason::ImageMoved)
                    && settings.copying.is_some()
                    && settings.mode == Mode::Enforce
            };
            for candidate in decision.candidates.iter().filter(lacks) {
                let Ok(reference) = Reference::parse(decision.image) else {
                    continue;
                };
                let demand = Demand {
                    mirror: snapshot.routing.mirror(candidate.mirror).name.clone(),
                    key: reference.key(),
                    why: Why::Wanted { by: namespace.into() },
                };
                if taker.try_send(demand).is_err() {
                    self.metrics.demand_was_dropped();
                }
            }
        }
    }

    fn log_fault(&self, reason: Reason, subject: &str, what: &str) {
        if let Some(suppressed) = self.faults.admit(reason, Instant::now().into_std()) {
            tracing::warn!(%reason, subject, what, suppressed, "a review was not decided in full");
        }
    }
}
