//! Requests to the agent, and the file that it leaves for times when it does not answer.

use egret_wire::cni::{Answer, Known, LINE_BYTES_MAX, Request};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Sends one request and reads the answer. An error means that no agent answers, whatever the reason.
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(request.to_line().as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line)?;
    // An agent that ends meanwhile closes the connection.
    Answer::from_line(&line).map_err(io::Error::other)
}

/// Reads the file that the agent left. No file means that Egret never ran here or was removed: no policy selects pods.
pub fn known(path: &Path) -> io::Result<Known> {
    match std::fs::read_to_string(path) {
        Ok(text) => Known::from_text(&text).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
        Err(error) => Err(error),
    }
}
