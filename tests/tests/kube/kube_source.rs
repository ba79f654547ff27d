//! Controller and agents against a real API server, without kubelets: their reads, their writes, objects that they
//! leave unchanged, and outages of the API server. Needs root and a built Kubernetes.

use crate::small::{
    ACCEPTED, LABELLED, TIMEOUT, controller, granted, open, pod, said, start, used, wait_for,
    wait_until_says, writes,
};
use egret_cluster::Kubectl;
use egret_cluster::programs::skipped;
use egret_core::model::{AddressRecord, GatewayName, Kind, NodeName, NodeRecord, ObjectRef};
use egret_objects::kube::Role;
use egret_objects::{
    AddressStatus, Condition, ConditionStatus, GatewayStatus, PolicyStatus, PoolStatus, Source,
    SourceError,
};
use egret_tests::kubernetes::{Relay, requests, until};
use egret_tests::steps::Group;
use egret_tests::tests;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    tests![
        a_controller_converges_tells_people_and_then_writes_nothing,
        of_two_controllers_one_leads_and_the_other_takes_over,
        an_agent_reads_only_what_concerns_its_node,
        what_is_known_stays_while_the_api_server_is_away_and_comes_up_to_date_after,
        every_right_of_the_controller_is_used,
        connections_to_the_api_server_are_kept_alive
    ]
}

fn a_controller_converges_tells_people_and_then_writes_nothing() {
    if skipped("a_controller_converges_tells_people_and_then_writes_nothing") {
        return;
    }
    let server = start(&[("Controller", "controller")]);
    let kubectl = server.kubectl();
    let own = server.kubectl_as("controller").unwrap();
    let daemon = controller(&server, "controller", own.kubeconfig());

    wait_for(
        kubectl,
        &["egress", "fixed"],
        ".status.addresses[0]",
        "192.168.122.222",
    );
    wait_for(kubectl, &["egress", "fixed"], ACCEPTED, "True");
    wait_for(kubectl, &["egress", "fixed"], ".status.pods.selected", "2");
    assert_eq!(
        said(kubectl, &["egress", "fixed"], ".status.observedGeneration"),
        "1"
    );
    wait_for(kubectl, &["egress", "pooled"], ".status.pods.selected", "1");
    wait_for(kubectl, &["egrpool", "partners"], ".status.used", "2");
    let nodes = kubectl.run(&["get", "egrnode", "-o", "name"]).unwrap();
    assert_eq!(nodes.lines().count(), 3, "{nodes}");
    wait_until_says(kubectl, &LABELLED, "egressnode.egret.dev/gateway1\n");
    wait_for(
        kubectl,
        &["egraddr", "v4-192-168-122-222"],
        ".spec.gateway",
        "main",
    );
    let columns = kubectl.run(&["get", "egress"]).unwrap();
    assert!(columns.contains("192.168.122.222"), "{columns}");

    // A policy that cannot be applied has the reason in its status and in an event.
    let unknown = "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {name: bad, namespace: default}\n\
                   spec: {selector: {app: MyApp}, pool: nowhere}\n";
    kubectl.apply(unknown).unwrap();
    wait_for(kubectl, &["egress", "bad"], ACCEPTED, "False");
    let since = r#".status.conditions[?(@.type=="Accepted")].lastTransitionTime"#;
    let first = said(kubectl, &["egress", "bad"], since);
    let events = ["events", "--for", "egress/bad"];
    let event = kubectl
        .wait_until("an event", TIMEOUT, &events, |said| {
            said.out.contains("PoolNotFound")
        })
        .unwrap();
    assert!(event.out.contains("Warning"), "{}", event.out);

    // At rest: some seconds of watches and the Lease only.
    let log = server.audit_log();
    let mut last = requests(&log, "controller", 0).unwrap().1;
    until("nothing is written for 5 s", TIMEOUT, || {
        std::thread::sleep(Duration::from_secs(5));
        let (fresh, lines) = requests(&log, "controller", last)?;
        last = lines;
        // The Lease is read and renewed every 2 s; a watch that ends is restarted after 180 s.
        let rest = writes(&fresh).is_empty();
        assert!(
            !rest || fresh.len() <= 20,
            "{} requests at rest",
            fresh.len()
        );
        Ok(rest)
    })
    .unwrap();
    assert_eq!(said(kubectl, &["egress", "bad"], since), first);

    // The command line answers from the API alone.
    let source = format!("kube:{}", own.kubeconfig().display());
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(egret_tests::egret().unwrap());
        let answer = command.args(arguments).args(["--source", &source]);
        String::from_utf8(answer.output().unwrap().stdout).unwrap()
    };
    let status = ask(&["status"]);
    assert!(status.contains("192.168.122.222"), "{status}");
    let way = ask(&["explain", "default/a"]);
    assert!(way.contains("192.168.122.222"), "{way}");
    let plan = ask(&["plan"]);
    assert!(plan.contains("192.168.122.222"), "{plan}");

    // A deleted policy is removed.
    kubectl.run(&["delete", "egress", "bad", "fixed"]).unwrap();
    kubectl.run(&["delete", "node", "worker2"]).unwrap();
    pod(kubectl, "late", "worker1", "web", "10.244.1.7");
    wait_for(kubectl, &["egress", "pooled"], ".status.pods.selected", "2");
    used(&requests(&log, "controller", 0).unwrap().0, "Controller");
    drop(daemon);
}

