//! Gateways without tcx, and without eBPF: the same behaviour in a whole cluster.

use anyhow::ensure;
use egret_lab::Hurt;
use egret_lab::Topology;
use egret_lab::process::wait_for;
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, egress, ip};
use egret_tests::seccomp::{Refused, refuse};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source};
use egret_tests::{Cluster, Outcome, steps};

pub fn groups() -> Vec<Group> {
    vec![
        Group::new(
            "nftables_asked_for",
            || up("nftfw", &["--gateway-datapath", "nftables"]),
            steps![
                selected_pods_leave_with_the_egress_address,
                the_gateways_say_what_they_lack,
                gateways_keep_no_connections,
                cleanup_leaves_nothing_of_a_gateway,
                the_announcer_may_lose_its_power,
            ],
        ),
        Group::new(
            "both_roles",
            both_roles,
            steps![pods_of_a_gateway_and_of_a_worker_leave_with_the_egress_address],
        ),
        Group::new(
            "ebpf_refused",
            // No BPF file system: nothing can be pinned.
            || up("nobpf", &["--pin-directory", "/run/no-bpf"]),
            steps![
                selected_pods_leave_with_the_egress_address,
                the_gateways_say_what_they_lack,
            ],
        ),
        Group::new(
            "bpf_refused",
            || up_where("nobpfcall", Refused::Bpf),
            steps![
                selected_pods_leave_with_the_egress_address,
                the_gateways_say_what_they_lack,
            ],
        ),
        Group::new(
            "tcx_refused",
            || up_where("notcx", Refused::Links),
            steps![
                selected_pods_leave_with_the_egress_address,
                the_filters_are_clsact,
            ],
        ),
        Group::new(
            "clsact",
            || up("clsact", &["--gateway-datapath", "clsact"]),
            steps![
                selected_pods_leave_with_the_egress_address,
                the_filters_are_clsact,
            ],
        ),
    ]
}

/// A node that is its own gateway, beside one that is not.
const BOTH_ROLES: &str = "
segments:
- {name: nodes, cidrs: [192.168.122.0/24, fd00:122::/64]}
- {name: outside, cidrs: [203.0.113.0/24, 2001:db8:1::/64]}
hosts:
- {name: w1, roles: [worker], links: [{segment: nodes}], podCidrs: [10.244.1.0/24, fd00:244:1::/64],
   pods: [{name: a1, labels: {app: MyApp}}]}
- {name: wg1, roles: [worker, gateway], links: [{segment: nodes}], podCidrs: [10.244.2.0/24, fd00:244:2::/64], cni: nft,
   pods: [{name: a2, labels: {app: MyApp}}]}
- {name: wg2, roles: [worker, gateway], links: [{segment: nodes}], podCidrs: [10.244.3.0/24, fd00:244:3::/64],
   pods: [{name: a3, labels: {app: MyApp}}]}
- {name: router, roles: [router]}
- {name: server, roles: [server], links: [{segment: outside}]}
";

fn both_roles() -> anyhow::Result<Cluster> {
    let arguments = ["--gateway-datapath", "nftables"];
    let topology = Topology::from_yaml(BOTH_ROLES)?;
    let cluster = Cluster::up_with("nftboth", &topology, &arguments)?;
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    Ok(cluster)
}

fn pods_of_a_gateway_and_of_a_worker_leave_with_the_egress_address(cluster: &Cluster) -> Outcome {
    for pod in ["a1", "a2", "a3"] {
        for family in [0, 1] {
            expect_source(&cluster.pod(pod)?, ip(SERVERS[family]), ip(EGRESS[family]))?;
        }
    }
    Ok(())
}

const GATEWAYS: [&str; 3] = ["gateway1", "gateway2", "gateway3"];

fn up(test: &str, arguments: &[&str]) -> anyhow::Result<Cluster> {
    let cluster = Cluster::up_with(test, &Topology::built_in(), arguments)?;
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    Ok(cluster)
}

