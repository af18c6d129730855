//! Checks what `docs/guest-abi.md` promises a flat guest at its entry, on every
//! vCPU; ends with the number of the promise that was broken, or 0.
//!
//! Options, to be told what it cannot know: `initrd=N`, the sum of the initial
//! RAM disk's bytes; `cmdline=N`, the length of the command line.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

use core::arch::x86_64::__cpuid;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use rt::abi::{self, selector};
use rt::{PAGE, peek, poke};

/// What is where the first instruction finds it.
#[repr(C)]
struct Entry {
    /// RAX, RBX, RCX, RDX, RBP, R8 to R15.
    others: [u64; 13],
    rsi: u64,
    rdi: u64,
    rflags: u64,
    // The stack begins here.
}

// Entered from `_start`, with everything still as it was.
global_asm!(
    ".global guest_main",
    "guest_main:",
    "pushfq",
    "push rdi",
    "push rsi",
    "push r15",
    "push r14",
    "push r13",
    "push r12",
    "push r11",
    "push r10",
    "push r9",
    "push r8",
    "push rbp",
    "push rdx",
    "push rcx",
    "push rbx",
    "push rax",
    "mov rdi, rsp",
    "sub rsp, 8", // a call wants it aligned
    "call checked",
);

static DONE: AtomicU64 = AtomicU64::new(0);

/// Ends the guest unless `kept`.
macro_rules! promise {
    ($number:literal, $kept:expr) => {
        if !$kept {
            say!("promise {} is broken: {}", $number, stringify!($kept));
            rt::exit($number);
        }
    };
}

#[unsafe(no_mangle)]
extern "C" fn checked(entry: &Entry) -> ! {
    let info = rt::info();
    let (cpu, cpus) = (entry.rsi, u64::from(info.cpus));

    promise!(1, entry.rdi == abi::BOOT_INFO);
    promise!(2, cpu < cpus);
    let stack_top = info.low_ram_end - cpu * abi::STACK_LEN;
    promise!(3, core::ptr::from_ref(entry) as u64 + 128 == stack_top - 8);
    promise!(4, entry.others == [0; 13]);
    // Interrupts on; direction and trap flags off.
    promise!(5, entry.rflags & 0x700 == 0x200);
    selectors();
    vector_units();
    boot_info(cpus);
    memory(stack_top);
    devices(cpu);

    rt::add(&DONE, 1);
    while cpu > 0 || DONE.load(Ordering::SeqCst) < cpus {
        core::hint::spin_loop();
    }
    say!("{cpus} vCPUs: all promises are kept");
    rt::exit(0)
}

fn selectors() {
    // The other selectors mean nothing in 64-bit mode, and not every KVM keeps
    // them; their bases do and are 0.
    let (cs, ss): (u16, u16);
    let (by_fs, by_gs): (u64, u64);
    // SAFETY: reads segment registers, and the boot information by them.
    unsafe {
        asm!("mov {:x}, cs", out(reg) cs);
        asm!("mov {:x}, ss", out(reg) ss);
        asm!("mov {}, fs:[{}]", out(reg) by_fs, in(reg) abi::BOOT_INFO);
        asm!("mov {}, gs:[{}]", out(reg) by_gs, in(reg) abi::BOOT_INFO);
    }
    promise!(10, cs == selector::USER_CODE);
    promise!(11, ss == selector::USER_DATA);
    promise!(12, [by_fs, by_gs] == [abi::BOOT_INFO_MAGIC; 2]);
}

fn vector_units() {
    const OSXSAVE: u32 = 1 << 27;
    const AVX: u32 = 1 << 28;
    let (mut mxcsr, mut control_word, sum) = (0u32, 0u16, 0u64);
    // SAFETY: stores to variables, arithmetic on registers.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr);
        asm!("fnstcw [{}]", in(reg) &raw mut control_word);
    }
    promise!(20, mxcsr == 0x1f80);
    promise!(21, control_word == 0x37f);
    let mut sse = sum;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("movq xmm0, {0}", "paddq xmm0, xmm0", "movq {0}, xmm0", inout(reg) sse, out("xmm0") _);
    }
    promise!(22, sse == 0);

    let features = __cpuid(1).ecx;
    if features & AVX == 0 {
        return;
    }
    promise!(23, features & OSXSAVE != 0);
    let xcr0: u32;
    // SAFETY: XCR0 can be read where OSXSAVE is set.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") xcr0, out("edx") _) }
    promise!(24, xcr0 & 7 == 7);
    let (input, mut output) = ([1u64, 2, 3, 4], [0u64; 4]);
    // SAFETY: AVX is there; loads and stores of 32 bytes each.
    unsafe {
        asm!(
            "vmovups ymm0, [{}]",
            "vaddpd ymm1, ymm0, ymm0",
            "vmovups [{}], ymm0",
            "vzeroupper",
            in(reg) &input,
            in(reg) &mut output,
            out("ymm0") _,
            out("ymm1") _,
        );
    }
    promise!(25, input == output);
}

