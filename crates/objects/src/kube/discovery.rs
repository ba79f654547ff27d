//! Kinds of network plugins that the API server serves, by API discovery
//! (<https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api>). A kind that is not served is never
//! listed: each list would fail with 403 without the right to it, and with 404 with it. Discovery itself is open to
//! every authenticated client (ClusterRole `system:discovery`).

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

/// Discovery interval: a plugin that is installed later is detected so late, and its pods are listed one by one until
/// then.
const INTERVAL: Duration = Duration::from_secs(30);
/// Discovery interval while the API server does not answer.
const RETRY: Duration = Duration::from_secs(5);

/// Result of discovery.
#[derive(Clone, Debug, Default)]
enum Served {
    /// No answer yet.
    #[default]
    Unknown,
    /// No answer, with the error.
    NoAnswer(String),
    /// These are served.
    Kinds(BTreeSet<Kind>),
}

/// Discovery task, shared by all waiting watches. It starts with the first of them, so that agents never discover.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    served: OnceCell<watch::Receiver<Served>>,
}

impl Discovery {
    /// Waits until a kind is served. Reports to the store while it is not, or while that is unknown.
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
                    tracing::warn!("API discovery is forbidden: pods are listed one by one");
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

/// One request for the groups, and one for each group and version of a plugin's kind.
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
            // Removed since the first request.
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
