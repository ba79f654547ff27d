//! Traffic of which nothing may be lost while machines are taken out of service: 500 new connections a second, idle and busy
//! ones, and a stream of datagrams, with captures at the router.

use crate::three_gateways::{EGRESS, GATEWAYS, Load, SERVERS};
use anyhow::{Result, ensure};
use egret_lab::Topology;
use egret_tests::chaos::{Scene, egress, ip, wait};
use egret_tests::openings::Openings;
use egret_tests::watch::Leaving;
use std::net::SocketAddr;

/// New connections per second.
const RATE: u64 = 500;
/// Port of the server that they go to.
const OPEN_PORT: u16 = 5002;

/// All traffic, and captures at the router.
pub struct Traffic {
    load: Load,
    openings: Openings,
    leaving: Leaving,
}

impl Traffic {
    /// Starts all of it in the pod `a1`.
    ///
    /// # Errors
    /// The first packets do not come back.
    pub fn start(scene: &Scene) -> Result<Self> {
        let addresses = EGRESS.map(ip);
        let leaving = Leaving::of(scene.lab(), move |packet| {
            !addresses.contains(&packet.source)
        })?;
        let load = Load::start(scene)?;
        let targets = SERVERS.map(|server| SocketAddr::new(ip(server), OPEN_PORT));
        let openings = Openings::start(&scene.pod("a1")?, &targets, RATE)?;
        let traffic = Self {
            load,
            openings,
            leaving,
        };
        traffic.pass()?;
        Ok(traffic)
    }

    /// Waits until all kinds of traffic have gone on for a while.
    ///
    /// # Errors
    /// They stall.
    pub fn pass(&self) -> Result<()> {
        let goal = self.openings.opened() + RATE / 2;
        wait("new connections", || self.openings.opened() >= goal)?;
        self.load.pass(1)
    }

    /// Ends it. Passes if nothing was lost, reset or from a wrong source.
    ///
    /// # Errors
    /// Otherwise.
    pub fn undisturbed(self, what: &str) -> Result<()> {
        self.pass()?;
        let opened = self.openings.stop();
        println!(
            "{what}: {} connections in {:.1?}, {} with a repeated SYN, {} failed, slowest {:.0?}",
            opened.opened,
            opened.took,
            opened.repeated,
            opened.failed.len(),
            opened.slowest
        );
        let undisturbed = self.load.finish_without_loss(what);
        ensure!(opened.failed.is_empty(), "{what}: {:?}", &opened.failed[0]);
        ensure!(opened.repeated == 0, "{what}: SYNs were lost");
        let sources: Vec<_> = opened.sources.into_iter().collect();
        ensure!(sources == EGRESS.map(ip), "{what}: sources {sources:?}");
        undisturbed?;
        self.leaving.clean()
    }
}

/// A lab of this topology whose pods use all three gateways and have ports enough from the start.
///
/// # Errors
/// It does not come up.
pub fn up(test: &str, topology: &str) -> Result<Scene> {
    let scene = Scene::up(test, &Topology::from_yaml(topology)?)?;
    let mut gateway = scene.manifest("egressgateway", "default")?;
    gateway["spec"]["leases"]["initialPorts"] = 16_384.into();
    scene.put(&gateway.to_string())?;
    scene.put_ready("main", &egress("main", &EGRESS.map(ip), &[]))?;
    scene.wait_live("w1", &GATEWAYS)?;
    scene.wait_agents(&["w1", "g1", "g2", "g3"])?;
    Ok(scene)
}
