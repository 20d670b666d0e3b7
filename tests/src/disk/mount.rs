//! A real file system on a programmable disk: FUSE file, loop device, ext4 or XFS, mounted; and the way back, whatever happened.
//!
//! The caller has put itself into a mount and a PID namespace of its own ([`isolated`]): when it dies, however it dies, the kernel
//! kills the node, takes the mounts away and, with their last user, the loop devices.

use std::fmt;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::BackgroundSession;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::cache::Cut;
use super::{Disk, fuse};

/// mount, umount and mkfs are done long before, unless they wait for a dead disk.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// The file that takes a disk's space, and the steps it does so in.
const BALLAST: &str = "ballast";
const STEP_MAX: u64 = 64 << 20;
const STEP_MIN: u64 = 4 << 10;
/// Tells the program that it runs in its own namespaces already.
const ISOLATED: &str = "WEIR_POWERCUT_ISOLATED";

/// A file system to put on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4 with its defaults.
    Ext4,
    /// XFS with its defaults.
    Xfs,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
        })
    }
}

impl Kind {
    fn mkfs(self) -> (&'static str, &'static [&'static str]) {
        match self {
            // No background initialisation: only what the node does goes on beside the node.
            Kind::Ext4 => ("mkfs.ext4", &["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]),
            Kind::Xfs => ("mkfs.xfs", &["-q", "-f", "-K"]),
        }
    }

    fn options(self) -> &'static str {
        match self {
            Kind::Ext4 => "noatime",
            // An earlier life of the same disk may still be on its way out.
            Kind::Xfs => "noatime,nouuid",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Kind::Ext4 => "e2fsprogs",
            Kind::Xfs => "xfsprogs",
        }
    }
}

/// Why no disk can be made here, as a sentence that says what to do.
pub fn missing(kinds: &[Kind]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting file systems needs root: run it as root, or in a privileged container".into());
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("there is no /dev/fuse: load the module with `modprobe fuse`, or give the container the device".into());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some(
            "there is no /dev/loop-control: load the module with `modprobe loop`, or give the container the device".into(),
        );
    }
    let tools = ["losetup", "mount", "umount", "unshare"].map(|tool| (tool, "mount util-linux"));
    let makers = kinds.iter().map(|kind| (kind.mkfs().0, kind.package()));
    let (tool, package) = tools.into_iter().chain(makers).find(|(tool, _)| !is_there(tool))?;
    Some(format!("{tool} is missing: apt-get install {package}"))
}

fn is_there(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

/// Starts this program again in a mount and a PID namespace of its own, unless it is there. Returns only if that fails.
pub fn isolated() -> Result<(), String> {
    if std::env::var_os(ISOLATED).is_some() {
        return Ok(());
    }
    let us = std::env::current_exe().map_err(|error| error.to_string())?;
    let error = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(us)
        .args(std::env::args_os().skip(1))
        .env(ISOLATED, "1")
        .exec();
    Err(format!("unshare cannot be started: {error}"))
}

/// A mounted file system on a disk.
pub struct Volume {
    kind: Kind,
    disk: Arc<Disk>,
    /// Holds `fuse/`, where the disk is a file, and `mounted/`.
    dir: PathBuf,
    session: Option<BackgroundSession>,
    /// `/dev/loopN`, while plugged in.
    device: Option<PathBuf>,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume").field("kind", &self.kind).field("device", &self.device).finish_non_exhaustive()
    }
}

impl Volume {
    /// Makes the file system on `disk` and mounts it below `dir`.
    pub fn make(kind: Kind, disk: Arc<Disk>, dir: &Path) -> Result<Volume, String> {
        let mut volume = Volume { kind, disk: Arc::clone(&disk), dir: dir.to_path_buf(), session: None, device: None };
        for directory in [volume.fuse(), volume.root()] {
            std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        }
        let session = fuse::serve(disk, &volume.fuse()).map_err(|error| format!("the FUSE file system: {error}"))?;
        volume.session = Some(session);
        volume.attach()?;
        let (mkfs, args) = kind.mkfs();
        let device = volume.device.clone().expect("attached above");
        run(Command::new(mkfs).args(args).arg(&device))?;
        volume.mount()?;
        Ok(volume)
    }

    /// Where the file system is mounted.
    pub fn root(&self) -> PathBuf {
        self.dir.join("mounted")
    }

    fn fuse(&self) -> PathBuf {
        self.dir.join("fuse")
    }

    /// After the disk has lost its power: takes file system and loop device away, with all that the kernel had not written.
    pub fn unplug(&mut self) {
        assert!(!self.disk.is_on(), "a real power cut does not wait for the kernel to write things back");
        self.detach();
    }

    /// Plugs the disk in again and mounts what is on it. Fails if the power goes meanwhile; `unplug` then, and try again.
    pub fn plug(&mut self) -> Result<(), String> {
        self.attach()?;
        self.mount()
    }

