//! The connection to the API server.
//!
//! The stack is that of `kube::Client::try_from`, with TCP keep-alive: a watch whose connection died silently (a firewall
//! or a load balancer that forgot it, a machine that lost its power) would otherwise be silent until its request ends.

use super::api;
use crate::SourceError;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::Path;
use std::time::Duration;
use tower::ServiceBuilder;
use tower::retry::RetryLayer;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Silence after which TCP asks whether the other end is still there (`TCP_KEEPIDLE`, tcp(7)).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// Pause between two such questions (`TCP_KEEPINTVL`).
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(5);
/// Questions without an answer after which the connection ends (`TCP_KEEPCNT`): 30 s in all.
const KEEPALIVE_PROBES: u32 = 3;

/// Connects to the API server of a kubeconfig; `None`: the one of the pod, or of the user's configuration.
pub(super) async fn connect(kubeconfig: Option<&Path>) -> Result<Client, SourceError> {
    let doing = "finding the API server";
    let config = match kubeconfig {
        None => Config::infer().await.map_err(|error| api(doing, &error))?,
        Some(path) => {
            let read = Kubeconfig::read_from(path).map_err(|error| api(doing, &error))?;
            let found = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
            found.map_err(|error| api(doing, &error))?
        }
    };
    if let Some(proxy) = &config.proxy_url {
        return Err(SourceError::Api {
            doing: doing.to_owned(),
            why: format!(
                "the kubeconfig asks for the proxy {proxy}, and proxies are not supported"
            ),
        });
    }
    client(config).map_err(|error| api(doing, &error))
}

fn client(config: Config) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_PAUSE));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    // What was sent and is not acknowledged ends the connection as well (tcp(7), TCP_USER_TIMEOUT).
    tcp.set_tcp_user_timeout(Some(KEEPALIVE_IDLE + KEEPALIVE_PAUSE * KEEPALIVE_PROBES));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(CONNECT));
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(
            config
                .default_retry
                .then(|| RetryLayer::new(RetryPolicy::server_retry())),
        )
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}
