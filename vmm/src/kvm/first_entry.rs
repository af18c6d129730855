//! A vCPU's first entry, before there is anything to enter.
//!
//! KVM puts off much of a vCPU's making until it is first entered: 50 µs of the
//! 160 that a new VM takes to its first exit on software KVM. A signal that is
//! pending and let through only by KVM_RUN itself ([KVM_SET_SIGNAL_MASK]) makes
//! KVM go all the way to the guest's door and turn back there with EINTR: no
//! instruction is executed.
//!
//! [KVM_SET_SIGNAL_MASK]: https://docs.kernel.org/virt/kvm/api.html#kvm-set-signal-mask

// UNSAFETY: an ioctl that kvm-ioctls lacks, and a signal to the own thread.
#![expect(unsafe_code)]

use std::io;
use std::ops::RangeFrom;

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, KVMIO, kvm_mp_state, kvm_signal_mask};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ptr;
use vmm_sys_util::ioctl_iow_nr;
use vmm_sys_util::signal::{
    Error as SignalError, SIGRTMIN, block_signal, clear_signal, unblock_signal,
};

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);

/// Kernels (major, minor) on which a vCPU changes threads at no cost. Before,
/// KVM_RUN on another thread than the last waits for an RCU grace period, which
/// is milliseconds: more than a first entry made ahead saves.
const THREADS_MAY_CHANGE: RangeFrom<(u32, u32)> = (6, 13)..;

/// Whether a first entry made ahead pays off on this kernel.
pub(crate) fn pays_off() -> bool {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    version(&release).is_some_and(|version| THREADS_MAY_CHANGE.contains(&version))
}

/// Major and minor number of a kernel's release, as in "6.13.4-generic".
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

/// Has KVM do for `vcpu`, which is new, what it does at a first entry. Its VM
/// must have memory; its state is to be set afterwards.
pub(crate) fn make(vcpu: &mut VcpuFd) -> io::Result<()> {
    // One that waits to be started would not get to the door.
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    })?;
    let _pending = Pending::signal()?;
    set_signal_mask(vcpu, Some(!bit(SIGRTMIN())))?;
    let left = match vcpu.run() {
        Err(error) if error.errno() == libc::EINTR => Ok(()),
        Err(error) => Err(error.into()),
        Ok(exit) => Err(io::Error::other(format!(
            "entered in spite of a signal: {exit:?}"
        ))),
    };
    set_signal_mask(vcpu, None)?;
    left
}

/// SIGRTMIN, pending and blocked on this thread.
struct Pending {
    was_blocked: bool,
}

impl Pending {
    fn signal() -> io::Result<Self> {
        let was_blocked = match block_signal(SIGRTMIN()) {
            Ok(()) => false,
            Err(SignalError::SignalAlreadyBlocked(_)) => true,
            Err(error) => return Err(io::Error::other(error.to_string())),
        };
        let pending = Self { was_blocked };
        // SAFETY: to this very thread, where it is blocked.
        match unsafe { libc::raise(SIGRTMIN()) } {
            0 => Ok(pending),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Its handler does nothing, should one of these fail.
        let _ = clear_signal(SIGRTMIN());
        if !self.was_blocked {
            let _ = unblock_signal(SIGRTMIN());
        }
    }
}

fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

/// Sets what KVM_RUN blocks in place of what its thread does; `None`: nothing.
fn set_signal_mask(vcpu: &VcpuFd, blocked: Option<u64>) -> io::Result<()> {
    #[repr(C)]
    struct Mask {
        len_bytes: u32,
        // Not aligned: the kernel's set follows the length at once.
        blocked: [u8; 8],
    }
    let mask = blocked.map(|blocked| Mask {
        len_bytes: 8,
        blocked: blocked.to_ne_bytes(),
    });
    let mask = mask.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the kernel reads a length and as many bytes, or is told by a null
    // pointer that there is no mask.
    match unsafe { ioctl_with_ptr(vcpu, KVM_SET_SIGNAL_MASK(), mask) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_tell_their_version_in_many_ways() {
        assert_eq!(version("6.13.4-generic"), Some((6, 13)));
        assert_eq!(version("7.0-rc1"), Some((7, 0)));
        assert_eq!(version("5.10.0+"), Some((5, 10)));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn a_first_entry_executes_nothing_and_leaves_no_signal_behind() {
        let host = crate::kvm::host::Host::open().expect("this test needs /dev/kvm");
        let cpuids = crate::kvm::shell::Shell::cpuids(&host, 2).unwrap();
        let layout = guestmem::RamLayout::new(2 << 20).unwrap();
        let window = guestmem::BlankWindow::new(layout).unwrap();
        let blank = crate::kvm::shell::Blank::new(&host, &cpuids).unwrap();
        let mut bound = blank.bind(&host, window).unwrap();
        for vcpu in bound.vcpus() {
            let before = vcpu.get_regs().unwrap();
            make(vcpu).unwrap();
            assert_eq!(vcpu.get_regs().unwrap(), before);
        }
        let blocked = vmm_sys_util::signal::get_blocked_signals().unwrap();
        assert!(!blocked.contains(&SIGRTMIN()));
    }
}
