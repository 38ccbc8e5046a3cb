//! The command line.

use crate::control::client::{Client, ClientError};
use crate::control::message::{Listed, Named, Request, Stats};
use crate::metrics_http::Address;
use crate::{logging, ring, run, standalone};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Serves directories as FUSE mounts of type fuse.hf3fs and as USRBIO rings.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  usrbiod serve /srv/data /mnt/data                 a directory of this machine, until Ctrl-C
  usrbiod daemon --socket /run/usrbiod/control.sock --state-dir /run/usrbiod/state
  usrbiod list --socket /run/usrbiod/control.sock"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log more. RUST_LOG overrides it.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// How log lines on stderr look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the sessions that a peer (csi-node) attaches at a control socket.
    Daemon {
        /// Path of the control socket.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// Directory of the state files, which a successor needs as well. It is made if need be.
        #[arg(long, value_name = "DIR")]
        state_dir: PathBuf,
        /// Serve /metrics at IP:PORT or at a unix socket (absolute path).
        #[arg(long, value_name = "ADDR")]
        metrics: Option<Address>,
    },
    /// Serve one directory at one mount point, without Kubernetes.
    #[command(after_help = "Examples:
  usrbiod serve /srv/data /mnt/data
  usrbiod serve /srv/data /mnt/data --read-only --metrics 127.0.0.1:9464
Exit codes: 0 stopped, 2 wrong arguments, 3 not root, 4 no /dev/fuse, 5-6 DIR, 7-10 MOUNTPOINT, 11 --shm, 12 mount(2),
13 another system call, 14 the daemon did not start, 15 the daemon died again and again.")]
    Serve(Serve),
    /// Show the sessions of a daemon.
    List(Ask),
    /// Show the numbers of the sessions of a daemon.
    Stats {
        #[command(flatten)]
        ask: Ask,
        /// Only this session.
        session: Option<String>,
    },
    /// Find out whether a daemon makes progress: storage that hangs is no reason to start it anew.
    Health(Ask),
    /// Let a daemon finish what runs and take nothing new, so that a successor can take over.
    Drain(Ask),
    /// What the daemon runs to allocate a client's memory on the client's account.
    #[command(hide = true)]
    Reserve {
        /// `cgroup.procs` of the cgroup to move to.
        procs: PathBuf,
        /// Bytes of the file on stdin.
        len: u64,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// The directory to serve.
    dir: PathBuf,
    /// Where to mount it.
    #[arg(value_name = "MOUNTPOINT")]
    mount_point: PathBuf,
    /// Id that clients are told (at most 31 characters).
    #[arg(long, value_name = "NAME", default_value = "local", value_parser = cluster)]
    cluster: String,
    /// Directory of the clients' shared memory.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    shm: PathBuf,
    /// Refuse every change.
    #[arg(long)]
    read_only: bool,
    /// Do not let the kernel read and write the files of DIR by itself.
    #[arg(long)]
    no_passthrough: bool,
    /// Take links to mv:PATH, wherever they are made, for orders to rename PATH, as 3FS does.
    #[arg(long)]
    orders: bool,
    /// Serve /metrics at IP:PORT or at a unix socket (absolute path).
    #[arg(long, value_name = "ADDR")]
    metrics: Option<Address>,
}

#[derive(Debug, Args)]
struct Ask {
    /// Path of the daemon's control socket.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn cluster(text: &str) -> Result<String, String> {
    let fits = (1..=31).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if fits { Ok(text.to_owned()) } else { Err("use 1 to 31 printable characters without spaces".to_owned()) }
}

impl Cli {
    /// Does what was asked. Errors are printed here, one sentence each.
    pub fn run(self) -> ExitCode {
        logging::start(self.verbose, self.log_format);
        let (verbose, log_format) = (self.verbose, self.log_format);
        let result = match self.command {
            Command::Daemon { socket, state_dir, metrics } => {
                run::daemon(&socket, &state_dir, metrics.as_ref()).map_err(|e| (1, e.to_string()))
            }
            Command::Serve(serve) => standalone::serve(serve.options(verbose, log_format))
                .map_err(|e| (e.exit_code(), e.to_string())),
            Command::List(ask) => ask.list().map_err(|e| (1, e.to_string())),
            Command::Stats { ask, session } => ask.stats(session).map_err(|e| (1, e.to_string())),
            Command::Health(ask) => ask.health().map_err(|e| (1, e.to_string())),
            Command::Drain(ask) => ask.drain().map_err(|e| (1, e.to_string())),
            Command::Reserve { procs, len } => return ExitCode::from(ring::reserve_as_helper(&procs, len)),
        };
        let Err((code, message)) = result else { return ExitCode::SUCCESS };
        let _ = writeln!(std::io::stderr(), "usrbiod: {message}");
        ExitCode::from(code)
    }
}

