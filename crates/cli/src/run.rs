//! Runs one verb.

use crate::args::{
    AgentArguments, ControllerArguments, EXIT_NOT_GOOD, EXIT_UNREACHABLE, ExplainArguments,
    PlanArguments, SettingsArguments, SourceArgument, StatusArguments, Unpooled, Verb,
};
use crate::{convert, doctor, fence, http, kube_egress, maintenance, show, uninstall};
use anyhow::Context;
use egret_agent::report::Status;
use egret_agent::{CniConfig, InstallConfig, OpenSource, Question};
use egret_core::model::{NodeName, Settings, UnpooledAddresses};
use egret_core::numbers::TUNNEL_INDEX_MAX;
use egret_core::plan::PlanTime;
use egret_objects::dir::{self, DirSource};
use egret_objects::kube::{self, KubeSource, Role};
use egret_objects::{Source, SourceError, View, front_end};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Poll interval of the stop flag after cleanup.
const STAYING: Duration = Duration::from_millis(200);

pub fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Agent(arguments) if arguments.cleanup => cleanup(&arguments),
        Verb::Agent(arguments) => agent(&arguments),
        Verb::Controller(arguments) => controller(&arguments),
        Verb::KubeEgress(arguments) => kube_egress::run(&arguments, stop_at_signal),
        Verb::Status(arguments) => status(&arguments),
        Verb::Explain(arguments) => explain(&arguments),
        Verb::Plan(arguments) => plan(&arguments),
        Verb::Fence(arguments) => fence::fence(&arguments),
        Verb::Unfence(arguments) => fence::unfence(&arguments),
        Verb::Drain(arguments) => maintenance::drain(&arguments),
        Verb::Undrain(arguments) => maintenance::undrain(&arguments),
        Verb::Move(arguments) => maintenance::move_address(&arguments),
        Verb::Uninstall(arguments) => uninstall::run(&arguments),
        Verb::Convert(arguments) => convert::run(&arguments),
        Verb::Doctor(arguments) => doctor::run(&arguments),
        Verb::Crds => crds(),
        Verb::Lab { lab } => egret_lab::cli::run(lab),
    }
}

fn settings(arguments: &SettingsArguments) -> Settings {
    Settings {
        unpooled_addresses: match arguments.unpooled_addresses {
            Some(Unpooled::Allow) => UnpooledAddresses::Allow,
            Some(Unpooled::Deny) => UnpooledAddresses::Deny,
            // Earlier systems have no pools.
            None if !arguments.front_end.is_empty() => UnpooledAddresses::Allow,
            None => UnpooledAddresses::Deny,
        },
        never_destinations: arguments.never_destination.clone(),
        service_cidrs: arguments.service_cidr.clone(),
        hold_down_secs: arguments.hold_down_secs,
    }
}

fn opener(source: &SourceArgument, settings: &SettingsArguments, role: Role) -> OpenSource {
    let (installation, front_ends) = (self::settings(settings), front_ends(settings));
    match source.clone() {
        SourceArgument::Directory(path) => {
            Arc::new(move || -> Result<Box<dyn Source>, SourceError> {
                let settings = dir::Settings {
                    installation: installation.clone(),
                    front_ends: front_ends.clone(),
                    ..Default::default()
                };
                Ok(Box::new(DirSource::open(&path, settings)?))
            })
        }
        SourceArgument::Kube(kubeconfig) => {
            // Every thread's source shares one client and its watches.
            let opened = Mutex::new(None);
            let settings = kube::Settings {
                kubeconfig,
                role,
                installation,
                front_ends,
            };
            Arc::new(move || -> Result<Box<dyn Source>, SourceError> {
                let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
                let source = match opened.take() {
                    Some(source) => source,
                    None => KubeSource::open(settings.clone())?,
                };
                *opened = Some(KubeSource::clone(&source));
                Ok(Box::new(source))
            })
        }
    }
}

