//! A program does not notice that it was paused.

use std::time::{Duration, Instant};

use crate::Case;
use crate::common::Workspace;
use crate::user::Sandbox;

pub(crate) const ALL: &[Case] = &[
    ("no_wait_ends_by_a_pause", no_wait_ends_by_a_pause),
    ("no_wait_ends_by_a_pause_where_signals_interrupt", no_wait_ends_where_signals_interrupt),
    ("a_restless_program_checks_itself", a_restless_program_checks_itself),
    ("a_restless_program_where_signals_interrupt", a_restless_program_where_signals_interrupt),
    ("a_go_program_goes_on", a_go_program_goes_on),
];

fn no_wait_ends_by_a_pause() {
    waits(Sandbox::start(&["waits", "log"]));
}

fn no_wait_ends_where_signals_interrupt() {
    waits(Sandbox::start_interruptible(&["waits", "log"]));
}

fn waits(mut sandbox: Sandbox) {
    sandbox.expect_line("ready");
    for _ in 0..10 {
        // (One fewer where io_getevents(2) is not served.)
        assert!(sandbox.pause() >= 21);
        sandbox.resume();
    }
    sandbox.type_in("go\n");
    assert_eq!(sandbox.finish(), (0, "ok\n".into()));
}

/// Pauses for `length` and goes on, for some seconds and at least four times.
fn stutter(sandbox: &mut Sandbox, length: Duration) {
    let end = Instant::now() + Duration::from_secs(3);
    let mut count = 0;
    while count < 4 || Instant::now() < end {
        sandbox.pause();
        std::thread::sleep(length);
        sandbox.resume();
        std::thread::sleep(length);
        count += 1;
    }
}

fn a_restless_program_checks_itself() {
    restless(Sandbox::start(&["restless"]));
}

fn a_restless_program_where_signals_interrupt() {
    restless(Sandbox::start_interruptible(&["restless"]));
}

fn restless(mut sandbox: Sandbox) {
    sandbox.expect_line("ready");
    stutter(&mut sandbox, Duration::from_millis(2));
    assert_eq!(sandbox.finish(), (0, "ok\n".into()));
}

const GO: &str = r#"package main

import (
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"time"
)

func main() {
	fmt.Println("ready")
	var over atomic.Bool
	go func() {
		os.Stdin.Read(make([]byte, 1))
		over.Store(true)
	}()
	done := make(chan error)
	for i := 0; i < 8; i++ {
		go func(i int) {
			for n := 0; !over.Load(); n++ {
				if i == 0 {
					if err := exec.Command("true").Run(); err != nil {
						done <- err
						return
					}
				} else if i < 4 {
					time.Sleep(time.Millisecond)
				} else {
					for j := 0; j < 1000000; j++ {
						n += j & 1
					}
				}
			}
			done <- nil
		}(i)
	}
	for i := 0; i < 8; i++ {
		if err := <-done; err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fmt.Println("ok")
}
"#;

fn a_go_program_goes_on() {
    let workspace = Workspace::new("pause-go");
    workspace.write("main.go", GO);
    let mut build = workspace.command("go");
    build.args(["build", "-o", "program", "main.go"]);
    build.env("GOCACHE", workspace.path().join("cache")).env("GO111MODULE", "off");
    match build.output() {
        Err(_) => return println!("skipped: no go"),
        Ok(built) => assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr)),
    }
    let program = workspace.path().join("program").to_string_lossy().into_owned();
    let mut sandbox = Sandbox::start_with(workspace, &[], &[&program]);
    sandbox.expect_line("ready");
    for _ in 0..50 {
        sandbox.pause();
        std::thread::sleep(Duration::from_millis(5));
        sandbox.resume();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(sandbox.finish(), (0, "ok\n".into()));
}
