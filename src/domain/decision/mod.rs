//! From a Pod and a snapshot to one decision for each image.
//!
//! `decide` settles all that is known and lists the probes that are missing; the caller makes them
//! within its budget; `settle` turns what came back into decisions. Nothing here can fail: every
//! doubt is a decision to keep the image, with its reason.
//!
//! An image that Kagami rewrote earlier is decided about as its recorded original, in whatever round
//! and wherever the Pod comes from: what a Pod says of itself proves where its image comes from
//! ([`super::original`]), never that the mirror has it. Where the Pod has no such record and another one of its
//! namespace has ([`super::lent`]), that one's is taken, and recorded on this one too.

use std::collections::HashMap;

use foldhash::quality::RandomState;
use smallvec::SmallVec;

use super::{
    answer::Answer,
    digest::Digest,
    health::State,
    image::{ImageKey, KeyRef, KeySpan, Keys, Reference},
    mapping::MapError,
    mirror::{Kind, Mirror, Mode, Prefer},
    names::PULL_SECRET,
    original::{Original, RecordedDecisions},
    platform::{Platforms, Wanted},
    pod::{Place, PlaceKind, PlaceLabel, Pod},
    presence::{self, Found, Index, Judgement, Proof, Rules},
    reason::{Outcome, Reason},
    routing::{self, Keeper, MirrorId, Routing},
    snapshot::Snapshot,
    time::Timestamp,
};

/// What is asked: a Pod, where it is going to live, and how far Kagami may go.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub namespace: &'a str,
    /// The mode of the namespace.
    pub mode: Mode,
    pub operation: Operation,
    /// Whether an image that was rewritten earlier may go back to its original.
    pub heal: bool,
    pub pod: Pod<'a>,
}

/// What happens to the Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    /// Ephemeral containers are added; the Pod's places are those new containers only.
    AddEphemeralContainers,
}

/// What may be asked of mirrors within a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// Hosted mirrors only: probing a pull-through mirror may start a whole download.
    Hosted,
    /// Every mirror: a person asked about this very image.
    All,
}

/// A probe of a mirror that a decision waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub mirror: MirrorId,
    pub key: ImageKey,
    /// The repository within the mirror's registry.
    pub repository: String,
    /// Tag or digest.
    pub reference: String,
}

/// What a probe brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Present(Proof),
    /// Not proven, and why.
    Not(Reason),
    /// Not proven, and why; and what the mirror answered, in words.
    Failed(Reason, Box<str>),
}

impl Finding {
    /// Returns what an answer proves, given the platforms of the nodes that could pull the image.
    pub fn of(answer: &Answer, platforms: Platforms) -> Self {
        match answer {
            Answer::Exists(manifest) => Self::Present(Proof::new(manifest, platforms)),
            Answer::Missing => Self::Not(Reason::ImageMissing),
            other => Self::Failed(
                presence::reason_of(other).unwrap_or(Reason::Internal),
                other.to_string().into(),
            ),
        }
    }
}

/// The state of all places of one Pod between `decide` and `settle`.
#[derive(Debug)]
pub struct Plan<'a> {
    places: Vec<Planned<'a>>,
    heal: bool,
    recorded: RecordedDecisions<'a>,
    /// The probes that are missing, each once.
    pub probes: Vec<Probe>,
    /// Images that the shared state does not know and somebody should look at, probed now or not.
    pub unknown: Vec<Probe>,
}

#[derive(Debug)]
struct Planned<'a> {
    place: &'a Place<'a>,
    /// The reason where no mirror needs to be asked.
    standing: Option<Reason>,
    left_alone: bool,
    /// This is Kagami's own earlier rewrite, for that mirror.
    carried: Option<MirrorId>,
    /// Another Pod's record tells so, and this one has none.
    is_lent: bool,
    /// What is decided about: the original of what is carried, else the image. Absent where nothing
    /// about it matters.
    reference: Option<Reference<'a>>,
    wants_pull_secret: bool,
    candidates: SmallVec<[Asked; 1]>,
}

