//! `sandbox doctor`: what the host is found to offer, as the caller and as an ordinary user.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use sandbox::cli::doctor::{as_json, as_text, run};
use sandbox::config::Without;
use sandbox::launch::host::{
    Cause, Container, Finding, Host, RefusalFacts, State, able, apparmor_profile, classify,
    classify_listener, explain_seccomp_refusal, explain_userns_refusal,
};

fn findings(without: Without) -> Vec<Finding> {
    Host::probe(without).findings()
}

fn find<'a>(findings: &'a [Finding], name: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.name == name).unwrap_or_else(|| panic!("no {name}"))
}

/// What must hold of every report, on any host.
fn assert_sound(findings: &[Finding]) {
    let names: HashSet<&str> = findings.iter().map(|finding| finding.name).collect();
    assert_eq!(names.len(), findings.len(), "a name is used twice");
    for finding in findings {
        let key = |symbol: char| symbol.is_ascii_lowercase() || symbol.is_ascii_digit();
        assert!(finding.name.chars().all(|symbol| symbol == '-' || key(symbol)), "{finding:?}");
        assert_eq!(finding.state == State::Ok, finding.remedy.is_none(), "{finding:?}");
        if let Some(cause) = finding.rests_on {
            let cause = find(findings, cause);
            assert!(cause.state == State::Missing && cause.rests_on.is_none(), "{cause:?}");
        }
        let lines = [finding.found.as_str(), finding.needed_for];
        let remedy = finding.remedy.as_deref();
        for line in lines.into_iter().chain(finding.fallback).chain(remedy) {
            assert!(!line.is_empty() && !line.contains('\n'), "{finding:?}");
        }
    }
}

#[test]
fn every_finding_is_complete() {
    assert_sound(&findings(Without::empty()));
    assert_sound(&findings(Without::all()));
}

#[test]
fn probing_leaves_nothing_behind() {
    let count = |path: &str| std::fs::read_dir(path).map(Iterator::count).unwrap_or(0);
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let namespaces = || {
        ["user", "pid_for_children", "mnt", "net", "time_for_children"]
            .map(|kind| std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).ok())
    };
    // Other tests of this program open files at the same time: a process of its own is quiet.
    alone("probing_leaves_nothing_behind", None, || {
        // What the first probe opens once and for all (name services) is not of its making.
        findings(Without::empty());
        let before = (count("/proc/self/fd"), mounts(), namespaces());
        findings(Without::empty());
        assert_eq!(before, (count("/proc/self/fd"), mounts(), namespaces()));
        assert_eq!(
            nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::__WALL)),
            Err(Errno::ECHILD),
            "a child was not waited for"
        );
    });
}

#[test]
fn an_ordinary_user_gets_a_report() {
    if std::env::var_os(CHILD).is_none() && !nix::unistd::geteuid().is_root() {
        println!("skipped: no root to become an ordinary user from");
        return;
    }
    alone("an_ordinary_user_gets_a_report", Some(65534), || {
        assert_eq!(nix::unistd::geteuid().as_raw(), 65534);
        let findings = findings(Without::empty());
        assert_sound(&findings);
        // Where nothing is said against ordinary users, they get what root gets.
        let is = |path: &str, value: &str| {
            std::fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
        };
        let restricted = is("/proc/sys/kernel/unprivileged_userns_clone", "0")
            || is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1");
        let as_root = std::env::var_os(ABLE).is_some_and(|able| able == "true");
        assert_eq!(able(&findings), as_root && !restricted, "{}", as_text(&findings, false));
        assert!(!find(&findings, "sub-ids").found.starts_with("root may map any id"));
    });
}

