//! Packet marks of other components: rules that set them in the same hooks, and counters after Egret's rules.

use super::cells::Marks;
use super::labs::NodePlan;
use std::net::IpAddr;

/// Table of the stand-ins.
pub const TABLE: &str = "othermarks";

/// Bits that a component sets on the packets of a pod, and must find again.
struct Bits {
    mask: u32,
    value: u32,
}

/// Calico's whole mask. Egret uses half of it as well, so all of it is retained only on packets that are not Egret's.
const CALICO: Bits = Bits {
    mask: 0xffff_0000,
    value: 0xab5a_0000,
};

fn bits(marks: Marks) -> Option<Bits> {
    let (mask, value) = match marks {
        Marks::None => return None,
        Marks::KubeProxy => (0xc000, 0x4000),
        Marks::Calico => (0xff00_0000, 0xab00_0000),
        Marks::Cilium => (0x0f00, 0x0e00),
    };
    Some(Bits { mask, value })
}

/// The table for a node. `addresses`: those of a pod.
///
/// Marks are set before Egret's classification (-150; it is at -99) and checked after its guard (310; it is at 300).
/// kube-proxy masquerades packets with its bit; Calico clears and sets bits of Egret's mask in the forward hook.
pub fn table(node: &NodePlan, addresses: impl Fn(&str) -> Vec<IpAddr>) -> String {
    let (mut set, mut forward) = (String::new(), String::new());
    let (mut look, mut counters) = (String::new(), String::new());
    let mut add = |name: &str, device: &str, bits: &Bits| {
        let Bits { mask, value } = bits;
        set += &format!(
            "    iifname \"{device}\" meta mark set meta mark & {:#010x} | {value:#010x}\n",
            !mask
        );
        counters += &format!("  counter kept_{name} {{ }}\n  counter lost_{name} {{ }}\n");
        for address in addresses(name) {
            let family = if address.is_ipv4() { "ip" } else { "ip6" };
            let of_pod = format!("ct direction original ct original {family} saddr {address}");
            for (sign, counter) in [("==", "kept"), ("!=", "lost")] {
                look += &format!(
                    "    {of_pod} meta mark & {mask:#010x} {sign} {value:#010x} counter name \"{counter}_{name}\"\n"
                );
            }
        }
    };
    for pod in &node.pods {
        if let Some(bits) = bits(pod.marks) {
            add(&pod.name, &pod.device, &bits);
        }
        if pod.marks == Marks::Calico {
            let device = &pod.device;
            forward += &format!(
                "    iifname \"{device}\" meta mark set meta mark & 0xfff1ffff | 0x00010000\n"
            );
        }
    }
    let (name, device) = node.unselected();
    add(&name, &device, &CALICO);
    format!(
        "table inet {TABLE} {{\n{counters}\
         \x20 chain on_entry {{\n    type filter hook prerouting priority -150;\n{set}  }}\n\
         \x20 chain on_forward {{\n    type filter hook forward priority 0;\n{forward}  }}\n\
         \x20 chain on_exit {{\n    type nat hook postrouting priority 100;\n\
         \x20   meta mark & 0x00004000 == 0x00004000 masquerade\n  }}\n\
         \x20 chain behind {{\n    type filter hook postrouting priority 310;\n{look}  }}\n}}\n"
    )
}

/// Names of the pods whose packets are marked.
pub fn marked(node: &NodePlan) -> Vec<String> {
    let pods = node.pods.iter().filter(|pod| pod.marks != Marks::None);
    pods.map(|pod| pod.name.clone()).collect()
}
