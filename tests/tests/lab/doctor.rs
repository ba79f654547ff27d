//! `egret doctor` on nodes with leftovers of earlier systems: made by their own commands, rewritten, beside rules of
//! kube-proxy, Calico, Cilium, kube-vip and Egret. Files are below the test's own root: a host of the lab shares /etc.

use anyhow::{Context, ensure};
use egret_lab::Topology;
use egret_tests::chaos::wait;
use egret_tests::cluster::egress;
use egret_tests::earlier::{
    KEEPALIVED_KINDS, KUBE_EGRESS, KUBE_EGRESS_GATEWAY, KUBE_EGRESS_GATEWAY_KINDS,
    KUBE_EGRESS_KINDS, OTHERS, ROOT, STATIC_EGRESS_IP, STATIC_EGRESS_IP_KINDS, ask, count, script,
};
use egret_tests::steps::Group;
use egret_tests::{Cluster, Outcome, egret, steps};
use serde_json::Value;

/// A node of each backend of iptables.
const NODES: [(&str, &str); 2] = [("worker1", "iptables-nft"), ("worker2", "iptables-legacy")];

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "doctor",
        up,
        steps![
            nothing_of_others_is_named,
            what_was_left_is_found_and_looking_changes_nothing,
            without_yes_nothing_is_removed,
            one_system_goes_and_the_others_stay_as_they_were,
            everything_else_is_as_before_when_all_are_gone,
            cleaning_again_does_nothing,
            what_others_still_use_is_told_and_stays,
            wrong_usage_is_told,
        ],
    )]
}

/// State of each node without the earlier systems, as text for comparison.
struct Doctor {
    cluster: Cluster,
    others: Vec<String>,
}

/// The built-in lab with agents and a policy, and rules of other software.
fn up() -> anyhow::Result<Doctor> {
    let cluster = Cluster::up("doctor", &Topology::built_in())?;
    cluster.apply(&[egress("main", "MyApp", &["192.168.122.222"], "")])?;
    cluster.wait_ready()?;
    let mut doctor = Doctor {
        cluster,
        others: Vec::new(),
    };
    for (node, program) in NODES {
        doctor.shell(node, &script(program, OTHERS))?;
    }
    for (node, _) in NODES {
        let state = doctor.settled(node)?;
        ensure!(state.contains("table inet egret"), "Egret's own are there");
        doctor.others.push(state);
    }
    Ok(doctor)
}

impl Doctor {
    fn shell(&self, node: &str, line: &str) -> anyhow::Result<String> {
        self.cluster
            .exec(&self.cluster.host(node)?, &["sh", "-c", line])
    }

    /// All state that a cleanup could change. Handles and the order of routes of different tables do not matter.
    fn state(&self, node: &str) -> anyhow::Result<String> {
        let lines = format!(
            "export PATH=$PATH:/usr/sbin:/sbin
            echo == nft; nft -s list ruleset 2>&1
            echo == legacy; iptables-legacy-save | sed -e '/^#/d' -e 's/\\[[0-9:]*\\]//'
            echo == counters; iptables-legacy-save -c | grep 192.0.2.0
            echo == sets; ipset save | sort
            echo == rule; ip rule; ip -6 rule
            echo == route; ip route show table all | sort; ip -6 route show table all | grep -v cache | sort
            echo == address; ip -o address | sed 's/ valid_lft.*//'
            echo == link; ip -o -d link | sed 's/ link-netns.*//'
            echo == files; cd {ROOT}; find . -type f -exec sha256sum {{}} + | sort; find . | sort; mount | grep -c {ROOT} || true"
        );
        self.shell(node, &lines)
    }

    /// The state once it is stable: the agent has processed all changes.
    fn settled(&self, node: &str) -> anyhow::Result<String> {
        let mut last = self.state(node)?;
        let mut equal = 0;
        wait("a state that stays", || {
            let now = self.state(node).unwrap_or_default();
            equal = if now == last { equal + 1 } else { 0 };
            last = now;
            equal > 3
        })?;
        Ok(last)
    }

    /// Waits until a node's state is as it was.
    fn expect(&self, node: &str, before: &str, what: &str) -> Outcome {
        let mut now = String::new();
        let waited = wait(what, || {
            now = self.state(node).unwrap_or_default();
            now == before
        });
        waited.with_context(|| {
            // Counted, since a line may occur twice.
            let count = |text: &str, line: &str| text.lines().filter(|l| *l == line).count();
            let gone = before
                .lines()
                .filter(|line| count(&now, line) < count(before, line));
            let new = now
                .lines()
                .filter(|line| count(before, line) < count(&now, line));
            let lines = gone
                .map(|line| format!("- {line}"))
                .chain(new.map(|l| format!("+ {l}")));
            let moved = before.lines().zip(now.lines()).find(|(a, b)| a != b);
            format!(
                "{}\nfirst other line: {moved:?}",
                lines.collect::<Vec<_>>().join("\n")
            )
        })
    }