#[derive(Debug)]
struct Asked {
    mirror: MirrorId,
    /// The effective mode: the weakest of mirror, namespace and Pod.
    mode: Mode,
    wanted: Wanted,
    verdict: Verdict,
    closed_by: Option<Keeper>,
}

#[derive(Debug)]
enum Verdict {
    Proven(Digest),
    Not(Reason),
    /// Position in `Plan::probes`.
    Waits(usize),
}

/// The decision for one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    pub kind: PlaceKind,
    pub index: usize,
    pub name: &'a str,
    /// The image as the user wrote it. For an image rewritten earlier this is its original, unless
    /// nothing may change.
    pub image: &'a str,
    /// What stands there now.
    pub present: &'a str,
    pub outcome: Outcome,
    pub reason: Reason,
    /// What the mirror answered, in words, where that is the reason and was seen just now.
    pub cause: Option<Box<str>>,
    pub mirror: Option<MirrorId>,
    /// The mirror's reference, for `Rewritten` and `WouldRewrite`.
    pub rewritten: Option<String>,
    /// The digest that was proven.
    pub digest: Option<Digest>,
    /// Every mirror that was asked, in order.
    pub candidates: SmallVec<[CandidateDecision; 2]>,
    /// The strongest effective mode among the candidates; off without any.
    pub mode: Mode,
    /// What stands there now is Kagami's own earlier rewrite; its original is recorded.
    pub carried: bool,
    /// It is another Pod that recorded the original: this one has no record that proves it.
    pub is_lent: bool,
    /// What the Pod says that was decided before.
    pub earlier: Earlier,
    /// Nothing of the whole Pod may change, whatever stands on it.
    pub left_alone: bool,
    /// Some candidate that may rewrite needs the pull secret, and it is in place.
    pub wants_pull_secret: bool,
}

/// How the decision that stands on a Pod for a place compares with the present one. It may come from an
/// earlier round of this admission, from long ago, or from anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Earlier {
    /// None stands there.
    Absent,
    /// It tells the same, and the image stays as it is.
    Same,
    Other,
}

/// What was decided of one mirror for one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CandidateDecision {
    pub mirror: MirrorId,
    pub outcome: Outcome,
    pub reason: Reason,
    /// Another mirror, whose private source keeps what lies at that place for namespaces that it serves, where that is
    /// the reason.
    pub closed_by: Option<Keeper>,
}

/// Decides all that is known about a Pod's images.
pub fn decide<'a>(
    snapshot: &Snapshot,
    index: &Index,
    request: &'a Request<'a>,
    probing: Probing,
    now: Timestamp,
) -> Plan<'a> {
    let mut decider = Decider {
        snapshot,
        index,
        request,
        mode: request.pod.weaken(request.mode),
        standing: None,
        probing,
        now,
        recorded: RecordedDecisions::of(&request.pod),
        refusals: SmallVec::new(),
        probes: Vec::new(),
        unknown: Vec::new(),
        unproven: HashMap::default(),
    };
    decider.standing = decider.standing();
    let mut keys = Keys::with_room_for(request.pod.places.len());
    let mut asked: SmallVec<[Ask; 8]> = SmallVec::new();
    let mut places: Vec<_> = request
        .pod
        .places
        .iter()
        .enumerate()
        .map(|(position, place)| {
            let (planned, ask) = decider.place(position, place, &mut keys);
            asked.extend(ask);
            planned
        })
        .collect();
    // All are looked up before the first is judged: what is known of an image lies anywhere in memory, and so all of
    // them are waited for at the same time.
    let found = decider.find(&asked, &keys);
    for (ask, found) in asked.iter().zip(found) {
        decider.ask(&mut places[ask.place], ask, keys.get(&ask.key), found);
    }
    Plan {
        places,
        heal: request.heal,
        recorded: decider.recorded,
        probes: decider.probes,
        unknown: decider.unknown,
    }
}

/// The mirrors that an image without proof was met with, and the positions of those probes that are
/// waited for.
type Met = SmallVec<[(MirrorId, Option<usize>); 1]>;

