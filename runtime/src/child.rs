//! A node as a child process on a directory of its own: what `weir quickstart` and `weir bench` try things on, and kill.
//!
//! A [`Site`] is the directory: certificates, `weir.toml`, the log. A [`ChildNode`] is one life of the node on it; dropping it
//! kills the process, so nothing is left running when the parent fails.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use weir_client::{Client, ClientConfig};

use crate::cert;

/// How much of the child's log an error shows.
const LOG_TAIL_BYTES: u64 = 2000;
/// One attempt to reach a node that may not be up yet.
const TRIAL: Duration = Duration::from_millis(300);
/// How often a waiting parent looks.
const POLL: Duration = Duration::from_millis(15);

/// Why the child is not there. The sentence holds what the child said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChildError {
    /// The directory could not be prepared.
    #[error("cannot prepare {}: {source}; name another directory with --dir", path.display())]
    Prepare {
        /// What was being written.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Certificates could not be made.
    #[error(transparent)]
    Cert(#[from] cert::CertError),
    /// A certificate cannot be used, or the node that just answered went away.
    #[error(transparent)]
    Client(#[from] weir_client::ClientError),
    /// The process could not be started.
    #[error("cannot start {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The process ended instead of serving.
    #[error("the node ended with {status}; the end of its log ({}):\n{log}", path.display())]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// Its log file.
        path: PathBuf,
        /// The end of it.
        log: String,
    },
    /// The process is there and does not serve.
    #[error("the node did not answer within {seconds} s ({last}); the end of its log:\n{log}")]
    Silent {
        /// How long was waited.
        seconds: u64,
        /// The last attempt's error.
        last: String,
        /// The end of its log.
        log: String,
    },
}

/// A node's directory with everything it needs.
#[derive(Debug, Clone)]
pub struct Site {
    /// The directory.
    pub dir: PathBuf,
    /// Where clients find the node.
    pub addr: SocketAddr,
    /// Where its metrics are.
    pub http_addr: SocketAddr,
    /// Memory its node may take; as `weir serve --memory-max` takes it.
    pub memory_max: Option<String>,
}

impl Site {
    /// Makes certificates for the principals and a configuration with these further lines of TOML.
    pub fn create(dir: &Path, principals: &[&str], further: &str) -> Result<Site, ChildError> {
        let prepare = |path: &Path| {
            let path = path.to_owned();
            move |source| ChildError::Prepare { path, source }
        };
        std::fs::create_dir_all(dir).map_err(prepare(dir))?;
        let dir = dir.canonicalize().map_err(prepare(dir))?;
        let site = Site {
            addr: free_port(true).map_err(prepare(&dir))?,
            http_addr: free_port(false).map_err(prepare(&dir))?,
            dir,
            memory_max: None,
        };
        cert::write_site(&site.certs(), principals)?;
        let (addr, http) = (site.addr, site.http_addr);
        let text = format!(
            "[node]\ndata_dir = \"data\"\n\n[quic]\nlisten = \"{addr}\"\ncert = \"certs/server.pem\"\nkey = \"certs/server.key\"\n\
             client_ca = \"certs/ca.pem\"\n\n[http]\nlisten = \"{http}\"\n\n{further}"
        );
        std::fs::write(site.config(), text).map_err(prepare(&site.config()))?;
        Ok(site)
    }

    /// Its certificates.
    pub fn certs(&self) -> PathBuf {
        self.dir.join("certs")
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("weir.toml")
    }

    /// What its nodes said.
    pub fn log(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    /// A client with a principal's certificate.
    pub fn client_config(&self, principal: &str) -> Result<ClientConfig, ChildError> {
        let certs = self.certs();
        let [ca, cert, key] =
            ["ca.pem".to_owned(), format!("{principal}.pem"), format!("{principal}.key")].map(|name| certs.join(name));
        Ok(ClientConfig::from_files(self.addr.to_string(), ca, cert, key)?)
    }

    /// Starts a node on the directory.
    pub fn start(&self) -> Result<ChildNode, ChildError> {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("weir"));
        let path = self.log();
        let log = File::options().create(true).append(true).open(&path).map_err(|source| ChildError::Prepare { path, source })?;
        let process = Command::new(&program)
            .args(["serve", "--config"])
            .arg(self.config())
            .args(self.memory_max.iter().flat_map(|size| ["--memory-max", size]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|source| ChildError::Spawn { program, source })?;
        Ok(ChildNode { process, log: self.log() })
    }
}

/// One life of a node.
#[derive(Debug)]
pub struct ChildNode {
    process: Child,
    log: PathBuf,
}

impl ChildNode {
    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until the node takes a connection, has ended, or the time is over.
    pub async fn ready(&mut self, within: Duration, config: &ClientConfig) -> Result<Client, ChildError> {
        let until = Instant::now() + within;
        // A node that comes up between two attempts is met by the next one soon; the client itself keeps its own limits.
        let mut trial = config.clone();
        (trial.connect_timeout, trial.retry_timeout) = (TRIAL, TRIAL);
        loop {
            let last = match Client::connect(trial.clone()).await {
                Ok(client) => {
                    client.close().await;
                    return Ok(Client::connect(config.clone()).await?);
                }
                Err(error) => error.to_string(),
            };
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(ChildError::Ended { status, path: self.log.clone(), log: log_tail(&self.log) });
            }
            if Instant::now() >= until {
                return Err(ChildError::Silent { seconds: within.as_secs(), last, log: log_tail(&self.log) });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGKILL: no drain, no seal, no good-bye.
    pub fn kill(mut self) -> std::io::Result<ExitStatus> {
        self.process.kill()?;
        self.process.wait()
    }

    /// SIGTERM, then waits for the drain; SIGKILL when it takes longer than `within`.
    pub async fn stop(mut self, within: Duration) -> std::io::Result<ExitStatus> {
        if let Some(pid) = rustix::process::Pid::from_raw(self.process.id() as i32) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let until = Instant::now() + within;
        while Instant::now() < until {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(POLL).await;
        }
        self.process.kill()?;
        self.process.wait()
    }

    /// Waits until the process ends by itself.
    pub async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for ChildNode {
    fn drop(&mut self) {
        // Already ended and reaped after `kill` and `stop`; both calls are harmless then.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port of the loopback device that is free now.
fn free_port(udp: bool) -> std::io::Result<SocketAddr> {
    if udp { UdpSocket::bind("127.0.0.1:0")?.local_addr() } else { TcpListener::bind("127.0.0.1:0")?.local_addr() }
}

fn log_tail(path: &Path) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let bytes = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(bytes.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_else(|error| format!("(unreadable: {error})"))
}
