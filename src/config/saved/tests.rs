//! What comes back of a saved run: all that this user may have, and an error for all else.

use proptest::prelude::*;

use super::*;
use crate::config::testing::{TestHost, options};
use crate::config::{IdRange, LimitWishes, Options, Shown, View};

fn saved(host: &TestHost, options: &Options) -> SavedSpec {
    SavedSpec::of(&host.resolve(options).unwrap())
}

/// What restoring gives, saved again; or the error, which is one line.
fn again(host: &TestHost, saved: &SavedSpec) -> Result<SavedSpec, String> {
    restored(host, saved).map(|spec| SavedSpec::of(&spec))
}

fn restored(host: &TestHost, saved: &SavedSpec) -> Result<RunSpec, String> {
    saved.restore(&host.host).map_err(|error| {
        let error = error.to_string();
        assert!(!error.contains('\n'), "more than one line: {error}");
        error
    })
}

fn encoded(saved: &SavedSpec) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(saved, &mut bytes).unwrap();
    bytes
}

fn decoded(bytes: &[u8]) -> Option<SavedSpec> {
    ciborium::from_reader(bytes).ok()
}

fn refused(host: &TestHost, saved: &SavedSpec, words: &str) {
    let error = again(host, saved).unwrap_err();
    assert!(error.contains(words), "{error}");
}

fn mount(target: &str, kind: SavedKind, by: SavedRule) -> SavedMount {
    SavedMount { target: bytes(target), kind, by }
}

fn writable(target: &str) -> SavedMount {
    mount(target, SavedKind::Writable(bytes(target)), SavedRule::Flag)
}

#[test]
fn a_run_with_everything_comes_back() {
    let mut host = TestHost::ordinary();
    host.directory("/home/me/.ssh");
    host.file("/home/me/.netrc");
    host.file("/home/me/project/notes");
    host.set("LANG", "C");
    let mut options = options(&[
        "--rw /data",
        "--ro /data/in:/srv/work",
        "--hide /home/me/project/notes",
        "--tmpfs /home/other",
        "--ro /home/me/.ssh",
    ]);
    options.argv = vec!["sh".into(), "-c".into(), OsStr::from_bytes(b"\xff").to_owned()];
    options.hostname = Some("box".into());
    options.user = Some("0:0".into());
    options.time = vec!["2020-01-01T00:00:00Z,rate=2.5".into()];
    options.network = Network::Host;
    options.kmsg = true;
    options.observed = true;
    options.without = Without::SYNC_WAKE_UP;
    options.voice = Voice::Quiet;
    options.container = Some("one".into());
    options.limits = LimitWishes {
        memory: Some("64m".into()),
        pids: Some("20".into()),
        cpus: Some("1".into()),
        open_files: Some("100".into()),
        file_size: Some("1g".into()),
        cpu_time: Some("1.5s:2m".into()),
        timeout: Some("1h".into()),
        // (These are about a network of its own.)
        net_rate: None,
        net_total: None,
    };
    let spec = host.resolve(&options).unwrap();
    let image = encoded(&SavedSpec::of(&spec));
    let back = restored(&host, &decoded(&image).unwrap()).unwrap();
    assert_eq!(SavedSpec::of(&back), SavedSpec::of(&spec));
    assert_eq!(back.limits, spec.limits);
    assert_eq!(back.mounts, spec.mounts);
    assert!(
        back.features.contains(Features::VIRTUAL_RATE | Features::KMSG | Features::EXEC_EVENTS)
    );
    assert_eq!(
        grants(&back, Some(Path::new("/home/me/project"))),
        ["--rw /data", "--ro /data/in:/srv/work", "--ro /home/me/.ssh", "--net host"]
    );
    assert!(grants(&back, None).contains(&"--workdir /home/me/project".to_owned()));
}

#[test]
fn limits_of_the_network_come_back() {
    let host = TestHost::ordinary();
    let mut options = options(&[]);
    options.limits.net_rate = Some("2m:500k".into());
    options.limits.net_total = Some("1g".into());
    let spec = host.resolve(&options).unwrap();
    let back = restored(&host, &decoded(&encoded(&SavedSpec::of(&spec))).unwrap()).unwrap();
    assert_eq!(back.limits, spec.limits);
    assert!(back.limits.network.is_limited());
}

