//! The verb `kube-egress`: flags of kube-egress -> driver `classic`.

use crate::args::{EXIT_NOT_GOOD, EXIT_USAGE, KubeEgressArguments};
use anyhow::{Context, bail};
use egret_classic::kube_egress::{KubeEgress, Mapping, PODIP_VIP_MAPPINGS, VIP_ROUTEID_MAPPINGS};
use egret_classic::{ClassicConfig, cleanup_classic, run_classic};
use egret_core::numbers::CLASSIC_NUMBER_MAX;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const DEFAULT_ROUTE_ID: u8 = 64;

pub fn run(
    arguments: &KubeEgressArguments,
    stop: impl FnOnce() -> anyhow::Result<Arc<AtomicBool>>,
) -> anyhow::Result<ExitCode> {
    let mut config = ClassicConfig {
        state_directory: arguments.state_directory.clone(),
        interval: arguments.update_interval.0,
        watched: Vec::new(),
    };
    if arguments.delete {
        return Ok(delete(&config));
    }
    let flags = match flags(arguments) {
        Ok(flags) => flags,
        Err(error) => {
            eprintln!("egret: {error:#}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    };
    if arguments.update_interval.0.is_none() {
        // The mappings are read only once, so an unreadable one must fail and not become "nothing is wanted".
        flags.wanted(None)?;
    }
    if let Mapping::Directories {
        vip_routeid,
        podip_vip,
    } = &flags.mapping
    {
        config.watched = vec![vip_routeid.clone(), podip_vip.clone()];
    }
    run_classic(&config, flags.reader(), &stop()?)?;
    Ok(ExitCode::SUCCESS)
}

fn flags(arguments: &KubeEgressArguments) -> anyhow::Result<KubeEgress> {
    let interface = arguments.interface.clone();
    if !Path::new("/sys/class/net").join(&interface).exists() {
        bail!("there is no network device {interface}: name it with --interface");
    }
    Ok(KubeEgress {
        interface,
        pod_subnets: arguments.pod_subnet.clone(),
        service_subnets: arguments.service_subnet.clone(),
        mapping: mapping(arguments)?,
    })
}

fn delete(config: &ClassicConfig) -> ExitCode {
    let errors = cleanup_classic(config);
    for error in &errors {
        eprintln!("egret: {error}");
    }
    if errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_NOT_GOOD)
    }
}

fn mapping(arguments: &KubeEgressArguments) -> anyhow::Result<Mapping> {
    // Both versions have -r and -v: a directory is neither a number nor an address.
    let number = arguments.route_id.as_deref().map(str::parse::<u8>);
    let vip = arguments.vip.as_deref().map(str::parse);
    let short = |text: &Option<String>| {
        text.as_ref()
            .map(PathBuf::from)
            .filter(|path| path.is_dir())
    };
    let vip_routeid = arguments.vip_routeid_mappings.clone();
    let vip_routeid = vip_routeid.or_else(|| short(&arguments.route_id));
    let podip_vip = arguments.podip_vip_mappings.clone();
    let podip_vip = podip_vip.or_else(|| short(&arguments.vip));
    let route_id = match number {
        None => DEFAULT_ROUTE_ID,
        Some(Ok(number)) if (1..=CLASSIC_NUMBER_MAX).contains(&number) => number,
        Some(_) if vip_routeid.is_some() => DEFAULT_ROUTE_ID,
        Some(_) => bail!(
            "--route-id {}: write a number from 1 to {CLASSIC_NUMBER_MAX}",
            arguments.route_id.as_deref().unwrap_or_default()
        ),
    };
    match vip {
        Some(Ok(vip)) => return Ok(Mapping::One { vip, route_id }),
        Some(Err(error)) if podip_vip.is_none() => {
            let text = arguments.vip.as_deref().unwrap_or_default();
            return Err(error).with_context(|| format!("--vip {text}"));
        }
        _ => {}
    }
    let asked = vip_routeid.is_some() || podip_vip.is_some();
    let vip_routeid = vip_routeid.unwrap_or_else(|| VIP_ROUTEID_MAPPINGS.into());
    let podip_vip = podip_vip.unwrap_or_else(|| PODIP_VIP_MAPPINGS.into());
    if !asked && !vip_routeid.is_dir() && !podip_vip.is_dir() {
        bail!(
            "--vip is missing: name the egress address of all pods, or the directories of two mappings (--help)"
        );
    }
    Ok(Mapping::Directories {
        vip_routeid,
        podip_vip,
    })
}
