"""The page in a real Chromium: what it shows, and that every button does what it says.

AGENTD_SCREENSHOTS names a folder for pictures to look at; without it they go to the test's own and away.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.control.pages import HOSTILE, Page, iso, record

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

CHROMIUM = shutil.which("chromium")
DESK, PHONE = (1280, 900), (360, 740)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true",
    reason="Chromium is not installed; on Debian and Ubuntu: apt-get install -y chromium",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "Chromium is not installed; on Debian and Ubuntu: apt-get install -y chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    (tmp_path / "state").mkdir()
    served = Page(tmp_path / "state")
    yield served
    served.close()


@pytest.fixture
def visit(browser: Browser, page: Page) -> Callable[..., Any]:
    """Opens the page by a link that works once. Afterwards: no request went elsewhere, and nothing failed on it."""

    @contextmanager
    def visit(size: tuple[int, int] = DESK, scheme: str = "light", **options: Any) -> Iterator[Tab]:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            reduced_motion="reduce",
            locale="en-GB",
            **options,
        )
        tab = context.new_page()
        tab.set_default_timeout(8_000)
        elsewhere: list[str] = []
        failures: list[str] = []
        tab.on("request", lambda request: request.url.startswith(page.url) or elsewhere.append(request.url))
        tab.on("pageerror", lambda error: failures.append(str(error)))
        tab.on(
            "console",
            lambda told: (
                told.type == "error" and "Failed to load resource" not in told.text and failures.append(told.text)
            ),
        )
        try:
            tab.goto(f"{page.url}/#{page.invitation()}")
            tab.wait_for_selector("#part-health")
            yield tab
        finally:
            context.close()
        assert elsewhere == []
        assert failures == []

    return visit


def picture(tab: Tab, folder: Path, name: str) -> None:
    folder = Path(os.environ.get("AGENTD_SCREENSHOTS", folder))
    tab.screenshot(path=str(folder / f"{name}.png"), full_page=not tab.locator("dialog[open]").count())


# --- the way in


def test_a_link_lets_a_browser_in_once_and_leaves_no_trace_in_the_url(page: Page, browser: Browser) -> None:
    link = f"{page.url}/#{page.invitation()}"
    first, second = browser.new_context(), browser.new_context()
    tab = first.new_page()
    tab.goto(link)
    tab.wait_for_selector("#part-health")
    assert tab.url == f"{page.url}/"
    tab.reload()
    tab.wait_for_selector("#part-health")
    late = second.new_page()
    late.goto(link)
    late.get_by_text("this link was used, or is too old").wait_for()
    assert late.url == f"{page.url}/"
    assert late.locator("#part-health").count() == 0
    first.close()
    second.close()


def test_a_file_that_leads_on_to_the_link_lets_the_browser_in(page: Page, browser: Browser, tmp_path: Path) -> None:
    """What `agentd dashboard --open` gives a browser."""
    from agentd.cli.invitation import _LEADS_ON

    (tmp_path / "leads.html").write_text(_LEADS_ON.format(url=f"{page.url}/#{page.invitation()}"))
    context = browser.new_context()
    tab = context.new_page()
    tab.goto((tmp_path / "leads.html").as_uri())
    tab.wait_for_selector("#part-health")
    tab.reload()
    tab.wait_for_selector("#part-health")
    context.close()


def test_signing_out_leads_to_the_door(visit: Callable[..., Any]) -> None:
    with visit() as tab:
        tab.get_by_role("button", name="Sign out").click()
        tab.get_by_text("agentd dashboard").wait_for()
        tab.reload()
        assert tab.locator("#part-health").count() == 0


# --- what it shows


def test_it_shows_an_identity_that_is_live_and_says_that_mail_flows(visit: Callable[..., Any]) -> None:
    with visit() as tab:
        assert tab.locator("#part-health h1").inner_text() == "Mail is flowing"
        row = tab.locator("#part-identity-alice")
        assert row.locator(".pill").first.inner_text() == "live"
        assert "last audit 20 s ago" in row.inner_text().replace("\n", " ") or "s ago" in row.inner_text()
        row.locator("summary").click()
        assert "catching up" in row.locator(".history").inner_text()


def test_it_says_why_mail_does_not_flow_and_that_it_does_again(page: Page, visit: Callable[..., Any]) -> None:
    with visit() as tab:
        well = dict(vars(page.daemon))
        page.daemon.broken()
        tab.get_by_role("heading", name="Mail is not flowing").wait_for()
        told = tab.locator("#part-health").inner_text()
        for word in ("no room", "key was revoked", "had not pushed", "stood still"):
            assert word in told, told
        page.daemon.identities, page.daemon.said = well["identities"], {}
        tab.get_by_role("heading", name="Mail is flowing").wait_for()


def test_events_appear_as_they_happen_the_newest_on_top(page: Page, visit: Callable[..., Any]) -> None:
    with visit() as tab:
        page.happen(record(1, "first"))
        tab.locator("#events").get_by_text("first").wait_for()
        page.happen(record(2, "second"))
        tab.locator("#events").get_by_text("second").wait_for()
        assert tab.locator("#events .text").all_inner_texts() == ["second", "first"]


def test_hold_the_list_holds_it_and_goes_on_where_it_was(page: Page, visit: Callable[..., Any]) -> None:
    with visit() as tab:
        page.happen(record(1, "before"))
        tab.locator("#events").get_by_text("before").wait_for()
        hold = tab.get_by_role("button", name="Hold the list")
        hold.click()
        assert hold.get_attribute("aria-pressed") == "true"
        page.happen(record(2, "meanwhile"))
        tab.wait_for_timeout(1_500)
        assert tab.locator("#events .text").all_inner_texts() == ["before"]
        hold.click()
        tab.locator("#events").get_by_text("meanwhile").wait_for()


def test_what_a_stranger_wrote_is_shown_as_it_was_written_and_runs_nowhere(
    page: Page, visit: Callable[..., Any]
) -> None:
    page.daemon.busy()
    page.daemon.identities[0]["state_reason"] = HOSTILE
    with visit() as tab:
        tab.locator("#events").get_by_text(HOSTILE).wait_for()
        tab.get_by_role("button", name="Show dead letter 3").click()
        tab.locator("#letter-event").get_by_text(HOSTILE).wait_for()
        assert tab.title() == "agentd"
        assert tab.locator("img[src='x']").count() == 0


def test_a_gap_is_seen_to_open_and_to_close(page: Page, visit: Callable[..., Any]) -> None:
    from tests.control.pages import gap

    with visit() as tab:
        tab.get_by_text("No gap was found.").wait_for()
        page.daemon.gap_list = [gap(17, 20)]
        tab.locator("#part-gaps").get_by_text("17 to 19").wait_for()
        assert tab.locator("#part-gaps .pill").inner_text() == "open"
        page.daemon.gap_list = [gap(17, 20, closed_at=iso(0), outcome="filled")]
        tab.locator("#part-gaps .pill", has_text="filled").wait_for()


def test_a_daemon_that_went_away_is_said_to_be_gone(page: Page, visit: Callable[..., Any]) -> None:
    with visit() as tab:
        tab.wait_for_selector("#part-identity-alice")
        page.call(page.server.close())
        tab.get_by_role("alert").wait_for()
        assert "does not answer" in tab.get_by_role("alert").inner_text()


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
        again = tab.get_by_role("button", name=f"Deliver again dead letter {number}")
        again.click()
        assert means in tab.get_by_role("dialog").inner_text()
        assert tab.evaluate("document.activeElement.textContent") == "Cancel"
        tab.keyboard.press("Escape")
        tab.get_by_role("dialog").wait_for(state="hidden")
        assert ("dead_replay", number) not in page.daemon.asked
        again.click()
        tab.get_by_role("button", name="Deliver it again").click()
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
    from agentd.control.refusal import ControlError

    page.daemon.busy()
    page.daemon.error = ControlError(409, "UNREADABLE_EVENT", "event 1 cannot be read", "is the identity configured?")
    with visit() as tab:
        tab.get_by_role("button", name="Explain conv_9f31b2c4 #1").click()
        tab.get_by_text("Not explained: event 1 cannot be read; is the identity configured?.").wait_for()


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
        assert "conv_9f31b2c4 of alice" in asked.inner_text()
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
        assert "By command" in row.inner_text()
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
    from tests.conftest import pause_row

    page.daemon.pauses = [pause_row(f"conv_{number}") for number in range(1_234)]
    with visit() as tab:
        tab.get_by_text("and 1,214 more; see: agentd status --json").wait_for()
        assert tab.locator("#part-pauses li").count() == 20


def test_a_send_leaves_or_is_dropped(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        tab.get_by_role("button", name="Send it @bob").click()
        tab.get_by_text("Done: the send to @bob leaves.").wait_for()
        assert ("outbox_retry", "alice", "agentd-7-0") in page.daemon.asked
        tab.get_by_role("button", name="Drop @bob").first.click()
        tab.get_by_role("button", name="Drop it").click()
        tab.get_by_text("Done: the send to @bob was dropped.").wait_for()
        tab.locator("#part-outbox .pill", has_text="refused").wait_for(state="detached")
        assert tab.locator("#part-outbox .rows > li").count() == 1
        assert any(asked[0] == "outbox_drop" for asked in page.daemon.asked)


def test_a_conversation_that_is_held_is_released(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        tab.get_by_role("button", name="Release conv_held").click()
        tab.get_by_text("Done: greeter goes on in conv_held.").wait_for()
        assert ("release", "greeter", "alice", "conv_held") in page.daemon.asked
        tab.get_by_role("button", name="Release conv_held").wait_for(state="detached")


def test_what_cannot_be_done_is_said_with_the_remedy(page: Page, visit: Callable[..., Any]) -> None:
    from agentd.control.refusal import ControlError

    page.daemon.busy()
    page.daemon.error = ControlError(409, "NOTHING_TO_RETRY", "agentd-7-0 is sent", "nothing is left to do")
    with visit() as tab:
        tab.get_by_role("button", name="Send it @bob").click()
        tab.get_by_text("Not done: agentd-7-0 is sent; nothing is left to do.").wait_for()


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


# --- a real daemon behind it

ANSWERS = """
from pathlib import Path

