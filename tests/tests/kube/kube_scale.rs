//! A large cluster on a real API server: planning of all objects, the cost of one more pod, and the cost of controller
//! and agents while nothing changes. Nothing is timed, since the machine is busy and the program may be a debug build:
//! writes are counted, and `./dev bench --only kubernetes` gives figures. Needs root and a built Kubernetes.

use egret_cluster::programs::skipped;
use egret_tests::scale::{Large, Size};
use egret_tests::steps::{Group, lab_name};
use egret_tests::tests;
use std::time::Duration;

pub fn groups() -> Vec<Group> {
    tests![a_large_cluster_is_planned_soon_and_costs_little_at_rest]
}

fn a_large_cluster_is_planned_soon_and_costs_little_at_rest() {
    if skipped("a_large_cluster_is_planned_soon_and_costs_little_at_rest") {
        return;
    }
    let size = Size {
        nodes: 100,
        pods: 1_000,
        policies: 100,
        all_on_worker: false,
    };
    let mut large = Large::up(&lab_name("scale"), size).unwrap();
    let converged = large.converge().unwrap();
    large.start_agents().unwrap();
    let mut one_pod = Vec::new();
    for number in 0..5 {
        let from = large.now().unwrap();
        one_pod.push(large.one_pod_more(number).unwrap());
        large.wait_quiet().unwrap();
        let writes = large.writes_since(from).unwrap();
        // First the lease, then the grant, then the statuses: of this pod's policy, address and node only.
        assert_eq!(writes[0], "update egressaddresses", "{writes:?}");
        assert_eq!(writes[1], "patch egressnodes", "{writes:?}");
        let about = |what: &str| writes.iter().filter(|write| write.contains(what)).count();
        assert!(about("egresses/status") > 0, "{writes:?}");
        assert!(writes.len() < 20, "{writes:?}");
    }
    let rests = large.rest(Duration::from_secs(10)).unwrap();
    println!("converged {converged:.1} s, one pod {one_pod:.0?} ms, {rests:.3?}");
    for (rest, memory_max) in rests.iter().zip([200.0, 60.0, 60.0]) {
        assert!(rest.memory_mb < memory_max, "{rests:?}");
        assert!(rest.cores < 0.5, "{rests:?}");
        assert!(rest.requests_per_sec < 3.0, "{rests:?}");
    }
}
