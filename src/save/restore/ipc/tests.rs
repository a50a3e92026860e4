//! Objects of a namespace that are captured, made again in another and captured once more.

use super::*;
use crate::save::capture::adjustments::{Asked, ask};
use crate::save::capture::collector::{Collector, Content, Subject};
use crate::save::capture::ipc::capture;
use crate::save::error::SaveError;
use crate::save::hand::Hand;
use crate::save::ipc::Ipc;
use crate::save::restore::seed::tests::plant;
use crate::save::testing::{empty, isolate, with_maker};

/// A process that plays a guest, in an IPC namespace of its own.
fn with_guest<T>(work: impl FnOnce(&mut Hand) -> T) -> T {
    let (mut child, mut hand, _courier) = plant();
    isolate(&mut hand);
    let result = work(&mut hand);
    child.kill().unwrap();
    child.wait().unwrap();
    result
}

fn taken(hand: &mut Hand) -> Result<(Ipc, Collector), SaveError> {
    let mut collector = Collector::default();
    let pid = hand.tid();
    let mut subject = Subject::new(pid, 7, hand);
    let (ipc, noticed) = capture(&mut subject, &mut collector)?;
    // Those who wait for messages are the business of others.
    assert_eq!(noticed.len(), ipc.queues.iter().filter(|it| &it.name[..] == b"noticed").count());
    if let Some(noticed) = noticed.first() {
        assert_eq!((noticed.notify, noticed.signal, noticed.pid), (libc::SIGEV_SIGNAL, 10, pid));
    }
    Ok((ipc, collector))
}

/// Mounts the queues, if the kernel has any; the host may have no place for them.
fn mount_queues(hand: &mut Hand) -> bool {
    let mut table = hand.table();
    let [kind, target] = [&b"mqueue"[..], b"/dev/mqueue"].map(|it| table.string(it).address);
    let [memory, above] = [&b"tmpfs"[..], b"/dev"].map(|it| table.string(it).address);
    table.call(libc::SYS_mount, [memory, above, memory, 0, 0]);
    table.call(libc::SYS_mkdir, [target, 0o755]);
    let mount = table.attempt(libc::SYS_mount, [kind, target, kind, 0, 0]);
    let done = hand.run(&table).unwrap();
    let mounted = done.result(mount).is_ok();
    if !mounted {
        println!("skipped: no POSIX message queues");
    }
    mounted
}

fn message(hand: &mut Hand, queue: u64, number: i64, text: &[u8]) {
    let bytes = [&number.to_ne_bytes()[..], text].concat();
    hand.call_with(libc::SYS_msgsnd, &bytes, |at| [queue, at, text.len() as u64, 0]).unwrap();
}

/// Some of everything. Numbers are pushed up by what comes and goes before.
fn furnish(hand: &mut Hand) {
    for _ in 0..3 {
        let gone = hand.call(libc::SYS_semget, [0, 1, CREATE]).unwrap();
        hand.call(libc::SYS_semctl, [gone, 0, libc::IPC_RMID as u64]).unwrap();
    }
    let set = hand.call(libc::SYS_semget, [0x1234, 3, CREATE | 0o640]).unwrap();
    let values: Vec<u8> = [7u16, 0, 32767].iter().flat_map(|it| it.to_ne_bytes()).collect();
    hand.call_with(libc::SYS_semctl, &values, |at| [set, 0, SETALL, at]).unwrap();

    let gone = hand.call(libc::SYS_msgget, [0, CREATE | 0o600]).unwrap();
    let queue = hand.call(libc::SYS_msgget, [0xffff_fff0, CREATE | 0o622 | 0o400]).unwrap();
    hand.call(libc::SYS_msgctl, [gone, libc::IPC_RMID as u64]).unwrap();
    message(hand, queue, 3, b"first");
    message(hand, queue, 1, b"");
    message(hand, queue, i64::MAX, &[9; 8000]);

    let memory = hand.call(libc::SYS_shmget, [0x77, 10_000, CREATE | 0o600]).unwrap();
    let at = hand.call(libc::SYS_shmat, [memory, 0, 0]).unwrap();
    crate::save::hand::write(hand.tid(), at + 5000, b"in memory").unwrap();
    hand.call(libc::SYS_shmdt, [at]).unwrap();

    if mount_queues(hand) {
        let mut table = hand.table();
        let name = table.string(b"mail");
        let limits: Vec<u8> =
            [0i64, 4, 100, 0, 0, 0, 0, 0].iter().flat_map(|it| it.to_ne_bytes()).collect();
        let limits = table.data(&limits);
        let flags = (libc::O_CREAT | libc::O_RDWR) as u64;
        let open = [name.address, flags, 0o640, limits.address];
        let open = table.call(libc::SYS_mq_open, open);
        let mail = hand.run(&table).unwrap().result(open).unwrap();
        for (priority, text) in [(1, "low"), (5, "high"), (1, "low again"), (5, "high again")] {
            let send = |at| [mail, at, text.len() as u64, priority, 0];
            hand.call_with(libc::SYS_mq_timedsend, text.as_bytes(), send).unwrap();
        }
    }
}

