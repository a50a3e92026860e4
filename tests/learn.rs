//! `sandbox learn`: the profile that comes of a run lets the same program do the same, and another one no more.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{LIMIT, Outcome, Workspace, have, run};

/// A home with a project, and what is kept elsewhere: profiles, overlays, control sockets.
struct Desk {
    workspace: Workspace,
}

/// Content of files, and where links lead, by path.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

impl Desk {
    fn new(test: &str) -> Desk {
        let workspace = Workspace::new(test);
        for place in ["home/project", "home/.ssh", "home/.cache/old", "config/sandbox"] {
            fs::create_dir_all(workspace.path().join(place)).unwrap();
        }
        // (The last one is made by any run that might make it itself.)
        for place in ["run", "home/.local/state/sandbox/overlays"] {
            let place = workspace.path().join(place);
            fs::DirBuilder::new().mode(0o700).recursive(true).create(place).unwrap();
        }
        let desk = Desk { workspace };
        desk.put("home/.ssh/id", "key");
        desk
    }

    fn put(&self, file: &str, text: &str) -> PathBuf {
        let path = self.workspace.write(file, text);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        path
    }

    fn path(&self, file: &str) -> String {
        self.workspace.path().join(file).to_str().unwrap().to_owned()
    }

    fn with_home(&self, mut command: Command) -> Command {
        let path = |name: &str| self.workspace.path().join(name);
        command.current_dir(path("home/project")).env("HOME", path("home"));
        command.env("XDG_CONFIG_HOME", path("config")).env("XDG_STATE_HOME", path("state"));
        command.env("XDG_RUNTIME_DIR", path("run")).env("PYTHONDONTWRITEBYTECODE", "1");
        command.env_remove("XDG_CACHE_HOME");
        command
    }

    #[track_caller]
    fn sandbox(&self, words: &[&str]) -> Outcome {
        let mut command = self.with_home(self.workspace.sandbox());
        command.args(words);
        run(command, b"", LIMIT)
    }

    #[track_caller]
    fn learn(&self, options: &[&str], argv: &[&str]) -> Outcome {
        self.sandbox(&[&["learn"], options, &["--"], argv].concat())
    }

    /// Runs with the profile that was learned.
    #[track_caller]
    fn again(&self, argv: &[&str]) -> Outcome {
        self.sandbox(&[&["--profile", &self.path("config/it.toml"), "--"], argv].concat())
    }

    fn native(&self, argv: &[&str]) -> Outcome {
        let mut command = self.with_home(self.workspace.command(argv[0]));
        command.args(&argv[1..]);
        run(command, b"", LIMIT)
    }

    fn profile(&self) -> String {
        self.workspace.read("config/it.toml")
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        read(&self.workspace.path().join("home"), &mut tree);
        tree
    }

    /// A program natively, learned from, and run with what was learned: all three print the same, the first and the
    /// last leave the same behind, and the second nothing.
    #[track_caller]
    fn same(&self, argv: &[&str]) -> Outcome {
        let (before, home) = (self.tree(), self.path("home"));
        let copy = |from: &str, to: &str| {
            let done = Command::new("cp").args(["-a", from, to]).status();
            assert!(done.is_ok_and(|status| status.success()), "cannot copy {from}");
        };
        let kept = self.path("kept");
        copy(&home, &kept);
        let natively = self.native(argv);
        natively.success();
        let expected = self.tree();
        assert_ne!(before, expected, "the program does nothing");
        fs::remove_dir_all(&home).unwrap();
        fs::rename(&kept, &home).unwrap();

        let file = self.path("config/it.toml");
        let learned = self.learn(&["-o", &file], argv);
        learned.success().err_has("runs it with just that");
        assert_eq!(learned.out(), natively.out(), "{}", learned.report());
        differences(&self.tree(), &before, "learning has changed the host");
        let again = self.again(argv);
        assert_eq!(again.out(), natively.out(), "{}\n{}", again.report(), self.profile());
        again.success().expect_err(&natively.err());
        differences(&self.tree(), &expected, &self.profile());
        again
    }

    /// Another program, which wants what the first one did not.
    #[track_caller]
    fn no_more(&self) {
        self.put("home/.cache/old/file", "old");
        for script in ["echo x > ~/.cache/old/file", "echo x > ~/new", "rm ~/.cache/old/file"] {
            self.again(&["sh", "-c", script]).failure().err_has("Read-only file system");
        }
        self.again(&["cat", &self.path("home/.ssh/id")]).failure().expect_out("");
        self.again(&["ls", "-A", "/sys/class/net"]).success().expect_out("lo\n");
    }
}

