//! A version of Egret takes over from another one whose tables have another shape. The other version is this one, with a map
//! fewer and one more; the real one is tested by the upgrade of `tests/tests/install/upgrade.rs`.

use crate::packets::{tunnelled, udp};
use crate::site::{EGRESS, OUTSIDE, OWN, Site, receive, state};
use egret_datapath::gateway::{Attachment, GatewayDriver};
use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

/// The pins have names that this version does not know, and lack one that it needs.
fn pretend_other_version(site: &Site) {
    let own = site.pins.join("gateway");
    std::fs::rename(own.join("peers"), own.join("former")).unwrap();
}

fn pins(site: &Site) -> BTreeSet<String> {
    let entries = std::fs::read_dir(site.pins.join("gateway")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Sends packets of a worker one after the other, each once the last one has arrived, until `done` and a hundred more.
fn send_until(
    (worker, tunnel, server): (UdpSocket, SocketAddr, UdpSocket),
    done: &AtomicBool,
) -> u64 {
    let (mut sent, mut after) = (0u64, 0);
    while after < 100 {
        after += usize::from(done.load(Ordering::Relaxed));
        let payload = sent.to_be_bytes();
        let packet = udp((EGRESS[0], 1024), (OUTSIDE[0], 9000), 64, &payload);
        let packet = tunnelled(11, OWN, &packet);
        worker.send_to(&packet, tunnel).unwrap();
        assert_eq!(receive(&server).0, payload);
        sent += 1;
    }
    sent
}

fn takes_over_without_loss(attachment: Attachment) {
    let mut site = Site::with(false, attachment);
    let before = pins(&site);
    let done = AtomicBool::new(false);
    let sockets = (site.worker(11), site.tunnel(), site.server(0, 9000));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_until(sockets, &done));
        for _ in 0..3 {
            pretend_other_version(&site);
            site.driver = GatewayDriver::open_with(&site.pins, &site.config, attachment).unwrap();
            assert_eq!(site.driver.version(), 0, "its own tables are empty");
            assert_eq!(site.driver.detached(&site.pins, &site.config), None);
            assert_eq!(site.driver.counters().unwrap()["out_forwarded"], 0);
            let announced = site.driver.apply(&state(false), OWN).unwrap();
            assert_eq!(
                announced.len(),
                EGRESS.len(),
                "it announces what it cannot know of"
            );
            assert_eq!(site.driver.version(), 77);
            assert_eq!(site.driver.detached(&site.pins, &site.config), None);
        }
        done.store(true, Ordering::Relaxed);
        assert!(sender.join().unwrap() > 100);
    });
    assert_eq!(pins(&site), before);
    assert!(!site.pins.join("gateway_next").exists());
    assert!(site.driver.counters().unwrap()["out_forwarded"] >= 100);
    let again = GatewayDriver::open_with(&site.pins, &site.config, attachment).unwrap();
    assert_eq!(again.version(), 77, "adopted");
}

#[test]
fn another_version_forwards_until_the_tables_of_this_one_are_filled() {
    takes_over_without_loss(Attachment::supported());
}

#[test]
fn filters_of_another_version_forward_until_then_too() {
    takes_over_without_loss(Attachment::Clsact);
}

#[test]
fn removal_before_the_takeover_leaves_nothing() {
    let mut site = Site::new();
    pretend_other_version(&site);
    site.driver = GatewayDriver::open(&site.pins, &site.config).unwrap();
    assert!(site.pins.join("gateway_next").exists());
    assert!(GatewayDriver::remove(&site.pins).unwrap());
    assert!(!site.pins.exists());
}

/// It had moved the pins whose shape differs, and not all others.
#[test]
fn an_agent_that_died_in_the_middle_of_the_takeover_leaves_what_the_next_one_completes() {
    let mut site = Site::new();
    let before = pins(&site);
    pretend_other_version(&site);
    site.driver = GatewayDriver::open(&site.pins, &site.config).unwrap();
    let next = site.pins.join("gateway_next");
    for name in ["peers", "config"] {
        std::fs::rename(next.join(name), site.pins.join("gateway").join(name)).unwrap();
    }
    std::fs::remove_file(site.pins.join("gateway/former")).unwrap();
    site.driver = GatewayDriver::open(&site.pins, &site.config).unwrap();
    site.driver.apply(&state(false), OWN).unwrap();
    assert!(!next.exists());
    assert_eq!(pins(&site), before);
    assert_eq!(site.driver.detached(&site.pins, &site.config), None);
    let done = AtomicBool::new(true);
    let sockets = (site.worker(11), site.tunnel(), site.server(0, 9000));
    assert_eq!(send_until(sockets, &done), 100);
    assert!(site.driver.counters().unwrap()["out_forwarded"] >= 100);
}