#[test]
fn root_inside_is_no_more_than_a_run_of_the_same_user_has() {
    for (host, outside) in [(TestHost::ordinary(), 1000), (TestHost::root(), 0)] {
        host.directory("/home/me/project/tree/proc");
        let words = ["--overlay /", "--ro /proc:/home/me/project/tree/proc"];
        let wishes = Options { root: Root::Believed, ..options(&words) };
        let spec = host.resolve(&wishes).unwrap();
        let image = SavedSpec::of(&spec);
        let back = restored(&host, &decoded(&encoded(&image)).unwrap()).unwrap();
        assert_eq!(SavedSpec::of(&back), image);
        // (Why something is hidden is another matter.)
        let shown = |spec: &RunSpec| -> Vec<_> {
            spec.mounts.iter().map(|it| (it.target.clone(), it.kind.clone())).collect()
        };
        assert_eq!((&back.identity, shown(&back)), (&spec.identity, shown(&spec)));
        assert!(back.root == Root::Believed && back.features.contains(Features::ROOT));
        assert_eq!(back.identity.uid_map, [IdRange { inside: 0, outside, count: 1 }]);
        assert!(grants(&back, None).contains(&"--root".to_owned()));
        // Features alone make nobody root, and nobody else is.
        let plain = SavedSpec { root: false, ..image.clone() };
        let plain = SavedSpec { mounts: saved(&host, &options(&["--overlay /"])).mounts, ..plain };
        assert!(!restored(&host, &plain).unwrap().features.contains(Features::ROOT));
        let identity = SavedIdentity { uid: 7, ..image.identity.clone() };
        refused(&host, &SavedSpec { identity, ..image.clone() }, "root inside");
        // A procfs at another place is root's alone.
        refused(&host, &SavedSpec { root: false, ..image }, "no flag asks for");
    }
}

#[test]
fn what_was_reached_and_published_comes_back() {
    use crate::sentry::net::{Rule, publish};
    let host = TestHost::ordinary();
    let mut options = options(&[]);
    let rules = |texts: &[&str]| texts.iter().map(|text| Rule::parse(text).unwrap()).collect();
    options.reach.allow = rules(&["pypi.org:443", "*.crates.io", "[2001:db8::7]:80-81/tcp", "*"]);
    options.reach.deny = rules(&["192.0.2.0/24"]);
    options.net_log = Some("net.json".into());
    options.publish = ["8080:80", "5353:54/udp", "90"]
        .iter()
        .flat_map(|wish| publish::parse(wish).unwrap())
        .collect();
    let spec = host.resolve(&options).unwrap();
    let saved = decoded(&encoded(&SavedSpec::of(&spec))).unwrap();
    let back = restored(&host, &saved).unwrap();
    assert_eq!(
        (&back.reach, &back.publish, &back.net_log),
        (&spec.reach, &spec.publish, &spec.net_log)
    );
    assert_eq!((back.network, back.lowest_port()), (Network::Allow, 54));
    assert!(back.features.contains(Features::NETWORK));
    let granted = grants(&back, Some(Path::new("/home/me/project")));
    assert!(granted.contains(&"--allow-net pypi.org:443".to_owned()), "{granted:?}");
    assert!(granted.contains(&"--publish 127.0.0.1:8080:80/tcp".to_owned()), "{granted:?}");
    assert!(granted.contains(&"--net-log /home/me/project/net.json".to_owned()), "{granted:?}");
    // What no run has.
    let with = |change: fn(&mut SavedSpec)| {
        let mut changed = saved.clone();
        change(&mut changed);
        changed
    };
    refused(&host, &with(|it| it.host_network = true), "no run has two");
    refused(&host, &with(|it| it.publish.push("80:0".into())), "--publish 80:0: it names port 0");
    refused(&host, &with(|it| it.publish = vec!["53:53".into()]), "answers at port 53");
    refused(&host, &with(|it| it.publish = vec!["1-512:1-512".into(); 513]), "too many");
    let rule =
        |it: &mut SavedSpec, rule: &str| it.reach.as_mut().unwrap().allow = vec![rule.into()];
    let mut wrong = saved.clone();
    rule(&mut wrong, "http://x");
    refused(&host, &wrong, "--allow-net http://x: it is the address of a page");
    wrong.reach.as_mut().unwrap().allow = vec!["x".into(); 10_001];
    refused(&host, &wrong, "too many rules");
}

