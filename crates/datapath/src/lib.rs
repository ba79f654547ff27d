//! Carries out the desired state of one node ([`egret_core::node::NodeState`]) in the Linux kernel. It decides nothing.
//!
//! ```text
//! NodeState --node--> worker ---> nft::Table --nft--> nfnetlink (one transaction per change)
//!               |       \--route--> links, neighbours, next hops, routes, rules --> rtnetlink
//!               |--> gateway ---> two eBPF programs and their maps, or a netdev table
//!               |       \--presence--> ARP and neighbour discovery for egress addresses
//!               \--> uplink ---> eBPF programs where pods' packets leave
//! ```
//!
//! Every kernel object carries our mark (`egret_core::numbers`), and only marked objects are deleted. The exception is
//! [`legacy`], which removes what earlier systems left, at an operator's request.

pub mod canary;
pub mod classic;
pub mod drift;
mod elements;
mod forward;
pub mod gateway;
pub mod legacy;
pub mod node;
pub mod obstacle;
pub mod presence;
pub mod requirements;
pub mod route;
pub mod uplink;
pub mod worker;
