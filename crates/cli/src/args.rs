//! Command line of `egret`.

mod kube_egress;

pub use kube_egress::KubeEgressArguments;

use clap::{Parser, Subcommand, ValueEnum};
use egret_lab::LabCommand;
use egret_objects::front_end::FrontEnd;
use std::net::IpAddr;
use std::path::PathBuf;

/// Exit code: not ready, or something is missing or left.
pub const EXIT_NOT_GOOD: u8 = 1;
/// Exit code of clap: wrong usage.
pub const EXIT_USAGE: u8 = 2;
/// Exit code: a prerequisite cannot be reached (agent, directory, rights).
pub const EXIT_UNREACHABLE: u8 = 3;

/// Fixed source addresses for pods that leave a Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(
    name = "egret",
    version,
    max_term_width = 110,
    after_help = "\
Exit codes: 0 good, 1 something is not as it should be, 2 wrong usage, 3 cannot reach what is needed.
EGRET_LOG sets what is logged, for example EGRET_LOG=debug or EGRET_LOG=egret_agent=trace."
)]
pub struct Arguments {
    /// How log lines look.
    #[arg(long, value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,
    #[command(subcommand)]
    pub verb: Verb,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For machines; the schema is in docs/cli-v1.schema.json.
    Json,
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum SourceArgument {
    /// A directory of manifests.
    Directory(PathBuf),
    /// The Kubernetes API, by this kubeconfig file or as kubectl finds it.
    Kube(Option<PathBuf>),
}

fn source(text: &str) -> Result<SourceArgument, String> {
    match text.split_once(':') {
        Some(("dir", path)) if !path.is_empty() => Ok(SourceArgument::Directory(path.into())),
        Some(("kube", path)) if !path.is_empty() => Ok(SourceArgument::Kube(Some(path.into()))),
        None if text == "kube" => Ok(SourceArgument::Kube(None)),
        _ => Err(format!(
            "{text:?} is not a source: write kube, kube:KUBECONFIG or dir:PATH"
        )),
    }
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the agent of one node: programs its kernel, probes gateways, announces addresses
    Agent(AgentArguments),
    /// Run the controller: allocates addresses, leases source ports, writes status
    Controller(ControllerArguments),
    /// Serve as kube-egress did: translation at the node that holds the address, without the Kubernetes API
    KubeEgress(KubeEgressArguments),
    /// Show policies, addresses, gateways and findings
    Status(StatusArguments),
    /// Show step by step what becomes of a pod's traffic
    Explain(ExplainArguments),
    /// Show what the controller would decide, with a reason for every line; changes nothing
    Plan(PlanArguments),
    /// Turn objects of other egress systems into Egret's, and name every field that has no equal
    Convert(ConvertArguments),
    /// Find what earlier egress systems left on this node, and remove it if asked; as root, in the node's own network
    Doctor(DoctorArguments),
    /// State that a machine sends nothing any more: its ports return without it, and it is no gateway for anybody
    Fence(FenceArguments),
    /// Take such a statement back
    Unfence(UnfenceArguments),
    /// Take a gateway out of service without losing a packet, and wait until it carries nothing
    Drain(DrainArguments),
    /// Put a drained gateway back into service
    Undrain(DrainArguments),
    /// Have one gateway announce an address, instead of the one that Egret chooses
    Move(MoveArguments),
    /// Have the agents of all nodes clean up and wait for it: what `helm uninstall` runs first
    Uninstall(UninstallArguments),
    /// Print the CustomResourceDefinitions as YAML
    Crds,
    /// Run a cluster in network namespaces on this machine, with real packets
    Lab {
        #[command(flatten)]
        lab: LabCommand,
    },
}

impl Verb {
    /// Whether the verb only prints an answer to standard output.
    pub fn only_prints(&self) -> bool {
        match self {
            Verb::Status(_) | Verb::Explain(_) | Verb::Plan(_) | Verb::Convert(_) | Verb::Crds => {
                true
            }
            Verb::Agent(_)
            | Verb::Controller(_)
            | Verb::KubeEgress(_)
            | Verb::Doctor(_)
            | Verb::Fence(_)
            | Verb::Unfence(_)
            | Verb::Drain(_)
            | Verb::Undrain(_)
            | Verb::Move(_)
            | Verb::Uninstall(_)
            | Verb::Lab { .. } => false,
        }
    }

