//! Drift is repaired within a second, counted and logged by name, without one packet with a wrong source meanwhile. A
//! restarted agent adopts the kernel state: group numbers, next hops, rules, routes and ranges stay unchanged.

use anyhow::{Result, ensure};
use egret_lab::{Snapshot, Topology};
use egret_tests::chaos::{DEADLINE, Load, Phase, Scene, Watch, egress, ip, wait, without_memory};
use egret_tests::steps::Group;
use egret_tests::tests;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub fn groups() -> Vec<Group> {
    tests![
        damage_is_mended_and_nothing_leaves_wrong_meanwhile,
        damage_at_a_gateway_is_mended_and_nothing_leaves_wrong_meanwhile,
        a_restarted_agent_adopts_what_is_there
    ]
}

const SERVERS: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
const EGRESS: [&str; 2] = ["192.168.122.222", "fd00:122::222"];
/// The promise is a second: a tick of half a second detects it at the latest. The rest is for a busy machine, which may
/// also try the same damage once more.
const MENDED_WITHIN: Duration = Duration::from_secs(2);
/// Missing programs are loaded again, and the verifier takes half a second for each, more on a busy machine.
const LOADED_WITHIN: Duration = Duration::from_secs(4);
/// Longest wait for a whole snapshot to equal the initial one: taking one takes long.
const SAME_WITHIN: Duration = Duration::from_secs(20);

