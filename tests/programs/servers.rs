//! Servers with their clients, on loopback inside.

use nix::unistd::{User, chown};

use crate::common::{
    LIMIT, Outcome, Workspace, free_port, have, is_root, postgresql_programs, run, skip,
};

#[test]
fn redis_under_its_benchmark() {
    if !have("redis-server") || !have("redis-benchmark") {
        return;
    }
    let workspace = Workspace::new("redis");
    let script = format!(
        r#"
        port={}
        redis-server --port $port --bind 127.0.0.1 --save "" --appendonly yes --dir . \
            --daemonize no --logfile log & server=$!
        cli() {{ redis-cli -p $port "$@"; }}
        until [ "$(cli ping 2>/dev/null)" = PONG ]; do sleep 0.02; done
        cli set key value; cli get key; cli lpush list 1 2 3; cli lrange list 0 -1
        redis-benchmark -p $port -q -c 50 -n 20000 -t set,get,lpush > benchmark 2>&1 || exit
        tr '\r' '\n' < benchmark | grep -c 'requests per second'
        redis-benchmark -p $port -q -c 20 -n 20000 -P 16 -t set,get > benchmark 2>&1 || exit
        cli bgsave; until cli info persistence | grep -q rdb_bgsave_in_progress:0; do sleep 0.02; done
        cli info persistence | grep -o rdb_last_bgsave_status:ok
        cli shutdown nosave; wait $server; echo "server: $?"; ls dump.rdb
        "#,
        free_port()
    );
    let outcome = workspace.same(&["sh", "-c", &script]);
    outcome.out_has("rdb_last_bgsave_status:ok\nserver: 0\n");
}

#[test]
fn postgresql_under_pgbench() {
    let Some(programs) = postgresql_programs() else { return skip("postgresql") };
    let workspace = Workspace::new("pg");
    let script = format!(
        r#"
        export PATH="{}:$PATH" PGPORT={} PGHOST=127.0.0.1 PGUSER=tester PGDATABASE=postgres PGDATA=data
        initdb -U tester --auth=trust --no-sync -E UTF8 --locale=C > initdb.log || exit
        pg_ctl -w -s -l server.log -o "-c listen_addresses=127.0.0.1 -c unix_socket_directories=" \
            start || {{ cat server.log; exit 1; }}
        psql -Atqc 'create table t as select g as x from generate_series(1, 10000) g; select sum(x) from t'
        pgbench -q -i -s 1 > init.log 2>&1 || {{ cat init.log; exit 1; }}
        pgbench -c 4 -j 2 -t 100 > bench.log 2>&1 || {{ cat bench.log; exit 1; }}
        grep 'actually processed' bench.log
        psql -Atqc 'select count(*) from pgbench_history; select sum(abalance) = sum(tbalance) from pgbench_accounts, (select sum(tbalance) tbalance from pgbench_tellers) s' | head -n1
        pg_ctl -s -m immediate stop
        pg_ctl -w -s -l server.log -o "-c listen_addresses=127.0.0.1 -c unix_socket_directories=" start
        psql -Atqc 'select count(*) from pgbench_history'
        pg_ctl -s -m fast stop; echo "stopped: $?"
        "#,
        programs.display(),
        free_port()
    );
    let outcome = if is_root() {
        // The server refuses to run as root, so all of it runs as an ordinary user.
        let Some(user) = ordinary_user() else { return skip("ordinary user for postgresql") };
        chown(workspace.path(), Some(user.uid), Some(user.gid)).unwrap();
        as_user(&workspace, &user, &script)
    } else {
        workspace.same(&["sh", "-c", &script])
    };
    outcome.out_has("400/400").out_has("\n400\n400\nstopped: 0\n");
}

fn ordinary_user() -> Option<User> {
    let names = ["postgres", "nobody"];
    names.iter().find_map(|name| User::from_name(name).ok().flatten())
}

/// [`Workspace::same`], as another user both times.
fn as_user(workspace: &Workspace, user: &User, script: &str) -> Outcome {
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    let outside = workspace.native_and_undone(&[
        "setpriv",
        "--reuid",
        &uid,
        "--regid",
        &gid,
        "--clear-groups",
        "sh",
        "-c",
        script,
    ]);
    outside.success();
    let mut command = workspace.sandbox();
    command.args(["--user", &format!("{uid}:{gid}"), "--", "sh", "-c", script]);
    let inside = run(command, b"", LIMIT);
    inside.same_as(&outside);
    inside
}

#[test]
fn sqlite_with_several_writers() {
    if !have("sqlite3") {
        return;
    }
    let workspace = Workspace::new("sqlite");
    let script = r#"
        sqlite3 db 'pragma journal_mode=wal; create table t (who int, n int);'
        for who in 1 2 3 4; do
            for n in $(seq 40); do
                echo "pragma busy_timeout=60000; begin immediate; insert into t values ($who, $n); commit;"
            done | sqlite3 db > out$who 2>&1 &
        done
        wait
        sqlite3 db 'select who, count(*), sum(n) from t group by who; pragma integrity_check;'
        sqlite3 :memory: 'with recursive c(x) as (select 1 union all select x+1 from c where x < 200000) select sum(x) from c'
        sqlite3 db .dump | sort | md5sum
        sqlite3 db "vacuum into 'copy'"; sqlite3 copy 'select count(*) from t'
        sort -u out1 out2 out3 out4
    "#;
    workspace.same(&["sh", "-c", script]).out_has("4|40|820\nok\n20000100000\n");
}
