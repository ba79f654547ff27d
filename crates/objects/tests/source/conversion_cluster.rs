//! Gateways, pools and Kubernetes' own objects: invalid fields and valid ones.

use crate::conversion::{manifest, refused, view};
use crate::scratch::Ask;
use egret_core::model::{
    AddressRequest, AnnounceMode, GatewayName, NodeName, Outbound, PoolName, Quotas, Selection,
};
use std::net::IpAddr;
use std::num::NonZeroU32;

#[test]
fn gateways_and_pools_are_checked_too() {
    let switch = "nodeSelector: {}\ndefault: yes";
    refused(
        "EgressGateway",
        &[(switch, "spec.default", "yes", "write true or false here")],
    );
    let nodes = "nodeSelector: {}\n";
    for (rest, field, remedy) in [
        (
            "externalInterface: eth0/1",
            "spec.externalInterface",
            "auto",
        ),
        (
            "externalInterface: abcdefghijklmnop",
            "spec.externalInterface",
            "15 characters",
        ),
        (
            "probe: {intervalMs: 1}",
            "spec.probe.intervalMs",
            "from 10 to 60000",
        ),
        (
            "probe: {failures: 0}",
            "spec.probe.failures",
            "from 1 to 100",
        ),
        ("transport: {mtu: 100}", "spec.transport.mtu", "from 1280"),
        ("transport: {type: GRE}", "spec.transport.type", "VXLAN"),
        (
            "leases: {initialPorts: 100}",
            "spec.leases.initialPorts",
            "multiple of 64",
        ),
        (
            "leases: {expectedWorkers: 0}",
            "spec.leases.expectedWorkers",
            "from 1",
        ),
        (
            "leases: {quota: {perPod: 0}}",
            "spec.leases.quota.perPod",
            "from 1 to 64512",
        ),
        (
            "leases: {quota: {perNamespace: 64513}}",
            "spec.leases.quota.perNamespace",
            "from 1 to 64512",
        ),
        ("announce: {mode: ARP}", "spec.announce.mode", "L2"),
        ("outbound: Any", "spec.outbound", "AnyGateway"),
    ] {
        let view = view(&manifest("EgressGateway", &format!("{nodes}{rest}")));
        assert!(view.snapshot.gateways.is_empty(), "{rest}");
        assert!(
            view.finding(field).remedy.contains(remedy),
            "{:?}",
            view.findings
        );
    }
    refused(
        "EgressGateway",
        &[("default: true", "spec.nodeSelector", "", "required")],
    );
    refused(
        "EgressPool",
        &[
            (
                "namespaces: {all: true}",
                "spec.cidrs",
                "",
                "cidrs, ranges or both",
            ),
            (
                "namespaces: {}\ncidrs: [192.0.2.0/24]",
                "spec.namespaces",
                "",
                "exactly one",
            ),
            (
                "namespaces: {all: true, names: [a]}\ncidrs: [192.0.2.0/24]",
                "spec.namespaces",
                "",
                "exactly one",
            ),
            (
                "namespaces: {names: [A]}\ncidrs: [192.0.2.0/24]",
                "spec.namespaces.names[0]",
                "A",
                "name",
            ),
            (
                "namespaces: {all: true}\ncidrs: [192.0.2.1/24]",
                "spec.cidrs[0]",
                "192.0.2.1/24",
                "192.0.2.0/24",
            ),
            (
                "namespaces: {all: true}\ncidrs: [224.0.0.0/24]",
                "spec.cidrs[0]",
                "224.0.0.0/24",
                "multicast",
            ),
            (
                "namespaces: {all: true}\nranges: [{start: 192.0.2.9, end: 192.0.2.1}]",
                "spec.ranges[0].end",
                "192.0.2.1",
                "from 192.0.2.9",
            ),
            (
                "namespaces: {all: true}\nranges: [{start: 192.0.2.9, end: 'fd00::1'}]",
                "spec.ranges[0].end",
                "fd00::1",
                "one family",
            ),
            (
                "namespaces: {all: true}\ncidrs: [192.0.2.0/24]\nquota: {perPod: -1}",
                "spec.quota.perPod",
                "-1",
                "from 1 to 64512",
            ),
            ("cidrs: [192.0.2.0/24]", "spec.namespaces", "", "required"),
        ],
    );
}

