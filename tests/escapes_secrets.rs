//! Reading what is hidden, by every road: each one finds the secret natively and not inside.

mod common;

use std::fs;

use common::attack::{Attack, raw};
use common::{Workspace, guest};
use libc::{O_DIRECTORY, O_PATH, O_RDONLY};

const SECRET: &str = "the secret";

/// A victim with a directory `vault` and a file `token` that hold secrets, and the options that hide
/// both.
fn hidden(test: &str) -> (Attack, Vec<String>) {
    withheld(test, "--hide", ["vault", "token"])
}

/// The same by another flag, or by patterns.
fn withheld(test: &str, flag: &str, names: [&str; 2]) -> (Attack, Vec<String>) {
    let attack = Attack::new(test);
    attack.victim.write("vault/inner/key", SECRET);
    attack.victim.write("token", SECRET);
    let path = |name: &str| attack.victim.path().join(name).to_str().unwrap().to_owned();
    let options = names.iter().flat_map(|name| [flag.to_owned(), path(name)]).collect();
    (attack, options)
}

/// Ways to withhold both, and what a name of them answers then.
const WAYS: [(&str, [&str; 2], &str); 3] = [
    ("--deny", ["vault", "token"], "EACCES"),
    ("--hide", ["**/inner", "t*n"], "ENOENT"),
    ("--deny", ["**/key", "[s-u]oken"], "EACCES"),
];

/// Roads to a secret; those that natively need no more than the user's own rights.
const ROADS: &[&str] = &[
    "cat $V/token",
    "cat $V/vault/inner/key",
    "cat ../${V##*/}/vault/inner/key",
    "cat /proc/self/root$V/token",
    "cat /proc/self/root$V/vault/inner/key",
    "ln -s $V/vault link; cat link/inner/key",
    "ln $V/vault/inner/key hard; cat hard",
    "ln $V/token hard; cat hard",
    "cp -r $V copy; cat copy/vault/inner/key copy/token",
    "find $V -type f -exec cat {} +",
    "cd $V/vault/inner; cat key",
    "cat 3< $V /proc/self/fd/3/vault/inner/key",
    "cat 3< $V/vault /proc/self/fd/3/inner/key",
    "chmod 777 $V/vault; cat $V/vault/inner/key",
    "chmod 666 $V/token; cat $V/token",
    "mv $V/vault $V/elsewhere; cat $V/elsewhere/inner/key",
    "mv $V/token $V/elsewhere; cat $V/elsewhere",
    "tar cf - -C ${V%/*} ${V##*/}",
];

#[test]
fn by_every_road() {
    let (attack, hide) = hidden("roads");
    for road in ROADS {
        look(&attack, &hide, road);
    }
}

#[test]
fn by_every_road_to_what_is_denied_or_matches_a_pattern() {
    for (number, (flag, names, _)) in WAYS.into_iter().enumerate() {
        let (attack, options) = withheld(&format!("ways-{number}"), flag, names);
        for road in ROADS {
            look(&attack, &options, road);
        }
    }
}

#[test]
fn by_every_road_to_that_in_a_writable_directory() {
    for (number, (flag, names, _)) in WAYS.into_iter().enumerate() {
        let (attack, mut options) = withheld(&format!("rw-ways-{number}"), flag, names);
        options.extend(["--rw".to_owned(), attack.victim.path().to_str().unwrap().to_owned()]);
        for road in ROADS {
            look(&attack, &options, road);
        }
        assert_eq!(attack.victim.read("vault/inner/key"), SECRET);
        assert_eq!(attack.victim.read("token"), SECRET);
    }
}

