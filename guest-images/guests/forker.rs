//! Asks to be forked, three generations deep: eight VMs. Each says who it
//! descends from and exits with that: a bit a generation, 1 for the child.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

use rt::abi::control::REFUSED;

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    let mut lineage = 0u8;
    let mut number = 0;
    for _ in 0..3 {
        let before = rt::generation();
        let child = rt::fork();
        if child == REFUSED {
            say!("refused");
            rt::exit(99);
        }
        // A copy that cannot tell itself from its original is a twin.
        if (child != 0) != (rt::generation() != before) {
            say!("the generation is wrong");
            rt::exit(98);
        }
        lineage = lineage << 1 | u8::from(child != 0);
        if child != 0 {
            number = child;
        }
    }
    say!("VM {number} has lineage {lineage:03b}");
    rt::exit(lineage)
}
