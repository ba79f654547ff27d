//! Firewall rules that a CNI makes on a node: masquerade for pods that leave the cluster, and the forward policy.

use crate::layout::{HostLayout, POD_DEVICE_PREFIX};
use crate::topology::{Cni, Forward};
use ipnet::IpNet;

/// A program, its arguments and its standard input.
pub(crate) type Invocation = (&'static str, Vec<String>, String);

/// Commands that set up a host's firewall, run inside the host.
///
/// Masquerade: `-s own pod prefix`, except towards any pod of the lab. Forward policy `drop`: only traffic between pods
/// and links is accepted, by device, as CNIs do; a device that is added later is not.
pub(crate) fn commands(host: &HostLayout, pod_cidrs: &[IpNet]) -> Vec<Invocation> {
    let is_iptables = matches!(host.cni, Cni::IptablesNft | Cni::IptablesLegacy);
    if !is_iptables {
        let rules = nft(host, pod_cidrs);
        let run = ("nft", vec!["-f".to_owned(), "-".to_owned()], rules.clone());
        return if rules.is_empty() {
            Vec::new()
        } else {
            vec![run]
        };
    }
    let is_nft = host.cni == Cni::IptablesNft;
    let programs = match is_nft {
        true => [
            ("iptables-nft-restore", true),
            ("ip6tables-nft-restore", false),
        ],
        false => [
            ("iptables-legacy-restore", true),
            ("ip6tables-legacy-restore", false),
        ],
    };
    let commands = programs.into_iter().filter_map(|(program, is_v4)| {
        let rules = iptables(host, pod_cidrs, is_v4);
        (!rules.is_empty()).then(|| (program, Vec::new(), rules))
    });
    commands.collect()
}

fn of_family(cidrs: &[IpNet], is_v4: bool) -> impl Iterator<Item = &IpNet> {
    cidrs
        .iter()
        .filter(move |cidr| cidr.addr().is_ipv4() == is_v4)
}

fn iptables(host: &HostLayout, pod_cidrs: &[IpNet], is_v4: bool) -> String {
    let mut rules = String::new();
    if of_family(&host.pod_cidrs, is_v4).next().is_some() {
        rules += "*nat\n:CNI-MASQ - [0:0]\n-A POSTROUTING -j CNI-MASQ\n";
        for cidr in of_family(pod_cidrs, is_v4) {
            rules += &format!("-A CNI-MASQ -d {cidr} -j RETURN\n");
        }
        for cidr in of_family(&host.pod_cidrs, is_v4) {
            rules += &format!("-A CNI-MASQ -s {cidr} -j MASQUERADE\n");
        }
        rules += "COMMIT\n";
    }
    if host.forward == Forward::Drop {
        let pods = format!("{POD_DEVICE_PREFIX}+");
        rules += &format!(
            "*filter\n:FORWARD DROP [0:0]\n:CNI-FORWARD - [0:0]\n-A FORWARD -j CNI-FORWARD\n\
             -A CNI-FORWARD -i {pods} -o {pods} -j ACCEPT\n\
             -A CNI-FORWARD -i {pods} -o eth+ -j ACCEPT\n\
             -A CNI-FORWARD -i eth+ -o {pods} -j ACCEPT\nCOMMIT\n"
        );
    }
    rules
}

fn nft(host: &HostLayout, pod_cidrs: &[IpNet]) -> String {
    let mut chains = String::new();
    if host.cni == Cni::Nft && !host.pod_cidrs.is_empty() {
        chains +=
            "  chain cni-masq {\n    type nat hook postrouting priority srcnat; policy accept;\n";
        for (is_v4, family) in [(true, "ip"), (false, "ip6")] {
            for cidr in of_family(pod_cidrs, is_v4) {
                chains += &format!("    {family} daddr {cidr} return\n");
            }
            for cidr in of_family(&host.pod_cidrs, is_v4) {
                chains += &format!("    {family} saddr {cidr} masquerade\n");
            }
        }
        chains += "  }\n";
    }
    if host.forward == Forward::Drop {
        let pods = POD_DEVICE_PREFIX;
        chains += &format!(
            "  chain cni-forward {{\n    type filter hook forward priority filter; policy drop;\n\
             \x20   iifname \"{pods}*\" oifname {{ \"{pods}*\", \"eth*\" }} accept\n\
             \x20   iifname \"eth*\" oifname \"{pods}*\" accept\n  }}\n"
        );
    }
    if chains.is_empty() {
        chains
    } else {
        format!("table inet cni {{\n{chains}}}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::topology::Topology;

    #[test]
    fn pods_are_masqueraded_except_towards_pods() {
        let mut topology = Topology::built_in();
        topology.hosts[0].forward = Forward::Drop;
        let layout = Layout::of(&topology);
        let commands = commands(&layout.hosts[0], &layout.pod_cidrs);
        assert_eq!(commands[0].0, "iptables-nft-restore");
        let rules = &commands[0].2;
        assert!(
            rules.contains("-A CNI-MASQ -s 10.244.1.0/24 -j MASQUERADE\n"),
            "{rules}"
        );
        assert!(
            rules.contains("-A CNI-MASQ -d 10.244.3.0/24 -j RETURN\n"),
            "{rules}"
        );
        assert!(rules.contains(":FORWARD DROP"), "{rules}");
        assert!(commands[1].2.contains("-s fd00:244:1::/64"));
        let gateway = layout.host("gateway1").unwrap();
        assert!(super::commands(gateway, &layout.pod_cidrs).is_empty());
    }

    #[test]
    fn a_node_without_masquerade_still_has_its_forward_policy() {
        let mut topology = Topology::built_in();
        topology.hosts[0].forward = Forward::Drop;
        topology.hosts[0].cni = Cni::None;
        let layout = Layout::of(&topology);
        let commands = commands(&layout.hosts[0], &layout.pod_cidrs);
        assert_eq!(commands[0].0, "nft");
        assert!(!commands[0].2.contains("masq"));
    }
}
