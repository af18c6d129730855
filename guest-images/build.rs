//! Builds the guests: every `guests/*.rs` but the runtime, each with the same
//! compiler that builds this crate, for the same target, without its std.
//!
//! The linked ELF file of a flat guest is turned into its image here: its
//! segments, laid out from [`IMAGE`] on, zeros included, so that the end of the
//! image is the end of the guest.
//!
//! Guests are built one way, whatever this crate is built with: cargo does not
//! pass `RUSTFLAGS` on to a compiler that a build script starts, and wrappers
//! (clippy, caches) are left out on purpose.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};

use object::LittleEndian;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

/// Where flat images are loaded: `abi::IMAGE`, and in `guest.ld`.
const IMAGE: u64 = 0x10_0000;

/// Guests that stay ELF files, because they are entered in ring 0.
const ELF_GUESTS: [&str; 3] = ["clock", "ring0", "ring0-smp"];

/// Files outside of `guests` that guests include.
const SHARED: [&str; 2] = ["src/abi.rs", "src/worker.rs"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // By hand, because what the compiler says has many lines.
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let compiler = Compiler::from_env()?;
    for path in SHARED.iter().chain(&["guests"]) {
        let path = compiler.crate_dir.join(path);
        println!("cargo::rerun-if-changed={}", path.display());
    }

    // As many compilers at a time as cargo itself may run.
    let jobs = env::var("NUM_JOBS")?.parse::<usize>()?.max(1);
    for names in guest_names(&compiler.crate_dir)?.chunks(jobs) {
        let started = names.iter().map(|name| compiler.start(name));
        let started = started.collect::<Result<Vec<_>, _>>()?;
        for (name, child) in names.iter().zip(started) {
            finish(name, child.wait_with_output()?)?;
        }
        for name in names {
            if !ELF_GUESTS.contains(&name.as_str()) {
                let image = flatten(&std::fs::read(compiler.linked(name))?)
                    .map_err(|error| format!("guest {name}: {error}"))?;
                std::fs::write(compiler.out_dir.join(format!("{name}.bin")), image)?;
            }
        }
    }
    Ok(())
}

/// The names of all guests: sources, but for what they share.
fn guest_names(crate_dir: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in crate_dir.join("guests").read_dir()? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let is_source = path.extension().is_some_and(|extension| extension == "rs");
        if let Some(name) = name.filter(|name| is_source && *name != "rt") {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// How guests are compiled.
struct Compiler {
    rustc: OsString,
    target: String,
    /// The linker that the user told cargo to use, if any.
    linker: Option<OsString>,
    crate_dir: PathBuf,
    out_dir: PathBuf,
}

impl Compiler {
    fn from_env() -> Result<Self, Box<dyn Error>> {
        let need = |name: &str| env::var_os(name).ok_or_else(|| format!("cargo sets no {name}"));
        // The target that this crate is built for: its core library is there.
        let target = env::var("TARGET")?;
        if !(target.starts_with("x86_64") && target.contains("linux")) {
            return Err(
                format!("guests are for x86-64 and built on Linux, not for {target}").into(),
            );
        }
        Ok(Self {
            rustc: need("RUSTC")?,
            target,
            linker: env::var_os("RUSTC_LINKER"),
            crate_dir: need("CARGO_MANIFEST_DIR")?.into(),
            out_dir: need("OUT_DIR")?.into(),
        })
    }

    fn linked(&self, name: &str) -> PathBuf {
        self.out_dir.join(format!("{name}.elf"))
    }

    /// Starts to compile guest `name`.
    fn start(&self, name: &str) -> std::io::Result<Child> {
        let mut remap = OsString::from("--remap-path-prefix=");
        // Panic messages hold paths: images are the same wherever they are built.
        remap.push(&self.crate_dir);
        remap.push("=guest-images");
        // An argument of its own: in `-Wl,…` a comma in the path would end it.
        let mut script = OsString::from("-Clink-arg=");
        script.push(self.crate_dir.join("guests/guest.ld"));

        let mut rustc = Command::new(&self.rustc);
        rustc
            .args(["--edition=2024", "--crate-type=bin", "--target"])
            .arg(&self.target)
            .args(["-Copt-level=2", "-Cpanic=abort", "-Cstrip=symbols"])
            .args(["-Crelocation-model=static", "-Ctarget-cpu=x86-64"])
            .args([
                "-Coverflow-checks=on",
                "-Clink-arg=-nostartfiles",
                "-Clink-arg=-nostdlib",
            ])
            .args(["-Clink-arg=-static", "-Clink-arg=-no-pie"])
            .args(["-Clink-arg=-Wl,--build-id=none", "-Clink-arg=-Wl,-n"])
            .args([remap, "-Clink-arg=-T".into(), script]);
        // A newer compiler may warn of more: that stops the project's own gate,
        // and nobody who only wants to build.
        if env::var_os("CI").is_some() {
            rustc.arg("-Dwarnings");
        }
        if let Some(linker) = &self.linker {
            let mut argument = OsString::from("-Clinker=");
            argument.push(linker);
            rustc.arg(argument);
        }
        rustc.arg("-o").arg(self.linked(name));
        rustc.arg(self.crate_dir.join(format!("guests/{name}.rs")));
        rustc.stderr(Stdio::piped()).spawn()
    }
}

/// Fails if guest `name` did not compile; shows what the compiler warned of.
fn finish(name: &str, output: Output) -> Result<(), Box<dyn Error>> {
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("guest {name} does not build ({}):\n{said}", output.status).into());
    }
    for line in said.lines() {
        println!("cargo::warning=guest {name}: {line}");
    }
    Ok(())
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
