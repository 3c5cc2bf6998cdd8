"""An Android phone, by a stand-in for adb (adb_stand_in/): what is sent to it and what comes back."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from stand_ins.adb_phone import SERIAL, Stand, fails, job, pixel, question
from stand_ins.adb_phone import stand as stand

from edgepack.core import provenance
from edgepack.core.errors import AnswerError, DeviceError
from edgepack.measure import processes
from edgepack.measure.contract import connected
from edgepack.measure.timing import figures


def test_the_facts_are_what_a_timing_depends_on_and_name_nobody(stand: Stand) -> None:
    with connected(pixel(match={"ro.product.model": ["Pixel 8"]})) as phone:
        facts = phone.facts
    assert (facts["ro.soc.model"], facts["cpu"], facts["features"]) == (
        "Tensor G3",
        "Google Tensor G3",
        "fp asimd asimddp i8mm",
    )
    assert (facts["threads"], facts["cores"]) == (4, [4, 5, 6, 7])
    assert {*facts["programs"]["onnxruntime"]} == {"onnxruntime_perf_test", "libonnxruntime.so"}
    assert SERIAL not in json.dumps(facts)
    assert not stand.left(), "looking at a phone leaves nothing on it"


def test_a_phone_that_is_not_asked_for_cores_gives_the_last(stand: Stand) -> None:
    with connected(pixel(controls={"threads": 2})) as phone:
        assert phone.facts["cores"] == [7, 8]


@pytest.mark.parametrize("runtime", ["executorch", "onnxruntime"])
def test_a_file_is_timed_in_a_fresh_process_long_enough(stand: Stand, runtime: str) -> None:
    stand.is_(paces="200\n20")  # the trial is slow, as a first process is
    with connected(pixel()) as phone:
        answer = phone.run(job(runtime))
        again = phone.run(job(runtime))
    assert len(answer["samples_ns"]) >= 50 and {*answer["samples_ns"]} == {20_000_000}
    assert len(stand.programs()) == 4, "a trial, a process that was too short, the one that counts, and the next"
    assert again["samples_ns"] == answer["samples_ns"]
    assert answer["before"] == answer["after"] == {"celsius": 31.2, "throttled": 0}
    assert answer["versions"] == provenance.versions(runtime)
    assert (answer["load_ms"], answer["first_ms"]) == ((4.311, 60.0) if runtime == "executorch" else (40.4112, 4.0))
    assert figures.timings([answer, again])["latency.p50"] == [20.0, 20.0]
    assert not stand.left()


def test_a_program_gets_its_cores_threads_and_libraries(stand: Stand) -> None:
    with connected(pixel()) as phone:
        phone.run(job())
        phone.run(job("onnxruntime"))
    first, last = stand.programs()[0], stand.programs()[-1]
    assert first[0] == last[0] == "f0"
    assert "--cpu_threads=4" in first and any(word.endswith("it's a model.pte") for word in first)
    assert last[2:8] == ["-I", "-e", "cpu", "-m", "times", "-r"] and last[9:13] == ["-x", "4", "-y", "1"]


def test_a_slow_model_is_timed_three_times(stand: Stand) -> None:
    stand.is_(paces=9000)
    with connected(pixel()) as phone:
        assert len(phone.run(job())["samples_ns"]) == 3


def test_the_phone_must_answer_as_this_computer_does(stand: Stand) -> None:
    with connected(pixel()) as phone:
        assert phone.run(question()) == {"rows": 5}
        assert len(stand.programs()) == 3
        stand.is_(wrong="")
        with fails(AnswerError, r"it's a model.pte gives other outputs on the pixel-8 than .* up to 22 differ by"):
            phone.run(question())
    assert not stand.left()


def test_a_file_of_several_samples_at_once_is_checked_whole(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each of its three inputs, four samples; their answers are written one after the other."""

    def joined(_: processes.Host, job: dict[str, Any]) -> dict[str, Any]:
        rows = numpy.load(job["inputs"][0], allow_pickle=False)
        with Path(job["output"]).open("wb") as file:
            numpy.savez(file, numpy.concatenate(list(rows * 2)))
        return {"rows": len(rows)}

    monkeypatch.setattr(processes.Host, "run", joined)
    asked = question()
    numpy.save("in.npy", numpy.arange(24, dtype="float32").reshape(3, 4, 2), allow_pickle=False)
    with connected(pixel()) as phone:
        assert phone.run({**asked, "rows": 3}) == {"rows": 3}


def test_a_file_that_gives_other_outputs_there_is_a_wrong_answer(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(_: processes.Host, job: dict[str, Any]) -> dict[str, Any]:
        with Path(job["output"]).open("wb") as file:
            numpy.savez(file, numpy.ones((5, 3), "float32"))
        return {"rows": 5}

    monkeypatch.setattr(processes.Host, "run", shorter)
    with connected(pixel()) as phone, fails(AnswerError, "gives 16 bytes on the pixel-8, and 12 here"):
        phone.run(question())


def test_what_perf_test_answers_is_not_looked_at_and_doubted(stand: Stand) -> None:
    with connected(pixel()) as phone:
        phone.run(question("onnxruntime"))
        assert not stand.programs()
        answers = [phone.run(job("onnxruntime"))] * 7
        assert "unchecked" not in phone.run(job())
    (doubt,) = figures.doubts(answers)
    assert "were not checked" in doubt


def test_perf_test_times_no_open_shapes(stand: Stand) -> None:
    with connected(pixel()) as phone, fails(DeviceError, "has dynamic shapes"):
        phone.run(job("onnxruntime", shapes={"ids": [1, 128]}))


def test_a_backend_must_be_on_both_sides(stand: Stand) -> None:
    with connected(pixel()) as phone:
        found = phone.run({"mode": "delegates", "runtime": "executorch"})
    assert found == {"delegates": ["XnnpackBackend"]}
