//! `--deterministic`: what is done twice gives the same twice, bit for bit.

mod common;

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{LIMIT, Outcome, Workspace, guest, have, run};

const ON: &[&str] = &["--deterministic"];

/// All such runs have the lowest processor: those that are compared share it with no other one of these.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The output of the same program in two runs, each in a fresh directory that `fill` fills; `number` is 0 or 1.
#[track_caller]
fn twice(
    name: &str,
    options: &[&str],
    argv: &[&str],
    fill: impl Fn(&Workspace, usize),
) -> [Outcome; 2] {
    let _turn = turn();
    [0, 1].map(|number| {
        let workspace = Workspace::new(&format!("{name}{number}"));
        fill(&workspace, number);
        let outcome = workspace.inside_with(options, argv);
        outcome.success();
        outcome
    })
}

#[track_caller]
fn same_twice(name: &str, options: &[&str], argv: &[&str]) -> String {
    let [first, second] = twice(name, options, argv, |_, _| ());
    assert_eq!(first.out(), second.out(), "{}", first.report());
    first.out()
}

#[test]
fn random_bytes_are_those_of_the_seed() {
    let program = guest("repeat_random");
    let program = program.to_str().unwrap();
    // Natively it passes, and nothing is the same twice.
    let natives = [0, 1].map(|number| {
        let workspace = Workspace::new(&format!("random-native{number}"));
        workspace.native(&[program]).success().out()
    });
    for (a, b) in natives[0].lines().zip(natives[1].lines()) {
        assert!(a != b || a.starts_with("nonblocking"), "the same twice: {a}");
    }
    // As are the lines among themselves. (The program executes itself once more.)
    let inside = same_twice("random", ON, &[program, "1"]);
    let mut lines: Vec<&str> = inside.lines().filter(|it| !it.starts_with("addresses")).collect();
    lines.retain(|line| !line.starts_with("nonblocking") && !line.starts_with("mkstemp"));
    let count = lines.len();
    let bytes = |line: &str| line.split_once(' ').map(|(_, bytes)| bytes.to_owned());
    lines.sort_by_key(|line| bytes(line));
    lines.dedup_by_key(|line| bytes(line));
    assert_eq!(lines.len(), count, "something came twice:\n{inside}");
    // An empty seed is the one without a word; another gives other bytes.
    let seeded = same_twice("random-seed", &["--deterministic=7"], &[program, "1"]);
    let differs = |wanted: &str| {
        let of = |text: &str| text.lines().find(|it| it.starts_with(wanted)).map(str::to_owned);
        assert_ne!(of(&seeded), of(&inside), "{wanted}");
    };
    ["AT_RANDOM", "getrandom", "/dev/urandom", "uuid", "thread", "child"]
        .iter()
        .for_each(|it| differs(it));
}

#[test]
fn nothing_depends_on_the_order_of_what_runs_beside_it() {
    let script = "mkdir a b; for place in $(cat order); do \
                  env -C $place od -An -N8 -tx1 /dev/urandom > $place/out; done; \
                  cat a/out b/out; mktemp -u; mktemp -u";
    let [one, other] = twice("random-order", ON, &["sh", "-c", script], |it, number| {
        it.write("order", if number == 0 { "a b" } else { "b a" });
    });
    assert_eq!(one.out(), other.out());
    let text = one.out();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0] != lines[1] && lines[2] != lines[3], "{text}");
}

/// Names in an order that no directory keeps.
fn scattered(workspace: &Workspace, number: usize) {
    for index in 0..300 {
        let index = if number == 0 { index } else { 299 - index };
        workspace.write(&format!("many/{}-{}", index * 7919 % 300, "x".repeat(index % 40)), "");
    }
    fs::create_dir(workspace.path().join("many/directory")).unwrap();
    std::os::unix::fs::symlink("nowhere", workspace.path().join("many/link")).unwrap();
}

