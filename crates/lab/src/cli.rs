//! `egret lab ...`: the verbs on the command line.

use crate::demo;
use crate::slowness::slowness;
use crate::traffic::{Server, ping_source, tcp_source, udp_source};
use crate::{
    DemoOptions, HostStatus, Hurt, Lab, LabError, Snapshot, StateDir, Topology, UpOptions,
};
use anyhow::Context;
use clap::{Args, Subcommand};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

/// Port of the server that `ask` uses.
const ASKED_PORT: u16 = 5000;
/// Exit code: a check or an operation failed.
const EXIT_WRONG: u8 = 1;
/// Exit code: the command line or a file given on it is wrong.
const EXIT_USAGE: u8 = 2;
/// Exit code: the lab or a place in it cannot be reached.
const EXIT_UNREACHABLE: u8 = 3;

/// A cluster in namespaces on this machine, with real packets. Needs root; leaves the machine's own network alone.
#[derive(Debug, Args)]
#[command(
    after_help = "EGRET_LAB_SLOWNESS=N, 1 to 100: this machine is N times slower than usual; all time limits are N times as long."
)]
pub struct LabCommand {
    /// Name of the lab; several may be up at once
    #[arg(long, default_value = "lab", global = true)]
    name: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build the lab: hosts, pods, router, server, and Egret on every node
    #[command(
        after_help = "Without -f: worker1..3 and gateway1..3 on 192.168.122.0/24, pods default/a1.. b1.. \
        (app: MyApp) and other1.. on each worker, a router, and a server at 203.0.113.10 behind it."
    )]
    Up {
        /// Topology in YAML instead of the built-in one
        #[arg(short, long, value_name = "TOPOLOGY")]
        file: Option<PathBuf>,
        /// Only the network: start neither agents nor controller
        #[arg(long)]
        no_agents: bool,
        /// Further arguments of every agent
        #[arg(last = true, value_name = "AGENT_ARGS")]
        agent_args: Vec<String>,
    },
    /// Bring the built-in lab up, show the main job with a mark on every line that is checked, take the lab down
    Demo {
        /// Leave the lab up
        #[arg(long)]
        keep: bool,
    },
    /// Show hosts, pods, their addresses and what runs
    Status,
    /// Run a program inside a host or a pod
    Exec {
        /// HOST or pod/NAMESPACE/NAME
        place: String,
        /// Program and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Take a host's power or cables away, or kill or freeze its agent
    Kill {
        /// Name of the host; `control` is where the controller runs
        host: String,
        /// What happens to it
        #[arg(long, value_enum, default_value = "power")]
        how: Hurt,
    },
    /// Undo `kill`: power with the same addresses and pods, cables, the agent
    Start {
        /// Name of the host
        host: String,
    },
    /// Put the objects of a manifest into the source directory, replacing those of the same name
    Apply {
        /// Manifest, several documents allowed; `-` is standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Remove the objects of a manifest from the source directory
    Delete {
        /// Manifest, several documents allowed; `-` is standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Ask a server of the lab by which source address it sees a host or pod: TCP, UDP and ping
    Ask {
        /// HOST or pod/NAMESPACE/NAME
        place: String,
        /// Address of the server
        #[arg(default_value = "203.0.113.10")]
        target: IpAddr,
    },
    /// Print everything that a program could leave behind in a host's kernel, to compare before and after
    Snapshot {
        /// Name of the host
        host: String,
    },
    /// Answer in this network namespace until killed; `up` starts it in the server
    #[command(hide = true)]
    Serve,
    /// Take the lab down and remove everything of it, also after a crash
    Down,
}

/// Runs a verb; errors are printed and become the exit code.
///
/// # Errors
/// Standard output or the program's own path is not available.
pub fn run(command: LabCommand) -> anyhow::Result<ExitCode> {
    if let Err(error) = slowness() {
        eprintln!("error: {error}");
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    match run_verb(&command.name, command.verb) {
        Ok(code) => Ok(code),
        Err(error) => match error.downcast_ref::<LabError>() {
            Some(known) => {
                eprintln!("error: {error:#}");
                Ok(ExitCode::from(exit_code(known)))
            }
            None => Err(error),
        },
    }
}

fn exit_code(error: &LabError) -> u8 {
    match error {
        LabError::Topology(_)
        | LabError::Name(_)
        | LabError::NoSuchHost { .. }
        | LabError::NoSuchPod(_)
        | LabError::Place(_)
        | LabError::NotControl
        | LabError::HiddenProgram(_)
        | LabError::Manifest { .. } => EXIT_USAGE,
        LabError::NotUp(_) | LabError::Off(_) | LabError::Locked(_) => EXIT_UNREACHABLE,
        _ => EXIT_WRONG,
    }
}

fn run_verb(name: &str, verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Up {
            file,
            no_agents,
            agent_args,
        } => up(name, file, no_agents, agent_args)?,
        Verb::Demo { keep } => return show_demo(name, keep),
        Verb::Status => return status(name),
        Verb::Exec { place, command } => return exec(name, &place, &command),
        Verb::Kill { host, how } => Lab::open(name)?.kill(&host, how)?,
        Verb::Start { host } => Lab::open(name)?.start(&host)?,
        Verb::Apply { file } => {
            for object in Lab::open(name)?.apply(&file)? {
                print(&format!("applied {object}\n"))?;
            }
        }
        Verb::Delete { file } => {
            for object in Lab::open(name)?.delete(&file)? {
                print(&format!("deleted {object}\n"))?;
            }
        }
        Verb::Ask { place, target } => return ask(name, &place, target),
        Verb::Snapshot { host } => {
            let snapshot = Snapshot::take(&Lab::open(name)?.place(&host)?)?;
            print(&snapshot.to_string())?;
        }
        Verb::Serve => {
            let _server = Server::start_here()?;
            // Only a signal ends it.
            loop {
                std::thread::park();
            }
        }
        Verb::Down => Lab::down(name)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(
    name: &str,
    file: Option<PathBuf>,
    no_agents: bool,
    agent_args: Vec<String>,
) -> anyhow::Result<()> {
    let topology = match file {
        Some(file) => Topology::from_file(&file).map_err(LabError::from)?,
        None => Topology::built_in(),
    };
    let egret = std::env::current_exe().context("finding this program")?;
    let options = UpOptions {
        egret,
        agent_args,
        agents: !no_agents,
        standing_server: true,
    };
    let lab = Lab::up(name, &topology, &options)?;
    print(&format!(
        "lab {name} is up; its manifests are in {}, its logs in {}\n",
        lab.dir().objects().display(),
        lab.dir().log().display()
    ))
}

fn show_demo(name: &str, keep: bool) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("error: the demo makes network namespaces and needs root");
        return Ok(ExitCode::from(EXIT_UNREACHABLE));
    }
    let egret = std::env::current_exe().context("looking for this program")?;
    demo::run(&DemoOptions {
        name: name.to_owned(),
        egret,
        called: std::env::args()
            .next()
            .unwrap_or_else(|| "egret".to_owned()),
        keep,
    })
}

fn status(name: &str) -> anyhow::Result<ExitCode> {
    let lab = match Lab::open(name) {
        Err(error @ LabError::NotUp(_)) => {
            let others = StateDir::all();
            let hint = match others.is_empty() {
                true => "no lab is up".to_owned(),
                false => format!("labs that are up: {}", others.join(", ")),
            };
            eprintln!("error: {error}; {hint}");
            return Ok(ExitCode::from(EXIT_UNREACHABLE));
        }
        result => result?,
    };
    let hosts = lab.status()?;
    let mut text = "HOST          POWER  CARRIER  AGENT    ADDRESSES\n".to_owned();
    hosts.iter().for_each(|host| text += &describe(host));
    let controller = lab.controller()?.map_or("not running", |_| "running");
    print(&format!("{text}controller: {controller}\n"))?;
    let is_well =
        |host: &HostStatus| host.on && host.carrier && matches!(host.agent, "none" | "running");
    Ok(if hosts.iter().all(is_well) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_WRONG)
    })
}

