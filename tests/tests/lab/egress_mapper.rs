//! egress-mapper's objects tested from outside: `Vip`, `Egress` and `EgressMapper`, real packets, captures at the
//! router. Ids are those of the acceptance cases from earlier systems.

use anyhow::ensure;
use egret_lab::Topology;
use egret_lab::process::wait_for;
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, ip, pod};
use egret_tests::foreign::{condition, expect_condition, mapper, message};
use egret_tests::steps::Group;
use egret_tests::watch::{Leaving, expect_source, wait_source};
use egret_tests::{Cluster, Outcome, steps};
use serde_json::{Value, json};

const VIP2: &str = "192.168.122.223";

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "walk",
        walk,
        steps![
            m2_m3_m4_a_vip_is_active_on_one_node_and_its_pod_leaves_with_it,
            m5_a_pod_made_again_with_another_address_keeps_the_vip,
            m7_a_deleted_egress_leaves_nothing,
            m7_an_address_taken_over_by_another_pod_does_not_inherit_the_vip,
            m8_m9_without_a_vip_nothing_leaves_and_nobody_else_is_hurt,
            m10_workloads_are_followed,
            m12_pods_of_other_namespaces_are_served_from_the_administrators,
            m13_the_younger_of_two_vips_is_refused,
            m11_the_mappers_networks_take_effect_at_once,
            m6_what_is_deleted_leaves_with_the_nodes_address_again,
        ],
    )]
}

fn walk() -> anyhow::Result<Cluster> {
    let settings = ["--front-end", "egressmapper"];
    let cluster = Cluster::up_set("mapper", &Topology::built_in(), &settings)?;
    cluster.without_egress_gateway()?;
    Ok(cluster)
}

fn vip() -> String {
    mapper(
        "Vip",
        "vip1",
        &format!("{{ip: {}, routeid: 64}}", EGRESS[0]),
    )
}

fn egress(name: &str, address: &str, kind: &str, of: &str) -> String {
    let spec = format!("{{ip: {address}, kind: {kind}, namespace: default, name: {of}}}");
    mapper("Egress", name, &spec)
}

/// Applies manifests without waiting.
fn put(cluster: &Cluster, manifests: &[String]) -> anyhow::Result<()> {
    let path = cluster.lab().dir().path().join("put.yaml");
    std::fs::write(&path, manifests.join("---\n"))?;
    cluster.lab().apply(&path)?;
    Ok(())
}

fn served(cluster: &Cluster, name: &str) -> anyhow::Result<Value> {
    cluster.wait_foreign("MapperEgress", name, "it is served", |status| {
        condition(status, "Ready") == "True/Programmed"
    })
}

/// Checks that the server sees the node's address for a pod of worker `n` that no policy selects.
fn expect_node(cluster: &Cluster, name: &str, worker: &str) -> Outcome {
    let node = cluster.node_address(worker, ip(SERVERS[0]))?;
    expect_source(&cluster.pod(name)?, ip(SERVERS[0]), node)
}

/// Cases: M2, M3, M4.
fn m2_m3_m4_a_vip_is_active_on_one_node_and_its_pod_leaves_with_it(cluster: &Cluster) -> Outcome {
    put(cluster, &[vip()])?;
    let unused = |status: &Value| condition(status, "Ready") == "True/NoPods";
    cluster.wait_foreign("MapperVip", "vip1", "known", unused)?;
    cluster.apply(&[egress("my-egress", EGRESS[0], "pod", "a1")])?;
    // The announcer may still change in the first moments; the object follows.
    cluster.wait_foreign("MapperVip", "vip1", "active", |status| {
        condition(status, "Ready") == "True/Announced"
            && cluster
                .announcer(ip(EGRESS[0]))
                .is_ok_and(|node| status["node"] == node)
    })?;
    cluster.wait_foreign("MapperEgress", "my-egress", "programmed", |status| {
        condition(status, "Ready") == "True/Programmed"
            && status["policies"][0]["pods"]["programmed"] == 1
    })?;
    let address = ip(EGRESS[0]);
    let watch = Leaving::watch(cluster, move |packet| packet.source != address)?;
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), address)?;
    watch.clean()?;
    expect_node(cluster, "b1", "worker1")
}

/// Cases: M5. The pod is deleted and recreated under its old name, with another address and on another node.
fn m5_a_pod_made_again_with_another_address_keeps_the_vip(cluster: &Cluster) -> Outcome {
    let object = egress("again", EGRESS[0], "pod", "again");
    put(cluster, std::slice::from_ref(&object))?;
    for (name, worker) in [("b1", "worker1"), ("b2", "worker2")] {
        let file = format!("pod.default.{name}.yaml");
        cluster.edit(&file, |pod| pod["metadata"]["name"] = json!("again"))?;
        let pods = |status: &Value, count: u64| {
            let pods = &status["policies"][0]["pods"];
            pods["selected"] == count && pods["programmed"] == count
        };
        cluster.wait_foreign("MapperEgress", "again", "it is served", |status| {
            condition(status, "Ready") == "True/Programmed" && pods(status, 1)
        })?;
        expect_source(&cluster.pod(name)?, ip(SERVERS[0]), ip(EGRESS[0]))?;
        cluster.edit(&file, |pod| pod["metadata"]["name"] = json!(name))?;
        wait_node(cluster, name, worker)?;
        // Otherwise the next iteration takes this one's status for its own.
        let nobody = |status: &Value| pods(status, 0);
        cluster.wait_foreign("MapperEgress", "again", "nobody is selected", nobody)?;
    }
    cluster.delete(&[object])?;
    cluster.wait_ready()
}

