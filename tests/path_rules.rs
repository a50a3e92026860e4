//! `--hide`, `--deny`, `--allow`, and patterns in them: what a program sees. How they hold is in
//! escapes_secrets.rs. The patterns begin at `./`: any other would look into the real homes, too.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::{Outcome, Workspace};

/// A project with secrets and things beside them.
fn project(test: &str) -> Workspace {
    let workspace = Workspace::new(test);
    for file in [".env", ".env.example", "app/.env", "app/tls/key.pem", "app/tls/key.pub", "main.c"]
    {
        workspace.write(file, format!("text of {file}\n"));
    }
    workspace
}

/// Runs a script inside, with words as options.
fn inside(workspace: &Workspace, options: &str, script: &str) -> Outcome {
    let words: Vec<&str> = options.split_whitespace().collect();
    workspace.inside_with(&words, &["sh", "-c", script])
}

#[test]
fn what_is_hidden_is_not_there_and_what_is_denied_is_refused() {
    let workspace = project("words");
    let script = "cat .env; cat app/tls/key.pem; test -e .env || echo gone; ls -A app/tls";
    let hidden = inside(&workspace, "--hide .env --hide app/tls", script);
    hidden.expect_out("gone\n").err_has(".env: No such").err_has("key.pem: No such");
    let denied = inside(&workspace, "--deny .env --deny app/tls", script);
    denied.failure().expect_out("").err_has(".env: Permission").err_has("key.pem: Permission");
    denied.err_has("cannot open directory 'app/tls'");
    // Nothing can be made in their place.
    let script = "echo x > .env; mkdir app/tls/new; rm -rf .env app/tls; mv .env x; mv app/tls x; \
                  rm -rf app; ls -d app/tls";
    for options in ["--hide .env --hide app/tls", "--deny .env --deny app/tls"] {
        inside(&workspace, options, script).expect_out("app/tls\n");
        assert_eq!(workspace.read(".env"), "text of .env\n");
        assert_eq!(workspace.read("app/tls/key.pem"), "text of app/tls/key.pem\n");
    }
}

#[test]
fn programs_take_a_hidden_file_for_absent() {
    let workspace = project("absent");
    let script = "cp -r app copy 2>&1; sort < .env; [ -f .env ] && echo file; [ -r .env ] && echo read; \
                  true 3< .env && echo open; find . -name '*.env' -exec cat {} +; echo end";
    inside(&workspace, "--hide .env --hide app/.env", script).success().expect_out("end\n");
}

#[test]
fn exceptions_have_the_access_that_they_would_have_had() {
    let workspace = project("exceptions");
    let script =
        "cat app/tls/key.pub && echo more >> app/tls/key.pub; cat app/tls/key.pem; cat app/.env";
    let outcome = inside(&workspace, "--hide app --allow app/tls/key.pub", script);
    outcome.failure().expect_out("text of app/tls/key.pub\n");
    outcome.err_has("key.pem: No such").err_has("app/.env: No such");
    let outcome = inside(&workspace, "--deny app --allow app/tls/key.pub", script);
    outcome.failure().out_has("text of app/tls/key.pub\nmore\n");
    outcome.err_has("key.pem: Permission").err_has("app/.env: Permission");
    assert_eq!(workspace.read("app/tls/key.pub"), "text of app/tls/key.pub\nmore\nmore\n");
    // Where nothing could be written, it cannot.
    let outcome = inside(&workspace, "--ro . --hide app --allow app/tls", script);
    outcome.failure().err_has("Read-only file system").err_has("app/.env: No such");
    outcome.out_has("text of app/tls/key.pem");
    // In what the host has of its own, too.
    let ssh = Workspace::new("exceptions-home");
    ssh.write(".ssh/id", "secret\n");
    ssh.write(".ssh/known_hosts", "hosts\n");
    let mut command = workspace.sandbox();
    let known = ssh.path().join(".ssh/known_hosts");
    command.env("HOME", ssh.path()).arg("--allow").arg(&known);
    command.args(["--", "sh", "-c", "cat ~/.ssh/known_hosts ~/.ssh/id"]);
    common::run(command, b"", common::LIMIT).failure().expect_out("hosts\n");
}

