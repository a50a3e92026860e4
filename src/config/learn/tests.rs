//! From what a run did to the text of a profile, on a host made up.

use std::os::unix::fs::PermissionsExt;

use super::super::profile::{Key, Value, check, gather};
use super::super::testing::TestHost;
use super::*;
use crate::sentry::file_log::{Content, Kind, Touch, Touched};

/// A host whose files are the caller's, who is nobody's root.
fn host() -> TestHost {
    let mut host = TestHost::ordinary();
    host.host.uid = nix::unistd::geteuid().as_raw();
    host.host.gid = nix::unistd::getegid().as_raw();
    host
}

fn touched(path: &str, kind: Kind, touch: Touch) -> Touched {
    let after = touch.may_change().then(Content::default);
    Touched { path: path.into(), kind, touch, target: None, before: None, after }
}

fn made(path: &str) -> Touched {
    touched(path, Kind::File, Touch::WRITTEN | Touch::CREATED)
}

fn made_directory(path: &str) -> Touched {
    touched(path, Kind::Directory, Touch::INSPECTED | Touch::CREATED)
}

fn written(path: &str) -> Touched {
    touched(path, Kind::File, Touch::WRITTEN)
}

/// What is learned when a run touches that.
fn learned(host: &mut TestHost, files: Vec<Touched>, missing: &[&str]) -> Lesson {
    let argv = [OsString::from("true")];
    let gathered = gather(Request::default(), &mut host.host, || None).unwrap();
    let file = Path::new("/home/me/.config/sandbox/true.toml");
    let learning = prepare(&Request::default(), &gathered, &argv, &host.host, file, None).unwrap();
    let options = Options { argv: argv.to_vec(), ..learning.options.clone() };
    let spec = host.resolve(&options).unwrap();
    let missing = missing.iter().map(|path| path.as_bytes().to_vec()).collect();
    let report = Report { files, missing, ..Report::default() };
    let measured = Measured { memory: 1 << 20, tasks: 3, ..Measured::default() };
    let seen = Seen { spec: &spec, report: &report, measured: &measured, status: 0 };
    host.look_anew();
    let lesson = learning.conclude(&seen, &host.host, file).unwrap();
    let text = lesson.text();
    check(&text, file, &host.host).unwrap_or_else(|error| panic!("{error}\n{text}"));
    lesson
}

fn rules(lesson: &Lesson) -> Vec<String> {
    lesson.rules_to_write().into_iter().map(|(path, _)| path).collect()
}

#[test]
fn a_file_is_a_file_and_a_new_one_its_directory() {
    let mut host = host();
    host.file("/data/in/old");
    for name in ["b", "c", "d", "e", "f"] {
        host.file(&format!("/data/in/{name}"));
    }
    host.directory("/data/out");
    let files = vec![
        written("/data/in/old"),
        made("/data/out/new"),
        // Nothing new: it is in there.
        made("/data/out/other"),
        made("/home/me/project/here"),
        made("/tmp/private"),
        touched("/usr/bin/tool", Kind::File, Touch::READ | Touch::EXECUTED),
    ];
    let lesson = learned(&mut host, files, &[]);
    assert_eq!(rules(&lesson), ["\"/data/in/old\"", "\"/data/out\""]);
    assert!(lesson.needs.writes_workdir && lesson.read_only.is_empty());
    // To put another one in its place takes the directory.
    let touch = Touch::WRITTEN | Touch::REPLACED;
    let replaced = touched("/data/in/old", Kind::File, touch);
    assert_eq!(rules(&learned(&mut host, vec![replaced], &[])), ["\"/data/in\""]);
    let removed = touched("/data/in/old", Kind::File, Touch::REMOVED);
    assert_eq!(rules(&learned(&mut host, vec![removed], &[])), ["\"/data/in\""]);
}

#[test]
fn most_of_a_directory_is_the_directory() {
    let mut host = host();
    for name in ["a", "b", "c", "d", "e"] {
        host.file(&format!("/data/in/{name}"));
    }
    let some = |names: &[&str]| names.iter().map(|it| written(&format!("/data/in/{it}"))).collect();
    assert_eq!(rules(&learned(&mut host, some(&["a", "b"]), &[])).len(), 2);
    assert_eq!(rules(&learned(&mut host, some(&["a", "b", "c"]), &[])), ["\"/data/in\""]);
    for name in 0..9 {
        host.file(&format!("/data/in/{name}"));
    }
    host.look_anew();
    assert_eq!(rules(&learned(&mut host, some(&["a", "b", "c"]), &[])).len(), 3);
    // Not so right below the root.
    let all = ["x", "y", "z"].map(|name| host.directory(&format!("/top/{name}")));
    assert_eq!(all.len(), 3);
    let files = ["x", "y", "z"].map(|name| made(&format!("/top/{name}/new"))).to_vec();
    assert_eq!(rules(&learned(&mut host, files, &[])).len(), 3);
}

