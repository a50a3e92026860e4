//! `--deny`, `--allow`, and patterns.

use std::os::fd::AsRawFd;

use super::*;

const HIDDEN: [Option<MountKind>; 2] =
    [Some(MountKind::HiddenDirectory), Some(MountKind::HiddenFile)];

fn denied(host: &TestHost, rules: &[&str], path: &str) -> bool {
    kind_at(host, rules, path).is_some_and(|kind| kind.denies())
}

fn hidden(host: &TestHost, rules: &[&str], path: &str) -> bool {
    HIDDEN.contains(&kind_at(host, rules, path))
}

/// A project with keys at some depth.
fn project() -> TestHost {
    let host = TestHost::ordinary();
    for file in [".env", ".env.example", "a/.env", "a/b/key.pem", "a/b/key.pub", "src/main.c"] {
        host.file(&format!("/home/me/project/{file}"));
    }
    host.file("/data/in/deep/other.pem");
    host.file("/home/me/notes/.env");
    host
}

#[test]
fn denying_takes_the_kind_of_what_it_denies() {
    let host = TestHost::ordinary();
    host.file("/etc/motd");
    assert_eq!(kind_at(&host, &["--deny /etc/motd"], "/etc/motd"), Some(MountKind::DeniedFile));
    assert_eq!(kind_at(&host, &["--deny /data"], "/data"), Some(MountKind::DeniedDirectory));
    refused(&host, &["--deny /nope"], &["--deny /nope", "does not exist"]);
    refused(&host, &["--deny /home"], &["cannot start in /home/me/project", "--deny /home"]);
    refused(&host, &["--hide /data", "--deny /data"], &["--hide /data", "--deny /data"]);
    // It does not show under another name either.
    let rules = ["--ro /data:/srv/work", "--deny /data/in"];
    assert!(denied(&host, &rules, "/srv/work/in") && denied(&host, &rules, "/data/in"));
    // What is below something that is withheld is that, too.
    let rules = ["--hide /data", "--deny /data/in"];
    assert_eq!(kind_at(&host, &rules, "/data/in"), None);
}

#[test]
fn an_exception_has_the_access_that_it_would_have_had() {
    let host = TestHost::ordinary();
    host.file("/data/in/x");
    host.file("/data/y");
    for rule in ["--hide /data", "--deny /data"] {
        let rules = [rule, "--allow /data/in"];
        assert_eq!(kind_at(&host, &rules, "/data/in"), readonly("/data/in"));
    }
    let rules = ["--rw /home/me", "--hide /home/me/project", "--allow /home/me/project"];
    refused(&host, &rules, &["contradict", "--allow /home/me/project", "--hide /home/me/project"]);
    host.directory("/data/in/deep");
    let rules = ["--rw /data", "--hide /data/in", "--allow /data/in/deep"];
    assert_eq!(kind_at(&host, &rules, "/data/in/deep"), writable("/data/in/deep"));
    let rules = ["--ro /data:/srv/work", "--hide /srv/work/in", "--allow /srv/work/in/x"];
    assert_eq!(kind_at(&host, &rules, "/srv/work/in/x"), readonly("/data/in/x"));
    // A file of the sandbox's own is nothing of the host.
    refused(&host, &["--allow /tmp/x"], &["nothing of the host shows in /tmp", "--ro /tmp/x"]);
    refused(&host, &["--hide /data", "--allow /data/z"], &["/data/z does not exist"]);
    refused(&host, &["--allow /"], &["never hidden"]);
}