/// Cases: N17.
fn of_two_controllers_one_leads_and_the_other_takes_over() {
    if skipped("of_two_controllers_one_leads_and_the_other_takes_over") {
        return;
    }
    let server = start(&[("Controller", "one"), ("Controller", "two")]);
    let kubectl = server.kubectl();
    let log = server.audit_log();
    let mut one = controller(
        &server,
        "one",
        server.kubectl_as("one").unwrap().kubeconfig(),
    );
    wait_for(kubectl, &["egress", "fixed"], ".status.pods.selected", "2");
    let two = controller(
        &server,
        "two",
        server.kubectl_as("two").unwrap().kubeconfig(),
    );
    let watches = |user: &str| {
        let (all, _) = requests(&log, user, 0).unwrap();
        all.iter().filter(|r| r["verb"] == "watch").count()
    };
    until("the second watches", TIMEOUT, || Ok(watches("two") >= 8)).unwrap();
    pod(kubectl, "c", "worker1", "MyApp", "10.244.1.8");
    wait_for(kubectl, &["egress", "fixed"], ".status.pods.selected", "3");
    let (all, _) = requests(&log, "two", 0).unwrap();
    assert_eq!(
        writes(&all),
        Vec::<String>::new(),
        "the second must not write"
    );

    // An orderly end releases the Lease at once.
    one.end().unwrap();
    pod(kubectl, "d", "worker1", "MyApp", "10.244.1.9");
    wait_for(kubectl, &["egress", "fixed"], ".status.pods.selected", "4");

    // A frozen leader loses the Lease, and writes nothing when it continues.
    let three = controller(
        &server,
        "three",
        server.kubectl_as("one").unwrap().kubeconfig(),
    );
    two.signal(nix::sys::signal::Signal::SIGSTOP).unwrap();
    pod(kubectl, "e", "worker1", "MyApp", "10.244.1.10");
    wait_for(kubectl, &["egress", "fixed"], ".status.pods.selected", "5");
    let (_, lines) = requests(&log, "two", 0).unwrap();
    pod(kubectl, "f", "worker1", "MyApp", "10.244.1.11");
    two.signal(nix::sys::signal::Signal::SIGCONT).unwrap();
    wait_for(kubectl, &["egress", "fixed"], ".status.pods.selected", "6");
    until("the woken one looks at the Lease", TIMEOUT, || {
        Ok(!requests(&log, "two", lines)?.0.is_empty())
    })
    .unwrap();
    let (after, _) = requests(&log, "two", lines).unwrap();
    assert_eq!(writes(&after), Vec::<String>::new());
    drop(three);
}

