//! Programs at the tcx hooks of a device, which the tools of older distributions do not list.

use std::io::{Error, Result};

/// `BPF_PROG_QUERY` of bpf(2).
const PROG_QUERY: libc::c_int = 16;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of `enum bpf_attach_type`.
const HOOKS: [(&str, u32); 2] = [("ingress", 46), ("egress", 47)];

/// The first fields of `union bpf_attr` for `BPF_PROG_QUERY`; the kernel treats missing fields as zero.
#[repr(C)]
#[derive(Debug, Default)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_count: u32,
    padding: u32,
}

/// Number of programs at each hook of each device of the calling thread's network namespace; hooks without programs are
/// left out.
pub(super) fn programs() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for interface in nix::net::if_::if_nameindex()?.iter() {
        for (direction, hook) in HOOKS {
            let count = count(interface.index(), hook)?;
            if count > 0 {
                let name = interface.name().to_string_lossy();
                found.push(format!("{name} tcx {direction}: {count} programs"));
            }
        }
    }
    Ok(found)
}

fn count(ifindex: u32, attach_type: u32) -> Result<u32> {
    let mut query = Query {
        target_ifindex: ifindex,
        attach_type,
        ..Query::default()
    };
    // SAFETY: the pointer and size describe `query`, which outlives the call; without an array for ids the kernel only
    // writes the counters inside of it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    match result {
        0 => Ok(query.prog_count),
        // A kernel without tcx (before 6.6) has no hooks; a device without any program returns "not found".
        _ => match Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Ok(0),
            error => Err(error),
        },
    }
}
