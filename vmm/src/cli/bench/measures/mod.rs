//! What there is to measure. Each file says what lies between the two end
//! points of its measure.

mod curves;
mod depth;
mod fan_out;
mod fork;
mod memory;
mod reset;
mod running;
mod writes;

use super::Bench;
use super::row::Row;
use crate::cli::exit::Failure;

/// Something to measure, by name.
pub(super) struct Measure {
    pub(super) name: &'static str,
    /// For `--help`.
    pub(super) help: &'static str,
    pub(super) run: fn(&Bench) -> Result<Vec<Row>, Failure>,
}

/// All there is, in the order in which it is measured.
pub(super) const MEASURES: &[Measure] = &[
    Measure {
        name: "fork-pooled",
        help: "fork of a snapshot with VMs kept warm, to the first instruction of the child",
        run: fork::pooled,
    },
    Measure {
        name: "fork-cold",
        help: "the same with nothing kept warm",
        run: fork::cold,
    },
    Measure {
        name: "drop",
        help: "dropping such a fork after it ran",
        run: fork::dropping,
    },
    Measure {
        name: "fork-running",
        help: "fork of a VM whose guest writes at full speed: its pause, and the call",
        run: running::running,
    },
    Measure {
        name: "reset",
        help: "reset after the guest has written to 1, 10, 100 and 1000 pages",
        run: reset::reset,
    },
    Measure {
        name: "depth",
        help: "fork with 1, 64 and 1000 layers below",
        run: depth::depth,
    },
    Measure {
        name: "first-writes",
        help: "a fork's first 1000 writes, and its first reads of 64 MiB",
        run: writes::first_writes,
    },
    Measure {
        name: "fan-out",
        help: "32 forks of one snapshot, until all have run",
        run: fan_out::fan_out,
    },
    Measure {
        name: "memory",
        help: "host memory that a fork takes, of 1, 100 and 1000",
        run: memory::memory,
    },
    Measure {
        name: "curves",
        help: "fork against RAM, VMs and depth; snapshot and reset against dirty pages",
        run: curves::curves,
    },
];
