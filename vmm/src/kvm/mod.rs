//! The OS edge of the VMM: `/dev/kvm`, and every `unsafe` of this crate.
//!
//! * [`host`]: what this host's KVM can do, asked once
//! * [`shell`]: a VM as KVM knows it, replaceable under a running machine
//! * [`state`]: all of a vCPU's state, in and out, in the order that works
//! * [`msrs`]: which MSRs that includes
//! * [`kick`]: getting a vCPU out of the guest, without fail
//! * [`first_entry`]: what KVM puts off until a vCPU is entered, done ahead
//! * [`translations`]: what is remembered of page tables, forgotten
//! * [`detail`]: what `kvm_run` says about exits that kvm-ioctls leaves opaque

pub(crate) mod detail;
pub(crate) mod first_entry;
pub(crate) mod host;
pub(crate) mod kick;
pub(crate) mod msrs;
pub(crate) mod shell;
pub(crate) mod state;
pub(crate) mod translations;
