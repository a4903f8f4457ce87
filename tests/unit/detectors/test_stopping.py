"""Which kill switch an alert throws: the calls of its place, and no more."""

from __future__ import annotations

from evalpipe.controls import parse
from evalpipe.detectors.base import Finding
from evalpipe.detectors.stopping import stop_of
from evalpipe.detectors.view import Place

FOUND = Finding(True, reason="user agent spends 4 USD a minute")


def test_the_switch_stops_the_feature_in_its_environment_and_says_why():
    """It is one that people could have written, and its name is the same each time."""
    stop = stop_of("cost-explosion", Place("shop", "production", "", "chat"), FOUND, "https://x/i/1")
    assert (stop.service, stop.name) == ("shop", "cost-explosion-chat")
    assert stop.given == {"engaged": True, "environment": "production", "feature": "chat", "incident": "https://x/i/1"}
    assert stop.reason == "alert 'cost-explosion' fires: user agent spends 4 USD a minute"
    parse(stop.service, "switch", stop.name, stop.given)


def test_without_a_feature_the_service_is_stopped_and_a_variant_alone_where_the_alert_is_about_one():
    """As coarse as the rule is."""
    assert "feature" not in stop_of("c", Place("shop", "production"), FOUND).given
    assert stop_of("c", Place("shop", "production", "canary"), FOUND).given["variant"] == "canary"


def test_names_that_look_alike_are_told_apart_and_are_names():
    """A switch that two features shared would stop both."""
    names = {stop_of("c", Place("shop", "", "", feature), FOUND).name for feature in ("a b", "a/b", "a-b", "ä" * 200)}
    assert len(names) == 4
    for name in names:
        parse("shop", "switch", name, {})
