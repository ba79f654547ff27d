//! One host: a process tree with its own mounts, network, name and process ids, and its network setup.

use crate::LabError;
use crate::error::io;
use crate::firewall;
use crate::layout::{
    Bridge, HostLayout, LinkLayout, POD_GATEWAY_MAC, POD_GATEWAY_V4, POD_GATEWAY_V6, PodLayout,
};
use crate::namespace::run_in;
use crate::process::{Process, run};
use crate::state::{Daemon, HostProcesses, StateDir};
use crate::topology::{Role, RpFilter};
use ipnet::IpNet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// First process of a host. `$1` is the lab's folder, `$2` the host's name, the rest `KEY=VALUE` sysctls.
///
/// The lab's folder is bound into the new /run before that hides it. /var/lib/egret may not exist on the machine, and
/// creating it would leave a folder behind, so then all of /var/lib is replaced. A child of a process that ignores
/// SIGCHLD leaves no zombie, and that survives exec: `sleep` reaps all orphans of the host.
const INIT: &str = r#"
set -e
dir=$1 host=$2; shift 2
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs "$dir/mnt"
inner=$dir/mnt${dir#/run}
mkdir -p "$inner/objects" "$inner/log" "$dir/mnt/netns"
mount --bind "$dir/objects" "$inner/objects"
mount --bind "$dir/log" "$inner/log"
mount --rbind "$dir/mnt" /run
if [ -d /var/lib/egret ]; then
  mount -t tmpfs -o mode=755 tmpfs /var/lib/egret
else
  mount -t tmpfs -o mode=755 tmpfs /var/lib
  mkdir /var/lib/egret
fi
hostname "$host"
for setting; do
  path=/proc/sys/${setting%%=*}
  if [ -e "$path" ]; then echo "${setting#*=}" >"$path"; fi
done
echo ready
trap '' CHLD
exec sleep infinity >/dev/null
"#;

/// Privileges of an agent's container: `agent.capabilities` of deploy/chart/values.yaml, and no way to gain more.
const AS_IN_THE_CHART: &[&str] = &[
    "setpriv",
    "--no-new-privs",
    "--inh-caps=-all",
    "--bounding-set=-all,+net_admin,+net_raw,+bpf,+perfmon",
];

/// Starts the namespaces of a host or of the control namespace and waits until its mounts are in place.
///
/// # Errors
/// A program is missing or a mount is refused.
pub(crate) fn start(
    dir: &StateDir,
    name: &str,
    sysctls: &[String],
) -> Result<HostProcesses, LabError> {
    let path = dir.path();
    let (marker, value) = dir.marker();
    let mut command = Command::new("setsid");
    command
        .args([
            "unshare",
            "--mount",
            "--net",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
        ])
        .args(["--mount-proc", "sh", "-c", INIT, "egret-lab-init"])
        .arg(&path)
        .arg(name)
        .args(sysctls)
        .env(marker, value)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file(dir, name)?);
    let mut child = command.spawn().map_err(io("running unshare"))?;
    let stdout = child.stdout.take().expect("standard output was asked for");
    let what = format!("the namespaces of {name}");
    let launcher = Process::of(child.id() as i32);
    let mut line = String::new();
    // Ends with "ready", or when the script dies and the pipe closes.
    BufReader::new(stdout)
        .read_line(&mut line)
        .map_err(io(format!("waiting for {what}")))?;
    let launcher = launcher
        .filter(|_| line == "ready\n")
        .ok_or(LabError::Ended { what: what.clone() })?;
    let init = launcher.first_child(&what)?;
    Ok(HostProcesses {
        launcher,
        init,
        agent: None,
    })
}

