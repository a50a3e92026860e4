//! The walls of a default run, one after the other, and what each option changes; then the exit
//! status and the refusals of bad input.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{LIMIT, Leftovers, Outcome, Workspace, is_root, run, sandbox_program, skip};

/// The fields of /proc/self/status that a shell sees inside.
fn status_inside(options: &[&str]) -> BTreeMap<String, String> {
    let workspace = Workspace::new("status");
    let outcome = workspace.inside_with(options, &["cat", "/proc/self/status"]);
    let text = outcome.success().out();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

const NAMESPACES: &[&str] = &["user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"];

#[test]
fn every_namespace_is_another() {
    let workspace = Workspace::new("namespaces");
    let list = |kinds: &[&str]| {
        let links: Vec<String> = kinds.iter().map(|it| format!("/proc/self/ns/{it}")).collect();
        format!("readlink {}", links.join(" "))
    };
    let present: Vec<&str> = NAMESPACES
        .iter()
        .copied()
        .filter(|kind| Path::new("/proc/self/ns").join(kind).symlink_metadata().is_ok())
        .collect();
    let outside = workspace.native(&["sh", "-c", &list(&present)]).success().out();
    let inside = workspace.inside_sh(&list(&present)).success().out();
    for ((kind, outside), inside) in present.iter().zip(outside.lines()).zip(inside.lines()) {
        assert_ne!(outside, inside, "{kind}");
    }
    assert_eq!(inside.lines().count(), present.len());
    let host = workspace.inside_with(&["--net", "host"], &["readlink", "/proc/self/ns/net"]);
    assert_eq!(host.line(), workspace.native(&["readlink", "/proc/self/ns/net"]).line());
}

#[test]
fn no_capability_is_left_and_none_can_come_back() {
    for options in [&[][..], &["--user", "0"], &["--net", "host"]] {
        let status = status_inside(options);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{set} with {options:?}");
        }
        assert_eq!(status["NoNewPrivs"], "1");
        assert_eq!(status["Seccomp"], "2");
    }
}

#[test]
fn the_guest_keeps_its_user_unless_told_otherwise() {
    let workspace = Workspace::new("user");
    let ids = ["sh", "-c", "id -u; id -g"];
    workspace.inside(&ids).expect_out(&workspace.native(&ids).out());
    workspace.inside_with(&["--user", "0:0"], &ids).success().expect_out("0\n0\n");
    workspace.inside_with(&["--user", "1234:1235"], &ids).success().expect_out("1234\n1235\n");
    // What it writes belongs to the caller, whoever it believes to be.
    workspace.inside_with(&["--user", "0:0"], &["touch", "file"]).success();
    let owner = workspace.native(&["stat", "-c", "%u", "file"]).line();
    assert_eq!(owner, workspace.native(&["id", "-u"]).line());
}

/// Places that hold nothing of the host, and may be written.
const PRIVATE: &[&str] = &["/tmp", "/var/tmp", "/dev", "/proc", "/run"];

#[test]
fn the_machine_is_seen_read_only() {
    let workspace = Workspace::new("read-only");
    for path in ["/", "/etc", "/usr", "/usr/bin", "/var"] {
        let outcome = workspace.inside_sh(&format!("touch {path}/sandbox-test-file"));
        outcome.failure();
        assert!(!Path::new(path).join("sandbox-test-file").exists(), "{path}");
    }
    // Not one mount but those that are meant to be can be written.
    let outcome = workspace.inside_sh("cat /proc/self/mountinfo");
    for line in outcome.success().out().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (point, flags) = (words[4], words[5]);
        let own = PRIVATE.iter().any(|it| Path::new(point).starts_with(it));
        let writable = flags.split(',').any(|flag| flag == "rw");
        let meant = own || Path::new(point) == workspace.path();
        assert!(!writable || meant, "{line}");
    }
}

#[test]
fn the_working_directory_can_be_written() {
    let workspace = Workspace::new("workdir");
    workspace.inside_sh("pwd; echo text > file").success();
    assert_eq!(workspace.inside(&["pwd"]).line(), workspace.path().to_str().unwrap());
    assert_eq!(workspace.read("file"), "text\n");
    let other = Workspace::new("workdir-other");
    let there = other.path().to_str().unwrap();
    workspace.inside_with(&["--workdir", there], &["sh", "-c", "pwd > file"]).success();
    assert_eq!(other.read("file").trim(), there);
    assert_eq!(workspace.read("file"), "text\n");
}