fn boot_info(cpus: u64) {
    let info = rt::info();
    promise!(30, info.magic == abi::BOOT_INFO_MAGIC);
    promise!(31, info.version == 1);
    promise!(32, cpus > 0 && cpus <= u64::from(abi::MAX_CPUS));
    promise!(33, info.control_page == abi::CONTROL_PAGE);
    promise!(34, info.counters == abi::COUNTERS);
    promise!(35, info.image_start == abi::IMAGE);
    promise!(36, info.image_end > boot_info as fn(u64) as usize as u64);
    promise!(37, info.free_start == info.image_end.next_multiple_of(PAGE));
    promise!(38, info.free_start <= info.free_end);
    promise!(39, info.free_end % PAGE == 0);
    promise!(40, info.free_end <= info.initrd_start);
    let stacks = info.low_ram_end - cpus * abi::STACK_LEN;
    promise!(41, info.initrd_start <= info.initrd_end);
    promise!(42, info.initrd_end <= stacks);
    promise!(43, info.high_ram_start == 4 << 30);
    promise!(44, info.high_ram_start <= info.high_ram_end);

    let initrd = info.initrd_start..info.initrd_end;
    let sum: u64 = initrd.map(|address| u64::from(byte(address))).sum();
    promise!(45, rt::option("initrd").is_none_or(|wanted| wanted == sum));
    promise!(
        46,
        rt::option("cmdline").is_none_or(|wanted| wanted == info.cmdline_len)
    );
    promise!(47, byte(info.cmdline + info.cmdline_len) == 0);
}

fn memory(stack_top: u64) {
    const MAPPED_END: u64 = 92 << 30;
    let info = rt::info();
    // All vCPUs look, so nobody may write to the free pages.
    let ends = [info.free_start, info.free_end - PAGE];
    for page in ends.into_iter().filter(|page| *page >= info.free_start) {
        promise!(
            50,
            (page..page + PAGE).step_by(8).all(|word| peek(word) == 0)
        );
    }
    let stack_end = stack_top - abi::STACK_LEN;
    promise!(51, peek(stack_end) == 0);
    poke(stack_end, 1);
    promise!(52, peek(stack_end) == 1);

    // What is written can be executed: mov eax, 42; ret.
    poke(stack_end, 0x00c3_0000_002a_b8);
    // SAFETY: a function that was just put there.
    let answer = unsafe {
        let function: extern "C" fn() -> u32 = core::mem::transmute(stack_end);
        function()
    };
    promise!(53, answer == 42);

    let high_end = info.high_ram_end.min(MAPPED_END);
    if info.high_ram_start < high_end {
        for word in [info.high_ram_start, high_end - 8] {
            promise!(54, [0, word].contains(&peek(word)));
            poke(word, word);
            promise!(55, peek(word) == word);
        }
    }
}

fn devices(cpu: u64) {
    promise!(60, peek(abi::CONTROL_PAGE) == abi::control::MAGIC_VALUE);
    promise!(61, rt::seed() != rt::seed());
    // SAFETY: the ID register of the local APIC.
    let id = unsafe { ((abi::LOCAL_APIC + 0x20) as *const u32).read_volatile() };
    promise!(62, u64::from(id >> 24) == cpu);
    let line_status: u8;
    // SAFETY: a register of COM1, which ring 3 may read.
    unsafe { asm!("in al, dx", in("dx") 0x3fd_u16, out("al") line_status) }
    promise!(63, line_status & 0x60 == 0x60);
    promise!(
        64,
        (0..=255).all(|vector| rt::interrupts(vector).load(Ordering::SeqCst) == 0)
    );
}

fn byte(address: u64) -> u8 {
    // SAFETY: an address in RAM.
    unsafe { (address as *const u8).read_volatile() }
}
