//! `vmm bench`: what the product costs, against what the kernel forces on
//! anyone and against what others do.
//!
//! * [`measures`]: what there is to measure, one idea a file
//! * [`subject`]: the product, with a guest that works on demand
//! * [`floor`]: the bare syscalls; [`rival`]: the sequences of others
//! * [`turns`], [`stats`], [`row`]: fair rounds, and what came of them
//! * [`output`], [`plot`]: the same for people and programs, and as pictures

mod floor;
mod measures;
mod output;
mod plot;
mod rival;
mod row;
mod stats;
mod subject;
mod turns;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::{PossibleValue, PossibleValuesParser};
use vmm::Host;

use super::exit::Failure;
pub(crate) use floor::process::ForkArgs;
use measures::MEASURES;
pub(crate) use rival::RestoreArgs;

/// Measures what this host makes of forks, resets and drops.
///
/// Every figure is held against its floor, which is the bare syscalls that the
/// kernel forces on anyone, and where there is one against the sequence of a
/// rival, all in turns within one run. docs/performance.md has the method.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// What to measure; all of it if nothing is named
    #[arg(value_name = "NAME", value_parser = names())]
    names: Vec<String>,

    /// Print one JSON object in place of the table
    #[arg(long)]
    json: bool,

    /// Draw the curves that were measured as SVG pictures, into this directory
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,

    /// Few rounds of small guests, to see that it works; the figures say little
    #[arg(long)]
    quick: bool,
}

fn names() -> PossibleValuesParser {
    let measures = MEASURES.iter();
    measures
        .map(|measure| PossibleValue::new(measure.name).help(measure.help))
        .collect::<Vec<_>>()
        .into()
}

/// How long and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    Quick,
    Full,
}

impl Effort {
    /// Rounds, given how many a full run has.
    fn rounds(self, full: usize) -> usize {
        match self {
            Self::Quick => 3,
            Self::Full => full,
        }
    }

    /// The guests to measure, by size in MiB, given those of a full run.
    fn sizes(self, full: &'static [u64]) -> &'static [u64] {
        match self {
            Self::Quick => &[64],
            Self::Full => full,
        }
    }

    /// MiB of the template that are not zero.
    fn content_mib(self) -> u64 {
        match self {
            Self::Quick => 4,
            Self::Full => 32,
        }
    }
}

/// What every measure gets.
struct Bench {
    host: Arc<Host>,
    effort: Effort,
}

/// Measures what `args` name, and prints it.
pub(crate) fn run(args: &BenchArgs) -> Result<u8, Failure> {
    let effort = match args.quick {
        true => Effort::Quick,
        false => Effort::Full,
    };
    let bench = Bench {
        host: Host::open()?,
        effort,
    };
    let wanted = |name: &str| args.names.is_empty() || args.names.iter().any(|known| known == name);
    let mut rows = Vec::new();
    for measure in MEASURES.iter().filter(|measure| wanted(measure.name)) {
        if !args.json {
            eprintln!("measuring {} …", measure.name);
        }
        rows.extend((measure.run)(&bench)?);
    }
    if let Some(directory) = &args.svg {
        std::fs::create_dir_all(directory)?;
        for (name, picture) in plot::pictures(&rows) {
            std::fs::write(directory.join(name).with_extension("svg"), picture)?;
        }
    }
    let out = &mut std::io::stdout().lock();
    if args.json {
        writeln!(
            out,
            "{}",
            output::json(&rows).map_err(std::io::Error::from)?
        )?;
    } else {
        write!(out, "{}", output::table(&rows))?;
        writeln!(out, "\nfound in PATH: {}", rival::found_in_path())?;
    }
    Ok(0)
}

/// The other process of a rival that starts one for every copy.
pub(crate) fn restore(args: &RestoreArgs) -> Result<u8, Failure> {
    Ok(rival::restore(args)?)
}

/// A process with memory, forked on demand.
pub(crate) fn fork_process(args: &ForkArgs) -> Result<u8, Failure> {
    Ok(floor::process::serve(args)?)
}
