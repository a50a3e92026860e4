//! Names and addresses are known again in a run that is restored.

use super::as_both;

const CLIENT: &str = "import os, socket, time
def look(name):
    try: return socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)[0][4]
    except OSError as error: return 'no such name'
def go(address):
    it = socket.socket()
    code = it.connect_ex(address)
    return os.strerror(code) if code else 'connected'
ok = look('ok.example')
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.settimeout(20)
datagrams.connect((ok[0], 7))
datagrams.send(b'a')
datagrams.recv(9, socket.MSG_PEEK)
open('up', 'w').close()
while not os.path.exists('go'): time.sleep(0.01)
# By the address that was looked up before.
print(go(ok), go(('203.0.113.3', 80)), flush=True)
print(datagrams.recv(9), datagrams.getpeername(), datagrams.send(b'b'), datagrams.recv(9))
print(look('sub.ok.example'), look('other.example'), look('ok.example') == ok)
";

#[test]
fn what_was_looked_up_is_reached_when_it_is_restored() {
    as_both("saved", |outside| {
        outside.workspace.write("own/saved.py", CLIENT);
        let script = "set -e
            rm -f up go out image
            $sandbox run --detach --id saved --allow-net ok.example --allow-net sub.ok.example -- \
                sh -c 'exec python3 saved.py >out 2>&1' >/dev/null
            while [ ! -e up ]; do sleep 0.02; done
            $sandbox save saved -o image
            $sandbox restore image --detach >/dev/null
            touch go
            $sandbox wait saved
            cat out";
        outside.sh(script).success().expect_out(
            "connected Permission denied\n\
             b'echo a' ('203.0.113.2', 7) 1 b'echo b'\n\
             ('203.0.113.2', 80) no such name True\n",
        );
    });
}
