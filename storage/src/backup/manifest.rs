//! What one backup is made of. `FORMAT.md` beside this has every byte.

use std::path::{Component, Path};

use crate::disk::FileId;
use crate::format::superblock::{FormatVersion, Slot, Superblock};
use crate::format::{BLOCK, put, u16_at, u32_at, u64_at};

const MAGIC: &[u8; 8] = b"WEIRBAK1";
const HEAD_BYTES: usize = 64;
const FIXED_BYTES: usize = HEAD_BYTES + BLOCK;
const ENTRY_BYTES: usize = 24;
/// The newest version known here, and the one that is written.
pub const FORMAT: FormatVersion = FormatVersion { major: 1, minor: 0 };
/// No manifest is larger, whatever a directory holds: a hundred bytes a file, half a million files.
pub(super) const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// What restore makes of the stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// The used part of a WAL segment.
    Wal,
    /// A whole file.
    Whole,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// What it is.
    pub kind: FileKind,
    /// Of the stored bytes.
    pub crc: u32,
    /// Stored.
    pub bytes: u64,
    /// Below the data directory.
    pub place: String,
    /// Below the backup's `files/`.
    pub stored: String,
}

/// One backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its number.
    pub generation: u64,
    /// Unix time.
    pub created_ms: u64,
    /// Last frame in it.
    pub lsn: u64,
    /// As restore writes it.
    pub superblock: Superblock,
    /// All files.
    pub files: Vec<FileEntry>,
}

/// Why a manifest is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestProblem {
    /// Written by a newer program.
    #[error("it has backup format {found}, this program reads up to {FORMAT}: use the newer weir that wrote it")]
    Newer {
        /// Version found.
        found: FormatVersion,
    },
    /// The volume in it is of a newer format.
    #[error("it holds a volume of format {found}, which this program does not know: use the newer weir that wrote it")]
    NewerVolume {
        /// Version found.
        found: FormatVersion,
    },
    /// An entry of a kind that is not known.
    #[error("it names a file of kind {0}, which this program does not know: use the newer weir that wrote it")]
    NewerKind(u8),
    /// Not the bytes that were written.
    #[error("it is damaged ({0})")]
    Damaged(&'static str),
}

impl ManifestProblem {
    /// Whether only a newer program can read it.
    pub fn is_newer(&self) -> bool {
        !matches!(self, ManifestProblem::Damaged(_))
    }
}

impl Manifest {
    /// Bytes of all files as stored.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The whole file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; FIXED_BYTES];
        put(&mut out, 0, MAGIC);
        put(&mut out, 12, &FORMAT.major.to_le_bytes());
        put(&mut out, 14, &FORMAT.minor.to_le_bytes());
        put(&mut out, 16, &self.generation.to_le_bytes());
        put(&mut out, 24, &self.created_ms.to_le_bytes());
        put(&mut out, 32, &self.lsn.to_le_bytes());
        put(&mut out, 48, &(self.files.len() as u32).to_le_bytes());
        put(&mut out, HEAD_BYTES, &self.superblock.encode());
        for file in &self.files {
            let mut head = [0; ENTRY_BYTES];
            head[0] = match file.kind {
                FileKind::Wal => 1,
                FileKind::Whole => 2,
            };
            put(&mut head, 2, &(file.place.len() as u16).to_le_bytes());
            put(&mut head, 4, &(file.stored.len() as u16).to_le_bytes());
            put(&mut head, 8, &file.crc.to_le_bytes());
            put(&mut head, 16, &file.bytes.to_le_bytes());
            out.extend_from_slice(&head);
            out.extend_from_slice(file.place.as_bytes());
            out.extend_from_slice(file.stored.as_bytes());
        }
        let bytes = out.len() as u64;
        put(&mut out, 40, &bytes.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        put(&mut out, 8, &crc.to_le_bytes());
        out
    }

    /// Reads what should be the manifest of this generation.
    pub fn decode(generation: u64, bytes: &[u8]) -> Result<Manifest, ManifestProblem> {
        use ManifestProblem::Damaged;
        if bytes.len() < HEAD_BYTES || &bytes[..8] != MAGIC {
            return Err(Damaged("it is no manifest"));
        }
        if u32_at(bytes, 8) != crc32c::crc32c(&bytes[12..]) {
            return Err(Damaged("its CRC does not match"));
        }
        let found = FormatVersion { major: u16_at(bytes, 12), minor: u16_at(bytes, 14) };
        if found > FORMAT {
            return Err(ManifestProblem::Newer { found });
        }
        if found.major == 0 || u64_at(bytes, 40) != bytes.len() as u64 || bytes.len() < FIXED_BYTES {
            return Err(Damaged("its lengths contradict each other"));
        }
        if u64_at(bytes, 16) != generation {
            return Err(Damaged("it is that of another generation: put each file back under its own name"));
        }
        let superblock = match Superblock::decode(&bytes[HEAD_BYTES..FIXED_BYTES]) {
            Slot::Good(superblock) => superblock,
            Slot::Newer(found) => return Err(ManifestProblem::NewerVolume { found }),
            Slot::Empty | Slot::Damaged => return Err(Damaged("its superblock is damaged")),
        };
        let files = decode_entries(&bytes[FIXED_BYTES..])?;
        if files.len() as u64 != u64::from(u32_at(bytes, 48)) {
            return Err(Damaged("it has another number of entries than it says"));
        }
        Ok(Manifest { generation, created_ms: u64_at(bytes, 24), lsn: u64_at(bytes, 32), superblock, files })
    }
}

