//! Which images the running Pods of a cluster use: learned from what a watch tells of each Pod, bounded
//! for each namespace, so that no tenant can fill the list.
//!
//! What a Pod costs is what it changes, whatever the number of Pods and images. A key is held once,
//! however many Pods and namespaces use its image, and a list of all Pods is taken into what is known:
//! there are never two copies.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
};

use super::image::ImageKey;

/// How many different images of one namespace are kept in mind.
pub const NAMESPACE_LIMIT: usize = 2000;

/// The images in use, by namespace.
#[derive(Debug, Default)]
pub struct Used {
    /// Every key, once, with the number of namespaces in which its image is used.
    keys: HashMap<ImageKey, u32>,
    namespaces: BTreeMap<Box<str>, Namespace>,
    /// The number of the last list of all Pods.
    listing: u32,
}

#[derive(Debug, Default)]
struct Namespace {
    pods: HashMap<Box<str>, PodImages>,
    /// How many times Pods use an image.
    images: HashMap<ImageKey, u32>,
}

#[derive(Debug)]
struct PodImages {
    images: Box<[ImageKey]>,
    /// The list that last named the Pod.
    listing: u32,
}

impl Used {
    /// Begins a list of all Pods: those not taken in before [`Used::end_listing`] are gone.
    pub const fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// Ends it.
    pub fn end_listing(&mut self) {
        let listing = self.listing;
        for namespace in self.namespaces.values_mut() {
            let gone = namespace.pods.extract_if(|_, pod| pod.listing != listing);
            for (_, pod) in gone {
                release(&mut self.keys, &mut namespace.images, pod);
            }
        }
        self.namespaces.retain(|_, namespace| !namespace.pods.is_empty());
    }

    /// Takes in what a Pod uses now and returns that where it changed; nothing where it did not. Images
    /// past the namespace's limit are left out.
    pub fn set(&mut self, namespace: &str, pod: &str, images: &[ImageKey]) -> &[ImageKey] {
        if images.is_empty() {
            self.remove(namespace, pod);
            return &[];
        }
        if !self.namespaces.contains_key(namespace) {
            self.namespaces.insert(namespace.into(), Namespace::default());
        }
        let Some(entry) = self.namespaces.get_mut(namespace) else {
            return &[];
        };
        if let Some(before) = entry.pods.get_mut(pod) {
            before.listing = self.listing;
            if *before.images == *images {
                return &[];
            }
        }
        // The new ones first, so that what stays is not let go in between.
        let mut kept = Vec::with_capacity(images.len());
        for image in images {
            if let Some((known, times)) = entry.images.get_key_value(image) {
                let (known, times) = (known.clone(), times + 1);
                entry.images.insert(known.clone(), times);
                kept.push(known);
            } else if entry.images.len() < NAMESPACE_LIMIT {
                let key = intern(&mut self.keys, image);
                entry.images.insert(key.clone(), 1);
                kept.push(key);
            }
        }
        let now = PodImages {
            images: kept.into(),
            listing: self.listing,
        };
        if let Some(before) = entry.pods.insert(pod.into(), now) {
            release(&mut self.keys, &mut entry.images, before);
        }
        entry.pods.get(pod).map_or(&[], |pod| &pod.images)
    }

    /// Forgets a Pod.
    pub fn remove(&mut self, namespace: &str, pod: &str) {
        let Some(entry) = self.namespaces.get_mut(namespace) else {
            return;
        };
        if let Some(pod) = entry.pods.remove(pod) {
            release(&mut self.keys, &mut entry.images, pod);
        }
        if entry.pods.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// Returns the namespace that follows one in their order, or the first, with the images that are used
    /// in it and how many times: for who goes through them all, and lets others go on in between.
    pub fn next_namespace<'a>(
        &'a self,
        after: Option<&str>,
    ) -> Option<(&'a str, impl Iterator<Item = (&'a ImageKey, u32)> + use<'a>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (name, namespace) = self.namespaces.range::<str, _>((from, Bound::Unbounded)).next()?;
        Some((name, namespace.images.iter().map(|(key, times)| (key, *times))))
    }
}

/// Returns a key as it is held, for one namespace more.
fn intern(keys: &mut HashMap<ImageKey, u32>, key: &ImageKey) -> ImageKey {
    let (key, namespaces) = keys.get_key_value(key).unwrap_or((key, &0));
    let (key, namespaces) = (key.clone(), *namespaces);
    keys.insert(key.clone(), namespaces + 1);
    key
}