fn read(path: &Path, tree: &mut Tree) {
    let content = match fs::read_dir(path) {
        Ok(entries) => {
            entries.flatten().for_each(|entry| read(&entry.path(), tree));
            b"(directory)".to_vec()
        }
        Err(_) => fs::read(path).unwrap_or_default(),
    };
    tree.insert(path.to_owned(), content);
}

#[track_caller]
fn differences(found: &Tree, expected: &Tree, profile: &str) {
    let all = found.keys().chain(expected.keys());
    let differ: Vec<_> = all.filter(|path| found.get(*path) != expected.get(*path)).collect();
    assert!(differ.is_empty(), "differ: {differ:?}\n{profile}");
}

#[test]
fn a_script_runs_with_what_was_learned_and_another_one_is_refused_more() {
    let desk = Desk::new("learn-script");
    desk.put("home/.config/tool/settings", "a=1\n");
    desk.put("home/.config/tool/other", "b=1\n");
    desk.put("home/data/list", "one\n");
    desk.put("home/data/other", "1\n");
    desk.put("home/data/third", "1\n");
    desk.put("home/data/fourth", "1\n");
    desk.put(
        "home/project/job.sh",
        "mkdir -p ~/.cache/tool/deep ~/.share/tool\n\
         for n in 1 2 3; do echo $n > ~/.cache/tool/deep/$n; done\n\
         echo two >> ~/data/list\n\
         sed -i s/1/2/ ~/.config/tool/settings\n\
         echo made > made; rm -f ~/.share/tool/none; t=$(mktemp /tmp/learn.XXXXXX); echo x > $t; cat $t; rm $t; cat ~/.config/tool/settings\n",
    );
    desk.same(&["sh", "job.sh"]).expect_out("x\na=2\n");
    let profile = desk.profile();
    for words in ["\"~/.cache/tool/\"", "\"~/data/list\"", "\"~/.config/tool\"", "\"~/.share/\""] {
        assert!(profile.contains(words), "no {words}\n{profile}");
    }
    assert!(!profile.contains("\"~/data\"") && !profile.contains("project"), "{profile}");
    desk.no_more();
}

#[test]
fn a_build_with_make_runs_with_what_was_learned() {
    if !have("make") || !have("cc") {
        return;
    }
    let desk = Desk::new("learn-make");
    fs::create_dir_all(desk.path("home/prefix/bin")).unwrap();
    desk.put(
        "home/project/main.c",
        "#include <stdio.h>\nint main(void) { puts(\"built\"); return 0; }\n",
    );
    desk.put(
        "home/project/Makefile",
        "all: main\n\t./main\nmain: main.o\n\t$(CC) -o $@ $^\n\
         install: all\n\tcp main ../prefix/bin/main\n\tmkdir -p ../prefix/share/doc\n\
         \techo doc > ../prefix/share/doc/main\n",
    );
    desk.same(&["make", "-s", "CFLAGS=-O1 -g0", "install"]).expect_out("built\n");
    assert!(desk.profile().contains("\"~/prefix/bin\""), "{}", desk.profile());
    desk.no_more();
}

#[test]
fn a_program_in_python_runs_with_what_was_learned() {
    if !have("python3") {
        return;
    }
    let desk = Desk::new("learn-python");
    desk.put(
        "home/project/work.py",
        "import json, multiprocessing, os, pathlib, tempfile\n\
         home = pathlib.Path.home()\n\
         def part(n):\n\
         \x20   (home / '.work' / f'{n}.json').write_text(json.dumps({'n': n}))\n\
         \x20   return n * n\n\
         if __name__ == '__main__':\n\
         \x20   (home / '.work').mkdir(exist_ok=True)\n\
         \x20   with multiprocessing.get_context('fork').Pool(3) as pool: print(sum(pool.map(part, range(9))))\n\
         \x20   with tempfile.TemporaryDirectory() as it: pathlib.Path(it, 'x').write_text('x')\n\
         \x20   os.rename(home / '.work/0.json', home / '.work/zero.json')\n",
    );
    desk.same(&["python3", "work.py"]).expect_out("204\n");
    let profile = desk.profile();
    assert!(profile.contains("\"~/.work/\""), "{profile}");
    // Nothing was written in the working directory, and so nothing will be.
    assert!(profile.contains("\"~/project\", # the working directory"), "{profile}");
    desk.again(&["touch", "here"]).failure().err_has("Read-only file system");
    desk.no_more();
}

