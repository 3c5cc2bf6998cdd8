"""A stand-in for adb and for the phone behind it: no phone is reached by the tests.

It takes adb's command line, and keeps a folder as the phone's storage with a state.json that the tests write. Scripts
for the phone's shell run in this computer's, where `getprop`, `dumpsys`, `logcat`, `taskset` and `pkill` are this file
again. What `taskset` starts is not run: executor_runner doubles its first input, and both programs take as long as the
state says, on paper.

state  devices     {serial: what `adb devices` says of it}
       gone        whether it cannot be reached; returns: whether waiting for it helps
       lost        how many programs the phone goes away under; restarts of a program count each
       full, hang, wrong, silent, old, broken     what else goes wrong
       paces       milliseconds of a run, one a process; the last is kept
       celsius, thermal, props     what it tells of itself
       programs    what was started, with its processors and arguments
"""

import array
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PHONE = Path(os.environ.get("STAND_IN_PHONE", "."))
TMP = "/data/local/tmp"


def load() -> dict[str, Any]:
    state: dict[str, Any] = json.loads((PHONE / "state.json").read_text())
    return state


def change(**what: Any) -> None:
    (PHONE / "state.json").write_text(json.dumps({**load(), **what}))


def fail(message: str, code: int = 1) -> int:
    print(message, file=sys.stderr)
    return code


def here(text: str) -> str:
    """A path or script of the phone as one of its storage."""
    for path in (TMP, "/sys/devices/system/cpu/online", "/proc/cpuinfo"):
        text = text.replace(path, f"{PHONE}{path}")
    return text


def adb(*args: str) -> int:
    if args[0] == "devices":
        print("List of devices attached")
        for serial, state in load()["devices"].items():
            print(f"{serial}\t{state}")
        print()
        return 0
    assert args[0] == "-s" and args[1] in load()["devices"]
    serial, command, rest = args[1], args[2], args[3:]
    if command == "wait-for-device":
        time.sleep(0 if load().get("returns") else 60)
        change(gone=False)
        return 0
    if load().get("gone"):
        return fail(f"error: device '{serial}' not found")
    return {"shell": shell, "push": push, "pull": pull, "get-state": get_state}[command](*rest)


def get_state() -> int:
    print("device")
    return 0


def shell(script: str) -> int:
    done = subprocess.run(["sh", "-c", here(script)], capture_output=True, text=True)
    gone = load().get("gone")  # it went away under the script
    print(done.stdout.partition("\nedgepack-ended")[0] if gone else done.stdout, end="")
    print("" if gone else done.stderr, end="", file=sys.stderr)
    return 255 if gone else done.returncode


def push(*args: str) -> int:
    *files, folder = args
    if load().get("full"):
        told = f"adb: error: failed to copy '{files[0]}' to '{folder}': remote write failed: No space left on device"
        return fail(told)
    if not Path(here(folder)).is_dir():
        return fail(f"adb: error: target '{folder}' is not a directory")
    for file in files:
        shutil.copy(file, here(folder))
    print(f"{len(files)} file(s) pushed. 31.0 MB/s (1446202 bytes in 0.044s)")
    return 0


def pull(*args: str) -> int:
    *files, folder = args
    for file in files:
        shutil.copy(here(file), folder)
    return 0


def getprop(*names: str) -> int:
    known = load()["props"]
    for name, value in known.items():
        print(value if names else f"[{name}]: [{value}]") if not names or name in names else None
    return 0


def dumpsys(service: str) -> int:
    state = load()
    if service == "battery":
        print(f"Current Battery Service state:\n  level: 81\n  temperature: {round(state['celsius'] * 10)}")
    else:
        print(f"IsStatusOverride: false\nThermal Status: {state['thermal']}\nCached temperatures:")
    return 0


def logcat(*args: str) -> int:
    log = PHONE / "log"
    if "-c" in args:
        log.write_text("")
        return 0
    pid = next(arg.partition("=")[2] for arg in args if arg.startswith("--pid="))
    assert "ExecuTorch:V" in args and "threadtime" in args
    print("".join(line for line in log.read_text().splitlines(True) if line.split()[2] == pid), end="")
    return 0


def say(level: str, text: str) -> None:
    with (PHONE / "log").open("a") as log:
        log.write(f"10-03 12:34:56.101 {os.getpid():5} {os.getpid():5} {level} ExecuTorch: {text}\n")


def pkill(*args: str) -> int:
    assert args[:2] == ("-9", "-f")
    pattern = args[2].replace("[e]", "e")
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) != os.getpid() and pattern.encode() in (entry / "cmdline").read_bytes():
            os.kill(int(entry.name), signal.SIGKILL)
    return 0


def taskset(mask: str, program: str, *args: str) -> int:
    state = load()
    change(programs=[*state.get("programs", []), [mask, program, *args]])
    assert os.access(program, os.X_OK), f"{program} may not be run"
    if state.get("hang"):
        time.sleep(60)
    if state.get("lost"):
        change(lost=state["lost"] - 1, gone=True)
        return 1
    pace = state["paces"][0]
    change(paces=state["paces"][1:] or state["paces"])
    return {"executor_runner": executor_runner, "onnxruntime_perf_test": perf_test}[Path(program).name](pace, args)


def executor_runner(pace: float, args: tuple[str, ...]) -> int:
    state, flags = load(), dict(arg.removeprefix("--").split("=", 1) for arg in args)
    if state.get("silent"):
        return 0
    if state.get("broken"):
        say("E", "Backend XnnpackBackend is not registered.")
        say("F", "Loading of method forward failed with status 0x20")
        return 134
    assert Path(flags["model_path"]).is_file()
    runs = int(flags.get("num_executions", 1))
    if not state.get("old"):
        say("I", "Model loaded in 4.311000 ms.")
        for i in range(runs):
            say("I", f"Iteration {i + 1} of {runs}: {pace if i else 3 * pace:f} ms")
    say("I", f"Model executed successfully {runs} time(s) in {pace * runs:f} ms.")
    if "inputs" in flags:
        values = array.array("f", Path(flags["inputs"].split(",")[0]).read_bytes())
        doubled = array.array("f", [value * (0 if state.get("wrong") else 2.001) for value in values])
        Path(f"{flags['output_file']}-0.bin").write_bytes(doubled.tobytes())
    return 0


def perf_test(pace: float, args: tuple[str, ...]) -> int:
    if not Path(os.environ["LD_LIBRARY_PATH"], "libonnxruntime.so").is_file():
        return fail('CANNOT LINK EXECUTABLE "onnxruntime_perf_test": library "libonnxruntime.so" not found', 134)
    runs, model, table = int(args[args.index("-r") + 1]), args[-2], args[-1]
    assert Path(model).is_file()
    print("Session creation time cost: 0.0404112 s\nFirst inference time cost: 3 ms")
    with Path(table).open("a") as file:
        file.writelines(f"m,{pace / 1000},61079552,44,{i}\n" for i in range(runs))
    return 0


if __name__ == "__main__":
    sys.exit(globals()[Path(sys.argv[0]).name](*sys.argv[1:]))
