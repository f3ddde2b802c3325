"""Every button of the page, pressed in a real Chromium: it does what it says, at the daemon and on the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from agentd.control.refusal import ControlError
from tests.conftest import pause_row, send_row
from tests.control.browsing import focused, needs_chromium
from tests.control.pages import HOSTILE, Page, identity, record

if TYPE_CHECKING:
    pass

pytestmark = needs_chromium


# --- buttons


def test_a_dead_letter_is_shown_with_its_traceback(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        tab.get_by_role("button", name="Show dead letter 3").click()
        dialog = tab.get_by_role("dialog")
        dialog.wait_for()
        assert "Traceback" in dialog.locator("pre").inner_text()
        assert "@eve" in dialog.inner_text()
        dialog.get_by_role("button", name="Close").click()
        dialog.wait_for(state="hidden")


def test_a_dead_letter_is_dropped_when_that_is_confirmed_and_not_before(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        drop = tab.get_by_role("button", name="Drop dead letter 3")
        drop.click()
        tab.get_by_role("button", name="Cancel").click()
        assert ("dead_drop", 3) not in page.daemon.asked
        drop.click()
        tab.get_by_role("button", name="Drop it").click()
        drop.wait_for(state="detached")
        assert ("dead_drop", 3) in page.daemon.asked
        assert tab.locator("#said").inner_text() == "Done: dead letter 3 was dropped."


@pytest.mark.parametrize(
    ("number", "means"),
    [
        (3, "It comes to echo by itself, marked late, and echo may send."),
        (5, "greeter handles it before anything else in conv_held, which waits for it, and may send."),
    ],
)
def test_a_dead_letter_is_delivered_again_when_it_is_clear_what_that_does(
    page: Page, visit: Callable[..., Any], number: int, means: str
) -> None:
    page.daemon.busy()
    with visit() as tab:
        again = tab.get_by_role("button", name=f"Replay dead letter {number}")
        again.click()
        assert means in tab.get_by_role("dialog").inner_text()
        assert tab.evaluate("document.activeElement.textContent") == "Cancel"
        tab.keyboard.press("Escape")
        tab.get_by_role("dialog").wait_for(state="hidden")
        assert ("dead_replay", number) not in page.daemon.asked
        again.click()
        tab.get_by_role("button", name="Replay it").click()
        tab.get_by_text(f"Done: the event of dead letter {number} is delivered again.").wait_for()
        assert ("dead_replay", number) in page.daemon.asked
        again.wait_for(state="detached")


def test_an_event_is_explained_handler_by_handler(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        explain = tab.get_by_role("button", name="Explain conv_9f31b2c4 #1")
        explain.focus()
        tab.keyboard.press("Enter")
        dialog = tab.get_by_role("dialog", name="What became of an event")
        dialog.wait_for()
        assert ("explain", "1", "alice", None) in page.daemon.asked
        assert tab.evaluate("document.activeElement.id") == "explained-title"
        assert "Could you book the 9:40 train" in dialog.locator(".facts").inner_text()
        greeter = dialog.get_by_role("region", name="Plugin greeter")
        assert greeter.locator(".pill").first.inner_text() == "handled"
        assert [each.locator(".pill").first.inner_text() for each in greeter.locator(".rows > li").all()] == [
            "no match",
            "matches",
            "raised",
        ]
        assert 'text: wanted "^bye", had "hello"' in greeter.inner_text()
        log = dialog.get_by_role("region", name="Plugin log").inner_text()
        assert "behind which the conversation is held, after 5 attempts" in log
        assert "somebody wanted its dead letter to be delivered again" in log
        assert HOSTILE in log
        tab.keyboard.press("Escape")
        dialog.wait_for(state="hidden")
        assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Explain conv_9f31b2c4 #1"


def test_an_event_that_cannot_be_explained_is_said_to_be_so(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    page.daemon.error = ControlError(409, "UNREADABLE_EVENT", "event 1 cannot be read", "is the identity configured?")
    with visit() as tab:
        tab.get_by_role("button", name="Explain conv_9f31b2c4 #1").click()
        tab.get_by_role("alert").locator("p").wait_for()
        told = tab.get_by_role("alert").locator("p").inner_text()
        assert told == "Not explained: event 1 cannot be read; is the identity configured?"


@pytest.mark.parametrize(
    ("length", "for_s", "end"), [("1 hour", 3_600.0, "for another"), ("until resumed", None, "until")]
)
def test_the_conversation_of_any_event_is_paused_and_goes_on_again(
    page: Page, visit: Callable[..., Any], length: str, for_s: float | None, end: str
) -> None:
    page.happen(record(1, "one too many"))
    with visit() as tab:
        tab.get_by_text("No conversation is paused.").wait_for()
        tab.get_by_role("button", name="Explain conv_9f31b2c4 #1").click()
        tab.get_by_role("button", name="Pause conv_9f31b2c4").click()
        asked = tab.get_by_role("dialog", name="Pause a conversation?")
        assert asked.get_by_label("Conversation", exact=True).input_value() == "conv_9f31b2c4"
        assert asked.get_by_label("Identity").input_value() == "alice"
        assert not asked.get_by_label("Conversation", exact=True).is_editable()
        asked.get_by_role("button", name="Cancel").click()
        asked.wait_for(state="hidden")
        assert not any(each[0] == "pause" for each in page.daemon.asked)
        tab.get_by_role("button", name="Pause conv_9f31b2c4").click()
        asked.get_by_label("For how long").select_option(length)
        asked.get_by_role("button", name="Pause it").click()
        tab.get_by_text("Done: conv_9f31b2c4 is paused.").wait_for()
        assert tab.locator("dialog[open]").count() == 0, "what is said could not be seen"
        assert ("pause", "alice", "conv_9f31b2c4", for_s) in page.daemon.asked
        row = tab.locator("#part-pauses li")
        row.wait_for()
        assert "By command." in row.inner_text()
        assert end in row.inner_text()

        tab.get_by_role("button", name="Explain conv_9f31b2c4 #1").click()
        dialog = tab.get_by_role("dialog", name="What became of an event")
        assert "The conversation is paused until" in dialog.inner_text()
        assert dialog.get_by_role("button", name="Pause conv_9f31b2c4").count() == 0
        dialog.get_by_role("button", name="Resume conv_9f31b2c4").click()
        tab.get_by_text("Done: conv_9f31b2c4 goes on.").wait_for()
        assert ("resume", "alice", "conv_9f31b2c4") in page.daemon.asked
        tab.get_by_text("No conversation is paused.").wait_for()


def test_a_lane_that_has_much_to_do_is_paused_where_it_stands(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        lanes = tab.locator("#plugin-greeter .lanes li")
        assert lanes.nth(1).locator(".pill").inner_text() == "paused"
        assert lanes.nth(1).get_by_role("button").count() == 0
        pause = lanes.first.get_by_role("button", name="Pause conv_0a7f3c21e")
        pause.focus()
        tab.keyboard.press("Enter")
        tab.get_by_role("dialog", name="Pause a conversation?").get_by_role("button", name="Pause it").click()
        lanes.first.locator(".pill", has_text="paused").wait_for()
        assert ("pause", "alice", "conv_0a7f3c21e", 900.0) in page.daemon.asked


def test_what_is_paused_is_shown_with_reason_and_end_and_goes_on(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        rows = tab.locator("#part-pauses li")
        rows.first.wait_for()
        noisy, person = rows.all_inner_texts()
        assert "paused 5 min ago, for another 55 min" in noisy
        assert "until it is resumed" in person
        assert HOSTILE in person
        tab.get_by_role("button", name="Resume conv_person").click()
        tab.get_by_text("Done: conv_person goes on.").wait_for()
        assert ("resume", "alice", "conv_person") in page.daemon.asked
        tab.get_by_role("button", name="Resume conv_person").wait_for(state="detached")


def test_of_thousands_of_pauses_some_are_shown_and_the_others_counted(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.pauses = [pause_row(f"conv_{number}") for number in range(1_234)]
    with visit() as tab:
        tab.get_by_text("and 1,214 more; see: agentd status --json").wait_for()
        assert tab.locator("#part-pauses li").count() == 20


def test_a_conversation_in_which_nothing_happens_is_paused_by_its_name(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.identities = [identity("alice"), identity("bob")]
    page.daemon.quiet = ["conv_quiet", "conv_quieter", "room_7"]
    with visit() as tab:
        tab.get_by_role("button", name="Pause one").click()
        asked = tab.get_by_role("dialog", name="Pause a conversation?")
        tab.locator("#pause-conversation:focus").wait_for()
        asked.get_by_label("Identity").select_option("bob")
        known = tab.locator("#pause-known option")
        known.nth(2).wait_for(state="attached")
        tab.keyboard.type("conv_")
        known.nth(2).wait_for(state="detached")
        assert [each.get_attribute("value") for each in known.all()] == ["conv_quiet", "conv_quieter"]
        assert ("conversations", "bob", "conv_", 20) in page.daemon.asked
        tab.keyboard.type("quiet")
        asked.get_by_label("For how long").select_option("1 day")
        asked.get_by_role("button", name="Pause it").click()
        tab.get_by_text("Done: conv_quiet is paused.").wait_for()
        assert ("pause", "bob", "conv_quiet", 86_400.0) in page.daemon.asked
        assert "conv_quiet" in tab.locator("#part-pauses li").inner_text()
        tab.locator("#pause-one:focus").wait_for()


def test_a_conversation_that_nobody_knows_is_not_paused_and_its_name_can_be_mended(
    page: Page, visit: Callable[..., Any]
) -> None:
    page.daemon.error = ControlError(404, "UNKNOWN_CONVERSATION", "nothing is recorded of it", "see: agentd tail")
    with visit() as tab:
        tab.get_by_role("button", name="Pause one").dblclick()
        tab.locator("#pause-conversation:focus").wait_for()
        tab.keyboard.press("Enter")
        assert not any(each[0] == "pause" for each in page.daemon.asked), "it has no name yet"
        tab.keyboard.type("conv_x")
        tab.keyboard.press("Enter")
        asked = tab.get_by_role("dialog", name="Pause a conversation?")
        asked.get_by_role("alert").get_by_text("Not paused: nothing is recorded of it; see: agentd tail.").wait_for()
        page.daemon.error = None
        tab.keyboard.type("y")
        tab.keyboard.press("Enter")
        tab.get_by_text("Done: conv_xy is paused.").wait_for()
        assert asked.count() == 0


def test_a_send_leaves_when_that_is_confirmed_and_not_before(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        send = tab.get_by_role("button", name="Send it @bob")
        send.click()
        assert "It leaves for @bob at once" in tab.get_by_role("dialog").inner_text()
        tab.get_by_role("button", name="Cancel").click()
        assert not any(asked[0] == "outbox_retry" for asked in page.daemon.asked)
        send.click()
        tab.get_by_role("button", name="Send it again").click()
        tab.get_by_text("Done: the send to @bob leaves.").wait_for()
        assert ("outbox_retry", "alice", "agentd-7-0") in page.daemon.asked
        send.wait_for(state="detached")


def test_a_send_of_which_nobody_can_tell_says_so_before_it_leaves_or_goes(
    page: Page, visit: Callable[..., Any]
) -> None:
    page.daemon.identities = [identity("alice", outbox_unknown=1)]
    page.daemon.sends = {"agentd-9-0": send_row("agentd-9-0", state="unknown", needs_decision=True)}
    with visit() as tab:
        tab.get_by_role("button", name="Send it @bob").click()
        assert "If it did, @bob has it twice" in tab.get_by_role("dialog").inner_text()
        tab.keyboard.press("Escape")
        tab.get_by_role("button", name="Drop @bob").click()
        assert "Nobody can tell whether it arrived" in tab.get_by_role("dialog").inner_text()


def test_a_send_is_dropped_when_that_is_confirmed_and_not_before(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        tab.get_by_role("button", name="Drop @bob").first.click()
        tab.get_by_role("button", name="Cancel").click()
        assert not any(asked[0] == "outbox_drop" for asked in page.daemon.asked)
        tab.get_by_role("button", name="Drop @bob").first.click()
        tab.get_by_role("button", name="Drop it").click()
        tab.get_by_text("Done: the send to @bob was dropped.").wait_for()
        tab.locator("#part-outbox .pill", has_text="refused").wait_for(state="detached")
        assert tab.locator("#part-outbox .rows > li").count() == 1
        assert ("outbox_drop", "alice", "agentd-7-0") in page.daemon.asked


def test_a_conversation_that_is_held_is_released_when_that_is_confirmed(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        release = tab.get_by_role("button", name="Release conv_held")
        release.click()
        assert "without what the dead letter is about" in tab.get_by_role("dialog").inner_text()
        tab.keyboard.press("Escape")
        assert not any(asked[0] == "release" for asked in page.daemon.asked)
        release.click()
        tab.get_by_role("button", name="Go on", exact=True).click()
        tab.get_by_text("Done: greeter goes on in conv_held.").wait_for()
        assert ("release", "greeter", "alice", "conv_held") in page.daemon.asked
        release.wait_for(state="detached")


def test_what_cannot_be_done_is_said_with_the_remedy_until_it_was_read(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    page.daemon.error = ControlError(409, "NOTHING_TO_RETRY", "agentd-7-0 is sent", "nothing is left to do")
    with visit() as tab:
        tab.get_by_role("button", name="Send it @bob").click()
        tab.get_by_role("button", name="Send it again").click()
        told = tab.get_by_role("alert").get_by_text("Not done: agentd-7-0 is sent; nothing is left to do.")
        told.wait_for()
        assert tab.get_by_role("button", name="Send it @bob").get_attribute("aria-disabled") is None
        tab.wait_for_timeout(7_000)  # longer than what went well is shown
        assert told.is_visible()
        tab.get_by_role("alert").get_by_role("button", name="Close").click()
        told.wait_for(state="detached")
        assert focused(tab) == "Send it @bob"


def test_what_failed_in_a_dialog_is_said_on_the_page_and_leads_back_to_what_opened_it(
    page: Page, visit: Callable[..., Any]
) -> None:
    page.daemon.busy()
    page.daemon.log.append(record(5, "still there?", conversation="conv_noisy"))
    with visit() as tab:
        tab.get_by_role("button", name="Explain conv_noisy #5").click()
        page.daemon.error = ControlError(409, "NOT_PAUSED", "it is not paused", "see: agentd status")
        tab.get_by_role("dialog").get_by_role("button", name="Resume conv_noisy").click()
        tab.get_by_role("alert").get_by_text("Not done: it is not paused; see: agentd status.").wait_for()
        assert tab.locator("dialog[open]").count() == 0
        tab.locator("[aria-label='Explain conv_noisy #5']:focus").wait_for()
        tab.get_by_role("alert").get_by_role("button", name="Close").click()
        tab.locator("[aria-label='Explain conv_noisy #5']:focus").wait_for()


def test_a_session_that_is_over_and_a_daemon_that_is_gone_are_said_in_words(
    page: Page, visit: Callable[..., Any]
) -> None:
    page.daemon.busy()
    with visit() as tab:
        tab.context.clear_cookies()
        tab.get_by_role("button", name="Resume conv_noisy").click()
        tab.get_by_text("Not done: this needs a token; a browser: agentd dashboard").wait_for()
        assert not any(asked[0] == "resume" for asked in page.daemon.asked)
        page.call(page.server.close())
        tab.get_by_role("button", name="Resume conv_noisy").click()
        tab.get_by_text("Not done: the daemon does not answer.").wait_for()


def test_a_button_that_is_pressed_twice_asks_once(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        # In one step: a button that was found before may be replaced by the next look.
        found = "#part-pauses button[data-body*=conv_noisy]"
        tab.evaluate(f"() => {{ const button = document.querySelector('{found}'); button.click(); button.click(); }}")
        tab.get_by_text("Done: conv_noisy goes on.").wait_for()
        assert [each for each in page.daemon.asked if each[0] == "resume"] == [("resume", "alice", "conv_noisy")]


def test_a_part_is_not_replaced_under_the_finger_nor_under_a_text_that_is_marked(
    page: Page, visit: Callable[..., Any]
) -> None:
    page.daemon.busy()
    with visit() as tab:
        resume = tab.get_by_role("button", name="Resume conv_noisy")
        resume.hover()
        tab.mouse.down()
        page.daemon.pauses = [pause_row("conv_new"), *page.daemon.pauses]
        tab.locator("#part-glance a", has_text="paused").get_by_text("3", exact=True).wait_for()
        assert tab.get_by_text("conv_new").count() == 0
        tab.mouse.up()
        tab.get_by_text("Done: conv_noisy goes on.").wait_for()
        tab.locator("#part-pauses").get_by_text("conv_new").wait_for()

        tab.locator("#part-pauses p").first.dblclick()
        marked = tab.evaluate("getSelection().toString()")
        page.daemon.pauses = []
        tab.locator("#part-glance a", has_text="paused").get_by_text("0", exact=True).wait_for()
        assert tab.evaluate("getSelection().toString()") == marked != ""
        tab.locator("h1").click()
        tab.get_by_text("No conversation is paused.").wait_for()


def test_what_cannot_be_undone_asks_first(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        tab.locator("#part-gaps .rows").wait_for()
        posts = "[...document.querySelectorAll('[data-post]')]"
        asks = set(tab.evaluate(f"{posts}.filter(e => e.dataset.ask).map(e => e.dataset.post)"))
        others = set(tab.evaluate(f"{posts}.filter(e => !e.dataset.ask).map(e => e.dataset.post)"))
    assert asks == {"/api/release", "/api/outbox/retry", "/api/outbox/drop", "/api/dead/replay", "/api/dead/drop"}
    assert others == {"/session/end", "/api/resume"}  # a new link lets in again, and a new pause holds again


def test_one_talks_to_the_embedded_hubs_agent_and_only_there(page: Page, visit: Callable[..., Any]) -> None:
    with visit() as tab:
        assert tab.get_by_label("Your message").count() == 0
    page.daemon.said = {"hub_url": "http://127.0.0.1:1"}
    with visit() as tab:
        tab.get_by_label("Your message").fill("hello")
        tab.keyboard.press("Enter")
        tab.locator("#talk .theirs").wait_for()
        assert tab.locator("#talk li").all_inner_texts() == ["hello", "hello back"]
        assert page.daemon.asked[-1][:3] == ("send", None, "@echo")
