//! Kernels that refuse calls: system calls of this thread, and of all its children, fail (seccomp(2)).

use std::io;

/// The refused calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// BPF links (`BPF_LINK_CREATE`): a kernel without tcx.
    Links,
    /// The call bpf(2) altogether: a locked down kernel.
    Bpf,
}

const fn statement(code: u32, value: u32) -> libc::sock_filter {
    jump(code, value, 0, 0)
}

const fn jump(code: u32, value: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: if_true,
        jf: if_false,
        k: value,
    }
}

/// Refuses it from now on, permanently.
///
/// # Errors
/// The system does not let us.
pub fn refuse(what: Refused) -> io::Result<()> {
    const BPF_LINK_CREATE: u32 = 28;
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // struct seccomp_data: number, architecture, instruction pointer, arguments.
    const NUMBER: u32 = 0;
    const FIRST_ARGUMENT: u32 = 16;
    let (errno, commands) = match what {
        // Error of a kernel that does not know the attach type.
        Refused::Links => (libc::EINVAL, Some(BPF_LINK_CREATE)),
        Refused::Bpf => (libc::EPERM, None),
    };
    let deny = statement(RETURN, libc::SECCOMP_RET_ERRNO | errno as u32);
    let allow = statement(RETURN, libc::SECCOMP_RET_ALLOW);
    let mut program = vec![statement(LOAD, NUMBER)];
    match commands {
        Some(command) => program.extend([
            jump(IF_EQUAL, libc::SYS_bpf as u32, 0, 3),
            statement(LOAD, FIRST_ARGUMENT),
            jump(IF_EQUAL, command, 0, 1),
        ]),
        None => program.push(jump(IF_EQUAL, libc::SYS_bpf as u32, 0, 1)),
    }
    program.extend([deny, allow]);
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives through the call, and its length is that of the vector.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
