//! Other kernels: Debian's, emulated by QEMU, with this machine's file system under an overlay.
//!
//! ```text
//! packages    Debian's kernels, unpacked into the cache; nothing is installed
//! initramfs   the archive with which such a kernel starts
//! machine     an emulated machine that runs commands, and its end
//! programs    test programs of this build, run inside
//! init        first program of the machine: mounts this machine's file system
//! guest       process 1 after it: modules, then one command after the other
//! ```
//!
//! Emulation in software (TCG) is 10 to 20 times slower than this machine: see `EGRET_LAB_SLOWNESS` in `egret_lab`.

mod initramfs;
mod machine;
mod packages;
mod programs;

pub use machine::{Machine, Output};
pub use packages::{Kernel, Series};
pub use programs::{Program, Ran, demo};
