//! Loading, attaching and replacing the two programs.
//!
//! From kernel 6.6 on they are pinned tcx links: they outlive the agent, and `BPF_LINK_UPDATE` replaces a program
//! between two packets. Before 6.6 they are clsact filters with a fixed priority and handle, which stay without pins
//! and are replaced by one netlink message.

use super::abi::Config;
use super::{GatewayConfig, GatewayError, Pins};
use crate::requirements::TCX;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{Link, LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use egret_kernel::clsact;
use egret_kernel::tcx;
use nix::libc;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The compiled programs.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gateway.bpf.o"));

/// Priority of our clsact filters: before all others.
const FILTER_PRIORITY: u16 = 1;
/// Handle of the gateway's clsact filters, "eg" in ASCII; it identifies a filter of ours.
const GATEWAY_HANDLE: u16 = 0x6567;
/// Handle of an uplink's clsact filters.
pub(crate) const UPLINK_HANDLE: u16 = 0x6568;
/// Added to a handle of ours for the filter that replaces another one of ours before that one is removed.
const SECOND: u16 = 0x8000;

/// Kind of attachment of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// tcx links (kernel 6.6 and later).
    Tcx = 0,
    /// clsact filters (before).
    Clsact = 1,
}

impl Attachment {
    /// The kind for this kernel.
    pub fn supported() -> Self {
        let (major, minor) = TCX;
        match KernelVersion::current() {
            Ok(version) if version >= KernelVersion::new(major, minor, 0) => Self::Tcx,
            _ => Self::Clsact,
        }
    }
}

/// One of the two programs, and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Function name in `bpf/`.
    pub program: &'static str,
    /// Direction of the packets that it sees.
    pub direction: TcAttachType,
    /// Handle of the program where it is a clsact filter.
    pub handle: u16,
    /// Name of the pinned link (no dots: bpffs refuses them).
    pub pin: &'static str,
    /// Index of its device.
    pub ifindex: u32,
}

/// Both places. The external side is attached last: no packet comes in before packets can leave.
pub(super) fn places(tunnel_ifindex: u32, external_ifindex: u32) -> [Place; 2] {
    [
        Place {
            program: "egress_in",
            direction: TcAttachType::Ingress,
            handle: GATEWAY_HANDLE,
            pin: "egress_in_link",
            ifindex: tunnel_ifindex,
        },
        Place {
            program: "external_in",
            direction: TcAttachType::Ingress,
            handle: GATEWAY_HANDLE,
            pin: "external_in_link",
            ifindex: external_ifindex,
        },
    ]
}

/// Names of the pins of both links.
pub(super) fn links(config: &GatewayConfig) -> [&'static str; 2] {
    places(config.tunnel_ifindex, config.external_ifindex).map(|place| place.pin)
}

/// Hash of [`OBJECT`].
pub fn object_hash() -> u64 {
    env!("EGRET_GATEWAY_OBJECT_HASH")
        .parse()
        .expect("build.rs writes a decimal number")
}

/// Creates or adopts the pinned maps, and loads the programs over them.
pub(super) fn load(pins: &Pins) -> Result<Ebpf, GatewayError> {
    let mut loader = EbpfLoader::new();
    // The programs need no relocation by kernel types (BTF), which take long to read.
    loader.btf(None);
    for name in super::maps::PINNED {
        loader.map_pin_path(name, pins.path(name));
    }
    let mut object = loader.load(OBJECT).map_err(GatewayError::load)?;
    for (_, program) in object.programs_mut() {
        let program: &mut SchedClassifier = program.try_into().map_err(GatewayError::load)?;
        program.load().map_err(GatewayError::load)?;
    }
    Ok(object)
}

/// Whether the pinned links (or the filters) exist and are on the right devices, so that nothing need be changed.
pub(super) fn attached(pins: &Pins, config: &GatewayConfig, attachment: u8) -> bool {
    detached(pins, config, attachment).is_none()
}

/// The first program whose link (or filter) does not exist, is elsewhere or comes after others'.
pub(super) fn detached(
    pins: &Pins,
    config: &GatewayConfig,
    attachment: u8,
) -> Option<&'static str> {
    let places = places(config.tunnel_ifindex, config.external_ifindex);
    let gone = places.into_iter().find(|place| {
        if attachment == Attachment::Clsact as u8 {
            return !is_filtered(place);
        }
        !is_linked(&pins.path(place.pin), place)
    });
    gone.map(|place| place.program)
}

/// Whether the pinned link is in its place.
pub(crate) fn is_linked(pin: &Path, place: &Place) -> bool {
    pinned(pin).is_some_and(|link| is_in_place(&link, pin, place))
}