fn decode_entries(mut rest: &[u8]) -> Result<Vec<FileEntry>, ManifestProblem> {
    use ManifestProblem::Damaged;
    let mut files = Vec::new();
    while !rest.is_empty() {
        let short = || Damaged("an entry reaches beyond its end");
        let head = rest.get(..ENTRY_BYTES).ok_or_else(short)?;
        let (place_bytes, stored_bytes) = (usize::from(u16_at(head, 2)), usize::from(u16_at(head, 4)));
        let kind = match head[0] {
            1 => FileKind::Wal,
            2 => FileKind::Whole,
            other => return Err(ManifestProblem::NewerKind(other)),
        };
        let names = rest.get(ENTRY_BYTES..ENTRY_BYTES + place_bytes + stored_bytes).ok_or_else(short)?;
        let names = std::str::from_utf8(names).map_err(|_| Damaged("a name is no text"))?;
        let (place, stored) = names.split_at_checked(place_bytes).ok_or(Damaged("a name is no text"))?;
        if !is_place(kind, place) || !is_stored_name(stored) {
            return Err(Damaged("an entry names a file that no backup holds"));
        }
        let (crc, bytes) = (u32_at(head, 8), u64_at(head, 16));
        if kind == FileKind::Wal && !bytes.is_multiple_of(BLOCK as u64) {
            return Err(Damaged("a WAL segment ends within a block"));
        }
        files.push(FileEntry { kind, crc, bytes, place: place.to_owned(), stored: stored.to_owned() });
        rest = &rest[ENTRY_BYTES + place_bytes + stored_bytes..];
    }
    Ok(files)
}

/// Whether a restore may write there: only what a data directory holds, and never outside it.
fn is_place(kind: FileKind, place: &str) -> bool {
    let Some((folder, name)) = place.split_once('/') else { return false };
    match (kind, folder) {
        (FileKind::Wal, "wal") => FileId::segment_number(name).is_some(),
        (FileKind::Whole, "cold") => FileId::cold_file(name).is_some(),
        (FileKind::Whole, "plugins") => is_name(name),
        _ => false,
    }
}

/// A single path component, not hidden.
pub(super) fn is_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let single = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    single && !name.starts_with('.') && !name.contains('\0')
}

fn is_stored_name(name: &str) -> bool {
    is_name(name) && !name.ends_with(super::vault::PART)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::format::superblock::{Peer, VolumeState};
    use proptest::prelude::*;

    pub(crate) fn superblock() -> Superblock {
        Superblock {
            node_id: [1; 16],
            volume_id: [2; 16],
            generation: 5,
            epoch: 3,
            durable_lsn: 9,
            segment_bytes: 1 << 20,
            created_ms: 1,
            state: VolumeState::Open,
            first_sequence: 1,
            last_sequence: 2,
            copy_id: [0; 16],
            peer_id: [0; 16],
            peer: Peer::None,
            peer_lsn: 0,
        }
    }

    fn sample() -> Manifest {
        let file = |kind, place: &str, stored: &str| FileEntry {
            kind,
            crc: 7,
            bytes: 2 * BLOCK as u64,
            place: place.to_owned(),
            stored: stored.to_owned(),
        };
        let files = vec![
            file(FileKind::Wal, "wal/00001.wal", "wal-1"),
            file(FileKind::Whole, "cold/00000017.cold", "cold-17"),
            file(FileKind::Whole, "plugins/filter-1.wasm", "other-1"),
        ];
        Manifest { generation: 3, created_ms: 11, lsn: 9, superblock: superblock(), files }
    }

    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let crc = crc32c::crc32c(&bytes[12..]);
        put(&mut bytes, 8, &crc.to_le_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_seen(at: prop::sample::Index, flip in 1..=255_u8) {
            let mut bytes = sample().encode();
            prop_assert_eq!(Manifest::decode(3, &bytes), Ok(sample()));
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(matches!(Manifest::decode(3, &bytes), Err(ManifestProblem::Damaged(_))));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut whole = sample().encode();
            whole.truncate(FIXED_BYTES);
            whole.extend_from_slice(&bytes);
            let length = whole.len() as u64;
            put(&mut whole, 40, &length.to_le_bytes());
            let _ = (Manifest::decode(3, &resealed(whole)), Manifest::decode(3, &bytes));
        }
    }

    #[test]
    fn a_newer_manifest_volume_or_entry_is_told_from_damage() {
        for (at, value) in [(12, 2), (14, 1), (FIXED_BYTES, 9)] {
            let mut bytes = sample().encode();
            bytes[at] = value;
            let problem = Manifest::decode(3, &resealed(bytes)).unwrap_err();
            assert!(problem.is_newer() && problem.to_string().contains("newer weir"), "{problem}");
        }
        let mut bytes = sample().encode();
        bytes[HEAD_BYTES + 14] += 1;
        let crc = crc32c::crc32c(&bytes[HEAD_BYTES + 12..FIXED_BYTES]);
        put(&mut bytes, HEAD_BYTES + 8, &crc.to_le_bytes());
        assert!(matches!(Manifest::decode(3, &resealed(bytes)), Err(ManifestProblem::NewerVolume { .. })));
        assert!(matches!(Manifest::decode(4, &sample().encode()), Err(ManifestProblem::Damaged(_))), "another generation's");
    }

    #[test]
    fn nothing_is_restored_outside_the_data_directory() {
        for place in
            ["superblock", "../x", "plugins/../x", "plugins/", "plugins/a/b", "wal/1.wal", "cold/x", "/etc/x", "plugins/.x"]
        {
            assert!(!is_place(FileKind::Whole, place) && !is_place(FileKind::Wal, place), "{place}");
        }
        assert!(!is_place(FileKind::Whole, "wal/00001.wal") && !is_stored_name("x.part") && !is_stored_name("a/b"));
    }
}