#[test]
fn patterns_cover_what_they_match_at_any_depth() {
    let workspace = project("patterns");
    let script = "cat .env app/.env .env.example app/tls/key.pem app/tls/key.pub";
    let outcome = inside(&workspace, "--hide ./**/.env --deny ./**/*.pem", script);
    outcome.expect_out("text of .env.example\ntext of app/tls/key.pub\n");
    outcome.err_has(".env: No such").err_has("app/.env: No such").err_has("key.pem: Permission");
    let outcome =
        inside(&workspace, "--hide ./**/.env* --allow ./**/*.example --hide ./app/t*", script);
    outcome.expect_out("text of .env.example\n").err_has("key.pub: No such");
    // By what a link leads to, and whoever leads there.
    let other = Workspace::new("patterns-other");
    other.write("data", "other\n");
    symlink(other.path().join("data"), workspace.path().join("linked.pem")).unwrap();
    symlink(".env", workspace.path().join("innocent")).unwrap();
    let script = format!("cat innocent linked.pem {}/data", other.path().display());
    let outcome = inside(&workspace, "--hide ./**/*.pem --hide ./.env*", &script);
    outcome.failure().expect_out("").err_has("innocent: No such").err_has("data: No such");
}

#[test]
fn a_pattern_is_told_of() {
    let workspace = project("told");
    let outcome = inside(&workspace, "-v --hide ./**/*.none --deny ./**/.env", "true");
    outcome.success().err_has("--hide './**/*.none' matches nothing").err_has("--deny './**/.env'");
    let why = |options: &[&str], path: &str| {
        let mut command = workspace.sandbox();
        command.arg("why").args(options).arg(path);
        common::run(command, b"", common::LIMIT)
    };
    let outcome = why(&["--deny", "./**/.env"], "app/.env");
    outcome.expect_status(1).out_has("app/.env: denied").out_has("--deny './**/.env'");
    outcome.out_has("--allow ");
    let both = ["--deny", "./**/.env", "--hide", "./**/.e*v"];
    why(&both, "app/.env").expect_status(1).out_has("denied");
    let both = ["--deny", "./**/*.pem", "--hide", "./**/*.pem"];
    why(&both, "x").one_line_error(125, &["--deny './**/*.pem'", "--hide './**/*.pem'", "key.pem"]);
}

/// Rules about names of which none is there at first.
const LATER: &str = "--hide ./**/.later --deny ./**/*.pem --deny ./secret/*.txt --ro ./**/*.lock";

/// Root inside is judged by the same rules, whatever it believes.
const WHO: [&str; 2] = ["", "--root "];

/// Runs a script inside that reads a line when it wants the host to do something.
fn meanwhile(who: &str, workspace: &Workspace, script: &str, host: impl FnOnce()) -> Outcome {
    let mut command = workspace.sandbox();
    let script = format!("touch ready; read line; rm ready; {script}");
    let words = [who, LATER].concat();
    command.args(words.split(' ')).args(["--", "sh", "-c", &script]);
    command.stdin(std::process::Stdio::piped());
    let words = common::command_line(&command);
    let child = common::start(command);
    common::wait_for("the program inside", || workspace.has("ready"));
    host();
    common::finish(child, words, b"go\n", common::LIMIT)
}

#[test]
fn what_the_host_makes_later_is_covered_by_every_road() {
    WHO.into_iter().for_each(hosts_later_names);
}

fn hosts_later_names(who: &str) {
    let workspace = Workspace::new("later-host");
    fs::create_dir_all(workspace.path().join("a/b")).unwrap();
    workspace.write("mine", "mine\n");
    let there = [".later", "a/x.pem", "a/b/.later", "secret/s.txt"];
    let roads = [
        "cat $F",
        "cat $PWD/$F",
        "cat a/../$F",
        "cat ./a/./.././/$F",
        "cat /proc/self/cwd/$F",
        "cat /proc/self/root$PWD/$F",
        "cd a; cat ../$F",
        "ln -s $F link; cat link; rm link",
        "ln -s $PWD dir; cat dir/$F; rm dir",
        "cat 3< . /proc/self/fd/3/$F",
        "ln $F hard && cat hard",
        "mv $F moved && cat moved",
        "cp $F copy && cat copy",
        "echo changed > $F",
        "echo changed >> $F",
        "truncate -s 0 $F",
        "rm -f $F",
        "mv mine $F",
        "dd if=$F",
        "sh $F",
        "tar cf - $F",
    ];
    let script: String = roads.iter().map(|road| format!("( {road} )\n")).collect();
    let script = format!("for F in {}; do {script} done", there.join(" "));
    let outcome = meanwhile(who, &workspace, &script, || {
        there.iter().for_each(|name| drop(workspace.write(name, "THE SECRET\n")));
        // It was not there, and is not what the rules were about then.
        workspace.write("plain", "THE SECRET\n");
    });
    outcome.out_lacks("SECRET");
    for name in there {
        assert_eq!(workspace.read(name), "THE SECRET\n");
    }
    assert_eq!(workspace.read("mine"), "mine\n");
    // The errors are those of what was there from the start.
    let outcome = meanwhile(who, &workspace, "cat .later a/x.pem plain; ls -A a", || {
        fs::remove_file(workspace.path().join(".later")).unwrap();
        fs::rename(workspace.path().join("plain"), workspace.path().join(".later")).unwrap();
        workspace.write("plain", "plain\n");
    });
    outcome.expect_out("plain\nb\nx.pem\n").err_has(".later: No such").err_has("x.pem: Permission");
}

