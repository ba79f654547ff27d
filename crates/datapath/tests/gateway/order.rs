//! Foreign programs at the same hook: one before ours that passes a packet withholds it from ours.

use crate::foreign::{before_all, filter_before_all, pin, verdict, without_tcx};
use crate::packets::{tunnelled, udp, untunnelled};
use crate::site::{EGRESS, OUTSIDE, OWN, Site, receive};
use aya::programs::{SchedClassifier, TcAttachType};
use egret_core::node::{PodMap, WorkerState};
use egret_datapath::gateway::{Attachment, GatewayDriver};
use egret_datapath::uplink::UplinkDriver;
use std::path::PathBuf;

/// A packet of a worker leaves, and its answer comes back.
fn there_and_back(site: &Site) {
    let (worker, server) = (site.worker(11), site.server(0, 9000));
    let question = udp((EGRESS[0], 1024), (OUTSIDE[0], 9000), 64, b"question");
    let tunnel = site.tunnel();
    worker
        .send_to(&tunnelled(11, OWN, &question), tunnel)
        .unwrap();
    let (_, from) = receive(&server);
    server.send_to(b"answer", from).unwrap();
    assert_eq!(untunnelled(&receive(&worker).0).payload, b"answer");
}

/// A pinned foreign program that ends the chain with "pass".
fn passes(site: &Site) -> PathBuf {
    let path = site.pins.parent().unwrap().join("theirs");
    pin(&verdict(0), &path);
    path
}

fn first(device: &str) -> (u32, usize) {
    let (_, all) = SchedClassifier::query_tcx(device, TcAttachType::Ingress).unwrap();
    (all[0].id(), all.len())
}

#[test]
fn a_program_before_ours_is_found_and_ours_goes_before_it() {
    if without_tcx("a_program_before_ours_is_found_and_ours_goes_before_it") {
        return;
    }
    let mut site = Site::new();
    let theirs = passes(&site);
    for device in ["ge", "egret0"] {
        there_and_back(&site);
        assert_eq!(site.driver.detached(&site.pins, &site.config), None);
        let (ours, _) = first(device);
        let _theirs = before_all(&theirs, device, TcAttachType::Ingress);
        let (before, _) = first(device);
        assert_ne!(before, ours);
        let found = site.driver.detached(&site.pins, &site.config);
        assert!(found.is_some(), "not seen at {device}");
        site.driver = GatewayDriver::open(&site.pins, &site.config).unwrap();
        assert_eq!(site.driver.detached(&site.pins, &site.config), None);
        let (now, count) = first(device);
        assert_ne!(now, before, "theirs is first still");
        assert_eq!(count, 2, "ours and theirs");
        there_and_back(&site);
    }
}

#[test]
fn the_same_with_filters_as_before_kernel_6_6() {
    let mut site = Site::with(false, Attachment::Clsact);
    let theirs = passes(&site);
    let filters = |device: &str| {
        let args = ["filter", "show", "dev", device, "ingress"];
        let output = std::process::Command::new("tc").args(args).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        text.matches("handle 0x").count()
    };
    // Three times: ours is there under one handle, then under the other, then under the first again.
    for handle in 1..=3 {
        for device in ["ge", "egret0"] {
            there_and_back(&site);
            assert_eq!(site.driver.detached(&site.pins, &site.config), None);
            filter_before_all(&theirs, device, "ingress", handle);
            let found = site.driver.detached(&site.pins, &site.config);
            assert!(found.is_some(), "not seen at {device}");
            let again = GatewayDriver::open_with(&site.pins, &site.config, Attachment::Clsact);
            site.driver = again.unwrap();
            assert_eq!(site.driver.detached(&site.pins, &site.config), None);
            assert_eq!(
                filters(device),
                handle as usize + 1,
                "theirs and one of ours"
            );
            there_and_back(&site);
        }
    }
    assert!(GatewayDriver::remove(&site.pins).unwrap());
    assert_eq!(filters("ge"), 3);
}

/// A node may be gateway and worker, with one device for both: neither program treats the other as foreign.
#[test]
fn programs_of_both_roles_share_a_device() {
    for attachment in [Attachment::supported(), Attachment::Clsact] {
        std::thread::spawn(move || {
            let mut site = Site::with(false, attachment);
            let mut worker = WorkerState {
                reinject: ["ge".to_owned()].into(),
                ..WorkerState::default()
            };
            worker.pods = PodMap::default();
            let mut uplink = UplinkDriver::open_with(&site.pins, attachment).unwrap();
            uplink.prepare(&worker).unwrap();
            uplink.settle(&worker).unwrap();
            for _ in 0..2 {
                assert_eq!(site.driver.detached(&site.pins, &site.config), None);
                assert!(uplink.verify(true).unwrap().is_empty());
                // A newly attached program is first.
                GatewayDriver::remove(&site.pins).unwrap();
                let again = GatewayDriver::open_with(&site.pins, &site.config, attachment);
                site.driver = again.unwrap();
                let state = crate::site::state(false);
                site.driver.apply(&state, OWN).unwrap();
            }
            there_and_back(&site);
            UplinkDriver::remove(&site.pins).unwrap();
        })
        .join()
        .unwrap();
    }
}
