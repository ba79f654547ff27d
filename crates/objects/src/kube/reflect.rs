//! One task per watch: lists, watches with bookmarks, resumes where the watch ended, and backs off after errors.

use super::discovery::Discovery;
use super::entry::{Entry, Observed, Value};
use super::lenient::Lenient;
use super::store::Store;
use super::watch::{GATEWAY_LABEL, Pods, Records, Watch, Which};
use super::watched::News;
use crate::front_end;
use crate::plugin;
use egret_api as api;
use egret_core::error::with_causes;
use egret_core::model::{Kind, ObjectRef};
use futures_util::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watching};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

/// Duration of one watch request, seconds. A connection that died silently is detected 5 s later; each restart is one
/// cheap request that resumes from the last bookmark.
const WATCH_SECS: u32 = 180;
/// Label that names the Service of an EndpointSlice.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Watches until its task is aborted.
pub(super) async fn reflect(
    client: Client,
    store: Arc<Store>,
    discovery: Arc<Discovery>,
    watch: Watch,
) {
    let config = watcher::Config::default().timeout(WATCH_SECS);
    let store = store.as_ref();
    match &watch {
        Watch::Egresses => every::<Lenient<api::Egress>>(client, config, store, &watch).await,
        Watch::ClusterEgresses => {
            every::<Lenient<api::ClusterEgress>>(client, config, store, &watch).await
        }
        Watch::Gateways => {
            every::<Lenient<api::EgressGateway>>(client, config, store, &watch).await
        }
        Watch::Pools => every::<Lenient<api::EgressPool>>(client, config, store, &watch).await,
        Watch::Addresses => {
            every::<Lenient<api::EgressAddress>>(client, config, store, &watch).await
        }
        Watch::Nodes => every::<core::Node>(client, config, store, &watch).await,
        Watch::ServiceCidrs => every::<ServiceCIDR>(client, config, store, &watch).await,
        Watch::Namespaces => {
            // Metadata only: an API of this type requests nothing else.
            type Meta = PartialObjectMeta<core::Namespace>;
            every::<Meta>(client, config, store, &watch).await;
        }
        Watch::Pods(pods) => {
            let config = match pods {
                Pods::All => config,
                // Without pages: API servers since Kubernetes 1.31 answer it from their cache, and older ones read all
                // pods of the cluster from etcd for each page.
                Pods::OfNode(node) => watcher::Config {
                    page_size: None,
                    ..config.fields(&format!("spec.nodeName={node}"))
                },
            };
            every::<core::Pod>(client, config, store, &watch).await;
        }
        Watch::Records(records) => {
            let config = match records {
                Records::All => config,
                Records::One(node) => config.fields(&format!("metadata.name={node}")),
                Records::OfGateways => config.labels(&format!("{GATEWAY_LABEL}=true")),
            };
            every::<Lenient<api::EgressNode>>(client, config, store, &watch).await;
        }
        Watch::Foreign(kind) => {
            let observe = |object| super::entry::foreign(*kind, object);
            dynamic(client, config, *kind, observe, store, &watch).await;
        }
        Watch::Plugin(kind) => {
            discovery.until_served(&client, *kind, store, &watch).await;
            let observe = |object| super::entry::of_plugin(*kind, object);
            dynamic(client, config, *kind, observe, store, &watch).await;
        }
        Watch::Balancers => {
            // No selector matches them; other Services are dropped on arrival.
            let events = watching(Api::<core::Service>::all(client), config);
            let observe = core::Service::observe;
            follow_by(events, observe, is_outside, store, &watch).await;
        }
        Watch::Services(which) => {
            let by_name = |config: watcher::Config, name: &str| {
                config.fields(&format!("metadata.name={name}"))
            };
            some::<core::Service>(client, config, by_name, which, store, &watch).await;
        }
        Watch::Slices(which) => {
            let by_service = |config: watcher::Config, name: &str| {
                config.labels(&format!("{SERVICE_NAME_LABEL}={name}"))
            };
            some::<EndpointSlice>(client, config, by_service, which, store, &watch).await;
        }
    }
}

/// Watches objects of all namespaces.
async fn every<K>(client: Client, config: watcher::Config, store: &Store, watch: &Watch)
where
    K: Observed + Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    follow(watching(Api::<K>::all(client), config), store, watch).await;
}

