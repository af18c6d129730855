//! Asks to be forked once. One of the two, the child or with `grows=0` the
//! parent, then writes `pages` (64) pages; the other writes one page `rounds`
//! (10,000,000) times. Each says when it is done.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

use rt::abi::control::REFUSED;

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    let start = rt::info().free_start;
    let pages = rt::option("pages").unwrap_or(64);
    let rounds = rt::option("rounds").unwrap_or(10_000_000);
    let grows = rt::option("grows").unwrap_or(1);
    match rt::fork() {
        REFUSED => {
            say!("refused");
            rt::exit(99)
        }
        number if number == grows => {
            for page in 0..pages {
                rt::poke(start + page * rt::PAGE, page + 1);
            }
            say!("wrote {pages} pages");
        }
        _ => {
            for round in 0..rounds {
                rt::poke(start, round);
            }
            say!("wrote one page {rounds} times");
        }
    }
    rt::exit(0)
}
