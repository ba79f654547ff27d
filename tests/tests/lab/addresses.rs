//! Addresses that are in use: rejected or skipped where agents have found them, and never announced while another
//! machine of the segment has them. The machine `stranger` stands for any host of the segment outside the cluster.

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_lab::process::wait_for;
use egret_lab::topology::{Host, Role};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, egress, ip};
use egret_tests::foreign::{condition, message};
use egret_tests::steps::Group;
use egret_tests::watch::{expect_source, wait_source};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::{Value, json};

/// Addresses of the router on the segment of the nodes.
const ROUTER: [&str; 2] = ["192.168.122.1", "fd00:122::1"];
/// The first addresses of the segment that no host of the lab has: a VIP of gateway3.
const VIP: [&str; 2] = ["192.168.122.2", "fd00:122::2"];
/// The first addresses that a pool of the whole segment assigns then.
const FREE: [&str; 2] = ["192.168.122.3", "fd00:122::3"];
/// Addresses that the stranger has for a while.
const STRANGE: [&str; 2] = ["192.168.122.230", "fd00:122::230"];

pub fn groups() -> Vec<Group> {
    vec![
        Group::new(
            "somebodys",
            segment,
            steps![
                a_vip_of_another_node_is_reached_as_without_a_policy,
                a_vip_of_another_worker_is_reached_and_is_no_egress_address,
                the_routers_own_address_is_refused_and_others_go_on,
                a_pool_of_the_whole_segment_skips_what_is_somebodys,
                what_another_machine_has_is_not_announced_until_it_is_gone,
                another_machine_that_takes_an_address_in_use_is_told,
            ],
        ),
        Group::new(
            "routed",
            routed,
            steps![where_routers_lead_to_the_gateways_nobody_answers_for_addresses],
        ),
    ]
}

fn segment() -> anyhow::Result<Cluster> {
    let mut topology = Topology::built_in();
    let mut stranger = Host::plain("stranger", Role::Server, &["nodes"]);
    stranger.roles.clear();
    topology.hosts.push(stranger);
    let cluster = Cluster::up("somebodys", &topology)?;
    let gateway = cluster.host("gateway3")?;
    for (address, length) in VIP.iter().zip([24, 64]) {
        let network = format!("{address}/{length}");
        let words = ["ip", "address", "add", &network, "dev", "eth0", "nodad"];
        let words = if address.contains(':') {
            &words[..]
        } else {
            &words[..6]
        };
        cluster.exec(&gateway, words)?;
    }
    cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
    Ok(cluster)
}

/// Applies manifests without waiting.
fn put(cluster: &Cluster, manifests: &[String]) -> anyhow::Result<()> {
    let path = cluster.lab().dir().path().join("put.yaml");
    std::fs::write(&path, manifests.join("---\n"))?;
    cluster.lab().apply(&path)?;
    Ok(())
}

fn status(cluster: &Cluster, kind: &str, name: &str) -> Value {
    let namespace = (kind == "Egress").then_some("default");
    let object = cluster.object(kind, namespace, name);
    object.map_or(Value::Null, |object| object["status"].clone())
}

/// Waits until the status of an `Egress` satisfies the predicate.
fn wait_policy(
    cluster: &Cluster,
    name: &str,
    is: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    let waited = wait_for(name, DEADLINE, || {
        last = status(cluster, "Egress", name);
        is(&last)
    });
    waited.with_context(|| format!("{last:#}"))?;
    Ok(last)
}

/// One echo request and its answer within a second.
fn pings(cluster: &Cluster, pod: &str, address: &str) -> anyhow::Result<bool> {
    let place = cluster.pod(pod)?;
    Ok(cluster
        .exec(&place, &["ping", "-n", "-c", "1", "-W", "1", address])
        .is_ok())
}

