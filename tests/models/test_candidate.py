import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch_factories import KINDS, Kind, candidate, context, learned, logits, reloaded
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages import factorize, prune, quantize
from edgepack.models.candidate import Candidate, rebuild
from edgepack.models.complexity import macs, parameters, stored_bytes


def pruned(start: Candidate) -> Candidate:
    config = prune.Config.model_validate({"ratio": "50 %", "steps": 2, "recover": {"epochs": 0}})
    return prune.run(start, config, context())


def factorized(start: Candidate) -> Candidate:
    config = factorize.Config.model_validate({"energy": "50 %", "recover": {"epochs": 0}})
    return factorize.run(start, config, context())


def quantized(start: Candidate) -> Candidate:
    return quantize.run(start, quantize.Config(epochs=0), context())


MAKERS: dict[str, Callable[[Candidate], Candidate]] = {
    "eager": lambda start: start,
    "pruned": pruned,
    "factorized": factorized,
    "pruned and factorized": lambda start: factorized(pruned(start)),
    "quantized": quantized,
}


@cache
def made(how: str, kind: Kind = "residual") -> Candidate:
    return MAKERS[how](learned(kind, width=32))


@pytest.mark.parametrize("how", MAKERS)
def test_what_is_loaded_answers_bit_for_bit_like_what_was_saved(how: str, tmp_path: Path) -> None:
    before = made(how)
    after = reloaded(before, tmp_path / "saved")
    assert torch.equal(logits(after.module), logits(before.module))
    assert (after.form, after.factory, after.surgery) == (before.form, before.factory, before.surgery)
    assert (parameters(after.module), stored_bytes(after.module), macs(after)) == (
        parameters(before.module),
        stored_bytes(before.module),
        macs(before),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_net_makes_the_whole_journey(kind: Kind, tmp_path: Path) -> None:
    """A stage works on what was loaded, as in a build, not on what another stage left in memory."""
    here = learned(kind, width=32)
    for name, stage in {"pruned": pruned, "factorized": factorized, "quantized": quantized}.items():
        made_now = stage(here)
        here = reloaded(made_now, tmp_path / name)
        assert torch.equal(logits(here.module), logits(made_now.module))
    assert here.form == "exported"


@pytest.mark.parametrize("how", MAKERS)
def test_no_file_holds_a_pickle(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reloaded(made(how), tmp_path / "saved")
    for name, content in _streams(tmp_path / "saved"):
        assert not _is_pickle(content), name

    def forbidden(*arguments: object, **more: object) -> None:
        raise AssertionError("something was unpickled")

    for target in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(target, forbidden)
    Candidate.load(tmp_path / "saved")


def _streams(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file, and every member of every archive in it."""
    found = [(str(path), path.read_bytes()) for path in folder.iterdir()]
    while found:
        name, content = found.pop()
        yield name, content
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                found += [(f"{name}/{member}", archive.read(member)) for member in archive.namelist()]


def _is_pickle(content: bytes) -> bool:
    """Protocols 2 to 5 begin with their number and all end with a full stop."""
    return content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and content.endswith(b".")


def test_an_eager_candidate_is_a_log_and_weights_that_anyone_can_read(tmp_path: Path) -> None:
    before = made("pruned and factorized")
    reloaded(before, tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["candidate.json", "weights.safetensors"]
    facts = json.loads((tmp_path / "saved" / "candidate.json").read_text())
    assert facts["factory"]["model"] == "tiny"
    assert [edit["op"] for edit in facts["surgery"]] == [edit.op for edit in before.surgery]
    rebuilt = rebuild(before.factory, before.surgery)
    rebuilt.load_state_dict(load_file(tmp_path / "saved" / "weights.safetensors"))
    assert torch.equal(logits(rebuilt), logits(before.module))


def test_an_exported_candidate_is_a_log_and_a_program(tmp_path: Path) -> None:
    reloaded(made("quantized"), tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["candidate.json", "program.pt2"]


@pytest.mark.parametrize("how", ["eager", "quantized"])
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_programs_take_the_batch_they_were_made_for(how: str, batch: int | None) -> None:
    module = made(how).program(batch=batch).module()
    for size in (1, 3, 7) if batch is None else (batch,):
        assert module(torch.zeros(size, 1, 8, 8)).shape == (size, 3)


def test_changes_add_to_the_log_and_replace_the_notes() -> None:
    edit = made("factorized").surgery[0]
    first = candidate().changed(edit, notes=("first",))
    second = first.changed(edit, notes=("second",))
    assert (second.surgery, second.notes) == ((edit, edit), ("second",))
    assert second == replace(second, notes=())  # what a stage has to say is no part of what it made


def test_the_ledger_counts_what_is_there() -> None:
    net = candidate("mlp")  # 64 -> 16 -> 3
    assert parameters(net.module) == 64 * 16 + 16 + 16 * 3 + 3
    assert stored_bytes(net.module) == 4 * parameters(net.module)
    assert macs(net) == 64 * 16 + 16 * 3
    assert macs(made("pruned")) < macs(made("eager"))
    assert macs(made("quantized")) == macs(made("eager"))
    assert stored_bytes(made("quantized").module) < 0.5 * stored_bytes(made("eager").module)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    """A resumed build loads what an undisturbed one still holds; what comes after must be the same."""
    made("eager").save(tmp_path)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Candidate.load(tmp_path)
    assert torch.equal(torch.rand(3), expected)
