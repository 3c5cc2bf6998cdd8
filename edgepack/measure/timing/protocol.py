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

PROTOCOL = "edgepack/2"  # files of a build are timed alternately; in edgepack/1 they were timed one after the other
_PASSES = 3  # processes whose memory is measured
_SPOILT = 0.2  # share of processes that may be slowed down by the device


class TimingProtocol(Frozen):
    """The fixed part of a timing."""

    name: str = PROTOCOL
    warm_up_seconds: float = 0.3
    seconds: float = 1.0
    least_runs: int = 30
    most_runs: int = 1000
    most_seconds: float = 20.0  # limit for slow models; three runs then suffice

    @classmethod
    def of(cls, metrics: Iterable[str]) -> "TimingProtocol":
        """Make a protocol with as many runs as the percentiles among these metrics need.

        >>> TimingProtocol.of(["size", "latency.p90"]).least_runs
        64
        """
        return cls(least_runs=max([cls().least_runs, *(NEEDED[each][1] for each in metrics if each in NEEDED)]))

    def key(self) -> Json:
        """Return what a timing depends on. More runs than requested are fine: see `kept`."""
        return self.model_dump(exclude={"least_runs"})

    def kept(self, answers: "Answers") -> bool:
        """Return whether each process timed at least the runs requested now, or as long as any may."""
        counts = ((len(answer["samples_ns"]), sum(answer["samples_ns"])) for answer in answers)
        return all(runs >= self.least_runs or ns >= self.most_seconds * 1e9 for runs, ns in counts)

    def job(self) -> Json:
        return {"mode": "time", **self.model_dump(exclude={"name"})}


Run = Callable[[Json], Json]  # one job of the worker in a fresh process

MOST = max(LOOKS)  # processes; a budget still undecided then is inconclusive


def enough(answers: Answers, decided: Callable[[], bool]) -> bool:
    """Return whether a file needs no more processes: after a whole round, if decided; always after the last round."""
    return len(answers) >= MOST or (len(answers) in LOOKS and decided())


def time_alternately(
    run: Run,
    jobs: Sequence[Json],
    before: Sequence[Answers],
    decided: Callable[[tuple[Answers, ...]], bool],
    progress: Callable[[int, int], None],
) -> tuple[Answers, ...]:
    """Time the files of `jobs` in rounds of fresh processes, forwards and backwards in turn so that drift affects all
    alike; continue after the existing answers `before` until there are `enough`.

    `progress` is called before each turn with the number of processes done and the number that is certain. Raises
    DeviceError when the device slows down: that affects files to different degrees.
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
    """Time two files alternately until it is decided which is faster. Raises DeviceError as `time_alternately`."""
    return time_alternately(run, jobs, ([], []), lambda taken: _differs(ratios(*taken)), progress)


def peaks(run: Run, evidence: Mapping[str, str], job: Json) -> list[Json]:
    """Measure peak memory in a few processes; nothing where the device does not support it."""
    passes = _PASSES if "memory" in evidence else 0
    return [run({**job, "mode": "memory"}) for _ in range(passes)]


def ratios(first: Answers, second: Answers) -> list[float]:
    """Return the second file's time as a multiple of the first's: one ratio for each pair of consecutive processes."""
    before, after = (timings(answers)["latency.p50"] for answers in (first, second))
    return [mine / its for its, mine in zip(before, after, strict=True)]


def _differs(found: Sequence[float]) -> bool:
    _, low, high = interval(found)
    return not low <= 1 <= high


def _check_state(answers: Answers) -> None:
    """Raises DeviceError after a whole round if the device slowed down in more than a fifth of the processes."""
    slowed = [why for answer in answers if (why := slowed_down(answer))]
    if len(answers) in LOOKS and len(slowed) > _SPOILT * len(answers):
        message = f"the device slowed down in {len(slowed)} of {len(answers)} processes: {slowed[-1]}"
        raise DeviceError(message, "let it cool, check its power supply, or set `cool_down` in its profile")
