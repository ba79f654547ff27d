use super::*;
use egret_core::model::{
    AddressRequest, Kind, LabelSelector, Labels, Namespaces, ObjectRef, Pod, Policy, Selection,
    Settings, UnpooledAddresses,
};
use egret_core::node::{DestinationRange, Target, TargetId};
use egret_core::node::{
    Group, NodeState, PodMap, Profile, ProfileId, Tunnel, Verdict, WorkerState,
};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::UnixStream;

const ADDRESS: &str = "10.244.1.9";

fn me() -> NodeName {
    NodeName("w1".into())
}

/// One policy in the namespace `default`; pods by name and uid.
fn snapshot(pods: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::empty(Settings {
        unpooled_addresses: UnpooledAddresses::Allow,
        never_destinations: Vec::new(),
        service_cidrs: Vec::new(),
        hold_down_secs: 120,
    });
    let object = ObjectRef {
        kind: Kind::Egress,
        namespace: "default".into(),
        name: "one".into(),
    };
    let selection = Selection::Labels {
        namespaces: Namespaces::Names(["default".into()].into()),
        pods: LabelSelector::default(),
        nodes: None,
    };
    let addresses = AddressRequest::Fixed(vec!["192.0.2.1".parse().unwrap()]);
    snapshot.policies.push(Policy {
        uid: "p".into(),
        ..Policy::new(object, selection, addresses)
    });
    for (name, uid) in pods {
        let pod = Pod {
            namespace: "default".into(),
            name: (*name).into(),
            uid: (*uid).into(),
            owner: None,
            labels: Labels::new(),
            node: me(),
            addresses: Vec::new(),
            host_network: false,
            finished: false,
        };
        snapshot
            .pods
            .insert(("default".into(), (*name).into()), pod);
    }
    snapshot
}

/// A kernel in which `ADDRESS` is that of a selected pod, with or without a usable lease; or of none.
fn kernel(selected: Option<bool>) -> NodeOutcome {
    let mut worker = WorkerState::default();
    if let Some(usable) = selected {
        let (profile, target) = (ProfileId(1), TargetId(1));
        worker.pods.insert(ADDRESS.parse().unwrap(), profile);
        let everything = DestinationRange {
            first: "0.0.0.0".parse().unwrap(),
            last: "255.255.255.255".parse().unwrap(),
            protocol: None,
            port_first: 0,
            port_last: 65535,
            verdict: Verdict::Target(target),
        };
        let boxes = vec![everything];
        let portless = Vec::new();
        worker.profiles.insert(
            profile,
            Profile {
                ranges: boxes,
                portless,
            },
        );
        worker.groups.insert(1, Group::Tunnel([1].into()));
        let ranges = match usable {
            true => vec![egret_core::model::PortRange {
                first: 1024,
                last: 1087,
            }],
            false => Vec::new(),
        };
        let address = "192.0.2.1".parse().unwrap();
        let group = 1;
        worker.targets.insert(
            target,
            Target {
                address,
                group,
                ranges,
                traffic_key: egret_core::node::TrafficKeyId::OTHER,
                quotas: Default::default(),
            },
        );
    } else {
        worker.pods = PodMap::default();
    }
    NodeOutcome {
        uncovered: BTreeSet::new(),
        pairings: Default::default(),
        paired: BTreeSet::new(),
        state: NodeState {
            tunnel: Tunnel::new(1, "192.168.122.1".parse().unwrap(), 1450),
            peers: BTreeMap::new(),
            node_addresses: BTreeSet::new(),
            worker,
            gateway: None,
        },
        silent: Default::default(),
        findings: Vec::new(),
        programmed: Vec::new(),
        pod_forwarding: egret_core::node::PodForwarding::Netfilter,
        issues: Vec::new(),
        groups: BTreeMap::new(),
        group_members: BTreeMap::new(),
        target_groups: BTreeMap::new(),
        canaries: Vec::new(),
        broken_paths: BTreeSet::new(),
        traffic_keys: BTreeMap::new(),
        granted: BTreeSet::new(),
    }
}

