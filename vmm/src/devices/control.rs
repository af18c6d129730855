//! The control page: what guests tell and ask the VMM. `docs/guest-abi.md`
//! describes its registers to guests.
//!
//! Registers that take two accesses to use (a range to free, a fork and its
//! result) exist once a vCPU, so that vCPUs do not have to agree on turns.

use guest_images::abi::control as reg;

use super::{Console, Unclaimed};

/// What a write asked of the VMM beyond the device itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing; the guest goes on.
    Nothing,
    /// It is ready.
    Ready,
    /// It ends, with this code.
    Exit(u8),
    /// It wants to be forked.
    Fork,
    /// It declares these bytes of RAM free.
    Free {
        /// First guest-physical address.
        start: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// Its ring 0 took an exception; the frame is at this address.
    Trap {
        /// Guest address of the frame.
        frame: u32,
    },
}

/// Result registers read this when the VMM refused.
const REFUSED: u64 = u64::MAX;

/// Where a vCPU's wish for a fork stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ForkWish {
    /// Asked; the machine is stopped until somebody answers.
    Open,
    /// What the result register reads.
    Answered(u64),
}

#[derive(Clone, Copy, Debug)]
struct PerVcpu {
    fork: ForkWish,
    free_start: u64,
    free_result: u64,
}

/// The device; all of it is state.
#[derive(Clone, Debug)]
pub(crate) struct ControlPage {
    vcpus: Vec<PerVcpu>,
    generation: u64,
}

impl ControlPage {
    pub(crate) fn new(cpus: usize, generation: u64) -> Self {
        let fresh = PerVcpu {
            fork: ForkWish::Answered(REFUSED),
            free_start: 0,
            free_result: REFUSED,
        };
        Self {
            vcpus: vec![fresh; cpus],
            generation,
        }
    }

    /// What the generation register reads from now on.
    pub(crate) fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Whether a vCPU waits to be forked.
    pub(crate) fn wants_fork(&self) -> bool {
        self.vcpus.iter().any(|vcpu| vcpu.fork == ForkWish::Open)
    }

    /// Answers every vCPU that waits to be forked: 0 to the parent, the
    /// child's number to the child, nothing if it was refused.
    pub(crate) fn answer_fork(&mut self, answer: Option<u64>) {
        for vcpu in &mut self.vcpus {
            if vcpu.fork == ForkWish::Open {
                vcpu.fork = ForkWish::Answered(answer.unwrap_or(REFUSED));
            }
        }
    }

    /// What became of the range that `vcpu` declared free.
    pub(crate) fn answer_free(&mut self, vcpu: usize, dropped_pages: Option<u64>) {
        self.vcpus[vcpu].free_result = dropped_pages.unwrap_or(REFUSED);
    }

    pub(crate) fn read(
        &mut self,
        vcpu: usize,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Unclaimed> {
        let own = &self.vcpus[vcpu];
        let value = match offset {
            reg::MAGIC => reg::MAGIC_VALUE,
            reg::FORK_RESULT => match own.fork {
                ForkWish::Answered(result) => result,
                ForkWish::Open => REFUSED,
            },
            reg::GENERATION => self.generation,
            reg::SEED => seed(),
            reg::FREE_START => own.free_start,
            reg::FREE_RESULT => own.free_result,
            _ => return Err(Unclaimed),
        };
        let len = data.len().min(8);
        data.fill(0);
        data[..len].copy_from_slice(&value.to_le_bytes()[..len]);
        Ok(())
    }

    pub(crate) fn write(
        &mut self,
        vcpu: usize,
        offset: u64,
        data: &[u8],
        console: &Console,
    ) -> Result<Asked, Unclaimed> {
        let mut bytes = [0; 8];
        let len = data.len().min(8);
        bytes[..len].copy_from_slice(&data[..len]);
        let value = u64::from_le_bytes(bytes);
        let own = &mut self.vcpus[vcpu];
        Ok(match offset {
            reg::CONSOLE => {
                console.write(data);
                Asked::Nothing
            }
            reg::READY => Asked::Ready,
            reg::EXIT => Asked::Exit(bytes[0]),
            reg::FORK => {
                own.fork = ForkWish::Open;
                Asked::Fork
            }
            reg::FREE_START => {
                own.free_start = value;
                Asked::Nothing
            }
            reg::FREE_LEN => Asked::Free {
                start: own.free_start,
                len_bytes: value,
            },
            reg::TRAP => Asked::Trap {
                frame: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            },
            _ => return Err(Unclaimed),
        })
    }
}

/// Eight bytes that no other guest gets.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    // The kernel's generator neither fails nor runs short for so few bytes
    // once it is seeded, which it was long before anybody could start us.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "the kernel gives random bytes");
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::ConsoleMode;

    fn write(
        page: &mut ControlPage,
        vcpu: usize,
        offset: u64,
        value: u64,
    ) -> Result<Asked, Unclaimed> {
        let console = Console::new(ConsoleMode::Discard);
        page.write(vcpu, offset, &value.to_le_bytes(), &console)
    }

    fn read(page: &mut ControlPage, vcpu: usize, offset: u64) -> u64 {
        let mut data = [0; 8];
        page.read(vcpu, offset, &mut data).unwrap();
        u64::from_le_bytes(data)
    }

    #[test]
    fn each_vcpu_has_its_own_range_and_fork_result() {
        let mut page = ControlPage::new(2, 1);
        write(&mut page, 0, reg::FREE_START, 0x1000).unwrap();
        write(&mut page, 1, reg::FREE_START, 0x2000).unwrap();
        let asked = write(&mut page, 0, reg::FREE_LEN, 0x3000).unwrap();
        assert_eq!(
            asked,
            Asked::Free {
                start: 0x1000,
                len_bytes: 0x3000
            }
        );

        write(&mut page, 1, reg::FORK, 1).unwrap();
        page.answer_fork(Some(5));
        assert_eq!(read(&mut page, 1, reg::FORK_RESULT), 5);
        assert_eq!(read(&mut page, 0, reg::FORK_RESULT), REFUSED);
    }

    #[test]
    fn every_offset_and_width_is_answered_or_refused_without_a_panic() {
        let mut page = ControlPage::new(1, 1);
        let console = Console::new(ConsoleMode::Discard);
        for offset in 0..guestmem::PAGE_SIZE {
            for len in 0..=16 {
                let mut data = vec![0xa5; len];
                let _ = page.read(0, offset, &mut data);
                let _ = page.write(0, offset, &data, &console);
            }
        }
    }

    #[test]
    fn seeds_differ() {
        let mut page = ControlPage::new(1, 1);
        assert_ne!(read(&mut page, 0, reg::SEED), read(&mut page, 0, reg::SEED));
    }
}
