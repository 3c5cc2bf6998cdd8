"""The programs that run files on a phone: built by the user for arm64 Android, named by environment variables.

They carry no version that a command would tell. Which one it is stands in what is beside them: ONNX Runtime's library
names its symbols after it, and the source tree that a program was built in says it in a file at its top.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from edgepack.core.errors import DeviceError
from edgepack.core.files import file_digest
from edgepack.core.runtimes import RUNTIMES

_ELF, _ARM64 = b"\x7fELF", b"\xb7\x00"
_SYMBOLS = re.compile(rb"VERS_(\d+\.\d+\.\d+)\0")
_NDK = "$ANDROID_NDK/build/cmake/android.toolchain.cmake"


@dataclass(frozen=True)
class Kind:
    """How a runtime's program is named, where its source tree states the version, and how to build it."""

    variable: str
    version_file: str
    build: str


KINDS = {
    "executorch": Kind(
        variable="EDGEPACK_EXECUTOR_RUNNER",
        version_file="version.txt",
        build="in ExecuTorch's source: cmake -B cmake-out-android --preset android-arm64-v8a "
        f"-DANDROID_PLATFORM=android-26 -DCMAKE_TOOLCHAIN_FILE={_NDK} -DEXECUTORCH_BUILD_EXECUTOR_RUNNER=ON "
        "-DEXECUTORCH_BUILD_EXTENSION_EVALUE_UTIL=ON -DEXECUTORCH_BUILD_EXTENSION_RUNNER_UTIL=ON "
        "-DEXECUTORCH_BUILD_XNNPACK=ON -DEXECUTORCH_ENABLE_LOGGING=ON . && "
        "cmake --build cmake-out-android --target executor_runner",
    ),
    "onnxruntime": Kind(
        variable="EDGEPACK_ORT_PERF_TEST",
        version_file="VERSION_NUMBER",
        build="in ONNX Runtime's source: ./build.sh --android --android_abi arm64-v8a --android_api 26 "
        "--android_sdk_path $ANDROID_HOME --android_ndk_path $ANDROID_NDK --config Release --build_shared_lib "
        "--skip_tests, which makes build/Android/Release/onnxruntime_perf_test and the libonnxruntime.so beside it",
    ),
}


def advice(runtime: str) -> str:
    """Say what to do where a runtime is missing."""
    return f"name its program in {KINDS[runtime].variable}; to build it, {KINDS[runtime].build}"


@dataclass(frozen=True)
class Tool:
    """A program on this computer, with the libraries beside it."""

    program: Path
    libraries: tuple[Path, ...]
    version: str

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.program, *self.libraries)

    def digests(self) -> dict[str, str]:
        return {file.name: file_digest(file) for file in self.files}

    def holds(self, word: str) -> bool:
        """Return whether the program contains something registered under this name."""
        return any(word.encode() in file.read_bytes() for file in self.files)


def find() -> dict[str, Tool]:
    """Return the program of each named runtime. Raises DeviceError when none is named, or one cannot be used."""
    found = {runtime: _tool(kind, os.environ[kind.variable]) for runtime, kind in KINDS.items() if _named(kind)}
    if not found:
        message = f"no runtime for this phone: {' and '.join(kind.variable for kind in KINDS.values())} are not set"
        raise DeviceError(
            message, "\n  ".join(f"for {RUNTIMES[name].suffixes[0]} files, {advice(name)}" for name in KINDS)
        )
    return found


def _named(kind: Kind) -> bool:
    return bool(os.environ.get(kind.variable))


def _tool(kind: Kind, name: str) -> Tool:
    program = Path(name).absolute()
    if not program.is_file():
        raise DeviceError(f"{kind.variable} names {name}, which was not found", f"to build it, {kind.build}")
    with program.open("rb") as file:
        head = file.read(20)
    if head[:4] != _ELF or head[18:20] != _ARM64:
        raise DeviceError(f"{name} is not a program for arm64", f"build it for Android: {kind.build}")
    libraries = tuple(sorted(program.parent.glob("lib*.so")))
    return Tool(program=program, libraries=libraries, version=_version(kind, program, libraries))


def _version(kind: Kind, program: Path, libraries: tuple[Path, ...]) -> str:
    inside = (_SYMBOLS.search(file.read_bytes()) for file in (*libraries, program)) if "ORT" in kind.variable else ()
    above = (folder / kind.version_file for folder in program.resolve().parents)
    found = next((match[1].decode() for match in inside if match), "")
    text = found or next((path.read_text(errors="replace").strip() for path in above if path.is_file()), "")
    try:
        return str(Version(text))
    except InvalidVersion:
        hint = (
            f"keep it in the source tree that it was built in, or put a {kind.version_file} with the version next to it"
        )
        raise DeviceError(f"the version of {program} is unknown", hint) from None
