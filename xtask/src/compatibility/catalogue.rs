//! The acceptance cases from earlier systems, by their ids.

/// One behaviour that users of an earlier system rely on, or that its issues asked for.
pub struct Case {
    /// Its id: letter of the system, and a number. Never reused for another case.
    pub id: &'static str,
    /// The required behaviour.
    pub says: &'static str,
    /// The missing part, or why not all of it can be shown here.
    pub reason: Option<&'static str>,
    /// Whether it does not hold, or no test here shows it: the reason explains it, and tests show at most the actual
    /// behaviour.
    pub open: bool,
}

/// Cases of one earlier system.
pub struct System {
    /// Heading.
    pub title: &'static str,
    /// Its cases.
    pub cases: &'static [Case],
}

const fn case(id: &'static str, says: &'static str) -> Case {
    Case {
        id,
        says,
        reason: None,
        open: false,
    }
}

/// Shown, but not in every environment that the case names.
const fn partly(id: &'static str, says: &'static str, reason: &'static str) -> Case {
    Case {
        id,
        says,
        reason: Some(reason),
        open: false,
    }
}

const fn without(id: &'static str, says: &'static str, reason: &'static str) -> Case {
    Case {
        id,
        says,
        reason: Some(reason),
        open: true,
    }
}

/// Reason for all cases of kube-egress-gateway.
const NOT_BEGUN: &str = "kube-egress-gateway's objects are a piece of work of their own, not begun";

/// Every case, in the order of the page.
pub const SYSTEMS: &[System] = &[
    System {
        title: "StaticEgressIP of nirmata",
        cases: STATIC_EGRESS_IP,
    },
    System {
        title: "StaticEgressIP of the fork",
        cases: FORK,
    },
    System {
        title: "kube-egress with one address",
        cases: KUBE_EGRESS,
    },
    System {
        title: "kube-egress with mappings",
        cases: MAPPINGS,
    },
    System {
        title: "egress-mapper",
        cases: EGRESS_MAPPER,
    },
    System {
        title: "The proposal (KEP)",
        cases: PROPOSAL,
    },
    System {
        title: "kube-egress-gateway",
        cases: KUBE_EGRESS_GATEWAY,
    },
];

const STATIC_EGRESS_IP: &[Case] = &[
    case(
        "N1",
        "what the Service's pods send into the `cidr` arrives with `egressip`",
    ),
    case(
        "N2",
        "their other destinations, and other pods, keep their source",
    ),
    case(
        "N3",
        "a selected pod on a gateway node leaves with `egressip` too",
    ),
    case(
        "N4",
        "answers reach the pod by TCP and ping when the gateway is another node; the pod's node does not masquerade",
    ),
    case(
        "N5",
        "two rules of one object, and two objects with one destination, work beside each other",
    ),
    case("N6", "status names the gateway node and its address"),
    case(
        "N7",
        "a gateway that is gone is replaced by a ready node that is no control plane's; nothing of it stays in use",
    ),
    case(
        "N8",
        "without an eligible node the data path stays as it is, a condition says so, and a node that comes is used",
    ),
    case(
        "N9",
        "the address is used on the device whose subnet has it; where none has, a condition says so",
    ),
    case(
        "N10",
        "pods that come, go and move are followed promptly and without a gap",
    ),
    case(
        "N11",
        "a deleted object, and changed, reordered or removed rules leave nothing of what was before",
    ),
    case(
        "N12",
        "a Service that is missing or deleted is said and harms nobody",
    ),
    case(
        "N13",
        "an agent that starts again adopts what is there: no duplicates, no interruption",
    ),
    case(
        "N14",
        "gateways with several devices and strict reverse path filters work; what was set is restored",
    ),
    partly(
        "N15",
        "Flannel (vxlan, host-gw), Calico (IPIP, without overlay), Weave and kube-router",
        "those plugins cannot be installed here (their devices need kernel modules); the lab and the real cluster route and masquerade as they do, by iptables of both kinds and by nftables, and the tests named do so",
    ),
    case(
        "N16",
        "the address of a Service's load balancer is refused as egress address, with the reason",
    ),
    case(
        "N17",
        "of several controllers one writes, another one takes over; nothing is written where nothing changes",
    ),
    case("N18", "nodes with iptables of both kinds work"),
    case(
        "N19",
        "what drops in FORWARD, as network policies do, keeps its effect on selected pods",
    ),
    case("N20", "all pods of a namespace can be selected"),
    case("N21", "one node that is gateway and has the pods works"),
    case(
        "N22",
        "an address that a node has is refused, and the node keeps it",
    ),
];