fn an_agent_reads_only_what_concerns_its_node() {
    if skipped("an_agent_reads_only_what_concerns_its_node") {
        return;
    }
    let server = start(&[
        ("Controller", "controller"),
        ("Agent", "worker"),
        ("Agent", "gateway"),
    ]);
    let kubectl = server.kubectl();
    let own = server.kubectl_as("controller").unwrap();
    let _controller = controller(&server, "controller", own.kubeconfig());
    wait_for(kubectl, &["egress", "fixed"], ".status.pods.selected", "2");
    wait_until_says(kubectl, &LABELLED, "egressnode.egret.dev/gateway1\n");

    let kubeconfig = server.kubectl_as("worker").unwrap();
    let role = Role::Agent(NodeName("worker1".into()));
    let mut worker = open(kubeconfig.kubeconfig(), role);
    let view = worker.snapshot().unwrap();
    let pods: Vec<&str> = view
        .snapshot
        .pods
        .keys()
        .map(|(_, name)| name.as_str())
        .collect();
    assert_eq!(pods, ["a", "w"]);
    let records: Vec<&str> = view
        .snapshot
        .node_records
        .keys()
        .map(|n| n.0.as_str())
        .collect();
    assert_eq!(records, ["gateway1", "worker1"]);
    assert!(view.snapshot.addresses.is_empty(), "only gateways steer");
    let services: Vec<&str> = view
        .snapshot
        .services
        .keys()
        .map(|(_, n)| n.as_str())
        .collect();
    assert_eq!(services, ["web"]);
    let ranges: Vec<String> = view
        .snapshot
        .settings
        .service_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ranges, ["10.96.0.0/16", "fd00:96::/112"]);
    assert_eq!(view.snapshot.namespaces["default"].labels.len(), 1);

    // A status is written once.
    let mut record = view.snapshot.node_records[&NodeName("worker1".into())].clone();
    record.underlay_addresses = vec!["192.168.122.11".parse().unwrap()];
    let version = worker
        .write_node_status(&record, &Default::default(), 1_800_000_000)
        .unwrap();
    let again = worker
        .write_node_status(&record, &Default::default(), 1_800_000_001)
        .unwrap();
    assert_eq!(version, again);
    assert_eq!(
        said(
            kubectl,
            &["egrnode", "worker1"],
            ".status.underlayAddresses[0]"
        ),
        "192.168.122.11"
    );
    let managers = said(
        kubectl,
        &["egrnode", "worker1", "--show-managed-fields"],
        ".metadata.managedFields[*].manager",
    );
    assert!(managers.contains("egret-agent"), "{managers}");

    let log = server.audit_log();
    let (all, _) = requests(&log, "worker", 0).unwrap();
    assert_eq!(writes(&all).len(), 1, "{:?}", writes(&all));
    let mut rights = used(&all, "Agent");
    for request in &all {
        let uri = request["requestURI"].as_str().unwrap_or_default();
        if uri.contains("/pods?") {
            assert!(
                uri.contains("fieldSelector=spec.nodeName%3Dworker1"),
                "{uri}"
            );
        }
        if uri.contains("/egressnodes?") {
            let narrow = uri.contains("metadata.name%3Dworker1") || uri.contains("labelSelector=");
            assert!(narrow, "{uri}");
        }
        assert!(!uri.contains("/egressaddresses"), "{uri}");
        if uri.contains("/services?") || uri.contains("/endpointslices?") {
            assert!(uri.contains("Selector="), "{uri}");
        }
    }
    // Only metadata of namespaces is requested, which the log does not show; their pods of other nodes never arrive.
    let kubeconfig = server.kubectl_as("gateway").unwrap();
    let mut gateway = open(
        kubeconfig.kubeconfig(),
        Role::Agent(NodeName("gateway1".into())),
    );
    let view = gateway.snapshot().unwrap();
    assert!(view.snapshot.pods.is_empty());
    assert_eq!(view.snapshot.node_records.len(), 3);
    assert!(!view.snapshot.addresses.is_empty());
    // A watch begins after its list is complete, and with it the view.
    until("everything granted is used", TIMEOUT, || {
        let (all, _) = requests(&log, "gateway", 0)?;
        rights.extend(used(&all, "Agent"));
        Ok(rights.is_superset(&granted("Agent")))
    })
    .unwrap();
    assert_eq!(rights, granted("Agent"), "used and not granted");

    // A worker that becomes a gateway reads more, and gets the label for the others.
    kubectl
        .run(&["label", "node", "worker1", "egret.dev/gateway=true"])
        .unwrap();
    until("worker1 reads as a gateway", TIMEOUT, || {
        worker.wait(Duration::from_millis(200))?;
        Ok(!worker.snapshot()?.snapshot.addresses.is_empty())
    })
    .unwrap();
    wait_until_says(
        kubectl,
        &LABELLED,
        "egressnode.egret.dev/gateway1\negressnode.egret.dev/worker1\n",
    );
}

