//! `egret lab demo`: the main use case, shown and checked on real packets.

mod gateway;
mod leftovers;
mod objects;
mod screen;
mod table;

use crate::process::wait_for;
use crate::slowness::relaxed;
use crate::topology::Role;
use crate::{Hurt, Lab, LabError, Topology, UpOptions};
use gateway::Traffic;
use leftovers::{Machine, Nodes};
use screen::{Screen, time};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use table::Wanted;

/// The Kubernetes enhancement proposal's manifest; only the apiVersion differs.
const KEP: &str = include_str!("../../../deploy/examples/egress.yaml");
const DUAL_STACK: &str = include_str!("demo/dual-stack.yaml");
const DESTINATIONS: &str = include_str!("demo/destinations.yaml");
/// The name of the policy in `KEP` and `DUAL_STACK`.
const POLICY: &str = "my-egress";
/// The name of the policy in `DESTINATIONS`.
const PARTNER: &str = "partner";
/// The addresses of `DUAL_STACK`; the first is that of `KEP`.
const ADDRESSES: [&str; 2] = ["192.168.122.222", "fd00:122::222"];
/// The addresses of `DESTINATIONS`.
const PARTNER_ADDRESSES: [&str; 2] = ["192.168.122.223", "fd00:122::223"];
/// Pods that `KEP` and `DUAL_STACK` select.
const SELECTED: &str = "MyApp";
/// Hold-down of released ports in the demo, seconds. With the default of two minutes the demo would take long.
const HOLD_DOWN_SECS: &str = "1";
/// Longest wait for any effect of Egret.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Options of the demo.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Name of the lab.
    pub name: String,
    /// The program `egret`, for the lab's agents and controller.
    pub egret: PathBuf,
    /// Command by which the user called it, for the commands at the end.
    pub called: String,
    /// Leave the lab up.
    pub keep: bool,
}

/// Brings a lab up, shows the main use case and takes the lab down, even after a failure or Ctrl-C. The exit code tells
/// whether all checks passed.
///
/// # Errors
/// The lab cannot be brought up, or a step in it failed completely.
pub fn run(options: &DemoOptions) -> anyhow::Result<ExitCode> {
    let mut screen = Screen::new()?;
    let before = Machine::look()?;
    screen.title("Egret: pods leave the cluster with a source address that never changes");
    screen.chapter("A cluster in network namespaces on this machine");
    let started = Instant::now();
    let up = UpOptions {
        egret: options.egret.clone(),
        agent_args: Vec::new(),
        agents: true,
        standing_server: true,
    };
    let settings = ["--hold-down-secs", HOLD_DOWN_SECS];
    let lab = Lab::up_with(&options.name, &Topology::built_in(), &up, &settings)?;
    let demo = Demo::new(&lab);
    let shown = demo.and_then(|demo| demo.show(&mut screen, started));
    if let Err(error) = &shown {
        screen.check(false, &format!("{error:#}"));
        let logs = lab.dir().log();
        screen.note(&format!(
            "with --keep the lab stays up, and its logs in {}",
            logs.display()
        ));
    }
    let stays_up = options.keep && !screen.is_interrupted();
    if !stays_up {
        screen.chapter("The lab goes down");
        take_down(&mut screen, lab, &before)?;
    }
    let code = screen.verdict();
    screen.play_on(options);
    Ok(code)
}

fn take_down(screen: &mut Screen, lab: Lab, before: &Machine) -> Result<(), LabError> {
    Lab::down(lab.name())?;
    let diff = before.diff(&Machine::look()?);
    let text = "This machine's devices, addresses, routes, rules, nftables, mounts and BPF pins are as before";
    screen.check(
        diff.is_empty(),
        &[&[text.to_owned()], &diff[..]].concat().join("\n"),
    );
    Ok(())
}

struct Demo<'a> {
    lab: &'a Lab,
    /// All workers and gateways.
    nodes: Vec<String>,
    /// Two servers of both families each.
    servers: [[IpAddr; 2]; 2],
    addresses: [IpAddr; 2],
    partner_addresses: [IpAddr; 2],
}

