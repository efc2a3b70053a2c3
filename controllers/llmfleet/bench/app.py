"""The closed loop: so many users, each of whom asks again when it has its answer.

In: a `Run` that says where, what and how long. Out: one `Level` for each number of users. It prints nothing: what
happens is told to a `Watcher`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from llmfleet.bench.client import User, clock
from llmfleet.bench.figures import Level, Window, summarize
from llmfleet.bench.request import Prompting, Target, chat_request, models_request, words_for
from llmfleet.bench.stream import Answer, Kind, Problem, Sample, parsed

PAUSE_SECONDS: Final = 1.0
"""Of a user after an error: an endpoint that refuses is not flooded, and not hidden either."""
LOOK_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that a bench was asked for."""

    target: Target
    prompting: Prompting
    users: Sequence[int]
    prompt_tokens: int
    seconds: float
    requests: int | None
    """Measured requests of a level; None: `seconds` decide."""
    warmup: int
    """Requests of each user that come first and are not measured."""
    timeout: float
    tls: ssl.SSLContext | None = None


class Watcher(Protocol):
    """Who is told how far a level is."""

    def level(self, users: int) -> None: ...

    def look(self, share: float, answers: int, errors: int) -> None: ...


class NothingMeasuredError(Exception):
    """The endpoint cannot be measured; the words say what to do."""


@dataclass(slots=True)
class Progress:
    """A level under way."""

    users: int
    samples: list[Sample] = field(default_factory=list)
    warm: int = 0
    asking: int = 0
    issued: int = 0
    """Measured requests that were begun."""
    begin: float | None = None
    end: float | None = None

    def window(self, now: float) -> Window:
        """From all being warm to the first who left; empty when it never came so far."""
        begin = now if self.begin is None else self.begin
        return Window(begin=begin, end=max(begin, now if self.end is None else min(self.end, now)))


async def prepared(run: Run) -> Run:
    """Look whether the endpoint can be measured, and how many words make the prompt that was asked for."""
    user = User(run.target, tls=run.tls, timeout=run.timeout)
    try:
        sample, answer = await user.ask(models_request(run.target))
        check_models(run, sample, answer)
        longer, shorter = max(8, run.prompt_tokens // 2), max(4, run.prompt_tokens // 4)
        found = [(words, await counted(run, user, words)) for words in (shorter, longer)]
    finally:
        user.close()
    return replace(run, prompting=replace(run.prompting, words=words_for(run.prompt_tokens, *found)))


def check_models(run: Run, sample: Sample, answer: Answer) -> None:
    """Nobody is there, the key is wrong, or the model is not one of theirs."""
    url = run.target.url
    if answer.status == 0:
        said = sample.problem.said if sample.problem else ""
        raise NothingMeasuredError(f"cannot connect to {url}: {said}; is --url right, and the endpoint running?")
    if answer.status in (401, 403):
        hint = "another key in the file of --api-key-file" if run.target.key else "--api-key-file FILE"
        raise NothingMeasuredError(f"{url} answers {answer.status}: it wants an API key; give {hint}")
    listed = parsed(answer.body)
    models = listed.get("data") if isinstance(listed, dict) else None
    if answer.status != 200 or not isinstance(models, list):
        return  # an endpoint need not list its models; the first request shows whether it has this one
    ids = [str(one["id"]) for one in models if isinstance(one, dict) and "id" in one]
    if run.prompting.model not in ids:
        raise NothingMeasuredError(f"{url} has no model {run.prompting.model!r}; it has {', '.join(ids) or 'none'}")


async def counted(run: Run, user: User, words: int) -> int:
    """Let the endpoint count the tokens of a prompt."""
    small = replace(run.prompting, words=words, output_tokens=1)
    sample, _ = await user.ask(chat_request(run.target, small, f"count {words}"))
    # The one token that is asked for may be half a character, and so no text yet.
    if sample.problem is not None and sample.problem.kind is not Kind.NO_TOKEN:
        raise NothingMeasuredError(f"the first request to {run.target.url} failed: {explained(sample.problem)}")
    return sample.prompt_tokens


def explained(problem: Problem) -> str:
    """One line, with what to try."""
    text = " ".join(part for part in (str(problem.kind), problem.code) if part)
    text += f": {problem.said}" if problem.said else ""
    if problem.kind is Kind.REFUSED and problem.code.startswith("400") and "ignore_eos" in problem.said:
        text += "; give --no-ignore-eos for an endpoint that does not know it"
    return text


async def measured(run: Run, stop: asyncio.Event, watcher: Watcher) -> AsyncIterator[Level]:
    """One level after the other, until all are done or somebody stops it."""
    for users in run.users:
        if stop.is_set():
            return
        watcher.level(users)
        yield await one_level(run, users, stop, watcher)


async def one_level(run: Run, users: int, stop: asyncio.Event, watcher: Watcher) -> Level:
    """So many users at once."""
    progress = Progress(users)
    wall, cpu = clock(), time.process_time()
    if not run.warmup:
        progress.begin = wall
    work = [asyncio.create_task(one_user(run, progress, number)) for number in range(users)]
    halt = asyncio.create_task(stop.wait())
    everybody: asyncio.Future[Any] = asyncio.gather(*work)
    try:
        while not everybody.done() and not halt.done():
            await asyncio.wait({everybody, halt}, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            watcher.look(share_done(run, progress), len(progress.samples), failed(progress.samples))
        if everybody.done():
            everybody.result()
        now, cut = clock(), progress.asking
    finally:
        for task in (everybody, *work, halt):
            task.cancel()
        await asyncio.gather(everybody, *work, halt, return_exceptions=True)
    return summarize(
        users=users,
        samples=progress.samples,
        window=progress.window(now),
        cut=cut,
        cpu=time.process_time() - cpu,
        wall=now - wall,
    )


async def one_user(run: Run, progress: Progress, number: int) -> None:
    """Warm up, then ask and ask again."""
    user = User(run.target, tls=run.tls, timeout=run.timeout)
    asked = 0
    try:
        while wanted(run, progress, clock()):
            request = chat_request(run.target, run.prompting, f"{progress.users} {number} {asked}")
            asked += 1
            progress.asking += 1
            sample, _ = await user.ask(request)
            progress.asking -= 1
            progress.samples.append(sample)
            if asked == run.warmup:
                warmed(progress, clock())
            if sample.problem is not None and not over(run, progress, clock()):
                await asyncio.sleep(PAUSE_SECONDS)
    finally:
        user.close()


def wanted(run: Run, progress: Progress, now: float) -> bool:
    """Whether to ask once more; who hears no first ends the window."""
    if progress.begin is None:
        return True
    if run.requests is None:
        progress.end = progress.begin + run.seconds
        return now < progress.end
    if progress.issued >= run.requests:
        progress.end = now if progress.end is None else progress.end
        return False
    progress.issued += 1
    return True


def over(run: Run, progress: Progress, now: float) -> bool:
    """Whether nobody asks any more."""
    if progress.begin is None:
        return False
    if run.requests is None:
        return now >= progress.begin + run.seconds
    return progress.issued >= run.requests


def warmed(progress: Progress, now: float) -> None:
    """The window begins when the last user is warm."""
    progress.warm += 1
    if progress.warm == progress.users:
        progress.begin = now


def share_done(run: Run, progress: Progress) -> float:
    """For a progress bar."""
    if progress.begin is None:
        return 0.0
    if run.requests is not None:
        return min(1.0, progress.issued / run.requests)
    return min(1.0, (clock() - progress.begin) / run.seconds)


def failed(samples: Sequence[Sample]) -> int:
    return sum(sample.problem is not None for sample in samples)
