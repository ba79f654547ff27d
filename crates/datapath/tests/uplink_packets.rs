//! The uplink programs in a real kernel. Needs root, makes its own network namespaces and BPF file systems.

#[path = "uplink/driver.rs"]
mod driver;
#[allow(dead_code)]
#[path = "gateway/foreign.rs"]
mod foreign;
#[allow(dead_code)]
#[path = "gateway/namespaces.rs"]
mod namespaces;
#[allow(dead_code)]
#[path = "gateway/packets.rs"]
mod packets;
#[path = "uplink/tags.rs"]
mod tags;
#[path = "uplink/verdicts.rs"]
mod verdicts;