#[test]
fn a_directory_that_was_made_is_made_again_if_that_can_be() {
    let mut host = host();
    let deep = vec![
        made_directory("/home/me/.tool"),
        made_directory("/home/me/.tool/deep"),
        made("/home/me/.tool/deep/file"),
    ];
    assert_eq!(rules(&learned(&mut host, deep.clone(), &[])), ["\"~/.tool/\""]);
    // One that got its name by a rename, or was removed: its home is too much.
    // Nor is what the system has right below the root.
    let lesson = learned(&mut host, vec![made("/etc/new"), made("/data/in/new")], &["/etc/new"]);
    assert_eq!(rules(&lesson), ["\"/data/in\""]);
    assert!(lesson.text().contains("/etc/new (rw = [\"/etc\"])"), "{}", lesson.text());
    for touch in [Touch::REPLACED | Touch::WRITTEN, Touch::REMOVED] {
        let mut files = deep.clone();
        files[0].touch |= touch;
        let lesson = learned(&mut host, files, &[]);
        assert!(rules(&lesson).is_empty());
        assert_eq!(lesson.needs.too_wide.keys().collect::<Vec<_>>(), [Path::new("/home/me")]);
        assert!(lesson.text().contains("/home/me/.tool (rw = [\"~\"])"), "{}", lesson.text());
    }
}

