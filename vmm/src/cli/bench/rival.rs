//! What others do for a copy of a template, written from the public
//! descriptions of their sequences, around the same guest as ours.
//!
//! * zeroboot: a VM with the full in-kernel irqchip and timer, and then memory
//!   mapped privately from a memfd ([`Irqchip::Full`] in `floor::machine`)
//! * Firecracker: a process for every VM, which opens a snapshot, maps its
//!   memory privately and restores the registers ([`Spawner`]). Ours skips
//!   devices, jailer and API, and its files are in memory
//! * TinyKVM's reset, in `measures::reset`
//!
//! [`Irqchip::Full`]: super::floor::machine::Irqchip::Full

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use kvm_ioctls::Kvm;

use super::floor::machine::{Irqchip, Machine};
use super::floor::memory::{Mapping, Writes};
use super::floor::state::State;
use super::floor::template::{Template, expect_ready};

/// Programs that a reader may want to compare with; they are only looked for.
const PROGRAMS: [&str; 3] = ["firecracker", "cloud-hypervisor", "qemu-system-x86_64"];

/// Which of them this host has, in words.
pub(super) fn found_in_path() -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let words = PROGRAMS.map(|name| match found(name) {
        true => format!("{name} present (not measured)"),
        false => format!("{name} absent"),
    });
    words.join(", ")
}

/// What the process of a [`Spawner`] is told.
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// The guest's memory
    #[arg(long)]
    memory: PathBuf,
    /// The guest's registers
    #[arg(long)]
    state: PathBuf,
}

/// Starts a process for every copy of a template.
pub(super) struct Spawner {
    program: PathBuf,
    memory: PathBuf,
    state: PathBuf,
    /// What `state` names.
    _state_file: File,
}

impl Spawner {
    pub(super) fn new(template: &Template) -> io::Result<Self> {
        let state_file = template.state_file()?;
        let path_of = |fd| PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()));
        Ok(Self {
            program: std::env::current_exe()?,
            memory: path_of(template.file.as_raw_fd()),
            state: path_of(state_file.as_raw_fd()),
            _state_file: state_file,
        })
    }

    /// Starts one and waits for the first exit of its guest.
    pub(super) fn copy(&self) -> io::Result<Process> {
        let mut child = Command::new(&self.program)
            .arg("bench-restore")
            .args(["--memory".as_ref(), self.memory.as_os_str()])
            .args(["--state".as_ref(), self.state.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut word = [0];
        if let Some(stdout) = &mut child.stdout {
            stdout.read_exact(&mut word)?;
        }
        Ok(Process(child))
    }
}

/// A copy in a process of its own.
pub(super) struct Process(Child);

impl Process {
    /// Ends it.
    pub(super) fn end(mut self) -> io::Result<()> {
        // It waits for its standard input to close.
        drop(self.0.stdin.take());
        self.0.wait().map(drop)
    }
}

/// What that process does: restores, runs to the first exit, says so, and waits
/// for its end.
pub(super) fn restore(args: &RestoreArgs) -> io::Result<u8> {
    let state = State::read_from(&mut BufReader::new(File::open(&args.state)?))?;
    let file = File::open(&args.memory)?;
    let len_bytes = file.metadata()?.len();
    let memory = Mapping::new(&file, len_bytes, Writes::Private)?;
    let mut machine = Machine::new(&Kvm::new()?, &state, Irqchip::Split, memory)?;
    expect_ready(&mut machine)?;
    let mut out = io::stdout();
    out.write_all(b"1")?;
    out.flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(0)
}
