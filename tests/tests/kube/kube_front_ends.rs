//! Objects of earlier systems on a real API server: the controller's writes, an agent's view of them, and manifests of
//! the KEP with only the `apiVersion` changed. Needs root and a built Kubernetes.

use egret_cluster::programs::skipped;
use egret_cluster::{ApiServer, Kubectl};
use egret_core::model::{NodeName, Settings, UnpooledAddresses};
use egret_objects::front_end::{self, FrontEnd};
use egret_objects::kube::{KubeSource, Role, Settings as KubeSettings};
use egret_objects::{Source, SourceError};
use egret_tests::kubernetes::{CRDS, Daemon, requests, role, until};
use egret_tests::steps::Group;
use egret_tests::tests;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    tests![
        their_status_is_written_in_their_form_and_agents_see_the_same_policies,
        the_originals_definition_without_a_status_of_its_own_is_served_and_not_written_for_ever,
        what_is_wrong_with_their_objects_is_told_by_events_where_the_definition_drops_conditions
    ]
}

/// Longest wait for any condition; usually seconds.
const TIMEOUT: Duration = Duration::from_secs(90);

const CLUSTER: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: worker1}
spec: {podCIDRs: [10.244.1.0/24], podCIDR: 10.244.1.0/24}
---
apiVersion: v1
kind: Node
metadata: {name: control, labels: {node-role.kubernetes.io/control-plane: ""}}
spec: {podCIDRs: [10.244.2.0/24], podCIDR: 10.244.2.0/24}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: default}
---
apiVersion: v1
kind: Service
metadata: {name: frontend, namespace: default}
spec: {selector: {app: web}, ports: [{port: 80}]}
"#;

const OBJECTS: &str = r#"
apiVersion: staticegressips.nirmata.io/v1alpha1
kind: StaticEgressIP
metadata: {name: eip, namespace: default, annotations: {egret.dev/adopt: "true"}}
spec: {rules: [{egressip: 192.168.122.222, service-name: frontend, cidr: 203.0.113.0/24}]}
---
apiVersion: egress.mapper.com/v1alpha1
kind: Vip
metadata: {name: vip1, namespace: default, annotations: {egret.dev/adopt: "true"}}
spec: {ip: 192.168.122.223, routeid: 64}
---
apiVersion: egress.mapper.com/v1alpha1
kind: Egress
metadata: {name: of-web, namespace: default, annotations: {egret.dev/adopt: "true"}}
spec: {ip: 192.168.122.223, kind: ReplicaSet, namespace: default, name: web-1}
---
apiVersion: egress.mapper.com/v1alpha1
kind: Egress
metadata: {name: theirs, namespace: default}
spec: {ip: 192.168.122.223, kind: pod, namespace: default, name: web}
"#;

/// The original's definition: only the group and the names, without a status subresource.
const ORIGINAL: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: staticegressips.staticegressips.nirmata.io}
spec:
  group: staticegressips.nirmata.io
  scope: Namespaced
  names: {kind: StaticEgressIP, listKind: StaticEgressIPList, plural: staticegressips, singular: staticegressip}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              rules:
                type: array
                items:
                  type: object
                  properties:
                    egressip: {type: string}
                    service-name: {type: string}
                    cidr: {type: string}
          status:
            type: object
            properties:
              gateway-node: {type: string}
              gateway-ip: {type: string}
"#;

fn status_of(kubectl: &Kubectl, kind: &str, name: &str) -> Value {
    let said = kubectl.run(&["get", kind, name, "-o", "json"]).unwrap();
    let object: Value = serde_json::from_str(&said).unwrap();
    object["status"].clone()
}

fn condition(status: &Value, kind: &str) -> String {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|one| one["type"] == kind);
    found.map_or_else(String::new, |one| {
        format!("{}/{}", one["status"], one["reason"]).replace('"', "")
    })
}