/// An image that mirrors are asked for.
struct Ask {
    /// Position of its place.
    place: usize,
    key: KeySpan,
    first: MirrorId,
    /// In the order in which they are asked.
    candidates: SmallVec<[routing::Candidate; 2]>,
}

/// An image that one mirror is asked for that may serve it.
struct AskedFor<'r> {
    reference: &'r Reference<'r>,
    key: KeyRef<'r>,
    mirror: MirrorId,
    /// Whether it is given only where upstream gives it to everybody.
    asks_upstream: bool,
}

struct Decider<'s, 'a> {
    snapshot: &'s Snapshot,
    index: &'s Index,
    request: &'a Request<'a>,
    mode: Mode,
    /// Why the whole Pod is left alone.
    standing: Option<Reason>,
    probing: Probing,
    now: Timestamp,
    recorded: RecordedDecisions<'a>,
    /// What [`Self::refusal`] said of the mirrors that were met so far: the same for every image.
    refusals: SmallVec<[(MirrorId, Option<Reason>); 2]>,
    probes: Vec<Probe>,
    unknown: Vec<Probe>,
    /// The images without proof that were met so far.
    unproven: HashMap<ImageKey, Met, RandomState>,
}

impl<'s, 'a> Decider<'s, 'a> {
    /// Plans one place, and what is to be asked of mirrors.
    fn place(&self, position: usize, place: &'a Place<'a>, keys: &mut Keys) -> (Planned<'a>, Option<Ask>) {
        let mut planned = Planned {
            place,
            standing: None,
            left_alone: false,
            carried: None,
            is_lent: false,
            reference: None,
            wants_pull_secret: false,
            candidates: SmallVec::new(),
        };
        planned.standing = self.standing;
        if planned.standing.is_some() {
            planned.left_alone = true;
            planned.carried = self.original(place).map(|original| original.mirror);
            if planned.carried.is_some() {
                planned.standing = Some(Reason::AlreadyMirrored);
            }
            return (planned, None);
        }
        if place.is_placeholder() {
            planned.standing = Some(Reason::Placeholder);
            return (planned, None);
        }
        let Ok(mut reference) = Reference::parse(&place.image) else {
            planned.standing = Some(Reason::InvalidReference);
            return (planned, None);
        };
        let mut key = keys.push(&reference);
        let routing = &self.snapshot.routing;
        let mut candidates = routing.candidates(keys.get(&key).name());
        if candidates.names_mirror {
            let own = self.original(place);
            planned.carried = own.map(|original| original.mirror);
            // Without leave to change it, or a pull, there is nothing to decide.
            let decided = own
                .or_else(|| self.lent(position, place))
                .filter(|_| self.mode == Mode::Enforce && !place.never);
            if let Some(original) = decided {
                reference = original.reference;
                key = keys.push(&reference);
                candidates = routing.candidates(keys.get(&key).name());
            }
            let Some(original) = decided.filter(|_| !candidates.names_mirror) else {
                planned.standing = Some(Reason::AlreadyMirrored);
                return (planned, None);
            };
            planned.carried = Some(original.mirror);
            planned.is_lent = own.is_none();
        }
        planned.reference = Some(reference);
        if place.never {
            planned.standing = Some(Reason::PullNever);
            return (planned, None);
        }
        let Some(first) = candidates.ordered.first() else {
            planned.standing = Some(if candidates.excluded {
                Reason::Excluded
            } else {
                Reason::NoMirror
            });
            return (planned, None);
        };
        let ask = Ask {
            place: position,
            key,
            first: first.mirror,
            candidates: candidates.ordered,
        };
        (planned, Some(ask))
    }

    /// Finds what is known of each image on the first mirror that it is asked of; mostly there is no other.
    fn find(&self, asked: &[Ask], keys: &Keys) -> SmallVec<[Found<'s>; 8]> {
        let routing = &self.snapshot.routing;
        let asked = asked
            .iter()
            .map(|ask| (routing.mirror(ask.first).name.as_str(), keys.get(&ask.key)));
        self.index.find(asked)
    }

