//! The driver `classic`, as `egret kube-egress` runs it: no agents, no controller; the test moves the address.

use anyhow::{Context, ensure};
use egret_lab::traffic::{IdleFlows, tcp_source};
use egret_tests::chaos::wait;
use egret_tests::classic::{Classic, FLAGS, NODES, PODS, VIPS};
use egret_tests::cluster::{EGRESS, SERVERS, echo, ip};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source, is_icmp_error};
use egret_tests::{Outcome, egret, steps};
use std::time::Duration;

/// Local ports of each pod that is mapped.
const PORTS: [(&str, &str); 3] = [
    ("a1", "20000 29999"),
    ("a2", "30000 39999"),
    ("a3", "40000 49999"),
];

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "classic",
        up,
        steps![
            mapped_pods_leave_with_the_address_from_every_node,
            other_traffic_is_as_before,
            connections_outlive_a_move_of_the_address,
            a_mapping_that_goes_gives_the_nodes_address_back,
            an_entry_out_of_step_never_means_the_nodes_address,
            what_others_change_is_mended,
            a_killed_one_is_replaced_without_duplicates,
            an_address_that_begins_like_the_held_one_is_not_held,
            marks_of_others_do_not_hide_ours,
            it_needs_no_more_than_the_original_gave_it,
            the_end_in_order_leaves_nothing,
            once_leaves_everything_and_delete_removes_it,
            wrong_usage_is_told,
        ],
    )]
}

/// The built-in lab with one holder of the addresses and three mapped pods.
fn up() -> anyhow::Result<Classic> {
    let classic = Classic::up("classic")?;
    // Two pods with the same port would make a connection that no holder can keep (docs/classic.md, P3): that is not
    // tested here.
    for (pod, ports) in PORTS {
        let line = format!("sysctl -qw net.ipv4.ip_local_port_range='{ports}'");
        classic
            .cluster
            .exec(&classic.cluster.pod(pod)?, &["sh", "-c", &line])?;
    }
    hold(&classic, "worker1")?;
    for node in NODES {
        map(&classic, node, &["a1", "a2", "a3"])?;
        classic.start(node, FLAGS)?;
    }
    for (family, address) in EGRESS.iter().enumerate() {
        for pod in ["a1", "a2", "a3"] {
            classic.wait_source(pod, SERVERS[family], address)?;
        }
    }
    Ok(classic)
}

/// Adds the addresses to a node, as keepalived does.
fn hold(classic: &Classic, node: &str) -> Outcome {
    let [v4, v6] = EGRESS;
    classic.shell(
        node,
        &format!("ip address add {v4}/32 dev eth0; ip -6 address add {v6}/128 dev eth0 nodad"),
    )?;
    for other in ["router", "worker1", "worker2", "worker3"] {
        // Effect of gratuitous ARP and unsolicited NA: the old neighbour entry is removed.
        classic.shell(
            other,
            &format!("ip neighbour flush to {v4}; ip -6 neighbour flush to {v6}; true"),
        )?;
    }
    Ok(())
}

fn release(classic: &Classic, node: &str) -> Outcome {
    let [v4, v6] = EGRESS;
    let line = format!("ip address del {v4}/32 dev eth0; ip -6 address del {v6}/128 dev eth0");
    classic.shell(node, &line).map(drop)
}

/// Writes the two mappings of a node: these pods, with the addresses of both families.
fn map(classic: &Classic, node: &str, pods: &[&str]) -> Outcome {
    let [v4, v6] = EGRESS;
    let mapping: Vec<(&str, &str)> = pods
        .iter()
        .flat_map(|pod| [(*pod, v4), (*pod, v6)])
        .collect();
    classic.map(node, &[(v4, 64), (v6, 65)], &mapping)
}

