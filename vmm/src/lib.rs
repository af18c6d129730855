//! A KVM hypervisor that forks running virtual machines.
