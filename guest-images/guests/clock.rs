//! An ELF kernel that tells KVM where to keep its clock, and is ready over and
//! over: KVM writes the time there now and then, and always when a vCPU begins
//! to run that was restored.

#![no_std]
#![no_main]

#[path = "../src/abi.rs"]
#[allow(dead_code)]
mod abi;

use core::arch::global_asm;

/// Where: low memory that nothing else uses.
const CLOCK: u32 = 0x1_0000;
/// MSR_KVM_SYSTEM_TIME_NEW.
const SYSTEM_TIME: u32 = 0x4b56_4d01;

global_asm!(
    ".section .text.start",
    ".global _start",
    "_start:",
    "mov ecx, {system_time}",
    "mov eax, {clock} + 1", // bit 0: on
    "xor edx, edx",
    "wrmsr",
    "mov ebx, {control}",
    "2:",
    "mov dword ptr [rbx + {ready}], 1",
    "jmp 2b",
    system_time = const SYSTEM_TIME,
    clock = const CLOCK,
    control = const abi::CONTROL_PAGE,
    ready = const abi::control::READY,
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
