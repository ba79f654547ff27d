//! Hosts with the defaults of distributions: firewalls that refuse all packets not accepted explicitly, reverse path
//! rules, a default route by router advertisement. The rules are written as the distributions write them; their own
//! programs do not run here (nft and iptables stand in for firewalld, NixOS' and RHEL's services).

use anyhow::{Context, ensure};
use egret_lab::Hurt;
use egret_lab::Topology;
use egret_lab::process::wait_for;
use egret_lab::topology::Cni;
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip};
use egret_tests::steps::Group;
use egret_tests::watch::{expect_source, wait_source};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::Value;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::process::Stdio;

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "hosts",
        up,
        steps![
            a_last_rule_that_refuses_all_is_stepped_before,
            what_rules_before_it_refuse_stays_refused,
            a_refusal_that_others_rules_follow_is_left_alone_and_told,
            an_old_table_that_refuses_all_is_told_with_its_remedy,
            rules_that_filter_reverse_paths_are_told_and_nothing_is_ready,
            the_doctor_names_what_stands_in_the_way,
            a_default_route_by_advertisement_outlives_forwarding,
        ],
    )]
}

/// One worker of each kind of firewall.
fn up() -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    for host in &mut topology.hosts {
        match host.name.as_str() {
            "worker1" => host.cni = Cni::IptablesNft,
            "worker2" => host.cni = Cni::Nft,
            "worker3" => host.cni = Cni::IptablesLegacy,
            _ => {}
        }
    }
    let cluster = Cluster::up("hosts", &topology)?;
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    Ok(cluster)
}

fn shell(cluster: &Cluster, host: &str, line: &str) -> anyhow::Result<String> {
    cluster.exec(&cluster.host(host)?, &["sh", "-ec", line])
}

/// Reason and message of a node's `ForwardBlocked`, while it is true.
fn blocked(cluster: &Cluster, host: &str) -> Option<(String, String)> {
    let object = cluster.object("egressnode", None, host)?;
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == "ForwardBlocked")?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (found["status"] == "True").then(|| (text("reason"), text("message")))
}

fn wait_blocked(cluster: &Cluster, host: &str, reason: &str) -> anyhow::Result<String> {
    let what = format!("{reason} of {host}");
    wait_for(&what, DEADLINE, || {
        blocked(cluster, host).is_some_and(|(found, _)| found == reason)
    })
    .with_context(|| format!("{:?}", blocked(cluster, host)))?;
    Ok(blocked(cluster, host).context("the condition")?.1)
}

fn wait_free(cluster: &Cluster, host: &str) -> Outcome {
    let what = format!("{host} to be free");
    wait_for(&what, DEADLINE, || blocked(cluster, host).is_none())
        .with_context(|| format!("{:?}", blocked(cluster, host)))?;
    cluster.wait_ready()
}

fn is_ready(cluster: &Cluster) -> bool {
    let status = cluster.status().unwrap_or_default();
    status["policies"][0]["ready"] == true
}

fn expect_sources(cluster: &Cluster, pod: &str) -> Outcome {
    for (server, address) in SERVERS.into_iter().zip(EGRESS) {
        wait_source(&cluster.pod(pod)?, ip(server), ip(address))?;
    }
    Ok(())
}

/// Rules of a chain in their order, without handles.
fn rules(cluster: &Cluster, host: &str, chain: &str) -> anyhow::Result<Vec<String>> {
    let text = shell(cluster, host, &format!("nft -s list chain {chain}"))?;
    let lines = text.lines().map(|line| line.trim().to_owned());
    Ok(lines.skip(3).take_while(|line| line != "}").collect())
}

/// Whether the last three rules are two of ours and then the refusal.
fn is_stepped_before(cluster: &Cluster, host: &str, chain: &str) -> anyhow::Result<bool> {
    let rules = rules(cluster, host, chain)?;
    let ours = |rule: &String| rule.contains("egret0") && rule.contains("comment \"egret\"");
    let end = rules.len().saturating_sub(3);
    let (first, last) = (&rules[end..], rules.last());
    Ok(first.len() == 3
        && first[..2].iter().all(ours)
        && last.is_some_and(|rule| rule.contains("reject")))
}

