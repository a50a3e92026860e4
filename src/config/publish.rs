//! Which ports of the host lead inside (`--publish`).

use super::error::refuse;
use super::{ConfigError, Network, Walls};
use crate::sentry::net::RESOLVERS;
use crate::sentry::net::publish::MOST;
pub(super) use crate::sentry::net::publish::Wish;

/// The ports of a run with these walls that lives in `network`, each once, in the order in which they were wished for.
///
/// # Errors
/// There are none to publish in such a run, or one port of the host is to lead to two inside.
pub fn choose(wishes: &[Wish], walls: Walls, network: Network) -> Result<Vec<Wish>, ConfigError> {
    let Some(first) = wishes.first() else { return Ok(Vec::new()) };
    if network == Network::Host {
        return Err(refuse!(
            "cannot use --publish {first} with --net host: what the program listens at is the host's already; leave one \
             of them out"
        ));
    }
    if walls == Walls::Landlock {
        return Err(refuse!(
            "cannot use --publish {first} with --walls landlock: a port of the program's own takes a network namespace; \
             leave one of them out"
        ));
    }
    let resolver = RESOLVERS[0].port();
    let is_resolver = |it: &&Wish| network == Network::Allow && it.guest == resolver;
    if let Some(wish) = wishes.iter().find(is_resolver) {
        return Err(refuse!(
            "cannot use --publish {wish} with --net allow, where the sandbox itself answers at port {resolver}; let the \
             program listen at another"
        ));
    }
    let mut chosen: Vec<Wish> = Vec::new();
    for wish in wishes {
        let is_same = |it: &&Wish| {
            wish.host.port() != 0 && (it.host, it.transport) == (wish.host, wish.transport)
        };
        match chosen.iter().find(is_same) {
            Some(known) if known.guest == wish.guest => {}
            Some(known) => {
                return Err(refuse!(
                    "cannot use --publish {wish} together with --publish {known}: a port of the host leads to one place; \
                     name another"
                ));
            }
            None => chosen.push(*wish),
        }
    }
    match chosen.len() > MOST {
        true => Err(refuse!("cannot publish more than {MOST} ports; name fewer with --publish")),
        false => Ok(chosen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentry::net::publish::parse;

    fn chosen(wishes: &[&str], network: Network) -> Result<Vec<String>, String> {
        let wishes: Vec<Wish> = wishes.iter().flat_map(|wish| parse(wish).unwrap()).collect();
        let chosen =
            choose(&wishes, Walls::Namespaces, network).map_err(|error| error.to_string())?;
        Ok(chosen.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_port_of_the_host_leads_to_one_place() {
        let twice = chosen(&["8080:80", "127.0.0.1:8080:80", "8080:80/udp"], Network::None);
        assert_eq!(twice.unwrap(), ["127.0.0.1:8080:80/tcp", "127.0.0.1:8080:80/udp"]);
        assert_eq!(chosen(&["80", "80"], Network::Allow).unwrap().len(), 2);
        let error = chosen(&["8080:80", "8080:81"], Network::None).unwrap_err();
        assert!(error.contains("8080:81/tcp together with --publish 127.0.0.1:8080:80"), "{error}");
        let error = chosen(&["8080:80"], Network::Host).unwrap_err();
        assert!(error.contains("--net host"), "{error}");
        let error = chosen(&["5353:53/udp"], Network::Allow).unwrap_err();
        assert!(error.contains("answers at port 53"), "{error}");
        assert_eq!(chosen(&["5353:53/udp"], Network::None).unwrap().len(), 1);
        let error = chosen(&["1-512:1-512", "2000:2000"], Network::None).unwrap_err();
        assert!(error.contains("512"), "{error}");
        assert_eq!(chosen(&[], Network::Host).unwrap(), [""; 0]);
    }
}
