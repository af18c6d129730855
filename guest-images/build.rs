//! Builds the guests: every `guests/*.rs` but the runtime, each with the same
//! compiler that builds this crate, for the same target, without its std.
//!
//! The linked ELF file of a flat guest is turned into its image here: its
//! segments, laid out from [`IMAGE`] on, zeros included, so that the end of the
//! image is the end of the guest.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::LittleEndian;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

/// Where flat images are loaded: `abi::IMAGE`, and in `guest.ld`.
const IMAGE: u64 = 0x10_0000;

/// Guests that stay ELF files, because they are entered in ring 0.
const ELF_GUESTS: [&str; 1] = ["ring0"];

fn main() -> Result<(), Box<dyn Error>> {
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let guests_dir = manifest_dir.join("guests");
    println!("cargo::rerun-if-changed={}", guests_dir.display());
    println!(
        "cargo::rerun-if-changed={}",
        manifest_dir.join("src/abi.rs").display()
    );

    for entry in guests_dir.read_dir()? {
        let source = entry?.path();
        let name = source
            .file_stem()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if source.extension().is_none_or(|extension| extension != "rs") || name == "rt" {
            continue;
        }
        let linked = out_dir.join(format!("{name}.elf"));
        compile(&source, &guests_dir.join("guest.ld"), &linked)?;
        if !ELF_GUESTS.contains(&name) {
            let image = flatten(&std::fs::read(&linked)?)?;
            std::fs::write(out_dir.join(format!("{name}.bin")), image)?;
        }
    }
    Ok(())
}

fn compile(source: &Path, script: &Path, linked: &Path) -> Result<(), Box<dyn Error>> {
    let mut rustc = Command::new(env::var("RUSTC")?);
    // Guests are built one way, whatever the crate is built with.
    rustc
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    rustc
        .args([
            "--edition=2024",
            "--crate-type=bin",
            "--target=x86_64-unknown-linux-gnu",
        ])
        .args([
            "-Dwarnings",
            "-Copt-level=2",
            "-Cpanic=abort",
            "-Cstrip=symbols",
        ])
        .args([
            "-Crelocation-model=static",
            "-Ctarget-cpu=x86-64",
            "-Coverflow-checks=on",
        ])
        .args([
            "-Clink-arg=-nostartfiles",
            "-Clink-arg=-nostdlib",
            "-Clink-arg=-static",
        ])
        .args(["-Clink-arg=-Wl,--build-id=none", "-Clink-arg=-Wl,-n"])
        .arg(format!("-Clink-arg=-Wl,-T,{}", script.display()))
        .arg("-o")
        .arg(linked)
        .arg(source);
    let status = rustc.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} does not build: {status}", source.display()).into())
    }
}

/// The flat image of a linked guest.
fn flatten(bytes: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let header = FileHeader64::<LittleEndian>::parse(bytes)?;
    let endian = header.endian()?;
    if header.e_entry(endian) != IMAGE {
        return Err("a guest's entry must be the first byte of its image".into());
    }
    let mut image = Vec::new();
    for segment in header.program_headers(endian, bytes)? {
        if segment.p_type(endian) != PT_LOAD {
            continue;
        }
        let content = segment
            .data(endian, bytes)
            .map_err(|()| "a segment outside of its file")?;
        let start = segment
            .p_vaddr(endian)
            .checked_sub(IMAGE)
            .ok_or("a segment below the image")?;
        let (start, len) = (
            usize::try_from(start)?,
            usize::try_from(segment.p_memsz(endian))?,
        );
        image.resize(image.len().max(start + len), 0);
        image[start..start + content.len()].copy_from_slice(content);
    }
    Ok(image)
}
