//! Profiles on a host made up: what is found, how it merges, and that a project's own file never allows
//! more than there is without it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::super::testing::TestHost;
use super::super::{MountKind, Network, Shown, View, resolve};
use super::*;

mod untrusted;

/// A host whose files are the caller's.
fn host() -> TestHost {
    let mut host = TestHost::ordinary();
    let uid = nix::unistd::geteuid().as_raw();
    if uid != 0 {
        host.host.uid = uid;
    }
    host
}

fn put(host: &TestHost, path: &str, text: &str) {
    host.write(path, text);
    let real = host.host.root.join(path.trim_start_matches('/'));
    std::fs::set_permissions(real, std::fs::Permissions::from_mode(0o644)).unwrap();
}

const PROJECT: &str = "/home/me/project/sandbox.toml";
const USER: &str = "/home/me/.config/sandbox/default.toml";

fn gathered(host: &mut TestHost, words: &[&str]) -> Result<Gathered, String> {
    gather(request(words), &mut host.host, || None).map_err(|error| {
        let error = error.to_string();
        assert!(!error.contains('\n'), "more than one line: {error}");
        error
    })
}

/// `KEY=VALUE` words, `profile=NAME` and `trust` among them.
fn request(words: &[&str]) -> Request {
    let mut request = Request::default();
    for word in words {
        match word.split_once('=') {
            None => request.trusts_project = true,
            Some(("profile", name)) => request.profiles.push(name.into()),
            Some((name, value)) => {
                let key = Key::named(name).unwrap();
                let value = match key.form {
                    Form::Switch => Value::Switch(value == "true"),
                    _ => Value::Word(value.into()),
                };
                request.flags.push(Setting::flag(key, value));
            }
        }
    }
    request
}

/// What counts of a key.
fn words(gathered: &Gathered, key: &str) -> Vec<String> {
    let of_key = gathered.settings.iter().filter(|setting| setting.key.name == key);
    of_key.map(|setting| setting.value.to_string()).collect()
}