#[test]
fn directories_are_sorted_and_otherwise_what_they_are() {
    let program = guest("repeat_list");
    let program = program.to_str().unwrap();
    let native = Workspace::new("list-native");
    scattered(&native, 0);
    let outcome = native.native(&[program, "many"]);
    let mut wanted: Vec<String> = outcome.success().out().lines().map(str::to_owned).collect();
    wanted.sort();
    let [first, second] = twice("list", ON, &[program, "many", "sorted"], scattered);
    assert_eq!(first.out(), second.out());
    assert_eq!(first.out().lines().collect::<Vec<_>>(), wanted);
    // In memory, in a layer, and where several layers are one.
    for (name, options, script) in [
        ("list-tmpfs", &["--deterministic"][..], "cp -r many /tmp; cd /tmp; \"$0\" many sorted"),
        ("list-overlay", &["--deterministic", "--overlay", "."], "\"$0\" many sorted"),
        (
            "list-merged",
            &["--deterministic", "--overlay", "."],
            "rm many/link; : > many/link; : > many/0new; \"$0\" many sorted | grep -v new",
        ),
        ("list-proc", &["--deterministic", "--without", "process-vm"], "\"$0\" many sorted"),
    ] {
        let workspace = Workspace::new(name);
        scattered(&workspace, 1);
        let store = workspace.path().join("../store-of-").with_extension(name);
        let mut options = options.to_vec();
        let store = store.to_str().unwrap().to_owned();
        if options.contains(&"--overlay") {
            options.extend(["--overlay-dir", &store]);
        }
        let outcome = workspace.inside_with(&options, &["sh", "-c", script, program]);
        let _ = fs::remove_dir_all(&store);
        assert_eq!(outcome.success().out().lines().collect::<Vec<_>>(), wanted, "{name}");
    }
}

#[test]
fn steady_clocks_begin_the_same_with_a_program_and_go_on() {
    let program = guest("repeat_clock");
    let program = program.to_str().unwrap();
    let workspace = Workspace::new("clock");
    workspace.native(&[program]).success();
    let shown = same_twice("clock-twice", ON, &["sh", "-c", "\"$0\" && \"$0\"", program]);
    let numbers: Vec<&str> = shown.split_whitespace().collect();
    assert_eq!(numbers.len(), 6, "{shown}");
    // All clocks of a program alike, and of two programs not.
    assert!(
        numbers[0] == numbers[1] && numbers[1] == numbers[2] && numbers[2] != numbers[3],
        "{shown}"
    );
}

#[test]
fn the_run_sees_one_machine_whatever_the_host_is() {
    let script = "hostname 2>/dev/null || uname -n; nproc; date -u +%s.%N; stat -c %Y made; \
                  stat -c %Y there; sleep 0.01; date -u +%s; echo $$ $PPID";
    let [first, second] =
        twice("machine", ON, &["sh", "-c", &format!(": > made; {script}")], |it, _| {
            it.write("there", "");
        });
    assert_eq!(first.out(), second.out());
    let wanted = "sandbox\n1\n1767225600.000000000\n1767225600\n1767225599\n1767225600\n2 1\n";
    first.expect_out(wanted);
    // What the user says himself counts.
    let mut options = ON.to_vec();
    options.extend(["--time", "@1000000000,frozen", "--hostname", "mine"]);
    let workspace = Workspace::new("machine-own");
    let outcome = workspace.inside_with(&options, &["sh", "-c", "uname -n; date +%s"]);
    outcome.success().expect_out("mine\n1000000000\n");
    let options = ["--deterministic", "--env", "SOURCE_DATE_EPOCH=1234567890"];
    workspace.inside_with(&options, &["date", "+%s"]).success().expect_out("1234567890\n");
    let options = ["--deterministic", "--env", "SOURCE_DATE_EPOCH=today"];
    workspace.inside_with(&options, &["true"]).one_line_error(125, &["SOURCE_DATE_EPOCH=today"]);
    let outcome = workspace.inside_with(&["--deterministic", "--dry-run"], &["true"]);
    outcome.success().out_has("repeatable").out_has("one processor (--cpus)");
    workspace.inside_with(&["--deterministic=false"], &["date", "+%s"]).out_lacks("1767225600");
}

