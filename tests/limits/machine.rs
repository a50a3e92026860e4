//! `--cpus`: what the guest may use and what it is shown are the same.

use crate::common::{Workspace, have};

#[test]
fn every_view_of_the_processors_agrees() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("cpus");
    let script = "\
import os
print(len(os.sched_getaffinity(0)), os.cpu_count() and len(os.sched_getaffinity(0)))
print(open('/proc/cpuinfo').read().count('processor\\t:'))
print(sum(1 for line in open('/proc/stat') if line[:3] == 'cpu' and line[3].isdigit()))
cpus = sorted(os.sched_getaffinity(0))
for name in ('online', 'possible', 'present'):
    print(open('/sys/devices/system/cpu/' + name).read().strip() == str(cpus[0]))
";
    let outcome = workspace.inside_with(&["--cpus", "1"], &["python3", "-c", script]);
    outcome.success().expect_out("1 1\n1\n1\nTrue\nTrue\nTrue\n");
    workspace.inside_with(&["--cpus", "1"], &["nproc"]).success().expect_out("1\n");
}

#[test]
fn the_set_of_processors_cannot_be_left() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("affinity");
    let script = "\
import os
before = os.sched_getaffinity(0)
os.sched_setaffinity(0, range(64))
assert os.sched_getaffinity(0) == before
other = max(before) + 1
try:
    os.sched_setaffinity(0, [other])
    print('left')
except OSError as error:
    print(error.errno)
pid = os.fork()
if pid == 0:
    os.read(0, 1)
    os._exit(0)
os.sched_setaffinity(pid, range(64))
assert os.sched_getaffinity(pid) == before
try:
    os.sched_setaffinity(99999, before)
except OSError as error:
    print(error.errno)
";
    let outcome = workspace.inside_with(&["--cpus", "1"], &["python3", "-c", script]);
    outcome.success().expect_out("22\n3\n");
}

#[test]
fn memory_of_the_machine_is_what_the_guest_may_have() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("meminfo");
    let script = "\
import os
info = dict(line.split(':') for line in open('/proc/meminfo'))
print(info['MemTotal'].split()[0])
assert int(info['MemAvailable'].split()[0]) <= 300 << 10
print(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 10)
print(len(open('/proc/loadavg').read().split()))
";
    let outcome = workspace.inside_with(&["--memory", "300m"], &["python3", "-c", script]);
    outcome.success().expect_out("307200\n307200\n5\n");
}
