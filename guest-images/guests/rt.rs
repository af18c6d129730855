//! What guests have in common: their entry, the control page, a little
//! arithmetic. Guests include this file by path.

// Not every guest uses all of it.
#![allow(dead_code)]

#[path = "../src/abi.rs"]
pub mod abi;

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

use abi::{BootInfo, control};

// The VMM enters as if by a call, with both arguments in place.
global_asm!(
    ".section .text.start",
    ".global _start",
    "_start: jmp guest_main"
);

/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// What the guest was told at its entry.
pub fn info() -> &'static BootInfo {
    // SAFETY: the VMM has put it there, and nobody changes it.
    unsafe { &*(abi::BOOT_INFO as *const BootInfo) }
}

/// The number that `key=` has on the command line.
pub fn option(key: &str) -> Option<u64> {
    let value = text_option(key)?;
    let (digits, radix) = match value.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (value, 10),
    };
    u64::from_str_radix(digits, radix).ok()
}

/// The word that `key=` has on the command line.
pub fn text_option(key: &str) -> Option<&'static str> {
    let info = info();
    // SAFETY: the VMM has put the command line there, and nobody changes it.
    let bytes = unsafe {
        core::slice::from_raw_parts(info.cmdline as *const u8, info.cmdline_len as usize)
    };
    let words = core::str::from_utf8(bytes).ok()?.split_ascii_whitespace();
    words
        .filter_map(|word| word.split_once('='))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value)
}

fn register(offset: u64) -> *mut u64 {
    (abi::CONTROL_PAGE + offset) as *mut u64
}

fn write_register(offset: u64, value: u64) {
    // SAFETY: a register of the control page.
    unsafe { register(offset).write_volatile(value) }
}

fn read_register(offset: u64) -> u64 {
    // SAFETY: as above.
    unsafe { register(offset).read_volatile() }
}

/// Ends the guest.
pub fn exit(code: u8) -> ! {
    loop {
        write_register(control::EXIT, code.into());
    }
}

/// Says that the guest is ready.
pub fn ready() {
    write_register(control::READY, 1);
}

/// Asks to be forked: 0 in the parent, the child's number in the child, or
/// [`control::REFUSED`].
pub fn fork() -> u64 {
    write_register(control::FORK, 1);
    read_register(control::FORK_RESULT)
}

/// Differs between a VM and its forks, and after each reset.
pub fn generation() -> u64 {
    read_register(control::GENERATION)
}

/// Random bytes from the host.
pub fn seed() -> u64 {
    read_register(control::SEED)
}

/// Reports a range free: pages dropped, or [`control::REFUSED`].
pub fn report_free(start: u64, len: u64) -> u64 {
    write_register(control::FREE_START, start);
    write_register(control::FREE_LEN, len);
    read_register(control::FREE_RESULT)
}

/// Interrupts that `vector` has had.
pub fn interrupts(vector: u8) -> &'static AtomicU64 {
    // SAFETY: ring 0 counts there, atomically.
    unsafe { &*((abi::COUNTERS + 8 * u64::from(vector)) as *const AtomicU64) }
}

/// Waits for an interrupt, unless `counter` is no longer `old`.
pub fn wait(counter: &AtomicU64, old: u64) {
    wait_at(counter.as_ptr() as u64, old);
}

/// The same by address.
pub fn wait_at(address: u64, old: u64) {
    // SAFETY: the wait service of ring 0; it changes nothing but flags.
    unsafe { asm!("int3", in("rdi") address, in("rsi") old) }
}

/// Registers of the local APIC.
mod apic {
    pub const SPURIOUS: u64 = 0xf0;
    pub const COMMAND: u64 = 0x300;
    pub const TIMER: u64 = 0x320;
    pub const INITIAL_COUNT: u64 = 0x380;
    pub const DIVIDE: u64 = 0x3e0;
}

fn set_apic(offset: u64, value: u32) {
    // SAFETY: registers of the local APIC, which ring 3 may use here.
    unsafe { ((abi::LOCAL_APIC + offset) as *mut u32).write_volatile(value) }
}

/// Lets this vCPU be interrupted.
pub fn enable_apic() {
    set_apic(apic::SPURIOUS, 0x1ff); // spurious vector 255
}

