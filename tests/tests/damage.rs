//! What others damage is mended within a second, counted and logged, without one packet with a wrong source meanwhile; and a restarted agent
//! adopts what is there: group numbers, next hops, rules, routes and ranges stay as they were.

use anyhow::{Result, ensure};
use egret_lab::{Snapshot, Topology};
use egret_tests::chaos::{DEADLINE, Noise, Phase, Scene, Watch, egress, ip, wait, without_memory};
use std::net::IpAddr;
use std::time::{Duration, Instant};

const SERVERS: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
const EGRESS: [&str; 2] = ["192.168.122.222", "fd00:122::222"];
/// Mending takes at most a tick of half a second; the rest is for a busy machine.
const MENDED_WITHIN: Duration = Duration::from_secs(20);

const TOPOLOGY: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64],
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: wg1, roles: [worker, gateway], links: [{segment: nodes}], podCidrs: [10.244.2.0/24, fd00:244:2::/64], cni: nft,
   pods: [{name: a2, labels: {app: MyApp}}]}
- {name: g1, roles: [gateway], links: [{segment: nodes}]}
- {name: clock, links: [{segment: nodes}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

/// Shell lines that damage a worker, and what they damage.
const DAMAGE: [(&str, &str); 12] = [
    ("the tunnel device", "ip link delete egret0"),
    ("the tunnel device down", "ip link set egret0 down"),
    ("all next hops", "ip nexthop flush proto 79"),
    (
        "the routes of a group, IPv4",
        "ip -4 route delete default table 14791",
    ),
    (
        "the routes of a group, IPv6",
        "ip -6 route delete default table 14791",
    ),
    (
        "the rules, IPv4",
        "while ip -4 rule delete priority 79 2>/dev/null; do :; done",
    ),
    (
        "the rules, IPv6",
        "while ip -6 rule delete priority 79 2>/dev/null; do :; done",
    ),
    (
        "the neighbours of the tunnel",
        "ip -6 neigh flush dev egret0 nud permanent",
    ),
    ("the tunnel's MTU", "ip link set egret0 mtu 1300"),
    (
        "the tunnel's address",
        "ip address delete 169.254.77.1/32 dev egret0",
    ),
    ("forwarding of IPv4", "sysctl -qw net.ipv4.ip_forward=0"),
    (
        "forwarding of IPv6",
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
    ),
];

/// Kinds of damage that the lines above are counted as.
const KINDS: [&str; 6] = [
    "device",
    "neighbours",
    "nexthops",
    "routes",
    "rules",
    "sysctls",
];

/// Lines that damage a gateway, and what is counted. Each makes its programs or tables other than they were.
const GATEWAY_DAMAGE: [(&str, &str, &str); 4] = [
    (
        "the program at the external device",
        "programs",
        "bpftool link detach pinned /sys/fs/bpf/egret/gateway/external_in_link",
    ),
    (
        "the pin of the program at the tunnel",
        "programs",
        "rm /sys/fs/bpf/egret/gateway/egress_in_link",
    ),
    ("all pins", "programs", "rm -r /sys/fs/bpf/egret/gateway"),
    (
        "the steering of an address",
        "tables",
        "bpftool map delete pinned /sys/fs/bpf/egret/gateway/steering key hex \
         $(bpftool map dump pinned /sys/fs/bpf/egret/gateway/steering -j | tr -d '\",[]\\n' | sed 's/.*key:\\(\\(0x..\\)\\{16\\}\\).*/\\1/; s/0x/ /g')",
    ),
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

/// Waits until a host is as in `wanted` again.
fn wait_same(scene: &Scene, host: &str, wanted: &Snapshot) -> Result<()> {
    let deadline = Instant::now() + DEADLINE.min(MENDED_WITHIN);
    loop {
        let mut differences = wanted.diff(&snapshot(scene, host)?);
        // A device that starts to forward IPv6 joins the routers' groups, and one that forwarded from its start has not.
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

#[test]
fn damage_is_mended_and_nothing_leaves_wrong_meanwhile() -> Result<()> {
    let scene = up("damage")?;
    let egress = EGRESS.map(ip);
    let watch = Watch::start(&scene, &egress)?;
    watch.phase(Phase::only(egress))?;
    let noise = Noise::start(&[scene.pod("a1")?, scene.pod("a2")?], &SERVERS.map(ip))?;
    noise.wait_answers()?;
    for host in ["w1", "wg1"] {
        let before = snapshot(&scene, host)?;
        // A node that is a gateway itself has no group of others while its own link is up.
        let has_group = |line: &str| host == "w1" || !line.contains("14791");
        for (what, line) in DAMAGE.into_iter().filter(|(_, line)| has_group(line)) {
            let started = Instant::now();
            scene.shell(host, line)?;
            wait_same(&scene, host, &before)?;
            println!(
                "{what} on {host}: mended after {} ms at most",
                started.elapsed().as_millis()
            );
            noise.wait_answers()?;
        }
    }
    let verdict = watch.stop()?;
    noise.stop();
    verdict.assert_clean(&egress);
    for kind in KINDS {
        ensure!(repairs(&scene, "w1", kind)? > 0, "{kind} is not counted");
    }
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

/// Where the programs are, and the addresses in the steering table (who announces them may have changed).
fn gateway_state(scene: &Scene) -> Result<String> {
    scene.shell(
        "g1",
        "cd /sys/fs/bpf/egret/gateway
        for link in egress_in_link external_in_link; do
            bpftool link show pinned $link | grep -o 'prog [0-9]*\\|ifindex [a-z0-9]*' | sed 's/prog .*/a program/'
        done
        bpftool map dump pinned steering -j | grep -o '\"key\":.\"0x[^]]*' | sort",
    )
}

#[test]
fn damage_at_a_gateway_is_mended_and_nothing_leaves_wrong_meanwhile() -> Result<()> {
    let scene = up("damage-gateway")?;
    let egress = EGRESS.map(ip);
    let watch = Watch::start(&scene, &egress)?;
    watch.phase(Phase::only(egress))?;
    let noise = Noise::start(&[scene.pod("a1")?, scene.pod("a2")?], &SERVERS.map(ip))?;
    noise.wait_answers()?;
    for (what, kind, line) in GATEWAY_DAMAGE {
        scene.wait_live("w1", &["g1", "wg1"])?;
        let before = gateway_state(&scene)?;
        let complete =
            before.matches("a program").count() == 2 && before.matches("key").count() == 2;
        ensure!(complete, "not as it should be: {before}");
        let counted = repairs(&scene, "g1", kind)?;
        let started = Instant::now();
        scene.shell("g1", line)?;
        let mended = wait(&format!("{what} to be mended"), || {
            gateway_state(&scene).is_ok_and(|now| now == before)
                && repairs(&scene, "g1", kind).is_ok_and(|now| now > counted)
        });
        if mended.is_err() {
            scene.print_logs();
            println!("was {before:?}\nis {:?}", gateway_state(&scene)?);
        }
        mended?;
        println!(
            "{what}: mended after {} ms at most",
            started.elapsed().as_millis()
        );
        noise.wait_answers()?;
    }
    let verdict = watch.stop()?;
    noise.stop();
    verdict.assert_clean(&egress);
    Ok(())
}

/// Cases: N13.
#[test]
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
