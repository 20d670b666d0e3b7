//! What others see of a mirror: how its copies are, a reader that knows both, and the way to attach and detach one.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::Member;
use crate::disk::{DiskRead, FileId, Reader, Waker};
use crate::format::Uuid;
use crate::format::superblock::{Peer, Superblock};

/// How a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Holds everything, takes everything.
    Healthy,
    /// A write to it is overdue.
    Suspect,
    /// Thrown out or missing: it takes nothing until it is attached and filled.
    Offline,
    /// Takes new writes and is being filled with the old ones; does not count yet.
    Filling,
}

/// One copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyStatus {
    /// Who it is.
    pub copy_id: Uuid,
    /// Its directory; empty where it was not found.
    pub name: String,
    /// How it is.
    pub state: CopyState,
    /// Why it is offline.
    pub reason: Option<String>,
}

/// How the copies of a log are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MirrorStatus {
    /// One entry for a log without a mirror.
    pub copies: Vec<CopyStatus>,
    /// While a copy is being filled: bytes copied.
    pub resilver_done_bytes: u64,
    /// Of so many. 0: no copy is being filled.
    pub resilver_total_bytes: u64,
    /// Blocks that could not be read from the survivor while filling.
    pub unreadable_blocks: u64,
}

impl MirrorStatus {
    /// Copies that hold everything.
    #[must_use]
    pub fn in_step(&self) -> usize {
        self.copies.iter().filter(|copy| matches!(copy.state, CopyState::Healthy | CopyState::Suspect)).count()
    }
}

/// What the log thread is asked to do.
pub(super) enum Command {
    Attach { member: Box<Member>, generation: u64, answer: Sender<bool> },
    Detach { copy_id: Uuid, answer: Sender<bool> },
}

/// Id, name, whether it counts, reader, waker.
pub(super) type Shown = (Uuid, String, bool, Arc<dyn Reader>, Waker);

#[derive(Default)]
struct State {
    sides: [Option<CopyStatus>; 2],
    readers: [Option<Arc<dyn Reader>>; 2],
    first: usize,
    image: Option<Superblock>,
    /// What `image` says of the copies is durable.
    settled: bool,
    progress: Option<(u64, u64, u64)>,
    commands: Vec<Command>,
}

/// Shared between the mirror and those who ask about it.
#[derive(Default)]
pub struct MirrorControl {
    state: Mutex<State>,
    wakers: RwLock<Vec<Waker>>,
}

impl MirrorControl {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way, so a poisoned lock still guards a sound state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the copies are now.
    pub fn status(&self) -> MirrorStatus {
        let state = self.state();
        let (done, total, unreadable) = state.progress.unwrap_or_default();
        MirrorStatus {
            copies: state.sides.iter().flatten().cloned().collect(),
            resilver_done_bytes: done,
            resilver_total_bytes: total,
            unreadable_blocks: unreadable,
        }
    }

    /// Names of the copies that hold everything, the one that is read first in front; and of those that are out.
    pub fn names(&self) -> (Vec<String>, Vec<String>) {
        let state = self.state();
        let name = |side: usize| state.sides[side].as_ref().map(|side| side.name.clone());
        let whole = [state.first, 1 - state.first].into_iter().filter(|side| state.readers[*side].is_some());
        let is_out = |side: &usize| state.sides[*side].as_ref().is_some_and(|side| side.state == CopyState::Offline);
        (whole.filter_map(name).collect(), (0..2).filter(is_out).filter_map(name).collect())
    }

    /// The log's latest superblock, where it says durably that its copy is alone: only then may another one be filled from it.
    pub fn survivor(&self) -> Option<Superblock> {
        let state = self.state();
        state.image.filter(|image| state.settled && image.peer != Peer::InStep)
    }

    /// The log's latest superblock, however its copies stand.
    pub fn image(&self) -> Option<Superblock> {
        self.state().image
    }

