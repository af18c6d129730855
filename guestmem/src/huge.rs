//! Collapsing: frames of a layer that fill a huge page are moved into one.
//!
//! What is read through a window is then mapped 2 MiB at a time. Nothing else
//! changes: frames keep their numbers and their owners, and one that is given
//! back splits its huge page again.
//!
//! The kernel copies the pages, which takes milliseconds, so the tree's lock is
//! not held meanwhile. Frames may be given back in that time; the kernel then
//! commits zero frames in their place. Those of packed layers are punched
//! right after, before their numbers can be taken; in root RAM and in images they
//! read zero, as the hole would, and settling finds them.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Once, Weak};

use crate::clone_tree::{CloneTree, LayerClaim};
use crate::error::MemoryError;
use crate::layer::Layer;
use crate::layout::{HUGE_PAGE, PageIdx};
use crate::room;
use crate::settle;
use crate::sys::mapping::{HugePages, Mapping, Sharing};
use crate::tree::Reading;

/// What came of one extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Collapsed {
    /// It is a huge page.
    Huge,
    /// Frames of it are zero, and so will be given back one by one, or have
    /// been meanwhile.
    LeftAlone,
    /// The host has no huge page to spare, or is busy with the pages: it is
    /// tried again after the others, a few times. Or more than 32 VMs may have
    /// the pages mapped.
    NotNow,
    /// This host never does it. Nothing is left to do.
    Unsupported,
}

/// Moves the frames of a layer and its ancestors into huge pages, one at a
/// time. It does not hold the layer, and is done when that goes.
#[derive(Debug)]
pub struct Collapser {
    layer: Weak<LayerClaim>,
    /// What is left, the next one last; `None` before it is known.
    left: Option<Vec<Range<u64>>>,
    /// What the host would not do.
    refused: Vec<Range<u64>>,
    /// How often that may be tried again.
    retries: u32,
}

/// Who is busy with a page (a fault, a batch on its way to a list of the
/// kernel's) is not for long.
const RETRIES: u32 = 4;

/// VMs of a tree beyond which nothing is moved: each that has mapped a page has
/// to be told, while the kernel lets nobody else map anything. With 1,000 of
/// them forks waited seconds.
const MOST_VMS: usize = 32;

/// An extent on its way, mapped on its own.
struct Chosen {
    tree: Arc<CloneTree>,
    pages: Range<u64>,
    mapping: Mapping,
}

impl Layer {
    /// Whoever wants the frames of this layer in huge pages.
    pub fn collapser(&self) -> Collapser {
        Collapser {
            layer: Arc::downgrade(self.claim()),
            left: None,
            refused: Vec::new(),
            retries: RETRIES,
        }
    }
}

impl Collapser {
    /// Collapses the next extent, or leaves it alone; `None` if there is none,
    /// or the layer has gone. Takes milliseconds, in which others can use the tree.
    ///
    /// # Errors
    /// If the kernel cannot be asked which frames there are, or has no room for
    /// a mapping of 2 MiB. That a page was not collapsed is no error.
    pub fn step(&mut self) -> Result<Option<Collapsed>, MemoryError> {
        if self.is_looked_at_by_many() {
            return Ok(Some(Collapsed::NotNow));
        }
        let Some(chosen) = self.choose()? else {
            return Ok(None);
        };
        let pages = chosen.pages.clone();
        let outcome = chosen.collapse()?;
        match outcome {
            Collapsed::NotNow => room::push(&mut self.refused, pages)?,
            Collapsed::Unsupported => {
                self.left = Some(Vec::new());
                self.refused.clear();
            }
            Collapsed::Huge | Collapsed::LeftAlone => {}
        }
        Ok(Some(outcome))
    }

    fn is_looked_at_by_many(&self) -> bool {
        let tree = self.layer.upgrade().map(|claim| Arc::clone(&claim.tree));
        tree.is_some_and(|tree| tree.lock().leaves.len() > MOST_VMS)
    }

