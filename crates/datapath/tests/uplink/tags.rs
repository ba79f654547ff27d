//! Priority tags (IEEE 802.1p: VLAN 0) at the uplinks, which the stack treats as untagged.

use crate::driver::{UPLINKS, node, up, worker};
use crate::foreign::{before_all, pin, tagging, without_tcx};
use crate::namespaces::wait;
use crate::packets::{frame, udp};
use aya::programs::TcAttachType;
use egret_core::node::{DestinationRange, Verdict, WorkerState};
use egret_datapath::uplink::UplinkDriver;
use nix::libc;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const POD: &str = "10.244.1.10";
const SERVER: &str = "203.0.113.10";
/// Control information of a tag: priority 5 of no VLAN, and of VLAN 5.
const PRIORITY: u16 = 0xa000;
const VLAN: u16 = 0xa005;

/// Sends a frame out of a device.
fn send(device: &str, frame: &[u8]) {
    let index = nix::net::if_::if_nametoindex(device).unwrap();
    // SAFETY: the descriptor is new and owned by this value; the address is written in full and lives through the call.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        assert!(socket >= 0);
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = u16::from_ne_bytes([frame[12], frame[13]]);
        address.sll_ifindex = index as i32;
        let sent = libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            std::mem::size_of_val(&address) as u32,
        );
        assert_eq!(sent, frame.len() as isize);
    }
}

fn mac(device: &str) -> [u8; 6] {
    let args = ["-o", "link", "show", "dev", device];
    let output = std::process::Command::new("ip").args(args).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "link/ether");
    let bytes: Vec<u8> = words
        .nth(1)
        .expect("an Ethernet device")
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

fn all_selected() -> WorkerState {
    let mut state = worker(&UPLINKS);
    for profile in state.profiles.values_mut() {
        profile.ranges = vec![DestinationRange {
            first: "203.0.113.0".parse().unwrap(),
            last: "203.0.113.255".parse().unwrap(),
            protocol: None,
            port_first: 0,
            port_last: 65535,
            verdict: Verdict::Unavailable,
        }];
    }
    state
}

fn counted(driver: &UplinkDriver, name: &str) -> u64 {
    driver.counters().unwrap()[name]
}

#[test]
fn what_leaves_with_a_priority_tag_is_reinjected() {
    if without_tcx("what_leaves_with_a_priority_tag_is_reinjected") {
        return;
    }
    let (_net, pins) = node();
    let driver = up(&pins, &all_selected());
    let packet = udp((POD, 1000), (SERVER, 53), 64, b"question");
    let packet = frame(mac("far0"), mac("up0"), &packet);
    send("up0", &packet);
    assert_eq!(counted(&driver, "reinjected"), 1);
    for (tag, reinjected) in [(VLAN, 1), (PRIORITY, 2)] {
        let path = pins.parent().unwrap().join(format!("tagging{tag}"));
        pin(&tagging(tag), &path);
        let _tagging = before_all(&path, "up0", TcAttachType::Egress);
        send("up0", &packet);
        assert_eq!(counted(&driver, "reinjected"), reinjected, "{tag:#x}");
    }
}

#[test]
fn what_comes_with_a_priority_tag_is_remembered() {
    let (_net, pins) = node();
    let driver = up(&pins, &all_selected());
    let question = udp((SERVER, 9000), (POD, 1000), 64, b"question");
    let question = frame(mac("up0"), mac("far0"), &question);
    let answer = udp((POD, 1000), (SERVER, 9000), 64, b"answer");
    let answer = frame(mac("far0"), mac("up0"), &answer);
    let tagged = [
        &question[..12],
        &[0x81, 0],
        &PRIORITY.to_be_bytes(),
        &question[12..],
    ]
    .concat();
    // The other end's frame may be processed a moment after it was sent.
    wait("the answer to be known as one", || {
        send("far0", &tagged);
        send("up0", &answer);
        (counted(&driver, "answered") > 0).then_some(())
    });
}
