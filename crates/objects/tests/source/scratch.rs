//! A temporary directory of manifests, and short queries of a view.

use egret_core::model::{Finding, Kind, ObjectRef, Policy};
use egret_objects::dir::{DirSource, Settings};
use egret_objects::{Source, View};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

pub struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        // In memory where available: thousands of small files are slow on a busy disk.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self {
            folder: folder.unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file like an editor does: as a whole, by rename.
    pub fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, path).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    pub fn open(&self) -> DirSource {
        DirSource::open(self.folder.path(), settings()).unwrap()
    }

    pub fn open_read_only(&self) -> DirSource {
        let settings = Settings {
            record: false,
            ..settings()
        };
        DirSource::open(self.folder.path(), settings).unwrap()
    }

    /// View of a reader that starts now.
    pub fn view(&self) -> View {
        self.open().snapshot().unwrap()
    }
}

pub fn settings() -> Settings {
    Settings {
        debounce: Duration::from_millis(2),
        ..Settings::default()
    }
}

/// An Egress in namespace default.
pub fn egress(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: egret.dev/v1alpha1\nkind: Egress\nmetadata:\n  name: {name}\nspec:\n  selector:\n    app: {name}\n  ip: {ip}\n"
    )
}

pub fn pod(name: &str, node: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  nodeName: {node}\nstatus:\n  podIPs: [{{ip: {ip}}}]\n"
    )
}

pub fn policy_ref(name: &str) -> ObjectRef {
    ObjectRef {
        kind: Kind::Egress,
        namespace: "default".into(),
        name: name.into(),
    }
}

pub trait Ask {
    fn policy(&self, name: &str) -> Option<&Policy>;
    fn names(&self) -> Vec<&str>;
    fn finding(&self, field: &str) -> &Finding;
    fn assert_clean(&self);
}

impl Ask for View {
    fn policy(&self, name: &str) -> Option<&Policy> {
        self.snapshot
            .policies
            .iter()
            .find(|policy| policy.object.name == name)
    }

    fn names(&self) -> Vec<&str> {
        self.snapshot
            .policies
            .iter()
            .map(|policy| policy.object.name.as_str())
            .collect()
    }

    /// The only finding about this field.
    fn finding(&self, field: &str) -> &Finding {
        let found: Vec<_> = self.findings.iter().filter(|f| f.field == field).collect();
        assert_eq!(
            found.len(),
            1,
            "findings about {field}: {:#?}",
            self.findings
        );
        found[0]
    }

    fn assert_clean(&self) {
        assert!(self.findings.is_empty(), "{:#?}", self.findings);
    }
}

/// Waits until the source's view satisfies the predicate.
pub fn eventually(source: &mut DirSource, what: &str, good: impl Fn(&View) -> bool) -> View {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let view = source.snapshot().unwrap();
        if good(&view) {
            return view;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "not seen in time: {what}\n{view:#?}"
        );
        source.wait(Duration::from_millis(200)).unwrap();
    }
}
