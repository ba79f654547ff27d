//! Names of labs: each says which process made it, so that parallel runs do not meet and that what a killed one left can
//! be found.

use egret_cluster::Cluster;
use egret_lab::StateDir;
use egret_lab::process::Process;

/// What the names of all labs of tests begin with.
const PREFIX: &str = "ta-";

/// Name of a lab of this process for a test.
pub fn name(test: &str) -> String {
    format!("{PREFIX}{test}-{}", std::process::id())
}

/// Takes down what a process that has ended left.
pub(super) fn take_down_of(process: u32) {
    take_down(|owner| owner == process);
}

/// Takes down what processes left that live no longer, killed together with those that watched them.
pub(super) fn take_down_orphans() {
    take_down(|owner| Process::of(owner as i32).is_none());
}

fn take_down(is_wanted: impl Fn(u32) -> bool) {
    for name in StateDir::all() {
        if owner(&name).is_some_and(&is_wanted) {
            let result = Cluster::down(&name);
            // Another test program may have done it meanwhile.
            if let Err(error) = result
                && StateDir::new(&name).is_ok_and(|folder| folder.exists())
            {
                println!("taking down {name}: {error}");
            }
        }
    }
}

/// The id of the process that made a lab of a test.
fn owner(name: &str) -> Option<u32> {
    let (_, id) = name.strip_prefix(PREFIX)?.rsplit_once('-')?;
    id.parse().ok()
}

#[cfg(test)]
mod by_name {
    use super::*;

    #[test]
    fn a_lab_says_which_process_made_it() {
        assert_eq!(owner(&name("some-test")), Some(std::process::id()));
        assert_eq!(owner("ta-some-test-12"), Some(12));
    }

    #[test]
    fn labs_that_are_not_of_tests_have_no_owner() {
        for name in ["demo", "my-lab-12", "ta-12", "ta-lab-x"] {
            assert_eq!(owner(name), None, "{name}");
        }
    }
}