fn what_is_known_stays_while_the_api_server_is_away_and_comes_up_to_date_after() {
    if skipped("what_is_known_stays_while_the_api_server_is_away_and_comes_up_to_date_after") {
        return;
    }
    let server = start(&[("Controller", "controller"), ("Agent", "agent")]);
    let kubectl = server.kubectl();
    let relay = Relay::to(&server).unwrap();
    let kubeconfig = |user: &str| {
        let own = server.kubectl_as(user).unwrap();
        relay.kubeconfig(&own, &server).unwrap()
    };
    // Unreachable at the start: both wait, and neither ends.
    relay.cut();
    let mut daemon = controller(&server, "controller", &kubeconfig("controller"));
    let mut agent = open(
        &kubeconfig("agent"),
        Role::Agent(NodeName("worker1".into())),
    );
    let error = agent.snapshot().unwrap_err().to_string();
    assert!(error.contains("waiting for"), "{error}");
    relay.mend();
    wait_for(kubectl, &["egress", "fixed"], ".status.pods.selected", "2");
    until("the agent reads", TIMEOUT, || Ok(agent.snapshot().is_ok())).unwrap();

    // Unreachable later: known objects stay.
    let before = agent.snapshot().unwrap();
    relay.cut();
    pod(kubectl, "c", "worker1", "MyApp", "10.244.1.8");
    assert!(!agent.wait(Duration::from_secs(3)).unwrap());
    assert_eq!(agent.snapshot().unwrap(), before);
    assert_eq!(
        said(kubectl, &["egress", "fixed"], ".status.pods.selected"),
        "2"
    );
    let (_, lines) = requests(&server.audit_log(), "controller", 0).unwrap();
    relay.mend();
    wait_for(kubectl, &["egress", "fixed"], ".status.pods.selected", "3");
    until("the agent sees the new pod", TIMEOUT, || {
        agent.wait(Duration::from_millis(200))?;
        Ok(agent.snapshot()?.snapshot.pods.len() == 3)
    })
    .unwrap();
    // Without a storm: the watches resume, no list is repeated.
    let (after, _) = requests(&server.audit_log(), "controller", lines).unwrap();
    let lists = after.iter().filter(|r| r["verb"] == "list").count();
    assert_eq!(lists, 0, "listed again");
    assert!(after.len() < 100, "{} requests", after.len());
    daemon.end().unwrap();
}

/// The previous leader assigned an address, and the watch has not reported it yet, or has since the last view.
fn addresses_are_given_over_what_was_seen(source: &mut impl Source, kubectl: &Kubectl) {
    let pooled = ObjectRef {
        kind: Kind::Egress,
        namespace: "default".into(),
        name: "pooled".into(),
    };
    let status = PolicyStatus {
        observed_generation: 1,
        addresses: vec!["192.168.122.220".parse().unwrap()],
        ..PolicyStatus::default()
    };
    let now = 1_800_000_000;
    let by_another = r#"{"status": {"addresses": ["192.168.122.221"]}}"#;
    let patch = ["--subresource=status", "--type=merge", "-p", by_another];
    let patch = [&["patch", "egress", "pooled"][..], &patch[..]].concat();
    kubectl.run(&patch).unwrap();
    for pause in [0, 500] {
        std::thread::sleep(Duration::from_millis(pause));
        let refused = source.write_policy_status(&pooled, &status, now);
        let refused = refused.unwrap_err();
        assert!(matches!(refused, SourceError::Conflict { .. }), "{refused}");
    }
    source.snapshot().unwrap();
    assert!(source.write_policy_status(&pooled, &status, now).unwrap());
}