impl<'a> Demo<'a> {
    fn new(lab: &'a Lab) -> anyhow::Result<Self> {
        let nodes = lab.layout()?.hosts.into_iter();
        let nodes = nodes.filter(|host| host.is_node()).map(|host| host.name);
        let literal = |text: &str| text.parse().expect("a literal address");
        Ok(Self {
            lab,
            nodes: nodes.collect(),
            servers: table::servers(lab)?,
            addresses: ADDRESSES.map(literal),
            partner_addresses: PARTNER_ADDRESSES.map(literal),
        })
    }

    fn show(&self, screen: &mut Screen, started: Instant) -> anyhow::Result<()> {
        self.up(screen, started)?;
        self.by_node(
            screen,
            "Before: every pod leaves with the address of its node",
        )?;
        let before = Nodes::take(self.lab, &self.nodes)?;
        self.kep(screen)?;
        self.dual_stack(screen)?;
        self.destinations(screen)?;
        let victim = self.lose_gateway(screen)?;
        self.add_gateway(screen, &victim)?;
        self.remove(screen, &before)?;
        self.by_node(
            screen,
            "After: every pod leaves with the address of its node again",
        )
    }

    /// Waits for an effect of Egret. Ctrl-C ends the wait.
    fn wait(
        &self,
        screen: &Screen,
        what: &str,
        is_so: impl Fn() -> bool,
    ) -> anyhow::Result<Duration> {
        let started = Instant::now();
        wait_for(what, TIMEOUT, || screen.is_interrupted() || is_so())?;
        screen.go_on()?;
        Ok(started.elapsed())
    }

    fn up(&self, screen: &mut Screen, started: Instant) -> anyhow::Result<()> {
        screen.note(
            "worker1 worker2 worker3        pods a and b with the label app: MyApp, pod other with app: Other\n\
             gateway1 gateway2 gateway3     on the same network, 192.168.122.0/24 and fd00:122::/64\n\
             router - server                203.0.113.10 and 2001:db8:1::10; it says which address it sees",
        );
        self.wait(screen, "all agents to report", || {
            objects::are_programmed(self.lab, &self.nodes)
        })?;
        let text = format!(
            "up after {}, one agent on each node",
            time(started.elapsed())
        );
        screen.check(true, &text);
        Ok(())
    }

    fn by_node(&self, screen: &mut Screen, title: &str) -> anyhow::Result<()> {
        screen.chapter(title);
        screen.note("the server is asked by TCP, UDP and ping, IPv4 and IPv6; one address means that all three agree");
        table::show(screen, self.lab, self.servers[0], |pod| {
            shown(pod).then_some([Wanted::Node; 2])
        })
    }

    /// Applies a manifest and waits until its policy is in force with these addresses.
    fn apply(
        &self,
        screen: &mut Screen,
        manifest: &str,
        name: &str,
        addresses: &[IpAddr],
    ) -> anyhow::Result<()> {
        screen.note(&without_comments(manifest));
        self.lab.apply(&self.file(name, manifest)?)?;
        let is_ready = || objects::Policy::read(self.lab, name).is_ready(addresses);
        let after = self.wait(screen, &format!("policy {name} to be Ready"), is_ready)?;
        let says = objects::Policy::read(self.lab, name).says("Ready");
        screen.check(
            true,
            &format!("Ready after {}: {}", time(after), says.unwrap_or_default()),
        );
        Ok(())
    }

    /// A file with a manifest, in the lab's own folder.
    fn file(&self, name: &str, manifest: &str) -> Result<PathBuf, LabError> {
        let path = self.lab.dir().path().join(format!("demo-{name}.yaml"));
        let written = std::fs::write(&path, manifest);
        written.map_err(crate::error::io(format!("writing {}", path.display())))?;
        Ok(path)
    }

    fn kep(&self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.chapter(
            "The manifest of the Kubernetes enhancement proposal; only the apiVersion is ours",
        );
        let address = self.addresses[0];
        self.apply(screen, KEP, POLICY, &[address])?;
        let policy = objects::Policy::read(self.lab, POLICY);
        let says = policy.says("FamilyNotCovered");
        let text = format!("FamilyNotCovered: {}", says.as_deref().unwrap_or("missing"));
        screen.check(says.is_some(), &text);
        table::show(screen, self.lab, self.servers[0], |pod| {
            let wanted = match is_selected(pod) {
                true => [Wanted::Address(address), Wanted::Refused],
                false => [Wanted::Node; 2],
            };
            shown(pod).then_some(wanted)
        })?;
        screen.note(
            "refused: TCP by a reset, the rest by ICMPv6 \"prohibited\", so that programs go on with IPv4",
        );
        Ok(())
    }

