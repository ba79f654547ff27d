//! The user's files: list, content, changes.

use super::document::{self, Document};
use crate::SourceError;
use egret_core::model::{Finding, Kind, ObjectRef};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Largest file that is read, bytes: a complete List of ten thousand pods has about a third of this.
const FILE_MAX_BYTES: u64 = 256 << 20;
/// Deepest directory below the source's own.
const DEPTH_MAX: usize = 16;
/// A file that changed less than this before it was read may change again with the same signature: time stamps have the
/// granularity of the kernel's tick, and inode numbers are reused.
const RACY: Duration = Duration::from_millis(50);

/// Metadata that changes with a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Time since the file was last modified; zero if that is in the future.
    pub fn age(&self, now: SystemTime) -> Duration {
        let (secs, nanos) = self.modified.max(self.changed);
        let touched = Duration::new(
            u64::try_from(secs).unwrap_or(0),
            u32::try_from(nanos).unwrap_or(0),
        );
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        now.saturating_sub(touched)
    }

    /// Whether a further change could have the same signature.
    pub fn is_racy(&self, now: SystemTime) -> bool {
        self.age(now) < RACY
    }
}

/// A file and its content.
pub(super) struct Entry {
    signature: Signature,
    racy: bool,
    /// The file has no byte: most likely a write is under way.
    pub empty: bool,
    /// Finding, if the file could not be read.
    pub unreadable: Option<Finding>,
    pub documents: Vec<Document>,
}

/// The user's files.
pub(super) struct Tree {
    root: PathBuf,
    /// Files by path below the root, in byte order.
    pub files: BTreeMap<String, Entry>,
    /// Directories that could not be read, with the findings; their objects are retained.
    pub closed: BTreeMap<String, Finding>,
}

/// Result of a directory walk.
#[derive(Default)]
pub(super) struct Listing {
    files: BTreeMap<String, (PathBuf, Signature)>,
    closed: BTreeMap<String, Finding>,
    /// All directories that were read.
    pub directories: Vec<PathBuf>,
}

impl Listing {
    /// Time since the newest change of any file.
    fn youngest(&self, now: SystemTime) -> Option<Duration> {
        self.files
            .values()
            .map(|(_, signature)| signature.age(now))
            .min()
    }
}

impl Tree {
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            files: BTreeMap::new(),
            closed: BTreeMap::new(),
        }
    }

    /// Walks the directory. `enter` is called before a directory is read.
    pub fn list(&self, enter: &mut dyn FnMut(&Path)) -> Result<Listing, SourceError> {
        let mut listing = Listing::default();
        enter(&self.root);
        let root = fs::metadata(&self.root).map_err(|e| io_error("reading", &self.root, e))?;
        let mut ancestors = BTreeSet::from([(root.dev(), root.ino())]);
        walk(&self.root, "", &mut ancestors, &mut listing, enter)
            .map_err(|e| io_error("reading", &self.root, e))?;
        Ok(listing)
    }

    /// Whether the listing differs from the last read.
    pub fn differs(&self, listing: &Listing) -> bool {
        let listed = listing
            .files
            .iter()
            .map(|(name, (_, signature))| (name, signature));
        let read = self
            .files
            .iter()
            .map(|(name, entry)| (name, &entry.signature));
        !listed.eq(read) || !listing.closed.keys().eq(self.closed.keys())
    }

    /// Whether a file may have changed with the same signature.
    pub fn is_racy(&self) -> bool {
        self.files.values().any(|entry| entry.racy)
    }

    /// Reads the changed files. Returns the time since the newest change.
    pub fn read(&mut self, listing: Listing) -> Option<Duration> {
        let now = SystemTime::now();
        let youngest = listing.youngest(now);
        self.files
            .retain(|name, _| listing.files.contains_key(name));
        for (name, (path, signature)) in listing.files {
            let known = self.files.get(&name);
            if known.is_some_and(|entry| entry.signature == signature && !entry.racy) {
                continue;
            }
            let previous = known.map_or(&[][..], |entry| &entry.documents);
            match read_file(&name, &path, previous) {
                Ok(entry) => drop(self.files.insert(name, entry)),
                // Removed since the walk: the next walk notices.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    drop(self.files.remove(&name))
                }
                Err(error) => drop(self.files.insert(
                    name.clone(),
                    unreadable(&name, signature, &error.to_string()),
                )),
            }
        }
        self.closed = listing.closed;
        youngest
    }
}