/// Cases: M7. The original left the mapping in place until some other event.
fn m7_a_deleted_egress_leaves_nothing(cluster: &Cluster) -> Outcome {
    let object = egress("gone", EGRESS[0], "pod", "b2");
    cluster.apply(std::slice::from_ref(&object))?;
    served(cluster, "gone")?;
    expect_source(&cluster.pod("b2")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    cluster.delete(&[object])?;
    let gone = || {
        cluster
            .object("MapperEgress", Some("default"), "gone")
            .is_none()
    };
    wait_for("the object is gone", DEADLINE, gone)?;
    wait_node(cluster, "b2", "worker2")
}

/// Waits until the pod leaves like one that no policy selects.
fn wait_node(cluster: &Cluster, name: &str, worker: &str) -> Outcome {
    let node = cluster.node_address(worker, ip(SERVERS[0]))?;
    wait_source(&cluster.pod(name)?, ip(SERVERS[0]), node)
}

/// Cases: M7. Another pod gets the address of one that had the VIP.
fn m7_an_address_taken_over_by_another_pod_does_not_inherit_the_vip(cluster: &Cluster) -> Outcome {
    let object = egress("lent", EGRESS[0], "pod", "b3");
    cluster.apply(std::slice::from_ref(&object))?;
    served(cluster, "lent")?;
    expect_source(&cluster.pod("b3")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    // The same address under another name, as when the pod was deleted and another one started.
    cluster.edit("pod.default.b3.yaml", |pod| {
        pod["metadata"]["name"] = json!("stranger");
    })?;
    wait_node(cluster, "b3", "worker3")?;
    cluster.edit("pod.default.b3.yaml", |pod| {
        pod["metadata"]["name"] = json!("b3");
    })?;
    cluster.delete(&[object])?;
    cluster.wait_ready()
}

/// Cases: M8, M9.
fn m8_m9_without_a_vip_nothing_leaves_and_nobody_else_is_hurt(cluster: &Cluster) -> Outcome {
    let object = egress("novip", VIP2, "pod", "a2");
    put(cluster, std::slice::from_ref(&object))?;
    let refused = |status: &Value| condition(status, "Accepted") == "False/VipNotFound";
    let status = cluster.wait_foreign("MapperEgress", "novip", "refused", refused)?;
    ensure!(message(&status, "Accepted").contains(VIP2), "{status:#}");
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    expect_node(cluster, "b2", "worker2")?;
    let second = mapper("Vip", "vip2", &format!("{{ip: {VIP2}, routeid: 65}}"));
    put(cluster, std::slice::from_ref(&second))?;
    served(cluster, "novip")?;
    expect_source(&cluster.pod("a2")?, ip(SERVERS[0]), ip(VIP2))?;
    // A Vip in use is deleted: its pods' traffic stops, with a reason, and never leaves with another address.
    let address = ip(VIP2);
    let pod = cluster.pod_address("a2", address)?;
    let node = cluster.node_address("worker2", address)?;
    let watch = Leaving::watch(cluster, move |packet| {
        packet.source == pod || packet.source == node
    })?;
    cluster.delete(&[second])?;
    cluster.wait_foreign("MapperEgress", "novip", "refused again", refused)?;
    let reached = egret_lab::traffic::ping_source(&cluster.pod("a2")?, ip(SERVERS[0]));
    ensure!(
        !matches!(&reached, Ok(source) if *source != address),
        "it left by {reached:?}"
    );
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    watch.clean()?;
    cluster.delete(&[object])?;
    cluster.wait_ready()?;
    wait_node(cluster, "a2", "worker2")
}

/// Makes a workload the owner of a pod of the lab.
fn own(cluster: &Cluster, name: &str, kind: &str, owner: &str, hash: Option<&str>) -> Outcome {
    cluster.edit(&format!("pod.default.{name}.yaml"), |pod| {
        pod["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": kind, "name": owner, "uid": "u", "controller": true,
        }]);
        if let Some(hash) = hash {
            pod["metadata"]["labels"]["pod-template-hash"] = json!(hash);
        }
    })
}