    /// Plans what mirrors are asked for. `found` is what is known of the image on the first of them.
    fn ask(&mut self, planned: &mut Planned<'a>, ask: &Ask, key: KeyRef<'_>, found: Found<'s>) {
        let Some(reference) = planned.reference else {
            return;
        };
        let snapshot = self.snapshot;
        let mut found = Some(found);
        let mut enough = false;
        for candidate in ask.candidates.iter().copied() {
            let settings = snapshot.routing.mirror(candidate.mirror);
            let found = found.take();
            if enough && !settings.pull_secret {
                continue;
            }
            let mode = settings.mode.min(self.mode);
            let mut refusal = self.known_refusal(candidate.mirror, settings, mode);
            let mut asks_upstream = false;
            let mut closed_by = None;
            if refusal.is_none() {
                let access = snapshot.routing.access(&candidate, &reference);
                asks_upstream = access.asks_upstream;
                closed_by = snapshot.closed_by(&access, self.request.namespace);
                if closed_by.is_some() {
                    // That one may have brought it there, for others.
                    refusal = Some(Reason::NamespaceNotServed);
                }
            }
            // Rescue may need any of these mirrors later, when the Pod's list cannot be changed.
            planned.wants_pull_secret |= settings.pull_secret && mode == Mode::Enforce && refusal.is_none();
            if enough {
                continue;
            }
            let nodes = snapshot.standing(candidate.mirror).platforms;
            let wanted = self.request.pod.landing.among(nodes);
            let verdict = if let Some(reason) = refusal {
                Verdict::Not(reason)
            } else {
                let found = found.unwrap_or_else(|| self.index.find_one(&settings.name, key));
                let asked = AskedFor {
                    reference: &reference,
                    key,
                    mirror: candidate.mirror,
                    asks_upstream,
                };
                self.state(&asked, settings, wanted, found)
            };
            enough = matches!(verdict, Verdict::Proven(_)) && mode == self.mode;
            planned.candidates.push(Asked {
                mirror: candidate.mirror,
                mode,
                wanted,
                verdict,
                closed_by,
            });
        }
    }