fn describe(host: &HostStatus) -> String {
    let join = |addresses: &[IpAddr]| {
        addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let power = if host.on { "on" } else { "off" };
    let carrier = if host.carrier { "yes" } else { "no" };
    let HostStatus {
        name,
        agent,
        addresses,
        pods,
        ..
    } = host;
    let mut text = format!(
        "{name:<14}{power:<7}{carrier:<9}{agent:<9}{}\n",
        join(addresses)
    );
    for (pod, addresses) in pods {
        text += &format!("  pod/{pod:<32} {}\n", join(addresses));
    }
    text
}

/// Prints; a closed pipe, as after `head`, is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn exec(name: &str, place: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let lab = Lab::open(name)?;
    let place = lab.place(place)?;
    let (program, arguments) = command.split_first().context("no program is given")?;
    let status = lab
        .exec(&place, program)?
        .args(arguments)
        .status()
        .context("running nsenter")?;
    // A program that a signal ended has no exit code; shells use 128 plus the signal.
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    Ok(ExitCode::from(
        code.and_then(|code| u8::try_from(code).ok())
            .unwrap_or(EXIT_WRONG),
    ))
}

fn ask(name: &str, place: &str, target: IpAddr) -> anyhow::Result<ExitCode> {
    let place = Lab::open(name)?.place(place)?;
    let peer = SocketAddr::new(target, ASKED_PORT);
    let answers = [
        (
            "tcp",
            tcp_source(&place, peer).map(|source| source.to_string()),
        ),
        (
            "udp",
            udp_source(&place, peer).map(|source| source.to_string()),
        ),
        (
            "ping",
            ping_source(&place, target).map(|source| source.to_string()),
        ),
    ];
    let mut code = ExitCode::SUCCESS;
    for (protocol, answer) in answers {
        match answer {
            Ok(source) => print(&format!("{protocol:<5}{source}\n"))?,
            Err(error) => {
                print(&format!(
                    "{protocol:<5}no answer: {:#}\n",
                    anyhow::Error::from(error)
                ))?;
                code = ExitCode::from(EXIT_WRONG);
            }
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        lab: LabCommand,
    }

    #[test]
    fn the_documented_command_lines_are_understood() {
        for line in [
            "lab up",
            "lab up -f topology.yaml",
            "lab --name other up --no-agents",
            "lab status",
            "lab exec worker1 -- ip addr",
            "lab exec pod/default/a1 -- true",
            "lab kill gateway1 --how links",
            "lab kill gateway1",
            "lab start gateway1",
            "lab apply -f file.yaml",
            "lab delete -f file.yaml",
            "lab ask pod/default/a1",
            "lab ask pod/default/a1 2001:db8:1::10",
            "lab down",
            "lab demo",
            "lab demo --keep",
        ] {
            Program::try_parse_from(line.split(' '))
                .unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        assert!(Program::try_parse_from(["lab", "kill", "x", "--how", "fire"]).is_err());
    }
}