/// An API server with the cluster above; `define` adds definitions before the objects.
fn start(define: impl FnOnce(&Kubectl)) -> ApiServer {
    let server = ApiServer::start_with(&[("controller", &[]), ("agent", &[])]).unwrap();
    let kubectl = server.kubectl();
    kubectl.define(Path::new(CRDS)).unwrap();
    define(kubectl);
    kubectl.apply(CLUSTER).unwrap();
    for (node, address) in [("worker1", "192.168.122.11"), ("control", "192.168.122.12")] {
        let status = format!(
            r#"{{"status":{{"addresses":[{{"type":"InternalIP","address":"{address}"}}]}}}}"#
        );
        let patch = [
            "patch",
            "node",
            node,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ];
        kubectl.run(&patch).unwrap();
    }
    let pod = "apiVersion: v1\nkind: Pod\n\
         metadata: {name: web, namespace: default, labels: {app: web}, \
         ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-1, uid: u, controller: true}]}\n\
         spec: {nodeName: worker1, automountServiceAccountToken: false, containers: [{name: c, image: none}]}\n";
    kubectl.apply(pod).unwrap();
    let status =
        r#"{"status":{"phase":"Running","podIP":"10.244.1.5","podIPs":[{"ip":"10.244.1.5"}]}}"#;
    let patch = [
        "patch",
        "pod",
        "web",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ];
    kubectl.run(&patch).unwrap();
    for (component, user) in [("Controller", "controller"), ("Agent", "agent")] {
        kubectl.apply(&role(component, user)).unwrap();
        let more = role(&format!("{component} with front-ends"), user);
        let more = more.replace(
            &format!("metadata: {{name: {user}}}"),
            &format!("metadata: {{name: {user}-front-ends}}"),
        );
        let more = more.replace(
            &format!("kind: ClusterRole, name: {user}}}"),
            &format!("kind: ClusterRole, name: {user}-front-ends}}"),
        );
        kubectl.apply(&more).unwrap();
    }
    server
}

fn controller(server: &ApiServer) -> Daemon {
    let own = server.kubectl_as("controller").unwrap();
    let source = format!("kube:{}", own.kubeconfig().display());
    let arguments = [
        "controller",
        "--source",
        &source,
        "--front-end",
        "staticegressip,egressmapper",
        "--http-port",
        "0",
    ];
    Daemon::start(&server.folder().join("controller.log"), &arguments).unwrap()
}

/// Cases: N7, M3.
fn their_status_is_written_in_their_form_and_agents_see_the_same_policies() {
    if skipped("their_status_is_written_in_their_form_and_agents_see_the_same_policies") {
        return;
    }
    let server = start(|kubectl| {
        kubectl
            .define(&Path::new(CRDS).with_file_name("crds-front-ends"))
            .unwrap();
    });
    let kubectl = server.kubectl();
    kubectl.apply(OBJECTS).unwrap();
    let mut daemon = controller(&server);
    let eip = "staticegressips.staticegressips.nirmata.io";
    until("the objects are told", TIMEOUT, || {
        let told = [
            status_of(kubectl, eip, "eip"),
            status_of(kubectl, "egresses.egress.mapper.com", "of-web"),
        ];
        Ok(told.iter().all(|status| {
            condition(status, "Accepted") == "True/Accepted"
                && condition(status, "Ready") == "False/NoGateway"
                && status["policies"][0]["pods"]["selected"] == 1
        }))
    })
    .unwrap();
    let vip = status_of(kubectl, "vips", "vip1");
    assert_eq!(condition(&vip, "Accepted"), "True/Accepted", "{vip:#}");
    let theirs = status_of(kubectl, "egresses.egress.mapper.com", "theirs");
    assert!(theirs.is_null(), "it is not ours to write to: {theirs:#}");
    // The stand-in gateway is the node without the control plane.
    let addresses = kubectl.run(&[
        "get",
        "egressaddresses",
        "-o",
        "jsonpath={.items[*].spec.gateway}",
    ]);
    assert_eq!(addresses.unwrap(), "front-end front-end");

    agent_sees_the_same(&server);

    // The KEP's manifest, with only the apiVersion changed, beside an egress-mapper Egress of that name.
    kubectl
        .apply("apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata:\n  name: of-web\nspec:\n  selector:\n    app: MyApp\n  ip: 192.168.122.230\n")
        .unwrap();
    until("the KEP's object is told", TIMEOUT, || {
        let status = status_of(kubectl, "egresses.egret.dev", "of-web");
        Ok(condition(&status, "Accepted") == "True/Accepted")
    })
    .unwrap();
    daemon.end().unwrap();
}

