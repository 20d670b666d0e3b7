//! CPU time and memory of a process, from `/proc`.

/// What a process has used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// User and system time, all threads.
    pub cpu_seconds: f64,
    /// Resident set now.
    pub rss_bytes: u64,
}

/// `/proc/<pid>/stat` counts in these on every Linux: USER_HZ is part of its ABI.
const TICKS_PER_SECOND: f64 = 100.0;

impl Usage {
    /// Of a process; none where it has ended.
    pub fn of(pid: u32) -> Option<Usage> {
        Usage::read(&format!("/proc/{pid}"))
    }

    /// Of this process.
    pub fn own() -> Usage {
        Usage::read("/proc/self").unwrap_or_default()
    }

    /// What this process has had written to disks, all threads, by the kernel's count: whole pages, where the page cache is used when
    /// they are made dirty. None where the kernel does not count.
    pub fn own_written_bytes() -> Option<u64> {
        let counts = std::fs::read_to_string("/proc/self/io").ok()?;
        counts.lines().find_map(|line| line.strip_prefix("write_bytes:"))?.trim().parse().ok()
    }

    /// CPU time of a process's threads that have not ended, by the scheduler's clock instead of in ticks of 10 ms.
    pub fn cpu_seconds_exact(pid: u32) -> Option<f64> {
        let mut nanoseconds = 0;
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            nanoseconds += text.split_whitespace().next()?.parse::<u64>().ok()?;
        }
        Some(nanoseconds as f64 / 1e9)
    }

    fn read(dir: &str) -> Option<Usage> {
        let stat = std::fs::read_to_string(format!("{dir}/stat")).ok()?;
        let status = std::fs::read_to_string(format!("{dir}/status")).ok()?;
        Some(Usage { cpu_seconds: cpu_seconds(&stat)?, rss_bytes: rss_bytes(&status)? })
    }
}

/// Fields 14 and 15; counted behind the command's name, which may hold blanks and brackets.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn rss_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (we) ir (x)) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1000 200";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(rss_bytes("Name:\tweir\nVmRSS:\t    2048 kB\n"), Some(2048 * 1024));
    }

    #[test]
    fn this_process_has_memory() {
        assert!(Usage::own().rss_bytes > 0);
        assert_eq!(Usage::of(u32::MAX), None);
        assert!(Usage::cpu_seconds_exact(std::process::id()).is_some_and(|seconds| seconds > 0.0));
    }
}
