//! An ELF kernel, entered in ring 0: says hello on COM1 and through the control
//! page, and exits with 42. Plain instructions only, because some hosts
//! emulate ring 0.

#![no_std]
#![no_main]

use core::arch::global_asm;

global_asm!(
    ".section .text.start",
    ".global _start",
    "_start:",
    "lea rbx, [rip + text]",
    "mov edx, 0x3f8",
    "2:",
    "mov al, [rbx]",
    "test al, al",
    "jz 3f",
    "out dx, al",
    "inc rbx",
    "jmp 2b",
    "3:",
    "mov ebx, 0xd0000000",
    "mov dword ptr [rbx + 8], 0x0a216f6b", // "ko!\n"
    "mov dword ptr [rbx + 0x18], 42",
    "4: hlt",
    "jmp 4b",
    "text: .asciz \"hello from ring 0\\n\"",
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