    /// Asks for a copy to be filled, whose superblock says so already; answers whether there was a place for it.
    pub fn attach(&self, member: Member, generation: u64) -> std::sync::mpsc::Receiver<bool> {
        let (answer, answered) = std::sync::mpsc::channel();
        self.state().commands.push(Command::Attach { member: Box::new(member), generation, answer });
        self.wake_sides();
        answered
    }

    /// Asks for a copy to be let go of; answers whether the other one can do without it.
    pub fn detach(&self, copy_id: Uuid) -> std::sync::mpsc::Receiver<bool> {
        let (answer, answered) = std::sync::mpsc::channel();
        self.state().commands.push(Command::Detach { copy_id, answer });
        self.wake_sides();
        answered
    }

    pub(super) fn take_commands(&self) -> Vec<Command> {
        std::mem::take(&mut self.state().commands)
    }

    pub(super) fn wake_sides(&self) {
        self.wakers.read().unwrap_or_else(PoisonError::into_inner).iter().for_each(Waker::wake);
    }

    pub(super) fn show(&self, sides: [Option<Shown>; 2], first: usize, image: Option<Superblock>) {
        let mut state = self.state();
        (state.first, state.image) = (first, image);
        let mut wakers = Vec::new();
        for (n, side) in sides.into_iter().enumerate() {
            let Some((copy_id, name, counts, reader, waker)) = side else {
                state.readers[n] = None;
                continue;
            };
            let state_now = if counts { CopyState::Healthy } else { CopyState::Filling };
            state.sides[n] = Some(CopyStatus { copy_id, name, state: state_now, reason: None });
            state.readers[n] = counts.then_some(reader);
            wakers.push(waker);
        }
        *self.wakers.write().unwrap_or_else(PoisonError::into_inner) = wakers;
    }

    pub(super) fn keep(&self, image: Superblock) {
        self.state().image = Some(image);
    }

    pub(super) fn settled(&self, settled: bool) {
        self.state().settled = settled;
    }

    pub(super) fn gone(&self, side: usize, copy_id: Uuid, reason: String) {
        let name = self.state().sides[side].as_ref().map(|side| side.name.clone()).unwrap_or_default();
        self.state().sides[side] = Some(CopyStatus { copy_id, name, state: CopyState::Offline, reason: Some(reason) });
    }

    pub(super) fn suspect(&self, suspect: [bool; 2]) {
        for (side, suspect) in self.state().sides.iter_mut().zip(suspect) {
            if let Some(side) = side {
                side.state = match (side.state, suspect) {
                    (CopyState::Healthy, true) => CopyState::Suspect,
                    (CopyState::Suspect, false) => CopyState::Healthy,
                    (state, _) => state,
                };
            }
        }
    }

    pub(super) fn progress(&self, progress: Option<(u64, u64, u64)>) {
        self.state().progress = progress;
    }
}

/// Reads from the copy that is first, and from the other one on request.
pub struct MirrorReader(pub Arc<MirrorControl>);

impl MirrorReader {
    fn reader(&self, other: bool) -> Option<Arc<dyn Reader>> {
        let state = self.0.state();
        let first = if state.readers[state.first].is_some() { state.first } else { 1 - state.first };
        state.readers[if other { 1 - first } else { first }].clone()
    }
}

impl Reader for MirrorReader {
    fn read(&self, request: DiskRead) -> Result<(), DiskRead> {
        match self.reader(false) {
            Some(reader) => reader.read(request),
            None => Err(request),
        }
    }

    fn read_other(&self, request: DiskRead) -> Result<(), DiskRead> {
        match self.reader(true) {
            Some(reader) => reader.read(request),
            None => Err(request),
        }
    }

    fn has_other(&self) -> bool {
        self.reader(true).is_some()
    }

    fn forget(&self, file: FileId) {
        let readers = self.0.state().readers.clone();
        readers.into_iter().flatten().for_each(|reader| reader.forget(file));
    }
}
