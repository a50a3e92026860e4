//! Who is measured: each contender wraps a command line in its own.
//!
//! Owns the command lines of the peers. A contender is tried once before anything is measured;
//! one that is missing or does not work here is left out, with a sentence that says so.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::process::{Failure, Output, Runner};
use super::workshop::Workshop;

/// How long a contender may take to run `echo`.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// One way to run a command.
#[derive(Debug, Clone)]
pub(super) struct Contender {
    /// The table's word for it.
    pub(super) name: &'static str,
    /// What stands before the command.
    prefix: Vec<OsString>,
    /// What stands between the flags and the command; without one it takes no flags.
    separator: Option<OsString>,
    /// Takes many times as long as the others, and gets fewer rounds and smaller inputs.
    pub(super) slow: bool,
}

impl Contender {
    /// A command line that takes no flags.
    pub(super) fn new(name: &'static str, prefix: &[&str]) -> Contender {
        let prefix = prefix.iter().map(OsString::from).collect();
        Contender { name, prefix, separator: None, slow: false }
    }

    /// A command line that takes flags of a workload, and `--` behind them.
    pub(super) fn with_flags(name: &'static str, prefix: &[&str]) -> Contender {
        Contender { separator: Some("--".into()), ..Contender::new(name, prefix) }
    }

    /// bwrap(1), with the walls and the view of a default run of ours in `directory`.
    pub(super) fn bwrap(directory: &str) -> Contender {
        Contender::new("bwrap", &bwrap(directory))
    }

    fn slow(mut self) -> Contender {
        self.slow = true;
        self
    }

    /// The command line of a verb of ours.
    pub(super) fn verb(&self, words: &[&str]) -> Vec<OsString> {
        self.prefix.iter().cloned().chain(words.iter().map(OsString::from)).collect()
    }

    /// The command line that runs `argv` under this contender.
    pub(super) fn wrap(&self, argv: &[OsString]) -> Vec<OsString> {
        self.wrap_with(&[], argv)
    }

    /// The same with flags, for one that takes them.
    pub(super) fn wrap_with(&self, flags: &[&str], argv: &[OsString]) -> Vec<OsString> {
        let mut line = self.prefix.clone();
        if let Some(separator) = &self.separator {
            line.extend(flags.iter().map(OsString::from));
            line.push(separator.clone());
        }
        line.extend_from_slice(argv);
        line
    }
}

/// Those that work here, and why the others do not.
#[derive(Debug)]
pub(super) struct Contenders {
    present: Vec<Contender>,
    /// `skipped: no runsc (why)`, one sentence each.
    pub(super) skipped: Vec<String>,
}

impl Contenders {
    /// Tries every contender with a command whose output is known.
    ///
    /// # Errors
    /// `Interrupted` only.
    pub(super) fn probe(
        ours: &Path,
        workshop: &Workshop,
        runner: &Runner,
    ) -> Result<Contenders, &'static str> {
        Contenders::those_of(candidates(ours, workshop), workshop, runner)
    }

    /// Those of the candidates that work: of several variants the first that does is taken, and the
    /// first one's complaint is told when none does.
    ///
    /// # Errors
    /// `Interrupted` only.
    pub(super) fn those_of(
        candidates: Vec<(&'static str, Vec<Contender>)>,
        workshop: &Workshop,
        runner: &Runner,
    ) -> Result<Contenders, &'static str> {
        let mut contenders = Contenders { present: Vec::new(), skipped: Vec::new() };
        for (name, variants) in candidates {
            let mut reason = String::new();
            for contender in variants {
                match works(&contender, workshop.path(), runner) {
                    Ok(()) => {
                        contenders.present.push(contender);
                        reason.clear();
                        break;
                    }
                    Err(Failure::Interrupted) => return Err("interrupted"),
                    Err(Failure::Failed(why)) if reason.is_empty() => reason = why,
                    Err(Failure::Failed(_)) => {}
                }
            }
            if !reason.is_empty() {
                contenders.skipped.push(format!("skipped: no {name} ({reason})"));
            }
        }
        Ok(contenders)
    }

    /// Those of the names that work here, in the order of the names.
    pub(super) fn select(&self, names: &[&str]) -> Vec<&Contender> {
        names.iter().filter_map(|name| self.get(name)).collect()
    }

    /// The contender of that name, if it works here.
    pub(super) fn get(&self, name: &str) -> Option<&Contender> {
        self.present.iter().find(|contender| contender.name == name)
    }

    /// All that work here, with the command lines they put before a command.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.present.iter().map(|contender| {
            let words: Vec<_> =
                contender.prefix.iter().map(|word| word.to_string_lossy()).collect();
            (contender.name, words.join(" "))
        })
    }
}

/// The walls and the view of a default run of ours in `here`, except for the time namespace, which bwrap does not know.
fn bwrap(here: &str) -> [&str; 21] {
    [
        "bwrap",
        "--unshare-all",
        "--unshare-user",
        "--die-with-parent",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--tmpfs",
        "/run",
        "--bind",
        here,
        here,
        "--chdir",
        here,
        "--",
    ]
}

/// All contenders by name, with their variants.
fn candidates(ours: &Path, workshop: &Workshop) -> Vec<(&'static str, Vec<Contender>)> {
    let ours = ours.to_string_lossy();
    let floor = workshop.file("floor");
    let here = workshop.path().to_string_lossy();
    let bwrap = bwrap(&here);
    let with_time =
        |unshare: &[&str]| Contender::new("bwrap+time", &[unshare, bwrap.as_slice()].concat());
    vec![
        ("native", vec![Contender::new("native", &[])]),
        ("floor", vec![Contender::new("floor", &[&floor.to_string_lossy()])]),
        (
            "floor+session",
            vec![Contender::new("floor+session", &[&floor.to_string_lossy(), "--session"])],
        ),
        ("bwrap", vec![Contender::bwrap(&here)]),
        (
            "bwrap+time",
            vec![
                with_time(&["unshare", "--time", "--"]),
                with_time(&["unshare", "--user", "--map-current-user", "--time", "--"]),
            ],
        ),
        ("ours", vec![Contender::with_flags("ours", &[&ours])]),
        (
            "trapped",
            vec![Contender::new("trapped", &[&ours, "--time", "+0s", "--user", "root", "--"])],
        ),
        ("libfaketime", vec![Contender::new("libfaketime", &["faketime", "-f", "+0s"])]),
        (
            "strace",
            vec![Contender::new("strace", &["strace", "-f", "-o", "/dev/null", "--"]).slow()],
        ),
        (
            "runsc",
            vec![
                Contender::new("runsc", &["runsc", "--network=none", "do"]).slow(),
                Contender::new("runsc", &["runsc", "--rootless", "--network=none", "do"]).slow(),
            ],
        ),
    ]
}

/// An exit status of 0 proves little: the guest must have said what it was asked to say.
fn works(contender: &Contender, directory: &Path, runner: &Runner) -> Result<(), Failure> {
    let script = ["sh", "-c", "echo $((6 * 7))"].map(OsString::from);
    let finished = runner.run(&contender.wrap(&script), directory, PROBE_LIMIT, Output::Keep)?;
    match finished.stdout.trim() {
        "42" => Ok(()),
        other => Err(Failure::Failed(format!("it ran a guest and said {other:?}, not 42"))),
    }
}