/// Issue 13, case 10: keepalived or kube-vip has added the address, and no Node object names it.
fn a_vip_of_another_node_is_reached_as_without_a_policy(cluster: &Cluster) -> Outcome {
    // Flows spread over the gateways, and one of them is the node with the VIP.
    let pods = ["a1", "b1", "a2", "b2", "a3", "b3"];
    for vip in VIP {
        ensure!(
            pings(cluster, "other1", vip)?,
            "the lab's network is at fault"
        );
        let what = format!("every flow of selected pods to reach {vip} of another node");
        let flows = || pods.iter().cycle().take(4 * pods.len());
        wait_for(&what, DEADLINE, || {
            flows().all(|pod| pings(cluster, pod, vip).unwrap_or(false))
        })?;
    }
    for (server, address) in SERVERS.iter().zip(EGRESS) {
        expect_source(&cluster.pod("a1")?, ip(server), ip(address))?;
    }
    Ok(())
}

/// Issue 13, case 19: keepalived or kube-vip may run on workers. The agents of this lab read a directory, hence every
/// record; what they know from the Kubernetes API is tested in `kube_devices`.
fn a_vip_of_another_worker_is_reached_and_is_no_egress_address(cluster: &Cluster) -> Outcome {
    let place = cluster.host("worker2")?;
    let vip = "203.0.113.66";
    let words = ["ip", "address", "add", "203.0.113.66/32", "dev", "eth0"];
    cluster.exec(&place, &words)?;
    // The router is asked first, as for any address that is on no network of the node.
    let route = ["ip", "route", "add", vip, "via"];
    let worker2 = cluster.node_address("worker2", ip(vip))?.to_string();
    cluster.exec(
        &cluster.host("router")?,
        &[&route[..], &[worker2.as_str()]].concat(),
    )?;
    ensure!(
        pings(cluster, "other1", vip)?,
        "the lab's network is at fault"
    );
    let what = format!("every flow of selected pods of worker1 to reach {vip} of worker2");
    wait_for(&what, DEADLINE, || {
        ["a1", "b1"]
            .iter()
            .cycle()
            .take(8)
            .all(|pod| pings(cluster, pod, vip).unwrap_or(false))
    })?;
    let told = cluster.object("EgressNode", None, "gateway1");
    let told = told.map_or(Value::Null, |one| one["spec"]["deviceAddresses"].clone());
    let list = told.as_array().context("no list")?;
    ensure!(list.contains(&json!("203.0.113.66/32")), "{told}");
    let seen = cluster.worker_counters("worker1")?;
    let thief = egress("thief", "Other", &[vip], "");
    put(cluster, std::slice::from_ref(&thief))?;
    let refused = wait_policy(cluster, "thief", |status| {
        condition(status, "Accepted") == "False/AddressInCluster"
    })?;
    let said = message(&refused, "Accepted");
    ensure!(
        said.contains("Node worker2 has this address on a device"),
        "{said}"
    );
    ensure!(
        cluster.worker_counters("worker1")? == seen,
        "packets were dropped: {seen:?}"
    );
    cluster.delete(&[thief])?;
    wait_for("the policy to be gone", DEADLINE, || {
        status(cluster, "Egress", "thief").is_null()
    })?;
    Ok(())
}

/// The hardware address that a host has last learned for an address of its segment; `None` if there was no answer.
fn learned(cluster: &Cluster, host: &str, address: &str) -> anyhow::Result<Option<String>> {
    let place = cluster.host(host)?;
    // The result does not matter: the request is sent.
    let _ = cluster.exec(&place, &["ping", "-n", "-c", "1", "-W", "1", address]);
    let shown = cluster.exec(&place, &["ip", "-j", "neighbour", "show", "to", address])?;
    let shown: Value = serde_json::from_str(&shown)?;
    Ok(shown[0]["lladdr"].as_str().map(str::to_owned))
}

/// Issue 13, case 19.
fn the_routers_own_address_is_refused_and_others_go_on(cluster: &Cluster) -> Outcome {
    let worker = "worker1";
    let before = ROUTER.map(|router| learned(cluster, worker, router).ok().flatten());
    let thief = egress("thief", "Other", &ROUTER, "");
    put(cluster, std::slice::from_ref(&thief))?;
    let refused = wait_policy(cluster, "thief", |status| {
        condition(status, "Accepted") == "False/AddressInCluster"
    })?;
    let said = message(&refused, "Accepted");
    ensure!(
        said.contains(ROUTER[0]) && said.contains("router"),
        "{said}"
    );
    for (server, address) in SERVERS.iter().zip(EGRESS) {
        expect_source(&cluster.pod("a1")?, ip(server), ip(address))?;
    }
    for (router, before) in ROUTER.iter().zip(before) {
        ensure!(
            learned(cluster, worker, router)? == before,
            "{router} is another machine now"
        );
    }
    cluster.delete(&[thief])?;
    wait_for("the policy to be gone", DEADLINE, || {
        status(cluster, "Egress", "thief").is_null()
    })?;
    Ok(())
}

