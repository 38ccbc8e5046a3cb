//! Serves `/metrics` over HTTP/1.1, to whoever asks: on a thread of its own, so that it slows nothing else.

use crate::metrics::{CONTENT_TYPE, Metrics};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE as HEADER;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;

/// Scrapers that are served at a time, of all addresses and of one. Whoever comes when there are as many pushes out the oldest,
/// so that connections that do nothing lock nobody out.
const CONNECTIONS: usize = 64;
const OF_ONE_PEER: usize = 8;

/// Longest life of a connection: it is for one request, and for what its client takes to read the answer.
const LIFETIME: Duration = Duration::from_secs(10);

/// So long the same text is answered again.
const FRESH: Duration = Duration::from_millis(200);

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

/// Starts to serve `metrics` at `address`.
pub fn start(address: &Address, metrics: Arc<Metrics>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        Listener::bind(address)?
    };
    let serve =
        move || runtime.block_on(serve(&listener, &Arc::new(Page { metrics, fresh: Mutex::default() })));
    std::thread::Builder::new().name("metrics".into()).spawn(serve)?;
    Ok(())
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn bind(address: &Address) -> std::io::Result<Listener> {
        match address {
            Address::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Listener::Tcp)
            }
            Address::Unix(path) => bind_unix(path).map(Listener::Unix),
        }
    }
}

/// A connection that is being served, and whose it is.
struct Served {
    peer: Option<IpAddr>,
    task: AbortHandle,
}

async fn serve(listener: &Listener, page: &Arc<Page>) {
    let mut served: VecDeque<Served> = VecDeque::new();
    loop {
        let accepted = match listener {
            Listener::Tcp(listener) => {
                listener.accept().await.map(|(stream, from)| (Some(from.ip()), answer_on(stream, page)))
            }
            Listener::Unix(listener) => {
                listener.accept().await.map(|(stream, _)| (None, answer_on(stream, page)))
            }
        };
        let Ok((peer, task)) = accepted else {
            // Out of fds, for instance.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        served.push_back(Served { peer, task });
        served.retain(|connection| !connection.task.is_finished());
        if let Some(out) = pushed_out(&served).and_then(|at| served.remove(at)) {
            out.task.abort();
        }
    }
}

/// Which connection has to go, from the oldest to the newest: the oldest of a peer that has too many, or the oldest of all.
fn pushed_out(served: &VecDeque<Served>) -> Option<usize> {
    let peer = served.back()?.peer;
    let of_peer = || served.iter().enumerate().filter(|(_, other)| other.peer == peer);
    match of_peer().count() {
        count if count > OF_ONE_PEER => of_peer().next().map(|(at, _)| at),
        _ => (served.len() > CONNECTIONS).then_some(0),
    }
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

/// Answers one request on `stream`.
fn answer_on<S>(stream: S, page: &Arc<Page>) -> AbortHandle
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let page = page.clone();
    let task = tokio::spawn(async move {
        let answer = service_fn(|request| std::future::ready(answer(&request, &page)));
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(LIFETIME).keep_alive(false);
        match tokio::time::timeout(LIFETIME, server.serve_connection(TokioIo::new(stream), answer)).await {
            Ok(Ok(())) => (),
            Ok(Err(error)) => tracing::debug!(%error, "a scrape failed"),
            Err(_) => tracing::debug!("a scrape took too long"),
        }
    });
    task.abort_handle()
}

/// What is answered.
struct Page {
    metrics: Arc<Metrics>,
    /// The last text, and when it was made.
    fresh: Mutex<Option<(Instant, Bytes)>>,
}

impl Page {
    fn text(&self) -> Bytes {
        let mut fresh = self.fresh.lock().unwrap_or_else(|e| e.into_inner());
        match &*fresh {
            Some((at, text)) if at.elapsed() < FRESH => text.clone(),
            _ => {
                let text = Bytes::from(self.metrics.text());
                *fresh = Some((Instant::now(), text.clone()));
                text
            }
        }
    }
}

fn answer<B>(request: &Request<B>, page: &Page) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, CONTENT_TYPE, page.text()),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "use GET\n".into()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "the metrics are at /metrics\n".into()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(HEADER, hyper::header::HeaderValue::from_static(kind));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

    /// A page of some megabytes: more than a socket holds.
    fn large() -> SocketAddr {
        let sample = crate::metrics::Sample::of_tests("x".repeat(2000));
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        start(&Address::Tcp(address), Arc::new(Metrics::new(move || vec![sample.clone(); 20]))).unwrap();
        address
    }

    fn scrape(address: SocketAddr) -> usize {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(REQUEST).unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        assert!(text.starts_with(b"HTTP/1.1 200") && text.ends_with(b"# EOF\n"));
        text.len()
    }

    #[test]
    fn connections_that_send_or_read_nothing_lock_nobody_out() {
        let address = large();
        let mut idle = Vec::new();
        for part in [&b""[..], b"GET /metrics HTTP/1.1\r\nHost: x\r\n", REQUEST, &REQUEST.repeat(200)] {
            for _ in 0..100 {
                let mut stream = TcpStream::connect(address).unwrap();
                // It may be pushed out already.
                let _ = stream.write_all(part);
                idle.push(stream);
            }
            let begun = Instant::now();
            assert!(scrape(address) > 1 << 20);
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        }
    }

    #[test]
    fn a_peer_with_many_connections_pushes_out_its_own() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let connection = |n: u8| Served {
            peer: Some(IpAddr::from([10, 0, 0, n])),
            task: runtime.spawn(std::future::pending::<()>()).abort_handle(),
        };
        let mut served: VecDeque<Served> = (0..CONNECTIONS as u8 - 20).map(connection).collect();
        served.extend((0..OF_ONE_PEER).map(|_| connection(200)));
        assert_eq!(pushed_out(&served), None);
        served.push_back(connection(200));
        assert_eq!(pushed_out(&served), Some(CONNECTIONS - 20));
        served.extend((100..120).map(connection));
        assert_eq!(pushed_out(&served), Some(0), "too many of all");
    }
}
