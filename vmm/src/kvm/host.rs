//! What this host's KVM offers, asked once.

use std::io;
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::kvm::first_entry;
use crate::kvm::msrs::MsrPlan;
use crate::kvm::translations::Walker;

/// The API version every KVM has spoken since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Why this host cannot run VMs.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No device node.
    #[error("{path} does not exist: load the kvm module, or enable virtualization on this host")]
    Missing {
        /// The device asked for.
        path: String,
    },
    /// The device may not be opened.
    #[error("no permission to open {path}: join the group that owns it, usually `kvm`")]
    Permission {
        /// The device asked for.
        path: String,
    },
    /// Opening failed otherwise.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The device asked for.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Something that is not KVM, or not the stable API.
    #[error("{path} is not KVM with API version {API_VERSION} (it answers {version})")]
    NotKvm {
        /// The device asked for.
        path: String,
        /// What KVM_GET_API_VERSION returned.
        version: i32,
    },
    /// KVM lacks something that is needed.
    #[error("this host's KVM lacks {name}, which is needed: use a newer kernel")]
    Lacks {
        /// The capability's name in the kernel's documentation.
        name: &'static str,
    },
    /// A question to KVM failed.
    #[error("cannot {op}: {source}")]
    Ask {
        /// What was asked.
        op: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// Capabilities without which nothing works, by their documented names.
const NEEDED: [(Cap, &str); 12] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::GetMsrFeatures, "KVM_CAP_GET_MSR_FEATURES"),
];

/// A host that can run VMs. Open it once and share it.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    cpuid: CpuId,
    pub(crate) msrs: MsrPlan,
    pub(crate) xsave_bytes: usize,
    max_vcpus: u32,
    /// Whether vCPUs made ahead are to have had their first entry.
    pub(crate) enters_ahead: bool,
    pub(crate) walker: Walker,
}

impl Host {
    /// Opens `/dev/kvm` and asks what it can do.
    ///
    /// # Errors
    /// If there is no usable KVM; the error names what is missing.
    pub fn open() -> Result<Arc<Self>, HostError> {
        Self::open_at(Path::new("/dev/kvm"))
    }

    /// The same for another device node.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_at(path: &Path) -> Result<Arc<Self>, HostError> {
        let name = || path.display().to_string();
        let kvm = open(path)?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(HostError::NotKvm {
                path: name(),
                version,
            });
        }
        if let Some(name) = lacking(|cap| kvm.check_extension(cap)) {
            return Err(HostError::Lacks { name });
        }
        let ask = |op| {
            move |source: kvm_ioctls::Error| HostError::Ask {
                op,
                source: source.into(),
            }
        };
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(ask("ask KVM for the CPUID it supports"))?;
        let vm = kvm.create_vm().map_err(ask("create a VM"))?;
        let msrs = MsrPlan::probe(&kvm, &vm, &cpuid).map_err(ask("try out a vCPU's MSRs"))?;
        Ok(Arc::new(Self {
            cpuid,
            msrs,
            xsave_bytes: xsave_bytes(&vm),
            max_vcpus: u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX),
            enters_ahead: first_entry::pays_off(),
            walker: Walker::of_this_host(),
            kvm,
        }))
    }

    /// Most vCPUs that KVM gives one VM.
    pub fn max_vcpus(&self) -> u32 {
        self.max_vcpus
    }

    /// Bits of guest-physical address that vCPUs of this host have.
    pub fn physical_address_bits(&self) -> u32 {
        let leaf = self
            .cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == 0x8000_0008);
        // 36 is what the architecture promises when the leaf is absent.
        leaf.map_or(36, |entry| entry.eax & 0xff)
    }

    /// x87, SSE and AVX, as far as vCPUs of this host have them.
    pub(crate) fn basic_xcr0(&self) -> u64 {
        const X87_SSE_AVX: u32 = 0b111;
        let entries = self.cpuid.as_slice().iter();
        let leaf = entries
            .clone()
            .find(|entry| entry.function == 0xd && entry.index == 0);
        leaf.map_or(1, |entry| u64::from(entry.eax & X87_SSE_AVX))
    }

    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    pub(crate) fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }
}

fn open(path: &Path) -> Result<Kvm, HostError> {
    let name = || path.display().to_string();
    let c_path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes());
    let opened = match c_path {
        Ok(c_path) => Kvm::new_with_path(&*c_path).map_err(io::Error::from),
        Err(_) => Err(io::ErrorKind::InvalidInput.into()),
    };
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => HostError::Missing { path: name() },
        io::ErrorKind::PermissionDenied => HostError::Permission { path: name() },
        _ => HostError::Open {
            path: name(),
            source,
        },
    })
}

/// The first needed capability that a host does not have.
fn lacking(has: impl Fn(Cap) -> bool) -> Option<&'static str> {
    let missing = NEEDED.iter().find(|(cap, _)| !has(*cap));
    missing.map(|(_, name)| *name)
}

/// Bytes that KVM_GET_XSAVE2 fills for this process.
fn xsave_bytes(vm: &VmFd) -> usize {
    let plain = size_of::<kvm_bindings::kvm_xsave>();
    usize::try_from(vm.check_extension_int(Cap::Xsave2))
        .unwrap_or(0)
        .max(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kvm_is_refused_by_name() {
        let error = |path: &str| Host::open_at(Path::new(path)).unwrap_err();
        let missing = error("/dev/no-such-kvm");
        assert!(matches!(missing, HostError::Missing { .. }), "{missing}");
        let null = error("/dev/null");
        assert!(matches!(null, HostError::NotKvm { .. }), "{null}");
        let directory = error("/dev");
        assert!(matches!(directory, HostError::Open { .. }), "{directory}");
        for (error, path) in [
            (missing, "/dev/no-such-kvm"),
            (null, "/dev/null"),
            (directory, "/dev"),
        ] {
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn a_capability_that_is_lacking_is_named() {
        let has = |cap: Cap| cap != Cap::SplitIrqchip;
        assert_eq!(lacking(has), Some("KVM_CAP_SPLIT_IRQCHIP"));
        assert_eq!(lacking(|_| true), None);
    }
}