#[test]
fn tmp_is_private_and_gone_afterwards() {
    let workspace = Workspace::new("tmp");
    let outside = Workspace::in_tmp("tmp-outside");
    outside.write("file", "");
    workspace.inside_sh("ls -A /tmp; touch /tmp/inside").success().expect_out("");
    let script = "ls -A /tmp /var/tmp; stat -c %a /tmp /var/tmp; touch /var/tmp/inside";
    workspace.inside_sh(script).success().expect_out("/tmp:\n\n/var/tmp:\n1777\n1777\n");
    assert!(!Path::new("/tmp/inside").exists() && !Path::new("/var/tmp/inside").exists());
    // A working directory below /tmp is shown all the same, alone.
    let outcome = outside.inside_sh("ls; touch made; ls -A /tmp");
    let name = outside.path().file_name().unwrap().to_str().unwrap();
    outcome.success().expect_out(&format!("file\n{name}\n"));
    assert!(outside.has("made"));
}

#[test]
fn dev_holds_the_least() {
    let workspace = Workspace::new("dev");
    let outcome = workspace.inside_sh("ls -A /dev");
    let allowed = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm",
        "stderr", "stdin", "stdout", "tty", "urandom", "zero", "log", "kmsg",
    ];
    for name in outcome.success().out().lines() {
        assert!(allowed.contains(&name), "/dev/{name}");
    }
    let script = "echo x > /dev/null && head -c 3 /dev/zero | wc -c && head -c 3 /dev/urandom | wc -c \
                  && echo x > /dev/shm/file && cat /dev/shm/file && cat < /dev/fd/0 && ls /dev/pts";
    workspace.inside_sh(script).success().out_has("3\n3\nx\n").out_has("ptmx");
    workspace.inside_sh("echo x > /dev/full").failure();
    assert!(!Path::new("/dev/shm/file").exists());
}

#[test]
fn proc_is_its_own() {
    let workspace = Workspace::new("proc");
    workspace.inside_sh("readlink /proc/self/exe; ls -d /proc/1; cat /proc/1/comm").success();
    let seen = workspace.inside_sh("ls -d /proc/[0-9]* | wc -l").line();
    assert!(seen.parse::<u32>().unwrap() <= 4, "{seen} processes");
}

#[test]
fn run_is_empty() {
    let workspace = Workspace::new("run");
    workspace.inside_sh("ls -A /run | wc -l").success().expect_out("0\n");
}

#[test]
fn password_hashes_are_hidden() {
    let workspace = Workspace::new("shadow");
    if !Path::new("/etc/shadow").exists() {
        return skip("/etc/shadow");
    }
    workspace.inside(&["cat", "/etc/shadow"]).failure().expect_out("");
    workspace.inside_with(&["--user", "0"], &["cat", "/etc/shadow"]).failure().expect_out("");
    workspace.same(&["cat", "/etc/passwd"]);
}

#[test]
fn the_network_is_a_loopback_that_works() {
    let workspace = Workspace::new("net");
    let devices = workspace.inside_sh("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '");
    // Some kernels put tunnel devices that are down into every new namespace.
    let devices = devices.success().out();
    let tunnels = ["tunl", "gre", "erspan", "ip_vti", "ip6_vti", "sit", "ip6tnl", "ip6gre"];
    let known = |it: &str| it == "lo" || tunnels.iter().any(|tunnel| it.starts_with(tunnel));
    assert!(devices.lines().all(known) && devices.contains("lo"), "{devices}");
    workspace.inside_sh("cat /proc/net/route | tail -n +2").expect_out("");
    if common::have("python3") {
        let program = "import socket; s = socket.create_server(('127.0.0.1', 0)); \
                       c = socket.create_connection(s.getsockname()); c.sendall(b'x'); \
                       print(s.accept()[0].recv(1))";
        workspace.same(&["python3", "-c", program]).expect_out("b'x'\n");
    }
}

#[test]
fn the_host_name_is_what_was_asked_for() {
    let workspace = Workspace::new("hostname");
    let own = workspace.native(&["uname", "-n"]).line();
    let inside = workspace.inside_with(&["--hostname", "a-name"], &["uname", "-n"]);
    inside.success().expect_out("a-name\n");
    assert_eq!(workspace.native(&["uname", "-n"]).line(), own);
}

