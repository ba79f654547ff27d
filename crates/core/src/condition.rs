//! Conditions: their types, their reasons, and what people do about each. They are an interface: alerts and scripts
//! name them. `docs/conditions.md` is generated from this table.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! types {
    ($($name:ident: $meaning:literal;)+) => {
        /// Types of conditions.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum ConditionType { $(#[doc = $meaning] $name,)+ }

        impl ConditionType {
            /// Every type, in the order in which people read them.
            pub const ALL: &'static [ConditionType] = &[$(ConditionType::$name,)+];

            /// What it says when it holds.
            pub fn meaning(self) -> &'static str {
                match self { $(ConditionType::$name => $meaning,)+ }
            }
        }
    };
}

types! {
    Accepted: "The object is understood and will be carried out.";
    Allocated: "Its addresses are known and not refused to it.";
    Ready: "It does what it is for.";
    PortsExhausted: "A worker gets or has no source ports left for an address.";
    PortsLow: "Most source ports of an address are leased.";
    QuotaReached: "Pods have as many connections to a destination as a quota allows; further ones are refused.";
    FamilyNotCovered: "The addresses lack a family: traffic of that family is refused.";
    Overlapped: "Another policy comes before this one for some pods and destinations.";
    Degraded: "It works, with less than was promised.";
    Fenced: "An operator says that a machine sends nothing any more.";
    Draining: "Somebody asks that a gateway hands its addresses and its traffic over to others.";
    AddressConflict: "Something else has an address too.";
    ForwardBlocked: "A node's firewall refuses or drops what passes through the tunnel, and Egret cannot mend it there.";
    PathBroken: "Packets that go the way of a pod's packets do not come back.";
    Unsupported: "The network plugin of a node takes packets past the kernel in a way that Egret does not know.";
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A condition, without its times: those are the business of whoever writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Condition {
    /// Its type.
    pub kind: ConditionType,
    /// True or False.
    pub status: bool,
    /// Why, in one word.
    pub reason: Reason,
    /// Why, in a sentence.
    pub message: String,
}

impl Condition {
    /// A condition that holds, or does not.
    pub fn new(
        kind: ConditionType,
        status: bool,
        reason: Reason,
        message: impl Into<String>,
    ) -> Self {
        let message = message.into();
        debug_assert!(
            reason.used_in().contains(&(kind, status)),
            "{kind}={status} is never because of {reason}"
        );
        Condition {
            kind,
            status,
            reason,
            message,
        }
    }
}

macro_rules! reasons {
    ($($name:ident: $($kind:ident $status:literal),+; $meaning:literal, $remedy:literal;)+) => {
        /// Reasons of conditions.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum Reason { $(#[doc = $meaning] $name,)+ }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// The conditions it is used in, each with the status that it then has.
            pub fn used_in(self) -> &'static [(ConditionType, bool)] {
                match self { $(Reason::$name => &[$((ConditionType::$kind, $status)),+],)+ }
            }

            /// What it says.
            pub fn meaning(self) -> &'static str {
                match self { $(Reason::$name => $meaning,)+ }
            }

            /// What to do about it; empty where nothing is wrong.
            pub fn remedy(self) -> &'static str {
                match self { $(Reason::$name => $remedy,)+ }
            }
        }
    };
}

