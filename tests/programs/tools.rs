//! Tools that work on files or on other processes: git, gdb, strace.

use crate::common::{Workspace, guest, have, skip};

#[test]
fn git_clone_of_a_local_repository() {
    if !have("git") {
        return;
    }
    let workspace = Workspace::new("git");
    let script = r#"
        set -e
        export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.test GIT_AUTHOR_DATE='@86400 +0000'
        export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.test GIT_COMMITTER_DATE='@86400 +0000'
        git init -q -b main origin; cd origin
        for i in $(seq 30); do
            echo "line $i" >> file; mkdir -p d$i; echo $i > d$i/f
            git add -A; git commit -q -m "commit $i"
        done
        git checkout -q -b side HEAD~3; echo side > side; git add side; git commit -q -m side
        git checkout -q main; git merge -q --no-edit side; git tag v1; cd ..
        git clone -q origin clone; git clone -q --no-local origin packed
        git clone -q --depth 1 "file://$PWD/origin" shallow; git clone -q --mirror origin mirror
        cd clone; git log --oneline | wc -l; git rev-parse HEAD; git fsck --no-progress
        git worktree add -q ../tree side; git status --short | wc -l
        echo more >> file; git commit -qam more; git push -q origin HEAD:new; cd ..
        git -C packed gc -q; git -C packed fsck --no-progress; git -C shallow rev-parse HEAD
        git -C origin branch | tr -d '\n'; git -C packed grep -c 'line 1' v1 -- file
        git -C packed archive v1 | tar -t | wc -l; git -C mirror show-ref | md5sum
    "#;
    workspace.same(&["sh", "-c", script]);
}

const DEBUGGED: &str = "#include <pthread.h>
#include <stdio.h>

static int inner(int x)
{
    return x * 2;
}

static void *outer(void *p)
{
    *(int *)p = inner(*(int *)p);
    return p;
}

int main(void)
{
    pthread_t thread;
    int x = 21;
    pthread_create(&thread, NULL, outer, &x);
    pthread_join(thread, NULL);
    printf(\"x is %d\\n\", x);
    return 3;
}
";

#[test]
fn gdb_with_a_breakpoint_and_a_backtrace() {
    if !have("gdb") || !have("cc") {
        return;
    }
    let workspace = Workspace::new("gdb");
    workspace.write("prog.c", DEBUGGED);
    workspace.native(&["cc", "-g", "-O0", "-pthread", "-o", "prog", "prog.c"]).success();
    // Its own chatter (thread ids, addresses, libraries) differs from run to run.
    let script = r"
        export HOME=$PWD DEBUGINFOD_URLS=
        gdb -nx -batch -ex 'set startup-with-shell off' -ex 'break inner' -ex run -ex bt -ex 'print x' \
            -ex 'set var x = 50' -ex 'watch x' -ex finish -ex 'info threads' -ex 'delete' -ex continue \
            ./prog > log 2>&1
        grep -E '^#[0-9]+ .*(inner|outer)' log | sed 's/0x[0-9a-f]*/ADDRESS/g'
        grep -E '^(\$[0-9]|\[Inferior|Hardware watch|Value)' log | sed 's/process [0-9]*/process N/'
        # The program's own line can end up behind one of the debugger's.
        grep -o 'x is [0-9]*' log
    ";
    let outcome = workspace.same(&["sh", "-c", script]);
    outcome.out_has("#0  inner (x=21) at prog.c:6\n").out_has("#1  ADDRESS in outer");
    outcome.out_has("$1 = 21\n").out_has("x is 100\n").out_has("exited with code 03]\n");
}

#[test]
fn gdb_attaches_to_a_running_process() {
    if !have("gdb") {
        return;
    }
    let workspace = Workspace::new("attach");
    // The target is a child of the debugger's shell, so the host's Yama setting may refuse gdb,
    // which is its sibling: exec makes gdb the parent.
    let script = r"
        export HOME=$PWD DEBUGINFOD_URLS=
        sleep 1000 & echo $! > pid
        until [ $(cut -d' ' -f3 /proc/$!/stat) = S ] && grep -q sleep /proc/$!/comm; do :; done
        exec gdb -nx -batch -p $(cat pid) -ex 'info inferiors' -ex 'kill' > log 2>&1
    ";
    workspace.same(&["sh", "-c", script]);
    let log = workspace.read("log");
    assert!(log.contains("[Inferior 1 (process") && log.contains("killed]"), "{log}");
}

#[test]
fn strace_follows_children_and_served_calls() {
    if !have("strace") {
        return;
    }
    let workspace = Workspace::new("strace");
    let program = guest("many_threads");
    let script = format!(
        r#"
        strace -f -o log sh -c '/bin/echo hello; (exit 5); cat /etc/hostname > /dev/null; exit 4'
        echo "status $?"
        grep -c 'execve(' log; grep -o '+++ exited with [0-9]* +++' log | sort
        strace -f -e trace=syslog -o log {} 20; echo "status $?"
        grep -oE 'syslog\(' log | wc -l
        strace -c -o log true; grep -c execve log
        "#,
        program.display()
    );
    let outcome = workspace.same(&["sh", "-c", &script]);
    outcome.out_has("hello\nstatus 4\n").out_has("20 threads lived at once\nstatus 0\n");
}

#[test]
fn limits_niceness_and_the_loader() {
    let workspace = Workspace::new("limits");
    let script = "ulimit -n 64; ulimit -c 0; ulimit -v 2000000; ulimit -n; ulimit -c; ulimit -v
                  LD_DEBUG=libs /bin/true 2>&1 | grep -c 'calling init' | sed 's/[1-9][0-9]*/some/'
                  nice -n 5 nice; env -i A=b env";
    workspace.same(&["sh", "-c", script]).out_has("64\n0\n2000000\nsome\n");
}

#[test]
fn files_given_to_users_who_are_not_there_inside_fail_as_outside() {
    let workspace = Workspace::new("owners");
    workspace.write("file", "");
    workspace.native(&["ln", "-s", "file", "link"]).success();
    workspace.native(&["ln", "-s", "gone", "dangling"]).success();
    let program = guest("owners");
    let program = program.to_str().unwrap();
    workspace.same(&[program, "file", "link", "dangling"]);
    let list = workspace.path().join("list");
    workspace.same_with(
        &["--record-files", list.to_str().unwrap()],
        &[program, "file", "link", "dangling"],
    );
}

#[test]
fn fakeroot_packs_files_of_others() {
    if !have("fakeroot") {
        return skip("fakeroot");
    }
    let workspace = Workspace::new("fakeroot");
    let script = "touch f && chown 0:0 f && mkdir d && chown -h man:sys d && chmod 2755 d && \
                  tar cf - f d | tar tv | awk '{print $1, $2, $6}'";
    workspace.same(&["fakeroot", "sh", "-ec", script]);
}
