//! Reading clocks.

use crate::common::{Workspace, guest, have};
use crate::{DAY, Y2020, expect_time, host};

fn clocks(name: &str) -> String {
    guest(name).to_str().expect("a path in UTF-8").to_owned()
}

#[test]
fn dynamic_and_static_programs_read_the_sandboxs_clock_in_every_way() {
    let workspace = Workspace::new("clocks");
    for name in ["time_clocks", "time_clocks_static"] {
        let program = clocks(name);
        let now = host();
        expect_time(&workspace.native(&[&program]).success().out(), now);
        expect_time(&workspace.inside(&[&program]).success().out(), now);
        for (words, wanted) in [
            ("2020-01-01T00:00:00Z", Y2020),
            ("2020-01-01T00:00:00Z,frozen", Y2020),
            ("+3d", host() + 3 * DAY),
            ("-2h30m", host() - 9000),
            ("+0s", host()),
            ("2038-01-19T03:14:07Z,rate=10", i64::from(i32::MAX)),
        ] {
            let outcome = workspace.inside_with(&["--time", words], &[&program]);
            expect_time(&outcome.success().out(), wanted);
        }
    }
}

#[test]
fn a_default_run_has_the_kernels_own_vdso_and_a_run_with_its_own_clock_has_not() {
    let program = clocks("time_clocks");
    let workspace = Workspace::new("vdso");
    workspace.same(&[&program, "-v"]).expect_out("vdso unchanged\n");
    let outcome = workspace.inside_with(&["--time", "+1d"], &[&program, "-v"]);
    outcome.success().expect_out("vdso changed\n");
}

#[test]
fn the_monotonic_clock_and_the_uptime_begin_with_the_sandbox() {
    let program = clocks("time_clocks");
    let workspace = Workspace::new("monotonic");
    for options in [&[][..], &["--time", "+3d"], &["--time", "@0,frozen"]] {
        let outcome = workspace.inside_with(options, &["cut", "-d.", "-f1", "/proc/uptime"]);
        expect_time(&outcome.success().out(), 0);
        workspace.inside_with(options, &[&program, "-m"]).success();
    }
}

#[test]
fn every_way_to_execute_leads_to_a_program_with_the_sandboxs_clock() {
    let (program, exec) = (clocks("time_clocks"), clocks("time_exec"));
    let workspace = Workspace::new("exec");
    let script = format!(
        "{program}; {exec} {program}; {exec} vfork {program}; env {program}; \
         sh -c '{program} & wait'; PATH=/nonexistent:/bin:/usr/bin env {program}; nonexistent; \
         (exec {program})"
    );
    let outcome =
        workspace.inside_with(&["--time", "2020-01-01T00:00:00Z"], &["sh", "-c", &script]);
    let text = outcome.out();
    assert_eq!(text.lines().count(), 7, "{}", outcome.report());
    text.lines().for_each(|line| expect_time(line, Y2020));
    outcome.err_lacks("clock was refused");
}

#[test]
fn a_program_that_is_traced_inside_sees_the_hosts_time_and_that_is_said() {
    if !have("strace") {
        return;
    }
    let workspace = Workspace::new("traced");
    let script = "strace -f -o /dev/null date +%s";
    let now = host();
    let outcome = workspace.inside_with(&["--time", "2020-01-01T00:00:00Z"], &["sh", "-c", script]);
    expect_time(&outcome.success().out(), now);
    outcome.err_has("the sandbox's clock was refused");
}

#[test]
fn shell_and_python_read_the_sandboxs_clock() {
    let workspace = Workspace::new("languages");
    let at = ["--time", "2038-01-19T03:14:07Z"];
    let outcome = workspace.inside_with(&at, &["date", "-u", "+%Y-%m-%dT%H:%M"]);
    outcome.success().expect_out("2038-01-19T03:14\n");
    if have("python3") {
        let script = "import time, subprocess\n\
                      print(int(time.time()))\n\
                      print(subprocess.check_output(['date', '+%s'], text=True), end='')";
        let outcome = workspace.inside_with(&at, &["python3", "-c", script]);
        outcome.success().out().lines().for_each(|line| expect_time(line, i32::MAX.into()));
    }
}

#[test]
fn go_reads_the_sandboxs_clock_and_sleeps_by_it() {
    if !have("go") {
        return;
    }
    let workspace = Workspace::new("go");
    workspace.write("go.mod", "module example.test/clock\n\ngo 1.19\n");
    workspace.write("main.go", include_str!("clock.go"));
    let here = workspace.path().display();
    let script = format!(
        "GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local GOSUMDB=off CGO_ENABLED=0 \
         GOCACHE={here}/cache GOPATH={here}/path GOENV=off HOME={here} go build -o clock ."
    );
    workspace.native(&["sh", "-c", &script]).success();
    let now = host();
    expect_time(&workspace.native(&["./clock"]).success().out(), now);
    let outcome = workspace.inside_with(&["--time", "2020-01-01T00:00:00Z,rate=10"], &["./clock"]);
    expect_time(&outcome.success().out(), Y2020);
}

#[test]
fn words_that_mean_no_time_are_one_line_errors() {
    let workspace = Workspace::new("bad");
    for (words, wanted) in [
        ("tomorrow", "write a date such as"),
        ("2038-01-19T03:14:07", "names no time zone"),
        ("rate=0", "write frozen"),
        ("rate=2,frozen", "leave one out"),
        ("+3", "an offset is"),
    ] {
        let outcome = workspace.inside_with(&["--time", words], &["true"]);
        outcome.one_line_error(125, &["cannot use --time", wanted]);
    }
    let outcome = workspace.inside_with(&["--time", "+1d", "--time", "rate=2"], &["true"]);
    outcome.success();
}
