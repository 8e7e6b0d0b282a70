//! HTTP for operators and Prometheus: `/metrics`, `/live`, `/ready`, `/status` and `/explain` read;
//! `/reload` and `/drain/LISTENER` change something, for those who may.

mod access;
mod explain;
mod orders;
mod status;

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE},
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    select,
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::{
    access::Access,
    orders::{Answer, Order, QUEUE},
};

use crate::{
    metrics::{self, Metrics},
    net::{self, Accepting},
    topology::{Address, Published, Role},
};

/// Requests at once; more wait to be accepted.
const CONNECTIONS: usize = 64;

/// For one request, from accept to the last byte of the answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// For a request's line and headers.
const HEAD_DEADLINE: Duration = Duration::from_secs(2);

/// Of a request's line and headers, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// What the admin shows, and whom it obeys.
#[derive(Debug)]
pub struct State {
    /// When the process started.
    pub started: Instant,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// What runs now.
    pub shown: watch::Receiver<Arc<Shown>>,
    /// Cancelled when no new clients are taken any more.
    pub draining: CancellationToken,
    /// Where orders are carried out.
    pub orders: mpsc::Sender<Order>,
}

/// What runs under one config.
#[derive(Debug, Default)]
pub struct Shown {
    /// In the order of the config.
    pub pools: Vec<Published>,
    /// In the order of the config.
    pub listeners: Vec<ListenerStatus>,
    /// Who may change something.
    pub access: Access,
}

/// A listener and what it counts.
#[derive(Debug)]
pub struct ListenerStatus {
    /// Its name.
    pub name: Arc<str>,
    /// The place of its pool in [`Shown::pools`].
    pub pool: usize,
    /// The role its clients get.
    pub role: Role,
    /// How long its clients wait for a backend.
    pub hold: Duration,
    /// The addresses it has bound.
    pub addresses: Vec<Address>,
    /// It takes no clients any more until it is reloaded.
    pub is_drained: bool,
    /// Its handles.
    pub metrics: metrics::ListenerMetrics,
}

/// Answers requests until the stop, and those that have begun before.
pub async fn run(listener: Accepting, state: Arc<State>, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut failing = false;
    // The semaphore is never closed.
    while let Ok(permit) = permits.clone().acquire_owned().await {
        while connections.try_join_next().is_some() {}
        let accepted = select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer.to_string()),
            Err(error) if net::is_client_gone(&error) => continue,
            Err(error) => {
                if !failing {
                    let error = error.to_string();
                    let advice =
                        "raise the limit of open files; /metrics and /ready do not answer now";
                    warn!(error, advice, "cannot accept admin requests");
                }
                failing = true;
                sleep(net::RESOURCES_PAUSE).await;
                continue;
            }
        };
        if failing {
            failing = false;
            info!("accepts admin requests again");
        }
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                // No request has a body that says anything.
                let (head, _) = request.into_parts();
                let (state, peer) = (&state, &peer);
                async move { Ok::<_, Infallible>(respond(state, head, peer).await) }
            });
            let connection = http1::Builder::new()
                .keep_alive(false)
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_DEADLINE)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service);
            // A client that is slow, or breaks off, gets nothing; there is nobody to tell.
            let _ = timeout(DEADLINE, connection).await;
            drop(permit);
        });
    }
    drop(listener);
    // Each ends in time.
    while connections.join_next().await.is_some() {}
}

const TEXT: &str = "text/plain; charset=utf-8";

/// The methods of a path; `None` if there is no such path.
fn methods(path: &str) -> Option<&'static str> {
    match path {
        "/explain" | "/live" | "/metrics" | "/ready" | "/status" => Some("GET, HEAD"),
        _ if path.starts_with("/explain/") => Some("GET, HEAD"),
        "/reload" => Some("POST"),
        _ if path.starts_with("/drain/") => Some("POST"),
        _ => None,
    }
}

