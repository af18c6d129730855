//! What may be on the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vmm::{Backing, HugeLayers, Limits};

use super::bench::{BenchArgs, ForkArgs, RestoreArgs};
use super::exit;

/// A KVM hypervisor that forks running virtual machines.
///
/// Without --kernel it boots its embedded guest, forks it while it runs, and
/// prints who owns which pages.
#[derive(Debug, Parser)]
#[command(version, after_help = exit::CODES_HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Kernel: a flat 64-bit binary (docs/guest-abi.md), or an ELF64 executable
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: Option<PathBuf>,

    /// RAM, such as size=256M or size=8G,backing=anon; backing is memfd (the
    /// default: forks at any size cost the same) or anon (huge pages)
    #[arg(long, value_name = "size=SIZE[,backing=KIND]", value_parser = parse_memory)]
    memory: Option<Memory>,

    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u32,

    /// Kernel command line
    #[arg(long, value_name = "STRING", default_value = "", requires = "kernel")]
    pub(crate) cmdline: String,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,

    /// Most forks that guests may ask for; more are refused
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) max_forks: u32,

    /// Most that each VM may commit, such as 256M or hard=256M,soft=192M: beyond
    /// hard it ends with code 75, beyond soft a line on standard error says so
    #[arg(long, value_name = "[hard=]SIZE[,soft=SIZE]", value_parser = parse_limits,
          default_value = "", hide_default_value = true)]
    pub(crate) memory_limit: Limits,

    /// Most that all VMs may commit together: beyond hard those that grow end
    #[arg(long, value_name = "[hard=]SIZE[,soft=SIZE]", value_parser = parse_limits,
          default_value = "", hide_default_value = true)]
    pub(crate) family_limit: Limits,

    /// Look at so many pages a second of every VM, and give back those that
    /// hold nothing but zeros; 0 looks at none
    #[arg(long, value_name = "PAGES_PER_SECOND", default_value_t = 0)]
    pub(crate) zero_scan: u64,

    /// Move the memory of snapshots that many forks are made of into huge pages,
    /// in the background: the forks read it much faster
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = parse_huge_layers)]
    pub(crate) huge_layers: HugeLayers,

    /// Say more on standard error; repeat for still more
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    #[arg(skip)]
    pub(crate) memory_bytes: u64,

    #[arg(skip)]
    pub(crate) backing: Backing,
}

/// What to do in place of running a guest.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Bench(BenchArgs),
    /// A process that `bench` starts
    #[command(hide = true)]
    BenchRestore(RestoreArgs),
    /// Another one
    #[command(hide = true)]
    BenchFork(ForkArgs),
}

/// The value of `--memory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    size_bytes: u64,
    backing: Backing,
}

impl Args {
    /// The process's arguments, or the code to exit with: help and version are
    /// no failure.
    pub(crate) fn from_command_line() -> Result<Self, ExitCode> {
        let mut args = Self::try_parse().map_err(|error| {
            let failed = error.use_stderr();
            // A closed pipe is no reason to complain about arguments.
            let _ = error.print();
            ExitCode::from(if failed { exit::USAGE } else { 0 })
        })?;
        let memory = args.memory.unwrap_or(Memory {
            size_bytes: vmm::DEFAULT_MEMORY_BYTES,
            backing: Backing::default(),
        });
        (args.memory_bytes, args.backing) = (memory.size_bytes, memory.backing);
        Ok(args)
    }
}

fn parse_huge_layers(text: &str) -> Result<HugeLayers, String> {
    match text {
        "on" => Ok(HugeLayers::Background),
        "off" => Ok(HugeLayers::Never),
        _ => Err("give on or off".into()),
    }
}

/// `size=256M,backing=anon`, in any order; a bare `256M` is a size too.
fn parse_memory(text: &str) -> Result<Memory, String> {
    let mut size_bytes = None;
    let mut backing = Backing::default();
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("size", size)) => size_bytes = Some(parse_size(size)?),
            Some(("backing", "memfd")) => backing = Backing::Memfd,
            Some(("backing", "anon")) => backing = Backing::Anon,
            Some(("backing", other)) => {
                return Err(format!("backing `{other}`: give memfd or anon"));
            }
            None if size_bytes.is_none() => size_bytes = Some(parse_size(part)?),
            _ => return Err(format!("`{part}`: give size=SIZE or backing=KIND")),
        }
    }
    let size_bytes = size_bytes.ok_or("give a size, such as size=256M")?;
    Ok(Memory {
        size_bytes,
        backing,
    })
}

/// `hard=256M,soft=192M`, either alone, or a bare `256M` for hard; nothing: none.
fn parse_limits(text: &str) -> Result<Limits, String> {
    let (mut hard, mut soft) = (None, None);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (kind, size) = part.split_once('=').unwrap_or(("hard", part));
        let limit = match kind {
            "hard" => &mut hard,
            "soft" => &mut soft,
            _ => return Err(format!("`{part}`: give hard=SIZE or soft=SIZE")),
        };
        if limit.replace(parse_size(size)?).is_some() {
            return Err(format!("`{part}`: there is a {kind} limit already"));
        }
    }
    Limits::new(soft, hard).map_err(|error| error.to_string())
}

/// A number of bytes with an optional K, M, G or T, in powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        unit => {
            return Err(format!(
                "size `{text}`: unit `{unit}` is none of K, M, G, T"
            ));
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("size `{text}`: give a whole number and a unit, such as 256M"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("size `{text}` does not fit in 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_powers_of_1024_whatever_their_case() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64K", 64 << 10),
            ("256M", 256 << 20),
            ("256mib", 256 << 20),
            ("8G", 8 << 30),
            ("1T", 1 << 40),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_by_name() {
        for text in [
            "",
            "M",
            "12Q",
            "-1M",
            "1.5G",
            "99999999999T",
            "18446744073709551616",
        ] {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn memory_takes_its_parts_in_any_order() {
        let wanted = Memory {
            size_bytes: 1 << 30,
            backing: Backing::Anon,
        };
        assert_eq!(parse_memory("size=1G,backing=anon"), Ok(wanted));
        assert_eq!(parse_memory("backing=anon,size=1G"), Ok(wanted));
        assert_eq!(parse_memory("1G,backing=anon"), Ok(wanted));
        for text in [
            "backing=anon",
            "size=1G,backing=disk",
            "size=1G,color=red",
            "1G,2G",
        ] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_are_hard_or_soft_or_both_and_never_the_wrong_way_round() {
        let both = Limits::new(Some(192 << 20), Some(256 << 20));
        assert_eq!(parse_limits("hard=256M,soft=192M").ok(), both.ok());
        assert_eq!(parse_limits("soft=192M,256M").ok(), both.ok());
        assert_eq!(parse_limits("256M"), Ok(Limits::hard(256 << 20)));
        assert_eq!(parse_limits("soft=1G"), Ok(Limits::soft(1 << 30)));
        assert_eq!(parse_limits(""), Ok(Limits::NONE));
        for text in ["hard=1", "1K,soft=1K"] {
            assert!(parse_limits(text).is_ok(), "{text}");
        }
        for text in ["soft=2K,hard=1K", "1K,2K", "medium=1K", "hard=", "1K,"] {
            assert!(parse_limits(text).is_err(), "{text}");
        }
        let error = parse_limits("soft=2K,hard=1K").unwrap_err();
        assert!(error.contains("2048") && error.contains("1024"), "{error}");
    }

    #[test]
    fn the_definition_is_sound() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }
}