const CHAINS: [(&str, &str); 3] = [
    ("worker1", "ip filter FORWARD"),
    ("worker1", "ip6 filter FORWARD"),
    ("worker2", "inet host forward"),
];

/// As in CentOS, RHEL and Oracle images, beside the rules that let ordinary pods out.
fn a_last_rule_that_refuses_all_is_stepped_before(cluster: &Cluster) -> Outcome {
    for program in ["iptables-nft", "ip6tables-nft"] {
        let lines = format!(
            "{program} -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
             {program} -A FORWARD -o eth+ -j ACCEPT
             {program} -A FORWARD -j REJECT"
        );
        shell(cluster, "worker1", &lines)?;
    }
    let table = "nft -f - <<'END'
table inet host {
  chain forward {
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
    oifname \"eth*\" accept
    counter reject with icmpx admin-prohibited
  }
}
END";
    shell(cluster, "worker2", table)?;
    for (host, chain) in CHAINS {
        wait_for("our accepts to come before the refusal", DEADLINE, || {
            is_stepped_before(cluster, host, chain).unwrap_or(false)
        })
        .with_context(|| format!("{host} {chain}: {:#?}", rules(cluster, host, chain)))?;
    }
    for (pod, host) in [("a1", "worker1"), ("a2", "worker2")] {
        expect_sources(cluster, pod)?;
        wait_free(cluster, host)?;
    }
    Ok(())
}

/// Like a plugin's rules for a NetworkPolicy.
fn what_rules_before_it_refuse_stays_refused(cluster: &Cluster) -> Outcome {
    let server = ip(SERVERS[0]);
    let pod = cluster.pod_address("a1", server)?;
    let rule = format!("FORWARD -s {pod} -d {server} -j DROP");
    shell(cluster, "worker1", &format!("iptables-nft -I {rule}"))?;
    let refused = egret_lab::traffic::tcp_source(&cluster.pod("a1")?, echo(server));
    shell(cluster, "worker1", &format!("iptables-nft -D {rule}"))?;
    ensure!(refused.is_err(), "{refused:?}");
    expect_source(&cluster.pod("a1")?, server, ip(EGRESS[0]))
}

/// Rules after it are never reached; with an accept before it they would not be either, whatever they refuse.
fn a_refusal_that_others_rules_follow_is_left_alone_and_told(cluster: &Cluster) -> Outcome {
    let pod = cluster.pod_address("a1", ip(SERVERS[0]))?;
    let rule = format!("FORWARD -s {pod} -j DROP");
    shell(cluster, "worker1", &format!("iptables-nft -A {rule}"))?;
    let said = wait_blocked(cluster, "worker1", "RuleRefuses")?;
    for part in [
        "-j REJECT",
        "the chain FORWARD",
        "iptables-nft -I FORWARD 3 -o egret0 -j ACCEPT",
    ] {
        ensure!(said.contains(part), "{part} is not in {said}");
    }
    let there = rules(cluster, "worker1", "ip filter FORWARD")?;
    ensure!(
        !there.iter().any(|rule| rule.contains("egret")),
        "{there:#?}"
    );
    shell(cluster, "worker1", &format!("iptables-nft -D {rule}"))?;
    wait_free(cluster, "worker1")?;
    expect_sources(cluster, "a1")
}

/// The commands in the message, up to the text about the next chain.
fn remedies(said: &str) -> Vec<String> {
    let commands = said.split([';', ':']).map(str::trim);
    let of_tables = |line: &&str| line.starts_with("iptables") || line.starts_with("ip6tables");
    commands.filter(of_tables).map(str::to_owned).collect()
}