#[test]
fn around_an_exception_the_rest_is_hidden_or_denied() {
    let host = TestHost::ordinary();
    host.file("/data/in/x");
    host.file("/data/in/z");
    host.file("/data/y");
    let rules = ["--hide /data", "--allow /data/in/x"];
    assert_eq!(kind_at(&host, &rules, "/data"), Some(MountKind::Tmpfs { mode: 0o755 }));
    assert_eq!(kind_at(&host, &rules, "/data/y"), None);
    let rules = ["--deny /data", "--allow /data/in/x"];
    assert_eq!(kind_at(&host, &rules, "/data"), Some(MountKind::Tmpfs { mode: 0o111 }));
    assert_eq!(kind_at(&host, &rules, "/data/in"), Some(MountKind::Tmpfs { mode: 0o111 }));
    assert!(denied(&host, &rules, "/data/y") && denied(&host, &rules, "/data/in/z"));
    assert_eq!(kind_at(&host, &rules, "/data/in/x"), readonly("/data/in/x"));
}

#[test]
fn an_exception_of_nothing_is_no_mount() {
    let host = TestHost::ordinary();
    host.file("/home/me/.ssh/known_hosts");
    for rules in [
        &["--allow /data/in"][..],
        &["--rw /data", "--allow /data/in"],
        &["--hide /srv", "--allow /data/in"],
        &["--hide /data", "--ro /data/in", "--allow /data/in/deep"],
    ] {
        host.directory("/data/in/deep");
        let place = rules.last().unwrap().split_once(' ').unwrap().1;
        assert_eq!(kind_at(&host, rules, place), None, "{rules:?}");
    }
    // Secrets are hidden by default.
    let ssh = "/home/me/.ssh";
    assert_eq!(kind_at(&host, &["--allow /home/me/.ssh"], ssh), readonly(ssh));
    let known = "/home/me/.ssh/known_hosts";
    assert_eq!(kind_at(&host, &["--allow /home/me/.ssh/known_hosts"], known), readonly(known));
}

#[test]
fn the_working_directory_in_an_exception_can_be_written() {
    let host = TestHost::ordinary();
    let project = "/home/me/project";
    for allow in ["--allow .", "--allow /home/me"] {
        for rule in ["--hide /home", "--deny /home"] {
            assert_eq!(kind_at(&host, &[rule, allow], project), writable(project), "{allow}");
        }
    }
    let rules = ["--ro /home", "--hide /home/me", "--allow /home/me/project"];
    assert_eq!(kind_at(&host, &rules, project), readonly(project));
}

#[test]
fn a_pattern_covers_what_it_matches() {
    let host = project();
    let at = |name: &str| format!("/home/me/project/{name}");
    for rule in ["--hide **/.env", "--hide .en[v]", "--hide /home/**/.env", "--hide ./**/.env"] {
        assert!(hidden(&host, &[rule], &at(".env")), "{rule}");
        assert!(hidden(&host, &[rule], &at("a/.env")), "{rule}");
        assert!(!hidden(&host, &[rule], &at(".env.example")), "{rule}");
        // Of the homes, too, unless it begins elsewhere.
        let notes = hidden(&host, &[rule], "/home/me/notes/.env");
        assert_eq!(notes, !rule.contains("./"), "{rule}");
    }
    assert!(denied(&host, &["--deny *.pem"], &at("a/b/key.pem")));
    assert!(!denied(&host, &["--deny *.pem"], "/data/in/deep/other.pem"));
    assert!(denied(&host, &["--deny *.pem", "--ro /data"], "/data/in/deep/other.pem"));
    let moved = ["--deny *.pem", "--ro /data:/srv/work"];
    assert!(denied(&host, &moved, "/srv/work/in/deep/other.pem"));
    assert!(denied(&host, &["--deny /d*/**/other.pem"], "/data/in/deep/other.pem"));
    assert!(denied(&host, &["--deny b/*.pem"], &at("a/b/key.pem")));
    assert_eq!(kind_at(&host, &["--hide /home/me/project/a*"], &at("a")), HIDDEN[0]);
    assert_eq!(kind_at(&host, &["--hide a/**"], &at("a")), HIDDEN[0]);
    assert!(shapes(&host, &["--hide *.none"]).is_ok());
}

