//! `--ask net`: what no rule names, answered over the control socket, or by nobody.

use serde_json::Value;

use crate::common::repository;
use crate::{Outside, as_both};

fn bring(outside: &Outside) {
    for name in ["asker.py", "asks.py"] {
        let text = std::fs::read(repository().join("tests/network").join(name)).unwrap();
        outside.workspace.write(&format!("own/{name}"), text);
    }
}

#[test]
fn what_no_rule_names_is_as_it_is_answered() {
    as_both("asked", |outside| {
        bring(outside);
        let asked = outside.sh(
            "python3 asker.py $sandbox it 203.0.113.2:80=once '203.0.113.3:80=never save' \
                'ok.example=always save' sub.ok.example=once other.example=no near.example=once \
                203.0.113.2:7=once 203.0.113.2:82=no >answers &
            $sandbox run --id it --ask net --ask-save $HOME/answers.toml --net-log log --deny-net 203.0.113.9 \
                -- python3 asks.py; echo status $?
            wait $!
            cat answers $HOME/answers.toml
            $sandbox --profile $HOME/answers.toml -- python3 -c 'import asks' | grep -E 'address|name conn'",
        );
        asked.success().expect_out(
            "address connected connected EACCES EACCES\n\
             datagram echo hello echo hello\n\
             later EACCES\n\
             name connected ECONNREFUSED\n\
             once connected connected\n\
             no no such name\n\
             near EACCES no such name\n\
             status 0\n\
             203.0.113.2:80 once\n203.0.113.2:80 once\n203.0.113.3:80 never\n203.0.113.2:7 once\n\
             203.0.113.2:82 no\nok.example always\nsub.ok.example once\nother.example no\nnear.example once\n\
             deny-net = [\n    \"203.0.113.3:80/tcp\", # asked and answered\n]\n\
             allow-net = [\n    \"ok.example\", # asked and answered\n]\n\
             address EACCES EACCES EACCES EACCES\nname connected ECONNREFUSED\n",
        );
        asked.err_has(
            "the address 203.0.113.3:80/tcp was refused to python3 (2 times): the answer was never",
        );
        asked.err_has("the name other.example was refused to python3: the answer was no");
        let log = outside.workspace.read("own/log");
        let lines: Vec<Value> = log.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
        let has = |event: &str, key: &str, value: &str, answer: &str| {
            lines
                .iter()
                .any(|it| it["event"] == event && it[key] == value && it["answer"] == answer)
        };
        assert!(has("connect", "address", "203.0.113.2", "once"), "{log}");
        assert!(has("connect", "name", "ok.example", "always"), "{log}");
        assert!(has("lookup", "name", "sub.ok.example", "once"), "{log}");
        assert!(has("datagrams", "address", "203.0.113.2", "once"), "{log}");
    });
}

#[test]
fn where_nobody_answers_it_is_refused() {
    as_both("unasked", |outside| {
        bring(outside);
        let alone = outside.sh("$sandbox --ask net -- python3 asks.py");
        alone.success().expect_out(
            "address EACCES EACCES EACCES EACCES\ndatagram ENETUNREACH ENETUNREACH\nlater EACCES\n\
             name no such name no such name\nonce no such name no such name\nno no such name\n\
             near EACCES no such name\n",
        );
        alone.err_has(
            "the name ok.example was refused to python3 (2 times): nobody was there to be asked",
        );
        // Others go on while one waits; a program that ends takes its question along. (What else it had sent may be asked
        // about before the sandbox reads that it has ended.)
        let waits = outside.sh("mkfifo go
            $sandbox run --detach --id it --ask net -- sh -c '
                python3 -c \"import socket; socket.getaddrinfo(\\\"ok.example\\\", 80)\" & asks=$!
                read -r word <go; kill $asks; wait; touch over' >/dev/null
            $sandbox ask it --follow </dev/null >asked & follows=$!
            until grep -q 'wants to look up' asked; do kill -0 $follows || exit; done
            echo other >go
            $sandbox wait it && wait $follows && ls over && cut -d ' ' -f 3- asked | head -n 2");
        let words = "python3 (3) wants to look up and reach ok.example\nwithdrawn\n";
        waits.success().expect_out(&format!("over\n{words}"));
    });
}