#[test]
fn overlays_are_laid_out_anew_and_hide_what_they_hid() {
    let mut host = TestHost::ordinary();
    host.host.mounts.push(("/data/in".into(), "xfs".into()));
    host.directory("/tmp/build");
    host.file("/home/me/.ssh/id");
    host.host.cwd = Ok("/tmp/build".into());
    let mut options = options(&["--overlay /", "--rw /home/other"]);
    options.fake_fsync = true;
    let spec = host.resolve(&options).unwrap();
    let image = SavedSpec::of(&spec);
    assert_eq!(image.overlays().collect::<Vec<_>>(), [&b"/"[..], b"/tmp/build"]);
    let back = restored(&host, &decoded(&encoded(&image)).unwrap()).unwrap();
    assert_eq!(back.mounts, spec.mounts);
    assert_eq!(back.overlays(), [PathBuf::from("/")]);
    assert!(back.features.contains(Features::FAKE_SYNC));
    assert!(!back.features.contains(Features::FAKE_SYNC_ALL));
    // It shows what can be read in any case, and can change none of it.
    assert_eq!(grants(&back, Some(Path::new("/tmp/build"))), ["--rw /home/other"]);
    // The host has other mounts by now: the parts are others, too.
    host.host.mounts.push(("/data/in/deep".into(), "xfs".into()));
    host.directory("/data/in/deep");
    let skeleton = |spec: &RunSpec, path: &str| {
        let found = spec.mounts.iter().find(|mount| mount.target == Path::new(path)).unwrap();
        matches!(found.kind, MountKind::Overlay { skeleton: true, .. })
    };
    let moved = restored(&host, &image).unwrap();
    assert!(skeleton(&moved, "/data/in") && !skeleton(&back, "/data/in"));
}

#[test]
fn an_overlay_that_no_run_has_is_refused() {
    let host = TestHost::ordinary();
    let image = saved(&host, &options(&["--overlay /data"]));
    let change = |kind, by| {
        let mut image = image.clone();
        for mount in image.mounts.iter_mut().filter(|it| it.target == bytes("/data")) {
            (mount.kind, mount.by) = (SavedKind::Overlay(bytes(kind)), by);
        }
        image
    };
    refused(&host, &change("/home", SavedRule::Flag), "no flag asks for");
    refused(&host, &change("/data", SavedRule::Default), "no run has");
    refused(&host, &change("/data", SavedRule::WorkingDirectory), "no run has");
    let mut lost = image.clone();
    lost.mounts.push(mount("/proc/sys", SavedKind::Overlay(bytes("/proc/sys")), SavedRule::Flag));
    host.directory("/proc/sys");
    refused(&host, &lost, "of the kernel's making");
    let mut bare = saved(&host, &options(&[]));
    for mount in bare.mounts.iter_mut().filter(|it| it.by == SavedRule::WorkingDirectory) {
        mount.kind = SavedKind::Overlay(mount.target.clone());
    }
    refused(&host, &bare, "lies in no overlay");
}

#[test]
fn what_is_denied_matched_or_excepted_comes_back() {
    let host = TestHost::ordinary();
    for file in ["/data/in/x", "/data/y", "/home/me/project/a/key.pem", "/srv/work/key"] {
        host.file(file);
    }
    let rules = ["--deny /data", "--allow /data/in", "--hide *.pem", "--deny /srv/**/k*"];
    let spec = host.resolve(&options(&rules)).unwrap();
    let back = restored(&host, &SavedSpec::of(&spec)).unwrap();
    let shapes = |spec: &RunSpec| -> Vec<(PathBuf, MountKind)> {
        spec.mounts.iter().map(|mount| (mount.target.clone(), mount.kind.clone())).collect()
    };
    assert_eq!(shapes(&back), shapes(&spec));
    // Nothing in a denied directory is a guest's, to be saved.
    assert!(spec.mounts.iter().any(|mount| mount.kind == DENIED_BUT));
    assert!(!spec.own_trees().contains(&PathBuf::from("/data")));
    // What a pattern matched may have gone.
    std::fs::remove_file(host.host.root.join("home/me/project/a/key.pem")).unwrap();
    host.host.seen.borrow_mut().clear();
    host.host.listed.borrow_mut().clear();
    host.host.led.borrow_mut().clear();
    assert_eq!(
        shapes(&restored(&host, &SavedSpec::of(&spec)).unwrap()).len(),
        shapes(&spec).len() - 1
    );
}

