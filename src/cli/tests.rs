//! The command line as a whole: words in, verbs and errors out.

use clap::Parser;

use super::*;
use crate::config::profile::KEYS;

fn parse(words: &[&str]) -> Result<CommandLine, String> {
    let words = std::iter::once("sandbox").chain(words.iter().copied());
    CommandLine::try_parse_from(words).map_err(|error| one_line(&error))
}

fn argv(words: &[&str]) -> Vec<String> {
    let argv = parse(words).unwrap().run.argv;
    argv.into_iter().map(|word| word.into_string().unwrap()).collect()
}

#[test]
fn the_definition_is_sound() {
    CommandLine::command().debug_assert();
}

#[test]
fn the_plain_form_is_what_the_parser_makes_of_it() {
    for argv in [["ls"].as_slice(), &["run", "--", "-v"], &["--", "x"], &["--help", "a b", ""]] {
        let words: Vec<OsString> = ["sandbox", "--"].iter().chain(argv).map(Into::into).collect();
        let read = CommandLine::read(&words).unwrap();
        let parsed = CommandLine::try_parse_from(&words).unwrap();
        assert_eq!(format!("{read:?}"), format!("{parsed:?}"), "{argv:?}");
    }
    assert!(CommandLine::read(&["sandbox".into(), "--".into()]).unwrap().run.argv.is_empty());
}