async fn respond(state: &State, head: Parts, peer: &str) -> Response<Full<Bytes>> {
    let path = head.uri.path();
    let Some(methods) = methods(path) else {
        let text = "there are /metrics, /live, /ready, /status and /explain, and for POST \
                    /reload and /drain/LISTENER\n";
        return answer(StatusCode::NOT_FOUND, TEXT, text);
    };
    if !methods.split(", ").any(|method| head.method == *method) {
        let text = format!("allowed: {methods}\n");
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
        return response;
    }
    if head.method == Method::POST {
        return change(state, &head, peer).await;
    }
    let (status, kind, body) = read(state, path);
    answer(status, kind, body)
}

/// A request that changes something.
async fn change(state: &State, head: &Parts, peer: &str) -> Response<Full<Bytes>> {
    let shown = state.shown.borrow().clone();
    if let Err(denial) = shown.access.check(head, peer) {
        let mut response = answer(denial.status(), TEXT, denial.words());
        if denial.status() == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer realm=\"rolegate\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, bearer);
        }
        return response;
    }
    let (orders, stopping) = (&state.orders, &state.draining);
    let (status, text) = match head.uri.path().strip_prefix("/drain/") {
        None => {
            info!(peer, order = "reload", "ordered over HTTP");
            orders::give(orders, stopping, Order::Reload).await
        }
        Some(name) => match shown.listeners.iter().find(|listener| *listener.name == *name) {
            Some(listener) => {
                info!(peer, order = "drain", listener = name, "ordered over HTTP");
                let listener = listener.name.clone();
                orders::give(orders, stopping, |answer| Order::Drain { listener, answer }).await
            }
            None => {
                let listeners: Vec<_> = shown.listeners.iter().map(|l| &*l.name).collect();
                let text = format!("no such listener; there are {}\n", listeners.join(", "));
                (StatusCode::NOT_FOUND, text)
            }
        },
    };
    answer(status, TEXT, text)
}

/// A request that only reads, of a path that there is.
fn read(state: &State, path: &str) -> (StatusCode, &'static str, Vec<u8>) {
    let failed = |error: String| {
        (StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n").into_bytes())
    };
    match path {
        "/live" => (StatusCode::OK, TEXT, "live\n".into()),
        "/metrics" => match state.metrics.render() {
            Ok(text) => (StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(error) => failed(error.to_string()),
        },
        "/ready" => match state.unready() {
            None => (StatusCode::OK, TEXT, "ready\n".into()),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, reason.into_bytes()),
        },
        "/status" => {
            let shown = state.shown.borrow().clone();
            match serde_json::to_vec_pretty(&status::report(state, &shown)) {
                Ok(json) => (StatusCode::OK, "application/json", json),
                Err(error) => failed(error.to_string()),
            }
        }
        explain => match explain::text(state, explain.strip_prefix("/explain/")) {
            Some(text) => (StatusCode::OK, TEXT, text.into_bytes()),
            None => {
                let shown = state.shown.borrow().clone();
                let pools: Vec<_> = shown.pools.iter().map(|pool| &*pool.pool).collect();
                let text = format!("no such pool; there are {}\n", pools.join(", "));
                (StatusCode::NOT_FOUND, TEXT, text.into_bytes())
            }
        },
    }
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

impl State {
    /// Why the process should get no new clients, one line a listener; `None` when it should.
    fn unready(&self) -> Option<String> {
        if self.draining.is_cancelled() {
            return Some("draining: rolegate is stopping\n".to_owned());
        }
        let shown = self.shown.borrow().clone();
        let reasons = shown.listeners.iter().filter_map(|listener| {
            if listener.is_drained {
                return Some(format!("listener {}: drained\n", listener.name));
            }
            let pool = &shown.pools[listener.pool];
            let view = pool.view.borrow();
            let reason = view.verdict.reason()?;
            // Who waits for a master is served by one soon, or learns that there is none.
            let holds = |since: Instant| since.elapsed() < listener.hold;
            if view.unserved_since.is_some_and(holds) {
                return None;
            }
            Some(format!("listener {}, pool {}: {reason}\n", listener.name, pool.pool))
        });
        Some(reasons.collect()).filter(|reasons: &String| !reasons.is_empty())
    }
}