fn an_old_table_that_refuses_all_is_told_with_its_remedy(cluster: &Cluster) -> Outcome {
    for program in ["iptables-legacy", "ip6tables-legacy"] {
        let lines =
            format!("{program} -A FORWARD -o eth+ -j ACCEPT; {program} -A FORWARD -j REJECT");
        shell(cluster, "worker3", &lines)?;
    }
    // The message covers both families, in any order.
    let mut commands = Vec::new();
    let told = wait_for("four commands", DEADLINE, || {
        let said = blocked(cluster, "worker3").filter(|(reason, _)| reason == "RuleRefuses");
        commands = said.map_or_else(Vec::new, |(_, message)| remedies(&message));
        commands.len() == 4
    });
    told.with_context(|| format!("{:?}", blocked(cluster, "worker3")))?;
    wait_for("the policy not to be ready", DEADLINE, || {
        !is_ready(cluster)
    })?;
    for command in commands {
        shell(cluster, "worker3", &command)?;
    }
    wait_free(cluster, "worker3")?;
    expect_sources(cluster, "a3")
}

struct Filter {
    host: &'static str,
    /// Software that writes it.
    what: &'static str,
    add: &'static str,
    remove: &'static str,
    /// Expected text of the message.
    named: &'static str,
}

const FILTERS: [Filter; 4] = [
    Filter {
        host: "worker2",
        what: "firewalld, IPv6_rpfilter=strict",
        add: "nft add table inet firewalld
nft add chain inet firewalld mangle_PREROUTING '{ type filter hook prerouting priority mangle + 10; policy accept; }'
nft add rule inet firewalld mangle_PREROUTING icmpv6 type '{ nd-router-advert, nd-neighbor-solicit }' accept
nft add rule inet firewalld mangle_PREROUTING meta nfproto ipv6 fib saddr . mark . iif oif missing drop",
        remove: "nft delete table inet firewalld",
        named: "IPv6_rpfilter",
    },
    Filter {
        host: "worker1",
        what: "by hand, iptables-nft",
        add: "iptables-nft -t raw -A PREROUTING -m rpfilter --validmark --invert -j DROP",
        remove: "iptables-nft -t raw -F PREROUTING",
        named: "iptables-nft -t raw -I PREROUTING 1 -i egret0 -j ACCEPT",
    },
    Filter {
        host: "worker3",
        what: "NixOS by iptables-legacy",
        add: "ip6tables-legacy -t mangle -N nixos-fw-rpfilter
ip6tables-legacy -t mangle -A nixos-fw-rpfilter -m rpfilter --validmark -j RETURN
ip6tables-legacy -t mangle -A nixos-fw-rpfilter -j DROP
ip6tables-legacy -t mangle -I PREROUTING -j nixos-fw-rpfilter",
        remove: "ip6tables-legacy -t mangle -F PREROUTING
ip6tables-legacy -t mangle -F nixos-fw-rpfilter
ip6tables-legacy -t mangle -X nixos-fw-rpfilter",
        named: "checkReversePath",
    },
    Filter {
        host: "worker2",
        what: "NixOS by nftables",
        add: "nft add table inet nixos-fw
nft add chain inet nixos-fw rpfilter '{ type filter hook prerouting priority mangle + 10; policy drop; }'
nft add rule inet nixos-fw rpfilter meta nfproto ipv4 udp sport . udp dport '{ 67 . 68, 68 . 67 }' accept
nft add rule inet nixos-fw rpfilter icmpv6 type nd-router-advert accept
nft add rule inet nixos-fw rpfilter fib saddr . mark . iif oif exists accept",
        remove: "nft delete table inet nixos-fw",
        named: "checkReversePath",
    },
];

fn rules_that_filter_reverse_paths_are_told_and_nothing_is_ready(cluster: &Cluster) -> Outcome {
    for filter in &FILTERS {
        shell(cluster, filter.host, filter.add)?;
        let said =
            wait_blocked(cluster, filter.host, "ReversePathFiltered").context(filter.what)?;
        ensure!(said.contains(filter.named), "{}: {said}", filter.what);
        wait_for("the policy not to be ready", DEADLINE, || {
            !is_ready(cluster)
        })
        .context(filter.what)?;
        shell(cluster, filter.host, filter.remove)?;
        wait_free(cluster, filter.host).context(filter.what)?;
    }
    // Rules about other devices only, or about any device, are harmless.
    let harmless = "nft add table inet strict
nft add chain inet strict in '{ type filter hook prerouting priority raw; policy accept; }'
nft add rule inet strict in iifname eth0 fib saddr . iif oif missing drop
nft add rule inet strict in fib saddr oif missing drop";
    shell(cluster, "worker2", harmless)?;
    // Another node's condition is set later, so this one would be set by then.
    let filter = &FILTERS[1];
    shell(cluster, filter.host, filter.add)?;
    wait_blocked(cluster, filter.host, "ReversePathFiltered")?;
    ensure!(
        blocked(cluster, "worker2").is_none(),
        "{:?}",
        blocked(cluster, "worker2")
    );
    expect_sources(cluster, "a2")?;
    shell(cluster, filter.host, filter.remove)?;
    shell(cluster, "worker2", "nft delete table inet strict")?;
    wait_free(cluster, filter.host)
}