const FORK: &[Case] = &[
    case(
        "F1",
        "every ready node with the label is a gateway and in the status, no other",
    ),
    case(
        "F2",
        "`routing-table` and `routing-table-id`: `egressip` is a next hop",
    ),
    case("F3", "nothing stays of a pod that is selected no longer"),
    case("F4", "a node that loses the label is no gateway any more"),
    case("F5", "deletion removes tables and rules of policy routing"),
];

const KUBE_EGRESS: &[Case] = &[
    case("E1", "all pods of every node leave with the address"),
    case("E2", "pods and Services are reached as before"),
    case(
        "E3",
        "the address moves to another node: roles follow, and traffic goes on with the same address",
    ),
    case(
        "E4",
        "`--delete` restores what was before, on holders and others, and again harmlessly",
    ),
    case(
        "E5",
        "a missing `--vip`, unknown flags and missing devices end with an error and help",
    ),
    case(
        "E6",
        "without an interval it applies once and ends, and the rules stay",
    ),
    case("E7", "started again it makes no duplicates"),
    case(
        "E8",
        "its own route id and networks of pods and Services are heeded",
    ),
];

const MAPPINGS: &[Case] = &[
    case(
        "P1",
        "two addresses, each for other pods; pods without mapping are untouched",
    ),
    case(
        "P2",
        "pods of several nodes share an address, and answers return",
    ),
    case(
        "P3",
        "mappings that come, change and go are followed; nothing obsolete stays",
    ),
    case(
        "P4",
        "the pod's node does not masquerade what goes to the holder",
    ),
    case("P5", "SIGTERM removes everything, and nothing comes back"),
    case("P6", "addresses on different holders work at once"),
];

const EGRESS_MAPPER: &[Case] = &[
    case("M1", "what is installed is there"),
    case(
        "M2",
        "a `Vip` is active on one node, which its status names",
    ),
    case(
        "M3",
        "an `Egress` is listed and serves its pod once that runs",
    ),
    case(
        "M4",
        "the pod's packets arrive with the address, and answers return",
    ),
    case(
        "M5",
        "a pod made again with another address keeps the `Vip`",
    ),
    case(
        "M6",
        "without the objects, and uninstalled, the source is the node's again",
    ),
    case(
        "M7",
        "a deleted `Egress`, `Vip` or pod leaves nothing at once",
    ),
    case(
        "M8",
        "an `Egress` without its `Vip` is refused and damages nothing",
    ),
    case("M9", "deleting a `Vip` in use is safe"),
    case(
        "M10",
        "Deployments, DaemonSets, ReplicaSets and StatefulSets are followed as they scale",
    ),
    case("M11", "changes of the `EgressMapper` take effect"),
    case("M12", "pods of other namespaces work"),
    case(
        "M13",
        "a second `Vip` with one address or number is refused",
    ),
];

const PROPOSAL: &[Case] = &[
    case("S1", "one labelled pod, one address"),
    case("S2", "pods of several nodes share an address"),
    case("S3", "two groups of pods with two addresses in one cluster"),
    case(
        "S4",
        "a label put on or taken from a running pod changes its source",
    ),
    case(
        "S5",
        "pods, Services, nodes and excluded destinations are never redirected",
    ),
    case(
        "S6",
        "it works whether or not the network plugin masquerades",
    ),
    case("S7", "restarts and moves of pods do not change the address"),
    case(
        "S8",
        "addresses of the nodes' segment, and addresses that the outside routes",
    ),
];