const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64],
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: wg1, roles: [worker, gateway], links: [{segment: nodes}], podCidrs: [10.244.2.0/24, fd00:244:2::/64], cni: nft,
   forward: drop, pods: [{name: a2, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: clock, links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

/// A foreign change.
#[derive(Clone, Copy)]
struct Damage {
    /// Name for people.
    what: &'static str,
    /// Kind under which it is counted.
    kind: &'static str,
    /// Shell line that makes the change.
    line: &'static str,
    /// Shell line whose output is the same before the change and after the repair.
    look: &'static str,
    /// Text that the agent's log must contain.
    named: &'static str,
}

const LINK: &str = "ip -o link show egret0 | sed 's/^[0-9]*//'";
const HOPS: &str = "ip nexthop show proto 79";

/// Changes on a worker.
const DAMAGE: [Damage; 15] = [
    Damage {
        what: "the tunnel device",
        kind: "device",
        line: "ip link delete egret0",
        look: LINK,
        named: "egret0 is ",
    },
    Damage {
        what: "the tunnel device down",
        kind: "device",
        line: "ip link set egret0 down",
        look: LINK,
        named: "egret0 is down",
    },
    Damage {
        what: "the tunnel's MTU",
        kind: "device",
        line: "ip link set egret0 mtu 1300",
        look: LINK,
        named: "egret0 has MTU 1300",
    },
    Damage {
        what: "the tunnel's address",
        kind: "device",
        line: "ip address delete 169.254.77.1/32 dev egret0",
        look: "ip -o -4 address show dev egret0",
        named: "egret0 lacks the address 169.254.77.1",
    },
    Damage {
        what: "all next hops",
        kind: "nexthops",
        line: "ip nexthop flush proto 79",
        look: HOPS,
        named: "next hop 0x0e6",
    },
    Damage {
        what: "the routes of a group, IPv4",
        kind: "routes",
        line: "ip -4 route delete default table 14791",
        look: "ip -4 route show table 14791",
        named: "table 14791: 0.0.0.0/0",
    },
    Damage {
        what: "the routes of a group, IPv6",
        kind: "routes",
        line: "ip -6 route delete default table 14791",
        look: "ip -6 route show table 14791",
        named: "table 14791: ::/0",
    },
    Damage {
        what: "a route to a group that others made another of",
        kind: "routes",
        line: "ip -4 route replace unreachable default table 14791 metric 1024 proto 79",
        look: "ip -4 route show table 14791",
        named: "table 14791: 0.0.0.0/0 metric 1024 to next hop group",
    },
    Damage {
        what: "the rules, IPv4",
        kind: "rules",
        line: "while ip -4 rule delete priority 79 2>/dev/null; do :; done",
        look: "ip -4 rule show priority 79",
        named: "rule IPv4 mark",
    },
    Damage {
        what: "the rules, IPv6",
        kind: "rules",
        line: "while ip -6 rule delete priority 79 2>/dev/null; do :; done",
        look: "ip -6 rule show priority 79",
        named: "rule IPv6 mark",
    },
    Damage {
        what: "the neighbours of the tunnel",
        kind: "neighbours",
        line: "ip -6 neigh flush dev egret0 nud permanent",
        look: "ip -6 neigh show dev egret0 nud permanent",
        named: "neighbour fe80::",
    },
    Damage {
        what: "forwarding of IPv4",
        kind: "sysctls",
        line: "sysctl -qw net.ipv4.ip_forward=0",
        look: "sysctl -n net.ipv4.ip_forward",
        named: "net.ipv4.ip_forward is 0, not 1",
    },
    Damage {
        what: "forwarding of IPv6",
        kind: "sysctls",
        line: "sysctl -qw net.ipv6.conf.all.forwarding=0",
        look: "sysctl -n net.ipv6.conf.all.forwarding",
        named: "net.ipv6.conf.all.forwarding is 0, not 1",
    },
    Damage {
        what: "the hash over ports",
        kind: "sysctls",
        line: "sysctl -qw net.ipv4.fib_multipath_hash_policy=0",
        look: "sysctl -n net.ipv4.fib_multipath_hash_policy",
        named: "net.ipv4.fib_multipath_hash_policy is 0, not 1",
    },
    Damage {
        what: "the accept in another's forward chain",
        kind: "forwarding",
        line: "for handle in $(nft -a list chain inet cni cni-forward | sed -n 's/.*comment \"egret\" # handle //p'); do \
               nft delete rule inet cni cni-forward handle $handle; done",
        look: "nft -s list chain inet cni cni-forward",
        named: "an accept of ours",
    },
];

/// Directory of the programs, and the addresses in the steering table (their announcers may have changed).
const GATEWAY: &str = "cd /sys/fs/bpf/egret/gateway
    for link in egress_in_link external_in_link; do
        bpftool link show pinned $link | grep -o 'prog [0-9]*\\|ifindex [a-z0-9]*' | sed 's/prog .*/a program/'
    done
    bpftool map dump pinned steering -j | grep -o '\"key\":.\"0x[^]]*' | sort";

/// Changes on a gateway.
const GATEWAY_DAMAGE: [Damage; 4] = [
    Damage {
        what: "the program at the external device",
        kind: "programs",
        line: "bpftool link detach pinned /sys/fs/bpf/egret/gateway/external_in_link",
        look: GATEWAY,
        named: "external_in is not attached",
    },
    Damage {
        what: "the pin of the program at the tunnel",
        kind: "programs",
        line: "rm /sys/fs/bpf/egret/gateway/egress_in_link",
        look: GATEWAY,
        named: "egress_in is not attached, or not before the programs of others, or its pin is gone",
    },
    Damage {
        what: "all pins",
        kind: "programs",
        // In one step: the agent may verify in between.
        line: "mv /sys/fs/bpf/egret/gateway /sys/fs/bpf/egret/removed && rm -r /sys/fs/bpf/egret/removed",
        look: GATEWAY,
        named: "a pinned map is gone",
    },
    Damage {
        what: "the steering of an address",
        kind: "tables",
        line: "bpftool map delete pinned /sys/fs/bpf/egret/gateway/steering key hex \
         $(bpftool map dump pinned /sys/fs/bpf/egret/gateway/steering -j | tr -d '\",[]\\n' | sed 's/.*key:\\(\\(0x..\\)\\{16\\}\\).*/\\1/; s/0x/ /g')",
        look: GATEWAY,
        named: "steering of ",
    },
];

fn up(test: &str) -> Result<Scene> {
    let scene = Scene::up(test, &Topology::from_yaml(TOPOLOGY)?)?;
    let ips: Vec<IpAddr> = EGRESS.map(ip).to_vec();
    scene.put_ready("main", &egress("main", &ips, &[]))?;
    scene.wait_live("w1", &["g1", "wg1"])?;
    scene.wait_live("wg1", &["g1", "wg1"])?;
    scene.wait_agents(&["w1", "wg1", "g1"])?;
    Ok(scene)
}

fn snapshot(scene: &Scene, host: &str) -> Result<Snapshot> {
    Ok(without_memory(Snapshot::take(&scene.host(host)?)?))
}

/// Waits until a host's snapshot equals `wanted` again.
fn wait_same(scene: &Scene, host: &str, wanted: &Snapshot) -> Result<()> {
    let deadline = Instant::now() + DEADLINE.min(SAME_WITHIN);
    loop {
        let mut differences = wanted.diff(&snapshot(scene, host)?);
        // A device that starts to forward IPv6 joins the routers' groups, and one that forwarded from its start has
        // not.
        let routers = ["\"ff01::2\"", "\"ff05::2\""];
        differences.retain(|line| !routers.iter().any(|group| line.contains(group)));
        if differences.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{host} is not mended:\n{}",
            differences.join("\n")
        );
    }
}

/// Makes the change, and waits until `look` shows the repair, and it is counted and logged. Returns the time.
fn mended(scene: &Scene, host: &str, damage: &Damage) -> Result<Duration> {
    let Damage {
        what,
        kind,
        line,
        look,
        named,
    } = damage;
    let before = scene.shell(host, look)?;
    ensure!(!before.trim().is_empty(), "{what} on {host}: there is none");
    let counted = repairs(scene, host, kind)?;
    let told = log(scene, host)?.len();
    scene.shell(host, line)?;
    let started = Instant::now();
    let same = wait(&format!("{what} on {host} to be mended"), || {
        scene.shell(host, look).is_ok_and(|now| now == before)
    });
    let took = started.elapsed();
    if same.is_err() {
        scene.print_logs();
        println!("was {before}\nis {}", scene.shell(host, look)?);
    }
    same?;
    // Counted before the repair; but the output of `look` may be restored before the agent verifies.
    wait(&format!("{what} on {host} to be counted as {kind}"), || {
        repairs(scene, host, kind).is_ok_and(|now| now > counted)
    })?;
    let log = log(scene, host)?;
    let mut lines = log[told..].lines();
    let is_told = lines.any(|line| line.contains("drift detected") && line.contains(named));
    ensure!(
        is_told,
        "{what} on {host}: the log does not say {named}:\n{}",
        &log[told..]
    );
    Ok(took)
}

/// As [`mended`], and within the limit; otherwise the same change once more.
fn mended_in_time(scene: &Scene, host: &str, damage: &Damage) -> Result<()> {
    let what = damage.what;
    let within = match damage.kind {
        "programs" => LOADED_WITHIN,
        _ => MENDED_WITHIN,
    };
    let mut took = mended(scene, host, damage)?;
    println!("{what} on {host}: mended after {} ms", took.as_millis());
    if took > within {
        took = mended(scene, host, damage)?;
        println!("{what} on {host}: once more {} ms", took.as_millis());
    }
    ensure!(took <= within, "{what} on {host}: mended after {took:?}");
    Ok(())
}

fn log(scene: &Scene, host: &str) -> Result<String> {
    let path = scene.lab().dir().log().join(format!("{host}.log"));
    Ok(std::fs::read_to_string(path)?)
}

fn damage_is_mended_and_nothing_leaves_wrong_meanwhile() -> Result<()> {
    let scene = up("damage")?;
    let egress = EGRESS.map(ip);
    let watch = Watch::start(&scene, &egress)?;
    watch.phase(Phase::only(egress))?;
    let load = Load::start(&[scene.pod("a1")?, scene.pod("a2")?], &SERVERS.map(ip))?;
    load.wait_answers()?;
    for host in ["w1", "wg1"] {
        let before = snapshot(&scene, host)?;
        // A node that is a gateway itself has no group of others while its own link is up, and only its plugin drops.
        let has = |damage: &Damage| match host {
            "w1" => damage.kind != "forwarding",
            _ => !["routes", "rules"].contains(&damage.kind),
        };
        for damage in DAMAGE.iter().filter(|damage| has(damage)) {
            mended_in_time(&scene, host, damage)?;
            wait_same(&scene, host, &before)?;
            load.wait_answers()?;
        }
    }
    let verdict = watch.stop()?;
    load.stop();
    verdict.assert_clean(&egress);
    Ok(())
}

/// Repairs of this kind that the agent of a host has counted.
fn repairs(scene: &Scene, host: &str, kind: &str) -> Result<u64> {
    let ask =
        "exec 3<>/dev/tcp/127.0.0.1/9791; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let text = scene.shell(host, &format!("bash -c \"{ask}\""))?;
    let wanted = format!("egret_agent_repairs_total{{kind=\"{kind}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&wanted));
    Ok(line.map_or(Ok(0), str::parse)?)
}

