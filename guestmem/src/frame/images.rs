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

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// All images of one file.
#[derive(Debug, Default)]
pub(crate) struct Images {
    by_start: BTreeMap<u64, Image>,
}

#[derive(Debug)]
struct Image {
    end: u64,
    /// One bit a page: whether its number is taken. Once it is not, the page
    /// reads zero for as long as there is the image.
    held: Vec<u64>,
    nr_held: u64,
    pin: ImagePin,
}

/// Whoever has mapped an image holds one.
#[derive(Clone, Debug, Default)]
pub(crate) struct ImagePin(Arc<()>);

impl Images {
    /// `numbers` become an image, of which `held` are taken.
    pub(crate) fn add(&mut self, numbers: Range<u64>, held: impl Iterator<Item = Range<u64>>) {
        let words = (numbers.end - numbers.start).div_ceil(64) as usize;
        let mut image = Image {
            end: numbers.end,
            held: vec![0; words],
            nr_held: 0,
            pin: ImagePin::default(),
        };
        for page in held.flatten() {
            let at = page - numbers.start;
            let word = &mut image.held[(at / 64) as usize];
            debug_assert_eq!(*word >> (at % 64) & 1, 0, "file page {page} is held twice");
            *word |= 1 << (at % 64);
            image.nr_held += 1;
        }
        self.by_start.insert(numbers.start, image);
    }

    /// Nobody holds `numbers` any more. Returns those that are in no image.
    pub(crate) fn let_go(&mut self, numbers: Range<u64>) -> Vec<Range<u64>> {
        let mut others = Vec::new();
        let mut at = numbers.start;
        let reached = self.reached(&numbers);
        for (&start, image) in self.by_start.range_mut(reached) {
            let inside = numbers.start.max(start)..numbers.end.min(image.end);
            if at < inside.start {
                others.push(at..inside.start);
            }
            at = inside.end;
            for page in inside {
                let word = &mut image.held[((page - start) / 64) as usize];
                let bit = 1 << ((page - start) % 64);
                image.nr_held -= u64::from(*word & bit != 0);
                *word &= !bit;
            }
        }
        if at < numbers.end {
            others.push(at..numbers.end);
        }
        others
    }

    /// Whether `numbers` lie in one image and none of them is held.
    pub(crate) fn read_zero(&self, numbers: &Range<u64>) -> bool {
        let before = self.by_start.range(..=numbers.start).next_back();
        let Some((start, image)) = before.filter(|(_, image)| numbers.end <= image.end) else {
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
        let images = self.by_start.range(self.reached(&numbers));
        images.map(|(_, image)| image.pin.clone())
    }

    /// Takes out the images that nobody needs.
    pub(crate) fn take_idle(&mut self) -> Vec<Range<u64>> {
        let idle = |image: &Image| image.nr_held == 0 && Arc::strong_count(&image.pin.0) == 1;
        let mut taken = Vec::new();
        self.by_start.retain(|start, image| {
            let goes = idle(image);
            if goes {
                taken.push(*start..image.end);
            }
            !goes
        });
        taken
    }

    /// All of them, ascending.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let images = self.by_start.iter();
        images.map(|(start, image)| *start..image.end)
    }

    /// The starts of images that reach into `numbers`.
    fn reached(&self, numbers: &Range<u64>) -> Range<u64> {
        let before = self.by_start.range(..=numbers.start).next_back();
        let reaching = before.filter(|(_, image)| numbers.start < image.end);
        let first = reaching.map_or(numbers.start, |(start, _)| *start);
        first..numbers.end.max(first)
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
        images.add(1000..1200, [1003..1004, 1064..1070, 1199..1200].into_iter());
        images
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
        images.add(1300..1310, [1300..1310].into_iter());
        assert_eq!(images.let_go(990..1003), [990..1000]);
        assert_eq!(images.let_go(1150..1305), [1200..1300]);
        assert!(images.read_zero(&(1070..1200)));
        assert!(!images.read_zero(&(1305..1306)));
        assert_eq!(images.let_go(1000..1200), []);
        assert_eq!(images.let_go(1202..1204), [1202..1204]);
        assert_eq!(images.take_idle(), [1000..1200]);
    }

    #[test]
    fn a_pinned_image_stays_although_nothing_in_it_is_held() {
        let mut images = image();
        let pins: Vec<_> = images.pins(1190..2000).collect();
        assert_eq!(images.pins(1200..2000).count(), 0);
        images.let_go(1000..1200);
        assert_eq!(images.take_idle(), []);
        drop(pins);
        assert_eq!(images.take_idle(), [1000..1200]);
        assert_eq!(images.ranges().count(), 0);
    }
}