from agentd.plugin import Context, GiveUp, Message, Plugin

plugin = Plugin("echo")


@plugin.on(Message)
async def answer(message: Message, ctx: Context) -> None:
    if message.text == "poison" and not Path("cured").exists():
        raise GiveUp("this one is poison")
    ctx.reply(f"you said {message.text}")
"""


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentd", *words, "--state", str(folder / "state")],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=folder,
    )


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Path]:
    """A daemon process with its own hub, live. Gives its folder."""
    (tmp_path / "answers.py").write_text(ANSWERS)
    (tmp_path / "agentd.toml").write_text(
        '[agentd.http]\nlisten = "127.0.0.1:0"\n[plugin.echo]\nuse = "./answers.py"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "agentd", "run"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        live = 0
        while live < 2:
            line = process.stdout.readline()
            assert line, "the daemon ended"
            live += '"message":"live"' in line
        yield tmp_path
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output


def test_a_real_daemon_answers_gives_up_and_forgets_what_was_dropped(
    browser: Browser, embedded: Path, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": DESK[0], "height": DESK[1]}, reduced_motion="reduce")
    tab = context.new_page()
    tab.set_default_timeout(15_000)
    tab.goto(json.loads(command(embedded, "dashboard", "--json").stdout)["url"])
    tab.get_by_role("heading", name="Mail is flowing").wait_for()
    tab.get_by_label("Your message").fill("hello")
    tab.get_by_role("button", name="Send", exact=True).click()
    tab.locator("#talk").get_by_text("you said hello").wait_for()
    tab.locator("#events li.own", has_text="you said hello").first.wait_for()
    tab.get_by_label("Your message").fill("poison")
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Show dead letter 1").click()
    tab.get_by_role("dialog").get_by_text("GiveUp").first.wait_for()
    tab.get_by_role("button", name="Close").click()
    picture(tab, tmp_path, "real-desk-light")
    tab.get_by_role("button", name="Drop dead letter 1").click()
    tab.get_by_role("button", name="Drop it").click()
    tab.get_by_text("No event was given up.").wait_for()
    assert json.loads(command(embedded, "dead", "ls", "--json").stdout) == []
    context.close()


def test_a_real_daemon_explains_pauses_goes_on_and_delivers_again(
    browser: Browser, embedded: Path, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": DESK[0], "height": DESK[1]}, reduced_motion="reduce")
    tab = context.new_page()
    tab.set_default_timeout(15_000)
    tab.goto(json.loads(command(embedded, "dashboard", "--json").stdout)["url"])

    def speak(text: str) -> None:
        tab.get_by_label("Your message").fill(text)
        tab.keyboard.press("Enter")

    def explain(text: str) -> None:
        heard = tab.locator("#events li.in", has_text=text)
        heard.filter(has_text="to echo").get_by_role("button", name="Explain").first.click()

    speak("hello")  # once it was answered, one may say more than one message in a row
    tab.locator("#talk").get_by_text("you said hello").wait_for()
    speak("poison")
    explain("poison")
    dialog = tab.get_by_role("dialog", name="What became of an event")
    lane = dialog.get_by_role("region", name="Plugin echo")
    assert lane.locator(".pill").first.inner_text() == "dead"
    assert "answer" in lane.locator(".rows").inner_text()
    assert "this one is poison" in lane.inner_text()
    picture(tab, tmp_path, "real-explained")

    dialog.get_by_role("button", name="Pause").click()
    tab.get_by_label("For how long").select_option("until resumed")
    tab.get_by_role("button", name="Pause it").click()
    tab.locator("#part-pauses li", has_text="until it is resumed").wait_for()
    speak("are you there")
    explain("are you there")
    assert dialog.get_by_role("region", name="Plugin echo").locator(".pill").first.inner_text() == "paused"
    tab.keyboard.press("Escape")
    assert json.loads(command(embedded, "status", "--json").stdout)["pauses"][0]["reason"] == "by command"
    tab.locator("#part-pauses").get_by_role("button", name="Resume").click()
    tab.locator("#events li.own", has_text="you said are you there").first.wait_for()
    assert json.loads(command(embedded, "status", "--json").stdout)["pauses"] == []

    (embedded / "cured").touch()
    again = tab.get_by_role("button", name="Deliver again dead letter 1")
    again.click()
    tab.get_by_role("button", name="Deliver it again").click()
    tab.locator("#events li.own", has_text="you said poison").first.wait_for()
    again.wait_for(state="detached")
    assert json.loads(command(embedded, "dead", "ls", "--json").stdout) == []
    context.close()


# --- by keyboard, on a phone, for a screen reader


def test_it_works_by_keyboard_alone_and_keeps_the_place_when_a_part_changes(
    page: Page, visit: Callable[..., Any]
) -> None:
    page.daemon.busy()
    with visit() as tab:
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "Skip to the content"
        for _ in range(60):
            tab.keyboard.press("Tab")
            if tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Drop dead letter 3":
                break
        page.daemon.letters = {**page.daemon.letters, 4: {**page.daemon.letters[3], "number": 4}}
        tab.get_by_role("button", name="Drop dead letter 4").wait_for()
        assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Drop dead letter 3"
        tab.keyboard.press("Enter")
        tab.get_by_role("dialog").wait_for()
        assert tab.evaluate("document.activeElement.textContent") == "Cancel", (
            "what cannot be undone is not preselected"
        )
        tab.keyboard.press("Escape")
        tab.get_by_role("dialog").wait_for(state="hidden")
        assert ("dead_drop", 3) not in page.daemon.asked


def test_history_that_was_opened_stays_open_when_the_part_changes(page: Page, visit: Callable[..., Any]) -> None:
    with visit() as tab:
        tab.locator("#history-alice summary").click()
        page.daemon.identities = [{**page.daemon.identities[0], "journaled": 1_234_569}]
        tab.locator("#part-identity-alice dd").get_by_text("1,234,569").wait_for()
        assert tab.locator("#history-alice").get_attribute("open") is not None
        assert tab.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_an_identity_that_joins_appears_and_one_that_left_goes(page: Page, visit: Callable[..., Any]) -> None:
    from tests.control.pages import identity

    with visit() as tab:
        page.daemon.identities = [identity("alice"), identity("zoe", "catching_up")]
        tab.locator("#part-identity-zoe .pill").first.wait_for()
        assert tab.locator("#part-identity-alice .pill").first.inner_text() == "live"
        page.daemon.identities = [identity("zoe")]
        tab.locator("#part-identity-alice").wait_for(state="detached")
        tab.locator("#part-identity-zoe .pill", has_text="live").first.wait_for()


@pytest.mark.parametrize("state", ["empty", "busy", "broken"])
def test_nothing_is_wider_than_a_phone_and_everything_is_large_enough_to_touch(
    page: Page, visit: Callable[..., Any], state: str
) -> None:
    if state != "empty":
        getattr(page.daemon, state)()
    with visit(PHONE, has_touch=True, is_mobile=True) as tab:
        tab.wait_for_selector("#part-gaps")
        tab.wait_for_timeout(800)
        assert tab.evaluate("document.documentElement.scrollWidth") == PHONE[0]
        small = tab.evaluate(
            """[...document.querySelectorAll('button, input, select')].filter((each) => each.checkVisibility())
               .map((each) => [each.textContent, each.getBoundingClientRect().height])
               .filter(([, tall]) => tall < 44)"""
        )
        assert small == []


def test_every_control_and_region_has_a_name_and_headings_do_not_jump(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        tree = tab.locator("body").aria_snapshot()
        for region in (
            "Health",
            "Identities",
            "Events",
            "Plugins",
            "Paused conversations",
            "Outbox",
            "Dead letters",
            "Gaps",
            "Talk to @echo",
        ):
            assert f'region "{region}"' in tree, tree
        for landmark in ("banner", "main"):
            assert f"- {landmark}" in tree
        assert not re.search(r"- (button|textbox)(:|$)", tree, re.MULTILINE), "a control without a name"
        levels = tab.evaluate(
            "[...document.querySelectorAll('h1, h2, h3')].filter(e => e.checkVisibility()).map(e => +e.tagName[1])"
        )
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert tab.locator("html").get_attribute("lang") == "en"


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const luminance = ([r, g, b]) => { const [x, y, z] = [r, g, b].map((v) => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
  const back = (element) => { for (let each = element; each; each = each.parentElement) {
    const colour = rgba(getComputedStyle(each).backgroundColor); if (colour[3] === 255) return colour; }
    return [255, 255, 255]; };
  const poor = [];
  for (const element of document.querySelectorAll('body *')) {
    if (!element.checkVisibility() || element.closest('.skip')) continue;
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    const [a, b] = [luminance(rgba(getComputedStyle(element).color)), luminance(back(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push([element.className, element.textContent.trim().slice(0, 40), ratio]);
  }
  return poor;
}"""


