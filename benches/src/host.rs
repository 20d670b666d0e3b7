//! What was measured on: a number without its machine means nothing.

use std::path::Path;

use serde::Serialize;

/// The machine and the directory.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Processor model.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// File system of the data directory; empty where the node is elsewhere.
    pub file_system: String,
}

impl Host {
    /// Of this machine and, where the node's data is here, of its directory.
    pub fn detect(dir: Option<&Path>) -> Host {
        let cpu = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split_once(':')))
            .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, model)| model.trim().to_owned());
        Host {
            cpu,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: dir.map(file_system).unwrap_or_default(),
        }
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Type of the mount with the longest prefix of the directory.
fn file_system(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mounts = read("/proc/self/mounts");
    let mut best = ("", 0);
    for mount in mounts.lines() {
        let mut fields = mount.split(' ').skip(1);
        let (Some(at), Some(kind)) = (fields.next(), fields.next()) else { continue };
        if dir.starts_with(at) && at.len() >= best.1 {
            best = (kind, at.len());
        }
    }
    best.0.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_and_a_file_system() {
        let host = Host::detect(Some(Path::new("/")));
        assert!(!host.cpu.is_empty() && host.cores > 0);
        assert!(!host.kernel.is_empty() && !host.file_system.is_empty(), "{host:?}");
        assert_eq!(Host::detect(Some(Path::new("/proc/self"))).file_system, "proc");
    }
}
