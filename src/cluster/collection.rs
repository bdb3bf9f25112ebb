//! The objects of one resource by name, as a watch tells them.

use std::collections::BTreeMap;

use super::watch::Event;

/// What is known of a resource's objects: of each one value. A list is taken into what is known, so there
/// are never two copies.
#[derive(Debug)]
pub struct Collection<V> {
    objects: BTreeMap<String, Entry<V>>,
    /// The number of the last list.
    listing: u32,
    complete: bool,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    /// The list that last named the object.
    listing: u32,
}

impl<V> Default for Collection<V> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            listing: 0,
            complete: false,
        }
    }
}

impl<V: PartialEq> Collection<V> {
    /// Takes in an event, its object as name and value. Returns whether there is another value now, one
    /// more or one less, or all were told for the first time.
    pub fn take(&mut self, event: Event<(String, V)>) -> bool {
        match event {
            Event::Listing => {
                self.listing = self.listing.wrapping_add(1);
                false
            }
            Event::ListedAll { .. } => {
                let (listing, before) = (self.listing, self.objects.len());
                self.objects.retain(|_, entry| entry.listing == listing);
                let first = !std::mem::replace(&mut self.complete, true);
                first || self.objects.len() != before
            }
            Event::Listed((name, value)) | Event::Changed((name, value)) => {
                let listing = self.listing;
                if let Some(entry) = self.objects.get_mut(&name) {
                    entry.listing = listing;
                    let differs = entry.value != value;
                    entry.value = value;
                    return differs;
                }
                self.objects.insert(name, Entry { value, listing });
                true
            }
            Event::Deleted((name, _)) => self.objects.remove(&name).is_some(),
            Event::Reached(_) => false,
        }
    }

    /// Whether all objects were told once.
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    pub fn get(&self, name: &str) -> Option<&V> {
        self.objects.get(name).map(|entry| &entry.value)
    }

    /// Returns name and value of every object, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &V)> {
        self.objects.iter().map(|(name, entry)| (name, &entry.value))
    }
}

impl<V: Clone + PartialEq> Collection<V> {
    /// Returns a copy of everything.
    pub fn all(&self) -> BTreeMap<String, V> {
        let objects = self.iter();
        objects
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let mut collection = Collection::default();
        let mut check = |event: Event<(&str, u8)>, differs: bool, now: &[(&str, u8)]| {
            let event = event.map(|(name, value)| (name.to_owned(), value));
            assert_eq!(collection.take(event), differs);
            let all: Vec<_> = collection
                .iter()
                .map(|(name, value)| (name.as_str(), *value))
                .collect();
            assert_eq!(all, now);
        };
        let end = || Event::ListedAll { round: 0 };
        check(Event::Listing, false, &[]);
        check(end(), true, &[]);
        check(Event::Changed(("a", 1)), true, &[("a", 1)]);
        check(Event::Changed(("a", 1)), false, &[("a", 1)]);
        check(Event::Changed(("a", 2)), true, &[("a", 2)]);
        check(Event::Changed(("b", 1)), true, &[("a", 2), ("b", 1)]);
        // The same once more as a list.
        check(Event::Listing, false, &[("a", 2), ("b", 1)]);
        check(Event::Listed(("a", 2)), false, &[("a", 2), ("b", 1)]);
        check(Event::Listed(("b", 1)), false, &[("a", 2), ("b", 1)]);
        check(end(), false, &[("a", 2), ("b", 1)]);
        // A list that fails, and one that names fewer; one object goes in between.
        check(Event::Listing, false, &[("a", 2), ("b", 1)]);
        check(Event::Listed(("a", 2)), false, &[("a", 2), ("b", 1)]);
        check(Event::Listing, false, &[("a", 2), ("b", 1)]);
        check(Event::Listed(("b", 1)), false, &[("a", 2), ("b", 1)]);
        check(Event::Listed(("c", 1)), true, &[("a", 2), ("b", 1), ("c", 1)]);
        check(Event::Deleted(("c", 1)), true, &[("a", 2), ("b", 1)]);
        check(end(), true, &[("b", 1)]);
        check(Event::Deleted(("never there", 1)), false, &[("b", 1)]);
    }
}
