//! Input of the runtime, on standard input and in the environment.

use crate::failure::{DECODE, Failure, INCOMPATIBLE_VERSION, INVALID_CONFIG, INVALID_ENVIRONMENT};
use egret_wire::cni::{Attachment, AttachmentId, KNOWN_FILE, PodId, SOCKET, SPEC_VERSIONS};
use serde::Deserialize;
use serde_json::Value;
use std::net::IpAddr;
use std::path::PathBuf;

/// Default of the seconds that a selected pod waits for an agent that does not answer. An agent that is being replaced
/// is back by then, and the runtime retries anyway.
const WAIT_SECS: u64 = 20;

/// The plugin's configuration (CNI specification, section 1 "Network configuration format", and the agent's own keys).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Version of the specification.
    #[serde(default)]
    pub cni_version: String,
    /// The agent's socket.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// Path of the file that the agent leaves for times when it is away.
    #[serde(default = "known")]
    pub known: PathBuf,
    /// Seconds that a selected pod waits for an agent.
    #[serde(default = "wait_seconds")]
    pub wait_seconds: u64,
    /// Result of the previous plugins.
    pub prev_result: Option<Value>,
    /// For `GC`: attachments that still exist.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Vec<ValidAttachment>,
}

/// An attachment that still exists (specification 1.1.0, `GC`).
#[derive(Debug, Deserialize)]
pub struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

fn socket() -> PathBuf {
    SOCKET.into()
}

fn known() -> PathBuf {
    KNOWN_FILE.into()
}

fn wait_seconds() -> u64 {
    WAIT_SECS
}

/// Version for an answer: the configuration's, otherwise the newest.
pub fn version_of(text: &str) -> String {
    let config: Option<Value> = serde_json::from_str(text).ok();
    let version = config.and_then(|config| Some(config.get("cniVersion")?.as_str()?.to_owned()));
    version
        .filter(|version| !version.is_empty())
        .unwrap_or_else(|| SPEC_VERSIONS[SPEC_VERSIONS.len() - 1].to_owned())
}

impl Config {
    /// Parses and validates a configuration.
    pub fn read(text: &str) -> Result<Self, Failure> {
        let config: Config = serde_json::from_str(text)
            .map_err(|error| Failure::new(DECODE, "the configuration cannot be read", error))?;
        if !SPEC_VERSIONS.contains(&config.cni_version.as_str()) {
            return Err(Failure::new(
                INCOMPATIBLE_VERSION,
                format!("version {:?} is not spoken", config.cni_version),
                format!("these are: {}", SPEC_VERSIONS.join(", ")),
            ));
        }
        Ok(config)
    }

    /// Result of the previous plugins, which is also this plugin's.
    pub fn previous(&self) -> Result<&Value, Failure> {
        let previous = self.prev_result.as_ref();
        previous.filter(|value| value.is_object()).ok_or_else(|| {
            Failure::new(
                INVALID_CONFIG,
                "there is no prevResult",
                "it must come after a plugin that gives addresses, in a list of plugins",
            )
        })
    }

    /// Attachments that still exist, as ids of the agent's protocol.
    pub fn valid(&self) -> Vec<AttachmentId> {
        let valid = self.valid_attachments.iter();
        valid
            .map(|one| AttachmentId {
                container: one.container_id.clone(),
                interface: one.ifname.clone(),
            })
            .collect()
    }

