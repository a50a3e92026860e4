//! Shells, many processes, many threads, and programs of an unusual kind.

use crate::common::{Workspace, guest, have, run, sandbox_program, skip, try_guest};
use std::time::Duration;

#[test]
fn bash_with_pipelines_and_traps() {
    let workspace = Workspace::new("bash");
    workspace.write("script", include_str!("inputs/script.bash"));
    let outcome = workspace.same(&["bash", "script", "one", "two words"]);
    outcome.out_has("status of a killed child: 143\n").out_has("cleaned up after all\n");
}

#[test]
fn a_script_without_interpreter_line_is_run_by_the_shell() {
    let workspace = Workspace::new("plain-script");
    workspace.write("plain", "echo plain $# \"$1\"\n");
    workspace.write("python", "#!/usr/bin/env -S sh -e\necho lined $# \"$1\"\nfalse\necho not\n");
    workspace.native(&["chmod", "+x", "plain", "python"]).success();
    // execvp(3) does this, and so do the shells; execve(2) alone does not.
    workspace.same(&["sh", "-c", "./plain 'a b' c"]);
    workspace.inside(&["./plain", "a b", "c"]).success().expect_out("plain 2 a b\n");
    workspace.inside(&["./python", "a b", "c"]).expect_status(1).expect_out("lined 2 a b\n");
}

#[test]
fn ten_thousand_short_processes() {
    let workspace = Workspace::new("processes");
    let program = guest("many_processes");
    let argv = [program.to_str().unwrap(), "10000"];
    workspace.same(&argv).expect_out("10000 processes ended as they should\n");
}

#[test]
fn a_thousand_threads() {
    let workspace = Workspace::new("threads");
    let program = guest("many_threads");
    let argv = [program.to_str().unwrap(), "1000"];
    workspace.same(&argv).expect_out("1000 threads lived at once\n");
}

#[test]
fn static_programs() {
    let workspace = Workspace::new("static");
    match try_guest("static_program") {
        Ok(program) => {
            let program = program.to_str().unwrap().to_owned();
            workspace.same(&[program.as_str(), "word"]).out_has("static, given word\n");
            // The same through a shell and through an absolute interpreter line.
            workspace.write("script", format!("#!{program}\n"));
            workspace.native(&["chmod", "+x", "script"]).success();
            workspace.same(&["./script"]).out_has("static, given ./script\n");
        }
        Err(_) => skip("static libc"),
    }
}

#[test]
fn a_32_bit_program_is_refused_in_words() {
    let workspace = Workspace::new("32-bit");
    let Ok(program) = try_guest("program_32") else { return skip("32-bit compiler") };
    let program = program.to_str().unwrap();
    let outside = run(workspace.command(program), b"", Duration::from_secs(60));
    outside.success().expect_out("32-bit\n");
    let inside = workspace.inside(&[program]);
    inside.failure().expect_out("").err_has("32-bit").err_has("64-bit");
    assert_eq!(inside.err().lines().count(), 1, "{}", inside.report());
    // It takes nothing else with it.
    let script = format!("{program}; echo still here");
    workspace.inside_sh(&script).success().expect_out("still here\n");
}

#[test]
fn a_sandbox_in_a_sandbox_says_why_not() {
    let workspace = Workspace::new("nested");
    let program = sandbox_program();
    let script = format!("{} -- true", program.display());
    let outcome = workspace.inside_with(&["--quiet"], &["sh", "-c", &script]);
    outcome.one_line_error(125, &["already runs inside a sandbox", "from outside"]);
}

#[test]
fn many_sandboxes_at_once() {
    let workspace = Workspace::new("at-once");
    let program = sandbox_program();
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do {} -- sh -c 'echo $((0 + '$i'))' & done; wait",
        program.display()
    );
    let mut lines: Vec<u32> = workspace
        .native(&["sh", "-c", &script])
        .success()
        .out()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    lines.sort_unstable();
    assert_eq!(lines, (1..=12).collect::<Vec<_>>());
}

#[test]
fn commands_of_every_day() {
    let workspace = Workspace::new("everyday");
    let script = r"
        set -e
        mkdir -p tree/a/b tree/c
        for i in $(seq 200); do echo line $i > tree/a/b/file$i; done
        ln -s a/b tree/link; ln tree/a/b/file1 tree/c/hard; mkfifo tree/fifo
        find tree -type f | sort | xargs cat | md5sum
        tar -C tree --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - . | md5sum
        tar -C tree -czf tree.tgz . && mkdir copy && tar -C copy -xzf tree.tgz && diff -r tree/a copy/a
        cp -a tree again && stat -c '%A %h %s %n' again/c/hard again/link/file2
        mv again/a again/z && touch -d @86400 again/z && stat -c %Y again/z
        grep -rl 'line 19' tree/a | sort
        awk '{s += $2} END {print s}' tree/a/b/*
        sed -i s/line/LINE/ tree/a/b/file3 && cat tree/a/b/file3
        sort -R tree/a/b/file* | sort -k2n | tail -n 2
        dd if=/dev/zero bs=64k count=64 2>/dev/null | tee big | md5sum
        timeout 0.2 sleep 60 || echo timeout $?
        flock big -c 'flock -n big true || echo locked'
        id -u; umask; pwd; ulimit -n; nproc; date -u -d @0 +%F; uname -sm
        rm -r tree copy again big
    ";
    workspace.same(&["sh", "-c", script]).out_has("locked\n").out_has("timeout 124\n");
}

#[test]
fn perl() {
    if !have("perl") {
        return;
    }
    let workspace = Workspace::new("perl");
    let script = r#"
        my @children;
        for my $i (1 .. 20) {
            pipe(my $r, my $w) or die;
            my $pid = fork() // die;
            if (!$pid) { close $r; print $w $i * $i; close $w; exit $i }
            close $w;
            push @children, [$pid, $r, $i];
        }
        for (@children) {
            my ($pid, $r, $i) = @$_;
            my $answer = <$r>;
            waitpid($pid, 0) == $pid or die;
            print "$i: $answer, status ", $? >> 8, "\n";
        }
        local $SIG{ALRM} = sub { print "alarm\n" };
        alarm 1; select undef, undef, undef, 30;
        print `echo from a shell`;
    "#;
    workspace.same(&["perl", "-we", script]).out_has("20: 400, status 20\nalarm\nfrom a shell\n");
}
