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
        // Ring 0 looks at the word, and finds no page.
        Some("wait") => rt::wait_at(0, 0),
        // A port that is not open to ring 3.
        Some("port") => port(0x80),
        // Sixteen bytes from a device, to an instruction that KVM may not know.
        Some("vector") => vector(abi::CONTROL_PAGE),
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

fn port(port: u16) {
    // SAFETY: raises an exception.
    unsafe { asm!("out dx, al", in("dx") port, in("al") 0u8) }
}

fn vector(address: u64) {
    // SAFETY: reads a device's registers.
    unsafe { asm!("paddq xmm0, [{}]", in(reg) address, out("xmm0") _) }
}

fn jump(address: u64) {
    // SAFETY: there is nothing to return from.
    unsafe { asm!("jmp {}", in(reg) address) }
}
