//! /dev/kmsg inside, with `--kmsg`: the sandbox's own log, one record a read.

mod common;

use common::{Workspace, have};

/// Reads records without waiting, waits for another one, and does what readers should not do.
const READER: &str = "\
import errno, os, select
def open_log(flags=os.O_RDONLY | os.O_NONBLOCK):
    return os.open('/dev/kmsg', flags)
def records(fd):
    while True:
        try:
            yield os.read(fd, 8192)
        except BlockingIOError:
            return
fd = open_log()
# The start of the program is logged while it runs already.
found = []
while not any(b': python3' in record for record in found):
    found += records(fd)
numbers = []
for record in found:
    head, text = record.split(b';', 1)
    level, number, micros, flags = head.split(b',')
    assert level in (b'4', b'6') and int(micros) >= 0 and flags == b'-', record
    assert text.endswith(b'\\n') and text.count(b'\\n') == 1, record
    numbers.append(int(number))
assert numbers == list(range(len(numbers))), numbers
assert b'sandbox' in found[0], found

poll = select.poll()
poll.register(fd, select.POLLIN)
assert poll.poll(0) == []
try: os.unshare(os.CLONE_NEWUSER)
except (AttributeError, PermissionError): os.system('unshare -U true 2>/dev/null')
assert poll.poll(10000)[0][1] & select.POLLIN
assert b'refused' in os.read(fd, 8192)

# A second reader has all of it once more, and waits if it did not say otherwise.
again = open_log(os.O_RDONLY | os.O_CLOEXEC)
assert os.get_blocking(again) and not os.get_inheritable(again)
assert [os.read(again, 8192) for _ in found] == found

# Only so many, and a place is free again when one is closed.
many = []
try:
    while len(many) < 1000: many.append(open_log())
except OSError as error:
    assert error.errno == errno.ENFILE, error
assert len(many) == 62, len(many)
os.close(many.pop())
while True:
    try:
        many.append(open_log())
        break
    except OSError: pass

# It is for reading; whoever writes has read all.
for flags in (os.O_WRONLY, os.O_RDWR):
    try:
        open_log(flags)
        assert False, 'opened for writing'
    except FileNotFoundError: pass
os.write(fd, b'text')
poll.poll(10000)
assert os.read(fd, 8192) == b''
print('read')
";

#[test]
fn records_are_read_one_by_one_and_waited_for() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("kmsg");
    for options in [&["--kmsg"][..], &["--cpus", "1"], &["--kmsg", "--without", "wait-killable"]] {
        let outcome = workspace.inside_with(options, &["python3", "-c", READER]);
        outcome.success().expect_out("read\n");
    }
}

#[test]
fn dmesg_shows_it_and_follows_it() {
    if !have("dmesg") {
        return;
    }
    let workspace = Workspace::new("kmsg-dmesg");
    // The start of the program is logged while it runs already.
    let inside = |script| {
        let script = format!("until dmesg --syslog | grep -q ': sh$'; do :; done; {script}");
        workspace.inside_with(&["--kmsg"], &["sh", "-c", &script])
    };
    inside("dmesg > a; dmesg --syslog > b; cmp a b && head -n 1 a").out_has("started");
    let json = inside("dmesg --json");
    let json: serde_json::Value = serde_json::from_str(&json.success().out()).expect("JSON");
    assert_eq!(json["dmesg"][0]["pri"], 6);
    assert!(json["dmesg"][0]["msg"].as_str().expect("text").ends_with(" started"), "{json}");
    inside("dmesg -C && dmesg").success().expect_out("");
    let script = "dmesg -w > out & until grep -q started out; do sleep 0.01; done; \
                  unshare -U true 2>/dev/null; until grep -q refused out; do sleep 0.01; done; \
                  kill $!; wait $!; echo followed";
    inside(script).success().expect_out("followed\n");
}

#[test]
fn a_run_without_the_option_has_none() {
    let workspace = Workspace::new("no-kmsg");
    workspace.inside_sh("cat /dev/kmsg").expect_status(1).err_has("No such file");
    let script = "test ! -e /dev/kmsg && test -n \"$(dmesg)\" && echo by syslog";
    if have("dmesg") {
        workspace.inside_sh(script).success().expect_out("by syslog\n");
    }
}

/// What O_NONBLOCK means for files of other kinds.
const OTHERS: &str = "\
import errno, os
def tried(path, flags):
    try:
        fd = os.open(path, flags)
    except OSError as error:
        return errno.errorcode[error.errno]
    try:
        return os.read(fd, 4) if not flags & os.O_WRONLY else 'open'
    except OSError as error:
        return errno.errorcode[error.errno]
    finally:
        os.close(fd)
os.mkfifo('fifo')
open('file', 'w').write('text')
os.symlink('/dev/null', 'link')
for path in ('fifo', 'file', 'link', '.', 'none', '/dev/null', '/dev/zero', '/dev/tty', '/proc/self/comm'):
    for more in (0, os.O_CLOEXEC, os.O_NOCTTY, os.O_DIRECTORY, os.O_NOFOLLOW):
        print(path, more, tried(path, os.O_RDONLY | os.O_NONBLOCK | more))
print(tried('fifo', os.O_WRONLY | os.O_NONBLOCK))
fd = os.open('fifo', os.O_RDONLY | os.O_NONBLOCK)
print(tried('fifo', os.O_WRONLY | os.O_NONBLOCK), tried('fifo', os.O_RDONLY | os.O_NONBLOCK))
";

#[test]
fn other_opens_are_as_without_it() {
    if !have("python3") {
        return;
    }
    let (native, inside) = (Workspace::new("opens-native"), Workspace::new("opens-inside"));
    let native = native.native(&["python3", "-c", OTHERS]);
    let expected = native.success().out();
    let inside = inside.inside_with(&["--kmsg"], &["python3", "-c", OTHERS]);
    inside.success().expect_out(&expected);
}
