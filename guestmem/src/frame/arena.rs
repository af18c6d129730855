//! The frames of one clone tree: a sparse memfd, its numbers, and a view of it.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::{Bridges, Draft, FIRST_PRIVATE, FrameNumbers, FrameSet, Stock};
use crate::error::MemoryError;
use crate::layout::PAGE_SIZE;
use crate::room;
use crate::sys::mapping::{HugePages, Mapping, Sharing, View};
use crate::sys::memfd::Memfd;
use crate::sys::page::Page;

/// File pages a tree has room for, as a multiple of its root's. Only address
/// space is spent on them; the host's memory ends first.
const ROOM_PER_ROOT: u64 = 16;
/// …and at least this many (64 GiB).
const LEAST_ROOM: u64 = 16 << 20;

/// Frames of one clone tree; see [`frame`](super).
#[derive(Debug)]
pub(crate) struct Arena {
    numbers: FrameNumbers,
    /// Pages that nobody sees and that could not be given back yet.
    refused: Vec<Range<u64>>,
    /// Whether there may be pages that nobody sees, or numbers that nobody
    /// uses, and that nobody knows of: there was no memory to note them.
    astray: bool,
    /// How often frames have been given back.
    frees: u64,
    /// Committed pages that are in stock: no list holds them yet.
    in_stock: u64,
    view: View,
    file: Arc<Memfd>,
}

impl Arena {
    /// An empty arena for a tree whose root has `root_pages`.
    pub(crate) fn new(root_pages: u64) -> Result<Self, MemoryError> {
        Self::can_number(root_pages)?;
        let most = u64::from(FIRST_PRIVATE);
        let nr_pages = (root_pages * ROOM_PER_ROOT).clamp(LEAST_ROOM, most);
        let file = Memfd::new("guest-ram", nr_pages)
            .map_err(|source| MemoryError::os("create a memfd for guest RAM", nr_pages, source))?;
        let view = View::new(file.as_fd(), nr_pages * PAGE_SIZE)
            .map_err(|source| MemoryError::os("map a view of guest RAM", nr_pages, source))?;
        Ok(Self {
            numbers: FrameNumbers::new(root_pages, nr_pages)?,
            refused: Vec::new(),
            astray: false,
            frees: 0,
            in_stock: 0,
            view,
            file: Arc::new(file),
        })
    }

    /// Changes whenever frames are given back: what maps frames that nobody
    /// holds is right only as long as this is the same.
    pub(crate) fn frees(&self) -> u64 {
        self.frees
    }

    /// Whether RAM of `nr_pages` can be part of a tree: its private pages need
    /// numbers, and root RAM leaves as many to layers.
    pub(crate) fn can_number(nr_pages: u64) -> Result<(), MemoryError> {
        let most = u64::from(FIRST_PRIVATE) / 2;
        if nr_pages > most {
            return Err(MemoryError::TooMuchRam {
                wanted_bytes: nr_pages * PAGE_SIZE,
                most_bytes: most * PAGE_SIZE,
            });
        }
        Ok(())
    }

