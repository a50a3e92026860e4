//! Pseudo-terminals, as an image knows them.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// A pseudo-terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    /// Its number in /dev/pts.
    pub index: u32,
    /// struct termios2, as bytes.
    pub settings: ByteBuf,
    /// struct winsize, as bytes.
    pub size: ByteBuf,
    /// TIOCGPTLCK.
    pub locked: bool,
    /// TIOCGPKT.
    pub packet: bool,
    /// TIOCGEXCL of the slave.
    pub exclusive: bool,
    /// Session whose controlling terminal it is, and its foreground group; 0: none.
    pub session: i32,
    /// See above.
    pub foreground: i32,
    /// Which of its ends there are.
    pub ends: Ends,
    /// What waits to be read from the slave: whole lines, each as one read gives it (none of it: the
    /// end of a file was typed).
    pub lines: Vec<ByteBuf>,
    /// Behind them: a line that is still being typed, or everything that waits where input does not
    /// come in lines.
    pub input: ByteBuf,
    /// What waits to be read from the master.
    pub output: ByteBuf,
    /// What has stopped its output.
    pub stopped: Option<Stopper>,
}

/// The ends of a pseudo-terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ends {
    /// Master and slave are open.
    #[default]
    Both,
    /// The slave was never opened.
    Unopened,
    /// The slave was open, and is not any more.
    Closed,
    /// The master is not open any more: the slave is hung up.
    HungUp,
}

/// What has stopped the output of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stopper {
    /// The key for it (Ctrl-S).
    Key,
    /// A call (TCXONC).
    Call,
}

/// The terminal of the run's program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnTerminal {
    /// Settings, size and so on; its index in /dev/pts is 0. Output is not in it: it was shown by the run
    /// that was saved.
    pub pty: Pty,
    /// Which of the standard streams it took the place of.
    pub streams: [bool; 3],
}
