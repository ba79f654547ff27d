//! Changes by others of the table, or beside it.

use super::*;

#[test]
fn a_foreign_flush_leaves_the_table_and_a_restart_adopts_it() {
    in_new_namespace(|| {
        run("nft add table ip foreign");
        let mut nft = Nftables::open("egret").expect("open");
        nft.apply(&worker::table(&state())).expect("apply");
        if !nft.owned() {
            let (major, minor) = TABLE_OWNERS;
            let since = aya::util::KernelVersion::new(major, minor, 0);
            let here = aya::util::KernelVersion::current().expect("a version");
            assert!(here < since, "a kernel like this one has owners");
            // println output of a passing test is not shown.
            let why = "this kernel has no table owners that persist (Linux 6.9)";
            let test = "a_foreign_flush_leaves_the_table_and_a_restart_adopts_it";
            let _ = writeln!(std::io::stdout(), "\nskipped: {test}: {why}");
            return;
        }
        run("nft add table ip foreign; nft flush ruleset");
        assert!(
            nft.is_intact().expect("verify"),
            "the flush must not touch our table"
        );
        let before = run("nft list table inet egret");
        drop(nft);
        let after = run("nft list table inet egret");
        assert_eq!(
            content(&after),
            content(&before),
            "the table outlives its agent"
        );
        let mut nft = Nftables::open("egret").expect("open again");
        nft.apply(&worker::table(&state())).expect("adopt");
        run("nft flush ruleset");
        assert!(
            nft.is_intact().expect("verify"),
            "adopted means owned again"
        );
        let mut second = Nftables::open("egret").expect("open");
        let error = second
            .apply(&worker::table(&state()))
            .expect_err("owned by the first");
        assert!(
            error.to_string().contains("another running process"),
            "{error}"
        );
        run("nft add table ip foreign");
        assert!(nft.remove().expect("remove"));
        assert_eq!(run("nft list tables"), "table ip foreign\n");
    });
}

#[test]
fn a_foreign_table_is_none_of_our_business() {
    in_new_namespace(|| {
        for nft in [
            Nftables::open("egret"),
            Nftables::open("egret").map(Nftables::without_owner),
        ] {
            let mut nft = nft.expect("open");
            nft.apply(&worker::table(&state())).expect("apply");
            run("nft add table ip foreign");
            assert_eq!(nft.verify_quick().expect("look"), None);
            assert_eq!(nft.verify_full().expect("compare"), None);
            let counters = nft.counters().expect("counters");
            let (per_account, accounts) = (2, state().worker.targets.len());
            let hooks = egret_core::canary::CanaryHook::ALL.len();
            assert_eq!(
                counters.len(),
                worker::COUNTERS.len() + hooks + per_account * accounts
            );
            assert!(nft.remove().expect("remove"));
        }
    });
}

/// A dump that others' changes interrupt is no drift: forgetting the table then would mean a new one, and the loss of
/// all its run-time sets.
#[test]
fn a_look_that_others_interrupt_forgets_nothing() {
    in_new_namespace(|| {
        let mut nft = Nftables::open("egret").expect("open");
        nft.apply(&worker::table(&state())).expect("apply");
        let stop = AtomicBool::new(false);
        let interrupted = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut others = Nftables::open("others").expect("open");
                while !stop.load(Ordering::Relaxed) {
                    others.apply(&worker::table(&state())).expect("apply");
                    others.remove().expect("remove");
                }
            });
            let deadline = Instant::now() + Duration::from_secs(60);
            let mut last = Ok(None);
            while matches!(last, Ok(None)) && Instant::now() < deadline {
                last = nft.verify_quick();
            }
            stop.store(true, Ordering::Relaxed);
            last
        });
        assert!(interrupted.is_err(), "not interrupted: {interrupted:?}");
        assert_eq!(nft.verify_quick().expect("look"), None);
    });
}

/// Changes of a table without an owner (kernels before 6.9), and a word of the drift's text.
const DAMAGE: [(&str, &str); 10] = [
    ("nft delete table inet egret", "is gone"),
    ("nft flush ruleset", "is gone"),
    ("nft flush chain inet egret guard", "chain guard"),
    ("nft add rule inet egret guard counter", "chain guard"),
    // As many rules as before, one of which differs.
    (
        "nft replace rule inet egret guard handle $(nft -a list chain inet egret guard | \
         sed -n 's/.*# handle //p' | sed -n 2p) counter accept",
        "chain guard",
    ),
    // The same rules with another policy.
    (
        "nft add chain inet egret guard '{ policy drop; }'",
        "chain guard",
    ),
    (
        "nft add chain inet egret more '{ type filter hook forward priority 7; }'",
        "chain more is not of this agent's making",
    ),
    (
        "nft add set inet egret more '{ type ipv4_addr; }'",
        "set more is not",
    ),
    (
        "nft delete element inet egret classify_pods4 '{ 10.244.1.5 }'",
        "set classify_pods4 lacks 1 elements",
    ),
    (
        "nft add element inet egret never4 '{ 203.0.113.0/24 }'",
        "set never4",
    ),
];

#[test]
fn damage_is_seen_and_mended() {
    in_new_namespace(|| {
        let mut nft = Nftables::open("egret").expect("open").without_owner();
        nft.apply(&worker::table(&state())).expect("apply");
        let before = content(&run("nft list table inet egret"));
        for (line, word) in DAMAGE {
            run("nft add table ip foreign");
            assert_eq!(nft.verify_full().expect("compare"), None, "before {line}");
            assert_eq!(nft.verify_quick().expect("look"), None, "before {line}");
            run(line);
            let elements = nft.verify_full().expect("compare");
            let found = elements.or(nft.verify_quick().expect("look"));
            let found = found.unwrap_or_else(|| panic!("not seen: {line}"));
            assert!(found.contains(word), "{line}: {found}");
            nft.apply(&worker::table(&state())).expect("mend");
            let mended = content(&run("nft list table inet egret"));
            assert_eq!(mended, before, "after {line}");
        }
    });
}

/// The comparison is with the table after its last change, not after the first one.
#[test]
fn a_change_of_ours_is_no_damage() {
    in_new_namespace(|| {
        let mut nft = Nftables::open("egret").expect("open").without_owner();
        let mut fewer = state();
        fewer.worker.pods.remove(&ip("fd00:244:1::5"));
        let mut other = state();
        let target = other.worker.targets.get_mut(&TargetId(1)).expect("there");
        target.ranges.pop();
        // Neighbouring ranges, and the very last address: the edge cases of range ends in the kernel.
        let never = [
            "10.245.0.0/16",
            "10.246.0.0/16",
            "255.255.255.255/32",
            "::/1",
            "8000::/1",
        ];
        let never = never.iter().map(|net| net.parse().expect("a prefix"));
        other.worker.never = other.worker.never.iter().copied().chain(never).collect();
        for state in [&state(), &fewer, &other, &state()] {
            nft.apply(&worker::table(state)).expect("apply");
            run("nft add table ip foreign; nft delete table ip foreign");
            assert_eq!(nft.verify_full().expect("compare"), None);
            assert_eq!(nft.verify_quick().expect("look"), None);
        }
    });
}
