//! Which of the network plugins' kinds the API server serves, by API discovery
//! (<https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api>). A kind that is not served is never
//! listed: a list is refused over and over where Egret has no right to it, and answers 404 over and over where it has.
//! Discovery itself is open to everybody who is known to the API server (ClusterRole `system:discovery`).

use super::store::Store;
use super::watch::Watch;
use super::watched::News;
use crate::plugin;
use egret_core::error::with_causes;
use egret_core::model::Kind;
use kube::Client;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::{OnceCell, watch};

/// Time between two looks: a plugin that is installed later is noticed so late, and its pods are told one by one until then.
const INTERVAL: Duration = Duration::from_secs(30);
/// The same while the API server does not answer.
const RETRY: Duration = Duration::from_secs(5);

/// What is known of served kinds.
#[derive(Clone, Debug, Default)]
enum Served {
    /// Nobody has answered yet.
    #[default]
    Unknown,
    /// Nobody answers: why.
    NoAnswer(String),
    /// These are served.
    Kinds(BTreeSet<Kind>),
}

/// One task that asks, shared by all who wait. It starts with the first of them, so that agents never ask.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    served: OnceCell<watch::Receiver<Served>>,
}

impl Discovery {
    /// Waits until a kind is served. Tells the store as long as it is not, or as long as that is unknown.
    pub(super) async fn until_served(
        &self,
        client: &Client,
        kind: Kind,
        store: &Store,
        of: &Watch,
    ) {
        let start = || async { begin(client.clone()) };
        let mut served = self.served.get_or_init(start).await.clone();
        loop {
            let now = served.borrow_and_update().clone();
            match now {
                Served::Kinds(kinds) if kinds.contains(&kind) => return,
                Served::Kinds(_) => store.take(of, News::Absent),
                Served::NoAnswer(why) => store.take(of, News::Trouble(why)),
                Served::Unknown => {}
            }
            // The task ends with the runtime, and so does this one.
            if served.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

fn begin(client: Client) -> watch::Receiver<Served> {
    let (told, served) = watch::channel(Served::Unknown);
    tokio::spawn(async move {
        while !told.is_closed() {
            let (now, pause) = match ask(&client).await {
                Ok(kinds) => (Served::Kinds(kinds), INTERVAL),
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    tracing::warn!("API discovery is forbidden: pods are told one by one");
                    (Served::Kinds(BTreeSet::new()), INTERVAL)
                }
                Err(error) => (Served::NoAnswer(with_causes(&error)), RETRY),
            };
            told.send_replace(now);
            tokio::time::sleep(pause).await;
        }
    });
    served
}

/// One request for the groups, and one for each group and version that a plugin's kinds are of.
async fn ask(client: &Client) -> kube::Result<BTreeSet<Kind>> {
    let groups = client.list_api_groups().await?.groups;
    let versions: BTreeSet<&str> = groups
        .iter()
        .flat_map(|group| &group.versions)
        .map(|version| version.group_version.as_str())
        .collect();
    let mut served = BTreeSet::new();
    let known: BTreeSet<&str> = plugin::KINDS
        .iter()
        .map(|known| known.api_version)
        .collect();
    for version in known.intersection(&versions) {
        let resources = match client.list_api_group_resources(version).await {
            Ok(list) => list.resources,
            // Gone since the first request.
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error),
        };
        let kinds = plugin::KINDS.iter().filter(|known| {
            let plural = |resource: &Resource| resource.name == known.plural;
            known.api_version == *version && resources.iter().any(plural)
        });
        served.extend(kinds.map(|known| known.kind));
    }
    Ok(served)
}

type Resource = k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
