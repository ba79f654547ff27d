//! `PATH/status`: our copies of the user's objects with generation and status, and the objects that only Egret writes.
//! Every write is a temporary file and a rename under the exclusive lock. Every scan holds the shared lock, so that it
//! sees each write together with all earlier ones.

use super::document::read_value;
use super::lock::{self, Lock};
use super::object::{self, Converted, kinds};
use super::tree::{Signature, io_error};
use crate::SourceError;
use crate::convert::SOURCE_FILE_ANNOTATION;
use egret_core::model::{Kind, ObjectRef};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// One stored object.
pub(super) struct Copy {
    signature: Signature,
    racy: bool,
    pub value: Arc<Value>,
    /// The converted value, or the error.
    pub result: Result<Arc<Converted>, String>,
    /// The manifest that this copy was last found equal to: avoids another comparison.
    pub in_sync_with: Option<Arc<Value>>,
}

impl Copy {
    /// The file that it was read from, relative to the source's directory.
    pub fn source_file(&self) -> Option<&str> {
        self.value["metadata"]["annotations"][SOURCE_FILE_ANNOTATION].as_str()
    }
}

/// The status directory.
pub(super) struct Store {
    pub directory: PathBuf,
    pub copies: BTreeMap<ObjectRef, Copy>,
    /// Files that exist but have no readable object.
    pub broken: BTreeMap<ObjectRef, String>,
    /// Copies of the user's objects whose file was removed since the last scan: written again if the object is still in
    /// force.
    pub lost: BTreeMap<ObjectRef, Copy>,
    /// Last readable content of records.
    pub last_good: BTreeMap<ObjectRef, Arc<Converted>>,
    /// The highest version of any object so far.
    highest_version: u64,
}

impl Store {
    pub fn new(root: &Path) -> Self {
        Self {
            directory: root.join("status"),
            copies: BTreeMap::new(),
            broken: BTreeMap::new(),
            lost: BTreeMap::new(),
            last_good: BTreeMap::new(),
            highest_version: 0,
        }
    }

    /// Excludes writers during a scan. `None` if there is no status directory yet.
    pub fn lock_shared(&self) -> Result<Option<Lock>, SourceError> {
        lock::shared(&self.directory)
    }

    /// Excludes all others; creates the directory.
    pub fn lock_exclusive(&self) -> Result<Lock, SourceError> {
        lock::exclusive(&self.directory)
    }

    fn kind_directory(&self, kind: Kind) -> PathBuf {
        self.directory.join(format!("{kind:?}"))
    }

    /// Path of an object. Names are validated, so the path stays inside the directory.
    pub fn path(&self, key: &ObjectRef) -> PathBuf {
        let file = match key.namespace.as_str() {
            "" => format!("{}.yaml", key.name),
            namespace => format!("{namespace}.{}.yaml", key.name),
        };
        self.kind_directory(key.kind).join(file)
    }

    /// All stored objects with their signatures. `enter` is called before a directory is read.
    pub fn list(
        &self,
        enter: &mut dyn FnMut(&Path),
    ) -> Result<BTreeMap<ObjectRef, Signature>, SourceError> {
        let mut found = BTreeMap::new();
        enter(&self.directory);
        for (kind, namespaced) in kinds() {
            let directory = self.kind_directory(kind);
            enter(&directory);
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if lock::is_absent(&error) => continue,
                Err(error) => return Err(io_error("reading", &directory, error)),
            };
            for entry in entries {
                let entry = entry.map_err(|e| io_error("reading", &directory, e))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let Some(key) = key_of(kind, namespaced, &name) else {
                    continue;
                };
                match entry.metadata() {
                    Ok(metadata) => drop(found.insert(key, Signature::of(&metadata))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(io_error("reading", &entry.path(), error)),
                }
            }
        }
        Ok(found)
    }

    /// Whether the listing differs from the last read.
    pub fn differs(&self, listing: &BTreeMap<ObjectRef, Signature>) -> bool {
        let good = listing
            .iter()
            .filter(|(key, _)| !self.broken.contains_key(key));
        !good.eq(self.copies.iter().map(|(key, copy)| (key, &copy.signature)))
    }

    /// Whether a file may have changed with the same signature.
    pub fn is_racy(&self) -> bool {
        self.copies.values().any(|copy| copy.racy)
    }

    /// Reads the changed files. The caller holds a lock.
    pub fn read(&mut self, listing: BTreeMap<ObjectRef, Signature>) {
        let gone = self
            .copies
            .extract_if(.., |key, _| !listing.contains_key(key));
        self.lost
            .extend(gone.filter(|(key, _)| !object::is_record(key.kind)));
        self.last_good.retain(|key, _| listing.contains_key(key));
        self.broken.retain(|key, _| listing.contains_key(key));
        for (key, signature) in listing {
            let known = self.copies.get(&key);
            if known.is_some_and(|copy| copy.signature == signature && !copy.racy) {
                continue;
            }
            match self.load(&key) {
                Ok(Some(value)) => {
                    self.broken.remove(&key);
                    self.remember(key, signature, value);
                }
                Ok(None) => drop(self.copies.remove(&key)),
                Err(why) => {
                    self.copies.remove(&key);
                    self.broken.insert(key, why);
                }
            }
        }
    }

