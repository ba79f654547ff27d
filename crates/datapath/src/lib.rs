//! Carries one node's desired state ([`egret_core::node::NodeState`]) out in the Linux kernel, and makes no choice.
//!
//! ```text
//! NodeState --node--> worker ---> nft::Table --nft--> nfnetlink (one transaction per change)
//!               |       \--route--> links, neighbours, next hops, routes, rules --> rtnetlink
//!               |--> gateway ---> two eBPF programs and their maps, or a netdev table
//!               |       \--presence--> ARP and neighbour discovery for egress addresses
//!               \--> uplink ---> eBPF programs where pods' packets leave
//! ```
//!
//! Every kernel object carries a mark of ours (`egret_core::numbers`), and only what carries it is ever deleted;
//! but for [`legacy`], which removes what earlier systems left, when a person asks for it.

pub mod canary;
pub mod classic;
mod clsact;
pub mod conntrack;
pub mod drift;
pub mod gateway;
pub mod legacy;
mod link;
pub mod netlink;
pub mod nft;
pub mod node;
pub mod obstacle;
pub mod presence;
pub mod requirements;
pub mod route;
pub mod sysctl;
mod tcx;
pub mod uplink;
mod veth;
pub use veth::VethError;
pub mod worker;