#[test]
fn the_more_specific_pattern_counts() {
    let host = project();
    let at = |name: &str| format!("/home/me/project/{name}");
    let rules = ["--hide .env*", "--allow .env.e*"];
    assert!(hidden(&host, &rules, &at(".env")) && !hidden(&host, &rules, &at(".env.example")));
    let rules = ["--deny key.p*", "--hide key.pe*"];
    assert!(hidden(&host, &rules, &at("a/b/key.pem")) && denied(&host, &rules, &at("a/b/key.pub")));
    // A path comes before every pattern.
    let rules = ["--hide *.pem", "--deny a/b/key.pem"];
    assert!(denied(&host, &rules, &at("a/b/key.pem")));
    let rules = ["--hide *.pem", "--allow a/b/key.pem"];
    assert_eq!(kind_at(&host, &rules, &at("a/b/key.pem")), None);
    let both = ["--hide *.pem", "--deny *.pem"];
    refused(&host, &both, &["--hide '*.pem'", "--deny '*.pem'", "a/b/key.pem", "more specific"]);
}

#[test]
fn patterns_make_exceptions_of_the_users_own_rules() {
    let host = project();
    host.file("/home/me/.ssh/id.pub");
    let at = |name: &str| format!("/home/me/project/{name}");
    for rule in ["--hide a", "--deny a", "--hide /home/me/project/a*", "--deny a/**"] {
        let rules = [rule, "--allow *.pub"];
        assert_eq!(
            kind_at(&host, &rules, &at("a/b/key.pub")),
            writable(&at("a/b/key.pub")),
            "{rule}"
        );
        assert_eq!(kind_at(&host, &rules, &at("a/b/key.pem")).is_some(), rule.contains("deny"));
    }
    // In what is an exception, more specific rules count again.
    let rules = ["--hide a", "--allow a/b*", "--deny key.pem"];
    let rules = [&rules[..2], &["--deny key.pe[m]"]].concat();
    assert_eq!(kind_at(&host, &rules, &at("a/b")), writable(&at("a/b")));
    assert!(denied(&host, &rules, &at("a/b/key.pem")));
    // Secrets are none of them.
    assert_eq!(kind_at(&host, &["--allow *.pub"], "/home/me/.ssh/id.pub"), None);
    let lifted = ["--allow /home/me/.ssh/id.pub"];
    assert!(kind_at(&host, &lifted, "/home/me/.ssh/id.pub").is_some());
}

#[test]
fn patterns_show_what_they_match_read_only_or_writable() {
    let host = project();
    host.file("/home/me/.ssh/id.pem");
    let at = |name: &str| format!("/home/me/project/{name}");
    let key = at("a/b/key.pem");
    assert_eq!(kind_at(&host, &["--ro *.pem"], &key), readonly(&key));
    // What is read-only anyway needs no mount.
    assert_eq!(kind_at(&host, &["--ro /data/**/*.pem"], "/data/in/deep/other.pem"), None);
    let other = "/data/in/deep/other.pem";
    assert_eq!(kind_at(&host, &["--rw /data/**/*.pem"], other), writable(other));
    let rules = ["--ro a*", "--rw a/**/b", "--ro ./a/b/*.pem"];
    let rules: Vec<String> = rules.iter().map(|it| it.replace("./", "/home/me/project/")).collect();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    assert_eq!(kind_at(&host, &rules, &at("a")), readonly(&at("a")));
    assert_eq!(kind_at(&host, &rules, &at("a/b")), writable(&at("a/b")));
    assert_eq!(kind_at(&host, &rules, &key), readonly(&key));
    // They open nothing that is hidden; the more specific one counts.
    assert_eq!(kind_at(&host, &["--hide a", "--rw *.pem"], &key), None);
    assert!(hidden(&host, &["--hide *.pem", "--ro *.p*"], &key));
    assert_eq!(kind_at(&host, &["--hide *.p*", "--ro *.pem"], &key), readonly(&key));
    refused(&host, &["--hide *.pem", "--ro *.pem"], &["--ro '*.pem'", "more specific"]);
    refused(&host, &["--rw *.pem:/srv"], &["leave the second path out"]);
    assert_eq!(kind_at(&host, &["--rw *.pem"], "/home/me/.ssh/id.pem"), None);
    // A name that looks like a pattern is shown alone.
    host.file("/data/i");
    host.file("/data/[i]");
    let mut host = host;
    host.look_anew();
    let shown = shapes(&host, &["--rw /data/[i]"]).unwrap();
    let shown: Vec<&str> =
        shown.iter().map(|it| it.0.as_str()).filter(|it| it.starts_with("/data")).collect();
    assert_eq!(shown, ["/data/[i]"]);
}

