//! The instructions in the READMEs of the earlier systems, on a cluster: objects and commands with the same fields, and
//! the promised source address, checked at the server.
//!
//! Steps of `install.rs`, after the upgrade that enables the front-ends:
//! - [`a_walk_with_static_egress_ips`]
//! - [`a_walk_with_a_mapper`]
//! - [`a_walk_with_kube_egress`]

use super::{SERVERS, Scene, WORKER1, ip, servers, shell};
use anyhow::{Context, ensure};
use egret_lab::Place;
use egret_lab::traffic::server::ECHO_PORTS;
use egret_tests::Outcome;
use egret_tests::installed::TIMEOUT;
use egret_tests::watch::wait_source;

/// Values that serve their objects without changes.
pub const VALUES: [&str; 2] = [
    "frontEnds.enabled={staticegressip,egressmapper}",
    "frontEnds.adoptAll=true",
];
/// Addresses that the walks use.
const FRONTEND: &str = "192.168.122.225";
const BACKEND: &str = "192.168.122.226";
const SHOP: &str = "192.168.122.227";
const KEEPALIVED: &str = "192.168.122.228";
/// A Service, and an object that names it; the fork's field selects the gateway nodes. Without cluster addresses,
/// because kube-proxy leaves chains of deleted Services until another one changes.
const STATIC_EGRESS_IPS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: frontend, namespace: default}
spec: {clusterIP: None, selector: {app: frontend}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: backend, namespace: default}
spec: {clusterIP: None, selector: {app: backend}, ports: [{port: 80}]}
---
apiVersion: staticegressips.nirmata.io/v1alpha1
kind: StaticEgressIP
metadata: {name: eip, namespace: default}
spec:
  rules:
  - {egressip: 192.168.122.225, service-name: frontend, cidr: 203.0.113.10/32}
---
apiVersion: staticegressips.io/v1alpha1
kind: StaticEgressIP
metadata: {name: eip-fork, namespace: default}
spec:
  gateway-label: egret.dev/gateway
  rules:
  - {egressip: 192.168.122.226, service-name: backend, cidr: 203.0.113.0/24}
"#;
/// A Vip, and an Egress for the pods of a Deployment.
const MAPPER: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, namespace: default}
spec:
  replicas: 1
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      nodeName: worker1
      terminationGracePeriodSeconds: 0
      containers:
      - {name: a, image: "egret.dev/busybox:1", imagePullPolicy: Never}
---
apiVersion: egress.mapper.com/v1alpha1
kind: EgressMapper
metadata: {name: mapper, namespace: default}
spec: {PodSubnet: 10.244.0.0/16, ServiceSubnet: 10.96.0.0/12, InterfaceName: eth0, UpdateInterval: "5"}
---
apiVersion: egress.mapper.com/v1alpha1
kind: Vip
metadata: {name: vip1, namespace: default}
spec: {ip: 192.168.122.227, routeid: 64}
---
apiVersion: egress.mapper.com/v1alpha1
kind: Egress
metadata: {name: shop, namespace: default}
spec: {ip: 192.168.122.227, kind: Deployment, namespace: default, name: shop}
"#;

/// Waits until the server sees the pod with this source by TCP, UDP and ping.
fn leaves_as(pod: &Place, source: &str) -> Outcome {
    wait_source(pod, ip(SERVERS[0]), ip(source))
}

/// Cases: N1, N2, N6, F1.
/// The manifests, the pods' source, the Service's other pods, and the status.
pub fn a_walk_with_static_egress_ips(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    let pods = [
        (installed.pod("frontend", "frontend", "worker1")?, FRONTEND),
        (installed.pod("backend", "backend", "worker2")?, BACKEND),
    ];
    installed.kubectl.apply(STATIC_EGRESS_IPS)?;
    for (pod, source) in &pods {
        leaves_as(pod, source).with_context(|| installed.logs())?;
    }
    let uids = [
        "get",
        "nodes",
        "-l",
        "egret.dev/gateway=true",
        "-o",
        "jsonpath={.items[*].metadata.uid}",
    ];
    let gateways = installed.kubectl.run(&uids)?;
    for (object, path) in [
        (
            "staticegressips.staticegressips.nirmata.io/eip",
            "{.status.gateway-node}",
        ),
        (
            "staticegressips.staticegressips.io/eip-fork",
            "{.status.gateways[0].gateway-node}",
        ),
    ] {
        let form = format!("jsonpath={path}");
        let get = ["get", object, "-o", &form];
        let told =
            installed
                .kubectl
                .wait_until("the gateway in the status", TIMEOUT, &get, |said| {
                    !said.out.is_empty()
                })?;
        ensure!(
            gateways.contains(told.out.trim()),
            "{object} names {}, gateways are {gateways}",
            told.out
        );
    }
    let delete = [
        "delete",
        "staticegressips.staticegressips.nirmata.io/eip",
        "staticegressips.staticegressips.io/eip-fork",
        "service/frontend",
        "service/backend",
    ];
    installed.kubectl.run(&delete)?;
    leaves_as(&pods[0].0, WORKER1[0])?;
    installed.delete_pods(&["frontend", "backend"])
}

