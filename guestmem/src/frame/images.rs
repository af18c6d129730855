//! Images: stretches of the file in which pages lie as they do in RAM, with
//! holes wherever nothing had to be stored.
//!
//! ```text
//!   RAM      . . a . . . b c . . . . d . .      isolated pages, far apart
//!   image    . . a . . . b c . . . . d . .      one mapping, four frames
//! ```
//!
//! A window is mapped across the holes, so they must go on reading zero as long
//! as there is such a window: each holds a pin. Numbers of an image are handed
//! out again when none of its pages is held and nobody has pinned it. No memory
//! here.

use std::ops::Range;
use std::sync::Arc;

use crate::error::MemoryError;
use crate::ordered::Ordered;
use crate::room;

/// All images of one file.
#[derive(Debug, Default)]
pub(crate) struct Images {
    by_start: Ordered<u64, Image>,
}

#[derive(Debug)]
struct Image {
    end: u64,
    /// One bit a page: whether its number is taken. Once it is not, the page
    /// reads zero for as long as there is the image.
    held: Vec<u64>,
    nr_held: u64,
    /// Whether it is still being filled. No list holds any of it then.
    is_draft: bool,
    pin: ImagePin,
}

impl Image {
    /// The word and the bit for the page `at` of the image.
    fn bit(&mut self, at: u64) -> (&mut u64, u64) {
        (&mut self.held[(at / 64) as usize], 1 << (at % 64))
    }

    fn hold(&mut self, at: u64) {
        let (word, bit) = self.bit(at);
        debug_assert_eq!(*word & bit, 0, "page {at} of an image is held twice");
        *word |= bit;
        self.nr_held += 1;
    }

    fn let_go(&mut self, at: u64) {
        let (word, bit) = self.bit(at);
        let was_held = *word & bit != 0;
        *word &= !bit;
        self.nr_held -= u64::from(was_held);
    }

    fn is_idle(&self) -> bool {
        self.nr_held == 0 && !self.is_draft && Arc::strong_count(&self.pin.0) == 1
    }
}

/// Whoever has mapped an image, or plans to, holds one.
#[derive(Clone, Debug, Default)]
pub(crate) struct ImagePin(Arc<()>);

impl Images {
    /// An image of `numbers` is begun.
    ///
    /// # Errors
    /// If there is no memory to note it.
    pub(crate) fn begin(&mut self, numbers: Range<u64>) -> Result<(), MemoryError> {
        let words = (numbers.end - numbers.start).div_ceil(64) as usize;
        let mut held = Vec::new();
        room::reserve(&mut held, words)?;
        held.resize(words, 0);
        let image = Image {
            end: numbers.end,
            held,
            nr_held: 0,
            is_draft: true,
            pin: ImagePin::default(),
        };
        self.by_start.insert(numbers.start, image)
    }

    /// The image that begins at `start` is filled: `held` of it are taken.
    pub(crate) fn finish(&mut self, start: u64, held: impl Iterator<Item = Range<u64>>) {
        let image = self.by_start.get_mut(&start).expect("was begun");
        image.is_draft = false;
        held.flatten().for_each(|page| image.hold(page - start));
    }

    /// The image that begins at `start` is none any more.
    pub(crate) fn give_up(&mut self, start: u64) {
        self.by_start.remove(&start);
    }

    /// Nobody holds `numbers` any more. Calls `other` for those that are in no
    /// image.
    pub(crate) fn let_go(&mut self, numbers: Range<u64>, mut other: impl FnMut(Range<u64>)) {
        let mut at = numbers.start;
        let first = self.reaching(&numbers);
        let reached = self.by_start.at_or_after_mut(&first);
        for (start, image) in reached.take_while(|(start, _)| *start < numbers.end) {
            let inside = numbers.start.max(start)..numbers.end.min(image.end);
            if at < inside.start {
                other(at..inside.start);
            }
            at = inside.end;
            inside.for_each(|page| image.let_go(page - start));
        }
        if at < numbers.end {
            other(at..numbers.end);
        }
    }

    /// Only `held`, ascending runs, are taken, in any image.
    pub(crate) fn hold_only(&mut self, held: &[Range<u64>]) {
        for (start, image) in self.by_start.at_or_after_mut(&0) {
            image.held.fill(0);
            image.nr_held = 0;
            let end = image.end;
            let first = held.partition_point(|run| run.end <= start);
            for run in held[first..].iter().take_while(|run| run.start < end) {
                let inside = run.start.max(start)..run.end.min(end);
                inside.for_each(|page| image.hold(page - start));
            }
        }
    }

    /// Whether `numbers` lie in one image that is filled, and none of them is held.
    pub(crate) fn read_zero(&self, numbers: &Range<u64>) -> bool {
        let before = self.by_start.at_or_before(&numbers.start);
        let reached = before.filter(|(_, image)| numbers.end <= image.end && !image.is_draft);
        let Some((start, image)) = reached else {
            return false;
        };
        let (from, to) = (numbers.start - start, numbers.end - start);
        (from / 64..to.div_ceil(64)).all(|word| {
            let mut wanted = u64::MAX;
            if word == from / 64 {
                wanted &= u64::MAX << (from % 64);
            }
            if word == to / 64 {
                wanted &= (1 << (to % 64)) - 1;
            }
            image.held[word as usize] & wanted == 0
        })
    }

