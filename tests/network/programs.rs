//! Programs that people use, each of which looks names up and connects in its own way: natively first, then inside. What
//! they are served (`services.py`) is the test's own.

use std::path::{Path, PathBuf};

use crate::common::{
    LIMIT, Outcome, Workspace, copy_program, have, postgresql_programs, repository, run, skip,
};
use crate::{Outside, as_both, as_nobody};

/// What a script of ours finds first on the search path: the host's own programs, which have the host's own libraries.
const PATH: &str = "PATH=/usr/bin:/bin:$PATH; export PATH\n";

impl Outside {
    /// Serves these, too, from now on.
    fn serve(&self, services: &[&str]) {
        self.workspace.write("services", services.join(" "));
        let source = repository().join("tests/network/services.py");
        self.workspace.write("services.py", std::fs::read(source).unwrap());
    }

    /// Runs a script natively and inside, where it has to do the same. Gives the outcome.
    #[track_caller]
    fn both(&self, flags: &str, name: &str, script: &str) -> Outcome {
        self.workspace.write(&format!("own/{name}.sh"), format!("{PATH}set -e\n{script}"));
        let native = self.sh(&format!("sh {name}.sh"));
        native.success();
        self.sh(&format!("$sandbox {flags} -- sh {name}.sh")).same_as(&native);
        native
    }

    /// Whether a command of the shell can be run there by who runs the sandbox.
    fn can(&self, command: &str) -> bool {
        self.sh(&format!("{PATH}{command} >/dev/null 2>&1")).status == 0
    }

    /// Gives what is in `own` to who runs the sandbox.
    fn hand_over(&self) {
        if self.is_nobody() {
            self.workspace.native(&["chown", "-R", "65534:65534", "own"]).success();
        }
    }
}

const ALLOWED: &str = "--allow-net ok.example";

#[test]
fn clients_of_http() {
    let (curl, wget, node) = (have("curl"), have("wget"), have("node"));
    let python = |module: &str| {
        let program =
            if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" };
        let found = std::process::Command::new(program)
            .args(["-c", &format!("import {module}")])
            .output()
            .is_ok_and(|output| output.status.success());
        if !found {
            skip(&format!("{module} of python"));
        }
        found
    };
    let (requests, aiohttp) = (python("requests"), python("aiohttp"));
    as_both("programs", |outside| {
        outside.serve(&["pages"]);
        let page = "http://ok.example:8000/page.html";
        let mut script = String::new();
        if curl {
            script += &format!("curl -sS --max-time 60 {page}\n");
            // By many connections at a time, and by one that is kept.
            script += &format!(
                "curl -sSZ --parallel-immediate --max-time 60 '{page}?[1-30]' 2>/dev/null | wc -c\n"
            );
            script += &format!(
                "curl -sS --max-time 60 {page} {page} -w '%{{num_connects}}\\n' -o /dev/null -o /dev/null\n"
            );
        }
        if wget {
            script += &format!("wget -nv -T 60 -O - {page} 2>/dev/null\n");
        }
        if node {
            script +=
                &format!("node -e \"fetch('{page}').then(r => r.text()).then(console.log)\"\n");
        }
        if requests {
            script += &format!(
                "python3 -c \"import requests; print(requests.get('{page}', timeout=60).text)\"\n"
            );
        }
        if aiohttp {
            outside.workspace.write("own/many.py", AIOHTTP);
            script += &format!("python3 many.py {page}\n");
        }
        outside.both(ALLOWED, "http", &script);
    });
}

/// Thirty at once, and then thirty that find connections of those.
const AIOHTTP: &str = "import asyncio, sys, aiohttp
async def length(session):
    async with session.get(sys.argv[1]) as response:
        return len(await response.text())
async def main():
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            print(sum(await asyncio.gather(*(length(session) for _ in range(30)))))
asyncio.run(main())
";

#[test]
fn programs_of_go() {
    if !have("go") {
        return;
    }
    let built = Workspace::new("network-go");
    built.write("main.go", GO);
    let program = built.path().join("go");
    build_go(&built, &built.path().join("main.go"), &program);
    as_both("go", |outside| {
        copy_program(&program, &outside.path("own/go"));
        outside.both(ALLOWED, "run", "./go").out_has(" page\n");
    });
}

/// A hundred at once, each registered with the runtime's epoll instance before it is connected; and a page by net/http.
const GO: &str = r#"package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
)

