# Two hosts: makes a network for the second, serves there, and stays on the first, which a proxy is on, too, if there is one
# here. In network and mount namespaces of its own. Says "hosts" when all serves. Argument: the directory of `dials`.
set -eu
work=$1
cd "$work"
ip link set lo up
mkfifo go
cat >nginx.conf <<END
daemon off;
pid nginx.pid;
events { }
http {
    access_log off;
    keepalive_requests 1000000000;
    server { listen 203.0.113.2:8080; location / { return 200 "page"; } }
}
END
unshare --net sh -c '
    read -r _ <go
    ip link set lo up
    ip addr add 203.0.113.2/24 dev server
    ip link set server up
    if command -v nginx >/dev/null; then
        nginx -e stderr -p "$PWD" -c nginx.conf &
    fi
    exec ./dials serve 203.0.113.2
' >served 2>served.err &
server=$!
while [ "$(readlink "/proc/$server/ns/net")" = "$(readlink /proc/self/ns/net)" ]; do :; done
ip link add client type veth peer name server netns "$server"
ip addr add 203.0.113.1/24 dev client
ip link set client up
ip route add default via 203.0.113.2
# Ends of connections that are only remembered take up no port for long.
echo 1 2>/dev/null >/proc/sys/net/ipv4/tcp_tw_reuse || true
echo '1024 65000' 2>/dev/null >/proc/sys/net/ipv4/ip_local_port_range || true
echo 'nameserver 203.0.113.2' >resolv.conf
mount --bind resolv.conf "$(readlink -f /etc/resolv.conf)"
echo go >go
while ! grep -q serves served; do
    kill -0 "$server"
done
if command -v nginx >/dev/null; then
    # (It listens before it writes that.)
    until [ -s nginx.pid ]; do kill -0 "$server"; done
fi
if command -v tinyproxy >/dev/null; then
    cat >tinyproxy.conf <<END
Listen 127.0.0.1
Port 8888
MaxClients 100
Timeout 600
LogLevel Error
END
    tinyproxy -d -c tinyproxy.conf >proxy.log 2>&1 &
    until ./dials trip 203.0.113.2 1 8888 >/dev/null 2>&1; do kill -0 $!; done
fi
echo hosts
exec sleep 900