#[test]
fn what_a_guest_makes_later_is_covered_too() {
    WHO.into_iter().for_each(guests_later_names);
}

fn guests_later_names(who: &str) {
    let workspace = Workspace::new("later-guest");
    workspace.write("mine", "mine\n");
    fs::create_dir(workspace.path().join("plain")).unwrap();
    workspace.write("plain/s.txt", "text\n");
    let script = "echo x > .later; echo x > k.pem; echo x > Cargo.lock; mkdir .later d.pem; mkfifo f.pem; \
                  ln mine l.pem; ln -s mine s.pem; mv mine m.pem; mv plain secret; ls -A";
    let outcome = inside(&workspace, &[who, LATER].concat(), script);
    outcome.success().expect_out("mine\nplain\nsecret\n");
    outcome
        .err_has("create .later: ")
        .err_has("k.pem: Permission")
        .err_has("Cargo.lock: Read-only");
    outcome.err_has("mkdir: ").err_has("secret/s.txt");
    assert_eq!(workspace.read("plain/s.txt"), "text\n");
    // What is read-only may be read, and is what it was.
    let script = "cat a.lock; echo x >> a.lock; mv a.lock b; ln a.lock b; rm -f a.lock; truncate -s 0 a.lock";
    let outcome =
        meanwhile(who, &workspace, script, || drop(workspace.write("a.lock", "locked\n")));
    outcome.failure().expect_out("locked\n");
    assert_eq!(workspace.read("a.lock"), "locked\n");
}

#[test]
fn what_is_executed_is_judged_by_what_it_is() {
    WHO.into_iter().for_each(later_programs);
}

fn later_programs(who: &str) {
    let workspace = Workspace::new("later-exec");
    let build = |text: &str| format!("#!/bin/sh\necho {text}\n");
    let executable = |name: &str, text: &str| {
        let path = workspace.write(name, build(text));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, mode).unwrap();
    };
    executable("run.pen", "open");
    let program = common::guest("flip_exec");
    let paths = ["run.pen", "run.pem"].map(|name| workspace.path().join(name));
    let script = format!(
        "./run.pem; /lib64/ld-linux-x86-64.so.2 ./true.pem && echo SECRET; {} {} {} 300",
        program.display(),
        paths[0].display(),
        paths[1].display()
    );
    let outcome = meanwhile(who, &workspace, &script, || {
        common::copy_program("/bin/true".as_ref(), &workspace.path().join("true.pem"));
        executable("run.pem", "SECRET");
    });
    outcome.out_lacks("SECRET").out_has("open\n").err_has("run.pem: Permission");
}

#[test]
fn a_path_that_changes_while_it_is_used_leads_nowhere_else() {
    WHO.into_iter().for_each(changing_paths);
}

fn changing_paths(who: &str) {
    let workspace = Workspace::new("later-flips");
    let victim = workspace.path().join("token.pem");
    let rounds = if who.is_empty() { 3000 } else { 500 };
    let script = format!("{} {} {rounds}", common::guest("flip_path").display(), victim.display());
    let outcome =
        meanwhile(who, &workspace, &script, || drop(workspace.write("token.pem", "secret\n")));
    outcome.success().expect_out("opened own\n");
    assert_eq!(workspace.read("token.pem"), "secret\n");
}

#[test]
fn a_handle_does_not_become_a_descriptor() {
    WHO.into_iter().for_each(handles);
}

