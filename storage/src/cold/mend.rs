//! All copies of a cold segment read and compared with their CRCs, and copies made anew: of one that has rotted, of one that is
//! owed, on a volume that takes another's place.
//!
//! A segment is taken part by part (header, blocks, pages, index, footer; of a promoted one the frames that count as well), each from whichever copy has it intact; so two copies
//! that have rotted in different places still make a whole one. What no copy has intact is copied as it is: to readers it stays the
//! gap that it was. A copy is made under another name and takes its own when it is whole and durable.
//!
//! Cost: each copy read once, each new one written once. Memory: one part a copy, the index, and 1 MiB.

use bytes::Bytes;

use super::frames;
use super::job::{Done, JobError};
use super::stores::Stores;
use super::{ColdIndex, Footer, FramesOf, SegmentHead, decode_block, decode_page};
use crate::disk::{AlignedBuf, DiskError, FileId};
use crate::format::{BLOCK, Uuid};
use crate::view::ColdPlace;

/// Written at once.
const PIECE_BYTES: usize = 1 << 20;

/// A stretch of the file with a CRC of its own.
#[derive(Clone, Copy, Debug)]
enum Stretch {
    Header,
    Block(u32),
    Page(usize),
    Index,
    Footer,
    /// Of the `.wal` file, by an index entry that names it.
    Frame(u32),
    /// What nobody reads of it: it only has to be readable.
    Rest,
}

/// A part of one of the files.
#[derive(Clone, Copy, Debug)]
struct Place {
    file: FileId,
    at: u64,
    bytes: usize,
    stretch: Stretch,
}

/// What the segment consists of.
struct Layout {
    footer: Footer,
    index: ColdIndex,
    parts: Vec<Place>,
}