/// Settings that must be made before any device exists.
pub(crate) fn sysctls(host: &HostLayout) -> Vec<String> {
    let rp_filter = match host.rp_filter {
        RpFilter::Loose => 2,
        RpFilter::Strict => 1,
    };
    let mut settings = vec![
        // Addresses are usable at once: there are no duplicates to detect.
        "net/ipv6/conf/all/accept_dad=0".to_owned(),
        "net/ipv6/conf/default/accept_dad=0".to_owned(),
        "net/ipv6/conf/all/disable_ipv6=0".to_owned(),
        "net/ipv6/conf/default/disable_ipv6=0".to_owned(),
        "net/ipv6/conf/default/router_solicitations=0".to_owned(),
        "net/ipv6/conf/default/accept_ra=0".to_owned(),
    ];
    if host.forwards {
        // Enabling forwarding resets other settings, so it comes first.
        settings.push("net/ipv4/ip_forward=1".to_owned());
        settings.push("net/ipv6/conf/all/forwarding=1".to_owned());
    }
    settings.push(format!("net/ipv4/conf/all/rp_filter={rp_filter}"));
    settings.push(format!("net/ipv4/conf/default/rp_filter={rp_filter}"));
    if host.src_valid_mark {
        settings.push("net/ipv4/conf/all/src_valid_mark=1".to_owned());
    }
    if host.roles.contains(&Role::Router) {
        // A router of the network outside does not send ICMP redirects.
        settings.push("net/ipv4/conf/all/send_redirects=0".to_owned());
        settings.push("net/ipv4/conf/default/send_redirects=0".to_owned());
    }
    settings
}

/// Settings of the control namespace: its bridges are switches without addresses.
pub(crate) fn control_sysctls() -> Vec<String> {
    [
        "net/ipv6/conf/default/disable_ipv6=1",
        "net/ipv6/conf/default/accept_dad=0",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Builds the segments.
pub(crate) fn build_bridges(control: Process, bridges: &[Bridge]) -> Result<(), LabError> {
    let mut batch = "link set lo up\n".to_owned();
    for Bridge {
        device,
        mld_snooping,
    } in bridges
    {
        let snooping = u8::from(*mld_snooping);
        // Without a querier a snooping bridge floods. The intervals (in 1/100 s) are short, so that it soon filters,
        // and soon learns groups that it missed while a port was not yet forwarding.
        batch += &format!(
            "link add {device} type bridge stp_state 0 forward_delay 0 mcast_snooping {snooping} \
             mcast_querier {snooping} mcast_query_response_interval 100 mcast_query_interval 200 \
             mcast_startup_query_interval 100\n"
        );
    }
    ip_batch(&host_netns(control), &batch)?;
    let snooping = bridges.iter().filter(|bridge| bridge.mld_snooping);
    let names: Vec<&str> = snooping.map(|bridge| bridge.device.as_str()).collect();
    run_in(&host_netns(control), || {
        // A bridge sends MLD queries from its own link-local address only.
        names.iter().try_for_each(|name| {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "0")
        })
    })?
    .map_err(io("enabling IPv6 on a snooping bridge"))?;
    let ups: String = bridges
        .iter()
        .map(|bridge| format!("link set {} up\n", bridge.device))
        .collect();
    ip_batch(&host_netns(control), &ups)
}

/// Plugs the links of hosts into the bridges; the hosts' ends appear inside the hosts, still down.
pub(crate) fn plug<'a>(
    control: Process,
    hosts: impl Iterator<Item = (&'a HostLayout, Process)>,
) -> Result<(), LabError> {
    let mut batch = String::new();
    for (host, init) in hosts {
        for LinkLayout {
            device,
            port,
            bridge,
            mac,
            ..
        } in &host.links
        {
            batch += &format!(
                "link add {port} type veth peer name {device} address {mac} netns {}\n\
                 link set {port} master {bridge} up\n",
                init.pid
            );
        }
    }
    ip_batch(&host_netns(control), &batch)
}

/// Removes the links of a host from the bridges; both ends vanish.
pub(crate) fn unplug(control: Process, host: &HostLayout) -> Result<(), LabError> {
    let ports = host.links.iter().map(|link| link.port.as_str());
    let there: Vec<&str> = run_in(&host_netns(control), || {
        ports
            .filter(|port| nix::net::if_::if_nametoindex(*port).is_ok())
            .collect()
    })?;
    for port in there {
        // A port may vanish concurrently while the namespace of a killed host is cleaned up: before `ip` looks it up,
        // or between that and its request.
        const VANISHED: [&str; 2] = ["Cannot find device", "No such device"];
        match ip_batch(&host_netns(control), &format!("link del {port}\n")) {
            Err(LabError::Command { said, .. }) if VANISHED.iter().any(|v| said.contains(v)) => {}
            result => result?,
        }
    }
    Ok(())
}

/// Sets the switch's ends of a host's links: with `false`, a pulled cable, the host has no carrier.
pub(crate) fn set_carrier(
    control: Process,
    host: &HostLayout,
    is_up: bool,
) -> Result<(), LabError> {
    let state = if is_up { "up" } else { "down" };
    let lines = host
        .links
        .iter()
        .map(|link| format!("link set {} {state}\n", link.port));
    ip_batch(&host_netns(control), &lines.collect::<String>())
}

/// Retains the network namespace of a host that is about to die.
///
/// All hosts share one kernel, and destroying a namespace with its devices holds locks that living hosts need for
/// routes and next hops: a power cut would slow down the hosts that react to it. So the namespace is destroyed when the
/// host starts again or the lab goes down.
pub(crate) fn keep_network(dir: &StateDir, init: Process) -> Result<Process, LabError> {
    let (marker, value) = dir.marker();
    let mut command = Command::new("setsid");
    command
        .args(["sleep", "infinity"])
        .env(marker, value)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = run_inside(init, || command.spawn())?.map_err(io("running setsid"))?;
    let what = "what keeps a network namespace".to_owned();
    Process::of(child.id() as i32).ok_or(LabError::Ended { what })
}

/// Addresses, routes, pods and rules of a host whose links are plugged in.
pub(crate) fn configure(
    host: &HostLayout,
    init: Process,
    pod_cidrs: &[IpNet],
) -> Result<(), LabError> {
    let pid = init.pid.to_string();
    let mut batch = "link set lo up\n".to_owned();
    for link in &host.links {
        batch += &link_batch(link);
    }
    for via in &host.default_routes {
        let all = if via.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        batch += &format!("route add {all} via {via}\n");
    }
    for (prefix, via) in &host.routes {
        batch += &format!("route add {prefix} via {via}\n");
    }
    ip_batch(&host_netns(init), &batch)?;
    add_pods(init, &host.pods)?;
    for (program, arguments, input) in firewall::commands(host, pod_cidrs) {
        // iptables locks a file below the host's own /run.
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &pid, "-m", "-n", "-p", "--", program])
            .args(arguments);
        run(&mut command, &input)?;
    }
    Ok(())
}