    /// Pins of all images that `numbers` reach into.
    pub(crate) fn pins(&self, numbers: Range<u64>) -> impl Iterator<Item = ImagePin> + '_ {
        let reached = self.by_start.at_or_after(&self.reaching(&numbers));
        let reached = reached.take_while(move |(start, _)| *start < numbers.end);
        reached.map(|(_, image)| image.pin.clone())
    }

    /// Takes out an image that nobody needs.
    pub(crate) fn take_idle(&mut self) -> Option<Range<u64>> {
        let (start, _) = self.by_start.iter().find(|(_, image)| image.is_idle())?;
        let image = self.by_start.remove(&start)?;
        Some(start..image.end)
    }

    /// All of them, ascending.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let images = self.by_start.iter();
        images.map(|(start, image)| start..image.end)
    }

    /// Those that windows may be mapped across.
    pub(crate) fn filled(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let images = self.by_start.iter().filter(|(_, image)| !image.is_draft);
        images.map(|(start, image)| start..image.end)
    }

    /// Where the first image may begin that reaches into `numbers`.
    fn reaching(&self, numbers: &Range<u64>) -> u64 {
        let before = self.by_start.at_or_before(&numbers.start);
        let reaching = before.filter(|(_, image)| numbers.start < image.end);
        reaching.map_or(numbers.start, |(start, _)| start)
    }
}

/// What may be mapped although nobody holds it.
#[derive(Clone, Debug)]
pub(crate) struct Bridges<'a> {
    /// File pages that read zero for ever once nobody holds them.
    pub(crate) root: Range<u64>,
    pub(crate) images: &'a Images,
}

impl Bridges<'_> {
    /// Whether both lie in root RAM.
    pub(crate) fn join_in_root(&self, a: u64, b: u64) -> bool {
        self.root.contains(&a) && self.root.contains(&b)
    }

    /// Keeps holes of images among these file pages as they are.
    pub(crate) fn pins(&self, file_pages: Range<u64>) -> impl Iterator<Item = ImagePin> + '_ {
        self.images.pins(file_pages)
    }

    /// Whether `file_pages` are holes of one image.
    pub(crate) fn are_holes(&self, file_pages: &Range<u64>) -> bool {
        self.images.read_zero(file_pages)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "one run is a list of runs")]
mod tests {
    use super::*;

    fn image() -> Images {
        let mut images = Images::default();
        images.begin(1000..1200).unwrap();
        images.finish(1000, [1003..1004, 1064..1070, 1199..1200].into_iter());
        images
    }

    fn let_go(images: &mut Images, numbers: Range<u64>) -> Vec<Range<u64>> {
        let mut others = Vec::new();
        images.let_go(numbers, |run| others.push(run));
        others
    }

    #[test]
    fn what_is_held_is_no_hole_and_neither_is_what_lies_outside() {
        let images = image();
        for hole in [1000..1003, 1004..1064, 1070..1199, 1100..1101] {
            assert!(images.read_zero(&hole), "{hole:?}");
        }
        for other in [
            999..1001,
            1003..1004,
            1000..1004,
            1060..1080,
            1199..1201,
            5..6,
        ] {
            assert!(!images.read_zero(&other), "{other:?}");
        }
    }

    #[test]
    fn what_is_let_go_is_a_hole_and_the_rest_is_for_others() {
        let mut images = image();
        images.begin(1300..1310).unwrap();
        images.finish(1300, [1300..1310].into_iter());
        assert_eq!(let_go(&mut images, 990..1003), [990..1000]);
        assert_eq!(let_go(&mut images, 1150..1305), [1200..1300]);
        assert!(images.read_zero(&(1070..1200)));
        assert!(!images.read_zero(&(1305..1306)));
        assert_eq!(let_go(&mut images, 1000..1200), []);
        assert_eq!(let_go(&mut images, 1202..1204), [1202..1204]);
        assert_eq!(images.take_idle(), Some(1000..1200));
        assert_eq!(images.take_idle(), None);
    }

    #[test]
    fn what_nobody_holds_after_all_is_a_hole() {
        let mut images = image();
        images.hold_only(&[5..6, 900..1001, 1100..1101, 1199..1300]);
        assert!(images.read_zero(&(1001..1100)));
        assert!(images.read_zero(&(1101..1199)));
        for held in [1000..1001, 1100..1101, 1199..1200] {
            assert!(!images.read_zero(&held), "{held:?}");
        }
        images.hold_only(&[]);
        assert_eq!(images.take_idle(), Some(1000..1200));
    }

    #[test]
    fn an_image_on_its_way_stays_and_is_not_mapped_across() {
        let mut images = Images::default();
        images.begin(1000..1200).unwrap();
        assert_eq!(images.take_idle(), None);
        assert_eq!((images.ranges().count(), images.filled().count()), (1, 0));
        // What lies in it already is not known here.
        assert!(!images.read_zero(&(1000..1200)));
        images.give_up(1000);
        assert_eq!(images.ranges().count(), 0);
    }

    #[test]
    fn a_pinned_image_stays_although_nothing_in_it_is_held() {
        let mut images = image();
        let pins: Vec<_> = images.pins(1190..2000).collect();
        assert_eq!(images.pins(1200..2000).count(), 0);
        assert_eq!(let_go(&mut images, 1000..1200), []);
        assert_eq!(images.take_idle(), None);
        drop(pins);
        assert_eq!(images.take_idle(), Some(1000..1200));
        assert_eq!(images.ranges().count(), 0);
    }
}