#[test]
fn what_is_absent_is_reported_with_its_remedy() {
    let normal = findings(Without::empty());
    for (without, names, fatal) in [
        (Without::USER_NAMESPACES, &["user-namespaces", "id-maps", "procfs"][..], true),
        (Without::SECCOMP_NOTIFY, &["seccomp-notify", "listener", "notify-sizes"][..], true),
        (Without::WAIT_KILLABLE, &["wait-killable"][..], false),
        (Without::SYNC_WAKE_UP, &["sync-wake-up"][..], false),
        (Without::LANDLOCK, &["landlock"][..], false),
        (Without::TIME_NAMESPACES, &["time-namespace"][..], false),
    ] {
        let findings = findings(without);
        for name in names {
            let finding = find(&findings, name);
            assert_eq!(finding.state, State::Missing, "{without:?}: {finding:?}");
            assert!(finding.remedy.is_some(), "{finding:?}");
        }
        if fatal {
            assert!(!able(&findings), "{without:?} is not seen to be fatal");
        } else {
            assert_eq!(able(&findings), able(&normal), "{without:?} changes the verdict");
        }
        let text = as_text(&findings, false);
        for finding in names.iter().map(|name| find(&findings, name)) {
            let remedy = finding.remedy.as_deref().unwrap_or_default();
            let printed = text.contains(&format!("remedy   {remedy}\n"));
            assert_eq!(printed, finding.rests_on.is_none(), "{text}");
        }
    }
}

#[test]
fn without_process_vm_memory_is_read_through_proc() {
    let memory = |without| find(&findings(without), "guest-memory").clone();
    if memory(Without::empty()).state == State::Missing {
        println!("skipped: no seccomp listener to read a guest's memory by");
        return;
    }
    let without = memory(Without::PROCESS_VM);
    assert_ne!(without.state, State::Ok, "{without:?}");
    if without.state == State::Limited {
        assert!(without.found.contains("/proc/PID/mem works"), "{without:?}");
    }
}

#[test]
fn the_exit_status_is_the_verdict() {
    assert_eq!(run(true, Without::USER_NAMESPACES), 1);
    assert_eq!(run(false, Without::empty()), i32::from(!able(&findings(Without::empty()))));
}

#[test]
fn json_has_stable_keys() {
    let findings = findings(Without::LANDLOCK);
    let rows: Vec<serde_json::Map<String, serde_json::Value>> =
        serde_json::from_str(&as_json(&findings)).expect("an array of objects");
    assert_eq!(rows.len(), findings.len());
    for row in &rows {
        let mut keys: Vec<&str> = row.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["found", "name", "needed_for", "remedy", "state"]);
        let state = row["state"].as_str().expect("a word");
        assert!(["ok", "limited", "missing"].contains(&state), "{state}");
        assert_eq!(row["remedy"].is_null(), state == "ok", "{row:?}");
    }
    assert!(rows.iter().any(|row| row["name"] == "landlock" && row["state"] == "missing"));
}

#[test]
fn text_is_grouped_and_ends_with_the_verdict() {
    let findings = findings(Without::all());
    let text = as_text(&findings, false);
    assert!(!text.contains('\x1b'));
    for heading in ["Kernel\n", "\nWalls\n", "\nTrapped calls\n", "\nSurroundings\n"] {
        assert!(text.contains(heading), "{text}");
    }
    let last = text.lines().last().unwrap_or_default();
    assert!(last.contains("cannot work on this host"), "{last}");
    assert!(last.contains("user-namespaces"), "{last}");
    assert!(as_text(&findings, true).contains("\x1b[31mmissing"));
}

#[test]
fn explanations_are_one_sentence_with_a_remedy() {
    for errno in [Errno::EPERM, Errno::EACCES, Errno::ENOSPC, Errno::EINVAL, Errno::ENOSYS] {
        let sentence = explain_userns_refusal(errno);
        assert!(sentence.starts_with("creating the sandbox's user namespace failed with"));
        assert!(sentence.contains(&format!("{errno:?}")), "{sentence}");
        assert!(sentence.contains("; ") && !sentence.contains('\n'), "{sentence}");
    }
    for errno in [Errno::EBUSY, Errno::EINVAL, Errno::EACCES, Errno::EPERM, Errno::EFAULT] {
        let sentence = explain_seccomp_refusal(errno);
        assert!(sentence.starts_with("loading the sandbox's seccomp filter failed with"));
        assert!(sentence.contains("; ") && !sentence.contains('\n'), "{sentence}");
    }
    assert!(explain_userns_refusal(Errno::EINVAL).contains("CONFIG_USER_NS"));
    assert!(explain_seccomp_refusal(Errno::EBUSY).contains("inside a sandbox"));
}