    fn dual_stack(&self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.chapter("The same policy with an address of each family");
        self.apply(screen, DUAL_STACK, POLICY, &self.addresses)?;
        table::show(screen, self.lab, self.servers[0], |pod| {
            let wanted = match is_selected(pod) {
                true => self.addresses.map(Wanted::Address),
                false => [Wanted::Node; 2],
            };
            shown(pod).then_some(wanted)
        })
    }

    fn destinations(&self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.chapter(
            "Only for some destinations: the second server is on the list, the first is not",
        );
        self.apply(screen, DESTINATIONS, PARTNER, &self.partner_addresses)?;
        let others = |wanted: [Wanted; 2]| {
            move |pod: &crate::layout::PodLayout| {
                (shown(pod) && !is_selected(pod)).then_some(wanted)
            }
        };
        let inside = self.partner_addresses.map(Wanted::Address);
        table::show(screen, self.lab, self.servers[1], others(inside))?;
        table::show(screen, self.lab, self.servers[0], others([Wanted::Node; 2]))
    }

    /// Cuts the power of the gateway that announces the IPv4 address; returns its name.
    fn lose_gateway(&self, screen: &mut Screen) -> anyhow::Result<String> {
        screen.chapter("A gateway dies in the middle of transfers");
        let [v4, v6] = self.addresses;
        let who = |address| objects::announcer(self.lab, address);
        self.wait(screen, "an announcer of each address", || {
            who(v4).is_some() && who(v6).is_some()
        })?;
        let victim = who(v4).unwrap_or_default();
        let other = who(v6).unwrap_or_default();
        screen.note(&match other == victim {
            true => format!("{victim} answers for {v4} and {v6}; its power is cut"),
            false => format!("{victim} answers for {v4} ({other} for {v6}); its power is cut"),
        });
        let traffic = Traffic::start(self.lab, self.servers[0], self.addresses)?;
        self.lab.kill(&victim, Hurt::Power)?;
        traffic.watch(|| screen.is_interrupted())?;
        let report = traffic.stop()?;
        screen.go_on()?;
        report.show(screen, true);
        self.wait(screen, "another gateway to answer", || {
            who(v4).is_some_and(|now| now != victim)
        })?;
        let text = format!("{} answers for {v4} now", who(v4).unwrap_or_default());
        screen.check(true, &text);
        Ok(victim)
    }

    fn add_gateway(&self, screen: &mut Screen, victim: &str) -> anyhow::Result<()> {
        screen.chapter(&format!("{victim} comes back in the middle of transfers"));
        let [v4, _] = self.addresses;
        let traffic = Traffic::start(self.lab, self.servers[0], self.addresses)?;
        self.lab.start(victim)?;
        let is_back = || {
            let gateways = objects::live_gateways(self.lab);
            let newest = gateways.iter().map(|(_, version)| *version).max();
            gateways
                .iter()
                .any(|(node, version)| node == victim && Some(*version) == newest)
                && objects::announcer(self.lab, v4).as_deref() == Some(victim)
        };
        let after = self.wait(screen, &format!("{victim} to answer again"), is_back)?;
        traffic.watch(|| screen.is_interrupted())?;
        let report = traffic.stop()?;
        screen.go_on()?;
        screen.check(
            true,
            &format!(
                "{victim} answers for {v4} again, {} after its start",
                time(after)
            ),
        );
        report.show(screen, false);
        Ok(())
    }

