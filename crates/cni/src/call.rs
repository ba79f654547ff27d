//! The commands of the CNI specification.

use crate::agent::{ask, known};
use crate::config::{Config, attachment};
use crate::failure::{Failure, NOT_AVAILABLE, REFUSED, TRY_AGAIN_LATER};
use egret_wire::cni::{ANSWER_SECS, Answer, Attachment, Call, Request, SPEC_VERSIONS};
use serde_json::json;
use std::io;
use std::time::{Duration, Instant};

/// Longest wait for an answer about a pod that may start without one, and for answers to cleanup requests.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);
/// Longest wait for an answer about a pod that may not start without one; the agent answers earlier.
const PATIENCE: Duration = Duration::from_secs(ANSWER_SECS + 3);
/// Pause before the next request to an agent that does not answer.
const PAUSE: Duration = Duration::from_millis(20);

/// `VERSION`.
pub fn version(config: &str) -> String {
    let version = crate::config::version_of(config);
    json!({"cniVersion": version, "supportedVersions": SPEC_VERSIONS}).to_string()
}

/// `ADD`: returns the result of the previous plugins, once the kernel handles the pod's addresses.
pub fn add(text: &str, environment: &dyn Fn(&str) -> String) -> Result<String, Failure> {
    let config = Config::read(text)?;
    let result = config.previous()?.to_string();
    let attachment = attachment(
        &config,
        environment,
        &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
    )?;
    if !attachment.addresses.is_empty() {
        settled(&config, &attachment)?;
    }
    Ok(result)
}

/// Repeats the request until the agent has handled the addresses, or they need no agent.
fn settled(config: &Config, attachment: &Attachment) -> Result<(), Failure> {
    let request = Request::new(Call::Add(attachment.clone()));
    let deadline = Instant::now() + Duration::from_secs(config.wait_seconds);
    loop {
        // Read each time: an agent may have come and gone meanwhile.
        let waits = reason_to_wait(config, attachment);
        let patience = waits.as_ref().map_or(SHORT_PATIENCE, |_| PATIENCE);
        let silence = match ask(&config.socket, &request, patience) {
            Ok(Answer::Done {}) => return Ok(()),
            Ok(Answer::Later { why }) => return Err(later(attachment, &why)),
            Ok(Answer::Refused { why }) => {
                return Err(Failure::new(REFUSED, "the agent refuses the pod", why));
            }
            Err(silence) => silence,
        };
        let Some(reason) = waits else { return Ok(()) };
        if Instant::now() >= deadline {
            let why = format!("{reason}, and {}", no_agent(config, &silence));
            return Err(later(attachment, &why));
        }
        std::thread::sleep(PAUSE);
    }
}

fn reason_to_wait(config: &Config, attachment: &Attachment) -> Option<String> {
    match known(&config.known) {
        Ok(known) => known.reason_to_wait(attachment.pod.as_ref(), &attachment.addresses),
        Err(error) => Some(format!(
            "{} cannot be read: {error}",
            config.known.display()
        )),
    }
}

fn no_agent(config: &Config, silence: &io::Error) -> String {
    format!(
        "the agent of Egret does not answer at {} ({silence}): is its pod running on this node?",
        config.socket.display()
    )
}

fn later(attachment: &Attachment, why: &str) -> Failure {
    let who = match &attachment.pod {
        Some(pod) => format!("pod {pod}"),
        None => format!("container {}", attachment.id.container),
    };
    Failure::new(TRY_AGAIN_LATER, format!("{who} has to wait: {why}"), why)
}

/// `CHECK`: fails if the kernel does not handle the addresses.
pub fn check(text: &str, environment: &dyn Fn(&str) -> String) -> Result<String, Failure> {
    let config = Config::read(text)?;
    config.previous()?;
    let attachment = attachment(
        &config,
        environment,
        &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
    )?;
    let request = Request::new(Call::Check(attachment.clone()));
    match ask(&config.socket, &request, PATIENCE) {
        Ok(Answer::Done {}) => Ok(String::new()),
        Ok(Answer::Later { why }) => Err(Failure::new(TRY_AGAIN_LATER, why.clone(), why)),
        Ok(Answer::Refused { why }) => Err(Failure::new(REFUSED, why.clone(), why)),
        // The kernel's state stays without an agent.
        Err(silence) => match known(&config.known) {
            Ok(known)
                if attachment
                    .addresses
                    .iter()
                    .all(|a| known.addresses.contains(a))
                    || known
                        .reason_to_wait(attachment.pod.as_ref(), &attachment.addresses)
                        .is_none() =>
            {
                Ok(String::new())
            }
            _ => Err(later(&attachment, &no_agent(&config, &silence))),
        },
    }
}

/// `DEL`: never delays a pod's end. An agent that is away learns of it from the API, and no pod gets the address
/// before: see [`settled`].
pub fn del(text: &str, environment: &dyn Fn(&str) -> String) -> Result<String, Failure> {
    let mut config = Config::read(text)?;
    if config.addresses().is_err() {
        config.prev_result = None;
    }
    let attachment = attachment(&config, environment, &["CNI_CONTAINERID", "CNI_IFNAME"])?;
    let _done = ask(
        &config.socket,
        &Request::new(Call::Del(attachment)),
        SHORT_PATIENCE,
    );
    Ok(String::new())
}

/// `GC`: attachments that are not named are gone. An agent that is away finds out by itself.
pub fn gc(text: &str) -> Result<String, Failure> {
    let config = Config::read(text)?;
    let valid = config.valid();
    let _done = ask(
        &config.socket,
        &Request::new(Call::Gc { valid }),
        SHORT_PATIENCE,
    );
    Ok(String::new())
}

/// `STATUS`: succeeds without an agent too, as long as the plugin can decide which pods may start. A runtime that gets
/// an error calls the whole node not ready, and Kubernetes then evicts all of its pods.
pub fn status(text: &str) -> Result<String, Failure> {
    let config = Config::read(text)?;
    let Err(silence) = ask(
        &config.socket,
        &Request::new(Call::Status {}),
        SHORT_PATIENCE,
    ) else {
        return Ok(String::new());
    };
    match known(&config.known) {
        Ok(_) => Ok(String::new()),
        Err(error) => Err(Failure::new(
            NOT_AVAILABLE,
            no_agent(&config, &silence),
            format!("{} cannot be read: {error}", config.known.display()),
        )),
    }
}
