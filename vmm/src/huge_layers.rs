//! The memory of templates goes into huge pages, in the background.
//!
//! A template is a snapshot that forks are made of for long: one that keeps
//! forks ready, or is forked when it is no longer new. Not every snapshot that
//! is kept: pages that are moved have to be mapped again by the VMs that run
//! already, which only pays if others are still to come. A point to reset to
//! has none.

use std::sync::Once;
use std::time::{Duration, Instant};

use guestmem::{Collapsed, Layer};

use crate::background;

/// What becomes of the memory of snapshots that serve as templates: that keep
/// forks [ready](crate::Snapshot::keep_warm), or are forked a second after they
/// were taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HugeLayers {
    /// Full 2 MiB of it are moved into huge pages in the background, where the
    /// host can do that. New forks read it much faster then; those that run
    /// have to map it again. Takes at most a tenth of a core, and stops when
    /// the snapshot is dropped.
    #[default]
    Background,
    /// It stays in single pages.
    Never,
}

/// How old a snapshot that is forked has to be to count as a template.
const NO_LONGER_NEW: Duration = Duration::from_secs(1);
/// How much longer than an extent takes the pause after it is.
const PAUSE: u32 = 9;
/// The pause if the host has no huge page to spare.
const LATER: Duration = Duration::from_millis(200);

/// Whether a snapshot has turned out to be a template.
#[derive(Debug)]
pub(crate) struct Template {
    wanted: HugeLayers,
    taken: Instant,
    begun: Once,
}

impl Template {
    /// A snapshot taken now.
    pub(crate) fn new(wanted: HugeLayers) -> Self {
        Self {
            wanted,
            taken: Instant::now(),
            begun: Once::new(),
        }
    }

    /// A fork of the snapshot with this layer is made.
    pub(crate) fn is_forked(&self, layer: &Layer) {
        if !self.begun.is_completed() && self.taken.elapsed() > NO_LONGER_NEW {
            self.serves(layer);
        }
    }

    /// Many will be.
    pub(crate) fn serves(&self, layer: &Layer) {
        if self.wanted == HugeLayers::Background {
            self.begun.call_once(|| collapse(layer));
        }
    }
}

/// Moves what `layer` and its ancestors hold into huge pages, in the background
/// and slowly, as long as somebody holds the layer.
fn collapse(layer: &Layer) {
    let mut collapser = layer.collapser();
    background::slowly(move || {
        let started = Instant::now();
        match collapser.step() {
            Ok(None | Some(Collapsed::Unsupported)) => None,
            Ok(Some(Collapsed::NotNow)) => Some(LATER),
            Ok(Some(_)) => Some(started.elapsed() * PAUSE),
            Err(error) => {
                log::debug!("a layer stays in single pages: {error}");
                None
            }
        }
    });
}
