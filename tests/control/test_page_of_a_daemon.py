"""The page of a daemon that runs, pressed in a real Chromium: what the daemon and its journal say afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.control.browsing import DESK, needs_chromium, picture

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

pytestmark = needs_chromium


ANSWERS = """
from pathlib import Path

from agentd.plugin import Context, GiveUp, Message, Plugin

plugin = Plugin("echo")


@plugin.on(Message, text="^(?!keep)")
async def answer(message: Message, ctx: Context) -> None:
    if message.text == "poison" and not Path("cured").exists():
        raise GiveUp("this one is poison")
    ctx.reply(f"you said {message.text}")


@plugin.on(Message, text="^keep", on_dead="hold")
async def keep(message: Message, ctx: Context) -> None:
    raise GiveUp("this one is kept")
"""


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentd", *words, "--state", str(folder / "state")],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=folder,
    )


def told(folder: Path, *words: str) -> Any:
    """What a command says in JSON."""
    done = command(folder, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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


@pytest.fixture
def tab(browser: Browser, embedded: Path) -> Iterator[Tab]:
    """The page of that daemon."""
    context = browser.new_context(viewport={"width": DESK[0], "height": DESK[1]}, reduced_motion="reduce")
    tab = context.new_page()
    tab.set_default_timeout(15_000)
    tab.goto(told(embedded, "dashboard")["url"])
    tab.get_by_role("heading", name="Mail is flowing").wait_for()
    tab.wait_for_load_state()
    yield tab
    context.close()


def speak(tab: Tab, text: str) -> None:
    tab.get_by_label("Your message").fill(text)
    tab.keyboard.press("Enter")


def converse(tab: Tab) -> None:
    """Until it was answered, one may not say more than one message in a row."""
    speak(tab, "hello")
    tab.locator("#talk").get_by_text("you said hello").wait_for()


def explain(tab: Tab, text: str) -> None:
    heard = tab.locator("#events li.in", has_text=text)
    heard.filter(has_text="to echo").get_by_role("button", name="Explain").first.click()


def test_what_is_said_is_answered(tab: Tab, embedded: Path, tmp_path: Path) -> None:
    tab.get_by_label("Your message").fill("hello")
    tab.get_by_role("button", name="Send", exact=True).click()
    tab.locator("#talk").get_by_text("you said hello").wait_for()
    tab.locator("#events li.own", has_text="you said hello").first.wait_for()
    picture(tab, tmp_path, "real-desk-light")
    recorded = command(embedded, "export", "--to", "-").stdout
    assert '"hello"' in recorded
    assert '"you said hello"' in recorded


def test_a_dead_letter_is_shown_and_then_dropped(tab: Tab, embedded: Path) -> None:
    speak(tab, "poison")
    tab.get_by_role("button", name="Show dead letter 1").click()
    tab.get_by_role("dialog").get_by_text("GiveUp").first.wait_for()
    tab.get_by_role("button", name="Close").click()
    assert [each["number"] for each in told(embedded, "dead", "ls")] == [1]
    tab.get_by_role("button", name="Drop dead letter 1").click()
    tab.get_by_role("button", name="Drop it").click()
    tab.get_by_text("No event was given up.").wait_for()
    assert told(embedded, "dead", "ls") == []
    assert told(embedded, "dead", "show", "1")["dropped_at"] is not None


def test_a_dead_letter_is_replayed(tab: Tab, embedded: Path, tmp_path: Path) -> None:
    converse(tab)
    speak(tab, "poison")
    explain(tab, "poison")
    lane = tab.get_by_role("dialog", name="What became of an event").get_by_role("region", name="Plugin echo")
    assert lane.locator(".pill").first.inner_text() == "dead"
    assert "answer" in lane.locator(".rows").inner_text()
    assert "this one is poison" in lane.inner_text()
    picture(tab, tmp_path, "real-explained")
    tab.keyboard.press("Escape")
    (embedded / "cured").touch()
    replay = tab.get_by_role("button", name="Replay dead letter 1")
    replay.click()
    tab.get_by_role("button", name="Replay it").click()
    tab.locator("#events li.own", has_text="you said poison").first.wait_for()
    replay.wait_for(state="detached")
    assert told(embedded, "dead", "ls") == []


def test_the_conversation_of_an_event_is_paused_and_resumed(tab: Tab, embedded: Path) -> None:
    converse(tab)
    explain(tab, "hello")
    dialog = tab.get_by_role("dialog", name="What became of an event")
    dialog.get_by_role("button", name="Pause").click()
    tab.get_by_label("For how long").select_option("until resumed")
    tab.get_by_role("button", name="Pause it").click()
    tab.locator("#part-pauses li", has_text="until it is resumed").wait_for()
    speak(tab, "are you there")
    explain(tab, "are you there")
    assert dialog.get_by_role("region", name="Plugin echo").locator(".pill").first.inner_text() == "paused"
    tab.keyboard.press("Escape")
    assert [each["reason"] for each in told(embedded, "status")["pauses"]] == ["by command"]
    tab.locator("#part-plugins .lanes").get_by_text("paused").wait_for()
    tab.locator("#part-pauses").get_by_role("button", name="Resume").click()
    tab.locator("#events li.own", has_text="you said are you there").first.wait_for()
    assert told(embedded, "status")["pauses"] == []


def test_a_quiet_conversation_is_paused_by_its_name_and_by_its_peer(tab: Tab, embedded: Path) -> None:
    converse(tab)
    conversation = tab.locator("#events code").first.inner_text()
    tab.reload()
    tab.get_by_role("button", name="Pause one").click()
    asked = tab.get_by_role("dialog", name="Pause a conversation?")
    asked.get_by_label("Identity").select_option("echo")
    tab.locator(f"#pause-known option[value='{conversation}']").wait_for(state="attached")
    asked.get_by_label("Conversation", exact=True).fill("nowhere")
    asked.get_by_role("button", name="Pause it").click()
    asked.get_by_text("Not paused: nothing is recorded of conversation 'nowhere'; see: agentd tail.").wait_for()
    assert told(embedded, "status")["pauses"] == []
    asked.get_by_label("Conversation", exact=True).fill(conversation)
    asked.get_by_label("For how long").select_option("1 hour")
    asked.get_by_role("button", name="Pause it").click()
    tab.get_by_text(f"Done: {conversation} is paused.").wait_for()
    (pause,) = told(embedded, "status")["pauses"]
    assert (pause["identity"], pause["conversation"]) == ("echo", conversation)
    assert pause["until"] is not None
    command(embedded, "resume", conversation, "--as", "echo")
    tab.get_by_text("No conversation is paused.").wait_for()
    tab.get_by_role("button", name="Pause one").click()
    asked.get_by_label("Conversation", exact=True).fill("@echo")  # of me, who stands first
    asked.get_by_role("button", name="Pause it").click()
    tab.get_by_text(f"Done: {conversation} is paused.").wait_for()
    assert [each["identity"] for each in told(embedded, "status")["pauses"]] == ["me"]


def test_a_conversation_that_is_held_is_released(tab: Tab, embedded: Path, tmp_path: Path) -> None:
    converse(tab)
    speak(tab, "keep this")
    release = tab.get_by_role("button", name="Release")
    release.wait_for()
    speak(tab, "and this")
    tab.locator("#events li.in", has_text="and this").first.wait_for()
    picture(tab, tmp_path, "real-held")
    (plugin,) = told(embedded, "status")["plugins"]
    assert len(plugin["held"]) == 1
    release.click()
    tab.get_by_role("button", name="Go on", exact=True).click()
    tab.locator("#events li.own", has_text="you said and this").first.wait_for()
    release.wait_for(state="detached")
    (plugin,) = told(embedded, "status")["plugins"]
    assert plugin["held"] == []
    assert [each["number"] for each in told(embedded, "dead", "ls")] == [1], "the letter stays"


def test_a_send_that_was_refused_leaves_after_all_or_never(tab: Tab, embedded: Path, tmp_path: Path) -> None:
    for peer in ("@late", "@never"):
        command(embedded, "send", peer, f"to {peer}")
    tab.locator("#part-outbox .pill", has_text="refused").nth(1).wait_for()
    picture(tab, tmp_path, "real-refused")
    keys = {each["target"]: each["client_msg_id"] for each in told(embedded, "outbox", "ls")}
    account = urllib.request.Request(
        f"{told(embedded, 'status')['hub_url']}/hub/v1/agents", json.dumps({"handle": "late"}).encode()
    )
    urllib.request.urlopen(account, timeout=10).close()
    tab.get_by_role("button", name="Send it @late").click()
    tab.get_by_role("button", name="Send it again").click()
    tab.locator("#events li.own", has_text="to @late").wait_for()
    tab.get_by_role("button", name="Send it @late").wait_for(state="detached")
    assert told(embedded, "outbox", "show", keys["@late"])["state"] == "sent"
    tab.get_by_role("button", name="Drop @never").click()
    tab.get_by_role("button", name="Drop it").click()
    tab.get_by_text("Nothing waits to be sent, and nothing was refused.").wait_for()
    assert told(embedded, "outbox", "show", keys["@never"])["state"] == "dropped"


def test_signing_out_ends_the_session_at_the_daemon(tab: Tab, embedded: Path) -> None:
    (cookie,) = tab.context.cookies()
    tab.get_by_role("button", name="Sign out").click()
    tab.get_by_text("agentd dashboard").wait_for()
    tab.context.add_cookies([cookie])
    assert tab.request.get(f"{tab.url}api/status").status == 401