fn doctor(cluster: &Cluster, host: &str) -> anyhow::Result<(Vec<Value>, Option<i32>)> {
    let mut command = cluster
        .lab()
        .exec(&cluster.host(host)?, egret_tests::egret()?)?;
    let output = command.args(["doctor", "-o", "json"]).output()?;
    let answer: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let found = answer["obstacles"].as_array().cloned().context("a list")?;
    Ok((found, output.status.code()))
}

/// Kind, and whether it is certain.
fn kinds(found: &[Value]) -> Vec<(String, bool)> {
    let kind = |one: &Value| {
        (
            one["kind"].as_str().unwrap_or_default().to_owned(),
            one["certain"] == true,
        )
    };
    found.iter().map(kind).collect()
}

fn the_doctor_names_what_stands_in_the_way(cluster: &Cluster) -> Outcome {
    for host in ["worker1", "worker2", "worker3", "gateway1"] {
        let (found, code) = doctor(cluster, host)?;
        ensure!(
            found.is_empty() && code == Some(0),
            "{host}: {code:?} {found:#?}"
        );
    }
    let lines = "ip rule add priority 50 from all lookup 1000
ip rule add priority 51 fwmark 0x40000/0xf0000 lookup 1001
sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.egret0.rp_filter=1
iptables-nft -P INPUT DROP
iptables-nft -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -A INPUT -p udp --dport 14789 -s 192.168.122.0/24 -j ACCEPT
ip6tables-nft -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
ip6tables-nft -A INPUT -p ipv6-icmp -j ACCEPT
ip6tables-nft -P INPUT DROP
iptables-nft -t raw -A PREROUTING -m rpfilter --invert -j DROP";
    shell(cluster, "worker1", lines)?;
    let (found, code) = doctor(cluster, "worker1")?;
    shell(
        cluster,
        "worker1",
        "ip rule del priority 50; ip rule del priority 51
sysctl -qw net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.egret0.rp_filter=2
iptables-nft -P INPUT ACCEPT; iptables-nft -F INPUT; ip6tables-nft -P INPUT ACCEPT; ip6tables-nft -F INPUT
iptables-nft -t raw -F PREROUTING",
    )?;
    let wanted = [
        ("reverse-path-rule", true),
        ("tunnel-port", false),
        ("reverse-path-setting", true),
        ("mark-overlap", false),
        ("routing-rule", false),
    ];
    let wanted: Vec<(String, bool)> = wanted.map(|(kind, sure)| (kind.to_owned(), sure)).to_vec();
    ensure!(
        kinds(&found) == wanted && code == Some(1),
        "{code:?} {found:#?}"
    );
    // Over IPv4 the peers are accepted.
    let port = found
        .iter()
        .find(|one| one["kind"] == "tunnel-port")
        .context("it")?;
    ensure!(port["v4"] == false && port["v6"] == true, "{port:#}");
    wait_free(cluster, "worker1")
}

/// A router advertisement without options (RFC 4861 section 4.2), with this lifetime in seconds.
fn advertise(cluster: &Cluster, seconds: u16) -> Outcome {
    let send = move || -> anyhow::Result<()> {
        let mut message = vec![134, 0, 0, 0, 64, 0];
        message.extend(seconds.to_be_bytes());
        message.extend([0; 8]);
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.set_multicast_hops_v6(255)?;
        let device = nix::net::if_::if_nametoindex("eth0")?;
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let to = SocketAddrV6::new(all_nodes, 0, 0, device);
        socket.send_to(&message, &SockAddr::from(to))?;
        Ok(())
    };
    cluster.host("router")?.run(send)?
}

