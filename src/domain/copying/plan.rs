//! From one manifest to all that belongs to it, and the order in which a registry takes it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::manifest::{Contents, Part, Unsupported};
use crate::domain::{digest::Digest, platform::Platforms};

/// How many manifests one image may consist of.
pub const MANIFESTS: usize = 4096;

/// How deep indexes may lie in each other.
pub const DEPTH: usize = 8;

/// How many bytes all manifests of one image may have, for they are kept until they are pushed.
pub const BYTES: usize = 16 * 1024 * 1024;

/// How many blobs all manifests of one image may name.
pub const BLOBS: usize = 65_536;

/// What becomes known of one image, manifest by manifest.
#[derive(Debug)]
pub struct Plan {
    root: Digest,
    platforms: Platforms,
    to_read: VecDeque<Wanted>,
    met: BTreeSet<Digest>,
    manifests: BTreeMap<Digest, Manifest>,
    bytes: usize,
    /// What the manifests will have that were met and not read yet, as far as indexes tell.
    promised: u64,
    blobs: usize,
    /// What turned out to be blobs and is not noted as such yet, with their sizes.
    found_blobs: BTreeMap<Digest, u64>,
    /// Whether something that an index lists was left out.
    is_sparse: bool,
}

/// A manifest that has yet to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub digest: Digest,
    /// What its index says it is.
    pub media_type: Option<String>,
    /// How many bytes it has, where its index tells.
    pub size: Option<u64>,
    /// Whether it may turn out to be a blob, of this size.
    pub blob: Option<u64>,
    depth: usize,
}

impl Wanted {
    /// Returns how many bytes its index promises of it as a manifest: what may be a blob may have any size.
    fn promises(&self) -> u64 {
        self.size.filter(|_| self.blob.is_none()).unwrap_or(0)
    }
}

/// A manifest that was read.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub digest: Digest,
    pub media_type: String,
    /// As they came, and as they are pushed.
    pub bytes: Arc<[u8]>,
    /// The blobs that it names, each once.
    pub blobs: Vec<Part>,
    /// What it is besides.
    pub contents: Contents,
    /// The manifests that must be there before it.
    children: Vec<Digest>,
}

/// Why an image is not copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    #[error("more than {MANIFESTS} manifests")]
    TooMany,
    #[error("indexes within each other, deeper than {DEPTH}")]
    TooDeep,
    #[error("manifests of more than {} MiB together", BYTES / (1024 * 1024))]
    TooLarge,
    #[error("more than {BLOBS} blobs")]
    TooManyBlobs,
    #[error("nothing for the platforms that are wanted")]
    NoPlatform,
}

impl Plan {
    /// Returns a plan that begins with one manifest, for nodes of these platforms.
    pub fn new(root: Digest, platforms: Platforms) -> Self {
        let first = Wanted {
            digest: root.clone(),
            media_type: None,
            size: None,
            blob: None,
            depth: 0,
        };
        Self {
            met: BTreeSet::from([root.clone()]),
            to_read: VecDeque::from([first]),
            root,
            platforms,
            manifests: BTreeMap::new(),
            bytes: 0,
            promised: 0,
            blobs: 0,
            found_blobs: BTreeMap::new(),
            is_sparse: false,
        }
    }

    /// Takes out all manifests that can be read now. What was read is told by [`Self::read`]. Once there is none the plan
    /// is whole.
    pub fn to_read(&mut self) -> Vec<Wanted> {
        if self.to_read.is_empty() {
            self.move_blobs();
        }
        self.to_read.drain(..).collect()
    }

    /// Takes in a manifest, as which media type it was sent, and its bytes, whose digest was checked.
    pub fn read(&mut self, wanted: &Wanted, sent_as: Option<&str>, bytes: Arc<[u8]>) -> Result<(), Fault> {
        self.bytes += bytes.len();
        self.promised = self.promised.saturating_sub(wanted.promises());
        self.check_bytes()?;
        let mut contents = Contents::read(sent_as.or(wanted.media_type.as_deref()), &bytes)?;
        if wanted.depth > 0 {
            // Only of what the plan began with they are told.
            contents.annotations = None;
        }
        let mut seen = BTreeSet::new();
        let blobs = std::mem::take(&mut contents.blobs).into_iter();
        let blobs: Vec<Part> = blobs.filter(|part| seen.insert(part.digest.clone())).collect();
        self.blobs += blobs.len();
        if self.blobs > BLOBS {
            return Err(Fault::TooManyBlobs);
        }
        let mut children = Vec::new();
        for position in self.chosen(&contents)? {
            let entry = &contents.children[position];
            children.push(entry.digest.clone());
            if !self.met.insert(entry.digest.clone()) {
                continue;
            }
            if wanted.depth >= DEPTH {
                return Err(Fault::TooDeep);
            }
            if self.met.len() > MANIFESTS {
                return Err(Fault::TooMany);
            }
            let wanted = Wanted {
                digest: entry.digest.clone(),
                media_type: entry.media_type.clone(),
                size: Some(entry.size).filter(|size| *size > 0),
                blob: entry.may_be_blob.then_some(entry.size),
                depth: wanted.depth + 1,
            };
            self.promised = self.promised.saturating_add(wanted.promises());
            self.to_read.push_back(wanted);
        }
        // Before they are read.
        self.check_bytes()?;
        let manifest = Manifest {
            digest: wanted.digest.clone(),
            media_type: contents.media_type.clone(),
            bytes,
            blobs,
            contents,
            children,
        };
        self.manifests.insert(wanted.digest.clone(), manifest);
        Ok(())
    }

