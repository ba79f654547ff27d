//! `/metrics`, `/healthz` and `/readyz`. Nothing here changes anything.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the endpoints answer from.
pub trait Health: Send + Sync + 'static {
    /// Calls `read` with the registry of metrics.
    fn with_registry(&self, read: &mut dyn FnMut(&Registry));
    /// Why the component is not ready; `None` if it is.
    fn unready(&self) -> Option<String>;
    /// When the main loop last went round.
    fn last_round(&self) -> Instant;
}

/// A main loop that has not gone round for this long hangs.
const HANG: Duration = Duration::from_secs(30);

type Shared = Arc<dyn Health>;

/// Serves on the port, on a thread of its own, as long as the process lives. The port may be taken by another agent of
/// the host (tests): then nothing is served, and the error says so.
pub fn serve(port: u16, health: Shared) -> io::Result<()> {
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    listener.set_nonblocking(true)?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(health);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("http".into()).spawn(move || {
        runtime.block_on(async move {
            let served = async { axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await };
            if let Err(error) = served.await {
                tracing::warn!(%error, "the HTTP endpoint ended");
            }
        });
    })?;
    Ok(())
}

async fn metrics(State(health): State<Shared>) -> Response {
    let mut text = String::new();
    let mut failed = false;
    health.with_registry(&mut |registry| failed = encode(&mut text, registry).is_err());
    if failed {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn healthz(State(health): State<Shared>) -> Response {
    let silence = health.last_round().elapsed();
    if silence > HANG {
        let text = format!("the main loop has not gone round for {} s\n", silence.as_secs());
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    "ok\n".into_response()
}

async fn readyz(State(health): State<Shared>) -> Response {
    match health.unready() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

/// A plain [`Health`] for components whose metrics live behind a lock.
pub struct Board<M> {
    /// Metrics.
    pub metrics: Mutex<M>,
    registry: fn(&M) -> &Registry,
    unready: Mutex<Option<String>>,
    last_round: Mutex<Instant>,
}

impl<M: Send + 'static> Board<M> {
    /// A board that is not ready yet.
    pub fn new(metrics: M, registry: fn(&M) -> &Registry) -> Self {
        Board {
            metrics: Mutex::new(metrics),
            registry,
            unready: Mutex::new(Some("starting".into())),
            last_round: Mutex::new(Instant::now()),
        }
    }

    /// The main loop went round; `unready` says why the component is not ready.
    pub fn round(&self, unready: Option<String>) {
        *self.unready.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = unready;
        *self.last_round.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Instant::now();
    }
}

impl<M: Send + 'static> Health for Board<M> {
    fn with_registry(&self, read: &mut dyn FnMut(&Registry)) {
        let metrics = self.metrics.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        read((self.registry)(&metrics));
    }

    fn unready(&self) -> Option<String> {
        self.unready.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn last_round(&self) -> Instant {
        *self.last_round.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