reasons! {
    Accepted: Accepted true;
        "It can be carried out.", "";
    HostNetworkPods: Accepted true;
        "Matching pods use their node's network and are never selected.",
        "Give those pods a network of their own, or allow the nodes' addresses outside.";
    Invalid: Accepted false;
        "A field cannot be carried out as it is; the message names it.",
        "Change the field as the message says.";
    UnsupportedGateway: Accepted false;
        "The gateway asks for something that is not built.",
        "Change the field that the message names.";
    GatewayNotFound: Accepted false, Ready false;
        "The named gateway does not exist.", "Create that EgressGateway, or name another.";
    GatewayAmbiguous: Accepted false, Ready false;
        "No gateway is named, none is marked default, and there is not exactly one.",
        "Set spec.gateway, or mark one EgressGateway default.";
    GatewayMismatch: Accepted false;
        "The address belongs to a pool of another gateway.",
        "Name the pool's gateway, or an address outside the pool.";
    PoolNotFound: Accepted false;
        "The named pool does not exist.", "Create that EgressPool, or name another.";
    AddressDenied: Accepted false;
        "The address is not for this namespace.",
        "Ask for the namespace to be listed in the pool's spec.namespaces, or for a pool with this address.";
    AddressInvalid: Accepted false;
        "No host could use this address.", "Use a unicast address that the outside knows.";
    AddressInCluster: Accepted false, AddressConflict true;
        "A node, a router of a node, a pod, a Service or a Service's load balancer has this address.",
        "Use an address that nothing else has.";
    ForeignMachine: AddressConflict true, Ready false;
        "A machine that is no gateway answers for the address on the gateways' segment; the message has its hardware address.",
        "Take the address from that machine, or use another. Where a router answers for everything (proxy ARP), use `announce.mode: Static`.";
    AddressConflict: Accepted false;
        "An older policy uses this address by another gateway.", "Use one gateway per address.";
    NoAddress: Accepted false;
        "The policy asks for no address.", "Set ip, ips or pool.";
    NotAllowed: Accepted false;
        "The object asks for pods of another namespace, which it may not from where it stands.",
        "Write the object in the pods' namespace, or in a namespace that `--front-end-admin-namespace` names.";
    VipNotFound: Accepted false;
        "No `Vip` has the address that the object names; its pods' traffic is dropped.",
        "Create a Vip with this address, or name another.";
    Duplicate: Accepted false;
        "An older object of its kind has the same address or number.",
        "Remove one of the two; the message names the other.";
    NotInUse: Accepted false;
        "Another object of its kind is in force.",
        "Remove the other one, which the message names.";
    Allocated: Allocated true;
        "The addresses are there; the message lists them.", "";
    NotAccepted: Allocated false, Ready false;
        "The policy is refused; Accepted says why.", "See Accepted.";
    NotAllocated: Ready false;
        "An address is missing; Allocated says why.", "See Allocated.";
    PoolExhausted: Allocated false, Ready false;
        "The pool has no free address of a family.", "Add addresses to the pool, or remove policies.";
    Programmed: Ready true;
        "Everything is in the kernel as wanted.", "";
    NoPods: Ready true;
        "No running pod is selected.", "";
    OtherPolicyWins: Ready true, Overlapped true;
        "Another policy wins for destinations of pods; the message names it. With Ready: everywhere, so that nothing leaves by this one.",
        "Raise priority, or narrow one of them.";
    Serving: Ready true;
        "A gateway node serves.", "";
    Available: Ready true;
        "Addresses are free.", "";
    Announced: Ready true;
        "A gateway answers for the address.", "";
    Routed: Ready true;
        "Routers lead to the gateways of the address (`announce.mode: Static`); nobody answers ARP or ND for it.", "";
    NotAnnounced: Ready false;
        "No gateway answers for the address yet.",
        "Wait for a gateway of its EgressGateway to live; see `egret status`.";
    Programming: Ready false;
        "Some selected pods are not programmed yet.", "Wait; if it stays, see the EgressNode of the pods' nodes.";
    NoGateway: Ready false, Degraded true;
        "No gateway node lives.",
        "Label nodes for the gateway's nodeSelector, see that its agents run, and open UDP 14789 between nodes, in both directions.";
    NamespaceNotFound: Ready false;
        "There is no namespace whose pods it could select.",
        "Create the namespace, or name another; see spec.namespaceSelector of a ClusterEgress.";
    ServiceNotFound: Ready false;
        "The named Service does not exist, so no pod is selected.", "Create the Service, or name another.";
    PortsExhausted: Ready false;
        "A worker has no source ports; PortsExhausted says where.", "See PortsExhausted.";
    NotProgrammed: Ready false;
        "The agent could not bring the kernel into the wanted state; the message has its error.",
        "Mend what the message names; the agent tries again by itself.";
    NoFreeBlock: PortsExhausted true;
        "No port block of an address is free for a worker.",
        "Add addresses, or lower leases.initialPorts of the gateway.";
    FewFreePorts: PortsLow true;
        "At least 80 % of an address's source ports are leased; ports come back from workers that need fewer.",
        "Add addresses to the policy before new workers find none.";
    DestinationFull: PortsExhausted true;
        "A worker uses all its source ports of an address towards one destination; new flows to it are refused.",
        "Add addresses, raise leases.initialPorts, or keep connections open instead of making new ones.";
    PodQuota: QuotaReached true;
        "A pod has as many connections to one destination as its quota allows, or a namespace does; the message names them.",
        "Raise leases.quota of the gateway or quota of the pool, or keep connections open instead of making new ones; \
         forgotten 5 minutes after the last refusal.";
    NoAddressOfFamily: FamilyNotCovered true;
        "The policy has no address of a family that its pods use; such traffic is refused at once.",
        "Add an address of that family, or destinations of the other family only.";
    NftablesDatapath: Degraded true;
        "A gateway runs without eBPF, so nobody checks who owns a source port there.",
        "Give the node a kernel of `docs/requirements.md`, or use others as gateways.";
    NotOnLink: Degraded true;
        "An address is in no subnet of the gateways' external devices: nobody asks for it there by ARP or ND.",
        "Route it to the gateways (`announce.mode: Static` says that you do), or use an address of their segment.";
    FailStatic: Degraded true;
        "No gateway answers; the last ones are kept and nothing leaves by another way.",
        "See that the gateways run, and open UDP 14789 between nodes, in both directions.";
    NodeAddress: Degraded true;
        "Traffic leaves by the node's address, as whenUnavailable: NodeAddress asks.",
        "Mend what Ready names.";
    ProtocolRefused: Degraded true;
        "Selected pods sent a protocol without ports (GRE, ESP and the like), which cannot be translated by ports; it was refused.",
        "Carry it in UDP (ESP by RFC 3948), or exclude the destination from the policy; forgotten 5 minutes after the last packet.";
    IpvsService: Degraded true;
        "Packets of selected pods to a Service with an endpoint outside the cluster are dropped: IPVS sends them past the gateways (counter `guard_ipvs`).",
        "Run kube-proxy in mode iptables or nftables, or let these pods use the endpoint's own address; forgotten 5 minutes after the last packet.";
    QuotaIgnored: Degraded true;
        "Quotas apply to pods of the node, and its kernel cannot count connections.",
        "Give the node a kernel with `CONFIG_NFT_CONNLIMIT`.";
    RecordUnreadable: Degraded true;
        "The `EgressAddress` cannot be read: its leases stay as they are, and no node gets ports of it.",
        "Put the field that the finding names back as it was. If the object is deleted, it is made anew, and nothing is granted for two minutes where a node may be forgotten.";
    MarkOverlap: Degraded true;
        "A policy routing rule of another component looks at bits of Egret's packet mark (`MARK_MASK` of `docs/numbers.md`).",
        "Give that component other bits: its packets may take Egret's ways, and Egret's its.";
    AwaitingGateways: Degraded true;
        "Gateways do not know this node's source ports yet.", "Wait; if it stays, see the gateways' agents.";
    NoExternalDevice: Degraded true;
        "A gateway node has no external device.", "Set externalInterface, or give the node a default route.";
    NoUplink: Ready false, Degraded true;
        "The external device of a gateway node has carrier, and no next hop of it answers, or it has no route to other networks. With Ready: so it is at every gateway that runs.",
        "See the network behind it: VLAN, switch, router, routes; until then other gateways serve, where they do better.";
    CutOff: Degraded true;
        "No other gateway answers a gateway node, and no packet of another node reaches it, or another machine answers for its addresses.",
        "Mend its link to the nodes, and open UDP 14789 there in both directions; until then it announces nothing that others may serve.";
    NextHopNotAttached: Ready false, Degraded true;
        "A gateway node has the next hop of a policy on no network of its own, or cannot carry packets to one.",
        "Give the gateway nodes an address of that network (on a VLAN device, for example), or name a router that they have.";
    NextHopPath: Degraded true;
        "Programs of the network plugin may take answers of a next hop past the node's stack; such traffic of its pods is dropped.",
        "Run those pods on other nodes, or tell the agent the truth by `--cni-path`; see `docs/front-ends.md`.";
    FencedByOperator: Fenced true;
        "`egret fence` was called for the node: gateways drop what it sends, its ports go to others, and it is no gateway.",
        "`egret unfence` it once the machine is repaired, or delete its Node object.";
    DrainRefused: Draining true;
        "No other gateway serves its addresses, or all others are drained too: it goes on as if nobody had asked.",
        "Bring another gateway of the group up, or `egret undrain` one.";
    HandingOver: Draining true;
        "Others are to announce its addresses; the message names those that it still answers for.",
        "Wait; if it stays, see the agents of the group's other gateways.";
    PacketsArrive: Draining true;
        "Others announce its addresses. Packets still arrive, and it forwards them.",
        "Wait; if it stays, a router keeps an old ARP or ND entry or has a route to it, or a worker reaches no other gateway.";
    Drained: Draining true;
        "It carries nothing any more: the machine may be stopped.", "";
    ExternalDeviceConflict: Degraded true;
        "Gateways of one node ask for different external devices.", "Use one externalInterface per node.";
    Limit: Degraded true;
        "A limit was reached; the message names it.", "See `docs/numbers.md`.";
    PodAddressConflict: Degraded true;
        "Two pods of a node have one address and different policies; what the policies of either name is refused to both.",
        "Delete the one that is stale.";
    NoPodCidr: Ready false, Degraded true;
        "Nothing says which addresses are pods': a policy could take traffic to them out of the cluster, or the agent is to \
         drop packets of unknown pods (`--unknown-pods=drop`) and cannot tell them.",
        "Name the prefixes of pods by `--never-destination`; for `--unknown-pods=drop`, use the CNI plugin `egret-cni` there, \
         or a network plugin that takes pods' addresses from spec.podCIDRs.";
    PolicyDrop: ForwardBlocked true;
        "A FORWARD policy drops, in tables that Egret cannot append to.",
        "Accept forwarded packets of the tunnel device there; the message has the command.";
    RuleRefuses: ForwardBlocked true;
        "A rule of a firewall refuses everything that no rule before it has accepted, where Egret cannot put one before it.",
        "Accept packets of the tunnel device before it; the message has the command.";
    ReversePathFiltered: ForwardBlocked true;
        "A rule of a firewall drops what comes by another device than the route back to its source, so every answer out of the tunnel.",
        "Make the filter a loose one, or accept packets of the tunnel device before it; the message has the command.";
    LostInPrerouting: PathBroken true;
        "Canaries are lost in the prerouting hook, before they are routed: rules of others drop what pods send.",
        "See `egret doctor` on the node; allow packets of pods in the chains of the prerouting hook (raw, mangle).";
    NotRouted: PathBroken true;
        "Canaries are lost between prerouting and the forward hook: the kernel has no way for them, or its reverse-path filter drops them.",
        "See `ip rule`, `ip route` and `net.ipv4.conf.*.rp_filter` on the node.";
    NotForwarded: PathBroken true;
        "Canaries are lost in the forward hook: a rule of others drops or refuses what goes through the tunnel.",
        "Accept forwarded packets of the tunnel device there; `egret doctor` on the node names the chain.";
    LostInPostrouting: PathBroken true;
        "Canaries are lost behind the forward hook, before the translation is checked: rules of others in postrouting, or a device that is too small.",
        "Allow packets to the tunnel device in the chains of the postrouting hook.";
    NotTranslated: PathBroken true;
        "Canaries reach the guard with another source than the leased one: a rule of others translates them first.",
        "Let that rule leave packets to the tunnel device alone, or give its chain a priority above 90.";
    NotAnsweredByGateway: PathBroken true;
        "Canaries leave by the tunnel and no answer comes to the node: a firewall between, the gateway's input hook, or the gateway itself.",
        "Open UDP 14789 between the nodes and on the gateways; look at the gateway's agent; compare the MTU of the underlay.";
    LostInTunnelInput: PathBroken true;
        "Answers come to the node and are lost in its input hook.",
        "Open UDP 14789 on this node for the gateways.";
    AnswerLostOnReversePath: PathBroken true;
        "Answers come out of the tunnel and are lost before they are forwarded: a filter of the reverse path, by rules or by the kernel.",
        "Exempt the tunnel device from the rule (`fib saddr . iif oif missing drop`, `-m rpfilter`); `egret doctor` on the node names it.";
    AnswerNotForwarded: PathBroken true;
        "Answers come out of the tunnel and are lost in the forward hook or behind it.",
        "Accept forwarded packets of the tunnel device there; `egret doctor` on the node names the chain.";
    UnknownPath: Unsupported true;
        "Packets of the node's pods may pass its stack by in a way that Egret cannot follow: selected traffic that it \
         sees is refused, and nothing is reported as programmed there.",
        "Mend what the message names, or tell the agent the truth by `--cni-path`; see `docs/requirements.md`.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
