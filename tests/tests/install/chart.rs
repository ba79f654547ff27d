//! Files that a cluster operator installs: the chart, the plain manifests made from it, rights, alerts. Needs root and
//! a built Kubernetes. `install.rs` tests the chart on a real cluster.

use egret_cluster::programs::skipped;
use egret_cluster::{ApiServer, Kubectl, Programs};
use egret_tests::chart::{
    CHART, DEPLOY, NAMESPACE, helm, rights_in_docs, rights_in_manifests, template,
};
use egret_tests::steps::Group;
use egret_tests::tests;
use std::process::Command;
use std::time::{Duration, Instant};

pub fn groups() -> Vec<Group> {
    tests![
        the_chart_has_no_faults_and_the_plain_manifests_are_what_it_says,
        values_that_make_no_sense_are_refused_by_name,
        only_who_asks_for_the_plugin_lets_agents_into_the_runtimes_folders,
        the_api_server_takes_the_chart_and_the_plain_manifests_and_rights_are_as_written,
        rights_are_those_that_the_docs_list,
        alerts_are_understood_by_prometheus_and_fire_when_they_should
    ]
}

fn the_chart_has_no_faults_and_the_plain_manifests_are_what_it_says() {
    if skipped("the_chart_has_no_faults_and_the_plain_manifests_are_what_it_says") {
        return;
    }
    let programs = Programs::find().unwrap();
    let home = tempfile::tempdir().unwrap();
    let output = helm(&programs, home.path())
        .args(["lint", "--strict", CHART])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("WARN"), "{said}");
    for (verb, file) in [("install", "egret.yaml"), ("uninstall", "uninstall.yaml")] {
        let output = Command::new(format!("{DEPLOY}/render"))
            .arg(verb)
            .env("HELM", programs.kubernetes("helm"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let found = std::fs::read_to_string(format!("{DEPLOY}/{file}")).unwrap();
        assert!(
            found.as_bytes() == output.stdout,
            "deploy/{file} is not current: run ./dev chart"
        );
    }
}

fn values_that_make_no_sense_are_refused_by_name() {
    if skipped("values_that_make_no_sense_are_refused_by_name") {
        return;
    }
    for (value, named) in [
        ("controler.replicas=3", "controler"),
        ("controller.replicas=0", "/controller/replicas"),
        (
            "settings.unpooledAddresses=Maybe",
            "/settings/unpooledAddresses",
        ),
        (
            "settings.neverDestinations={10.0.0.0}",
            "/settings/neverDestinations/0",
        ),
        ("agent.gatewayDatapath=magic", "/agent/gatewayDatapath"),
        ("agent.unknownPods=maybe", "/agent/unknownPods"),
        ("agent.capabilities={BPF}", "/agent/capabilities"),
        (
            "agent.updateStrategy.type=Recreate",
            "/agent/updateStrategy/type",
        ),
        ("agent.httpPort=99999", "/agent/httpPort"),
        ("image.digest=latest", "/image/digest"),
        ("uninstall.timeoutSeconds=now", "/uninstall/timeoutSeconds"),
        ("cni.binDirectory=opt/cni/bin", "/cni/binDirectory"),
        ("cni.enabled=true,cni.remove=true", "/cni"),
        ("frontEnds.enabled={kube-egress}", "/frontEnds/enabled/0"),
        ("frontEnds.crds=Sometimes", "/frontEnds/crds"),
    ] {
        let said = template(&["--set", value]).expect_err(value);
        assert!(said.contains(named), "{value}: {said}");
    }
    // The opposite of every switch also renders manifests.
    let all = "metrics.serviceMonitor.enabled=true,metrics.prometheusRule.enabled=true,\
               metrics.dashboard.enabled=true,crds.install=false,nodeAdmissionPolicy.enabled=false,\
               rbac.operatorRole=false,rbac.aggregate=false,networkPolicy.enabled=false,\
               uninstall.cleanup=false,apiServer.host=192.0.2.1,apiServer.port=6443,\
               settings.neverDestinations={192.0.2.0/24},settings.serviceCidrs={fd00::/108},\
               agent.seccompProfile.type=Unconfined,image.digest=sha256:\
               0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let text = template(&["--set", all]).unwrap();
    for part in [
        "kind: ServiceMonitor",
        "kind: PrometheusRule",
        "egret.json",
        "--never-destination=192.0.2.0/24",
        "--service-cidr=fd00::/108",
        "egret.dev/egret@sha256:0123",
        "value: \"192.0.2.1\"",
    ] {
        assert!(text.contains(part), "{part} is missing");
    }
    for part in ["CustomResourceDefinition", "AdmissionPolicy", "pre-delete"] {
        assert!(!text.contains(part), "{part} is there");
    }
}

fn only_who_asks_for_the_plugin_lets_agents_into_the_runtimes_folders() {
    if skipped("only_who_asks_for_the_plugin_lets_agents_into_the_runtimes_folders") {
        return;
    }
    let without = template(&[]).unwrap();
    assert!(!without.contains("cni"), "{without}");
    let folders =
        "cni.confDirectory=/var/lib/rancher/k3s/agent/etc/cni/net.d,cni.binDirectory=/bin";
    for (switch, removes) in [("cni.enabled=true", false), ("cni.remove=true", true)] {
        let text = template(&["--set", switch, "--set", folders]).unwrap();
        for part in [
            "- --cni-conf-directory=/var/lib/rancher/k3s/agent/etc/cni/net.d\n",
            "- --cni-bin-directory=/bin\n",
            "mountPath: /var/lib/rancher/k3s/agent/etc/cni/net.d}",
            "hostPath: {path: /bin, type: DirectoryOrCreate}",
        ] {
            assert!(text.contains(part), "{switch}: {part} is missing");
        }
        assert_eq!(text.contains("- --cni-remove\n"), removes, "{switch}");
    }
}

fn the_api_server_takes_the_chart_and_the_plain_manifests_and_rights_are_as_written() {
    let name = "the_api_server_takes_the_chart_and_the_plain_manifests_and_rights_are_as_written";
    if skipped(name) {
        return;
    }
    let server = ApiServer::start_with(&[("olga", &["operators"]), ("tom", &["team-a"])]).unwrap();
    let kubectl = server.kubectl();
    // The plain manifests contain the namespace, so they come first. A second apply changes nothing.
    let install = format!("{DEPLOY}/egret.yaml");
    let apply = ["apply", "--server-side", "-f", &install];
    kubectl.run(&apply).unwrap();
    let again = kubectl
        .run(&[&apply[..], &["-o", "name"]].concat())
        .unwrap();
    assert!(again.lines().count() > 20, "{again}");
    kubectl
        .run(&[
            "apply",
            "--dry-run=server",
            "-f",
            &format!("{DEPLOY}/uninstall.yaml"),
        ])
        .unwrap();
    let everything = [
        "cni.enabled=true",
        "frontEnds.enabled={staticegressip,egressmapper}",
        "metrics.dashboard.enabled=true",
        "settings.unpooledAddresses=Allow",
    ];
    let everything: Vec<&str> = everything.iter().flat_map(|v| ["--set", v]).collect();
    for values in [&[][..], &everything] {
        let chart = template(values).unwrap();
        let apply = ["apply", "--server-side", "--dry-run=server", "-f", "-"];
        kubectl.run_with(&apply, &chart).unwrap();
    }
    helm_takes_over(&server);
    agents_write_the_status_of_their_own_node_only(kubectl);
    people_may_do_what_their_roles_say(&server);
}

/// helm installs over it when configured to, and leaves definitions (and policies) behind.
fn helm_takes_over(server: &ApiServer) {
    let run = |arguments: &[&str]| {
        let output = helm(server.programs(), server.folder())
            .env("KUBECONFIG", server.kubectl().kubeconfig())
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let install = ["upgrade", "--install", "egret", CHART, "-n", NAMESPACE];
    let said = run(&[&install[..], &["--take-ownership", "--force-conflicts"]].concat());
    assert!(said.contains("kubectl apply -f -"), "notes: {said}");
    // kubectl stays an owner of fields that it applied first, so changes have to be forced.
    let changed = ["--set", "log.level=debug", "--set", "controller.replicas=1"];
    run(&[&install[..], &changed, &["--force-conflicts"]].concat());
    let kubectl = server.kubectl();
    let deployment = ["get", "deployment", "egret-controller", "-n", NAMESPACE];
    let text = kubectl.run(&[&deployment[..], &["-o", "yaml"]].concat());
    assert!(text.unwrap().contains("value: debug"));
    let budget = ["get", "pdb", "egret-controller", "-n", NAMESPACE];
    let gone = kubectl.try_run(&budget, "").unwrap();
    assert!(!gone.success, "one controller needs no disruption budget");
    kubectl
        .apply(
            "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata: {name: kept, namespace: default}\n\
             spec: {selector: {app: a}, ip: 192.168.122.222}\n",
        )
        .unwrap();
    // There are no nodes here, so nothing to clean up.
    run(&["uninstall", "egret", "-n", NAMESPACE, "--no-hooks"]);
    assert!(!kubectl.try_run(&deployment, "").unwrap().success);
    kubectl.run(&["get", "egress", "kept"]).unwrap();
    run(&install);
    kubectl.run(&deployment).unwrap();
}

/// The token of an agent names the node of its pod.
fn agents_write_the_status_of_their_own_node_only(kubectl: &Kubectl) {
    let pod = |node: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: agent-{node}, namespace: {NAMESPACE}}}\n\
             spec:\n  nodeName: {node}\n  serviceAccountName: egret-agent\n  containers: [{{name: agent, image: a}}]\n---\n\
             apiVersion: egret.dev/v1alpha1\nkind: EgressNode\nmetadata: {{name: {node}}}\nspec: {{tunnelIndex: 1}}\n---\n"
        )
    };
    kubectl
        .apply(&format!("{}{}", pod("node1"), pod("node2")))
        .unwrap();
    let create = ["create", "token", "egret-agent", "-n", NAMESPACE];
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=agent-node1"];
    let token = kubectl.run(&[&create[..], &bound].concat()).unwrap();
    let unbound = kubectl.run(&create).unwrap();
    // The kubeconfig's own token would win over --token.
    let copy = kubectl.kubeconfig().with_extension("agent");
    std::fs::copy(kubectl.kubeconfig(), &copy).unwrap();
    let copy = format!("--kubeconfig={}", copy.display());
    let write = |token: &str, node: &str| {
        let token = format!("--token={}", token.trim());
        let user = ["config", &copy, "set-credentials", "agent", &token];
        kubectl.run(&user).unwrap();
        let status = format!(
            "apiVersion: egret.dev/v1alpha1\nkind: EgressNode\nmetadata: {{name: {node}}}\n\
             status: {{underlayAddresses: [192.0.2.1]}}\n"
        );
        // As the agent does: by server-side apply, without reading first.
        let apply = ["apply", "--server-side", "--subresource=status", "-f", "-"];
        let own = [&copy, "--user=agent", "--field-manager=egret-agent"];
        kubectl
            .try_run(&[&apply[..], &own].concat(), &status)
            .unwrap()
    };
    // The API server reads the admission policy in the background.
    let message = "an agent may write the EgressNode of its own node only, not node2";
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let said = write(&token, "node2");
        if !said.success && said.err.contains(message) {
            break;
        }
        assert!(Instant::now() < deadline, "{said:?}");
    }
    let said = write(&token, "node1");
    assert!(said.success, "{}", said.err);
    let said = write(&unbound, "node1");
    assert!(
        !said.success && said.err.contains("of its own node only"),
        "{}",
        said.err
    );
    let agent = format!("--as=system:serviceaccount:{NAMESPACE}:egret-agent");
    for (verb, resource) in [
        ("update", "egressnodes"),
        ("create", "egresses"),
        ("patch", "egressaddresses/status"),
        ("get", "secrets"),
        ("create", "pods"),
        ("patch", "nodes"),
    ] {
        assert!(
            !can(kubectl, verb, resource, &["-A", &agent]),
            "{verb} {resource}"
        );
    }
}

