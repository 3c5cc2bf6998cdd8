"""Define how a file is timed so that the figure is reliable.

The sample is a fresh process, never an iteration: inside one process runs agree with each other far better than two
processes do. Rounds of seven processes are taken until an order-statistic interval of their medians lies wholly on one
side of the budget, at most three rounds; otherwise the verdict is inconclusive.
Source of the interval: H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., 2003, section 7.1.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from edgepack.core.errors import DeviceError
from edgepack.core.frozen import Frozen, Json
from edgepack.core.order_statistics import LOOKS, interval
from edgepack.measure.timing.figures import NEEDED, Answers, slowed_down, timings

PROTOCOL = "edgepack/2"  # files of a build are timed in turns; in edgepack/1 they were one after the other
_PASSES = 3  # processes whose memory is looked at
_SPOILT = 0.2  # share of processes that may be timed on a device that slows down


class TimingProtocol(Frozen):
    """The fixed part of a timing."""

    name: str = PROTOCOL
    warm_up_seconds: float = 0.3
    seconds: float = 1.0
    least_runs: int = 30
    most_runs: int = 1000
    most_seconds: float = 20.0  # of a model so slow that three runs will do

    @classmethod
    def of(cls, metrics: Iterable[str]) -> "TimingProtocol":
        """As many runs as the percentiles among these metrics need.

        >>> TimingProtocol.of(["size", "latency.p90"]).least_runs
        64
        """
        return cls(least_runs=max([cls().least_runs, *(NEEDED[each][1] for each in metrics if each in NEEDED)]))

    def key(self) -> Json:
        """What a timing depends on. Of the runs there may be more than were asked for: `kept` tells."""
        return self.model_dump(exclude={"least_runs"})

    def kept(self, answers: "Answers") -> bool:
        """Whether each process timed as many runs as are asked for now, or as long as any does."""
        counts = ((len(answer["samples_ns"]), sum(answer["samples_ns"])) for answer in answers)
        return all(runs >= self.least_runs or ns >= self.most_seconds * 1e9 for runs, ns in counts)

    def job(self) -> Json:
        return {"mode": "time", **self.model_dump(exclude={"name"})}


Run = Callable[[Json], Json]  # one job of the worker in a fresh process

MOST = max(LOOKS)  # processes; after that a budget that is not decided is inconclusive


def enough(answers: Answers, decided: Callable[[], bool]) -> bool:
    """Whether a file needs no further process: a whole number of rounds, and decided or at the last one."""
    return len(answers) >= MOST or (len(answers) in LOOKS and decided())


def time_in_turns(
    run: Run,
    jobs: Sequence[Json],
    before: Sequence[Answers],
    decided: Callable[[tuple[Answers, ...]], bool],
    progress: Callable[[int, int], None],
) -> tuple[Answers, ...]:
    """Time the files of `jobs` in rounds of fresh processes, there and back, so that drift strikes all alike; after the
    answers there are of each, until that is `enough`.

    `progress` is called before each turn with how many there were and how many are certain to come. Raises DeviceError
    when the device slows down: how much each file suffers from that is not its own doing.
    """
    taken = tuple(list(each) for each in before)
    while not enough(taken[0], lambda: decided(taken)):
        done = len(taken[0])
        progress(done, next(look for look in LOOKS if look > done))
        turns = [*zip(taken, jobs, strict=True)]
        for answers, job in turns if done % 2 == 0 else reversed(turns):
            answers.append(run(job))
        for answers in taken:
            _check_state(answers)
    return taken


def time_pair(run: Run, jobs: Sequence[Json], progress: Callable[[int, int], None]) -> tuple[Answers, ...]:
    """Time two files in turns until it is decided which is faster. Raises DeviceError as `time_in_turns`."""
    return time_in_turns(run, jobs, ([], []), lambda taken: _differs(ratios(*taken)), progress)


def peaks(run: Run, evidence: Mapping[str, str], job: Json) -> list[Json]:
    """What a few processes say of their memory; nothing where the device cannot tell."""
    passes = _PASSES if "memory" in evidence else 0
    return [run({**job, "mode": "memory"}) for _ in range(passes)]


def ratios(first: Answers, second: Answers) -> list[float]:
    """How long the second file takes, in times of the first: one figure a pair of processes that ran in turn."""
    before, after = (timings(answers)["latency.p50"] for answers in (first, second))
    return [mine / its for its, mine in zip(before, after, strict=True)]


def _differs(found: Sequence[float]) -> bool:
    _, low, high = interval(found)
    return not low <= 1 <= high


def _check_state(answers: Answers) -> None:
    """Raises DeviceError once more than a fifth of a whole number of rounds was taken on a device that slowed down."""
    slowed = [why for answer in answers if (why := slowed_down(answer))]
    if len(answers) in LOOKS and len(slowed) > _SPOILT * len(answers):
        message = f"the device slowed down in {len(slowed)} of {len(answers)} processes: {slowed[-1]}"
        raise DeviceError(message, "let it cool, check its power supply, or set `cool_down` in its profile")
