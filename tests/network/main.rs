//! `--net allow`: which hosts a run reaches, how its sockets behave then, and what must not get past that.
//!
//! The outside is a second host in a network namespace of its own (`outside.sh`), with names of its own. To make it, and
//! a cable between the two, takes root; the sandbox is then run as root and as an ordinary user.

#[path = "../common/mod.rs"]
mod common;

mod metered;
mod programs;
mod publish;
mod saves;
mod unix;
mod accounts;
mod asking;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::{
    LIMIT, Outcome, Workspace, copy_program, guest, have, is_root, repository, run,
    sandbox_program, skip,
};

/// Who runs the sandbox.
#[derive(Clone, Copy, PartialEq)]
enum Who {
    Root,
    /// Somebody without any rights.
    Nobody,
}

struct Outside {
    workspace: Workspace,
    who: Who,
}

impl Outside {
    /// `None`: there can be none here, which has been said.
    fn new(test: &str, who: Who) -> Option<Outside> {
        if !have("python3") || !have("ip") || !have("unshare") || !have("setpriv") {
            return None;
        }
        if !is_root() {
            skip("root to make networks");
            return None;
        }
        let workspace = Workspace::new(test);
        for name in ["work", "own", "home"] {
            std::fs::create_dir(workspace.path().join(name)).unwrap();
        }
        // Nobody else's ids are in it, so it has to be private (else the state is below /tmp, as docs/control.md says).
        let private = Permissions::from_mode(0o700);
        std::fs::set_permissions(workspace.path().join("home"), private).unwrap();
        let here = repository().join("tests/network");
        for name in ["client.py", "server.py", "outside.sh"] {
            workspace.write(name, std::fs::read(here.join(name)).unwrap());
            workspace.write(&format!("own/{name}"), std::fs::read(here.join(name)).unwrap());
        }
        if who == Who::Nobody {
            workspace.native(&["chown", "-R", "65534:65534", "own", "home"]).success();
        }
        Some(Outside { workspace, who })
    }

    fn is_nobody(&self) -> bool {
        self.who == Who::Nobody
    }

    fn path(&self, name: &str) -> PathBuf {
        self.workspace.path().join(name)
    }

    /// Runs a script of the shell on the first of the two hosts. `$sandbox` is the program under test.
    #[track_caller]
    fn sh(&self, script: &str) -> Outcome {
        let own = self.path("own");
        let mut command = self.workspace.command("unshare");
        command.args(["--net", "--mount", "sh"]);
        command.arg(self.path("outside.sh")).arg(self.workspace.path()).arg(self.path("work"));
        if self.who == Who::Nobody {
            command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
        }
        command.args(["sh", "-c", script]).current_dir(&own);
        command.env("sandbox", sandbox_program()).env("XDG_RUNTIME_DIR", self.path("home"));
        command.env("HOME", self.path("home"));
        run(command, b"", LIMIT)
    }
}

/// Runs the test as both.
fn as_both(test: &str, body: impl Fn(&Outside)) {
    as_one(test, Who::Root, &body);
    as_one(test, Who::Nobody, &body);
}

/// Runs a test that takes long as somebody without any rights alone: what it is about is the programs, and the same calls
/// are made by quicker ones as both.
fn as_nobody(test: &str, body: impl Fn(&Outside)) {
    as_one(test, Who::Nobody, &body);
}

fn as_one(test: &str, who: Who, body: &dyn Fn(&Outside)) {
    let name = if who == Who::Root { "root" } else { "nobody" };
    if let Some(outside) = Outside::new(&format!("network-{test}-{name}"), who) {
        body(&outside);
    }
}

#[test]
fn what_is_allowed_is_reached_as_it_is_natively() {
    as_both("allowed", |outside| {
        let native = outside.sh("python3 client.py allowed loopback");
        native.success().out_has("many 200\n");
        let rules = "--allow-net ok.example --allow-net static.example --allow-net many.example --allow-net \
                     alias.example";
        outside
            .sh(&format!("$sandbox {rules} -- python3 client.py allowed loopback"))
            .same_as(&native);
        outside
            .sh("$sandbox --allow-net '*' -- python3 client.py allowed loopback")
            .same_as(&native);
    });
}

#[test]
fn nothing_else_is_reached() {
    as_both("refused", |outside| {
        let rules = "--allow-net ok.example --allow-net near.example --allow-net both.example";
        let refused = outside.sh(&format!("$sandbox {rules} -- python3 client.py refused"));
        refused.success().expect_out(
            "name no such name no such name no such name ['203.0.113.2']\n\
             stream EACCES EACCES EACCES\n\
             own EACCES\n\
             mapped EACCES\n\
             sendto ENETUNREACH\n\
             its own dns ENETUNREACH\n\
             elsewhere ENETUNREACH\n\
             spelled 203.0.113.03 EACCES\n\
             spelled 3405803779 EACCES\n\
             spelled 0xcb007103 EACCES\n\
             spelled 0313.0.0161.03 EACCES\n",
        );
        refused.err_has("the address 203.0.113.3:80/tcp was refused to python3");
        refused.err_has("no rule allows it; --allow-net HOST:PORT, or ADDRESS:PORT, allows it");
        refused.err_has("the name near.example was refused");
        refused.err_has("the name other.example was refused");
    });
}

