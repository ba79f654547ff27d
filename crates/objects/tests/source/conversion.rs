//! Invalid fields of policies: the finding names the field, shows the value and has a remedy.

use crate::scratch::{Ask, Scratch};
use egret_core::model::{AddressRequest, GatewayName, PortMatch, Protocol, WhenUnavailable};
use egret_objects::{Source, View};
use std::net::IpAddr;

pub fn view(text: &str) -> View {
    let scratch = Scratch::new();
    scratch.put("a.yaml", text);
    scratch.open_read_only().snapshot().unwrap()
}

pub fn manifest(kind: &str, spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    format!(
        "apiVersion: egret.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: x}}\nspec:\n  {spec}\n"
    )
}

/// (spec, field, shown value, words of the remedy): the object is left out.
pub type Bad = (&'static str, &'static str, &'static str, &'static str);

pub fn refused(kind: &str, cases: &[Bad]) {
    for (spec, field, value, remedy) in cases {
        let view = view(&manifest(kind, spec));
        let snapshot = &view.snapshot;
        let objects = snapshot.policies.len() + snapshot.gateways.len() + snapshot.pools.len();
        assert_eq!(objects, 0, "{kind} carried out: {spec}");
        let finding = view.finding(field);
        assert_eq!(finding.value, *value, "{spec}");
        assert!(
            finding.remedy.contains(remedy),
            "{spec}\n{}",
            finding.remedy
        );
        assert!(
            finding.remedy.contains("a.yaml line "),
            "{}",
            finding.remedy
        );
        assert_eq!(finding.object.name, "x");
    }
}

#[test]
fn egress_says_which_pods_and_which_address() {
    refused(
        "Egress",
        &[
            (
                "ip: 192.0.2.1",
                "spec",
                "none of them",
                "selector, podSelector and serviceName",
            ),
            (
                "ip: 192.0.2.1\nselector: {}\nserviceName: s",
                "spec.selector",
                "selector and serviceName",
                "exactly one",
            ),
            ("selector: {}", "spec", "none of them", "ip, ips and pool"),
            (
                "selector: {}\nip: 192.0.2.1\npool: p",
                "spec.ip",
                "ip and pool",
                "exactly one",
            ),
            ("selector: {}\nips: []", "spec.ips", "[]", "at least one"),
            (
                "selector: {}\nips: [192.0.2.1, 192.0.2.1]",
                "spec.ips[1]",
                "192.0.2.1",
                "once",
            ),
            (
                "selector: {}\npool: Not_A_Name",
                "spec.pool",
                "Not_A_Name",
                "name",
            ),
            (
                "selector: {}\nip: 192.0.2.1\ngateway: a/b",
                "spec.gateway",
                "a/b",
                "name",
            ),
            (
                "serviceName: ''\nip: 192.0.2.1",
                "spec.serviceName",
                "",
                "name",
            ),
            (
                "podSelector: {matchExpressions: [{key: a, operator: Is}]}\nip: 192.0.2.1",
                "spec.podSelector.matchExpressions[0].operator",
                "Is",
                "NotIn",
            ),
            (
                "podSelector: {matchExpressions: [{key: a, operator: In}]}\nip: 192.0.2.1",
                "spec.podSelector.matchExpressions[0].values",
                "",
                "at least one value",
            ),
            (
                "podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}\nip: 192.0.2.1",
                "spec.podSelector.matchExpressions[0].values",
                "b",
                "leave values out",
            ),
        ],
    );
}

#[test]
fn egress_addresses_can_be_sources() {
    let one = |ip: &'static str, remedy: &'static str| {
        let text = manifest("Egress", &format!("selector: {{}}\nip: '{ip}'"));
        let view = view(&text);
        assert!(view.names().is_empty(), "{ip}");
        let finding = view.finding("spec.ip");
        assert_eq!(finding.value, ip);
        assert!(finding.remedy.contains(remedy), "{}", finding.remedy);
    };
    one("192.168.122", "IPv4 address such as");
    one("192.168.122.0222", "IPv4 address such as");
    one("192.168.122.222/32", "without a prefix length");
    one(
        "::ffff:192.168.122.222",
        "the IPv4 address itself: 192.168.122.222",
    );
    one("224.0.0.1", "multicast");
    one("ff02::1", "multicast");
    one("127.0.0.1", "loopback");
    one("::1", "loopback");
    one("0.0.0.0", "unspecified");
    one("255.255.255.255", "broadcast");
    one("169.254.1.1", "link-local");
    one("fe80::1", "link-local");
    one("0.1.2.3", "0.0.0.0/8");
}