/// API names of a kind of a front-end or of a network plugin.
pub(super) fn resource(kind: Kind) -> ApiResource {
    let front_end = front_end::foreign_kind(kind);
    let front_end = front_end.map(|known| (known.api_version, known.name, known.plural));
    let plugin = plugin::plugin_kind(kind);
    let plugin = plugin.map(|known| (known.api_version, known.name, known.plural));
    let known = front_end.or(plugin);
    let (api_version, name, plural) = known.expect("only kinds of others are watched so");
    let (group, version) = api_version.split_once('/').expect("these are of groups");
    let kind = GroupVersionKind::gvk(group, version, name);
    ApiResource::from_gvk_with_plural(&kind, plural)
}

/// Watches objects of a foreign kind, in all namespaces.
async fn dynamic(
    client: Client,
    config: watcher::Config,
    kind: Kind,
    observe: impl Fn(DynamicObject) -> (ObjectRef, Entry),
    store: &Store,
    watch: &Watch,
) {
    let api: Api<DynamicObject> = Api::all_with(client, &resource(kind));
    follow_by(watching(api, config), observe, |_| true, store, watch).await;
}

/// Watches objects of one Service, or all of them.
async fn some<K>(
    client: Client,
    config: watcher::Config,
    narrow: impl FnOnce(watcher::Config, &str) -> watcher::Config,
    which: &Which,
    store: &Store,
    watch: &Watch,
) where
    K: Observed
        + Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
{
    match which {
        Which::All => every::<K>(client, config, store, watch).await,
        Which::One(namespace, name) => {
            let api = Api::<K>::namespaced(client, namespace);
            follow(watching(api, narrow(config, name)), store, watch).await;
        }
    }
}

async fn follow<K: Observed>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    store: &Store,
    watch: &Watch,
) {
    follow_by(events, K::observe, |_| true, store, watch).await;
}

/// Whether a Service has external addresses, or may have unreadable ones.
fn is_outside(entry: &Entry) -> bool {
    match &entry.value {
        Value::Service(service) => !service.balancer_addresses.is_empty(),
        _ => !entry.findings.is_empty(),
    }
}

/// Processes watch events; objects that do not match the filter count as deleted.
async fn follow_by<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    observe: impl Fn(K) -> (ObjectRef, Entry),
    concerns: impl Fn(&Entry) -> bool,
    store: &Store,
    watch: &Watch,
) {
    // Between 0.8 and 30 s with jitter, so that many agents do not reconnect at the same moment.
    let mut events = pin!(events.default_backoff());
    let mut failing = false;
    while let Some(event) = events.next().await {
        if failing && matches!(event, Ok(ref event) if !matches!(event, Event::Init)) {
            tracing::info!(?watch, "watch resumed");
            failing = false;
        }
        let news = match event {
            Ok(Event::Init) => News::Begin,
            Ok(Event::InitApply(object)) => {
                let (object, entry) = observe(object);
                if !concerns(&entry) {
                    continue;
                }
                News::Listed(object, entry)
            }
            Ok(Event::InitDone) => News::End,
            Ok(Event::Apply(object)) => {
                let (object, entry) = observe(object);
                match concerns(&entry) {
                    true => News::Put(object, entry),
                    false => News::Gone(object, entry.version),
                }
            }
            Ok(Event::Delete(object)) => {
                let (object, entry) = observe(object);
                News::Gone(object, entry.version)
            }
            Err(error) => {
                let first = !std::mem::replace(&mut failing, true);
                trouble(watch, &error, first)
            }
        };
        store.take(watch, news);
    }
}

/// Converts an error of a watch. Logged once for as long as it lasts.
fn trouble(watch: &Watch, error: &watcher::Error, first: bool) -> News {
    let code = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    };
    if code.is_some_and(|code| watch.may_be_absent(code)) {
        // Most clusters have no network plugin of a given kind.
        if first && !matches!(watch, Watch::Plugin(_)) {
            let remedy = match watch {
                Watch::Foreign(_) => "its front-end serves nobody",
                _ => "name the cluster's Service ranges with --service-cidr",
            };
            tracing::warn!(?watch, remedy, "the API server does not have this");
        }
        return News::Absent;
    }
    let why = with_causes(error);
    let told = "watch failed, resuming after a pause";
    if first {
        tracing::warn!(?watch, error = why, "{told}");
    } else {
        tracing::debug!(?watch, error = why, "{told}");
    }
    News::Trouble(why)
}