#[test]
fn what_a_matching_link_leads_to_is_covered() {
    let host = project();
    host.link("/home/me/project/link.pem", "/data/in/deep");
    host.link("/home/me/project/home.pem", "/home/me");
    host.link("/home/me/project/root.pem", "/");
    host.link("/home/me/project/none.pem", "/none");
    host.link("/home/me/project/into", "/data");
    assert_eq!(kind_at(&host, &["--hide *.pem"], "/data/in/deep"), HIDDEN[0]);
    assert_eq!(kind_at(&host, &["--hide *.pem"], "/home/me"), None);
    // No link is followed on the way.
    assert_eq!(kind_at(&host, &["--hide o*.pem"], "/data/in/deep/other.pem"), None);
}

#[test]
fn a_name_that_looks_like_a_pattern_can_be_named() {
    let host = TestHost::ordinary();
    for name in ["[id].js", "i.js", "a*"] {
        host.file(&format!("/home/me/project/{name}"));
    }
    let at = |rule: &str, name: &str| hidden(&host, &[rule], &format!("/home/me/project/{name}"));
    // Who writes the name of a file means at least that.
    assert!(at("--hide [id].js", "[id].js") && at("--hide [id].js", "i.js"));
    assert!(at(r"--hide \[id].js", "[id].js") && !at(r"--hide \[id].js", "i.js"));
    assert!(at(r"--hide a\*", "a*"));
    let both = ["--hide [id].js", "--allow [id].js"];
    refused(&host, &both, &["--hide '[id].js'", "more specific"]);
}