#[test]
fn the_environment_is_passed_without_secrets() {
    let workspace = Workspace::new("env");
    let with = |options: &[&str]| {
        let mut command = workspace.sandbox();
        command.env("PLAIN", "plain value").env("MY_API_TOKEN", "the secret");
        command.env("SSH_AUTH_SOCK", "/run/agent");
        command.args(options).args(["--", "env"]);
        run(command, b"", LIMIT)
    };
    let outcome = with(&[]);
    outcome.success().out_has("PLAIN=plain value\n").out_lacks("the secret");
    outcome.out_lacks("SSH_AUTH_SOCK");
    with(&["--env", "MY_API_TOKEN"]).success().out_has("MY_API_TOKEN=the secret\n");
    with(&["--env", "PLAIN=other"]).out_has("PLAIN=other\n").out_lacks("plain value");
    with(&["--env", "NEW=a=b"]).out_has("NEW=a=b\n");
}

#[test]
fn paths_can_be_shown_elsewhere() {
    let workspace = Workspace::new("binds");
    let other = Workspace::new("binds-other");
    other.write("file", "text\n");
    let there = other.path().to_str().unwrap();
    let target = workspace.path().join("target");
    fs::create_dir(&target).unwrap();
    let pair = format!("{there}:{}", target.display());
    let script = ["sh", "-c", "cat target/file; echo more >> target/file"];
    workspace.inside_with(&["--ro", &pair], &script).expect_out("text\n").failure();
    assert_eq!(other.read("file"), "text\n");
    workspace.inside_with(&["--rw", &pair], &script).expect_out("text\n").success();
    assert_eq!(other.read("file"), "text\nmore\n");
    let inside =
        workspace.inside_with(&["--rw", there], &["sh", "-c", &format!("rm {there}/file")]);
    inside.success();
    assert!(!other.has("file") && !workspace.has("target/file"));
    // A part of the writable directory can be taken back.
    workspace.write("kept/file", "kept\n");
    let kept = workspace.path().join("kept");
    let options = ["--ro", kept.to_str().unwrap()];
    workspace.inside_with(&options, &["sh", "-c", "echo x > kept/file"]).failure();
    assert_eq!(workspace.read("kept/file"), "kept\n");
}

#[test]
fn paths_can_be_emptied_and_hidden() {
    let workspace = Workspace::new("tmpfs");
    workspace.write("directory/file", "text\n");
    workspace.write("file", "text\n");
    let path = |name: &str| workspace.path().join(name).to_str().unwrap().to_owned();
    let script = ["sh", "-c", "ls directory; echo x > directory/new && ls directory"];
    let inside = workspace.inside_with(&["--tmpfs".to_owned(), path("directory")], &script);
    inside.success().expect_out("new\n");
    assert!(!workspace.has("directory/new") && workspace.has("directory/file"));
    let hide = ["--hide".to_owned(), path("directory"), "--hide".to_owned(), path("file")];
    let inside = workspace
        .inside_with(&hide, &["sh", "-c", "ls -A directory; cat file; cat directory/file"]);
    inside
        .failure()
        .expect_out("")
        .err_has("cat: file: No such")
        .err_has("directory/file: No such");
}

