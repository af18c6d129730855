//! Ordered, page-granular map with Empty, Page and Marker slots.