#[test]
fn everything_of_a_namespace_is_made_again_with_its_numbers() {
    let (ipc, mut collector) = with_guest(|hand| {
        furnish(hand);
        let (first, collector) = taken(hand).unwrap();
        // It is all still there, in the same order.
        assert_eq!(taken(hand).unwrap().0, first);
        (first, collector)
    });
    assert_eq!(ipc.semaphores[0].values, [7, 0, 32767]);
    assert_ne!(ipc.semaphores[0].permissions.id & 0x7fff, 0);
    assert_eq!(ipc.messages[0].messages.len(), 3);
    assert_eq!(ipc.memory[0].size, 10_000);
    if let Some(queue) = ipc.queues.first() {
        let texts: Vec<&[u8]> = queue.messages.iter().map(|(_, text)| &text[..]).collect();
        assert_eq!(texts, [&b"high"[..], b"high again", b"low", b"low again"]);
    }
    let mut sandbox = empty();
    (sandbox.ipc, sandbox.shared) = (ipc, std::mem::take(&mut collector.shared));
    let again = with_maker(&sandbox, |maker| {
        isolate(maker.hand);
        cover_settings(maker.hand);
        let queues = mount_queues(maker.hand);
        assert_eq!(queues, !sandbox.ipc.queues.is_empty());
        restore(maker).unwrap();
        let Content::File { object, file, size } = &collector.contents[0] else { panic!() };
        let Sink::Mapping { pid, address } = maker.sinks[object] else { panic!() };
        let mut content = vec![0; *size as usize];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut content, 0).unwrap();
        crate::save::hand::write(pid, address, &content).unwrap();
        let (again, collector) = taken(maker.hand).unwrap();
        let Content::File { file, .. } = &collector.contents[0] else { panic!() };
        let mut there = [0; 9];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut there, 5000).unwrap();
        assert_eq!(&there, b"in memory");
        again
    });
    assert_eq!(again, sandbox.ipc);
}

/// As a sandbox has them: /proc/sys is read-only.
fn cover_settings(hand: &mut Hand) {
    let read_only = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
    let kept = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    for flags in [libc::MS_BIND, read_only | kept] {
        let mount = |at| [at, at, 0, flags, 0];
        hand.call_path(libc::SYS_mount, b"/proc/sys", mount).unwrap();
    }
    let write = (libc::O_WRONLY) as u64;
    let open = |at| [HERE, at, write];
    let denied = hand.call_path(libc::SYS_openat, b"/proc/sys/kernel/shm_next_id", open);
    assert_eq!(denied.unwrap_err().errno(), Some(nix::errno::Errno::EROFS));
}

#[test]
fn nothing_is_nothing() {
    let (ipc, collector) = with_guest(|hand| taken(hand).unwrap());
    assert!(ipc.is_empty() && collector.contents.is_empty());
}

#[test]
fn adjustments_and_notifications_are_found() {
    with_guest(|hand| {
        let set = hand.call(libc::SYS_semget, [0, 1, CREATE | 0o600]).unwrap();
        let asked = Asked { guest_pid: 7, threads: 1, who: "it" };
        // (SETVAL, which makes it forget adjustments.)
        const SETVAL: u64 = 16;
        for value in [0u16, 1, 32767] {
            for adjustment in [0, 1, -1, 5, -5, 32767, -32767, -32768] {
                hand.call(libc::SYS_semctl, [set, 0, SETVAL, value.into()]).unwrap();
                let operations = crate::save::ipc::adjusting(0, value, adjustment);
                if adjustment != 0 {
                    let count = operations.len() as u64 / 6;
                    hand.call_with(libc::SYS_semop, &operations, |at| [set, at, count]).unwrap();
                }
                let before = taken(hand).unwrap().0;
                assert_eq!(before.semaphores[0].values, [value]);
                let found = ask(hand, &before.semaphores, &asked).unwrap();
                let expected = (adjustment != 0).then_some((0, 0, adjustment));
                assert_eq!(found, Vec::from_iter(expected), "{value}");
                assert_eq!(taken(hand).unwrap().0, before);
            }
        }
        hand.call(libc::SYS_semctl, [set, 0, libc::IPC_RMID as u64]).unwrap();
        if mount_queues(hand) {
            let flags = (libc::O_CREAT | libc::O_RDWR) as u64;
            let open = |at| [at, flags, 0o600, 0];
            let queue = hand.call_path(libc::SYS_mq_open, b"noticed", open).unwrap();
            // SIGEV_SIGNAL
            let event = [5u64, libc::SIGUSR1 as u64, 0, 0, 0, 0, 0, 0];
            let event: Vec<u8> = event.iter().flat_map(|it| it.to_ne_bytes()).collect();
            hand.call_with(libc::SYS_mq_notify, &event, |at| [queue, at]).unwrap();
            assert_eq!(taken(hand).unwrap().0.queues.len(), 1);
        }
    });
}