#[test]
fn bad_patterns_are_named() {
    let host = TestHost::ordinary();
    host.file("/data/file");
    let deep = format!("--hide /{}", "*/".repeat(70));
    for (rule, words) in [
        ("--hide */../x", "there is a .. behind a pattern"),
        ("--hide /data/file/*", "is not a directory"),
        ("--deny a\n*", "newline"),
        (&deep, "62 names at most"),
    ] {
        if rule.contains("/data/file") {
            assert!(shapes(&host, &[rule]).is_ok());
        } else {
            refused(&host, &[rule], &[words]);
        }
    }
    let many: Vec<String> = (0..1001).map(|number| format!("--hide *{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(&host, &many, &["more than 1000 patterns"]);
}

#[test]
fn patterns_that_match_nothing_are_told_of() {
    let host = project();
    let rules = ["--hide *.pem", "--hide *.none", "--allow *.example"];
    let spec = host.resolve(&options(&rules)).unwrap();
    assert_eq!(spec.idle, ["--hide '*.none' matches nothing"]);
    let spec = host.resolve(&options(&["--allow a/.env"])).unwrap();
    assert_eq!(spec.idle, ["--allow a/.env is no exception of anything"]);
}

#[test]
fn a_secret_that_a_rule_names_stays_one() {
    let host = TestHost::ordinary();
    host.file("/home/me/.ssh/id.pub");
    let key = "/home/me/.ssh/id.pub";
    for rule in ["--hide /home/me/.ssh", "--deny /home/me/.ssh", "--ro /data"] {
        for allow in ["--allow *.pub", "--allow /home/me/.ssh/*.pub", "--allow /home/**/id*"] {
            assert_eq!(kind_at(&host, &[rule, allow], key), None, "{rule} {allow}");
        }
        assert_eq!(kind_at(&host, &[rule, "--allow /home/me/.ssh/id.pub"], key), readonly(key));
    }
    let mut host = host;
    host.host.cwd = Ok("/srv/work".into());
    for allow in ["--allow /home/**/*.pub", "--allow /home/me/.ssh/*.pub"] {
        assert_eq!(kind_at(&host, &["--hide /home/me", allow], key), None, "{allow}");
    }
}

/// A rule as of a project's file that was looked at.
fn judged(words: &str, place: &str) -> Rule {
    let rule = options(&[words]).rules.remove(0);
    Rule { judged: Some(place.into()), rank: 1, ..rule }
}

#[test]
fn what_a_project_names_is_no_place_for_what_opens() {
    let host = project();
    let other = "/data/in/deep/other.pem";
    let view = |words: &[&str]| {
        let mut options = options(words);
        options.rules.push(judged("--ro /data", "/data"));
        View::of(&host.resolve(&options).unwrap().mounts)
    };
    let writes = |words: &[&str]| {
        let view = view(words);
        matches!(view.at(Path::new(other)).map(|it| &it.kind), Some(MountKind::Writable { .. }))
    };
    assert!(!writes(&["--rw *.pem"]));
    assert!(writes(&["--rw *.pem", "--ro /data/in"]));
    let hides = view(&["--hide *.pem"]);
    assert!(hides.at(Path::new(other)).is_some_and(|mount| mount.kind.hides()));
}

#[test]
fn a_profile_hides_what_only_the_view_has() {
    let host = TestHost::ordinary();
    host.directory("/mnt");
    host.file("/data/private/x");
    host.file("/etc/file");
    host.link("/etc/circle", "circle");
    let hides = |path: &str, rules: &[&str]| {
        let mut options = options(rules);
        let rule = Rule::new(RuleKind::Hide, path);
        options.rules.push(Rule { origin: crate::config::profile::Origin::BuiltIn("x"), ..rule });
        let view = View::of(&host.resolve(&options).unwrap().mounts);
        view.at(Path::new(path)).map(|mount| mount.kind.clone())
    };
    assert_eq!(hides("/mnt/private", &["--ro /data:/mnt"]), HIDDEN[0]);
    assert_eq!(hides("/mnt/private/x", &["--rw /data:/mnt"]), HIDDEN[1]);
    for path in ["/mnt/private", "/none/x", "/etc/file/x", "/etc/circle", "/tmp/x"] {
        assert_eq!(hides(path, &[]), None, "{path}");
    }
}

#[test]
fn a_contradiction_is_one_in_any_order() {
    let host = project();
    let at = "/home/me/project/a/b/key.pem";
    let mut rules = ["--hide *.pem", "--deny *.pem", "--deny key.pem*"];
    for _ in 0..rules.len() {
        rules.rotate_left(1);
        assert!(denied(&host, &rules, at), "{rules:?}");
    }
    let mut rules = ["--hide *.pem", "--deny *.pem", "--hide ke*"];
    for _ in 0..rules.len() {
        rules.rotate_left(1);
        refused(&host, &rules, &["--hide '*.pem'", "--deny '*.pem'"]);
    }
}

#[test]
fn what_lies_too_deep_is_left_out() {
    let host = project();
    let name = "n".repeat(250);
    let mut path = host.host.root.join("data/in");
    let start = path.as_os_str().len();
    while path.as_os_str().len() + name.len() < 4000 {
        path.push(&name);
        std::fs::create_dir(&path).unwrap();
    }
    std::fs::write(path.join("k.pem"), "").unwrap();
    // A few steps further no call takes the whole path.
    let mut directory = std::fs::File::open(&path).unwrap();
    for _ in 0..3 {
        nix::sys::stat::mkdirat(&directory, name.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let step = std::path::PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        directory = std::fs::File::open(step.join(&name)).unwrap();
        let step = std::path::PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        std::fs::write(step.join("k.pem"), "").unwrap();
    }
    let guest = format!("/data/in{}/k.pem", path.to_str().unwrap().split_at(start).1);
    let shapes = shapes(&host, &["--hide /data/**/*.pem"]).unwrap();
    let found: Vec<&str> =
        shapes.iter().map(|it| it.0.as_str()).filter(|it| it.starts_with("/data")).collect();
    assert!(found.contains(&guest.as_str()) && found.iter().all(|it| it.len() < 4096), "{found:?}");
}

/// What the definition says, of every path of a small tree.
fn by_definition(rules: &[(&str, &str)], path: &str) -> Option<&'static str> {
    let path = Path::new(path);
    let above: Vec<&Path> = path.ancestors().collect();
    let mut covered = None;
    for at in above.into_iter().rev() {
        let fits = |pattern: &str| {
            let names: Vec<&str> = at.iter().skip(1).map(|name| name.to_str().unwrap()).collect();
            let parts: Vec<&str> = pattern.split('/').skip(1).collect();
            covers(&parts, &names)
        };
        let matching = rules.iter().filter(|(_, pattern)| fits(pattern));
        let best = matching.max_by_key(|(_, pattern)| {
            pattern.bytes().filter(|byte| !b"*/".contains(byte)).count()
        });
        match best {
            Some(("allow", _)) => covered = None,
            // What is withheld above cannot be withheld otherwise below.
            Some(("hide", _)) => covered = covered.or(Some("hide")),
            Some(_) => covered = covered.or(Some("deny")),
            None => {}
        }
    }
    covered
}

fn covers(parts: &[&str], names: &[&str]) -> bool {
    match parts {
        [] => names.is_empty(),
        ["**", rest @ ..] => (0..=names.len()).any(|from| covers(rest, &names[from..])),
        [part, rest @ ..] => names.first().is_some_and(|name| {
            let fits = match part.split_once('*') {
                Some((head, tail)) => {
                    name.len() >= head.len() + tail.len()
                        && name.starts_with(head)
                        && name.ends_with(tail)
                }
                None => part == name,
            };
            fits && covers(rest, &names[1..])
        }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_view_is_what_the_definition_says(
        picks in proptest::collection::btree_map("/data(/(a|b|a\\*|\\*b|\\*|\\*\\*)){1,3}", 0..3usize, 1..5),
    ) {
        let host = TestHost::ordinary();
        let mut paths = Vec::new();
        for one in ["a", "b", "ab"] {
            for two in ["a", "b", "ab"] {
                for three in ["a", "b", "ab"] {
                    paths.push(format!("/data/{one}/{two}/{three}"));
                }
            }
        }
        paths.iter().for_each(|path| host.file(path));
        // Plain paths have rules of their own.
        let kinds = ["hide", "deny", "allow"];
        let rules: Vec<(&str, &str)> = picks.iter().filter(|(pattern, _)| pattern.contains('*'))
            .map(|(pattern, kind)| (kinds[*kind], pattern.as_str())).collect();
        let words: Vec<String> =
            rules.iter().map(|(kind, pattern)| format!("--{kind} {pattern}")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Ok(spec) = host.resolve(&options(&words)) else { return Ok(()) };
        let view = View::of(&spec.mounts);
        for path in &paths {
            let expected = by_definition(&rules, path);
            let shown = view.shown(Path::new(path));
            let fine = match (&shown, expected) {
                (Shown::Host { .. }, None) => true,
                (Shown::Hidden(mount), Some(word)) => mount.kind.denies() == (word == "deny"),
                // Beside an exception.
                (Shown::Private(_), Some(_)) => true,
                _ => false,
            };
            prop_assert!(fine, "{} is {:?}, expected {:?}", path, shown, expected);
        }
    }
}
