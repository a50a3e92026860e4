//! What users run: each is saved in the middle of its work, and ends with the result of a run that nobody
//! interrupted.
//!
//! Each program writes its result into `out`. In the middle it makes `up`, and works on until there is
//! `go`, so that a save meets it there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::common::{LIMIT, Workspace, have, is_root, run, skip, wait_for};
use crate::desk::{Desk, Way};

/// A program: files, and how it is started.
struct Program<'p> {
    name: &'p str,
    files: &'p [(&'p str, &'p str)],
    /// What is done natively before: a script.
    before: &'p str,
    words: &'p [&'p str],
}

impl Program<'_> {
    fn put(&self, workspace: &Workspace) {
        for (name, content) in self.files {
            let path = workspace.write(name, content);
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        if !self.before.is_empty() {
            workspace.native(&["sh", "-c", self.before]).success();
        }
    }

    /// Its status and its result, if nothing happens to it.
    fn undisturbed(&self) -> (i32, String) {
        let workspace = Workspace::new(&format!("{}-native", self.name));
        self.put(&workspace);
        workspace.write("go", "");
        let mut command: Command = workspace.command(self.words[0]);
        command.args(&self.words[1..]);
        let ended = run(command, b"", LIMIT);
        assert!(workspace.has("up"), "{}", ended.report());
        (ended.status, workspace.read("out"))
    }

    /// Saves it in the middle in these ways; each ends as it does undisturbed.
    #[track_caller]
    fn goes_on(&self, ways: &[Way]) {
        let expected = self.undisturbed();
        assert!(!expected.1.is_empty());
        for way in ways {
            // (It is ordinary users whom a save has to serve without end, and the tests are run as one, too.)
            let way = if is_root() && *way == Way::TenTimes { &Way::RestoredTwice } else { way };
            let desk = Desk::new(&format!("{}-{way:?}", self.name));
            self.put(&desk.workspace);
            desk.start(self.words);
            desk.save(*way);
            desk.touch("go");
            let status = desk.sandbox(&["wait", "it"]).status;
            let told = || desk.sandbox(&["logs", "it"]).report();
            let found = (status, desk.workspace.read("out"));
            assert_eq!(found, expected, "{} {way:?}: {}", self.name, told());
            desk.is_clean();
        }
    }
}

const ALL: &[Way] = &[Way::LeftRunning, Way::Restored, Way::RestoredTwice];
/// For what keeps much that could go wrong the second time.
const OFTEN: &[Way] = &[Way::LeftRunning, Way::Restored, Way::TenTimes];

fn script(name: &str, text: &str) {
    Program { name, files: &[("it.sh", text)], before: "", words: &["bash", "it.sh"] }.goes_on(ALL);
}

fn python(name: &str, text: &str) {
    if have("python3") {
        let words = &["python3", "it.py"];
        Program { name, files: &[("it.py", text)], before: "", words }.goes_on(OFTEN);
    }
}

#[test]
fn a_shell_script_with_pipelines_traps_jobs_and_here_documents() {
    let text = r#"
trap 'echo usr1 >> out' USR1
trap 'echo bye >> out; exit 5' EXIT
{ for i in 1 2 3 4 5; do echo line $i; done; until [ -e go ]; do sleep 0.01; done; echo last; } |
    tr a-z A-Z | while read -r line; do echo "$line" >> piped; done &
job=$!
( until [ -e go ]; do sleep 0.01; done; exit 9 ) & other=$!
sort -r <<X | while read -r word; do
one
two
three
X
    [ "$word" = three ] && { : > up; until [ -e go ]; do :; done; }
    echo "word $word" >> out
done
wait $job; echo "job $?" >> out
wait $other; echo "other $?" >> out
kill -USR1 $$
cat piped >> out
"#;
    script("bash", text);
}

#[test]
fn a_program_that_starts_programs_all_the_time() {
    // vfork(2) and execve(2) all the time in dash, fork(2) in bash.
    for shell in ["dash", "bash"] {
        if !have(shell) {
            continue;
        }
        let text = ": > up; n=0; until [ -e go ]; do /bin/true || n=$((n+1)); done; echo $n > out";
        let words = &[shell, "-c", text];
        Program { name: shell, files: &[], before: "", words }.goes_on(ALL);
    }
}

#[test]
fn python_counting_to_a_file() {
    let text = r#"
import os
with open("out", "a") as out:
    for number in range(2000):
        print(number, file=out)
        if number == 1000:
            out.flush()
            open("up", "w").close()
            while not os.path.exists("go"): pass
"#;
    python("count", text);
}