/// Network namespaces, links and routes of pods on a host that is configured.
pub(crate) fn add_pods(init: Process, pods: &[PodLayout]) -> Result<(), LabError> {
    if pods.is_empty() {
        return Ok(());
    }
    let pid = init.pid.to_string();
    // `ip netns add` mounts, so it needs the host's mounts as well.
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid, "-m", "-n", "-p", "--", "ip", "-batch", "-"]);
    run(
        &mut command,
        &pods.iter().map(node_end_batch).collect::<String>(),
    )?;
    for pod in pods {
        let netns = PathBuf::from(format!("/proc/{pid}/root/run/netns/{}", pod.netns()));
        ip_batch(&netns, &pod_end_batch(pod))?;
    }
    Ok(())
}

/// Removes the network that [`add_pods`] made for a pod; processes in it keep its namespace, without any link.
pub(crate) fn remove_pod(init: Process, pod: &PodLayout) -> Result<(), LabError> {
    let pid = init.pid.to_string();
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid, "-m", "-n", "-p", "--", "ip", "-batch", "-"]);
    let batch = format!("link del {}\nnetns del {}\n", pod.device, pod.netns());
    run(&mut command, &batch).map(drop)
}

fn link_batch(link: &LinkLayout) -> String {
    let LinkLayout {
        device,
        addresses,
        mtu,
        ..
    } = link;
    let mtu = mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
    let mut batch = format!("link set {device} up{mtu}\n");
    for address in addresses {
        let flags = if address.addr().is_ipv4() {
            "brd +"
        } else {
            "nodad"
        };
        batch += &format!("address add {address} dev {device} {flags}\n");
    }
    batch
}

