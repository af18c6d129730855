//! A map in order whose growth may be refused, which std's cannot.
//!
//! ```text
//!   chunks   [3 5 8] [9 12] [40 41 77 90]      sorted, short, none of them empty
//! ```
//!
//! Entries move within one chunk when one comes or goes, and the list of chunks
//! is short: in practice as quick as a B-tree, with two levels instead of its
//! nodes.

use std::ops::{Index, Range};

use crate::error::MemoryError;
use crate::room;

/// Values by key, ascending; see the [module](self).
#[derive(Debug)]
pub(crate) struct Ordered<K, V> {
    chunks: Vec<Vec<(K, V)>>,
}

impl<K, V> Default for Ordered<K, V> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

/// Where an entry is, or would be: chunk, and place in it.
type Place = (usize, usize);

impl<K: Ord + Copy, V> Ordered<K, V> {
    /// Entries of a chunk: 2 KiB of them, but a few of any size.
    const MOST: usize = {
        let fitting = 2048 / size_of::<(K, V)>();
        if fitting < 8 { 8 } else { fitting }
    };

    /// Where the first entry is whose key is `key` or follows it.
    fn place(&self, key: &K) -> Place {
        let before = |chunk: &Vec<(K, V)>| chunk.last().is_some_and(|(last, _)| last < key);
        let chunk = match self.chunks.last() {
            Some(last) if before(last) => self.chunks.len(), // as it is while it is filled
            _ => self.chunks.partition_point(before),
        };
        let entries = self.chunks.get(chunk);
        let at = entries.map_or(0, |entries| entries.partition_point(|(k, _)| k < key));
        (chunk, at)
    }

    fn at(&self, (chunk, at): Place) -> Option<&(K, V)> {
        self.chunks.get(chunk)?.get(at)
    }

    /// Notes `value` for `key`; what was there before goes.
    ///
    /// # Errors
    /// If there is no memory for it. Nothing has changed then.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Result<(), MemoryError> {
        let (mut chunk, mut at) = self.place(&key);
        match self.chunks.get_mut(chunk).map(|entries| &mut entries[at]) {
            Some((there, old)) if *there == key => {
                *old = value;
                return Ok(());
            }
            Some(_) => {}
            // Behind all others: in the last chunk, if that has room.
            None => match self.chunks.last() {
                Some(last) if last.len() < Self::MOST => (chunk, at) = (chunk - 1, last.len()),
                _ => {
                    let mut last = Vec::new();
                    room::push(&mut last, (key, value))?;
                    return room::push(&mut self.chunks, last);
                }
            },
        }
        if self.chunks[chunk].len() == Self::MOST {
            self.split(chunk)?;
            let first = self.chunks[chunk].len();
            if at > first {
                (chunk, at) = (chunk + 1, at - first);
            }
        }
        let entries = &mut self.chunks[chunk];
        room::reserve(entries, 1)?;
        entries.insert(at, (key, value));
        Ok(())
    }

    /// Makes two chunks of a full one.
    fn split(&mut self, chunk: usize) -> Result<(), MemoryError> {
        let mut upper = Vec::new();
        room::reserve(&mut upper, Self::MOST)?;
        room::reserve(&mut self.chunks, 1)?;
        upper.extend(self.chunks[chunk].drain(Self::MOST / 2..));
        self.chunks.insert(chunk + 1, upper);
        Ok(())
    }

    /// Takes the value of `key` out.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let (chunk, at) = self.place(key);
        self.at((chunk, at)).filter(|(there, _)| there == key)?;
        let (_, value) = self.chunks[chunk].remove(at);
        if self.chunks[chunk].is_empty() {
            self.chunks.remove(chunk);
        }
        Some(value)
    }

    /// Takes out every entry whose key lies in `keys`.
    pub(crate) fn remove_all(&mut self, keys: &Range<K>) {
        let (first, mut at) = self.place(&keys.start);
        let mut past = first;
        while let Some(entries) = self.chunks.get_mut(past) {
            let end = entries.partition_point(|(key, _)| *key < keys.end);
            let is_last = end < entries.len();
            entries.drain(at..end.max(at));
            at = 0;
            past += 1;
            if is_last {
                break;
            }
        }
        // The chunks that are empty now are neighbours.
        let mut empty = first..past;
        while !empty.is_empty() && !self.chunks[empty.start].is_empty() {
            empty.start += 1;
        }
        while !empty.is_empty() && !self.chunks[empty.end - 1].is_empty() {
            empty.end -= 1;
        }
        self.chunks.drain(empty);
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let (there, value) = self.at(self.place(key))?;
        (there == key).then_some(value)
    }

    /// The same, to be changed.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let (chunk, at) = self.place(key);
        let (there, value) = self.chunks.get_mut(chunk)?.get_mut(at)?;
        (there == key).then_some(value)
    }

    /// The last entry whose key is `key` or comes before it.
    pub(crate) fn at_or_before(&self, key: &K) -> Option<(K, &V)> {
        let (chunk, at) = self.place(key);
        let here = self.at((chunk, at)).filter(|(there, _)| there == key);
        let found = here.or_else(|| match at.checked_sub(1) {
            Some(before) => self.at((chunk, before)),
            None => self.chunks.get(chunk.checked_sub(1)?)?.last(),
        });
        found.map(|(key, value)| (*key, value))
    }

    /// The entries whose key is `key` or follows it, ascending.
    pub(crate) fn at_or_after<'a>(
        &'a self,
        key: &K,
    ) -> impl Iterator<Item = (K, &'a V)> + Clone + use<'a, K, V> {
        let (chunk, at) = self.place(key);
        let first = self.chunks.get(chunk).map_or(&[][..], |first| &first[at..]);
        let others = self.chunks.iter().skip(chunk + 1).flatten();
        let entries = first.iter().chain(others);
        entries.map(|(key, value)| (*key, value))
    }

    /// The same, their values to be changed.
    pub(crate) fn at_or_after_mut<'a>(
        &'a mut self,
        key: &K,
    ) -> impl Iterator<Item = (K, &'a mut V)> + use<'a, K, V> {
        let (chunk, at) = self.place(key);
        let entries = self.chunks.iter_mut().skip(chunk).flatten().skip(at);
        entries.map(|(key, value)| (*key, value))
    }

    /// All entries, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        let entries = self.chunks.iter().flatten();
        entries.map(|(key, value)| (*key, value))
    }

    /// All values, in the order of their keys.
    pub(crate) fn into_values(self) -> impl Iterator<Item = V> {
        let entries = self.chunks.into_iter().flatten();
        entries.map(|(_, value)| value)
    }

    /// How many entries there are. O(chunks).
    pub(crate) fn len(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum()
    }
}