#[test]
fn python_with_coroutines_and_their_processes() {
    let text = r#"
import asyncio, os
answer = 'while read x; do echo "$0:$x"; done; exit "$0"'
async def one(k):
    pipes = dict(stdin=-1, stdout=-1)
    child = await asyncio.create_subprocess_exec("sh", "-c", answer, str(k), **pipes)
    async def ask(word):
        child.stdin.write(f"{word}\n".encode())
        await child.stdin.drain()
        return await child.stdout.readline() == f"{k}:{word}\n".encode()
    good = [await ask(i) for i in range(20)]
    open("up", "w").close() if k == 3 else None
    while not os.path.exists("go"):
        good.append(await ask("more"))
        await asyncio.sleep(0.001)
    child.stdin.close()
    return all(good), await child.wait()
async def main():
    print(await asyncio.gather(*[one(k) for k in range(4)]), file=open("out", "w"))
asyncio.run(main())
"#;
    python("asyncio", text);
}

#[test]
fn python_with_threads_and_sockets() {
    let text = r#"
import os, socket, threading
from concurrent.futures import ThreadPoolExecutor
server = socket.create_server(("127.0.0.1", 0))
def serve(connection):
    with connection, connection.makefile("rw") as stream:
        for line in stream:
            stream.write("echo " + line); stream.flush()
def accept():
    while True:
        threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
def ask(k):
    good = 0
    with socket.create_connection(server.getsockname()) as own, own.makefile("rw") as stream:
        at = 0
        while at < 200:
            if at == 100: open("up", "w").close()
            at += at != 100 or os.path.exists("go")
            stream.write(f"{k} {at}\n"); stream.flush()
            assert stream.readline() == f"echo {k} {at}\n"
    return at
with ThreadPoolExecutor(4) as pool:
    print(list(pool.map(ask, range(4))), file=open("out", "w"))
"#;
    python("threads", text);
}

#[test]
fn cpu_times_go_on_from_where_they_were() {
    python("cpu-times", include_str!("../guests/save_cpu.py"));
}

#[test]
fn perl_with_a_child_and_an_alarm() {
    let text = r#"
open(my $out, ">", "out");
my $alarms = 0;
$SIG{ALRM} = sub { $alarms++; alarm 1 };
alarm 1;
my $pid = open(my $child, "-|");
if (!$pid) {
    $| = 1;
    for (1..10) { print "$_\n" }
    open(my $up, ">", "up");
    until (-e "go") { select(undef, undef, undef, 0.01) }
    for (11..20) { print "$_\n" }
    exit 5;
}
my $sum = 0;
while (1) {
    my $line = <$child>;
    if (!defined $line) { next if $!{EINTR}; last }
    $sum += $line;
}
close $child;
while (!$alarms) { select(undef, undef, undef, 0.01) }
print $out "sum $sum status ", $? >> 8, "\n";
"#;
    if have("perl") {
        let words = &["perl", "it.pl"];
        Program { name: "perl", files: &[("it.pl", text)], before: "", words }.goes_on(ALL);
    }
}

#[test]
fn sqlite_in_the_middle_of_a_transaction() {
    if !have("sqlite3") {
        return;
    }
    let text = r#"
{
    echo 'create table t(a integer primary key, b text); begin;'
    for i in 1 2 3 4 5 6 7 8 9; do echo "insert into t(b) values('before $i');"; done
    echo '.shell touch up'
    until [ -e go ]; do sleep 0.01; done
    for i in 1 2 3 4 5 6 7 8 9; do echo "insert into t(b) values('after $i');"; done
    echo 'commit; select * from t; pragma integrity_check;'
} | sqlite3 db > out 2>&1
"#;
    script("sqlite", text);
}

#[test]
fn redis_with_data_and_clients() {
    if !(have("redis-server") && have("redis-cli")) {
        return;
    }
    // (Its port is the sandbox's own; natively, one of many is free.)
    let text = r#"
socket=$PWD/s
ask() { redis-cli -s "$socket" "$@"; }
redis-server --port 0 --unixsocket "$socket" --save '' --dir . > log 2>&1 & server=$!
until ask ping > /dev/null 2>&1; do sleep 0.02; done
ask debug populate 5000 > /dev/null
ask subscribe news > heard & subscriber=$!
until [ "$(ask pubsub numsub news | tail -1)" = 1 ]; do sleep 0.02; done
{
    for i in 1 2 3 4 5; do echo "publish news item$i"; done
    : > up
    until [ -e go ]; do echo ping; sleep 0.01; done
    for i in 6 7 8 9; do echo "publish news item$i"; done
} | ask > said
{ ask dbsize; ask get key:77; grep -c '^1$' said; } >> out
until grep -q item9 heard; do sleep 0.01; done
grep item heard >> out
kill $subscriber
ask shutdown nosave
wait $server
echo "ended $?" >> out
rm -r "$place"
"#;
    let files = &[("it.sh", text)];
    Program { name: "redis", files, before: "", words: &["bash", "it.sh"] }.goes_on(OFTEN);
}

