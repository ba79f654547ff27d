//! `egret convert`: objects of other systems as ours, and every field that has no equal by name.
//!
//! ```text
//!  text --documents--> manifests --by group and kind--> Sheet (what was taken of the spec is noted)
//!                                                         |  -> objects of ours
//!                                                         +--> what was not taken: losses
//! ```
//!
//! What an object means is out of the documentation and source of its system. Nothing is guessed: where ours needs
//! something that the object does not say, the output names it and the loss says what to do.

mod antrea;
mod cilium;
mod coil;
mod kube_egress;
mod ovn;
mod seeds;
mod sheet;
mod spidernet;

use crate::dir::read_documents;
use serde_json::{Map, Value, json};
use sheet::Sheet;
use std::collections::BTreeSet;
use std::fmt;

/// Label that pods must be given where they were named and not selected.
const POD_LABEL: &str = "egret.dev/egress";

/// A field whose meaning is not in the output.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// The object, as kind and name.
    pub object: String,
    /// Path of the field.
    pub field: String,
    /// What it says.
    pub value: String,
    /// Why it is lost and what to do.
    pub why: String,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loss {
            object,
            field,
            value,
            why,
        } = self;
        write!(f, "{object}: {field}")?;
        if !value.is_empty() {
            write!(f, " ({value})")?;
        }
        write!(f, ": {why}")
    }
}

/// What was made of an input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// YAML documents; losses are comments before the object that lacks them.
    pub text: String,
    /// Everything that was lost.
    pub losses: Vec<Loss>,
    /// Objects of kinds that mean nothing here, as `apiVersion kind name`.
    pub passed_over: Vec<String>,
}

/// Other objects of the input, which a conversion may look at: a workload's own selector is better than a guess.
struct Context<'a> {
    all: &'a [Value],
}

impl Context<'_> {
    /// The object of this kind and name.
    fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.all.iter().find(|one| {
            let metadata = &one["metadata"];
            let of = metadata["namespace"].as_str().unwrap_or("default");
            one["kind"] == kind && metadata["name"] == name && of == namespace
        })
    }

    /// Namespace and name of the pod with this address.
    fn pod_with(&self, address: std::net::IpAddr) -> Option<String> {
        let address = address.to_string();
        let pod = self.all.iter().find(|one| {
            let listed = one["status"]["podIPs"].as_array().into_iter().flatten();
            let mut all = listed
                .map(|one| &one["ip"])
                .chain([&one["status"]["podIP"]]);
            one["kind"] == "Pod" && all.any(|ip| *ip == address.as_str())
        })?;
        let metadata = &pod["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or("default");
        Some(format!("{namespace}/{}", metadata["name"].as_str()?))
    }
}

/// Converts one kind.
type Convert = fn(&mut Sheet<'_>, &Context<'_>);

/// Group (without version), kind, and what converts it.
const CONVERSIONS: [(&str, &str, Convert); 16] = [
    ("", "Egress", seeds::kep),
    (
        "staticegressips.nirmata.io",
        "StaticEgressIP",
        seeds::static_egress_ip,
    ),
    (
        "staticegressips.io",
        "StaticEgressIP",
        seeds::static_egress_ip,
    ),
    ("egress.mapper.com", "Egress", seeds::mapper_egress),
    ("egress.mapper.com", "Vip", seeds::vip),
    ("egress.mapper.com", "EgressMapper", seeds::mapper),
    ("cilium.io", "CiliumEgressGatewayPolicy", cilium::policy),
    ("k8s.ovn.org", "EgressIP", ovn::egress_ip),
    ("crd.antrea.io", "Egress", antrea::egress),
    ("crd.antrea.io", "ExternalIPPool", antrea::pool),
    (
        "egressgateway.spidernet.io",
        "EgressGateway",
        spidernet::gateway,
    ),
    (
        "egressgateway.spidernet.io",
        "EgressPolicy",
        spidernet::policy,
    ),
    (
        "egressgateway.spidernet.io",
        "EgressClusterPolicy",
        spidernet::cluster_policy,
    ),
    ("coil.cybozu.com", "Egress", coil::egress),
    ("egret.dev", "Egress", seeds::kep),
    ("", "ConfigMap", kube_egress::mapping),
];

