//! Faults in a running cluster while its pods send continuously; every packet is checked at the router.
//!
//! ```text
//! scene   a lab with agents, controller and server; policies applied, removed and awaited; agents restarted
//! load    selected pods that open connections, send datagrams, ping and hold long flows, both families
//! watch   captures on both sides of the router: a packet to the server has an allowed source, or is recorded
//! ```

mod load;
mod scene;
mod watch;

pub use crate::cluster::ip;
pub use load::{Kind, Load};
pub use scene::{DEADLINE, Scene, egress, program, wait, without_memory};
pub use watch::{Phase, Verdict, Watch};

/// Repetitions of every disturbance: `EGRET_TEST_REPETITIONS`, else 50.
pub fn repetitions() -> usize {
    let text = std::env::var("EGRET_TEST_REPETITIONS").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(50)
}