impl Serve {
    fn options(self, verbose: u8, log_format: LogFormat) -> standalone::Options {
        let mut daemon_args = vec!["-v".to_owned(); verbose.into()];
        if log_format == LogFormat::Json {
            daemon_args.extend(["--log-format".to_owned(), "json".to_owned()]);
        }
        if let Some(address) = self.metrics {
            daemon_args.extend(["--metrics".to_owned(), address.to_string()]);
        }
        standalone::Options {
            dir: self.dir,
            mount_point: self.mount_point,
            cluster: self.cluster,
            shm: self.shm,
            read_only: self.read_only,
            passthrough: !self.no_passthrough,
            orders: self.orders,
            daemon_args,
        }
    }
}

impl Ask {
    /// The objects of a reply: those below `key` of all its parts, or the parts themselves.
    fn ask<T: DeserializeOwned>(&self, request: &Request, key: Option<&str>) -> Result<Vec<T>, ClientError> {
        let parts = Client::connect(&self.socket)?.call(request, &[])?;
        let items = parts.into_iter().flat_map(|(mut body, _)| match key {
            None => vec![Value::Object(body)],
            Some(key) => match body.remove(key) {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            },
        });
        let parse = |item| serde_json::from_value(item).map_err(|e| ClientError::Protocol(e.to_string()));
        items.map(parse).collect()
    }

    fn sessions(&self) -> Result<Vec<Listed>, ClientError> {
        self.ask(&Request::List, Some("sessions"))
    }

    fn list(&self) -> Result<(), ClientError> {
        let sessions = self.sessions()?;
        if self.json {
            return print_json(&sessions);
        }
        let mut rows = vec![
            ["SESSION", "CLUSTER", "RINGS", "IOVS", "IOV MEMORY", "HUNG", "MODE", "MOUNT POINT"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for s in &sessions {
            let mode = match (s.read_only, s.passthrough) {
                (true, _) => "read-only",
                (false, true) => "passthrough",
                (false, false) => "copying",
            };
            rows.push(vec![
                s.session.clone(),
                s.cluster.clone(),
                s.rings.to_string(),
                s.iovs.to_string(),
                human(s.iov_bytes),
                s.hung.to_string(),
                mode.to_owned(),
                s.mount_point.display().to_string(),
            ]);
        }
        print_table(&rows)
    }

    fn stats(&self, session: Option<String>) -> Result<(), ClientError> {
        let names = match session {
            Some(name) => vec![name],
            None => self.sessions()?.into_iter().map(|s| s.session).collect(),
        };
        let mut stats: Vec<Stats> = Vec::new();
        for session in names {
            stats.extend(self.ask::<Stats>(&Request::Stats(Named { session }), None)?);
        }
        if self.json {
            return print_json(&stats);
        }
        let mut rows = vec![
            ["SESSION", "WAY", "REQUESTS", "READ", "WRITTEN", "MEAN", "REJECTED"].map(str::to_owned).to_vec(),
        ];
        for s in &stats {
            let rejected: u64 = s.rejected.values().sum();
            for (way, traffic, rejected) in [("ring", &s.ring, rejected), ("fuse", &s.fuse, 0)] {
                rows.push(vec![
                    s.session.session.clone(),
                    way.to_owned(),
                    traffic.requests.to_string(),
                    human(traffic.read_bytes),
                    human(traffic.write_bytes),
                    format!("{:.1} µs", traffic.mean_seconds * 1e6),
                    rejected.to_string(),
                ]);
            }
        }
        print_table(&rows)
    }

    fn health(&self) -> Result<(), ClientError> {
        self.ask::<Value>(&Request::Health, None)?;
        if self.json {
            return print_json(&self.ask::<Value>(&Request::Hello, None)?.first());
        }
        print("healthy\n")
    }

    fn drain(&self) -> Result<(), ClientError> {
        let parts: Vec<Map<String, Value>> = self.ask(&Request::Drain, None)?;
        let sessions = parts.first().and_then(|p| p.get("sessions")).and_then(Value::as_u64).unwrap_or(0);
        if self.json {
            return print_json(&parts.first());
        }
        print(&format!("drained; {sessions} sessions wait for a successor\n"))
    }
}

fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.checked_ilog2().unwrap_or(0) as usize / 10).min(UNITS.len() - 1);
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{:.1} {}", bytes as f64 / (1_u64 << (10 * unit)) as f64, UNITS[unit]),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), ClientError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| ClientError::Protocol(e.to_string()))?;
    print(&format!("{text}\n"))
}

fn print_table(rows: &[Vec<String>]) -> Result<(), ClientError> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    print(&text)
}

/// Prints; a reader that went away (`| head`) is no error.
fn print(text: &str) -> Result<(), ClientError> {
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bytes_are_printed_for_people() {
        let printed = [0, 1023, 1024, 1536, 5 << 30].map(human);
        assert_eq!(printed, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB"]);
    }
}
