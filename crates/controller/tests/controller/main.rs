//! The controller on a directory of manifests.

mod directory;
mod one_object;
mod running;
