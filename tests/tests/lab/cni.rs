//! The CNI plugin: the first packet of a pod's first process has the right source, whichever pod had its address
//! before; and pods that Egret does not select start without it.

use anyhow::{Context, bail, ensure};
use egret_lab::Hurt;
use egret_lab::capture::Packet;
use egret_lab::process::wait_for;
use egret_lab::topology::Pod;
use egret_lab::traffic::tcp_source;
use egret_lab::{Place, Topology};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip, pod};
use egret_tests::runtime::{Sandbox, plugin};
use egret_tests::steps::Group;
use egret_tests::watch::Leaving;
use egret_tests::{Cluster, Outcome, steps};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Pods that are started one after the other.
const STARTS: usize = 50;
/// Address of a second policy.
const SECOND: [&str; 2] = ["192.168.122.223", "fd00:122::223"];
/// Address of the policy of another namespace, and the namespace.
const THIRD: [&str; 2] = ["192.168.122.224", "fd00:122::224"];
const NAMESPACE: &str = "beside";
/// A port from which pods send, one after the other.
const OWN_PORT: u16 = 4500;
const CONF_DIRECTORY: &str = "/run/cni/net.d";
const BIN_DIRECTORY: &str = "/run/cni/bin";
const SINGLE: &str =
    r#"{"cniVersion": "1.0.0", "name": "lab", "type": "lab-veth", "ipam": {"type": "lab"}}"#;

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "cni",
        up,
        steps![
            the_first_packet_of_every_pod_has_the_egress_address,
            an_unselected_pod_starts_with_its_nodes_address,
            every_call_can_be_repeated_in_every_version,
            errors_are_told_as_the_specification_wants,
            an_address_that_goes_to_another_pod_takes_nothing_along,
            an_address_that_was_never_taken_back_goes_along_neither,
            flows_that_a_pod_left_are_not_those_of_the_next_in_another_namespace,
            without_an_agent_only_pods_that_may_be_selected_wait,
            a_new_agent_knows_what_the_last_one_was_told,
            the_agent_keeps_the_plugin_in_the_runtimes_configuration,
            cleanup_leaves_the_configuration_as_it_was,
        ],
    )]
}

fn up() -> anyhow::Result<Cluster> {
    let arguments = [
        "--cni-conf-directory",
        CONF_DIRECTORY,
        "--cni-bin-directory",
        BIN_DIRECTORY,
    ];
    let cluster = Cluster::up_with("cni", &Topology::built_in(), &arguments)?;
    cluster.apply(&[
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n"),
        egress("first", "MyApp", &EGRESS, ""),
        egress("second", "Second", &SECOND, ""),
        egress("third", "Beside", &THIRD, "")
            .replace("namespace: default", &format!("namespace: {NAMESPACE}")),
    ])?;
    Ok(cluster)
}

/// A pod in the state before its first process, and its sandbox.
fn begin(cluster: &Cluster, host: &str, pod: Pod) -> anyhow::Result<(Place, Sandbox)> {
    let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
    let place = cluster.lab().begin_pod(host, pod)?;
    Ok((place, Sandbox::of(cluster, &namespace, &name)?))
}

/// The source that the server sees of the very first connection of a pod.
fn first(place: &Place, server: IpAddr) -> anyhow::Result<IpAddr> {
    let seen = tcp_source(place, echo(server)).with_context(|| place.name().to_string())?;
    Ok(seen.ip())
}

fn the_first_packet_of_every_pod_has_the_egress_address(cluster: &Cluster) -> Outcome {
    let watch = Leaving::watch(cluster, |packet| !EGRESS.map(ip).contains(&packet.source))?;
    let (mut took, mut again) = (Vec::new(), Vec::new());
    for number in 0..STARTS {
        let name = format!("new{number}");
        let (place, sandbox) = begin(cluster, "worker1", pod(&name, "MyApp"))?;
        took.push(sandbox.cni(cluster, "ADD", "1.0.0")?.expect_good()?.took);
        let family = number % 2;
        let seen = first(&place, ip(SERVERS[family]))?;
        ensure!(seen == ip(EGRESS[family]), "{name} came from {seen}");
        // The agent reads the directory some time after the write; the second time the pod is known.
        again.push(sandbox.cni(cluster, "ADD", "1.0.0")?.expect_good()?.took);
        // The API shows the address sooner or later, and nothing changes.
        if number % 3 == 0 {
            cluster.lab().publish_pod("default", &name)?;
        }
    }
    for (what, mut took) in [("with the source's delay", took), ("of a known pod", again)] {
        took.sort_unstable();
        let (middle, most) = (took[STARTS / 2], took[STARTS - 1]);
        println!("     ADD {what} took {middle:.1?} in the middle, {most:.1?} at most");
    }
    watch.clean()
}

