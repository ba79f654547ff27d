//! One gateway with the real tunnel device and programs, between a node segment and the outside.
//!
//! ```text
//! workers (sockets on 10.0.0.11, .12, .13)                      gateway                            outside
//!         wu 10.0.0.11/24 --veth-- gu 10.0.0.2 [egret0 fe80::2] ge 203.0.113.2 --veth-- oe 203.0.113.1
//! ```
//!
//! Workers are plain UDP sockets that speak VXLAN by hand: the test makes and sees every byte of the tunnel. The
//! outside is a real kernel: it resolves neighbours, checks checksums, reassembles and learns path MTUs.

use crate::namespaces::{Net, own_bpffs, wait};
use egret_core::node::{GatewayPeers, GatewayState, Steering};
use egret_datapath::gateway::{Attachment, GatewayConfig, GatewayDriver};
use nix::libc;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// `linux/udp.h`: accept packets without checksum, as VXLAN sends them (RFC 6935).
const UDP_NO_CHECK6_RX: i32 = 102;
/// The tunnel's port.
pub const TUNNEL: u16 = 14789;
/// The egress addresses.
pub const EGRESS: [&str; 2] = ["203.0.113.100", "2001:db8:e::100"];
/// Addresses of the outside.
pub const OUTSIDE: [&str; 2] = ["203.0.113.1", "2001:db8:e::1"];
/// The gateway's own external addresses.
pub const GATEWAY: [&str; 2] = ["203.0.113.2", "2001:db8:e::2"];
/// Own tunnel index of the gateway.
pub const OWN: u16 = 2;
/// MAC of the gateway's external device.
pub const EXTERNAL_MAC: [u8; 6] = [2, 0, 0, 0, 0xee, 2];
/// MTU inside the tunnel.
pub const MTU: u32 = 1430;

/// The site of a test.
pub struct Site {
    pub workers: Net,
    pub gateway: Net,
    pub outside: Net,
    pub pins: PathBuf,
    pub config: GatewayConfig,
    pub driver: GatewayDriver,
    underlay_v6: bool,
}

/// Worker 11 has ports 1024..1088, worker 12 has 1088..1152, the gateway itself 1152..1216; worker 13 has none. Node 14
/// is unknown.
pub fn state(underlay_v6: bool) -> GatewayState {
    let steering = Steering {
        blocks: [(16, 11), (17, 12), (18, OWN)].into(),
        announce: true,
        ..Steering::default()
    };
    let workers = [11, 12, 13, OWN].map(|index| (index, underlay(underlay_v6, index)));
    GatewayState {
        external_device: "ge".to_owned(),
        addresses: EGRESS
            .iter()
            .map(|ip| (ip.parse().unwrap(), steering.clone()))
            .collect(),
        workers: BTreeMap::from(workers),
        next_hops: BTreeMap::new(),
        peers: GatewayPeers::default(),
        version: 77,
    }
}

pub fn underlay(v6: bool, index: u16) -> IpAddr {
    let text = if v6 {
        format!("fd00:1::{index}")
    } else {
        format!("10.0.0.{index}")
    };
    text.parse().unwrap()
}

impl Site {
    pub fn new() -> Self {
        Self::with(false, Attachment::supported())
    }

