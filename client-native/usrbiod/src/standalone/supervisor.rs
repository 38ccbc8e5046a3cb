//! The parent of the daemon: it holds every fd, so that the daemon may die at any moment.

use super::leftovers::RunDir;
use super::{Options, ServeError};
use crate::control::client::{Client, ClientError, decode, encode};
use crate::control::message::{Attach, Event, FDS_PER_REPLY, FdRole, Give, Named, Request};
use crate::control::socket::{Connection, Message};
use crate::fs::Space;
use crate::session::{Limits, SessionConfig};
use crate::sys::mount;
use crate::types::Errno;
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::task::JoinHandle;

/// Name of the only session.
const SESSION: &str = "serve";

/// A child that dies of itself this often in [`CRASH_WINDOW`] is not started again.
const CRASHES: usize = 5;
const CRASH_WINDOW: Duration = Duration::from_secs(10);

/// Longest time for a child to open its socket, to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest time for the daemon to see that the mount is gone.
const DETACH: Duration = Duration::from_secs(1);

/// Fds that the daemon gave us to keep, by key.
type Kept = Arc<Mutex<HashMap<String, OwnedFd>>>;

/// Serves until a signal, an unmount from outside, or a crash loop; then nothing of it is left.
pub(super) fn run(options: &Options) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::system("starting the runtime"))?;
    runtime.block_on(async {
        // From here on a signal ends the session in good order, also before it is ready.
        let mut stop = StopSignals::new().map_err(ServeError::system("waiting for signals"))?;
        let run_dir = RunDir::new().map_err(ServeError::system("making a private directory in /run"))?;
        let mounted = Mounted::new(options)?;
        let supervisor = Supervisor { options, run_dir, mounted, kept: Kept::default() };
        supervisor.supervise(&mut stop).await
    })
}

struct StopSignals {
    interrupt: SignalStream,
    terminate: SignalStream,
}

impl StopSignals {
    fn new() -> std::io::Result<StopSignals> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(StopSignals { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
        }
    }
}

/// The mount and the fds that it stands on. It is unmounted when this is dropped.
struct Mounted {
    fuse: OwnedFd,
    backing: OwnedFd,
    shm: OwnedFd,
    path: PathBuf,
}

impl Mounted {
    fn new(options: &Options) -> Result<Mounted, ServeError> {
        let directory = |path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())
                .map_err(|e| ServeError::system(format!("opening {}", path.display()))(e.into()))
        };
        let (backing, shm) = (directory(&options.dir)?, directory(&options.shm)?);
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fuse = rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(ServeError::NoFuse)?;
        let path = options.mount_point.clone();
        mount::mount_fuse(&fuse, &options.cluster, &path)
            .map_err(|errno| ServeError::Mount { path: path.clone(), errno })?;
        Ok(Mounted { fuse, backing, shm, path })
    }

    fn unmount(&self) {
        match mount::unmount(&self.path) {
            Ok(true) => (),
            Ok(false) => tracing::warn!(
                mount_point = %self.path.display(),
                "files are still open there: they fail from now on, the mount itself is gone"
            ),
            // Unmounted already.
            Err(Errno::INVAL | Errno::NOENT) => (),
            Err(errno) => tracing::error!(mount_point = %self.path.display(), %errno, "cannot unmount"),
        }
    }
}

/// Why a child is not watched any more.
enum End {
    /// We were told to stop, or the mount went away.
    Stop,
    /// It died.
    Died(ExitStatus),
}

struct Supervisor<'a> {
    options: &'a Options,
    run_dir: RunDir,
    mounted: Mounted,
    kept: Kept,
}