#[test]
fn names_of_several_lines_that_were_found_come_back() {
    let host = TestHost::ordinary();
    for file in ["/home/me/project/x\n.pem", "/data/a\nb", "/data/in/x", "/srv/work/c\nd.pub"] {
        host.file(file);
    }
    let rules = ["--hide ./**/*.pem", "--deny /data", "--allow /data/in", "--hide /srv/work"];
    let spec = host.resolve(&options(&[&rules[..], &["--allow /srv/**/*.pub"]].concat())).unwrap();
    let at = |path: &str| spec.mounts.iter().any(|mount| mount.target == Path::new(path));
    assert!(at("/home/me/project/x\n.pem") && at("/data/a\nb") && at("/srv/work/c\nd.pub"));
    let saved = SavedSpec::of(&spec);
    assert_eq!(again(&host, &saved), Ok(saved));
}

#[test]
fn a_hidden_directory_in_which_something_shows_is_one_where_it_is_no_secret() {
    let with_keys = || {
        let host = TestHost::ordinary();
        host.file("/data/keys/public");
        host.file("/data/keys/private");
        host
    };
    let mut host = with_keys();
    host.set("GNUPGHOME", "/data/keys");
    let image = saved(&host, &options(&["--ro /data/keys/public"]));
    let back = restored(&with_keys(), &image).unwrap();
    let view = View::of(&back.mounts);
    assert!(matches!(view.shown(Path::new("/data/keys/private")), Shown::Private(_)));
    assert!(matches!(view.shown(Path::new("/data/keys/public")), Shown::Host { .. }));
}

#[test]
fn ids_are_those_of_whoever_restores() {
    let host = TestHost::ordinary();
    let mut image = saved(&host, &Options { user: Some("0:0".into()), ..options(&[]) });
    // Whatever the image says of the outside.
    image.identity.uids = vec![(0, 0, u32::MAX)];
    image.identity.gids = vec![(0, 0, u32::MAX)];
    let back = restored(&host, &image).unwrap().identity;
    assert_eq!((back.uid, back.gid, &back.groups), (0, 0, &None));
    let own = |outside| vec![IdRange { inside: 0, outside, count: 1 }];
    assert_eq!((back.uid_map, back.gid_map), (own(1000), own(1000)));
    image.identity.groups = Some(vec![0]);
    refused(&host, &image, "restore it as root");
    let root = TestHost::root();
    image.identity.groups = None;
    refused(&root, &image, "an ordinary user saved it");
    let mut image = saved(&root, &Options { user: Some("other".into()), ..options(&[]) });
    assert_eq!(again(&root, &image), Ok(image.clone()));
    image.identity.groups = Some(vec![u32::MAX]);
    refused(&root, &image, "no such ones");
}

#[test]
fn what_is_hidden_here_is_hidden_whatever_the_image_says() {
    let host = TestHost::ordinary();
    let mut image = saved(&host, &options(&["--ro /home/me"]));
    host.directory("/home/me/.ssh");
    host.directory("/home/me/project/.git");
    let fresh = TestHost::ordinary();
    fresh.directory("/home/me/.ssh");
    let hidden = |host: &TestHost, image: &SavedSpec, path: &str| {
        let spec = restored(host, image).unwrap();
        matches!(View::of(&spec.mounts).shown(Path::new(path)), Shown::Hidden(_))
    };
    assert!(hidden(&fresh, &image, "/home/me/.ssh/id"));
    image.mounts.retain(|mount| mount.by != SavedRule::Default);
    assert!(hidden(&fresh, &image, "/home/me/.ssh/id"));
    // What was hidden for a reason that is none here stays hidden, wherever it shows.
    fresh.file("/data/secret");
    let file = mount("/data/secret", SavedKind::HiddenFile, SavedRule::Default);
    let mut image = saved(&fresh, &options(&["--ro /data:/srv/work"]));
    assert!(!hidden(&fresh, &image, "/srv/work/secret"));
    image.mounts.push(file);
    assert!(hidden(&fresh, &image, "/srv/work/secret"));
    assert!(hidden(&fresh, &image, "/data/secret"));
}

