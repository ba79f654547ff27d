//! Output of `-o json`, validated against `docs/cli-v1.schema.json`.

use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const SCHEMA: &str = include_str!("../../../docs/cli-v1.schema.json");
const DEADLINE: Duration = Duration::from_secs(30);

const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: worker1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
---
apiVersion: v1
kind: Node
metadata: {name: gateway1, labels: {egress: 'yes'}}
status: {addresses: [{type: InternalIP, address: 192.0.2.21}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: default, labels: {app: MyApp}}
spec: {nodeName: worker1, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.5}]}
---
apiVersion: egret.dev/v1alpha1
kind: EgressGateway
metadata: {name: default}
spec: {default: true, nodeSelector: {matchLabels: {egress: 'yes'}}}
---
apiVersion: egret.dev/v1alpha1
kind: EgressPool
metadata: {name: pool}
spec: {cidrs: [192.0.2.192/28], namespaces: {all: true}}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: good, namespace: default}
spec: {selector: {app: MyApp}, pool: pool}
---
apiVersion: egret.dev/v1alpha1
kind: Egress
metadata: {name: refused, namespace: default}
spec: {selector: {app: MyApp}, pool: gone}
";

fn egret(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egret"));
    command.args(arguments);
    command
}

/// Runs a verb on the directory and returns what it prints, and its exit code.
fn ask(verb: &[&str], directory: &Path) -> (Value, Option<i32>) {
    let source = format!("dir:{}", directory.display());
    let mut command = egret(verb);
    command.args(["--source", &source, "-o", "json"]);
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let error = String::from_utf8_lossy(&stderr);
    let json = serde_json::from_slice(&stdout);
    (
        json.unwrap_or_else(|e| panic!("{e}: {error}")),
        status.code(),
    )
}

/// A controller that ends with the test.
struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _ = self.0.wait();
    }
}

fn controller(directory: &Path) -> Controller {
    let source = format!("dir:{}", directory.display());
    let mut command = egret(&["controller", "--http-port", "0", "--source", &source]);
    Controller(command.stderr(Stdio::null()).spawn().unwrap())
}

/// Validates against the keywords of JSON Schema that our schema uses; any other keyword is a fault.
fn faults(schema: &Value, value: &Value, place: &str, root: &Value, found: &mut Vec<String>) {
    let mut fault = |text: String| found.push(format!("{place}: {text}"));
    let Some(keywords) = schema.as_object() else {
        return fault("a schema is an object".into());
    };
    for (keyword, wanted) in keywords {
        match keyword.as_str() {
            "$ref" => {
                let pointer = wanted.as_str().unwrap().trim_start_matches('#');
                faults(root.pointer(pointer).unwrap(), value, place, root, found);
            }
            "anyOf" | "oneOf" => {
                let fits = |one: &&Value| {
                    let mut none = Vec::new();
                    faults(one, value, place, root, &mut none);
                    none.is_empty()
                };
                let fitting = wanted.as_array().unwrap().iter().filter(fits).count();
                if fitting == 0 || (keyword == "oneOf" && fitting != 1) {
                    found.push(format!("{place}: {keyword}: {fitting} fit {value}"));
                }
            }
            "const" if value != wanted => found.push(format!("{place}: {value} is not {wanted}")),
            "enum" if !wanted.as_array().unwrap().contains(value) => {
                found.push(format!("{place}: {value} is none of {wanted}"));
            }
            "type" if !has_type(value, wanted) => {
                found.push(format!("{place}: {value} is no {wanted}"));
            }
            "minimum" if value.as_f64().is_some_and(|v| v < wanted.as_f64().unwrap()) => {
                found.push(format!("{place}: {value} is below {wanted}"));
            }
            "maximum" if value.as_f64().is_some_and(|v| v > wanted.as_f64().unwrap()) => {
                found.push(format!("{place}: {value} is above {wanted}"));
            }
            "required" => {
                let names = wanted.as_array().unwrap().iter().filter_map(Value::as_str);
                for name in names.filter(|name| value.is_object() && value.get(name).is_none()) {
                    found.push(format!("{place}: {name} is missing"));
                }
            }
            "properties" => {
                for (name, schema) in wanted.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        faults(schema, value, &format!("{place}.{name}"), root, found);
                    }
                }
            }
            "additionalProperties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    let known = keywords.get("properties").and_then(|p| p.get(name));
                    match wanted {
                        _ if known.is_some() => {}
                        Value::Bool(allowed) if *allowed => {}
                        Value::Bool(_) => found.push(format!("{place}: {name} is unknown")),
                        schema => faults(schema, value, &format!("{place}.{name}"), root, found),
                    }
                }
            }
            "items" => {
                for (number, value) in value.as_array().into_iter().flatten().enumerate() {
                    faults(wanted, value, &format!("{place}[{number}]"), root, found);
                }
            }
            "prefixItems" => {
                let values = value.as_array().into_iter().flatten();
                for (schema, value) in wanted.as_array().unwrap().iter().zip(values) {
                    faults(schema, value, place, root, found);
                }
            }
            "minItems" | "maxItems" if value.is_array() => {
                let length = value.as_array().map_or(0, Vec::len) as u64;
                let wanted = wanted.as_u64().unwrap();
                if (keyword == "minItems" && length < wanted)
                    || (keyword == "maxItems" && length > wanted)
                {
                    found.push(format!("{place}: {length} items, {keyword} is {wanted}"));
                }
            }
            "const" | "enum" | "type" | "minimum" | "maximum" | "minItems" | "maxItems" => {}
            "pattern" | "format" | "uniqueItems" | "description" | "default" => {}
            keyword if keyword.starts_with('$') || keyword == "title" => {}
            keyword => found.push(format!("{place}: this test does not know {keyword}")),
        }
    }
}