    /// Takes all space but `left` bytes, what root is left included: with a file that a power cut does not shrink.
    pub fn take_space(&self, left: u64) -> Result<(), String> {
        let path = self.root().join(BALLAST);
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        let before = file.metadata().map_err(failed)?.len();
        let mut bytes = before;
        let mut step = STEP_MAX;
        while step >= STEP_MIN {
            let free = rustix::fs::statvfs(self.root()).map_err(|error| failed(error.into()))?;
            if free.f_bfree * free.f_frsize < left + step {
                step /= 2;
                continue;
            }
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), bytes, step) {
                Ok(()) => bytes += step,
                Err(Errno::NOSPC) => step /= 2,
                Err(error) => return Err(failed(error.into())),
            }
        }
        if bytes > before { file.sync_all().map_err(failed) } else { Ok(()) }
    }

    /// Gives back what `take_space` took.
    pub fn make_room(&self) -> Result<(), String> {
        let path = self.root().join(BALLAST);
        std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Tells the kernel whether the disk has a volatile cache. It sends no flush to one that has none.
    pub fn say_cached(&self, cached: bool) -> Result<(), String> {
        let setting = self.sysfs("queue/write_cache")?;
        let value = if cached { "write back" } else { "write through" };
        let failed = |error: std::io::Error| format!("{}: {error}", setting.display());
        std::fs::write(&setting, value).map_err(failed)?;
        match std::fs::read_to_string(&setting).map_err(failed)? {
            said if said.trim() == value => Ok(()),
            said => Err(format!("{}: {value} was written, {said:?} is read", setting.display())),
        }
    }

    /// A setting of the loop device.
    fn sysfs(&self, setting: &str) -> Result<PathBuf, String> {
        let device = self.device.as_ref().and_then(|device| device.file_name()).ok_or("not plugged in")?;
        Ok(Path::new("/sys/block").join(device).join(setting))
    }

    fn attach(&mut self) -> Result<(), String> {
        let file = self.fuse().join(fuse::FILE);
        let losetup = ["--find", "--show", "--direct-io=on", "--sector-size=512"];
        let device = run(Command::new("losetup").args(losetup).arg(file))?;
        self.device = Some(PathBuf::from(device.trim()));
        // A loop device keeps this setting over its files: whoever had it before may have left another.
        self.say_cached(true)?;
        let direct = self.sysfs("loop/dio")?;
        // With the page cache in between, a power cut would find nothing to tear.
        match std::fs::read_to_string(&direct) {
            Ok(on) if on.trim() == "1" => Ok(()),
            other => Err(format!("{}: the loop device does no direct I/O ({other:?})", direct.display())),
        }
    }

    fn mount(&self) -> Result<(), String> {
        let device = self.device.as_ref().ok_or("not plugged in")?;
        let (kind, root) = (self.kind.to_string(), self.root());
        let mut give_up = || {
            if self.kind == Kind::Xfs && !self.disk.is_on() {
                give_up_writing(device);
            }
        };
        let mut mount = || {
            let mut command = Command::new("mount");
            run_with(command.args(["-t", &kind, "-o", self.kind.options()]).arg(device).arg(&root), &mut give_up)
        };
        if let Err(error) = mount() {
            if self.kind != Kind::Ext4 || !self.disk.is_on() {
                return Err(error);
            }
            // Its superblock takes two sectors, is written over the old one, and must be whole: what a cut between the two leaves needs
            // what an operator does then. Its exit code only says that it has changed something.
            println!("  ext4 does not mount, e2fsck mends it: {error}");
            let _ = run(Command::new("e2fsck").args(["-f", "-y"]).arg(device));
            mount()?;
        }
        // In use as it is, it is marked to go with its last user: no death of ours leaves it behind.
        run(Command::new("losetup").arg("--detach").arg(device)).map(drop)
    }

    fn detach(&mut self) {
        // Not for us, but for whoever gets this loop device next.
        let _ = self.say_cached(true);
        let Some(device) = self.device.take() else { return };
        let root = self.root();
        if is_mounted(&root) && run(Command::new("umount").arg(&root)).is_err() {
            let _ = run(Command::new("umount").arg("--lazy").arg(&root));
        }
        // Mostly gone already; and if not, it is refused for ever by its old handle.
        let _ = run(Command::new("losetup").arg("--detach").arg(device));
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.disk.cut(Cut::Any);
        self.detach();
        let _ = run(Command::new("umount").arg("--lazy").arg(self.fuse()));
        drop(self.session.take());
    }
}

/// XFS tries a metadata write that fails again for ever: a mount whose disk loses its power in the middle would never end.
fn give_up_writing(device: &Path) {
    let Some(name) = device.file_name() else { return };
    let errors = Path::new("/sys/fs/xfs").join(name).join("error/metadata");
    for error in std::fs::read_dir(errors).into_iter().flatten().flatten() {
        // Gone when the mount has ended meanwhile.
        let _ = std::fs::write(error.path().join("max_retries"), "0");
    }
}

fn is_mounted(root: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == root))
}

/// Runs a command to its end, bounded in time; what it printed, or its error with its name.
fn run(command: &mut Command) -> Result<String, String> {
    run_with(command, &mut || {})
}

/// The same, with something to do while it runs, again and again.
fn run_with(command: &mut Command, meanwhile: &mut dyn FnMut()) -> Result<String, String> {
    let name = format!("{} {}", command.get_program().display(), words(command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{name}: {error}"))?;
    let begin = Instant::now();
    while child.try_wait().map_err(|error| format!("{name}: {error}"))?.is_none() {
        if begin.elapsed() > COMMAND_MAX {
            let _ = child.kill();
            // Not waited for: what hangs in the kernel cannot be killed either.
            return Err(format!("{name}: not done after {COMMAND_MAX:?}"));
        }
        meanwhile();
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{name}: {} {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

fn words(command: &Command) -> String {
    command.get_args().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