    /// Default log filter: daemons log their work; other verbs log warnings only.
    pub fn default_log(&self) -> &'static str {
        match self {
            // kube_client logs each refused connection as an error; the source logs the consequence.
            Verb::Agent(_) | Verb::Controller(_) | Verb::KubeEgress(_) => "info,kube_client=off",
            _ => "warn,kube_client=off",
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct AgentArguments {
    /// Name of this node, as its Node object has it
    #[arg(long, required_unless_present = "cleanup")]
    pub node: Option<String>,
    /// Where objects come from: kube (KUBECONFIG, ~/.kube/config or the pod's service account), kube:FILE, or dir:PATH
    #[arg(long, value_parser = source, required_unless_present = "cleanup")]
    pub source: Option<SourceArgument>,
    /// Remove everything of Egret from this node's kernel and end; the agent must not run
    #[arg(long)]
    pub cleanup: bool,
    /// After cleaning up, wait for SIGTERM instead of ending: a pod that stays is a node that is clean
    #[arg(long, requires = "cleanup")]
    pub stay: bool,
    #[command(flatten)]
    pub settings: SettingsArguments,
    /// Port of /metrics, /healthz and /readyz; 0: none
    #[arg(long, default_value_t = egret_core::numbers::AGENT_HTTP_PORT)]
    pub http_port: u16,
    /// What must outlive the agent
    #[arg(long, default_value = egret_core::numbers::STATE_DIR)]
    pub state_directory: PathBuf,
    /// Directory on a BPF file system for pinned programs and maps
    #[arg(long, default_value = egret_core::numbers::PIN_DIR)]
    pub pin_directory: PathBuf,
    /// Where the node's sysctls can be written; a container has them mounted elsewhere than at /proc/sys
    #[arg(long, default_value = egret_agent::SYSCTL_DIRECTORY)]
    pub sysctl_directory: PathBuf,
    /// Socket that `egret status` and `egret explain` ask
    #[arg(long, default_value = egret_core::numbers::AGENT_SOCKET)]
    pub socket: PathBuf,
    /// Socket that the CNI plugin egret-cni asks
    #[arg(long, default_value = egret_core::numbers::CNI_SOCKET)]
    pub cni_socket: PathBuf,
    /// Chain egret-cni into the container runtime's CNI configuration in this directory, usually /etc/cni/net.d; with
    /// --cleanup: take it out again. Without, the configuration is left alone
    #[arg(long)]
    pub cni_conf_directory: Option<PathBuf>,
    /// The container runtime's CNI plugins, where egret-cni is put
    #[arg(long, default_value = egret_core::numbers::CNI_BIN_DIR)]
    pub cni_bin_directory: PathBuf,
    /// Take the plugin out of the configuration and go on without it
    #[arg(long, requires = "cni_conf_directory")]
    pub cni_remove: bool,
    /// The program egret-cni [default: beside this one]
    #[arg(long)]
    pub cni_plugin: Option<PathBuf>,
    /// How a gateway node forwards: auto (eBPF, nftables where the kernel refuses it), clsact (for all programs), nftables
    #[arg(long, value_parser = gateway_datapath, default_value = "auto")]
    pub gateway_datapath: egret_agent::BackendChoice,
    /// How pods' packets leave this node: auto (look), netfilter (through the stack), bpf (past it)
    #[arg(long, value_parser = cni_path, default_value = "auto")]
    pub cni_path: egret_agent::CniPath,
    /// New flows to outside from an address of the Node's spec.podCIDRs that no pod has as far as the API has said: pass
    /// (leave as the network plugin has it), drop
    #[arg(long, value_parser = unknown_pods, default_value = "pass")]
    pub unknown_pods: egret_agent::UnknownPodsPolicy,
}

fn unknown_pods(text: &str) -> Result<egret_agent::UnknownPodsPolicy, String> {
    use egret_agent::UnknownPodsPolicy::{Drop, Pass};
    match text {
        "pass" => Ok(Pass),
        "drop" => Ok(Drop),
        _ => Err("write pass or drop".into()),
    }
}

fn cni_path(text: &str) -> Result<egret_agent::CniPath, String> {
    use egret_agent::CniPath::{Auto, Bpf, Netfilter};
    match text {
        "auto" => Ok(Auto),
        "netfilter" => Ok(Netfilter),
        "bpf" => Ok(Bpf),
        _ => Err("write auto, netfilter or bpf".into()),
    }
}

fn gateway_datapath(text: &str) -> Result<egret_agent::BackendChoice, String> {
    use egret_agent::BackendChoice::{Auto, Clsact, Nftables};
    match text {
        "auto" => Ok(Auto),
        "clsact" => Ok(Clsact),
        "nftables" => Ok(Nftables),
        _ => Err("write auto, clsact or nftables".into()),
    }
}

#[derive(Debug, clap::Args)]
pub struct ControllerArguments {
    /// Where objects come from: kube (KUBECONFIG, ~/.kube/config or the pod's service account), kube:FILE, or dir:PATH
    #[arg(long, value_parser = source)]
    pub source: SourceArgument,
    #[command(flatten)]
    pub settings: SettingsArguments,
    /// Port of /metrics, /healthz and /readyz; 0: none
    #[arg(long, default_value_t = egret_core::numbers::CONTROLLER_HTTP_PORT)]
    pub http_port: u16,
}

/// Heading of [`SettingsArguments`] in the usage: verbs that only ask have other arguments that matter more.
const SETTINGS: &str = "Settings of the installation, the same for the controller and every agent";

/// Settings of the installation that planning depends on: the same for the controller and every agent.
#[derive(Clone, Debug, clap::Args)]
pub struct SettingsArguments {
    /// May addresses that are in no EgressPool be used? [default: Deny; with --front-end: Allow]
    #[arg(long, help_heading = SETTINGS, value_enum, ignore_case = true)]
    pub unpooled_addresses: Option<Unpooled>,
    /// Destinations that are never egress traffic, beside those that are found by themselves
    #[arg(long, help_heading = SETTINGS, value_name = "CIDR", value_delimiter = ',')]
    pub never_destination: Vec<ipnet::IpNet>,
    /// Service address ranges of the cluster, beside those that its ServiceCIDR objects name
    #[arg(long, help_heading = SETTINGS, value_name = "CIDR", value_delimiter = ',')]
    pub service_cidr: Vec<ipnet::IpNet>,
    /// Seconds that a released port range rests before another worker may have it
    #[arg(long, help_heading = SETTINGS, default_value_t = egret_core::numbers::LEASE_HOLD_DOWN_SECS)]
    pub hold_down_secs: u64,
    /// Serve the objects of these earlier systems: staticegressip, egressmapper
    #[arg(long, help_heading = SETTINGS, value_name = "NAME", value_delimiter = ',')]
    pub front_end: Vec<FrontEnd>,
    /// Take such objects also without the annotation egret.dev/adopt: "true": no other controller is there
    #[arg(long, help_heading = SETTINGS)]
    pub front_end_adopt_all: bool,
    /// Namespaces whose Egress, Vip and EgressMapper objects of egress-mapper may speak for other namespaces
    #[arg(
        long,
        help_heading = SETTINGS,
        value_name = "NAMESPACE",
        value_delimiter = ',',
        default_value = "default"
    )]
    pub front_end_admin_namespace: Vec<String>,
}

/// `unpooledAddresses`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Unpooled {
    /// Any namespace may use them.
    #[value(name = "Allow")]
    Allow,
    /// Nobody may.
    #[value(name = "Deny")]
    Deny,
}

