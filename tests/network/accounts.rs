//! What is counted, listed and recorded of a network with some hosts.

use serde_json::Value;

use crate::{as_both, common::Workspace};

/// Runs a program that waits, looks at it, lets it end. What `stats` says of connections that have just ended comes a
/// moment later.
const LOOK: &str = "mkfifo go
    $sandbox run --id it --net-log log --allow-net ok.example --allow-net 203.0.113.2:81 \
        -- python3 accounts.py 2>said &
    while ! [ -e ready ]; do kill -0 $! || exit; done
    while $sandbox stats it --json >stats && grep -q '\"unmeasured\":[1-9]' stats; do :; done
    cat stats
    $sandbox sockets it --json
    $sandbox sockets it >table
    $sandbox stats it >words
    echo >go
    wait $!
    stat -c %a log";

#[test]
fn what_goes_to_which_host_is_counted_listed_and_recorded() {
    as_both("accounts", |outside| {
        let here = crate::common::repository().join("tests/network/accounts.py");
        outside.workspace.write("own/accounts.py", std::fs::read(here).unwrap());
        let looked = outside.sh(LOOK);
        looked.success().out_has("\n600\n");
        let text = looked.out();
        let mut lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let (stats, sockets): (Value, Value) = (lines.next().unwrap(), lines.next().unwrap());
        counted(&stats);
        listed(&sockets);
        let own = |name: &str| outside.workspace.read(&format!("own/{name}"));
        recorded(&own("log"));
        assert!(own("table").contains("203.0.113.2:80 (ok.example)"), "{}", own("table"));
        assert!(own("words").contains("host      203.0.113.3:80/tcp 0 allowed, 2 refused"));
        assert!(own("said").contains("the address 203.0.113.3:80/tcp was refused"));
        assert!(own("said").contains("the name other.example was refused to python3"));
    });
}

fn counted(stats: &Value) {
    let hosts = stats["hosts"].as_array().unwrap();
    let host = |name: &str, port: Option<u16>, transport: &str| {
        let is_it = |it: &&Value| {
            it["host"] == name && it["transport"] == transport && it["port"] == Value::from(port)
        };
        hosts.iter().find(is_it).unwrap_or_else(|| panic!("no {name} in {hosts:#?}"))
    };
    let numbers = |it: &Value| {
        ["allowed", "refused", "open", "bytes_out", "unmeasured"]
            .map(|name| it[name].as_u64().unwrap())
    };
    let page = host("ok.example", Some(80), "tcp");
    // Two that have ended and one that has not.
    assert_eq!(numbers(page), [3, 0, 1, 33, 0]);
    // (The end that the other side has sent may count as a byte of each that has ended.)
    assert!((62..=64).contains(&page["bytes_in"].as_u64().unwrap()), "{page:#}");
    assert_eq!(numbers(host("ok.example", Some(81), "tcp")), [2, 0, 0, 0, 0]);
    assert_eq!(numbers(host("203.0.113.3", Some(80), "tcp")), [0, 2, 0, 0, 0]);
    let datagrams = host("ok.example", Some(7), "udp");
    assert_eq!(numbers(datagrams), [1, 0, 0, 3, 0]);
    assert_eq!(datagrams["bytes_in"], 8);
    assert_eq!(host("ok.example", None, "dns")["refused"], 0);
    assert_ne!(host("other.example", None, "dns")["refused"], 0);
}

fn listed(sockets: &Value) {
    let all = sockets.as_array().unwrap();
    let kept = all.iter().find(|it| it["kind"] == "tcp" && it["network"] == "outside");
    let kept = kept.unwrap_or_else(|| panic!("{all:#?}"));
    assert_eq!((&kept["state"], &kept["bytes_out"]), (&"ESTAB".into(), &10.into()));
    assert_eq!(
        (&kept["peer"], &kept["peer_name"]),
        (&"203.0.113.2:80".into(), &"ok.example".into())
    );
    assert_eq!((&kept["holders"][0]["guest_pid"], &kept["own"]), (&2.into(), &false.into()));
    // The resolver, and both ends of the relay that carries datagrams.
    let own = |network: &str, kind: &str| {
        all.iter()
            .filter(|it| it["own"] == true && it["network"] == network && it["kind"] == kind)
            .count()
    };
    assert_eq!(
        (own("inside", "tcp"), own("inside", "udp"), own("outside", "udp")),
        (2, 3, 1),
        "{all:#?}"
    );
    assert!(
        all.iter().any(|it| it["kind"] == "udp" && it["network"] == "inside" && it["held"] == 1)
    );
}