/// A host that says nothing against user namespaces and yet refuses them.
fn plain(errno: Errno) -> RefusalFacts {
    RefusalFacts {
        errno,
        built: true,
        privileged: false,
        initial_namespace: true,
        ids_mapped: true,
        max_user_namespaces: Some(30_000),
        unprivileged_clone_off: false,
        apparmor_restricts: false,
        apparmor_profile: None,
        selinux_enforcing: false,
        container: None,
        filtered: false,
        listener_in_chain: false,
        chrooted: false,
        program: PathBuf::from("/opt/sandbox"),
    }
}

#[test]
fn ubuntus_restriction_is_told_with_a_profile_for_our_path() {
    for errno in [Errno::EPERM, Errno::EACCES] {
        let facts = RefusalFacts {
            apparmor_restricts: true,
            program: "/usr/local/bin/sandbox".into(),
            ..plain(errno)
        };
        let cause = classify(&facts);
        assert_eq!(cause, Cause::AppArmorRestriction { program: facts.program.clone() });
        let remedy = cause.remedy();
        assert!(remedy.contains("profile sandbox \"/usr/local/bin/sandbox\" flags=(unconfined) {"));
        assert!(remedy.contains("'  userns,'"), "{remedy}");
        assert!(remedy.contains("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"));
        // The profile that everybody is moved into is the restriction, not a cause of its own.
        let moved = RefusalFacts { apparmor_profile: Some("unprivileged_userns".into()), ..facts };
        assert!(matches!(classify(&moved), Cause::AppArmorRestriction { .. }));
        // Root is not restricted: then it is something else.
        let root = RefusalFacts { privileged: true, apparmor_profile: None, ..moved };
        assert_eq!(classify(&root), Cause::Unknown);
    }
}

