//! Facts about the machine that figures mean nothing without.

use std::process::Command;

use serde::Serialize;

/// Where and when the figures were taken; a fact that the machine does not tell is empty.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Machine {
    kernel: String,
    architecture: &'static str,
    cpu: String,
    cores: usize,
    memory_kib: u64,
    /// UTC, as date(1) gives it.
    date: String,
    /// The effective user: sandboxes take other roads for root.
    user: String,
    /// Runnable tasks of the last minute on average, before the bench was done.
    load: String,
}

impl Machine {
    /// Asks the machine.
    pub(super) fn describe() -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let said = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output();
            output.map_or_else(
                |_| String::new(),
                |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            )
        };
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            architecture: std::env::consts::ARCH,
            cpu: field(&read("/proc/cpuinfo"), "model name").to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_kib: kibibytes(&read("/proc/meminfo"), "MemTotal").unwrap_or(0),
            date: said("date", &["-u", "+%FT%TZ"]),
            user: said("id", &["-un"]),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }

    /// One line for the head of the table.
    pub(super) fn line(&self) -> String {
        format!(
            "{} · {} x {} · Linux {} · load {} · as {}",
            self.date, self.cores, self.cpu, self.kernel, self.load, self.user
        )
    }
}

/// The value after `name` and a colon in a file of /proc; empty where there is none.
pub(super) fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let value = |line: &'a str| {
        let (key, value) = line.split_once(':')?;
        (key.trim_end() == name).then(|| value.trim())
    };
    text.lines().find_map(value).unwrap_or_default()
}

/// A field of the form `1234 kB`.
pub(super) fn kibibytes(text: &str, name: &str) -> Option<u64> {
    field(text, name).strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_files_are_found_by_their_whole_name() {
        let text = "Pss_Dirty:  7 kB\nPss:       123 kB\nmodel name\t: Some CPU: fast\n";
        assert_eq!(kibibytes(text, "Pss"), Some(123));
        assert_eq!(field(text, "model name"), "Some CPU: fast");
        assert_eq!(kibibytes(text, "Rss"), None);
    }
}
