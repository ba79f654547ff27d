//! Definitions of earlier systems' kinds on the real API server: every manifest that had an effect there is accepted,
//! and manifests that cannot be carried out are rejected. Needs root and a built Kubernetes.

use egret_cluster::ApiServer;
use egret_cluster::programs::skipped;
use std::path::Path;

const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds-front-ends");

const NIRMATA: &str = "staticegressips.nirmata.io/v1alpha1, kind: StaticEgressIP";
const FORK: &str = "staticegressips.io/v1alpha1, kind: StaticEgressIP";
const EGRESS: &str = "egress.mapper.com/v1alpha1, kind: Egress";
const VIP: &str = "egress.mapper.com/v1alpha1, kind: Vip";
const MAPPER: &str = "egress.mapper.com/v1alpha1, kind: EgressMapper";

/// Accepted manifests.
const TAKEN: &[(&str, &str)] = &[
    (
        NIRMATA,
        "{rules: [{egressip: 100.137.146.100, service-name: frontend, cidr: 4.2.2.2/32}]}",
    ),
    (
        NIRMATA,
        "{rules: [{egressip: 100.137.146.100, service-name: frontend, cidr: 4.2.2.2}]}",
    ),
    (
        NIRMATA,
        "{rules: [{egressip: 100.137.146.100, service-name: frontend, cidr: 0.0.0.0/0, note: kept}]}",
    ),
    (
        NIRMATA,
        "{rules: [{egressip: 'fd00::222', service-name: web, cidr: '2001:db8::/32'}]}",
    ),
    (
        FORK,
        "{rules: [{egressip: 100.137.146.100, service-name: frontend, cidr: 4.2.2.2/32}]}",
    ),
    (
        FORK,
        "{gateway-label: egress/gw, rules: [{egressip: 10.1.0.1, service-name: web, cidr: 0.0.0.0/0, routing-table-id: 100, routing-table: vlan}]}",
    ),
    (
        FORK,
        "{gateway-label: '', rules: [{egressip: 10.1.0.1, service-name: web, cidr: 10.0.0.0/8, routing-table-id: '100'}]}",
    ),
    (
        EGRESS,
        "{ip: 192.168.122.222, kind: pod, namespace: default, name: pod1}",
    ),
    (EGRESS, "{ip: 192.168.122.222, kind: Deployment, name: web}"),
    (EGRESS, "{ip: 192.168.122.222, kind: rc, name: web}"),
    (VIP, "{ip: 192.168.122.222, routeid: 64}"),
    (VIP, "{ip: 192.168.122.222}"),
    (
        MAPPER,
        "{KeepalivedVIPImage: a, KubeEgressImage: b, NeedMountDev: false, PodSubnet: 10.244.0.0/16, ServiceSubnet: 10.96.0.0/12, InterfaceName: eth0, UpdateInterval: '5'}",
    ),
    (MAPPER, "{PodSubnet: '', ServiceSubnet: ''}"),
    (
        MAPPER,
        "{PodSubnet: '10.244.0.0/16,10.245.0.0/255.255.0.0', ServiceSubnet: '10.96.0.0/12, fd00:96::/112'}",
    ),
    (
        NIRMATA,
        "{rules: [{egressip: 10.1.0.1, service-name: web, cidr: '4.2.2.2,203.0.113.0/255.255.255.0'}]}",
    ),
];

/// Rejected manifests, and the field in the rejection.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        NIRMATA,
        "{rules: [{egressip: 100.137.146.300, service-name: frontend, cidr: 4.2.2.2/32}]}",
        "egressip",
    ),
    (
        NIRMATA,
        "{rules: [{egressip: 100.137.146.100/32, service-name: frontend, cidr: 4.2.2.2/32}]}",
        "egressip",
    ),
    (
        NIRMATA,
        "{rules: [{egressip: 100.137.146.100, service-name: frontend, cidr: 4.2.2.2/33}]}",
        "cidr",
    ),
    (
        NIRMATA,
        "{rules: [{egressip: 100.137.146.100, cidr: 4.2.2.2/32}]}",
        "service-name",
    ),
    (NIRMATA, "{rules: []}", "spec.rules"),
    (NIRMATA, "{}", "spec.rules"),
    (
        EGRESS,
        "{ip: 192.168.122, kind: pod, name: pod1}",
        "spec.ip",
    ),
    (
        EGRESS,
        "{ip: 192.168.122.222, kind: planet, name: pod1}",
        "spec.kind",
    ),
    (VIP, "{ip: 192.168.122.222, routeid: 300}", "spec.routeid"),
    (MAPPER, "{PodSubnet: 10.244.0.0/33}", "spec.PodSubnet"),
    (MAPPER, "{PodSubnet: '10.244.0.0/16,'}", "spec.PodSubnet"),
    (
        MAPPER,
        "{ServiceSubnet: 10.96.0.0/255.255.0.256}",
        "spec.ServiceSubnet",
    ),
];

fn manifest(kind: &str, spec: &str) -> String {
    format!("{{apiVersion: {kind}, metadata: {{name: tried, namespace: default}}, spec: {spec}}}\n")
}

#[test]
fn what_earlier_systems_carried_out_is_taken_and_nonsense_is_refused() {
    if skipped("what_earlier_systems_carried_out_is_taken_and_nonsense_is_refused") {
        return;
    }
    let server = ApiServer::start().unwrap();
    let kubectl = server.kubectl();
    kubectl.define(Path::new(CRDS)).unwrap();
    let tried = |kind: &str, spec: &str| {
        let arguments = ["create", "--dry-run=server", "-f", "-"];
        kubectl.try_run(&arguments, &manifest(kind, spec)).unwrap()
    };
    for (kind, spec) in TAKEN {
        let said = tried(kind, spec);
        assert!(said.success, "{kind} {spec}: {}", said.err);
    }
    for (kind, spec, field) in REFUSED {
        let said = tried(kind, spec);
        assert!(!said.success, "{kind} {spec} was taken");
        assert!(said.err.contains(field), "{kind} {spec}: {}", said.err);
    }
    // Beside ours, and under the names that kubectl users know.
    let ours = Path::new(CRDS).with_file_name("crds");
    kubectl.define(&ours).unwrap();
    kubectl
        .apply(&manifest(VIP, "{ip: 192.168.122.222, routeid: 64}"))
        .unwrap();
    let shown = kubectl.run(&["get", "vips"]).unwrap();
    assert!(shown.contains("ROUTEID") && shown.contains("64"), "{shown}");
    let kep = "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {name: my-egress, namespace: default}\n\
               spec:\n  selector:\n    app: MyApp\n  ip: 192.168.122.222\n";
    kubectl.apply(kep).unwrap();
}