/// Captures packets to the server with neither an egress address nor the source of an unmapped pod.
fn watch(classic: &Classic, unmapped: &[&str]) -> anyhow::Result<Leaving> {
    let mut allowed: Vec<_> = EGRESS.map(ip).to_vec();
    for node in unmapped {
        for like in EGRESS {
            allowed.push(classic.cluster.node_address(node, ip(like))?);
        }
    }
    // The holder of the address is a router to the outside, like gateways: while no node has the address, a node that
    // still receives packets for it may send errors under its own address.
    let mut holders = Vec::new();
    for node in NODES {
        for like in EGRESS {
            holders.push(classic.cluster.node_address(node, ip(like))?);
        }
    }
    Leaving::watch(&classic.cluster, move |packet| {
        let told = is_icmp_error(packet) && holders.contains(&packet.source);
        !allowed.contains(&packet.source) && !told
    })
}

/// Cases: P2, P4.
fn mapped_pods_leave_with_the_address_from_every_node(classic: &Classic) -> Outcome {
    let watch = watch(classic, &[])?;
    for (family, address) in EGRESS.iter().enumerate() {
        for pod in ["a1", "a2", "a3"] {
            expect_source(&classic.cluster.pod(pod)?, ip(SERVERS[family]), ip(address))?;
        }
    }
    watch.clean()
}

/// Cases: E2.
fn other_traffic_is_as_before(classic: &Classic) -> Outcome {
    for (family, server) in SERVERS.iter().enumerate() {
        let node = classic
            .cluster
            .node_address("worker2", ip(EGRESS[family]))?;
        expect_source(&classic.cluster.pod("b2")?, ip(server), node)?;
    }
    // The original translated all traffic that passed the holder: here another node's own traffic does, and keeps its
    // source.
    let excepted = "203.0.113.20";
    let holder = classic.cluster.node_address("worker1", ip(EGRESS[0]))?;
    let way = format!("{excepted}/32 via {holder} dev eth0");
    classic.shell("worker2", &format!("ip route add {way}"))?;
    let node = classic.cluster.node_address("worker2", ip(EGRESS[0]))?;
    let kept = expect_source(&classic.cluster.pod("b2")?, ip(excepted), node);
    classic.shell("worker2", &format!("ip route del {way}"))?;
    kept.context("through the holder")?;
    // Traffic between pods is not translated.
    let target = classic.cluster.pod_address("a3", ip(EGRESS[0]))?;
    let server = egret_lab::traffic::Server::start(&classic.cluster.pod("a3")?)?;
    let own = classic.cluster.pod_address("a2", ip(EGRESS[0]))?;
    expect_source(&classic.cluster.pod("a2")?, target, own)?;
    // Nor is traffic to a Service's address, which kube-proxy redirects to pods.
    let service = "10.96.0.50";
    let rules = format!(
        "nft 'add table ip service; \
         add chain ip service to {{ type nat hook prerouting priority -100; }}; \
         add rule ip service to ip daddr {service} dnat to {target}'"
    );
    classic.shell("worker2", &rules)?;
    let reached = expect_source(&classic.cluster.pod("a2")?, ip(service), own);
    classic.shell("worker2", "nft delete table ip service")?;
    drop(server);
    reached
}

/// Cases: E3. Traffic is under way at the first and the last move. At the second one every connection waits for an
/// answer, and the pod has nothing to retransmit: the answer arrives because the pod sends keepalives, and would not
/// otherwise (docs/classic.md, P3).
fn connections_outlive_a_move_of_the_address(classic: &Classic) -> Outcome {
    let watch = watch(classic, &[])?;
    let mut flows = Vec::new();
    for pod in ["a1", "a2", "a3"] {
        for server in SERVERS {
            flows.push(IdleFlows::start_kept_alive(
                &classic.cluster.pod(pod)?,
                echo(ip(server)),
                5,
            )?);
        }
    }
    // Back to a previous holder, too: it must not have tracked packets that reached it in between.
    for (from, to, waiting) in [
        ("worker1", "worker2", false),
        ("worker2", "worker1", true),
        ("worker1", "worker2", false),
    ] {
        if waiting {
            lose_answers(classic)?;
        }
        release(classic, from)?;
        hold(classic, to)?;
        if waiting {
            classic.shell("router", "nft delete table inet answers")?;
        }
        for (family, address) in EGRESS.iter().enumerate() {
            for pod in ["a1", "a2", "a3"] {
                let moved = classic.wait_source(pod, SERVERS[family], address);
                moved.with_context(|| format!("{from} to {to}"))?;
            }
        }
    }
    let reports: Vec<_> = flows.into_iter().map(IdleFlows::stop).collect();
    let broken: Vec<&String> = reports.iter().flat_map(|report| &report.broken).collect();
    ensure!(
        broken.is_empty(),
        "{} of 30 broke: {broken:?}",
        broken.len()
    );
    watch.clean()
}