    /// What windows may be mapped across: holes of root RAM, which are never
    /// handed out again, and of images, as long as they are pinned.
    pub(crate) fn bridges(&self) -> Bridges<'_> {
        self.numbers.bridges(match self.knows_holes() {
            true => self.root(),
            // Some may still hold what somebody had there.
            false => 0..0,
        })
    }

    /// Whether all that nobody holds of root RAM has been given back.
    pub(crate) fn knows_holes(&self) -> bool {
        self.refused.is_empty() && !self.astray
    }

    /// The file pages of root RAM.
    pub(crate) fn root(&self) -> Range<u64> {
        self.numbers.root()
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The file, for whoever counts its pages without the tree's lock.
    pub(crate) fn file(&self) -> Arc<Memfd> {
        Arc::clone(&self.file)
    }

    /// A committed file page, for reading.
    pub(crate) fn page(&self, file_page: u64) -> Page<'_> {
        self.view.page(file_page * PAGE_SIZE)
    }

    /// Allocates `count` frames ahead. Out of host memory is an error here,
    /// where a store through a mapping would be a SIGBUS.
    pub(crate) fn stock_up(&mut self, count: u64) -> Result<Stock, MemoryError> {
        if count == 0 {
            return Ok(Stock::default());
        }
        let pages = self.take(count)?;
        let mapped = self.file.allocate(pages.clone()).and_then(|()| {
            let window = Mapping::anonymous(count, HugePages::Never)?;
            let offset = pages.start * PAGE_SIZE;
            window.map_file(0..count, self.file.as_fd(), offset, Sharing::Shared)?;
            window.populate()?;
            Ok(window)
        });
        match mapped {
            Ok(window) => {
                self.in_stock += count;
                Ok(Stock::new(pages, window))
            }
            Err(source) => {
                self.free_run(pages);
                Err(MemoryError::os("allocate frames ahead", count, source))
            }
        }
    }

    /// Gives back what is left of a stock.
    pub(crate) fn unstock(&mut self, stock: &mut Stock) {
        let rest = stock.take_rest();
        self.in_stock -= rest.end - rest.start;
        if !rest.is_empty() {
            self.free_run(rest);
        }
    }

    /// Takes the first `known` frames of the stock, which the caller has filled or
    /// does now, and copies `sources` into those behind, and into new ones where
    /// these do not suffice. Returns all their file pages. On an error nothing has
    /// changed.
    pub(crate) fn store_in(
        &mut self,
        stock: &mut Stock,
        known: usize,
        sources: &[Page<'_>],
    ) -> Result<(Range<u64>, impl Iterator<Item = u64> + Clone + use<>), MemoryError> {
        let fitting = sources.len().min(stock.nr_left() as usize - known);
        let (first, rest) = sources.split_at(fitting);
        let rest = self.store(rest)?;
        for (at, source) in (known..).zip(first) {
            stock.fill(at, *source);
        }
        let known = stock.take(known);
        let first = stock.take(fitting);
        self.in_stock -= first.end - known.start;
        Ok((known, first.chain(rest)))
    }

    /// Begins an image of the RAM pages `pages`. Costs no frames yet.
    pub(crate) fn draft(&mut self, pages: Range<u64>) -> Result<Draft, MemoryError> {
        self.retire_images();
        let wanted = pages.end - pages.start;
        let numbers = self.numbers.begin_image(&pages)?;
        let numbers = numbers.ok_or(MemoryError::OutOfFrames { wanted })?;
        Ok(Draft::new(pages, numbers.start))
    }

    /// Copies the file pages `sources` to where the RAM pages from `page` on lie
    /// in `draft`. After an error it can only be [discarded](Self::discard).
    pub(crate) fn fill(
        &mut self,
        draft: &mut Draft,
        page: u64,
        sources: &[u64],
    ) -> Result<(), MemoryError> {
        let pages = room::collect(sources.iter().map(|source| self.page(*source)))?;
        let count = pages.len() as u64;
        let written = self.file.write_pages(draft.file_page(page), &pages);
        written.map_err(|source| MemoryError::os("copy pages into an image", count, source))?;
        draft.filled += count;
        self.in_stock += count;
        Ok(())
    }

    /// The frames of `draft`, which are `held`, belong to a list now.
    pub(crate) fn keep(&mut self, draft: &Draft, held: impl Iterator<Item = Range<u64>>) {
        self.in_stock -= draft.filled;
        self.numbers.finish_image(&draft.numbers(), held);
    }

    /// Gives back all of `draft`.
    pub(crate) fn discard(&mut self, draft: &Draft) {
        self.in_stock -= draft.filled;
        self.numbers.give_up_image(&draft.numbers());
        self.free_run(draft.numbers());
    }

    /// Gives back the numbers of images that nobody needs, and frames that were
    /// committed there by reading holes.
    pub(crate) fn retire_images(&mut self) {
        while let Some(image) = self.numbers.take_idle_image() {
            self.free_run(image);
        }
    }

    fn take(&mut self, count: u64) -> Result<Range<u64>, MemoryError> {
        let mut pages = self.numbers.take(count);
        if pages.is_none() {
            self.retire_images();
            pages = self.numbers.take(count);
        }
        pages.ok_or(MemoryError::OutOfFrames { wanted: count })
    }

    /// Copies `sources` into new frames, packed in order, and returns their
    /// file pages. On an error nothing has changed.
    fn store(&mut self, sources: &[Page<'_>]) -> Result<Range<u64>, MemoryError> {
        let count = sources.len() as u64;
        if count == 0 {
            return Ok(0..0);
        }
        let pages = self.take(count)?;
        match self.file.write_pages(pages.start, sources) {
            Ok(()) => Ok(pages),
            Err(source) => {
                self.free_run(pages);
                Err(MemoryError::os("copy pages into a layer", count, source))
            }
        }
    }

    /// Gives frames back to the host. Nothing may be able to see them.
    pub(crate) fn free(&mut self, frames: FrameSet) {
        self.astray |= frames.is_astray();
        let mut runs = frames.into_runs();
        // Pages of an image far apart go in one call: nobody has what lies between.
        let bridges = self.numbers.bridges(0..0);
        runs.dedup_by(|next, run| {
            let joined = bridges.are_holes(&(run.end..next.start));
            if joined {
                run.end = next.end;
            }
            joined
        });
        for run in runs {
            self.free_run(run);
        }
    }

    fn free_run(&mut self, run: Range<u64>) {
        self.frees += 1;
        match self.file.punch(run.clone()) {
            Ok(()) => self.astray |= self.numbers.give_back(run).is_err(),
            // The numbers stay taken until it works, so that the old contents
            // are never mistaken for somebody's.
            Err(error) => {
                log::warn!("cannot give file pages {run:?} back for now: {error}");
                self.astray |= room::push(&mut self.refused, run).is_err();
            }
        }
    }

    /// Tries again to give back what could not be.
    pub(crate) fn retry_refused(&mut self) {
        for run in std::mem::take(&mut self.refused) {
            self.free_run(run);
        }
    }

    /// Pages the kernel says the file has, those in stock aside.
    pub(crate) fn committed_pages(&self) -> Result<u64, MemoryError> {
        let stat = |source| MemoryError::os("count committed pages", 0, source);
        let committed = self.file.committed_pages().map_err(stat)?;
        Ok(committed.saturating_sub(self.in_stock))
    }

    /// Whether pages or numbers have gone astray, and can be found by who knows
    /// which pages are held by lists: those in stock would look the same.
    pub(crate) fn wants_sweep(&self) -> bool {
        self.astray && self.in_stock == 0
    }

    /// Gives back every page that is not in `held`, ascending runs, and every
    /// number. What the kernel refuses is tried again at the next sweep.
    ///
    /// # Errors
    /// If the kernel cannot be asked which pages there are, or there is no memory
    /// for the answer. Nothing has changed then.
    pub(crate) fn sweep(&mut self, held: &[Range<u64>]) -> Result<(), MemoryError> {
        let all = self.numbers.all();
        let seek = |source| MemoryError::os("find committed pages", all.end, source);
        let data = self.file.data(all.clone()).map_err(seek)?;
        let stray = without_held(&data, held)?;
        let free = self.numbers.free_without(held)?;
        self.frees += 1;
        for run in stray {
            if let Err(error) = self.file.punch(run.clone()) {
                log::warn!("cannot give file pages {run:?} back for now: {error}");
                return Ok(());
            }
        }
        self.refused.clear(); // they were among them
        self.numbers.hold_only(held, free);
        self.astray = false;
        Ok(())
    }

    /// Gives back what the kernel has committed of root RAM and of images although
    /// it is not in `held`, ascending runs.
    ///
    /// # Errors
    /// As [`sweep`](Self::sweep).
    pub(crate) fn sweep_holes(&mut self, held: &[Range<u64>]) -> Result<(), MemoryError> {
        let mut data = self.root_data()?;
        for image in self.numbers.images() {
            room::append(&mut data, self.data(image)?)?;
        }
        for run in without_held(&data, held)? {
            self.free_run(run);
        }
        Ok(())
    }

    /// The committed stretches of root RAM.
    pub(crate) fn root_data(&self) -> Result<Vec<Range<u64>>, MemoryError> {
        self.data(self.root())
    }

    fn data(&self, pages: Range<u64>) -> Result<Vec<Range<u64>>, MemoryError> {
        let seek = |source: io::Error| MemoryError::os("find committed pages", pages.end, source);
        self.file.data(pages.clone()).map_err(seek)
    }

    /// Whether every one of these pages is committed.
    pub(crate) fn is_whole(&self, pages: Range<u64>) -> Result<bool, MemoryError> {
        let seek = |source| MemoryError::os("look for holes", pages.start, source);
        Ok(self.file.data(pages.clone()).map_err(seek)? == [pages])
    }

    /// Gives back what the kernel has committed of these pages although their
    /// numbers are free. Of root RAM settling finds that out.
    pub(crate) fn drop_strays(&mut self, pages: Range<u64>) {
        match self.numbers.take_within(pages) {
            Ok(free) => free.into_iter().for_each(|run| self.free_run(run)),
            Err(_) => self.astray = true,
        }
    }
}

/// What of `data` is not in `held`; both ascending runs.
fn without_held(data: &[Range<u64>], held: &[Range<u64>]) -> Result<Vec<Range<u64>>, MemoryError> {
    let mut rest = Vec::new();
    for data in data {
        let mut at = data.start;
        let first = held.partition_point(|run| run.end <= data.start);
        for run in held[first..].iter().take_while(|run| run.start < data.end) {
            if at < run.start {
                room::push(&mut rest, at..run.start)?;
            }
            at = run.end;
        }
        if at < data.end {
            room::push(&mut rest, at..data.end)?;
        }
    }
    Ok(rest)
}