#[test]
fn what_is_hidden_or_wide_is_named_and_not_granted() {
    let desk = Desk::new("learn-hidden");
    let file = desk.path("config/it.toml");
    let script = "cat ~/.ssh/id; ls ~/.aws/none; echo x > ~/right-here; cat ~/.nothing; exit 4";
    let outcome = desk.learn(&["-o", &file], &["sh", "-c", script]);
    outcome
        .expect_status(4)
        .err_has("not granted")
        .err_has("1 hidden place, 1 place too wide")
        .err_has("status 4");
    let profile = desk.profile();
    let remarks: Vec<&str> = profile.lines().filter(|line| line.starts_with('#')).collect();
    let remarks = remarks.join("\n");
    for words in
        ["home/.ssh (ssh keys", "home/right-here (rw = [\"~\"])", "home/.nothing", "status 4"]
    {
        assert!(remarks.contains(words), "no {words}\n{profile}");
    }
    let is_rule = |line: &&str| !line.starts_with('#') && !line.starts_with("description");
    let rules: Vec<&str> = profile.lines().filter(is_rule).collect();
    let rules = rules.join("\n");
    assert!(!rules.contains("ssh") && !rules.contains("\"~\""), "{profile}");
    desk.again(&["sh", "-c", "echo x > ~/right-here"]).failure();
    // In the home itself, which nobody may write in without being asked.
    let mut command = desk.with_home(desk.workspace.sandbox());
    command.current_dir(desk.path("home")).args(["learn", "--force", "-o", &file, "--", "ls"]);
    run(command, b"", LIMIT).success();
    assert!(desk.profile().contains("\"~\", # the working directory, which is too much"));
    let mut command = desk.with_home(desk.workspace.sandbox());
    command.current_dir(desk.path("home")).args(["--profile", &file, "--", "ls"]);
    run(command, b"", LIMIT).success().out_has("project");
}

#[test]
fn a_profile_that_is_there_is_replaced_or_added_to_when_asked() {
    let desk = Desk::new("learn-merge");
    desk.put("home/data/a", "a\n");
    desk.put("home/data/b", "b\n");
    desk.put("home/data/c", "c\n");
    desk.put("home/data/d", "d\n");
    desk.put("home/data/e", "e\n");
    let file = desk.path("config/it.toml");
    desk.put(
        "config/it.toml",
        "# my own words\nhostname = 'mine' # stays\npids = 100000\nmemory = '2m' # too little\n\
         ro = [\n    '~/project', # nothing there\n]\nrw = '~/data/a'\n",
    );
    desk.learn(&["-o", &file], &["true"]).one_line_error(125, &["it.toml", "--merge", "--force"]);
    let script = "hostname; echo x >> ~/data/b; echo x > here";
    let outcome = desk.learn(&["--merge", "-o", &file], &["sh", "-c", script]);
    outcome.success().expect_out("mine\n");
    let profile = desk.profile();
    for words in
        ["# my own words", "hostname = 'mine' # stays", "pids = 100000", "~/data/a", "~/data/b"]
    {
        assert!(profile.contains(words), "no {words}\n{profile}");
    }
    assert!(!profile.contains("'2m'") && !profile.contains("'~/project'"), "{profile}");
    let script =
        "hostname; echo y >> ~/data/a; echo y >> ~/data/b; echo x > here; echo x > ~/data/c";
    desk.again(&["sh", "-c", script]).failure().expect_out("mine\n").err_has("data/c");
    assert_eq!(desk.workspace.read("home/data/b"), "b\ny\n");
    assert!(desk.workspace.has("home/project/here"));
    // Once more, and nothing is there twice.
    desk.learn(&["--merge", "-o", &file], &["sh", "-c", "echo x >> ~/data/b; rm here"]).success();
    assert_eq!(desk.profile().matches("~/data/b\"").count(), 1, "{}", desk.profile());
    desk.learn(&["--force", "-o", &file], &["true"]).success();
    assert!(!desk.profile().contains("my own words"));
}

#[test]
fn a_profile_goes_where_profiles_are_and_by_its_programs_name() {
    let desk = Desk::new("learn-name");
    let outcome =
        desk.learn(&["--env", "A=1", "--env", "MY_TOKEN=hush"], &["sh", "-c", "echo $A > out"]);
    outcome.success().err_has("sandbox --profile sh -- sh -c 'echo $A > out' runs it");
    let text = desk.workspace.read("config/sandbox/sh.toml");
    assert!(text.contains("env = [\"A=1\", \"MY_TOKEN\"]") && !text.contains("hush"), "{text}");
    let mut command = desk.with_home(desk.workspace.sandbox());
    command.args(["--profile", "sh", "--", "sh", "-c", "echo $A$MY_TOKEN > out"]);
    command.env("MY_TOKEN", "mine");
    run(command, b"", LIMIT).success().expect_err("");
    assert_eq!(desk.workspace.read("home/project/out"), "1mine\n");
    // One that lies where the program may write is kept from it.
    desk.learn(&["-o", "it.toml"], &["touch", "new"]).success();
    let inside = ["--profile", "./it.toml", "--", "sh", "-c"];
    let attack = "echo \"rw = '~'\" >> it.toml; mv it.toml away; rm -f it.toml; touch new";
    desk.sandbox(&[&inside[..], &[attack]].concat()).success();
    assert!(!desk.workspace.read("home/project/it.toml").contains("'~'"));
    // Without a program there is no profile.
    desk.learn(&["-o", "none.toml"], &["no-such-program"]).expect_status(127);
    assert!(!desk.workspace.has("home/project/none.toml"));
    desk.learn(&[], &[]).one_line_error(125, &["no program to run"]);
    desk.learn(&["-o", "no/where"], &["true"]).one_line_error(125, &["-o no/where"]);
    desk.learn(&["--record-files", "x"], &["true"]).one_line_error(125, &["--record-files"]);
}