/// Issue 13, case 19: the network's own address, the router, the subnet-router anycast address, a VIP.
fn a_pool_of_the_whole_segment_skips_what_is_somebodys(cluster: &Cluster) -> Outcome {
    let pool =
        "apiVersion: egret.dev/v1alpha1\nkind: EgressPool\nmetadata: {name: segment}\nspec:\n  \
                cidrs: [192.168.122.0/24, \"fd00:122::/64\"]\n  namespaces: {all: true}\n"
            .to_owned();
    let policy = "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {name: pooled, namespace: default}\n\
                  spec:\n  selector: {app: Other}\n  pool: segment\n"
        .to_owned();
    cluster.apply(&[pool.clone(), policy.clone()])?;
    let given = status(cluster, "Egress", "pooled")["addresses"].clone();
    ensure!(given == json!(FREE), "{given}");
    for (server, address) in SERVERS.iter().zip(FREE) {
        wait_source(&cluster.pod("other2")?, ip(server), ip(address))?;
    }
    cluster.delete(&[policy, pool])
}

/// Adds an address to the stranger, or removes it.
fn strange(cluster: &Cluster, how: &str, addresses: &[&str]) -> Outcome {
    let place = cluster.host("stranger")?;
    for address in addresses {
        let length = if address.contains(':') { 64 } else { 24 };
        let network = format!("{address}/{length}");
        let mut words = vec!["ip", "address", how, &network, "dev", "eth0"];
        if how == "add" && address.contains(':') {
            words.push("nodad");
        }
        cluster.exec(&place, &words)?;
    }
    Ok(())
}

fn mac_of_the_stranger(cluster: &Cluster) -> anyhow::Result<String> {
    let place = cluster.host("stranger")?;
    let text = cluster.exec(&place, &["cat", "/sys/class/net/eth0/address"])?;
    Ok(text.trim().to_owned())
}

/// Whether policy and addresses report that the stranger has these addresses.
fn is_told(cluster: &Cluster, mac: &str, addresses: &[&str]) -> bool {
    let policy = status(cluster, "Egress", "strange");
    let said = message(&policy, "AddressConflict");
    let object = |address: &str| match ip(address) {
        std::net::IpAddr::V4(address) => format!("v4-{}", address.to_string().replace('.', "-")),
        std::net::IpAddr::V6(address) => {
            let groups = address.segments().map(|group| format!("{group:04x}"));
            format!("v6-{}", groups.join("-"))
        }
    };
    condition(&policy, "AddressConflict") == "True/ForeignMachine"
        && condition(&policy, "Ready") == "False/ForeignMachine"
        && addresses.iter().all(|address| {
            let record = status(cluster, "EgressAddress", &object(address));
            said.contains(&format!("{mac} since "))
                && said.contains(address)
                && message(&record, "AddressConflict").contains(mac)
        })
}

/// Whether a gateway's object and metrics report it, too.
fn a_gateway_tells(cluster: &Cluster, mac: &str, address: &str) -> bool {
    let gateways = ["gateway1", "gateway2", "gateway3"];
    gateways.iter().any(|gateway| {
        let node = status(cluster, "EgressNode", gateway);
        let conflicts = node["conflicts"].as_array().cloned().unwrap_or_default();
        let metric = format!("egret_agent_address_conflicts{{address=\"{address}\"}} 1");
        message(&node, "AddressConflict").contains(mac)
            && conflicts
                .iter()
                .any(|one| one["address"] == address && one["mac"] == mac)
            && cluster
                .metrics(gateway)
                .is_ok_and(|text| text.contains(&metric))
    })
}

