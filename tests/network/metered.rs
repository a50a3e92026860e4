//! `--net-rate` and `--net-total`: connections that are carried are what they are natively, but for what they may carry.

use crate::common::{Outcome, repository};
use crate::{Outside, Who, as_both};

const RULES: &str = "--allow-net ok.example --allow-net static.example --allow-net many.example --allow-net alias.example";

/// What `metered.py` prints on the host and with these flags.
#[track_caller]
fn both(outside: &Outside, flags: &str, words: &str) -> (Outcome, Outcome) {
    let native = outside.sh(&format!("python3 metered.py {words}"));
    let inside = outside
        .sh(&format!("$sandbox --allow-net 203.0.113.0/24 {flags} -- python3 metered.py {words}"));
    (native, inside)
}

fn put_script(outside: &Outside) {
    let script = repository().join("tests/network/metered.py");
    outside.workspace.write("own/metered.py", std::fs::read(script).unwrap());
}

fn with_script(test: &str, body: impl Fn(&Outside)) {
    as_both(test, |outside| {
        put_script(outside);
        body(outside);
    });
}

#[test]
fn what_is_carried_is_what_it_is_natively() {
    as_both("carried", |outside| {
        let native = outside.sh("python3 client.py allowed loopback");
        native.success().out_has("many 200\n");
        let limits = "--net-rate 100m --net-total 10g";
        outside
            .sh(&format!("$sandbox {limits} {RULES} -- python3 client.py allowed loopback"))
            .same_as(&native);
    });
}

#[test]
fn connections_fail_as_they_do_natively() {
    with_script("metered-fails", |outside| {
        let (native, inside) = both(outside, "--net-rate 100m", "fails 81");
        native.success().out_has("ECONNREFUSED").out_has("EHOSTUNREACH").out_has("connected");
        inside.same_as(&native);
        let (native, inside) = both(outside, "--net-total 1g", "leave");
        native.success().expect_out("1000 end 1000\n");
        inside.same_as(&native);
    });
}

#[test]
fn a_rate_bounds_all_connections_together_each_way() {
    let Some(outside) = Outside::new("metered-rate", Who::Nobody) else { return };
    put_script(&outside);
    let (native, inside) = both(&outside, "--net-rate 1m:512k", "timed 262144");
    inside.success().expect_out(&native.success().out());
    // A second's worth of bytes down and half a second's up, but for bursts of a tenth and what buffers hold.
    let times: Vec<f64> =
        inside.err().split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(times[0] > 0.8 && times[1] > 0.35, "{times:?}");
}

#[test]
fn no_more_than_the_total_is_carried_and_that_is_said() {
    with_script("metered-total", |outside| {
        let (native, _) = both(outside, "", "total 3000000");
        native.success().out_has("came 3000000 end\nthen connected");
        let flags = "--net-total 1m --net-log log";
        let (_, inside) = both(outside, flags, "total 3000000");
        // (The words that ask for it are bytes, too.)
        let asked = "down 3000000\n".len();
        let expected =
            format!("came {} ECONNRESET\nthen EACCES\ndatagram ENETUNREACH\n", (1 << 20) - asked);
        inside.success().expect_out(&expected);
        inside.err_has("the traffic limit of 1048576 bytes was reached (--net-total)");
        let log = std::fs::read_to_string(outside.path("own/log")).unwrap();
        assert!(log.contains("all that --net-total allows has been carried"), "{log}");
        // What fits is carried.
        let (native, inside) = both(outside, "--net-total 1m", "carry 500000");
        inside.same_as(&native);
        // Without a network there is nothing to limit, and the host's cannot be.
        let host = outside.sh("$sandbox --net host --net-total 1m -- true");
        host.expect_status(125).err_has("cannot use --net-rate or --net-total with --net host");
        outside.sh("$sandbox --net-total 1m --net-rate 1m -- true").success();
    });
}