    fn remove(&self, screen: &mut Screen, before: &Nodes) -> anyhow::Result<()> {
        screen.chapter("The policies are removed: nothing is left of them");
        for (name, manifest) in [(POLICY, DUAL_STACK), (PARTNER, DESTINATIONS)] {
            self.lab.delete(&self.file(name, manifest)?)?;
        }
        let is_forgotten = || objects::are_forgotten(self.lab, &self.nodes).unwrap_or(false);
        let after = self.wait(
            screen,
            "the policies' addresses to be given back",
            is_forgotten,
        )?;
        screen.check(
            true,
            &format!("addresses and ports are free after {} (ports rest {HOLD_DOWN_SECS} s here, by default 120 s)", time(after)),
        );
        // Agents read the objects a moment after they changed.
        let mut now = Nodes::take(self.lab, &self.nodes)?;
        let is_clean = |now: &Nodes| {
            self.nodes
                .iter()
                .all(|node| before.diff(now, node).is_empty())
        };
        let deadline = Instant::now() + relaxed(TIMEOUT);
        while !is_clean(&now) && Instant::now() < deadline && !screen.is_interrupted() {
            now = Nodes::take(self.lab, &self.nodes)?;
        }
        for role in [Role::Worker, Role::Gateway] {
            self.compare(screen, role, before, &now)?;
        }
        Ok(())
    }

    fn compare(
        &self,
        screen: &mut Screen,
        role: Role,
        before: &Nodes,
        now: &Nodes,
    ) -> anyhow::Result<()> {
        let layout = self.lab.layout()?;
        let hosts = layout
            .hosts
            .iter()
            .filter(|host| host.roles.contains(&role));
        let names: Vec<&str> = hosts.map(|host| host.name.as_str()).collect();
        let diff = names.iter().flat_map(|node| {
            let lines = before.diff(now, node).into_iter();
            lines.map(move |line| format!("\n  {node} {line}"))
        });
        let diff: Vec<String> = diff.collect();
        let text = format!(
            "{}: every rule, route, link, map, program, address, sysctl and file as before",
            names.join(" ")
        );
        screen.check(diff.is_empty(), &format!("{text}{}", diff.concat()));
        Ok(())
    }
}

/// Whether the table shows the pod: one selected and one unselected pod of each worker are enough.
fn shown(pod: &crate::layout::PodLayout) -> bool {
    !pod.name.starts_with('b')
}

fn is_selected(pod: &crate::layout::PodLayout) -> bool {
    pod.labels.get("app").is_some_and(|app| app == SELECTED)
}

fn without_comments(manifest: &str) -> String {
    let lines = manifest.lines().filter(|line| !line.starts_with('#'));
    lines.collect::<Vec<_>>().join("\n")
}

impl Screen {
    /// Prints commands for further experiments.
    fn play_on(&self, options: &DemoOptions) {
        if self.is_interrupted() {
            return;
        }
        let DemoOptions {
            name, called, keep, ..
        } = options;
        let lab = match name.as_str() {
            "lab" => format!("{called} lab"),
            name => format!("{called} lab --name {name}"),
        };
        self.title(&format!(
            "\nPlay on{} (docs/lab.md says more):",
            if *keep {
                " in the lab, which is still up"
            } else {
                ""
            }
        ));
        let objects = format!("/run/egret-lab/{name}/objects");
        // Programs in a host start in `/`.
        let program = match called.starts_with('/') {
            true => called.clone(),
            false => format!("$PWD/{called}"),
        };
        let commands = [
            (format!("{lab} up"), "the same lab, and it stays up"),
            (
                format!("{lab} apply -f deploy/examples/egress.yaml"),
                "or any manifest of yours",
            ),
            (
                format!("{lab} ask pod/default/a1"),
                "which source does the server see?",
            ),
            (
                format!("{called} status --source dir:{objects}"),
                "policies, addresses, leases, gateways",
            ),
            (
                format!("{lab} exec worker1 -- {program} explain default/a1"),
                "why does it leave as it does?",
            ),
            (
                format!("{lab} exec pod/default/a1 -- bash"),
                "a shell in a pod",
            ),
            (
                format!("{lab} exec router -- tcpdump -ni eth0"),
                "what leaves the cluster",
            ),
            (format!("{lab} kill gateway1"), "and `start gateway1`"),
            (format!("{lab} down"), "nothing stays"),
        ];
        let width = commands.iter().map(|(command, _)| command.len()).max();
        let width = width.unwrap_or_default();
        for (command, what) in commands.iter().skip(usize::from(*keep)) {
            self.plain(&format!("  {command:<width$}   # {what}"));
        }
    }
}
