//! What a restored run may do, for people.

use std::path::Path;

use super::super::paths::quoted;
use super::super::{MountKind, Network, RunSpec, Why};

/// What a run may do beyond the run of a program in `cwd` without any flag, as flags: for people, who
/// decide by it whether they trust an image.
pub fn grants(spec: &RunSpec, cwd: Option<&Path>) -> Vec<String> {
    let mut grants = Vec::new();
    if spec.root.is_root() {
        grants.push("--root".to_owned());
    }
    for mount in &spec.mounts {
        match (&mount.why, &mount.kind) {
            (
                Why::Flag(flag) | Why::Derived(flag),
                MountKind::ReadOnly { .. } | MountKind::Writable { .. } | MountKind::Proc,
            ) => {
                grants.push(flag.clone());
            }
            // What a run hides shows.
            (Why::Derived(flag), MountKind::Overlay { .. }) => grants.push(flag.clone()),
            (Why::WorkingDirectory, _) if cwd != Some(&*mount.target) => {
                grants.push(format!("--workdir {}", quoted(&mount.target)));
            }
            _ => {}
        }
    }
    if spec.network == Network::Host {
        grants.push("--net host".to_owned());
    }
    grants.extend(spec.reach.allow.iter().map(|rule| format!("--allow-net {rule}")));
    grants.extend(spec.net_log.iter().map(|log| format!("--net-log {}", quoted(log))));
    grants.extend(spec.publish.iter().map(|wish| format!("--publish {wish}")));
    grants
}