/// The router drops answers and lets acknowledgements pass, until every connection waits for an answer.
fn lose_answers(classic: &Classic) -> Outcome {
    classic.shell(
        "router",
        "nft 'table inet answers { chain forward { type filter hook forward priority 0; \
         tcp sport 5000 tcp flags & psh == psh drop; }; }'",
    )?;
    std::thread::sleep(Duration::from_millis(600));
    Ok(())
}

/// Cases: P3. Mounted ConfigMaps are swapped, and take effect before the interval, which is an hour.
fn a_mapping_that_goes_gives_the_nodes_address_back(classic: &Classic) -> Outcome {
    for node in NODES {
        map(classic, node, &["a1", "a2"])?;
    }
    for (family, server) in SERVERS.iter().enumerate() {
        let node = classic
            .cluster
            .node_address("worker3", ip(EGRESS[family]))?;
        classic.wait_source("a3", server, &node.to_string())?;
        expect_source(&classic.cluster.pod("a1")?, ip(server), ip(EGRESS[family]))?;
    }
    for node in NODES {
        map(classic, node, &["a1", "a2", "a3"])?;
    }
    for (family, address) in EGRESS.iter().enumerate() {
        classic.wait_source("a3", SERVERS[family], address)?;
    }
    Ok(())
}

/// The numbers are removed before the pods are, and a pod's entry becomes invalid: a pod with an address keeps it, one
/// without sends nothing, and the log names file and line.
fn an_entry_out_of_step_never_means_the_nodes_address(classic: &Classic) -> Outcome {
    let [v4, v6] = EGRESS;
    let node = "worker3";
    let address = |pod: &str, like: &str| classic.cluster.pod_address(pod, ip(like));
    let told = |line: &str| {
        let seen = || classic.log(node).is_ok_and(|log| log.contains(line));
        wait(line, seen).with_context(|| classic.log(node).unwrap_or_default())
    };
    // b3 was not mapped so far: its first entry is invalid.
    let (a3, b3) = (address("a3", v4)?, address("b3", v4)?);
    let entries = [
        (a3.to_string(), "\nnonsense".to_owned()),
        (address("a3", v6)?.to_string(), v6.to_owned()),
        (b3.to_string(), format!("{v4}\n{v4}")),
    ];
    classic.mount(node, PODS, &entries)?;
    told(&format!("{PODS}/{a3}:2: \"nonsense\""))?;
    told(&format!("{PODS}/{b3}:2: \"{v4}\""))?;
    told(&format!("what {b3} sends outside is dropped"))?;
    let refused = || -> anyhow::Result<u64> {
        let counter = "nft list counter inet egret_classic refused_pod";
        let listed = classic.shell(node, counter)?;
        let mut words = listed
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        Ok(words.nth(1).context("a number of packets")?.parse()?)
    };
    wait("b3's packets to be dropped", || {
        let tried = tcp_source(&classic.cluster.pod("b3").unwrap(), echo(ip(SERVERS[0])));
        tried.is_err() && refused().is_ok_and(|packets| packets > 0)
    })?;
    let watch = watch(classic, &[])?;
    let before = refused()?;
    let b3 = classic.cluster.pod("b3")?;
    ensure!(tcp_source(&b3, echo(ip(SERVERS[0]))).is_err(), "it left");
    ensure!(refused()? > before, "it was not dropped");
    // The other mapping loses its numbers, too: nothing changes for a3.
    classic.mount(node, VIPS, &[("192.168.122.99", "99".to_owned())])?;
    told(&format!("{v6}\": this address has no route id"))?;
    for (family, egress) in EGRESS.iter().enumerate() {
        expect_source(&classic.cluster.pod("a3")?, ip(SERVERS[family]), ip(egress))?;
    }
    watch.clean()?;
    map(classic, node, &["a1", "a2", "a3"])?;
    let own = classic.cluster.node_address(node, ip(v4))?;
    classic.wait_source("b3", SERVERS[0], &own.to_string())
}