func main() {
	lengths := make(chan int)
	for i := 0; i < 100; i++ {
		go func() {
			connection, err := net.Dial("tcp", "ok.example:80")
			if err != nil {
				fmt.Println(err)
				lengths <- 0
				return
			}
			fmt.Fprintf(connection, "GET / HTTP/1.0\r\n\r\n")
			page, _ := io.ReadAll(connection)
			lengths <- len(page)
		}()
	}
	sum := 0
	for i := 0; i < 100; i++ {
		sum += <-lengths
	}
	response, err := http.Get("http://ok.example/")
	if err != nil {
		fmt.Println(err)
		return
	}
	page, _ := io.ReadAll(response.Body)
	fmt.Print(sum, " ", string(page))
}
"#;

fn build_go(workspace: &Workspace, source: &Path, program: &Path) {
    let mut build = workspace.command("go");
    build.args(["build", "-o"]).arg(program).arg(source);
    build.env("GO111MODULE", "off");
    build.env("GOCACHE", workspace.path().join("cache")).env("HOME", workspace.path());
    run(build, b"", LIMIT).success();
}

#[test]
fn programs_of_java() {
    if !have("java") || !have("javac") {
        return;
    }
    as_nobody("java", |outside| {
        outside.workspace.write("own/Page.java", JAVA);
        outside.workspace.native(&["javac", "-d", "own", "own/Page.java"]).success();
        outside.both(ALLOWED, "run", "java -cp . Page").out_has("page\npage\n");
    });
}

const JAVA: &str = r#"
import java.net.URI;
import java.net.URL;
import java.net.http.*;

public class Page {
    public static void main(String[] words) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create("http://ok.example/")).build();
        HttpClient client = HttpClient.newHttpClient();
        System.out.print(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
        System.out.print(new String(new URL("http://ok.example/").openStream().readAllBytes()));
    }
}
"#;

#[test]
fn git_clones_and_pushes_over_http_and_ssh() {
    let ssh = have("ssh") && sshd();
    as_both("git", |outside| {
        let mut services = vec!["git"];
        let mut ways = vec![("http", "http://ok.example:8002/git/small.git")];
        if ssh {
            services.push("ssh");
            for name in ["key", "host-key"] {
                let words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name];
                outside.workspace.native(&words).success();
            }
            outside.workspace.native(&["cp", "key", "own/key"]).success();
            outside.hand_over();
            let place = outside.path("work/git/git/small.git");
            let url = format!("ssh://git@ok.example:2222{}", place.display());
            ways.push(("ssh", String::leak(url)));
        }
        outside.serve(&services);
        for (name, url) in ways {
            outside.both(ALLOWED, name, &GIT.replace("URL", url)).out_has("first\nsecond\n");
        }
    });
}

