//! Landlock (landlock(7)): its scopes, and connections. Child side.

use libc::{c_int, c_uint};
use nix::errno::Errno;

/// struct landlock_ruleset_attr since ABI 6.
#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// The Landlock ABI of this kernel; 0 where it is missing or switched off.
pub fn abi() -> i32 {
    const CREATE_RULESET_VERSION: c_uint = 1;
    // SAFETY: a null attribute with this flag only asks for the version.
    let done =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, CREATE_RULESET_VERSION) };
    Errno::result(done).map_or(0, |abi| abi as i32)
}

/// Confines the caller and its descendants to signals and abstract unix sockets among themselves
/// (LANDLOCK_SCOPE_*, ABI 6). Needs no_new_privs.
pub fn scope_signals_and_abstract_sockets() -> Result<(), Errno> {
    const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
    const SCOPE_SIGNAL: u64 = 2;
    restrict(&RulesetAttr {
        handled_access_fs: 0,
        handled_access_net: 0,
        scoped: SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL,
    })
}

/// Refuses connect(2) of TCP to the caller and its descendants, whatever the address and the network namespace
/// (LANDLOCK_ACCESS_NET_CONNECT_TCP, ABI 4); it still ends a connection (hook_socket_connect in
/// security/landlock/net.c). Needs no_new_privs.
pub fn forbid_tcp_connect() -> Result<(), Errno> {
    const ACCESS_NET_CONNECT_TCP: u64 = 2;
    restrict(&RulesetAttr {
        handled_access_fs: 0,
        handled_access_net: ACCESS_NET_CONNECT_TCP,
        scoped: 0,
    })
}

/// Enforces a ruleset without rules.
fn restrict(attr: &RulesetAttr) -> Result<(), Errno> {
    // (A kernel takes a longer structure than its own if what it does not know is zero: ABI 4 has no `scoped`.)
    // SAFETY: a struct landlock_ruleset_attr of the size given.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            attr as *const RulesetAttr,
            size_of::<RulesetAttr>(),
            0,
        )
    };
    let fd = Errno::result(fd)? as c_int;
    // SAFETY: plain numbers.
    let done = Errno::result(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd, 0) });
    // SAFETY: `fd` is ours and not used again.
    unsafe { libc::close(fd) };
    done.map(drop)
}
