//! Lists that grow with what guests have touched, or with the depth of a tree.
//! The allocator may refuse them; then the operation is refused, and nothing
//! has changed.
//!
//! What is small whatever guests do (the handle of a VM, a window) is allocated
//! as std does it, which ends the process where not even that is to be had.

use crate::error::MemoryError;

/// Makes sure that `more` items can be appended.
pub(crate) fn reserve<T>(list: &mut Vec<T>, more: usize) -> Result<(), MemoryError> {
    let reserved = list.try_reserve(more);
    reserved.map_err(|_| MemoryError::Bookkeeping)
}

/// Appends `item`, if there is room for it.
pub(crate) fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), MemoryError> {
    reserve(list, 1)?;
    list.push(item);
    Ok(())
}

/// All of `items`, if there is room for them.
pub(crate) fn collect<T>(items: impl IntoIterator<Item = T>) -> Result<Vec<T>, MemoryError> {
    let mut list = Vec::new();
    append(&mut list, items)?;
    Ok(list)
}

/// Appends `items`, if there is room for them.
pub(crate) fn append<T>(
    list: &mut Vec<T>,
    items: impl IntoIterator<Item = T>,
) -> Result<(), MemoryError> {
    let mut items = items.into_iter();
    reserve(list, items.size_hint().0)?;
    items.try_for_each(|item| push(list, item))
}