const KUBE_EGRESS_GATEWAY: &[Case] = &[
    without(
        "K1",
        "end to end: an annotated pod leaves with an address of the prefix, others do not",
        NOT_BEGUN,
    ),
    without(
        "K2",
        "end to end: the user's own prefix is used, and can be deleted afterwards",
        NOT_BEGUN,
    ),
    without(
        "K3",
        "end to end: a pod with a gateway is reached by other pods",
        NOT_BEGUN,
    ),
    without(
        "K4",
        "end to end: excluded destinations see no address of the prefix",
        NOT_BEGUN,
    ),
    without(
        "K5",
        "end to end: two configurations of one pool have prefixes of their own",
        NOT_BEGUN,
    ),
    without(
        "K6",
        "end to end: private addresses, with the default route left to the cloud",
        NOT_BEGUN,
    ),
    without(
        "K7",
        "nine kinds of wrong objects are refused with a reason",
        NOT_BEGUN,
    ),
    without(
        "K8",
        "a deleted key is made again, and status follows",
        NOT_BEGUN,
    ),
    without(
        "K9",
        "the load balancer's objects are made, kept and repaired",
        NOT_BEGUN,
    ),
    without(
        "K10",
        "the load balancer goes with its last user",
        NOT_BEGUN,
    ),
    without(
        "K11",
        "prefixes: managed ones, the user's own, and changes between them",
        NOT_BEGUN,
    ),
    without(
        "K12",
        "scale sets and their instances follow, also after drift",
        NOT_BEGUN,
    ),
    without(
        "K13",
        "network interfaces of pools of machines follow",
        NOT_BEGUN,
    ),
    without(
        "K14",
        "changes from outside are repaired without any event",
        NOT_BEGUN,
    ),
    without(
        "K15",
        "gateway nodes that come and go are followed",
        NOT_BEGUN,
    ),
    without(
        "K16",
        "the node's set-up from scratch, again, and after a partial failure",
        NOT_BEGUN,
    ),
    without(
        "K17",
        "the last configuration takes everything along, no earlier one",
        NOT_BEGUN,
    ),
    without(
        "K18",
        "pods come and go as peers on every gateway",
        NOT_BEGUN,
    ),
    without("K19", "health probes and draining", NOT_BEGUN),
    without(
        "K20",
        "the plugin's ADD with and without annotation",
        NOT_BEGUN,
    ),
    without(
        "K21",
        "the plugin's DEL repeated and without anything left",
        NOT_BEGUN,
    ),
    without("K22", "routes of pods in the three cases", NOT_BEGUN),
    without(
        "K23",
        "the plugin's place in the runtime's configuration",
        NOT_BEGUN,
    ),
    without(
        "K24",
        "pods without annotation start without the service",
        NOT_BEGUN,
    ),
    without(
        "K25",
        "uninstalling leaves a working network configuration",
        NOT_BEGUN,
    ),
    without(
        "K26",
        "the load balancer's address is never a node's source",
        NOT_BEGUN,
    ),
    without("K27", "the status object stays bounded", NOT_BEGUN),
    without("K28", "failures and latencies are counted", NOT_BEGUN),
    without(
        "K29",
        "Services and names from pods in both modes",
        NOT_BEGUN,
    ),
    without(
        "K30",
        "the taint goes when the plugin is in place",
        NOT_BEGUN,
    ),
    without(
        "K31",
        "a gateway that restarts or drains keeps pods' egress",
        NOT_BEGUN,
    ),
    without("K32", "the cloud's configuration is checked", NOT_BEGUN),
    without(
        "K33",
        "errors of the cloud are tried again or told",
        NOT_BEGUN,
    ),
];
