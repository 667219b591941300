"""Runs programs in forks of one process, which has imported what takes them seconds to import.

Each line of the standard input is a JSON list: a script, its arguments, the folder to run it in, and a
folder for its ``stdout`` and ``stderr``. Each is answered by a line with the exit status; after five
minutes a program is killed.
"""

import json
import os
import runpy
import signal
import sys


def main():
    import sdd_jax.cli
    import sdd_jax.evaluate
    import sdd_jax.sweep  # noqa: F401

    for line in sys.stdin:
        script, arguments, cwd, output = json.loads(line)
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        else:
            run(script, arguments, cwd, output)
            return


def run(script, arguments, cwd, output):
    signal.alarm(300)
    os.chdir(cwd)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(output, name), os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [script, *arguments]
    sys.orig_argv = [sys.executable, *sys.argv]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
