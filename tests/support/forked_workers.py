"""Workers forked from a process that has imported their runtime: a fresh process takes a second or two to import it.

They run the worker's own code, each in a process of its own. Not for tests of how processes are started and ended, nor
of what a timing tells: what is forked has the addresses in memory that all others have.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepack.config.device import Controls
from edgepack.core.frozen import Json
from edgepack.core.process import openmp
from edgepack.core.runtimes import RUNTIMES
from edgepack.measure import processes
from edgepack.measure.contract import Job

_SERVER = f"""\
import json, os, sys, traceback
sys.path.insert(0, {str(Path(processes.__file__).parents[2])!r})
from edgepack.measure.worker import job
job._imported(sys.argv[1])
for line in sys.stdin:
    asked = json.loads(line)
    if not (child := os.fork()):
        os.chdir(asked["folder"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT, 0o600), number)
        sys.argv[1:] = [json.dumps(asked["job"])]
        try:
            job.main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        os._exit(code)  # a runtime that cleans up would wait for a thread that was not copied
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
# By process, which may be a copy of another, runtime and threads. A server ends with its input, thus with who uses it.
_SERVERS: "dict[tuple[int, str, int], subprocess.Popen[str]]" = {}
_fresh = processes.Host.run


def run(host: processes.Host, job: Job) -> Json:
    """What Host.run does."""
    cores = host._cores
    key = (os.getpid(), job.get("runtime", ""), len(cores))
    if key[1] not in RUNTIMES:
        return _fresh(host, job)
    try:
        done = _forked(key, {**job, "threads": len(cores), "cpus": cores})
    except BaseException:  # the next one would get the answer to this job
        if server := _SERVERS.pop(key, None):
            server.kill()
        raise
    return processes.answer(done, job) if done else _fresh(host, job)  # which says why


def run_here(job: Job) -> Json:
    """One job, on one thread."""
    return run(processes.Host(Controls(threads=1)), job)


def _forked(key: tuple[int, str, int], job: Job) -> "subprocess.CompletedProcess[str] | None":
    """Nothing where the server has ended: it could not import the runtime."""
    server = _SERVERS.get(key)
    if server is None or server.poll() is not None:
        server = _SERVERS[key] = _started(*key[1:])
    assert server.stdin and server.stdout
    with TemporaryDirectory() as folder:
        said = {name: str(Path(folder, name)) for name in ("out", "err")}
        with suppress(BrokenPipeError):
            server.stdin.write(json.dumps({"job": job, "folder": str(Path.cwd()), **said}) + "\n")
            server.stdin.flush()
        if not (code := server.stdout.readline()):
            return None
        out, err = (Path(file).read_text(errors="replace") for file in said.values())
    return subprocess.CompletedProcess(args=(), returncode=int(code), stdout=out, stderr=err)


def _started(runtime: str, threads: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _SERVER, runtime],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**openmp.of_the_user(os.environ), **processes.pools(threads), "PYTHONDONTWRITEBYTECODE": "1"},
    )