/// Interrupts this vCPU with `vector` every `period` ticks of its timer.
pub fn start_timer(vector: u8, period: u32) {
    enable_apic();
    set_apic(apic::DIVIDE, 0b1011); // by 1
    set_apic(apic::TIMER, 1 << 17 | u32::from(vector)); // periodic
    set_apic(apic::INITIAL_COUNT, period);
}

/// Halts every vCPU but the first, for guests that are for one.
pub fn first_only(cpu: u64) {
    static NEVER: AtomicU64 = AtomicU64::new(0);
    while cpu > 0 {
        wait(&NEVER, 0);
    }
}

/// Stops the timer of this vCPU.
pub fn stop_timer() {
    set_apic(apic::INITIAL_COUNT, 0);
}

/// Interrupts all other vCPUs with `vector`.
pub fn interrupt_others(vector: u8) {
    set_apic(apic::COMMAND, 0xc_4000 | u32::from(vector));
}

/// A word of memory, as hardware sees it.
pub fn peek(address: u64) -> u64 {
    // SAFETY: guests use addresses in their own RAM.
    unsafe { (address as *const u64).read_volatile() }
}

/// Writes a word of memory.
pub fn poke(address: u64, value: u64) {
    // SAFETY: as above, and not in the image.
    unsafe { (address as *mut u64).write_volatile(value) }
}

/// Fills `pages` pages from `start` on with a pattern of `seed`.
pub fn fill(start: u64, pages: u64, seed: u64) {
    for address in (start..start + pages * PAGE).step_by(8) {
        poke(address, pattern(address, seed));
    }
}

/// Fills them with zeros.
pub fn zero(start: u64, pages: u64) {
    for address in (start..start + pages * PAGE).step_by(8) {
        poke(address, 0);
    }
}

/// A checksum of `pages` pages from `start` on.
pub fn checksum(start: u64, pages: u64) -> u64 {
    let words = (start..start + pages * PAGE).step_by(8).map(peek);
    words.fold(0xcbf2_9ce4_8422_2325, |sum, word| mix(sum ^ word))
}

/// What [`fill`] puts at `address`; never zero.
pub fn pattern(address: u64, seed: u64) -> u64 {
    mix(address ^ seed.rotate_left(32)) | 1
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Sends a byte on the serial port.
pub fn com1(byte: u8) {
    // SAFETY: the transmit register of COM1, which ring 3 may use.
    unsafe { asm!("out dx, al", in("dx") 0x3f8_u16, in("al") byte) }
}

/// The console, in stores of up to eight bytes: each is an exit to the VMM.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let console = register(control::CONSOLE);
        let mut chunks = text.as_bytes().chunks_exact(8);
        for chunk in &mut chunks {
            let word = chunk
                .iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u64::from(*byte));
            // SAFETY: the console register takes words …
            unsafe { console.write_volatile(word) }
        }
        for byte in chunks.remainder() {
            // SAFETY: … and bytes.
            unsafe { console.cast::<u8>().write_volatile(*byte) }
        }
        Ok(())
    }
}

/// Prints a line, in as few exits as it takes.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => {{
        use core::fmt::Write;
        let mut line = $crate::rt::Line::new();
        let _ = writeln!(line, $($arg)*);
        let _ = $crate::rt::Console.write_str(line.text());
    }};
}

/// Room for a line.
pub struct Line {
    bytes: [u8; 200],
    len: usize,
}

impl Line {
    pub fn new() -> Self {
        Self {
            bytes: [0; 200],
            len: 0,
        }
    }

    pub fn text(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("?\n")
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self
            .bytes
            .get_mut(self.len..self.len + text.len())
            .ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// Adds to a word that all vCPUs share.
pub fn add(word: &AtomicU64, value: u64) -> u64 {
    word.fetch_add(value, Ordering::SeqCst)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("guest: {info}");
    exit(101)
}

// The compiled core library names it; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

// The compiler calls these; a string instruction keeps it from turning them
// into calls of themselves.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _)
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    for step in 0..len {
        // From the end that is overwritten last.
        let i = if to.cast_const() <= from {
            step
        } else {
            len - 1 - step
        };
        // SAFETY: the caller's promise. Volatile, so that this does not become
        // a call of itself.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) }
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { asm!("rep stosb", inout("rdi") to => _, inout("rcx") len => _, in("al") value as u8) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for i in 0..len {
        // SAFETY: the caller's promise.
        let (a, b) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}