    fn choose(&mut self) -> Result<Option<Chosen>, MemoryError> {
        let Some(claim) = self.layer.upgrade() else {
            return Ok(None);
        };
        let (tree, hold) = (Arc::clone(&claim.tree), claim.hold);
        drop(claim); // not held: the layer goes when its snapshot goes
        let mut state = tree.lock();
        // Who gives up a claim takes the lock for it, so if there is one now, the
        // layer stays as long as we have the lock.
        let Some(layer) = state.holds.layer(hold) else {
            return Ok(None);
        };
        let left = match &mut self.left {
            Some(left) => left,
            none => {
                settle::read_back_layers(&mut state, Reading::Listed)?;
                let mut extents = state.tree.whole_extents(layer)?;
                extents.reverse();
                none.insert(extents)
            }
        };
        if left.is_empty() && self.retries > 0 {
            self.retries -= 1;
            std::mem::swap(left, &mut self.refused);
        }
        // An extent is taken off only when nothing fails any more.
        while let Some(pages) = left.last().cloned() {
            // Lists may have changed since; a hole tells.
            if !state.arena.is_whole(pages.clone())? {
                left.pop();
                continue;
            }
            let no_room = |source| MemoryError::os("map an extent", HUGE_PAGE, source);
            let mapping = Mapping::anonymous(HUGE_PAGE, HugePages::Never).map_err(no_room)?;
            let offset = PageIdx(pages.start).byte_offset();
            mapping
                .map_file(0..HUGE_PAGE, state.arena.fd(), offset, Sharing::Shared)
                .map_err(no_room)?;
            left.pop();
            drop(state);
            return Ok(Some(Chosen {
                tree,
                pages,
                mapping,
            }));
        }
        Ok(None)
    }
}

impl Chosen {
    fn collapse(self) -> Result<Collapsed, MemoryError> {
        let zero = |page| self.mapping.page(PageIdx(page)).read().is_zero();
        if (0..HUGE_PAGE).any(zero) {
            // A hole by now, perhaps, that looking at has filled.
            self.tree.lock().arena.drop_strays(self.pages);
            return Ok(Collapsed::LeftAlone);
        }
        let result = self.mapping.collapse();
        self.finish(result)
    }

