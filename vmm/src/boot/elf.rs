//! The segments of an ELF64 x86-64 executable.

use std::mem::offset_of;
use std::ops::Range;

use object::LittleEndian;
use object::elf::{self, FileHeader64, Ident};
use object::read::elf::{FileHeader, ProgramHeader};

/// Bytes of an ELF64 file's own header.
const ELF_HEADER_LEN: usize = size_of::<FileHeader64<LittleEndian>>();
/// Where a file says whether it has 32 or 64 bits …
const CLASS_AT: usize = offset_of!(Ident, class);
/// … and its byte order.
const BYTE_ORDER_AT: usize = offset_of!(Ident, data);

/// Why an ELF file cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// The file ends before its header does.
    #[error("the file is truncated: it has {file_len} of the {ELF_HEADER_LEN} bytes of a header")]
    NoHeader {
        /// How long the file is.
        file_len: usize,
    },
    /// Not of 64 bits.
    #[error("it is of class {0}, not 64-bit (2)")]
    Class(u8),
    /// Not little-endian.
    #[error("its byte order is {0}, not little-endian (1)")]
    ByteOrder(u8),
    /// The headers make no sense, or lie outside of the file.
    #[error("its headers are damaged, or lie outside of the file: {0}")]
    Header(object::read::Error),
    /// For another machine.
    #[error("it is for machine {0}, not x86-64 (62)")]
    Machine(u16),
    /// Not an executable with fixed addresses.
    #[error(
        "it is of type {0}, not an executable with fixed addresses (2): link it with -static -no-pie"
    )]
    Type(u16),
    /// Nothing to load.
    #[error("it has nothing to load")]
    NoSegment,
    /// A segment's bytes are not all in the file.
    #[error("segment {index} needs bytes {range:?} of a file of {file_len}: the file is truncated")]
    Truncated {
        /// The program header's number.
        index: usize,
        /// Where its bytes should be.
        range: Range<u64>,
        /// How long the file is.
        file_len: u64,
    },
    /// A segment is larger in the file than in memory, or wraps around.
    #[error(
        "segment {index} has {file_len} bytes in the file and {memory_len} at {address:#x} in memory, which cannot be"
    )]
    Size {
        /// The program header's number.
        index: usize,
        /// Bytes in the file.
        file_len: u64,
        /// Bytes in memory.
        memory_len: u64,
        /// Physical address.
        address: u64,
    },
    /// Two segments want the same memory.
    #[error("segments overlap: {0:#x?} and {1:#x?}")]
    Overlap(Range<u64>, Range<u64>),
    /// The entry point is in no segment.
    #[error("its entry {0:#x} lies in no segment")]
    Entry(u64),
}

/// A piece of a kernel: bytes of the file, and where they go. Memory past the
/// bytes is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) file: Range<usize>,
    pub(crate) memory: Range<u64>,
}

/// An ELF executable, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Elf {
    /// By address; none overlap, none is empty.
    pub(crate) segments: Vec<Segment>,
    pub(crate) entry: u64,
}

impl Elf {
    /// Whether `bytes` say that they are ELF.
    pub(crate) fn claims(bytes: &[u8]) -> bool {
        bytes.starts_with(&elf::ELFMAG)
    }

