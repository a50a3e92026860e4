# Servers of real programs on the outside, beside its own: repositories of packages, of git, databases. What they serve is
# made when they start, below the directory that they work in.
import base64
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import zipfile

# Who serves: nobody who may do anything.
SERVANT = {"user": 65534, "group": 65534, "extra_groups": []}
children = []


def start(name, address, work):
    work = os.path.join(work, name)
    os.makedirs(work, exist_ok=True)
    os.chmod(work, 0o777)
    globals()["start_" + name](address, work)


def stop():
    for child, number in children:
        child.send_signal(number)
        child.wait()


def spawn(argv, number=15, **how):
    child = subprocess.Popen(argv, **SERVANT, **how)
    children.append((child, number))
    return child


def await_words(stream, words):
    for line in stream:
        if words in line:
            # It must not block when it has more to say.
            threading.Thread(target=stream.read, daemon=True).start()
            return
    raise SystemExit("the server has ended without having said %r" % words)


# Files, and git's own program behind /git/.
class Pages(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer() if self.path.startswith("/git/") else super().do_GET()

    def do_POST(self):
        self.answer()

    def answer(self):
        path, _, query = self.path.partition("?")
        headers = {
            "CONTENT_TYPE": "Content-Type",
            "CONTENT_LENGTH": "Content-Length",
            "HTTP_CONTENT_ENCODING": "Content-Encoding",
            "HTTP_GIT_PROTOCOL": "Git-Protocol",
        }
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_PROJECT_ROOT": self.directory + "/git",
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path.removeprefix("/git"),
            "QUERY_STRING": query,
            "REMOTE_ADDR": self.client_address[0],
            **{name: self.headers[header] for name, header in headers.items() if header in self.headers},
        }
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        argv = ["git", "http-backend"]
        reply = subprocess.run(argv, input=sent, stdout=subprocess.PIPE, env=environment, **SERVANT).stdout
        head, _, body = reply.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve_pages(address, work, port):
    handler = lambda *arguments: Pages(*arguments, directory=work)
    server = http.server.ThreadingHTTPServer((address, port), handler, bind_and_activate=False)
    # (Who finds no room in the queue comes again after a second or three.)
    server.request_queue_size = 128
    server.server_bind()
    server.server_activate()
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def packed(files, mode="w:gz"):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    return whole.getvalue()


# A page with a picture of its own and one of another host's, whose title says in the end which of them came.
def start_pages(address, work):
    picture = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
    write(work + "/picture.gif", picture)
    write(
        work + "/page.html",
        """<!DOCTYPE html><title>-</title><script>
        const said = [];
        function say(what) { said.push(what); if (said.length == 2) document.title = said.sort().join(", "); }
        </script>
        <img src="picture.gif" onload="say('own came')" onerror="say('own failed')">
        <img src="http://other.example:8000/picture.gif" onload="say('other came')" onerror="say('other failed')">
        """,
    )
    for host in address, "203.0.113.3":
        serve_pages(host, work, 8000)


def start_packages(address, work):
    python_packages(work + "/simple/small")
    node_packages(work + "/npm")
    rust_packages(work + "/crates")
    debian_packages(work + "/apt")
    serve_pages(address, work, 8001)


