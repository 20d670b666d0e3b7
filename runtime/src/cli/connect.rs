//! Where the node is and who we are: shared by every command that talks to a node.
//!
//! Without flags a command uses `127.0.0.1:7300` and the certificates that `weir cert` left in `./weir-certs`, as principal
//! `admin`.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Args;
use weir_client::{Client, ClientConfig};

use super::Failure;

/// A person waits: the library's own limits suit services.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Flags of every command that talks to a node.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectArgs {
    /// The node's QUIC address, host:port
    #[arg(long, env = "WEIR_ADDR", default_value = "127.0.0.1:7300", value_name = "HOST:PORT")]
    pub addr: String,
    /// Directory of ca.pem, <principal>.pem and <principal>.key, as `weir cert` makes it
    #[arg(long, env = "WEIR_CERTS", default_value = "weir-certs", value_name = "DIR")]
    pub certs: PathBuf,
    /// Principal whose certificate of that directory is used
    #[arg(long = "as", env = "WEIR_AS", default_value = "admin", value_name = "PRINCIPAL")]
    pub principal: String,
    /// CA of the node's certificate, PEM; overrides --certs
    #[arg(long, env = "WEIR_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Client certificate, PEM; overrides --certs
    #[arg(long, env = "WEIR_CERT", value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Key of the client certificate, PEM; overrides --certs
    #[arg(long, env = "WEIR_KEY", value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
}

impl ConnectArgs {
    /// The files to use: CA, certificate, key.
    pub fn files(&self) -> [PathBuf; 3] {
        let of = |ending: &str| self.certs.join(format!("{}.{ending}", self.principal));
        [
            self.ca.clone().unwrap_or_else(|| self.certs.join("ca.pem")),
            self.cert.clone().unwrap_or_else(|| of("pem")),
            self.key.clone().unwrap_or_else(|| of("key")),
        ]
    }

    /// The client's configuration; missing files are named together with how to get them.
    pub fn config(&self) -> Result<ClientConfig, Failure> {
        let files = self.files();
        if let Some(missing) = files.iter().find(|file| !file.exists()) {
            let (dir, principal) = (self.certs.display(), &self.principal);
            let make = if self.certs.join("ca.key").exists() {
                format!("weir cert device {principal} --dir {dir}")
            } else {
                format!("weir cert site --dir {dir} --client {principal}")
            };
            return Err(Failure::usage(format!("no certificate file {}", missing.display()))
                .next(format!("name the directory with --certs (or WEIR_CERTS), or make one: {make}")));
        }
        let [ca, cert, key] = &files;
        let config = ClientConfig::from_files(&self.addr, ca, cert, key);
        let mut config = config.map_err(|error| Failure::from_client(error, &self.addr))?;
        config.client_name = concat!("weir-cli/", env!("CARGO_PKG_VERSION")).to_owned();
        config.connect_timeout = CONNECT_TIMEOUT;
        config.retry_timeout = CONNECT_TIMEOUT;
        config.refused_timeout = CONNECT_TIMEOUT;
        Ok(config)
    }

    /// A connected client.
    pub async fn connect(&self) -> Result<Client, Failure> {
        self.connect_with(|_| ()).await
    }

    /// A connected client whose configuration was changed first.
    pub async fn connect_with(&self, change: impl FnOnce(&mut ClientConfig)) -> Result<Client, Failure> {
        let mut config = self.config()?;
        change(&mut config);
        let client = Client::connect(config).await.map_err(|error| self.failure(error))?;
        open().push(client.clone());
        Ok(client)
    }

    /// A client's error as a command's end.
    pub fn failure(&self, error: weir_client::ClientError) -> Failure {
        Failure::from_client(error, &self.addr)
    }
}

/// Clients of this command that have not been closed.
static OPEN: Mutex<Vec<Client>> = Mutex::new(Vec::new());
/// How long closing frames may take to leave before the program ends anyway.
const GOODBYE_MAX: Duration = Duration::from_millis(200);

fn open() -> MutexGuard<'static, Vec<Client>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says goodbye on every connection of this command, however it ended: otherwise the node would keep each until its idle timeout.
pub(super) async fn close_all() {
    let clients = std::mem::take(&mut *open());
    for client in clients {
        let _ = tokio::time::timeout(GOODBYE_MAX, client.close()).await;
    }
}