#[test]
fn what_the_user_may_not_write_natively_is_no_need() {
    let mut host = host();
    host.file("/data/in/file");
    let root = host.host.root.clone();
    let closed = |path: &str, mode| {
        let path = root.join(path.trim_start_matches('/'));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    closed("/data/in/file", 0o444);
    closed("/data/in", 0o555);
    let files = vec![written("/data/in/file"), made("/data/in/new")];
    let lesson = learned(&mut host, files, &[]);
    closed("/data/in", 0o755);
    assert!(rules(&lesson).is_empty() && lesson.needs.written == 0);
}

#[test]
fn what_is_hidden_is_named_and_stays_so() {
    let mut host = host();
    host.file("/home/me/.ssh/id");
    host.file("/tmp/of-the-host");
    let files =
        vec![made("/home/me/.ssh/new"), touched("/home/me/.ssh", Kind::Directory, Touch::LISTED)];
    let missing = ["/home/me/.ssh/id", "/tmp/of-the-host", "/tmp/none", "/home/me/.none"];
    let lesson = learned(&mut host, files, &missing);
    assert!(rules(&lesson).is_empty());
    let text = lesson.text();
    for words in [
        "/home/me/.ssh (ssh keys and hosts)",
        "/tmp/of-the-host (a private /tmp)",
        "/home/me/.none",
    ] {
        assert!(text.contains(words), "no {words}\n{text}");
    }
    assert!(!text.contains("/tmp/none"), "{text}");
    assert_eq!(lesson.left_out().len(), 2);
}

#[test]
fn odd_names_stay_what_they_are() {
    let mut host = host();
    let odd =
        ["/data/in/a\"b\\c", "/data/in/$HOME", "/data/in/x:y", "/data/in/tab\tbed", "/data/in/ä"];
    for path in odd {
        host.directory(path);
    }
    for number in 0..20 {
        host.file(&format!("/data/in/other{number}"));
    }
    let mut files: Vec<Touched> = odd.iter().map(|path| made(&format!("{path}/new"))).collect();
    host.directory("/data/in/new\nline");
    files.push(made("/data/in/new\nline/new"));
    let mut bytes = made("/data/in/");
    let name = std::os::unix::ffi::OsStrExt::from_bytes(b"data/in/\xff");
    std::fs::create_dir(host.host.root.join::<&std::ffi::OsStr>(name)).unwrap();
    bytes.path.extend_from_slice(b"\xff/new");
    files.push(bytes);
    let lesson = learned(&mut host, files, &["/home/me/\u{1b}[31m\nrw = ['/']"]);
    let text = lesson.text();
    for line in text.lines() {
        assert!(!line.chars().any(char::is_control) && !line.starts_with("rw = ['"), "{line:?}");
    }
    let request = Request { profiles: vec!["/data/it.toml".into()], ..Request::default() };
    host.write("/data/it.toml", &text);
    let path = host.host.root.join("data/it.toml");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    host.look_anew();
    let again = gather(request, &mut host.host, || None).unwrap();
    let view = file_view(&again.options, &host.host).unwrap();
    let is_open = |path: &str| {
        let mount = view.covering(Path::new(path));
        mount.is_some_and(|mount| matches!(mount.kind, MountKind::Writable { .. }))
    };
    for path in odd {
        assert!(is_open(path), "{path}\n{text}");
    }
    assert_eq!(lesson.impossible.len(), 2);
    assert!(text.contains("$'/data/in/\\xff'"), "{text}");
    assert!(!is_open("/data/in/new\nline") && !is_open("/data/in/other1"), "{text}");
}

#[test]
fn what_a_pattern_keeps_read_only_is_told() {
    let mut host = host();
    host.file("/home/me/project/key.pem");
    let request = Request::default();
    let mut gathered = gather(request.clone(), &mut host.host, || None).unwrap();
    let key = Key::named("ro").unwrap();
    let setting = Setting::flag(key, Value::Word("./*.pem".into()));
    gathered.settings.push(setting);
    gathered.options = Options::of(&gathered.settings).unwrap();
    let argv = [OsString::from("true")];
    let file = Path::new("/home/me/.config/sandbox/true.toml");
    let learning = prepare(&request, &gathered, &argv, &host.host, file, None).unwrap();
    let options = Options { argv: argv.to_vec(), ..learning.options.clone() };
    let spec = host.resolve(&options).unwrap();
    let report = Report { files: vec![written("/home/me/project/key.pem")], ..Report::default() };
    let measured = Measured { memory: 1 << 20, tasks: 3, ..Measured::default() };
    let seen = Seen { spec: &spec, report: &report, measured: &measured, status: 0 };
    host.look_anew();
    let lesson = learning.conclude(&seen, &host.host, file).unwrap();
    let kept = lesson.needs.kept.get(Path::new("/home/me/project/key.pem"));
    assert_eq!(kept.map(String::as_str), Some("--ro './*.pem'"));
    assert!(rules(&lesson).is_empty());
}

#[test]
fn what_is_carried_is_about_the_same_in_the_profile() {
    let mut host = host();
    let cwd = "/home/me/pro[j]";
    host.directory(cwd);
    host.directory("/home/me/.config/sandbox");
    host.file("/home/me/pro[j]/a$b/in");
    host.host.cwd = Ok(cwd.into());
    let carried = |host: &mut TestHost, key: &str, word: &str, file: &str| {
        let key = Key::named(key).unwrap();
        let flag = Setting::flag(key, Value::Word(word.into()));
        let request = Request { flags: vec![flag], ..Request::default() };
        let gathered = gather(request.clone(), &mut host.host, || None).unwrap();
        let carried = Carried::of(&request, &gathered, &host.host, Path::new(file), None).unwrap();
        carried.said[0].2.trim_matches('"').replace(r"\\", r"\")
    };
    let (own, other) = ("/home/me/.config/sandbox/x.toml", "/data/x.toml");
    let base = r"/home/me/pro\[j\]";
    for (word, in_own, in_other) in [
        ("/x/*.c", "/x/*.c".to_owned(), "/x/*.c".to_owned()),
        ("a$b", format!("{base}/a$$b"), format!("{base}/a$$b")),
        (r"\[x]", format!(r"{base}/\[x]"), format!(r"{base}/\[x]")),
        ("./**/*.c", format!("{base}/**/*.c"), format!("{base}/**/*.c")),
        ("*.c", "*.c".to_owned(), format!("{base}/**/*.c")),
        ("~*", "**/~*".to_owned(), format!("{base}/**/~*")),
        ("a$b/*", "a$$b/*".to_owned(), format!("{base}/**/a$$b/*")),
    ] {
        for key in ["hide", "ro"] {
            assert_eq!(carried(&mut host, key, word, own), in_own, "{key} {word}");
            assert_eq!(carried(&mut host, key, word, other), in_other, "{key} {word}");
        }
    }
}

#[test]
fn a_profile_grows_and_keeps_its_authors_words() {
    let mut host = host();
    host.directory("/data/out");
    let lesson = learned(&mut host, vec![made("/data/out/new")], &[]);
    for (old, expected) in [
        ("", "rw = [\n    \"/data/out\", # 1 path was written to\n]\n"),
        (
            "rw = '/a' # mine\n",
            "rw = [\n    '/a',\n    \"/data/out\", # 1 path was written to\n] # mine\n",
        ),
        ("rw = ['/a', '/data/out'] # mine\n", "rw = ['/a', '/data/out'] # mine\n"),
        (
            "rw = [\n    '/a', # mine\n]\n",
            "# mine\n    \"/data/out\", # 1 path was written to\n]\n",
        ),
        ("memory = 5 # mine\n", "memory = \"64m\" # mine\n"),
        ("pids = 5000 # mine\n# end\n", "pids = 5000 # mine\n"),
        ("inherit = 'build'\n# end\n", "\n# end\n\n# Added by sandbox learn from: true\n"),
    ] {
        let merged = lesson.merged(old).unwrap();
        assert!(merged.contains(expected), "{old:?} becomes\n{merged}");
        check(&merged, Path::new("/x.toml"), &host.host).unwrap();
        assert_eq!(merged.matches("/data/out").count(), 1, "{merged}");
    }
    assert!(lesson.merged("rw = [").is_err());
    assert!(lesson.merged("[rw]\na = 1\n").is_err());
}
