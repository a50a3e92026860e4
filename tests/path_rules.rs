//! `--hide`, `--deny`, `--allow`, and patterns in them: what a program sees. How they hold is in
//! escapes_secrets.rs. The patterns begin at `./`: any other would look into the real homes, too.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::{Outcome, Workspace};

/// A project with secrets and things beside them.
fn project(test: &str) -> Workspace {
    let workspace = Workspace::new(test);
    for file in [".env", ".env.example", "app/.env", "app/tls/key.pem", "app/tls/key.pub", "main.c"]
    {
        workspace.write(file, format!("text of {file}\n"));
    }
    workspace
}

/// Runs a script inside, with words as options.
fn inside(workspace: &Workspace, options: &str, script: &str) -> Outcome {
    let words: Vec<&str> = options.split_whitespace().collect();
    workspace.inside_with(&words, &["sh", "-c", script])
}

#[test]
fn what_is_hidden_is_not_there_and_what_is_denied_is_refused() {
    let workspace = project("words");
    let script = "cat .env; cat app/tls/key.pem; test -e .env || echo gone; ls -A app/tls";
    let hidden = inside(&workspace, "--hide .env --hide app/tls", script);
    hidden.expect_out("gone\n").err_has(".env: No such").err_has("key.pem: No such");
    let denied = inside(&workspace, "--deny .env --deny app/tls", script);
    denied.failure().expect_out("").err_has(".env: Permission").err_has("key.pem: Permission");
    denied.err_has("cannot open directory 'app/tls'");
    // Nothing can be made in their place.
    let script = "echo x > .env; mkdir app/tls/new; rm -rf .env app/tls; mv .env x; mv app/tls x; \
                  rm -rf app; ls -d app/tls";
    for options in ["--hide .env --hide app/tls", "--deny .env --deny app/tls"] {
        inside(&workspace, options, script).expect_out("app/tls\n");
        assert_eq!(workspace.read(".env"), "text of .env\n");
        assert_eq!(workspace.read("app/tls/key.pem"), "text of app/tls/key.pem\n");
    }
}

#[test]
fn programs_take_a_hidden_file_for_absent() {
    let workspace = project("absent");
    let script = "cp -r app copy 2>&1; sort < .env; [ -f .env ] && echo file; [ -r .env ] && echo read; \
                  true 3< .env && echo open; find . -name '*.env' -exec cat {} +; echo end";
    inside(&workspace, "--hide .env --hide app/.env", script).success().expect_out("end\n");
}

#[test]
fn exceptions_have_the_access_that_they_would_have_had() {
    let workspace = project("exceptions");
    let script =
        "cat app/tls/key.pub && echo more >> app/tls/key.pub; cat app/tls/key.pem; cat app/.env";
    let outcome = inside(&workspace, "--hide app --allow app/tls/key.pub", script);
    outcome.failure().expect_out("text of app/tls/key.pub\n");
    outcome.err_has("key.pem: No such").err_has("app/.env: No such");
    let outcome = inside(&workspace, "--deny app --allow app/tls/key.pub", script);
    outcome.failure().out_has("text of app/tls/key.pub\nmore\n");
    outcome.err_has("key.pem: Permission").err_has("app/.env: Permission");
    assert_eq!(workspace.read("app/tls/key.pub"), "text of app/tls/key.pub\nmore\nmore\n");
    // Where nothing could be written, it cannot.
    let outcome = inside(&workspace, "--ro . --hide app --allow app/tls", script);
    outcome.failure().err_has("Read-only file system").err_has("app/.env: No such");
    outcome.out_has("text of app/tls/key.pem");
    // In what the host has of its own, too.
    let ssh = Workspace::new("exceptions-home");
    ssh.write(".ssh/id", "secret\n");
    ssh.write(".ssh/known_hosts", "hosts\n");
    let mut command = workspace.sandbox();
    let known = ssh.path().join(".ssh/known_hosts");
    command.env("HOME", ssh.path()).arg("--allow").arg(&known);
    command.args(["--", "sh", "-c", "cat ~/.ssh/known_hosts ~/.ssh/id"]);
    common::run(command, b"", common::LIMIT).failure().expect_out("hosts\n");
}

#[test]
fn patterns_cover_what_they_match_at_any_depth() {
    let workspace = project("patterns");
    let script = "cat .env app/.env .env.example app/tls/key.pem app/tls/key.pub";
    let outcome = inside(&workspace, "--hide ./**/.env --deny ./**/*.pem", script);
    outcome.expect_out("text of .env.example\ntext of app/tls/key.pub\n");
    outcome.err_has(".env: No such").err_has("app/.env: No such").err_has("key.pem: Permission");
    let outcome =
        inside(&workspace, "--hide ./**/.env* --allow ./**/*.example --hide ./app/t*", script);
    outcome.expect_out("text of .env.example\n").err_has("key.pub: No such");
    // By what a link leads to, and whoever leads there.
    let other = Workspace::new("patterns-other");
    other.write("data", "other\n");
    symlink(other.path().join("data"), workspace.path().join("linked.pem")).unwrap();
    symlink(".env", workspace.path().join("innocent")).unwrap();
    let script = format!("cat innocent linked.pem {}/data", other.path().display());
    let outcome = inside(&workspace, "--hide ./**/*.pem --hide ./.env*", &script);
    outcome.failure().expect_out("").err_has("innocent: No such").err_has("data: No such");
}