/// Cases: M1, M2, M3, M4, M6, M10.
/// The installed objects exist, an address is active on one node, and the pods of a Deployment leave with it, including
/// later ones.
pub fn a_walk_with_a_mapper(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    installed.rolled_out()?;
    installed.kubectl.apply(MAPPER)?;
    let egress = "egresses.egress.mapper.com/shop";
    let vip = "vips.egress.mapper.com/vip1";
    let serve = || -> Outcome {
        let rollout = ["rollout", "status", "deployment/shop", "--timeout=120s"];
        installed.kubectl.run(&rollout)?;
        let form = "jsonpath={.items[?(@.status.phase==\"Running\")].metadata.name}";
        let pods = ["get", "pods", "-l", "app=shop", "-o", form];
        let name = installed.kubectl.run(&pods)?;
        let name = name.split_whitespace().next().context("a running pod")?;
        let pod = installed.cluster.pod("default", name)?;
        leaves_as(&pod, SHOP).with_context(|| installed.logs())
    };
    serve()?;
    installed.wait("condition=Ready", egress)?;
    let node = ["get", vip, "-o", "jsonpath={.status.node}"];
    let told = installed
        .kubectl
        .wait_until("the Vip's node", TIMEOUT, &node, |said| {
            !said.out.is_empty()
        })?;
    ensure!(told.out.starts_with("gateway"), "{}", told.out);
    let restart = ["delete", "pods", "-l", "app=shop", "--timeout=60s"];
    installed.kubectl.run(&restart)?;
    serve()?;
    let delete = [
        "delete",
        egress,
        vip,
        "egressmappers.egress.mapper.com/mapper",
        "deployment/shop",
        "--timeout=60s",
    ];
    installed.kubectl.run(&delete)?;
    Ok(())
}

/// The DaemonSet of that project with only the image replaced (its arguments, its limits and its grace period), and its
/// two mappings.
fn kube_egress(pod: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: podip-vip, namespace: kube-system}}
data: {{"{pod}": "{KEEPALIVED}"}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: vip-routeid, namespace: kube-system}}
data: {{"{KEEPALIVED}": "68"}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: kube-egress, namespace: kube-system}}
spec:
  selector: {{matchLabels: {{app: kube-egress}}}}
  template:
    metadata: {{labels: {{app: kube-egress}}}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 10
      tolerations: [{{operator: Exists}}]
      containers:
      - name: kube-egress
        image: "egret.dev/kube-egress:{version}"
        imagePullPolicy: Never
        resources: {{limits: {{cpu: "0.05", memory: 20Mi}}}}
        args:
        - --interface=eth0
        - --pod-subnet=10.244.0.0/16
        - --service-subnet=10.96.0.0/12
        - --update-interval=5
        - --vip-routeid-mappings=/etc/kube-egress/vip-routeid
        - --podip-vip-mappings=/etc/kube-egress/podip-vip
        securityContext: {{privileged: true}}
        volumeMounts:
        - {{name: vip-routeid, mountPath: /etc/kube-egress/vip-routeid}}
        - {{name: podip-vip, mountPath: /etc/kube-egress/podip-vip}}
      volumes:
      - {{name: vip-routeid, configMap: {{name: vip-routeid}}}}
      - {{name: podip-vip, configMap: {{name: podip-vip}}}}
"#
    )
}

/// Cases: E3, P5.
/// A DaemonSet with mappings from ConfigMaps, an address that another program moves, and the end of it.
pub fn a_walk_with_kube_egress(scene: &Scene) -> Outcome {
    let installed = &scene.installed;
    let pod = installed.pod("mapped", "none", "worker1")?;
    let address =
        installed
            .kubectl
            .run(&["get", "pod", "mapped", "-o", "jsonpath={.status.podIP}"])?;
    let hold = |node: &str, verb: &str| {
        shell(
            scene,
            node,
            &format!("ip address {verb} {KEEPALIVED}/32 dev eth0"),
        )
    };
    hold("worker2", "add")?;
    installed.kubectl.apply(&kube_egress(address.trim()))?;
    let rollout = [
        "rollout",
        "status",
        "daemonset/kube-egress",
        "--timeout=120s",
    ];
    let rolled = installed
        .kubectl
        .run(&[&rollout[..], &["-n", "kube-system"]].concat());
    rolled.with_context(|| installed.logs())?;
    leaves_as(&pod, KEEPALIVED).with_context(|| installed.logs())?;
    // As keepalived moves it: removed there, added here, and announced.
    hold("worker2", "del")?;
    hold("worker1", "add")?;
    for node in ["router", "worker2"] {
        shell(scene, node, &format!("ip neighbour flush to {KEEPALIVED}"))?;
    }
    leaves_as(&pod, KEEPALIVED)?;
    let delete = [
        "delete",
        "daemonset/kube-egress",
        "configmap/podip-vip",
        "configmap/vip-routeid",
    ];
    installed
        .kubectl
        .run(&[&delete[..], &["-n", "kube-system", "--timeout=60s"]].concat())?;
    hold("worker1", "del")?;
    let [server, _] = servers(ECHO_PORTS[1]);
    installed.leaves_as(&pod, server, ip(WORKER1[0]))?;
    installed.delete_pods(&["mapped"])
}
