//! Serves `/metrics` over HTTP/1.1.

use crate::metrics::{CONTENT_TYPE, Metrics};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE as HEADER;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// Scrapers that are served at a time; others wait in the backlog.
const CONNECTIONS: usize = 16;

/// Longest time that a request may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where `/metrics` is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// IP address and port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if text.starts_with('/') {
            return Ok(Address::Unix(text.into()));
        }
        let example = "give IP:PORT as in 127.0.0.1:9464, or the absolute path of a unix socket";
        text.parse().map(Address::Tcp).map_err(|_| example.to_owned())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Starts to serve `metrics` at `address`, in the runtime of the caller.
pub async fn start(address: &Address, metrics: Arc<Metrics>) -> std::io::Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    match address {
        Address::Tcp(address) => {
            let listener = TcpListener::bind(address).await?;
            tokio::spawn(async move {
                loop {
                    let accepted = listener.accept().await.map(|(stream, _)| stream);
                    serve(accepted, &slots, &metrics).await;
                }
            });
        }
        Address::Unix(path) => {
            let listener = bind_unix(path)?;
            tokio::spawn(async move {
                loop {
                    let accepted = listener.accept().await.map(|(stream, _)| stream);
                    serve(accepted, &slots, &metrics).await;
                }
            });
        }
    }
    Ok(())
}

/// Binds a unix socket; one that nobody listens at is replaced.
fn bind_unix(path: &PathBuf) -> std::io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
            use std::os::unix::net::UnixStream;
            let connected = UnixStream::connect(path);
            if !connected.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
                return Err(e);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

async fn serve<S>(accepted: std::io::Result<S>, slots: &Arc<Semaphore>, metrics: &Arc<Metrics>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let Ok(stream) = accepted else {
        // Out of fds, for instance.
        return tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let Ok(slot) = slots.clone().acquire_owned().await else { return };
    let metrics = metrics.clone();
    tokio::spawn(async move {
        let answer = service_fn(|request| std::future::ready(answer(&request, &metrics)));
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
            tracing::debug!(%error, "a scrape failed");
        }
        drop(slot);
    });
}

fn answer<B>(request: &Request<B>, metrics: &Metrics) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, CONTENT_TYPE, metrics.text()),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "use GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "the metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(HEADER, hyper::header::HeaderValue::from_static(kind));
    Ok(response)
}
