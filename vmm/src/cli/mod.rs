//! The command line: arguments in, an exit code out.
//!
//! A guest's own exit code becomes the process's. The VMM's own failures have
//! codes from `sysexits.h`, so that scripts can tell them apart; each comes
//! with one line on standard error.

mod args;
mod bench;
mod demo;
mod exit;
mod family;

use std::process::ExitCode;

use guest_images::Guest;
use vmm::{Host, Kernel, VmBuilder};

use args::{Args, Command};
use exit::Failure;

/// Parses the arguments, does what they say, reports.
pub(crate) fn main() -> ExitCode {
    let args = match Args::from_command_line() {
        Ok(args) => args,
        Err(code) => return code,
    };
    start_logging(args.verbose);
    match run(args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("vmm: {}", failure.message());
            ExitCode::from(failure.code())
        }
    }
}

fn run(args: Args) -> Result<u8, Failure> {
    match &args.command {
        Some(Command::Bench(bench)) => return bench::run(bench),
        Some(Command::BenchRestore(restore)) => return bench::restore(restore),
        Some(Command::BenchFork(fork)) => return bench::fork_process(fork),
        None => {}
    }
    let Some(path) = &args.kernel else {
        let host = Host::open()?;
        let kernel = Kernel::from_bytes(Guest::Counter.image())?;
        let builder = VmBuilder::new(host, kernel);
        return demo::run(with_machine(builder, &args));
    };
    // Files first: what is wrong with them is known before any VM exists.
    let kernel = Kernel::from_file(path)?;
    let initrd = args
        .initrd
        .as_deref()
        .map(Kernel::read_initrd)
        .transpose()?;
    let builder = VmBuilder::new(Host::open()?, kernel);
    let mut builder = with_machine(builder, &args)
        .cmdline(args.cmdline)
        .console(vmm::ConsoleMode::Stdout);
    if let Some(initrd) = initrd {
        builder = builder.initrd(initrd);
    }
    family::run(builder.build()?, args.max_forks, args.zero_scan)
}

/// The builder with the memory and vCPUs asked for.
fn with_machine(builder: VmBuilder, args: &Args) -> VmBuilder {
    builder
        .memory_bytes(args.memory_bytes)
        .backing(args.backing)
        .cpus(args.cpus)
        .limits(args.memory_limit)
        .family_limits(args.family_limit)
        .huge_layers(args.huge_layers)
}

fn start_logging(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format_timestamp(None)
        .init();
}
