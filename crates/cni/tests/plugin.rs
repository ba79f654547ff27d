//! The plugin's program, against an agent that the test simulates.

use egret_wire::cni::{Answer, Call, Known, Request};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Runs the plugin for the pod `default/p` with the address 10.0.0.1.
fn plugin(command: &str, place: &Path, wait_seconds: u64) -> (bool, Value) {
    let config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "egret-cni", "waitSeconds": wait_seconds,
        "socket": place.join("cni.sock"), "known": place.join("known.json"),
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/24"}]},
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_egret-cni"))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", "/run/netns/x")
        .env("CNI_IFNAME", "eth0")
        .env(
            "CNI_ARGS",
            "K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;K8S_POD_UID=u",
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(config.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let printed = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.success(), printed)
}

/// An agent that gives these answers, one for each connection. Returns the requests that it got.
fn agent(place: &Path, answers: Vec<Option<Answer>>) -> mpsc::Receiver<Call> {
    let listener = UnixListener::bind(place.join("cni.sock")).unwrap();
    let (asked, questions) = mpsc::channel();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let _ = asked.send(Request::from_line(&line).unwrap().call);
            if let Some(answer) = answer {
                stream.write_all(answer.to_line().as_bytes()).unwrap();
            }
        }
    });
    questions
}

fn wait_in_default() -> Known {
    Known {
        waiting: ["default".to_owned()].into(),
        ..Known::default()
    }
}

fn keep(place: &Path, known: &Known) {
    std::fs::write(place.join("known.json"), known.to_text()).unwrap();
}

#[test]
fn the_agent_is_told_the_pod_and_its_addresses() {
    let place = tempfile::tempdir().unwrap();
    let questions = agent(place.path(), vec![Some(Answer::Done {})]);
    let (good, printed) = plugin("ADD", place.path(), 1);
    assert!(good);
    assert_eq!(printed["ips"][0]["address"], "10.0.0.1/24");
    let Call::Add(told) = questions.recv().unwrap() else {
        panic!("another call")
    };
    let pod = told.pod.unwrap();
    assert_eq!(
        (pod.to_string().as_str(), pod.uid.as_deref()),
        ("default/p", Some("u"))
    );
    assert_eq!(
        (told.id.container.as_str(), told.id.interface.as_str()),
        ("c1", "eth0")
    );
    assert_eq!(
        told.addresses,
        ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
}

#[test]
fn what_the_agent_says_is_what_the_runtime_hears() {
    for (answer, code) in [
        (
            Answer::Later {
                why: "no ports".into(),
            },
            11,
        ),
        (
            Answer::Refused {
                why: "no ports".into(),
            },
            100,
        ),
    ] {
        let place = tempfile::tempdir().unwrap();
        let _questions = agent(place.path(), vec![Some(answer)]);
        let (good, printed) = plugin("ADD", place.path(), 1);
        assert!(!good);
        assert_eq!(printed["code"], code);
        assert_eq!(printed["details"], "no ports");
    }
}

#[test]
fn an_agent_that_dies_over_a_question_is_asked_again() {
    let place = tempfile::tempdir().unwrap();
    keep(place.path(), &wait_in_default());
    let questions = agent(place.path(), vec![None, None, Some(Answer::Done {})]);
    assert!(plugin("ADD", place.path(), 60).0);
    assert_eq!(questions.iter().count(), 3);
}

#[test]
fn without_an_agent_what_it_left_decides() {
    let place = tempfile::tempdir().unwrap();
    assert!(plugin("ADD", place.path(), 0).0, "Egret has never run here");
    keep(place.path(), &Known::default());
    assert!(plugin("ADD", place.path(), 0).0);
    keep(place.path(), &wait_in_default());
    let (good, printed) = plugin("ADD", place.path(), 0);
    assert!(!good);
    assert_eq!(printed["code"], 11);
    let text = printed["msg"].as_str().unwrap();
    assert!(
        text.contains("default/p") && text.contains("agent of Egret does not answer"),
        "{text}"
    );
    for command in ["DEL", "GC", "STATUS"] {
        assert!(plugin(command, place.path(), 0).0, "{command}");
    }
    assert!(!plugin("CHECK", place.path(), 0).0);
    let mut served = wait_in_default();
    served.addresses.insert("10.0.0.1".parse().unwrap());
    keep(place.path(), &served);
    assert!(plugin("CHECK", place.path(), 0).0, "the kernel has it");
    // Damaged file: no pod starts unclassified, and the runtime gets an error.
    std::fs::write(place.path().join("known.json"), "{").unwrap();
    assert_eq!(plugin("ADD", place.path(), 0).1["code"], 11);
    assert_eq!(plugin("STATUS", place.path(), 0).1["code"], 50);
}

#[test]
fn an_agent_that_hangs_does_not_keep_other_pods_from_starting() {
    let place = tempfile::tempdir().unwrap();
    keep(place.path(), &Known::default());
    // The kernel accepts connections, and no process reads them.
    let _listener = UnixListener::bind(place.path().join("cni.sock")).unwrap();
    let started = Instant::now();
    assert!(plugin("ADD", place.path(), 60).0);
    assert!(started.elapsed() < Duration::from_secs(30));
}