impl Supervisor<'_> {
    async fn supervise(self, stop: &mut StopSignals) -> Result<(), ServeError> {
        let result = self.run_children(stop).await;
        // Also after an error: a mount without a daemon is worse than none.
        self.mounted.unmount();
        result
    }

    async fn run_children(&self, stop: &mut StopSignals) -> Result<(), ServeError> {
        let mut deaths = VecDeque::new();
        let mut resume = false;
        loop {
            let mut child = self.spawn()?;
            let end = self.run_child(&mut child, resume, stop).await;
            let status = match end {
                Ok(End::Died(status)) => status,
                other => {
                    end_child(&mut child).await;
                    return other.map(|_| ());
                }
            };
            // SIGKILL comes from outside (an administrator, the OOM killer): no sign of a daemon that cannot go on.
            if status.signal() != Some(Signal::KILL.as_raw()) {
                deaths.push_back(Instant::now());
            }
            deaths.retain(|at| at.elapsed() < CRASH_WINDOW);
            let status = describe(status);
            if deaths.len() >= CRASHES {
                let (deaths, seconds) = (deaths.len(), CRASH_WINDOW.as_secs());
                return Err(ServeError::CrashLoop { deaths, seconds, status });
            }
            tracing::warn!(%status, "the daemon died; a new one goes on");
            resume = true;
        }
    }

    fn socket(&self) -> PathBuf {
        self.run_dir.path().join("control")
    }

    fn spawn(&self) -> Result<Child, ServeError> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("usrbiod");
        command.arg("daemon").arg("--socket").arg(self.socket()).arg("--state-dir").arg(self.run_dir.path());
        command.args(&self.options.daemon_args).kill_on_drop(true);
        // Ctrl-C is for us; we end the child when the mount is gone.
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe, allocates nothing and touches no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into)
            });
        }
        command.spawn().map_err(ServeError::system("starting the daemon"))
    }

    async fn run_child(
        &self,
        child: &mut Child,
        resume: bool,
        stop: &mut StopSignals,
    ) -> Result<End, ServeError> {
        // The order matters: a death is seen before the broken connection that it causes.
        tokio::select! {
            biased;
            status = child.wait() => {
                let status = status.map_err(ServeError::system("waiting for the daemon"))?;
                if resume { Ok(End::Died(status)) } else { Err(ServeError::NoStart(describe(status))) }
            }
            () = stop.recv() => Ok(End::Stop),
            started = self.start_session(resume) => match started {
                Ok(keeper) => self.watch(child, keeper, stop).await,
                Err(error) => self.died_or(child, error, resume).await,
            }
        }
    }

    /// The connection may break a moment before the death can be seen.
    async fn died_or(&self, child: &mut Child, error: ServeError, resume: bool) -> Result<End, ServeError> {
        match tokio::time::timeout(Duration::from_millis(500), child.wait()).await {
            Ok(Ok(status)) if resume => Ok(End::Died(status)),
            Ok(Ok(status)) => Err(ServeError::NoStart(describe(status))),
            _ => Err(error),
        }
    }

    async fn start_session(&self, resume: bool) -> Result<JoinHandle<()>, ServeError> {
        let keeper = self.connect().await?;
        ask(&keeper, &Request::Keep, &[]).await?;
        let keeper = tokio::spawn(keep(keeper, self.kept.clone()));
        let control = self.connect().await?;
        if resume {
            self.give_back(&control).await?;
        }
        let fds = [self.mounted.fuse.as_fd(), self.mounted.backing.as_fd(), self.mounted.shm.as_fd()];
        let attach = Attach {
            config: SessionConfig {
                name: SESSION.to_owned(),
                cluster: self.options.cluster.clone(),
                mount_point: self.options.mount_point.clone(),
                limits: Limits::default(),
                read_only: self.options.read_only,
                passthrough: self.options.passthrough,
                idmap: false,
                orders: self.options.orders,
                device: None,
                space: Space::default(),
            },
            fds: vec![FdRole::Fuse, FdRole::Backing, FdRole::Shm],
            resume,
        };
        ask(&control, &Request::Attach(attach), &fds).await?;
        if !resume {
            self.say_ready();
        }
        Ok(keeper)
    }

    fn say_ready(&self) {
        let (dir, at) = (self.options.dir.display(), self.options.mount_point.display());
        tracing::debug!(socket = %self.socket().display(), "usrbiod list --socket shows the session");
        // Nobody may read it; that is no reason to stop.
        let _ = writeln!(std::io::stdout(), "serving {dir} at {at}; stop with Ctrl-C");
    }

    async fn connect(&self) -> Result<Connection, ServeError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Client::connect(&self.socket()) {
                Ok(client) => {
                    let connection = Connection::new(Arc::new(client.into_socket()));
                    return Ok(connection.map_err(ClientError::from)?);
                }
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn give_back(&self, control: &Connection) -> Result<(), ServeError> {
        let mut kept = Vec::new();
        for (key, fd) in self.kept.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            kept.push((key.clone(), fd.try_clone().map_err(ServeError::system("duplicating kept fds"))?));
        }
        for part in kept.chunks(FDS_PER_REPLY) {
            let give =
                Give { session: SESSION.to_owned(), keys: part.iter().map(|(key, _)| key.clone()).collect() };
            let fds: Vec<_> = part.iter().map(|(_, fd)| fd.as_fd()).collect();
            ask(control, &Request::Give(give), &fds).await?;
        }
        Ok(())
    }

    /// Returns when the child is dead (and all that it sent is read), or when it is time to stop.
    async fn watch(
        &self,
        child: &mut Child,
        mut keeper: JoinHandle<()>,
        stop: &mut StopSignals,
    ) -> Result<End, ServeError> {
        tokio::select! {
            biased;
            status = child.wait() => {
                let _ = keeper.await;
                return Ok(End::Died(status.map_err(ServeError::system("waiting for the daemon"))?));
            }
            () = stop.recv() => self.mounted.unmount(),
            _ = &mut keeper => {
                // Hung up: dead in a moment, or the session is over because somebody unmounted it.
                let lost = ServeError::Daemon(ClientError::HungUp);
                let gone = mount::mounted_at(&self.mounted.path).is_ok_and(|table| table.is_empty());
                return if gone { Ok(End::Stop) } else { self.died_or(child, lost, true).await };
            }
        }
        // With the mount the session goes by itself, unless files are still open.
        if tokio::time::timeout(DETACH, &mut keeper).await.is_ok() {
            return Ok(End::Stop);
        }
        let control = self.connect().await?;
        let _ = ask(&control, &Request::Detach(Named { session: SESSION.to_owned() }), &[]).await;
        Ok(End::Stop)
    }
}