pub(super) fn io_error(doing: &'static str, path: &Path, source: io::Error) -> SourceError {
    SourceError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// A finding about a file or directory.
pub(super) fn file_finding(name: &str, remedy: impl Into<String>) -> Finding {
    let object = ObjectRef::of_cluster(Kind::File, name);
    Finding {
        object,
        field: String::new(),
        value: String::new(),
        remedy: remedy.into(),
    }
}

fn unreadable(name: &str, signature: Signature, why: &str) -> Entry {
    let remedy = format!("make the file readable: {why}; its objects stay as they were");
    Entry {
        signature,
        racy: true,
        empty: false,
        unreadable: Some(file_finding(name, remedy)),
        documents: Vec::new(),
    }
}

fn read_file(name: &str, path: &Path, previous: &[Document]) -> io::Result<Entry> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let signature = Signature::of(&metadata);
    if metadata.size() > FILE_MAX_BYTES {
        let why = format!("it is larger than {} MiB; split it", FILE_MAX_BYTES >> 20);
        return Ok(Entry {
            racy: false,
            ..unreadable(name, signature, &why)
        });
    }
    let now = SystemTime::now();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let racy = signature.is_racy(now) || Signature::of(&file.metadata()?) != signature;
    let Ok(text) = String::from_utf8(bytes) else {
        return Ok(Entry {
            racy,
            ..unreadable(name, signature, "it is not UTF-8 text")
        });
    };
    let documents = document::parse(name, &text, previous);
    Ok(Entry {
        signature,
        racy,
        empty: text.is_empty(),
        unreadable: None,
        documents,
    })
}

/// Whether files of this name are never input.
fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || name.ends_with('~') || name.ends_with(".tmp")
}

fn is_manifest(name: &str) -> bool {
    [".yaml", ".yml", ".json"]
        .iter()
        .any(|end| name.ends_with(end))
}

fn walk(
    directory: &Path,
    prefix: &str,
    ancestors: &mut BTreeSet<(u64, u64)>,
    listing: &mut Listing,
    enter: &mut dyn FnMut(&Path),
) -> io::Result<()> {
    listing.directories.push(directory.to_owned());
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let relative = format!("{prefix}{name}");
        if is_hidden(&name) || relative == "status" {
            continue;
        }
        let path = entry.path();
        // Follows symbolic links: a mounted ConfigMap is made of them.
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let remedy = format!("make it readable: {error}");
                listing
                    .closed
                    .insert(relative.clone(), file_finding(&relative, remedy));
                continue;
            }
        };
        if metadata.is_file() && is_manifest(&name) {
            listing
                .files
                .insert(relative, (path, Signature::of(&metadata)));
        } else if metadata.is_dir() {
            descend(&path, &relative, &metadata, ancestors, listing, enter);
        }
    }
    Ok(())
}

fn descend(
    path: &Path,
    relative: &str,
    metadata: &Metadata,
    ancestors: &mut BTreeSet<(u64, u64)>,
    listing: &mut Listing,
    enter: &mut dyn FnMut(&Path),
) {
    let identity = (metadata.dev(), metadata.ino());
    if ancestors.len() > DEPTH_MAX || !ancestors.insert(identity) {
        let remedy = format!("remove it: directories loop here or are deeper than {DEPTH_MAX}");
        listing
            .closed
            .insert(relative.to_owned(), file_finding(relative, remedy));
        return;
    }
    enter(path);
    match walk(path, &format!("{relative}/"), ancestors, listing, enter) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            let remedy = format!("make the directory readable: {error}");
            listing
                .closed
                .insert(relative.to_owned(), file_finding(relative, remedy));
        }
    }
    ancestors.remove(&identity);
}
