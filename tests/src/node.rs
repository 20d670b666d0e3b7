//! A `weir serve` child process on a directory of its own, with certificates, that can be killed and started again on the
//! same address.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// A node that is not ready by then will not get ready: recovery of a test's log takes well under a second.
const READY_MAX: Duration = Duration::from_secs(60);
/// Principals that every site gets certificates for.
pub const PRINCIPALS: [&str; 3] = ["admin", "device-1", "stranger"];
/// Rights: the administrator everything, devices may produce and consume under `t.`; the stranger has a certificate and no right.
const ACL: &str = r#"
[[acl]]
principal = "admin"
allow = ["produce", "consume", "admin"]

[[acl]]
principal = "device-*"
topic = "t.*"
allow = ["produce", "consume"]
"#;

/// Directory, certificates, configuration and addresses of one node.
#[derive(Debug)]
pub struct Site {
    /// The program under test.
    pub weir: PathBuf,
    /// Holds `certs/`, `weir.toml`, the node's log `node.log` and mostly `data/`.
    pub dir: PathBuf,
    /// QUIC address.
    pub addr: SocketAddr,
    /// HTTP address.
    pub http: SocketAddr,
    data: PathBuf,
}

impl Site {
    /// Makes certificates and a configuration in `dir`; `more` is appended to the configuration.
    pub fn make(weir: &Path, dir: &Path, more: &str) -> std::io::Result<Site> {
        Site::make_with_data(weir, dir, &dir.join("data"), more)
    }

    /// The same with the data directory elsewhere.
    pub fn make_with_data(weir: &Path, dir: &Path, data: &Path, more: &str) -> std::io::Result<Site> {
        std::fs::create_dir_all(dir)?;
        let addr = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let site = Site { weir: weir.to_path_buf(), dir: dir.to_path_buf(), addr, http, data: data.to_path_buf() };
        let mut cert = Command::new(weir);
        cert.args(["cert", "site", "--dir"]).arg(site.certs());
        PRINCIPALS.iter().for_each(|principal| {
            cert.args(["--client", principal]);
        });
        let made = cert.output()?;
        assert!(made.status.success(), "weir cert site: {}", String::from_utf8_lossy(&made.stderr));
        site.configure(more)?;
        Ok(site)
    }

    /// Writes the configuration anew, with `more` at its end.
    pub fn configure(&self, more: &str) -> std::io::Result<()> {
        let certs = self.certs();
        let text = format!(
            "[node]\ndata_dir = {:?}\n[quic]\nlisten = \"{}\"\ncert = {:?}\nkey = {:?}\nclient_ca = {:?}\n[http]\nlisten = \"{}\"\n{ACL}\n{more}\n",
            self.data(),
            self.addr,
            certs.join("server.pem"),
            certs.join("server.key"),
            certs.join("ca.pem"),
            self.http,
        );
        std::fs::write(self.config(), text)
    }

    /// Directory of the certificates.
    pub fn certs(&self) -> PathBuf {
        self.dir.join("certs")
    }

    /// The node's data directory.
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// The node's configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("weir.toml")
    }

    /// What the node has logged over all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("node.log")).unwrap_or_default()
    }

    /// Starts the node and waits until it is ready; its log when it does not get there.
    pub fn start(&self) -> Result<Node, String> {
        let mut node = self.spawn().map_err(|error| error.to_string())?;
        let begin = Instant::now();
        while http_status(self.http, "/readyz") != Some(200) {
            if let Ok(Some(status)) = node.child.try_wait() {
                return Err(format!("weir serve ended with {status}:\n{}", self.log()));
            }
            if begin.elapsed() > READY_MAX {
                return Err(format!("weir serve is not ready after {READY_MAX:?}:\n{}", self.log()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(node)
    }

    /// Starts the node and does not wait.
    pub fn spawn(&self) -> std::io::Result<Node> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join("node.log"))?;
        let child = Command::new(&self.weir)
            .args(["serve", "--config"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Node { child })
    }

    /// Runs `weir` with these arguments as `principal`, with `input` on its standard input.
    pub fn run_as(&self, principal: &str, args: &[&str], input: &str) -> std::io::Result<Output> {
        let mut child = Command::new(&self.weir)
            .args(args)
            .env("WEIR_ADDR", self.addr.to_string())
            .env("WEIR_CERTS", self.certs())
            .env("WEIR_AS", principal)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().expect("piped above");
        let input = input.to_owned();
        // A thread of its own: a command that prints while it still reads would block both.
        let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output();
        let _ = writer.join();
        output
    }

    /// Runs `weir` as administrator; panics with its error when it fails.
    pub fn ok(&self, args: &[&str], input: &str) -> String {
        let output = self.run_as("admin", args, input).expect("weir can be started");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "weir {args:?}: {}\n{error}", output.status);
        String::from_utf8(output.stdout).expect("weir prints UTF-8")
    }
}

/// A running node; SIGKILLed when dropped.
#[derive(Debug)]
pub struct Node {
    child: Child,
}

impl Node {
    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL: the process gets no chance to do anything.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(mut self) -> std::io::Result<ExitStatus> {
        let id = i32::try_from(self.child.id()).expect("process ids are positive i32");
        let pid = rustix::process::Pid::from_raw(id).expect("a child has a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.child.wait()
    }

    /// The end of a node that is expected to refuse to start; `None` if it serves instead.
    pub fn refused(mut self) -> std::io::Result<Option<ExitStatus>> {
        let begin = Instant::now();
        while begin.elapsed() < READY_MAX {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(None)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status code of a GET, if anybody answers.
pub fn http_status(addr: SocketAddr, path: &str) -> Option<u16> {
    http_get(addr, path)?.split(' ').nth(1)?.parse().ok()
}

/// Head and body of a GET, if anybody answers.
pub fn http_get(addr: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The `weir` program that belongs to this build: beside the running test or tool.
pub fn weir_beside_us() -> PathBuf {
    let us = std::env::current_exe().expect("a running program has a path");
    let beside = us.ancestors().skip(1).take(2).map(|dir| dir.join("weir")).find(|path| path.is_file());
    beside.unwrap_or_else(|| panic!("no `weir` program beside {}: build it first with `cargo build -p weir`", us.display()))
}
