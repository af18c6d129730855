//! Guest programs and the environment they run in.