fn damage_at_a_gateway_is_mended_and_nothing_leaves_wrong_meanwhile() -> Result<()> {
    let scene = up("damage-gateway")?;
    let egress = EGRESS.map(ip);
    let watch = Watch::start(&scene, &egress)?;
    watch.phase(Phase::only(egress))?;
    let load = Load::start(&[scene.pod("a1")?, scene.pod("a2")?], &SERVERS.map(ip))?;
    load.wait_answers()?;
    for host in ["g1", "wg1"] {
        for damage in &GATEWAY_DAMAGE {
            scene.wait_live("w1", &["g1", "wg1"])?;
            let state = scene.shell(host, GATEWAY)?;
            let complete =
                state.matches("a program").count() == 2 && state.matches("key").count() == 2;
            ensure!(complete, "not as it should be: {state}");
            mended_in_time(&scene, host, damage)?;
            load.wait_answers()?;
        }
    }
    let verdict = watch.stop()?;
    load.stop();
    verdict.assert_clean(&egress);
    Ok(())
}

/// Cases: N13.
fn a_restarted_agent_adopts_what_is_there() -> Result<()> {
    let scene = up("adopt")?;
    for (host, in_order) in [("w1", false), ("wg1", false), ("g1", true), ("w1", true)] {
        let before = snapshot(&scene, host)?;
        let groups = before.sections.get("nexthops").cloned().unwrap_or_default();
        ensure!(
            host == "g1" || !groups.is_empty(),
            "{host} has no next hops to adopt"
        );
        scene.restart_agents(&[host], in_order)?;
        let differences = before.diff(&snapshot(&scene, host)?);
        ensure!(
            differences.is_empty(),
            "{host} differs after a restart:\n{}",
            differences.join("\n")
        );
    }
    Ok(())
}
