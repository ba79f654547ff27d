//! Prints answers, as text or JSON.

use crate::args::Output;
use egret_agent::report::{CLI_API_VERSION, FindingView};
use egret_core::model::Finding;
use egret_core::plan::ClusterPlan;
use serde_json::{Value, json};

/// Prints a Status; returns whether everything is ready.
pub fn status(status: &Value, output: Output) -> anyhow::Result<bool> {
    let list = |name: &str| status[name].as_array().cloned().unwrap_or_default();
    let good = list("policies")
        .iter()
        .all(|policy| policy["ready"] == true)
        && list("gateways")
            .iter()
            .all(|gateway| gateway["live"] == true)
        && list("findings").is_empty();
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(status)?);
        return Ok(good);
    }
    println!("From: {}", text(&status["source"]));
    let policies = list("policies").into_iter().map(|p| {
        let name = [text(&p["namespace"]), text(&p["name"])];
        let name: Vec<String> = name.into_iter().filter(|part| !part.is_empty()).collect();
        let pods = format!("{}/{}", p["pods"]["programmed"], p["pods"]["selected"]);
        vec![
            text(&p["kind"]),
            name.join("/"),
            ready(&p),
            strings(&p["addresses"]),
            pods,
            why(&p),
        ]
    });
    table(
        &["POLICY", "NAME", "READY", "ADDRESSES", "PODS", "WHY"],
        policies.collect(),
    );
    let addresses = list("addresses").into_iter().map(|a| {
        let leases = a["leases"].as_array().cloned().unwrap_or_default();
        let lease = |l: &Value| {
            format!(
                "{} {} ({})",
                text(&l["node"]),
                strings(&l["ranges"]),
                text(&l["state"])
            )
        };
        let leases: Vec<String> = leases.iter().map(lease).collect();
        let usage = a["usage"].as_array().cloned().unwrap_or_default();
        let usage: Vec<String> = usage.iter().map(port_usage).collect();
        vec![
            text(&a["address"]),
            announcer(&a),
            leases.join("; "),
            usage.join("; "),
        ]
    });
    table(
        &["ADDRESS", "ANNOUNCER", "LEASES", "PORTS"],
        addresses.collect(),
    );
    let gateways = list("gateways").into_iter().map(|g| {
        vec![
            text(&g["node"]),
            text(&g["live"]),
            text(&g["version"]),
            text(&g["datapath"]),
            text(&g["drain"]),
        ]
    });
    table(
        &["GATEWAY", "LIVE", "VERSION", "DATAPATH", "DRAIN"],
        gateways.collect(),
    );
    paths(&status["paths"]);
    let nodes = list("nodes").into_iter().flat_map(|node| {
        let conditions = node["conditions"].as_array().cloned().unwrap_or_default();
        let row = move |c: Value| {
            let fields = [&node["node"], &c["condition"], &c["reason"], &c["message"]];
            fields.map(text).to_vec()
        };
        conditions.into_iter().map(row)
    });
    table(&["NODE", "CONDITION", "REASON", "WHY"], nodes.collect());
    let findings = list("findings").into_iter().map(|f| {
        vec![
            text(&f["object"]),
            text(&f["field"]),
            value(&text(&f["value"])),
            text(&f["remedy"]),
        ]
    });
    table(&["FINDING", "FIELD", "VALUE", "REMEDY"], findings.collect());
    Ok(good)
}

/// The gateway that announces an address, and the one that is asked to.
fn announcer(address: &Value) -> String {
    let (now, asked) = (text(&address["announcer"]), &address["moved_to"]);
    match asked.as_str() {
        None => now,
        Some(asked) if asked == now => format!("{now} (moved)"),
        Some(asked) => format!("{now} (moved to {asked})"),
    }
}

