//! End-to-end tests on /dev/kvm.
