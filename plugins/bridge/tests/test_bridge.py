"""What crosses a bridge, under whose name, and that nothing goes round in circles."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from agentd_bridge import NO_FILE, Settings, plugin
from hypothesis import given
from hypothesis import strategies as st

from agentd.plugin import Plugin
from agentd.testing import ConfigError, Harness

README = (Path(__file__).parent.parent / "README.md").read_text()
DIRECT = {"identity": "alice", "peer": "@bob"}
GROUP = {"identity": "work", "peer": "grp_1"}


def bridged(**settings: Any) -> Harness:
    return Harness(plugin, {"left": DIRECT, "right": GROUP, **settings}, identity="alice", others=["work"])


def said(h: Harness) -> list[tuple[str, str, str | None]]:
    return [(send.identity, send.target, send.content.text) for send in h.sent]


async def in_group(h: Harness, text: str, **how: Any) -> None:
    await h.message(text, identity="work", conversation="grp_1", direct=False, **how)


async def test_words_cross_both_ways_under_the_other_identitys_name() -> None:
    async with bridged() as h:
        await h.message("hello", sender="@bob")
        await in_group(h, "welcome", sender="@ann")
        assert said(h) == [("work", "grp_1", "@bob: hello"), ("alice", "@bob", "@ann: welcome")]
        assert len({send.client_msg_id for send in h.sent}) == 2


async def test_what_is_said_elsewhere_stays_there() -> None:
    async with bridged() as h:
        await h.message("a secret", sender="@ann")
        await h.message("to all", sender="@bob", conversation="grp_1", direct=False)
        await h.message("another group", identity="work", conversation="grp_2", direct=False)
        await h.message("to work", identity="work", sender="@bob")
        await in_group(h, "ann joined", kind="system")
        assert h.sent == []


async def test_one_way_is_one_way() -> None:
    for direction, expected in (("left-to-right", "work"), ("right-to-left", "alice")):
        async with bridged(direction=direction) as h:
            await h.message("hello", sender="@bob")
            await in_group(h, "welcome")
            assert [send.identity for send in h.sent] == [expected]


async def test_data_crosses_and_a_file_is_told_of() -> None:
    async with bridged() as h:
        await h.message(None, sender="@bob", data={"n": 1}, kind="structured")
        assert (h.sent[0].content.text, h.sent[0].content.data) == (None, {"n": 1})
        assert h.sent[0].content.metadata["bridge"]["sender"] == "bob"


async def test_the_prefix_is_configurable_and_braces_in_words_mean_nothing() -> None:
    async with bridged(prefix="<{sender}> ") as h:
        await h.message("{sender} {0} {", sender="@bob")
        assert h.texts == ["<@bob> {sender} {0} {"]


async def test_what_it_mirrored_it_never_mirrors_back() -> None:
    async with bridged(own=True, hops_max=16) as h:
        await h.message("hello", sender="@bob")
        crossed = h.sent[0].content
        # The group tells it to everybody: to whoever said it, and to others, of whom another bridge may be one.
        await in_group(h, str(crossed.text), own=True, metadata=crossed.metadata)
        await in_group(h, str(crossed.text), metadata=crossed.metadata)
        await h.message("repeated", sender="@bob", metadata=crossed.metadata)
        assert len(h.sent) == 1


async def test_own_words_cross_when_asked_for() -> None:
    async with bridged() as h:
        await in_group(h, "from my phone", own=True)
        assert h.sent == []
    async with bridged(own=True) as h:
        await in_group(h, "from my phone", own=True)
        assert said(h) == [("alice", "@bob", "@work: from my phone")]


async def test_own_words_in_a_direct_conversation_cross_once_it_is_known_with_whom_it_is() -> None:
    async with bridged(own=True) as h:
        await h.message("hello bob?", own=True, conversation="conv_1")
        assert h.sent == []
        await h.message("hello", sender="@Bob", conversation="conv_1")
        await h.message("there you are", own=True, conversation="conv_1")
        await h.message("to ann", own=True, conversation="conv_2")
        assert h.texts == ["@Bob: hello", "@alice: there you are"]


async def test_a_crash_mirrors_nothing_twice() -> None:
    async with bridged() as h:
        h.crash_after_handler()
        await h.message("hello", sender="@bob")
        assert h.texts == ["@bob: hello"]
        assert [send.client_msg_id for send in h.lost] == [h.sent[0].client_msg_id]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(1, 9) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["hops", "via", "x"]), inner),
    )
)
async def test_a_mark_that_cannot_be_read_is_not_mirrored(mark: Any) -> None:
    fields = mark if isinstance(mark, dict) else {"hops": "unreadable"}
    hops, via = fields.get("hops", 0), fields.get("via", [])
    valid = type(hops) is int and isinstance(via, list) and all(isinstance(name, str) for name in via)
    async with bridged(hops_max=16) as h:
        await h.message("hello", sender="@bob", metadata={"bridge": mark})
        assert bool(h.sent) == valid
        assert h.pending == 0


def named(name: str) -> Plugin[Settings]:
    other = Plugin(name, config=Settings)
    other.declared = plugin.declared
    return other


@pytest.mark.parametrize("hops_max", [1, 2, 3, 16])
async def test_a_ring_of_bridges_falls_silent(hops_max: int) -> None:
    """Each bridge carries from its room to the next, and the last one's next is the first."""
    metadata: dict[str, Any] = {}
    copies = 0
    for name in ["first", "second", "third"] * 2:
        settings = {"left": DIRECT, "right": GROUP, "hops_max": hops_max}
        async with Harness(named(name), settings, identity="alice", others=["work"]) as h:
            await h.message("round", sender="@bob", metadata=metadata)
            if not h.sent:
                break
            metadata = h.sent[0].content.metadata
            copies += 1
    assert copies == min(hops_max, 3)
    assert metadata["bridge"]["hops"] == copies


async def test_an_identity_that_does_not_have_the_plugin_is_told_by_name() -> None:
    async with Harness(plugin, {"left": DIRECT, "right": GROUP}, identity="alice", attempts=1) as h:
        await h.message("hello", sender="@bob")
        assert "add it to plugins in [identity.work]" in h.dead[0].error


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"left": DIRECT}, r"config\.right: is missing"),
        ({"left": DIRECT, "right": {"identity": "work"}}, r"config\.right: .*peer"),
        ({"left": {**DIRECT, "pear": 1}, "right": GROUP}, r"config\.left: .*pear"),
        ({"left": DIRECT, "right": {**DIRECT, "peer": "@BOB"}}, r"config: left and right are the same"),
        ({"left": {**GROUP, "identity": "alice"}, "right": GROUP}, r"config: left and right are the same"),
        ({"left": DIRECT, "right": GROUP, "hops_max": 0}, r"config\.hops_max"),
        ({"left": DIRECT, "right": GROUP, "direction": "up"}, r"config\.direction"),
    ],
)
async def test_wrong_settings_are_told_by_their_key(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"plugin\.bridge\.{problem}"):
        async with Harness(plugin, settings):
            pass


async def test_the_readmes_configuration_is_taken() -> None:
    config = tomllib.loads(re.findall(r"```toml\n(.*?)```", README, re.DOTALL)[0])["plugin"]["bridge"]["config"]
    async with Harness(plugin, config):
        pass


def test_the_readme_tells_every_setting() -> None:
    told = [name for row in re.findall(r"^\| (`.*?) \|", README, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert set(told) == set(Settings.__struct_fields__)
    assert NO_FILE in README
