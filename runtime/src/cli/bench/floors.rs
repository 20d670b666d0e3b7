//! The floors: the disk and the network of this machine, measured in the same run and the same directory.
//!
//! The network's answering end is a child process (`weir bench quic-serve`), because a node is one: where both ends share an
//! executor, an echo wakes no second core and takes a fifth of the time that any two processes need.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use weir_bench::floor::{Identity, RawPeer, RequestShape, Transport, durable_writes, raw_quic, raw_requests, serve};
use weir_bench::{Floor, Host, Load, Report};

use super::{BenchArgs, Failure, Profile, failed, load};
use crate::cert;
use crate::config::Config;

/// The durable writes of the throughput floor: about what the log gathers in one commit under load.
const FLOOR_CHUNK_BYTES: usize = 1 << 20;
/// How long each floor is measured.
const FLOOR_TIME: Duration = Duration::from_secs(2);

/// A floor without a node.
pub(super) async fn alone(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let name = if args.profile == Profile::Disk { "disk" } else { "quic" };
    let load = load(args);
    let mut report = Report::new(name, &load, Host::detect(Some(dir)));
    let half = Duration::from_secs(args.seconds) / 2;
    report.floors = match args.profile {
        Profile::Disk => vec![disk(dir, 4096, half).await?, disk(dir, FLOOR_CHUNK_BYTES, half).await?],
        _ if load.is_one_by_one() => vec![requests(&load, dir, half).await?],
        _ => vec![quic(&load, dir, half).await?],
    };
    Ok(report)
}

/// The floors that bound a profile: reading never waits for a durable write, and one record at a time never for a wide stream.
pub(super) async fn of(args: &BenchArgs, load: &Load, dir: &Path) -> Result<Vec<Floor>, Failure> {
    Ok(match args.profile {
        Profile::Publish if load.is_one_by_one() => {
            vec![requests(load, dir, FLOOR_TIME).await?, disk(dir, 4096, FLOOR_TIME).await?]
        }
        Profile::Publish => vec![quic(load, dir, FLOOR_TIME).await?, disk(dir, FLOOR_CHUNK_BYTES, FLOOR_TIME).await?],
        Profile::Latency => {
            let batch = load.record_bytes * load.batch_records as usize;
            vec![quic(load, dir, FLOOR_TIME).await?, disk(dir, batch.max(4096), FLOOR_TIME).await?]
        }
        _ => vec![quic(load, dir, FLOOR_TIME).await?],
    })
}

async fn disk(dir: &Path, chunk_bytes: usize, during: Duration) -> Result<Floor, Failure> {
    let dir = dir.to_owned();
    let measured = tokio::task::spawn_blocking(move || durable_writes(&dir, chunk_bytes, during)).await;
    Ok(measured.map_err(failed)?.map_err(failed)?.into_floor())
}

async fn quic(load: &Load, dir: &Path, during: Duration) -> Result<Floor, Failure> {
    let threads = (cores() / 2).max(1);
    let answering = Answering::start(dir, threads).await?;
    let (peer, message) = (answering.peer.clone(), (load.record_bytes * load.batch_records as usize).min(64 << 10));
    let floor = on_threads(threads, async move { raw_quic(&peer, message, during).await }).await?;
    Ok(floor.map_err(failed)?.into_floor())
}

async fn requests(load: &Load, dir: &Path, during: Duration) -> Result<Floor, Failure> {
    let answering = Answering::start(dir, cores()).await?;
    let shape = RequestShape {
        connections: load.connections,
        request_bytes: load.request_bytes().map_err(failed)?,
        answer_bytes: Load::ANSWER_BYTES,
    };
    let peer = answering.peer.clone();
    let floor = on_threads(cores(), async move { raw_requests(&peer, shape, during).await }).await?;
    Ok(floor.map_err(failed)?.into_floor())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs one end on an executor of its own. The number of its threads decides: one stream is half as fast again where each end's
/// tasks share a thread and wake nobody across cores; a thousand connections want every core on both ends.
async fn on_threads<T: Send + 'static>(threads: usize, end: impl Future<Output = T> + Send + 'static) -> Result<T, Failure> {
    let run = move || {
        let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
        // As a task: on this thread it would be one thread more.
        Ok::<_, std::io::Error>(executor.block_on(executor.spawn(end)))
    };
    tokio::task::spawn_blocking(run).await.map_err(failed)??.map_err(failed)
}

/// The answering end as a child process; it ends when this is dropped, and by itself when its parent is gone.
struct Answering {
    process: Child,
    peer: RawPeer,
    certs: PathBuf,
}

impl Answering {
    async fn start(dir: &Path, threads: usize) -> Result<Answering, Failure> {
        let certs = dir.join(format!("quic-{}", std::process::id()));
        std::fs::create_dir_all(&certs)?;
        cert::write_site(&certs, &["bench"]).map_err(failed)?;
        let identity = identity(&certs, "bench")?;
        let mut process = Command::new(std::env::current_exe()?)
            .args(["bench", "quic-serve", "--threads", &threads.to_string(), "--dir"])
            .arg(&certs)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let said = process.stdout.take();
        // Whatever goes wrong from here on, the child ends with this.
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let peer = RawPeer { addr: any, pid: Some(process.id()), transport: transport(), identity };
        let mut answering = Answering { process, peer, certs };
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            said.map_or(Ok(0), |said| BufReader::new(said).read_line(&mut line)).map(|_| line)
        });
        let line = line.await.map_err(failed)??;
        answering.peer.addr = line
            .trim()
            .parse()
            .map_err(|_| failed("the answering end of the QUIC floor did not start; leave it out with --no-floors"))?;
        Ok(answering)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.certs);
    }
}

/// `weir bench quic-serve`: says where it is, and answers until its standard input ends.
pub(super) async fn answer(args: &BenchArgs) -> Result<(), Failure> {
    let dir = args.dir.as_deref().ok_or_else(|| Failure::usage("quic-serve needs --dir with certificates"))?;
    let identity = identity(dir, "server")?;
    let answering = async move {
        let endpoint = serve(transport(), &identity).map_err(failed)?;
        println!("{}", endpoint.local_addr()?);
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        ended.await.map_err(failed)??;
        Ok(())
    };
    on_threads(args.threads.max(1), answering).await?
}

fn identity(certs: &Path, name: &str) -> Result<Identity, Failure> {
    let read = |file: String| {
        let path = certs.join(file);
        std::fs::read(&path).map_err(|error| failed(format!("cannot read {}: {error}", path.display())))
    };
    let (ca, cert, key) = ("ca.pem".to_owned(), format!("{name}.pem"), format!("{name}.key"));
    Ok(Identity { ca_pem: read(ca)?, cert_pem: read(cert)?, key_pem: read(key)? })
}

/// The settings a node has by default.
fn transport() -> Transport {
    let settings = Config::defaults().quic;
    Transport {
        stream_window_bytes: settings.stream_window_bytes,
        connection_window_bytes: settings.connection_window_bytes,
        send_window_bytes: settings.send_window_bytes,
        mtu_bytes_max: settings.mtu_bytes_max,
    }
}
