//! The program under its other name; input, output and exit codes of `egret convert`.

use std::io::Write;
use std::process::{Command, Output, Stdio};

const EGRET: &str = env!("CARGO_BIN_EXE_egret");

fn said(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr];
    both.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

#[test]
fn under_the_name_of_kube_egress_it_takes_that_programs_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("kube-egress");
    std::os::unix::fs::symlink(EGRET, &name).unwrap();
    let run = |arguments: &[&str]| Command::new(&name).args(arguments).output().unwrap();
    let help = run(&["--help"]);
    assert!(help.status.success());
    for flag in ["--podip-vip-mappings", "--vip-routeid-mappings", "--delete"] {
        assert!(said(&help).contains(flag), "{}", said(&help));
    }
    let wrong = run(&["--update-interval=5", "--interface=lo"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        said(&wrong).contains("--vip is missing"),
        "{}",
        said(&wrong)
    );
}

/// Runs `egret convert` with this on standard input.
fn convert(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(EGRET)
        .arg("convert")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // After a bad file argument the program may have ended before it reads standard input.
    if let Err(error) = stdin.write_all(input.as_bytes()) {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
    drop(stdin);
    child.wait_with_output().unwrap()
}

const OBJECT: &str = "apiVersion: staticegressips.nirmata.io/v1alpha1\nkind: StaticEgressIP\n\
     metadata: {name: eip, namespace: shop}\n\
     spec: {rules: [{egressip: 192.0.2.1, service-name: web, cidr: 203.0.113.0/24}]}\n";
const MAPPED: &str = "apiVersion: egress.mapper.com/v1alpha1\nkind: Egress\nmetadata: {name: of-web}\n\
     spec: {ip: 192.0.2.2, kind: deployment, name: web}\n";
const WORKLOAD: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n\
     spec: {selector: {matchLabels: {app: web}}}\n";

#[test]
fn convert_reads_standard_input_and_says_by_its_exit_code_whether_anything_is_lost() {
    let whole = convert(&["-f", "-"], OBJECT);
    assert_eq!(whole.status.code(), Some(0), "{}", said(&whole));
    assert!(
        said(&whole).contains("serviceName: web"),
        "{}",
        said(&whole)
    );
    let lost = convert(&["-f", "-"], MAPPED);
    assert_eq!(lost.status.code(), Some(1), "{}", said(&lost));
    let errors = String::from_utf8_lossy(&lost.stderr).into_owned();
    assert!(
        errors.contains("lost: Egress of-web: spec.name"),
        "{errors}"
    );
    let broken = convert(&["-f", "-"], "a: [\n");
    assert!(![Some(0), Some(1)].contains(&broken.status.code()));
}

#[test]
fn several_files_are_one_input_and_a_bad_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (policy, workload) = (file("policy.yaml", MAPPED), file("web.yaml", WORKLOAD));
    // The workload in the other file provides the selector: nothing is lost. Standard input is one more file.
    for arguments in [
        ["-f", &policy, "-f", &workload],
        ["-f", &workload, "-f", "-"],
    ] {
        let output = convert(&arguments, MAPPED);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(said(&output).contains("app: web"), "{}", said(&output));
    }
    let bad = file("bad.yaml", "kind: [\n");
    let output = convert(&["-f", &policy, "-f", &bad], "");
    assert!(said(&output).contains("bad.yaml"), "{}", said(&output));
    let output = convert(&["-f", "/nowhere.yaml"], "");
    assert!(said(&output).contains("/nowhere.yaml"), "{}", said(&output));
    assert!(![Some(0), Some(1)].contains(&output.status.code()));
}
