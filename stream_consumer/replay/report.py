"""What the replay commands say: where consumers are, and what differs; as lines for a person, or as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stream_consumer.generations import Generation, Pointer, State
from stream_consumer.replay.differences import Differences, SessionDifference
from stream_consumer.replay.lag import AT_THE_TIP_MS, ShardLag, longest
from stream_consumer.replay.operation import moment, prepared
from stream_consumer.terminal import printable

#: Rows of a table of differences; there may be one for each label.
_ROWS = 30


def status_facts(
    pointer: Pointer, some: Sequence[Generation], lags: Mapping[str, Sequence[ShardLag]], now: int
) -> dict[str, Any]:
    """The generations, and where their consumers are, as plain values."""

    def facts(one: Generation) -> dict[str, Any]:
        return {
            "generation": one.name,
            "state": one.state.value,
            "serving": one.name == pointer.serving,
            "base": one.base,
            "start": moment(one.start) if one.start else "",
            "copied": prepared(one).base.counts,
            "archive": {"bucket": one.archive, "until": _or_none(prepared(one).archive.until)} if one.archive else None,
            "behind": longest(lags.get(one.name, ()), now) / 1000,
            "shards": [_shard_facts(one, lag, now) for lag in lags.get(one.name, ())],
        }

    return {"serving": pointer.serving, "previous": pointer.previous, "generations": [facts(one) for one in some]}


def _shard_facts(generation: Generation, lag: ShardLag, now: int) -> dict[str, Any]:
    """Of one shard: seconds behind, events/s, seconds left, the part that is done; None where that is not known."""
    behind, told = lag.behind(now), lag.told
    left = None
    if behind < AT_THE_TIP_MS:
        left = 0.0
    elif told and told.speed > 1:
        # The tip moves on, a second in each.
        left = behind / 1000 / (told.speed - 1)
    done = None
    if behind < AT_THE_TIP_MS:
        done = 1.0
    elif generation.read_from and told:
        done = max(0.0, (told.arrived - generation.read_from) / (now - generation.read_from))
    return {
        "shard": lag.shard_id,
        "behind": behind / 1000,
        "rate": told.rate if told else None,
        "speed": told.speed if told else None,
        "left": left,
        "done": done,
        "closed": lag.closed,
    }


def status_lines(
    pointer: Pointer, some: Sequence[Generation], lags: Mapping[str, Sequence[ShardLag]], now: int
) -> Iterator[str]:
    """The generations, and where their consumers are, for a person."""
    for one in some:
        served = (
            ", served" if one.name == pointer.serving else ", served before" if one.name == pointer.previous else ""
        )
        yield f"{one.name}: {one.state.value}{served}, from {moment(one.start)}" + (
            f" on {one.base}" if one.base else ""
        )
        if one.state is State.PREPARING:
            so_far = prepared(one)
            yield f"  copying: {so_far.base.phase}, so far {sum(so_far.base.counts.values()):,} items"
            if one.archive:
                yield f"  archive: folded up to {_or_none(so_far.archive.until) or 'nowhere yet'}"
        if one.name not in lags:
            continue
        yield f"  {'shard':24} {'behind':>12} {'events/s':>10} {'speed':>8} {'left':>10} {'done':>6}"
        for facts in (_shard_facts(one, lag, now) for lag in lags[one.name]):
            yield (
                f"  {facts['shard']:24} {_duration(facts['behind']):>12} {_number(facts['rate'], ',.0f'):>10} "
                f"{_number(facts['speed'], ',.1f', 'x'):>8} {_duration(facts['left']):>10} "
                f"{_number(facts['done'], '.0%'):>6}"
            )


def _or_none(at: int) -> str | None:
    return moment(at) if at else None


def _number(value: float | None, form: str, unit: str = "") -> str:
    return f"{value:{form}}{unit}" if value else "-"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return "at the tip" if not seconds else "<1 s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def diff_lines(found: Differences) -> Iterator[str]:
    """What two generations differ in, for a person."""
    yield (
        f"{found.sessions_differ:,} of {found.sessions:,} sessions and {found.rollups_differ:,} of {found.rollups:,} "
        f"roll-ups differ between {found.one} and {found.other}"
    )
    if found.moving:
        yield f"{found.moving:,} items did not come to rest and were not compared; is one of them behind?"
    if found.fields:
        yield "\nsessions that differ in"
        for name, count in found.fields.items():
            yield f"  {name:28} {count:>10,}"
    for title, sums in (("figures of the roll-ups that differ", found.figures), ("labels", found.labels)):
        rows = [(site, name, *amounts) for site, named in sums.items() for name, amounts in named.items()]
        if rows:
            yield f"\n{title:60} {found.one:>12} {found.other:>12} {'change':>10}"
            rows.sort(key=lambda row: -abs(row[3] - row[2]))
            for site, name, before, after in rows[:_ROWS]:
                yield f"  {printable(f'{site} {name}'):58} {before:>12,} {after:>12,} {after - before:>+10,}"
            if len(rows) > _ROWS:
                yield f"  ... and {len(rows) - _ROWS:,} more: --json has them all"
    if found.session_examples:
        yield "\nsessions, such as"
        yield from map(_example, found.session_examples)
    if found.rollup_examples:
        yield "\nroll-ups, such as"
        yield from (f"  {printable(example)}" for example in found.rollup_examples[:10])


def _example(one: SessionDifference) -> str:
    changes = ", ".join(f"{name} {before!r} -> {after!r}" for name, (before, after) in one.fields.items())
    return printable(f"  {one.site} {one.session}: {changes}")
