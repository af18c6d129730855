//! Layers in huge pages: read at once, owned and given back page by page.
//!
//! Where the host does not collapse files, what is left to check is that
//! nothing changes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Smaps, freeze, page_value, set_page};
use guestmem::{Backing, Collapsed, Layer, PAGE_SIZE, Ram, RamLayout, Writers};

/// Pages in a huge page.
const HUGE: u64 = 512;

fn root(nr_pages: u64, written: impl IntoIterator<Item = u64>) -> Ram {
    let layout = RamLayout::new(nr_pages * PAGE_SIZE).unwrap();
    let ram = Ram::new(layout, Backing::Memfd).unwrap();
    for page in written {
        set_page(&ram, page, page + 1);
    }
    ram
}

/// Collapses all there is; how many extents are huge now, or `None` if the host
/// does not do that.
fn collapse_all(layer: &Layer) -> Option<u64> {
    let mut collapser = layer.collapser();
    let mut huge = 0;
    while let Some(outcome) = collapser.step().unwrap() {
        match outcome {
            Collapsed::Huge => huge += 1,
            Collapsed::Unsupported => {
                eprintln!("\n*** this host does not collapse files into huge pages\n");
                return None;
            }
            Collapsed::LeftAlone | Collapsed::NotNow => {}
        }
    }
    Some(huge)
}

#[test]
fn a_fork_of_a_collapsed_layer_maps_it_in_huge_pages_and_owns_what_it_writes() {
    let mut parent = root(2 * HUGE, 0..2 * HUGE);
    let layer = freeze(&mut parent);
    let Some(huge) = collapse_all(&layer) else {
        return;
    };
    assert_eq!(huge, 2);
    let mut child = layer.fork().unwrap();
    for page in 0..2 * HUGE {
        assert_eq!(page_value(&child, page), page + 1);
    }
    let seen = Smaps::of(child.window().host_range());
    assert_eq!((seen.huge_pages, seen.pss_pages), (2 * HUGE, 2 * HUGE));
    let tree = child.tree().stats().unwrap();
    assert_eq!(
        (tree.frames(), tree.committed_file_frames),
        (2 * HUGE, 2 * HUGE)
    );

    // A page written is copied alone; its extent is mapped in pieces then.
    set_page(&child, 5, 77);
    let seen = Smaps::of(child.window().host_range());
    assert_eq!((seen.huge_pages, seen.anonymous_pages), (HUGE, 1));
    let stats = child.stats().unwrap();
    assert_eq!(stats.private_pages, 1);
    assert_eq!((page_value(&child, 5), page_value(&parent, 5)), (77, 6));

    // A frame that nobody sees any more goes out of the middle of its huge page.
    set_page(&parent, 5, 78);
    drop(layer);
    for ram in [&mut parent, &mut child] {
        ram.settle(Writers::Stopped).unwrap();
    }
    parent.tree().reclaim().unwrap();
    let tree = parent.tree().stats().unwrap();
    assert_eq!(
        (tree.file_frames, tree.private_frames),
        (2 * HUGE - 1, 2),
        "{tree:?}"
    );
    parent.tree().check_invariants();
    for page in 0..2 * HUGE {
        let wanted = |written| if page == 5 { written } else { page + 1 };
        assert_eq!(page_value(&child, page), wanted(77));
        assert_eq!(page_value(&parent, page), wanted(78));
    }
    let seen = Smaps::of(child.window().host_range());
    assert_eq!((seen.huge_pages, seen.anonymous_pages), (HUGE, 1));
    assert_eq!(seen.resident_pages, 2 * HUGE);

    let tree = std::sync::Arc::clone(parent.tree());
    drop((parent, child));
    let stats = tree.stats().unwrap();
    assert_eq!((stats.frames(), stats.committed_file_frames), (0, 0));
}

#[test]
fn an_extent_with_a_hole_is_left_alone() {
    let written = (0..3 * HUGE).filter(|page| *page != HUGE + 100);
    let mut parent = root(4 * HUGE, written);
    let layer = freeze(&mut parent);
    let before = parent.tree().stats().unwrap();
    let Some(huge) = collapse_all(&layer) else {
        return;
    };
    assert_eq!(huge, 2);
    assert_eq!(parent.tree().stats().unwrap(), before);
    parent.tree().check_invariants();
}

#[test]
fn layers_of_forks_are_collapsed_too_and_their_parents_with_them() {
    let mut parent = root(2 * HUGE, 0..HUGE);
    let first = freeze(&mut parent);
    let mut child = first.fork().unwrap();
    for page in HUGE..2 * HUGE {
        set_page(&child, page, 9000 + page);
    }
    let second = freeze(&mut child);
    let Some(huge) = collapse_all(&second) else {
        return;
    };
    assert_eq!(huge, 2);
    let grandchild = second.fork().unwrap();
    for page in 0..HUGE {
        assert_eq!(page_value(&grandchild, page), page + 1);
        assert_eq!(page_value(&grandchild, HUGE + page), 9000 + HUGE + page);
        assert_eq!(page_value(&parent, HUGE + page), 0);
    }
    assert_eq!(
        Smaps::of(grandchild.window().host_range()).huge_pages,
        2 * HUGE
    );
    drop((first, second, child));
    parent.tree().reclaim().unwrap();
    parent.tree().check_invariants();
    assert_eq!(page_value(&grandchild, 2 * HUGE - 1), 9000 + 2 * HUGE - 1);
}

/// A collapse while VMs read and write, and are reset, forked and dropped.
#[test]
fn collapsing_meanwhile_disturbs_nobody() {
    const ROUNDS: u64 = 30;
    let mut parent = root(2 * HUGE, 0..2 * HUGE);
    let layer = freeze(&mut parent);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS / 5 {
                collapse_all(&layer);
            }
        });
        for round in 0..ROUNDS {
            let mut child = layer.fork().unwrap();
            for page in (round..2 * HUGE).step_by(37) {
                assert_eq!(page_value(&child, page), page + 1);
                set_page(&child, page, round);
                assert_eq!(page_value(&child, page), round);
            }
            child.reset(&layer).unwrap();
            for page in 0..2 * HUGE {
                assert_eq!(page_value(&child, page), page + 1);
            }
        }
    });
    parent.tree().check_invariants();
    assert_eq!(parent.tree().stats().unwrap().frames(), 2 * HUGE);
}

#[test]
fn nothing_is_moved_while_many_have_it_mapped() {
    let mut parent = root(HUGE, 0..HUGE);
    let layer = freeze(&mut parent);
    let children: Vec<_> = (0..32).map(|_| layer.fork().unwrap()).collect();
    let mut collapser = layer.collapser();
    assert_eq!(collapser.step().unwrap(), Some(Collapsed::NotNow));
    drop(children);
    let last = std::iter::from_fn(|| collapser.step().unwrap()).last();
    assert!(
        matches!(last, Some(Collapsed::Huge | Collapsed::Unsupported)),
        "{last:?}"
    );
}
