//! Guest memory as clone trees.