    /// Reads the headers and checks them against the file and one another.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ElfError> {
        let ident = |at: usize| bytes.get(at).copied();
        match (ident(CLASS_AT), ident(BYTE_ORDER_AT)) {
            (Some(class), _) if class != elf::ELFCLASS64.0 => return Err(ElfError::Class(class)),
            (_, Some(order)) if order != elf::ELFDATA2LSB.0 => {
                return Err(ElfError::ByteOrder(order));
            }
            _ if bytes.len() < ELF_HEADER_LEN => {
                return Err(ElfError::NoHeader {
                    file_len: bytes.len(),
                });
            }
            _ => {}
        }
        let header = FileHeader64::<LittleEndian>::parse(bytes).map_err(ElfError::Header)?;
        let endian = header.endian().map_err(ElfError::Header)?;
        let machine = header.e_machine(endian);
        if machine != elf::EM_X86_64 {
            return Err(ElfError::Machine(machine.0));
        }
        let kind = header.e_type(endian);
        if kind != elf::ET_EXEC {
            return Err(ElfError::Type(kind.0));
        }
        let headers = header
            .program_headers(endian, bytes)
            .map_err(ElfError::Header)?;
        let mut segments = Vec::new();
        for (index, header) in headers.iter().enumerate() {
            let memory_len = header.p_memsz(endian);
            if header.p_type(endian) != elf::PT_LOAD || memory_len == 0 {
                continue;
            }
            let (offset, file_len) = (header.p_offset(endian), header.p_filesz(endian));
            let address = header.p_paddr(endian);
            let bad_size = ElfError::Size {
                index,
                file_len,
                memory_len,
                address,
            };
            if file_len > memory_len {
                return Err(bad_size);
            }
            let memory_end = address.checked_add(memory_len).ok_or(bad_size)?;
            let range = offset..offset.saturating_add(file_len);
            let truncated = ElfError::Truncated {
                index,
                range: range.clone(),
                file_len: bytes.len() as u64,
            };
            if range.end > bytes.len() as u64 {
                return Err(truncated);
            }
            let in_memory = |at: u64| usize::try_from(at).map_err(|_| truncated.clone());
            segments.push(Segment {
                file: in_memory(range.start)?..in_memory(range.end)?,
                memory: address..memory_end,
            });
        }
        Self::new(segments, header.e_entry(endian))
    }

    fn new(mut segments: Vec<Segment>, entry: u64) -> Result<Self, ElfError> {
        if segments.is_empty() {
            return Err(ElfError::NoSegment);
        }
        segments.sort_unstable_by_key(|segment| segment.memory.start);
        for pair in segments.windows(2) {
            if pair[1].memory.start < pair[0].memory.end {
                return Err(ElfError::Overlap(
                    pair[0].memory.clone(),
                    pair[1].memory.clone(),
                ));
            }
        }
        if !segments
            .iter()
            .any(|segment| segment.memory.contains(&entry))
        {
            return Err(ElfError::Entry(entry));
        }
        Ok(Self { segments, entry })
    }

    /// All memory from the first to the last byte of it.
    pub(crate) fn memory(&self) -> Range<u64> {
        // Sorted, disjoint, and at least one.
        let first = self
            .segments
            .first()
            .map_or(0, |segment| segment.memory.start);
        let last = self.segments.last().map_or(0, |segment| segment.memory.end);
        first..last
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An ELF file with one program header per `(paddr, file bytes, memory)`.
    pub(crate) fn elf_file(entry: u64, segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend(2u16.to_le_bytes()); // executable
        bytes.extend(62u16.to_le_bytes()); // x86-64
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(entry.to_le_bytes());
        bytes.extend(64u64.to_le_bytes()); // program headers
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        for half in [64, 56, segments.len(), 64, 0, 0] {
            bytes.extend(u16::try_from(half).unwrap().to_le_bytes());
        }
        let mut offset = bytes.len() + 56 * segments.len();
        for (address, content, memory_len) in segments {
            bytes.extend(1u32.to_le_bytes());
            bytes.extend(7u32.to_le_bytes());
            for word in [
                offset as u64,
                *address,
                *address,
                content.len() as u64,
                *memory_len,
                0x1000,
            ] {
                bytes.extend(word.to_le_bytes());
            }
            offset += content.len();
        }
        for (_, content, _) in segments {
            bytes.extend(*content);
        }
        bytes
    }

    #[test]
    fn segments_are_found_with_their_zero_tails() {
        let file = elf_file(
            0x10_0001,
            &[(0x20_0000, b"data", 0x3000), (0x10_0000, b"code!", 5)],
        );
        let elf = Elf::parse(&file).unwrap();
        assert_eq!(elf.entry, 0x10_0001);
        assert_eq!(elf.memory(), 0x10_0000..0x20_3000);
        assert_eq!(&file[elf.segments[0].file.clone()], b"code!");
        assert_eq!(&file[elf.segments[1].file.clone()], b"data");
    }

    #[test]
    fn what_cannot_be_loaded_is_refused_by_name() {
        let good = elf_file(0x10_0000, &[(0x10_0000, b"code", 4)]);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Elf::parse(&bytes).unwrap_err()
        };
        assert_eq!(with(4, 1), ElfError::Class(1));
        assert_eq!(with(5, 2), ElfError::ByteOrder(2));
        assert!(matches!(with(6, 9), ElfError::Header(_))); // no such version
        assert!(matches!(with(39, 1), ElfError::Header(_))); // program headers far off
        assert!(matches!(with(54, 1), ElfError::Header(_))); // of a wrong size
        assert_eq!(with(18, 3), ElfError::Machine(3));
        assert_eq!(with(16, 3), ElfError::Type(3));
        assert_eq!(with(56, 0), ElfError::NoSegment);
        assert!(matches!(
            Elf::parse(&good[..good.len() - 1]),
            Err(ElfError::Truncated { .. })
        ));
        assert_eq!(
            Elf::parse(&good[..20]),
            Err(ElfError::NoHeader { file_len: 20 })
        );
        assert_eq!(
            Elf::parse(b"\x7fELF"),
            Err(ElfError::NoHeader { file_len: 4 })
        );
        assert!(matches!(
            Elf::parse(&elf_file(0x10_0000, &[(0x10_0000, b"code", 3)])),
            Err(ElfError::Size { .. })
        ));
        assert!(matches!(
            Elf::parse(&elf_file(0x10_0000, &[(u64::MAX - 1, b"", 4)])),
            Err(ElfError::Size { .. })
        ));
        assert!(matches!(
            Elf::parse(&elf_file(
                0x10_0000,
                &[(0x10_0000, b"code", 0x1001), (0x10_1000, b"more", 4)]
            )),
            Err(ElfError::Overlap(..))
        ));
        assert_eq!(
            Elf::parse(&elf_file(0x10_0004, &[(0x10_0000, b"code", 4)])),
            Err(ElfError::Entry(0x10_0004))
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_parsing_panic(
            changes in prop::collection::vec((0..300usize, any::<u8>()), 0..12),
            keep in 0..300usize,
        ) {
            let mut bytes = elf_file(0x10_0000, &[(0x10_0000, b"code", 4), (0x20_0000, b"data", 9)]);
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(keep.max(4));
            if let Ok(elf) = Elf::parse(&bytes) {
                for segment in &elf.segments {
                    prop_assert!(segment.file.end <= bytes.len());
                    prop_assert!(segment.file.len() as u64 <= segment.memory.end - segment.memory.start);
                }
            }
        }
    }
}