    pub fn with(underlay_v6: bool, attachment: Attachment) -> Self {
        let pins = own_bpffs();
        let (workers, gateway, outside) = (Net::new(), Net::new(), Net::new());
        gateway.ip(&format!(
            "link add gu type veth peer name wu netns {}",
            workers.path()
        ));
        gateway.ip(&format!(
            "link add ge address 02:00:00:00:ee:02 type veth peer name oe netns {}",
            outside.path()
        ));
        gateway.ip(
            "link add egret0 address 02:65:67:72:00:02 mtu 1430 type vxlan external dstport 14789 \
                    nolearning udp6zerocsumrx",
        );
        gateway.ip("link set egret0 addrgenmode none");
        for (net, device, addresses) in [
            (&gateway, "gu", vec!["10.0.0.2/24", "fd00:1::2/64"]),
            (&gateway, "ge", vec!["203.0.113.2/24", "2001:db8:e::2/64"]),
            (&gateway, "egret0", vec!["fe80::2/64"]),
            (&outside, "oe", vec!["203.0.113.1/24", "2001:db8:e::1/64"]),
            (&workers, "wu", vec![]),
        ] {
            net.ip(&format!("link set {device} up"));
            for address in addresses {
                net.ip(&format!("address add {address} dev {device}"));
            }
        }
        for index in [11, 12, 13, 14] {
            workers.ip(&format!("address add 10.0.0.{index}/24 dev wu"));
            workers.ip(&format!("address add fd00:1::{index}/64 dev wu"));
        }
        let index =
            |net: &Net, name: &str| net.run(|| nix::net::if_::if_nametoindex(name).unwrap());
        let config = GatewayConfig {
            tunnel_ifindex: index(&gateway, "egret0"),
            external_ifindex: index(&gateway, "ge"),
            own_index: OWN,
            tunnel_mtu: MTU,
            external_mac: EXTERNAL_MAC,
            external_v4: Some(GATEWAY[0].parse().unwrap()),
            external_v6: Some(GATEWAY[1].parse().unwrap()),
        };
        // the kernel fills in checksums instead of leaving them to hardware that does not exist
        outside.run(|| without_checksum_offload("oe"));
        for (net, device) in [
            (&gateway, "gu"),
            (&gateway, "ge"),
            (&workers, "wu"),
            (&outside, "oe"),
        ] {
            // packets that wait for a neighbour are dropped when the carrier comes late
            wait("carrier", || net.run(|| is_up(device)).then_some(()));
        }
        // this thread itself runs in the gateway from here on: it is the one with the BPF file system
        enter(&gateway);
        let mut driver = GatewayDriver::open_with(&pins, &config, attachment).unwrap();
        driver.apply(&state(underlay_v6), OWN).unwrap();
        Self {
            workers,
            gateway,
            outside,
            pins,
            config,
            driver,
            underlay_v6,
        }
    }

    /// The socket of a worker on its underlay address and the tunnel's port.
    pub fn worker(&self, index: u16) -> UdpSocket {
        let address = SocketAddr::new(underlay(self.underlay_v6, index), TUNNEL);
        self.workers.run(|| socket(address))
    }

    /// Destination of workers' tunnel packets.
    pub fn tunnel(&self) -> SocketAddr {
        SocketAddr::new(underlay(self.underlay_v6, OWN), TUNNEL)
    }

    /// A UDP socket outside, v4 for 0, v6 for 1.
    pub fn server(&self, family: usize, port: u16) -> UdpSocket {
        let address = SocketAddr::new(OUTSIDE[family].parse().unwrap(), port);
        self.outside.run(|| socket(address))
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.driver.counters().unwrap()[name]
    }

    /// Waits until a counter has this value.
    pub fn wait_counter(&self, name: &str, value: u64) {
        let start = std::time::Instant::now();
        while self.counter(name) != value {
            let all: Vec<_> = self
                .driver
                .counters()
                .unwrap()
                .into_iter()
                .filter(|c| c.1 > 0)
                .collect();
            assert!(
                start.elapsed() < crate::namespaces::PATIENCE,
                "{name} is not {value}: {all:?}"
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Site {
    /// Prints the programs' counters, which explain a failure.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let all = self.driver.counters().unwrap_or_default();
            eprintln!(
                "counters: {:?}",
                all.into_iter().filter(|c| c.1 > 0).collect::<Vec<_>>()
            );
        }
    }
}

/// Enters a namespace with this thread.
pub fn enter(net: &Net) {
    let file = std::fs::File::open(net.path()).unwrap();
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
}

fn socket(address: SocketAddr) -> UdpSocket {
    // addresses without duplicate address detection are usable at once, but the device's carrier may be missing
    let socket = wait("a socket address", || UdpSocket::bind(address).ok());
    if address.port() == TUNNEL && address.is_ipv6() {
        let on: i32 = 1;
        // SAFETY: the option takes an int, which lives through the call.
        let done = unsafe {
            let value = (&raw const on).cast();
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_UDP,
                UDP_NO_CHECK6_RX,
                value,
                4,
            )
        };
        assert_eq!(done, 0);
    }
    socket
        .set_read_timeout(Some(crate::namespaces::PATIENCE))
        .unwrap();
    socket
}

/// Receives one datagram.
pub fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 70_000];
    let (length, from) = socket.recv_from(&mut bytes).expect("a packet in time");
    bytes.truncate(length);
    (bytes, from)
}

