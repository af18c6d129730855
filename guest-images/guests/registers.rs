//! Keeps a value in every register that ring 3 has and looks at all of them,
//! round after round: general registers, YMM (XMM where there is no AVX), x87,
//! MXCSR, the x87 control word. Ends with 1 when a general register has
//! changed, with 2 for a vector register, with 3 for x87 or a control word.
//!
//! The rounds are counted in its first free page. With `rounds=N` it ends after
//! N, with 0. The values are made from `seed=N`.

#![no_std]
#![no_main]

#[macro_use]
mod rt;

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::mem::offset_of;

/// Rounding towards zero, exceptions masked: not what a fresh CPU has.
const MXCSR: u32 = 0x7f80;
const X87_CONTROL: u16 = 0x0f7f;

/// What FXSAVE stores, as far as it is looked at.
#[repr(C, align(16))]
struct FxSave {
    control: u16,
    others: [u16; 11],
    mxcsr: u32,
    mxcsr_mask: u32,
    x87: [u64; 16],
    rest: [u64; 44],
}

/// What should be in the registers, and what is.
#[repr(C)]
struct Values {
    rounds: u64,
    limit: u64,
    /// RBX, RBP, RSP, R8 to R15.
    general: [u64; 11],
    mxcsr: u32,
    x87_control: u16,
    x87: [u64; 8],
    vector: [[u64; 4]; 16],
    vector_found: [[u64; 4]; 16],
    /// As the CPU has stored it right after loading.
    fx: FxSave,
    fx_found: FxSave,
}

// Where a test finds the values of a register of each kind, to change them.
const _: () = assert!(
    offset_of!(Values, general) == 16
        && offset_of!(Values, mxcsr) == 104
        && offset_of!(Values, vector) == 176
        && offset_of!(Values, fx) == 1200
);

#[unsafe(no_mangle)]
extern "C" fn guest_main(_: u64, cpu: u64) -> ! {
    rt::first_only(cpu);
    let seed = rt::option("seed").unwrap_or(1);
    let value = |index: u64| rt::pattern(index, seed);
    let avx = __cpuid(1).ecx & (1 << 28) != 0;
    // SAFETY: RAM that is aligned, zero, and nobody else's.
    let values = unsafe { &mut *(rt::info().free_start as *mut Values) };
    values.limit = rt::option("rounds").unwrap_or(u64::MAX);
    values.mxcsr = MXCSR;
    values.x87_control = X87_CONTROL;
    for (index, word) in (0..).zip(&mut values.general) {
        *word = value(index);
    }
    for (index, word) in (100..).zip(&mut values.x87) {
        *word = value(index);
    }
    // Without AVX the upper halves are not there, and stay zero.
    let words = if avx { 4 } else { 2 };
    for (index, register) in (200..).step_by(4).zip(&mut values.vector) {
        for (index, word) in (index..).zip(&mut register[..words]) {
            *word = value(index);
        }
    }
    rt::ready();
    let verdict = if avx {
        look_avx(values)
    } else {
        look_sse(values)
    };
    say!("verdict {verdict} after {} rounds", values.rounds);
    rt::exit(verdict)
}

/// A function that loads all registers, looks at them until one is wrong or
/// enough rounds are done, and returns which.
macro_rules! look {
    ($name:ident, $move:literal, $register:literal) => {
        fn $name(values: &mut Values) -> u8 {
            let verdict: u32;
            // SAFETY: writes to `values` and the stack; all registers are said
            // to be lost but RBX and RBP, which are put back.
            unsafe {
                asm!(
                    "push rbx",
                    "push rbp",
                    "ldmxcsr [rdi + {mxcsr}]",
                    "fldcw [rdi + {x87_control}]",
                    ".irp i,7,6,5,4,3,2,1,0",
                    "fild qword ptr [rdi + {x87} + \\i * 8]",
                    ".endr",
                    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                    concat!($move, " ", $register, "\\i, [rdi + {vector} + \\i * 32]"),
                    ".endr",
                    "fxsave64 [rdi + {fx}]",
                    "mov rbx, [rdi + {general}]",
                    "mov rbp, [rdi + {general} + 8]",
                    "mov [rdi + {general} + 16], rsp",
                    ".irp i,8,9,10,11,12,13,14,15",
                    "mov r\\i, [rdi + {general} + (\\i - 5) * 8]",
                    ".endr",

                    "2:",
                    "mov eax, 1",
                    "cmp rbx, [rdi + {general}]",
                    "jne 9f",
                    "cmp rbp, [rdi + {general} + 8]",
                    "jne 9f",
                    "cmp rsp, [rdi + {general} + 16]",
                    "jne 9f",
                    ".irp i,8,9,10,11,12,13,14,15",
                    "cmp r\\i, [rdi + {general} + (\\i - 5) * 8]",
                    "jne 9f",
                    ".endr",

                    "mov eax, 2",
                    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                    concat!($move, " [rdi + {vector_found} + \\i * 32], ", $register, "\\i"),
                    ".endr",
                    "xor ecx, ecx",
                    "3:",
                    "mov rdx, [rdi + {vector_found} + rcx * 8]",
                    "cmp rdx, [rdi + {vector} + rcx * 8]",
                    "jne 9f",
                    "inc ecx",
                    "cmp ecx, 64",
                    "jb 3b",

                    "mov eax, 3",
                    "fxsave64 [rdi + {fx_found}]",
                    "mov dx, [rdi + {fx_found} + {at_control}]",
                    "cmp dx, [rdi + {x87_control}]",
                    "jne 9f",
                    "mov edx, [rdi + {fx_found} + {at_mxcsr}]",
                    "cmp edx, [rdi + {mxcsr}]",
                    "jne 9f",
                    "xor ecx, ecx",
                    "4:",
                    "mov rdx, [rdi + {fx_found} + {at_x87} + rcx * 8]",
                    "cmp rdx, [rdi + {fx} + {at_x87} + rcx * 8]",
                    "jne 9f",
                    "inc ecx",
                    "cmp ecx, 16",
                    "jb 4b",

                    "inc qword ptr [rdi + {rounds}]",
                    "mov rdx, [rdi + {rounds}]",
                    "cmp rdx, [rdi + {limit}]",
                    "jb 2b",
                    "xor eax, eax",

                    "9:",
                    // As the CPU has them at first, for the code that follows.
                    "fninit",
                    "push 0x1f80",
                    "ldmxcsr [rsp]",
                    "pop rdx",
                    "pop rbp",
                    "pop rbx",
                    in("rdi") values,
                    lateout("eax") verdict,
                    out("r12") _,
                    out("r13") _,
                    out("r14") _,
                    out("r15") _,
                    clobber_abi("sysv64"),
                    rounds = const offset_of!(Values, rounds),
                    limit = const offset_of!(Values, limit),
                    general = const offset_of!(Values, general),
                    mxcsr = const offset_of!(Values, mxcsr),
                    x87_control = const offset_of!(Values, x87_control),
                    x87 = const offset_of!(Values, x87),
                    vector = const offset_of!(Values, vector),
                    vector_found = const offset_of!(Values, vector_found),
                    fx = const offset_of!(Values, fx),
                    fx_found = const offset_of!(Values, fx_found),
                    at_control = const offset_of!(FxSave, control),
                    at_mxcsr = const offset_of!(FxSave, mxcsr),
                    at_x87 = const offset_of!(FxSave, x87),
                );
            }
            verdict as u8
        }
    };
}

look!(look_avx, "vmovups", "ymm");
look!(look_sse, "movups", "xmm");
