//! Speaks to a daemon: the command line's side of the control socket.

use super::message::{Reply, Request};
use super::socket::{Message, Seqpacket};
use crate::types::Errno;
use serde::Serialize;
use serde_json::{Map, Value};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for a reply. A drain waits for I/O, everything else is immediate.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a request did not work out.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum ClientError {
    #[error("nobody listens at {path} ({errno}): start usrbiod, or give its --socket")]
    Connect { path: PathBuf, errno: Errno },
    #[error("the daemon hung up: look into its log")]
    HungUp,
    #[error("the connection failed: {0}")]
    Connection(Errno),
    #[error(
        "the daemon answered what this version does not understand ({0}): use the same version on both sides"
    )]
    Protocol(String),
    #[error("{message}")]
    Refused { code: String, message: String },
}

impl From<Errno> for ClientError {
    fn from(errno: Errno) -> ClientError {
        ClientError::Connection(errno)
    }
}

/// One message of a reply, with its fds.
pub type Part = (Map<String, Value>, Vec<OwnedFd>);

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client(Seqpacket);

impl Client {
    /// Connects to the daemon at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let failed = |errno| ClientError::Connect { path: path.to_owned(), errno };
        Ok(Client(Seqpacket::connect(path).map_err(failed)?))
    }

    /// Asks, and waits for all parts of the answer.
    pub fn call(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Vec<Part>, ClientError> {
        self.0.send_within(&encode(request), fds, PATIENCE)?;
        let mut parts = Vec::new();
        loop {
            let message = self.0.recv_within(PATIENCE)?.ok_or(ClientError::HungUp)?;
            let (more, part) = decode(message)?;
            parts.push(part);
            if !more {
                return Ok(parts);
            }
        }
    }

    /// The connection, for one that waits in a runtime.
    pub fn into_socket(self) -> Seqpacket {
        self.0
    }
}

/// A request as it goes onto the socket.
pub fn encode(request: &Request) -> Vec<u8> {
    fn with<T: Serialize>(op: &str, fields: &T) -> Value {
        let mut value = serde_json::to_value(fields).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            fields.insert("op".to_owned(), op.into());
        }
        value
    }
    let none = Map::new();
    let value = match request {
        Request::Hello => with("hello", &none),
        Request::Attach(attach) => with("attach", attach),
        Request::Detach(named) => with("detach", named),
        Request::List => with("list", &none),
        Request::Stats(named) => with("stats", named),
        Request::Space(space) => with("space", space),
        Request::Prune(prune) => with("prune", prune),
        Request::Drain => with("drain", &none),
        Request::Keep => with("keep", &none),
        Request::Give(give) => with("give", give),
        Request::Fds => with("fds", &none),
        Request::Health => with("health", &none),
    };
    value.to_string().into_bytes()
}

/// One message of a reply, and whether another one follows.
pub fn decode(message: Message) -> Result<(bool, Part), ClientError> {
    let reply: Reply =
        serde_json::from_slice(&message.bytes).map_err(|e| ClientError::Protocol(e.to_string()))?;
    match reply.error {
        Some(error) => Err(ClientError::Refused { code: error.code, message: error.message }),
        None if reply.ok => Ok((reply.more, (reply.body, message.fds))),
        None => Err(ClientError::Protocol("neither ok nor an error".to_owned())),
    }
}