    fn doctor(&self, node: &str, arguments: &[&str]) -> anyhow::Result<(Value, Option<i32>)> {
        ask(&self.cluster, node, arguments)
    }

    /// Makes the leftovers of each earlier system.
    fn leave(&self, node: &str, program: &str) -> Outcome {
        for lines in [STATIC_EGRESS_IP, KUBE_EGRESS, KUBE_EGRESS_GATEWAY] {
            self.shell(node, &script(program, lines))?;
        }
        Ok(())
    }
}

fn expect_kinds(answer: &Value, field: &str, system: &str, kinds: &[(&str, usize)]) -> Outcome {
    for (kind, wanted) in kinds {
        let found = count(answer, field, system, kind);
        ensure!(
            found == *wanted,
            "{found} of {system} {kind}, not {wanted}: {answer:#}"
        );
    }
    Ok(())
}

fn expect_all(answer: &Value, field: &str) -> Outcome {
    expect_kinds(answer, field, "static-egress-ip", &STATIC_EGRESS_IP_KINDS)?;
    expect_kinds(answer, field, "kube-egress", &KUBE_EGRESS_KINDS)?;
    expect_kinds(answer, field, "keepalived-vip", &KEEPALIVED_KINDS)?;
    expect_kinds(
        answer,
        field,
        "kube-egress-gateway",
        &KUBE_EGRESS_GATEWAY_KINDS,
    )?;
    let removable = |one: &&Value| one["removable"] == true;
    let all = answer[field]
        .as_array()
        .context("a list")?
        .iter()
        .filter(removable)
        .count();
    let kinds = [
        &STATIC_EGRESS_IP_KINDS[..],
        &KUBE_EGRESS_KINDS,
        &KEEPALIVED_KINDS,
        &KUBE_EGRESS_GATEWAY_KINDS,
    ];
    let wanted: usize = kinds.concat().iter().map(|(_, number)| number).sum();
    ensure!(
        all == wanted,
        "{all} can be removed, not {wanted}: {answer:#}"
    );
    Ok(())
}

fn nothing_of_others_is_named(doctor: &Doctor) -> Outcome {
    for (node, _) in NODES {
        let (answer, code) = doctor.doctor(node, &[])?;
        ensure!(
            answer["findings"] == Value::Array(Vec::new()),
            "{node}: {answer:#}"
        );
        ensure!(
            answer["unseen"] == Value::Array(Vec::new()),
            "{node}: {answer:#}"
        );
        ensure!(code == Some(0), "exit code {code:?}");
    }
    Ok(())
}

fn what_was_left_is_found_and_looking_changes_nothing(doctor: &Doctor) -> Outcome {
    for (node, program) in NODES {
        doctor.leave(node, program)?;
        let before = doctor.settled(node)?;
        let (answer, code) = doctor.doctor(node, &[])?;
        ensure!(code == Some(1), "exit code {code:?}");
        expect_all(&answer, "findings")?;
        let texts: Vec<_> = answer["findings"]
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        for wanted in [
            format!(
                "{program} -t nat -A STATIC-EGRESS-NAT-CHAIN -d 203.0.113.99/32 -m set \
                 --match-set EGRESS-IP-ABCDEFGHIJKLMNO7 src -j SNAT --to-source 192.168.122.230"
            ),
            format!("{program} -t mangle -A EGRESS -s 10.250.0.0/16 -j MARK --set-xmark 0x40/0x40"),
            "ip rule add fwmark 0x3e8 lookup 99 priority 32764".into(),
            "ip address add 192.168.122.234/32 dev eth0 label eth0:egress".into(),
        ] {
            let is_it = |one: &&&Value| one["object"] == wanted.as_str();
            ensure!(texts.iter().any(|one| is_it(&one)), "{wanted}: {answer:#}");
        }
        doctor.expect(node, &before, "looking to change nothing")?;
    }
    Ok(())
}

fn without_yes_nothing_is_removed(doctor: &Doctor) -> Outcome {
    for (node, _) in NODES {
        let before = doctor.settled(node)?;
        let (answer, code) = doctor.doctor(node, &["--clean-legacy", "kube-egress"])?;
        ensure!(code == Some(1), "exit code {code:?}");
        expect_kinds(&answer, "findings", "kube-egress", &KUBE_EGRESS_KINDS)?;
        ensure!(
            count(&answer, "findings", "static-egress-ip", "rule") == 0,
            "{answer:#}"
        );
        doctor.expect(node, &before, "showing to change nothing")?;
    }
    Ok(())
}