fn refused(host: &mut TestHost, words: &[&str], parts: &[&str]) {
    let error = gathered(host, words).expect_err("it was taken");
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

#[test]
fn without_files_there_is_nothing_but_the_flags() {
    let mut host = host();
    let it = gathered(&mut host, &["memory=1g", "env=A=1", "env=A=2", "kmsg=true"]).unwrap();
    assert_eq!(it.places, [Place::BuiltIn("default")]);
    assert!(it.project.is_none() && it.left_out.is_empty());
    assert_eq!(it.options.limits.memory.as_deref(), Some("1g"));
    assert_eq!(it.options.env, ["A=2"]);
    assert!(it.options.kmsg);
}

#[test]
fn every_built_in_profile_runs_everywhere() {
    for (name, text) in BUILT_IN {
        let mut host = host();
        let it = gathered(&mut host, &[&format!("profile={name}")]).unwrap();
        let options = Options { argv: vec!["true".into()], ..it.options };
        resolve(&options, &host.host).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(text.starts_with("description = \""), "{name} does not say what it is for");
    }
    let mut host = host();
    host.directory("/home/me/.cache");
    host.file("/home/me/project/.git/config");
    host.set("MY_VARIABLE", "1");
    let it = gathered(&mut host, &["profile=agent"]).unwrap();
    let options = Options { argv: vec!["true".into()], ..it.options };
    let spec = resolve(&options, &host.host).unwrap();
    assert!(spec.environment.iter().all(|(name, _)| name != "MY_VARIABLE"));
    assert!(spec.environment.iter().any(|(name, _)| name == "PATH"));
    let view = View::of(&spec.mounts);
    assert!(matches!(view.shown(Path::new("/home/me/.cache/x")), Shown::Private(_)));
    let config = view.covering(Path::new("/home/me/project/.git/config")).unwrap();
    assert!(matches!(config.kind, MountKind::ReadOnly { .. }), "{config:?}");
}

#[test]
fn the_stronger_source_counts_and_lists_add_up() {
    let mut host = host();
    put(
        &host,
        "/etc/sandbox/default.toml",
        "memory = '1g'\npids = 7\nhide = '/data'\ntime = ['+1d']",
    );
    put(
        &host,
        USER,
        "memory = '2g'\nhide = ['/srv']\ntime = ['frozen', '+2d']\nenv = ['A=1', 'B=1']",
    );
    let it = gathered(&mut host, &["hide=/etc", "env=A=2"]).unwrap();
    assert_eq!(words(&it, "memory"), ["2g"]);
    assert_eq!(words(&it, "pids"), ["7"]);
    assert_eq!(words(&it, "hide"), ["/data", "/srv", "/etc"]);
    assert_eq!(it.options.time, ["frozen", "+2d"]);
    assert_eq!(words(&it, "env"), ["B=1", "A=2"]);
    let memory = it.settings.iter().find(|it| it.key.name == "memory").unwrap();
    assert_eq!(memory.origin.to_string(), format!("{USER}:1"));
    // A profile that is named takes the place of the default ones.
    put(&host, "/home/me/.config/sandbox/mine.toml", "inherit = 'build'\npids = 3");
    let it = gathered(&mut host, &["profile=mine"]).unwrap();
    assert_eq!((words(&it, "memory"), words(&it, "pids")), (vec![], vec!["3".to_owned()]));
    assert_eq!(it.places[0], Place::BuiltIn("build"));
    let it = gathered(&mut host, &["profile=mine", "profile=build"]).unwrap();
    assert_eq!(words(&it, "pids"), ["3"], "a profile is taken once, at its weakest place");
    // A profile adds to what has its name in a weaker place.
    put(&host, "/home/me/.config/sandbox/build.toml", "cpus = 1");
    let it = gathered(&mut host, &["profile=build"]).unwrap();
    assert_eq!((words(&it, "pids").len(), words(&it, "cpus")), (1, vec!["1".to_owned()]));
}

#[test]
fn of_two_sources_about_one_place_the_stronger_counts() {
    let mut host = host();
    put(&host, USER, "hide = ['/data', '/nowhere']\nro = '/srv/work'");
    let it = gathered(&mut host, &["rw=/data"]).unwrap();
    let options = Options { argv: vec!["true".into()], ..it.options };
    let spec = resolve(&options, &host.host).unwrap();
    let at = |path: &str| spec.mounts.iter().find(|it| it.target == Path::new(path)).unwrap();
    assert!(matches!(at("/data").kind, MountKind::Writable { .. }));
    assert!(format!("{:?}", at("/srv/work").why).contains("default.toml:2"));
    // In one source it is a contradiction.
    let it = gathered(&mut host, &["rw=/srv", "ro=/srv"]).unwrap();
    let options = Options { argv: vec!["true".into()], ..it.options };
    assert!(resolve(&options, &host.host).unwrap_err().to_string().contains("contradict"));
}

#[test]
fn paths_mean_what_a_shell_would_make_of_them() {
    let mut host = host();
    host.set("WHERE", "/srv:x");
    put(&host, USER, r"ro = ['~/a', '$WHERE/b:/c', '${HOME}$$', 'in/d', '~']");
    put(&host, "/data/my.toml", r"hide = ['e', '.', './f', '\:']");
    let it = gathered(&mut host, &["profile=/data/my.toml"]).unwrap();
    assert_eq!(words(&it, "hide"), ["/data/e", "/data", "/data/f", r"'/data/\:'"]);
    let it = gathered(&mut host, &[]).unwrap();
    let text: Vec<_> = it.options.rules.iter().map(|rule| rule.text.to_str().unwrap()).collect();
    assert_eq!(text, ["/home/me/a", r"/srv\:x/b:/c", "/home/me$", "in/d", "/home/me"]);
    for (bad, part) in [
        ("~you", "only your own home"),
        ("$", "not followed by"),
        ("${HOME", "not followed by"),
        ("${}", "not followed by"),
        ("$NOWHERE/x", "NOWHERE is not set"),
        ("", "the path is empty"),
    ] {
        put(&host, USER, &format!("ro = ['/x',\n '{bad}']"));
        refused(&mut host, &[], &[part, "line 2, column 2"]);
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let mut host = host();
    for (text, parts) in [
        ("\nnetw = 'host'", &["line 2, column 1", "no key netw", "nearest one is net"][..]),
        ("hidden = 'x'", &["nearest one is hide"]),
        ("xyzzy = 1", &["no key xyzzy", "sandbox profile show"]),
        ("memory = ", &["line 1, column 10", "no TOML"]),
        ("memory = '1g\n", &["line 1, column", "no TOML"]),
        ("memory = '1g'\nmemory = '2g'", &["line 2, column 1", "no TOML"]),
        ("memory = 'lots'", &["line 1, column 10", "lots", "512m"]),
        ("ro = ['/a', 5]", &["line 1, column 13", "ro is a string", "integer"]),
        ("pids = true", &["line 1, column 8", "boolean"]),
        ("kmsg = 'yes'", &["true or false", "string"]),
        ("[run]\nro = '/a'", &["line 1, column 2", "no key run"]),
        ("net = 'all'", &["line 1, column 7", "none, allow, host"]),
        ("fd = [-1]", &["line 1, column 7", "--fd"]),
        ("pids = 99999999999999999999", &["too large"]),
        ("env = ['=x']", &["names no variable"]),
        ("description = 5", &["description is a string"]),
        ("inherit = 'nothing'", &["line 1, column 11", "no profile nothing"]),
        ("inherit = 'buildd'", &["nearest one is build"]),
        ("inherit = './x.toml'", &["line 1, column 11", "no file"]),
        ("inherit = 'default'", &["stands on itself"]),
        ("ä = 1", &["line 1, column 1"]),
    ] {
        put(&host, USER, text);
        let mut parts = parts.to_vec();
        parts.push(USER);
        refused(&mut host, &[], &parts);
    }
    std::fs::remove_file(host.host.root.join(&USER[1..])).unwrap();
    refused(&mut host, &["profile=agnet"], &["agnet", "nearest one is agent"]);
    refused(&mut host, &["profile=../x"], &["no file"]);
    refused(&mut host, &["profile=a b"], &["letters, digits"]);
}

#[test]
fn inheritance_ends() {
    let mut host = host();
    put(&host, PROJECT, "inherit = 'a.toml'");
    put(&host, "/home/me/project/a.toml", "inherit = './b.toml'");
    put(&host, "/home/me/project/b.toml", "inherit = './/a.toml'");
    refused(&mut host, &[], &["stands on itself", "a.toml inherits", "b.toml inherits"]);
    // Each of many that inherit two others is read once.
    for number in 0..10 {
        let both = format!("inherit = ['./{0}.toml', '{0}.toml']", number + 1);
        put(&host, &format!("/home/me/project/{number}.toml"), &both);
    }
    put(&host, "/home/me/project/10.toml", "pids = 3");
    put(&host, PROJECT, "inherit = '0.toml'");
    assert_eq!(words(&gathered(&mut host, &[]).unwrap(), "pids"), ["3"]);
    for number in 10..20 {
        let next = format!("inherit = './{}.toml'", number + 1);
        put(&host, &format!("/home/me/project/{number}.toml"), &next);
    }
    refused(&mut host, &[], &["too many profiles stand on one another"]);
    put(&host, PROJECT, &format!("inherit = [{}]", "'build', ".repeat(65)));
    refused(&mut host, &[], &["inherits more than 64"]);
}

#[test]
fn what_a_project_inherits_by_name_is_the_users() {
    let mut host = host();
    put(&host, PROJECT, "inherit = 'mine'");
    put(&host, "/home/me/.config/sandbox/mine.toml", "inherit = ['./more.toml', '../shared.toml']");
    put(&host, "/home/me/.config/sandbox/more.toml", "pids = 3");
    put(&host, "/home/me/.config/shared.toml", "cpus = 1");
    let gathered = gathered(&mut host, &[]).unwrap();
    assert_eq!(
        (words(&gathered, "pids"), words(&gathered, "cpus")),
        (vec!["3".into()], vec!["1".into()])
    );
}

#[test]
fn a_place_is_taken_for_what_it_was_when_it_was_judged() {
    let mut host = host();
    host.directory("/home/me/project/out");
    put(&host, PROJECT, "rw = 'out'");
    let options = gathered(&mut host, &[]).unwrap().options;
    let options = Options { argv: vec!["true".into()], ..options };
    assert!(resolve(&options, &host.host).is_ok());
    // Somebody puts a link in its place, and whoever runs it looks anew.
    let out = host.host.root.join("home/me/project/out");
    std::fs::remove_dir(&out).unwrap();
    host.link("/home/me/project/out", "/home/me");
    host.look_anew();
    let error = resolve(&options, &host.host).unwrap_err().to_string();
    assert!(error.contains("lead elsewhere"), "{error}");
}

#[test]
fn a_project_leads_nowhere_else() {
    let mut host = host();
    put(&host, "/home/me/secret.toml", "pids = 3");
    host.link("/home/me/project/away", "/home/me");
    host.link("/home/me/project/link.toml", "/home/me/secret.toml");
    for (path, part) in [
        ("../secret.toml", "own directory only"),
        ("/home/me/secret.toml", "own directory only"),
        ("away/secret.toml", "symbolic link"),
        ("./link.toml", "symbolic link"),
    ] {
        put(&host, PROJECT, &format!("inherit = '{path}'"));
        refused(&mut host, &[], &[part]);
        refused(&mut host, &["trust"], &[part]);
    }
    put(&host, "/home/me/project/below/it.toml", "pids = 3\nhide = 'x'");
    put(&host, PROJECT, "inherit = 'below/it.toml'");
    let it = gathered(&mut host, &[]).unwrap();
    assert_eq!(words(&it, "hide"), ["/home/me/project/below/x"]);
}

#[test]
fn files_that_others_can_write_are_refused() {
    let mut host = host();
    let real = host.host.root.join(&PROJECT[1..]);
    for (mode, is_taken) in [(0o644, true), (0o600, true), (0o646, false), (0o664, false)] {
        put(&host, PROJECT, "pids = 3");
        host.host.gid = nix::unistd::getegid().as_raw().wrapping_add(1);
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(mode)).unwrap();
        match is_taken {
            true => assert!(gathered(&mut host, &[]).is_ok(), "{mode:o}"),
            false => refused(&mut host, &[], &["others may write", PROJECT]),
        }
    }
    std::fs::remove_file(&real).unwrap();
    nix::unistd::mkfifo(&real, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&mut host, &[], &["not a regular file", PROJECT]);
    std::fs::remove_file(&real).unwrap();
    std::fs::create_dir(&real).unwrap();
    refused(&mut host, &[], &["not a regular file"]);
    std::fs::remove_dir(&real).unwrap();
    host.link(PROJECT, "/nowhere");
    refused(&mut host, &[], &["symbolic link"]);
    std::fs::remove_file(&real).unwrap();
    std::fs::write(&real, b"pids = 3\n# \xff").unwrap();
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(&mut host, &[], &["line 2", "not UTF-8"]);
    let file = std::fs::File::create(&real).unwrap();
    file.set_len(1 << 40).unwrap();
    refused(&mut host, &[], &["longer than 8 MiB"]);
}

#[test]
fn the_search_for_a_project_ends_where_the_project_does() {
    let mut host = host();
    let found = |host: &mut TestHost, cwd: &str| {
        host.directory(cwd);
        host.host.cwd = Ok(cwd.into());
        places::project(&host.host).map(|path| path.to_str().unwrap().to_owned())
    };
    put(&host, "/home/me/sandbox.toml", "");
    put(&host, "/home/sandbox.toml", "");
    put(&host, "/sandbox.toml", "");
    assert_eq!(found(&mut host, "/home/me/other/deep"), None);
    assert_eq!(found(&mut host, "/home/me"), None);
    assert_eq!(found(&mut host, "/"), None);
    put(&host, PROJECT, "");
    assert_eq!(found(&mut host, "/home/me/project/a/b").as_deref(), Some(PROJECT));
    host.directory("/home/me/project/a/.git");
    assert_eq!(found(&mut host, "/home/me/project/a/b"), None);
    put(&host, "/home/me/project/a/sandbox.toml", "");
    let inner = "/home/me/project/a/sandbox.toml";
    assert_eq!(found(&mut host, "/home/me/project/a/b").as_deref(), Some(inner));
    // Where everybody can put a file, it is looked for only if one starts there.
    host.directory("/shared/mine");
    let shared = host.host.root.join("shared");
    std::fs::set_permissions(shared, std::fs::Permissions::from_mode(0o1777)).unwrap();
    put(&host, "/shared/sandbox.toml", "");
    assert_eq!(found(&mut host, "/shared/mine"), None);
    assert_eq!(found(&mut host, "/shared").as_deref(), Some("/shared/sandbox.toml"));
}

#[test]
fn a_project_narrows_and_never_widens_unasked() {
    let mut host = host();
    host.directory("/home/me/project/part");
    host.directory("/home/me/.ssh");
    host.file("/home/me/project/notes");
    put(&host, USER, "memory = '1g'\ncpu-time = '10s'\nhide = '/data'");
    let text = "ro = ['part', '/etc', '/data/in', '~/.ssh', '/tmp', '/srv:/usr']\nrw = ['.', '/srv']\n\
                hide = ['notes', '/srv']\ntmpfs = ['part', '/etc', '/tmp']\nnet = 'host'\n\
                memory = '2g'\npids = 9\ncpu-time = '5s:20s'\ntimeout = 5\nenv = ['A=1']\n\
                clear-env = true\nuser = 'root'\nworkdir = 'part'\nkmsg = true\nfd = 7\n\
                hostname = 'box'\ndetach = true\nquiet = true\nid = 'x'\ndry-run = true";
    put(&host, PROJECT, text);
    let it = gathered(&mut host, &[]).unwrap();
    let p = |path: &str| format!("/home/me/project{path}");
    assert_eq!(words(&it, "ro"), [p("/part"), "/etc".to_owned()]);
    assert_eq!(words(&it, "rw"), [p("")]);
    assert_eq!(words(&it, "hide"), ["/data".to_owned(), p("/notes"), "/srv".to_owned()]);
    assert_eq!(words(&it, "tmpfs"), [p("/part"), "/tmp".to_owned()]);
    assert_eq!(words(&it, "memory"), ["1g"]);
    assert_eq!(words(&it, "cpu-time"), ["10s"]);
    for (key, value) in
        [("pids", "9"), ("timeout", "5"), ("clear-env", "true"), ("hostname", "box")]
    {
        assert_eq!(words(&it, key), [value], "{key}");
    }
    for key in ["net", "env", "user", "workdir", "kmsg", "fd", "detach", "quiet", "id", "dry-run"] {
        assert!(words(&it, key).is_empty(), "{key}");
        assert!(it.left_out.iter().any(|setting| setting.key.name == key), "{key}");
    }
    let trusted = gathered(&mut host, &["trust"]).unwrap();
    assert!(trusted.left_out.is_empty() && trusted.options.detach);
    assert_eq!(words(&trusted, "memory"), ["2g"]);
    assert_eq!(trusted.options.network, Network::Host);
    // The command line has the last word.
    let it = gathered(&mut host, &["trust", "memory=3g", "net=none", "detach=false"]).unwrap();
    assert_eq!((words(&it, "memory"), it.options.detach), (vec!["3g".to_owned()], false));
    assert_eq!(it.options.network, Network::None);
    // What a project inherits by name is its own wish, too.
    put(&host, PROJECT, "inherit = ['debug', 'job']");
    let it = gathered(&mut host, &[]).unwrap();
    assert!(!it.options.detach && !it.options.kmsg);
    assert_eq!(words(&it, "pids"), ["4096"]);
}

#[test]
fn the_control_sockets_are_not_shown_to_a_project() {
    let mut host = host();
    host.directory("/srv/control");
    put(&host, PROJECT, "ro = ['/srv', '/srv/control']");
    let private = || Some("/srv/control".into());
    let it = gather(Request::default(), &mut host.host, private).unwrap();
    assert_eq!(words(&it, "ro"), ["/srv"]);
}

#[test]
fn the_overlays_are_not_shown_to_a_project() {
    let mut host = host();
    host.directory("/home/me/project/ov/id");
    put(&host, PROJECT, "ro = ['ov', 'ov/id']");
    let it = gathered(&mut host, &[]).unwrap();
    assert_eq!(words(&it, "ro"), ["/home/me/project/ov", "/home/me/project/ov/id"]);
    let it = gathered(&mut host, &["overlay-dir=ov"]).unwrap();
    assert_eq!(words(&it, "ro"), Vec::<String>::new());
}

#[test]
fn the_documentation_has_the_table() {
    let page = include_str!("../../../docs/profiles.md");
    let table = markdown();
    assert!(page.contains(&table), "put this into docs/profiles.md:\n{table}");
    for (name, _) in BUILT_IN {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
}
