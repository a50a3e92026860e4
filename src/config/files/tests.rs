//! The file view: which rule wins, and what lies where.

#[cfg(test)]
mod rules;

use proptest::prelude::*;

use super::*;
use crate::config::Options;
use crate::config::testing::{TestHost, options};

type Shape = (String, MountKind);

fn shapes(host: &TestHost, rules: &[&str]) -> Result<Vec<Shape>, String> {
    let spec = host.resolve(&options(rules))?;
    let shape = |mount: Mount| (mount.target.to_str().unwrap().to_owned(), mount.kind);
    Ok(spec.mounts.into_iter().map(shape).collect())
}

fn kind_at(host: &TestHost, rules: &[&str], path: &str) -> Option<MountKind> {
    let shapes = shapes(host, rules).unwrap();
    shapes.into_iter().find(|(target, _)| target == path).map(|(_, kind)| kind)
}

fn writable(source: &str) -> Option<MountKind> {
    Some(MountKind::Writable { source: source.into() })
}

fn readonly(source: &str) -> Option<MountKind> {
    Some(MountKind::ReadOnly { source: source.into() })
}

#[track_caller]
fn refused(host: &TestHost, rules: &[&str], words: &[&str]) {
    let error = shapes(host, rules).unwrap_err();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn a_plain_run_has_the_defaults_and_its_directory() {
    let host = TestHost::ordinary();
    let shapes = shapes(&host, &[]).unwrap();
    let expected = [
        ("/dev", MountKind::Dev),
        ("/proc", MountKind::Proc),
        ("/root", MountKind::HiddenDirectory),
        ("/run", MountKind::Tmpfs { mode: 0o755 }),
        ("/sys", MountKind::Sys),
        ("/tmp", MountKind::Tmpfs { mode: 0o1777 }),
        ("/var/tmp", MountKind::Tmpfs { mode: 0o1777 }),
        ("/home/me/project", writable("/home/me/project").unwrap()),
    ];
    assert_eq!(shapes, expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn roots_home_shows_to_root_alone() {
    assert_eq!(kind_at(&TestHost::ordinary(), &[], "/root"), Some(MountKind::HiddenDirectory));
    assert_eq!(kind_at(&TestHost::root(), &[], "/root"), None);
}

#[test]
fn a_directory_of_its_own_takes_the_place_of_a_link() {
    let host = TestHost::ordinary();
    std::fs::remove_file(host.host.root.join("var/run")).unwrap();
    host.directory("/var/run");
    assert_eq!(kind_at(&host, &[], "/var/run"), Some(MountKind::Tmpfs { mode: 0o755 }));
}

#[test]
fn a_working_directory_below_tmp_lies_over_the_private_one() {
    let mut host = TestHost::ordinary();
    host.directory("/tmp/build");
    host.host.cwd = Ok("/tmp/build".into());
    let shapes = shapes(&host, &[]).unwrap();
    let place = |path: &str| shapes.iter().position(|(target, _)| target == path).unwrap();
    assert!(place("/tmp") < place("/tmp/build"));
    assert_eq!(kind_at(&host, &[], "/tmp/build"), writable("/tmp/build"));
    host.host.cwd = Ok("/tmp".into());
    assert_eq!(kind_at(&host, &[], "/tmp"), Some(MountKind::Tmpfs { mode: 0o1777 }));
}

#[test]
fn a_wide_working_directory_needs_a_rule() {
    for (directory, words) in [
        ("/", "the root of the file system"),
        ("/home/me", "a home directory"),
        ("/home", "above a home directory"),
        ("/run/user/1000", "services of your session"),
        ("/home/me/.ssh", "hidden (ssh keys"),
        ("/home/me/.ssh/deep", "hidden (ssh keys"),
    ] {
        let mut host = TestHost::ordinary();
        host.directory("/home/me/.ssh/deep");
        host.set("XDG_RUNTIME_DIR", "/run/user/1000");
        host.host.cwd = Ok(directory.into());
        refused(&host, &[], &[words, &format!("--ro {directory}")]);
        for flag in ["--ro", "--rw"] {
            if (directory, flag) != ("/", "--rw") {
                shapes(&host, &[&format!("{flag} {directory}")]).unwrap();
                shapes(&host, &[&format!("{flag} .")]).unwrap();
            }
        }
        if directory.len() > 1 {
            shapes(&host, &["--tmpfs ."]).unwrap();
        }
    }
}

#[test]
fn a_rule_above_the_working_directory_covers_it() {
    let host = TestHost::ordinary();
    assert_eq!(kind_at(&host, &["--ro /home/me"], "/home/me/project"), None);
    assert_eq!(kind_at(&host, &["--ro ."], "/home/me/project"), readonly("/home/me/project"));
    // An empty directory above does not: the most specific path wins.
    let over = kind_at(&host, &["--tmpfs /home"], "/home/me/project");
    assert_eq!(over, writable("/home/me/project"));
    refused(&host, &["--hide /home"], &["cannot start in /home/me/project", "--hide /home"]);
    refused(&host, &["--ro /data:/home/me"], &["cannot start in", "does not exist"]);
}

#[test]
fn a_named_working_directory_takes_the_place_of_the_current_one() {
    let host = TestHost::ordinary();
    host.file("/data/file");
    let at = |path: &str, rules: &[&str]| {
        let wishes = Options { workdir: Some(path.into()), ..options(rules) };
        host.resolve(&wishes)
    };
    let spec = at("/data", &[]).unwrap();
    assert_eq!(spec.workdir, Path::new("/data"));
    let writables: Vec<_> =
        spec.mounts.iter().filter(|m| matches!(m.kind, MountKind::Writable { .. })).collect();
    assert_eq!(writables.len(), 1);
    assert_eq!(writables[0].why, Why::WorkingDirectory);
    assert_eq!(at("../..", &["--ro /home"]).unwrap().workdir, Path::new("/home"));
    assert!(at("/tmp/new", &["--tmpfs /tmp/new"]).is_ok());
    assert!(at("/nowhere", &[]).unwrap_err().contains("it does not exist"));
    assert!(at("/data/file", &[]).unwrap_err().contains("not a directory"));
    assert!(at("/tmp/new", &[]).unwrap_err().contains("/tmp/new"));
    assert!(at("", &[]).unwrap_err().contains("empty"));
}

#[test]
fn secrets_that_exist_are_hidden_where_they_really_are() {
    let mut host = TestHost::ordinary();
    host.directory("/home/me/.ssh");
    host.directory("/srv/keys");
    host.link("/home/me/.gnupg", "/srv/keys");
    host.file("/home/me/.netrc");
    host.file("/home/me/.sqlite_history");
    host.link("/home/me/.bash_history", "/dev/null");
    host.file("/dev/null");
    host.file("/etc/ssh/ssh_host_ed25519_key");
    host.file("/etc/ssh/ssh_host_ed25519_key.pub");
    host.file("/conf/gh/hosts.yml");
    host.set("XDG_CONFIG_HOME", "/conf");
    host.file("/data/k1");
    host.file("/data/k2");
    host.set("KUBECONFIG", "/data/k1:/data/k2");
    host.set("DOCKER_CONFIG", "/home/me");
    let hidden: Vec<Shape> =
        shapes(&host, &[]).unwrap().into_iter().filter(|(_, kind)| kind.hides()).collect();
    let directory = |path: &str| (path.to_owned(), MountKind::HiddenDirectory);
    let file = |path: &str| (path.to_owned(), MountKind::HiddenFile);
    let mut expected = vec![
        directory("/root"),
        file("/data/k1"),
        file("/data/k2"),
        directory("/conf/gh"),
        directory("/srv/keys"),
        file("/etc/ssh/ssh_host_ed25519_key"),
        directory("/home/me/.ssh"),
        file("/home/me/.netrc"),
        file("/home/me/.sqlite_history"),
    ];
    let mut found = hidden.clone();
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(found, expected);
}

#[test]
fn the_home_of_the_user_before_sudo_counts() {
    let mut host = TestHost::root();
    host.directory("/home/me/.ssh");
    assert_eq!(kind_at(&host, &[], "/home/me/.ssh"), None);
    host.set("SUDO_UID", "1000");
    assert_eq!(kind_at(&host, &[], "/home/me/.ssh"), Some(MountKind::HiddenDirectory));
}

#[test]
fn a_rule_lifts_a_secret_and_no_more_than_it_names() {
    let host = TestHost::ordinary();
    host.file("/home/me/.ssh/known_hosts");
    let ssh = "/home/me/.ssh";
    assert_eq!(kind_at(&host, &["--ro /home/me/.ssh"], ssh), readonly(ssh));
    assert_eq!(kind_at(&host, &["--rw /home/me"], ssh), Some(MountKind::HiddenDirectory));
    // The directory opens, empty but for the file.
    let rules = ["--ro /home/me/.ssh/known_hosts"];
    assert_eq!(kind_at(&host, &rules, ssh), Some(MountKind::Tmpfs { mode: 0o755 }));
    let known = "/home/me/.ssh/known_hosts";
    assert_eq!(kind_at(&host, &rules, known), readonly(known));
}

#[test]
fn a_secret_shows_under_no_other_name() {
    let host = TestHost::ordinary();
    host.file("/home/me/.ssh/id_rsa");
    host.file("/data/private/x");
    let hidden = Some(MountKind::HiddenDirectory);
    assert_eq!(kind_at(&host, &["--ro /home:/srv/work"], "/srv/work/me/.ssh"), hidden);
    let rules = ["--ro /data:/srv/work", "--hide /data/private"];
    assert_eq!(kind_at(&host, &rules, "/srv/work/private"), hidden);
    assert_eq!(kind_at(&host, &rules, "/data/private"), hidden);
    let shown = ["--ro /home:/srv/work", "--ro /home/me/.ssh:/srv/work/me/.ssh"];
    assert_eq!(kind_at(&host, &shown, "/srv/work/me/.ssh"), readonly("/home/me/.ssh"));
    assert_eq!(kind_at(&host, &shown, "/home/me/.ssh"), hidden);
}

#[test]
fn a_private_directory_shows_nowhere() {
    let mut host = TestHost::ordinary();
    host.directory("/data/in/run/sandbox");
    host.host.private = vec!["/data/in/run/sandbox".into()];
    let hidden = Some(MountKind::HiddenDirectory);
    for (rules, place) in [
        (&[][..], "/data/in/run/sandbox"),
        (&["--rw /data/in"], "/data/in/run/sandbox"),
        (&["--rw /data/in/run"], "/data/in/run/sandbox"),
        (&["--ro /data:/srv"], "/srv/in/run/sandbox"),
    ] {
        assert_eq!(kind_at(&host, rules, place), hidden, "{rules:?}");
    }
}

#[test]
fn the_hosts_processes_and_sockets_show_under_no_other_name() {
    let host = TestHost::ordinary();
    let rules = ["--ro /:/data", "--rw /tmp:/data/tmp"];
    for place in ["/data/proc", "/data/dev", "/data/run", "/data/root"] {
        assert_eq!(kind_at(&host, &rules, place), Some(MountKind::HiddenDirectory), "{place}");
    }
    assert_eq!(kind_at(&host, &rules, "/data/tmp"), writable("/tmp"));
    assert_eq!(kind_at(&host, &["--rw /tmp"], "/tmp"), writable("/tmp"));
    let private = Some(MountKind::Tmpfs { mode: 0o1777 });
    assert_eq!(kind_at(&host, &["--rw /var"], "/var/tmp"), private);
}

#[test]
fn what_is_hidden_twice_is_mounted_once() {
    let host = TestHost::ordinary();
    host.file("/home/me/.ssh/id_rsa");
    let rules = ["--hide /home/me/.ssh/id_rsa", "--hide /tmp/x", "--hide /home/me/.ssh"];
    let shapes = shapes(&host, &rules).unwrap();
    let below = shapes.iter().filter(|(path, _)| path.starts_with("/home/me/.ssh")).count();
    assert_eq!(below, 1);
    assert!(!shapes.iter().any(|(path, _)| path == "/tmp/x"));
}

#[test]
fn hiding_takes_the_kind_of_what_it_hides() {
    let host = TestHost::ordinary();
    host.file("/etc/motd");
    assert_eq!(kind_at(&host, &["--hide /etc/motd"], "/etc/motd"), Some(MountKind::HiddenFile));
    assert_eq!(kind_at(&host, &["--hide /data"], "/data"), Some(MountKind::HiddenDirectory));
    let rules = ["--hide /data", "--ro /data/in"];
    assert_eq!(kind_at(&host, &rules, "/data"), Some(MountKind::Tmpfs { mode: 0o755 }));
    // Under another mount, what is there counts, not what the host has at the same path.
    let rules = ["--ro /etc:/data", "--hide /data/motd"];
    assert_eq!(kind_at(&host, &rules, "/data/motd"), Some(MountKind::HiddenFile));
    refused(&host, &["--hide /nope"], &["--hide /nope", "does not exist"]);
}

#[test]
fn contradictions_name_both_rules() {
    let host = TestHost::ordinary();
    host.link("/also", "/data");
    for (one, other) in [
        ("--ro /data", "--rw /data"),
        ("--ro /data", "--rw /also"),
        ("--tmpfs /data", "--rw /data"),
        ("--hide /data", "--tmpfs /data"),
        ("--ro /data:/srv", "--ro /etc:/srv"),
    ] {
        refused(&host, &[one, other], &[one, other, "contradict"]);
        refused(&host, &[other, one], &[one, other, "contradict"]);
    }
    assert!(shapes(&host, &["--ro /data", "--ro /data", "--ro /also"]).is_ok());
}

#[test]
fn bad_places_are_named() {
    let host = TestHost::ordinary();
    host.file("/data/file");
    host.link("/loop", "loop");
    for (rule, words) in [
        ("--ro /nope", "/nope does not exist"),
        ("--rw nope", "/home/me/project/nope does not exist"),
        ("--ro /data:out", "out is relative"),
        ("--ro /data:/srv/new", "no /srv/new to mount it on"),
        ("--tmpfs /srv/new", "no /srv/new to mount it on"),
        ("--ro /data:/data/file", "a directory over /data/file, which is a file"),
        ("--ro /data/file:/srv", "a file over /srv, which is a directory"),
        ("--tmpfs /data/file", "a directory over /data/file"),
        ("--ro /loop", "ELOOP"),
        ("--ro /data/file/x", "not a directory"),
        ("--rw /", "whole file system"),
        ("--tmpfs /", "whole file system"),
        ("--hide /", "whole file system"),
        ("--ro /data:/", "whole file system"),
        ("--ro /data:/proc", "always the sandbox's own"),
        ("--rw /dev", "--rw /dev/kvm"),
        ("--hide ", "the path is empty"),
        ("--tmpfs /a\nb", "newline"),
    ] {
        refused(&host, &[rule], &[words]);
    }
    for rule in ["--ro /data:/tmp/new/deep", "--rw /data/file:/dev/x", "--ro /"] {
        assert!(shapes(&host, &[rule]).is_ok(), "{rule}");
    }
}

#[test]
fn an_unreadable_source_is_named() {
    let host = TestHost::ordinary();
    host.file("/data/file");
    let real = host.host.root.join("data/file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o0);
    std::fs::set_permissions(&real, mode).unwrap();
    if std::fs::read(&real).is_ok() {
        println!("skipped: no unreadable files for root");
        return;
    }
    refused(&host, &["--ro /data/file"], &["you may not read /data/file"]);
}

#[test]
fn a_lost_directory_is_named() {
    let mut host = TestHost::ordinary();
    host.host.cwd = Err(nix::errno::Errno::ENOENT);
    refused(&host, &[], &["cannot find the current directory", "--workdir"]);
    host.host.cwd = Ok("(unreachable)/x".into());
    refused(&host, &[], &["out of reach"]);
    host.host.cwd = Ok("/home/me/a\nb".into());
    refused(&host, &[], &["newline"]);
}

#[test]
fn ten_thousand_rules_take_no_time() {
    let host = TestHost::ordinary();
    let rules: Vec<String> =
        (0..10_000).map(|n| format!("--tmpfs /tmp/d{}/x{n}", n % 97)).collect();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    // Comparing each rule with each would look at 50 million pairs; the count of looks at the host
    // is what can be asserted without a clock.
    let spec = host.resolve(&options(&rules)).unwrap();
    assert!(spec.mounts.len() > 10_000);
    let looks = host.host.seen.borrow().len();
    assert!(looks < 12_000, "{looks} looks at the host");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_of_rules_means_nothing(
        picks in proptest::collection::btree_set((0..4usize, 0..6usize), 0..6), turn in 0..6usize,
    ) {
        let host = TestHost::ordinary();
        host.directory("/home/me/.ssh");
        let flags = ["--ro", "--rw", "--hide", "--tmpfs"];
        let paths = ["/data", "/data/in", "/home", "/home/me", "/home/me/.ssh", "/home/me/project"];
        let rules: Vec<String> =
            picks.iter().map(|&(flag, path)| format!("{} {}", flags[flag], paths[path])).collect();
        let mut rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let first = shapes(&host, &rules);
        if !rules.is_empty() {
            let turn = turn % rules.len();
            rules.rotate_left(turn);
        }
        let second = shapes(&host, &rules);
        prop_assert_eq!(first.is_ok(), second.is_ok());
        if let (Ok(first), Ok(second)) = (&first, &second) {
            prop_assert_eq!(first, second);
            for (index, (path, _)) in first.iter().enumerate() {
                let covered = first[index + 1..].iter().any(|(late, _)| Path::new(path).starts_with(late));
                prop_assert!(!covered, "{} is mounted too early", path);
            }
        }
    }
}