fn one_system_goes_and_the_others_stay_as_they_were(doctor: &Doctor) -> Outcome {
    for (node, program) in NODES {
        // The state without kube-egress, in the order in which it was made.
        let egress_mapper = ["--clean-legacy", "egress-mapper", "--yes"];
        let (answer, code) = doctor.doctor(node, &egress_mapper)?;
        ensure!(code == Some(0), "exit code {code:?}: {answer:#}");
        expect_kinds(&answer, "removed", "kube-egress", &KUBE_EGRESS_KINDS)?;
        expect_kinds(&answer, "removed", "keepalived-vip", &KEEPALIVED_KINDS)?;
        let without = doctor.settled(node)?;
        let (answer, code) = doctor.doctor(node, &[])?;
        ensure!(code == Some(1), "exit code {code:?}");
        expect_kinds(
            &answer,
            "findings",
            "static-egress-ip",
            &STATIC_EGRESS_IP_KINDS,
        )?;
        expect_kinds(
            &answer,
            "findings",
            "kube-egress-gateway",
            &KUBE_EGRESS_GATEWAY_KINDS,
        )?;
        // Made and removed once more: every byte of the rest is unchanged.
        doctor.shell(node, &script(program, KUBE_EGRESS))?;
        let with = doctor.settled(node)?;
        ensure!(with != without, "the comparison can fail");
        let (answer, code) = doctor.doctor(node, &egress_mapper)?;
        ensure!(code == Some(0), "exit code {code:?}: {answer:#}");
        doctor.expect(node, &without, "the others to be as they were")?;
    }
    Ok(())
}

fn everything_else_is_as_before_when_all_are_gone(doctor: &Doctor) -> Outcome {
    for (node, _) in NODES {
        let all = "static-egress-ip,kube-egress,keepalived-vip,kube-egress-gateway";
        let (answer, code) = doctor.doctor(node, &["--clean-legacy", all, "--yes"])?;
        ensure!(code == Some(0), "exit code {code:?}: {answer:#}");
        expect_kinds(
            &answer,
            "removed",
            "static-egress-ip",
            &STATIC_EGRESS_IP_KINDS,
        )?;
        expect_kinds(
            &answer,
            "removed",
            "kube-egress-gateway",
            &KUBE_EGRESS_GATEWAY_KINDS,
        )?;
        ensure!(answer["failed"] == Value::Array(Vec::new()), "{answer:#}");
    }
    // Not before all are clean: the address of one node is a never-destination on all.
    for ((node, _), before) in NODES.iter().zip(&doctor.others) {
        doctor.expect(node, before, "the node to be as before the earlier systems")?;
    }
    Ok(())
}

fn cleaning_again_does_nothing(doctor: &Doctor) -> Outcome {
    for (node, _) in NODES {
        let before = doctor.settled(node)?;
        let arguments = ["--clean-legacy", "static-egress-ip,egress-mapper", "--yes"];
        let (answer, code) = doctor.doctor(node, &arguments)?;
        ensure!(code == Some(0), "exit code {code:?}: {answer:#}");
        ensure!(answer["removed"] == Value::Array(Vec::new()), "{answer:#}");
        doctor.expect(node, &before, "nothing to change")?;
    }
    Ok(())
}

/// A set that somebody else's list references: it stays, the failure is reported, and a second attempt succeeds.
fn what_others_still_use_is_told_and_stays(doctor: &Doctor) -> Outcome {
    for (node, program) in NODES {
        let set = "EGRESS-IP-ABCDEFGHIJKLMNO7";
        doctor.shell(node, &script(program, STATIC_EGRESS_IP))?;
        doctor.shell(node, "PATH=$PATH:/usr/sbin ipset create users list:set && PATH=$PATH:/usr/sbin ipset add users EGRESS-IP-ABCDEFGHIJKLMNO7")?;
        let arguments = ["--clean-legacy", "static-egress-ip", "--yes"];
        let (answer, code) = doctor.doctor(node, &arguments)?;
        ensure!(code == Some(1), "exit code {code:?}: {answer:#}");
        let told = answer["failed"][0]["object"].as_str().unwrap_or_default();
        ensure!(told.contains(set), "{answer:#}");
        expect_kinds(
            &answer,
            "findings",
            "static-egress-ip",
            &[("set", 1), ("rule", 0)],
        )?;
        doctor.shell(node, "PATH=$PATH:/usr/sbin ipset destroy users")?;
        let (answer, code) = doctor.doctor(node, &arguments)?;
        ensure!(code == Some(0), "exit code {code:?}: {answer:#}");
        expect_kinds(&answer, "removed", "static-egress-ip", &[("set", 1)])?;
    }
    Ok(())
}

fn wrong_usage_is_told(doctor: &Doctor) -> Outcome {
    for arguments in [&["--yes"][..], &["--clean-legacy", "kube-proxy"]] {
        let place = doctor.cluster.host("worker1")?;
        let mut command = doctor.cluster.lab().exec(&place, egret()?)?;
        let status = command.arg("doctor").args(arguments).output()?.status;
        ensure!(status.code() == Some(2), "{arguments:?}: {status}");
    }
    Ok(())
}
