"""A process that trains together with a build's own, with a job in JSON as its argument.

It runs one stage as the build does, but reports nothing and saves nothing; see steps/followers.py. It ends when its
standard input does, which the build holds open.
"""

import json
import os
import sys
import threading
import traceback
from pathlib import Path

from edgepack.core.frozen import Json
from edgepack.core.process import interrupts, openmp


def main() -> None:
    openmp.wait_asleep()
    threading.Thread(target=_end_with_the_build, daemon=True).start()
    try:
        _follow(json.loads(sys.argv[1]))
    except KeyboardInterrupt:
        interrupts.end()
    except Exception as error:
        from edgepack.workflows.build.steps.followers import ERROR, described

        traceback.print_exc()
        sys.exit(f"{ERROR}{json.dumps(described(error))}")


def _end_with_the_build() -> None:
    # Not through sys.stdin: its lock would be held for ever in the processes that read samples, which close it.
    while os.read(0, 1024):
        pass
    os._exit(1)


def _follow(job: Json) -> None:
    import torch

    from edgepack.compress.contract import Context
    from edgepack.compress.training import numerics
    from edgepack.compress.training.checkpoints import Checkpoints
    from edgepack.compress.training.team import Team
    from edgepack.config.compute import hardware
    from edgepack.config.device import Quantization
    from edgepack.config.recipe_reading import load_recipe
    from edgepack.core.errors import DeviceError
    from edgepack.models.candidate import Candidate
    from edgepack.workflows.build.steps import followers
    from edgepack.workflows.build.store import Store
    from edgepack.workflows.build.workspace import load_data, task_of

    recipe = load_recipe(job["recipe"], overrides=job["overrides"], device=job["device"])
    if followers.content(recipe) != job["content"]:
        raise DeviceError("the recipe changed while it was built", "build again")
    stage, store, on = recipe.stages[job["stage"]], Store(job["store"]), hardware(recipe.compute)

    def candidate(key: str) -> Candidate:
        entry = store.get("candidate", key)
        if entry is None:
            raise DeviceError("a candidate is no longer in the store", "build again")
        return Candidate.load(entry.path)

    with numerics.deterministic(recipe.seed, on.threads):
        context = Context(
            data=load_data(recipe, store, room=job["room"]).for_stages(),
            task=task_of(recipe),
            quantization=Quantization.model_validate_json(job["quantization"]),
            seed=recipe.seed,
            teacher=candidate(job["teacher"]) if job["teacher"] else None,
            emit=lambda event: None,
            latency=lambda candidate: 0.0,
            size=lambda candidate: 0.0,
            tolerance=job["tolerance"],
            size_budget=job["size_budget"],
            quantizer=job["quantizer"],
            checkpoints=Checkpoints(folder=Path(job["unfinished"]), writes=False),
            hardware=on,
        )
        parent = candidate(job["parent"])
        print(followers.READY, flush=True)  # noqa: T201 - to the build, which reads it
        os.dup2(2, 1)  # and reads nothing more: what a model prints goes into a file
        with followers.joined(job["place"], Team(job["rank"], job["size"]), on_gpu=on.gpu is not None) as team:
            torch.manual_seed(recipe.seed)
            stage.module.run(parent, stage.config, followers.with_team(context, team))