fn what_others_change_is_mended(classic: &Classic) -> Outcome {
    let watch = watch(classic, &[])?;
    for damage in ["ip rule del priority 78", "ip route flush table 64"] {
        classic
            .shell("worker1", damage)
            .with_context(|| damage.to_owned())?;
        for (family, address) in EGRESS.iter().enumerate() {
            classic
                .wait_source("a1", SERVERS[family], address)
                .with_context(|| damage.to_owned())?;
        }
    }
    watch.clean()
}

/// Cases: E7.
fn a_killed_one_is_replaced_without_duplicates(classic: &Classic) -> Outcome {
    let count = "ip rule | grep -c 'fwmark 0x400000/0xff0000 lookup 64'; nft list tables | grep -c egret_classic";
    let before = classic.shell("worker3", count)?;
    ensure!(before == "1\n1\n", "{before}");
    classic.end("worker3", "KILL")?;
    expect_source(&classic.cluster.pod("a3")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    classic.start("worker3", FLAGS)?;
    classic.shell("worker3", "ip rule del priority 78")?;
    wait("one rule", || {
        classic
            .shell("worker3", count)
            .is_ok_and(|now| now == before)
    })
}

/// The original searched for the address as a substring: a node with 192.168.122.222 had 192.168.122.22 as well.
fn an_address_that_begins_like_the_held_one_is_not_held(classic: &Classic) -> Outcome {
    let shorter = EGRESS[0].strip_suffix('2').context("192.168.122.222")?;
    let pod = classic.cluster.pod_address("b1", ip(EGRESS[0]))?;
    let map = format!("echo 66 > {VIPS}/{shorter}; echo {shorter} > {PODS}/{pod}");
    // The holder of the longer one sends to the holder of the shorter one, like every node.
    for node in ["worker1", "worker2", "worker3"] {
        classic.shell(node, &map)?;
        wait(&format!("{node} to send to the holder"), || {
            let routes = classic
                .shell(node, "ip route show table 66")
                .unwrap_or_default();
            routes.contains(&format!("default via {shorter} "))
        })?;
    }
    for node in NODES {
        classic.shell(node, &format!("rm {VIPS}/{shorter} {PODS}/{pod}"))?;
        wait("the number to go", || {
            let routes = classic
                .shell(node, "ip route show table 66")
                .unwrap_or_default();
            routes.is_empty()
        })?;
    }
    Ok(())
}

/// The original's rule compared the whole mark, so another component's bit led its packets past the holder.
fn marks_of_others_do_not_hide_ours(classic: &Classic) -> Outcome {
    let watch = watch(classic, &[])?;
    let pods = ["a3"].map(|pod| classic.cluster.pod_address(pod, ip(EGRESS[0])));
    let [a3] = pods;
    let a3 = a3?;
    // The other component needs its bit again: pull request 1 set the whole mark.
    let table = format!(
        "table inet other {{
            counter kept {{ }}; counter lost {{ }};
            chain c {{ type filter hook prerouting priority -150; meta mark set mark or 0x4000; }};
            chain after {{
                type filter hook postrouting priority 200;
                ct original ip saddr {a3} ct direction original meta mark & 0x4000 == 0x4000 counter name kept
                ct original ip saddr {a3} ct direction original meta mark & 0x4000 == 0 counter name lost
            }}; }}"
    );
    classic.shell("worker3", &format!("nft '{table}'"))?;
    for (family, address) in EGRESS.iter().enumerate() {
        expect_source(
            &classic.cluster.pod("a3")?,
            ip(SERVERS[family]),
            ip(address),
        )?;
    }
    let count = |name: &str| {
        let list = format!("nft list counter inet other {name} | grep -o 'packets [0-9]*'");
        classic.shell("worker3", &list)
    };
    let (kept, lost) = (count("kept")?, count("lost")?);
    ensure!(
        kept != "packets 0\n" && lost == "packets 0\n",
        "with the bit {kept}, without {lost}"
    );
    classic.shell("worker3", "nft delete table inet other")?;
    watch.clean()
}

