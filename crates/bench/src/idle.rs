//! Waits until the machine is idle: a lab that still converges takes CPU time from the measurement.

use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// Duration of one sample: as long as the pause between two refreshes of an agent.
const LOOK: Duration = Duration::from_secs(10);
/// Share of all CPUs' time above which the machine is not idle. The probes of a dozen agents take some hundredths.
const BUSY: f64 = 0.1;
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(300);

/// Waits until all CPUs have been idle for one sample.
///
/// # Errors
/// They are not idle in time, so that figures would be meaningless.
pub fn wait() -> Result<()> {
    let start = Instant::now();
    loop {
        let share = busy_share()?;
        if share < BUSY {
            return Ok(());
        }
        ensure!(
            start.elapsed() < LONGEST,
            "the machine is busy with something else ({:.0} % of its CPUs): stop that, or measure another part",
            share * 100.0
        );
    }
}

/// Share of all CPUs' time that was not idle, over [`LOOK`].
fn busy_share() -> Result<f64> {
    let before = times(&read()?)?;
    std::thread::sleep(LOOK);
    let after = times(&read()?)?;
    let (idle, all) = (after.0 - before.0, after.1 - before.1);
    Ok(1.0 - idle / all.max(1.0))
}

fn read() -> Result<String> {
    std::fs::read_to_string("/proc/stat").context("/proc/stat")
}

/// Idle time and all time of all CPUs together, in ticks: first line of `/proc/stat` (proc_stat(5)), whose fourth and
/// fifth numbers are idle and waiting for a disk.
fn times(stat: &str) -> Result<(f64, f64)> {
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let numbers = line.split_whitespace().skip(1).map(str::parse::<f64>);
    let numbers: Vec<f64> = numbers.collect::<Result<_, _>>()?;
    ensure!(numbers.len() > 4, "/proc/stat begins with: {line}");
    Ok((numbers[3] + numbers[4], numbers.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::times;

    #[test]
    fn idle_and_all_time_are_read() {
        let found = times("cpu  10 1 5 100 4 0 2 0 0 0\ncpu0 1 1 1 1 1\n").unwrap();
        assert_eq!(found, (104.0, 122.0));
        assert!(times("cpu 1 2\n").is_err());
    }
}