/// Does what the daemon says on the keeper's connection, until it hangs up or the session is over.
async fn keep(connection: Connection, kept: Kept) {
    while let Ok(Some(Message { bytes, mut fds, .. })) = connection.recv().await {
        let mut kept = kept.lock().unwrap_or_else(|e| e.into_inner());
        match serde_json::from_slice(&bytes) {
            Ok(Event::Keep { key, .. }) => kept.extend(fds.pop().map(|fd| (key, fd))),
            Ok(Event::Forget { key, .. }) => drop(kept.remove(&key)),
            Ok(Event::Detached { .. }) => {
                kept.clear();
                return;
            }
            Err(error) => tracing::warn!(%error, "the daemon sent an unknown event"),
        }
    }
}

async fn ask(connection: &Connection, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
    let exchange = async {
        connection.send(&encode(request), fds).await?;
        let message = connection.recv().await?.ok_or(ClientError::HungUp)?;
        decode(message).map(|_| ())
    };
    // A resume may have thousands of buffers to map.
    tokio::time::timeout(3 * PATIENCE, exchange).await.unwrap_or(Err(Errno::TIMEDOUT.into()))
}

/// Ends a child that has no session any more.
async fn end_child(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(PATIENCE, child.wait()).await.is_err() {
        tracing::warn!("the daemon does not end; it is killed");
        let _ = child.kill().await;
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, code) => format!("exit code {}", code.unwrap_or(-1)),
    }
}