fn front_ends(arguments: &SettingsArguments) -> front_end::Settings {
    front_end::Settings {
        enabled: arguments.front_end.iter().copied().collect(),
        adopt_all: arguments.front_end_adopt_all,
        admin_namespaces: arguments
            .front_end_admin_namespace
            .iter()
            .cloned()
            .collect(),
    }
}

/// A view for verbs that only print: the directory is not written, not even a lock.
fn view(source: &SourceArgument, settings: &SettingsArguments) -> anyhow::Result<View> {
    let (installation, front_ends) = (self::settings(settings), front_ends(settings));
    match source {
        SourceArgument::Directory(path) => {
            let read_only = dir::Settings {
                record: false,
                installation,
                front_ends,
                ..Default::default()
            };
            Ok(DirSource::open(path, read_only)?.snapshot()?)
        }
        SourceArgument::Kube(kubeconfig) => {
            let settings = kube::Settings {
                kubeconfig: kubeconfig.clone(),
                role: Role::Reader,
                installation,
                front_ends,
            };
            let mut source = KubeSource::open(settings)?;
            Ok(source.snapshot()?)
        }
    }
}

/// Sets the flag at SIGTERM or SIGINT.
fn stop_at_signal() -> anyhow::Result<Arc<AtomicBool>> {
    use nix::sys::signal::{SigSet, Signal};
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("blocking signals")?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let _ = signals.wait();
            flag.store(true, Ordering::Relaxed);
        })?;
    Ok(stop)
}

fn agent(arguments: &AgentArguments) -> anyhow::Result<ExitCode> {
    let stop = stop_at_signal()?;
    let given = "clap requires it without --cleanup";
    let source = arguments.source.as_ref().expect(given);
    let node = arguments.node.clone().expect(given);
    egret_agent::use_sysctl_directory(&arguments.sysctl_directory);
    let health = Arc::new(egret_agent::Health::default());
    http::serve(arguments.http_port, health.clone());
    let config = egret_agent::Config {
        node: NodeName(node),
        state_directory: arguments.state_directory.clone(),
        pin_directory: arguments.pin_directory.clone(),
        socket: arguments.socket.clone(),
        gateway_datapath: arguments.gateway_datapath,
        cni_path: arguments.cni_path,
        unknown_pods: arguments.unknown_pods,
        cni: cni(arguments)?,
    };
    tracing::info!(node = %config.node, "agent starts");
    let role = Role::Agent(config.node.clone());
    let open = opener(source, &arguments.settings, role);
    egret_agent::run(&config, open, &health, &stop)?;
    tracing::info!("agent ends; the kernel state stays for the next one");
    Ok(ExitCode::SUCCESS)
}

fn cni(arguments: &AgentArguments) -> anyhow::Result<CniConfig> {
    let plugin = match &arguments.cni_plugin {
        Some(plugin) => plugin.clone(),
        None => std::env::current_exe()
            .context("looking for the own program")?
            .with_file_name("egret-cni"),
    };
    let install = |conf_directory: &PathBuf| InstallConfig {
        conf_directory: conf_directory.clone(),
        bin_directory: arguments.cni_bin_directory.clone(),
        plugin,
        remove: arguments.cni_remove,
    };
    Ok(CniConfig {
        socket: arguments.cni_socket.clone(),
        install: arguments.cni_conf_directory.as_ref().map(install),
    })
}

fn cleanup(arguments: &AgentArguments) -> anyhow::Result<ExitCode> {
    // First of all: a signal during the cleanup then does not interrupt it.
    let stop = arguments.stay.then(stop_at_signal).transpose()?;
    egret_agent::use_sysctl_directory(&arguments.sysctl_directory);
    let errors = egret_agent::cleanup(
        &arguments.state_directory,
        &arguments.pin_directory,
        &arguments.socket,
        &cni(arguments)?,
    );
    for error in &errors {
        eprintln!("egret: {error}");
    }
    if !errors.is_empty() {
        return Ok(ExitCode::from(EXIT_NOT_GOOD));
    }
    println!("Nothing of Egret is left in this kernel.");
    while stop
        .as_ref()
        .is_some_and(|stop| !stop.load(Ordering::Relaxed))
    {
        std::thread::sleep(STAYING);
    }
    Ok(ExitCode::SUCCESS)
}