#[test]
fn rules_have_ports_and_exceptions() {
    let Some(outside) = Outside::new("network-rules", Who::Nobody) else { return };
    let ask = "import socket, errno, sys
def go(host, port):
    try: address = socket.getaddrinfo(host, port, socket.AF_INET)[0][4]
    except socket.gaierror: return 'no name'
    return errno.errorcode.get(socket.socket().connect_ex(address), 'connected')
print(*(go(*it.rsplit(':', 1)) for it in sys.argv[1:]))";
    let reached = |rules: &str, hosts: &str, expected: &str| {
        outside.workspace.write("own/ask.py", ask);
        let asked = outside.sh(&format!("$sandbox {rules} -- python3 ask.py {hosts}"));
        asked.success().expect_out(&format!("{expected}\n"));
    };
    let all = "ok.example:80 ok.example:79 sub.ok.example:80 203.0.113.3:80";
    reached("--allow-net ok.example:80", all, "connected EACCES no name EACCES");
    reached("--allow-net '*.ok.example'", all, "no name no name connected EACCES");
    reached("--allow-net 203.0.113.0/24:80", all, "no name no name no name connected");
    reached("--allow-net '*' --deny-net 203.0.113.3", all, "connected connected connected EACCES");
    reached("--allow-net '*:80/udp'", all, "EACCES EACCES EACCES EACCES");
    reached("--net allow", all, "no name no name no name EACCES");
    let near = "10.9.9.9:80 203.0.113.1:9 127.0.0.1:9";
    reached(
        "--allow-net 10.9.9.9 --allow-net 203.0.113.1",
        near,
        "connected ECONNREFUSED ECONNREFUSED",
    );
    // The host's own loopback, if it is asked for.
    let script = "python3 -c 'import socket, subprocess, sys
s = socket.socket(); s.bind((\"127.0.0.1\", 0)); s.listen()
port = str(s.getsockname()[1])
for rules in [], [\"--allow-net\", \"ok.example\"], [\"--allow-net\", \"127.0.0.1:\" + port]:
    print(subprocess.run([sys.argv[1], *rules, \"--\", \"python3\", \"-c\", \"import socket; print(socket.socket().connect_ex((\\\"127.0.0.1\\\", \" + port + \")))\"], stdout=subprocess.PIPE).stdout)
' $sandbox";
    outside.sh(script).success().expect_out("b'111\\n'\nb'111\\n'\nb'0\\n'\n");
}

#[test]
fn a_connection_serves_for_no_other() {
    as_both("escapes", |outside| {
        let program = guest("network_escapes");
        copy_program(&program, &outside.path("own/escapes"));
        let arguments = "./escapes 203.0.113.2 203.0.113.3";
        // They are ways to another host where nothing is in their way.
        outside.sh(arguments).success().out_has("ESCAPED by reconnect\n");
        let tried = outside.sh(&format!("$sandbox --allow-net 203.0.113.2 -- {arguments}"));
        tried.success().out_lacks("ESCAPED").out_has("reconnect: EACCES\n");
        tried.out_has("listen: EINVAL\nown loopback: done\n").out_has("fast open: EOPNOTSUPP\n");
        tried.out_has("address: only the allowed one\nnumber: nothing reached\n");
    });
}

#[test]
fn a_connection_tells_nothing_of_the_hosts_interfaces() {
    as_both("interfaces", |outside| {
        let native = outside.sh("python3 client.py interfaces");
        let all = "['client', 'lo'] lo";
        native.success().out_has(&format!("interfaces {all}\nconnected {all}\nclient 40\n"));
        let inside = outside.sh("$sandbox --allow-net 203.0.113.2 -- python3 client.py interfaces");
        inside
            .success()
            .expect_out("interfaces ['lo'] lo\nconnected ['lo'] lo\nclient ENODEV\nclient EPERM\n");
    });
}

#[test]
fn what_cannot_be_is_said() {
    let workspace = Workspace::new("network-errors");
    let refused = |flags: &[&str], words: &[&str]| {
        workspace.inside_with(flags, &["true"]).one_line_error(125, words);
    };
    refused(&["--allow-net", "127.1"], &["--allow-net 127.1", "in full", "192.0.2.1"]);
    refused(&["--allow-net", "host:99999"], &["--allow-net", "ports", "1 to 65535"]);
    refused(
        &["--net", "host", "--allow-net", "a.example"],
        &["--net host", "leave one of them out"],
    );
    refused(&["--net", "host", "--deny-net", "a.example"], &["--deny-net", "--allow-net '*'"]);
    refused(&["--allow-net", "a.example", "--without", "landlock"], &["Landlock", "--net host"]);
    refused(&["--net", "some"], &["none", "allow", "host"]);
}
