//! Ids of the tcx programs of a device.
//!
//! The kernel returns ids to callers with `CAP_NET_ADMIN` (`BPF_PROG_QUERY`), but opens a program by its id only with
//! `CAP_SYS_ADMIN` (`bpf_prog_get_fd_by_id`). Callers need only ids, and not that capability.

use aya::programs::TcAttachType;
use nix::libc;
use std::io;

/// `BPF_PROG_QUERY` (linux/bpf.h).
const BPF_PROG_QUERY: libc::c_long = 16;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`, kernel 6.6.
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// Most programs of one device and direction, `BPF_MPROG_MAX` (kernel/bpf/mprog.c).
const MOST: usize = 64;

/// Part of `union bpf_attr` that `BPF_PROG_QUERY` reads and writes.
#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    reserved: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Ids of the programs of a device, in the order in which they run.
///
/// # Errors
/// The kernel's error: no such device, no `CAP_NET_ADMIN`, or a kernel without tcx (`EINVAL`).
pub fn program_ids(ifindex: u32, direction: TcAttachType) -> io::Result<Vec<u32>> {
    let attach_type = match direction {
        TcAttachType::Ingress => BPF_TCX_INGRESS,
        TcAttachType::Egress => BPF_TCX_EGRESS,
        TcAttachType::Custom(_) => return Err(io::ErrorKind::Unsupported.into()),
    };
    let mut ids = [0_u32; MOST];
    let mut query = Query {
        ifindex,
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    let size = std::mem::size_of::<Query>();
    // SAFETY: bpf(2) reads and writes `size` bytes of the attribute and at most `count` ids; both live until it returns.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids[..MOST.min(query.count as usize)].to_vec())
}