fn attachment(namespace: &str, name: &str, uid: Option<&str>) -> Attachment {
    Attachment {
        id: egret_wire::cni::AttachmentId {
            container: format!("c-{name}"),
            interface: "eth0".into(),
        },
        pod: Some(egret_wire::cni::PodId {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.map(str::to_owned),
        }),
        addresses: vec![ADDRESS.parse().unwrap()],
    }
}

struct Scene {
    pending: PendingCalls,
    ready: Arc<AtomicBool>,
    flows_ended: bool,
    _state: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let ready = Arc::new(AtomicBool::new(false));
        Scene {
            pending: PendingCalls::open(&me(), state.path(), ready.clone()),
            ready,
            flows_ended: true,
            _state: state,
        }
    }

    fn call(&mut self, call: Call, snapshot: Option<&mut Snapshot>) -> UnixStream {
        let (plugin, agent) = UnixStream::pair().unwrap();
        self.pending
            .take(PendingCall::from_test(call, agent), snapshot);
        plugin
    }

    fn round(&mut self, snapshot: &Snapshot, outcome: Option<&NodeOutcome>) {
        self.pending.after(&Round {
            snapshot: Some(snapshot),
            outcome,
            last_error: outcome.is_none().then_some("the kernel refuses"),
            flows_ended: self.flows_ended,
        });
    }
}

fn answer(mut plugin: &UnixStream) -> Option<Answer> {
    plugin.set_nonblocking(true).unwrap();
    let mut line = String::new();
    match plugin.read_to_string(&mut line) {
        Ok(_) => Some(Answer::from_line(&line).unwrap()),
        Err(_) => None,
    }
}

#[test]
fn a_selected_pod_waits_for_the_kernel_and_for_its_lease() {
    let mut scene = Scene::new();
    let mut objects = snapshot(&[("a", "u1")]);
    let call = Call::Add(attachment("default", "a", Some("u1")));
    let plugin = scene.call(call, Some(&mut objects));
    let pod = &objects.pods[&("default".to_owned(), "a".to_owned())];
    assert_eq!(pod.addresses, [ADDRESS.parse::<IpAddr>().unwrap()]);
    scene.pending.overdue(&Round {
        snapshot: Some(&objects),
        outcome: Some(&kernel(Some(true))),
        last_error: None,
        flows_ended: true,
    });
    assert_eq!(answer(&plugin), None, "that kernel is older than the call");
    scene.round(&objects, None);
    assert_eq!(
        answer(&plugin),
        None,
        "nothing was carried out and the policy may select it"
    );
    scene.round(&objects, Some(&kernel(Some(false))));
    assert_eq!(answer(&plugin), None, "no ports yet");
    scene.round(&objects, Some(&kernel(Some(true))));
    assert_eq!(answer(&plugin), Some(Answer::Done {}));
    assert!(scene.ready.load(Ordering::Relaxed));
}

#[test]
fn a_pod_that_the_api_has_not_shown_waits_only_where_a_policy_may_select_it() {
    let mut scene = Scene::new();
    // An earlier pod of the same name, maybe with other labels.
    let mut objects = snapshot(&[("a", "u0")]);
    let here = scene.call(
        Call::Add(attachment("default", "a", Some("u1"))),
        Some(&mut objects),
    );
    scene.round(&objects, Some(&kernel(None)));
    assert_eq!(answer(&here), None);
    let mut objects = snapshot(&[("a", "u1")]);
    scene.pending.overlay(&mut objects);
    scene.round(&objects, Some(&kernel(None)));
    assert_eq!(answer(&here), Some(Answer::Done {}));
    let elsewhere = scene.call(
        Call::Add(attachment("elsewhere", "b", Some("u2"))),
        Some(&mut objects),
    );
    scene.round(&objects, Some(&kernel(None)));
    assert_eq!(answer(&elsewhere), Some(Answer::Done {}));
}

