//! `Egress` and `ExternalIPPool` of Antrea (`crd.antrea.io`).

use super::sheet::Sheet;
use super::{Context, selector};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

/// To a `ClusterEgress`. The pool is a separate object and is converted separately.
pub(super) fn egress(sheet: &mut Sheet<'_>, _: &Context<'_>) {
    sheet.without_equal(
        "bandwidth",
        "limit it at the pods: annotation kubernetes.io/egress-bandwidth",
    );
    let never = "Antrea does not carry it out either";
    sheet.without_equal("egressIPs", never);
    sheet.without_equal("externalIPPools", never);
    let given =
        ["podSelector", "namespaceSelector"].map(|field| sheet.peek(&format!("appliedTo.{field}")));
    if given.iter().all(|one| one.is_null()) {
        let why =
            "it selects nothing, so nothing is made of it: an empty selection of ours is every pod";
        sheet.lose("spec.appliedTo", &Value::Null, why);
        return;
    }
    let mut spec = Map::new();
    let pods = selector(sheet.take("appliedTo.podSelector")).unwrap_or_else(|| json!({}));
    spec.insert("podSelector".to_owned(), pods);
    if let Some(namespaces) = selector(sheet.take("appliedTo.namespaceSelector")) {
        spec.insert("namespaceSelector".to_owned(), namespaces);
    }
    let pool = sheet.text("externalIPPool");
    match sheet.text("egressIP") {
        Some(address) => {
            spec.insert("ip".to_owned(), json!(address));
            if let Some(pool) = pool {
                // A pool and its gateway have the same name.
                spec.insert("gateway".to_owned(), json!(pool));
            } else {
                let why = "without a pool the node that has the address was its gateway; an address of a node is refused \
                           here: take it from the node, and write spec.gateway if the default EgressGateway is not meant";
                sheet.lose("spec.externalIPPool", &Value::Null, why);
            }
        }
        None => drop(spec.insert("pool".to_owned(), json!(pool))),
    }
    let name = sheet.name();
    sheet.make("ClusterEgress", None, name, spec);
}

/// To a pool and its gateway.
pub(super) fn pool(sheet: &mut Sheet<'_>, _: &Context<'_>) {
    sheet.without_equal(
        "subnetInfo",
        "give the gateway nodes a device in that network and name it in spec.externalInterface of the EgressGateway",
    );
    let name = sheet.name();
    let nodes = selector(sheet.take("nodeSelector")).unwrap_or_else(|| json!({}));
    let gateway = Map::from_iter([("nodeSelector".to_owned(), nodes)]);
    sheet.make("EgressGateway", None, name, gateway);
    let mut ranges = Vec::new();
    let list = sheet.peek("ipRanges").as_array().map_or(0, Vec::len);
    for index in 0..list {
        let at = |field: &str| format!("ipRanges[{index}].{field}");
        match sheet.text(&at("cidr")) {
            Some(cidr) => match usable(cidr) {
                Some(range) => ranges.push(range),
                None => sheet.lose(
                    &format!("spec.{}", at("cidr")),
                    &json!(cidr),
                    "Antrea takes no address out of a prefix that small",
                ),
            },
            None => {
                let (start, end) = (sheet.take(&at("start")), sheet.take(&at("end")));
                ranges.push(json!({"start": start, "end": end}));
            }
        }
    }
    let spec = Map::from_iter([
        ("ranges".to_owned(), Value::Array(ranges)),
        ("gateway".to_owned(), json!(name)),
        ("namespaces".to_owned(), json!({"all": true})),
    ]);
    sheet.make("EgressPool", None, name, spec);
}

/// The usable addresses: Antrea leaves out the first of a prefix, and the last of an IPv4 prefix.
fn usable(text: &str) -> Option<Value> {
    let (start, end) = match text.parse::<IpNet>().ok()? {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            let first = u32::from(net.network()) + 1;
            let last = u32::from(net.broadcast()) - 1;
            let name = |bits: u32| std::net::Ipv4Addr::from(bits).to_string();
            (name(first), name(last))
        }
        IpNet::V6(net) if net.prefix_len() < 127 => {
            let first = u128::from(net.network()) + 1;
            let first = std::net::Ipv6Addr::from(first).to_string();
            (first, net.broadcast().to_string())
        }
        _ => return None,
    };
    Some(json!({"start": start, "end": end}))
}
