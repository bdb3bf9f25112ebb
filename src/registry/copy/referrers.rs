//! Signatures, SBOMs and what else refers to an image: found at the source in every way, and listed at the mirror in
//! the way that it has.
//!
//! Whether a registry lists referrers, its answers tell badly: some say of a pushed manifest that they know its
//! subject and list nothing, some answer 200 and an empty list to anything. So a list with something in it is believed,
//! an empty one never; at the mirror what counts is that what was just pushed can be read back from the list.
//!
//! What refers to an image is wanted, and not required: whatever goes wrong here is told beside the image.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::stream::StreamExt as _;
use tokio::time::Instant;

use super::{
    super::{
        auth::Right,
        exchange::{Raw, Wish},
    },
    Copying, Side, Trouble,
};
use crate::domain::{
    copying::{
        Plan, Reason, Step,
        manifest::{MANIFEST_BYTES, OCI_INDEX},
        referrers::{self as lists, Referrer},
    },
    digest::{Algorithm, Digest},
};

/// How long it is known whether a registry lists referrers.
const KNOWN_FOR: Duration = Duration::from_hours(24);

/// How many pages of one list are read.
const PAGES: usize = 100;

/// How often a list is read, changed and written that somebody else writes too.
const ROUNDS: usize = 3;

/// Whether a registry lists referrers, as far as it has shown.
#[derive(Debug, Default)]
pub struct Lists(Mutex<Option<(bool, Instant)>>);

impl Lists {
    /// Returns whether it does; nothing where that is not sure.
    fn known(&self) -> Option<bool> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .filter(|(_, at)| at.elapsed() < KNOWN_FOR)
            .map(|(lists, _)| lists)
    }

    fn learn(&self, lists: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((lists, Instant::now()));
    }
}

/// Something that refers to an image.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    subject: Digest,
    digest: Digest,
    media_type: Option<String>,
    /// The tag by which it is attached, where no list has it.
    tag: Option<String>,
}

