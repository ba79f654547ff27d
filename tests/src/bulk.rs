//! Many requests to an API server in short time: plain HTTP through `kubectl proxy`, several connections at once.
//! kubectl itself sends one object after the other.

use anyhow::{Context, bail, ensure};
use egret_cluster::Kubectl;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::kubernetes::until;

/// Connections at once: enough to keep an API server on two cores busy.
const CONNECTIONS: usize = 12;
/// Attempts at one request.
const ATTEMPTS: usize = 5;
/// Longest wait for the proxy, and for one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `POST`, `PATCH`, `DELETE`.
    pub method: &'static str,
    /// From `/api` on.
    pub path: String,
    /// JSON; of a `PATCH` a merge patch (RFC 7386).
    pub body: String,
}

impl Request {
    /// Creates an object in a collection.
    pub fn create(collection: &str, body: String) -> Self {
        Self {
            method: "POST",
            path: collection.to_owned(),
            body,
        }
    }

    /// Patches an object, or its status.
    pub fn patch(path: String, body: String) -> Self {
        Self {
            method: "PATCH",
            path,
            body,
        }
    }
}

/// Client of an API server for many requests. It ends with the value.
#[derive(Debug)]
pub struct Bulk {
    proxy: Child,
    socket: PathBuf,
}

impl Bulk {
    /// Starts the proxy, with its socket in this folder.
    ///
    /// # Errors
    /// The proxy does not answer.
    pub fn start(kubectl: &Kubectl, folder: &Path) -> anyhow::Result<Self> {
        let socket = folder.join("proxy.sock");
        let mut command = kubectl.command();
        command
            .arg("proxy")
            .arg(format!("--unix-socket={}", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let proxy = command.spawn().context("starting kubectl proxy")?;
        let bulk = Self { proxy, socket };
        until("kubectl proxy listens", PATIENCE, || {
            Ok(UnixStream::connect(&bulk.socket).is_ok())
        })?;
        Ok(bulk)
    }

    /// Sends all requests, in any order.
    ///
    /// # Errors
    /// One is refused.
    pub fn send(&self, requests: impl IntoIterator<Item = Request>) -> anyhow::Result<()> {
        let mut requests: Vec<Request> = requests.into_iter().collect();
        requests.reverse();
        let left = Mutex::new(requests);
        let take = || left.lock().expect("nobody panics with it").pop();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CONNECTIONS)
                .map(|_| {
                    scope.spawn(|| -> anyhow::Result<()> {
                        let mut connection = None;
                        while let Some(request) = take() {
                            let connection = match &mut connection {
                                Some(open) => open,
                                none => none.insert(BufReader::new(self.connect()?)),
                            };
                            persist(connection, &request)
                                .with_context(|| format!("{} {}", request.method, request.path))?;
                        }
                        Ok(())
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("nothing panics there")?;
            }
            Ok(())
        })
    }

    fn connect(&self) -> anyhow::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

/// Sends one request; repeats it if a busy server could not process it.
fn persist(connection: &mut BufReader<UnixStream>, request: &Request) -> anyhow::Result<()> {
    for attempt in 1.. {
        let (status, body) = exchange(connection, request)?;
        match status {
            200..=299 => break,
            // The first attempt succeeded after all.
            409 if attempt > 1 && request.method == "POST" => break,
            429 | 500.. if attempt < ATTEMPTS => {}
            _ => bail!("{status}: {}", String::from_utf8_lossy(&body)),
        }
    }
    Ok(())
}

/// Sends one request and reads its answer (RFC 9112): status and body.
fn exchange(
    connection: &mut BufReader<UnixStream>,
    request: &Request,
) -> anyhow::Result<(u16, Vec<u8>)> {
    let content = match request.method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let text = format!(
        "{} {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content}\r\nContent-Length: {}\r\n\r\n{}",
        request.method,
        request.path,
        request.body.len(),
        request.body
    );
    connection.get_mut().write_all(text.as_bytes())?;
    let status = line(connection)?;
    let (mut length, mut chunked) = (0, false);
    loop {
        let header = line(connection)?.to_ascii_lowercase();
        match header.split_once(':') {
            None => break,
            Some(("content-length", value)) => length = value.trim().parse()?,
            Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
            Some(_) => {}
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let size = usize::from_str_radix(&line(connection)?, 16)?;
            take(connection, size, &mut body)?;
            ensure!(line(connection)?.is_empty(), "a chunk does not end");
            if size == 0 {
                break;
            }
        }
    } else {
        take(connection, length, &mut body)?;
    }
    let status = status.split(' ').nth(1).context("a status")?;
    Ok((status.parse()?, body))
}

fn take(
    connection: &mut BufReader<UnixStream>,
    size: usize,
    body: &mut Vec<u8>,
) -> anyhow::Result<()> {
    let start = body.len();
    body.resize(start + size, 0);
    connection.read_exact(&mut body[start..])?;
    Ok(())
}

fn line(connection: &mut BufReader<UnixStream>) -> anyhow::Result<String> {
    let mut line = String::new();
    ensure!(connection.read_line(&mut line)? > 0, "the connection ended");
    Ok(line.trim_end().to_owned())
}