#[test]
fn good_services_gateways_and_pools_keep_every_word() {
    let policy = view(&manifest("Egress", "serviceName: web\npool: p"));
    let policy = policy.policy("x").unwrap();
    let service = Selection::Service {
        namespace: "default".into(),
        name: "web".into(),
    };
    assert_eq!(policy.selection, service);
    assert_eq!(policy.addresses, AddressRequest::Pool(PoolName("p".into())));
    let spec = "default: true\nnodeSelector: {matchLabels: {a: b}}\nexternalInterface: eth1\nannounce: {mode: BGP}\noutbound: Announcer\ntransport: {type: WireGuard, mtu: 1400}\nprobe: {intervalMs: 100}\nleases: {initialPorts: 128, expectedWorkers: 9, quota: {perPod: 100}}";
    let gateways = view(&manifest("EgressGateway", spec)).snapshot.gateways;
    let gateway = &gateways[&GatewayName("x".into())];
    assert_eq!(gateway.external_interface.as_deref(), Some("eth1"));
    assert_eq!(
        (gateway.announce, gateway.outbound),
        (AnnounceMode::Bgp, Outbound::Announcer)
    );
    assert_eq!((gateway.mtu, gateway.wireguard), (Some(1400), true));
    assert_eq!(
        (gateway.probe_interval_ms, gateway.probe_failures),
        (100, 3)
    );
    assert_eq!(
        (gateway.initial_ports, gateway.expected_workers),
        (128, Some(9))
    );
    let quotas = |pod, namespace| Quotas {
        pod: NonZeroU32::new(pod),
        namespace: NonZeroU32::new(namespace),
    };
    assert_eq!(gateway.quotas, quotas(100, 0));
    let spec = "quota: {perNamespace: 64512}\nnamespaces: {all: true}\ncidrs: [192.0.2.0/30, 'fd00::/127']\nranges: [{start: 192.0.2.2, end: 192.0.2.9}]";
    let pools = view(&manifest("EgressPool", spec)).snapshot.pools;
    let range = |a: &str, b: &str| (a.parse::<IpAddr>().unwrap(), b.parse::<IpAddr>().unwrap());
    let expected = [range("192.0.2.0", "192.0.2.9"), range("fd00::", "fd00::1")];
    assert_eq!(pools[&PoolName("x".into())].ranges, expected);
    assert_eq!(pools[&PoolName("x".into())].quotas, quotas(0, 64_512));
}

#[test]
fn the_cluster_is_read_as_kubectl_prints_it() {
    let view = view(
        "apiVersion: v1\nkind: Node\nmetadata: {name: w, labels: {a: b}}\nspec: {podCIDRs: [10.244.1.0/24, 'fd00:244:1::/64']}\nstatus:\n  addresses:\n  - {type: Hostname, address: w}\n  - {type: ExternalIP, address: 198.51.100.1}\n  - {type: InternalIP, address: 192.168.122.11}\n  - {type: InternalIP, address: 'fd00:122::11'}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default, namespace: nonsense}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: x}}\nspec: {nodeName: w, hostNetwork: true}\nstatus: {phase: Succeeded, podIP: 10.244.1.5}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: unbound}\nspec: {}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selector: {app: x}, clusterIPs: [10.96.0.9, 'fd00:96::9']}\nstatus: {loadBalancer: {ingress: [{hostname: a.example}, {ip: 198.51.100.9}]}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: headless}\nspec: {clusterIP: None}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s-1, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nendpoints: [{addresses: [10.244.1.5]}, {addresses: [10.244.1.6], conditions: {ready: false}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: kubernetes, labels: {kubernetes.io/service-name: kubernetes}}\naddressType: IPv4\nendpoints: [{addresses: [192.168.122.5]}]\n",
    );
    view.assert_clean();
    let snapshot = &view.snapshot;
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let node = &snapshot.nodes[&NodeName("w".into())];
    let expected = [ip("192.168.122.11"), ip("fd00:122::11"), ip("198.51.100.1")];
    assert_eq!(node.addresses, expected);
    assert_eq!(node.pod_cidrs.len(), 2);
    assert_eq!(
        snapshot.namespaces["default"].labels["kubernetes.io/metadata.name"],
        "default"
    );
    assert_eq!(snapshot.pods.len(), 1);
    let pod = &snapshot.pods[&("default".into(), "p".into())];
    assert!(pod.host_network && pod.finished && pod.addresses == [ip("10.244.1.5")]);
    let service = &snapshot.services[&("default".into(), "s".into())];
    assert_eq!(
        service.cluster_addresses,
        [ip("10.96.0.9"), ip("fd00:96::9")]
    );
    assert_eq!(service.balancer_addresses, [ip("198.51.100.9")]);
    assert_eq!(service.endpoints.len(), 2);
    let headless = &snapshot.services[&("default".into(), "headless".into())];
    assert!(headless.cluster_addresses.is_empty() && headless.selector.is_none());
    assert_eq!(
        snapshot.api_server.iter().collect::<Vec<_>>(),
        [&ip("192.168.122.5")]
    );
}
