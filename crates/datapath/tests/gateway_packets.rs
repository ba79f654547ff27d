//! The gateway's data path in a real kernel. Needs root, makes its own network namespaces and BPF file systems.

#[path = "gateway/answers.rs"]
mod answers;
#[path = "gateway/beyond.rs"]
mod beyond;
#[path = "gateway/driver.rs"]
mod driver;
#[allow(dead_code)]
#[path = "gateway/foreign.rs"]
mod foreign;
#[path = "gateway/lan.rs"]
mod lan;
#[path = "gateway/namespaces.rs"]
mod namespaces;
#[path = "gateway/netdev.rs"]
mod netdev;
#[path = "gateway/next_hops.rs"]
mod next_hops;
#[path = "gateway/order.rs"]
mod order;
#[path = "gateway/other_version.rs"]
mod other_version;
#[path = "gateway/own.rs"]
mod own;
#[path = "gateway/packets.rs"]
mod packets;
#[path = "gateway/presence.rs"]
mod presence;
#[path = "gateway/programs.rs"]
mod programs;
#[path = "gateway/relay.rs"]
mod relay;
#[path = "gateway/site.rs"]
mod site;
#[path = "gateway/tags.rs"]
mod tags;
#[path = "gateway/verifier.rs"]
mod verifier;
