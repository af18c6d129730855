//! Does what the host asks for in a mailbox, its first free page: is ready,
//! looks, does it, is ready again. The host's side is `guest_images::worker`.

#![no_std]
#![no_main]

mod rt;

#[path = "../src/worker.rs"]
mod worker;

use worker::{Mailbox, command};

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    let mailbox = rt::info().free_start as *mut Mailbox;
    loop {
        rt::ready();
        // SAFETY: the page is in RAM, and the host writes it only while this
        // VM is stopped.
        let Mailbox {
            command,
            args: [a, b, c],
            ..
        } = unsafe { mailbox.read_volatile() };
        let result = match command {
            command::FILL => {
                rt::fill(a, b, c);
                0
            }
            command::ZERO => {
                rt::zero(a, b);
                0
            }
            command::CHECKSUM => rt::checksum(a, b),
            command::WRITE => {
                rt::poke(a, b);
                0
            }
            command::READ => rt::peek(a),
            command::FREE => rt::report_free(a, b),
            command::FORK => rt::fork(),
            command::GENERATION => rt::generation(),
            command::SEED => rt::seed(),
            command::EXIT => rt::exit(a as u8),
            _ => u64::MAX,
        };
        // SAFETY: as above.
        unsafe { (&raw mut (*mailbox).result).write_volatile(result) };
    }
}
