//! `sandbox learn`: a run in which is learned what a program needs, and the profile that comes of it.
//!
//! Owns where the profile goes, and what is said. What is in it is decided in `config::learn`.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::options::RunOptions;
use super::record::Destination;
use super::run::{Ending, attempt, control, end_in_foreground, hide_stores};
use super::{OWN_ERROR, fail, profile};
use crate::config::learn::{Learning, Lesson, Seen, prepare};
use crate::config::profile::{Request, Value, built_in, check, gather, own_directory};
use crate::config::{Host, Options, RunSpec, Voice, quoted};
use crate::control::state::base_path;
use crate::runtime::Finished;

/// `sandbox learn`
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    options: RunOptions,
    /// Write the profile to FILE, instead of ~/.config/sandbox/PROG.toml
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Add to the profile that is there
    #[arg(long, conflicts_with = "force")]
    merge: bool,
    /// Replace the file that is there
    #[arg(long)]
    force: bool,
    /// Keep what the program changed, for sandbox diff and commit
    #[arg(long)]
    keep: bool,
    /// Name the sandbox, for the verbs that take an ID
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Say on stderr what was decided and why
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// The program and its arguments
    #[arg(value_name = "PROG", trailing_var_arg = true)]
    argv: Vec<OsString>,
}

/// The file that the profile goes to.
struct Target {
    path: PathBuf,
    /// What it is called on a command line.
    word: String,
    /// One is there.
    exists: bool,
}

/// Runs the verb. Returns the exit status.
pub(super) fn run(command: Command) -> i32 {
    match begin(command) {
        Ok(status) => status,
        Err(sentence) => fail(sentence),
    }
}

fn begin(command: Command) -> Result<i32, String> {
    let Command { options, output, merge, force, keep, id, verbose, quiet, argv } = command;
    if argv.is_empty() {
        return Err("no program to run: write sandbox learn [OPTIONS] -- PROG ARGS...".to_owned());
    }
    let mut host = Host::current();
    hide_stores(&mut host);
    let target = Target::find(output, &argv[0], &host)?;
    if target.exists && !merge && !force {
        return Err(format!(
            "cannot write the profile {}: it is there; --merge adds to it, --force replaces it, and -o names \
             another file",
            quoted(&target.path)
        ));
    }
    let merged = (target.exists && merge).then_some(target.path.as_path());
    let request = request(options, id, verbose, quiet, merged);
    let gathered =
        gather(request.clone(), &mut host, base_path).map_err(|error| error.to_string())?;
    let voice = gathered.options.voice;
    if let Some(sentence) = profile::left_out(&gathered).filter(|_| voice != Voice::Quiet) {
        let _ = writeln!(std::io::stderr(), "sandbox: {sentence}");
    }
    let learning = prepare(&request, &gathered, &argv, &host, &target.path, merged);
    let learning = learning.map_err(|error| error.to_string())?;
    let destination = Destination::find("-o", target.path.clone())?;
    let options = learning.options.clone();
    let mut control = control(&options)?;
    let mut ending = Ending { learns: true, keeps: keep, ..Ending::default() };
    let done = attempt(&options, &mut host, &mut ending, control.as_mut());
    let done = done.and_then(|(spec, finished)| {
        host.look_anew();
        let text = Author { learning, target: &target, merged, host: &host, options: &options };
        text.end(&destination, spec, finished, ending).map_err(|sentence| (OWN_ERROR, sentence))
    });
    Ok(end_in_foreground(control, done))
}

/// What the command line says of the run.
fn request(
    mut options: RunOptions,
    id: Option<String>,
    verbose: bool,
    quiet: bool,
    merged: Option<&Path>,
) -> Request {
    options.add("id", id.map(|id| Value::Word(id.into())));
    options.add("verbose", verbose.then_some(Value::Switch(true)));
    options.add("quiet", quiet.then_some(Value::Switch(true)));
    let mut request = options.request;
    request.profiles.extend(merged.map(OsString::from));
    request
}

