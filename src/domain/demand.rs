//! Which images the Pods of a cluster use: learned from what a watch tells of each Pod, bounded for
//! each namespace, so that no tenant can fill the list.

use std::collections::{BTreeMap, HashMap};

/// How many different images of one namespace are kept in mind.
pub const NAMESPACE_LIMIT: usize = 2000;

/// The images in use, by namespace. Images are keys of the presence index.
#[derive(Debug, Default)]
pub struct Used {
    namespaces: BTreeMap<Box<str>, Namespace>,
}

#[derive(Debug, Default)]
struct Namespace {
    pods: HashMap<Box<str>, Vec<Box<str>>>,
    /// How many Pods use an image.
    images: HashMap<Box<str>, usize>,
}

impl Used {
    /// Takes in what a Pod uses now. Images past the namespace's limit are left out.
    pub fn set(&mut self, namespace: &str, pod: &str, images: Vec<Box<str>>) {
        if images.is_empty() {
            return self.remove(namespace, pod);
        }
        if !self.namespaces.contains_key(namespace) {
            self.namespaces.insert(namespace.into(), Namespace::default());
        }
        let Some(entry) = self.namespaces.get_mut(namespace) else {
            return;
        };
        let unchanged = entry.pods.get(pod).is_some_and(|before| *before == images);
        if unchanged {
            return;
        }
        entry.forget(pod);
        let mut kept = Vec::with_capacity(images.len());
        for image in images {
            let full = entry.images.len() >= NAMESPACE_LIMIT;
            match entry.images.get_mut(&image) {
                Some(pods) => *pods += 1,
                None if full => continue,
                None => {
                    entry.images.insert(image.clone(), 1);
                }
            }
            kept.push(image);
        }
        entry.pods.insert(pod.into(), kept);
    }

    /// Forgets a Pod.
    pub fn remove(&mut self, namespace: &str, pod: &str) {
        let Some(entry) = self.namespaces.get_mut(namespace) else {
            return;
        };
        entry.forget(pod);
        if entry.pods.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// Returns namespace and image of everything that is used.
    pub fn images(&self) -> impl Iterator<Item = (&str, &str)> {
        self.namespaces
            .iter()
            .flat_map(|(name, namespace)| namespace.images.keys().map(move |image| (&**name, &**image)))
    }
}

impl Namespace {
    fn forget(&mut self, pod: &str) {
        for image in self.pods.remove(pod).unwrap_or_default() {
            if let Some(pods) = self.images.get_mut(&image) {
                *pods -= 1;
                if *pods == 0 {
                    self.images.remove(&image);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(names: &[&str]) -> Vec<Box<str>> {
        names.iter().map(|name| Box::from(*name)).collect()
    }

    fn all(used: &Used) -> Vec<(&str, &str)> {
        let mut all: Vec<_> = used.images().collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn an_image_stays_while_any_pod_uses_it() {
        let mut used = Used::default();
        used.set("a", "one", images(&["x", "y", "x"]));
        used.set("a", "two", images(&["x"]));
        used.set("b", "one", images(&["x"]));
        assert_eq!(all(&used), [("a", "x"), ("a", "y"), ("b", "x")]);
        used.set("a", "one", images(&["z"]));
        assert_eq!(all(&used), [("a", "x"), ("a", "z"), ("b", "x")]);
        used.remove("a", "two");
        used.remove("a", "never there");
        used.set("b", "one", Vec::new());
        assert_eq!(all(&used), [("a", "z")]);
    }

    #[test]
    fn one_namespace_cannot_fill_the_list() {
        let mut used = Used::default();
        for number in 0..NAMESPACE_LIMIT + 10 {
            used.set("a", &number.to_string(), images(&[&number.to_string()]));
        }
        assert_eq!(used.images().count(), NAMESPACE_LIMIT);
        used.remove("a", "0");
        used.set("a", "new", images(&["new"]));
        assert!(used.images().any(|(_, image)| image == "new"));
    }
}
