//! Does what the host asks for in a mailbox, its first free page: is ready,
//! looks, does it, is ready again. The host's side is `guest_images::worker`.

#![no_std]
#![no_main]

mod rt;

#[path = "../src/worker.rs"]
mod worker;

use worker::{Mailbox, Watch, command};

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
            command::TOUCH => {
                for page in 0..b {
                    rt::poke(a + page * rt::PAGE, c + page + 1);
                }
                0
            }
            command::LOOK => (0..b).fold(0, |sum, page| sum ^ rt::peek(a + page * rt::PAGE)),
            command::AGAIN => again(mailbox),
            command::SPIN => spin(a, b, c),
            _ => u64::MAX,
        };
        // SAFETY: as above.
        unsafe { (&raw mut (*mailbox).result).write_volatile(result) };
    }
}

fn ticks() -> u64 {
    // SAFETY: the guest environment lets ring 3 read the time-stamp counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Is ready over and over, and notes when it goes on.
fn again(mailbox: *mut Mailbox) -> ! {
    loop {
        rt::ready();
        let now = ticks();
        // SAFETY: as above.
        unsafe { (&raw mut (*mailbox).result).write_volatile(now) };
    }
}

/// Writes to `pages` pages from `start` on in turn, for ever; what it notices
/// goes into the `Watch` at `watch`.
fn spin(start: u64, pages: u64, watch: u64) -> ! {
    let watch = watch as *mut Watch;
    let mut page = 0;
    let mut longest = 0;
    let mut steps = 0;
    let mut answered = 0;
    let mut before = ticks();
    loop {
        steps += 1;
        rt::poke(start + page * rt::PAGE, steps);
        page = if page + 1 < pages { page + 1 } else { 0 };
        // SAFETY: the host names a page of RAM that is only used for this.
        unsafe {
            let asked = (&raw const (*watch).asked).read_volatile();
            if asked != answered {
                answered = asked;
                longest = 0;
                (&raw mut (*watch).longest).write_volatile(0);
                (&raw mut (*watch).answered).write_volatile(answered);
                before = ticks();
            }
            let now = ticks();
            if now - before > longest {
                longest = now - before;
                (&raw mut (*watch).longest).write_volatile(longest);
            }
            before = now;
            (&raw mut (*watch).steps).write_volatile(steps);
        }
    }
}
