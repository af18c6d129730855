//! What a family's VMs have committed, as far as is known, and its limits.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guestmem::CloneTree;

use super::policy::{self, Edge, pace};
use super::seat::{Seat, over};
use super::{Limits, MemoryLimit, Notice, Whose, watcher};

/// One for each family; see the [module](super).
#[derive(Debug)]
pub(crate) struct Ledger {
    tree: Arc<CloneTree>,
    book: Mutex<Book>,
    /// Wakes the watcher.
    changed: Condvar,
}

/// What the ledger's lock protects. It is never held while anything is
/// measured or anybody is stopped.
#[derive(Debug, Default)]
struct Book {
    /// The family's.
    limits: Limits,
    edge: Edge,
    /// What the family had when that was last added up.
    known_bytes: u64,
    /// What it had at the last look.
    looked_bytes: u64,
    /// One for every VM.
    seats: Vec<Arc<Seat>>,
    listeners: Vec<Sender<Notice>>,
    /// There is a watcher.
    watched: bool,
    /// The family has gone.
    closed: bool,
    /// When the watcher looks next; `None` while nothing can have changed.
    next_look: Option<Instant>,
    /// A glance may bring that forward to this.
    earliest: Option<Instant>,
    /// To the nearest limit, at the last look.
    headroom: Option<u64>,
    /// What a look takes, and what the last one took.
    cost: Duration,
    look_took: Duration,
}

/// What the watcher is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Look,
    /// See whether the process has grown by so much; then look.
    Glance(u64),
    /// Go: the family has gone.
    Nothing,
}

impl Book {
    fn look(&mut self) -> Due {
        (self.next_look, self.earliest, self.headroom) = (None, None, None);
        Due::Look
    }
}