fn an_unselected_pod_starts_with_its_nodes_address(cluster: &Cluster) -> Outcome {
    let (place, sandbox) = begin(cluster, "worker1", pod("plain", "Plain"))?;
    sandbox.cni(cluster, "ADD", "1.1.0")?.expect_good()?;
    for server in SERVERS.map(ip) {
        let node = cluster.node_address("worker1", server)?;
        let seen = first(&place, server)?;
        ensure!(seen == node, "came from {seen}, not from {node}");
    }
    Ok(())
}

fn every_call_can_be_repeated_in_every_version(cluster: &Cluster) -> Outcome {
    let (place, sandbox) = begin(cluster, "worker1", pod("again", "MyApp"))?;
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        for _ in 0..2 {
            let said = sandbox.cni(cluster, "ADD", version)?.expect_good()?;
            ensure!(
                said.json == sandbox.result(version),
                "the result is passed on: {}",
                said.json
            );
        }
        for _ in 0..2 {
            let said = sandbox.cni(cluster, "CHECK", version)?.expect_good()?;
            ensure!(said.json == Value::Null, "{}", said.json);
        }
        let said = sandbox.cni(cluster, "VERSION", version)?.expect_good()?;
        let spoken = said.json["supportedVersions"]
            .as_array()
            .context("versions")?;
        ensure!(
            spoken.contains(&json!(version)) && said.json["cniVersion"] == version,
            "{}",
            said.json
        );
    }
    ensure!(first(&place, ip(SERVERS[0]))? == ip(EGRESS[0]));
    let gc = |valid: Value| {
        let config = json!({
            "cniVersion": "1.1.0", "name": "lab", "type": "egret-cni", "cni.dev/valid-attachments": valid,
        });
        sandbox
            .call(cluster, &plugin()?, "GC", &config)?
            .expect_good()
    };
    // A named container stays; the address of one that is not named is free.
    gc(json!([{"containerID": sandbox.container, "ifname": "eth0"}]))?;
    ensure!(first(&place, ip(SERVERS[0]))? == ip(EGRESS[0]));
    gc(json!([]))?;
    gc(json!([]))?;
    let node = cluster.node_address("worker1", ip(SERVERS[0]))?;
    ensure!(first(&place, ip(SERVERS[0]))? == node);
    sandbox.cni(cluster, "ADD", "1.1.0")?.expect_good()?;
    for _ in 0..2 {
        sandbox.cni(cluster, "STATUS", "1.1.0")?.expect_good()?;
        let said = sandbox.cni(cluster, "DEL", "1.1.0")?.expect_good()?;
        ensure!(said.json == Value::Null, "{}", said.json);
    }
    ensure!(first(&place, ip(SERVERS[0]))? == node);
    Ok(())
}

fn errors_are_told_as_the_specification_wants(cluster: &Cluster) -> Outcome {
    let sandbox = Sandbox::of(cluster, "default", "a1")?;
    let error = |command: &str, config: Value| {
        let said = sandbox.call(cluster, &plugin()?, command, &config)?;
        ensure!(!said.good && said.json["msg"].is_string(), "{}", said.json);
        said.json["code"].as_u64().context("a code")
    };
    ensure!(error("ADD", json!({"cniVersion": "0.2.0"}))? == 1);
    ensure!(error("NONE", json!({"cniVersion": "1.0.0"}))? == 4);
    ensure!(error("ADD", json!([]))? == 6);
    ensure!(
        error("ADD", json!({"cniVersion": "1.0.0"}))? == 7,
        "no prevResult"
    );
    Ok(())
}