#[test]
fn python_does_the_same_twice() {
    if !have("python3") {
        return;
    }
    let script = "\
import os, random, tempfile, time, uuid, threading, subprocess
print(hash('text'), {str(n) for n in range(20)}, os.urandom(4), random.random(), uuid.uuid4())
print(tempfile.mkdtemp(), tempfile.mkdtemp(), os.listdir('.'), [e.name for e in os.scandir('/usr/bin')][:9])
print(time.time(), os.cpu_count(), os.getpid(), object(), id(os))
before = time.monotonic(); time.sleep(0.05); assert time.monotonic() >= before + 0.05
event = threading.Event(); assert not event.wait(0.05)
print(subprocess.run(['python3', '-c', 'import os; print(os.urandom(4))'], capture_output=True, timeout=60).stdout)
";
    let [first, second] = twice("python", ON, &["python3", "-c", script], |it, number| {
        let names = ["a", "c", "b", "e", "d"];
        (0..5).for_each(|at| drop(it.write(names[if number == 0 { at } else { 4 - at }], "")));
    });
    assert_eq!(first.out(), second.out());
    first.out_has("['a', 'b', 'c', 'd', 'e']");
}

const MAKEFILE: &str = "\
SOURCES := $(shell find . -name 'part*.c')
OBJECTS := $(SOURCES:.c=.o)
all: program all.tar.gz info
%.o: %.c
\tt=$$(mktemp ./tmpXXXXXXXX) && mv $$t $$t.c && cat $< >> $$t.c && cc -c -o $@ $$t.c && rm $$t.c
libparts.a: $(OBJECTS)
\trm -f $@; ar rcU $@ $^
program: main.c libparts.a
\tcc -flto -o $@ main.c $(OBJECTS) -Wl,--build-id
all.tar.gz: libparts.a program
\ttar -czf $@ $$(find . -name '*.[cao]')
info: program
\t./program > $@; hostname >> $@ 2>/dev/null || uname -n >> $@; nproc >> $@; date >> $@
\tod -An -N16 -tx1 /dev/urandom >> $@; cat /proc/sys/kernel/random/uuid >> $@
";

const PRODUCTS: [&str; 4] = ["libparts.a", "program", "all.tar.gz", "info"];

fn project(workspace: &Workspace, number: usize) {
    workspace.write("Makefile", MAKEFILE);
    let mut main = "#include <stdio.h>\n".to_owned();
    let mut calls = String::new();
    for part in 0..24 {
        main.push_str(&format!("const char *part{part}(void);\n"));
        calls.push_str(&format!("puts(part{part}()); "));
    }
    main.push_str(&format!("int main(void) {{ {calls}return 0; }}\n"));
    workspace.write("main.c", main);
    for part in 0..24 {
        let part = if number == 0 { part } else { 23 - part };
        let text = format!(
            "const char *part{part}(void) {{ return \"{part} \" __DATE__ \" \" __TIME__; }}\n\
             static int hidden{part};\nint *seen{part}(void) {{ return &hidden{part}; }}\n"
        );
        let path = workspace.write(&format!("part{part}.c"), text);
        // As if it had been checked out some time ago.
        let ago = std::time::Duration::from_secs(100_000 * number as u64 + part);
        let then = std::time::SystemTime::now() - ago;
        fs::File::open(path).unwrap().set_modified(then).unwrap();
    }
}

fn products(directory: &Path) -> Vec<Vec<u8>> {
    PRODUCTS.iter().map(|name| fs::read(directory.join(name)).expect("a product")).collect()
}

