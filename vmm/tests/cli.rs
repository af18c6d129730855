//! The `vmm` command as a user meets it: what it says, and its exit codes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use guest_images::Guest;

/// A directory of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("vmm-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn guest(&self, guest: Guest) -> PathBuf {
        self.file(guest.file_name(), guest.image())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn vmm(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.args(args).stdin(Stdio::null()).output().unwrap()
}

/// Whether this host can run VMs; says so if not, and fails in CI.
fn kvm(test: &str) -> bool {
    match vmm::Host::open() {
        Ok(_) => true,
        Err(error) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "{test} DID NOT RUN: {error}"
            );
            eprintln!("\n*** {test} DID NOT RUN: {error}\n");
            false
        }
    }
}

/// The command fails with `code` and one line that has all of `words` in it.
#[track_caller]
fn fails(args: &[&str], code: i32, words: &[&str]) {
    let output = vmm(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(
        output.stdout.is_empty(),
        "{args:?} prints {:?}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: {said:?} lacks {word:?}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn without_arguments_the_embedded_guest_runs_is_forked_and_accounted_for() {
    if !kvm("the embedded run") {
        return;
    }
    for args in [&[][..], &["--cpus", "2"], &["--memory", "size=5G"]] {
        let output = vmm(args);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{args:?}: {said}");
        assert_eq!(said.matches("forked VM").count(), 4, "{said}");
        assert!(said.contains("saved by sharing"), "{said}");
    }
}

#[test]
fn the_guests_exit_code_and_output_become_the_commands() {
    if !kvm("exit codes") {
        return;
    }
    let scratch = Scratch::new("codes");
    let output = vmm(&["--kernel", text(&scratch.guest(Guest::Hello))]);
    assert_eq!(
        (output.status.code(), &*output.stdout),
        (Some(0), &b"hello\n"[..])
    );
    let output = vmm(&["--kernel", text(&scratch.guest(Guest::Ring0))]);
    assert_eq!(output.status.code(), Some(42));
    let smp = scratch.guest(Guest::Smp);
    let args = [
        "--kernel",
        text(&smp),
        "--cpus",
        "2",
        "--memory",
        "size=64M",
        "--cmdline",
        "steps=1000",
    ];
    assert_eq!(vmm(&args).stdout, b"2 vCPUs counted 2000\n");
    let counter = scratch.guest(Guest::Counter);
    let args = [
        "--kernel",
        text(&counter),
        "--memory",
        "size=8G,backing=anon",
        "--cmdline",
        "rounds=2",
    ];
    assert_eq!(vmm(&args).stdout, b"counted 131072\n");
}

#[test]
fn a_guest_that_forks_itself_prints_whole_lines_from_every_vm() {
    if !kvm("forks from the command line") {
        return;
    }
    let scratch = Scratch::new("forker");
    let forker = scratch.guest(Guest::Forker);
    let output = vmm(&["--kernel", text(&forker)]);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stdout).unwrap();
    let mut lineages: Vec<_> = said
        .lines()
        .map(|line| line.split_once("lineage ").unwrap().1)
        .collect();
    lineages.sort_unstable();
    assert_eq!(
        lineages,
        ["000", "001", "010", "011", "100", "101", "110", "111"]
    );

    // With fewer forks allowed, the guest hears of it.
    let output = vmm(&["--kernel", text(&forker), "--max-forks", "0"]);
    assert_eq!(output.status.code(), Some(99));
}

#[test]
fn with_too_few_open_files_every_fork_is_made_or_refused_and_none_is_half_made() {
    if !kvm("too few open files") {
        return;
    }
    let scratch = Scratch::new("files");
    let forker = scratch.guest(Guest::Forker);
    let mut codes = Vec::new();
    for files in 4..=40 {
        // The limit fails another call each time, from the first to none.
        let script = format!("ulimit -n {files}; exec \"$0\" --kernel \"$1\"");
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_vmm"), text(&forker)])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let code = output.status.code().unwrap();
        // A parent that was told of a child has one: each lineage ends in as
        // many children as parents.
        let ends = |bit| said.lines().filter(|line| line.ends_with(bit)).count();
        assert_eq!(ends('0'), ends('1'), "{files} files: {said}");
        codes.push(code);
    }
    assert!(
        codes.iter().all(|code| [0, 71, 99].contains(code)),
        "{codes:?}"
    );
    for code in [0, 71, 99] {
        assert!(codes.contains(&code), "{code} is not among {codes:?}");
    }
}

#[test]
fn a_guest_that_fails_is_reported_with_what_and_where() {
    if !kvm("guest failures") {
        return;
    }
    let scratch = Scratch::new("faulty");
    let faulty = scratch.guest(Guest::Faulty);
    for (how, word) in [
        ("triple", "triple fault"),
        ("jump", "address 0x7f0000000000"),
        ("outside-write", "0xc0001000"),
        ("emulation", "cannot emulate"),
    ] {
        fails(
            &[
                "--kernel",
                text(&faulty),
                "--cmdline",
                &format!("how={how}"),
            ],
            70,
            &[word, "rip"],
        );
    }
}

#[test]
fn kernels_that_cannot_be_are_refused_before_any_vm_exists() {
    let scratch = Scratch::new("kernels");
    fails(
        &["--kernel", "/no/such/file"],
        66,
        &["/no/such/file", "No such file"],
    );
    fails(&["--kernel", "/"], 66, &["`/`"]);
    fails(&["--kernel", "/dev/zero"], 65, &["/dev/zero", "device"]);
    fails(
        &["--kernel", text(&scratch.file("empty", b""))],
        65,
        &["empty"],
    );

    let elf = Guest::Ring0.image();
    let claims = scratch.file("claims", b"\x7fELF and nothing more");
    fails(&["--kernel", text(&claims)], 65, &["claims to be ELF"]);
    let truncated = scratch.file("truncated", &elf[..200]);
    fails(
        &["--kernel", text(&truncated)],
        65,
        &["claims to be ELF", "truncated"],
    );
    let mut machine = elf.to_vec();
    machine[18] = 3;
    fails(
        &["--kernel", text(&scratch.file("machine", &machine))],
        65,
        &["machine 3"],
    );
}

#[test]
fn kernels_and_initrds_that_do_not_fit_are_refused() {
    if !kvm("kernels that do not fit") {
        return;
    }
    let scratch = Scratch::new("fit");
    let big = scratch.file("big", &vec![0x90; 8 << 20]);
    fails(
        &["--kernel", text(&big), "--memory", "size=4M"],
        65,
        &["more memory"],
    );
    let hello = scratch.guest(Guest::Hello);
    let args = [
        "--kernel",
        text(&hello),
        "--initrd",
        text(&big),
        "--memory",
        "size=8M",
    ];
    fails(&args, 65, &["initrd", "8388608"]);
    fails(
        &["--kernel", text(&hello), "--initrd", "/no/such/initrd"],
        66,
        &["/no/such/initrd"],
    );
    let long = "x".repeat(5000);
    fails(
        &["--kernel", text(&hello), "--cmdline", &long],
        65,
        &["5000"],
    );
}

#[test]
fn memory_and_cpus_that_cannot_be_are_refused_by_value() {
    if !kvm("memory and CPUs that cannot be") {
        return;
    }
    let scratch = Scratch::new("config");
    let hello = scratch.guest(Guest::Hello);
    let with = |key: &str, value: &str, code, words: &[&str]| {
        fails(&["--kernel", text(&hello), key, value], code, words);
    };
    with("--memory", "size=0", 78, &["0"]);
    with("--memory", "size=4097", 78, &["4097"]);
    with("--memory", "size=1000000T", 78, &["1099511627776000000"]);
    with("--memory", "size=60T", 78, &["65970697666560"]);
    with("--memory", "size=1M", 65, &["1048576", "4194304"]);
    with("--cpus", "0", 78, &["0 vCPUs"]);
    with("--cpus", "1000", 78, &["1000 vCPUs"]);
}

#[test]
fn a_vm_over_its_memory_limit_ends_with_a_code_of_its_own_and_says_why() {
    if !kvm("memory limits") {
        return;
    }
    let scratch = Scratch::new("limits");
    let touch = scratch.guest(Guest::Touch);
    let with = |options: &[&'static str]| {
        let mut args = vec!["--kernel", text(&touch), "--memory", "size=512M"];
        args.extend(options);
        args.iter().map(|arg| arg.to_string()).collect::<Vec<_>>()
    };
    let fails_with = |options: &[&'static str], words: &[&str]| {
        let args = with(options);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        fails(&args, 75, words);
    };
    let much = ["--cmdline", "pages=65536"];
    fails_with(
        &[&["--memory-limit", "16M"], &much[..]].concat(),
        &["VM 0", "hard memory limit", "16777216"],
    );
    fails_with(
        &[&["--family-limit", "hard=16M"], &much[..]].concat(),
        &["the family", "hard memory limit", "16777216"],
    );
    fails_with(&["--memory-limit", "4K"], &["loading the kernel", "4096"]);

    // A soft limit stops nothing.
    let args = with(&["--memory-limit", "soft=1M", "--cmdline", "pages=2048"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let output = vmm(&args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in ["VM 0", "soft memory limit", "1048576"] {
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn the_others_go_on_when_one_of_a_family_is_over_a_limit() {
    if !kvm("siblings of a VM over its limit") {
        return;
    }
    let scratch = Scratch::new("siblings");
    let grow = scratch.guest(Guest::Grow);
    // The exit code is the first VM's; the child's end is only a line.
    for (limit, grows, code) in [
        ("--memory-limit", "grows=0", 75),
        ("--memory-limit", "grows=1", 0),
        ("--family-limit", "grows=0", 75),
        ("--family-limit", "grows=1", 0),
    ] {
        let cmdline = format!("pages=1000000 {grows}");
        let args = ["--kernel", text(&grow), "--memory", "size=4G", limit, "16M"];
        let output = vmm(&[&args[..], &["--cmdline", &cmdline]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{limit} {grows}: {said}");
        assert_eq!(said.lines().count(), 1, "{limit} {grows}: {said}");
        assert!(said.contains("hard memory limit"), "{said}");
        assert_eq!(output.stdout, b"wrote one page 10000000 times\n", "{said}");
    }
}

#[test]
fn a_family_within_its_limits_forks_as_ever() {
    if !kvm("a family within its limits") {
        return;
    }
    let scratch = Scratch::new("within");
    let forker = scratch.guest(Guest::Forker);
    let args = ["--kernel", text(&forker), "--memory-limit", "8M"];
    let limited = [&args[..], &["--family-limit", "64M,soft=48M"]].concat();
    let output = vmm(&limited);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(0), 8));
    assert!(output.stderr.is_empty());
}

#[test]
fn wrong_arguments_have_a_code_of_their_own_and_help_has_none() {
    for args in [
        &["--no-such-flag"][..],
        &["--memory", "size=12Q"],
        &["--memory", "backing=paper"],
        &["--memory-limit", "soft=2M,hard=1M"],
        &["--family-limit", "most=1M"],
        &["--cpus", "many"],
        &["--cmdline", "x"],
        &["stray"],
    ] {
        let output = vmm(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    let help = vmm(&["--help"]);
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("Exit codes"));
    assert!(vmm(&["--version"]).status.success());
}

#[test]
fn a_closed_output_and_endless_input_do_no_harm() {
    if !kvm("closed pipes") {
        return;
    }
    let scratch = Scratch::new("pipes");
    let talk = scratch.guest(Guest::Talk);
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmm"))
        .args(["--kernel", text(&talk)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    // Fails when the command has ended, which is as it should be.
    let _ = stdin.write_all(&vec![b'x'; 200_000]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn bench_names_its_measures_and_refuses_others() {
    let output = vmm(&["bench", "--help"]);
    let help = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for name in ["fork-cold", "fork-running", "reset", "--json", "--svg"] {
        assert!(help.contains(name), "{help}");
    }
    assert!(!help.contains("bench-restore"), "{help}");
    let output = vmm(&["bench", "no-such-measure"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{said}");
    for word in ["no-such-measure", "fork-cold", "memory"] {
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn bench_prints_one_json_object_and_draws_its_curves() {
    if !kvm("bench_prints_one_json_object_and_draws_its_curves") {
        return;
    }
    let scratch = Scratch::new("bench");
    let output = vmm(&["bench", "--quick", "--json", "--svg", text(&scratch.0)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.is_empty(), "{said}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let measures = json["measures"].as_array().unwrap();
    assert!(measures.len() > 20, "{json:#}");
    for measure in measures {
        let name = measure["name"].as_str().unwrap();
        assert_eq!(measure.as_object().unwrap().len(), 12, "{measure:#}");
        assert!(measure["n"].as_u64() > Some(0), "{name}");
        let at = |field: &str| measure[field].as_f64().unwrap();
        assert!(at("min") <= at("p50") && at("p50") <= at("p99"), "{name}");
        // A target says whether it is met; without one there is nothing to meet.
        assert_eq!(measure["target"].is_null(), measure["pass"].is_null());
        assert_eq!(measure["rival"].is_null(), measure["rival_p50"].is_null());
    }
    for measure in ["fork-pooled", "fork-cold", "drop", "fork-running", "reset"] {
        let has = |row: &serde_json::Value| row["name"].as_str().unwrap().starts_with(measure);
        assert!(measures.iter().any(has), "no {measure}");
    }
    for curve in ["ram", "vms", "depth", "dirty"] {
        let picture = std::fs::read_to_string(scratch.0.join(format!("{curve}.svg"))).unwrap();
        assert!(picture.contains("<polyline"), "{picture}");
    }
}