/// Cases: M10. The kinds that the original only promised; each follows its pods.
fn m10_workloads_are_followed(cluster: &Cluster) -> Outcome {
    own(cluster, "b1", "ReplicaSet", "web-7d4b", Some("7d4b"))?;
    own(cluster, "b2", "StatefulSet", "db", None)?;
    own(cluster, "b3", "DaemonSet", "logs", None)?;
    own(cluster, "other1", "ReplicaSet", "other-1", None)?;
    let objects = [
        egress("w1", EGRESS[0], "Deployment", "web"),
        egress("w2", EGRESS[0], "StatefulSet", "db"),
        egress("w3", EGRESS[0], "ds", "logs"),
        egress("w4", EGRESS[0], "ReplicaSet", "other-1"),
    ];
    put(cluster, &objects)?;
    for name in ["w1", "w2", "w3", "w4"] {
        served(cluster, name)?;
        cluster.wait_selected(name, 1)?;
    }
    for name in ["b1", "b2", "b3", "other1"] {
        expect_source(&cluster.pod(name)?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    }
    // Scaled up on another node, and rolled to another ReplicaSet.
    cluster.lab().add_pod("worker3", pod("web2", "Web"))?;
    own(cluster, "web2", "ReplicaSet", "web-99ff", Some("99ff"))?;
    cluster.wait_selected("w1", 2)?;
    expect_source(&cluster.pod("web2")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    own(cluster, "web2", "ReplicaSet", "web-99ff-x", None)?;
    cluster.wait_selected("w1", 1)?;
    cluster.delete(&objects)?;
    cluster.wait_ready()
}

/// Cases: M12. The administrating namespace is `default`; from any other, only its own pods can be named.
fn m12_pods_of_other_namespaces_are_served_from_the_administrators(cluster: &Cluster) -> Outcome {
    let mut other = pod("far", "Far");
    other.namespace = "team".to_owned();
    let place = cluster.lab().add_pod("worker3", other)?;
    let object = egress("far", EGRESS[0], "pod", "far");
    let object = object.replace(
        "kind: pod, namespace: default",
        "kind: pod, namespace: team",
    );
    cluster.apply(std::slice::from_ref(&object))?;
    served(cluster, "far")?;
    expect_source(&place, ip(SERVERS[0]), ip(EGRESS[0]))?;
    let stranger = egress("stranger", EGRESS[0], "pod", "a3");
    let stranger = stranger.replacen("namespace: default", "namespace: team", 1);
    put(cluster, std::slice::from_ref(&stranger))?;
    wait_for("it is refused", DEADLINE, || {
        let object = cluster.object("MapperEgress", Some("team"), "stranger");
        let status = object.unwrap_or_default()["status"].clone();
        condition(&status, "Accepted") == "False/NotAllowed"
    })?;
    expect_node(cluster, "a3", "worker3")?;
    cluster.delete(&[object, stranger])?;
    cluster.wait_ready()
}

/// Cases: M13.
fn m13_the_younger_of_two_vips_is_refused(cluster: &Cluster) -> Outcome {
    let again = mapper(
        "Vip",
        "vip-again",
        &format!("{{ip: {}, routeid: 70}}", EGRESS[0]),
    );
    let number = mapper("Vip", "vip-number", "{ip: 192.168.122.224, routeid: 64}");
    let bad = mapper("Vip", "vip-bad", "{ip: 192.168.122.225, routeid: 300}");
    put(cluster, &[again.clone(), number.clone(), bad.clone()])?;
    for (name, wanted) in [
        ("vip-again", "False/Duplicate"),
        ("vip-number", "False/Duplicate"),
        ("vip-bad", "False/Invalid"),
    ] {
        let refused = |status: &Value| condition(status, "Accepted") == wanted;
        cluster.wait_foreign("MapperVip", name, "refused", refused)?;
    }
    let status = cluster.foreign_status("MapperVip", "vip1");
    expect_condition(&status, "Ready", "True/Announced")?;
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    cluster.delete(&[again, number, bad])
}

/// Cases: M11. The networks of the `EgressMapper` are never redirected, from the moment they are written.
fn m11_the_mappers_networks_take_effect_at_once(cluster: &Cluster) -> Outcome {
    let of = |subnet: &str| {
        mapper(
            "EgressMapper",
            "mapper",
            &format!(
                "{{PodSubnet: {subnet}, ServiceSubnet: 10.96.0.0/12, InterfaceName: eth0, UpdateInterval: \"5\"}}"
            ),
        )
    };
    put(cluster, &[of("10.244.0.0/16")])?;
    let accepted = |status: &Value| condition(status, "Accepted") == "True/Accepted";
    let status = cluster.wait_foreign("MapperSettings", "mapper", "accepted", accepted)?;
    ensure!(
        message(&status, "Accepted").contains("UpdateInterval"),
        "{status:#}"
    );
    expect_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))?;
    put(cluster, &[of("203.0.113.0/24")])?;
    wait_node(cluster, "a1", "worker1")?;
    cluster.delete(&[of("203.0.113.0/24")])?;
    wait_source(&cluster.pod("a1")?, ip(SERVERS[0]), ip(EGRESS[0]))
}

/// Cases: M6.
fn m6_what_is_deleted_leaves_with_the_nodes_address_again(cluster: &Cluster) -> Outcome {
    cluster.delete(&[egress("my-egress", EGRESS[0], "pod", "a1"), vip()])?;
    wait_for("nothing is announced", DEADLINE, || {
        cluster.announcer(ip(EGRESS[0])).is_err()
    })?;
    wait_node(cluster, "a1", "worker1")
}
