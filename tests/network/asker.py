# Somebody who answers what a sandbox asks. Arguments: the program, the id, and KEY=ANSWER for each thing that is asked for
# (a name, HOST:PORT). Prints each question's key, once it is closed, with what became of it.
import json
import subprocess
import sys

sandbox, name = sys.argv[1:3]
answers = dict(it.split("=", 1) for it in sys.argv[3:])


def key(asked):
    return asked.get("name") or f"{asked['host']}:{asked['port']}"


while True:
    follow = [sandbox, "ask", name, "--follow", "--json"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(follow, text=True, **pipes) as process:
        asked = {}
        for line in process.stdout:
            it = json.loads(line)
            number = it["number"]
            if "settled" in it:
                print(key(asked[number]), it["settled"], flush=True)
                continue
            asked[number] = it
            print(number, answers.get(key(it), "never"), file=process.stdin, flush=True)
        error = process.stderr.read()
    if process.returncode == 0:
        break
    # It is about to be there.
    if "no sandbox" not in error and "no answer" not in error:
        sys.exit(error)
