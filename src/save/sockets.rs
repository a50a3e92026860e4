//! Sockets, as an image knows them.

use serde::{Deserialize, Serialize};

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// AF_*.
    pub family: i32,
}