const GIT: &str = "
    export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_TERMINAL_PROMPT=0
    export GIT_SSH_COMMAND='ssh -F /dev/null -i ./key -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR'
    export GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000'
    rm -rf tree again
    git clone -q URL tree
    GIT_SSH_COMMAND=$(echo \"$GIT_SSH_COMMAND\" | sed \"s|./key|$PWD/key|\")
    cd tree; cat file; echo more >more; git add more
    git -c user.name=a -c user.email=a@b commit -q -m second; git push -q origin main; cd ..
    git clone -q URL again; git -C again log --reverse --format=%s; cat again/more
";

/// Whether there is a server of ssh, wherever it lies.
fn sshd() -> bool {
    let found = ["/usr/sbin/sshd", "/usr/bin/sshd"].iter().any(|place| Path::new(place).is_file());
    if !found {
        skip("sshd");
    }
    found
}

#[test]
fn managers_of_packages() {
    let (npm, apt) = (have("npm"), have("apt-get"));
    as_nobody("packages", |outside| {
        outside.serve(&["packages"]);
        if outside.can("python3 -m pip --version") {
            outside.both(ALLOWED, "pip", PIP).out_has("small\n");
        } else {
            skip("pip");
        }
        if npm {
            outside.both(ALLOWED, "npm", NPM).out_has("small\n");
        }
        if apt {
            outside.both(ALLOWED, "apt", APT).out_has("small_1.0_all.deb\n");
        }
        // (Where it lies in root's home, it is root's alone.)
        if let Some(programs) = toolchain()
            && outside.can(&format!("test -x {}/cargo", programs.display()))
        {
            let script = CARGO.replace("PROGRAMS", programs.to_str().unwrap());
            outside.both(ALLOWED, "cargo", &script).out_has("small\n");
        }
    });
}

const PIP: &str = "
    rm -rf target
    python3 -m pip -q --no-cache-dir --disable-pip-version-check install --root-user-action ignore --target target \\
        --index-url http://ok.example:8001/simple/ --trusted-host ok.example small
    PYTHONPATH=target python3 -m small
";

const NPM: &str = "
    rm -rf module cache; mkdir module; cd module
    echo '{\"dependencies\": {\"small\": \"1\"}}' >package.json
    export npm_config_cache=../cache npm_config_update_notifier=false
    npm install --silent --no-audit --no-fund --registry http://ok.example:8001/npm/
    node -e 'require(\"small\")'
";

/// Without anything of the host's but its programs. Which port serves is said by the names (SRV).
const APT: &str = "
    rm -rf apt *.deb; mkdir -p apt/lists/partial apt/archives/partial; : >apt/status
    echo 'deb [trusted=yes] http://ok.example/apt ./' >apt/list
    own() {
        apt-get -qq -o Dir::Etc=\"$PWD/apt\" -o Dir::Etc::SourceList=list -o Dir::Etc::SourceParts=/dev/null \\
            -o Dir::Etc::Trusted=/dev/null -o Dir::Etc::TrustedParts=/dev/null -o Dir::State=\"$PWD/apt\" \\
            -o Dir::State::status=\"$PWD/apt/status\" -o Dir::Cache=\"$PWD/apt\" -o APT::Sandbox::User= \"$@\"
    }
    own update; own download small; ls *.deb
";

const CARGO: &str = "
    export PATH=\"PROGRAMS:$PATH\" CARGO_HOME=\"$PWD/cargo\" CARGO_TERM_COLOR=never
    rm -rf cargo crate; mkdir -p cargo crate/src; cd crate
    printf '[registries.own]\\nindex = \"sparse+http://ok.example:8001/crates/\"\\n' >../cargo/config.toml
    printf '[workspace]\\n[package]\\nname = \"own\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n[dependencies]\\n' >Cargo.toml
    echo 'small = { version = \"1\", registry = \"own\" }' >>Cargo.toml
    echo 'fn main() { println!(\"{}\", small::name()); }' >src/main.rs
    cargo run -q
";

/// Where cargo itself is, which rustup's links lead to by what lies in a home directory.
fn toolchain() -> Option<PathBuf> {
    let told = std::process::Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let programs = Path::new(String::from_utf8(told.stdout).ok()?.trim()).join("bin");
    programs.join("cargo").is_file().then_some(programs)
}

#[test]
fn clients_of_databases() {
    let redis = have("redis-server") && have("redis-cli");
    let programs = postgresql_programs().filter(|_| have("psql"));
    if programs.is_none() {
        skip("postgresql");
    }
    as_nobody("databases", |outside| {
        let (mut services, mut script) = (Vec::new(), String::new());
        if redis {
            services.push("redis");
            script += "redis-cli -h ok.example set key value; redis-cli -h ok.example get key\n";
        }
        if let Some(programs) = &programs {
            services.push("postgres");
            outside.workspace.write("postgres", programs.to_str().unwrap());
            script += "psql -XAtq -h ok.example -U tester -d postgres -c 'select sum(g) from generate_series(1, 100000) g'\n";
        }
        outside.serve(&services);
        outside.both(ALLOWED, "databases", &script);
    });
}

#[test]
fn a_browser_shows_what_is_allowed_of_a_page() {
    if !have("chromium") {
        return;
    }
    as_nobody("browser", |outside| {
        outside.serve(&["pages"]);
        let native = outside.sh(&format!("{PATH}{CHROMIUM}"));
        native.success().out_has("<title>other came, own came</title>");
        let inside = outside.sh(&format!("{PATH}$sandbox {ALLOWED} -- sh -c '{CHROMIUM}'"));
        inside.success().out_has("<title>other failed, own came</title>");
        inside.err_has("the name other.example was refused");
    });
}

/// Its own sandbox needs namespaces, which no guest makes.
const CHROMIUM: &str = "chromium --headless --no-sandbox --disable-gpu --no-first-run --user-data-dir=$PWD/profile \
    --virtual-time-budget=20000 --dump-dom http://ok.example:8000/page.html";
