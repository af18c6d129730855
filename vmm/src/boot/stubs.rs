//! The ring-0 code that flat guests get: one stub a vector.
//!
//! On a host whose KVM emulates ring 0, every instruction here costs about a
//! microsecond and fancy ones stop the VM, so the stubs are as short and plain
//! as can be.
//!
//! ```text
//!  0–31, not 3   push 0           where the CPU pushes no error code
//!                push vector
//!                jmp report
//!  report:       mov [TRAP], esp  the VMM ends the guest here
//!  3 (int3)      cmp [rdi], rsi   wait, if *rdi is still rsi, for an interrupt;
//!                jne out          a gate clears IF, and sti takes effect after
//!                sti              the next instruction, so no interrupt is
//!                hlt              missed between the look and the wait
//!          out:  iretq
//!  32–255        lock inc qword [COUNTERS + 8·vector]
//!                mov dword [EOI], 0
//!                iretq
//! ```

use guest_images::abi;

/// The one vector that ring 3 may call.
pub(crate) const WAIT_VECTOR: u8 = 3;

/// Exceptions for which the CPU pushes an error code (Intel SDM 3A, table 6-1).
const WITH_ERROR_CODE: [u8; 10] = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];

/// End-of-interrupt register of the local APIC.
const EOI: u32 = 0xfee0_00b0;

/// Address-size prefix: the absolute address that follows is taken as 32 bits,
/// not sign-extended to 64.
const ADDRESS_32: u8 = 0x67;

/// The stubs of all vectors and the code they share, from [`abi::STUBS`] on.
pub(crate) fn stubs() -> Vec<u8> {
    let mut code = Vec::new();
    for vector in 0..=u8::MAX {
        let start = usize::from(vector) * abi::STUB_LEN as usize;
        debug_assert!(code.len() <= start, "the stub before is too long");
        code.resize(start, 0xcc);
        match vector {
            WAIT_VECTOR => code.extend(wait()),
            0..32 => code.extend(exception(vector)),
            32.. => code.extend(interrupt(vector)),
        }
    }
    code.resize((abi::STUBS_END - abi::STUBS) as usize, 0xcc);
    code.extend(report());
    code
}

fn exception(vector: u8) -> Vec<u8> {
    let mut code = Vec::new();
    if !WITH_ERROR_CODE.contains(&vector) {
        code.extend([0x6a, 0x00]); // push 0
    }
    code.extend([0x6a, vector]); // push vector
    let after_jump = abi::STUBS + u64::from(vector) * abi::STUB_LEN + code.len() as u64 + 5;
    code.push(0xe9); // jmp report
    code.extend(low_half(abi::STUBS_END - after_jump));
    code
}

fn report() -> Vec<u8> {
    let mut code = vec![ADDRESS_32, 0x89, 0x24, 0x25]; // mov [TRAP], esp
    code.extend(low_half(abi::CONTROL_PAGE + abi::control::TRAP));
    code.extend([0xeb, 0xfe]); // jmp $
    code
}

fn wait() -> Vec<u8> {
    vec![
        0x48, 0x39, 0x37, // cmp [rdi], rsi
        0x75, 0x02, // jne out
        0xfb, // sti
        0xf4, // hlt
        0x48, 0xcf, // out: iretq
    ]
}

fn interrupt(vector: u8) -> Vec<u8> {
    let mut code = vec![0xf0, 0x48, 0xff, 0x04, 0x25]; // lock inc qword [counter]
    code.extend(low_half(abi::COUNTERS + 8 * u64::from(vector)));
    code.extend([ADDRESS_32, 0xc7, 0x04, 0x25]); // mov dword [EOI], 0
    code.extend(EOI.to_le_bytes());
    code.extend([0; 4]);
    code.extend([0x48, 0xcf]); // iretq
    code
}

/// Addresses and distances below 4 GiB, as instructions hold them.
fn low_half(value: u64) -> [u8; 4] {
    u32::try_from(value)
        .expect("the ABI's addresses are below 4 GiB")
        .to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stub_fits_its_place() {
        for vector in 0..32 {
            assert!(exception(vector).len() <= abi::STUB_LEN as usize);
        }
        assert!(interrupt(255).len() <= abi::STUB_LEN as usize);
        let code = stubs();
        assert!(abi::STUBS + code.len() as u64 <= abi::COUNTERS);
        // The stub of vector 14 jumps to the shared code: 14 · 32 + 7 + x = 8192.
        let at = 14 * 32;
        assert_eq!(code[at..at + 3], [0x6a, 14, 0xe9]);
        let jump = u32::from_le_bytes(code[at + 3..at + 7].try_into().unwrap());
        assert_eq!(at + 7 + jump as usize, 8192);
    }
}
