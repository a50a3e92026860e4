//! From options and a host to a run.

use super::testing::{TestHost, options};
use super::*;

fn with(change: impl FnOnce(&mut Options)) -> Options {
    let mut options = options(&[]);
    change(&mut options);
    options
}

#[test]
fn a_plain_run_is_described() {
    let host = TestHost::ordinary();
    let spec = host.resolve(&options(&[])).unwrap();
    assert_eq!(spec.argv, ["true"]);
    assert_eq!(spec.workdir, Path::new("/home/me/project"));
    assert_eq!(
        (spec.network, spec.features, spec.voice),
        (Network::None, Features::ALWAYS | Features::FOREIGN_IDS, Voice::Normal)
    );
    assert_eq!((spec.hostname, spec.descriptors), (None, vec![]));
    let verbose = host.resolve(&with(|o| o.voice = Voice::Verbose)).unwrap();
    assert!(verbose.features.contains(Features::EXEC_EVENTS));
}

#[test]
fn a_run_does_without_time_namespaces_where_there_are_none() {
    let mut host = TestHost::ordinary();
    assert_eq!(host.resolve(&options(&[])).unwrap().without, Without::empty());
    host.host.time_namespaces = false;
    let wishes = with(|o| o.without = Without::LANDLOCK);
    let all = Without::LANDLOCK | Without::TIME_NAMESPACES;
    assert_eq!(host.resolve(&wishes).unwrap().without, all);
}

#[test]
fn a_program_is_needed() {
    let host = TestHost::ordinary();
    let error = |argv: &[&str]| {
        host.resolve(&with(|o| o.argv = argv.iter().map(OsString::from).collect())).unwrap_err()
    };
    assert!(error(&[]).contains("no program"));
    assert!(error(&[""]).contains("empty"));
    assert!(error(&["a", "b\0"]).contains("NUL"));
}

#[test]
fn host_names_are_checked() {
    let host = TestHost::ordinary();
    let named = |name: &str| host.resolve(&with(|o| o.hostname = Some(name.into())));
    assert_eq!(named("build-1.local").unwrap().hostname, Some("build-1.local".into()));
    assert!(named(&"x".repeat(64)).is_ok());
    for bad in [&"x".repeat(65), "", "a b", "a/b", "-x", "ä", "a\nb"] {
        assert!(named(bad).unwrap_err().contains("--hostname"), "{bad:?}");
    }
}

#[test]
fn descriptors_must_be_open() {
    let host = TestHost::ordinary();
    let inherit = |fds: &[RawFd]| host.resolve(&with(|o| o.descriptors = fds.to_vec()));
    assert_eq!(inherit(&[7, 1, 7]).unwrap().descriptors, [7]);
    assert!(inherit(&[9]).unwrap_err().contains("--fd 9"));
}

fn variable(spec: &RunSpec, name: &str) -> Option<String> {
    let found = spec.environment.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.to_str().unwrap().to_owned())
}

#[test]
fn the_environment_fits_the_view() {
    let mut host = TestHost::ordinary();
    host.set("TMPDIR", "/scratch");
    host.set("TEMP", "/tmp");
    host.set("PWD", "/elsewhere");
    host.set("MY_TOKEN", "x");
    let spec = host.resolve(&options(&[])).unwrap();
    let withheld: Vec<_> = spec.withheld.iter().map(|v| v.name.to_str().unwrap()).collect();
    assert_eq!(withheld, ["TMPDIR", "MY_TOKEN"]);
    assert_eq!(variable(&spec, "TEMP").as_deref(), Some("/tmp"));
    assert_eq!(variable(&spec, "PWD").as_deref(), Some("/home/me/project"));
    let spec = host.resolve(&with(|o| o.env = vec!["PWD=/x".into(), "TMPDIR".into()])).unwrap();
    assert_eq!(variable(&spec, "PWD").as_deref(), Some("/x"));
    assert_eq!(variable(&spec, "TMPDIR").as_deref(), Some("/scratch"));
    let spec = host.resolve(&with(|o| o.clear_env = true)).unwrap();
    assert!(spec.environment.is_empty());
}

#[test]
fn a_logical_pwd_is_kept() {
    let mut host = TestHost::ordinary();
    host.link("/home/me/link", "project");
    host.set("PWD", "/home/me/link");
    let spec = host.resolve(&options(&[])).unwrap();
    assert_eq!(variable(&spec, "PWD").as_deref(), Some("/home/me/link"));
}

#[test]
fn another_user_finds_its_home_and_hides_its_secrets() {
    let mut host = TestHost::root();
    host.set("USER", "root");
    host.directory("/home/other/.ssh");
    let other = with(|o| o.user = Some("other".into()));
    let spec = host.resolve(&other).unwrap();
    assert_eq!(variable(&spec, "HOME").as_deref(), Some("/home/other"));
    assert_eq!(variable(&spec, "USER").as_deref(), Some("other"));
    assert_eq!(variable(&spec, "LOGNAME"), None);
    let ssh = spec.mounts.iter().find(|m| m.target == Path::new("/home/other/.ssh"));
    assert_eq!(ssh.map(|m| &m.kind), Some(&MountKind::HiddenDirectory));
    let spec = host.resolve(&with(|o| {
        o.user = Some("other".into());
        o.env = vec!["HOME=/x".into()];
    }));
    assert_eq!(variable(&spec.unwrap(), "HOME").as_deref(), Some("/x"));
}

#[test]
fn without_namespaces_names_that_come_later_are_left_alone() {
    let host = TestHost::ordinary();
    let mut wishes = options(&["--hide **/*.later"]);
    let features = |wishes: &Options| host.resolve(wishes).map(|spec| spec.features);
    assert!(features(&wishes).unwrap().contains(Features::PATTERNS));
    wishes.walls = Walls::Landlock;
    let without = features(&wishes).unwrap();
    assert!(!without.contains(Features::PATTERNS), "{without:?}");
    assert!(without.contains(Features::NO_NAMESPACES | Features::NO_LOOPBACK), "{without:?}");
}