/// Agents under a kernel that refuses some calls.
fn up_where(test: &'static str, refused: Refused) -> anyhow::Result<Cluster> {
    let thread = std::thread::spawn(move || {
        refuse(refused)?;
        up(test, &[])
    });
    let result = thread.join();
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn selected_pods_leave_with_the_egress_address(cluster: &Cluster) -> Outcome {
    let watch = Leaving::watch(cluster, |packet| !EGRESS.map(ip).contains(&packet.source))?;
    for pod in ["a1", "b1", "a2", "b2", "a3", "b3"] {
        for family in [0, 1] {
            expect_source(&cluster.pod(pod)?, ip(SERVERS[family]), ip(EGRESS[family]))?;
        }
    }
    watch.clean()
}

fn the_gateways_say_what_they_lack(cluster: &Cluster) -> Outcome {
    for name in GATEWAYS {
        let mut last = None;
        let said = wait_for("condition Degraded", DEADLINE, || {
            last = cluster.object("egressnode", None, name);
            let conditions = last.as_ref().map(|node| &node["status"]["conditions"]);
            let conditions = conditions.and_then(|all| all.as_array());
            conditions.is_some_and(|all| {
                all.iter().any(|one| {
                    one["type"] == "Degraded"
                        && one["status"] == "True"
                        && one["reason"] == "NftablesDatapath"
                })
            })
        });
        ensure!(said.is_ok(), "{name} does not say it: {last:#?}");
    }
    let status = cluster.status()?;
    let gateways = status["gateways"].as_array().cloned().unwrap_or_default();
    let weak = |one: &serde_json::Value| one["datapath"] == "nftables" && one["live"] == true;
    ensure!(
        gateways.len() == GATEWAYS.len() && gateways.iter().all(weak),
        "{gateways:#?}"
    );
    Ok(())
}

fn gateways_keep_no_connections(cluster: &Cluster) -> Outcome {
    for name in GATEWAYS {
        for family in ["ipv4", "ipv6"] {
            let words = ["conntrack", "-L", "-f", family];
            let flows = cluster.exec(&cluster.host(name)?, &words)?;
            for address in EGRESS {
                ensure!(!flows.contains(address), "{name}: {flows}");
            }
        }
    }
    Ok(())
}

/// The table, and the multicast groups by which solicitations arrive.
fn cleanup_leaves_nothing_of_a_gateway(cluster: &Cluster) -> Outcome {
    const GROUP: &str = "33:33:ff:00:02:22";
    let host = cluster.host("gateway3")?;
    let look = || -> anyhow::Result<[bool; 2]> {
        let tables = cluster.exec(&host, &["nft", "list", "tables"])?;
        let groups = cluster.exec(&host, &["ip", "maddr", "show"])?;
        Ok([tables.contains("egret"), groups.contains(GROUP)])
    };
    ensure!(look()? == [true; 2], "this test looks at the wrong things");
    cluster.lab().kill("gateway3", Hurt::Agent)?;
    let program = egret_tests::egret()?;
    let program = program.to_string_lossy();
    cluster.exec(&host, &[&program, "agent", "--cleanup"])?;
    ensure!(look()? == [false; 2], "{:?} stay: table, group", look()?);
    cluster.lab().start("gateway3")?;
    Ok(())
}

fn the_announcer_may_lose_its_power(cluster: &Cluster) -> Outcome {
    let announcer = cluster.announcer(ip(EGRESS[0]))?;
    cluster.lab().kill(&announcer, Hurt::Power)?;
    let works = |pod: &str, family: usize| {
        let pod = cluster.pod(pod)?;
        expect_source(&pod, ip(SERVERS[family]), ip(EGRESS[family]))
    };
    let mut last = None;
    let back = wait_for("the other gateways", DEADLINE, || {
        let all = [
            ("a1", 0),
            ("a2", 0),
            ("a3", 0),
            ("a1", 1),
            ("a2", 1),
            ("a3", 1),
        ];
        last = all
            .iter()
            .find_map(|(pod, family)| works(pod, *family).err());
        last.is_none()
    });
    ensure!(back.is_ok(), "without {announcer}: {last:?}");
    Ok(())
}

fn the_filters_are_clsact(cluster: &Cluster) -> Outcome {
    for name in GATEWAYS {
        let words = ["tc", "filter", "show", "dev", "egret0", "ingress"];
        let filters = cluster.exec(&cluster.host(name)?, &words)?;
        ensure!(filters.contains("egress_in"), "{name}: {filters}");
    }
    Ok(())
}
