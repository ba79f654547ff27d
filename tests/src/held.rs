//! Many idle connections between a pod and a server, each end in a process of its own: one process may not have enough
//! descriptors for both. They say nothing until they are tried.

use crate::chaos::Scene;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

/// Environment variable that makes a test program one end: `client ADDRESS COUNT` or `server PORT COUNT`.
const END: &str = "EGRET_TEST_HELD";
/// Longest wait for a connection or an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Threads that open connections.
const THREADS: usize = 16;
const READY: &str = "ready";
const OPEN: &str = "open";
const TRY: &str = "try";

/// Connections that stay open until this is dropped.
pub struct Held {
    client: End,
    server: End,
    count: usize,
}

/// The process of one end.
struct End {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl End {
    fn start(scene: &Scene, place: &egret_lab::Place, end: &str) -> Result<Self> {
        let mut command = scene.lab().exec(place, std::env::current_exe()?)?;
        command.env(END, end);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let said = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { child, said })
    }

    fn tell(&mut self, word: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("its input")?;
        Ok(writeln!(input, "{word}")?)
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        ensure!(line.trim_end() == word, "it said {line:?}, not {word:?}");
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Without a reader of its end it would keep its connections.
        drop(self.child.stdin.take());
        let _ended = self.child.wait();
    }
}

impl Held {
    /// Opens this many connections of a pod to a port of the lab's host `server` on which nobody listens yet.
    ///
    /// # Errors
    /// One of them is refused.
    pub fn open(scene: &Scene, pod: &str, target: SocketAddr, count: usize) -> Result<Self> {
        let host = scene.host("server")?;
        let end = format!("server {} {count}", target.port());
        let mut server = End::start(scene, &host, &end)?;
        server.expect(READY)?;
        let end = format!("client {target} {count}");
        let mut client = End::start(scene, &scene.pod(pod)?, &end)?;
        client.expect(OPEN)?;
        server.expect(OPEN)?;
        Ok(Self {
            client,
            server,
            count,
        })
    }

    /// Sends a byte by every connection and waits until it comes back.
    ///
    /// # Errors
    /// One of them is broken; the error says how many.
    pub fn all_answer(&mut self) -> Result<()> {
        self.server.tell(TRY)?;
        self.client.tell(TRY)?;
        self.client
            .expect(&format!("{} of {} answer", self.count, self.count))
    }
}

/// The program of one end, if this process is one.
pub fn run_as_end() -> bool {
    let Ok(end) = std::env::var(END) else {
        return false;
    };
    if let Err(error) = run(&end) {
        println!("{error:#}");
    }
    true
}

fn run(end: &str) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let words: Vec<&str> = end.split(' ').collect();
    let mut input = std::io::stdin().lines();
    match words.as_slice() {
        ["client", target, count] => {
            let mut streams = connect(target.parse()?, count.parse()?)?;
            println!("{OPEN}");
            while let Some(Ok(_)) = input.next() {
                let answering = try_all(&mut streams);
                println!("{answering} of {count} answer");
            }
        }
        ["server", port, count] => {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port.parse()?))?;
            println!("{READY}");
            let accepted = (0..count.parse::<usize>()?).map(|_| Ok(listener.accept()?.0));
            let mut streams = accepted.collect::<Result<Vec<TcpStream>>>()?;
            println!("{OPEN}");
            while let Some(Ok(_)) = input.next() {
                streams.iter_mut().for_each(|stream| drop(echo(stream)));
            }
        }
        _ => bail!("{END}={end}"),
    }
    Ok(())
}

fn connect(target: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let some = |number: usize| {
        let share = count / THREADS + usize::from(number < count % THREADS);
        let open = |_| TcpStream::connect_timeout(&target, PATIENCE);
        (0..share).map(open).collect::<std::io::Result<Vec<_>>>()
    };
    std::thread::scope(|scope| {
        let threads = (0..THREADS).map(|number| scope.spawn(move || some(number)));
        let threads: Vec<_> = threads.collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().expect("a thread ends")?);
        }
        Ok(all)
    })
}

/// Number of connections by which a byte comes back.
fn try_all(streams: &mut [TcpStream]) -> usize {
    let sent: Vec<bool> = streams
        .iter_mut()
        .map(|stream| stream.write_all(b"?").is_ok())
        .collect();
    let answered = streams.iter_mut().zip(sent).map(|(stream, sent)| {
        let waits = stream.set_read_timeout(Some(PATIENCE)).is_ok();
        sent && waits && matches!(stream.read(&mut [0]), Ok(1))
    });
    answered.filter(|answered| *answered).count()
}

fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut [0])?;
    stream.write_all(b"!")
}
