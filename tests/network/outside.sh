# Makes a network of two hosts, serves on the one, and runs a command on the other. In network and mount namespaces of
# its own. Arguments: the directory of this file (where `services` names what else is to be served), a directory to write to,
# the command.
set -eu
here=$1 work=$2
shift 2
ip link set lo up
mkfifo "$work/ready"
unshare --net sh -c '
    read -r _
    ip link set lo up
    ip addr add 203.0.113.2/24 dev server
    ip addr add 203.0.113.3/24 dev server
    ip addr add 10.9.9.9/32 dev server
    ip link set server up
    # shellcheck disable=SC2046  # words
    exec python3 "$1/server.py" 203.0.113.2 203.0.113.3 "$2" $(cat "$1/services" 2>/dev/null)
' sh "$here" "$work" <"$work/ready" >"$work/server" 2>"$work/server.err" &
server=$!
trap 'kill $server; wait $server 2>/dev/null || true; rm -f "$work/ready"' EXIT
exec 3>"$work/ready"
while [ "$(readlink "/proc/$server/ns/net")" = "$(readlink /proc/self/ns/net)" ]; do :; done
ip link add client type veth peer name server netns "$server"
ip addr add 203.0.113.1/24 dev client
ip link set client up
# That an address of this network is nobody's is found in less than a second, where it may be set (arp(7)).
{ echo 250 >/proc/sys/net/ipv4/neigh/client/retrans_time_ms; } 2>/dev/null || true
ip route add default via 203.0.113.2
echo go >&3
exec 3>&-
printf 'nameserver 203.0.113.2\n' >"$work/resolv.conf"
printf '127.0.0.1 localhost\n203.0.113.2 static.example\n' >"$work/hosts"
mount --bind "$work/resolv.conf" "$(readlink -f /etc/resolv.conf)"
mount --bind "$work/hosts" /etc/hosts
if grep -q ssh "$here/services" 2>/dev/null; then
    { cat /etc/passwd; echo 'git:*:65534:65534::/:/bin/sh'; } >"$work/passwd"
    mount --bind "$work/passwd" /etc/passwd
fi
while ! grep -q ready "$work/server"; do
    kill -0 $server
    sleep 0.02
done
"$@"
