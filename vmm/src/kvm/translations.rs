//! What KVM and the processor remember of a guest's page tables, forgotten.
//!
//! A reset changes page tables behind the guest's back: no processor saw it
//! store to them, so nobody looks at them again. What is remembered may then
//! lead elsewhere than the tables do, and what one run left would decide what
//! the next one sees.
//!
//! * A processor that walks the guest's tables itself (VMX, SVM) forgets when the
//!   vCPU's paging is set to something else and back.
//! * KVM that *shadows* them (software KVM) keeps a table of its own for each
//!   of the guest's. It gives all of them up when memory is taken away from the
//!   VM: any page will do, and the guest never sees the one that is used here. It
//!   then has to fault on each page anew (25 µs), so this is only done if
//!   something may be wrong, which KVM's [counts] tell, and a look at the tables.
//!
//! [counts]: https://docs.kernel.org/virt/kvm/api.html#kvm-get-stats-fd

// UNSAFETY: a memslot over a page of ours, an ioctl that kvm-ioctls lacks.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use guestmem::PAGE_SIZE;
use kvm_bindings::{KVMIO, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// A slot that no RAM region has, for the page that is taken away.
const SPARE_SLOT: u32 = 100;

/// Who walks the page tables of guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Walker {
    /// KVM, for certain.
    Kvm,
    /// The processor, or it could not be told.
    Processor,
}

impl Walker {
    /// Asks the modules that drive a processor's virtualization: without
    /// them, or if they do without two-dimensional paging, KVM walks.
    pub(crate) fn of_this_host() -> Self {
        let modules = Path::new("/sys/module");
        if !modules.join("kvm").is_dir() {
            return Self::Processor; // nothing can be told here
        }
        let two_dimensional = |(module, parameter): (&str, &str)| {
            let module = modules.join(module);
            let set = std::fs::read_to_string(module.join("parameters").join(parameter));
            module.is_dir() && !set.is_ok_and(|set| matches!(set.trim(), "N" | "0"))
        };
        match [("kvm_intel", "ept"), ("kvm_amd", "npt")]
            .into_iter()
            .any(two_dimensional)
        {
            true => Self::Processor,
            false => Self::Kvm,
        }
    }
}

/// What a look at the guest's page tables found before its memory was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TablesWere {
    /// They are what they will be.
    Same,
    /// They are not, or nobody has looked.
    Unknown,
}

/// Whether KVM may remember of a VM what is not right, by its own counts.
///
/// What KVM shadows is right as long as only the guest stores. So if memory is
/// changed otherwise, a table is right that was shadowed and is the same after
/// the change. That holds for those that the guest begins with if they
/// [were the same](TablesWere), and for all if it had no others: if it was never
/// caught storing to one, and KVM was never told to begin with another.
#[derive(Debug)]
pub(crate) struct Translations {
    /// Tables of its own that KVM has made. None where it does not shadow.
    made: Counter,
    /// Stores of the guest to tables that are shadowed.
    stores: Counter,
    /// Tables now that it can store to without being caught.
    unsynced: Counter,
    /// How often vCPUs were told to look again because the *host* has changed
    /// something; there may be more of these than they have noticed.
    by_host: Counter,
    /// How often each vCPU has looked again, for whatever reason.
    looks: Vec<Counter>,
    /// What was counted when all was right.
    right: Option<Right>,
}

/// What was counted when all that KVM remembered was right.
#[derive(Debug)]
struct Right {
    stores: u64,
    by_host: u64,
    looks: Vec<u64>,
    /// It remembered nothing: to begin anew makes the host look too.
    nothing: bool,
}

impl Translations {
    /// Of a VM and its vCPUs; nothing is known to be right yet.
    pub(crate) fn new<'a>(vm: &VmFd, vcpus: impl Iterator<Item = &'a VcpuFd>) -> io::Result<Self> {
        let of_vm = Counters::of(vm)?;
        let looks = vcpus.map(|vcpu| Counters::of(vcpu)?.named("tlb_flush"));
        Ok(Self {
            made: of_vm.named("mmu_cache_miss")?,
            stores: of_vm.named("mmu_pte_write")?,
            unsynced: of_vm.named("mmu_unsync")?,
            by_host: of_vm.named("remote_tlb_flush_requests")?,
            looks: looks.collect::<Result<_, _>>()?,
            right: None,
        })
    }

    /// Whether something may not be right that KVM remembers. If so it is to
    /// forget all of it: that is what the next answer will suppose.
    pub(crate) fn may_be_wrong(&mut self, tables: TablesWere) -> io::Result<bool> {
        if self.made.read()? == 0 {
            return Ok(false);
        }
        let now = Right {
            stores: self.stores.read()?,
            by_host: self.by_host.read()?,
            looks: self
                .looks
                .iter()
                .map(Counter::read)
                .collect::<Result<_, _>>()?,
            nothing: false,
        };
        let unsynced = self.unsynced.read()? > 0;
        let right = tables == TablesWere::Same
            && !unsynced
            && self
                .right
                .as_ref()
                .is_some_and(|then| then.still_holds(&now));
        self.right = Some(Right {
            nothing: !right,
            ..now
        });
        Ok(!right)
    }
}

