//! Leftovers of earlier egress systems on a node, made by those systems' commands, rewritten; and objects of other
//! software.
//!
//! Shell scripts: `$T` is the iptables program, `$R` the root of files. Findings of each kind of `egret doctor` are
//! counted.

use crate::{Cluster, egret};
use anyhow::Context;
use serde_json::Value;

/// Files of the systems are below this: a host of the lab shares `/etc` with the machine.
pub const ROOT: &str = "/run/doctor";

/// Objects of other software. Every built-in chain that the leftovers use has an entry, so that the chain exists
/// before.
pub const OTHERS: &str = "
$T -t nat -N KUBE-SERVICES
$T -t nat -N KUBE-POSTROUTING
$T -t nat -N KUBE-MARK-MASQ
$T -t nat -N EGRESS
$T -t nat -A EGRESS -s 10.244.0.0/16 -j MARK --set-mark 64/64
$T -t nat -A PREROUTING -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES
$T -t nat -A POSTROUTING -m comment --comment 'kubernetes postrouting rules' -j KUBE-POSTROUTING
$T -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
$T -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
$T -t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
$T -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully
$T -t nat -A POSTROUTING -s 10.244.1.10/32 -o eth0 -m mark --mark 64/64 -j SNAT --to-source 192.168.122.240
$T -t filter -N cali-FORWARD
$T -t filter -A FORWARD -m comment --comment cali:wUHhoiAYhphO9Mso -j cali-FORWARD
$T -t filter -A cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT
$T -t filter -A cali-FORWARD -s 192.0.2.0/24 -c 7 700 -j ACCEPT
ipset create cali40masq-ipam-pools hash:net
ipset create EGRESS-IP-short hash:ip
ipset add EGRESS-IP-short 10.244.9.9
$T -t nat -A POSTROUTING -m set --match-set cali40masq-ipam-pools src -j MASQUERADE
$T -t nat -A POSTROUTING -m set --match-set EGRESS-IP-short src -j ACCEPT
$T -t mangle -N KUBE-VIP-EGRESS
$T -t mangle -A PREROUTING -j KUBE-VIP-EGRESS
$T -t mangle -A KUBE-VIP-EGRESS -s 10.244.1.10/32 -j MARK --set-mark 64/64
$T -t mangle -A FORWARD -i eth0 -o eth0 -p tcp -j MARK --set-mark 64/64
$T -t mangle -A OUTPUT -d 192.0.2.77/32 -j MARK --set-mark 1000
ip rule add priority 9 fwmark 0x200/0xf00 lookup 2004
ip rule add priority 32764 fwmark 1000/0xffff lookup 99
ip rule add priority 300 fwmark 64 lookup 100
ip route add 198.51.100.0/24 via 192.168.122.1 table 99
ip route add default via 192.168.122.1 table 100
ip link add tun19216812221 type veth peer name tun1
ip address add 192.168.122.240/32 dev eth0
mkdir -p $R/etc/iproute2/rt_tables.d $R/etc/cni/net.d $R/opt/cni/bin $R/run/netns
printf '255 local\\n254 main\\n990 kube-static-egress-ip\\n' > $R/etc/iproute2/rt_tables
echo '77 egress' > $R/etc/iproute2/rt_tables.d/other.conf
echo '{\"name\": \"k\", \"cniVersion\": \"1.0.0\", \"plugins\": [{\"type\": \"calico\"}]}' > $R/etc/cni/net.d/10-calico.conflist
touch $R/opt/cni/bin/calico $R/run/xtables.lock
";

/// The node of an address and, as the gateway, of its replies; GRE devices cannot be created here.
pub const STATIC_EGRESS_IP: &str = "
S=EGRESS-IP-ABCDEFGHIJKLMNO7
$T -t filter -N STATIC-EGRESS-FORWARD-CHAIN
$T -t filter -A FORWARD -j STATIC-EGRESS-FORWARD-CHAIN
$T -t nat -N STATIC-EGRESS-NAT-CHAIN
$T -t nat -I POSTROUTING 1 -j STATIC-EGRESS-NAT-CHAIN
echo '99 kube-static-egress-ip' >> $R/etc/iproute2/rt_tables
ip rule add prio 32764 fwmark 1000 lookup 99
$T -t nat -N STATIC-EGRESS-BYPASS-CNI
$T -t nat -I POSTROUTING 1 -j STATIC-EGRESS-BYPASS-CNI
ipset create $S hash:ip family inet hashsize 1024 maxelem 65536 timeout 0
ipset add $S 10.244.1.12
$T -t mangle -I PREROUTING 1 -m set --match-set $S src -d 203.0.113.99 -j MARK --set-mark 1000
$T -t nat -A STATIC-EGRESS-BYPASS-CNI -m set --match-set $S src -d 203.0.113.99 -j ACCEPT
$T -t filter -A STATIC-EGRESS-FORWARD-CHAIN -m set --match-set $S src -d 203.0.113.99 -j ACCEPT
$T -t nat -I STATIC-EGRESS-NAT-CHAIN 1 -m set --match-set $S src -d 203.0.113.99 -j SNAT --to-source 192.168.122.230
$T -t mangle -I PREROUTING 1 -s 203.0.113.99 -d 192.168.122.230 -j MARK --set-mark 1000
ip address add 192.168.122.230/32 dev eth0
";
/// Jumps and rules, chains, set, routing rule, table's name, address.
pub const STATIC_EGRESS_IP_KINDS: [(&str, usize); 6] = [
    ("rule", 8),
    ("chain", 3),
    ("set", 1),
    ("routing-rule", 1),
    ("table-name", 1),
    ("address", 1),
];