fn an_address_that_goes_to_another_pod_takes_nothing_along(cluster: &Cluster) -> Outcome {
    reuse(cluster, "taken", true)
}

fn an_address_that_was_never_taken_back_goes_along_neither(cluster: &Cluster) -> Outcome {
    reuse(cluster, "kept", false)
}

/// One address for a selected pod, for an unselected one and for one of another policy, in quick succession, while the
/// API still shows the previous ones.
fn reuse(cluster: &Cluster, prefix: &str, taken_back: bool) -> Outcome {
    let server = ip(SERVERS[0]);
    let node = cluster.node_address("worker2", server)?;
    let mut before = None;
    for (number, (app, source)) in [
        ("MyApp", ip(EGRESS[0])),
        ("Plain", node),
        ("Second", ip(SECOND[0])),
        ("MyApp", ip(EGRESS[0])),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{prefix}{number}");
        let (place, sandbox) = begin(cluster, "worker2", pod(&name, app))?;
        let addresses = before.replace(sandbox.addresses.clone());
        ensure!(
            addresses.is_none_or(|addresses| addresses == sandbox.addresses),
            "another address"
        );
        // Late packets of the server to the previous pod are reset by the new pod's kernel: such a reset belongs to the
        // old flow.
        let is_reset = |packet: &Packet| packet.bytes.get(47).is_some_and(|flags| flags & 4 != 0);
        let watch = Leaving::watch(cluster, move |packet| {
            packet.source != source && !is_reset(packet)
        })?;
        sandbox.cni(cluster, "ADD", "1.0.0")?.expect_good()?;
        let seen = first(&place, server)?;
        ensure!(seen == source, "{name} came from {seen}, not from {source}");
        cluster.lab().publish_pod("default", &name)?;
        ensure!(
            first(&place, server)? == source,
            "once the API shows it, it is as before"
        );
        watch.clean()?;
        if taken_back {
            sandbox.cni(cluster, "DEL", "1.0.0")?.expect_good()?;
        }
        cluster.lab().end_last_pod("worker2")?;
    }
    Ok(())
}

/// A pod with or without an egress address leaves a flow in the node's table. Another pod has its address within a
/// second, and contacts the same server from the same port.
fn flows_that_a_pod_left_are_not_those_of_the_next_in_another_namespace(
    cluster: &Cluster,
) -> Outcome {
    let (server, host) = (ip(SERVERS[0]), cluster.host("worker2")?);
    for (number, (app, taken_back)) in [
        ("Plain", true),
        ("Plain", false),
        ("MyApp", true),
        ("MyApp", false),
    ]
    .into_iter()
    .enumerate()
    {
        let (place, first) = begin(cluster, "worker2", pod(&format!("left{number}"), app))?;
        first.cni(cluster, "ADD", "1.0.0")?.expect_good()?;
        from_own_port(&place, server)?;
        let address = first.addresses.iter().find(|a| a.is_ipv4());
        let address = address.context("an address")?.to_string();
        let left = || cluster.exec(&host, &["conntrack", "-L", "-s", &address]);
        ensure!(left()?.contains(&OWN_PORT.to_string()), "{}", left()?);
        if taken_back {
            first.cni(cluster, "DEL", "1.0.0")?.expect_good()?;
            let ended = !left()?.contains(EGRESS[0]);
            ensure!(ended, "at the end of DEL there was still {}", left()?);
        }
        cluster.lab().end_last_pod("worker2")?;
        let mut next = pod(&format!("next{number}"), "Beside");
        next.namespace = NAMESPACE.into();
        let (place, second) = begin(cluster, "worker2", next)?;
        ensure!(second.addresses == first.addresses, "another address");
        let watch = Leaving::watch(cluster, |packet| packet.source != ip(THIRD[0]))?;
        second.cni(cluster, "ADD", "1.0.0")?.expect_good()?;
        let seen = from_own_port(&place, server)?;
        ensure!(seen == ip(THIRD[0]), "{app}: came from {seen}");
        let flows = left()?;
        let own = flows.contains(THIRD[0]);
        ensure!(own && !flows.contains(EGRESS[0]), "{flows}");
        watch.clean()?;
        second.cni(cluster, "DEL", "1.0.0")?.expect_good()?;
        cluster.lab().end_last_pod("worker2")?;
    }
    Ok(())
}

