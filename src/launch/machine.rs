//! Files that describe a machine with fewer processors (`--cpus`): generated once, mounted over the
//! host's.
//!
//! What changes while a guest runs (`/proc/stat`, `/proc/meminfo`, `/proc/loadavg`) cannot be a file
//! and is the sentry's.

/// Paths, and what is found there when only `cpus` are.
pub(super) fn files(cpus: &[usize], cpuinfo: &str) -> Vec<(&'static str, String)> {
    let list = ranges(cpus);
    vec![
        ("/proc/cpuinfo", filter_cpuinfo(cpuinfo, cpus)),
        ("/sys/devices/system/cpu/online", list.clone()),
        ("/sys/devices/system/cpu/possible", list.clone()),
        ("/sys/devices/system/cpu/present", list),
    ]
}

/// As the kernel prints a list of processors: `0-2,5` and a newline (cpuset(7), list format).
fn ranges(cpus: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => parts.push((*cpu, *cpu)),
        }
    }
    let part = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",") + "\n"
}

/// The blocks of these processors. A block ends with an empty line; one without a `processor` line is
/// about the machine as a whole.
fn filter_cpuinfo(text: &str, cpus: &[usize]) -> String {
    let number = |block: &str| {
        let line = block.lines().find(|line| line.starts_with("processor"))?;
        line.split(':').nth(1)?.trim().parse::<usize>().ok()
    };
    text.split_inclusive("\n\n")
        .filter(|block| number(block).is_none_or(|number| cpus.contains(&number)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_chosen_processors_are_described() {
        let text = "processor\t: 0\nmodel\t: x\n\nprocessor\t: 1\nmodel\t: x\n\nHardware: y\n";
        let found = files(&[1], text);
        assert_eq!(found[0].1, "processor\t: 1\nmodel\t: x\n\nHardware: y\n");
        assert_eq!(found[1].1, "1\n");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8\n");
    }
}
