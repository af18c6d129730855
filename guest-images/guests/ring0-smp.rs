//! An ELF kernel that starts the other vCPUs as hardware wants it: INIT and
//! start-up interrupts, a trampoline in real mode below 1 MiB, long mode by the
//! tables that are there. Says that they run; exits with their number.

#![no_std]
#![no_main]

#[path = "../src/abi.rs"]
#[allow(dead_code)]
mod abi;

use core::arch::global_asm;

/// Where the trampoline goes: low memory that nothing else uses.
const TRAMPOLINE: u64 = 0x1_0000;

global_asm!(
    ".section .text.start",
    ".global _start",
    "_start:",
    "mov r12d, [rdi + 12]", // boot information: vCPUs
    // The trampoline, to a page that a start-up interrupt can name.
    "lea rsi, [rip + trampoline]",
    "mov edi, {trampoline}",
    "2:",
    "mov al, [rsi]",
    "mov [rdi], al",
    "inc rsi",
    "inc edi",
    "lea rdx, [rip + trampoline_end]",
    "cmp rsi, rdx",
    "jb 2b",
    // All but this one: INIT, then start at the trampoline's page. (KVM needs
    // none of the delays that hardware wants.)
    "mov ebx, 0xfee00000",
    "mov dword ptr [rbx + 0xf0], 0x1ff",
    "mov dword ptr [rbx + 0x300], 0xc4500",
    "mov dword ptr [rbx + 0x300], 0xc4600 + ({trampoline} >> 12)",
    "3:",
    "pause",
    "mov eax, [rip + running]",
    "inc eax",
    "cmp eax, r12d",
    "jb 3b",
    "mov ebx, {control}",
    "mov rcx, 0x0a6c6c61", // "all\n"
    "mov [rbx + {console}], ecx",
    "mov [rbx + {exit}], rax",
    "4: hlt",
    "jmp 4b",
    // Entered in 64-bit mode, without a stack.
    "started:",
    "lock inc dword ptr [rip + running]",
    "5: hlt",
    "jmp 5b",
    "running: .long 0",
    "trampoline:",
    ".code16",
    "cli",
    ".byte 0x2e, 0x0f, 0x01, 0x16", // lgdt cs:[…]
    ".word 6f - trampoline",
    "mov eax, 0x20", // PAE
    "mov cr4, eax",
    "mov eax, {page_tables}",
    "mov cr3, eax",
    "mov ecx, 0xc0000080", // EFER: long mode
    "xor edx, edx",
    "mov eax, 0x100",
    "wrmsr",
    "mov eax, 0x80000011", // PG, ET, PE
    "mov cr0, eax",
    ".byte 0x66, 0xea", // jmp far, 32-bit offset
    ".long started",
    ".word {code}",
    "6: .word 0xfff",
    ".long {gdt}",
    ".code64",
    "trampoline_end:",
    trampoline = const TRAMPOLINE,
    page_tables = const abi::PAGE_TABLES,
    code = const abi::selector::KERNEL_CODE,
    gdt = const abi::GDT,
    control = const abi::CONTROL_PAGE,
    console = const abi::control::CONSOLE,
    exit = const abi::control::EXIT,
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