fn agent_sees_the_same(server: &ApiServer) {
    let own = server.kubectl_as("agent").unwrap();
    let mut source = KubeSource::open(KubeSettings {
        kubeconfig: Some(own.kubeconfig().clone()),
        role: Role::Agent(NodeName("worker1".into())),
        installation: Settings {
            unpooled_addresses: UnpooledAddresses::Allow,
            never_destinations: Vec::new(),
            service_cidrs: Vec::new(),
            hold_down_secs: 120,
        },
        front_ends: front_end::Settings {
            enabled: FrontEnd::ALL.into(),
            ..front_end::Settings::default()
        },
    })
    .unwrap();
    let wanted = [
        "NirmataStaticEgressIP default/eip:frontend:192.168.122.222",
        "MapperVip default/vip1",
        "MapperEgress default/of-web",
    ];
    until("the agent has the policies", TIMEOUT, || {
        let view = match source.snapshot() {
            Ok(view) => view,
            Err(SourceError::NotYet { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let names: Vec<String> = view
            .snapshot
            .policies
            .iter()
            .map(|policy| policy.object.to_string())
            .collect();
        let service = ("default".to_owned(), "frontend".to_owned());
        // It is a gateway of the generated group, and so watches what gateways watch.
        Ok(names == wanted
            && view.snapshot.services.contains_key(&service)
            && view.snapshot.addresses.len() == 2)
    })
    .unwrap();
}

fn the_originals_definition_without_a_status_of_its_own_is_served_and_not_written_for_ever() {
    let name =
        "the_originals_definition_without_a_status_of_its_own_is_served_and_not_written_for_ever";
    if skipped(name) {
        return;
    }
    let server = start(|kubectl| {
        kubectl.apply(ORIGINAL).unwrap();
        let established = [
            "wait",
            "--for=condition=Established",
            "crd",
            "--all",
            "--timeout=60s",
        ];
        kubectl.run(&established).unwrap();
    });
    let kubectl = server.kubectl();
    let eip = OBJECTS.split("---").next().unwrap();
    // The status of its own controller is replaced.
    kubectl
        .apply(&format!(
            "{eip}status: {{gateway-node: old, gateway-ip: 192.0.2.1}}\n"
        ))
        .unwrap();
    let mut daemon = controller(&server);
    let patched = |from: usize| {
        let (all, lines) = requests(&server.audit_log(), "controller", from).unwrap();
        let of = all.iter().filter(|request| {
            request["verb"] == "patch" && request["objectRef"]["resource"] == "staticegressips"
        });
        (of.count(), lines)
    };
    until("it is written to", TIMEOUT, || Ok(patched(0).0 > 0)).unwrap();
    let address = "egressaddress.egret.dev/v4-192-168-122-222";
    until("its address is served", TIMEOUT, || {
        Ok(kubectl.try_run(&["get", address], "")?.success)
    })
    .unwrap();
    // At rest there is no write, although the definition drops the conditions each time.
    let mut last = 0;
    until("nothing is written for 5 s", TIMEOUT, || {
        let (_, lines) = patched(last);
        last = lines;
        std::thread::sleep(Duration::from_secs(5));
        Ok(patched(last).0 == 0)
    })
    .unwrap();
    daemon.end().unwrap();
}

/// Objects of the original's definition, which drops conditions, and Vips: each with a different fault.
const WRONG: &str = r#"
apiVersion: staticegressips.nirmata.io/v1alpha1
kind: StaticEgressIP
metadata: {name: no-service, namespace: default, annotations: {egret.dev/adopt: "true"}}
spec: {rules: [{egressip: 192.168.122.224, service-name: backend, cidr: 203.0.113.0/24}]}
---
apiVersion: staticegressips.nirmata.io/v1alpha1
kind: StaticEgressIP
metadata: {name: bad-cidr, namespace: default, annotations: {egret.dev/adopt: "true"}}
spec: {rules: [{egressip: 192.168.122.225, service-name: frontend, cidr: 203.0.113.0/33}]}
---
apiVersion: egress.mapper.com/v1alpha1
kind: Vip
metadata: {name: vip2, namespace: default, annotations: {egret.dev/adopt: "true"}}
spec: {ip: 192.168.122.223, routeid: 65}
"#;

/// Events about an object: kind, reason and note.
fn events_of(kubectl: &Kubectl, name: &str) -> Vec<[String; 3]> {
    let said = kubectl
        .run(&["get", "events.events.k8s.io", "-A", "-o", "json"])
        .unwrap();
    let all: Value = serde_json::from_str(&said).unwrap();
    let all = all["items"].as_array().cloned().unwrap_or_default();
    let about = all
        .iter()
        .filter(|event| event["regarding"]["name"] == name);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    about
        .map(|event| {
            [
                text(&event["regarding"]["kind"]),
                text(&event["reason"]),
                text(&event["note"]),
            ]
        })
        .collect()
}

/// Cases: N12, M13.
/// If the definition drops our conditions, events report the fault, once.
fn what_is_wrong_with_their_objects_is_told_by_events_where_the_definition_drops_conditions() {
    let name =
        "what_is_wrong_with_their_objects_is_told_by_events_where_the_definition_drops_conditions";
    if skipped(name) {
        return;
    }
    let server = start(|kubectl| {
        let ours = Path::new(CRDS).with_file_name("crds-front-ends");
        kubectl.define(&ours).unwrap();
        // Replaces ours of that name.
        kubectl
            .run(&[
                "delete",
                "crd",
                "staticegressips.staticegressips.nirmata.io",
                "--timeout=60s",
            ])
            .unwrap();
        kubectl.apply(ORIGINAL).unwrap();
        let established = [
            "wait",
            "--for=condition=Established",
            "crd",
            "--all",
            "--timeout=60s",
        ];
        kubectl.run(&established).unwrap();
    });
    let kubectl = server.kubectl();
    kubectl.apply(OBJECTS).unwrap();
    let mut daemon = controller(&server);
    let vip1 = || {
        let vip = status_of(kubectl, "vips", "vip1");
        Ok(condition(&vip, "Accepted") == "True/Accepted")
    };
    until("the older Vip is taken", TIMEOUT, vip1).unwrap();
    kubectl.apply(WRONG).unwrap();
    for (object, kind, reason) in [
        ("no-service", "StaticEgressIP", "ServiceNotFound"),
        ("bad-cidr", "StaticEgressIP", "Invalid"),
        ("vip2", "Vip", "Duplicate"),
    ] {
        let mut seen = Vec::new();
        let told = until(&format!("an event about {object}"), TIMEOUT, || {
            seen = events_of(kubectl, object);
            Ok(seen
                .iter()
                .any(|event| event[0] == kind && event[1] == reason))
        });
        told.unwrap_or_else(|error| panic!("{error:#}: {seen:?}"));
        let times = seen.iter().filter(|event| event[1] == reason).count();
        assert_eq!(times, 1, "{seen:?}");
    }
    let eip = "staticegressips.staticegressips.nirmata.io";
    assert!(
        status_of(kubectl, eip, "bad-cidr")["conditions"].is_null(),
        "the definition drops them, or this shows nothing"
    );
    daemon.end().unwrap();
}
