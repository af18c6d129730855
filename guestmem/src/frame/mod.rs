//! Frames: where page contents live, and the numbers that name them.
//!
//! ```text
//!  frame number   0 ............ root RAM ............ n │ n .. packed layers .. 2^29 │ 2^29 + page
//!  lives in       the tree's memfd, page i of RAM        │ the tree's memfd,          │ the window of the
//!                 at file page i                         │ next free pages            │ one leaf, at `page`
//! ```
//!
//! Every clone tree has one sparse memfd. Its first pages are the root's RAM,
//! each at its own offset, so that a whole VM is one mapping and stays one
//! while it is forked. Layers frozen from forks hold few pages; theirs are
//! packed one after the other behind it, so neighbours in a VM's RAM remain
//! neighbours in the file and still map as one run. One file for a whole tree
//! (instead of one a layer) means that depth costs no file descriptors and
//! that a frame keeps its number when layers merge.
//!
//! What is [flattened](crate::Flattener) lies in an image: a stretch behind root
//! RAM that is laid out as RAM is, holes and all.
//!
//! A page that a guest has written privately has no place in the file: it
//! belongs to that VM's window. Its number is its page index in the upper
//! half of the number space, so that runs of them coalesce like others.

mod arena;
mod draft;
mod images;
mod numbers;
mod stock;

pub(crate) use arena::Arena;
pub(crate) use draft::Draft;
#[cfg(any(test, fuzzing))]
pub(crate) use images::Images;
pub(crate) use images::{Bridges, ImagePin};
pub(crate) use numbers::{
    FIRST_PRIVATE, FrameHome, FrameNumbers, FrameSet, file_frame, home, is_private, private_frame,
};
pub(crate) use stock::Stock;
