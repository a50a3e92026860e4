//! What guests read in /etc/resolv.conf where the sentry looks names up for them.

use crate::sentry::net::RESOLVERS;

/// resolv.conf(5) with the sentry's resolver in place of those that `host` names; what else that says about names
/// stays. `patient`: a person may have to answer first, so that programs are told to wait (as long as they take from here:
/// RES_MAXRETRANS and RES_MAXRETRY of resolv.h).
pub(super) fn text(host: &str, patient: bool) -> String {
    let kept = host.lines().filter(|line| {
        let first = line.split_whitespace().next();
        matches!(first, Some("search" | "domain" | "options"))
    });
    let kept: String = kept.map(|line| format!("{line}\n")).collect();
    let patience = if patient { "options timeout:30 attempts:5\n" } else { "" };
    format!(
        "# Names are looked up by the sandbox, and only those that --allow-net allows.\nnameserver {}\n{kept}{patience}",
        RESOLVERS[0].ip()
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_the_resolvers_are_others() {
        let host = "# x\nnameserver 192.0.2.1\nsearch a.example b\noptions ndots:2\n";
        let text = super::text(host, false);
        assert!(text.ends_with("nameserver 127.0.0.53\nsearch a.example b\noptions ndots:2\n"));
        assert!(!text.contains("192.0.2.1"));
        assert!(super::text(host, true).ends_with("ndots:2\noptions timeout:30 attempts:5\n"));
    }
}