    /// Returns what the user wrote where an earlier round of admission rewrote it.
    fn original(&self, place: &Place<'_>) -> Option<Original<'a>> {
        let recorded = self.request.pod.original(place)?;
        // Without asking which mirror was recorded: what stands there may change between two rounds.
        Original::prove(&self.snapshot.routing, &place.image, recorded, || None)
    }

    /// Returns what another Pod of the namespace records as the original of a place's image. Nobody knows whether one does
    /// still where what is shared is too old.
    fn lent(&self, position: usize, place: &Place<'_>) -> Option<Original<'a>> {
        let recorded = self.request.pod.lent.get(position)?.as_deref()?;
        let original = Original::prove(&self.snapshot.routing, &place.image, recorded, || None)?;
        (!self.snapshot.is_stale(original.mirror)).then_some(original)
    }

    /// Returns the reason for which the whole Pod is left alone.
    fn standing(&self) -> Option<Reason> {
        if self.snapshot.paused {
            return Some(Reason::Paused);
        }
        if self.mode == Mode::Off {
            return Some(Reason::ModeOff);
        }
        if self.snapshot.left_alone.contains(self.request.namespace) {
            return Some(Reason::NamespaceNotServed);
        }
        if self
            .request
            .pod
            .annotations
            .as_ref()
            .is_some_and(|annotations| annotations.static_pod)
        {
            return Some(Reason::OwnerExcluded);
        }
        None
    }

    fn known_refusal(&mut self, mirror: MirrorId, settings: &Mirror, mode: Mode) -> Option<Reason> {
        if let Some((_, refusal)) = self.refusals.iter().find(|(known, _)| *known == mirror) {
            return *refusal;
        }
        let refusal = self.refusal(mirror, settings, mode);
        self.refusals.push((mirror, refusal));
        refusal
    }

    /// Returns why a mirror may not serve this Pod, whatever its state.
    fn refusal(&self, mirror: MirrorId, settings: &Mirror, mode: Mode) -> Option<Reason> {
        if mode == Mode::Off {
            return Some(Reason::ModeOff);
        }
        if !self.snapshot.serves(mirror, self.request.namespace) {
            return Some(Reason::NamespaceNotServed);
        }
        let known = &self.snapshot.owners;
        for owner in &self.request.pod.owners {
            if settings.excludes(&owner.api_version, &owner.kind)
                || known
                    .owner_of(self.request.namespace, &owner.uid)
                    .is_some_and(|owner| settings.excludes(&owner.api_version, &owner.kind))
            {
                return Some(Reason::OwnerExcluded);
            }
            if known.is_looping(self.request.namespace, &owner.uid, self.now) {
                return Some(Reason::OwnerLoop);
            }
        }
        if settings.pull_secret {
            let standing = self.snapshot.standing(mirror);
            let in_place = standing.pull_secret_namespaces.contains(self.request.namespace);
            // The list of a Pod that exists cannot be changed, so it must be there already.
            let listed = self.request.operation == Operation::Create
                || self.request.pod.lists_pull_secret(PULL_SECRET);
            if !in_place || !listed {
                return Some(Reason::PullSecretNotReady);
            }
        }
        None
    }

    /// Returns what the state says of an image on a mirror that may serve it.
    fn state(
        &mut self,
        asked: &AskedFor<'_>,
        settings: &Mirror,
        wanted: Wanted,
        found: Found<'_>,
    ) -> Verdict {
        let stale = self.snapshot.is_stale(asked.mirror);
        if stale && settings.kind == Kind::PullThrough {
            return Verdict::Not(Reason::StateStale);
        }
        let health = self.snapshot.health_of(asked.mirror);
        match health.state {
            State::Healthy if self.snapshot.is_suspected(asked.mirror) => {
                return Verdict::Not(Reason::MirrorSuspected);
            }
            State::Healthy => {}
            State::Unhealthy => return Verdict::Not(Reason::MirrorUnhealthy),
            State::Unknown if stale => return Verdict::Not(Reason::StateStale),
            State::Unknown => return Verdict::Not(Reason::MirrorUnknown),
        }
        if settings.prefer == Prefer::Upstream && self.upstream_works(asked.key) {
            return Verdict::Not(Reason::UpstreamPreferred);
        }
        let rules = Rules::of(settings, health.proven_since);
        match found.judge(asked.key.class(), &rules, self.now) {
            Judgement::Proven(proof, _) => {
                if let Some(reason) = objection(proof, wanted, asked.reference) {
                    return Verdict::Not(reason);
                }
                if asked.asks_upstream && proof.public != Some(true) {
                    return Verdict::Not(Reason::Private);
                }
                if self.has_moved(asked, settings, Some(&proof.digest)) {
                    return Verdict::Not(Reason::ImageMoved);
                }
                Verdict::Proven(proof.digest.clone())
            }
            Judgement::Absent(_) => Verdict::Not(Reason::ImageMissing),
            // Whatever a probe finds: only the companion knows when upstream's came.
            Judgement::Unproven(_) if self.has_moved(asked, settings, None) => {
                Verdict::Not(Reason::ImageMoved)
            }
            Judgement::Unproven(reason) => self.unproven(asked, settings, reason),
        }
    }

    /// Whether the tag is known to mean another image upstream than this one, and that counts on this mirror.
    fn has_moved(&self, asked: &AskedFor<'_>, settings: &Mirror, seen: Option<&Digest>) -> bool {
        settings.yields_moved_tags() && self.index.has_moved(&settings.name, asked.key, seen)
    }

    /// Whether nothing bad is known of the image's own registry.
    fn upstream_works(&self, key: KeyRef<'_>) -> bool {
        !self.snapshot.failing_upstreams.contains(key.host())
    }

    /// Returns the verdict on an image without proof: wait for a probe, or keep it.
    fn unproven(&mut self, asked: &AskedFor<'_>, settings: &Mirror, reason: Option<Reason>) -> Verdict {
        let &AskedFor {
            reference,
            key,
            mirror,
            asks_upstream,
        } = asked;
        let met = self.unproven.get(key.as_str());
        let met = met.and_then(|met| met.iter().find(|(met, _)| *met == mirror));
        if let Some((_, Some(position))) = met {
            return Verdict::Waits(*position);
        }
        let is_new = met.is_none();
        let repository = match settings.mapping.repository_path(reference) {
            Ok(repository) => repository,
            Err(MapError::NameTooLong { .. }) => return Verdict::Not(Reason::NameTooLong),
        };
        // Only the companion asks upstream whether everybody gets an image.
        let wait = !asks_upstream && (settings.kind == Kind::Hosted || self.probing == Probing::All);
        let reference = reference.manifest_reference().to_owned();
        let probe = Probe {
            mirror,
            key: ImageKey::from(key),
            repository,
            reference,
        };
        if is_new {
            let position = wait.then_some(self.probes.len());
            let met = self.unproven.entry(probe.key.clone()).or_default();
            met.push((mirror, position));
            if !wait || !self.index.contains(&settings.name, key) {
                self.unknown.push(probe.clone());
            }
        }
        if wait {
            self.probes.push(probe);
            Verdict::Waits(self.probes.len() - 1)
        } else if asks_upstream {
            Verdict::Not(Reason::Private)
        } else {
            Verdict::Not(reason.unwrap_or(Reason::ImageUnknown))
        }
    }
}

/// Returns why a proof does not prove this image for these platforms.
fn objection(proof: &Proof, wanted: Wanted, reference: &Reference<'_>) -> Option<Reason> {
    if reference.digest().is_some_and(|digest| !proof.digest.is(digest)) {
        return Some(Reason::DigestMismatch);
    }
    (!wanted.is_met_by(proof.platforms)).then_some(Reason::PlatformMissing)
}

impl Decision<'_> {
    /// Returns the place's name in annotations and logs, such as `containers.app`.
    pub const fn label(&self) -> PlaceLabel<'_> {
        PlaceLabel::new(self.kind, self.name)
    }