#[test]
fn postgres_in_the_middle_of_a_transaction() {
    if !(have("postgres") && have("initdb") && have("psql")) {
        return;
    }
    if is_root() {
        return skip("postgres for root");
    }
    // (The path of a socket is short: sun_path in unix(7).)
    let text = r#"
place=$(mktemp -d)
postgres -D data -k "$place" -h '' -p 7 -c fsync=off > log 2>&1 & server=$!
ask() { psql -h "$place" -p 7 -U me postgres -qAt "$@"; }
until ask -c 'select 1' > /dev/null 2>&1; do sleep 0.05; done
ask >> out 2>&1 <<X
create table t(i int);
begin;
insert into t select generate_series(1, 1000);
\! touch up
\! until [ -e go ]; do sleep 0.01; done
select count(*) from t;
select pg_sleep(0.2);
commit;
select sum(i) from t;
X
kill -INT $server
wait $server
echo "ended $?" >> out
rm -r "$place"
"#;
    let before = "initdb -D data -U me -A trust --no-sync > initdb.log";
    let files = &[("it.sh", text)];
    Program { name: "postgres", files, before, words: &["bash", "it.sh"] }.goes_on(OFTEN);
}

#[test]
fn make_in_the_middle_of_compiling() {
    if !(have("make") && have("gcc")) {
        return;
    }
    let sources = r#"
for i in 1 2 3 4 5 6; do
    for j in 1 2 3 4 5 6 7 8 9; do
        echo "int f${i}_$j(int x) { int s = 0; for (int k = 0; k < x; k++) s += k * $j; return s; }"
    done > f$i.c
done
{
    for i in 1 2 3 4 5 6; do echo "int f${i}_7(int);"; done
    echo '#include <stdio.h>'
    echo 'int main(void) { printf("%d\n", f1_7(3)'
    for i in 2 3 4 5 6; do echo "+ f${i}_7($i)"; done
    echo '); }'
} > main.c
"#;
    let makefile = "
prog: f1.o f2.o f3.o f4.o f5.o f6.o main.o
\tgcc -o $@ $^
f3.o: f3.c
\t: > up; until [ -e go ]; do sleep 0.01; done; gcc -O2 -c $<
%.o: %.c
\tgcc -O2 -c $<
";
    let text = "make -j2 > log 2>&1; echo $? > out; ./prog >> out; sha256sum prog *.o >> out";
    let files = &[("Makefile", makefile), ("it.sh", text)];
    Program { name: "make", files, before: sources, words: &["bash", "it.sh"] }.goes_on(OFTEN);
}

#[test]
fn java_with_threads_and_much_garbage() {
    if !(have("java") && have("javac")) {
        return;
    }
    let text = r#"
import java.io.*;
import java.util.*;
import java.util.concurrent.*;
public class It {
    static long work(int k) {
        long sum = 0;
        Map<String, byte[]> kept = new HashMap<>();
        for (int j = 0; j < 2000; j++) { kept.put("k" + j * k, new byte[j % 512]); sum += kept.size(); }
        return sum;
    }
    public static void main(String[] words) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(3);
        List<Future<Long>> all = new ArrayList<>();
        for (int t = 1; t <= 3; t++) {
            int k = t;
            all.add(pool.submit(() -> {
                long sum = work(k);
                new File("up").createNewFile();
                while (!new File("go").exists()) work(k);
                return sum + work(k + 1);
            }));
        }
        try (PrintWriter out = new PrintWriter("out")) { for (Future<Long> it : all) out.println(it.get()); }
        pool.shutdown();
    }
}
"#;
    let before = "javac -J-XX:-UsePerfData It.java";
    // It maps a file in /tmp, and leaves the directory of that.
    let run = "java -Xmx24m -cp . It; s=$?; rmdir /tmp/hsperfdata_* 2> /dev/null; exit $s";
    let words = &["sh", "-c", run];
    Program { name: "java", files: &[("It.java", text)], before, words }.goes_on(OFTEN);
}

