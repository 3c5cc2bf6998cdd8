"""What phones print, in the formats of their sources: see recorded/adb/README.md."""

from pathlib import Path

import pytest

from edgepack.core.errors import DeviceError
from edgepack.measure.runners.adb import output

RECORDED = Path(__file__).parent / "recorded" / "adb"
PID = 4242


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def test_every_recorded_file_says_where_its_format_is_from() -> None:
    text = recorded("README.md")
    assert all(f"`{file.name}`" in text for file in RECORDED.iterdir() if file.name != "README.md")


def test_attached_devices_come_with_their_states() -> None:
    found = output.attached("* daemon started successfully\n" + recorded("devices.txt"))
    assert found["0A1B2C3D4E5F"] == "device" and found["192.0.2.7:5555"] == "offline"
    assert found["????????????"].startswith("no permissions") and len(found) == 3


def test_properties_by_name() -> None:
    found = output.properties(recorded("getprop.txt"))
    assert (found["ro.product.model"], found["ro.soc.model"], found["ro.product.cpu.abi"]) == (
        "Pixel 8",
        "Tensor G3",
        "arm64-v8a",
    )


@pytest.mark.parametrize(("thermal", "status"), [("thermal.txt", 0), ("thermal-throttled.txt", 2)])
def test_the_state_is_the_batterys_temperature_and_the_thermal_status(thermal: str, status: int) -> None:
    assert output.state(recorded("battery.txt") + recorded(thermal)) == {"celsius": 31.2, "throttled": status}


def test_a_phone_that_tells_no_state_has_none() -> None:
    assert output.state("Can't find service: thermalservice\n") == {}


def test_an_executor_runner_logs_loading_the_first_run_and_the_others() -> None:
    found = output.executor(recorded("executor_runner.log"), PID)
    assert (found.load, found.first, found.runs) == (4.311, 1.750488, (0.612061, 0.598145, 0.601237))
    assert output.ended(recorded("executor_runner.log"), PID) and not output.ended(
        recorded("executor_runner.log"), 7292
    )


@pytest.mark.parametrize(
    ("log", "message", "hint"),
    [
        ("--------- beginning of main\n", "logged nothing", "EXECUTORCH_ENABLE_LOGGING=ON"),
        (recorded("executor_runner-old.log"), "time of each run: it is too old", "1.3 or later"),
        (recorded("executor_runner.log").replace("Iteration 3", "x"), "kept 3 of 4 runs", "logcat -G"),
        (recorded("executor_runner.log").replace("Iteration 1", "x"), "kept 3 of 4 runs", "logcat -G"),
    ],
)
def test_a_log_that_tells_too_little_says_what_to_do(log: str, message: str, hint: str) -> None:
    with pytest.raises(DeviceError, match=message) as failure:
        output.executor(log, PID)
    assert hint in failure.value.hint


def test_a_failed_executor_runner_gives_its_last_error() -> None:
    assert "Loading of method forward failed" in output.complaint(recorded("executor_runner-failed.log"), PID)
    assert output.complaint(recorded("executor_runner.log"), PID) == ""


def test_a_perf_test_tells_loading_the_first_run_at_most_and_the_others() -> None:
    found = output.perf_test(recorded("perf_test.txt"), recorded("perf_test.csv"))
    assert found.load == pytest.approx(40.4112)
    assert found.first == 4.0, "whole milliseconds, rounded down: a limit of 3.5 ms must not pass"
    assert found.runs == pytest.approx((0.612061, 0.598145, 0.601237))


@pytest.mark.parametrize(("printed", "table"), [("", "perf_test.csv"), ("perf_test.txt", "")])
def test_a_perf_test_of_another_format_is_refused(printed: str, table: str) -> None:
    with pytest.raises(DeviceError, match="too old"):
        output.perf_test(recorded(printed) if printed else "", recorded(table) if table else "")
