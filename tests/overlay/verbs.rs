//! `diff`, `commit`, `discard` and the flags: their words and statuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::common::{LIMIT, have, is_root, run, wait_for};
use super::desk::{Desk, both, same_trees, tree};

#[test]
fn discard_brings_everything_back() {
    both(|| {
        let desk = Desk::new("discard");
        let before = tree(&desk.host);
        desk.inside("gone", "rm -r src; echo x > y; mkdir -m 0 shut; chmod 0 docs").success();
        desk.words(&["discard", "gone"]).success().expect_out("").expect_err("");
        same_trees("the host's tree has changed", &tree(&desk.host), &before);
        desk.nothing_is_kept();
        desk.words(&["discard", "gone"]).one_line_error(125, &["no overlay is kept", "gone"]);
        desk.inside("gone", "cat src/f1; test ! -e y")
            .success()
            .expect_out("file 1\n")
            .expect_err("");
    });
}

#[test]
fn what_nobody_may_write_to_is_committed() {
    both(|| {
        let desk = Desk::new("closed-files");
        let script = "echo c >> src/f1; chmod 444 src/f1; touch empty; chmod 444 empty; echo x > none; chmod 0 none";
        desk.inside("closed", script).success();
        desk.inside("closed", "chmod 444 src/f2; echo more > src/f3").success();
        desk.words(&["commit", "closed"]).success();
        desk.nothing_is_kept();
        let mode =
            |name: &str| fs::metadata(desk.host.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(["src/f1", "src/f2", "empty", "none"].map(mode), [0o444, 0o444, 0o444, 0]);
        assert_eq!(fs::read_to_string(desk.host.join("src/f1")).unwrap(), "file 1\nc\n");
    });
}

#[test]
fn a_run_that_changes_nothing_keeps_nothing() {
    both(|| {
        let desk = Desk::new("nothing");
        // What is copied up and stays equal is no change.
        desk.inside(
            "same",
            "chmod 755 tool; touch src/f1; cat docs/long >/dev/null; mkdir q; rmdir q",
        )
        .success()
        .expect_err("");
        desk.nothing_is_kept();
        desk.words(&["diff", "same"]).one_line_error(2, &["no overlay is kept"]);
    });
}

#[test]
fn without_an_id_the_end_says_how_to_look() {
    both(|| {
        let desk = Desk::new("unnamed");
        let outcome = desk.words(&["--overlay", ".", "--", "sh", "-c", "echo x > y"]);
        outcome.success().err_has("sandbox diff ");
        let err = outcome.err();
        let id = err.split("sandbox diff ").nth(1).unwrap().split_whitespace().next().unwrap();
        let host = desk.host.to_str().unwrap();
        desk.words(&["diff", id]).expect_status(1).expect_out(&format!("A {host}/y\n"));
        // The directory is another name of it while there is one.
        desk.words(&["diff", "."]).expect_status(1).expect_out(&format!("A {host}/y\n"));
        desk.words(&["--quiet", "--overlay", ".", "--", "sh", "-c", "echo x > z"]).expect_err("");
        desk.words(&["diff", "."]).one_line_error(2, &["more than one overlay"]);
    });
}

#[test]
fn a_patch_makes_of_the_host_what_the_overlay_is() {
    both(|| {
        if !have("patch") {
            return;
        }
        let desk = Desk::new("patch");
        let script = "sed -i 's/^17$/seventeen/; $d' docs/long; rm src/f3; printf 'no end' > src/f1; \
        mkdir new; echo n > 'new/na me'; printf 'a\\0b' > binary; \
        printf 'a\\rb\\n' > return; printf 'x\\r\\ny\\r\\n' > dos; ln -sfn x docs/link; chmod 600 src/f4";
        desk.inside("patch", script).success();
        let outcome = desk.words(&["diff", "--patch", "patch"]);
        outcome
            .expect_status(1)
            .out_has("-17\n+seventeen\n")
            .out_has("\\ No newline at end of file");
        let host = desk.host.to_str().unwrap();
        outcome.out_has(&format!("Binary files /dev/null and b{host}/binary differ"));
        // A lone carriage return would end a line for some.
        outcome.out_has(&format!("Binary files /dev/null and b{host}/return differ"));
        outcome.out_has("symlink to ../src/f1 -> symlink to x");
        let depth = desk.host.iter().count();
        let mut patch = desk.space.command("patch");
        patch.current_dir(&desk.copy).args(["-s", &format!("-p{depth}")]);
        run(patch, &outcome.stdout, LIMIT).success();
        desk.words(&["commit", "patch"]).success();
        for file in ["docs/long", "src/f1", "new/na me", "dos"] {
            let (host, copy) = (desk.host.join(file), desk.copy.join(file));
            assert_eq!(fs::read(host).unwrap(), fs::read(copy).unwrap(), "{file}");
        }
        assert!(!desk.copy.join("src/f3").exists());
    });
}

#[test]
fn diff_and_only_a_diff_works_while_the_run_goes_on() {
    let desk = Desk::new("running");
    let mut command = desk.sandbox();
    command.args(["run", "--detach", "--id", "live", "--overlay", ".", "--"]);
    command.args(["sh", "-c", "echo x > src/f1; echo done > ready; read x < pipe; echo y > late"]);
    run(command, b"", LIMIT).success();
    wait_for("the program's first changes", || {
        desk.words(&["diff", "live"]).out().contains("ready")
    });
    let host = desk.host.to_str().unwrap();
    let listed = format!("A {host}/ready\nM {host}/src/f1\n");
    desk.words(&["diff", "live"]).expect_status(1).expect_out(&listed);
    desk.words(&["commit", "live"]).one_line_error(125, &["in use by a running sandbox"]);
    desk.words(&["discard", "live"]).one_line_error(125, &["in use by a running sandbox"]);
    desk.words(&["save", "live", "-o", "../image", "--leave-running"]).success();
    let again = ["run", "--id", "other", "--overlay", ".", "--", "sh", "-c", "test ! -e ready"];
    desk.words(&again).success();
    // (It may be killed with the rest, once the program has read that.)
    desk.words(&["exec", "live", "--", "sh", "-c", "echo > pipe"]);
    desk.words(&["wait", "live"]).success();
    desk.words(&["commit", "live"]).success().expect_out("committed: 2 added, 1 changed\n");
    assert!(desk.host.join("late").exists());
}

#[test]
fn a_run_goes_on_with_the_overlay_of_its_id() {
    both(|| {
        let desk = Desk::new("again");
        desk.inside("again", "echo one > x").success();
        desk.inside("again", "cat x; echo two > y").success().expect_out("one\n");
        let other = ["run", "--id", "again", "--overlay", "src", "--", "true"];
        desk.words(&other).one_line_error(125, &["it is of", "asks for", "sandbox discard again"]);
        assert_eq!(desk.diff("again").len(), 2);
        let host = desk.host.display();
        let listed = format!("ID     STATE  OF\nagain  kept   {host}\n");
        desk.words(&["diff"]).success().expect_out(&listed);
        let json =
            format!("[{{\"id\":\"again\",\"directories\":[\"{host}\"],\"in_use\":false}}]\n");
        desk.words(&["diff", "--json"]).success().expect_out(&json);
    });
}

#[test]
fn a_part_is_committed_and_the_rest_stays() {
    both(|| {
        let desk = Desk::new("only");
        desk.inside(
            "only",
            "mkdir -p out/bin; echo a > out/bin/a; echo b > out/b; rm src/f1; echo c > docs/c.txt; \
        rm -r linked; mkdir linked; echo new > linked/new",
        )
        .success();
        let host = desk.host.to_str().unwrap();
        let dry = desk.words(&["commit", "only", "--dry-run", "--only", "out/bin"]);
        dry.success().expect_out(&format!("A {host}/out\nA {host}/out/bin\nA {host}/out/bin/a\n"));
        assert!(!desk.host.join("out").exists());
        let part = ["commit", "only", "--only", "out/bin", "--only", "*.txt"];
        desk.words(&part).success().out_has("committed: 4 added; 5 changes are left");
        assert!(desk.host.join("out/bin/a").exists() && !desk.host.join("out/b").exists());
        let left = desk.words(&["diff", "only"]).out().replace(host, "");
        assert_eq!(left, "D /linked/a\nD /linked/b\nA /linked/new\nA /out/b\nD /src/f1\n");
        // A part of what replaces a directory.
        desk.words(&["commit", "only", "--only", "linked/a"]).success();
        desk.inside("only", "ls linked").success().expect_out("new\n");
        // To take one name of a file away changes the stamp of the other.
        desk.words(&["commit", "only"]).expect_status(1).err_has("linked/b was changed");
        desk.words(&["commit", "only", "--force"]).success();
        assert!(desk.host.join("linked/new").exists() && !desk.host.join("linked/b").exists());
        desk.nothing_is_kept();
    });
}

#[test]
fn a_writable_path_in_an_overlay_is_the_hosts_own() {
    both(|| {
        let desk = Desk::new("through");
        let words = [
            "run",
            "--id",
            "rw",
            "--overlay",
            ".",
            "--rw",
            "docs",
            "--hide",
            "linked",
            "--tmpfs",
            "empty",
        ];
        let script =
            "echo through > docs/t; echo kept > k; ls -A empty; echo m > empty/m; cat linked/a";
        let outcome = desk.words(&[&words[..], &["--", "sh", "-c", script]].concat());
        outcome.failure().err_has("linked/a");
        assert_eq!(fs::read_to_string(desk.host.join("docs/t")).unwrap(), "through\n");
        assert_eq!(desk.diff("rw"), [('A', "k".into())]);
    });
}

#[test]
fn an_overlay_in_another_one_is_the_same_and_one_behind_a_rule_its_own() {
    both(|| {
        let desk = Desk::new("nested");
        let overlays = |words: &[&str], script: &str| {
            let words = [&["run", "--id", "in"], words, &["--", "sh", "-c", script]].concat();
            desk.words(&words).success();
        };
        let both = ["--overlay", "src", "--overlay", ".", "--overlay", "src/deep"];
        overlays(&both, "echo x >> src/f1; mv src/deep/er/g1 docs/moved; rm src/f2");
        let changes =
            [('A', "docs/moved"), ('D', "src/deep/er/g1"), ('M', "src/f1"), ('D', "src/f2")];
        assert_eq!(desk.diff("in"), changes.map(|(kind, path)| (kind, path.into())));
        same_trees("the host's tree has changed", &tree(&desk.host), &tree(&desk.copy));
        // They are the same overlay as the outer one alone.
        overlays(&["--overlay", "."], "test -e docs/moved && rm docs/moved");
        desk.words(&["discard", "in"]).success();

        let apart = ["--overlay", ".", "--rw", "src", "--overlay", "src/deep"];
        overlays(&apart, "for d in docs src src/deep; do echo x > $d/new; done");
        assert_eq!(desk.diff("in"), ["docs/new", "src/deep/new"].map(|path| ('A', path.into())));
        assert_eq!(fs::read_to_string(desk.host.join("src/new")).unwrap(), "x\n");
        desk.words(&["commit", "in", "--only", "deep/new"]).success();
        assert!(desk.host.join("src/deep/new").exists() && !desk.host.join("docs/new").exists());
        desk.words(&["discard", "in"]).success();
        desk.nothing_is_kept();
    });
}

#[test]
fn what_cannot_be_is_named_before_anything_runs() {
    let desk = Desk::new("refused");
    let asked = |words: &[&str]| desk.words(&[words, &["--", "touch", "ran"]].concat());
    asked(&["--overlay", "tool"]).one_line_error(125, &["tool is not a directory"]);
    asked(&["--overlay", "nowhere"]).one_line_error(125, &["does not exist"]);
    asked(&["--overlay", "src", "--rw", "src"]).one_line_error(125, &["contradict each other"]);
    asked(&["--overlay", "/proc"]).one_line_error(125, &["of the kernel's making"]);
    fs::write(desk.space.path().join("file"), "").unwrap();
    asked(&["--overlay", "src", "--overlay-dir", "../file"])
        .one_line_error(125, &["--overlay-dir"]);
    if !is_root() {
        asked(&["--overlay", "src", "--overlay-dir", "/usr"])
            .one_line_error(125, &["/usr", "it is not yours", "--overlay-dir"]);
    }
    assert!(!desk.host.join("ran").exists());
    desk.nothing_is_kept();
}

#[test]
fn a_named_place_keeps_it() {
    both(|| {
        let desk = Desk::new("place");
        let place = desk.space.path().join("else where");
        let place = place.to_str().unwrap();
        let words =
            ["run", "--id", "p", "--overlay", ".", "--overlay-dir", place, "--", "sh", "-c"];
        let outcome = desk.words(&[&words[..], &["echo x > y; ls '../else where'"]].concat());
        outcome.success().err_has(&format!("sandbox diff '{place}/p'")).expect_out("");
        desk.words(&["diff", &format!("{place}/p")]).expect_status(1).out_has("/y");
        desk.words(&["diff", "p", "--overlay-dir", place]).expect_status(1);
        desk.words(&["discard", "p", "--overlay-dir", place]).success();
    });
}

#[test]
fn what_an_overlay_covers_is_told() {
    let desk = Desk::new("told");
    let why = desk.words(&["why", "--overlay", ".", "./src/f1"]);
    why.success().out_has("in the sandbox's overlay").out_has("--overlay .");
    let dry = desk.words(&["--overlay", ".", "--dry-run", "--", "true"]);
    dry.success().out_has("changed for the sandbox alone");
    desk.nothing_is_kept();
}

#[test]
fn rules_with_patterns_hold_in_an_overlay() {
    both(|| {
        let desk = Desk::new("rules");
        fs::create_dir_all(desk.host.join("app/tls")).unwrap();
        for (name, text) in
            [("app/.env", "secret\n"), ("app/tls/k.pem", "key\n"), ("app/tls/k.pub", "public\n")]
        {
            fs::write(desk.host.join(name), text).unwrap();
        }
        let words = [
            "run",
            "--id",
            "o",
            "--overlay",
            ".",
            "--hide",
            "./**/.env",
            "--deny",
            "./app/t*",
            "--allow",
        ];
        let script = "cat app/.env; cat app/tls/k.pem; cat app/tls/k.pub; mv app/.env x; mv app/tls x; \
                  rm -rf app; ln app/.env x; echo new > app/new; ls -A app";
        let run = |allow: &str| {
            let words = [&words[..], &[allow, "--", "sh", "-c", script]].concat();
            desk.words(&words)
        };
        let outcome = run("./**/*.pub");
        outcome.expect_out("public\n.env\nnew\ntls\n");
        outcome.err_has("app/.env: No such").err_has("k.pem: Permission");
        assert_eq!(fs::read_to_string(desk.host.join("app/.env")).unwrap(), "secret\n");
        let kept = fs::read_to_string(desk.host.join("app/tls/k.pem")).unwrap();
        assert_eq!(kept, "key\n");
        // What could not be removed is not said to be, and the run can be gone on with by other rules.
        assert_eq!(desk.diff("o"), [('A', "app/new".into())]);
        run("./**/none*").expect_out(".env\nnew\ntls\n");
    });
}