    fn remember(&mut self, key: ObjectRef, signature: Signature, value: Value) {
        self.highest_version = self.highest_version.max(version_of(&value));
        self.lost.remove(&key);
        let racy = signature.is_racy(SystemTime::now());
        if let Some(copy) = self.copies.get_mut(&key)
            && *copy.value == value
        {
            (copy.signature, copy.racy) = (signature, racy);
            return;
        }
        let result = object::convert(&key, &value)
            .result
            .map(Arc::new)
            .map_err(|findings| {
                findings
                    .first()
                    .map_or_else(String::new, |f| format!("{}: {}", f.field, f.remedy))
            });
        if let Ok(converted) = &result
            && object::is_record(key.kind)
            && object::is_whole(converted)
        {
            self.last_good.insert(key.clone(), Arc::clone(converted));
        }
        let copy = Copy {
            signature,
            racy,
            value: Arc::new(value),
            result,
            in_sync_with: None,
        };
        self.copies.insert(key, copy);
    }

    /// The stored object as it is on disk now; `None` if it does not exist; an error if it is unreadable.
    fn load(&self, key: &ObjectRef) -> Result<Option<Value>, String> {
        let text = match fs::read_to_string(self.path(key)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let value = decode(&text)?;
        match object::identify(key.kind, &value) {
            Ok(found) if found == *key && value["kind"] == object::manifest_kind(key.kind) => {
                Ok(Some(value))
            }
            _ => Err("it is another object than its file name says".to_owned()),
        }
    }

    /// Like [`Self::load`], for a caller that changes the object and holds the exclusive lock.
    pub fn current(&self, key: &ObjectRef) -> Result<Option<Value>, SourceError> {
        self.load(key).map_err(|why| SourceError::Unreadable {
            object: key.to_string(),
            why,
        })
    }

    /// Stores an object as the next version and returns that.
    pub fn put(
        &mut self,
        lock: &mut Lock,
        key: &ObjectRef,
        mut value: Value,
    ) -> Result<u64, SourceError> {
        let version = lock.next_version(self.highest_version.max(version_of(&value)))?;
        value["metadata"]["resourceVersion"] = version.to_string().into();
        let path = self.path(key);
        let directory = self.kind_directory(key.kind);
        fs::create_dir_all(&directory).map_err(|e| io_error("making", &directory, e))?;
        // After a power cut everything is created again, except leases and tunnel indexes.
        let durable = object::is_record(key.kind);
        replace(&path, &encode(&value), durable).map_err(|e| io_error("writing", &path, e))?;
        let metadata = fs::metadata(&path).map_err(|e| io_error("reading", &path, e))?;
        self.broken.remove(key);
        self.remember(key.clone(), Signature::of(&metadata), value);
        Ok(version)
    }

    /// Removes an object; no error if it is gone.
    pub fn remove(&mut self, _lock: &mut Lock, key: &ObjectRef) -> Result<(), SourceError> {
        self.copies.remove(key);
        self.broken.remove(key);
        self.last_good.remove(key);
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("removing", &path, error))
            }
            _ => Ok(()),
        }
    }
}

/// `metadata.resourceVersion`; 0 if there is none.
pub(super) fn version_of(value: &Value) -> u64 {
    value["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// The object of a file name. A namespace contains no dot, so the first one ends it.
fn key_of(kind: Kind, namespaced: bool, file: &str) -> Option<ObjectRef> {
    let stem = file
        .strip_suffix(".yaml")
        .filter(|stem| !stem.starts_with('.'))?;
    let (namespace, name) = if namespaced {
        stem.split_once('.')?
    } else {
        ("", stem)
    };
    Some(ObjectRef {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// The object as YAML; as JSON, a subset of YAML, where the YAML would not read back as the same value.
fn encode(value: &Value) -> String {
    if let Ok(yaml) = serde_saphyr::to_string(value)
        && decode(&yaml).is_ok_and(|again| again == *value)
    {
        return yaml;
    }
    format!("{value:#}\n")
}

fn decode(text: &str) -> Result<Value, String> {
    read_value(text.starts_with('{'), text).map_err(|(line, why)| format!("line {line}: {why}"))
}

/// Replaces a file atomically.
fn replace(path: &Path, text: &str, durable: bool) -> io::Result<()> {
    let name = path
        .file_name()
        .expect("stored objects have file names")
        .to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    if durable {
        file.sync_data()?;
    }
    drop(file);
    fs::rename(&temporary, path)
}