/// Whether our filter is in its place.
pub(crate) fn is_filtered(place: &Place) -> bool {
    let filters = clsact::filters(place.ifindex, place.direction);
    filters.is_ok_and(|filters| filter_in_place(&filters, place).is_some())
}

/// Our filter that is preceded by filters of ours only. Within one priority the newest filter runs first, and one that
/// returns `TC_ACT_OK` ends the chain.
fn filter_in_place(filters: &[clsact::Filter], place: &Place) -> Option<clsact::Filter> {
    let ours = |filter: &&clsact::Filter| {
        let all = [GATEWAY_HANDLE, UPLINK_HANDLE];
        filter.priority == FILTER_PRIORITY
            && all.into_iter().flat_map(handles).any(|one| filter.has(one))
    };
    let mut first = filters.iter().take_while(ours);
    let found = first.find(|filter| handles(place.handle).into_iter().any(|one| filter.has(one)));
    found.copied()
}

/// The handles that our filter may have.
fn handles(handle: u16) -> [u16; 2] {
    [handle, handle | SECOND]
}

/// Attaches the loaded programs, or replaces those that are attached.
pub(super) fn attach(
    object: &mut Ebpf,
    pins: &Pins,
    config: &GatewayConfig,
    attachment: Attachment,
) -> Result<(), GatewayError> {
    for place in places(config.tunnel_ifindex, config.external_ifindex) {
        let program = object
            .program_mut(place.program)
            .expect("the object has both programs");
        let program: &mut SchedClassifier = program.try_into().map_err(GatewayError::load)?;
        match attachment {
            Attachment::Tcx => attach_link(program, &pins.path(place.pin), place)?,
            Attachment::Clsact => attach_filter(program, place)?,
        }
    }
    Ok(())
}