#[test]
fn the_program_begins_where_the_options_end() {
    assert_eq!(argv(&["--", "ls", "-l", "--", "x"]), ["ls", "-l", "--", "x"]);
    assert_eq!(argv(&["ls", "-l", "--ro", "/x"]), ["ls", "-l", "--ro", "/x"]);
    assert_eq!(argv(&["ls", "--", "x"]), ["ls", "--", "x"]);
    assert_eq!(argv(&["--ro", "/x", "ls", "--help"]), ["ls", "--help"]);
    assert_eq!(argv(&["-v", "--", "run"]), ["run"]);
    assert!(matches!(parse(&["run", "--", "ls"]).unwrap().verb, Some(Verb::Run(_))));
    match parse(&["run", "-q", "ls", "-v"]).unwrap().verb {
        Some(Verb::Run(command)) => assert!(command.quiet && command.argv == ["ls", "-v"]),
        other => panic!("{other:?}"),
    }
    match parse(&["why", "--rw", "/data", "--", "/data/x"]).unwrap().verb {
        Some(Verb::Why(command)) => assert_eq!(command.question, "/data/x"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_program_named_as_a_verb_needs_its_dashes() {
    let asked = |words: &[&str]| {
        let all: Vec<OsString> =
            std::iter::once(&"sandbox").chain(words).map(OsString::from).collect();
        ambiguous(&parse(words).unwrap().run.argv, &all)
    };
    assert!(asked(&["trace"]).is_some_and(|words| words.contains("-- trace")));
    assert!(asked(&["-v", "run", "--", "ls"]).is_some());
    assert_eq!(asked(&["--", "ps"]), None);
    assert_eq!(asked(&["-v", "--", "kill", "1"]), None);
    assert_eq!(asked(&["ls", "ps"]), None);
}

#[test]
fn the_verbs_of_control_read_their_words() {
    let run = parse(&["run", "--id", "x", "--detach", "--", "ls"]).unwrap().verb;
    match run {
        Some(Verb::Run(command)) => {
            assert!(command.detach == Some(true) && command.id.as_deref() == Some("x"))
        }
        other => panic!("{other:?}"),
    }
    for words in [
        &["ps"][..],
        &["ps", "x", "--json"],
        &["kill", "x"],
        &["kill", "x", "KILL", "--all"],
        &["kill", "x", "--pid", "7", "hup"],
        &["wait", "x"],
        &["pause", "x"],
        &["resume", "x"],
        &["logs", "-f", "x"],
        &["dmesg", "--follow", "x"],
        &["events", "x", "--json", "--follow"],
        &["stats", "x"],
        &["top"],
        &["top", "x"],
    ] {
        assert!(parse(words).unwrap().verb.is_some(), "{words:?}");
    }
    for verb in ["kill", "wait", "pause", "resume", "logs", "dmesg", "events", "stats"] {
        let line = parse(&[verb]).unwrap_err();
        assert!(line.contains("missing on the line: <ID>"), "{line}");
    }
}

#[test]
fn a_refused_word_is_one_line_with_a_suggestion() {
    for (words, part) in [
        (&["--rr", "/x", "--", "ls"][..], "--rr"),
        (&["--hostnam", "x", "--", "ls"], "--hostname"),
        (&["--net", "all", "--", "ls"], "none, allow, host"),
        (&["-v", "-q", "--", "ls"], "cannot be used with"),
        (&["--fd", "x", "--", "ls"], "--fd"),
        (&["--fd", "-1", "--", "ls"], "-1"),
        (&["--workdir", "/a", "--workdir", "/b", "--", "ls"], "--workdir"),
        (&["--ro"], "--ro"),
        (&["why"], "missing on the line: <PATH"),
        (&["--without", "gravity", "--", "ls"], "gravity"),
        (&["completions", "tcsh"], "tcsh"),
    ] {
        let line = parse(words).unwrap_err();
        assert!(line.contains(part), "{words:?}: {line}");
        assert!(!line.contains('\n') && !line.contains("Usage"), "{words:?}: {line}");
    }
}

#[test]
fn every_facility_has_its_bit() {
    let all = "user-namespaces,seccomp-notify,wait-killable,sync-wake-up,process-vm,landlock,time-namespaces,overlayfs";
    let (request, _) = parse(&["--without", all, "--", "ls"]).unwrap().run.into_request();
    let options = crate::config::Options::of(&request.flags).unwrap();
    assert_eq!(options.without, crate::config::Without::all());
}

#[test]
fn completions_and_manuals_know_the_verbs() {
    let mut script = Vec::new();
    clap_complete::generate(Shell::Bash, &mut CommandLine::command(), "sandbox", &mut script);
    assert!(String::from_utf8(script).unwrap().contains("doctor"));
    let directory = std::env::temp_dir().join(format!("sandbox-man-{}", std::process::id()));
    assert_eq!(manual(&directory), OWN_ERROR);
    std::fs::create_dir(&directory).unwrap();
    assert_eq!(manual(&directory), 0);
    let page = std::fs::read_to_string(directory.join("sandbox-why.1"));
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(page.unwrap().contains("PATH"));
}

/// Flags that are about profiles themselves.
const NO_KEYS: [&str; 2] = ["profile", "trust-project-profile"];

#[test]
fn every_flag_of_a_run_is_a_key_and_every_key_a_flag() {
    let line = CommandLine::command();
    let run = line.find_subcommand("run").unwrap();
    let flags: Vec<&str> = run.get_arguments().filter_map(|argument| argument.get_long()).collect();
    let keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    for flag in flags.iter().filter(|flag| !NO_KEYS.contains(flag) && **flag != "help") {
        assert!(keys.contains(flag), "--{flag} has no row in src/config/profile/keys.rs");
    }
    for key in keys {
        assert!(flags.contains(&key), "{key} has no flag");
    }
}

#[test]
fn flags_become_settings_of_the_command_line() {
    let read = |words: &[&str]| {
        let words = [words, &["--", "ls"]].concat();
        let (request, _) = parse(&words).unwrap().run.into_request();
        let words: Vec<String> = request
            .flags
            .iter()
            .map(|setting| format!("{}={}", setting.key.name, setting.value))
            .collect();
        (request, words.join(" "))
    };
    let given =
        ["--time", "-2h,frozen", "--env", "A=b,c", "--fd", "3", "--fd", "4", "--kmsg", "-v"];
    let (_, words) = read(&given);
    assert_eq!(words, "env=A=b,c time=-2h,frozen kmsg=true fd=3 fd=4 verbose=true");
    assert_eq!(read(&["--kmsg=false", "--detach=false"]).1, "kmsg=false detach=false");
    let (request, words) = read(&["--profile", "a", "--profile", "b", "--trust-project-profile"]);
    assert!(request.trusts_project && request.profiles == ["a", "b"] && words.is_empty());
}
