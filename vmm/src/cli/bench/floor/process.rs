//! fork(2) of a process with as much memory as a guest: how the kernel itself
//! makes a copy of something that runs.
//!
//! It happens in a process of its own, which has one thread and nothing but
//! that memory: [`Forker`] starts it, and asks it for one fork at a time.

// UNSAFETY: fork(2) in a process of one thread, whose child only writes a byte
// and ends.
#![expect(unsafe_code)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use vmm::PAGE_SIZE;

/// What that process is told.
#[derive(Debug, clap::Args)]
pub(crate) struct ForkArgs {
    /// Memory to have, in MiB
    #[arg(long)]
    mib: usize,
}

/// A process to be forked.
pub(in super::super) struct Forker {
    child: Child,
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Forker {
    /// Starts one with `mib` MiB of memory, all of it written to.
    pub(in super::super) fn new(mib: u64) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench-fork", "--mib", &mib.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let ask = child.stdin.take();
        let answers = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self {
            child,
            ask,
            answers: BufReader::new(answers),
        })
    }

    /// Microseconds from a fork(2) to the child's first instruction of its own.
    pub(in super::super) fn fork(&mut self) -> io::Result<f64> {
        let ask = self.ask.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(ask)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim().parse().map_err(io::Error::other)
    }
}

impl Drop for Forker {
    fn drop(&mut self) {
        // It ends when nobody asks any more.
        drop(self.ask.take());
        let _ = self.child.wait();
    }
}

/// What that process does: forks once for every line it is sent.
pub(crate) fn serve(args: &ForkArgs) -> io::Result<u8> {
    let mut memory = vec![0_u8; args.mib << 20];
    for page in memory.chunks_mut(PAGE_SIZE as usize) {
        page[0] = 1;
    }
    for line in io::stdin().lines() {
        line?;
        let (mut reader, writer) = io::pipe()?;
        let start = Instant::now();
        // SAFETY: this process has one thread, so the child may do what it
        // likes; it writes a byte and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let _ = (&writer).write_all(b"1");
            // SAFETY: ends the child without running what the parent has
            // registered.
            unsafe { libc::_exit(0) }
        }
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        reader.read_exact(&mut [0])?;
        let took = start.elapsed().as_secs_f64() * 1e6;
        // SAFETY: waits for the child just made; no status is wanted.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        let mut out = io::stdout();
        writeln!(out, "{took}")?;
        out.flush()?;
    }
    std::hint::black_box(&memory);
    Ok(0)
}
