//! The effort of the kernel's verifier to accept the programs.

use crate::foreign::skipped;
use aya::programs::SchedClassifier;
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use nix::libc;
use std::io::Write;

/// Most instructions that the verifier may process per program. A kernel refuses at a million. This one prunes paths
/// that it has already verified, which kernels before 6.3 do less: there, one function that was verified anew for each
/// of its calls turned 32,000 into a million.
const VERIFIED_MAX: u32 = 10_000;

const OBJECTS: [(&str, &[u8]); 2] = [
    ("gateway", egret_datapath::gateway::OBJECT),
    ("uplink", egret_datapath::uplink::OBJECT),
];

fn load(object: &[u8]) -> Ebpf {
    let mut object = EbpfLoader::new().btf(None).load(object).unwrap();
    for (_, program) in object.programs_mut() {
        let program: &mut SchedClassifier = program.try_into().unwrap();
        program.load().unwrap();
    }
    object
}

#[test]
fn the_verifier_goes_through_few_instructions() {
    for (name, object) in OBJECTS {
        for (program, loaded) in load(object).programs() {
            let count = loaded.info().unwrap().verified_instruction_count();
            // println output of a passing test is not shown.
            let line = format!("\n{name} {program}: processed {count:?} insns");
            let _ = writeln!(std::io::stdout(), "{line}");
            assert!(count.is_none_or(|count| count <= VERIFIED_MAX), "{line}");
        }
    }
}

/// Drops this thread's capabilities for which the verifier lets programs read memory that they have not written. No
/// kernel before 6.3 allows that, so this stands in for such a kernel.
fn like_an_older_verifier() {
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_PERFMON: u32 = 38;
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    // effective, permitted, inheritable; low half, high half
    let mut sets = [0_u32; 6];
    // SAFETY: both calls take a header and two sets of three words each, which live through them.
    unsafe {
        let done = libc::syscall(libc::SYS_capget, &raw const header, &raw mut sets);
        assert_eq!(done, 0);
        for capability in [CAP_SYS_ADMIN, CAP_PERFMON] {
            let half = (capability / 32) as usize * 3;
            for set in &mut sets[half..half + 3] {
                *set &= !(1 << (capability % 32));
            }
        }
        let done = libc::syscall(libc::SYS_capset, &raw const header, &raw const sets);
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

#[test]
fn programs_read_nothing_that_they_have_not_written() {
    if KernelVersion::current().unwrap() < KernelVersion::new(6, 3, 0) {
        // Without capabilities, its verifier also follows fewer jumps than these programs have.
        let test = "programs_read_nothing_that_they_have_not_written";
        skipped(test, "this verifier is one (before Linux 6.3)");
        return;
    }
    std::thread::spawn(|| {
        like_an_older_verifier();
        for (_, object) in OBJECTS {
            load(object);
        }
    })
    .join()
    .unwrap();
}
