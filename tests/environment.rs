//! What `docs/guest-abi.md` promises to guests holds, whatever the VM is like.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use guest_images::{Guest, abi};
use tests::{builder, kvm, output, run_to_end};
use vmm::{Backing, Event, FaultKind, Kernel, Vm, VmBuilder};

/// Runs a VM that might wait for ever if a promise is broken.
#[track_caller]
fn ends_with(vm: &Vm, code: u8) {
    vm.resume().unwrap();
    let event = vm.wait_for(Duration::from_secs(30));
    assert_eq!(event, Some(Event::Exited(code)), "{}", output(vm));
}

#[test]
fn a_flat_guest_finds_everything_as_promised() {
    let Some(host) = kvm() else { return };
    let initrd: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
    let sum: u64 = initrd.iter().map(|byte| u64::from(*byte)).sum();
    for backing in [Backing::Memfd, Backing::Anon] {
        for (cpus, memory_bytes) in [
            (1, abi::MIN_RAM),
            (abi::MAX_CPUS, abi::MIN_RAM),
            (2, (5 << 20) + 4096),
            (1, 3 << 30),
            (3, (3 << 30) + 4096),
            (1, 8 << 30),
            // More than there is room for page tables.
            (1, 100 << 30),
        ] {
            for options in ["", "initrd", "initrd and a long command line"] {
                let mut builder = builder(&host, Guest::Promises)
                    .cpus(cpus)
                    .memory_bytes(memory_bytes)
                    .backing(backing);
                let mut cmdline = String::new();
                if options.starts_with("initrd") {
                    builder = builder.initrd(initrd.clone());
                    cmdline = format!("initrd={sum}");
                }
                if options.ends_with("command line") {
                    cmdline += " cmdline=4095 ";
                    cmdline += &"x".repeat(4095 - cmdline.len());
                }
                let vm = builder.cmdline(cmdline).build().unwrap();
                ends_with(&vm, 0);
            }
        }
    }
}

#[test]
fn no_interrupt_is_missed_between_the_look_and_the_halt() {
    let Some(host) = kvm() else { return };
    for (cpus, rounds) in [(2, 1000), (4, 200)] {
        let vm = builder(&host, Guest::Relay)
            .cpus(cpus)
            .cmdline(format!("rounds={rounds}"))
            .build()
            .unwrap();
        ends_with(&vm, 0);
        let said = format!("{cpus} vCPUs, {} turns\n", u64::from(cpus) * rounds);
        assert_eq!(output(&vm), said);
    }
}

#[test]
fn no_interrupt_between_vcpus_is_lost_by_a_fork_in_flight() {
    let Some(host) = kvm() else { return };
    let mut forks = 0;
    for trial in 0..8 {
        let vm = builder(&host, Guest::Relay)
            .cpus(2 + trial % 2)
            .cmdline("rounds=200")
            .build()
            .unwrap();
        vm.resume().unwrap();
        let mut vms = vec![vm];
        for _ in 0..3 {
            let newest = vms.last().unwrap();
            newest.wait_for(Duration::from_micros(300 + 137 * u64::from(trial)));
            // It may have ended by now: the machine may be busy.
            let Ok(child) = newest.fork() else { break };
            child.resume().unwrap();
            vms.push(child);
            forks += 1;
        }
        for vm in &vms {
            // A relay that has lost an interrupt never ends.
            let event = vm.wait_for(Duration::from_secs(30));
            assert_eq!(event, Some(Event::Exited(0)), "VM {}", vm.number());
        }
    }
    assert!(forks > 0, "every relay ended before it could be forked");
}

#[test]
fn an_elf_kernel_starts_its_other_vcpus_as_on_hardware() {
    let Some(host) = kvm() else { return };
    for cpus in [1, 3] {
        let vm = builder(&host, Guest::Ring0Smp).cpus(cpus).build().unwrap();
        ends_with(&vm, cpus as u8);
    }
}

/// A kernel of `code` at 2 MiB, entered in ring 0.
fn elf_kernel(code: &[u8]) -> Kernel {
    const ADDRESS: u64 = 0x20_0000;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let len = code.len() as u64;
    // Type, machine, version; entry; program headers at 64, one of 56 bytes.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [ADDRESS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [120, ADDRESS, ADDRESS, len, len, 16] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    Kernel::from_bytes(file).unwrap()
}

#[test]
fn an_exception_in_a_kernel_that_has_set_up_nothing_is_reported() {
    let Some(host) = kvm() else { return };
    // push rax; pop rax; ud2
    let kernel = elf_kernel(&[0x50, 0x58, 0x0f, 0x0b]);
    let vm = VmBuilder::new(host, kernel).build().unwrap();
    match vm.run().unwrap() {
        Event::Failed(fault) => assert!(
            matches!(
                fault.kind,
                FaultKind::Exception {
                    vector: 6,
                    rip: 0x20_0002,
                    ..
                }
            ),
            "{fault:?}"
        ),
        event => panic!("{event:?}"),
    }
}

