//! `/metrics`, `/healthz` and `/readyz`. Nothing here changes anything.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a component shows of itself.
pub trait Board: Send + Sync + 'static {
    /// OpenMetrics text.
    fn metrics_text(&self) -> String;
    /// Why it is not ready.
    fn unready(&self) -> Option<String>;
    /// When its main loop last went round.
    fn last_round(&self) -> Instant;
}

macro_rules! board {
    ($board:ty) => {
        impl Board for $board {
            fn metrics_text(&self) -> String {
                <$board>::metrics_text(self)
            }
            fn unready(&self) -> Option<String> {
                <$board>::unready(self)
            }
            fn last_round(&self) -> Instant {
                <$board>::last_round(self)
            }
        }
    };
}

board!(egret_agent::Board);
board!(egret_controller::Board);

/// A main loop that has not gone round for this long hangs.
const HANG: Duration = Duration::from_secs(30);

/// Serves on a thread of its own, as long as the process lives. A port that cannot be had is reported and does not stop
/// the component: traffic matters more than its metrics.
pub fn serve(port: u16, board: Arc<dyn Board>) {
    if port == 0 {
        return;
    }
    if let Err(error) = start(port, board) {
        tracing::warn!(port, %error, "metrics and health are not served");
    }
}

fn start(port: u16, board: Arc<dyn Board>) -> io::Result<()> {
    let listener =
        TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    listener.set_nonblocking(true)?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(board);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("http".into())
        .spawn(move || {
            let served = runtime.block_on(async move {
                axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await
            });
            if let Err(error) = served {
                tracing::warn!(%error, "metrics and health are no longer served");
            }
        })?;
    Ok(())
}

async fn metrics(State(board): State<Arc<dyn Board>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], board.metrics_text()).into_response()
}

async fn healthz(State(board): State<Arc<dyn Board>>) -> Response {
    let silence = board.last_round().elapsed();
    if silence > HANG {
        let text = format!(
            "the main loop has not gone round for {} s\n",
            silence.as_secs()
        );
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    "ok\n".into_response()
}

async fn readyz(State(board): State<Arc<dyn Board>>) -> Response {
    match board.unready() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}
