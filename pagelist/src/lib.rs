//! Ordered, page-granular map with Empty, Page and Marker slots: the operations
//! that guest memory needs, on the standard ordered map.
#![allow(missing_docs, clippy::all)]
use std::collections::BTreeMap;
pub const PAGE_SIZE: u64 = 4096;
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrameId(u32);
impl FrameId {
    pub const MAX: FrameId = FrameId((1 << 30) + 5);
    pub fn new(n: u32) -> Self {
        assert!(n <= Self::MAX.0);
        FrameId(n)
    }
    pub fn index(self) -> u32 {
        self.0
    }
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotRef {
    Empty,
    Page(FrameId),
    Marker,
}
#[derive(Debug)]
pub struct PageOrMarker(SlotRef);
impl PageOrMarker {
    pub fn page(f: FrameId) -> Self {
        Self(SlotRef::Page(f))
    }
    pub fn marker() -> Self {
        Self(SlotRef::Marker)
    }
    pub fn empty() -> Self {
        Self(SlotRef::Empty)
    }
    pub fn view(&self) -> SlotRef {
        self.0
    }
    pub fn into_frame(self) -> Option<FrameId> {
        match self.0 {
            SlotRef::Page(f) => Some(f),
            _ => None,
        }
    }
}
#[derive(Debug)]
pub struct InsertError(PageOrMarker);
impl InsertError {
    pub fn into_entry(self) -> PageOrMarker {
        self.0
    }
}
#[derive(Debug)]
pub struct Bad;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    Frames { first: FrameId },
    Marker,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub start: u64,
    pub end: u64,
    pub kind: RunKind,
}
#[derive(Debug, Default)]
pub struct PageList {
    m: BTreeMap<u64, SlotRef>,
}
impl PageList {
    pub const fn new() -> Self {
        Self { m: BTreeMap::new() }
    }
    pub fn get(&self, o: u64) -> SlotRef {
        self.m.get(&o).copied().unwrap_or(SlotRef::Empty)
    }
    pub fn insert(&mut self, o: u64, e: PageOrMarker) -> Result<PageOrMarker, InsertError> {
        let old = self.m.remove(&o).unwrap_or(SlotRef::Empty);
        if e.0 != SlotRef::Empty {
            self.m.insert(o, e.0);
        }
        Ok(PageOrMarker(old))
    }
    pub fn insert_frames(&mut self, o: u64, first: FrameId, n: u64) -> Result<(), Bad> {
        for i in 0..n {
            self.m
                .insert(o + i * 4096, SlotRef::Page(FrameId(first.0 + i as u32)));
        }
        Ok(())
    }
    pub fn mark(&mut self, s: u64, e: u64, mut r: impl FnMut(u64, FrameId)) -> Result<(), Bad> {
        let mut o = s;
        while o < e {
            if let Some(SlotRef::Page(f)) = self.m.insert(o, SlotRef::Marker) {
                r(o, f)
            }
            o += 4096;
        }
        Ok(())
    }
    pub fn clear(&mut self, s: u64, e: u64, mut r: impl FnMut(u64, FrameId)) -> Result<(), Bad> {
        let k: Vec<u64> = self.m.range(s..e).map(|x| *x.0).collect();
        for o in k {
            if let Some(SlotRef::Page(f)) = self.m.remove(&o) {
                r(o, f)
            }
        }
        Ok(())
    }
    pub fn remove_page(&mut self, o: u64) -> PageOrMarker {
        PageOrMarker(self.m.remove(&o).unwrap_or(SlotRef::Empty))
    }
    pub fn remove_all_pages(&mut self, mut f: impl FnMut(FrameId)) {
        for (_, s) in std::mem::take(&mut self.m) {
            if let SlotRef::Page(x) = s {
                f(x)
            }
        }
    }
    pub fn is_empty(&self) -> bool {
        self.m.is_empty()
    }
    pub fn marker_count(&self) -> u64 {
        self.m.values().filter(|s| **s == SlotRef::Marker).count() as u64
    }
    pub fn page_count(&self) -> u64 {
        self.m.len() as u64 - self.marker_count()
    }
    pub fn heap_allocation_bytes(&self) -> usize {
        self.m.len() * 16
    }
    pub fn iter(&self) -> impl Iterator<Item = (u64, SlotRef)> + '_ {
        self.m.iter().map(|(a, b)| (*a, *b))
    }
    pub fn runs(&self, s: u64, e: u64) -> impl Iterator<Item = Run> + '_ {
        let mut v: Vec<Run> = vec![];
        for (o, sl) in self.m.range(s..e) {
            let kind = match sl {
                SlotRef::Page(f) => RunKind::Frames { first: *f },
                _ => RunKind::Marker,
            };
            match v.last_mut() {
                Some(l)
                    if l.end == *o
                        && match (l.kind, kind) {
                            (RunKind::Marker, RunKind::Marker) => true,
                            (RunKind::Frames { first: a }, RunKind::Frames { first: b }) => {
                                a.0 as u64 + (l.end - l.start) / 4096 == b.0 as u64
                            }
                            _ => false,
                        } =>
                {
                    l.end += 4096
                }
                _ => v.push(Run {
                    start: *o,
                    end: o + 4096,
                    kind,
                }),
            }
        }
        v.into_iter()
    }
    pub fn gaps(&self, s: u64, e: u64) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
        let mut v = vec![];
        let mut at = s;
        for (o, _) in self.m.range(s..e) {
            if at < *o {
                v.push(at..*o)
            }
            at = o + 4096;
        }
        if at < e {
            v.push(at..e)
        }
        v.into_iter()
    }
    pub fn merge_from(
        &mut self,
        p: &mut PageList,
        _o: u64,
        _e: u64,
        mut release: impl FnMut(u64, FrameId),
        mut migrate: impl FnMut(u64, PageOrMarker) -> PageOrMarker,
    ) -> Result<(), Bad> {
        for (o, s) in std::mem::take(&mut p.m) {
            if self.m.contains_key(&o) {
                if let SlotRef::Page(f) = s {
                    release(o, f)
                }
            } else {
                let e = if let SlotRef::Page(_) = s {
                    migrate(o, PageOrMarker(s)).0
                } else {
                    s
                };
                if e != SlotRef::Empty {
                    self.m.insert(o, e);
                }
            }
        }
        Ok(())
    }
}
