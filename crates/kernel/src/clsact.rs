//! clsact filters of a device, in the order in which they run.

use crate::netlink::{NetlinkError, NetlinkSocket, Request, attributes};
use aya::programs::TcAttachType;
use nix::libc;

const RTM_GETTFILTER: u16 = 46;
/// Size of `struct tcmsg` (linux/rtnetlink.h).
const HEADER_BYTES: usize = 20;
const TCA_CHAIN: u16 = 11;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`, and the same for egress.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// One filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Priority; lower ones run first.
    pub priority: u16,
    handle: u32,
}

impl Filter {
    /// Whether the filter has this handle.
    pub fn has(&self, handle: u16) -> bool {
        self.handle == u32::from(handle)
    }
}

/// Filters of a device in the order in which packets pass them: by priority, within one the newest first.
///
/// # Errors
/// The kernel's error: no such device, or no clsact qdisc there.
pub fn filters(ifindex: u32, direction: TcAttachType) -> Result<Vec<Filter>, NetlinkError> {
    let parent = match direction {
        TcAttachType::Ingress => INGRESS,
        TcAttachType::Egress => EGRESS,
        TcAttachType::Custom(parent) => parent,
    };
    let fields = [0, ifindex, 0, parent, 0];
    let request = Request {
        kind: RTM_GETTFILTER,
        flags: 0,
        body: fields.into_iter().flat_map(u32::to_ne_bytes).collect(),
        what: "filters of a device".into(),
    };
    let replies = NetlinkSocket::open(libc::NETLINK_ROUTE)?.dump(&request)?;
    Ok(replies
        .iter()
        .filter_map(|reply| read(&reply.body))
        .collect())
}

/// Parses a filter of chain 0, with which every packet begins. A message without handle represents all filters of one
/// priority.
fn read(body: &[u8]) -> Option<Filter> {
    let number = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let (handle, info) = (number(8)?, number(16)?);
    let mut further = attributes(body.get(HEADER_BYTES..)?).filter(|(kind, _)| *kind == TCA_CHAIN);
    let in_chain = further.any(|(_, value)| value.iter().any(|byte| *byte != 0));
    (handle != 0 && !in_chain).then_some(Filter {
        priority: (info >> 16) as u16,
        handle,
    })
}
