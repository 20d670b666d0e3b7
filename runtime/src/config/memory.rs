//! Smaller buffers where there is less memory: each buffer's default is also a share of `node.memory_bytes_max`, and the
//! smaller of the two counts. What the operator has set stays as it is set.
//!
//! The shares give the defaults back from about 1 GiB on. They add up to less than the whole because a share is what a
//! buffer may grow to, and the rest (code, TLS sessions, topics, plugins' compiled code) has no setting.

use std::path::Path;

use super::Config;
use super::layers::{Origin, Origins};

/// Less does not hold the floors below and the program itself.
pub(super) const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// What a connection takes when it stands by, about; half of the memory may go there.
const CONNECTION_BYTES: u64 = 48 << 10;

/// Lowers every buffer that has its default to its share. `allowed` is what the system gives where nothing is set.
pub(super) fn fit(config: &mut Config, origins: &Origins, allowed: Option<u64>) {
    if config.node.memory_bytes_max == 0 {
        let Some(allowed) = allowed else { return };
        config.node.memory_bytes_max = allowed.max(MEMORY_BYTES_MIN);
    }
    let memory = config.node.memory_bytes_max;
    let (log, quic, pipeline, limits) = (&mut config.log, &mut config.quic, &mut config.pipeline, &mut config.limits);
    let batch = u64::from(limits.batch_bytes_max);
    let lower = Lower { origins };
    lower.to("limits.ingest_bytes_in_flight", &mut limits.ingest_bytes_in_flight, memory / 8);
    lower.to("limits.lane_credit_bytes", &mut limits.lane_credit_bytes, (memory / 256).max(batch));
    lower.to("log.tail_cache_bytes", &mut log.tail_cache_bytes, memory / 16);
    lower.to("log.frame_bytes_max", &mut log.frame_bytes_max, (memory / 64).max(2 * batch));
    lower.to("log.index_entries_max", &mut log.index_entries_max, memory / 256);
    lower.to("log.metadata_bytes_max", &mut log.metadata_bytes_max, memory / 64);
    lower.to("cold.sort_memory_bytes", &mut config.cold.sort_memory_bytes, memory / 32);
    lower.to("cold.key_map_bytes_max", &mut config.cold.key_map_bytes_max, memory / 64);
    lower.to("quic.connection_window_bytes", &mut quic.connection_window_bytes, memory / 128);
    lower.to("quic.send_window_bytes", &mut quic.send_window_bytes, memory / 128);
    lower.to("quic.stream_window_bytes", &mut quic.stream_window_bytes, memory / 256);
    lower.to("quic.connections_max", &mut quic.connections_max, memory / 2 / CONNECTION_BYTES);
    lower.to("quic.connections_per_address_max", &mut quic.connections_per_address_max, quic.connections_max.into());
    lower.to("pipeline.memory_bytes_max", &mut pipeline.memory_bytes_max, memory / 16);
    lower.to("pipeline.instances_max", &mut pipeline.instances_max, (memory >> 22).max(8));
}

struct Lower<'a> {
    origins: &'a Origins,
}

impl Lower<'_> {
    fn to<T: Copy + Into<u64> + TryFrom<u64>>(&self, key: &str, value: &mut T, share: u64) {
        let smaller = share < (*value).into();
        if let (true, Origin::Default, Ok(share)) = (smaller, self.origins.of(key), T::try_from(share)) {
            *value = share;
        }
    }
}

/// What the control groups of this process allow; none where they set no limit.
pub(super) fn of_cgroups() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(|line| of_group(line, Path::new("/sys/fs/cgroup"))).min()
}

/// One line of `/proc/self/cgroup`: `0::/path` (version 2) or `4:memory:/path`. A parent's limit holds for its children.
fn of_group(line: &str, root: &Path) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let (root, file) = match controllers {
        "" => (root.to_owned(), "memory.max"),
        named if named.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
        _ => return None,
    };
    let group = root.join(path.trim_start_matches('/'));
    let limit = |dir: &Path| std::fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
    // Version 1 writes "no limit" as the largest number of pages.
    let limits = group.ancestors().take_while(|dir| dir.starts_with(&root)).filter_map(limit).filter(|limit| *limit < 1 << 60);
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("inside")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        write("memory.max", "max\n");
        write("shed/memory.max", "268435456\n");
        write("shed/weir/memory.max", "max\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/weir/memory.limit_in_bytes", "134217728\n");
        assert_eq!(of_group("0::/shed/weir", root.path()), Some(256 << 20));
        assert_eq!(of_group("0::/", root.path()), None);
        assert_eq!(of_group("4:memory:/weir", root.path()), Some(128 << 20));
        assert_eq!(of_group("4:memory:/", root.path()), None);
        assert_eq!(of_group("3:cpuset:/weir", root.path()), None);
        assert_eq!(of_group("nonsense", root.path()), None);
    }
}