#[test]
fn a_path_that_has_gone_or_moved_is_named() {
    let host = TestHost::ordinary();
    host.directory("/data/out");
    let image = saved(&host, &options(&["--rw /data/out", "--ro /data/in"]));
    let there = TestHost::ordinary();
    refused(&there, &image, "/data/out does not exist any more");
    there.link("/data/out", "/etc");
    there.host.seen.borrow_mut().clear();
    refused(&there, &image, "/data/out leads to /etc by now");
    let there = TestHost::ordinary();
    there.directory("/data/out");
    std::fs::remove_dir_all(there.host.root.join("home/me/project")).unwrap();
    refused(&there, &image, "/home/me/project is no directory any more");
    there.link("/home/me/project", "/home/me");
    there.host.seen.borrow_mut().clear();
    refused(&there, &image, "/home/me/project leads to /home/me by now");
    let there = TestHost::ordinary();
    there.directory("/data/out");
    std::fs::remove_dir_all(there.host.root.join("var/tmp")).unwrap();
    refused(&there, &image, "the sandbox had /var/tmp of its own");
}

#[test]
fn what_no_run_has_is_refused() {
    let host = TestHost::ordinary();
    let image = saved(&host, &options(&[]));
    let with = |mount: SavedMount| {
        let mut image = image.clone();
        image.mounts.retain(|known| known.target != mount.target);
        image.mounts.push(mount);
        image
    };
    let bind = |source: &str| SavedKind::ReadOnly(bytes(source));
    for (mount, words) in [
        (writable("/"), "would replace or open the whole file system"),
        (mount("/proc", bind("/etc"), SavedRule::Flag), "always the sandbox's own"),
        (mount("/etc", bind("/usr/../etc"), SavedRule::Flag), "no such path"),
        (mount("etc", bind("/etc"), SavedRule::Flag), "no such path"),
        (mount("/etc/\n", bind("/etc"), SavedRule::Flag), "there is no $'/etc/\\n'"),
        (mount("/etc/\0", bind("/etc"), SavedRule::Flag), "no such path"),
        (mount("", bind("/etc"), SavedRule::Flag), "no such path"),
        (mount("/etc", bind("/e\0c"), SavedRule::Flag), "no such path"),
        (mount("/etc", SavedKind::Writable(bytes("/etc")), SavedRule::Default), "no run has"),
        (
            mount("/etc", SavedKind::Writable(bytes("/etc")), SavedRule::WorkingDirectory),
            "no run has",
        ),
        (mount("/etc", SavedKind::Proc, SavedRule::Flag), "no flag asks for"),
        (mount("/etc", SavedKind::Tmpfs(0o6777), SavedRule::Flag), "no flag asks for"),
        (mount("/etc", SavedKind::Tmpfs(0o6777), SavedRule::Default), "of its own"),
    ] {
        refused(&host, &with(mount), words);
    }
    let mut home = with(mount(
        "/home/me",
        SavedKind::Writable(bytes("/home/me")),
        SavedRule::WorkingDirectory,
    ));
    home.workdir = bytes("/home/me");
    home.mounts.retain(|mount| mount.target != bytes("/home/me/project"));
    refused(&host, &home, "a home directory");
    let mut twice = image.clone();
    twice.mounts.push(twice.mounts[0].clone());
    refused(&host, &twice, "mounted twice");
    let change = |change: fn(&mut SavedSpec)| {
        let mut image = image.clone();
        change(&mut image);
        image
    };
    for (image, words) in [
        (change(|it| it.argv.clear()), "no program"),
        (change(|it| it.argv[0] = bytes("a\0b")), "NUL"),
        (change(|it| it.environment.push((bytes("A=B"), bytes("")))), "is no variable"),
        (
            change(|it| it.environment.push((bytes("A"), ByteBuf::from(vec![b'x'; 17 << 20])))),
            "bytes",
        ),
        (change(|it| it.features = 1 << 31), "features"),
        (change(|it| it.without = 1 << 30), "facilities"),
        (change(|it| it.voice = 9), "voice"),
        (change(|it| it.container = "../x".into()), "--container"),
        (change(|it| it.hostname = Some(bytes("a b"))), "--hostname"),
        (change(|it| it.limits.memory = Some(1)), "--memory"),
        (change(|it| it.limits.open_files = Some(1 << 40)), "hard limit"),
        (change(|it| it.limits.cpus = Some(vec![0, 1, 2])), "2 CPUs"),
        (change(|it| it.limits.cpus = Some(vec![])), "--cpus"),
        (change(|it| it.limits.timeout = Some(u64::MAX)), "--timeout"),
        (change(|it| it.limits.cpu_time = Some((2, 1))), "below the soft one"),
    ] {
        refused(&host, &image, words);
    }
    for (time, words) in [
        (SavedTime { offset: None, at: None, rate: None, goes_on: true }, "does not start once"),
        (SavedTime { offset: Some(i64::MIN), at: None, rate: None, goes_on: true }, "260 years"),
        (SavedTime { offset: None, at: Some(-1), rate: None, goes_on: true }, "from 1970"),
        (
            SavedTime { offset: Some(0), at: None, rate: Some((0, 1)), goes_on: true },
            "rate is none",
        ),
        (
            SavedTime { offset: Some(0), at: None, rate: Some((5000, 1)), goes_on: true },
            "out of bounds",
        ),
    ] {
        refused(&host, &SavedSpec { time: Some(time), ..image.clone() }, words);
    }
}