    fn check_bytes(&self) -> Result<(), Fault> {
        let most = BYTES as u64;
        if self.promised.saturating_add(self.bytes as u64) > most {
            return Err(Fault::TooLarge);
        }
        Ok(())
    }

    /// Takes in that what an index lists is a blob. Every index that lists it needs it.
    pub fn is_blob(&mut self, wanted: &Wanted) {
        let Some(size) = wanted.blob else { return };
        self.met.remove(&wanted.digest);
        self.found_blobs.insert(wanted.digest.clone(), size);
    }

    /// Moves what turned out to be blobs to the blobs of the manifests that list it: of all at once, for each may be
    /// listed by each.
    fn move_blobs(&mut self) {
        let found = std::mem::take(&mut self.found_blobs);
        if found.is_empty() {
            return;
        }
        for manifest in self.manifests.values_mut() {
            let mut moved = BTreeMap::new();
            manifest.children.retain(|child| match found.get(child) {
                Some(size) => {
                    moved.insert(child.clone(), *size);
                    false
                }
                None => true,
            });
            let parts = moved.into_iter().map(|(digest, size)| Part {
                digest,
                size,
                is_foreign: false,
            });
            manifest.blobs.extend(parts);
        }
    }

    /// Returns the entries of an index that are copied: all, or those that wanted nodes take, those that say nothing
    /// of platforms, and attestations of what is copied.
    fn chosen(&mut self, contents: &Contents) -> Result<Vec<usize>, Fault> {
        let entries = &contents.children;
        let all = (0..entries.len()).collect();
        if self.platforms == Platforms::ALL {
            return Ok(all);
        }
        let taken = |takers: Platforms| !takers.and(self.platforms).is_empty();
        let images: BTreeSet<&Digest> = entries
            .iter()
            .filter(|entry| entry.attests.is_none() && taken(entry.takers))
            .map(|entry| &entry.digest)
            .collect();
        let chosen: Vec<usize> = entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| match &entry.attests {
                Some(image) => images.contains(image),
                None => taken(entry.takers),
            })
            .map(|(position, _)| position)
            .collect();
        if chosen.is_empty() && !entries.is_empty() {
            return Err(Fault::NoPlatform);
        }
        self.is_sparse |= chosen.len() < entries.len();
        Ok(chosen)
    }

    /// Returns the digest that the plan began with.
    pub const fn root(&self) -> &Digest {
        &self.root
    }

    /// Whether something that an index lists is left out.
    pub const fn is_sparse(&self) -> bool {
        self.is_sparse
    }

    /// Returns what was read of a digest.
    pub fn manifest(&self, digest: &Digest) -> Option<&Manifest> {
        self.manifests.get(digest)
    }

    /// Returns every manifest that is copied, read or not.
    pub fn subjects(&self) -> impl Iterator<Item = &Digest> {
        self.met.iter()
    }

    /// Returns every manifest that was read.
    pub fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        self.manifests.values()
    }

    /// Returns every blob, each once.
    pub fn blobs(&self) -> impl Iterator<Item = &Part> {
        let mut seen = BTreeSet::new();
        let parts = self.manifests.values().flat_map(|manifest| &manifest.blobs);
        parts.filter(move |part| seen.insert(part.digest.clone()))
    }

    /// Returns the manifests in steps: those of one may be pushed side by side, and only after all steps before. The
    /// last step is the manifest that the plan began with, alone.
    pub fn steps(&self) -> Vec<Vec<Digest>> {
        let mut heights: BTreeMap<&Digest, usize> = BTreeMap::new();
        let mut path = vec![(&self.root, false)];
        while let Some((digest, is_back)) = path.pop() {
            let Some(manifest) = self.manifests.get(digest) else {
                continue;
            };
            if is_back {
                let below = manifest
                    .children
                    .iter()
                    .filter_map(|child| heights.get(child))
                    .max();
                heights.insert(digest, below.map_or(0, |below| below + 1));
            } else if !heights.contains_key(digest) {
                path.push((digest, true));
                path.extend(manifest.children.iter().map(|child| (child, false)));
            }
        }
        let mut steps: Vec<Vec<Digest>> = Vec::new();
        for (digest, height) in heights {
            if steps.len() <= height {
                steps.resize_with(height + 1, Vec::new);
            }
            steps[height].push(digest.clone());
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(number: usize) -> Digest {
        format!("sha256:{number:064x}").parse().unwrap()
    }

    fn index(children: &[usize]) -> Value {
        let entries: Vec<_> = children
            .iter()
            .map(|child| json!({"digest": digest(*child).to_string(), "size": 1}))
            .collect();
        json!({"manifests": entries})
    }

    fn image(blobs: &[usize]) -> Value {
        let parts: Vec<_> = blobs
            .iter()
            .map(|blob| json!({"digest": digest(*blob).to_string(), "size": 1}))
            .collect();
        json!({"layers": parts})
    }

    /// Reads everything that the plan wants from a map.
    fn fill(plan: &mut Plan, manifests: &BTreeMap<usize, Value>) -> Result<(), Fault> {
        loop {
            let wanted = plan.to_read();
            if wanted.is_empty() {
                return Ok(());
            }
            for wanted in wanted {
                let found = manifests
                    .iter()
                    .find(|(number, _)| digest(**number) == wanted.digest);
                match found {
                    Some((_, body)) => plan.read(&wanted, None, body.to_string().into_bytes().into())?,
                    None => plan.is_blob(&wanted),
                }
            }
        }
    }

    fn planned(manifests: &BTreeMap<usize, Value>, platforms: Platforms) -> Result<Plan, Fault> {
        let mut plan = Plan::new(digest(0), platforms);
        fill(&mut plan, manifests)?;
        Ok(plan)
    }

    #[test]
    fn children_come_before_their_index_and_each_once() {
        // 0 lists 1 and 2, 1 lists 2 and 3; 2 and 3 share a blob.
        let manifests = BTreeMap::from([
            (0, index(&[1, 2, 2])),
            (1, index(&[2, 3])),
            (2, image(&[10, 11, 10])),
            (3, image(&[11, 12])),
        ]);
        let plan = planned(&manifests, Platforms::ALL).unwrap();
        assert_eq!(
            plan.steps(),
            [vec![digest(2), digest(3)], vec![digest(1)], vec![digest(0)]]
        );
        let blobs: Vec<_> = plan.blobs().map(|part| part.digest.clone()).collect();
        assert_eq!(blobs, [digest(10), digest(11), digest(12)]);
        assert_eq!(plan.manifest(&digest(2)).unwrap().blobs.len(), 2);
        assert!(!plan.is_sparse());
    }

    #[test]
    fn what_an_index_lists_may_be_a_blob() {
        let entry =
            json!({"digest": digest(5).to_string(), "size": 7, "mediaType": "application/vnd.example.cache"});
        let mut list = index(&[1]);
        list["manifests"].as_array_mut().unwrap().push(entry);
        let plan = planned(&BTreeMap::from([(0, list), (1, image(&[10]))]), Platforms::ALL).unwrap();
        assert_eq!(plan.steps(), [[digest(1)], [digest(0)]]);
        let of_index: Vec<_> = plan
            .manifest(&digest(0))
            .unwrap()
            .blobs
            .iter()
            .map(|part| (&part.digest, part.size))
            .collect();
        assert_eq!(of_index, [(&digest(5), 7)]);
    }

    #[test]
    fn a_blob_that_several_indexes_list_is_a_part_of_each_once() {
        let cache = |number| json!({"digest": digest(number).to_string(), "size": 7, "mediaType": "application/vnd.example.cache"});
        let with = |children: &[usize], caches: &[usize]| {
            let mut list = index(children);
            let entries = list["manifests"].as_array_mut().unwrap();
            entries.extend(caches.iter().map(|number| cache(*number)));
            list
        };
        let manifests = BTreeMap::from([
            (0, with(&[1, 2], &[5, 6, 5])),
            (1, with(&[3], &[6, 7])),
            (2, image(&[10])),
            (3, image(&[11])),
        ]);
        let plan = planned(&manifests, Platforms::ALL).unwrap();
        let blobs = |number: usize| {
            let parts = &plan.manifest(&digest(number)).unwrap().blobs;
            parts.iter().map(|part| part.digest.clone()).collect::<Vec<_>>()
        };
        assert_eq!(blobs(0), [digest(5), digest(6)]);
        assert_eq!(blobs(1), [digest(6), digest(7)]);
        assert_eq!(
            plan.steps(),
            [vec![digest(2), digest(3)], vec![digest(1)], vec![digest(0)]]
        );
    }

    #[test]
    fn wanted_platforms_keep_their_attestations_and_leave_the_others_out() {
        let entry = |number: usize, architecture: &str, attests: Option<usize>| {
            let mut entry = json!({
                "digest": digest(number).to_string(), "size": 1,
                "platform": {"os": "linux", "architecture": architecture},
            });
            if let Some(image) = attests {
                entry["platform"] = json!({"os": "unknown", "architecture": "unknown"});
                entry["annotations"] = json!({"vnd.docker.reference.digest": digest(image).to_string()});
            }
            entry
        };
        let list = json!({"manifests": [
            entry(1, "amd64", None), entry(2, "arm64", None), entry(3, "", Some(1)), entry(4, "", Some(2)),
        ]});
        let manifests = BTreeMap::from([
            (0, list),
            (1, image(&[10])),
            (2, image(&[11])),
            (3, image(&[12])),
            (4, image(&[13])),
        ]);
        let plan = planned(&manifests, Platforms::of("linux", "amd64", "")).unwrap();
        assert_eq!(plan.steps(), [vec![digest(1), digest(3)], vec![digest(0)]]);
        assert!(plan.is_sparse());
        let none = planned(&manifests, Platforms::of("linux", "s390x", ""));
        assert_eq!(none.map(drop), Err(Fault::NoPlatform));
    }

    #[test]
    fn everything_has_a_bound() {
        let deep = |levels: usize| {
            let manifests: BTreeMap<usize, Value> = (0..levels)
                .map(|level| (level, index(&[level + 1])))
                .chain([(levels, image(&[1000]))])
                .collect();
            planned(&manifests, Platforms::ALL).map(drop)
        };
        assert_eq!(deep(DEPTH), Ok(()));
        assert_eq!(deep(DEPTH + 1), Err(Fault::TooDeep));
        let wide: Vec<usize> = (1..=MANIFESTS).collect();
        let mut plan = Plan::new(digest(0), Platforms::ALL);
        let first = plan.to_read().remove(0);
        let read =
            |plan: &mut Plan, body: &Value| plan.read(&first, None, body.to_string().into_bytes().into());
        assert_eq!(read(&mut plan, &index(&wide)), Err(Fault::TooMany));
        let mut plan = Plan::new(digest(0), Platforms::ALL);
        assert_eq!(read(&mut plan, &index(&wide[1..])), Ok(()));
        let mut large = image(&[1]);
        large["annotations"] = json!({"a": "x".repeat(BYTES)});
        assert_eq!(read(&mut plan, &large), Err(Fault::TooLarge));
        // What an index promises counts before it is read, but for what may be a blob.
        let listing = |size: usize, kind: &str| {
            let entries = (1..=4)
                .map(|child| json!({"digest": digest(child).to_string(), "size": size, "mediaType": kind}));
            json!({"manifests": entries.collect::<Vec<_>>()})
        };
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let mut plan = Plan::new(digest(0), Platforms::ALL);
        assert_eq!(
            read(&mut plan, &listing(BYTES / 4, manifest)),
            Err(Fault::TooLarge)
        );
        let mut plan = Plan::new(digest(0), Platforms::ALL);
        assert_eq!(
            read(&mut plan, &listing(BYTES, "application/vnd.example.cache")),
            Ok(())
        );
        let mut plan = Plan::new(digest(0), Platforms::ALL);
        assert_eq!(read(&mut plan, &listing(BYTES / 4 - 1000, manifest)), Ok(()));
        let mut of_size = image(&[1]);
        of_size["annotations"] = json!({"a": ""});
        let rest = BYTES / 4 - 1000 - of_size.to_string().len();
        of_size["annotations"] = json!({"a": "x".repeat(rest)});
        // What came is not counted twice. The first to be read is the index itself.
        for wanted in plan.to_read().into_iter().skip(1) {
            let bytes = of_size.to_string().into_bytes().into();
            assert_eq!(plan.read(&wanted, None, bytes), Ok(()));
        }
        let many: Vec<usize> = (0..=BLOBS).collect();
        let mut plan = Plan::new(digest(0), Platforms::ALL);
        assert_eq!(read(&mut plan, &image(&many)), Err(Fault::TooManyBlobs));
    }
}
