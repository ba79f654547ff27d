//! Rules made by `nft` and `iptables`, read back from the kernel and evaluated: each form in a namespace of its own.

use egret_core::obstacle::{Obstacle, ObstacleKind, Sample, Samples};
use egret_datapath::obstacle::Lookout;
use std::process::Command;

fn samples() -> Samples {
    let sample = |pod: &str, egress: &str, outside: &str| {
        let address = |text: &str| text.parse().ok();
        Some(Sample {
            pod: address(pod),
            egress: address(egress),
            outside: address(outside),
            ..Sample::default()
        })
    };
    Samples {
        v4: sample("10.244.1.10", "192.168.122.222", "203.0.113.10"),
        v6: sample("fd00:244:1::10", "fd00:122::222", "2001:db8:1::10"),
        tunnel: true,
    }
}

/// Obstacles after these lines of shell.
fn found(lines: &str) -> Vec<Obstacle> {
    let lines = lines.to_owned();
    let work = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let mut command = Command::new("sh");
        let output = command.args(["-ec", &lines]).env("PATH", path).output();
        let output = output.expect("a shell");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{lines}: {said}");
        let mut lookout = Lookout::open().expect("a socket");
        lookout.look(&samples()).expect("a look").to_vec()
    };
    std::thread::spawn(work).join().expect("the thread passes")
}

/// Obstacles with this rule at the end of an nftables chain.
fn nft(hook: &str, rule: &str) -> Vec<Obstacle> {
    found(&format!(
        "nft -f - <<'END'
table inet t {{
  chain c {{ type filter hook {hook} priority 10; policy accept; {rule}
  }}
}}
END"
    ))
}

/// The only obstacle: kind, certainty, families, and the rule as text.
fn only(found: &[Obstacle]) -> Option<(ObstacleKind, bool, [bool; 2], String)> {
    assert!(found.len() < 2, "{found:#?}");
    let one = found.first()?;
    let rule = one.place.rsplit(": ").next().unwrap_or_default();
    Some((one.kind, one.certain, [one.v4, one.v6], rule.to_owned()))
}

fn told(
    kind: ObstacleKind,
    families: [bool; 2],
    rule: &str,
) -> Option<(ObstacleKind, bool, [bool; 2], String)> {
    Some((kind, true, families, rule.to_owned()))
}

const BOTH: [bool; 2] = [true; 2];

#[test]
fn rules_of_nftables_are_read_as_they_were_written() {
    use ObstacleKind::{ForwardRule, ReversePathRule};
    for (hook, rule, wanted) in [
        ("forward", "reject", told(ForwardRule, BOTH, "reject")),
        (
            "forward",
            "counter log prefix \"x\" drop",
            told(ForwardRule, BOTH, "drop"),
        ),
        (
            "forward",
            "meta nfproto ipv6 drop",
            told(ForwardRule, [false, true], "meta nfproto ipv6 drop"),
        ),
        (
            "forward",
            "ct state new drop",
            told(ForwardRule, BOTH, "ct state new drop"),
        ),
        (
            "forward",
            "iifname != \"eth9\" oifname \"egret*\" drop",
            None,
        ),
        (
            "forward",
            "oifname \"egret*\" drop",
            told(ForwardRule, BOTH, "oifname \"egret*\" drop"),
        ),
        ("forward", "oifname \"eth*\" drop", None),
        (
            "forward",
            "meta l4proto tcp oifname egret0 drop",
            told(ForwardRule, BOTH, "meta l4proto 6 oifname \"egret0\" drop"),
        ),
        ("forward", "meta l4proto != tcp drop", None),
        (
            "forward",
            "ip saddr 10.244.0.0/16 accept; ip daddr 10.244.1.0/24 accept; meta nfproto ipv4 drop",
            None,
        ),
        (
            "forward",
            "ip6 saddr fd00:244::/32 accept; ip6 daddr fd00:244:1::10 accept; meta nfproto ipv6 drop",
            None,
        ),
        ("forward", "ip saddr != 10.244.0.0/16 drop", None),
        ("forward", "tcp dport 443 oifname egret0 drop", None),
        (
            "forward",
            "ct state established,related accept; tcp dport 400-500 accept; drop",
            None,
        ),
        (
            "forward",
            "ct state established,related accept; tcp dport >= 444 accept; drop",
            told(ForwardRule, BOTH, "drop"),
        ),
        (
            "forward",
            "meta mark & 0x4000 == 0x4000 accept; drop",
            told(ForwardRule, BOTH, "drop"),
        ),
        (
            "forward",
            "ct status dnat accept; drop",
            told(ForwardRule, BOTH, "drop"),
        ),
        (
            "prerouting",
            "fib saddr . mark . iif oif missing drop",
            told(ReversePathRule, BOTH, "fib saddr . iif oif missing drop"),
        ),
        (
            "prerouting",
            "fib saddr . iif oif eq 0 drop",
            told(ReversePathRule, BOTH, "fib saddr . iif oif missing drop"),
        ),
        (
            "prerouting",
            "fib saddr . iif oif exists accept; drop",
            told(ReversePathRule, BOTH, "drop"),
        ),
        ("prerouting", "fib saddr oif missing drop", None),
        (
            "prerouting",
            "iifname \"eth0\" fib saddr . iif oif missing drop",
            None,
        ),
        ("prerouting", "fib daddr type != local accept; drop", None),
    ] {
        let found = nft(hook, rule);
        let certain: Vec<Obstacle> = found.into_iter().filter(|one| one.certain).collect();
        assert_eq!(only(&certain), wanted, "{hook}: {rule}");
    }
}