#[test]
fn the_profiles_command_writes_the_profile_whatever_the_path() {
    let program = Path::new("/opt/it's \"here\"/a*b/sandbox");
    let facts =
        RefusalFacts { apparmor_restricts: true, program: program.into(), ..plain(Errno::EPERM) };
    let remedy = classify(&facts).remedy();
    let printf = remedy
        .split_once('`')
        .and_then(|(_, command)| command.split_once(" | sudo"))
        .map(|(printf, _)| printf)
        .expect("a command in the remedy");
    let output = Command::new("sh").args(["-c", printf]).output().expect("sh runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed, apparmor_profile(program));
    assert!(printed.contains(r#""/opt/it's \"here\"/a\*b/sandbox""#), "{printed}");
}

#[test]
fn sysctls_are_told_apart() {
    let debian = RefusalFacts { unprivileged_clone_off: true, ..plain(Errno::EPERM) };
    assert_eq!(classify(&debian), Cause::DebianSysctl);
    assert!(classify(&debian).remedy().contains("kernel.unprivileged_userns_clone=1"));
    let root = RefusalFacts { privileged: true, ..debian };
    assert_ne!(classify(&root), Cause::DebianSysctl);
    let zero = RefusalFacts { max_user_namespaces: Some(0), ..plain(Errno::ENOSPC) };
    assert_eq!(classify(&zero), Cause::LimitZero { initial_namespace: true });
    assert!(classify(&zero).remedy().contains("user.max_user_namespaces="));
    let inner = RefusalFacts { initial_namespace: false, ..zero };
    assert_eq!(classify(&inner), Cause::LimitZero { initial_namespace: false });
    assert_eq!(classify(&plain(Errno::ENOSPC)), Cause::LimitReached { limit: Some(30_000) });
    let inner = RefusalFacts { initial_namespace: false, ..plain(Errno::ENOSPC) };
    assert_eq!(classify(&inner), Cause::LimitAround);
    let old = RefusalFacts { built: false, ..plain(Errno::EPERM) };
    assert_eq!(classify(&old), Cause::NotBuilt);
}

#[test]
fn containers_get_their_own_flags() {
    for (container, words) in [
        (Container::Docker, "docker run --security-opt seccomp=unconfined"),
        (Container::Podman, "--security-opt unmask=ALL"),
        (Container::Kubernetes, "procMount: Unmasked"),
        (Container::Lxc, "security.nesting true"),
        (Container::Nspawn, "SYSTEMD_SECCOMP=0"),
        (Container::Other("wsl".into()), "seccomp"),
    ] {
        let facts = RefusalFacts {
            container: Some(container.clone()),
            filtered: true,
            apparmor_profile: Some("docker-default".into()),
            ..plain(Errno::EPERM)
        };
        assert_eq!(classify(&facts), Cause::Container(container.clone()));
        assert!(classify(&facts).remedy().contains(words), "{container:?}");
        // Without a filter it is the profile, which the same flags lift.
        let unfiltered = RefusalFacts { filtered: false, ..facts };
        assert_eq!(classify(&unfiltered), Cause::Container(container));
    }
    let service = RefusalFacts { filtered: true, ..plain(Errno::EPERM) };
    assert_eq!(classify(&service), Cause::SeccompFilter);
}

#[test]
fn a_container_that_forbids_nothing_leaves_the_hosts_restriction() {
    let facts = RefusalFacts {
        container: Some(Container::Docker),
        apparmor_restricts: true,
        ..plain(Errno::EPERM)
    };
    assert!(matches!(classify(&facts), Cause::AppArmorRestriction { .. }));
}

#[test]
fn nested_sandboxes_and_chroots_are_told_apart() {
    let nested = RefusalFacts {
        filtered: true,
        listener_in_chain: true,
        initial_namespace: false,
        max_user_namespaces: Some(0),
        ..plain(Errno::EPERM)
    };
    assert_eq!(classify(&nested), Cause::NestedSandbox);
    let chroot = RefusalFacts { chrooted: true, privileged: true, ..plain(Errno::EPERM) };
    assert_eq!(classify(&chroot), Cause::Chroot);
    let unmapped = RefusalFacts { ids_mapped: false, ..plain(Errno::EPERM) };
    assert_eq!(classify(&unmapped), Cause::UnmappedIds);
    let selinux = RefusalFacts { selinux_enforcing: true, ..plain(Errno::EACCES) };
    assert_eq!(classify(&selinux), Cause::Selinux);
    let profile = RefusalFacts { apparmor_profile: Some("snap.x".into()), ..plain(Errno::EACCES) };
    assert_eq!(classify(&profile), Cause::AppArmorProfile("snap.x".into()));
    assert_eq!(classify(&plain(Errno::EPERM)), Cause::Unknown);
}

#[test]
fn listener_refusals_are_told_apart() {
    let said = |facts: &RefusalFacts, release| classify_listener(facts, release).0;
    assert!(said(&plain(Errno::EBUSY), (6, 8)).contains("one listener"));
    assert!(said(&plain(Errno::EINVAL), (4, 19)).contains("5.0"));
    assert!(said(&plain(Errno::ENOSYS), (6, 8)).contains("CONFIG_SECCOMP_FILTER"));
    let docker =
        RefusalFacts { container: Some(Container::Docker), filtered: true, ..plain(Errno::EPERM) };
    let (what, remedy) = classify_listener(&docker, (6, 8));
    assert!(what.contains("Docker") && remedy.contains("seccomp=unconfined"), "{what}; {remedy}");
}

/// Set in a process that runs the body of one test.
const CHILD: &str = "SANDBOX_DOCTOR_TEST_CHILD";
/// Tells such a process whether its parent found the host able.
const ABLE: &str = "SANDBOX_DOCTOR_TEST_ABLE";

/// Runs the body of a test in a process of its own, as another user where one is given.
fn alone(test: &str, user: Option<u32>, body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    // Another user may not be let into the directory of this program.
    let directory = std::env::temp_dir().join(format!("doctor-{test}-{}", std::process::id()));
    let program = directory.join("test");
    std::fs::create_dir(&directory).expect("a directory for the copy");
    // Copied by another process: a file that a fork of this one holds open for writing, and the
    // probes of other tests fork, cannot be executed.
    let ours = std::env::current_exe().expect("our path");
    assert!(Command::new("cp").args([&ours, &program]).status().expect("cp runs").success());
    let mut command = Command::new(&program);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).stdin(Stdio::null());
    command.env(CHILD, "1").current_dir("/");
    command.env(ABLE, able(&findings(Without::empty())).to_string());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let output = command.output();
    std::fs::remove_dir_all(&directory).expect("the copy is removed");
    if user.is_some() && output.as_ref().is_err_and(|e| e.kind() == ErrorKind::InvalidInput) {
        println!("skipped: no such user id in this user namespace");
        return;
    }
    let output = output.expect("the copy runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}{errors}");
}
