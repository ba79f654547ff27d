//! Datagrams larger than any link echo through egress addresses, in fragments both ways.

use anyhow::ensure;
use egret_lab::Topology;
use egret_lab::traffic::source::udp_echo;
use egret_lab::traffic::{PingOptions, ping};
use egret_tests::cluster::{DEADLINE, EGRESS, SERVERS, echo, egress, ip};
use egret_tests::steps::Group;
use egret_tests::watch::Leaving;
use egret_tests::{Cluster, Outcome, steps};

pub fn groups() -> Vec<Group> {
    vec![Group::new(
        "fragments",
        || {
            let cluster = Cluster::up("frag", &Topology::built_in())?;
            cluster.apply(&[egress("myapp", "MyApp", &EGRESS, "")])?;
            Ok(cluster)
        },
        steps![
            udp_of_1400_bytes_echoes,
            udp_of_3000_bytes_echoes,
            udp_of_20000_bytes_echoes,
            udp_of_65000_bytes_echoes,
            pings_of_3000_bytes_echo,
            later_fragments_have_the_egress_address,
        ],
    )]
}

/// Ten times from each worker, so that flows use each gateway.
fn echoes(cluster: &Cluster, bytes: usize) -> Outcome {
    for (server, address) in SERVERS.map(ip).into_iter().zip(EGRESS.map(ip)) {
        for pod in ["a1", "a2", "a3"] {
            for _ in 0..10 {
                let seen = udp_echo(&cluster.pod(pod)?, echo(server), bytes, DEADLINE)?;
                ensure!(
                    seen.ip() == address,
                    "{bytes} bytes of {pod} came from {seen}"
                );
            }
        }
    }
    Ok(())
}

fn udp_of_1400_bytes_echoes(cluster: &Cluster) -> Outcome {
    echoes(cluster, 1400)
}

fn udp_of_3000_bytes_echoes(cluster: &Cluster) -> Outcome {
    echoes(cluster, 3000)
}

fn udp_of_20000_bytes_echoes(cluster: &Cluster) -> Outcome {
    echoes(cluster, 20_000)
}

fn udp_of_65000_bytes_echoes(cluster: &Cluster) -> Outcome {
    echoes(cluster, 65_000)
}

fn pings_of_3000_bytes_echo(cluster: &Cluster) -> Outcome {
    let options = PingOptions {
        payload_bytes: 3000,
        timeout: DEADLINE,
        ..PingOptions::default()
    };
    for server in SERVERS.map(ip) {
        for pod in ["a1", "a2", "a3"] {
            ping(&cluster.pod(pod)?, server, &options)?;
        }
    }
    Ok(())
}

fn later_fragments_have_the_egress_address(cluster: &Cluster) -> Outcome {
    let watch = Leaving::watch(cluster, |packet| !EGRESS.map(ip).contains(&packet.source))?;
    echoes(cluster, 3000)?;
    watch.clean()?;
    // Checks that fragments leave: those after the first have no ports.
    let watch = Leaving::watch(cluster, |packet| packet.ports.is_none())?;
    echoes(cluster, 3000)?;
    let later = watch.count()?;
    ensure!(later >= 60, "only {later} later fragments left");
    Ok(())
}