/// Lets go of what a Pod used in its namespace, and of the keys that nobody uses any more.
fn release(keys: &mut HashMap<ImageKey, u32>, images: &mut HashMap<ImageKey, u32>, pod: PodImages) {
    for image in pod.images {
        let Some(times) = images.get_mut(&image) else {
            continue;
        };
        *times -= 1;
        if *times > 0 {
            continue;
        }
        images.remove(&image);
        if let Some(namespaces) = keys.get_mut(&image) {
            *namespaces -= 1;
            if *namespaces == 0 {
                keys.remove(&image);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What tests call by the tag alone.
    fn key(tag: &str) -> ImageKey {
        format!("docker.io/library/app:{tag}").parse().unwrap()
    }

    fn tag(key: &ImageKey) -> &str {
        key.by_ref().reference().tag().unwrap()
    }

    fn set<'a>(used: &'a mut Used, namespace: &str, pod: &str, images: &[&str]) -> Vec<&'a str> {
        let images: Vec<_> = images.iter().map(|image| key(image)).collect();
        let changed = used.set(namespace, pod, &images);
        changed.iter().map(tag).collect()
    }

    fn all(used: &Used) -> Vec<(&str, &str)> {
        let mut all = Vec::new();
        let mut at = None;
        while let Some((namespace, images)) = used.next_namespace(at) {
            all.extend(images.map(|(image, _)| (namespace, tag(image))));
            at = Some(namespace);
        }
        all.sort_unstable();
        let mut keys: Vec<_> = all.iter().map(|(_, image)| *image).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut held: Vec<_> = used.keys.keys().map(tag).collect();
        held.sort_unstable();
        assert_eq!(keys, held, "a key is held once, and while it is used");
        all
    }

    #[test]
    fn an_image_stays_while_any_pod_uses_it() {
        let mut used = Used::default();
        set(&mut used, "a", "one", &["x", "y", "x"]);
        set(&mut used, "a", "two", &["x"]);
        set(&mut used, "b", "one", &["x"]);
        assert_eq!(all(&used), [("a", "x"), ("a", "y"), ("b", "x")]);
        set(&mut used, "a", "one", &["z"]);
        assert_eq!(all(&used), [("a", "x"), ("a", "z"), ("b", "x")]);
        used.remove("a", "two");
        used.remove("a", "never there");
        set(&mut used, "b", "one", &[]);
        assert_eq!(all(&used), [("a", "z")]);
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut used = Used::default();
        assert_eq!(set(&mut used, "a", "one", &["x", "y"]), ["x", "y"]);
        assert!(set(&mut used, "a", "one", &["x", "y"]).is_empty());
        assert_eq!(set(&mut used, "a", "one", &["x"]), ["x"]);
        assert!(set(&mut used, "a", "one", &[]).is_empty());
        assert!(all(&used).is_empty());
    }

    #[test]
    fn a_list_leaves_what_it_named_and_what_came_since() {
        let mut used = Used::default();
        for pod in ["stays", "goes", "changes"] {
            set(&mut used, "a", pod, &["x", pod]);
        }
        set(&mut used, "b", "goes too", &["x"]);
        used.begin_listing();
        assert!(set(&mut used, "a", "stays", &["x", "stays"]).is_empty());
        set(&mut used, "a", "changes", &["changed"]);
        set(&mut used, "a", "new", &["new"]);
        used.end_listing();
        set(&mut used, "c", "later", &["x"]);
        let expected = [("a", "changed"), ("a", "new"), ("a", "stays"), ("a", "x")];
        assert_eq!(all(&used), [&expected[..], &[("c", "x")]].concat());
        used.begin_listing();
        used.end_listing();
        assert!(all(&used).is_empty());
    }

    #[test]
    fn one_namespace_cannot_fill_the_list() {
        let mut used = Used::default();
        for number in 0..NAMESPACE_LIMIT + 10 {
            set(&mut used, "a", &number.to_string(), &[&number.to_string()]);
        }
        assert_eq!(all(&used).len(), NAMESPACE_LIMIT);
        used.remove("a", "0");
        set(&mut used, "a", "new", &["new"]);
        assert!(all(&used).contains(&("a", "new")));
    }
}