impl Right {
    fn still_holds(&self, now: &Self) -> bool {
        let allowed = match self.nothing {
            true => now.by_host.saturating_sub(self.by_host),
            false => 0,
        };
        let mut looks = self.looks.iter().zip(&now.looks);
        now.stores == self.stores && looks.all(|(then, now)| now.saturating_sub(*then) <= allowed)
    }
}

/// A page that is given to a VM only to be taken away from it.
#[repr(align(4096))]
struct Spare([u8; PAGE_SIZE as usize]);

static SPARE: Spare = Spare([0; PAGE_SIZE as usize]);

/// Has KVM give up its shadow tables of `vm`, none of whose vCPUs runs; `gpa` is
/// a page that no memory of the VM has.
pub(crate) fn give_up_shadows(vm: &VmFd, gpa: u64) -> Result<(), kvm_ioctls::Error> {
    for memory_size in [PAGE_SIZE, 0] {
        let memslot = kvm_userspace_memory_region {
            slot: SPARE_SLOT,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size,
            userspace_addr: (&raw const SPARE.0).addr() as u64,
        };
        // SAFETY: a page that lives for ever, and that no guest can store to:
        // it is gone before a vCPU runs.
        unsafe { vm.set_user_memory_region(memslot) }?;
    }
    Ok(())
}

/// The counters of a VM or a vCPU.
struct Counters {
    file: Arc<File>,
    names: Vec<u8>,
    header: Header,
}

/// `struct kvm_stats_header`.
#[derive(Clone, Copy)]
struct Header {
    name_size: usize,
    count: usize,
    descriptors: u64,
    data: u64,
}

/// Bytes of a `struct kvm_stats_desc` before its name, and where in them the
/// offset of the data is.
const BEFORE_NAME: usize = 16;
const OFFSET: usize = 8;

impl Counters {
    fn of(of: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: no argument; a new descriptor is returned, which is ours.
        let file = unsafe {
            match ioctl(of, KVM_GET_STATS_FD()) {
                fd if fd < 0 => return Err(io::Error::last_os_error()),
                fd => File::from_raw_fd(fd),
            }
        };
        let mut words = [0; 24];
        file.read_exact_at(&mut words, 0)?;
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| words[4 * at + i]));
        let header = Header {
            name_size: word(1) as usize,
            count: word(2) as usize,
            descriptors: word(4).into(),
            data: word(5).into(),
        };
        let mut names = vec![0; header.count * (BEFORE_NAME + header.name_size)];
        file.read_exact_at(&mut names, header.descriptors)?;
        Ok(Self {
            file: Arc::new(file),
            names,
            header,
        })
    }

    fn named(&self, name: &str) -> io::Result<Counter> {
        let mut all = self.names.chunks_exact(BEFORE_NAME + self.header.name_size);
        let is_it = |descriptor: &&[u8]| {
            let rest = descriptor[BEFORE_NAME..].strip_prefix(name.as_bytes());
            rest.is_some_and(|rest| rest.first().is_none_or(|byte| *byte == 0))
        };
        let found = all.find(is_it).ok_or(io::ErrorKind::NotFound)?;
        let offset = std::array::from_fn(|i| found[OFFSET + i]);
        Ok(Counter {
            file: Arc::clone(&self.file),
            offset: self.header.data + u64::from(u32::from_ne_bytes(offset)),
        })
    }
}

/// One of them.
#[derive(Debug)]
struct Counter {
    file: Arc<File>,
    offset: u64,
}

impl Counter {
    fn read(&self) -> io::Result<u64> {
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, self.offset)?;
        Ok(u64::from_ne_bytes(value))
    }
}