/// The original's DaemonSet has a limit of 20 MiB and a grace period of ten seconds.
fn it_needs_no_more_than_the_original_gave_it(classic: &Classic) -> Outcome {
    for node in NODES {
        let line = "grep -h RssAnon /proc/$(pgrep -x egret)/status";
        let said = classic.shell(node, line)?;
        let kib = said.split_whitespace().nth(1).context("a number")?;
        let kib: u64 = kib.parse()?;
        println!("{node}: {kib} KiB of memory of its own");
        ensure!(kib < 10 * 1024, "{said}");
    }
    Ok(())
}

/// Cases: P5.
fn the_end_in_order_leaves_nothing(classic: &Classic) -> Outcome {
    for node in NODES {
        classic.end(node, "TERM")?;
    }
    release(classic, "worker2")?;
    for node in NODES {
        // The test's own files.
        classic.shell(node, &format!("rm -rf {VIPS} {PODS}"))?;
        let left = classic.left(node)?;
        ensure!(left.is_empty(), "{node}: {left:#?}");
    }
    for (family, server) in SERVERS.iter().enumerate() {
        let node = classic
            .cluster
            .node_address("worker1", ip(EGRESS[family]))?;
        classic.wait_source("a1", server, &node.to_string())?;
    }
    Ok(())
}

/// Cases: E1, E4, E6, E8. The older form, with one address for all pods, under its short flags.
fn once_leaves_everything_and_delete_removes_it(classic: &Classic) -> Outcome {
    let program = egret()?;
    let program = program.to_str().context("a path of text")?;
    let excepted = "203.0.113.20";
    let networks = format!("10.96.0.0/12,{excepted}/32");
    let flags = [
        "-i",
        "eth0",
        "-p",
        "10.244.0.0/16",
        "-s",
        &networks,
        "-r",
        "100",
        "-v",
        EGRESS[0],
    ];
    let run = |node: &str, flags: &[&str]| {
        let place = classic.cluster.host(node)?;
        let words: Vec<&str> = [program, "kube-egress"]
            .into_iter()
            .chain(flags.iter().copied())
            .collect();
        classic.cluster.exec(&place, &words)
    };
    hold(classic, "worker3")?;
    for node in NODES {
        run(node, &flags)?;
    }
    for pod in ["a1", "b1", "other1", "a2", "a3"] {
        classic.wait_source(pod, SERVERS[0], EGRESS[0])?;
    }
    let rules = classic.shell("worker1", "ip rule")?;
    ensure!(rules.contains("lookup 100"), "{rules}");
    let own = classic.cluster.node_address("worker1", ip(EGRESS[0]))?;
    expect_source(&classic.cluster.pod("a1")?, ip(excepted), own)?;
    // The holder and the others, and again.
    for node in NODES {
        run(node, &["--delete"])?;
        run(node, &["-d"])?;
    }
    release(classic, "worker3")?;
    for node in NODES {
        let left = classic.left(node)?;
        ensure!(left.is_empty(), "{node}: {left:#?}");
    }
    classic.wait_source("a1", SERVERS[0], &own.to_string())
}

/// Cases: E5.
fn wrong_usage_is_told(classic: &Classic) -> Outcome {
    let program = egret()?;
    for (flags, expected) in [
        (&["--update-interval", "5"][..], "--vip is missing"),
        (&["--vip", "nonsense"], "--vip nonsense"),
        (
            &["--vip", "192.168.122.222", "--route-id", "253"],
            "from 1 to 252",
        ),
        (
            &["--vip", "192.168.122.222", "--interface", "eth7"],
            "no network device eth7",
        ),
        (&["--vipp", "192.168.122.222"], "--vipp"),
    ] {
        let place = classic.cluster.host("worker2")?;
        let mut command = classic.cluster.lab().exec(&place, &program)?;
        let output = command.arg("kube-egress").args(flags).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(2),
            "{flags:?}: {:?}",
            output.status
        );
        ensure!(said.contains(expected), "{flags:?}: {said}");
    }
    let left = classic.left("worker2")?;
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}