/// Leads, and performs all writes that a controller may ever perform.
fn every_right_of_the_controller_is_used() {
    if skipped("every_right_of_the_controller_is_used") {
        return;
    }
    let server = start(&[("Controller", "controller")]);
    let kubectl = server.kubectl();
    let everywhere = "apiVersion: egret.dev/v1alpha1\nkind: ClusterEgress\nmetadata: {name: all}\n\
                      spec: {selector: {app: none}, ip: 192.168.122.221, namespaceSelector: {}}\n";
    kubectl.apply(everywhere).unwrap();
    let own = server.kubectl_as("controller").unwrap();
    let mut source = open(own.kubeconfig(), Role::Controller);
    let view = source.snapshot().unwrap();
    until("it leads", TIMEOUT, || Ok(source.leads())).unwrap();

    // A bad condition becomes an event; every kind has a status.
    let bad = Condition {
        kind: "Accepted".into(),
        status: ConditionStatus::False,
        reason: "PoolNotFound".into(),
        message: "there is no such pool".into(),
        since_secs: 0,
    };
    let now = 1_800_000_000;
    let policy = PolicyStatus {
        observed_generation: 1,
        conditions: vec![bad.clone()],
        ..PolicyStatus::default()
    };
    for object in view.snapshot.policies.iter().map(|policy| &policy.object) {
        assert!(source.write_policy_status(object, &policy, now).unwrap());
        assert!(
            !source
                .write_policy_status(object, &policy, now + 1)
                .unwrap(),
            "{object} twice"
        );
    }
    addresses_are_given_over_what_was_seen(&mut source, kubectl);
    let main = GatewayName("main".into());
    let gateway = GatewayStatus {
        conditions: vec![bad.clone()],
        ..Default::default()
    };
    assert!(source.write_gateway_status(&main, &gateway, now).unwrap());
    let pool = PoolStatus {
        conditions: vec![bad],
        ..Default::default()
    };
    let partners = view.snapshot.pools.keys().next().unwrap();
    assert!(source.write_pool_status(partners, &pool, now).unwrap());

    // Two writers of one address: the second gets a conflict, and reads the current object.
    let address = AddressRecord {
        epoch: 1,
        ..AddressRecord::new("192.168.122.221".parse().unwrap(), main)
    };
    let first = source.write_address(&address).unwrap();
    let newer = AddressRecord {
        epoch: 2,
        resource_version: first,
        ..address.clone()
    };
    let second = source.write_address(&newer).unwrap();
    for late in [&newer, &address] {
        let refused = source.write_address(late).unwrap_err();
        assert!(
            matches!(refused, SourceError::Conflict { found, .. } if found == second),
            "{refused}"
        );
    }
    let used_by = AddressStatus {
        users: vec!["Egress/default/fixed".into()],
        ..AddressStatus::default()
    };
    assert!(
        source
            .write_address_status(address.address, &used_by, now)
            .unwrap()
    );
    let view = source.snapshot().unwrap();
    let record = &view.snapshot.addresses[&address.address];
    assert_eq!(record.epoch, 2);
    assert!(
        source.delete_address(address.address, second).is_err(),
        "the status raised the version"
    );
    source
        .delete_address(address.address, record.resource_version)
        .unwrap();
    assert!(source.snapshot().unwrap().snapshot.addresses.is_empty());

    // A node's record: created with a label, changed over its agent's status, refused over another's spec.
    let node = NodeName("gateway1".into());
    let record = NodeRecord {
        tunnel_index: 7,
        ..NodeRecord::new(node.clone())
    };
    source.write_node_spec(&record).unwrap();
    let again = source.write_node_spec(&record).unwrap_err();
    assert!(matches!(again, SourceError::Conflict { .. }), "{again}");
    source.delete_node(&node).unwrap();
    source.delete_node(&node).unwrap();

    until("the event is there", TIMEOUT, || {
        let events = kubectl.run(&["events", "--for", "egress/fixed"])?;
        Ok(events.contains("PoolNotFound"))
    })
    .unwrap();
    let log = server.audit_log();
    until("the Lease is renewed", TIMEOUT, || {
        let rights = used(&requests(&log, "controller", 0)?.0, "Controller");
        let lease = |verb: &str| {
            rights.contains(&("coordination.k8s.io".into(), "leases".into(), verb.into()))
        };
        Ok(lease("update"))
    })
    .unwrap();
    let rights = used(&requests(&log, "controller", 0).unwrap().0, "Controller");
    let unused: BTreeSet<_> = granted("Controller").difference(&rights).cloned().collect();
    assert_eq!(unused, BTreeSet::new(), "granted and not used");
}

fn connections_to_the_api_server_are_kept_alive() -> anyhow::Result<()> {
    if skipped("connections_to_the_api_server_are_kept_alive") {
        return Ok(());
    }
    let server = start(&[("Agent", "agent")]);
    let own = server.kubectl_as("agent")?;
    let mut agent = open(own.kubeconfig(), Role::Agent(NodeName("worker1".into())));
    until("the agent reads", TIMEOUT, || {
        agent.wait(Duration::from_millis(200))?;
        Ok(agent.snapshot().is_ok())
    })?;
    // What the kernel says of the connections of this process.
    let mine = format!("pid={},", std::process::id());
    let mut seen = String::new();
    until("every connection has the timer", TIMEOUT, || {
        let said = Command::new("ss")
            .args(["-H", "-t", "-n", "-o", "-p", "state", "established"])
            .output()?;
        seen = String::from_utf8(said.stdout)?;
        let lines: Vec<&str> = seen.lines().filter(|line| line.contains(&mine)).collect();
        // Right after a packet another timer may be shown.
        Ok(!lines.is_empty() && lines.iter().all(|line| line.contains("timer:(keepalive")))
    })
    .inspect_err(|_| eprintln!("{seen}"))
}