impl Target {
    fn find(output: Option<PathBuf>, program: &OsString, host: &Host) -> Result<Target, String> {
        let own = own_directory(host);
        let path = match (output, &own) {
            (Some(path), _) => path,
            (None, Some(own)) => {
                std::fs::create_dir_all(own).map_err(|error| {
                    format!(
                        "cannot make {}, where your profiles are: {error}; name a file with -o",
                        quoted(own)
                    )
                })?;
                own.join(format!("{}.toml", name_of(Path::new(program))))
            }
            (None, None) => {
                return Err(
                    "cannot tell where your profiles are, since there is no home directory; name \
                            a file with -o"
                        .to_owned(),
                );
            }
        };
        let exists = path.symlink_metadata().is_ok();
        // Where the path leads through links that is what is written.
        let path = match path.canonicalize() {
            Ok(path) => path,
            Err(_) => {
                let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
                let parent = parent.unwrap_or(Path::new(".")).canonicalize().map_err(|error| {
                    format!(
                        "cannot write -o {}: {error}; name a file in a directory that you may write to",
                        quoted(&path)
                    )
                })?;
                let name = path.file_name().ok_or_else(|| {
                    format!("cannot write -o {}: it names no file; name one", quoted(&path))
                })?;
                parent.join(name)
            }
        };
        let own = own.and_then(|own| own.canonicalize().ok());
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".toml"));
        let word = match name.filter(|_| own.as_deref() == path.parent()) {
            Some(name) => name.to_owned(),
            None => quoted(&path),
        };
        Ok(Target { path, word, exists })
    }
}

/// The name of a profile for a program; not that of one which comes with sandbox, which it would add to.
fn name_of(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let sound = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = name.trim_start_matches('.').chars().map(sound).take(48).collect();
    match name.trim_start_matches('-') {
        "" => "learned".to_owned(),
        name if built_in().any(|known| known == name) => format!("{name}-learned"),
        name => name.to_owned(),
    }
}

/// Writes the profile.
struct Author<'a> {
    learning: Learning,
    target: &'a Target,
    merged: Option<&'a Path>,
    host: &'a Host,
    options: &'a Options,
}

impl Author<'_> {
    /// The run has ended.
    fn end(
        self,
        destination: &Destination,
        spec: RunSpec,
        mut finished: Finished,
        ending: Ending<'_>,
    ) -> Result<(RunSpec, Finished), String> {
        let Author { learning, target, merged, host, options } = self;
        let (Some(report), Some(measured)) = (&ending.report, &finished.measured) else {
            return Err("nothing was learned: the list of files is lost".to_owned());
        };
        let seen = Seen { spec: &spec, report, measured, status: finished.status };
        let lesson =
            learning.conclude(&seen, host, &target.path).map_err(|error| error.to_string())?;
        let text = match merged {
            None => lesson.text(),
            Some(file) => {
                let old = std::fs::read_to_string(file);
                let merged =
                    old.map_err(|error| error.to_string()).and_then(|it| lesson.merged(&it));
                merged.map_err(|error| format!("cannot add to {}: {error}", quoted(file)))?
            }
        };
        check(&text, &target.path, host).map_err(|error| error.to_string())?;
        // What others may write to is no profile; a file that is there is not shown to more than before.
        let mode = target.path.metadata().ok().filter(|_| target.exists);
        let mode = mode.map_or(0o644, |it| it.permissions().mode() & 0o755);
        destination.write_with(mode, target.exists, |mut file| file.write_all(text.as_bytes()))?;
        finished.notes.extend(said(&lesson, target, options, &finished, ending.dropped));
        Ok((spec, finished))
    }
}

/// What is said at the end.
fn said(
    lesson: &Lesson,
    target: &Target,
    options: &Options,
    finished: &Finished,
    dropped: bool,
) -> Vec<String> {
    let argv: Vec<String> = options.argv.iter().map(quoted).collect();
    let mut said = vec![format!(
        "learned {}: sandbox --profile {} -- {} runs it with just that",
        quoted(&target.path),
        target.word,
        argv.join(" ")
    )];
    let left = lesson.left_out();
    if !left.is_empty() {
        said.push(format!("not granted, and named at the end of the profile: {}", left.join(", ")));
    }
    if finished.status != 0 {
        said.push(format!(
            "the program ended with status {}: what it would have needed afterwards is not known; sandbox \
             learn --merge adds it",
            finished.status
        ));
    }
    if dropped {
        said.push(
            "what it changed is dropped; sandbox learn --keep keeps that for sandbox diff and commit"
                .to_owned(),
        );
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_named_after_its_program() {
        let name = |word: &str| name_of(Path::new(word));
        assert_eq!(name("/usr/bin/make"), "make");
        assert_eq!(name("./my tool+.sh"), "my-tool-.sh");
        assert_eq!(name("default"), "default-learned");
        assert_eq!(name(".."), "learned");
        assert_eq!(name(".hidden"), "hidden");
    }
}