fn handles(who: &str) {
    let workspace = Workspace::new("later-handles");
    if !common::have("python3") {
        return common::skip("no python3");
    }
    let script = r#"python3 -c "
import os
handle = os.open('k.pem', os.O_PATH)
here = os.open('.', os.O_PATH)
for path in ('/proc/self/fd/%d' % handle, '/dev/fd/%d' % handle, '/proc/thread-self/fd/%d' % handle,
             '/proc/%d/fd/%d' % (os.getpid(), handle), '/proc/self/fd/%d/k.pem' % here):
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT):
        try: print('SECRET', os.open(path, flags))
        except OSError as error: assert error.errno == 13, (path, error)
try: os.execve(handle, ['x'], {})
except OSError as error: assert error.errno == 13, error
for name in ('k.pem', '/proc/self/fd/%d' % handle):
    try: os.link(name, 'other', dst_dir_fd=here, follow_symlinks=True)
    except OSError as error: assert error.errno in (13, 18), error
print('end')
""#;
    let outcome = meanwhile(who, &workspace, script, || drop(workspace.write("k.pem", "SECRET\n")));
    outcome.success().expect_out("end\n");
    assert!(!workspace.has("other"));
}

/// Who opens a file that somebody holds a lease on waits for that one, and nobody else does.
#[test]
fn leases_are_waited_for_by_those_who_open() {
    let workspace = Workspace::new("later-leases");
    if !common::have("python3") {
        return common::skip("no python3");
    }
    let script = r#"
import fcntl, os, signal, threading
class Alarm(Exception): pass
def wake(*_): raise Alarm
open('f', 'w').write('text'); ready, go = os.pipe(), os.pipe()
holder = os.fork()
if not holder:
    signal.signal(signal.SIGIO, lambda *_: None)
    fd = os.open('f', os.O_RDWR); fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK); os.write(ready[1], b'x')
    while True:
        try: os.read(go[0], 1); break
        except InterruptedError: pass
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK); os._exit(0)
os.read(ready[0], 1)
try: os.open('f', os.O_RDONLY | os.O_NONBLOCK)
except BlockingIOError: print('held')
signal.signal(signal.SIGALRM, wake); signal.setitimer(signal.ITIMER_REAL, 0.05)
try: os.open('f', os.O_RDONLY)
except Alarm: print('alarm')
signal.setitimer(signal.ITIMER_REAL, 0.05)
try: os.truncate('f', 2)
except Alarm: print('alarm', os.stat('f').st_size)
opened = []
def use():
    fd = os.open('f', os.O_RDWR | os.O_CREAT)
    opened.append((os.read(fd, 9), fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK))
users = [threading.Thread(target=use) for _ in range(40)]
for user in users: user.start()
for it in range(200): open('other%d' % it, 'w').close()
print(len(opened)); os.write(go[1], b'x')
for user in users: user.join()
print(len(opened), set(opened)); os.wait()
os.truncate('f', 3); print(os.stat('f').st_size)
for it in '.', '/dev/null', 'none':
    try: os.truncate(it, 0)
    except OSError as error: print(error.errno)
"#;
    // (A holder who does not answer is given 45 seconds.)
    workspace.same_with(&["--hide", "./**/.none"], &["python3", "-c", script]);
}

#[test]
fn programs_notice_nothing_of_rules_that_match_nothing() {
    let workspace = Workspace::new("later-likeness");
    let script = r#"
umask 027; mkdir -p a/b; echo x > a/f; mkfifo a/p; ln -s ../a/f a/b/l; ln a/f a/h; stat -c '%a %h %F' a a/* a/b/l
(echo through > a/p) & cat a/p; wait
exec 5<> a/f; cat <&5; cat /proc/self/fd/5 /dev/fd/5 /proc/self/cwd/a/f; readlink /proc/self/fd/5 | grep -c a/f
cat < /dev/null; head -c 3 /dev/zero | wc -c; head -1 /proc/self/status; cat /proc/thread-self/comm
cat a/b/l/x; cat a/none; cat a; (echo x > a); (: > a/none/); cat ''; sort /proc/self/limits | head -2
(: < /dev/tty) 2>&1 | grep -c tty; mv a/f a/g; rm a/h; rmdir a/b; mkdir a/g; ln -s x x; cat x; (: < x)
printf '#!/bin/sh
echo "$0" "$@"
' > run; chmod +x run; ./run 1 2; ./a; ./none; (ulimit -n 5; cat 3< run 4< run)
timeout 0.2 cat a/p; echo $?
python3 -c "import signal; signal.signal(14, lambda *a: print('alarm') or 1 / 0); signal.setitimer(0, .05); open('a/p')" 2>&1 | grep -v line
head -c 3000 /dev/zero > big; ulimit -f 1; python3 -c "
import os
for length in (2000, 2500, 100, 400):
    try: print(os.truncate('big', length), os.stat('big').st_size)
    except OSError as error: print(error.errno)"
true
"#;
    workspace.same_with(&["--hide", "./**/.none"], &["sh", "-c", script]);
    let own = |words: &[&str]| workspace.inside_with(words, &["sh", "-c", script]);
    let cleared = |words: &[&str]| {
        let done = own(words);
        workspace.native(&["sh", "-c", "chmod -R u+rwx a; rm -rf a run x"]).success();
        done
    };
    workspace.native(&["sh", "-c", "rm -rf a run x"]).success();
    let plain = cleared(&["--root"]);
    cleared(&["--root", "--hide", "./**/.none"]).same_as(&plain);
}

