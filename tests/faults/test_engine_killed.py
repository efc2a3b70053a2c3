"""An engine is killed under load: what had no token yet is answered by another one, what had says that it was cut."""

from __future__ import annotations

import time

from e2e.bed import Bed, engine_spec, eventually
from e2e.figures import Figures
from e2e.load import ERROR_EVENT, RESET, SILENT, open_loop
from faults.ground import kill_in

FLEET = 3
KILLS = 6


def test_a_killed_engine_costs_only_streams_that_had_begun_and_they_say_so(bed: Bed, figures: Figures) -> None:
    with bed.fleet("shot", FLEET, engine_spec("shot")) as names:
        moments = []
        with open_loop(bed.router_url(), "shot", rate=20, tokens=40) as load:
            for number in range(KILLS):
                time.sleep(4)
                shot = names[number % FLEET]
                uids, leader = bed.uids(shot), bed.ranks(shot)[0]["metadata"]
                moments.append(kill_in(leader["uid"], "serve").killed)
                # Ready stays true until somebody has seen it: the group made anew is the proof.
                eventually(lambda shot=shot, uids=uids: not uids & bed.uids(shot), 240, lambda: bed.why("shot"))
                eventually(lambda shot=shot: bed.is_ready(shot), 300, lambda: bed.why("shot"))
        cut = load.failures()
        figures.count("engines killed, requests, streams cut and told so", [KILLS, load.sent, len(cut)])
        figures.samples(
            "seconds from the kill to the word to the client", [told(one.end, moments) for one in cut] or [0]
        )
        assert load.kinds()[SILENT] == 0 and load.sent == len(load.outcomes)
        assert {one.kind for one in cut} <= {ERROR_EVENT, RESET}, load.kinds()
        assert [one for one in cut if not one.chunks and one.status == 200] == []


def told(end: float, moments: list[float]) -> float:
    """Seconds since the last kill before an end."""
    return end - max(moment for moment in moments if moment <= end)