impl Ledger {
    pub(crate) fn new(tree: Arc<CloneTree>) -> Arc<Self> {
        Arc::new(Self {
            tree,
            book: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// A seat for VM `number`.
    pub(crate) fn seat(&self, number: u64) -> Arc<Seat> {
        let seat = Seat::new(number);
        self.book().seats.push(Arc::clone(&seat));
        seat
    }

    /// The VM of `seat` goes. When this returns, nobody here holds it.
    pub(crate) fn leave(&self, seat: &Arc<Seat>) {
        self.book().seats.retain(|other| !Arc::ptr_eq(other, seat));
        seat.vacate();
    }

    /// The family has gone, and the watcher goes too.
    pub(crate) fn close(&self) {
        let mut book = self.book();
        book.closed = true;
        book.listeners.clear();
        drop(book);
        self.changed.notify_all();
    }

    /// The family's limits.
    pub(crate) fn limits(&self) -> Limits {
        self.book().limits
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        self.book().limits = limits;
    }

    /// Notices from now on.
    pub(crate) fn listen(&self) -> Receiver<Notice> {
        let (sender, receiver) = channel();
        self.book().listeners.push(sender);
        receiver
    }

    /// Has a look taken at once because limits have changed; starts the watcher
    /// if there is none and something is limited.
    pub(crate) fn watch(self: &Arc<Self>) -> io::Result<()> {
        let mut book = self.book();
        if !book.watched {
            let limited = |seat: &Arc<Seat>| seat.limits() != Limits::NONE;
            if book.limits == Limits::NONE && !book.seats.iter().any(limited) {
                return Ok(());
            }
            watcher::spawn(Arc::clone(self))?;
            book.watched = true;
        }
        // The new limit may be below what those at rest have.
        book.seats.iter().for_each(|seat| seat.runs());
        book.next_look = Some(Instant::now());
        drop(book);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether anything is limited, or was.
    pub(super) fn is_watched(&self) -> bool {
        self.book().watched
    }

    /// The VM of `seat`, which has `headroom` left, was let run.
    pub(super) fn stir(&self, seat: &Seat, headroom: Option<u64>) {
        seat.runs();
        let mut book = self.book();
        let family = policy::headroom(book.known_bytes, &book.limits);
        let least = headroom.into_iter().chain(family).min();
        let (now, pace) = (Instant::now(), pace(least, book.cost));
        book.headroom = book.headroom.into_iter().chain(least).min();
        let due = now + pace.latest;
        if book.next_look.is_none_or(|next| due < next) {
            book.next_look = Some(due);
            book.earliest.get_or_insert(now + pace.earliest);
            drop(book);
            self.changed.notify_all();
        }
    }

    /// The watcher waits until there is something for it to do.
    pub(super) fn wait(&self) -> Due {
        let mut book = self.book();
        while !book.closed {
            let Some(next) = book.next_look else {
                let waited = self.changed.wait(book);
                book = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return book.look();
            }
            let glance = pace(book.headroom, book.cost).glance;
            let waited = self.changed.wait_timeout(book, left.min(glance));
            let (again, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            book = again;
            let may_look = book.earliest.is_none_or(|at| at <= Instant::now());
            if let (true, true, Some(headroom)) = (timeout.timed_out(), may_look, book.headroom) {
                return Due::Glance(headroom);
            }
        }
        Due::Nothing
    }

    /// A glance has found a reason to look. Whoever is let run meanwhile makes
    /// for another look.
    pub(super) fn begin_look(&self) {
        self.book().look();
    }

    /// The watcher has looked, at this cost, and looks again as soon as
    /// `headroom` may be used up; `None`: when somebody is let run.
    pub(super) fn looked(&self, cost: Duration, again: Option<Option<u64>>) {
        let mut book = self.book();
        // What others do to this core may make one look seem dear, not two.
        book.cost = std::mem::replace(&mut book.look_took, cost).min(cost);
        if let Some(headroom) = again {
            let (now, pace) = (Instant::now(), pace(headroom, book.cost));
            let due = now + pace.latest;
            book.next_look = Some(book.next_look.map_or(due, |next| next.min(due)));
            book.earliest = Some(now + pace.earliest);
            book.headroom = book.headroom.into_iter().chain(headroom).min();
        }
    }

    /// What may have grown: the tree's file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.tree.file_bytes().unwrap_or_else(|error| {
            log::warn!("a family's memory: {error}");
            0
        })
    }

    /// Every VM's seat, and the family's limits.
    pub(super) fn seats(&self) -> (Vec<Arc<Seat>>, Limits) {
        let book = self.book();
        (book.seats.clone(), book.limits)
    }

    /// Passes a notice on to whoever listens.
    pub(super) fn tell(&self, notice: Notice) {
        log::info!("{notice}");
        let listeners = &mut self.book().listeners;
        listeners.retain(|listener| listener.send(notice).is_ok());
    }

    /// What the family has committed: its file, and all VMs as last measured.
    /// The soft limit's notice is given on the way.
    pub(super) fn family_bytes(&self) -> u64 {
        let file = self.file_bytes();
        let mut book = self.book();
        let private = book.seats.iter().map(|seat| seat.private_bytes());
        let bytes = file + private.sum::<u64>();
        let limits = book.limits;
        book.known_bytes = bytes;
        let passed = book.edge.passes(bytes, &limits);
        drop(book);
        if let (true, Some(limit_bytes)) = (passed, limits.soft_bytes()) {
            self.tell(Notice(MemoryLimit {
                whose: Whose::Family,
                limit_bytes,
                committed_bytes: bytes,
            }));
        }
        bytes
    }

    /// The family's hard limit, if it would be exceeded by `wanted` bytes more.
    /// Those at rest are measured again before the answer is yes: their owners
    /// may have given memory back.
    pub(super) fn family_over(&self, wanted: u64) -> Option<MemoryLimit> {
        let limits = self.limits();
        let would_be = |bytes: u64| over(Whose::Family, bytes.saturating_add(wanted), &limits);
        limits.hard_bytes()?;
        would_be(self.family_bytes())?;
        self.seats().0.iter().for_each(|seat| seat.refresh());
        let committed_bytes = self.family_bytes();
        would_be(committed_bytes).map(|limit| MemoryLimit {
            committed_bytes,
            ..limit
        })
    }

    /// As [`family_over`](Self::family_over), after everything that nobody sees
    /// has been given back. Takes the tree's lock for as long as settling does:
    /// for an owner about to be refused, not for the watcher.
    pub(super) fn family_over_for_certain(&self, wanted: u64) -> Option<MemoryLimit> {
        self.family_over(wanted)?;
        if let Err(error) = self.tree.reclaim() {
            log::warn!("a family's memory: {error}");
        }
        self.family_over(wanted)
    }

    /// Whether the family has more than at the last look; this is one.
    pub(super) fn family_grew(&self, bytes: u64) -> bool {
        let mut book = self.book();
        std::mem::replace(&mut book.looked_bytes, bytes) < bytes
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
