//! Sockets, as an image knows them.
//!
//! Addresses are as bind(2) takes them, the family in front. A socket is named by the number of its
//! inode at the time of the save, which tells sockets of one image apart and means nothing else.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

pub mod options;

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// Which.
    pub id: u64,
    /// AF_*.
    pub family: i32,
    /// SOCK_*.
    pub kind: i32,
    /// IPPROTO_* or what the family knows.
    pub protocol: i32,
    /// What setsockopt(2) set, as far as it differs from what a new socket has.
    pub options: Vec<SocketOption>,
    /// Its classic filter: instructions, 8 bytes each; empty: none.
    pub filter: ByteBuf,
    /// Which directions shutdown(2) has closed: 1 receiving, 2 sending.
    pub shutdown: u8,
    /// What its family knows.
    pub detail: Detail,
}

/// An option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// SOL_*.
    pub level: i32,
    /// SO_* and so on.
    pub name: i32,
    /// As getsockopt(2) gave it.
    pub value: ByteBuf,
}

/// What a socket's family knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Detail {
    /// unix(7).
    Unix(Unix),
    /// tcp(7).
    Tcp(Tcp),
    /// udp(7).
    Udp(Udp),
    /// netlink(7).
    Netlink(Netlink),
}

/// A unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unix {
    /// Its name: a path as it was given, or an abstract one, a zero in front.
    pub name: Option<ByteBuf>,
    /// What has become of the path.
    pub file: Option<BoundFile>,
    /// Whom it is connected to.
    pub state: UnixState,
    /// What waits to be received.
    pub queue: Vec<Message>,
    /// SO_PEERCRED, of the guest's numbers: process, user, group.
    pub peer: Option<(i32, u32, u32)>,
    /// Of one whose other end is not in the image, and which has no name to be accepted by: what that is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<ByteBuf>,
}

/// The file of a unix socket's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundFile {
    /// Which: device and inode.
    pub inode: (u64, u64),
    /// Where it is now, as the guest names it; `None`: it was removed.
    pub path: Option<ByteBuf>,
    /// st_mode.
    pub mode: u32,
    /// Owner and group, as the guest numbers them.
    pub owner: (u32, u32),
}

/// Whom a unix socket is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnixState {
    /// To nobody.
    Unconnected,
    /// It listens.
    Listening {
        /// listen(2).
        backlog: u32,
        /// Connections that nobody has accepted: the sockets that made them, in order; 0: it was closed.
        pending: Vec<u64>,
    },
    /// To this one.
    Connected(u64),
    /// Nobody has accepted its connection yet.
    Pending,
    /// The one that it was connected to has been closed.
    Abandoned,
    /// The same, before it had read all that was sent to it; or it cannot be kept, because it is outside.
    Broken,
}

impl UnixState {
    /// Whether what it was connected to is not there any more.
    pub fn is_over(&self) -> bool {
        matches!(self, UnixState::Abandoned | UnixState::Broken)
    }
}

/// What waits to be received: a message, or of a stream a piece.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its bytes.
    pub bytes: ByteBuf,
    /// The sender's address, if it had one.
    pub from: Option<ByteBuf>,
    /// Descriptors: indices in [`crate::save::state::Sandbox::files`].
    pub rights: Vec<u32>,
    /// Credentials, of the guest's numbers: process, user, group.
    pub credentials: Option<(i32, u32, u32)>,
}

/// A TCP socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tcp {
    /// Its own address, if it has a port.
    pub local: Option<ByteBuf>,
    /// Whom it is connected to.
    pub remote: Option<ByteBuf>,
    /// How far its connection is.
    pub state: TcpState,
    /// It belonged to the host's network (`--net allow`), or was under way there by way of the sentry.
    #[serde(default, skip_serializing_if = "is_false")]
    pub outside: bool,
}

fn is_false(it: &bool) -> bool {
    !it
}

/// How far a TCP connection is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TcpState {
    /// There never was one.
    Closed,
    /// It listens: backlog.
    Listening(u32),
    /// connect(2) is under way.
    Connecting,
    /// Nobody has accepted it yet: whether the sender has closed its direction.
    Pending(bool),
    /// There is one.
    Connected(Box<Connection>),
    /// It is over: what was not read of it, and whether it was broken off (or cannot be kept, because
    /// its other side is outside, or the sandbox itself).
    Ended(ByteBuf, bool),
}

/// One side of a TCP connection. Sequence numbers leave the ends of the directions out of account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// What was received and not read.
    pub received: ByteBuf,
    /// What was written and the other side has not received.
    pub sent: ByteBuf,
    /// Number of the byte behind `received`.
    pub receive_next: u32,
    /// Number of the first byte of `sent`.
    pub send_next: u32,
    /// It has closed its direction.
    pub sent_end: bool,
    /// The other side has closed its.
    pub received_end: bool,
    /// Largest segment that the other side takes.
    pub segment: u32,
    /// Window scales, of what is sent and of what is received.
    pub scales: Option<(u8, u8)>,
    /// Selective acknowledgements are allowed.
    pub selective: bool,
    /// The clock of its timestamps.
    pub timestamp: Option<u32>,
    /// struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    pub window: [u32; 5],
    /// The other side is one of the image's sockets; else it was closed.
    pub inside: bool,
}

/// A UDP socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Udp {
    /// Its own address, if it has a port.
    pub local: Option<ByteBuf>,
    /// Whom it is connected to.
    pub remote: Option<ByteBuf>,
    /// What waits to be received.
    pub queue: Vec<Message>,
}

/// A netlink socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netlink {
    /// Its port; 0: none yet.
    pub port: u32,
    /// Whom it is connected to: port and groups.
    pub remote: (u32, u32),
    /// The groups that it has joined.
    pub groups: Vec<u32>,
}

/// Which side of which connection: address and port of its own, then of the other side. Addresses of
/// IPv4 as IPv6 maps them.
pub type Ends = (Endpoint, Endpoint);

/// Address and port.
pub type Endpoint = ([u8; 16], u16);

/// Address and port of a struct sockaddr_in or sockaddr_in6.
pub fn endpoint(address: &[u8]) -> Option<Endpoint> {
    let family = i32::from(u16::from_ne_bytes([*address.first()?, *address.get(1)?]));
    let port = u16::from_be_bytes([*address.get(2)?, *address.get(3)?]);
    let mut bytes = [0; 16];
    match family {
        libc::AF_INET => {
            // All zero means any address to both.
            let of_v4 = address.get(4..8)?;
            if of_v4 != [0; 4] {
                bytes[10..12].fill(0xff);
                bytes[12..].copy_from_slice(of_v4);
            }
        }
        libc::AF_INET6 => bytes.copy_from_slice(address.get(8..24)?),
        _ => return None,
    }
    Some((bytes, port))
}

impl Tcp {
    /// Which connection it is a side of.
    pub fn ends(&self) -> Option<Ends> {
        Some((endpoint(self.local.as_ref()?)?, endpoint(self.remote.as_ref()?)?))
    }
}
