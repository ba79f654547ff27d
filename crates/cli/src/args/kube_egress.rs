//! The flags of kube-egress.

use std::path::PathBuf;
use std::time::Duration;

/// Shortest interval between two reads.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The flags of kube-egress, long and short, of both its versions: `-r` and `-v` take a number and an address, or the
/// directories of the version with mappings.
#[derive(Debug, clap::Args)]
pub struct KubeEgressArguments {
    /// Remove everything that an earlier run made, and end
    #[arg(short, long)]
    pub delete: bool,
    /// Device of the nodes' and the egress addresses
    #[arg(short, long, default_value = "eth0")]
    pub interface: String,
    /// Addresses of pods
    #[arg(
        short,
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "10.32.0.0/12"
    )]
    pub pod_subnet: Vec<ipnet::IpNet>,
    /// Addresses of Services
    #[arg(
        short,
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "10.96.0.0/12"
    )]
    pub service_subnet: Vec<ipnet::IpNet>,
    /// Time between looks at the mappings, as sleep takes it: 5, 0.5, 5s, 1m; without or empty, apply once and end, and
    /// everything stays
    #[arg(
        short,
        long,
        value_name = "SECONDS",
        value_parser = interval,
        default_value = "",
        hide_default_value = true
    )]
    pub update_interval: Interval,
    /// Egress address of all pods
    #[arg(short, long, value_name = "ADDRESS")]
    pub vip: Option<String>,
    /// Number of its mark and routing table, 1 to 252 [default: 64]
    #[arg(short, long, value_name = "NUMBER")]
    pub route_id: Option<String>,
    /// Directory of files named by egress address that hold its number
    #[arg(long, value_name = "DIRECTORY")]
    pub vip_routeid_mappings: Option<PathBuf>,
    /// Directory of files named by pod address that hold its egress address
    #[arg(long, value_name = "DIRECTORY")]
    pub podip_vip_mappings: Option<PathBuf>,
    /// What must outlive the process
    #[arg(long, default_value = egret_core::numbers::CLASSIC_STATE_DIR)]
    pub state_directory: PathBuf,
}

/// Interval between reads; `None`: read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval(pub Option<Duration>);

/// Parses the syntax of `sleep`, since kube-egress' script passes the value on to it.
fn interval(text: &str) -> Result<Interval, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Interval(None));
    }
    let (number, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1.0),
        Some((at, 'm')) => (&text[..at], 60.0),
        Some((at, 'h')) => (&text[..at], 3600.0),
        Some((at, 'd')) => (&text[..at], 86400.0),
        _ => (text, 1.0),
    };
    let plain = number.chars().all(|c| c.is_ascii_digit() || c == '.');
    let seconds = number.parse::<f64>().ok().filter(|_| plain);
    let seconds = seconds.map(|number| number * unit);
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match time {
        Some(time) if time >= INTERVAL_MIN => Ok(Interval(Some(time))),
        _ => Err("write a time of at least 0.1 seconds: 5, 0.5, 5s, 1m".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_what_sleep_takes_and_none_is_once() {
        for (text, millis) in [
            ("5", 5000),
            ("0.5", 500),
            (".5", 500),
            ("5s", 5000),
            ("1m", 60_000),
            ("0.5h", 1_800_000),
        ] {
            let expected = Interval(Some(Duration::from_millis(millis)));
            assert_eq!(interval(text), Ok(expected), "{text}");
        }
        assert_eq!(interval(""), Ok(Interval(None)));
        for bad in ["0", "-1", "5x", "s", "inf", "1e3", "NaN", "0.01"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