impl Copying<'_> {
    /// Brings what refers to an image that is there.
    pub(super) async fn bring_referrers(&self, plan: &Plan) {
        let found = self.find_referrers(plan).await;
        self.push_referrers(found).await;
    }

    /// Finds what refers to an image, to its children and to all that refers to them, what is referred to first.
    pub(super) async fn find_referrers(&self, plan: &Plan) -> Vec<Attached> {
        let root = plan.root();
        let mut found = self.refer_to(root, true).await;
        // Who attaches by tags attaches to the index first.
        let with_tags = found.iter().any(|attached| attached.tag.is_some());
        let mut met: BTreeSet<Digest> = plan.subjects().cloned().collect();
        let mut level: Vec<Digest> = plan
            .subjects()
            .filter(|subject| *subject != root)
            .cloned()
            .collect();
        level.extend(
            found
                .iter()
                .map(|attached| attached.digest.clone())
                .filter(|digest| met.insert(digest.clone())),
        );
        for _ in 0..lists::DEPTH {
            if level.is_empty() || found.len() > lists::REFERRERS {
                break;
            }
            let subjects = std::mem::take(&mut level);
            let mut referring = Box::pin(self.each(subjects, |subject: Digest| async move {
                self.refer_to(&subject, with_tags).await
            }));
            // Nobody is asked for more than is taken.
            while found.len() <= lists::REFERRERS
                && let Some(more) = referring.next().await
            {
                let digests = more.iter().map(|attached| attached.digest.clone());
                level.extend(digests.filter(|digest| met.insert(digest.clone())));
                found.extend(more);
            }
        }
        if found.len() > lists::REFERRERS {
            found.truncate(lists::REFERRERS);
            self.incomplete(Trouble::new(
                Reason::UnsupportedManifest,
                format!("more than {} things refer to the image", lists::REFERRERS),
            ));
        }
        found
    }

    fn incomplete(&self, trouble: Trouble) {
        let mut state = self.state();
        if state.incomplete.len() < lists::REFERRERS {
            state.incomplete.push(trouble);
        }
    }

    /// Finds what refers to one manifest. What cannot be asked is told, and does without.
    async fn refer_to(&self, subject: &Digest, with_tags: bool) -> Vec<Attached> {
        let mut found = Vec::new();
        match self.listed(Side::Source, subject).await {
            Ok(listed) => found.extend(
                listed
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(digest, media_type)| Attached {
                        subject: subject.clone(),
                        digest,
                        media_type,
                        tag: None,
                    }),
            ),
            Err(trouble) => self.incomplete(trouble),
        }
        for end in lists::TAG_ENDS.iter().filter(|_| with_tags) {
            let tag = format!("{}.{end}", lists::list_tag(subject));
            let asked = self.until(Side::Source, Step::Read, &tag, || {
                let deadline = Instant::now() + self.settings.patience.answer;
                let source = &self.source;
                source.client.digest(
                    source.right(),
                    &source.repository,
                    &tag,
                    self.target.room(),
                    deadline,
                )
            });
            match asked.await {
                Ok(Some(digest)) => found.push(Attached {
                    subject: subject.clone(),
                    digest,
                    media_type: None,
                    tag: Some(tag),
                }),
                Ok(None) => {}
                Err(trouble) => self.incomplete(trouble),
            }
        }
        found
    }

    /// Returns what one side lists as referring to a manifest, by its own list or by the one under a tag; none where
    /// there is no list at all.
    async fn listed(
        &self,
        side: Side,
        subject: &Digest,
    ) -> Result<Option<Vec<(Digest, Option<String>)>>, Trouble> {
        if let Some(listed) = self.listed_by_itself(side, subject).await?
            && (!listed.is_empty() || self.lists(side).known() == Some(true))
        {
            return Ok(Some(listed));
        }
        let raw = self.list_under_tag(side, subject).await?;
        raw.map(|raw| self.entries(side, &raw.bytes)).transpose()
    }

    fn lists(&self, side: Side) -> &Lists {
        match side {
            Side::Source => &self.job.upstream.lists,
            Side::Mirror => &self.job.mirror.lists,
        }
    }

    fn entries(&self, side: Side, list: &[u8]) -> Result<Vec<(Digest, Option<String>)>, Trouble> {
        let mut entries = lists::read(list).map_err(|error| {
            let host = self.host(side);
            Trouble::new(
                Reason::UnsupportedManifest,
                format!("{host} has a list of referrers that is {error}"),
            )
        })?;
        if side == Side::Source {
            // One more than is taken shows that there are more.
            entries.truncate(lists::REFERRERS + 1);
            entries.shrink_to_fit();
        }
        Ok(entries)
    }

    async fn list_under_tag(&self, side: Side, subject: &Digest) -> Result<Option<Raw>, Trouble> {
        let tag = lists::list_tag(subject);
        match side {
            Side::Source => self.read(&tag, Wish::default()).await,
            Side::Mirror => {
                self.until(side, Step::Look, &tag, || self.target.raw(&tag, None))
                    .await
            }
        }
    }

    /// Returns the registry's own list, all pages of it; none if it has no such lists.
    async fn listed_by_itself(
        &self,
        side: Side,
        subject: &Digest,
    ) -> Result<Option<Vec<(Digest, Option<String>)>>, Trouble> {
        if self.lists(side).known() == Some(false) {
            return Ok(None);
        }
        let (client, repository, right, step) = match side {
            Side::Source => (
                &self.source.client,
                self.source.repository.as_str(),
                self.source.right(),
                Step::Read,
            ),
            Side::Mirror => {
                let repository = self.target.repository();
                (
                    self.target.client(),
                    repository,
                    Right::push(repository),
                    Step::Look,
                )
            }
        };
        let mut all = Vec::new();
        let mut page: Option<String> = None;
        for _ in 0..PAGES {
            let what = format!("what refers to {subject}");
            let read = self.until(side, step, &what, || {
                let deadline = Instant::now() + self.settings.patience.answer;
                let room = self.target.room();
                client.referrers(right, repository, subject, page.as_deref(), room, deadline)
            });
            let Some((list, next)) = read.await? else {
                self.lists(side).learn(false);
                return Ok(None);
            };
            all.extend(self.entries(side, &list)?);
            // Some lead from the last page to itself.
            if next.is_none() || next == page || all.len() > lists::REFERRERS {
                break;
            }
            page = next;
        }
        if !all.is_empty() {
            self.lists(side).learn(true);
        }
        Ok(Some(all))
    }

    /// Pushes what refers to an image, which is there.
    pub(super) async fn push_referrers(&self, found: Vec<Attached>) {
        // In the order in which they were found, what is referred to comes first.
        let mut subjects: Vec<Digest> = Vec::new();
        let mut of_subject: BTreeMap<Digest, Vec<Attached>> = BTreeMap::new();
        for attached in found {
            let of = of_subject.entry(attached.subject.clone()).or_default();
            if of.is_empty() {
                subjects.push(attached.subject.clone());
            }
            of.push(attached);
        }
        for subject in subjects {
            let attached = of_subject.remove(&subject).unwrap_or_default();
            if let Err(trouble) = self.attach(&subject, &attached).await {
                self.incomplete(trouble);
            }
        }
    }

    /// Pushes what refers to one manifest, and sees to it that it is found.
    async fn attach(&self, subject: &Digest, attached: &[Attached]) -> Result<(), Trouble> {
        let (by_tag, by_list): (Vec<&Attached>, Vec<&Attached>) =
            attached.iter().partition(|attached| attached.tag.is_some());
        for attached in by_tag {
            match self.bring(attached).await {
                Ok(_) => self.state().referrers += 1,
                Err(trouble) => self.incomplete(trouble),
            }
        }
        if by_list.is_empty() {
            return Ok(());
        }
        let listed = self.listed(Side::Mirror, subject).await?.unwrap_or_default();
        let listed: BTreeSet<Digest> = listed.into_iter().map(|(digest, _)| digest).collect();
        let (mut brought, mut bytes) = (Vec::new(), 0);
        for attached in by_list {
            match self.bring(attached).await {
                Ok(mut referrer) => {
                    self.state().referrers += 1;
                    bytes += referrer.size;
                    if bytes > MANIFEST_BYTES {
                        // No list has place for so much, and all of them are kept until it is written.
                        referrer.annotations = None;
                    }
                    if !listed.contains(&referrer.digest) {
                        brought.push(referrer);
                    }
                }
                Err(trouble) => self.incomplete(trouble),
            }
        }
        if brought.is_empty() || self.lists_all(subject, &brought).await? {
            return Ok(());
        }
        self.list(subject, &brought).await
    }

    /// Whether the mirror lists by itself what was just pushed, which alone shows that it does.
    async fn lists_all(&self, subject: &Digest, brought: &[Referrer]) -> Result<bool, Trouble> {
        let Some(listed) = self.listed_by_itself(Side::Mirror, subject).await? else {
            return Ok(false);
        };
        let all = brought
            .iter()
            .all(|referrer| listed.iter().any(|(digest, _)| *digest == referrer.digest));
        if all {
            self.job.mirror.lists.learn(true);
        }
        Ok(all)
    }

    /// Brings one thing that refers to an image, with all that belongs to it.
    async fn bring(&self, attached: &Attached) -> Result<Referrer, Trouble> {
        let wish = Wish {
            media_type: attached.media_type.as_deref(),
            size: None,
        };
        let known = self.read(&attached.digest.to_string(), wish).await?;
        let known = known.ok_or_else(|| self.vanished(&attached.digest))?;
        let plan = self.plan(&attached.digest, Some(known)).await?;
        let Some(manifest) = plan.manifest(&attached.digest) else {
            return Err(Trouble::new(Reason::Internal, "a plan without its beginning"));
        };
        let referrer = Referrer::of(&attached.digest, manifest.bytes.len(), &manifest.contents);
        self.count(&plan)?;
        let reference = attached
            .tag
            .clone()
            .unwrap_or_else(|| attached.digest.to_string());
        let there = self
            .until(Side::Mirror, Step::Look, &reference, || {
                self.target.digest(&reference)
            })
            .await?;
        if there.as_ref() == Some(&attached.digest) && !self.job.verify {
            return Ok(referrer);
        }
        self.push_plan(&plan, attached.tag.as_deref()).await?;
        Ok(referrer)
    }

    /// Takes in that something that refers to the image is brought along, or fails where that is more than is wanted.
    fn count(&self, plan: &Plan) -> Result<(), Trouble> {
        let Some(most) = self.job.max_referrers else {
            return Ok(());
        };
        let mut state = self.state();
        let most = if self.job.max_size.is_some() {
            most.saturating_sub(state.size)
        } else {
            most
        };
        let size = super::size_of(plan);
        let all = state.referring.saturating_add(size);
        if all > most {
            let root = plan.root();
            let words = format!(
                "{root} has {size} bytes and refers to the image, for which {} are left",
                most.saturating_sub(state.referring)
            );
            return Err(Trouble::new(Reason::ImageTooLarge, words));
        }
        state.referring = all;
        Ok(())
    }

    /// Writes into the list under a tag what refers to a manifest, for a mirror that keeps no lists itself.
    async fn list(&self, subject: &Digest, brought: &[Referrer]) -> Result<(), Trouble> {
        let tag = lists::list_tag(subject);
        let flight = self
            .job
            .mirror
            .flight(format!("{}@{subject}", self.target.repository()));
        let _alone = flight.lock().await;
        for _ in 0..ROUNDS {
            let before = self.list_under_tag(Side::Mirror, subject).await?;
            let Some(list) = lists::with(before.as_ref().map(|raw| &*raw.bytes), brought) else {
                return Ok(());
            };
            let digest = super::super::exchange::digest_of(Algorithm::Sha256, &list);
            let step = super::tag_step();
            self.until(Side::Mirror, step, &tag, || {
                self.target.put(&tag, OCI_INDEX, &list, &digest)
            })
            .await?;
            self.read_back(Some(&tag), &digest).await?;
        }
        let host = self.host(Side::Mirror);
        Err(Trouble::new(
            Reason::NotReadBack,
            format!(
                "{host} lost entries of {tag} as often as they were written; somebody else writes there too"
            ),
        ))
    }
}