#[test]
fn the_exit_status_is_the_guests() {
    let workspace = Workspace::new("status");
    for status in [0, 1, 42, 124, 125, 126, 127, 128, 255] {
        let script = format!("exit {status}");
        workspace.inside_sh(&script).expect_status(status).expect_err("");
    }
    for signal in [1, 2, 6, 9, 11, 13, 15] {
        workspace.inside_sh(&format!("ulimit -c 0; kill -{signal} $$")).expect_status(128 + signal);
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_named() {
    let workspace = Workspace::new("not-executable");
    let plain = workspace.write("plain", "no program\n");
    let plain = plain.to_str().unwrap();
    workspace.inside(&["no-such-program"]).one_line_error(127, &["no-such-program"]);
    workspace.inside(&["./no-such-program"]).one_line_error(127, &["no-such-program"]);
    workspace.inside(&[plain]).one_line_error(126, &["plain"]);
    workspace.inside(&["/usr"]).one_line_error(126, &["/usr", "directory"]);
    let script = workspace.write("script", "#!/no/such/interpreter\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    workspace.inside(&["./script"]).one_line_error(127, &["script"]);
}

/// Runs `sandbox` with these words as they are.
fn words(workspace: &Workspace, words: &[&str]) -> Outcome {
    let mut command = workspace.sandbox();
    command.args(words);
    run(command, b"", LIMIT)
}

#[test]
fn bad_input_is_refused_in_one_line() {
    let workspace = Workspace::new("bad");
    workspace.write("file", "");
    let leftovers = Leftovers::before(&workspace);
    let rows: &[(&[&str], &[&str])] = &[
        (&["--no-such-flag", "--", "true"], &["--no-such-flag"]),
        (&["--"], &["PROG"]),
        (&["run", "--"], &["PROG"]),
        (&["--net", "mars", "--", "true"], &["mars", "none"]),
        (&["--ro", "/no/such/path", "--", "true"], &["/no/such/path"]),
        (&["--rw", "/no/such/path", "--", "true"], &["/no/such/path"]),
        (&["--ro", "/usr:relative/target", "--", "true"], &["relative/target"]),
        (&["--tmpfs", "", "--", "true"], &["--tmpfs"]),
        (&["--workdir", "/no/such/directory", "--", "true"], &["/no/such/directory"]),
        (&["--workdir", "file", "--", "true"], &["file"]),
        (&["--hostname", "a b", "--", "true"], &["--hostname"]),
        (&["--user", "no-such-user", "--", "true"], &["no-such-user"]),
        (&["--env", "=x", "--", "true"], &["--env"]),
        (&["--fd", "99", "--", "true"], &["99"]),
        (&["--fd", "many", "--", "true"], &["many"]),
        (&["--quiet", "--verbose", "--", "true"], &["--quiet", "--verbose"]),
        (&["--ro", "/usr", "--rw", "/usr", "--", "true"], &["/usr", "--ro", "--rw"]),
    ];
    for (input, expected) in rows {
        words(&workspace, input).one_line_error(125, expected);
    }
    leftovers.check();
}

#[test]
fn a_working_directory_that_is_gone_or_too_much_is_refused() {
    let workspace = Workspace::new("cwd");
    let sandbox = sandbox_program();
    let from = |directory: &str| {
        let script = format!("{directory} && exec {} -- true", sandbox.display());
        let mut command = workspace.command("sh");
        command.args(["-c", &script]).env("HOME", workspace.path());
        run(command, b"", LIMIT)
    };
    from("mkdir gone && cd gone && rmdir ../gone").one_line_error(125, &["directory"]);
    from("cd /").one_line_error(125, &["/", "--ro /"]);
    from("cd $HOME").one_line_error(125, &["home", "--ro"]);
}

#[test]
fn a_host_that_lacks_a_wall_is_refused_by_name() {
    let workspace = Workspace::new("lacking");
    let leftovers = Leftovers::before(&workspace);
    for (without, expected) in
        [("user-namespaces", "user namespace"), ("seccomp-notify", "seccomp")]
    {
        let outcome = words(&workspace, &["--without", without, "--", "true"]);
        outcome.one_line_error(125, &[expected]);
    }
    leftovers.check();
}

#[test]
fn unreadable_files_stay_unreadable() {
    let workspace = Workspace::new("unreadable");
    workspace.write("file", "text\n");
    workspace.native(&["chmod", "000", "file"]).success();
    if is_root() {
        // Without capabilities even root is asked for the permission bits.
        workspace.inside(&["cat", "file"]).failure().expect_out("");
    } else {
        workspace.native(&["cat", "file"]).failure();
        workspace.inside(&["cat", "file"]).failure().expect_out("");
    }
}

#[test]
fn a_run_leaves_nothing_behind() {
    let workspace = Workspace::new("nothing");
    let leftovers = Leftovers::before(&workspace);
    workspace.inside_sh("echo > /tmp/file; echo > /dev/shm/file; sleep 1000 & true").success();
    leftovers.check();
    assert_eq!(fs::read_dir(workspace.path()).unwrap().count(), 0);
}

#[test]
fn a_dry_run_decides_and_runs_nothing() {
    let workspace = Workspace::new("dry");
    let outcome = words(&workspace, &["--dry-run", "--", "touch", "file"]);
    outcome.success();
    let said = outcome.out() + &outcome.err();
    assert!(said.contains(workspace.path().to_str().unwrap()), "{}", outcome.report());
    assert!(!workspace.has("file"));
}

#[test]
fn verbose_says_what_was_decided_and_why() {
    let workspace = Workspace::new("verbose");
    let outcome = words(&workspace, &["-v", "--", "echo", "output"]);
    outcome.success().expect_out("output\n");
    outcome.err_has("/tmp").err_has(workspace.path().to_str().unwrap());
}
