//! `egret convert`: converts objects of other systems into ours, and lists every field without an equivalent by name.
//!
//! ```text
//!  text --documents--> manifests --by group and kind--> Sheet (records the fields taken from the spec)
//!                                                         |  -> objects of ours
//!                                                         +--> fields not taken: losses
//! ```
//!
//! The meaning of an object is taken from the documentation and source of its system. Nothing is guessed: where an
//! object of ours needs something that the input lacks, the output refers to it by name and a loss says what to do.

mod antrea;
mod cilium;
mod coil;
mod kube_egress;
mod ovn;
mod seeds;
mod sheet;
mod spidernet;

use egret_objects::dir::{objections, read_documents};
use serde_json::{Map, Value, json};
use sheet::Sheet;
use std::collections::BTreeMap;
use std::fmt;

/// Label that pods must be given where the input named and did not select them.
const POD_LABEL: &str = "egret.dev/egress";

/// A field without an equivalent in the output.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// The object, as kind and name.
    pub object: String,
    /// Path of the field.
    pub field: String,
    /// Value of the field.
    pub value: String,
    /// Why it is lost, and what to do.
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

/// Result of a conversion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// YAML documents; losses are comments before the object that lacks them.
    pub text: String,
    /// All losses.
    pub losses: Vec<Loss>,
    /// Objects of unknown kinds, as `apiVersion kind name`.
    pub passed_over: Vec<String>,
}

/// Other objects of the input that a conversion may read, for example a workload's own selector.
struct Context<'a> {
    all: &'a [Value],
}

impl Context<'_> {
    /// Finds the object of this kind and name.
    fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.all.iter().find(|one| {
            let metadata = &one["metadata"];
            let of = metadata["namespace"].as_str().unwrap_or("default");
            one["kind"] == kind && metadata["name"] == name && of == namespace
        })
    }

    /// Pods and workloads whose pod annotation, a list of names, contains this name.
    fn pods_naming(&self, annotation: &str, name: &str) -> Vec<String> {
        let named = |metadata: &Value| {
            let list = metadata["annotations"][annotation].as_str();
            list.is_some_and(|list| list.split(',').any(|one| one.trim() == name))
        };
        let pods = self.all.iter().filter(|one| {
            let template = &one["spec"]["template"]["metadata"];
            let is_pod = one["kind"] == "Pod";
            (is_pod && named(&one["metadata"])) || named(template)
        });
        let label = |one: &Value| {
            let metadata = &one["metadata"];
            let namespace = metadata["namespace"].as_str().unwrap_or("default");
            let name = metadata["name"].as_str().unwrap_or("?");
            format!("{} {namespace}/{name}", one["kind"].as_str().unwrap_or("?"))
        };
        pods.map(label).collect()
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

/// Conversion of one kind.
type Convert = fn(&mut Sheet<'_>, &Context<'_>);

/// Group (without version), kind, and conversion.
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

/// Group and kind (`*`: every kind) of objects that affect how pods leave the cluster and are not converted, and what
/// to do instead.
const NOT_CONVERTED: [(&str, &str, &str); 6] = [
    (
        "k8s.ovn.org",
        "EgressService",
        "pods of a Service leave by its load balancer's address: write an Egress with spec.serviceName and an address of its own",
    ),
    (
        "egressgateway.kubernetes.azure.com",
        "*",
        "its addresses belong to the cloud; see docs/migrating/kube-egress-gateway.md",
    ),
    (
        "kubeovn.io",
        "*",
        "a policy of Kube-OVN goes with its own networks and routers: write an Egress for the pods by hand",
    ),
    (
        "projectcalico.org",
        "EgressGatewayPolicy",
        "it chooses among gateway pods: write an EgressGateway of nodes, and an Egress with the destinations",
    ),
    (
        "crd.projectcalico.org",
        "EgressGatewayPolicy",
        "it chooses among gateway pods: write an EgressGateway of nodes, and an Egress with the destinations",
    ),
    (
        "operator.tigera.io",
        "EgressGateway",
        "its gateways are pods: write an EgressGateway of nodes, and an EgressPool with the addresses",
    ),
];

/// Why an object of another system is not converted, if it affects how pods leave.
fn not_converted(group: &str, kind: &str) -> Option<&'static str> {
    let mut all = NOT_CONVERTED.iter();
    let found = all.find(|(of, name, _)| *of == group && (*name == "*" || *name == kind));
    found.map(|(_, _, why)| *why)
}

