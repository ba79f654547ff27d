//! `/metrics`, `/healthz` and `/readyz`; all read-only.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Metrics and health of a component.
pub trait Health: Send + Sync + 'static {
    /// OpenMetrics text.
    fn metrics_text(&self) -> String;
    /// Why it is not ready; `None` if it is.
    fn unready(&self) -> Option<String>;
    /// When its main loop last completed a turn.
    fn last_round(&self) -> Instant;
    /// Faults of single objects that do not affect readiness.
    fn waiting(&self) -> Vec<String> {
        Vec::new()
    }
}

macro_rules! health {
    ($health:ty $(, $waiting:ident)?) => {
        impl Health for $health {
            fn metrics_text(&self) -> String {
                <$health>::metrics_text(self)
            }
            fn unready(&self) -> Option<String> {
                <$health>::unready(self)
            }
            fn last_round(&self) -> Instant {
                <$health>::last_round(self)
            }
            $(fn $waiting(&self) -> Vec<String> {
                <$health>::$waiting(self)
            })?
        }
    };
}

health!(egret_agent::Health);
health!(egret_controller::Health, waiting);

/// A main loop without a completed turn for this long hangs.
const HANG: Duration = Duration::from_secs(30);

/// Pause before another attempt to bind a port that is in use.
const RETRY: Duration = Duration::from_millis(250);

/// Serves on a separate thread until the process ends. A port that is in use is logged, retried until it is free (a
/// terminating predecessor may still have it), and does not stop the component: traffic matters more than metrics.
pub fn serve(port: u16, health: Arc<dyn Health>) {
    if port == 0 {
        return;
    }
    let thread = std::thread::Builder::new().name("http".into());
    let started = thread.spawn(move || {
        let listener = listen(port);
        if let Err(error) = listener.and_then(|listener| serve_on(listener, health)) {
            tracing::warn!(%error, "metrics and health are no longer served");
        }
    });
    if let Err(error) = started {
        tracing::warn!(port, %error, "metrics and health are not served");
    }
}

/// Binds the port; retries until it succeeds.
fn listen(port: u16) -> io::Result<TcpListener> {
    let mut is_told = false;
    loop {
        let listener = TcpListener::bind(("::", port));
        match listener.or_else(|_| TcpListener::bind(("0.0.0.0", port))) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if !is_told {
                    tracing::warn!(port, %error, "metrics and health are not served until the port is free");
                    is_told = true;
                }
                std::thread::sleep(RETRY);
            }
            result => return result,
        }
    }
}

fn serve_on(listener: TcpListener, health: Arc<dyn Health>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(health);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await
    })
}

async fn metrics(State(health): State<Arc<dyn Health>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], health.metrics_text()).into_response()
}

async fn healthz(State(health): State<Arc<dyn Health>>) -> Response {
    let silence = health.last_round().elapsed();
    if silence > HANG {
        let text = format!(
            "the main loop has not gone round for {} s\n",
            silence.as_secs()
        );
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    "ok\n".into_response()
}

async fn readyz(State(health): State<Arc<dyn Health>>) -> Response {
    match health.unready() {
        None => {
            let waiting = health.waiting();
            let lines = waiting.iter().map(|line| format!("not written: {line}\n"));
            format!("ready\n{}", lines.collect::<String>()).into_response()
        }
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}
