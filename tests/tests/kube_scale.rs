//! A large cluster on a real API server: how long until everything is planned, what one pod more costs, and what
//! controller and agents cost while nothing changes. Bounds are loose, since the machine is busy and the program may be a
//! debug build; `./dev bench --only kubernetes` gives figures. Needs root and a built Kubernetes.

use egret_cluster::programs::skipped;
use egret_tests::scale::{Large, Size};
use std::time::Duration;

#[test]
fn a_large_cluster_is_planned_soon_and_costs_little_at_rest() {
    if skipped("a_large_cluster_is_planned_soon_and_costs_little_at_rest") {
        return;
    }
    let size = Size {
        nodes: 200,
        pods: 3_000,
        policies: 150,
        all_on_worker: false,
    };
    let mut large = Large::up(&format!("scale-{}", std::process::id()), size).unwrap();
    let converged = large.converge().unwrap();
    large.start_agents().unwrap();
    let mut one_pod: Vec<f64> = (0..5).map(|n| large.one_pod_more(n).unwrap()).collect();
    one_pod.sort_by(f64::total_cmp);
    large.wait_quiet().unwrap();
    let rests = large.rest(Duration::from_secs(10)).unwrap();
    println!("converged {converged:.1} s, one pod {one_pod:.0?} ms, {rests:.3?}");
    assert!(converged < 60.0, "{converged} s");
    assert!(one_pod[2] < 1_000.0, "{one_pod:?} ms");
    for (rest, memory_max) in rests.iter().zip([200.0, 60.0, 60.0]) {
        assert!(rest.memory_mb < memory_max, "{rests:?}");
        assert!(rest.cores < 0.25, "{rests:?}");
        assert!(rest.requests_per_sec < 3.0, "{rests:?}");
    }
}
