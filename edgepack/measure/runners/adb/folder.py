"""A folder of ours on a phone: files sent to it once, programs started out of it, and nothing left when it goes."""

import itertools
import secrets
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgepack.core.errors import DeviceError
from edgepack.core.files import file_digest
from edgepack.measure.runners.adb import output
from edgepack.measure.runners.adb.link import HangsError, Link, LostError
from edgepack.measure.runners.adb.programs import Tool

_PLACE = "/data/local/tmp"  # the only folder whose programs Android lets adb start
_NAME = "edgepack-"
_OLD = 1  # days without a process: no session waits so long between two
_TIMEOUT = 300.0  # seconds for one process


@dataclass(frozen=True)
class Ran:
    """A program that ended well: its process id, and what it printed."""

    pid: int
    out: str


class Folder:
    """A folder on the phone. `cores` are those that programs may run on."""

    def __init__(self, link: Link, tools: dict[str, Tool], cores: list[int]) -> None:
        self.link, self.tools, self.cores = link, tools, cores
        self.path = f"{_PLACE}/{_NAME}{secrets.token_hex(6)}"
        self._sent: set[str] = set()
        self._made = False
        self._numbers = itertools.count()

    def fresh(self, suffix: str) -> str:
        """Return an unused file name: a file left by a broken connection must not be taken for the next one."""
        return f"{self.path}/{next(self._numbers)}{suffix}"

    def model(self, file: Path) -> str:
        """Send a model and return its path there. The path depends on the content, not only on the name."""
        return f"{self._send(file_digest(file)[:16], [file.absolute()])}/{file.name}"

    def forget(self) -> None:
        """Assume that all sent files may be gone."""
        self._sent.clear()

    def close(self) -> None:
        if self._made:
            with suppress(DeviceError, LostError):
                self.kill()
                self.link.shell(shlex.join(["rm", "-rf", self.path]))
        self._made = False

    def kill(self) -> None:
        """End what was started from it. The brackets keep the pattern from matching the shell that runs it."""
        name = self.path.rpartition("/")[2]
        self.link.shell(shlex.join(["pkill", "-9", "-f", f"[{name[0]}]{name[1:]}"]))

    def run(self, runtime: str, model: str, arguments: list[str]) -> Ran:
        """Run a runtime's program on the cores, with the log cleared before. `model` is for messages.

        Raises LostError, and DeviceError when the program fails or hangs.
        """
        tool, folder = self._tool(runtime)
        mask = f"{sum(1 << core for core in self.cores):x}"
        program = ["taskset", mask, f"{folder}/{tool.program.name}", *arguments]
        start = shlex.join(["sh", "-c", 'echo $$; exec "$@"', "sh", *program])  # exec keeps the process id
        place, libraries = shlex.quote(self.path), shlex.quote(folder)
        script = f"cd {place} && touch . && {{ logcat -b main -c; LD_LIBRARY_PATH={libraries} {start}; }}"
        try:
            done = self.link.shell(script, _TIMEOUT)
        except HangsError:
            self.kill()
            message = f"{model} did not finish in {_TIMEOUT:.0f} s on {self.link.name}"
            raise DeviceError(message, "it hangs, or is too slow for this phone") from None
        first, _, printed = done.out.partition("\n")
        pid = int(first) if first.isdigit() else 0
        if done.code == 0:
            return Ran(pid, printed)
        why = output.complaint(self.log(pid, whole=False), pid) or _last(printed, done.err)
        hint = "check that the program was built with what the file needs: backend, kernels, libraries next to it"
        if done.code == 137:
            hint = "Android killed it, most likely because memory ran out"
        reason = why or f"it ended with code {done.code} without a message"
        raise DeviceError(f"{runtime} failed on {model} on {self.link.name}: {reason}", hint)

    def log(self, pid: int, *, whole: bool = True) -> str:
        """Return what a process logged. Its last lines may arrive after its end: with `whole`, wait for them."""
        script = shlex.join(["logcat", "-b", "main", "-d", "-v", "threadtime", f"--pid={pid}", "-s", "ExecuTorch:V"])
        log = self.link.shell(script).out
        for wait in (0.2, 0.5):
            if not whole or output.ended(log, pid):
                break
            time.sleep(wait)
            log = self.link.shell(script).out
        return log

    def _tool(self, runtime: str) -> tuple[Tool, str]:
        tool, new = self.tools[runtime], runtime not in self._sent
        folder = self._send(runtime, list(tool.files))
        if new:
            self._must(["chmod", "755", f"{folder}/{tool.program.name}"])
        return tool, folder

    def _send(self, name: str, files: list[Path]) -> str:
        folder = f"{self.path}/{name}"
        if name not in self._sent:
            if not self._made:
                self._remove_old()
            self._made = True  # set before mkdir: a half-made folder must be removed too
            self._must(["mkdir", "-p", folder])
            self.link.push(files, folder)
            self._sent.add(name)
        return folder

    def _remove_old(self) -> None:
        """Remove the folders of killed sessions and end what still runs there. An active session touches its folder."""
        found = f"find {_PLACE} -maxdepth 1 -type d -name '{_NAME}????????????' -mtime +{_OLD}"
        name = f"[{_NAME[0]}]${{old##*/{_NAME[0]}}}"
        self.link.shell(f'{found} | while read -r old; do pkill -9 -f "{name}"; rm -rf "$old"; done')

    def _must(self, command: list[str]) -> None:
        done = self.link.shell(shlex.join(command))
        if done.code == 0:
            return
        hint = f"check the free space: adb shell df {_PLACE}"
        if "No space left" in done.err:
            raise DeviceError(f"{self.link.name} has no space left", hint)
        raise DeviceError(f"{self.link.name} refuses {command[0]}: {_last(done.err)}", hint)


def _last(*said: str) -> str:
    lines = [line.strip() for text in said for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
