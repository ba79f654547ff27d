//! Names of labs: each contains its process id, so that parallel runs do not collide and labs of a killed process can
//! be found.

use egret_cluster::Cluster;
use egret_lab::StateDir;
use egret_lab::process::Process;

/// Prefix of the names of all labs of tests.
const PREFIX: &str = "ta-";

/// Name of a lab of this process for a test.
pub fn name(test: &str) -> String {
    format!("{PREFIX}{test}-{}", std::process::id())
}

/// Takes down the labs of a process that has ended.
pub(super) fn take_down_of(process: u32) {
    take_down(|owner| owner == process);
}

/// Takes down labs of processes that have ended, if their parents were killed with them.
pub(super) fn take_down_orphans() {
    take_down(|owner| Process::of(owner as i32).is_none());
}

fn take_down(is_wanted: impl Fn(u32) -> bool) {
    for name in StateDir::all() {
        if owner(&name).is_some_and(&is_wanted) {
            let result = Cluster::down(&name);
            // Another test program may have done it concurrently.
            if let Err(error) = result
                && StateDir::new(&name).is_ok_and(|folder| folder.exists())
            {
                println!("taking down {name}: {error}");
            }
        }
    }
}

/// The id of the process that created a test's lab.
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