    /// Addresses inside the container, from the result of the previous plugins (specification, section 5 "Result
    /// Types").
    pub fn addresses(&self) -> Result<Vec<IpAddr>, Failure> {
        let list = |name: &str| {
            let list = self
                .prev_result
                .as_ref()
                .and_then(|result| result.get(name));
            list.and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let interfaces = list("interfaces");
        let inside = |ip: &Value| {
            let index = ip.get("interface").and_then(Value::as_u64);
            let index = index.and_then(|index| usize::try_from(index).ok());
            let Some(interface) = index.and_then(|index| interfaces.get(index)) else {
                return true;
            };
            let sandbox = interface.get("sandbox").and_then(Value::as_str);
            sandbox.is_some_and(|sandbox| !sandbox.is_empty())
        };
        let mut addresses = Vec::new();
        for ip in list("ips").iter().filter(|ip| inside(ip)) {
            let text = ip
                .get("address")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let host = text.split_once('/').map_or(text, |(host, _)| host);
            let address: IpAddr = host.parse().map_err(|error| {
                let text = format!("prevResult has an address {text:?}");
                Failure::new(INVALID_CONFIG, text, error)
            })?;
            addresses.push(address);
        }
        Ok(addresses)
    }
}

/// The attachment in the environment (specification, section 2 "Parameters"); `needed` are required variables.
pub fn attachment(
    config: &Config,
    environment: &dyn Fn(&str) -> String,
    needed: &[&str],
) -> Result<Attachment, Failure> {
    for name in needed {
        if environment(name).is_empty() {
            let text = format!("{name} is not set");
            return Err(Failure::new(
                INVALID_ENVIRONMENT,
                text,
                "the specification wants it",
            ));
        }
    }
    Ok(Attachment {
        id: AttachmentId {
            container: environment("CNI_CONTAINERID"),
            interface: environment("CNI_IFNAME"),
        },
        pod: pod(&environment("CNI_ARGS")),
        addresses: config.addresses()?,
    })
}

/// The pod in `CNI_ARGS`, which every Kubernetes runtime sets.
fn pod(arguments: &str) -> Option<PodId> {
    let argument = |wanted: &str| {
        let mut all = arguments.split(';').filter_map(|pair| pair.split_once('='));
        let value = all.find(|(key, _)| *key == wanted).map(|(_, value)| value);
        value.filter(|value| !value.is_empty()).map(str::to_owned)
    };
    Some(PodId {
        namespace: argument("K8S_POD_NAMESPACE")?,
        name: argument("K8S_POD_NAME")?,
        uid: argument("K8S_POD_UID"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_inside_the_container() {
        let config = Config::read(
            r#"{"cniVersion": "0.4.0", "prevResult": {
            "interfaces": [{"name": "cni0"}, {"name": "veth1", "sandbox": ""}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"version": "4", "address": "10.244.1.5/24", "interface": 2}, {"address": "fd00::5/64"},
                    {"address": "10.244.1.1/24", "interface": 0}, {"address": "10.9.9.9/32", "interface": 1}]}}"#,
        )
        .unwrap();
        let addresses = config.addresses().unwrap();
        assert_eq!(
            addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
            ["10.244.1.5", "fd00::5"]
        );
    }

    #[test]
    fn the_pod_is_named_by_arguments_in_any_order() {
        let found =
            pod("IgnoreUnknown=1;K8S_POD_NAME=p;K8S_POD_NAMESPACE=ns;K8S_POD_UID=u").unwrap();
        assert_eq!(
            (found.to_string(), found.uid.as_deref()),
            ("ns/p".to_owned(), Some("u"))
        );
        assert_eq!(
            pod("K8S_POD_NAME=p;K8S_POD_NAMESPACE=ns").unwrap().uid,
            None
        );
        assert_eq!(pod(""), None);
        assert_eq!(pod("K8S_POD_NAME=p"), None);
    }

    #[test]
    fn only_spoken_versions_are_read() {
        for version in SPEC_VERSIONS {
            Config::read(&format!(r#"{{"cniVersion": "{version}"}}"#)).unwrap();
        }
        for text in [
            "{}",
            r#"{"cniVersion": "0.2.0"}"#,
            r#"{"cniVersion": "2.0.0"}"#,
        ] {
            let failure = Config::read(text).unwrap_err();
            assert!(
                failure.to_json("1.1.0").contains("\"code\":1,"),
                "{failure:?}"
            );
        }
        assert!(
            Config::read("{")
                .unwrap_err()
                .to_json("1.1.0")
                .contains("\"code\":6,")
        );
        assert_eq!(version_of("{"), "1.1.0");
        assert_eq!(version_of(r#"{"cniVersion": "0.4.0"}"#), "0.4.0");
    }
}