/// The source that the server sees of a pod's UDP from [`OWN_PORT`]. Like a program, the pod repeats unanswered
/// requests.
fn from_own_port(place: &Place, server: IpAddr) -> anyhow::Result<IpAddr> {
    const AGAIN: Duration = Duration::from_millis(100);
    place.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, OWN_PORT))?;
        socket.connect(echo(server))?;
        socket.set_read_timeout(Some(AGAIN))?;
        let deadline = Instant::now() + DEADLINE;
        let mut buffer = [0; 256];
        while Instant::now() < deadline {
            socket.send(b"whoami")?;
            if let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]);
                let head = text.lines().next().unwrap_or_default();
                return Ok(head.parse::<SocketAddr>()?.ip());
            }
        }
        bail!("no answer to UDP from port {OWN_PORT}")
    })?
}

fn without_an_agent_only_pods_that_may_be_selected_wait(cluster: &Cluster) -> Outcome {
    let mut free = pod("free", "MyApp");
    free.namespace = "elsewhere".into();
    let (_, known) = begin(cluster, "worker3", pod("older", "MyApp"))?;
    known.cni(cluster, "ADD", "1.0.0")?.expect_good()?;
    cluster.lab().kill("worker3", Hurt::Agent)?;
    let (place, sandbox) = begin(cluster, "worker3", free)?;
    let said = sandbox.cni(cluster, "ADD", "1.1.0")?.expect_good()?;
    ensure!(said.json == sandbox.result("1.1.0"), "{}", said.json);
    ensure!(first(&place, ip(SERVERS[0]))? == cluster.node_address("worker3", ip(SERVERS[0]))?);
    for command in ["STATUS", "DEL", "CHECK"] {
        sandbox.cni(cluster, command, "1.1.0")?.expect_good()?;
    }
    known.cni(cluster, "CHECK", "1.1.0")?.expect_good()?;
    known.cni(cluster, "DEL", "1.1.0")?.expect_good()?;
    let (place, sandbox) = begin(cluster, "worker3", pod("waits", "MyApp"))?;
    let said = sandbox.cni(cluster, "ADD", "1.1.0")?;
    let text = said.json["msg"].as_str().unwrap_or_default();
    ensure!(
        !said.good && said.json["code"] == 11,
        "it must try again: {}",
        said.json
    );
    ensure!(
        text.contains("default/waits") && text.contains("does not answer"),
        "{text}"
    );
    // A pod that waits while the agent comes back starts with the right source.
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "lab", "type": "egret-cni", "waitSeconds": 60,
    });
    config["prevResult"] = sandbox.result("1.0.0");
    std::thread::scope(|scope| -> Outcome {
        let waiting = scope.spawn(|| sandbox.call(cluster, &plugin()?, "ADD", &config));
        cluster.lab().start("worker3")?;
        let said = waiting.join().expect("the call does not panic")?;
        said.expect_good().map(drop)
    })?;
    ensure!(first(&place, ip(SERVERS[0]))? == ip(EGRESS[0]));
    Ok(())
}

fn a_new_agent_knows_what_the_last_one_was_told(cluster: &Cluster) -> Outcome {
    let (place, sandbox) = begin(cluster, "worker3", pod("survives", "MyApp"))?;
    sandbox.cni(cluster, "ADD", "1.0.0")?.expect_good()?;
    let watch = Leaving::watch(cluster, |packet| !EGRESS.map(ip).contains(&packet.source))?;
    cluster.lab().kill("worker3", Hurt::Agent)?;
    cluster.lab().start("worker3")?;
    // The new agent has programmed the node once it answers about another pod.
    let (other, second) = begin(cluster, "worker3", pod("later", "MyApp"))?;
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "lab", "type": "egret-cni", "waitSeconds": 60,
    });
    config["prevResult"] = second.result("1.0.0");
    second
        .call(cluster, &plugin()?, "ADD", &config)?
        .expect_good()?;
    for place in [place, other] {
        ensure!(first(&place, ip(SERVERS[0]))? == ip(EGRESS[0]));
    }
    watch.clean()
}