#[test]
fn what_ring_3_may_not_do_is_reported_with_its_address() {
    let Some(host) = kvm() else { return };
    let image = abi::IMAGE..abi::IMAGE + Guest::Faulty.image().len() as u64;
    let fault = |how: &str| {
        let cmdline = format!("how={how}");
        let builder = builder(&host, Guest::Faulty).cmdline(cmdline);
        match run_to_end(&builder.build().unwrap()) {
            Event::Failed(fault) => fault,
            event => panic!("{how}: {event:?}"),
        }
    };
    let port = fault("port").kind;
    assert!(
        matches!(port, FaultKind::Exception { vector: 13, rip, .. } if image.contains(&rip)),
        "{port:?}"
    );
    // The look at the word is ring 0's.
    let stub = abi::STUBS + 3 * abi::STUB_LEN;
    let wait = fault("wait").kind;
    assert!(
        matches!(wait, FaultKind::Exception { vector: 14, rip, cr2: 0, .. } if rip == stub),
        "{wait:?}"
    );
    // Some hosts tell us, others the guest.
    let vector = fault("vector");
    match vector.kind {
        FaultKind::Emulation { .. } => assert!(image.contains(&vector.rip.unwrap())),
        FaultKind::Exception { vector: 6, rip, .. } => assert!(image.contains(&rip)),
        kind => panic!("{kind:?}"),
    }
}

#[test]
fn the_document_and_the_constants_agree() {
    use abi::{BootInfo, control};
    use std::mem::offset_of;

    let text = document();
    let says = |words: &str| assert!(text.contains(words), "the document lacks {words:?}");
    for (name, offset) in [
        ("MAGIC", control::MAGIC),
        ("CONSOLE", control::CONSOLE),
        ("READY", control::READY),
        ("EXIT", control::EXIT),
        ("FORK", control::FORK),
        ("FORK_RESULT", control::FORK_RESULT),
        ("GENERATION", control::GENERATION),
        ("SEED", control::SEED),
        ("FREE_START", control::FREE_START),
        ("FREE_LEN", control::FREE_LEN),
        ("FREE_RESULT", control::FREE_RESULT),
        ("TRAP", control::TRAP),
    ] {
        says(&format!("| `{offset:#04x}` | {name}, "));
    }
    for (what, address) in [
        ("boot information", abi::BOOT_INFO),
        ("interrupt counters", abi::COUNTERS),
        ("Linux's boot_params", abi::BOOT_PARAMS),
        ("command line", abi::CMDLINE),
        ("one page a vCPU", abi::VCPU_PAGES),
        ("page tables", abi::PAGE_TABLES),
        ("the image", abi::IMAGE),
        ("control page", abi::CONTROL_PAGE),
        ("local APIC", abi::LOCAL_APIC),
    ] {
        let (high, low) = (address >> 16, address & 0xffff);
        says(&format!(" 0x{high:04x}_{low:04x}   {what}"));
    }
    for (field, offset) in [
        ("low_ram_end", offset_of!(BootInfo, low_ram_end)),
        ("control_page", offset_of!(BootInfo, control_page)),
        ("counters", offset_of!(BootInfo, counters)),
    ] {
        says(&format!("| {offset} | {field} | "));
    }
    for (first, second, offset) in [
        ("version", "cpus", offset_of!(BootInfo, cpus)),
        (
            "high_ram_start",
            "high_ram_end",
            offset_of!(BootInfo, high_ram_end),
        ),
        ("image_start", "image_end", offset_of!(BootInfo, image_end)),
        (
            "initrd_start",
            "initrd_end",
            offset_of!(BootInfo, initrd_end),
        ),
        ("cmdline", "cmdline_len", offset_of!(BootInfo, cmdline_len)),
        ("free_start", "free_end", offset_of!(BootInfo, free_end)),
    ] {
        says(&format!(", {offset} | {first}, {second} | "));
    }
}

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guest-abi.md");
    std::fs::read_to_string(path).unwrap()
}

/// The document's code block in `language`.
fn example(language: &str) -> String {
    let text = document();
    let (_, block) = text.split_once(&format!("```{language}\n")).unwrap();
    block.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_examples_in_the_document_build_and_run_as_it_says() {
    let Some(host) = kvm() else { return };
    let dir = std::env::temp_dir().join(format!("guest-abi-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-images/guests/guest.ld");
    std::fs::copy(script, dir.join("guest.ld")).unwrap();
    for (language, file, says, code) in [
        ("asm", "hello.S", "hello!!\n", 7),
        ("c", "hello.c", "hello\n", 8),
        ("rust", "hello.rs", "hello\n", 9),
    ] {
        let source = example(language);
        std::fs::write(dir.join(file), &source).unwrap();
        let first_line = source.lines().next().unwrap();
        let (_, command) = first_line.split_once("Build: ").unwrap();
        let command = command.trim_end_matches("*/").trim();
        let built = Command::new("sh")
            .args(["-c", command])
            .current_dir(&dir)
            .output()
            .unwrap();
        assert!(
            built.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&built.stderr)
        );
        let kernel = Kernel::from_file(&dir.join("hello.bin")).unwrap();
        let vm = VmBuilder::new(host.clone(), kernel).build().unwrap();
        ends_with(&vm, code);
        assert_eq!(output(&vm), says, "{file}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