fn recorded(log: &str) {
    let lines: Vec<Value> = log.lines().map(|it| serde_json::from_str(it).expect("JSON")).collect();
    let find = |event: &str, key: &str, value: &str| -> Vec<&Value> {
        lines.iter().filter(|it| it["event"] == event && it[key] == value).collect()
    };
    assert!(lines.iter().all(|it| it["time"].as_u64().unwrap() > 1_600_000_000_000_000));
    let looked_up = find("lookup", "name", "ok.example");
    assert_eq!(looked_up[0]["rule"], "--allow-net ok.example");
    assert_eq!(looked_up[0]["answers"], serde_json::json!(["203.0.113.2"]));
    assert_eq!((&looked_up[0]["guest_pid"], &looked_up[0]["comm"]), (&2.into(), &"python3".into()));
    let refused = find("lookup", "name", "other.example");
    assert_eq!(
        (&refused[0]["decision"], &refused[0]["reason"]),
        (&"refused".into(), &"no rule allows it".into())
    );
    let refused = find("connect", "decision", "refused");
    assert_eq!(refused.len(), 2);
    assert_eq!((&refused[0]["address"], &refused[0]["port"]), (&"203.0.113.3".into(), &80.into()));
    assert_eq!((&refused[0]["guest_pid"], &refused[0]["comm"]), (&2.into(), &"python3".into()));
    let allowed = find("connect", "decision", "allowed");
    assert_eq!(allowed.len(), 5);
    assert_eq!(
        (&allowed[0]["name"], &allowed[0]["protocol"]),
        (&"ok.example".into(), &"tcp".into())
    );
    assert_eq!(find("datagrams", "decision", "allowed").len(), 1);
    // Each connection has an end; that of the one that was kept may be told before the kernel tells it.
    let closed = find("closed", "protocol", "tcp");
    assert_eq!(closed.len(), 5, "{log}");
    assert!(closed.iter().any(|it| it["bytes_out"] == 18 && it["complete"] == true), "{log}");
    assert!(closed.iter().any(|it| it["bytes_out"] == 10), "{log}");
}

#[test]
fn a_record_is_written_where_it_was_meant_to_be_or_it_is_said() {
    as_both("record", |outside| {
        std::os::unix::fs::symlink("victim", outside.path("own/link")).unwrap();
        outside.workspace.write("own/victim", "");
        let run = |file: &str| {
            outside.sh(&format!(
                "$sandbox --net allow --net-log {file} -- python3 -c '
import socket
print(socket.socket().connect_ex((\"203.0.113.2\", 80)))'"
            ))
        };
        run("link").one_line_error(125, &["--net-log /", "own/link: Too many symbolic links"]);
        assert_eq!(outside.workspace.read("own/victim"), "");
        run("nowhere/log").one_line_error(125, &["--net-log /", "own/nowhere/log: "]);
        let full = run("/dev/full");
        full.success().expect_out("13\n").err_has("the record of --net-log is not whole: No space");
        // (A pipe of its own: who opens the test's anew must be who made it.)
        let shown =
            outside.sh("$sandbox --net allow --net-log /dev/stdout -- python3 -c 'import socket
# (In one piece, also where output is not buffered.)
print(str(socket.socket().connect_ex((\"203.0.113.2\", 80))) + chr(10), end=str())' | cat");
        shown.success().out_has("\"decision\":\"refused\"").out_has("13\n");
        // A program that ends with its connection: the kernel tells of that when the program has gone.
        let page = "$sandbox --allow-net 203.0.113.2 --net-log log -- python3 -c 'import socket
s = socket.socket(); s.connect((\"203.0.113.2\", 80)); s.send(b\"x\" * 500)' && tail -n 1 log";
        let page = outside.sh(page);
        page.success().out_has("\"event\":\"closed\"").out_has("\"bytes_out\":500,");
        page.out_has("\"complete\":true");
        // What is there stays.
        outside.workspace.write("own/old", "old\n");
        if outside.is_nobody() {
            outside.workspace.native(&["chown", "65534", "own/old"]).success();
        }
        run("old").success();
        let text = outside.workspace.read("own/old");
        assert!(text.starts_with("old\n{\"time\":") && text.lines().count() == 2, "{text}");
    });
    let workspace = Workspace::new("network-record-errors");
    let refused = workspace.inside_with(&["--net-log", "x"], &["true"]);
    refused.one_line_error(125, &["--net-log x", "add --net allow"]);
}
