//! What guests read in /etc/resolv.conf where the sentry looks names up for them.

use crate::sentry::net::RESOLVERS;

/// resolv.conf(5) with the sentry's resolver in place of those that `host` names; what else that says about names
/// stays.
pub(super) fn text(host: &str) -> String {
    let kept = host.lines().filter(|line| {
        let first = line.split_whitespace().next();
        matches!(first, Some("search" | "domain" | "options"))
    });
    let kept: String = kept.map(|line| format!("{line}\n")).collect();
    format!(
        "# Names are looked up by the sandbox, and only those that --allow-net allows.\nnameserver {}\n{kept}",
        RESOLVERS[0].ip()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_resolvers_are_others() {
        let text = text("# x\nnameserver 192.0.2.1\nsearch a.example b\noptions ndots:2\n");
        assert!(text.ends_with("nameserver 127.0.0.53\nsearch a.example b\noptions ndots:2\n"));
        assert!(!text.contains("192.0.2.1"));
    }
}