/// Gets each part, where it begins and its best bytes.
type Each<'e> = &'e mut dyn FnMut(&mut Stores<'_>, u64, &[u8]) -> Result<(), DiskError>;

struct Mend<'a, 'b> {
    stores: &'a mut Stores<'b>,
    log_id: &'a Uuid,
    place: &'a ColdPlace,
    /// Where it is read.
    from: Vec<u8>,
    /// Of these, which are intact so far.
    intact: Vec<bool>,
    /// Something that no copy has intact.
    lost: Option<String>,
}

/// Looks at the copies on `from`, and makes those on `to` anew; an intact copy is among the former if any is.
pub(super) fn mend(stores: &mut Stores<'_>, log_id: &Uuid, place: &ColdPlace, from: &[u8], to: &[u8]) -> Result<Done, JobError> {
    let from: Vec<u8> = from.iter().copied().filter(|volume| stores.on(*volume).is_some()).collect();
    let mut mend = Mend { stores, log_id, place, intact: vec![true; from.len()], from, lost: None };
    let layout = mend.layout()?;
    let mut read_bytes = place.entry.stored_bytes() * mend.from.len() as u64;
    // Whether there is anything to write shows only when all is read.
    for (file, _) in mend.files() {
        mend.pass(layout.as_ref(), file, &mut |_, _, _| Ok(()))?;
    }
    let rotten = |intact: &[bool], from: &[u8]| -> Vec<u8> {
        from.iter().zip(intact).filter(|(_, intact)| !**intact).map(|(volume, _)| *volume).collect()
    };
    let damaged = rotten(&mend.intact, &mend.from);
    let mut targets = to.to_vec();
    if mend.lost.is_none() {
        targets.extend(damaged.iter().copied().filter(|volume| !to.contains(volume)));
    }
    let mut made = Vec::new();
    for volume in targets {
        read_bytes += place.entry.stored_bytes();
        match mend.make(layout.as_ref(), volume) {
            Ok(()) => made.push(volume),
            Err(error @ DiskError::Closed { .. }) => return Err(error.into()),
            Err(error) => tracing::warn!(%error, volume, number = place.number, "a copy of a cold segment could not be made"),
        }
    }
    let mut whole: Vec<u8> = mend.from.iter().copied().filter(|volume| !damaged.contains(volume)).collect();
    whole.extend(made.iter().copied().filter(|volume| mend.from.contains(volume)));
    let made_bytes = made.len() as u64 * place.entry.stored_bytes();
    Ok(Done::Mended { whole, made, damaged, lost: mend.lost, read_bytes, made_bytes })
}

impl Mend<'_, '_> {
    /// The segment's files, and where they end.
    fn files(&self) -> Vec<(FileId, u64)> {
        let (number, entry) = (self.place.number, &self.place.entry);
        let frames = entry.promoted.map(|wal| (FileId::Promoted(number), wal.bytes));
        std::iter::once((FileId::Cold(number), entry.file_bytes)).chain(frames).collect()
    }

    /// Footer and index, from whichever copy has them.
    fn layout(&mut self) -> Result<Option<Layout>, DiskError> {
        let (number, file_bytes) = (self.place.number, self.place.entry.file_bytes);
        let footer_at = ColdIndex::footer_at(file_bytes);
        let cold = FileId::Cold(number);
        let footer = self.decoded(cold, footer_at, BLOCK, |bytes| Footer::decode(number, file_bytes, bytes).ok())?;
        let Some(footer) = footer else { return Ok(None) };
        let index =
            self.decoded(cold, footer.index_at, footer.index_bytes as usize, |bytes| ColdIndex::decode(&footer, bytes).ok())?;
        let Some(index) = index else { return Ok(None) };
        let file = FileId::Cold(number);
        let part = |at, bytes, stretch| Place { file, at, bytes, stretch };
        let mut parts = vec![part(0, BLOCK, Stretch::Header)];
        if self.place.entry.promoted.is_none() {
            let blocks = index.blocks().iter().enumerate();
            parts.extend(blocks.map(|(n, block)| part(block.at, block.bytes as usize, Stretch::Block(n as u32))));
        }
        parts.extend(index.pages().iter().enumerate().map(|(n, page)| part(page.at, page.bytes as usize, Stretch::Page(n))));
        parts.push(part(footer.index_at, footer.index_bytes as usize, Stretch::Index));
        parts.push(part(footer_at, BLOCK, Stretch::Footer));
        if let Some(wal) = self.place.entry.promoted {
            parts.extend(frame_parts(number, &index, wal.bytes));
        }
        Ok(Some(Layout { footer, index, parts }))
    }

    fn decoded<T>(
        &mut self,
        file: FileId,
        at: u64,
        bytes: usize,
        decode: impl Fn(&Bytes) -> Option<T>,
    ) -> Result<Option<T>, DiskError> {
        for volume in self.from.clone() {
            if let Some(found) = self.read(volume, file, at, bytes)?.and_then(|bytes| decode(&bytes)) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Bytes of one copy; `None` where they cannot be read.
    fn read(&mut self, volume: u8, file: FileId, at: u64, bytes: usize) -> Result<Option<Bytes>, DiskError> {
        match self.stores.read_on(volume, file, at, bytes) {
            Ok(bytes) => Ok(Some(bytes)),
            // A disk that hangs may yet have what no other has.
            Err(error @ (DiskError::Closed { .. } | DiskError::Hangs { .. })) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// All parts of a file in their order, each with the best bytes there are.
    fn pass(&mut self, layout: Option<&Layout>, file: FileId, each: Each<'_>) -> Result<(), DiskError> {
        let Some(layout) = layout else { return self.pass_raw(file, each) };
        let (place, log_id) = (self.place, self.log_id);
        for part in layout.parts.iter().filter(|part| part.file == file) {
            let best = self.best(file, part.at, part.bytes, |found| is_intact(layout, part.stretch, place, log_id, found))?;
            each(self.stores, part.at, &best)?;
        }
        Ok(())
    }

    /// Without an index nothing tells the parts apart: the first copy as it is.
    fn pass_raw(&mut self, file: FileId, each: Each<'_>) -> Result<(), DiskError> {
        let end = self.files().into_iter().find(|(other, _)| *other == file).map_or(0, |(_, end)| end);
        let mut at = 0;
        while at < end {
            let bytes = (end - at).min(BLOCK as u64) as usize;
            let best = self.best(file, at, bytes, |_| false)?;
            each(self.stores, at, &best)?;
            at += bytes as u64;
        }
        Ok(())
    }

    fn best(&mut self, file: FileId, at: u64, bytes: usize, intact: impl Fn(&Bytes) -> bool) -> Result<Bytes, DiskError> {
        let mut best = None;
        let mut readable = None;
        for n in 0..self.from.len() {
            let found = self.read(self.from[n], file, at, bytes)?;
            let good = found.as_ref().is_some_and(&intact);
            self.intact[n] &= good;
            if good {
                best = best.or(found);
            } else {
                readable = readable.or(found);
            }
        }
        if best.is_none() && self.lost.is_none() {
            self.lost = Some(format!("no copy has {bytes} bytes at {at} of {file} intact"));
        }
        Ok(best.or(readable).unwrap_or_else(|| Bytes::from(vec![0; bytes])))
    }

    /// One copy anew, file by file: what is whole is given its name before the next one is begun.
    fn make(&mut self, layout: Option<&Layout>, volume: u8) -> Result<(), DiskError> {
        self.files().into_iter().try_for_each(|(file, end)| self.make_file(layout, volume, file, end))
    }

    fn make_file(&mut self, layout: Option<&Layout>, volume: u8, file: FileId, end: u64) -> Result<(), DiskError> {
        let remade = FileId::Remade(self.place.number);
        self.stores.change_on(volume, |store| store.create(remade))?;
        let mut piece = Piece { buf: AlignedBuf::zeroed(PIECE_BYTES), at: 0 };
        let result = self
            .pass(layout, file, &mut |stores, at, bytes| piece.put(stores, volume, remade, at, bytes))
            .and_then(|()| piece.flush(self.stores, volume, remade, end))
            .and_then(|()| self.stores.change_on(volume, |store| store.seal(remade)))
            .and_then(|()| self.stores.change_on(volume, |store| store.rename(remade, file)));
        if let Err(error) = &result
            && !matches!(error, DiskError::Closed { .. })
            && let Some(store) = self.stores.on(volume)
        {
            // What is left of it only takes up space; at the latest the next start removes it.
            let _ = store.remove(remade);
        }
        result
    }
}

fn is_intact(layout: &Layout, stretch: Stretch, place: &ColdPlace, log_id: &Uuid, found: &Bytes) -> bool {
    let number = place.number;
    match stretch {
        Stretch::Header => SegmentHead::decode(number, log_id, found).is_ok(),
        Stretch::Block(n) => decode_block(number, n, found.clone()).is_ok(),
        Stretch::Page(n) => decode_page(number, &layout.index.pages()[n], found.clone()).is_ok(),
        Stretch::Index => ColdIndex::decode(&layout.footer, found).is_ok(),
        Stretch::Footer => Footer::decode(number, place.entry.file_bytes, found).is_ok(),
        Stretch::Frame(n) => place.entry.promoted.is_some_and(|wal| {
            let of = FramesOf { number, log_id: *log_id, sequence: wal.sequence };
            frames::is_intact(&of, &layout.index.block(n as usize), found)
        }),
        Stretch::Rest => true,
    }
}

/// The `.wal` file in pieces: each frame that the index names once, and what lies between.
fn frame_parts(number: u32, index: &ColdIndex, end: u64) -> Vec<Place> {
    let file = FileId::Promoted(number);
    let mut named: Vec<(u64, usize, u32)> =
        (0..).zip(index.blocks()).map(|(n, place)| (place.at, place.bytes as usize, n)).collect();
    named.sort_unstable();
    named.dedup_by_key(|(at, ..)| *at);
    let mut parts = Vec::with_capacity(2 * named.len());
    let mut at = 0;
    for (next, frame) in named.iter().map(|frame| (frame.0, Some(frame))).chain([(end, None)]) {
        while at < next {
            let bytes = (next - at).min(PIECE_BYTES as u64) as usize;
            parts.push(Place { file, at, bytes, stretch: Stretch::Rest });
            at += bytes as u64;
        }
        if let Some((_, bytes, n)) = frame {
            parts.push(Place { file, at: next, bytes: *bytes, stretch: Stretch::Frame(*n) });
            at = next + *bytes as u64;
        }
    }
    parts
}

/// What is not written yet of a new copy.
struct Piece {
    buf: AlignedBuf,
    /// Where in the file it begins.
    at: u64,
}

impl Piece {
    /// Takes bytes that lie behind those before.
    fn put(&mut self, stores: &mut Stores<'_>, volume: u8, file: FileId, mut at: u64, mut bytes: &[u8]) -> Result<(), DiskError> {
        while !bytes.is_empty() {
            while at >= self.at + PIECE_BYTES as u64 {
                self.write(stores, volume, file, PIECE_BYTES)?;
            }
            let from = (at - self.at) as usize;
            let length = bytes.len().min(PIECE_BYTES - from);
            self.buf[from..from + length].copy_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
            at += length as u64;
        }
        Ok(())
    }

    /// The rest, up to the end of the file.
    fn flush(&mut self, stores: &mut Stores<'_>, volume: u8, file: FileId, end: u64) -> Result<(), DiskError> {
        while self.at < end {
            let length = (end - self.at).min(PIECE_BYTES as u64) as usize;
            self.write(stores, volume, file, length)?;
        }
        Ok(())
    }

    fn write(&mut self, stores: &mut Stores<'_>, volume: u8, file: FileId, length: usize) -> Result<(), DiskError> {
        let (at, data) = (self.at, AlignedBuf::copy_of(&self.buf[..length]));
        stores.change_on(volume, |store| store.write(file, at, data))?;
        self.buf.fill(0);
        self.at += length as u64;
        Ok(())
    }
}
