"""A Linux computer with Python, reached over ssh: the system's OpenSSH with the user's own configuration and keys.

Where it is stands in no file of the project: environment variable EDGEPACK_SSH_<ID> (as EDGEPACK_SSH_RASPBERRY_PI_5)
holds what `ssh` would be given, or the user's ssh configuration has a host named after the device.
"""

import json
import logging
import subprocess
import time
from pathlib import Path
from uuid import uuid4

from edgepack.config.device import Device
from edgepack.core import provenance
from edgepack.core.errors import AbsentError, DeviceError
from edgepack.core.frozen import Json
from edgepack.core.runtimes import RUNTIMES
from edgepack.measure import processes
from edgepack.measure.contract import Job, recognise
from edgepack.measure.runners.ssh.address import Address
from edgepack.measure.runners.ssh.address import Config as Config
from edgepack.measure.runners.ssh.connection import Link, LostError

EVIDENCE = processes.MEASURED
IS_LOCAL = False

_WAITS = (2.0, 10.0, 30.0)  # seconds before each retry: a small board needs half a minute to reboot


def connect(device: Device) -> "Board":
    board = Board(device, Address.of(device))
    try:
        board.reach()
    except BaseException:
        board.close()
        raise
    return board


class Board:
    """The device, over one connection at a time: a broken one is replaced, and its job is repeated."""

    def __init__(self, device: Device, address: Address) -> None:
        self.device, self.address = device, address
        self.facts: Json = {}
        self._link: Link | None = None
        self._folders: list[str] = []  # folders there, of broken connections

    def run(self, job: Job) -> Json:
        for wait in (*_WAITS, None):
            try:
                return self._attempt(job)
            except (LostError, AbsentError) as error:
                logging.getLogger(__name__).info("lost: %s", error.message)
                self.close()
                if wait is None:
                    over = Path(job.get("file", "its check of the runtime")).name
                    message = f"{self.device.name} was lost {len(_WAITS) + 1} times over {over}"
                    raise DeviceError(message, "check its power and its network, then build again") from None
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def reach(self) -> "Link":
        """Open a new connection. Raises AbsentError, or DeviceError for a device that cannot be used."""
        self._link = link = Link(self.device, self.address, self._folders)
        self._folders.append(Path(link.folder).name)
        facts = self._facts(link)
        if self.facts and facts != self.facts:
            raise DeviceError(f"{self.device.name} changed while the connection was lost", "build again")
        self.facts = facts
        return link

    def close(self) -> None:
        if self._link:
            self._link.close()
        self._link = None

    def _facts(self, link: "Link") -> Json:
        """Return facts that do not change from day to day. Raises DeviceError where nothing can run there."""
        found = _work(
            link, {"mode": "probe", "runtime": "the worker"}, advice="a device with this runner is a Linux computer"
        )
        recognise(self.device, found)
        processes.check_controls(self.device, found["cores"], "it")
        if not found["versions"]:
            package = "onnxruntime=={onnxruntime}".format(**provenance.versions("onnxruntime"))
            hint = f"install the runtimes of the recipe there: `{link.python} -m pip install {package}`"
            raise DeviceError(f"{self.device.name} has neither {' nor '.join(RUNTIMES)}", hint)
        cores = processes.pinned(self.device.controls, found["cores"])
        kept = ("model", "cpu", "features", "machine", "kernel", "governor", "versions")
        return {"runner": "ssh", **{fact: found[fact] for fact in kept}, "cores": cores, "threads": len(cores)}

    def _attempt(self, job: Job) -> Json:
        link = self._link or self.reach()
        output = f"{uuid4().hex}.npz"
        packages = ", ".join(RUNTIMES[job["runtime"]].packages)
        advice = f"check that the runtime loads there: {link.python} -c 'import {packages}'"
        found = _work(link, self._remote_job(link, job, output), job, advice=advice)
        if "output" in job:
            link.fetch(output, Path(job["output"]))
        return found

    def _remote_job(self, link: "Link", job: Job, output: str) -> Job:
        """Send the job's files and return the job with paths on the device."""
        cores = self.facts["cores"]
        there: Job = {**job, "threads": len(cores), "cpus": cores}
        if job["mode"] != "delegates":  # this mode needs no file
            there["file"] = link.send(Path(job["file"]))
        if "inputs" in job:
            there["inputs"] = [link.send(Path(path)) for path in job["inputs"]]
        if "output" in job:
            there["output"] = f"{link.folder}/{output}"
        return there


def _work(link: "Link", remote_job: Job, job: Job | None = None, *, advice: str) -> Json:
    """Run the worker once there. `job` is the job with local paths. Raises LostError or DeviceError."""
    job = job or remote_job
    timeout = processes.patience(job)
    arguments = (link.send_worker(), json.dumps({**remote_job, "leash": True}))
    try:
        done = link.call(arguments, timeout=timeout, environment=processes.pools(remote_job.get("threads", 1)))
    except subprocess.TimeoutExpired:
        raise processes.endless(job, timeout) from None
    done.stderr = done.stderr.replace(f"{link.folder}/", "")  # reports must not name a user's home
    return processes.answer(done, job, advice)