/// Issue 13, case 19: RFC 5227 section 2.1 and RFC 4862 section 5.4.
fn what_another_machine_has_is_not_announced_until_it_is_gone(cluster: &Cluster) -> Outcome {
    let mac = mac_of_the_stranger(cluster)?;
    strange(cluster, "add", &STRANGE)?;
    put(cluster, &[egress("strange", "Other", &STRANGE, "")])?;
    let waited = wait_for("the stranger to be told", DEADLINE, || {
        is_told(cluster, &mac, &STRANGE)
    });
    waited.with_context(|| format!("{:#}", status(cluster, "Egress", "strange")))?;
    wait_for("a gateway to tell of it", DEADLINE, || {
        STRANGE
            .iter()
            .all(|address| a_gateway_tells(cluster, &mac, address))
    })?;
    for address in STRANGE {
        ensure!(
            cluster.announcer(ip(address)).is_err(),
            "{address} is announced"
        );
        let learned = learned(cluster, "router", address)?;
        ensure!(learned.as_ref() == Some(&mac), "{learned:?} and not {mac}");
    }
    for (server, address) in SERVERS.iter().zip(EGRESS) {
        expect_source(&cluster.pod("a1")?, ip(server), ip(address))?;
    }
    strange(cluster, "delete", &STRANGE)?;
    wait_policy(cluster, "strange", |status| {
        condition(status, "AddressConflict").is_empty()
            && condition(status, "Ready") == "True/Programmed"
    })?;
    for (server, address) in SERVERS.iter().zip(STRANGE) {
        wait_source(&cluster.pod("other1")?, ip(server), ip(address))?;
    }
    Ok(())
}

/// Issue 13, case 19: RFC 5227 section 2.4. The stranger's kernel would refuse the IPv6 address alone, since the
/// announcer answers its duplicate address detection.
fn another_machine_that_takes_an_address_in_use_is_told(cluster: &Cluster) -> Outcome {
    let mac = mac_of_the_stranger(cluster)?;
    strange(cluster, "add", &STRANGE)?;
    let waited = wait_for("the stranger to be told", DEADLINE, || {
        is_told(cluster, &mac, &STRANGE)
    });
    waited.with_context(|| format!("{:#}", status(cluster, "Egress", "strange")))?;
    for address in STRANGE {
        ensure!(
            cluster.announcer(ip(address)).is_ok(),
            "{address} is given up"
        );
    }
    strange(cluster, "delete", &STRANGE)?;
    wait_policy(cluster, "strange", |status| {
        condition(status, "AddressConflict").is_empty()
            && condition(status, "Ready") == "True/Programmed"
    })?;
    for (server, address) in SERVERS.iter().zip(STRANGE) {
        wait_source(&cluster.pod("other1")?, ip(server), ip(address))?;
    }
    Ok(())
}

fn routed() -> anyhow::Result<Cluster> {
    let cluster = Cluster::up("routed", &Topology::built_in())?;
    cluster.edit("egressgateway.default.yaml", |gateway| {
        gateway["spec"]["announce"]["mode"] = json!("Static");
    })?;
    // The stand-in for a network with routes to the gateways.
    let router = cluster.host("router")?;
    for (address, prefix) in EGRESS.iter().zip(["32", "128"]) {
        let to = format!("{address}/{prefix}");
        let via = cluster.node_address("gateway2", ip(address))?.to_string();
        cluster.exec(&router, &["ip", "route", "add", &to, "via", &via])?;
    }
    put(&cluster, &[egress("myapp", "MyApp", &EGRESS, "")])?;
    wait_policy(&cluster, "myapp", |status| {
        condition(status, "Ready") == "True/Programmed"
    })?;
    Ok(cluster)
}

/// Issue 13, case 23.
fn where_routers_lead_to_the_gateways_nobody_answers_for_addresses(cluster: &Cluster) -> Outcome {
    for (server, address) in SERVERS.iter().zip(EGRESS) {
        wait_source(&cluster.pod("a1")?, ip(server), ip(address))?;
        // A machine of the segment without such a route sends a request for the address.
        let learned = learned(cluster, "worker3", address)?;
        ensure!(learned.is_none(), "{learned:?} answers for {address}");
        ensure!(
            cluster.announcer(ip(address)).is_err(),
            "{address} is announced"
        );
    }
    let record = status(cluster, "EgressAddress", "v4-192-168-122-222");
    ensure!(condition(&record, "Ready") == "True/Routed", "{record:#}");
    Ok(())
}
