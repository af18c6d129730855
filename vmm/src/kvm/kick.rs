//! Getting a vCPU out of the guest, without fail.
//!
//! A signal alone can get lost: it may arrive after the thread has looked for
//! requests and before it enters the guest. `immediate_exit` alone does not
//! interrupt a guest that runs. Both together do: whoever wants a vCPU out
//! notes the request, sets `immediate_exit`, then sends the signal; the vCPU
//! thread clears `immediate_exit` *before* it looks for requests.

// UNSAFETY: a second mapping of the vCPU's `kvm_run` page, whose flag other
// threads set, and a signal to one thread.
#![expect(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::SIGRTMIN;

/// The page of `kvm_run` that holds `immediate_exit`.
const LEN: usize = 4096;

/// Makes one vCPU leave the guest, from any thread.
#[derive(Debug)]
pub(crate) struct Kick {
    run: NonNull<u8>,
    thread: AtomicI32,
}

// SAFETY: the mapping is owned, and only its one flag is accessed, atomically.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    /// The kick for `vcpu`.
    pub(crate) fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        install_handler()?;
        // SAFETY: a fresh mapping chosen by the kernel; the file is a vCPU,
        // whose first page is its `kvm_run`.
        let run = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if run == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            run: NonNull::new(run.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            thread: AtomicI32::new(0),
        })
    }

    /// Says that the calling thread runs this vCPU from now on. The thread may
    /// be anybody's, so the signal is let through to it.
    pub(crate) fn adopt(&self) {
        // SAFETY: (1) the set is initialised by `sigemptyset` before it is
        // used; (2) a mask that lets one more signal through changes nothing
        // else; (3) `gettid` cannot fail.
        let thread = unsafe {
            let mut set = MaybeUninit::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), SIGRTMIN());
            libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
            libc::gettid()
        };
        self.thread.store(thread, Ordering::SeqCst);
    }

    /// Says that no thread does.
    pub(crate) fn disown(&self) {
        self.thread.store(0, Ordering::SeqCst);
    }

    /// Makes the vCPU leave the guest, or not enter it. Note the request first.
    pub(crate) fn kick(&self) {
        self.immediate_exit().store(1, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: signals a thread of this process, by numbers only; one
            // that is gone gives ESRCH, and a reused number gets a signal
            // whose handler does nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGRTMIN()) };
        }
    }

    /// Lets the vCPU enter the guest again. Look for requests after it.
    pub(crate) fn clear(&self) {
        self.immediate_exit().store(0, Ordering::SeqCst);
    }

    /// Makes the next KVM_RUN only finish the exit that is pending.
    pub(crate) fn only_finish(&self) {
        self.immediate_exit().store(1, Ordering::SeqCst);
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: (1) the field lies in the mapped page; (2) a byte is always
        // aligned; (3) everybody who touches it while threads run does so
        // through this function or is the kernel.
        unsafe {
            let field = self.run.add(std::mem::offset_of!(kvm_run, immediate_exit));
            AtomicU8::from_ptr(field.as_ptr())
        }
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which goes with this value.
        unsafe { libc::munmap(self.run.as_ptr().cast(), LEN) };
    }
}

/// Makes SIGRTMIN interrupt KVM_RUN and do nothing else: other system calls of
/// a thread that it reaches too late are restarted.
fn install_handler() -> io::Result<()> {
    extern "C" fn interrupt(_: libc::c_int) {}
    static RESULT: OnceLock<Option<i32>> = OnceLock::new();
    let failed = RESULT.get_or_init(|| {
        // SAFETY: (1) all zeroes is a valid `sigaction`; (2) the handler does
        // nothing, so it may run at any point of any thread.
        let refused = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = interrupt as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(SIGRTMIN(), &raw const action, std::ptr::null_mut()) != 0
        };
        refused.then(|| io::Error::last_os_error().raw_os_error().unwrap_or(0))
    });
    match failed {
        Some(code) => Err(io::Error::from_raw_os_error(*code)),
        None => Ok(()),
    }
}
