//! Writes and checks what a host could lose: each step checks that a
//! page still holds what was last written there, then writes something else,
//! zero half of the time. Ends after `writes` (1,000,000) steps, or with 2 as
//! soon as a page is wrong. Uses `pages` (256) pages; the page after them holds
//! the steps done.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    let writes = rt::option("writes").unwrap_or(1_000_000);
    let pages = rt::option("pages").unwrap_or(256);
    let start = rt::info().free_start;
    // What step `step` writes; before the first round, what memory starts as.
    let value = |step: Option<u64>| match step {
        Some(step) if rt::pattern(step, 1) & 2 == 0 => rt::pattern(step, 2),
        _ => 0,
    };
    rt::ready();
    for step in 0..writes {
        let word = start + step % pages * rt::PAGE + 8 * (step / pages % 512);
        let before = start + step % pages * rt::PAGE + 8 * ((step / pages).wrapping_sub(1) % 512);
        let wanted = value(step.checked_sub(pages));
        if rt::peek(before) != wanted {
            say!(
                "step {step}: {before:#x} holds {:#x}, not {wanted:#x}",
                rt::peek(before)
            );
            rt::exit(2);
        }
        // One word of a page is used at a time; so a zero empties the page.
        rt::poke(before, 0);
        rt::poke(word, value(Some(step)));
        rt::poke(start + pages * rt::PAGE, step + 1);
    }
    say!("{writes} writes are as they should be");
    rt::exit(0)
}