#[test]
fn what_may_let_packets_pass_leaves_no_certainty() {
    for rule in [
        "meta mark set mark or 0x4000; meta mark & 0x4000 == 0x4000 accept; drop",
        "ip saddr { 10.0.0.1, 10.244.1.10 } accept; ip6 saddr { fd00::1, fd00:244:1::10 } accept; drop",
        "ct state vmap { established : accept, new : accept }; drop",
        "limit rate 1/second accept; drop",
    ] {
        let found = nft("forward", rule);
        assert!(found.iter().all(|one| !one.certain), "{rule}: {found:#?}");
        assert!(!found.is_empty(), "{rule}");
    }
}

#[test]
fn rules_of_both_iptables_are_read_as_they_were_written() {
    use ObstacleKind::{ForwardPolicy, ForwardRule, PreroutingRule, ReversePathRule};
    const V4: [bool; 2] = [true, false];
    for backend in ["nft", "legacy"] {
        for (lines, wanted) in [
            (
                "$T -A FORWARD -j REJECT",
                told(ForwardRule, V4, "-j REJECT"),
            ),
            ("$T -P FORWARD DROP", told(ForwardPolicy, V4, "policy drop")),
            (
                "$T -A FORWARD ! -i eth+ -o egret0 -j LOG; $T -A FORWARD -o egret0 -j DROP",
                told(ForwardRule, V4, "-o egret0 -j DROP"),
            ),
            (
                "$T -A FORWARD -i egret0 -j ACCEPT; $T -A FORWARD -o egret0 -j ACCEPT; $T -A FORWARD -j REJECT",
                None,
            ),
            (
                "$T -A FORWARD -s 10.244.0.0/16 -j ACCEPT; $T -A FORWARD -d 10.244.0.0/16 -j ACCEPT; $T -A FORWARD -j DROP",
                None,
            ),
            (
                "$T -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; $T -A FORWARD -j DROP",
                told(ForwardRule, V4, "-j DROP"),
            ),
            (
                "$T -A FORWARD -m state --state NEW,ESTABLISHED -j ACCEPT; $T -A FORWARD -j DROP",
                None,
            ),
            (
                "$T -A FORWARD -m conntrack ! --ctstate NEW -m comment --comment x -j ACCEPT; $T -A FORWARD -p tcp -m tcp --dport 443 -j ACCEPT; $T -A FORWARD -j DROP",
                None,
            ),
            (
                "$T -N A; $T -N B; $T -A A -g B; $T -A B -m mark --mark 0x4000/0x4000 -j ACCEPT; $T -A B -j DROP; $T -A FORWARD -j A",
                told(ForwardRule, V4, "-j DROP"),
            ),
            (
                "$T -N A; $T -A A -j RETURN; $T -A A -j DROP; $T -A FORWARD -j A",
                None,
            ),
            (
                "$T -t raw -A PREROUTING -m rpfilter --invert -j DROP",
                told(ReversePathRule, V4, "-m rpfilter --invert -j DROP"),
            ),
            (
                "$T -t mangle -A PREROUTING -m rpfilter --loose --invert -j DROP",
                None,
            ),
            (
                "$T -t mangle -A PREROUTING -i eth0 -m rpfilter --invert -j DROP",
                None,
            ),
            (
                "$T -t mangle -A PREROUTING -m rpfilter -j ACCEPT; $T -t mangle -A PREROUTING -j DROP",
                told(ReversePathRule, V4, "-j DROP"),
            ),
            (
                "$T -t raw -A PREROUTING -j DROP",
                told(PreroutingRule, V4, "-j DROP"),
            ),
        ] {
            let lines = format!("T=iptables-{backend}; {lines}");
            assert_eq!(only(&found(&lines)), wanted, "{lines}");
            if backend == "legacy" && lines.contains("REJECT") {
                let six = lines
                    .replace("T=ip", "T=ip6")
                    .replace("10.244.0.0/16", "fd00:244:1::/48");
                let found = found(&six);
                assert!(
                    found.iter().all(|one| one.v6 && !one.v4),
                    "{six}: {found:#?}"
                );
                assert_eq!(found.is_empty(), wanted.is_none(), "{six}: {found:#?}");
            }
        }
    }
}
