"""The computer that runs the build: every job in a fresh process, its threads pinned to as many cores."""

import os

from edgepack.config.device import Device
from edgepack.core.frozen import Frozen
from edgepack.measure.processes import MEASURED, Host, check_controls

EVIDENCE = MEASURED
IS_LOCAL = True


class Config(Frozen):
    pass


def connect(device: Device) -> Host:
    check_controls(device, os.sched_getaffinity(0), "this computer")
    return Host(device.controls)
