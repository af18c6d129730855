//! What is committed now, as the kernel has it: cheap, and nothing is settled.
//!
//! For whoever watches a limit. A VM has committed the file's pages while its
//! RAM is root RAM (the whole file is its then), and the private pages of its
//! window afterwards: its writes, and copies that the window still has of what
//! a layer holds, because they are real memory. What was frozen belongs to the
//! tree. All of these but the two forecasts do without the tree's lock, so
//! that nobody who forks waits for whoever looks.

use crate::clone_tree::CloneTree;
use crate::error::MemoryError;
use crate::layer::Layer;
use crate::layout::PAGE_SIZE;
use crate::ram::Ram;
use crate::ram_window::RamWindow;
use crate::settle::settle_leaf;
use crate::tree::NodeId;
use crate::window::{Window, Writes};

impl Ram {
    /// Bytes that this VM has committed itself: frames of root RAM, or private
    /// pages of its window. Nothing is settled; it may run. O(pages that its
    /// window has mapped), or O(1) for root RAM in a memfd.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn committed_bytes(&self) -> Result<u64, MemoryError> {
        self.window().committed_bytes()
    }

    /// Bytes that freezing this RAM now commits at most: its private pages
    /// that no layer holds yet. Takes as long as settling it.
    ///
    /// # Errors
    /// As [`settle`](Self::settle).
    pub fn freeze_commits_bytes(&self) -> Result<u64, MemoryError> {
        if self.window.writes() == Writes::ToFile {
            return Ok(0);
        }
        let claim = &self.claim;
        let mut state = claim.tree.lock();
        settle_leaf(&mut state, claim.tree.pagemap(), claim.leaf)?;
        Ok(state.tree.private_pages(claim.leaf).count() as u64 * PAGE_SIZE)
    }
}

impl RamWindow {
    /// Whether what it has committed is in the tree's file: root RAM.
    pub fn is_in_file(&self) -> bool {
        self.window.writes() == Writes::ToFile
    }

    /// As [`Ram::committed_bytes`], for somebody who holds the window only.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn committed_bytes(&self) -> Result<u64, MemoryError> {
        self.count_committed(|| ())
    }

    /// The same, in steps of some 100 µs, with `between` called between them.
    /// During a step nobody can map or unmap memory of this process; who counts
    /// often on a busy host should sleep in between, so as not to be preempted
    /// in a step for as long as others want the core.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn count_committed(&self, between: impl FnMut()) -> Result<u64, MemoryError> {
        let tree = &self.claim.tree;
        match self.window.writes() {
            Writes::ToFile => tree.file_bytes(),
            Writes::Private => tree.private_bytes(&self.window, between),
        }
    }
}

impl Layer {
    /// Bytes that a fork of this layer commits at once: the copies that its
    /// window needs because the layer is in too many pieces to be mapped.
    ///
    /// # Errors
    /// If there is no memory to find out.
    pub fn fork_commits_bytes(&self) -> Result<u64, MemoryError> {
        let mut state = self.tree().lock();
        let layer = self.node(&state);
        let all = state.tree.part_of(layer, 0..self.layout().nr_pages());
        let plan = state.plan_window(all)?;
        let copied = plan.copies.iter().map(|run| run.nr_pages());
        Ok(copied.sum::<u64>() * PAGE_SIZE)
    }
}

impl CloneTree {
    /// Bytes that the tree's file has: root RAM and layers, by the kernel's
    /// own count.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn file_bytes(&self) -> Result<u64, MemoryError> {
        let count = self.file().committed_pages();
        let pages = count.map_err(|source| MemoryError::os("count committed pages", 0, source))?;
        Ok(pages * PAGE_SIZE)
    }

    /// Bytes that the whole tree has committed: its file, and the private
    /// pages of every window. Nothing is settled, and the lock is held for one
    /// window at a time.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn committed_bytes(&self) -> Result<u64, MemoryError> {
        let mut bytes = self.file_bytes()?;
        let mut next = NodeId::FIRST;
        loop {
            // With the lock: a window that goes must not be kept by this.
            let state = self.lock();
            let Some((id, leaf)) = state.leaves.at_or_after(&next).next() else {
                return Ok(bytes);
            };
            if leaf.window.writes() == Writes::Private {
                bytes += self.private_bytes(&leaf.window, || ())?;
            }
            next = id.next();
        }
    }

    fn private_bytes(&self, window: &Window, between: impl FnMut()) -> Result<u64, MemoryError> {
        let mapping = window.mapping();
        let pages = self.pagemap().nr_private_pages(mapping, between);
        let failed = |source| MemoryError::os("count private pages", mapping.nr_pages(), source);
        Ok(pages.map_err(failed)? * PAGE_SIZE)
    }
}