/// Converts every manifest of a text: YAML documents, Lists, or JSON.
///
/// # Errors
/// A document is neither YAML nor JSON: its line, and the parser's message.
pub fn convert(text: &str) -> Result<Output, String> {
    let all = read_documents(text)?;
    let context = Context { all: &all };
    let mut output = Output::default();
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for object in &all {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        let kind = object["kind"].as_str().unwrap_or_default();
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let mut found = CONVERSIONS.iter();
        let found = found.find(|(of, name, _)| *of == group && *name == kind);
        let found = found.filter(|_| kind != "ConfigMap" || kube_egress::is_mapping(object));
        let Some((_, _, convert)) = found else {
            if let Some(why) = not_converted(group, kind) {
                let loss = Loss {
                    object: Sheet::of(object).label(),
                    field: "kind".to_owned(),
                    value: format!("{version} {kind}"),
                    why: format!("this kind is not converted: {why}"),
                };
                write(&mut output, &mut known, &[], std::slice::from_ref(&loss));
                output.losses.push(loss);
                continue;
            }
            let name = object["metadata"]["name"].as_str().unwrap_or("?");
            output.passed_over.push(format!("{version} {kind} {name}"));
            continue;
        };
        let mut sheet = Sheet::of(object);
        convert(&mut sheet, &context);
        let label = sheet.label();
        let (mut objects, mut losses) = sheet.finish();
        objects.retain(|made| admit(&label, made, &known, &mut losses));
        write(&mut output, &mut known, &objects, &losses);
        output.losses.extend(losses);
    }
    Ok(output)
}

/// Whether an object may be printed: it is valid for Egret, and the only one of its name. Otherwise its findings become
/// losses.
fn admit(
    object: &str,
    made: &Value,
    known: &BTreeMap<String, String>,
    losses: &mut Vec<Loss>,
) -> bool {
    let what = format!(
        "{} {}",
        made["kind"].as_str().unwrap_or_default(),
        made["metadata"]["name"].as_str().unwrap_or_default()
    );
    let mut against: Vec<Loss> = Vec::new();
    for finding in objections(made) {
        against.push(Loss {
            object: object.to_owned(),
            field: format!("{} of {what}", finding.field),
            value: finding.value,
            why: format!(
                "{what} is not made of it, for Egret refuses this: {}",
                finding.remedy
            ),
        });
    }
    if known
        .get(&key(made))
        .is_some_and(|other| *other != yaml(made))
    {
        against.push(Loss {
            object: object.to_owned(),
            field: "metadata.name".to_owned(),
            value: what.clone(),
            why: format!("{what} was made of another object with other content: give one of the two another name"),
        });
    }
    let good = against.is_empty();
    losses.append(&mut against);
    good
}

/// Key that identifies an object of ours.
fn key(made: &Value) -> String {
    let metadata = &made["metadata"];
    format!(
        "{} {} {}",
        made["kind"], metadata["namespace"], metadata["name"]
    )
}

/// The object as YAML; as JSON, a subset of YAML, where the YAML would not read back as the same value.
fn yaml(made: &Value) -> String {
    let json = || format!("{made:#}\n");
    let Ok(yaml) = serde_saphyr::to_string(made) else {
        return json();
    };
    match read_documents(&yaml) {
        Ok(again) if again == [made.clone()] => yaml,
        _ => json(),
    }
}

/// Adds an object's conversion to the text. An object that was written before with the same text (a gateway of several
/// policies) is not written again.
fn write(
    output: &mut Output,
    known: &mut BTreeMap<String, String>,
    objects: &[Value],
    losses: &[Loss],
) {
    // A comment ends with its line, and YAML has several line breaks.
    let line = |loss: &Loss| {
        let text = loss.to_string();
        text.replace(
            |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'),
            " ",
        )
    };
    let mut comments: String = losses
        .iter()
        .map(|loss| format!("# lost: {}\n", line(loss)))
        .collect();
    for object in objects {
        let yaml = yaml(object);
        if known.insert(key(object), yaml.clone()).is_some() {
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

/// Makes an object of ours.
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

/// Prefixes as destinations, each reduced by the prefixes of `except` inside it.
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

/// A prefix; an address becomes a prefix of full length.
fn as_prefix(text: &str) -> String {
    match text.parse::<std::net::IpAddr>() {
        Ok(address) => ipnet::IpNet::from(address).to_string(),
        Err(_) => text.to_owned(),
    }
}

/// Prefixes as iptables accepts them: several separated by commas, netmasks instead of lengths.
fn as_prefixes(text: &str) -> Vec<String> {
    let one = |text: &str| {
        let net = text.split_once('/').and_then(|(address, mask)| {
            let (address, mask) = (address.parse().ok()?, mask.parse().ok()?);
            ipnet::IpNet::with_netmask(address, mask).ok()
        });
        net.map_or_else(|| as_prefix(text), |net| net.to_string())
    };
    let texts = text.split(',').map(str::trim);
    texts.filter(|text| !text.is_empty()).map(one).collect()
}

/// A label selector, copied verbatim; `None` if it is empty.
fn selector(value: &Value) -> Option<Value> {
    let some = |field: &str| match &value[field] {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    };
    (some("matchLabels") || some("matchExpressions")).then(|| value.clone())
}
