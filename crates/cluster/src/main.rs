//! `egret-cluster`: the verbs of `./dev cluster`.

use anyhow::Context;
use clap::{Parser, Subcommand};
use egret_cluster::topology::topology;
use egret_cluster::{Cluster, ClusterError};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Exit code: the cluster is not up, or its programs are not built.
const EXIT_UNREACHABLE: u8 = 3;

/// A real Kubernetes on this machine: control plane, nodes with kubelets and containerd, a router, a server outside.
#[derive(Parser)]
#[command(name = "./dev cluster")]
struct Arguments {
    /// Name of the cluster
    #[arg(long, default_value = "cluster")]
    name: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring it up
    Up {
        /// Nodes that run pods
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=3))]
        workers: u8,
        /// Nodes that send and receive for egress addresses
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=3))]
        gateways: u8,
    },
    /// Take it down, or what a crash left of it
    Down,
    /// Nodes and pods
    Status,
    /// kubectl as administrator
    #[command(disable_help_flag = true)]
    Kubectl {
        /// Arguments of kubectl
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// helm as administrator
    #[command(disable_help_flag = true)]
    Helm {
        /// Arguments of helm
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// A program inside a host: worker1, gateway1, router, server, controlplane
    Exec {
        /// The host
        host: String,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Put an image archive on every node
    Load {
        /// As tests/kubernetes/image or `docker save` writes it
        archive: PathBuf,
    },
    /// Start the programs of a node that lost power (`egret lab --name cluster start HOST` switches the host on)
    Start {
        /// The node
        node: String,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("./dev cluster: {error:#}");
            let unreachable = error.downcast_ref::<ClusterError>().is_some_and(|error| {
                matches!(error, ClusterError::NotUp(_) | ClusterError::NotBuilt(_))
            });
            ExitCode::from(if unreachable { EXIT_UNREACHABLE } else { 1 })
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let name = arguments.name.as_str();
    match &arguments.verb {
        Verb::Up { workers, gateways } => up(name, *workers, *gateways)?,
        Verb::Down => Cluster::down(name)?,
        Verb::Status => {
            let kubectl = Cluster::open(name)?.kubectl()?;
            print!("{}", kubectl.run(&["get", "nodes", "-o", "wide"])?);
            print!("{}", kubectl.run(&["get", "pods", "-A", "-o", "wide"])?);
        }
        Verb::Kubectl { arguments } => {
            let mut command = Cluster::open(name)?.kubectl()?.command();
            return Err(command.args(arguments).exec()).context("running kubectl");
        }
        Verb::Helm { arguments } => {
            let mut command = Cluster::open(name)?.helm()?.command();
            return Err(command.args(arguments).exec()).context("running helm");
        }
        Verb::Exec { host, command } => {
            let cluster = Cluster::open(name)?;
            let place = cluster.lab().place(host)?;
            let (program, rest) = command.split_first().context("no program")?;
            let mut command = cluster.lab().exec(&place, program)?;
            return Err(command.args(rest).exec()).context("running nsenter");
        }
        Verb::Load { archive } => Cluster::open(name)?.load_image(archive)?,
        Verb::Start { node } => Cluster::open(name)?.start_node(node)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(name: &str, workers: u8, gateways: u8) -> anyhow::Result<()> {
    let start = Instant::now();
    let egret = std::env::current_exe()?.with_file_name("egret");
    let egret = egret.is_file().then_some(egret);
    let topology = topology(workers.into(), gateways.into());
    let cluster = Cluster::up(name, &topology, egret.as_deref())?;
    print!(
        "{}",
        cluster.kubectl()?.run(&["get", "nodes", "-o", "wide"])?
    );
    println!(
        "\nup after {:.0} s; ./dev cluster kubectl ..., ./dev cluster down",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}
