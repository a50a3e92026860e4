//! Pseudo-terminals that are captured, made again elsewhere and captured once more.

use super::*;
use crate::save::capture::collector::{Collector, Subject};
use crate::save::capture::ptys::{capture_descriptor, finish as capture_all};
use crate::save::error::SaveError;
use crate::save::ptys::Stopper;
use crate::save::restore::seed::tests::plant;
use crate::save::state::FileKind;
use crate::save::testing::{empty, isolate, with_maker};

const HERE: u64 = libc::AT_FDCWD as i64 as u64;

/// As a sandbox has them: terminals of its own.
fn mount_terminals(hand: &mut Hand) {
    let mut table = hand.table();
    let [memory, dev] = [&b"tmpfs"[..], b"/dev"].map(|it| table.string(it).address);
    let [kind, pts] = [&b"devpts"[..], b"/dev/pts"].map(|it| table.string(it).address);
    let options = table.string(b"newinstance,ptmxmode=0666,mode=0620").address;
    let [link, ptmx] = [&b"pts/ptmx"[..], b"/dev/ptmx"].map(|it| table.string(it).address);
    table.call(libc::SYS_mount, [memory, dev, memory, 0, 0]);
    table.call(libc::SYS_mkdir, [pts, 0o755]);
    table.call(libc::SYS_mount, [kind, pts, kind, 0, options]);
    table.call(libc::SYS_symlink, [link, ptmx]);
    hand.run(&table).unwrap();
}

/// A process that plays a guest, with terminals of its own.
struct Guest {
    child: std::process::Child,
    hand: Hand,
}

impl Guest {
    fn new() -> Guest {
        let (child, mut hand, _courier) = plant();
        isolate(&mut hand);
        mount_terminals(&mut hand);
        Guest { child, hand }
    }

    fn master(&mut self) -> i32 {
        let open = |at| [HERE, at, (libc::O_RDWR | libc::O_NOCTTY) as u64];
        let fd = self.hand.call_path(libc::SYS_openat, b"/dev/ptmx", open).unwrap();
        let unlock = |at| [fd, libc::TIOCSPTLCK, at];
        self.hand.call_with(libc::SYS_ioctl, &[0; 4], unlock).unwrap();
        fd as i32
    }

    fn slave(&mut self, index: u32) -> i32 {
        let path = format!("/dev/pts/{index}");
        let open = |at| [HERE, at, (libc::O_RDWR | libc::O_NOCTTY) as u64];
        self.hand.call_path(libc::SYS_openat, path.as_bytes(), open).unwrap() as i32
    }

    fn close(&mut self, fd: i32) {
        self.hand.call(libc::SYS_close, [fd as u64]).unwrap();
    }

    fn write(&mut self, fd: i32, bytes: &[u8]) {
        let write = |at| [fd as u64, at, bytes.len() as u64];
        let (count, _) = self.hand.call_with(libc::SYS_write, bytes, write).unwrap();
        assert_eq!(count, bytes.len() as u64);
    }

    fn read(&mut self, fd: i32) -> Vec<u8> {
        let read = |at| [fd as u64, at, 4096];
        let (count, bytes) = self.hand.call_with(libc::SYS_read, &[0; 4096], read).unwrap();
        bytes[..count as usize].to_vec()
    }

    /// Changes flags of settings: (which word, clear, set).
    fn set(&mut self, fd: i32, flags: &[(usize, u32, u32)]) {
        let copy = pty_state::copy_of(self.hand.tid(), fd).unwrap();
        let mut settings = pty_state::settings(copy.as_fd()).unwrap();
        for (word, clear, set) in flags {
            let word = &mut settings[word * 4..word * 4 + 4];
            let value = u32::from_ne_bytes(word.try_into().unwrap()) & !clear | set;
            word.copy_from_slice(&value.to_ne_bytes());
        }
        pty_state::set_settings(copy.as_fd(), &settings).unwrap();
    }

