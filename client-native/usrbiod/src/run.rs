//! `usrbiod daemon`: one thread for the control socket and signals.

use crate::control::server;
use crate::control::socket::{BindError, Listener};
use crate::daemon::Daemon;
use crate::metrics::Metrics;
use crate::metrics_http::{self, Address};
use crate::types::Errno;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum RunError {
    #[error(transparent)]
    Socket(#[from] BindError),
    #[error("cannot use the state directory {path}: {error}")]
    StateDir { path: PathBuf, error: std::io::Error },
    #[error("cannot serve metrics at {address}: {error}")]
    Metrics { address: Address, error: std::io::Error },
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    #[error("cannot start the workers: {0}")]
    Workers(Errno),
}

/// Runs a daemon until SIGTERM or SIGINT. Its sessions stay as they are, for a successor.
pub fn daemon(socket: &Path, state_dir: &Path, metrics: Option<&Address>) -> Result<(), RunError> {
    raise_fd_limit();
    crate::ring::use_helper("/proc/self/exe".into());
    let state = state_directory(state_dir)
        .map_err(|error| RunError::StateDir { path: state_dir.to_owned(), error })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Threads for what waits for storage, so many that those of one disk leave some to others; they end when nothing was
        // asked for a while.
        .max_blocking_threads(256)
        .thread_keep_alive(Duration::from_secs(1))
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let daemon = Daemon::new(state).map_err(RunError::Workers)?;
        if let Some(address) = metrics {
            let sampled = daemon.clone();
            let all = Arc::new(Metrics::new(move || sampled.samples()));
            metrics_http::start(address, all)
                .map_err(|error| RunError::Metrics { address: address.clone(), error })?;
        }
        // Last: whoever can connect finds everything else ready.
        let listener = Listener::bind(socket)?;
        tracing::info!(socket = %socket.display(), "usrbiod {} is ready", env!("CARGO_PKG_VERSION"));
        tokio::select! {
            never = server::serve(listener, daemon.clone()) => match never {},
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
        let drained = tokio::task::spawn_blocking(move || daemon.stop()).await;
        if let Ok(Err(refusal)) = drained {
            tracing::warn!(%refusal, "ending all the same");
        }
        Ok(())
    })
}

fn state_directory(path: &Path) -> std::io::Result<std::os::fd::OwnedFd> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Every open file of every session is an fd here.
fn raise_fd_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(errno) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%errno, "cannot raise the limit of open files");
    }
}
