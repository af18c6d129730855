//! Goes wrong, in the way that `how=` says.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

use core::arch::asm;

use rt::abi;

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    rt::ready();
    match rt::text_option("how") {
        // Without gates, the invalid instruction cannot even be reported.
        Some("triple") => {
            rt::zero(abi::IDT, 1);
            invalid()
        }
        Some("invalid") => invalid(),
        Some("jump") => jump(0x7f00_0000_0000),
        Some("null") => rt::poke(0, 1),
        // Mapped, but there is neither RAM nor a device.
        Some("outside-write") => rt::poke(0xc000_1000, 1),
        Some("outside-read") => drop(rt::peek(0xc000_1000)),
        // Instructions cannot be fetched from a device.
        Some("emulation") => jump(abi::CONTROL_PAGE),
        // No such register.
        Some("register") => rt::poke(abi::CONTROL_PAGE + 0x800, 1),
        _ => say!("how?"),
    }
    rt::exit(9)
}

fn invalid() -> ! {
    // SAFETY: raises an exception, from which the VMM does not return.
    unsafe { asm!("ud2", options(noreturn)) }
}

fn jump(address: u64) {
    // SAFETY: there is nothing to return from.
    unsafe { asm!("jmp {}", in(reg) address) }
}