fn controller(arguments: &ControllerArguments) -> anyhow::Result<ExitCode> {
    let stop = stop_at_signal()?;
    let health = Arc::new(egret_controller::Health::default());
    http::serve(arguments.http_port, health.clone());
    let source = opener(&arguments.source, &arguments.settings, Role::Controller)()?;
    tracing::info!(tunnel_indexes = TUNNEL_INDEX_MAX, "controller starts");
    egret_controller::run(source, &health, &stop);
    tracing::info!("controller ends");
    Ok(ExitCode::SUCCESS)
}

fn status(arguments: &StatusArguments) -> anyhow::Result<ExitCode> {
    let json = match &arguments.source {
        Some(source) => {
            let view = view(source, &arguments.settings)?;
            serde_json::to_value(Status::of_objects(&view))?
        }
        None => match ask(&arguments.socket, &Question::Status)? {
            Ok(json) => json,
            Err(code) => return Ok(code),
        },
    };
    let good = show::status(&json, arguments.output)?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_NOT_GOOD)
    })
}

fn explain(arguments: &ExplainArguments) -> anyhow::Result<ExitCode> {
    let named = arguments.pod.split_once('/');
    let (namespace, pod) = named.unwrap_or((&arguments.namespace, &arguments.pod));
    let json = match &arguments.source {
        Some(source) => {
            let view = view(source, &arguments.settings)?;
            let explained =
                egret_core::explain::explain(&view.snapshot, None, (namespace, pod), arguments.to);
            serde_json::to_value(explained)?
        }
        None => {
            let (namespace, pod) = (namespace.to_string(), pod.to_string());
            let question = Question::Explain {
                namespace,
                pod,
                to: arguments.to,
            };
            match ask(&arguments.socket, &question)? {
                Ok(json) => json,
                Err(code) => return Ok(code),
            }
        }
    };
    let good = show::explanation(&json, arguments.output)?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_NOT_GOOD)
    })
}

fn ask(
    socket: &std::path::Path,
    question: &Question,
) -> anyhow::Result<Result<serde_json::Value, ExitCode>> {
    match egret_agent::ask(socket, question) {
        Ok(answer) => {
            let json: serde_json::Value = serde_json::from_str(&answer)?;
            if let Some(error) = json.get("error").and_then(|error| error.as_str()) {
                eprintln!("egret: the agent says: {error}");
                return Ok(Err(ExitCode::from(EXIT_UNREACHABLE)));
            }
            Ok(Ok(json))
        }
        Err(error) => {
            eprintln!(
                "egret: no agent answers at {}: {error}. Read the objects instead with --source kube or --source dir:PATH",
                socket.display()
            );
            Ok(Err(ExitCode::from(EXIT_UNREACHABLE)))
        }
    }
}

fn plan(arguments: &PlanArguments) -> anyhow::Result<ExitCode> {
    let view = view(&arguments.source, &arguments.settings)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let cluster = egret_core::plan::plan(&view.snapshot, PlanTime::of_no_term(i64::try_from(now)?));
    let findings: Vec<_> = view
        .findings
        .iter()
        .chain(&cluster.findings)
        .cloned()
        .collect();
    show::plan(&cluster, &findings, arguments.output)?;
    let good = findings.is_empty();
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_NOT_GOOD)
    })
}

fn crds() -> anyhow::Result<ExitCode> {
    for crd in egret_api::crds() {
        print!("---\n{}", serde_saphyr::to_string(&crd)?);
    }
    Ok(ExitCode::SUCCESS)
}