#[test]
fn egress_destinations_are_prefixes_with_ports() {
    let case = |destination: &str, field: &str, value: &str, remedy: &str| {
        let spec = format!("selector: {{}}\nip: 192.0.2.1\ndestinations: {destination}");
        let view = view(&manifest("Egress", &spec));
        assert!(view.names().is_empty(), "{destination}");
        let finding = view.finding(&format!("spec.destinations{field}"));
        assert_eq!(finding.value, value, "{destination}");
        assert!(finding.remedy.contains(remedy), "{}", finding.remedy);
    };
    case("[]", "", "[]", "everything outside the cluster");
    case(
        "[{cidr: 203.0.113.5/24}]",
        "[0].cidr",
        "203.0.113.5/24",
        "write 203.0.113.0/24 for the network, or 203.0.113.5/32",
    );
    case(
        "[{cidr: 203.0.113.5}]",
        "[0].cidr",
        "203.0.113.5",
        "203.0.113.5/32",
    );
    case(
        "[{cidr: '2001:db8::1/64'}]",
        "[0].cidr",
        "2001:db8::1/64",
        "2001:db8::/64",
    );
    case(
        "[{cidr: '::ffff:192.0.2.0/120'}]",
        "[0].cidr",
        "::ffff:192.0.2.0/120",
        "as IPv4",
    );
    case(
        "[{cidr: example.com}]",
        "[0].cidr",
        "example.com",
        "write a prefix",
    );
    case("[{except: []}]", "[0].cidr", "", "required");
    let net = |rest: &str| format!("[{{cidr: 203.0.113.0/24, {rest}}}]");
    case(
        &net("except: [198.51.100.0/25]"),
        "[0].except[0]",
        "198.51.100.0/25",
        "inside 203.0.113.0/24",
    );
    case(
        &net("except: [203.0.0.0/16]"),
        "[0].except[0]",
        "203.0.0.0/16",
        "inside 203.0.113.0/24",
    );
    case(
        &net("except: ['2001:db8::/64']"),
        "[0].except[0]",
        "2001:db8::/64",
        "inside",
    );
    case(
        &net("except: [203.0.113.0/24]"),
        "[0].except[0]",
        "203.0.113.0/24",
        "nothing would remain",
    );
    case(
        &net("ports: []"),
        "[0].ports",
        "[]",
        "every protocol and port",
    );
    case(
        &net("ports: [{port: 0}]"),
        "[0].ports[0].port",
        "0",
        "from 1 to 65535",
    );
    case(
        &net("ports: [{port: 65536}]"),
        "[0].ports[0].port",
        "65536",
        "from 1 to 65535",
    );
    case(
        &net("ports: [{port: 90, endPort: 80}]"),
        "[0].ports[0].endPort",
        "80",
        "from 90",
    );
    case(
        &net("ports: [{endPort: 80}]"),
        "[0].ports[0].endPort",
        "80",
        "port too",
    );
    case(
        &net("ports: [{protocol: ICMP, port: 8}]"),
        "[0].ports[0].port",
        "8",
        "ICMP has no ports",
    );
    case(
        &net("ports: [{protocol: icmp}]"),
        "[0].ports[0].protocol",
        "icmp",
        "TCP, UDP, SCTP, ICMP",
    );
    case(
        &net("ports: [{port: http}]"),
        "[0].ports[0].port",
        "http",
        "whole number",
    );
    // Both mistakes are reported at once.
    let two = view(&manifest(
        "Egress",
        "selector: {}\nip: x\ndestinations: [{cidr: y}]",
    ));
    assert_eq!(two.findings.len(), 2, "{:?}", two.findings);
}