#[test]
fn two_builds_are_identical_bit_for_bit() {
    if !have("make") || !have("cc") || !have("ar") || !have("tar") {
        return;
    }
    let build = |name: &str, options: Option<&[&str]>, jobs: &str| {
        let _turn = options.map(|_| turn());
        [0, 1].map(|number| {
            let workspace = Workspace::new(&format!("{name}{number}"));
            project(&workspace, number);
            let argv = ["make", "-s", jobs];
            match options {
                None => workspace.native(&argv).success(),
                Some(options) => workspace.inside_with(options, &argv).success(),
            };
            // Made, and made once more: nothing is out of date, since nothing is newer than the run.
            if let Some(options) = options {
                workspace.inside_with(options, &["sh", "-c", "make -s -q"]);
            }
            products(workspace.path())
        })
    };
    let [first, second] = build("build-native", None, "-j2");
    for (name, (first, second)) in PRODUCTS.iter().zip(first.iter().zip(&second)) {
        assert!(first != second, "{name} is the same natively: the test shows nothing");
    }
    for (name, options, jobs) in
        [("build", &["--deterministic"][..], "-j2"), ("build-seed", &["--deterministic=x"], "-j4")]
    {
        let [first, second] = build(name, Some(options), jobs);
        for (product, (first, second)) in PRODUCTS.iter().zip(first.iter().zip(&second)) {
            assert!(first == second, "{name}: {product} differs between two builds");
        }
    }
}

#[test]
fn a_build_in_one_run_is_up_to_date_in_it() {
    if !have("make") || !have("cc") {
        return;
    }
    let workspace = Workspace::new("up-to-date");
    project(&workspace, 0);
    // -M lists the machine's own headers, too.
    workspace.write("more.mk", "more.o: more.c\n\tcc -MD -c -o $@ $<\n-include more.d\n");
    workspace.write("more.c", "#include <stdio.h>\n");
    let script = "make -s -f more.mk more.o && make -q -f more.mk more.o && make -s program && \
                  make -q program && : > part3.c && ! make -q program; echo $?";
    let outcome = workspace.inside_with(ON, &["sh", "-c", script]);
    outcome.success();
    // (What a run itself changes twice has one stamp: the last question is answered by yes.)
    outcome.expect_err("").expect_out("1\n");
}

#[test]
fn it_works_beside_other_options_and_says_what_it_cannot() {
    let workspace = Workspace::new("beside");
    let script = "ls /dev >/dev/null; od -An -N4 -tx1 /dev/urandom; dmesg | head -1 | cut -c1-9";
    for more in
        [&["--kmsg"][..], &["--record-files", "record.json"], &["--without", "wait-killable"]]
    {
        let mut options = ON.to_vec();
        options.extend(more);
        workspace.inside_with(&options, &["sh", "-c", script]).success();
    }
    // More readers than there may be.
    if have("python3") {
        let script = "import os, errno\nfds = []\ntry:\n  while len(fds) < 900: fds.append(os.open('/dev/urandom', 0))\n\
                      except OSError as e: assert e.errno == errno.ENFILE, e\nassert len(fds) == 256, len(fds)\n\
                      for fd in fds: assert len(os.read(fd, 100)) == 100";
        workspace.inside_with(ON, &["python3", "-c", script]).success();
    }
    let mut command = workspace.sandbox();
    command.args(["--deterministic=", "--", "true"]);
    run(command, b"", LIMIT).success();
}

#[test]
fn sleeping_moves_the_clock_and_nothing_else_does() {
    let script =
        "date +%s; : > a; : > b; sleep 1; : > c; date +%s; sleep 0.1; sleep 0.6; : > d; date +%s
        stat -c %Y a b c d there; test c -nt a && ! test b -nt a && test d -nt c && echo newer
        python3 -c 'import time; print(time.time())' 2>/dev/null || date +%s.0";
    let [first, second] = twice("sleeping", ON, &["sh", "-c", script], |it, _| {
        it.write("there", "");
    });
    assert_eq!(first.out(), second.out());
    first.expect_out(
        "1767225600\n1767225601\n1767225602\n1767225600\n1767225600\n1767225601\n1767225602\n1767225599\n\
         newer\n1767225602.0\n",
    );
}

#[test]
fn a_run_that_was_not_repeatable_says_so() {
    if !have("strace") {
        return;
    }
    let workspace = Workspace::new("debugged");
    let outcome = workspace.inside_with(ON, &["strace", "-f", "-o", "/dev/null", "date"]);
    outcome.success().err_has("this run was not repeatable: it did without ");
    workspace.inside_with(ON, &["date"]).success().err_lacks("repeatable");
}