/// Asserts that nothing waits in a socket's queue.
pub fn nothing_waits(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    let got = socket.recv(&mut [0; 2048]);
    assert_eq!(got.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    socket.set_nonblocking(false).unwrap();
}

/// Runs `ping` in a namespace.
pub fn ping(net: &Net, arguments: &str) -> bool {
    net.run(|| {
        let line = format!("-c 1 -W 1 {arguments}");
        let mut ping = std::process::Command::new("ping");
        ping.args(line.split_whitespace())
            .output()
            .unwrap()
            .status
            .success()
    })
}

/// Sets DF, or its IPv6 equivalent: never fragment, learn the path MTU.
pub fn discover_mtu(socket: &UdpSocket, family: usize) {
    let (level, option) = [
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    ][family];
    let value: i32 = libc::IP_PMTUDISC_DO;
    // SAFETY: the option takes an int, which lives through the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            4,
        )
    };
    assert_eq!(done, 0);
}

/// Path MTU of a connected socket.
pub fn path_mtu(socket: &UdpSocket, family: usize) -> i32 {
    let (level, option) = [
        (libc::IPPROTO_IP, libc::IP_MTU),
        (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    ][family];
    let (mut value, mut length): (i32, u32) = (0, 4);
    // SAFETY: value and length live through the call, and length is the size of value.
    let done = unsafe {
        let value = (&raw mut value).cast();
        libc::getsockopt(socket.as_raw_fd(), level, option, value, &raw mut length)
    };
    assert_eq!(done, 0);
    value
}

/// Raw frames of a device.
pub struct Wire {
    socket: socket2::Socket,
    address: socket2::SockAddr,
}

impl Wire {
    /// Opens a device of the current namespace.
    pub fn open(device: &str) -> Self {
        let all = (libc::ETH_P_ALL as u16).to_be();
        let socket =
            socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, None).unwrap();
        let ifindex = nix::net::if_::if_nametoindex(device).unwrap();
        // SAFETY: the storage is zeroed and larger than sockaddr_ll, which is written in full before its length is set.
        let ((), address) = unsafe {
            socket2::SockAddr::try_init(|storage, length| {
                let to: *mut libc::sockaddr_ll = storage.cast();
                (*to).sll_family = libc::AF_PACKET as u16;
                (*to).sll_protocol = all;
                (*to).sll_ifindex = ifindex as i32;
                *length = std::mem::size_of::<libc::sockaddr_ll>() as u32;
                Ok(())
            })
        }
        .unwrap();
        socket.bind(&address).unwrap();
        socket
            .set_read_timeout(Some(crate::namespaces::PATIENCE))
            .unwrap();
        Self { socket, address }
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) {
        self.socket.send_to(frame, &self.address).unwrap();
    }

    /// The next frame that `wanted` accepts.
    pub fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        use std::io::Read;
        let mut bytes = [0; 2048];
        loop {
            let length = (&self.socket).read(&mut bytes).expect("a frame in time");
            if wanted(&bytes[..length]) {
                return bytes[..length].to_vec();
            }
        }
    }
}

/// `ethtool -K DEVICE tx off`.
fn without_checksum_offload(device: &str) {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let socket = UdpSocket::bind("[::]:0").unwrap();
    let mut order: [u32; 2] = [ETHTOOL_STXCSUM, 0];
    // SAFETY: ifreq consists of integers, pointers and unions of them; all zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = order.as_mut_ptr().cast();
    // SAFETY: the request and the order that it points to live through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// The device's operational state is up.
fn is_up(device: &str) -> bool {
    let output = std::process::Command::new("ip")
        .args(["link", "show", "dev", device])
        .output();
    String::from_utf8_lossy(&output.unwrap().stdout).contains("state UP")
}