/// Measured paths of a node.
pub fn paths(all: &Value) {
    let rows = all.as_array().into_iter().flatten().map(|path| {
        let found = match (path["broken"].as_str(), path["measuredTo"].as_str()) {
            (Some(broken), _) => format!("BROKEN: {broken}"),
            (None, Some("gateway")) => "packets come back".to_owned(),
            (None, _) => "packets pass every hook of this node; further is not measured".to_owned(),
        };
        let ago = format!("{} s ago", path["measuredSecsAgo"]);
        vec![text(&path["gateway"]), text(&path["address"]), ago, found]
    });
    table(&["PATH BY", "FROM", "MEASURED", "RESULT"], rows.collect());
}

fn ready(policy: &Value) -> String {
    if policy["ready"] == true {
        "yes".into()
    } else {
        "no".into()
    }
}

/// Why a policy is or is not ready, with conditions that limit a ready one.
fn why(policy: &Value) -> String {
    let conditions = policy["conditions"].as_array().cloned().unwrap_or_default();
    let told = conditions
        .iter()
        .map(|c| format!("{}: {}", text(&c["condition"]), text(&c["message"])));
    let all: Vec<String> = std::iter::once(text(&policy["message"]))
        .chain(told)
        .collect();
    all.join("; ")
}

/// Value of a field, in quotes where its limits would not be visible.
fn value(text: &str) -> String {
    match text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        true => format!("{text:?}"),
        false => text.to_owned(),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn strings(value: &Value) -> String {
    let all = value.as_array().cloned().unwrap_or_default();
    all.iter().map(text).collect::<Vec<_>>().join(",")
}

/// Prints columns as wide as their content; the last one is not padded.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        return;
    }
    println!();
    let mut all: Vec<Vec<String>> = vec![head.iter().map(|title| (*title).to_string()).collect()];
    all.extend(rows);
    for row in &all {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = all
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0);
            if column + 1 < row.len() {
                line.push_str(&format!("{cell:<width$}  "));
            } else {
                line.push_str(cell);
            }
        }
        println!("{}", line.trim_end());
    }
}

/// Prints an Explanation, one line per step; returns whether its last step succeeds.
pub fn explanation(explanation: &Value, output: Output) -> anyhow::Result<bool> {
    let steps = explanation["steps"].as_array().cloned().unwrap_or_default();
    let good = steps.iter().all(|step| step["ok"] == true);
    if output == Output::Json {
        let mut whole = explanation.clone();
        whole["apiVersion"] = CLI_API_VERSION.into();
        whole["kind"] = "Explanation".into();
        println!("{}", serde_json::to_string_pretty(&whole)?);
        return Ok(good);
    }
    for step in steps {
        let sign = if step["ok"] == true { ' ' } else { '!' };
        println!(
            "{sign} {:<8} {}",
            text(&step["stage"]).to_lowercase(),
            text(&step["text"])
        );
    }
    Ok(good)
}

/// Prints a plan with its reasons and findings.
pub fn plan(cluster: &ClusterPlan, findings: &[Finding], output: Output) -> anyhow::Result<()> {
    let told: Vec<FindingView> = findings.iter().map(FindingView::of).collect();
    if output == Output::Json {
        let whole = json!({
            "apiVersion": CLI_API_VERSION,
            "kind": "Plan",
            "plan": cluster,
            "findings": told,
        });
        println!("{}", serde_json::to_string_pretty(&whole)?);
        return Ok(());
    }
    let reasons = cluster.reasons.iter();
    let reasons = reasons.map(|reason| vec![reason.subject.clone(), reason.text.clone()]);
    table(&["WHAT", "WHY"], reasons.collect());
    let findings = told
        .into_iter()
        .map(|f| vec![f.object, f.field, value(&f.value), f.remedy]);
    table(&["FINDING", "FIELD", "VALUE", "REMEDY"], findings.collect());
    Ok(())
}

/// Ports of one address on one node: in use, held, and wanted where the node has asked for more than its first grant.
fn port_usage(usage: &Value) -> String {
    let of_held = format!(
        "{} {} of {}",
        text(&usage["node"]),
        text(&usage["in_use"]),
        text(&usage["held"])
    );
    match usage["wanted"].as_u64() {
        Some(wanted) => format!("{of_held}, wants {wanted}"),
        None => of_held,
    }
}
