"""What echo answers, and what it leaves alone."""

from agentd_echo import plugin

from agentd.testing import Harness


async def test_a_direct_message_comes_back_to_its_sender() -> None:
    async with Harness(plugin) as h:
        await h.message("hello", sender="@bob")
        assert h.texts == ["hello"]
        assert h.sent[0].target == "@bob"


async def test_data_comes_back_too() -> None:
    async with Harness(plugin) as h:
        await h.message("two", data={"n": 2})
        assert h.sent[0].content.data == {"n": 2}


async def test_a_group_is_answered_only_when_it_mentions_us() -> None:
    async with Harness(plugin) as h:
        await h.message("among yourselves", conversation="grp_a", direct=False)
        assert h.sent == []
        await h.message("hey @me", conversation="grp_a", direct=False, mentioned=True)
        assert [(send.target, send.content.text) for send in h.sent] == [("grp_a", "hey @me")]


async def test_two_echoes_fall_silent_after_the_first() -> None:
    async with Harness(plugin) as left, Harness(plugin) as right:
        await left.message("ping")
        answer = left.sent[0].content
        await right.message(answer.text, metadata=answer.metadata)
        assert right.sent == []


async def test_the_system_and_our_own_words_are_not_answered() -> None:
    async with Harness(plugin) as h:
        await h.message("bob joined", kind="system")
        await h.message("I said so", own=True)
        await h.message(None, kind="file")
        assert h.sent == []
        assert h.pending == 0
