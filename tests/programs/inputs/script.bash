# Pipelines, traps, jobs, redirections: what shell scripts are made of.
set -u -o pipefail
trap 'echo cleaned up after all' EXIT
trap 'echo caught USR1' USR1
trap 'echo "failed: $BASH_COMMAND"' ERR

echo "arguments: $# $*"
seq 1000 | grep 7 | sort -rn | sed -n 1,3p | tr '\n' ' '; echo
false | true | cat
seq 100000 | tac | tac | md5sum
yes | { read -r word; echo "read $word"; cat >/dev/null & sleep 0.1; kill $!; } 2>/dev/null
echo "statuses: ${PIPESTATUS[*]}"
diff <(seq 3) <(seq 2 4) >/dev/null || echo "diff says $?"
printf 'a b\nc d\n' | while read -r x y; do echo "$y-$x"; done

kill -USR1 $$
(trap 'echo in a subshell; exit 4' TERM; kill -TERM $BASHPID; echo not reached)
echo "subshell: $?"

pids=()
for i in 1 2 3 4 5; do (sleep 0.0$i; exit "$i") & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid"; echo "child: $?"; done
mkfifo ready
sh -c 'echo >ready; exec sleep 1000' & child=$!
read -r _ <ready
kill -TERM "$child"
wait "$child" 2>/dev/null
echo "status of a killed child: $?"

coproc tac
printf '%s\n' 1 2 3 >&"${COPROC[1]}"
eval "exec ${COPROC[1]}>&-"
cat <&"${COPROC[0]}"

mkfifo pipe
(echo through a pipe >pipe) & cat pipe
exec 7<>file
echo kept open >&7
exec 7<file
read -r line <&7; exec 7<&-; echo "$line"
cat <<END | tr a-z A-Z
a here document of $1
END
read -r -t 0.1 nothing < <(sleep 2) || echo "read gave up"
for ((i = 0; i < 300; i++)); do value=$(echo "$i"); done
echo "last: $value"