#[test]
fn a_projects_own_file_may_withhold_and_not_allow() {
    let workspace = project("project");
    workspace
        .write("sandbox.toml", "deny = ['*.pem']\nhide = ['.env']\nallow = ['.env.example']\n");
    fs::create_dir(workspace.path().join(".git")).unwrap();
    let script = "cat .env app/tls/key.pem app/.env";
    let outcome = inside(&workspace, "", script);
    outcome.failure().expect_out("text of app/.env\n").err_has(".env: No such");
    outcome.err_has("key.pem: Permission").err_has("left out of").err_has("allow = ");
}

#[test]
fn many_matches_are_covered_one_by_one() {
    let workspace = Workspace::new("many");
    for number in 0..400 {
        workspace.write(&format!("d{}/e{}/f{number}.key", number % 7, number % 11), "secret\n");
    }
    let script =
        "find . -name '*.key' | wc -l; find . -name '*.key' -exec cat {} + 2>/dev/null; echo end";
    let outcome = inside(&workspace, "--deny ./**/*.key", script);
    outcome.expect_out("400\nend\n");
    let outcome = inside(&workspace, "--hide ./**/d*", "find . -type f; echo end");
    outcome.expect_out("end\n");
}

#[test]
fn a_denied_directory_with_an_exception_cannot_be_opened_up() {
    let workspace = project("opened-up");
    let script = "ls app; chmod 755 app; ls app; touch app/new; mv app/tls app/x; rm -rf app/tls; \
                  cd app && cat tls/key.pub; cat tls/key.pem; ls tls";
    let outcome = inside(&workspace, "--deny app --allow app/tls/key.pub", script);
    outcome
        .failure()
        .expect_out("text of app/tls/key.pub\n")
        .err_has("chmod: changing permissions");
    assert_eq!(workspace.read("app/tls/key.pem"), "text of app/tls/key.pem\n");
}

#[test]
fn files_of_the_kernel_can_be_hidden_and_denied() {
    let workspace = project("kernel");
    let script = "cat /proc/version; cat /sys/kernel/notes; echo x > /dev/full; ls -A /proc/sys";
    let options = "--hide /proc/version --deny /sys/kernel/notes --hide /dev/full --hide /proc/sys";
    let outcome = inside(&workspace, options, script);
    outcome.expect_out("").err_has("/proc/version: No such file").err_has("/dev/full: ");
    if std::path::Path::new("/sys/kernel/notes").exists() {
        outcome.err_has("/sys/kernel/notes: Permission denied");
    }
}

#[test]
fn patterns_make_places_read_only_and_writable() {
    let workspace = project("access");
    let other = Workspace::new("access-other");
    other.write("out/log", "");
    other.write("in/log", "");
    let there = other.path().display();
    let script = format!(
        "echo x >> app/tls/key.pem; echo x >> main.c; mv app/tls/key.pem app/x; rm -f app/tls/key.pem; \
         echo x > {there}/out/log; echo x > {there}/in/log"
    );
    let outcome = inside(&workspace, &format!("--ro ./**/*.pem --rw {there}/o*"), &script);
    outcome.failure().err_has("key.pem: Read-only").err_has("in/log: Read-only");
    assert_eq!(workspace.read("app/tls/key.pem"), "text of app/tls/key.pem\n");
    assert_eq!(
        (workspace.read("main.c"), other.read("out/log")),
        ("text of main.c\nx\n".into(), "x\n".into())
    );
    assert_eq!(other.read("in/log"), "");
}
