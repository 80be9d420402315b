//! The servers that are compared, each a process of its own with a fresh folder, and what they cost.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::Failure;

const START_MAX: Duration = Duration::from_secs(20);

/// A server that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Ours: fsyncs before it tells anybody.
    Tidelog,
    /// samod 0.16 with its folder of files behind axum.
    Samod,
    /// @automerge/automerge-repo-sync-server 0.2.8.
    Node,
    /// The same server on automerge-repo 2.5.6.
    Node2,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tidelog => "tidelog",
            Self::Samod => "samod 0.16",
            Self::Node => "sync-server 0.2.8",
            Self::Node2 => "the same on 2.5.6",
        }
    }
}

/// Where things are.
#[derive(Debug, Clone)]
pub struct Places {
    pub tidelog: PathBuf,
    /// A folder on a disk, for data and what is kept between runs.
    pub work: PathBuf,
}

/// A running server. Dropping it kills it.
pub struct Server {
    pub url: String,
    kind: Kind,
    child: Child,
    pid: Pid,
    folder: PathBuf,
}

impl Server {
    /// Starts a server on a fresh folder.
    pub async fn start(kind: Kind, places: &Places) -> Result<Self, Failure> {
        let folder = places.work.join(format!("data-{kind:?}-{}", std::process::id()).to_lowercase());
        // It may be left from an interrupted run.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        Self::start_on(kind, places, folder).await
    }

    async fn start_on(kind: Kind, places: &Places, folder: PathBuf) -> Result<Self, Failure> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let ready = folder.with_extension("ready");
        let _ = std::fs::remove_file(&ready);
        let mut command = match kind {
            Kind::Tidelog => {
                let mut command = Command::new(&places.tidelog);
                command.args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"]);
                command.arg(&folder).arg("--ready-file").arg(&ready);
                command
            }
            Kind::Samod => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("samod-server").arg(&folder);
                command
            }
            Kind::Node | Kind::Node2 => {
                let script = if kind == Kind::Node {
                    "node_modules/@automerge/automerge-repo-sync-server/src/index.js"
                } else {
                    "sync-server-2.mjs"
                };
                let mut command = Command::new("node");
                // It takes a number only: one that was free a moment ago.
                let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
                command.arg(package.join(script)).env("DATA_DIR", &folder).env("PORT", port.to_string());
                command
            }
        };
        let log = std::fs::File::create(folder.with_extension("log"))?;
        command.stdin(Stdio::null()).stderr(log.try_clone()?).kill_on_drop(true);
        command.stdout(if kind == Kind::Tidelog { Stdio::from(log) } else { Stdio::piped() });
        let mut child = command.spawn().map_err(|error| format!("{} does not start: {error}", kind.name()))?;
        let pid = Pid::from_raw(child.id().ok_or("the server ended at once")?.try_into()?);
        let address = timeout(START_MAX, address(kind, &mut child, &ready))
            .await
            .map_err(|_| format!("{} is not ready after {START_MAX:?}; see {}", kind.name(), folder.display()))??;
        let path = if kind == Kind::Tidelog { "/sync" } else { "/" };
        Ok(Self { url: format!("ws://{address}{path}"), kind, child, pid, folder })
    }

    /// Kills it and starts it again on the same folder.
    pub async fn restart(self, places: &Places) -> Result<Self, Failure> {
        let (kind, folder) = (self.kind, self.folder.clone());
        self.kill().await?;
        Self::start_on(kind, places, folder).await
    }

    /// Kills it and removes its folder.
    pub async fn stop(self) -> Result<(), Failure> {
        let folder = self.folder.clone();
        self.kill().await?;
        std::fs::remove_dir_all(folder)?;
        Ok(())
    }

    async fn kill(mut self) -> Result<(), Failure> {
        Ok(self.child.kill().await?)
    }

    /// Processor time so far: all threads, in the kernel and outside.
    pub fn cpu(&self) -> Result<Duration, Failure> {
        let time = clock_gettime(clock_getcpuclockid(self.pid)?)?;
        Ok(Duration::from(time))
    }

    /// Resident memory now, bytes.
    pub fn resident(&self) -> Result<f64, Failure> {
        self.status("VmRSS:")
    }

    /// The most resident memory since [`reset_peak`](Self::reset_peak), bytes.
    pub fn peak(&self) -> Result<f64, Failure> {
        self.status("VmHWM:")
    }

    pub fn reset_peak(&self) -> Result<(), Failure> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.pid), "5")?)
    }

    fn status(&self, name: &str) -> Result<f64, Failure> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("the server has ended")?;
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes * 1024.0)
    }

    /// Waits until it does nothing: what it puts off is a cost of the load too.
    pub async fn settle(&self) -> Result<(), Failure> {
        let began = Instant::now();
        let mut quiet = 0;
        while quiet < 2 && began.elapsed() < Duration::from_secs(30) {
            let before = self.cpu()?;
            sleep(Duration::from_millis(250)).await;
            quiet = if self.cpu()? - before < Duration::from_millis(3) { quiet + 1 } else { 0 };
        }
        Ok(())
    }
}

async fn address(kind: Kind, child: &mut Child, ready: &Path) -> Result<String, Failure> {
    if kind == Kind::Tidelog {
        loop {
            if let Some(status) = child.try_wait()? {
                return Err(format!("tidelog ended: {status}").into());
            }
            if let Ok(text) = std::fs::read_to_string(ready)
                && let Ok(json) = serde_json::from_str::<serde_json::Value>(&text)
            {
                return Ok(json["http"].as_str().ok_or("the ready file names no http address")?.to_owned());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
    let output = child.stdout.take().ok_or("the server has no output")?;
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await? {
        // Both say `Listening on port N`.
        if let Some(port) = line.strip_prefix("Listening on port ") {
            let port: u16 = port.trim().parse()?;
            // Its output is read to its end, so that it never waits for us.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(format!("127.0.0.1:{port}"));
        }
    }
    Err(format!("{} ended before it was ready", kind.name()).into())
}

/// Processor time of the driver so far.
pub fn driver_cpu() -> Result<Duration, Failure> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?))
}

/// What a stretch of a load cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Of the server, until it did nothing any more.
    pub cpu: Duration,
    /// Until the load was through.
    pub wall: Duration,
    /// The share of a core that the driver used until then.
    pub driver: f64,
}

/// A stretch of a load that is measured.
pub struct Stretch<'a> {
    server: &'a Server,
    began: Instant,
    cpu: Duration,
    driver: Duration,
}

impl<'a> Stretch<'a> {
    pub fn begin(server: &'a Server) -> Result<Self, Failure> {
        Ok(Self { server, cpu: server.cpu()?, driver: driver_cpu()?, began: Instant::now() })
    }

    pub async fn end(self) -> Result<Cost, Failure> {
        let wall = self.began.elapsed();
        let driver = (driver_cpu()? - self.driver).as_secs_f64() / wall.as_secs_f64();
        self.server.settle().await?;
        Ok(Cost { cpu: self.server.cpu()? - self.cpu, wall, driver })
    }
}