/// Each call on what is hidden or denied answers as the flag says, and none of them moves it.
#[test]
fn by_every_call() {
    let plain = ("--hide", ["vault", "token"], "ENOENT");
    for (number, (flag, names, answer)) in [plain].into_iter().chain(WAYS).enumerate() {
        let (attack, mut options) = withheld(&format!("calls-{number}"), flag, names);
        let victim = attack.victim.path().display().to_string();
        options.extend(["--rw".to_owned(), victim.clone()]);
        let token = format!("{victim}/token");
        attack.victim.write("program", "#!/bin/sh\necho ran\n");
        let calls = [
            (format!("{} s:{token} {O_RDONLY}", libc::SYS_open), answer),
            (format!("{} -100 s:{token} {}", libc::SYS_openat, libc::O_WRONLY), answer),
            (format!("{} s:{token} {}", libc::SYS_open, libc::O_RDWR | libc::O_CREAT), answer),
            (format!("{} s:{token} 0 0", libc::SYS_execve), answer),
            (format!("{} s:{victim}/vault/inner/key {O_RDONLY}", libc::SYS_open), answer),
            (format!("{} s:{victim}/vault/inner/key 0 0", libc::SYS_execve), answer),
            (format!("{} s:{token}", libc::SYS_unlink), "EBUSY"),
            (format!("{} s:{token} s:{victim}/other", libc::SYS_rename), "EBUSY"),
            (format!("{} s:{victim}/program s:{token}", libc::SYS_rename), "EBUSY"),
            (format!("{} s:{token} s:{victim}/other", libc::SYS_link), "EXDEV"),
            (format!("{} s:{victim}/vault s:{victim}/other", libc::SYS_rename), "EBUSY"),
            (
                format!("{} -100 s:{token} h:8000000000000000 z:8 0", libc::SYS_name_to_handle_at),
                "",
            ),
            (
                format!(
                    "{} -100 h:0800000001000000aaaaaaaaaaaaaaaa 0",
                    libc::SYS_open_by_handle_at
                ),
                "EPERM",
            ),
        ];
        let all: Vec<&str> = calls.iter().map(|(call, _)| call.as_str()).collect();
        let outcome = attack.workspace.inside_with(&options, &raw(&all.join(" , ")));
        let answers: Vec<String> = outcome.out().lines().map(str::to_owned).collect();
        assert_eq!(answers.len(), calls.len(), "{}", outcome.report());
        for ((call, expected), found) in calls.iter().zip(&answers) {
            let fine = expected.is_empty() || found == expected;
            assert!(fine, "{flag} {names:?}: {call} answers {found}, not {expected}");
        }
        assert_eq!(attack.victim.read("token"), SECRET);
    }
}

/// One thread exchanges a name of the guest's own with links and directories on the way to the secret
/// while another opens it.
#[test]
fn by_flipping_a_path_while_it_is_used() {
    for (number, (flag, names, _)) in WAYS.into_iter().enumerate() {
        let (attack, mut options) = withheld(&format!("flips-{number}"), flag, names);
        options.extend(["--rw".to_owned(), attack.victim.path().to_str().unwrap().to_owned()]);
        let program = guest("flip_path").to_str().unwrap().to_owned();
        let token = attack.victim.path().join("token").to_str().unwrap().to_owned();
        let outcome = attack.workspace.inside_with(&options, &[program, token, "2000".to_owned()]);
        outcome.success().out_has("opened own");
        assert_eq!(attack.victim.read("token"), SECRET);
    }
}

/// Where the directory around it is writable, the secret must not be moved out of its cover.
#[test]
fn by_every_road_in_a_writable_directory() {
    let (attack, mut hide) = hidden("writable");
    hide.extend(["--rw".to_owned(), attack.victim.path().to_str().unwrap().to_owned()]);
    for road in ROADS {
        look(&attack, &hide, road);
    }
    look(&attack, &hide, "mkdir $V/new; mv $V/vault/inner $V/new; cat $V/new/inner/key");
    assert_eq!(attack.victim.read("vault/inner/key"), SECRET);
    assert_eq!(attack.victim.read("token"), SECRET);
}

/// Takes one road natively, where it must find the secret, and inside.
#[track_caller]
fn look(attack: &Attack, hide: &[String], road: &str) {
    let shell = |mut command: std::process::Command| {
        command.args(["sh", "-c", road]).env("V", attack.victim.path());
        command
    };
    let (_, native) = attack.changed_by(&mut shell(attack.workspace.command("env")));
    native.out_has(SECRET);
    let mut inside = attack.workspace.sandbox();
    inside.args(hide).arg("--");
    let (_, outcome) = attack.changed_by(&mut shell(inside));
    assert_ne!(outcome.status, 125, "the attack was not run\n{}", outcome.report());
    outcome.out_lacks(SECRET);
}

#[test]
fn by_the_root_of_the_first_process() {
    let (attack, hide) = hidden("init");
    let script =
        "cat /proc/[0-9]*/root$V/token /proc/[0-9]*/cwd/../${V##*/}/vault/inner/key; echo end";
    let mut command = attack.workspace.sandbox();
    command.args(&hide).args(["--", "sh", "-c", script]).env("V", attack.victim.path());
    attack.must_survive(&mut command).out_has("end").out_lacks(SECRET);
}

