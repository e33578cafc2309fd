"""The benchmark's report: medians, the table, what was promised, the limits, the chart, what a crash took."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import bench_page
import bench_plot
import bench_report
import bench_targets
import pytest
from bench_report import Promise, Spread
from bench_sides import OURS, PEER, RAW


class TestReport:
    SAMPLES = {
        "over HTTP": {"decode_tok_s": [36.0, 38.0, 30.0], "peak_mb": [690.0], "idle_mb": [680.0], "other": [1.0]},
        "alone": {"decode_tok_s": [40.0, 38.0, 50.0], "peak_mb": [640.0]},
    }

    def test_the_middle_counts_and_the_ends_are_kept(self) -> None:
        assert Spread.of([3.0, 1.0, 9.0]) == Spread(median=3.0, low=1.0, high=9.0)
        assert Spread.of([3.0, 1.0, 9.0]).show(1) == "3.0 (1.0–9.0)"
        assert Spread.of([1234.5]).show(0) == "1,234"

    def test_json_has_four_digits(self) -> None:
        results = {"a": {"decode_tok_s": Spread(31.4159, 2.0, 1234.56)}}
        assert bench_report.as_json(results) == {"a": {"decode_tok_s": {"median": 31.42, "low": 2.0, "high": 1235.0}}}

    def test_a_ratio_is_of_medians(self) -> None:
        results = bench_report.spreads(self.SAMPLES)
        assert bench_report.ratio(results, "over HTTP", "alone", "decode_tok_s") == 36.0 / 40.0
        assert bench_report.ratio(results, "over HTTP", "alone", "idle_mb") is None

    def test_the_table_has_a_line_for_each_figure_that_was_measured(self) -> None:
        head, rule, *lines = bench_report.table(self.SAMPLES).splitlines()
        assert re.split(r"  +", head.strip()) == ["over HTTP", "alone", "ratio"]
        assert set(rule) == {"─"}
        assert [re.split(r"  +", line) for line in lines] == [
            ["one stream, tokens/s", "36.0 (30.0–38.0)", "40.0 (38.0–50.0)", "0.90 ×"],
            ["peak resident memory, MB", "690", "640", "1.08 ×"],
            ["resident memory when idle, MB", "680", "–", "–"],
        ]

    def test_the_first_of_three_sides_is_compared_with_each_other(self) -> None:
        text = bench_report.table(
            {side: {"decode_tok_s": [rate]} for side, rate in (("a", 10.0), ("b", 5.0), ("c", 20.0))}
        )
        assert re.split(r"  +", text.splitlines()[-1]) == [
            "one stream, tokens/s",
            "10.0",
            "5.0",
            "2.00 ×",
            "20.0",
            "0.50 ×",
        ]

    @pytest.mark.parametrize(
        "promise, is_kept",
        [
            (Promise("rate", 0.90, 0.90, "least"), True),
            (Promise("rate", 0.8999, 0.90, "least"), False),
            (Promise("memory", 750.0, 750, "most"), True),
            (Promise("memory", 750.1, 750, "most"), False),
        ],
    )
    def test_a_promise_is_held_against_its_limit(self, promise: Promise, is_kept: bool) -> None:
        assert promise.is_kept is is_kept
        assert str(promise).startswith("OK" if is_kept else "SHORT")

    def test_a_small_value_is_not_shown_as_nothing(self) -> None:
        assert str(Promise("first token", 0.0043, 0.09, "most")) == "OK     first token: 0.004"


def results(**sides: dict[str, float]) -> dict[str, dict[str, Spread]]:
    names = {"ours": OURS, "raw": RAW, "peer": PEER}
    return {names[side]: {key: Spread.of([value]) for key, value in row.items()} for side, row in sides.items()}


class TestTargets:
    def test_each_is_held_against_its_own_side(self) -> None:
        found = results(ours={"decode_tok_s": 30.0, "warm_s": 0.2}, raw={"decode_tok_s": 40.0}, peer={"warm_s": 0.2})
        assert list(map(str, bench_targets.promises(found, as_served=False))) == [
            "SHORT  one stream, tokens/s: at least 0.97 × llama_decode alone: 0.75",
            "OK     next message of a long chat: first token, s: at most 1.00 × llama-server: 1.00",
        ]

    def test_one_without_a_side_is_in_the_figures_unit(self) -> None:
        found = results(ours={"restart_s": 0.21, "lost_s": 0.4})
        assert [promise.is_kept for promise in bench_targets.promises(found, as_served=False)] == [False, True]

    def test_what_is_promised_of_the_defaults_is_not_asked_of_others(self) -> None:
        found = results(ours={"peak_mb": 700.0})
        assert not bench_targets.promises(found, as_served=False)
        assert bench_targets.promises(found, as_served=True)[0].is_kept

    def test_every_target_has_a_row_of_the_table(self) -> None:
        assert {target.key for target in bench_targets.TARGETS} <= {figure.key for figure in bench_report.FIGURES}

    def test_the_limits_and_what_is_reached_of_them(self) -> None:
        found = results(ours={"decode_tok_s": 36.0, "together_decode_tok_s": 100.0}, raw={"decode_tok_s": 40.0})
        limits = bench_targets.limits(found, bandwidth=20e9, n_weight_bytes=300_000_000)
        assert limits == {"bandwidth_gb_s": 20.0, "raw_1_tok_s": 40.0, "reached_1": 0.9, "bandwidth_reached": 0.6}
        assert bench_targets.show_limits(limits) == (
            "This device reads its memory at 20.0 GB/s; llama_decode alone reads the weights at 60% of that.\n"
            "llama_decode alone, one stream: 40.0 tokens/s; Sparrow over HTTP reaches 90%."
        )
        assert bench_targets.limits(results(ours={}), 20e9, None) == {"bandwidth_gb_s": 20.0}


class TestPlot:
    def bars(self, **sides: dict[str, float]) -> list[float]:
        """Widths of the bars; the squares of the legend come first."""
        tree = ElementTree.fromstring(bench_plot.svg("A <title> & more", results(**sides)))
        return [float(bar.attrib["width"]) for bar in tree.iter("{http://www.w3.org/2000/svg}rect")][len(sides) :]

    def test_the_longest_bar_of_a_figure_is_as_long_as_can_be(self) -> None:
        longest = bench_plot.WIDTH - bench_plot.LABEL - 80
        drawn = self.bars(ours={"decode_tok_s": 40.0, "peak_mb": 300.0}, peer={"decode_tok_s": 20.0, "peak_mb": 600.0})
        assert drawn == [longest, longest / 2, longest / 2, longest]

    def test_only_what_two_sides_have_is_drawn(self) -> None:
        assert len(self.bars(ours={"decode_tok_s": 1.0, "lost_s": 0.1}, peer={"decode_tok_s": 1.0})) == 2

    def test_it_says_which_way_is_better(self) -> None:
        both = {"ours": {"warm_s": 0.2, "decode_tok_s": 30.0}, "peer": {"warm_s": 0.4, "decode_tok_s": 20.0}}
        chart = bench_plot.svg("title", results(**both))
        places = [chart.index(f">{text}<") for text in ("More is better", "one stream, tokens/s", "Less is better")]
        assert places == sorted(places) and chart.index("next message of a long chat") > places[-1]
        assert "Less is better" not in bench_plot.svg("title", results(ours={"decode_tok_s": 1.0}))

    def test_nothing_is_not_divided_by(self) -> None:
        assert self.bars(ours={"cancel_cpu_s": 0.0}, peer={"cancel_cpu_s": 0.0}) == [1.0, 1.0]


class TestLost:
    SEEN = [(1.0, "One"), (1.5, "One two"), (2.0, "One two three")]

    @pytest.mark.parametrize(
        "kept, lost_s",
        [
            ("One two three", 0.0),
            ("One two three four", 0.0),
            ("One two ", 0.0),
            ("One ", 0.5),
            ("One tx", 0.5),
            ("", 1.0),
        ],
    )
    def test_from_the_first_piece_that_is_gone_to_the_last_one(self, kept: str, lost_s: float) -> None:
        assert bench_page.lost_seconds(self.SEEN, kept) == lost_s

    def test_who_has_seen_nothing_has_lost_nothing(self) -> None:
        assert bench_page.lost_seconds([], "anything") == 0.0

    def test_a_reader_follows_resets_to_the_end(self) -> None:
        seen = bench_page.Seen()
        events = [
            ("delta", "1", {"open": '<p><span class="tail">a</span></p>'}),
            ("reset", "2", {"settled": "<p>b</p>", "open": '<p>x <span class="tail">y</span></p>'}),
            ("delta", "3", {"text": " < z"}),
            ("wait", "", {"queue": 1}),
            ("delta", "4", {"settled": "<p>x <b>y</b> &lt; z</p>", "open": ""}),
            ("end", "5", {"status": "done"}),
        ]
        stream = "retry: 1000\n\n: ping\n\n"
        for event, id, data in events:
            stream += f"event: {event}\n" + (f"id: {id}\n" if id else "") + f"data: {json.dumps(data)}\n\n"
        seen.read(stream.encode().splitlines(keepends=True))
        assert [text for _, text in seen.states] == ["a", "bx y", "bx y < z", "bx y < z"]
        assert (seen.kept, seen.last_id, seen.ended) == ("bx y", "5", "done")