def python_packages(work):
    wheel, name = io.BytesIO(), "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small.py", "print('small')\n")
        about = "small-1.0.dist-info/"
        archive.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        archive.writestr(about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(about + "RECORD", "small.py,,\n%sMETADATA,,\n%sWHEEL,,\n%sRECORD,,\n" % ((about,) * 3))
    write(work + "/" + name, wheel.getvalue())
    write(work + "/index.html", '<a href="%s">%s</a>' % (name, name))


def node_packages(work):
    about = {"name": "small", "version": "1.0.0", "main": "index.js"}
    files = {"package/package.json": json.dumps(about), "package/index.js": "console.log('small')\n"}
    archive = packed(files)
    sum = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    about["dist"] = {"tarball": "http://ok.example:8001/npm/-/small-1.0.0.tgz", "integrity": sum}
    listing = {"name": "small", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": about}}
    write(work + "/-/small-1.0.0.tgz", archive)
    write(work + "/small", json.dumps(listing))


def rust_packages(work):
    manifest = '[package]\nname = "small"\nversion = "1.0.0"\nedition = "2021"\n'
    source = "pub fn name() -> &'static str { \"small\" }\n"
    archive = packed({"small-1.0.0/Cargo.toml": manifest, "small-1.0.0/src/lib.rs": source})
    sum = hashlib.sha256(archive).hexdigest()
    entry = {"name": "small", "vers": "1.0.0", "deps": [], "cksum": sum, "features": {}, "yanked": False}
    write(work + "/config.json", json.dumps({"dl": "http://ok.example:8001/crates/{crate}-{version}.crate"}))
    write(work + "/sm/al/small", json.dumps(entry) + "\n")
    write(work + "/small-1.0.0.crate", archive)


def debian_packages(work):
    about = "Package: small\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <n@ok.example>\nDescription: small\n"
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": packed({"./control": about}),
        "data.tar.gz": packed({"./usr/share/small": "small\n"}),
    }
    package = b"!<arch>\n"
    for name, content in parts.items():
        package += b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (name.encode(), 0, 0, 0, b"100644", len(content))
        package += content + b"\n" * (len(content) % 2)
    sum = hashlib.sha256(package).hexdigest()
    about += "Filename: ./small_1.0_all.deb\nSize: %d\nSHA256: %s\n" % (len(package), sum)
    write(work + "/small_1.0_all.deb", package)
    write(work + "/Packages.gz", gzip.compress(about.encode()))


# A repository, over http and over ssh.
def start_git(address, work):
    git = work + "/git"
    script = """
        git init -q --bare -b main "$1/small.git" && cd "$1/small.git" && git config http.receivepack true
        tree=$(echo small | git hash-object -w --stdin | xargs printf '100644 blob %s\\tfile\\n' | git mktree)
        export GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000'
        commit=$(git -c user.name=a -c user.email=a@b commit-tree -m first "$tree") && git update-ref HEAD "$commit"
    """
    shutil.rmtree(git, ignore_errors=True)
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": work}
    subprocess.run(["sh", "-ec", script, "sh", git], env=environment, check=True, **SERVANT)
    serve_pages(address, work, 8002)


# Who logs in is `git`, an account of the test's own.
def start_ssh(address, work):
    here = os.path.dirname(os.path.abspath(__file__))
    config = {
        "HostKey": work + "/host",
        "AuthorizedKeysFile": work + "/known",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
        "ListenAddress": address + ":2222",
    }
    for name, key in ("host", "host-key"), ("known", "key.pub"):
        shutil.copy(here + "/" + key, work + "/" + name)
        os.chown(work + "/" + name, 65534, 65534)
        os.chmod(work + "/" + name, 0o600)
    write(work + "/config", "".join("%s %s\n" % it for it in config.items()))
    argv = [shutil.which("sshd", path="/usr/sbin:/usr/bin"), "-D", "-e", "-f", work + "/config"]
    server = spawn(argv, stderr=subprocess.PIPE, text=True)
    await_words(server.stderr, "Server listening on")


def start_redis(address, work):
    argv = ["redis-server", "--bind", address, "--protected-mode", "no", "--save", "", "--dir", work]
    server = spawn(argv, stdout=subprocess.PIPE, text=True)
    await_words(server.stdout, "eady to accept connections")


def start_postgres(address, work):
    with open(os.path.dirname(os.path.abspath(__file__)) + "/postgres") as file:
        programs, data = file.read(), work + "/data"
    if not os.path.exists(data):
        argv = [programs + "/initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync", "--locale=C"]
        subprocess.run(argv, stdout=subprocess.DEVNULL, check=True, cwd=work, **SERVANT)
        with open(data + "/pg_hba.conf", "a") as file:
            file.write("host all all 0.0.0.0/0 trust\n")
    argv = [programs + "/postgres", "-D", data, "-c", "fsync=off", "-c", "unix_socket_directories="]
    # (An end at once: nobody needs what is in it any more.)
    server = spawn(argv + ["-c", "listen_addresses=" + address], 3, cwd=work, stderr=subprocess.PIPE, text=True)
    await_words(server.stderr, "ready to accept connections")
