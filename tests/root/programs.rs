//! Programs that become somebody else.

use std::path::Path;

use super::common::{Workspace, have, skip};
use super::{as_root, as_root_sh};

#[test]
fn programs_that_change_their_user_believe_it() {
    let workspace = Workspace::new("root-programs");
    if have("setpriv") {
        as_root(&workspace, &["setpriv", "--reuid=100", "--regid=101", "--groups=7,8", "id"])
            .success()
            .out_has("uid=100")
            .out_has("gid=101")
            .out_has("7")
            .out_has("8");
        // What it has left behind it does not get back.
        as_root_sh(&workspace, "setpriv --reuid=100 --clear-groups sh -c 'setpriv --reuid=0 true'")
            .failure()
            .err_has("setresuid failed: Operation not permitted");
        // A capability is kept by who asks for it.
        let script = "setpriv --reuid=100 --inh-caps=+chown --ambient-caps=+chown setpriv --dump";
        as_root_sh(&workspace, script)
            .success()
            .out_has("uid: 100\n")
            .out_has("Ambient capabilities: chown\n");
    }
    if have("su") {
        as_root(&workspace, &["su", "-s", "/bin/sh", "nobody", "-c", "id -u; id -nu"])
            .success()
            .expect_out("65534\nnobody\n");
    }
    if have("python3") {
        let script = "import os\nos.setgroups([5])\nos.setgid(6)\nos.setuid(7)\n\
                      print(os.getresuid(), os.getresgid(), os.getgroups())\n\
                      try: os.setuid(0)\nexcept PermissionError: print('no')\n";
        as_root(&workspace, &["python3", "-c", script])
            .success()
            .expect_out("(7, 7, 7) (6, 6, 6) [5]\nno\n");
    }
}

/// A shell's whole pipeline inherits what the shell has become.
#[test]
fn what_was_become_is_inherited() {
    let workspace = Workspace::new("root-inherit");
    if !have("setpriv") {
        return;
    }
    let script =
        "setpriv --reuid=33 --clear-groups sh -c '(id -u | cat; id -u) & wait; id -u'; id -u";
    as_root_sh(&workspace, script).success().expect_out("33\n33\n33\n0\n");
}

#[test]
fn the_root_directory_can_be_changed() {
    let workspace = Workspace::new("root-chroot");
    // (Where ordinary users need not have it on their PATH.)
    if !Path::new("/usr/sbin/chroot").exists() {
        return skip("chroot");
    }
    as_root_sh(&workspace, "chroot / id -u; cd /usr && chroot . /bin/true; chroot / /bin/pwd")
        .out_has("0\n")
        .out_has("/\n");
    as_root(&workspace, &["chroot", "--userspec=12:13", "/", "id"])
        .success()
        .out_has("uid=12")
        .out_has("gid=13");
    workspace.inside(&["chroot", "/", "true"]).failure();
}

/// apt(8) fetches as a user of its own, whom it becomes for good in a child.
#[test]
fn apt_becomes_its_own_user() {
    let workspace = Workspace::new("root-apt");
    if !have("apt-get") {
        return;
    }
    workspace.write("repository/Packages", "");
    let here = workspace.path().display().to_string();
    workspace.write("sources.list", format!("deb [trusted=yes] file:{here}/repository ./\n"));
    for directory in ["state/lists/partial", "cache/archives/partial", "parts"] {
        workspace.write(&format!("{directory}/.keep"), "");
    }
    let options = [
        format!("Dir::State={here}/state"),
        format!("Dir::Cache={here}/cache"),
        format!("Dir::Etc::SourceList={here}/sources.list"),
        format!("Dir::Etc::SourceParts={here}/parts"),
        "APT::Sandbox::User=nobody".to_owned(),
        "APT::Update::Post-Invoke-Success=".to_owned(),
    ];
    let mut argv = vec!["apt-get".to_owned(), "update".to_owned()];
    argv.extend(options.into_iter().flat_map(|it| ["-o".to_owned(), it]));
    as_root(&workspace, &argv).success().out_has("Reading package lists");
}