fn node_end_batch(pod: &PodLayout) -> String {
    let PodLayout {
        device,
        mac,
        addresses,
        ..
    } = pod;
    let netns = pod.netns();
    let mut batch = format!(
        "netns add {netns}\n\
         link add {device} address {POD_GATEWAY_MAC} type veth peer name eth0 address {mac} netns {netns}\n\
         link set {device} up\n"
    );
    for address in addresses {
        let scope = if address.is_ipv4() { " scope link" } else { "" };
        batch += &format!(
            "route add {} dev {device}{scope}\n\
             neigh replace {address} lladdr {mac} dev {device} nud permanent\n",
            IpNet::from(*address)
        );
    }
    batch
}

fn pod_end_batch(pod: &PodLayout) -> String {
    let mut batch = "link set lo up\nlink set eth0 up\n".to_owned();
    for address in &pod.addresses {
        let (via, all, flags): (IpAddr, _, _) = match address {
            IpAddr::V4(_) => (POD_GATEWAY_V4.into(), "0.0.0.0/0", ""),
            IpAddr::V6(_) => (POD_GATEWAY_V6.into(), "::/0", " nodad"),
        };
        batch += &format!("address add {} dev eth0{flags}\n", IpNet::from(*address));
        batch += &format!("neigh replace {via} lladdr {POD_GATEWAY_MAC} dev eth0 nud permanent\n");
        batch += &format!("route add {all} via {via} dev eth0 onlink\n");
    }
    batch
}

/// Starts a standing program inside a host, its output appended to the host's log.
///
/// # Errors
/// It cannot be started or ends at once.
pub(crate) fn start_daemon(
    dir: &StateDir,
    host: &str,
    init: Process,
    program: &Path,
    arguments: &[String],
) -> Result<Daemon, LabError> {
    start_limited(dir, host, init, &[], program, arguments)
}

/// Starts an agent, with no more capabilities than the chart grants its container.
pub(crate) fn start_agent(
    dir: &StateDir,
    host: &str,
    init: Process,
    program: &Path,
    arguments: &[String],
) -> Result<Daemon, LabError> {
    start_limited(dir, host, init, AS_IN_THE_CHART, program, arguments)
}

fn start_limited(
    dir: &StateDir,
    host: &str,
    init: Process,
    limits: &[&str],
    program: &Path,
    arguments: &[String],
) -> Result<Daemon, LabError> {
    let (marker, value) = dir.marker();
    let log = log_file(dir, host)?;
    let errors = log.try_clone().map_err(io("sharing a log file"))?;
    let mut command = Command::new("setsid");
    command
        .args([
            "nsenter",
            "-t",
            &init.pid.to_string(),
            "-m",
            "-n",
            "-u",
            "-p",
            "--",
        ])
        .args(limits)
        .arg(program)
        .args(arguments)
        .env(marker, value)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    let child = command.spawn().map_err(io("running nsenter"))?;
    let what = format!("{} on {host}", program.display());
    let launcher = Process::of(child.id() as i32).ok_or(LabError::Ended { what: what.clone() })?;
    let process = launcher.first_child(&what)?;
    Ok(Daemon { launcher, process })
}

/// Path of a host's network namespace.
pub(crate) fn host_netns(init: Process) -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", init.pid))
}

/// Runs `work` on a fresh thread inside a host's network namespace.
pub(crate) fn run_inside<T: Send>(
    init: Process,
    work: impl FnOnce() -> T + Send,
) -> Result<T, LabError> {
    run_in(&host_netns(init), work)
}

/// Runs `ip -batch` inside a network namespace.
pub(crate) fn ip_batch(netns: &Path, batch: &str) -> Result<(), LabError> {
    if batch.is_empty() {
        return Ok(());
    }
    run_in(netns, || {
        run(Command::new("ip").args(["-batch", "-"]), batch)
    })?
    .map(drop)
}

fn log_file(dir: &StateDir, host: &str) -> Result<File, LabError> {
    let path = dir.log().join(format!("{host}.log"));
    let file = File::options().create(true).append(true).open(&path);
    file.map_err(io(format!("opening {}", path.display())))
}