/// Attaches a program before all others, or replaces the attached one.
pub(crate) fn attach_link(
    program: &mut SchedClassifier,
    pin: &Path,
    place: Place,
) -> Result<(), GatewayError> {
    let name = device(place.ifindex)?;
    let error = |error: ProgramError| GatewayError::attach(place.program, &name, error);
    if let Some(old) = pinned(pin).filter(|old| is_in_place(old, pin, &place)) {
        let link = SchedClassifierLink::try_from(old).map_err(|_| GatewayError::ForeignPin {
            path: pin.to_owned(),
        })?;
        let id = program.attach_to_link(link).map_err(error)?;
        // The pin holds the link; this only closes our descriptor of it.
        drop(program.take_link(id).map_err(error)?);
        return Ok(());
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(&name, place.direction, order)
        .map_err(error)?;
    let link: FdLink = program
        .take_link(id)
        .map_err(error)?
        .try_into()
        .expect("made as a tcx link just now");
    // A link on another device, or after others', is removed only now that the new one is in place.
    detach_link(pin).map_err(|source| GatewayError::Pin {
        path: pin.to_owned(),
        source,
    })?;
    link.pin(pin)
        .map_err(|source| GatewayError::pin(pin, source))?;
    Ok(())
}

fn pinned(pin: &Path) -> Option<FdLink> {
    PinnedLink::from_pin(pin).ok().map(FdLink::from)
}

/// Whether the link's program is on the device (a link outlives its device, attached to nothing), and before all
/// others: another program before it may drop, rewrite or redirect packets.
fn is_in_place(link: &FdLink, pin: &Path, place: &Place) -> bool {
    let Ok(info) = link.info() else { return false };
    let Ok(ids) = tcx::program_ids(place.ifindex, place.direction) else {
        return false;
    };
    let Some(at) = ids.iter().position(|id| *id == info.program_id()) else {
        return false;
    };
    at == 0 || {
        let ours = own_programs(pin, place.ifindex);
        ids[..at].iter().all(|id| ours.contains(id))
    }
}

/// Programs of ours that may be on a device: those of all links pinned beside this one, whatever their role.
fn own_programs(pin: &Path, ifindex: u32) -> BTreeSet<u32> {
    let rooms = pin.parent().and_then(Path::parent);
    let links = ["gateway/external_in_link".to_owned()].into_iter();
    let links = links.chain(["uplink", "uplink_before"].into_iter().flat_map(|room| {
        let link = move |way| format!("{room}/{way}_{ifindex}");
        ["in", "out"].map(link)
    }));
    let links = links.filter_map(|name| pinned(&rooms?.join(name)));
    links
        .filter_map(|link| Some(link.info().ok()?.program_id()))
        .collect()
}

/// Attaches a program as a clsact filter before all others, or replaces the attached one.
pub(crate) fn attach_filter(
    program: &mut SchedClassifier,
    place: Place,
) -> Result<(), GatewayError> {
    let name = device(place.ifindex)?;
    let error = |error: ProgramError| GatewayError::attach(place.program, &name, error);
    // Fails where the qdisc exists already; the next call shows whether it does.
    let _exists = qdisc_add_clsact(&name);
    let there = clsact::filters(place.ifindex, place.direction).unwrap_or_default();
    let is_there = |handle: u16| there.iter().any(|filter| filter.has(handle));
    let [first, second] = handles(place.handle);
    let in_place = filter_in_place(&there, &place);
    let handle = match in_place {
        Some(filter) if filter.has(second) => second,
        Some(_) => first,
        // The newest filter precedes all others; the old one stays until the new one is there.
        None if is_there(first) => second,
        None => first,
    };
    let id = if in_place.is_some() {
        let same = filter(&name, &place, handle)
            .map_err(|source| GatewayError::attach(place.program, &name, TcError::from(source)))?;
        program.attach_to_link(same)
    } else {
        if is_there(handle) {
            remove_filter(&name, &place, handle);
        }
        let options = NlOptions {
            priority: FILTER_PRIORITY,
            handle: TcHandle::new(0, handle),
            classid: None,
        };
        program.attach_with_options(&name, place.direction, TcAttachOptions::Netlink(options))
    };
    // Its destructor would detach the filter, which must outlive us.
    std::mem::forget(program.take_link(id.map_err(error)?).map_err(error)?);
    for other in [first, second] {
        if other != handle && is_there(other) {
            remove_filter(&name, &place, other);
        }
    }
    Ok(())
}

fn filter(name: &str, place: &Place, handle: u16) -> std::io::Result<SchedClassifierLink> {
    let handle = TcHandle::new(0, handle);
    SchedClassifierLink::attached(name, place.direction, FILTER_PRIORITY, handle, None)
}

fn remove_filter(name: &str, place: &Place, handle: u16) -> bool {
    matches!(filter(name, place, handle).map(Link::detach), Ok(Ok(())))
}

/// Removes our filter from its device. Returns whether there was one; a removed device took its filter along.
pub(crate) fn detach_filter(place: &Place) -> bool {
    let Ok(name) = device(place.ifindex) else {
        return false;
    };
    let removed = handles(place.handle).map(|handle| remove_filter(&name, place, handle));
    removed.contains(&true)
}

/// Detaches both programs from their devices. Returns whether anything was there.
pub(super) fn detach(pins: &Pins, config: &Config) -> Result<bool, GatewayError> {
    let mut found = false;
    for place in places(config.tunnel_ifindex, config.external_ifindex) {
        let path = pins.path(place.pin);
        let error = |source| GatewayError::Pin {
            path: path.clone(),
            source,
        };
        found |= detach_link(&path).map_err(error)?;
        if config.attachment != Attachment::Clsact as u8 {
            continue;
        }
        found |= detach_filter(&place);
    }
    Ok(found)
}

/// Detaches a pinned link and removes its pin. Returns whether there was one.
///
/// Removing the pin alone would detach it too, but later, by a kernel thread.
pub(crate) fn detach_link(path: &Path) -> std::io::Result<bool> {
    const BPF_OBJ_GET: libc::c_long = 7;
    const BPF_LINK_DETACH: libc::c_long = 34;
    /// The part of `union bpf_attr` that either command reads: pathname and flags, or link_fd in front.
    #[repr(C)]
    struct Attribute {
        first: u64,
        rest: [u32; 2],
    }
    let call = |command: libc::c_long, attribute: &Attribute| {
        let size = std::mem::size_of::<Attribute>();
        // SAFETY: bpf(2) reads `size` bytes of the attribute, and for BPF_OBJ_GET the string that it points to, which
        // the caller keeps alive.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, attribute, size) };
        if done < 0 {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(done as i32)
        }
    };
    let name = CString::new(path.as_os_str().as_bytes())?;
    let get = Attribute {
        first: name.as_ptr() as u64,
        rest: [0; 2],
    };
    let link = match call(BPF_OBJ_GET, &get) {
        // SAFETY: the kernel has just made this descriptor for us alone.
        Ok(descriptor) => unsafe { OwnedFd::from_raw_fd(descriptor) },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut detach = Attribute {
        first: 0,
        rest: [0; 2],
    };
    // link_fd is the first 32 bits, whatever the byte order
    detach.first = u64::from_ne_bytes({
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&link.as_raw_fd().to_ne_bytes());
        bytes
    });
    // A link whose device is gone is detached already (ENOLINK).
    let _detached_already = call(BPF_LINK_DETACH, &detach);
    std::fs::remove_file(path)?;
    Ok(true)
}

fn device(ifindex: u32) -> Result<String, GatewayError> {
    match nix::net::if_::if_indextoname(ifindex) {
        Ok(name) => Ok(name.to_string_lossy().into_owned()),
        Err(_) => Err(GatewayError::NoDevice { ifindex }),
    }
}
