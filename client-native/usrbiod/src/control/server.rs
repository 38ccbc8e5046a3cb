//! Answers the control socket.

use super::error::Refusal;
use super::message::{
    Attach, FDS_PER_REPLY, FdRole, Give, MAX_FDS, MAX_MESSAGE, Prune, Reply, Request, SetSpace, parse,
};
use super::socket::{Connection, Listener, Message, Seqpacket};
use crate::daemon::Daemon;
use crate::fs::Space;
use crate::session::SessionFds;
use crate::types::Errno;
use serde_json::json;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Longest time that a peer may leave its replies unread.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest time within which the threads that serve must have come by.
const PROBE: Duration = Duration::from_secs(4);

/// Bytes of items in one message of a reply that has several; the rest of [`MAX_MESSAGE`] is for the envelope.
const ITEM_BYTES: usize = MAX_MESSAGE - 4096;

/// Answers everybody who connects, for ever. Only one thread needs to run this.
pub async fn serve(listener: Listener, daemon: Arc<Daemon>) -> std::convert::Infallible {
    loop {
        match listener.accept().await {
            Ok(socket) => drop(tokio::spawn(serve_connection(socket, daemon.clone()))),
            Err(errno) => {
                // Out of fds or memory: the connection stays in the backlog.
                tracing::warn!(%errno, "cannot accept a control connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers one peer until it hangs up.
pub async fn serve_connection(socket: Seqpacket, daemon: Arc<Daemon>) {
    let socket = Arc::new(socket);
    let result = match Connection::new(socket.clone()) {
        Ok(connection) => Peer { daemon: &daemon, connection, given: HashMap::new() }.serve().await,
        Err(errno) => Err(errno),
    };
    daemon.keeper().remove_peer(&socket);
    if let Err(errno) = result {
        tracing::debug!(%errno, "control connection ended");
    }
}

struct Peer<'a> {
    daemon: &'a Arc<Daemon>,
    connection: Connection,
    /// Fds by session and key, until the session is attached or the peer hangs up.
    given: HashMap<String, HashMap<String, OwnedFd>>,
}

fn log(refusal: &Refusal) {
    match refusal {
        // A mount that went takes its session along before anybody asks for `detach`.
        Refusal::SessionUnknown { .. } => tracing::debug!(%refusal, "control request refused"),
        _ => tracing::warn!(code = refusal.code(), %refusal, "control request refused"),
    }
}

/// A part of a reply, with its fds.
type Part = (Reply, Vec<OwnedFd>);

impl Peer<'_> {
    async fn serve(mut self) -> Result<(), Errno> {
        let uid = self.connection.socket().peer_uid()?;
        if uid != 0 {
            let refusal = Refusal::NotAllowed { uid };
            // Hung up on at once, the peer might fail to send and never look for the reply.
            let _ = tokio::time::timeout(PATIENCE, self.connection.recv()).await;
            tracing::warn!(%refusal, "control connection refused");
            return self.send((Reply::refused(&refusal), Vec::new())).await;
        }
        while let Some(message) = self.connection.recv().await? {
            let (id, outcome) = self.handle(message).await;
            let parts = outcome.unwrap_or_else(|refusal| {
                log(&refusal);
                vec![(Reply::refused(&refusal), Vec::new())]
            });
            let last = parts.len().saturating_sub(1);
            for (index, (mut reply, fds)) in parts.into_iter().enumerate() {
                reply.id = id;
                reply.more = index < last;
                self.send((reply, fds)).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, (reply, fds): Part) -> Result<(), Errno> {
        let bytes = serde_json::to_vec(&reply).unwrap_or_default();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let sent = tokio::time::timeout(PATIENCE, self.connection.send(&bytes, &fds)).await;
        sent.unwrap_or(Err(Errno::TIMEDOUT))
    }

    async fn handle(&mut self, message: Message) -> (Option<u64>, Result<Vec<Part>, Refusal>) {
        if message.cut {
            return (None, Err(Refusal::TooLarge));
        }
        let (id, request) = parse(&message.bytes);
        let outcome = match request {
            Ok(_) if self.daemon.keeper().is_peer(self.connection.socket()) => Err(Refusal::IsKeeper),
            Ok(request) => self.carry_out(request, message.fds).await,
            Err(refusal) => Err(refusal),
        };
        (id, outcome)
    }

    async fn carry_out(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Vec<Part>, Refusal> {
        match &request {
            Request::Attach(attach) => expect_fds(&fds, attach.fds.len())?,
            Request::Give(give) => expect_fds(&fds, give.keys.len())?,
            _ => expect_fds(&fds, 0)?,
        }
        let daemon = self.daemon;
        let body = match request {
            Request::Hello => Reply::done(&daemon.hello()),
            Request::Attach(attach) => {
                self.attach(attach, fds).await?;
                Reply::done(&json!({}))
            }
            Request::Detach(named) => {
                self.aside(move |daemon| daemon.detach(&named.session)).await?;
                Reply::done(&json!({}))
            }
            Request::List => return Ok(in_parts("sessions", daemon.list(), usize::MAX)),
            Request::Stats(named) => Reply::done(&daemon.stats(&named.session)?),
            Request::Space(SetSpace { session, total, used }) => {
                daemon.set_space(&session, Space { total, used })?;
                Reply::done(&json!({}))
            }
            Request::Prune(Prune { sessions }) => {
                let removed = self.aside(move |daemon| daemon.prune(&sessions)).await?;
                Reply::done(&json!({ "removed": removed }))
            }
            Request::Drain => {
                self.aside(Daemon::drain).await?;
                Reply::done(&json!({ "sessions": daemon.list().len() }))
            }
            Request::Keep => {
                daemon.keeper().set_peer(self.connection.socket().clone());
                tracing::info!("a peer keeps fds from now on");
                Reply::done(&json!({}))
            }
            Request::Give(give) => {
                self.give(give, fds);
                Reply::done(&json!({}))
            }
            Request::Fds => return self.fds(),
            Request::Health => {
                self.health().await?;
                Reply::done(&json!({}))
            }
        };
        Ok(vec![(body, Vec::new())])
    }

    /// Does what may wait for storage, while the runtime goes on.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Daemon) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let daemon = self.daemon.clone();
        tokio::task::spawn_blocking(move || work(&daemon)).await.unwrap_or(Err(Refusal::Panicked))
    }

    /// On a thread of its own: those for calls that wait for storage may all do so.
    async fn health(&self) -> Result<(), Refusal> {
        let (sender, answer) = tokio::sync::oneshot::channel();
        let daemon = self.daemon.clone();
        let probe = move || drop(sender.send(daemon.health(PROBE)));
        let started = std::thread::Builder::new().name("health".into()).spawn(probe);
        started.map_err(|_| Refusal::Stuck { what: "new threads" })?;
        // A probe that waits for a lock which nobody lets go of does not answer.
        let answer = tokio::time::timeout(2 * PROBE, answer).await;
        answer.unwrap_or(Ok(Err(Refusal::Stuck { what: "sessions" }))).unwrap_or(Err(Refusal::Panicked))
    }

    async fn attach(&mut self, attach: Attach, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let mut by_role = HashMap::new();
        for (role, fd) in attach.fds.iter().zip(fds) {
            if by_role.insert(*role, fd).is_some() {
                return Err(Refusal::InvalidField { reason: format!("`fds` names {} twice", json!(role)) });
            }
        }
        let needed = Refusal::MissingFds { needed: 2, got: by_role.len().min(1) };
        let (Some(fuse), Some(backing)) = (by_role.remove(&FdRole::Fuse), by_role.remove(&FdRole::Backing))
        else {
            return Err(needed);
        };
        let fds = SessionFds { fuse, backing, shm: by_role.remove(&FdRole::Shm) };
        let kept = self.given.remove(&attach.config.name).unwrap_or_default();
        self.aside(move |daemon| daemon.attach(attach.config, fds, kept, attach.resume)).await
    }

    fn give(&mut self, give: Give, fds: Vec<OwnedFd>) {
        self.given.entry(give.session).or_default().extend(give.keys.into_iter().zip(fds));
    }

    /// Every fd of every session. A part is of one session.
    fn fds(&self) -> Result<Vec<Part>, Refusal> {
        let mut parts = Vec::new();
        for (session, fds) in self.daemon.fds()? {
            let (keys, fds): (Vec<_>, Vec<_>) = fds.into_iter().unzip();
            let mut fds = fds.into_iter();
            for (mut reply, _) in in_parts("keys", keys, FDS_PER_REPLY) {
                reply.body.insert("session".to_owned(), session.clone().into());
                let count = reply.body["keys"].as_array().map_or(0, Vec::len);
                parts.push((reply, fds.by_ref().take(count).collect()));
            }
        }
        parts.push((Reply::done(&json!({ "keys": [] })), Vec::new()));
        Ok(parts)
    }
}

fn expect_fds(fds: &[OwnedFd], taken: usize) -> Result<(), Refusal> {
    let got = fds.len();
    match got.cmp(&taken) {
        _ if taken > MAX_FDS => Err(Refusal::TooManyFds { taken: MAX_FDS, got: taken }),
        std::cmp::Ordering::Less => Err(Refusal::MissingFds { needed: taken, got }),
        std::cmp::Ordering::Greater => Err(Refusal::TooManyFds { taken, got }),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

/// Replies that together hold `items` under `key`, none too large and none with more than `most`.
fn in_parts<T: serde::Serialize>(key: &str, items: Vec<T>, most: usize) -> Vec<Part> {
    let mut parts: Vec<Vec<serde_json::Value>> = vec![Vec::new()];
    let mut bytes = 0;
    for item in items {
        let item = serde_json::to_value(item).unwrap_or_default();
        let len = item.to_string().len() + 1;
        if let Some(part) = parts.last_mut()
            && part.len() < most
            && bytes + len <= ITEM_BYTES
        {
            part.push(item);
            bytes += len;
        } else {
            parts.push(vec![item]);
            bytes = len;
        }
    }
    parts.into_iter().map(|items| (Reply::done(&json!({ key: items })), Vec::new())).collect()
}