/// Whether the user has the right; a slash separates resource and subresource.
fn can(kubectl: &Kubectl, verb: &str, resource: &str, more: &[&str]) -> bool {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let subresource = format!("--subresource={subresource}");
    let ask = ["auth", "can-i", verb, resource, &subresource];
    let said = kubectl.try_run(&[&ask[..], more].concat(), "").unwrap();
    said.out.trim() == "yes"
}

/// Operators by a binding, users of a namespace by the roles that are aggregated into edit and view.
fn people_may_do_what_their_roles_say(server: &ApiServer) {
    let kubectl = server.kubectl();
    // No controller manager aggregates roles here: only the labels that request it can be checked.
    for (role, label) in [
        ("egret-view", "view"),
        ("egret-edit", "edit"),
        ("egret-edit", "admin"),
    ] {
        let path =
            format!("{{.metadata.labels.rbac\\.authorization\\.k8s\\.io/aggregate-to-{label}}}");
        let get = [
            "get",
            "clusterrole",
            role,
            "-o",
            &format!("jsonpath={path}"),
        ];
        assert_eq!(kubectl.run(&get).unwrap(), "true", "{role} {label}");
    }
    kubectl
        .run(&[
            "create",
            "clusterrolebinding",
            "operators",
            "--clusterrole=egret-operator",
            "--group=operators",
        ])
        .unwrap();
    for role in ["egret-view", "egret-edit"] {
        let role = format!("--clusterrole={role}");
        kubectl
            .run(&[
                "create",
                "rolebinding",
                &role[14..],
                &role,
                "--group=team-a",
                "-n",
                "default",
            ])
            .unwrap();
    }
    let may = |user: &str, verb: &str, resource: &str| {
        let kubectl = server.kubectl_as(user).unwrap();
        can(&kubectl, verb, resource, &["-n", "default"])
    };
    for (user, verb, resource, wanted) in [
        ("olga", "create", "egressgateways", true),
        ("olga", "delete", "egresses", true),
        ("olga", "get", "egressaddresses", true),
        ("olga", "patch", "egressaddresses", false),
        ("olga", "patch", "egressnodes", false),
        ("olga", "patch", "egresses/status", false),
        ("tom", "create", "egresses", true),
        ("tom", "list", "egresses", true),
        ("tom", "patch", "egresses/status", false),
        ("tom", "create", "clusteregresses", false),
        ("tom", "create", "egresspools", false),
        ("tom", "get", "egressnodes", false),
    ] {
        assert_eq!(
            may(user, verb, resource),
            wanted,
            "{user} {verb} {resource}"
        );
    }
}

fn rights_are_those_that_the_docs_list() {
    if skipped("rights_are_those_that_the_docs_list") {
        return;
    }
    let docs = std::fs::read_to_string(format!("{DEPLOY}/../docs/kubernetes.md")).unwrap();
    let manifests = template(&[]).unwrap();
    for (part, account) in [
        ("Controller:", "egret-controller"),
        ("Agent:", "egret-agent"),
    ] {
        let docs = rights_in_docs(&docs, part);
        assert!(docs.len() > 10, "{part} has a table: {docs:?}");
        assert_eq!(rights_in_manifests(&manifests, account), docs, "{account}");
    }
}

fn alerts_are_understood_by_prometheus_and_fire_when_they_should() {
    if skipped("alerts_are_understood_by_prometheus_and_fire_when_they_should") {
        return;
    }
    let promtool = Programs::find().unwrap().other("promtool");
    for (verb, file) in [
        ("check", format!("{DEPLOY}/alerts.yaml")),
        (
            "test",
            format!("{}/tests/install/alerts.yaml", env!("CARGO_MANIFEST_DIR")),
        ),
    ] {
        let output = Command::new(&promtool)
            .args([verb, "rules", &file])
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "promtool {verb} rules {file}: {said}"
        );
    }
}