fn default_route(cluster: &Cluster) -> String {
    shell(cluster, "worker3", "ip -6 route show default").unwrap_or_default()
}

fn setting(cluster: &Cluster, name: &str) -> String {
    let value = shell(
        cluster,
        "worker3",
        &format!("sysctl -n net.ipv6.conf.{name}"),
    );
    value.unwrap_or_default().trim().to_owned()
}

fn cleanup(cluster: &Cluster) -> Outcome {
    cluster.lab().kill("worker3", Hurt::Agent)?;
    let program = egret_tests::egret()?;
    let words = [&*program.to_string_lossy(), "agent", "--cleanup"];
    cluster.exec(&cluster.host("worker3")?, &words)?;
    Ok(())
}

/// Notifications of the kernel about IPv6 routes while something is done on worker3.
fn routes_while(cluster: &Cluster, work: impl FnOnce() -> Outcome) -> anyhow::Result<String> {
    const MARKER: &str = "2001:db8:77::/64";
    let log = cluster.lab().dir().path().join("routes.log");
    let mut monitor = cluster.lab().exec(&cluster.host("worker3")?, "ip")?;
    monitor.args(["-6", "monitor", "route"]);
    monitor.stdout(std::fs::File::create(&log)?);
    let mut monitor = monitor.stderr(Stdio::null()).spawn()?;
    let lines =
        format!("ip -6 route replace unreachable {MARKER}; ip -6 route del unreachable {MARKER}");
    let listens = wait_for("the monitor to listen", DEADLINE, || {
        let _ = shell(cluster, "worker3", &lines);
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains(MARKER))
    });
    let done = listens.map_err(anyhow::Error::from).and_then(|()| work());
    monitor.kill()?;
    monitor.wait()?;
    done?;
    Ok(std::fs::read_to_string(&log)?)
}

/// A host with `accept_ra` 1 that learned its router from the network; the agent enables forwarding.
fn a_default_route_by_advertisement_outlives_forwarding(cluster: &Cluster) -> Outcome {
    cleanup(cluster)?;
    let as_a_host = "sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.eth0.accept_ra=1
ip -6 route del default";
    shell(cluster, "worker3", as_a_host)?;
    wait_for("a default route by advertisement", DEADLINE, || {
        let sent = advertise(cluster, 1800);
        sent.is_ok() && default_route(cluster).contains("proto ra")
    })?;
    let told = routes_while(cluster, || {
        cluster.lab().start("worker3")?;
        let forwards = || setting(cluster, "all.forwarding") == "1";
        wait_for("forwarding to be turned on", DEADLINE, forwards)?;
        Ok(())
    })?;
    let is_loss = |line: &str| line.starts_with("Deleted default") && line.contains("proto ra");
    ensure!(!told.lines().any(is_loss), "{told}");
    let route = default_route(cluster);
    ensure!(
        route.contains("proto ra"),
        "the default route is gone: {route:?}"
    );
    ensure!(
        setting(cluster, "eth0.accept_ra") == "2",
        "accept_ra of eth0"
    );
    // Loopback and pods' devices accept no router advertisements that they did not accept before.
    ensure!(
        setting(cluster, "egret0.accept_ra") != "2",
        "accept_ra of egret0"
    );
    wait_for("the next advertisement to be heard", DEADLINE, || {
        let seconds = |text: &str| {
            text.split("expires ")
                .nth(1)?
                .split("sec")
                .next()?
                .parse()
                .ok()
        };
        let sent = advertise(cluster, 9000);
        sent.is_ok() && seconds(&default_route(cluster)).is_some_and(|left: u32| left > 1800)
    })?;
    expect_sources(cluster, "a3")?;
    cleanup(cluster)?;
    let put_back = (
        setting(cluster, "all.forwarding"),
        setting(cluster, "eth0.accept_ra"),
    );
    ensure!(put_back == ("0".into(), "1".into()), "{put_back:?}");
    ensure!(
        default_route(cluster).contains("proto ra"),
        "cleanup has taken the route"
    );
    Ok(())
}
