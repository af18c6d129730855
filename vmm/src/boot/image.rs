//! Kernel images: what is in a file, before anything is known of a VM.

use std::borrow::Cow;
use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::elf::{Elf, ElfError};

/// Largest kernel or initial RAM disk, so that a pipe that never ends does not
/// fill the host's memory.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// Where Linux's setup header says "HdrS" in a bzImage.
const BZIMAGE_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");

/// Why a file is not a kernel that can be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be opened or read.
    #[error("cannot read `{path}`: {source}")]
    Unreadable {
        /// The path given.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It is a device or a socket: reading it may never end, or do something.
    #[error("`{path}` is a {kind}: give a file or a pipe")]
    NotAFile {
        /// The path given.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// It is longer than any kernel.
    #[error("`{path}` is larger than {MAX_FILE_BYTES} bytes")]
    TooLarge {
        /// The path given.
        path: String,
    },
    /// It has no bytes.
    #[error("the kernel is empty")]
    Empty,
    /// It is compressed Linux.
    #[error("the kernel is a Linux bzImage: give the vmlinux that it was made from")]
    BzImage,
    /// It starts as an ELF file, but cannot be loaded as one.
    #[error("the kernel claims to be ELF, but {0}")]
    Elf(#[from] ElfError),
}

impl KernelError {
    /// Whether the file could not even be read.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Unreadable { .. })
    }
}

/// A kernel that can be booted: a flat image or an ELF64 executable.
#[derive(Debug)]
pub struct Kernel {
    bytes: Cow<'static, [u8]>,
    elf: Option<Elf>,
}

impl Kernel {
    /// Reads a kernel from a file.
    ///
    /// # Errors
    /// If the file cannot be read, or is not a kernel.
    pub fn from_file(path: &Path) -> Result<Self, KernelError> {
        Self::from_bytes(read(path)?)
    }

    /// Takes a kernel from memory.
    ///
    /// # Errors
    /// If it is not one.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, KernelError> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(KernelError::Empty);
        }
        let (at, magic) = BZIMAGE_MAGIC;
        if bytes.get(at..at + magic.len()) == Some(magic) {
            return Err(KernelError::BzImage);
        }
        let elf = Elf::claims(&bytes)
            .then(|| Elf::parse(&bytes))
            .transpose()?;
        Ok(Self { bytes, elf })
    }

    /// Reads an initial RAM disk from a file.
    ///
    /// # Errors
    /// If it cannot be read, or is larger than any.
    pub fn read_initrd(path: &Path) -> Result<Vec<u8>, KernelError> {
        read(path)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The ELF's segments; none for a flat image.
    pub(crate) fn elf(&self) -> Option<&Elf> {
        self.elf.as_ref()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KernelError> {
    let name = || path.display().to_string();
    let unreadable = |source| KernelError::Unreadable {
        path: name(),
        source,
    };
    let too_large = || KernelError::TooLarge { path: name() };
    // Asked before opening, because that alone may do something to a device.
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if let Some(kind) = unfit(metadata.file_type()) {
        return Err(KernelError::NotAFile { path: name(), kind });
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    // A pipe has no length, and a file may grow.
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large());
    }
    Ok(bytes)
}

/// What is no file with an end, by name. (Reading a directory fails by itself.)
fn unfit(kind: FileType) -> Option<&'static str> {
    if kind.is_char_device() {
        Some("character device")
    } else if kind.is_block_device() {
        Some("block device")
    } else if kind.is_socket() {
        Some("socket")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bzimage_is_told_from_a_flat_image() {
        let mut bytes = vec![0u8; 0x300];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(matches!(
            Kernel::from_bytes(bytes),
            Err(KernelError::BzImage)
        ));
    }

    #[test]
    fn any_bytes_that_do_not_claim_to_be_elf_are_a_flat_image() {
        let kernel = Kernel::from_bytes(&b"\xf4"[..]).unwrap();
        assert!(kernel.elf().is_none());
        assert!(matches!(
            Kernel::from_bytes(&b""[..]),
            Err(KernelError::Empty)
        ));
    }

    #[test]
    fn devices_are_refused_unread_and_pipes_are_read_to_their_end() {
        let error = Kernel::from_file(Path::new("/dev/zero")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("`/dev/zero` is a character device"),
            "{error}"
        );
        let (reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, b"\xf4").unwrap();
        drop(writer);
        let path = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        assert_eq!(
            Kernel::from_file(Path::new(&path)).unwrap().bytes(),
            b"\xf4"
        );
    }

    #[test]
    fn what_is_too_large_is_refused_by_its_length_alone() {
        let path = std::env::temp_dir().join(format!("vmm-too-large-{}", std::process::id()));
        // Sparse: nothing could be read of it but zeros.
        File::create(&path).unwrap().set_len(1 << 42).unwrap();
        let error = Kernel::from_file(&path).unwrap_err();
        fs::remove_file(&path).unwrap();
        assert!(matches!(error, KernelError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn a_directory_and_a_missing_file_are_unreadable() {
        for path in ["/", "/nowhere/to/be/found"] {
            let error = Kernel::from_file(Path::new(path)).unwrap_err();
            assert!(
                error.is_unreadable() && error.to_string().contains(path),
                "{error}"
            );
        }
    }
}