#[test]
fn node_with_connections_that_are_kept() {
    if !have("node") {
        return;
    }
    let text = r#"
const http = require('http'), fs = require('fs');
const server = http.createServer((ask, answer) => setTimeout(() => answer.end('re ' + ask.url), 1));
let connections = 0;
server.on('connection', () => connections++);
server.listen(0, '127.0.0.1', async () => {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 3 });
    const options = path => ({ port: server.address().port, path, agent });
    const get = path => new Promise((well, badly) => http.get(options(path), answer => {
        let text = '';
        answer.on('data', some => text += some);
        answer.on('end', () => well(text));
    }).on('error', badly));
    const loop = async k => {
        for (let i = 0; i < 40; i++) {
            if (await get(`/${k}/${i}`) !== `re /${k}/${i}`) throw 'wrong answer';
            if (i == 20) fs.writeFileSync('up', '');
            if (i == 20) while (!fs.existsSync('go')) await get('/more');
        }
        return k;
    };
    try { fs.writeFileSync('out', `${await Promise.all([1, 2, 3].map(loop))} ${connections}\n`); }
    catch (error) { fs.writeFileSync('out', `${error}\n`); }
    agent.destroy();
    server.close();
});
"#;
    let words = &["node", "it.js"];
    Program { name: "node", files: &[("it.js", text)], before: "", words }.goes_on(OFTEN);
}

#[test]
fn a_static_program_with_threads_and_a_timer() {
    let text = r#"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>
#include <unistd.h>
static volatile long ticks;
static void tick(int signal) { (void)signal; ticks++; }
static void *work(void *own) {
    fclose(fopen("up", "w"));
    while (access("go", F_OK)) usleep(1000);
    return own;
}
int main(void) {
    struct itimerval often = {{0, 10000}, {0, 10000}};
    signal(SIGALRM, tick);
    setitimer(ITIMER_REAL, &often, 0);
    pthread_t threads[4];
    for (long i = 0; i < 4; i++) pthread_create(&threads[i], 0, work, (void *)i);
    long sum = 0, before;
    for (int i = 0; i < 4; i++) { void *one; pthread_join(threads[i], &one); sum += (long)one; }
    for (before = ticks; ticks < before + 5;) pause();
    FILE *out = fopen("out", "w");
    fprintf(out, "sum %ld\n", sum);
    fclose(out);
    return 3;
}
"#;
    if have("gcc") {
        let before = "gcc -O1 -static -pthread -o it it.c";
        let files = &[("it.c", text)];
        Program { name: "static", files, before, words: &["./it"] }.goes_on(OFTEN);
    }
}

#[test]
fn vim_in_tmux_goes_on_on_another_terminal() {
    if !(have("tmux") && have("vim") && have("python3")) {
        return;
    }
    // Two terminals in turn, and somebody who types there.
    let text = r#"
import os, pty, select, subprocess, sys, time
program = sys.argv[1]
def terminal(*words):
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(program, [program, *words])
    return pid, fd
def until(fd, wanted):
    seen, end = b"", time.monotonic() + 30
    while not wanted(seen) and time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            try: seen += os.read(fd, 65536)
            except OSError: break
    return seen
def ends(pid, fd):
    seen = until(fd, lambda seen: False)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen
first, fd = terminal("run", "--id", "it", "--", "tmux", "new", "vim", "-u", "NONE", "-n", "text")
assert b"text" in until(fd, lambda seen: b"text" in seen and b"0:vim" in seen)
os.write(fd, b"ihello ")
assert b"hello" in until(fd, lambda seen: b"hello" in seen)
subprocess.run([program, "save", "it", "-o", "image"], check=True)
status, seen = ends(first, fd)
assert status == 137, (status, seen)
second, fd = terminal("restore", "image", "--id", "it")
# It draws everything again.
assert b"hello" in (seen := until(fd, lambda seen: b"hello" in seen and b"0:vim" in seen)), seen
os.write(fd, b"world\x1b")
seen = until(fd, lambda seen: b"world" in seen)
os.write(fd, b":wq\r")
status, seen = ends(second, fd)
print(status, open("text").read(), end="")
"#;
    let desk = Desk::new("tmux");
    let path = desk.workspace.write("type.py", text);
    let typed = run(desk.beside(&["python3", path.to_str().unwrap()]), b"", LIMIT);
    typed.success().expect_out("0 hello world\n");
    desk.is_clean();
}

#[test]
fn one_image_goes_on_twice_at_once() {
    let desk = Desk::new("twice-at-once");
    let text = ": > up; until [ -e go ]; do sleep 0.01; done; echo $$ >> out";
    desk.start(&["sh", "-c", text]);
    desk.sandbox(&["save", "it", "-o", "image"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    for id in ["it", "other"] {
        desk.sandbox(&["restore", "image", "--detach", "--id", id]).success();
    }
    desk.touch("go");
    for id in ["it", "other"] {
        desk.sandbox(&["wait", id]).success();
    }
    wait_for("both", || desk.workspace.read("out") == "2\n2\n");
    desk.is_clean();
}