#[test]
fn a_pattern_is_told_of() {
    let workspace = project("told");
    let outcome = inside(&workspace, "-v --hide ./**/*.none --deny ./**/.env", "true");
    outcome.success().err_has("--hide './**/*.none' matches nothing").err_has("--deny './**/.env'");
    let why = |options: &[&str], path: &str| {
        let mut command = workspace.sandbox();
        command.arg("why").args(options).arg(path);
        common::run(command, b"", common::LIMIT)
    };
    let outcome = why(&["--deny", "./**/.env"], "app/.env");
    outcome.expect_status(1).out_has("app/.env: denied").out_has("--deny './**/.env'");
    outcome.out_has("--allow ");
    let both = ["--deny", "./**/.env", "--hide", "./**/.e*v"];
    why(&both, "app/.env").expect_status(1).out_has("denied");
    let both = ["--deny", "./**/*.pem", "--hide", "./**/*.pem"];
    why(&both, "x").one_line_error(125, &["--deny './**/*.pem'", "--hide './**/*.pem'", "key.pem"]);
}

#[test]
fn what_comes_to_be_later_is_not_covered() {
    let workspace = project("later");
    let outcome = inside(&workspace, "--hide ./**/*.pem", "echo mine > new.pem && cat new.pem");
    outcome.success().expect_out("mine\n");
    // The next run looks again.
    inside(&workspace, "--hide ./**/*.pem", "cat new.pem").failure().err_has("new.pem: No such");
}

#[test]
fn a_projects_own_file_may_withhold_and_not_allow() {
    let workspace = project("project");
    workspace
        .write("sandbox.toml", "deny = ['*.pem']\nhide = ['.env']\nallow = ['.env.example']\n");
    fs::create_dir(workspace.path().join(".git")).unwrap();
    let script = "cat .env app/tls/key.pem app/.env";
    let outcome = inside(&workspace, "", script);
    outcome.failure().expect_out("text of app/.env\n").err_has(".env: No such");
    outcome.err_has("key.pem: Permission").err_has("left out of").err_has("allow = ");
}

#[test]
fn many_matches_are_covered_one_by_one() {
    let workspace = Workspace::new("many");
    for number in 0..400 {
        workspace.write(&format!("d{}/e{}/f{number}.key", number % 7, number % 11), "secret\n");
    }
    let script =
        "find . -name '*.key' | wc -l; find . -name '*.key' -exec cat {} + 2>/dev/null; echo end";
    let outcome = inside(&workspace, "--deny ./**/*.key", script);
    outcome.expect_out("400\nend\n");
    let outcome = inside(&workspace, "--hide ./**/d*", "find . -type f; echo end");
    outcome.expect_out("end\n");
}

#[test]
fn a_denied_directory_with_an_exception_cannot_be_opened_up() {
    let workspace = project("opened-up");
    let script = "ls app; chmod 755 app; ls app; touch app/new; mv app/tls app/x; rm -rf app/tls; \
                  cd app && cat tls/key.pub; cat tls/key.pem; ls tls";
    let outcome = inside(&workspace, "--deny app --allow app/tls/key.pub", script);
    outcome
        .failure()
        .expect_out("text of app/tls/key.pub\n")
        .err_has("chmod: changing permissions");
    assert_eq!(workspace.read("app/tls/key.pem"), "text of app/tls/key.pem\n");
}

#[test]
fn files_of_the_kernel_can_be_hidden_and_denied() {
    let workspace = project("kernel");
    let script = "cat /proc/version; cat /sys/kernel/notes; echo x > /dev/full; ls -A /proc/sys";
    let options = "--hide /proc/version --deny /sys/kernel/notes --hide /dev/full --hide /proc/sys";
    let outcome = inside(&workspace, options, script);
    outcome.expect_out("").err_has("/proc/version: No such file").err_has("/dev/full: ");
    if std::path::Path::new("/sys/kernel/notes").exists() {
        outcome.err_has("/sys/kernel/notes: Permission denied");
    }
}

#[test]
fn patterns_make_places_read_only_and_writable() {
    let workspace = project("access");
    let other = Workspace::new("access-other");
    other.write("out/log", "");
    other.write("in/log", "");
    let there = other.path().display();
    let script = format!(
        "echo x >> app/tls/key.pem; echo x >> main.c; mv app/tls/key.pem app/x; rm -f app/tls/key.pem; \
         echo x > {there}/out/log; echo x > {there}/in/log"
    );
    let outcome = inside(&workspace, &format!("--ro ./**/*.pem --rw {there}/o*"), &script);
    outcome.failure().err_has("key.pem: Read-only").err_has("in/log: Read-only");
    assert_eq!(workspace.read("app/tls/key.pem"), "text of app/tls/key.pem\n");
    assert_eq!(
        (workspace.read("main.c"), other.read("out/log")),
        ("text of main.c\nx\n".into(), "x\n".into())
    );
    assert_eq!(other.read("in/log"), "");
}