#[test]
fn no_wall_is_left_out_because_an_image_says_so() {
    let host = TestHost::ordinary();
    let mut image = saved(&host, &options(&[]));
    image.without = Without::all().bits();
    assert!(!restored(&host, &image).unwrap().without.contains(Without::LANDLOCK));
    image.features = 0;
    assert!(restored(&host, &image).unwrap().features.contains(Features::ALWAYS));
}

/// Rules about a host with something of everything, and where they are given.
fn ruled() -> impl Strategy<Value = (Vec<&'static str>, &'static str)> {
    let pool = [
        "--ro /data",
        "--rw /data",
        "--rw /data/in",
        "--ro /data/in:/srv/work",
        "--hide /data/in",
        "--hide /home/me/project/file",
        "--tmpfs /home/me/project/deep",
        "--rw /home/me/project/deep/er",
        "--ro /home/me",
        "--rw /home/me",
        "--ro /home/me:/srv/work",
        "--ro /home/me/.ssh",
        "--ro /home/me/.ssh/config",
        "--ro /run/user/1000",
        "--tmpfs /run/user",
        r"--ro /data/co\:lon",
        r"--ro /data/co\:lon:/srv/work",
        "--hide /sys",
        "--ro /home:/data/in",
        "--ro /",
        "--overlay /data",
        "--overlay /home",
        "--overlay /",
    ];
    let workdirs =
        ["/home/me/project", "/data", "/home/me/project/deep/er", "/tmp", "/", "/srv/work"];
    let rules = proptest::sample::subsequence(pool.to_vec(), 0..6);
    (rules, proptest::sample::select(workdirs.to_vec()))
}

fn prepared((rules, workdir): (Vec<&str>, &str)) -> (TestHost, Options) {
    let mut host = TestHost::ordinary();
    for directory in ["/home/me/.ssh", "/home/me/project/deep/er", "/data/co:lon", "/home/me/.aws"]
    {
        host.directory(directory);
    }
    for file in ["/home/me/.netrc", "/home/me/project/file", "/home/me/.ssh/config", "/data/socket"]
    {
        host.file(file);
    }
    host.host.sockets.push("/data/socket".into());
    host.host.cwd = Ok(workdir.into());
    (host, options(&rules))
}

proptest! {
    // Each makes a host of files.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_view_comes_back(ruled in ruled()) {
        let (host, options) = prepared(ruled);
        if let Ok(spec) = host.resolve(&options) {
            let saved = SavedSpec::of(&spec);
            prop_assert_eq!(again(&host, &saved), Ok(saved));
        }
    }

    #[test]
    fn damaged_bytes_are_a_run_that_this_user_could_have_or_an_error(
        ruled in ruled(),
        places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        keep in any::<prop::sample::Index>(),
    ) {
        let (host, options) = prepared(ruled);
        if let Ok(spec) = host.resolve(&options) {
            let mut image = encoded(&SavedSpec::of(&spec));
            let cut = keep.index(image.len());
            prop_assert!(decoded(&image[..cut]).is_none());
            for (place, byte) in places {
                let at = place.index(image.len());
                image[at] = byte;
            }
            if let Some(Ok(back)) = decoded(&image).map(|saved| restored(&host, &saved)) {
                prop_assert_eq!(&back.identity.uid_map[0].outside, &1000);
                prop_assert_eq!(back.identity.uid_map.len(), 1);
                let view = View::of(&back.mounts);
                let named = back.mounts.iter().any(|mount| {
                    matches!(mount.why, Why::Flag(_)) && mount.target.starts_with("/home/me/.ssh")
                });
                let shows = matches!(view.shown(Path::new("/home/me/.ssh/id")), Shown::Host { .. });
                prop_assert!(named || !shows);
            }
        }
    }
}