#[test]
fn while_nothing_can_be_programmed_only_pods_that_may_be_selected_wait() {
    let mut scene = Scene::new();
    let objects = snapshot(&[]);
    scene.round(&objects, Some(&kernel(Some(true))));
    // No objects at all: the agent has just started.
    let mut free = attachment("elsewhere", "b", None);
    free.addresses = vec!["10.244.1.10".parse().unwrap()];
    let plugin = scene.call(Call::Add(free.clone()), None);
    scene.pending.after(&Round {
        snapshot: None,
        outcome: None,
        last_error: None,
        flows_ended: true,
    });
    assert_eq!(answer(&plugin), Some(Answer::Done {}));
    // The kernel still has the address as another pod's.
    free.addresses = vec![ADDRESS.parse().unwrap()];
    let plugin = scene.call(Call::Add(free), None);
    scene.round(&objects, None);
    assert_eq!(answer(&plugin), None);
    // DEL waits for the kernel at most one round.
    let mut ended = attachment("elsewhere", "b", None);
    let plugin = scene.call(Call::Del(ended.clone()), None);
    assert_eq!(answer(&plugin), None);
    scene.round(&objects, None);
    assert_eq!(answer(&plugin), Some(Answer::Done {}));
    ended.addresses.clear();
    ended.id.container = "never-heard-of".into();
    let plugin = scene.call(Call::Del(ended), None);
    assert_eq!(
        answer(&plugin),
        Some(Answer::Done {}),
        "nothing to do is done at once"
    );
}

#[test]
fn a_pod_is_taken_back_once_its_flows_have_ended_and_another_need_not_wait_for_that() {
    let mut scene = Scene::new();
    let mut objects = snapshot(&[("a", "u1"), ("b", "u2")]);
    let (first, mut second) = (
        attachment("default", "a", Some("u1")),
        attachment("default", "b", Some("u2")),
    );
    second.addresses = vec!["10.244.1.10".parse().unwrap()];
    scene.call(Call::Add(first.clone()), Some(&mut objects));
    scene.round(&objects, Some(&kernel(Some(true))));
    assert_eq!(scene.pending.idle(), Idle::default(), "it runs");
    let ended = scene.call(Call::Del(first), Some(&mut objects));
    let starts = scene.call(Call::Add(second), Some(&mut objects));
    let idle = scene.pending.idle();
    assert_eq!(idle.ended, [ADDRESS.parse().unwrap()].into());
    assert_eq!(idle.starting, ["10.244.1.10".parse().unwrap()].into());
    scene.flows_ended = false;
    scene.round(&objects, Some(&kernel(None)));
    assert_eq!(answer(&starts), Some(Answer::Done {}));
    assert_eq!(answer(&ended), None);
    scene.flows_ended = true;
    scene.round(&objects, Some(&kernel(None)));
    assert_eq!(answer(&ended), Some(Answer::Done {}));
}

#[test]
fn a_check_fails_where_somebody_else_has_the_address() {
    let mut scene = Scene::new();
    let mut objects = snapshot(&[("a", "u1"), ("b", "u2")]);
    let first = attachment("default", "a", Some("u1"));
    let second = attachment("default", "b", Some("u2"));
    for told in [&first, &second] {
        scene.call(Call::Add(told.clone()), Some(&mut objects));
    }
    let plugin = scene.call(Call::Check(second), Some(&mut objects));
    assert_eq!(answer(&plugin), Some(Answer::Done {}));
    let plugin = scene.call(Call::Check(first), Some(&mut objects));
    assert!(matches!(answer(&plugin), Some(Answer::Refused { .. })));
}

#[test]
fn more_calls_than_can_wait_are_told_to_come_again() {
    let mut scene = Scene::new();
    let waiting: Vec<UnixStream> = (0..CNI_PENDING_MAX)
        .map(|n| {
            let name = format!("p{n}");
            let mut told = attachment("default", &name, None);
            told.addresses = vec![IpAddr::from([10, 1, (n / 256) as u8, (n % 256) as u8])];
            scene.call(Call::Add(told), None)
        })
        .collect();
    let plugin = scene.call(Call::Status {}, None);
    assert!(matches!(answer(&plugin), Some(Answer::Later { .. })));
    assert!(waiting.iter().all(|plugin| answer(plugin).is_none()));
}
