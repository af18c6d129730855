//! Guest programs, and the environment they run in.
//!
//! The programs are `guests/*.rs`, built from source by this crate's build
//! script; [`Guest`] hands out their images. What they may rely on is in
//! [`abi`], and explained in `docs/guest-abi.md`.
//!
//! ```
//! use guest_images::{Guest, ImageKind};
//!
//! assert_eq!(Guest::Hello.name(), "hello");
//! assert_eq!(Guest::Ring0.kind(), ImageKind::Elf);
//! assert!(Guest::ALL.iter().all(|guest| !guest.image().is_empty()));
//! ```

pub mod abi;
pub mod worker;

/// What a guest's image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// Loaded at [`abi::IMAGE`] and entered in ring 3.
    Flat,
    /// An ELF64 executable, entered in ring 0.
    Elf,
}

macro_rules! guests {
    ($($(#[$doc:meta])* $guest:ident = $name:literal . $kind:ident,)*) => {
        /// A guest program.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Guest {
            $($(#[$doc])* $guest,)*
        }

        impl Guest {
            /// Every guest.
            pub const ALL: &[Self] = &[$(Self::$guest,)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$guest => $name,)*
                }
            }

            /// What its image is.
            pub fn kind(self) -> ImageKind {
                match self {
                    $(Self::$guest => guests!(@kind $kind),)*
                }
            }

            /// Its image, to be booted.
            pub fn image(self) -> &'static [u8] {
                match self {
                    $(Self::$guest => include_bytes!(
                        concat!(env!("OUT_DIR"), "/", $name, ".", stringify!($kind))
                    ),)*
                }
            }

            /// What `vmm --kernel` may be given: the name with an extension.
            pub fn file_name(self) -> &'static str {
                match self {
                    $(Self::$guest => concat!($name, ".", stringify!($kind)),)*
                }
            }
        }
    };
    (@kind bin) => { ImageKind::Flat };
    (@kind elf) => { ImageKind::Elf };
}

guests! {
    /// Is ready, says hello, ends with 0.
    Hello = "hello".bin,
    /// Counts in registers, SSE registers and memory, and compares them.
    /// Options: `rounds=N`, `pages=N`.
    Counter = "counter".bin,
    /// Keeps a value in every register and looks at them for ever. Options:
    /// `rounds=N`, `seed=N`.
    Registers = "registers".bin,
    /// Writes a pattern, is ready, checks it, prints a checksum. Options:
    /// `start=ADDRESS`, `pages=N`, `seed=N`.
    Touch = "touch".bin,
    /// Fills and zeroes pages, is ready, checks that they are zero. Option:
    /// `pages=N`.
    Zeros = "zeros".bin,
    /// Asks to be forked three generations deep; exits with its lineage.
    Forker = "forker".bin,
    /// Asks to be forked; then one of the two grows and the other does not.
    /// Options: `grows=N`, `pages=N`, `rounds=N`.
    Grow = "grow".bin,
    /// Counts in memory for ever without an exit.
    Spin = "spin".bin,
    /// Is interrupted by its timer, spinning and waiting. Option: `ticks=N`.
    Timer = "timer".bin,
    /// All vCPUs add to one word. Option: `steps=N`.
    Smp = "smp".bin,
    /// Hands a word round its vCPUs, which wait for interrupts. Option:
    /// `rounds=N`.
    Relay = "relay".bin,
    /// Reports pages free and checks what they read. Option: `pages=N`.
    Free = "free".bin,
    /// Counts aloud, on the console and on COM1. Option: `lines=N`.
    Talk = "talk".bin,
    /// Writes and checks pages, zeroing half of them, as fast as it can.
    /// Options: `writes=N`, `pages=N`.
    Churn = "churn".bin,
    /// Checks what it may rely on at its entry; exits with the number of the
    /// promise that was broken. Options: `initrd=N`, `cmdline=N`.
    Promises = "promises".bin,
    /// Does what the host asks for through a mailbox ([`worker`]).
    Worker = "worker".bin,
    /// Goes wrong. Option: `how=triple`, `invalid`, `jump`, `null`,
    /// `outside-write`, `outside-read`, `emulation`, `register`, `wait`, `port`,
    /// `vector`.
    Faulty = "faulty".bin,
    /// An ELF kernel that says hello in ring 0 and exits with 42.
    Ring0 = "ring0".elf,
    /// An ELF kernel that starts the other vCPUs as on hardware; exits with how
    /// many run.
    Ring0Smp = "ring0-smp".elf,
    /// An ELF kernel that has KVM keep its clock at 0x10000; ready over and
    /// over.
    Clock = "clock".elf,
}

impl Guest {
    /// The first page that a flat guest finds free: `BootInfo::free_start`.
    pub fn free_start(self) -> u64 {
        (abi::IMAGE + self.image().len() as u64).next_multiple_of(4096)
    }
}