/// Both versions at once: number 64 as in the first one, number 65 with mappings.
pub const KUBE_EGRESS: &str = "
$T -t mangle -N EGRESS
$T -t mangle -A EGRESS -d 10.32.0.0/12 -j RETURN
$T -t mangle -A EGRESS -d 10.96.0.0/12 -j RETURN
$T -t mangle -A EGRESS -s 10.250.0.0/16 -j MARK --set-mark 64/64
$T -t mangle -A EGRESS -s 10.251.0.7 -j MARK --set-mark 65
$T -t mangle -A PREROUTING -j EGRESS
$T -t mangle -A FORWARD -i eth0 -o eth0 -j MARK --set-mark 64/64
$T -t nat -I POSTROUTING -o eth0 -m mark --mark 64/64 -j SNAT --to 192.168.122.231
$T -t mangle -N EGRESS_FWD_192.168.122.232
$T -t mangle -A FORWARD -j EGRESS_FWD_192.168.122.232
$T -t mangle -A EGRESS_FWD_192.168.122.232 -s 10.251.0.7 -i eth0 -o eth0 -j MARK --set-mark 65
$T -t nat -N EGRESS_POST
$T -t nat -I POSTROUTING -j EGRESS_POST
$T -t nat -N EGRESS_POST_192.168.122.232
$T -t nat -I EGRESS_POST -j EGRESS_POST_192.168.122.232
$T -t nat -A EGRESS_POST_192.168.122.232 -o eth0 -m mark --mark 65/255 -j SNAT --to 192.168.122.232
$T -t nat -A EGRESS_POST -m mark --mark 65/255 -j ACCEPT
echo '64 egress' > $R/etc/iproute2/rt_tables.d/egress.conf
echo '65 egress_65' > $R/etc/iproute2/rt_tables.d/egress_65.conf
ip route add default via 192.168.122.231 dev eth0 table 64
ip route add default via 192.168.122.232 dev eth0 table 65
ip rule add fwmark 64 lookup 64
ip rule add fwmark 65 lookup 65
ip address add 192.168.122.232/32 dev eth0
";
/// Expected findings of kube-egress.
pub const KUBE_EGRESS_KINDS: [(&str, usize); 5] = [
    ("rule", 13),
    ("chain", 4),
    ("routing-rule", 2),
    ("route", 2),
    ("file", 2),
];
/// Expected findings of its keepalived.
pub const KEEPALIVED_KINDS: [(&str, usize); 1] = [("address", 1)];

/// kube-egress-gateway, without WireGuard, which cannot be created here.
pub const KUBE_EGRESS_GATEWAY: &str = "
ip link add host-gateway type veth peer name host0
ip link set host-gateway up
ip route add 192.168.122.233/32 dev host-gateway
ip address add 192.168.122.234/32 dev eth0 label eth0:egress
$T -t nat -N EGRESS-GATEWAY-SNAT
$T -t nat -I POSTROUTING -m comment --comment 'kube-egress-gateway no MASQUERADE' -j EGRESS-GATEWAY-SNAT
$T -t nat -N EGRESS-192-168-122-233
$T -t nat -I EGRESS-GATEWAY-SNAT -m comment --comment 'kube-egress-gateway no sNAT packet' -j EGRESS-192-168-122-233
$T -t nat -A EGRESS-192-168-122-233 -s 192.168.122.233/32 -j ACCEPT
touch $R/run/netns/ns-static-egress-gateway
unshare --net=$R/run/netns/ns-static-egress-gateway true
echo '{\"name\": \"k\", \"cniVersion\": \"1.0.0\", \"plugins\": [{\"type\": \"calico\"}, {\"type\": \"kube-egress-cni\"}]}' > $R/etc/cni/net.d/01-egressgateway.conflist
touch $R/opt/cni/bin/kube-egress-cni $R/opt/cni/bin/kube-egress-cni-ipam
";
/// Expected findings of kube-egress-gateway.
pub const KUBE_EGRESS_GATEWAY_KINDS: [(&str, usize); 7] = [
    ("rule", 3),
    ("chain", 2),
    ("route", 1),
    ("device", 1),
    ("address", 1),
    ("namespace", 1),
    ("file", 3),
];

/// The complete script for one kind of iptables.
pub fn script(program: &str, lines: &str) -> String {
    format!("set -e\nexport PATH=$PATH:/usr/sbin:/sbin\nT=\"{program} -w\" R={ROOT}\n{lines}")
}

/// Output of `egret doctor` on a node, and its exit code.
///
/// # Errors
/// Its output is not JSON.
pub fn ask(
    cluster: &Cluster,
    node: &str,
    arguments: &[&str],
) -> anyhow::Result<(Value, Option<i32>)> {
    let mut command = cluster.lab().exec(&cluster.host(node)?, egret()?)?;
    command
        .args(["doctor", "--root", ROOT, "-o", "json"])
        .args(arguments);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let json = serde_json::from_slice(&output.stdout);
    Ok((json.with_context(|| said)?, output.status.code()))
}

/// Number of findings of one kind of a system.
pub fn count(answer: &Value, field: &str, system: &str, kind: &str) -> usize {
    let all = answer[field].as_array().cloned().unwrap_or_default();
    let same = |one: &&Value| one["system"] == system && one["kind"] == kind;
    all.iter().filter(same).count()
}