/// Whether the value has the type. `wanted`: a name, or a list of names.
fn has_type(value: &Value, wanted: &Value) -> bool {
    if let Some(list) = wanted.as_array() {
        return list.iter().any(|one| has_type(value, one));
    }
    match wanted.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "null" => value.is_null(),
        _ => false,
    }
}

fn faults_of(value: &Value) -> Vec<String> {
    let root: Value = serde_json::from_str(SCHEMA).unwrap();
    // Validated by its kind, so that faults have a path; the root checks that exactly one kind fits.
    let kind = value["kind"].as_str().unwrap_or("Status");
    let mut found = Vec::new();
    faults(&root["$defs"][kind], value, kind, &root, &mut found);
    if found.is_empty() {
        faults(&root, value, "whole", &root, &mut found);
    }
    found
}

fn assert_fits(value: &Value) {
    let found = faults_of(value);
    assert!(found.is_empty(), "\n{}\n{value:#}", found.join("\n"));
}

#[test]
fn everything_that_is_printed_fits_the_schema() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("cluster.yaml"), CLUSTER).unwrap();
    let path = directory.path();

    let (plan, code) = ask(&["plan"], path);
    assert_fits(&plan);
    assert_eq!(code, Some(1), "a pool is missing");
    assert!(!plan["findings"].as_array().unwrap().is_empty());
    assert!(!plan["plan"]["addresses"].as_object().unwrap().is_empty());
    assert!(!path.join("status").exists(), "plan changes nothing");

    let (status, code) = ask(&["status"], path);
    assert_fits(&status);
    assert_eq!(code, Some(1), "nobody has programmed anything");

    let _controller = controller(path);
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        let (status, _) = ask(&["status"], path);
        let leased = |address: &Value| !address["leases"].as_array().unwrap().is_empty();
        let addresses = status["addresses"].as_array().unwrap();
        let gateways = status["gateways"].as_array().unwrap();
        if addresses.iter().any(leased) && !gateways.is_empty() {
            break status;
        }
        assert!(Instant::now() < deadline, "{status:#}");
        std::thread::park_timeout(Duration::from_millis(50));
    };
    assert_fits(&status);
    assert_eq!(status["addresses"][0]["leases"][0]["node"], "worker1");

    let (explanation, _) = ask(&["explain", "default/a"], path);
    assert_fits(&explanation);
    assert!(explanation["steps"].as_array().unwrap().len() > 2);
    let (explanation, code) = ask(&["explain", "default/nobody"], path);
    assert_fits(&explanation);
    assert_eq!(code, Some(1));
    let (plan, _) = ask(&["plan"], path);
    assert_fits(&plan);
}

/// In a separate network namespace, so that nothing of this machine is read, with a file as the only finding.
#[test]
fn what_the_doctor_prints_fits_the_schema() {
    let root = tempfile::tempdir().unwrap();
    let tables = root.path().join("etc/iproute2/rt_tables.d");
    std::fs::create_dir_all(&tables).unwrap();
    let file = tables.join("egress.conf");
    std::fs::write(&file, "64 egress\n").unwrap();
    let doctor = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--net", env!("CARGO_BIN_EXE_egret"), "doctor", "-o", "json"]);
        command.arg("--root").arg(root.path()).args(arguments);
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let json: Value = serde_json::from_slice(&output.stdout).expect(&error);
        assert_fits(&json);
        (json, output.status.code())
    };
    for arguments in [&[][..], &["--clean-legacy", "kube-egress"]] {
        let (json, code) = doctor(arguments);
        assert_eq!(code, Some(1));
        assert_eq!(json["findings"][0]["object"], file.to_str().unwrap());
        assert!(file.exists(), "nobody said yes");
    }
    let (json, code) = doctor(&["--clean-legacy", "kube-egress-gateway", "--yes"]);
    assert_eq!(
        (json["removed"].as_array().unwrap().len(), code),
        (0, Some(0))
    );
    assert!(file.exists(), "another system's");
    let (json, code) = doctor(&["--clean-legacy", "egress-mapper", "--yes"]);
    assert_eq!(
        (json["removed"].as_array().unwrap().len(), code),
        (1, Some(0))
    );
    assert!(!file.exists());
    let (json, code) = doctor(&[]);
    assert_eq!(
        (json["findings"].as_array().unwrap().len(), code),
        (0, Some(0))
    );
}

#[test]
fn what_does_not_fit_is_seen() {
    let fine = r#"{"apiVersion": "egret.dev/cli/v1", "kind": "Explanation", "pod": "a/b", "to": null, "steps": [
        {"stage": "Pod", "ok": true, "text": ""}], "leaves": {"From": ["192.0.2.1"]}}"#;
    let read = |text: &str| faults_of(&serde_json::from_str(text).unwrap());
    assert_eq!(read(fine), [""; 0]);
    for (good, bad) in [
        ("cli/v1", "cli/v2"),
        (r#""pod": "a/b", "#, ""),
        (r#""pod""#, r#""more": 1, "pod""#),
        (r#""Pod""#, r#""Cat""#),
        ("true", "1"),
        (r#"{"From": ["192.0.2.1"]}"#, r#""Somewhere""#),
    ] {
        assert_ne!(read(&fine.replace(good, bad)), [""; 0], "{bad}");
    }
}