    /// What has come of it, and of frames given back meanwhile.
    fn finish(self, result: io::Result<()>) -> Result<Collapsed, MemoryError> {
        let Self {
            tree,
            pages,
            mapping,
        } = self;
        drop(mapping);
        let mut state = tree.lock();
        state.arena.drop_strays(pages.clone());
        let Err(error) = result else {
            return Ok(Collapsed::Huge);
        };
        if !state.arena.is_whole(pages)? {
            return Ok(Collapsed::LeftAlone);
        }
        if error.raw_os_error() == Some(libc::EINVAL) {
            static SAID: Once = Once::new();
            SAID.call_once(|| log::info!("this host does not collapse files into huge pages"));
            return Ok(Collapsed::Unsupported);
        }
        log::debug!("not collapsed for now: {error}");
        Ok(Collapsed::NotNow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failing::freeze;
    use crate::sys::fault;
    use crate::{Backing, PAGE_SIZE, Ram, RamLayout};
    use vm_memory::{Bytes, GuestAddress};

    fn set(ram: &Ram, page: u64, value: u64) {
        let at = GuestAddress(page * PAGE_SIZE);
        ram.guest_ram().write_obj(value, at).unwrap();
    }

    fn get(ram: &Ram, page: u64) -> u64 {
        let at = GuestAddress(page * PAGE_SIZE);
        ram.guest_ram().read_obj(at).unwrap()
    }

    fn frozen_root(nr_pages: u64) -> (Ram, Layer) {
        let layout = RamLayout::new(nr_pages * PAGE_SIZE).unwrap();
        let mut root = Ram::new(layout, Backing::Memfd).unwrap();
        for page in 0..nr_pages {
            set(&root, page, page + 1);
        }
        let layer = freeze(&mut root).unwrap();
        (root, layer)
    }

    /// Collapses behind the tree's back. Frames in use then, by the kernel's
    /// count, if the host does that.
    fn collapse(chosen: &Chosen) -> Option<u64> {
        chosen.mapping.collapse().ok()?;
        Some(committed(&chosen.tree))
    }

    fn committed(tree: &CloneTree) -> u64 {
        tree.lock().arena.committed_pages().unwrap()
    }

    #[test]
    fn a_frame_of_root_ram_given_back_meanwhile_is_found_by_settling() {
        let (mut root, layer) = frozen_root(HUGE_PAGE);
        let mut child = layer.fork().unwrap();
        let tree = Arc::clone(root.tree());
        for ram in [&mut root, &mut child] {
            for page in 3..300 {
                set(ram, page, 7000 + page);
            }
        }
        let chosen = layer.collapser().choose().unwrap().unwrap();
        drop(layer); // which alone still sees what both have written
        assert_eq!(tree.reclaim().unwrap(), 297);
        assert_eq!(committed(&tree), HUGE_PAGE - 297);
        let Some(filled) = collapse(&chosen) else {
            return;
        };
        assert_eq!(filled, HUGE_PAGE, "the kernel fills holes");
        chosen.finish(Ok(())).unwrap();
        tree.check_invariants();
        assert_eq!(committed(&tree), HUGE_PAGE - 297);
        for page in 0..HUGE_PAGE {
            let wanted = if (3..300).contains(&page) {
                7000 + page
            } else {
                page + 1
            };
            assert_eq!((get(&root, page), get(&child, page)), (wanted, wanted));
        }
    }

    #[test]
    fn a_packed_frame_given_back_meanwhile_is_punched_before_it_is_taken_again() {
        let (root, first) = frozen_root(HUGE_PAGE);
        let mut child = first.fork().unwrap();
        for page in 0..HUGE_PAGE {
            set(&child, page, 9000 + page);
        }
        let second = freeze(&mut child).unwrap();
        let grandchild = second.fork().unwrap();
        for page in 0..HUGE_PAGE - 1 {
            set(&child, page, 5);
            set(&grandchild, page, 6);
        }
        let tree = Arc::clone(root.tree());
        tree.stats().unwrap();
        let chosen = second.collapser().choose().unwrap().unwrap();
        assert_eq!(chosen.pages, HUGE_PAGE..2 * HUGE_PAGE);
        drop(second);
        assert_eq!(tree.reclaim().unwrap(), HUGE_PAGE - 1);
        let left = committed(&tree);
        let Some(filled) = collapse(&chosen) else {
            return;
        };
        assert_eq!(filled, left + HUGE_PAGE - 1, "the kernel fills holes");
        chosen.finish(Ok(())).unwrap();
        assert_eq!(committed(&tree), left);
        tree.check_invariants();
        // The numbers are free, and what is stored there is what is seen.
        set(&child, 1, 77);
        let third = freeze(&mut child).unwrap();
        assert_eq!(get(&third.fork().unwrap(), 1), 77);
        assert_eq!(get(&grandchild, HUGE_PAGE - 1), 9000 + HUGE_PAGE - 1);
        tree.check_invariants();
    }

    #[test]
    fn whichever_system_call_fails_the_extent_is_tried_again() {
        for calls in 0.. {
            let (root, layer) = frozen_root(HUGE_PAGE);
            let mut collapser = layer.collapser();
            let mut outcomes = Vec::new();
            fault::fail_after(calls);
            for _ in 0..5 {
                outcomes.extend(collapser.step().unwrap_or_default());
            }
            let failed = fault::stop();
            let last = outcomes.last();
            assert!(
                [Some(&Collapsed::Huge), Some(&Collapsed::Unsupported)].contains(&last),
                "{calls} calls: {outcomes:?}"
            );
            root.tree().check_invariants();
            assert_eq!(committed(root.tree()), HUGE_PAGE);
            if !failed {
                assert!(calls > 3, "only {calls} system calls were made");
                return;
            }
        }
    }

    #[test]
    fn there_is_nothing_to_do_for_a_layer_that_has_gone() {
        let (_root, layer) = frozen_root(HUGE_PAGE);
        let mut collapser = layer.collapser();
        drop(layer);
        assert_eq!(collapser.step().unwrap(), None);
    }
}
