//! The entries of one mirror by key, laid out so that several can be looked up at the cost of one.
//!
//! What is known of an image lies anywhere in memory, and its key in yet another place. A map that compares keys while it
//! looks for one waits for both, and the next look-up waits for that. Here each entry has the whole hash of its key
//! beside it, which tells almost certainly which one it is: so the entries of several keys are found first, without
//! reading a key, and the keys are compared after that, and the processor waits for all of them at once.

use std::hash::BuildHasher as _;

use foldhash::quality::RandomState;
use hashbrown::{HashTable, hash_table};

use super::Entry;
use crate::domain::image::{BoxedKey, KeyRef};

/// Entries by key.
#[derive(Debug, Default)]
pub(super) struct Entries {
    slots: HashTable<Slot>,
    hasher: RandomState,
}

#[derive(Debug)]
pub(super) struct Slot {
    hash: u64,
    key: BoxedKey,
    entry: Entry,
}

impl Entries {
    /// Returns the hash of a key in this map.
    pub(super) fn hash(&self, key: KeyRef<'_>) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Returns the slot of a key with this hash, or, hardly ever, that of another one ([`Self::entry`] tells).
    pub(super) fn near(&self, hash: u64) -> Option<&Slot> {
        self.slots.find(hash, |slot| slot.hash == hash)
    }

    /// Returns the entry of a key, given what [`Self::near`] found for its hash.
    pub(super) fn entry<'a>(&'a self, near: Option<&'a Slot>, key: KeyRef<'_>) -> Option<&'a Entry> {
        let near = near?;
        if near.key.by_ref() == key {
            return Some(&near.entry);
        }
        // Two keys have one hash.
        self.get(key)
    }

    pub(super) fn get(&self, key: KeyRef<'_>) -> Option<&Entry> {
        let slot = self.slots.find(self.hash(key), |slot| slot.key.by_ref() == key);
        slot.map(|slot| &slot.entry)
    }

    pub(super) fn get_mut(&mut self, key: KeyRef<'_>) -> Option<&mut Entry> {
        let hash = self.hash(key);
        let slot = self.slots.find_mut(hash, |slot| slot.key.by_ref() == key);
        slot.map(|slot| &mut slot.entry)
    }

    /// Puts in an entry whose key is not there.
    pub(super) fn insert_new(&mut self, key: KeyRef<'_>, entry: Entry) {
        let hash = self.hash(key);
        let key = BoxedKey::from(key);
        self.slots
            .insert_unique(hash, Slot { hash, key, entry }, |slot| slot.hash);
    }

    pub(super) fn remove(&mut self, key: KeyRef<'_>) -> Option<Entry> {
        let hash = self.hash(key);
        let slot = self.slots.find_entry(hash, |slot| slot.key.by_ref() == key);
        slot.ok().map(|slot| slot.remove().0.entry)
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(KeyRef<'_>, &Entry) -> bool) {
        self.slots.retain(|slot| keep(slot.key.by_ref(), &slot.entry));
    }

    pub(super) fn iter(&self) -> Iter<'_> {
        Iter(self.slots.iter())
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

/// Keys and entries, in no order.
pub(super) struct Iter<'a>(hash_table::Iter<'a, Slot>);

impl<'a> Iterator for Iter<'a> {
    type Item = (KeyRef<'a>, &'a Entry);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|slot| (slot.key.by_ref(), &slot.entry))
    }
}
