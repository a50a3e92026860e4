//! Where on this host a control group for a run can be made.
//!
//! Version 1: below the caller's own group of each hierarchy, if that may be written. Version 2:
//! below the nearest group, from the caller's own upwards, that hands the wanted controllers to its
//! children and may be written (systemd delegates such a subtree to each user); a group of the
//! caller's with processes in it cannot do so itself (cgroups(7), no internal processes). Going up
//! stops below a group with limits of its own: those were meant for the caller.
//!
//! Decides; makes nothing (that is the launch's work).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;

use super::Host;
use super::limits::{CgroupPlan, CpuFile, Limits, Means};

/// What a control group can count or limit for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Controller {
    Memory,
    Pids,
    /// Counting CPU time.
    Cpu,
}

const CONTROLLERS: [Controller; 3] = [Controller::Memory, Controller::Pids, Controller::Cpu];

impl Controller {
    /// As hierarchies of version 1 are called.
    fn first_name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Cpu => "cpuacct",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    One,
    Two,
}

/// For each controller, the group in which the run's own can be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cgroups(BTreeMap<Controller, (Version, PathBuf)>);

impl Cgroups {
    pub(crate) fn has(&self, controller: Controller) -> bool {
        self.0.contains_key(&controller)
    }

    /// The groups that `limits` have a use for.
    pub(crate) fn plan(&self, limits: &Limits) -> Vec<CgroupPlan> {
        let mut plans: BTreeMap<(Version, &Path), CgroupPlan> = BTreeMap::new();
        let of_group = |bound: Option<super::limits::Bound>| {
            bound.filter(|bound| bound.by == Means::Cgroup).map(|bound| bound.limit)
        };
        for (controller, (version, parent)) in &self.0 {
            let (settings, cpu_usage) = match controller {
                Controller::Memory => {
                    let Some(limit) = of_group(limits.memory) else { continue };
                    (memory_settings(*version, limit), None)
                }
                Controller::Pids => {
                    let Some(limit) = of_group(limits.pids) else { continue };
                    // One more for the sandbox's own init.
                    (vec![("pids.max", limit.saturating_add(1).to_string())], None)
                }
                Controller::Cpu => {
                    if limits.cpu_time.is_none() {
                        continue;
                    }
                    let file = match version {
                        Version::One => CpuFile::Usage,
                        Version::Two => CpuFile::Stat,
                    };
                    (Vec::new(), Some(file))
                }
            };
            let plan = plans.entry((*version, parent)).or_insert_with(|| CgroupPlan {
                parent: parent.clone(),
                settings: Vec::new(),
                cpu_usage: None,
                memory: false,
                pids: false,
            });
            plan.settings.extend(settings);
            plan.cpu_usage = plan.cpu_usage.or(cpu_usage);
            plan.memory |= *controller == Controller::Memory;
            plan.pids |= *controller == Controller::Pids;
        }
        plans.into_values().collect()
    }
}

/// Swap would let a guest have more than its limit, so it gets none; where swap is not accounted for,
/// the file is not there.
fn memory_settings(version: Version, limit: u64) -> Vec<(&'static str, String)> {
    match version {
        Version::One => vec![
            ("memory.limit_in_bytes", limit.to_string()),
            ("memory.memsw.limit_in_bytes", limit.to_string()),
        ],
        Version::Two => {
            vec![("memory.max", limit.to_string()), ("memory.swap.max", "0".to_owned())]
        }
    }
}

impl Host {
    /// Looks where control groups can be made.
    pub(crate) fn cgroups(&self) -> Cgroups {
        let text = |path: &str| std::fs::read_to_string(self.real(Path::new(path)));
        let own = text("/proc/self/cgroup").unwrap_or_default();
        let mounts = text("/proc/self/mountinfo").unwrap_or_default();
        let mut found = BTreeMap::new();
        for hierarchy in hierarchies(&own, &mounts) {
            for controller in CONTROLLERS {
                let parent = match hierarchy.version {
                    Version::One if hierarchy.has(controller.first_name()) => {
                        Some(hierarchy.group.clone()).filter(|group| self.may_fill(group))
                    }
                    Version::Two => self.delegated(&hierarchy, controller),
                    Version::One => None,
                };
                if let Some(parent) = parent {
                    found.entry(controller).or_insert((hierarchy.version, parent));
                }
            }
        }
        Cgroups(found)
    }

    /// Groups can be made in this one, and processes moved into them.
    fn may_fill(&self, group: &Path) -> bool {
        let writable = |path: &Path| nix::unistd::access(path, AccessFlags::W_OK).is_ok();
        let group = self.real(group);
        writable(&group) && writable(&group.join("cgroup.procs"))
    }

    fn delegated(&self, hierarchy: &Hierarchy, controller: Controller) -> Option<PathBuf> {
        let read = |group: &Path, file: &str| {
            std::fs::read_to_string(self.real(group).join(file)).unwrap_or_default()
        };
        let hands_down = |group: &Path| {
            // The CPU time of a group is counted in any case.
            controller == Controller::Cpu
                || read(group, "cgroup.subtree_control")
                    .split_whitespace()
                    .any(|name| name == controller.first_name())
        };
        let unlimited = |group: &Path| {
            ["memory.max", "memory.high", "pids.max", "cpu.max"].iter().all(|file| {
                matches!(read(group, file).split_whitespace().next(), None | Some("max"))
            })
        };
        for group in hierarchy.group.ancestors() {
            if !group.starts_with(&hierarchy.mounted) {
                return None;
            }
            if self.may_fill(group) && hands_down(group) {
                return Some(group.to_owned());
            }
            if !unlimited(group) {
                return None;
            }
        }
        None
    }
}