impl<K: Ord + Copy, V> Index<&K> for Ordered<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("a key that is there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    type Map = Ordered<u64, [u64; 40]>;

    fn value(n: u64) -> [u64; 40] {
        [n; 40]
    }

    /// Small chunks, so that a few entries are many chunks.
    #[test]
    fn a_chunk_has_few_large_entries_and_many_small_ones() {
        assert_eq!(Map::MOST, 8);
        assert_eq!(Ordered::<u64, u64>::MOST, 128);
    }

    #[test]
    fn filled_in_order_chunks_are_full() {
        let mut map = Map::default();
        for key in 0..80 {
            map.insert(key, value(key)).unwrap();
        }
        assert_eq!(map.chunks.len(), 10);
        assert_eq!(map.len(), 80);
    }

    proptest! {
        #[test]
        fn it_does_what_a_map_of_std_does(
            ops in prop::collection::vec((0..8u8, 0..100u64, 0..40u64), 0..300),
        ) {
            let mut map = Map::default();
            let mut model = BTreeMap::new();
            for (n, (op, key, len)) in (0..).zip(ops) {
                match op {
                    0..=4 => {
                        map.insert(key, value(n)).unwrap();
                        model.insert(key, value(n));
                    }
                    5 => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    6 => {
                        map.remove_all(&(key..key + len));
                        model.retain(|at, _| !(key..key + len).contains(at));
                    }
                    _ => {
                        for (_, value) in map.at_or_after_mut(&key) {
                            value[0] += 1;
                        }
                        for (_, value) in model.range_mut(key..) {
                            value[0] += 1;
                        }
                    }
                }
                prop_assert!(map.chunks.iter().all(|chunk| !chunk.is_empty()));
                prop_assert!(map.chunks.iter().all(|chunk| chunk.len() <= Map::MOST));
                prop_assert_eq!(map.len(), model.len());
                prop_assert!(map.iter().eq(model.iter().map(|(key, value)| (*key, value))));
                let from = model.range(key..).map(|(key, value)| (*key, value));
                prop_assert!(map.at_or_after(&key).eq(from));
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert_eq!(map.get_mut(&key), model.get_mut(&key));
                let last = model.range(..=key).next_back();
                prop_assert_eq!(map.at_or_before(&key), last.map(|(key, value)| (*key, value)));
            }
            prop_assert!(map.into_values().eq(model.into_values()));
        }
    }
}