#[test]
fn wrong_types_are_told_with_their_place() {
    refused(
        "Egress",
        &[
            (
                "selector: {app: 1}\nip: 192.0.2.1",
                "spec.selector.app",
                "1",
                "in quotes",
            ),
            (
                "selector: {app: true}\nip: 192.0.2.1",
                "spec.selector.app",
                "true",
                "in quotes",
            ),
            (
                "selector: {}\nips: 192.0.2.1",
                "spec.ips",
                "192.0.2.1",
                "write a list",
            ),
            (
                "selector: [app]\nip: 192.0.2.1",
                "spec.selector",
                "[\"app\"]",
                "write a mapping",
            ),
            (
                "selector: {}\nip: 192.0.2.1\npriority: high",
                "spec.priority",
                "high",
                "whole number",
            ),
            (
                "selector: {}\nip: 192.0.2.1\nwhenUnavailable: Allow",
                "spec.whenUnavailable",
                "Allow",
                "Drop",
            ),
        ],
    );
    let view = view("apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {name: x}\n");
    assert!(view.finding("spec").remedy.contains("required"));
}

#[test]
fn unknown_fields_are_told_and_the_object_is_carried_out() {
    let told = |kind: &str, spec: &str, field: &str, remedy: &str| {
        let view = view(&manifest(kind, spec));
        assert_eq!(view.names(), ["x"], "{:?}", view.findings);
        assert!(
            view.finding(field).remedy.contains(remedy),
            "{:?}",
            view.findings
        );
    };
    let base = "selector: {}\nip: 192.0.2.1";
    told(
        "Egress",
        &format!("{base}\nwhenUnavailble: Drop"),
        "spec.whenUnavailble",
        "write whenUnavailable",
    );
    told(
        "Egress",
        &format!("{base}\ncolour: red"),
        "spec.colour",
        "remove it: there is no field colour",
    );
    let nested = format!("{base}\ndestinations: [{{cidr: 203.0.113.0/24, excepts: []}}]");
    told(
        "Egress",
        &nested,
        "spec.destinations[0].excepts",
        "write except",
    );
    told(
        "ClusterEgress",
        &format!("{base}\nserviceName: s"),
        "spec.serviceName",
        "use an Egress",
    );
    // A dumped manifest contains a status; it is not ours and not a mistake.
    let dumped = format!(
        "{}status: {{addresses: 7, x: y}}\n",
        manifest("Egress", base)
    );
    view(&dumped).assert_clean();
}

#[test]
fn names_that_no_object_can_have_are_refused() {
    for (metadata, field) in [
        ("{}", "metadata.name"),
        ("{name: ../../etc}", "metadata.name"),
        ("{name: 7}", "metadata.name"),
        ("{name: x, namespace: a.b}", "metadata.namespace"),
        ("{name: x, namespace: ../up}", "metadata.namespace"),
    ] {
        let view = view(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {metadata}\n"
        ));
        assert_eq!(view.finding(field).object.to_string(), "File a.yaml");
    }
    for text in [
        "just words\n",
        "- a\n- b\n",
        "kind: Egress\nmetadata: {name: x}\n",
    ] {
        assert_eq!(view(text).findings.len(), 1, "{text}");
    }
}

#[test]
fn good_policies_keep_every_word() {
    let spec = "podSelector: {matchLabels: {a: b}}\nips: [192.0.2.1, 'fd00::1']\ngateway: g\npriority: 7\nwhenUnavailable: NodeAddress\ndestinations:\n- cidr: 203.0.113.0/24\n  except: [203.0.113.8/29]\n  ports: [{port: 53, protocol: UDP}, {port: 80, endPort: 90}, {protocol: SCTP}, {protocol: ICMP}]";
    let view = view(&manifest("Egress", spec));
    view.assert_clean();
    let policy = view.policy("x").unwrap();
    let ips: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    assert_eq!(policy.addresses, AddressRequest::Fixed(ips));
    assert_eq!(policy.gateway, Some(GatewayName("g".into())));
    assert_eq!(
        (policy.priority, policy.when_unavailable),
        (7, WhenUnavailable::NodeAddress)
    );
    let destination = &policy.destinations.as_ref().unwrap()[0];
    let port = |protocol, first, last| PortMatch {
        protocol,
        first,
        last,
    };
    let expected = [
        port(Protocol::Udp, 53, 53),
        port(Protocol::Tcp, 80, 90),
        port(Protocol::Sctp, 0, 65535),
        port(Protocol::Icmp, 0, 65535),
    ];
    assert_eq!(destination.ports, expected);
    assert_eq!(destination.except, ["203.0.113.8/29".parse().unwrap()]);
}
