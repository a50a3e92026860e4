//! What a saved run reached and where it was reached: read anew, by the rules of a command line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::super::error::refuse;
use super::super::publish;
use super::super::{ConfigError, Network, RunSpec, Walls, quoted};
use super::{SavedSpec, bytes, path};
use crate::sentry::net::publish::{MOST, parse};
use crate::sentry::net::{Policy, Rule};

/// Rules at most; a command line of more would be no sensible one.
const RULES_MAX: usize = 10_000;

/// Which hosts a run might reach (`--net allow`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedReach {
    /// As `--allow-net` is written.
    pub allow: Vec<String>,
    /// As `--deny-net` is.
    pub deny: Vec<String>,
    /// Where what was decided was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<ByteBuf>,
}

impl SavedReach {
    /// What is kept of a run.
    pub(super) fn of(spec: &RunSpec) -> Option<SavedReach> {
        let words = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect();
        (spec.network == Network::Allow).then(|| SavedReach {
            allow: words(&spec.reach.allow),
            deny: words(&spec.reach.deny),
            log: spec.net_log.as_ref().map(bytes),
        })
    }
}

impl SavedSpec {
    /// The network again, what may be reached from it, and where that is recorded.
    pub(super) fn network(&self) -> Result<(Network, Policy, Option<PathBuf>), ConfigError> {
        match (&self.reach, self.host_network) {
            (None, true) => Ok((Network::Host, Policy::default(), None)),
            (None, false) => Ok((Network::None, Policy::default(), None)),
            (Some(_), true) => Err(refuse!("cannot restore its network: no run has two")),
            (Some(reach), false) => {
                let (allow, deny) =
                    (rules("--allow-net", &reach.allow)?, rules("--deny-net", &reach.deny)?);
                let log = reach.log.as_ref().map(|log| path("its --net-log", log)).transpose()?;
                Ok((Network::Allow, Policy { allow, deny }, log))
            }
        }
    }

    /// The ports of the host that are to lead inside again.
    pub(super) fn published(&self, network: Network) -> Result<Vec<publish::Wish>, ConfigError> {
        if self.publish.len() > MOST {
            return Err(refuse!("cannot restore its published ports: there are too many"));
        }
        let mut wishes = Vec::new();
        for text in &self.publish {
            let parsed = parse(text);
            wishes.extend(parsed.map_err(|why| {
                refuse!("cannot restore its --publish {}: it {why}", quoted(text))
            })?);
        }
        publish::choose(&wishes, Walls::Namespaces, network)
    }
}

fn rules(flag: &str, texts: &[String]) -> Result<Vec<Rule>, ConfigError> {
    if texts.len() > RULES_MAX {
        return Err(refuse!("cannot restore its {flag}: there are too many rules"));
    }
    let rule = |text: &String| {
        Rule::parse(text)
            .map_err(|why| refuse!("cannot restore its {flag} {}: it {why}", quoted(text)))
    };
    texts.iter().map(rule).collect()
}