    /// Returns the mirror that keeps the image from the namespace, where that is the reason: another one than the mirror
    /// that was asked.
    pub fn closed_by(&self) -> Option<Keeper> {
        let mut candidates = self.candidates.iter();
        let asked = candidates.find(|candidate| Some(candidate.mirror) == self.mirror)?;
        asked.closed_by.filter(|_| self.reason == asked.reason)
    }

    /// Returns what shall stand in the Pod, if that is not what stands there now.
    pub fn replacement(&self) -> Option<&str> {
        let wanted = match self.outcome {
            Outcome::Rewritten => self.rewritten.as_deref()?,
            Outcome::WouldRewrite if !self.carried => return None,
            // An earlier rewrite goes back; where it stays this is what stands there.
            Outcome::WouldRewrite | Outcome::Kept => self.image,
        };
        (wanted != self.present).then_some(wanted)
    }

    /// Turns what was decided of an original into the decision about its earlier rewrite. `verdict` is what was
    /// decided of the mirror that stands there; none if it is asked for such images no more.
    fn carry_over(&mut self, verdict: Option<CandidateDecision>, heal: bool) {
        let doubt = match (self.outcome, verdict) {
            (Outcome::Rewritten, _) => return,
            (Outcome::Kept, _) => Some(self.reason),
            // A mirror that may not rewrite says nothing of another one whose reference stands there.
            (Outcome::WouldRewrite, None) => Some(Reason::NoMirror),
            (Outcome::WouldRewrite, Some(verdict)) => {
                (verdict.outcome == Outcome::Kept).then_some(verdict.reason)
            }
        };
        // An owner that fights one mirror's rewrites fights every change.
        let fights = |reason| matches!(reason, Reason::OwnerExcluded | Reason::OwnerLoop);
        let fought = self.candidates.iter().any(|candidate| fights(candidate.reason));
        let stays = !heal || fought || !doubt.is_some_and(goes_back);
        if stays {
            self.leave_as_it_is();
        }
    }

    /// Whether an earlier round told of this very decision already.
    pub fn is_repeated(&self) -> bool {
        self.carried && self.earlier == Earlier::Same
    }