#[derive(Debug, clap::Args)]
pub struct StatusArguments {
    /// Read this source (kube or dir:PATH) instead of asking the agent of this node
    #[arg(long, value_parser = source)]
    pub source: Option<SourceArgument>,
    /// Socket of the agent
    #[arg(long, default_value = egret_core::numbers::AGENT_SOCKET)]
    pub socket: PathBuf,
    #[command(flatten)]
    pub settings: SettingsArguments,
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

#[derive(Debug, clap::Args)]
pub struct ExplainArguments {
    /// The pod, as NAMESPACE/NAME, or NAME with --namespace
    pub pod: String,
    /// Namespace of the pod, where its name has none
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Towards this destination
    #[arg(long, value_name = "ADDRESS")]
    pub to: Option<IpAddr>,
    /// Read this source (kube or dir:PATH) instead of asking the agent of this node
    #[arg(long, value_parser = source)]
    pub source: Option<SourceArgument>,
    /// Socket of the agent
    #[arg(long, default_value = egret_core::numbers::AGENT_SOCKET)]
    pub socket: PathBuf,
    #[command(flatten)]
    pub settings: SettingsArguments,
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Before you fence a node, see that the machine is off, or that nothing it sends reaches a gateway. If it runs all the same and \
is not connected to the API, it may send from ports that another node has after two minutes. If it is connected, its agent \
ends its flows and stops announcing. It writes the annotation egret.dev/fence of the Node object, by your own rights.")]
pub struct FenceArguments {
    /// Name of the node
    pub node: String,
    /// Why it is fenced: `egret status` shows it
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub reason: String,
    /// The API: kube (KUBECONFIG, ~/.kube/config or the pod's service account) or kube:FILE
    #[arg(long, value_parser = source, default_value = "kube")]
    pub source: SourceArgument,
}

#[derive(Debug, clap::Args)]
pub struct UnfenceArguments {
    /// Name of the node
    pub node: String,
    /// The API: kube (KUBECONFIG, ~/.kube/config or the pod's service account) or kube:FILE
    #[arg(long, value_parser = source, default_value = "kube")]
    pub source: SourceArgument,
}

#[derive(Debug, clap::Args)]
pub struct DrainArguments {
    /// Name of the gateway's Node
    pub node: String,
    /// Where objects are: kube (KUBECONFIG, ~/.kube/config or the pod's service account) or kube:FILE
    #[arg(long, value_parser = source, default_value = "kube")]
    pub source: SourceArgument,
    /// Longest wait, in seconds; then the exit code is 1, and what is left is printed. The request stays
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
}

#[derive(Debug, clap::Args)]
pub struct MoveArguments {
    /// The egress address
    pub address: IpAddr,
    /// Name of the Node that is to announce it
    #[arg(required_unless_present = "release")]
    pub node: Option<String>,
    /// Let Egret choose the announcer again
    #[arg(long, conflicts_with = "node")]
    pub release: bool,
    /// Where objects are: kube (KUBECONFIG, ~/.kube/config or the pod's service account) or kube:FILE
    #[arg(long, value_parser = source, default_value = "kube")]
    pub source: SourceArgument,
    /// Longest wait, in seconds; then the exit code is 1, and what is left is printed. The request stays
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
}

#[derive(Debug, clap::Args)]
pub struct UninstallArguments {
    /// Namespace of the agents
    #[arg(long, default_value = "egret-system")]
    pub namespace: String,
    /// Their DaemonSet
    #[arg(long, default_value = "egret-agent")]
    pub daemonset: String,
    /// Kubeconfig file; without, KUBECONFIG, ~/.kube/config or the pod's service account
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Longest wait for the nodes, in seconds
    #[arg(long, default_value_t = 240)]
    pub timeout_secs: u64,
}

#[derive(Debug, clap::Args)]
pub struct PlanArguments {
    /// Where objects come from: kube (KUBECONFIG, ~/.kube/config or the pod's service account), kube:FILE, or dir:PATH
    #[arg(long, value_parser = source)]
    pub source: SourceArgument,
    #[command(flatten)]
    pub settings: SettingsArguments,
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

#[derive(Debug, clap::Args)]
pub struct ConvertArguments {
    /// YAML or JSON manifests; - is standard input. May be given several times
    #[arg(short, long, value_name = "FILE", required = true)]
    pub file: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct DoctorArguments {
    /// Show exactly what would be removed of these systems; nothing is removed without --yes
    #[arg(long, value_name = "SYSTEM", value_enum, value_delimiter = ',')]
    pub clean_legacy: Vec<LegacySystem>,
    /// Remove it
    #[arg(long, requires = "clean_legacy")]
    pub yes: bool,
    /// Socket of the node's agent, which tells what it has measured
    #[arg(long, default_value = egret_core::numbers::AGENT_SOCKET)]
    pub socket: PathBuf,
    /// Where the node's files are; a container has them mounted elsewhere than at /
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    pub root: PathBuf,
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Earlier systems by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LegacySystem {
    /// nirmata/kube-static-egress-ip, or its fork
    StaticEgressIp,
    /// kube-egress, of either version
    KubeEgress,
    /// Addresses that keepalived-vip holds for kube-egress
    KeepalivedVip,
    /// egress-mapper: kube-egress and keepalived-vip
    EgressMapper,
    /// Azure's kube-egress-gateway
    KubeEgressGateway,
}