/// Converts every manifest of a text: YAML documents, Lists, or JSON.
///
/// # Errors
/// A document is neither YAML nor JSON: its line, and what is wrong there.
pub fn convert(text: &str) -> Result<Output, String> {
    let all = read_documents(text)?;
    let context = Context { all: &all };
    let mut output = Output::default();
    let mut known: BTreeSet<String> = BTreeSet::new();
    for object in &all {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        let kind = object["kind"].as_str().unwrap_or_default();
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let mut found = CONVERSIONS.iter();
        let found = found.find(|(of, name, _)| *of == group && *name == kind);
        let found = found.filter(|_| kind != "ConfigMap" || kube_egress::is_mapping(object));
        let Some((_, _, convert)) = found else {
            let name = object["metadata"]["name"].as_str().unwrap_or("?");
            output.passed_over.push(format!("{version} {kind} {name}"));
            continue;
        };
        let mut sheet = Sheet::of(object);
        convert(&mut sheet, &context);
        let (objects, losses) = sheet.finish();
        write(&mut output, &mut known, &objects, &losses);
        output.losses.extend(losses);
    }
    Ok(output)
}

/// Adds an object's conversion to the text. What was written before word by word (a gateway of several policies) is not
/// written again.
fn write(output: &mut Output, known: &mut BTreeSet<String>, objects: &[Value], losses: &[Loss]) {
    let mut comments: String = losses
        .iter()
        .map(|loss| format!("# lost: {}\n", loss.to_string().replace('\n', " ")))
        .collect();
    for object in objects {
        let yaml = serde_saphyr::to_string(object).unwrap_or_else(|_| format!("{object:#}\n"));
        if !known.insert(yaml.clone()) {
            continue;
        }
        output.text.push_str("---\n");
        output.text.push_str(&std::mem::take(&mut comments));
        output.text.push_str(&yaml);
    }
    if !comments.is_empty() {
        output.text.push_str("---\n");
        output.text.push_str(&comments);
    }
}

/// An object of ours.
fn ours(kind: &str, namespace: Option<&str>, name: &str, spec: Map<String, Value>) -> Value {
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    json!({
        "apiVersion": egret_api::API_VERSION,
        "kind": kind,
        "metadata": metadata,
        "spec": spec,
    })
}

/// Prefixes as destinations, each without those of `except` that are inside it.
fn destinations(cidrs: &[String], except: &[String]) -> Value {
    let parse = |text: &String| text.parse::<ipnet::IpNet>().ok();
    let one = |cidr: &String| {
        let inside: Vec<&String> = except
            .iter()
            .filter(|hole| match (parse(cidr), parse(hole)) {
                (Some(cidr), Some(hole)) => cidr.contains(&hole) && cidr != hole,
                _ => false,
            })
            .collect();
        match inside.is_empty() {
            true => json!({"cidr": cidr}),
            false => json!({"cidr": cidr, "except": inside}),
        }
    };
    cidrs.iter().map(one).collect()
}

/// A prefix: one address is a prefix of full length.
fn as_prefix(text: &str) -> String {
    match text.parse::<std::net::IpAddr>() {
        Ok(address) => ipnet::IpNet::from(address).to_string(),
        Err(_) => text.to_owned(),
    }
}

/// Prefixes as iptables takes them: several with commas between, netmasks instead of lengths.
fn as_prefixes(text: &str) -> Vec<String> {
    let one = |text: &str| {
        let net = text.split_once('/').and_then(|(address, mask)| {
            let (address, mask) = (address.parse().ok()?, mask.parse().ok()?);
            ipnet::IpNet::with_netmask(address, mask).ok()
        });
        net.map_or_else(|| as_prefix(text), |net| net.to_string())
    };
    text.split(',').map(|text| one(text.trim())).collect()
}

/// A label selector, taken over word by word, if it says anything.
fn selector(value: &Value) -> Option<Value> {
    let some = |field: &str| match &value[field] {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    };
    (some("matchLabels") || some("matchExpressions")).then(|| value.clone())
}

/// Texts of a list.
fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|one| Some(one.as_str()?.to_owned()))
        .collect()
}