    /// Compares what was decided now with what stands on the Pod.
    fn compare(&mut self, recorded: &RecordedDecisions<'_>, routing: &Routing) {
        let Some(entry) = recorded.entry(self.label()) else {
            return;
        };
        let mirror = self.mirror.map(|mirror| routing.mirror(mirror).name.as_str());
        let same = entry.outcome.as_deref() == Some(self.outcome.as_str())
            && entry.reason.as_deref() == Some(self.reason.as_str())
            && entry.mirror.as_deref() == mirror
            && self.replacement().is_none();
        self.earlier = if same { Earlier::Same } else { Earlier::Other };
    }

    /// Keeps an earlier rewrite as it stands there, whatever is true of its mirror.
    fn leave_as_it_is(&mut self) {
        self.image = self.present;
        self.outcome = Outcome::Kept;
        self.reason = Reason::AlreadyMirrored;
        self.mirror = None;
        self.rewritten = None;
        self.digest = None;
        self.candidates.clear();
        self.mode = Mode::Off;
        // Nothing is recorded of what is left alone.
        self.carried &= !self.is_lent;
        self.is_lent = false;
    }
}

/// Turns all decisions into keeping the image, for one reason.
pub fn keep_all(decisions: &mut [Decision<'_>], reason: Reason) {
    for decision in decisions {
        // Nothing is written, so what stands there tells of something else.
        if decision.earlier == Earlier::Same {
            decision.earlier = Earlier::Other;
        }
        if decision.carried {
            decision.leave_as_it_is();
            continue;
        }
        decision.outcome = Outcome::Kept;
        decision.reason = reason;
        decision.rewritten = None;
        decision.digest = None;
    }
}

/// Whether an image that Kagami rewrote earlier goes back to its original, where the original is kept
/// for this reason.
///
/// It does wherever the mirror is in doubt for that image or no longer meant for it, as with a source
/// that was taken out. It does not where nobody pulls, where the owner would fight the change as it
/// fights rewrites, and where Kagami itself failed.
const fn goes_back(reason: Reason) -> bool {
    match reason {
        Reason::NoMirror
        | Reason::Excluded
        | Reason::NamespaceNotServed
        | Reason::ModeOff
        | Reason::MirrorUnhealthy
        | Reason::MirrorSuspected
        | Reason::MirrorUnknown
        | Reason::StateStale
        | Reason::ImageMissing
        | Reason::ImageUnknown
        | Reason::ImageMoved
        | Reason::DigestMismatch
        | Reason::PlatformMissing
        | Reason::Private
        | Reason::Unauthorized
        | Reason::RateLimited
        | Reason::RegistryError
        | Reason::BudgetExhausted
        | Reason::PullSecretNotReady
        | Reason::UpstreamPreferred
        | Reason::NameTooLong => true,
        Reason::Mirrored
        | Reason::AlreadyMirrored
        | Reason::Paused
        | Reason::PullNever
        | Reason::OwnerExcluded
        | Reason::OwnerLoop
        | Reason::PodTooLarge
        | Reason::InvalidReference
        | Reason::Placeholder
        | Reason::Internal => false,
    }
}

impl<'a> Plan<'a> {
    /// Turns what the probes brought into decisions. `findings` has one entry for each probe, in
    /// their order; what is absent did not come in time.
    pub fn settle(self, snapshot: &Snapshot, findings: &[Option<Finding>]) -> Vec<Decision<'a>> {
        let Self {
            places,
            heal,
            recorded,
            ..
        } = self;
        let settled = places.into_iter().map(|planned| {
            let mut decision = planned.settle(snapshot, findings, heal);
            decision.compare(&recorded, &snapshot.routing);
            decision
        });
        settled.collect()
    }
}

