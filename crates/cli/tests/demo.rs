//! `egret lab demo`, as a new user runs it. Needs root.

use std::process::{Command, Stdio};

/// A lab of this test process; taken down even if the test fails.
struct Name(String);

impl Name {
    fn new(test: &str) -> Self {
        Self(format!("demo-{test}-{}", std::process::id()))
    }

    fn demo(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_egret"));
        command.args(["lab", "--name", &self.0, "demo"]);
        command
    }

    fn is_up(&self) -> bool {
        std::path::Path::new("/run/egret-lab")
            .join(&self.0)
            .exists()
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let mut down = Command::new(env!("CARGO_BIN_EXE_egret"));
        let _ = down
            .args(["lab", "--name", &self.0, "down"])
            .stderr(Stdio::null())
            .status();
    }
}

#[test]
fn every_line_of_the_demo_is_right_and_nothing_stays() {
    let name = Name::new("whole");
    let output = name.demo().output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{output:?}");
    assert!(!text.contains("WRONG"), "{text}");
    // Each pod on each worker, before and after; no colours, since standard output is no terminal.
    for line in [
        "ok   worker3  a3      app: MyApp  192.168.122.222        fd00:122::222",
        "ok   worker3  other3  app: Other  192.168.122.13         fd00:122::13",
        "ok   20 idle TCP connections   0 broken",
        "Everything is as it should be",
    ] {
        assert!(text.contains(line), "{line:?} is missing in\n{text}");
    }
    assert!(!text.contains('\x1b'), "{text}");
    assert!(!name.is_up());
}

#[test]
fn an_interrupted_demo_takes_its_lab_down() {
    use std::io::{BufRead, BufReader};
    let name = Name::new("stop");
    let mut demo = name.demo().stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    // The lab is up, and the demo waits for a condition.
    lines.find(|line| line.as_ref().unwrap().contains("kind: Egress"));
    assert!(name.is_up());
    let killed = Command::new("kill")
        .args(["-INT", &demo.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(demo.wait().unwrap().code(), Some(1), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("interrupted")));
    assert!(!name.is_up());
}