/// A handle that gives no right to read must not be turned into one that does.
#[test]
fn by_a_path_handle() {
    let plain = ("--hide", ["vault", "token"], "");
    for (number, (flag, names, _)) in [plain].into_iter().chain(WAYS).enumerate() {
        let (attack, options) = withheld(&format!("handle-{number}"), flag, names);
        let victim = attack.victim.path().display();
        let calls = [
            format!("{} s:{victim}/vault {}", libc::SYS_open, O_PATH | O_DIRECTORY),
            format!("{} =0 s:inner/key {O_RDONLY}", libc::SYS_openat),
            format!("{} s:{victim}/token {O_PATH}", libc::SYS_open),
            // The first call's descriptor is 3, the third's 4 or 5; the file is read if it opens.
            format!("{} s:/proc/self/fd/4 {O_RDONLY}", libc::SYS_open),
            format!("{} s:/proc/self/fd/5 {O_RDONLY}", libc::SYS_open),
            format!("{} -100 s:{victim}/token {O_RDONLY}", libc::SYS_openat),
            format!("{} s:{victim}/token {}", libc::SYS_open, O_PATH | libc::O_NOFOLLOW),
            format!("{} =6 s: 0 0 {}", libc::SYS_execveat, libc::AT_EMPTY_PATH),
            format!("{} =6 s: -100 s:hard {}", libc::SYS_linkat, libc::AT_EMPTY_PATH),
            format!("{} =0 s:inner/key 0 0 0", libc::SYS_execveat),
        ];
        let outcome = attack.workspace.inside_with(&options, &raw(&calls.join(" , ")));
        let answers: Vec<String> = outcome.out().lines().map(str::to_owned).collect();
        assert_eq!(answers.len(), calls.len(), "{}", outcome.report());
        for index in [1, 3, 4, 5, 7, 8, 9] {
            let answer = &answers[index];
            assert!(answer.starts_with('E'), "{flag} {names:?}: {} gave {answer}", calls[index]);
        }
    }
}

/// A path that leads to the secret by another mount of the same directory.
#[test]
fn by_another_name_of_the_directory() {
    let (attack, mut hide) = hidden("alias");
    let victim = attack.victim.path().to_str().unwrap();
    let alias = attack.workspace.path().join("alias");
    fs::create_dir(&alias).unwrap();
    hide.extend(["--ro".to_owned(), format!("{victim}/vault/inner:{}", alias.display())]);
    // The user asked for this one by name: it is shown, and nothing else of the vault.
    let script = format!("cat alias/key; echo; cat {victim}/vault/inner/key alias/../inner/key");
    let outcome = attack.workspace.inside_with(&hide, &["sh", "-c", &script]);
    assert!(outcome.out().matches(SECRET).count() <= 1, "{}", outcome.report());
}

/// The well-known places in the home directory, without any option.
#[test]
fn in_the_well_known_places() {
    let home = Workspace::new("home");
    let places = [
        ".ssh/id_ed25519",
        ".gnupg/private-keys-v1.d/a.key",
        ".aws/credentials",
        ".kube/config",
        ".docker/config.json",
        ".netrc",
        ".git-credentials",
        ".pypirc",
        ".npmrc",
        ".cargo/credentials.toml",
        ".config/gcloud/credentials.db",
        ".config/gh/hosts.yml",
        ".azure/accessTokens.json",
        ".local/share/keyrings/login.keyring",
        ".mozilla/firefox/a.default/logins.json",
        ".config/google-chrome/Default/Login Data",
        ".password-store/a.gpg",
    ];
    for place in places {
        home.write(place, format!("{SECRET} of {place}\n"));
    }
    home.write("notes", "not a secret\n");
    let workspace = Workspace::new("home-work");
    let script = "grep -r . $HOME";
    let mut native = workspace.command("sh");
    native.args(["-c", script]).env("HOME", home.path());
    let native = common::run(native, b"", common::LIMIT);
    for place in places {
        native.out_has(&format!("{SECRET} of {place}"));
    }
    let mut inside = workspace.sandbox();
    inside.args(["--", "sh", "-c", script]).env("HOME", home.path());
    common::run(inside, b"", common::LIMIT).out_has("not a secret").out_lacks(SECRET);
}