impl<'a> Planned<'a> {
    fn settle(self, snapshot: &Snapshot, findings: &[Option<Finding>], heal: bool) -> Decision<'a> {
        let (carried, original) = (self.carried, self.reference);
        let (mut decision, verdict) = self.decision(snapshot, findings);
        if carried.is_none() {
            return decision;
        }
        // The very digest that is proven may have been added there, by pinning or by somebody else.
        if let (Some(original), Some(mirror), Some(digest)) = (original, decision.mirror, &decision.digest)
            && snapshot
                .routing
                .mirror(mirror)
                .pins(&original, digest, decision.present)
        {
            decision.rewritten = Some(decision.present.to_owned());
        }
        decision.carry_over(verdict, heal);
        decision
    }

    /// Returns the decision about what the user wrote, and what was decided of the mirror that an earlier
    /// rewrite names.
    fn decision(
        self,
        snapshot: &Snapshot,
        findings: &[Option<Finding>],
    ) -> (Decision<'a>, Option<CandidateDecision>) {
        let Self {
            place,
            standing,
            left_alone,
            carried,
            is_lent,
            reference,
            wants_pull_secret,
            candidates,
        } = self;
        let mut decision = Decision {
            kind: place.kind,
            index: place.index,
            name: &place.name,
            image: reference.map_or(&*place.image, |reference| reference.written()),
            present: &place.image,
            outcome: Outcome::Kept,
            reason: standing.unwrap_or(Reason::NoMirror),
            cause: None,
            mirror: None,
            rewritten: None,
            digest: None,
            candidates: SmallVec::new(),
            mode: Mode::Off,
            carried: carried.is_some(),
            is_lent,
            earlier: Earlier::Absent,
            left_alone,
            wants_pull_secret,
        };
        let mut of_carried = None;
        let Some(reference) = reference else {
            return (decision, of_carried);
        };
        let strongest = candidates
            .iter()
            .map(|asked| asked.mode)
            .max()
            .unwrap_or(Mode::Off);
        decision.mode = strongest;
        let mut won = false;
        for asked in candidates {
            let mirror = snapshot.routing.mirror(asked.mirror);
            let mut cause = None;
            let proven = match asked.verdict {
                Verdict::Proven(digest) => Ok(digest),
                Verdict::Not(reason) => Err(reason),
                Verdict::Waits(position) => match findings.get(position) {
                    Some(Some(Finding::Present(proof))) => match objection(proof, asked.wanted, &reference) {
                        None => Ok(proof.digest.clone()),
                        Some(reason) => Err(reason),
                    },
                    Some(Some(Finding::Not(reason))) => Err(*reason),
                    Some(Some(Finding::Failed(reason, words))) => {
                        cause = Some(words);
                        Err(*reason)
                    }
                    Some(None) | None => Err(Reason::BudgetExhausted),
                },
            };
            let mapped = proven.and_then(|digest| match mirror.map(&reference, &digest) {
                Ok(rewritten) => Ok((rewritten, digest)),
                Err(MapError::NameTooLong { .. }) => Err(Reason::NameTooLong),
            });
            // A mirror weaker than the request is decided apart and never stands in another's way.
            let outcome = match (&mapped, asked.mode) {
                (Err(_), _) => Outcome::Kept,
                (Ok(_), Mode::Enforce) => Outcome::Rewritten,
                (Ok(_), _) => Outcome::WouldRewrite,
            };
            let reason = mapped.as_ref().err().copied().unwrap_or(Reason::Mirrored);
            let first = decision.candidates.is_empty();
            let candidate = CandidateDecision {
                mirror: asked.mirror,
                outcome,
                reason,
                closed_by: asked.closed_by,
            };
            if carried == Some(asked.mirror) {
                of_carried = Some(candidate);
            }
            if won {
                continue;
            }
            decision.candidates.push(candidate);
            let wins = outcome != Outcome::Kept && asked.mode == strongest;
            if first || wins {
                decision.outcome = outcome;
                decision.reason = reason;
                decision.cause = cause.cloned();
                decision.mirror = Some(asked.mirror);
                (decision.rewritten, decision.digest) = mapped.ok().unzip();
            }
            won = wins;
            // Else the others are looked at for the verdict on the mirror that stands there alone.
            if won && carried.is_none() {
                break;
            }
        }
        (decision, of_carried)
    }
}

#[cfg(test)]
mod tests;
