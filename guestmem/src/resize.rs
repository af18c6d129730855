//! Giving a leaf another size, within the window that it was made with.

use crate::error::MemoryError;
use crate::frame::FrameSet;
use crate::layout::{PAGE_SIZE, PageIdx, RamLayout};
use crate::pages::ByPage;
use crate::room;
use crate::state::State;
use crate::tree::NodeId;
use crate::window::Writes;
use crate::zeros::map_anonymous;

/// Makes `leaf` as large as `layout` says. The pages between the old end and
/// the new one read zero afterwards, whichever way it went: somebody with an
/// older, larger window may have written there meanwhile.
pub(crate) fn resize(
    state: &mut State,
    leaf: NodeId,
    layout: RamLayout,
) -> Result<(), MemoryError> {
    let State {
        tree,
        arena,
        leaves,
        ..
    } = state;
    let at_leaf = leaves.get_mut(&leaf).expect("a leaf has a window");
    let most = at_leaf.window.mapping().nr_pages();
    if layout.nr_pages() > most {
        return Err(MemoryError::BeyondWindow {
            wanted_bytes: layout.size_bytes(),
            most_bytes: most * PAGE_SIZE,
        });
    }
    let (old, new) = (tree.node(leaf).nr_pages(), layout.nr_pages());
    if old == new {
        return Ok(());
    }
    at_leaf.edits += 1;
    let mut freed = FrameSet::default();
    // The window of root RAM shows the frames: none may go astray.
    freed.reserve(1)?;
    match at_leaf.window.writes() {
        Writes::ToFile if new > old => freed.add_run(old..new),
        Writes::ToFile => {} // what is freed below is what the window shows
        Writes::Private if new > old => map_anonymous(at_leaf, &(PageIdx(old)..PageIdx(new)))?,
        Writes::Private => {
            let lost = PageIdx(new)..PageIdx(old);
            let held = room::collect(tree.node(leaf).list.runs_in(new..old))?;
            tree.resize(leaf, new, &mut freed)?;
            at_leaf.copies.forget(lost.clone());
            if let Err(error) = map_anonymous(at_leaf, &lost) {
                // Private pages cover what is freed beneath them just as well.
                log::debug!("pages behind the new end stay in the window: {error}");
                let held = held.iter().map(|run| run.start..run.end);
                let held = held.flat_map(|run| run.step_by(PAGE_SIZE as usize));
                held.for_each(|offset| at_leaf.window.page(PageIdx::containing(offset)).clear());
            }
        }
    }
    tree.resize(leaf, new, &mut freed)?;
    arena.free(freed);
    Ok(())
}
