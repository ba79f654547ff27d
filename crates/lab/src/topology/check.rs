//! Validation of a topology; errors name the place.

use super::{Host, Pod, Role, Topology};
use crate::layout::pod_numbers;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Most hosts of one lab: their automatic numbers are written as two decimal digits.
const HOSTS_MAX: usize = 60;
/// Least number of host bits of a prefix.
const HOST_BITS_MIN: u8 = 8;
/// Most pods of one host: pod addresses count from 10 and stay below 250.
const PODS_MAX: usize = 200;
/// Longest host or segment name: device names of the lab add up to three characters to it, and Linux allows 15.
const NAME_MAX: usize = 12;

/// Error of an invalid topology.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The file cannot be read.
    #[error("reading the topology {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The text is not a topology.
    #[error("the topology is not of the documented form: {0}")]
    Yaml(String),
    /// A name is empty, too long or reserved, or contains other characters than lower-case letters, digits and `-`.
    #[error(
        "{what} name {name:?}: 1 to {NAME_MAX} lower-case letters, digits or '-' are allowed, not `control`"
    )]
    Name {
        /// Kind of the named thing.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Two things have the same name.
    #[error("{what} {name:?} is there twice")]
    Twice {
        /// Kind of the named things.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A host refers to a segment that does not exist.
    #[error("host {host:?}: link to segment {segment:?}, which is not among the segments")]
    NoSuchSegment {
        /// The host.
        host: String,
        /// The missing segment.
        segment: String,
    },
    /// Two prefixes of one family where only one is allowed.
    #[error("{place}: more than one {family} prefix")]
    Family {
        /// The segment or host.
        place: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// Two prefixes share addresses.
    #[error("prefix {first} of {first_place} overlaps {second} of {second_place}")]
    Overlap {
        /// First prefix.
        first: IpNet,
        /// Its place.
        first_place: String,
        /// Second prefix.
        second: IpNet,
        /// Its place.
        second_place: String,
    },
    /// A segment too small for the automatic addresses.
    #[error("segment {segment:?}: {cidr} has fewer than 256 addresses")]
    Small {
        /// The segment.
        segment: String,
        /// Its prefix.
        cidr: IpNet,
    },
    /// Any other fault of a host.
    #[error("host {host:?}: {problem}")]
    Host {
        /// The host.
        host: String,
        /// The fault and its remedy.
        problem: String,
    },
    /// Too many hosts.
    #[error("{0} hosts; at most {HOSTS_MAX} are possible")]
    TooManyHosts(usize),
}

impl Topology {
    /// Checks names, references and prefixes.
    ///
    /// # Errors
    /// The first fault.
    pub fn validate(&self) -> Result<(), TopologyError> {
        if self.hosts.len() > HOSTS_MAX {
            return Err(TopologyError::TooManyHosts(self.hosts.len()));
        }
        unique_names(
            "segment",
            self.segments.iter().map(|segment| segment.name.as_str()),
        )?;
        unique_names("host", self.hosts.iter().map(|host| host.name.as_str()))?;
        for segment in &self.segments {
            one_prefix_per_family(&format!("segment {:?}", segment.name), &segment.cidrs)?;
            if let Some(cidr) = segment
                .cidrs
                .iter()
                .find(|cidr| host_bits(cidr) < HOST_BITS_MIN)
            {
                return Err(TopologyError::Small {
                    segment: segment.name.clone(),
                    cidr: *cidr,
                });
            }
        }
        let mut pods = BTreeSet::new();
        for host in &self.hosts {
            one_prefix_per_family(&format!("host {:?}", host.name), &host.pod_cidrs)?;
            self.check_links(host)?;
            check_pods(host)?;
            for pod in &host.pods {
                if !pods.insert((&pod.namespace, &pod.name)) {
                    let name = format!("{}/{}", pod.namespace, pod.name);
                    return Err(TopologyError::Twice { what: "pod", name });
                }
            }
        }
        self.check_node_segment()?;
        self.check_overlaps()
    }

    /// Pods reach each other by routes between node addresses, so all nodes share one segment.
    fn check_node_segment(&self) -> Result<(), TopologyError> {
        let mut nodes = self.hosts.iter().filter(|host| host.is_node());
        let Some(first) = nodes.next() else {
            return Ok(());
        };
        for host in nodes {
            if host.node_link().map(|link| &link.segment)
                != first.node_link().map(|link| &link.segment)
            {
                let problem = format!(
                    "its first link that is not external must be to the segment of node {:?}",
                    first.name
                );
                return Err(TopologyError::Host {
                    host: host.name.clone(),
                    problem,
                });
            }
        }
        Ok(())
    }

    fn check_links(&self, host: &Host) -> Result<(), TopologyError> {
        let wrong = |problem: String| {
            Err(TopologyError::Host {
                host: host.name.clone(),
                problem,
            })
        };
        if host.links.is_empty() && !host.has(Role::Router) {
            return wrong("no link; only a router has links without naming them".to_owned());
        }
        if host.has(Role::Router) && host.is_node() {
            return wrong("a router cannot be a node of the cluster as well".to_owned());
        }
        if host.links.iter().filter(|link| link.external).count() > 1 {
            return wrong("more than one external link".to_owned());
        }
        let mut seen = BTreeSet::new();
        for link in &host.links {
            let Some(segment) = self
                .segments
                .iter()
                .find(|segment| segment.name == link.segment)
            else {
                let (host, segment) = (host.name.clone(), link.segment.clone());
                return Err(TopologyError::NoSuchSegment { host, segment });
            };
            if !seen.insert(&link.segment) {
                return wrong(format!("two links to segment {:?}", link.segment));
            }
            for address in &link.addresses {
                if !segment.cidrs.iter().any(|cidr| cidr.contains(address)) {
                    return wrong(format!(
                        "address {address} is outside of segment {:?}",
                        segment.name
                    ));
                }
            }
            if link.mtu.is_some_and(|mtu| !(1280..=65535).contains(&mtu)) {
                return wrong("mtu must be 1280 (RFC 8200) to 65535".to_owned());
            }
        }
        Ok(())
    }

    fn check_overlaps(&self) -> Result<(), TopologyError> {
        let segments = self.segments.iter().flat_map(|segment| {
            segment
                .cidrs
                .iter()
                .map(|cidr| (*cidr, format!("segment {:?}", segment.name)))
        });
        let pods = self.hosts.iter().flat_map(|host| {
            host.pod_cidrs
                .iter()
                .map(|cidr| (*cidr, format!("host {:?}", host.name)))
        });
        let all: Vec<_> = segments.chain(pods).collect();
        for (index, (first, first_place)) in all.iter().enumerate() {
            for (second, second_place) in &all[index + 1..] {
                if first.contains(&second.network()) || second.contains(&first.network()) {
                    return Err(TopologyError::Overlap {
                        first: *first,
                        first_place: first_place.clone(),
                        second: *second,
                        second_place: second_place.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

fn check_pods(host: &Host) -> Result<(), TopologyError> {
    let wrong = |problem: String| {
        Err(TopologyError::Host {
            host: host.name.clone(),
            problem,
        })
    };
    if host.pods.is_empty() {
        return Ok(());
    }
    if !host.is_node() {
        return wrong("pods need the role worker or gateway".to_owned());
    }
    if host.pod_cidrs.is_empty() {
        return wrong("pods need podCidrs".to_owned());
    }
    if host.pods.len() > PODS_MAX {
        return wrong(format!(
            "{} pods; at most {PODS_MAX} are possible",
            host.pods.len()
        ));
    }
    if let Some(cidr) = host
        .pod_cidrs
        .iter()
        .find(|cidr| host_bits(cidr) < HOST_BITS_MIN)
    {
        return wrong(format!("podCidr {cidr} has fewer than 256 addresses"));
    }
    let mut numbers = BTreeSet::new();
    for number in pod_numbers(host) {
        if !(2..255).contains(&number) || !numbers.insert(number) {
            return wrong(format!(
                "pod number {number} is taken or not one of 2 to 254"
            ));
        }
    }
    for Pod {
        name, namespace, ..
    } in &host.pods
    {
        for (what, text) in [("pod", name), ("pod namespace", namespace)] {
            if !is_dns_label(text) || text.len() > 63 {
                return wrong(format!(
                    "{what} name {text:?} is not a DNS label (RFC 1123)"
                ));
            }
        }
    }
    Ok(())
}

fn host_bits(cidr: &IpNet) -> u8 {
    cidr.max_prefix_len() - cidr.prefix_len()
}

fn unique_names<'a>(
    what: &'static str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), TopologyError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !is_dns_label(name) || name.len() > NAME_MAX || name == crate::layout::CONTROL {
            return Err(TopologyError::Name {
                what,
                name: name.to_owned(),
            });
        }
        if !seen.insert(name) {
            return Err(TopologyError::Twice {
                what,
                name: name.to_owned(),
            });
        }
    }
    Ok(())
}

fn is_dns_label(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn one_prefix_per_family(place: &str, cidrs: &[IpNet]) -> Result<(), TopologyError> {
    let v4 = cidrs
        .iter()
        .filter(|cidr| matches!(cidr, IpNet::V4(_)))
        .count();
    for (family, count) in [("IPv4", v4), ("IPv6", cidrs.len() - v4)] {
        if count > 1 {
            return Err(TopologyError::Family {
                place: place.to_owned(),
                family,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Topology)) -> String {
        let mut topology = Topology::built_in();
        change(&mut topology);
        topology.validate().unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_built_is_refused_with_its_place() {
        let message = refused(|t| t.hosts[0].links[0].segment = "nowhere".to_owned());
        assert!(
            message.contains("worker1") && message.contains("nowhere"),
            "{message}"
        );
        let message = refused(|t| t.hosts[1].name = "worker1".to_owned());
        assert!(message.contains("twice"), "{message}");
        let message = refused(|t| t.hosts[1].name = "a-name-that-is-long".to_owned());
        assert!(message.contains("a-name-that-is-long"), "{message}");
        let message = refused(|t| t.hosts[1].pod_cidrs = t.hosts[0].pod_cidrs.clone());
        assert!(
            message.contains("overlaps") && message.contains("worker2"),
            "{message}"
        );
        let message = refused(|t| t.hosts[1].pods[0].name = "a1".to_owned());
        assert!(message.contains("default/a1"), "{message}");
        let message = refused(|t| t.hosts[0].pods[1].number = Some(10));
        assert!(message.contains("pod number 10 is taken"), "{message}");
        let message = refused(|t| t.hosts[7].pods = t.hosts[0].pods.clone());
        assert!(message.contains("need the role"), "{message}");
        let message =
            refused(|t| t.hosts[0].links[0].addresses = vec!["10.0.0.1".parse().unwrap()]);
        assert!(message.contains("10.0.0.1"), "{message}");
    }
}