/// A mounted hierarchy, and where in it this process is.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    /// Comma-separated, of version 1.
    controllers: String,
    mounted: PathBuf,
    group: PathBuf,
}

impl Hierarchy {
    fn has(&self, name: &str) -> bool {
        self.controllers.split(',').any(|controller| controller == name)
    }
}

/// From the text of /proc/self/cgroup and /proc/self/mountinfo (cgroups(7), proc_pid_mountinfo(5)).
fn hierarchies(own: &str, mounts: &str) -> Vec<Hierarchy> {
    let mounted: Vec<(&str, &str, &str, &str)> = mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (root, point) = (before.next()?, before.next()?);
            let mut after = after.split(' ');
            let kind = after.next()?;
            Some((kind, root, point, after.nth(1)?))
        })
        .filter(|(kind, ..)| kind.starts_with("cgroup"))
        .collect();
    let place = |root: &str, point: &str, path: &str| {
        let below = Path::new(path).strip_prefix(root).ok()?;
        Some((PathBuf::from(point), Path::new(point).join(below).components().collect()))
    };
    own.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let second = controllers.is_empty();
            let first = controllers.split(',').next().unwrap_or_default();
            let (version, kind) =
                if second { (Version::Two, "cgroup2") } else { (Version::One, "cgroup") };
            let (_, root, point, _) = mounted.iter().find(|(found, _, _, options)| {
                *found == kind && (second || options.split(',').any(|option| option == first))
            })?;
            let (mounted, group) = place(root, point, path)?;
            Some(Hierarchy { version, controllers: controllers.to_owned(), mounted, group })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::limits::Bound;
    use crate::config::testing::TestHost;

    const FIRST: &str = "\
25 20 0:22 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
26 20 0:23 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct
27 20 0:24 / /sys/fs/cgroup/unified rw - cgroup2 none rw
";

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let own = "4:memory:/box/a\n2:cpu,cpuacct:/\n1:name=systemd:/x\n0::/user\n";
        let found = hierarchies(own, FIRST);
        let groups: Vec<_> = found.iter().map(|it| it.group.to_str().unwrap()).collect();
        assert_eq!(
            groups,
            [
                "/sys/fs/cgroup/memory/box/a",
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/unified/user"
            ]
        );
        assert!(found[1].has("cpuacct") && found[2].version == Version::Two);
        // A container sees its own group as the root of the mount.
        let mounts = "30 20 0:22 /box /cg rw - cgroup cgroup rw,memory\n";
        assert_eq!(hierarchies("4:memory:/box/a", mounts)[0].group, Path::new("/cg/a"));
        assert_eq!(hierarchies("4:memory:/other", mounts), []);
    }

    fn second(own: &str) -> TestHost {
        let host = TestHost::ordinary();
        host.write("/proc/self/cgroup", &format!("0::{own}\n"));
        host.write("/proc/self/mountinfo", "30 20 0:22 / /cg rw - cgroup2 none rw\n");
        host
    }

    #[test]
    fn the_nearest_group_that_hands_controllers_down_is_taken() {
        let host = second("/user/app/shell");
        for group in ["/cg/user", "/cg/user/app", "/cg/user/app/shell"] {
            host.write(&format!("{group}/cgroup.procs"), "");
        }
        host.write("/cg/user/cgroup.subtree_control", "cpu memory pids");
        host.write("/cg/user/app/cgroup.subtree_control", "pids");
        let cgroups = host.host.cgroups();
        let parent = |controller| cgroups.0.get(&controller).map(|(_, it)| it.to_str().unwrap());
        assert_eq!(parent(Controller::Memory), Some("/cg/user"));
        assert_eq!(parent(Controller::Pids), Some("/cg/user/app"));
        assert_eq!(parent(Controller::Cpu), Some("/cg/user/app/shell"));
        let bound = |limit| Some(Bound { limit, by: Means::Cgroup });
        let limits = Limits { memory: bound(64), pids: bound(9), ..Limits::default() };
        let plans = cgroups.plan(&limits);
        assert_eq!(plans.len(), 2);
        assert!(plans[0].parent.ends_with("user") && plans[0].memory);
        assert_eq!(plans[1].settings, [("pids.max", "10".to_owned())]);
    }

    #[test]
    fn a_limit_on_the_way_up_is_not_left_behind() {
        let host = second("/user/shell");
        host.write("/cg/user/cgroup.procs", "");
        host.write("/cg/user/cgroup.subtree_control", "memory");
        host.write("/cg/user/shell/memory.max", "1000");
        assert!(!host.host.cgroups().has(Controller::Memory));
        host.write("/cg/user/shell/memory.max", "max");
        assert!(host.host.cgroups().has(Controller::Memory));
    }
}