/// A path of a host as seen from outside.
fn inside(cluster: &Cluster, host: &str, path: &str) -> anyhow::Result<PathBuf> {
    let root = cluster.host(host)?.root()?;
    Ok(root.join(path.trim_start_matches('/')))
}

fn the_agent_keeps_the_plugin_in_the_runtimes_configuration(cluster: &Cluster) -> Outcome {
    let directory = inside(cluster, "worker1", CONF_DIRECTORY)?;
    std::fs::create_dir_all(&directory)?;
    let (single, list) = (
        directory.join("10-lab.conf"),
        directory.join("10-lab.conf.conflist"),
    );
    let read = || -> Option<Value> { serde_json::from_slice(&std::fs::read(&list).ok()?).ok() };
    // Written, and rewritten by its tool.
    for name in ["lab", "lab-anew"] {
        std::fs::write(&single, SINGLE.replace("\"lab\"", &format!("\"{name}\"")))?;
        wait_for("the plugin to be chained", DEADLINE, || {
            read().is_some_and(|list| {
                list["name"] == name && list["plugins"][1]["type"] == "egret-cni"
            }) && !single.exists()
        })?;
    }
    // Like a runtime: the entry of the list, with its version and name, and the program from its directory.
    let list = read().context("the list")?;
    let (place, sandbox) = begin(cluster, "worker1", pod("by-list", "MyApp"))?;
    let mut config = list["plugins"][1].clone();
    config["cniVersion"] = list["cniVersion"].clone();
    config["name"] = list["name"].clone();
    config["prevResult"] = sandbox.result("1.0.0");
    let program = PathBuf::from(format!("{BIN_DIRECTORY}/egret-cni"));
    let said = sandbox
        .call(cluster, &program, "ADD", &config)?
        .expect_good()?;
    ensure!(said.took < Duration::from_secs(5), "{:?}", said.took);
    ensure!(first(&place, ip(SERVERS[0]))? == ip(EGRESS[0]));
    Ok(())
}

fn cleanup_leaves_the_configuration_as_it_was(cluster: &Cluster) -> Outcome {
    cluster.lab().kill("worker1", Hurt::Agent)?;
    let host = cluster.host("worker1")?;
    let egret = egret_tests::egret()?;
    let egret = egret.to_str().context("a path of text")?;
    let cleanup = [
        egret,
        "agent",
        "--cleanup",
        "--cni-conf-directory",
        CONF_DIRECTORY,
        "--cni-bin-directory",
        BIN_DIRECTORY,
    ];
    // The kernel takes a moment to detect that the agent has ended.
    wait_for("the cleanup", DEADLINE, || {
        cluster.exec(&host, &cleanup).is_ok()
    })?;
    cluster.exec(&host, &cleanup)?;
    let names = |path: &str| -> anyhow::Result<Vec<String>> {
        let entries = std::fs::read_dir(inside(cluster, "worker1", path)?)?.flatten();
        Ok(entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect())
    };
    ensure!(
        names(CONF_DIRECTORY)? == ["10-lab.conf"],
        "{:?}",
        names(CONF_DIRECTORY)?
    );
    ensure!(names(BIN_DIRECTORY)?.is_empty());
    ensure!(
        names("/var/lib/egret")?.is_empty(),
        "{:?}",
        names("/var/lib/egret")?
    );
    let conf = std::fs::read(inside(cluster, "worker1", CONF_DIRECTORY)?.join("10-lab.conf"))?;
    let conf: Value = serde_json::from_slice(&conf)?;
    let mut wanted: Value = serde_json::from_str(SINGLE)?;
    wanted["name"] = json!("lab-anew");
    wanted["ipam"]["type"] = json!("lab-anew");
    ensure!(conf == wanted, "{conf}");
    Ok(())
}
