//! Agents of a lab: their readiness, and their end.

use super::{Cluster, DEADLINE, METRICS_PORT};
use anyhow::Context;
use egret_lab::process::wait_for;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

impl Cluster {
    /// Whether the agent of a host reports that its state is applied.
    pub fn agent_ready(&self, host: &str) -> bool {
        let ask = || -> std::io::Result<String> {
            let endpoint = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
            let mut stream = TcpStream::connect_timeout(&endpoint, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let place = self.lab.place(host);
        let answer = place.and_then(|place| place.run(ask));
        matches!(answer, Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200"))
    }

    /// Ends the agent of a host by `SIGTERM` and waits until it has ended.
    ///
    /// # Errors
    /// There is none, or it does not end in time.
    pub fn end_agent(&self, host: &str) -> anyhow::Result<()> {
        let state = self.lab.dir().read()?;
        let agent = state.hosts.get(host).and_then(|host| host.agent);
        let agent = agent.with_context(|| format!("{host} has no agent"))?;
        agent.process.signal(nix::sys::signal::Signal::SIGTERM);
        let what = format!("the agent of {host} to end");
        Ok(wait_for(&what, DEADLINE, || {
            agent.launcher.reap();
            !agent.process.is_alive()
        })?)
    }
}