    fn taken(&mut self, fds: &[i32]) -> Result<(Vec<FileKind>, Vec<Pty>), SaveError> {
        taken(&mut self.hand, fds)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn taken(hand: &mut Hand, fds: &[i32]) -> Result<(Vec<FileKind>, Vec<Pty>), SaveError> {
    let mut collector = Collector::default();
    let mut subject = Subject::new(hand.tid(), 7, hand);
    let each = fds.iter().map(|fd| capture_descriptor(&mut subject, *fd, None, &mut collector));
    let kinds = each.collect::<Result<_, _>>()?;
    capture_all(&mut collector)?;
    Ok((kinds, collector.terminals))
}

/// What a new sandbox has of these, its descriptors held by its maker.
fn made_again(kinds: &[FileKind], terminals: &[Pty]) -> Vec<Pty> {
    let mut sandbox = empty();
    sandbox.terminals = terminals.to_vec();
    with_maker(&sandbox, |maker| {
        isolate(maker.hand);
        mount_terminals(maker.hand);
        let ptys = restore(maker).unwrap();
        let mut fds = Vec::new();
        for kind in kinds {
            let file = match kind {
                FileKind::PtyMaster(slot) => {
                    ptys.master(*slot).unwrap().try_clone_to_owned().unwrap()
                }
                FileKind::PtySlave(slot) => {
                    ptys.open_slave(maker, *slot, libc::O_RDWR as u32).unwrap()
                }
                kind => panic!("{kind:?}"),
            };
            fds.push(maker.give(file).unwrap());
        }
        drop(ptys);
        for finish in std::mem::take(&mut maker.finishes) {
            finish(maker).unwrap();
        }
        let (again, made) = taken(maker.hand, &fds).unwrap();
        assert_eq!(again, kinds);
        made
    })
}

fn compare(guest: &mut Guest, fds: &[i32]) -> Vec<Pty> {
    let (kinds, first) = guest.taken(fds).unwrap();
    // Taking it has changed nothing.
    assert_eq!(guest.taken(fds).unwrap().1, first);
    assert_eq!(made_again(&kinds, &first), first);
    first
}

#[test]
fn lines_and_what_is_still_typed_wait_on() {
    let mut guest = Guest::new();
    let (first, master) = (guest.master(), guest.master());
    guest.close(first);
    let slave = guest.slave(1);
    guest.set(slave, &[(3, libc::ECHO, 0)]);
    guest.write(master, b"one\nwith \x16\x04 in it\nended\x04\x04half a li");
    guest.write(slave, b"out\nput");
    let size = [24u8, 0, 80, 0, 0, 0, 0, 0];
    guest
        .hand
        .call_with(libc::SYS_ioctl, &size, |at| [master as u64, libc::TIOCSWINSZ, at])
        .unwrap();
    guest.hand.call(libc::SYS_ioctl, [slave as u64, libc::TIOCEXCL]).unwrap();
    let found = compare(&mut guest, &[master, slave]);
    let pty = &found[0];
    assert_eq!((pty.index, pty.ends, pty.exclusive, pty.stopped), (1, Ends::Both, true, None));
    let lines: Vec<&[u8]> = pty.lines.iter().map(|line| &line[..]).collect();
    assert_eq!(lines, [&b"one\n"[..], b"with \x04 in it\n", b"ended", b""]);
    assert_eq!(pty.input, b"half a li");
    assert_eq!(pty.output, b"out\r\nput");
    // And a guest reads on as if nothing had been.
    assert_eq!(guest.read(slave), b"one\n");
    guest.write(master, b"ne\n");
    assert_eq!(guest.read(slave), b"with \x04 in it\n");
    assert_eq!(guest.read(slave), b"ended");
    assert_eq!(guest.read(slave), b"");
    assert_eq!(guest.read(slave), b"half a line\n");
    assert_eq!(guest.read(master), b"out\r\nput");
}

#[test]
fn every_byte_passes_where_input_is_raw() {
    let mut guest = Guest::new();
    let master = guest.master();
    let slave = guest.slave(0);
    guest.set(slave, &[(0, !0, 0), (3, libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN, 0)]);
    let bytes: Vec<u8> = (0..3000).map(|it| (it % 250) as u8).collect();
    guest.write(master, &bytes);
    let found = compare(&mut guest, &[slave, master]);
    assert_eq!(found[0].input, bytes);
    assert_eq!(guest.read(slave), bytes);
}

#[test]
fn stopped_output_stays_stopped() {
    for (stop, stopper) in [(true, Stopper::Key), (false, Stopper::Call)] {
        let mut guest = Guest::new();
        let master = guest.master();
        let slave = guest.slave(0);
        guest.set(slave, &[(3, libc::ECHO, 0)]);
        guest.write(slave, b"before");
        if stop {
            guest.write(master, b"x\n\x13");
        } else {
            guest.write(master, b"x\n");
            guest.hand.call(libc::SYS_ioctl, [slave as u64, libc::TCXONC, 0]).unwrap();
        }
        let found = compare(&mut guest, &[master, slave]);
        assert_eq!(found[0].stopped, Some(stopper));
        assert_eq!((&found[0].output[..], &found[0].lines[0][..]), (&b"before"[..], &b"x\n"[..]));
    }
}

#[test]
fn ends_that_are_not_open_are_told_apart() {
    let mut guest = Guest::new();
    let fds = [0, 1, 2].map(|_| guest.master());
    let slaves = [1, 2].map(|index| guest.slave(index));
    guest.close(slaves[0]);
    guest.close(fds[2]);
    let found = compare(&mut guest, &[fds[0], fds[1], slaves[1]]);
    let ends: Vec<_> = found.iter().map(|pty| (pty.index, pty.ends)).collect();
    assert_eq!(ends, [(0, Ends::Unopened), (1, Ends::Closed), (2, Ends::HungUp)]);
}

#[test]
fn a_master_in_packet_mode_is_asked_when_it_has_read_its_notices() {
    let mut guest = Guest::new();
    let master = guest.master();
    let slave = guest.slave(0);
    guest
        .hand
        .call_with(libc::SYS_ioctl, &1i32.to_ne_bytes(), |at| [master as u64, libc::TIOCPKT, at])
        .unwrap();
    guest.write(slave, b"some");
    let found = compare(&mut guest, &[master, slave]);
    assert!(found[0].packet);
    assert_eq!(found[0].output, b"some");
    assert_eq!(guest.read(master), b"\0some");
    guest.hand.call(libc::SYS_ioctl, [slave as u64, libc::TCFLSH, libc::TCIFLUSH as u64]).unwrap();
    let error = guest.taken(&[master, slave]).unwrap_err().to_string();
    assert!(error.contains("packet mode"), "{error}");
}

#[test]
fn sessions_and_foreground_groups_are_known() {
    let mut guest = Guest::new();
    let master = guest.master();
    let slave = guest.slave(0);
    // (The plant leads the group of the test, or none.)
    if guest.hand.call(libc::SYS_setsid, []).is_err() {
        println!("skipped: it leads a group");
        return;
    }
    acquire_terminal(&mut guest.hand, slave).unwrap();
    let own = guest.hand.tid();
    set_foreground(&mut guest.hand, slave, own).unwrap();
    let (_, found) = guest.taken(&[master, slave]).unwrap();
    assert_eq!((found[0].session, found[0].foreground), (own, own));
}

#[test]
fn terminals_without_a_master_inside_have_hung_up_for_an_image() {
    let mut guest = Guest::new();
    let master = guest.master();
    let slave = guest.slave(0);
    let held = pty_state::copy_of(guest.hand.tid(), master).unwrap();
    guest.close(master);
    let before = pty_state::settings(held.as_fd()).unwrap();
    let (_, found) = guest.taken(&[slave]).unwrap();
    assert_eq!(found.iter().map(|it| it.ends).collect::<Vec<_>>(), [Ends::HungUp]);
    // Who goes on has noticed nothing.
    assert_eq!(pty_state::settings(held.as_fd()).unwrap(), before);
}

#[test]
fn the_terminal_of_a_run_keeps_settings_and_input() {
    use crate::save::capture::ptys::capture_own;
    let mut guest = Guest::new();
    let master = guest.master();
    let slave = guest.slave(0);
    guest.set(slave, &[(3, libc::ECHO, 0)]);
    guest.write(master, b"typed ahead\nmore");
    let held = pty_state::copy_of(guest.hand.tid(), master).unwrap();
    let own = capture_own(held.as_fd(), [true; 3], 7).unwrap();
    assert_eq!((&own.pty.lines[0][..], &own.pty.input[..]), (&b"typed ahead\n"[..], &b"more"[..]));
    let other = guest.master();
    let other_slave = guest.slave(1);
    let new = pty_state::copy_of(guest.hand.tid(), other).unwrap();
    restore_own(new.as_fd(), &own).unwrap();
    assert_eq!(pty_state::settings(new.as_fd()).unwrap()[..], own.pty.settings[..]);
    for slave in [slave, other_slave] {
        assert_eq!(guest.read(slave), b"typed ahead\n");
    }
    let mut sandbox = empty();
    assert!(require_terminal(&sandbox, false).is_ok());
    sandbox.terminal = Some(own);
    assert!(require_terminal(&sandbox, true).is_ok());
    let error = require_terminal(&sandbox, false).unwrap_err().to_string();
    assert!(error.contains("terminal"), "{error}");
}