WIDER_THAN_ITS_DIALOG = """() => [...document.querySelectorAll('dialog[open]')]
  .filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.id)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", ["empty", "busy", "broken"])
def test_every_text_can_be_read_on_what_is_behind_it(
    page: Page, visit: Callable[..., Any], tmp_path: Path, scheme: str, state: str
) -> None:
    if state != "empty":
        getattr(page.daemon, state)()
    for size, name in ((DESK, "desk"), (PHONE, "phone")):
        with visit(size, scheme) as tab:
            tab.wait_for_timeout(800)
            if state == "broken":
                tab.locator("summary").first.click()
            picture(tab, tmp_path, f"{state}-{name}-{scheme}")
            assert tab.evaluate(CONTRAST) == [], json.dumps(tab.evaluate(CONTRAST))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_door_and_the_dialogs_can_be_read(
    page: Page, browser: Browser, visit: Callable[..., Any], tmp_path: Path, scheme: str
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": PHONE[0], "height": PHONE[1]})
    tab = context.new_page()
    tab.goto(page.url)
    picture(tab, tmp_path, f"door-phone-{scheme}")
    assert tab.evaluate(CONTRAST) == []
    context.close()
    page.daemon.busy()
    for size, name in ((DESK, "desk"), (PHONE, "phone")):
        with visit(size, scheme) as tab:
            tab.get_by_role("button", name="Show dead letter 3").click()
            picture(tab, tmp_path, f"letter-{name}-{scheme}")
            assert tab.evaluate(CONTRAST) == []
            tab.get_by_role("button", name="Close").click()
            tab.get_by_role("button", name="Drop dead letter 3").click()
            picture(tab, tmp_path, f"confirm-{name}-{scheme}")
            assert tab.evaluate(CONTRAST) == []
            tab.get_by_role("button", name="Cancel").click()
            tab.get_by_role("button", name="Explain conv_9f31b2c4 #3").click()
            tab.get_by_role("dialog", name="What became of an event").wait_for()
            picture(tab, tmp_path, f"explained-{name}-{scheme}")
            assert tab.evaluate(CONTRAST) == []
            assert tab.evaluate(WIDER_THAN_ITS_DIALOG) == []
            tab.get_by_role("button", name="Pause conv_9f31b2c4").click()
            picture(tab, tmp_path, f"pause-{name}-{scheme}")
            assert tab.evaluate(CONTRAST) == []
            assert tab.evaluate(WIDER_THAN_ITS_DIALOG) == []
