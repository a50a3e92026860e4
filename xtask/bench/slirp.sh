# Runs a command in a network of its own, which slirp4netns carries.
set -eu
place=$(mktemp -d)
mkfifo "$place/pid" "$place/ready"
unshare --user --map-root-user --net sh -c '
    echo $$ >"$0/pid"
    read -r _ <"$0/ready" || true
    exec "$@"
' "$place" "$@" &
guest=$!
read -r pid <"$place/pid"
slirp4netns --configure --mtu=65520 --ready-fd=3 "$pid" tap0 3>"$place/ready" >"$place/log" 2>&1 &
carrier=$!
status=0
wait $guest || status=$?
kill $carrier
wait $carrier 2>/dev/null || true
rm -r "$place"
exit $status
