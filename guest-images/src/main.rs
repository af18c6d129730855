//! Lists the guests, or writes them as files for `vmm --kernel`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use guest_images::Guest;

/// The guest programs of this project
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Args {
    /// List the guests
    #[arg(long)]
    list: bool,

    /// Write them as files into a directory, which is made if need be
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-images: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if args.list {
        for guest in Guest::ALL {
            writeln!(
                out,
                "{:<12} {:>6} bytes",
                guest.file_name(),
                guest.image().len()
            )?;
        }
    }
    if let Some(dir) = &args.write {
        std::fs::create_dir_all(dir)?;
        for guest in Guest::ALL {
            let path = dir.join(guest.file_name());
            std::fs::write(&path, guest.image())?;
            writeln!(out, "{}", path.display())?;
        }
    }
    Ok(())
}
