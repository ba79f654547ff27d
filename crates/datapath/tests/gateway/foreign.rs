//! Foreign programs, a few instructions each: loaded by hand, and attached before ours.

use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use egret_datapath::gateway::Attachment;
use nix::libc;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One instruction (`struct bpf_insn`): operation, registers (source in the high four bits), offset, immediate.
type Instruction = (u8, u8, i16, i32);

/// `r = immediate`.
const fn set(register: u8, value: i32) -> Instruction {
    (0xb7, register, 0, value)
}

const EXIT: Instruction = (0x95, 0, 0, 0);

/// Ends with a verdict: after 0, that is `TC_ACT_OK` or `TCX_PASS`, no later program sees the packet.
pub fn verdict(value: i32) -> Vec<Instruction> {
    vec![set(0, value), EXIT]
}

/// Adds a VLAN tag with this control information to the packet, and leaves it to the next program.
pub fn tagging(tag: u16) -> Vec<Instruction> {
    const SKB_VLAN_PUSH: i32 = 18;
    let protocol = i32::from(0x8100_u16.to_be());
    vec![
        set(2, protocol),
        set(3, i32::from(tag)),
        (0x85, 0, 0, SKB_VLAN_PUSH),
        set(0, -1),
        EXIT,
    ]
}

/// Loads a program and pins it.
pub fn pin(instructions: &[Instruction], path: &Path) {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_OBJ_PIN: libc::c_long = 6;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    /// Part of `union bpf_attr` that either command reads.
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u32; 2],
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Pin {
        path: u64,
        descriptor: u32,
        flags: u32,
    }
    let bytes: Vec<u8> = instructions
        .iter()
        .flat_map(|(operation, registers, offset, immediate)| {
            let mut bytes = vec![*operation, *registers];
            bytes.extend(offset.to_ne_bytes());
            bytes.extend(immediate.to_ne_bytes());
            bytes
        })
        .collect();
    let license = c"GPL";
    let load = Load {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        count: instructions.len() as u32,
        instructions: bytes.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    let size = std::mem::size_of::<Load>();
    // SAFETY: the attribute and the memory that it points to live through the call.
    let program = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size) };
    assert!(program >= 0, "{}", std::io::Error::last_os_error());
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    let attribute = Pin {
        path: name.as_ptr() as u64,
        descriptor: program as u32,
        flags: 0,
    };
    let size = std::mem::size_of::<Pin>();
    // SAFETY: as above. The descriptor is this function's own.
    let done = unsafe {
        let done = libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &raw const attribute, size);
        libc::close(program as i32);
        done
    };
    assert!(done >= 0, "{}", std::io::Error::last_os_error());
}

/// Attaches a pinned program before all others of the device. It is detached with the value.
pub fn before_all(path: &Path, device: &str, direction: TcAttachType) -> FdLink {
    let mut program = SchedClassifier::from_pin(path).unwrap();
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(device, direction, first)
        .unwrap();
    program.take_link(id).unwrap().try_into().unwrap()
}

/// [`before_all`] as a clsact filter of the highest priority, as network plugins do it before kernel 6.6. It stays.
pub fn filter_before_all(path: &Path, device: &str, way: &str, handle: u32) {
    crate::namespaces::command(&format!(
        "tc filter add dev {device} {way} protocol all priority 1 handle {handle} bpf direct-action object-pinned {}",
        path.display()
    ));
}

/// Whether this kernel has no tcx. Then it says that the test is skipped.
pub fn without_tcx(test: &str) -> bool {
    let lacks_it = Attachment::supported() == Attachment::Clsact;
    if lacks_it {
        skipped(test, "this kernel has no tcx (Linux 6.6)");
    }
    lacks_it
}

/// Says why a test is skipped, also where the output of passing tests is not shown.
pub fn skipped(test: &str, why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "\nskipped: {test}: {why}");
}

/// Ids of the programs of a device, in the order in which they run: tcx links, or clsact filters before Linux 6.6.
pub fn attached_programs(device: &str, direction: TcAttachType) -> Vec<u32> {
    if Attachment::supported() == Attachment::Tcx {
        let (_, programs) = SchedClassifier::query_tcx(device, direction).unwrap();
        return programs.iter().map(|program| program.id()).collect();
    }
    let hook = match direction {
        TcAttachType::Ingress => "ingress",
        _ => "egress",
    };
    let mut command = std::process::Command::new("tc");
    let output = command
        .args(["filter", "show", "dev", device, hook])
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let ids = text.split(" id ").skip(1);
    ids.map(|rest| rest.split(' ').next().unwrap().parse().unwrap())
        .collect()
}