#[test]
fn what_it_changed_is_dropped_unless_it_is_to_be_kept() {
    let desk = Desk::new("learn-keep");
    let file = desk.path("config/it.toml");
    let script = "echo x > out; echo y > ~/.cache/old/y";
    let outcome = desk.learn(&["-o", &file], &["sh", "-c", script]);
    outcome.success().err_has("is dropped; sandbox learn --keep");
    let kept = || fs::read_dir(desk.path("state/sandbox/overlays")).unwrap().count();
    assert_eq!((kept(), desk.workspace.has("home/project/out")), (0, false));
    let outcome =
        desk.learn(&["--force", "--keep", "--id", "it", "-o", &file], &["sh", "-c", script]);
    outcome.success().err_has("sandbox commit it").err_lacks("is dropped");
    // One that was kept before is not dropped by a later run in it.
    desk.learn(&["--force", "--id", "it", "-o", &file], &["cat", "out"])
        .success()
        .expect_out("x\n");
    desk.sandbox(&["diff", "it"]).expect_status(1).out_has("project/out").out_has("old/y");
    desk.sandbox(&["discard", "it"]).success();
    desk.learn(&["--force", "-o", &file], &["true"]).success().err_lacks("dropped");
    // What the user opens is changed in the overlay only, too.
    let options = ["--force", "-o", &file, "--rw", &desk.path("home/.cache/old")];
    desk.learn(&options, &["sh", "-c", script]).success();
    assert!(!desk.workspace.has("home/.cache/old/y"));
    desk.again(&["sh", "-c", script]).success();
    assert!(desk.workspace.has("home/.cache/old/y") && desk.workspace.has("home/project/out"));
}

#[test]
fn the_network_that_was_asked_for_is_named() {
    if !have("bash") {
        return;
    }
    let desk = Desk::new("learn-network");
    let file = desk.path("config/it.toml");
    let script = "exec 3<>/dev/tcp/192.0.2.7/443 || exec 3<>/dev/tcp/127.0.0.1/9 || exit 0";
    desk.learn(&["-o", &file], &["bash", "-c", script]).success().err_has("the network");
    let profile = desk.profile();
    assert!(
        profile.contains("#   192.0.2.7:443\n") && !profile.contains("#   127.0.0.1"),
        "{profile}"
    );
    assert!(!profile.lines().any(|line| line.starts_with("net")), "{profile}");
    desk.learn(&["--force", "-o", &file], &["true"]).success().err_lacks("not granted");
    assert!(!desk.profile().contains("the network"), "{}", desk.profile());
    desk.learn(&["--force", "--net", "host", "-o", &file], &["true"]).success();
    assert!(desk.profile().contains("net = \"host\"\n"), "{}", desk.profile());
}

#[test]
fn a_directory_that_is_missing_is_made_where_a_rule_says_so() {
    let desk = Desk::new("learn-made");
    let made = desk.path("home/made/");
    let argv = ["--", "sh", "-c", "echo x > ~/made/x"];
    desk.sandbox(&[&["--dry-run", "--rw", &made], &argv[..]].concat()).success();
    assert!(!desk.workspace.has("home/made"));
    desk.sandbox(&[&["--rw", &made], &argv[..]].concat()).success();
    assert_eq!(desk.workspace.read("home/made/x"), "x\n");
    let deep = desk.path("home/none/deep/");
    desk.sandbox(&["--rw", &deep, "--", "true"]).one_line_error(125, &["cannot make", "none/deep"]);
    let plain = desk.path("home/none");
    desk.sandbox(&["--rw", &plain, "--", "true"]).one_line_error(125, &["does not exist"]);
    // A project's own file makes nothing.
    desk.put("home/project/sandbox.toml", "rw = '../by-project/'\n");
    desk.sandbox(&["--", "true"]).success().err_has("left out of");
    assert!(!desk.workspace.has("home/by-project"));
}
