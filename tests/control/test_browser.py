"""The page in a real Chromium: who gets in, what it shows, and that everybody can use it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentd.control.refusal import ControlError
from tests.control.browsing import DESK, PHONE, focused, needs_chromium, picture
from tests.control.pages import HOSTILE, Page, gap, identity, iso, record

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = needs_chromium


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


def test_a_list_that_is_held_stays_while_the_connection_is_made_anew(page: Page, visit: Callable[..., Any]) -> None:
    with visit() as tab:
        page.happen(record(1, "before"))
        tab.locator("#events").get_by_text("before").wait_for()
        hold = tab.get_by_role("button", name="Hold the list")
        hold.click()
        page.loop.call_soon_threadsafe(page.hang_up)
        tab.locator("#lost").wait_for()
        tab.locator("#lost").wait_for(state="hidden")
        page.happen(record(2, "meanwhile"))
        tab.wait_for_timeout(1_500)
        assert tab.locator("#events .text").all_inner_texts() == ["before"]
        hold.click()
        tab.locator("#events").get_by_text("meanwhile").wait_for()
        assert tab.locator("#events .text").all_inner_texts() == ["meanwhile", "before"]


def test_what_a_stranger_wrote_is_shown_as_it_was_written_and_runs_nowhere(
    page: Page, visit: Callable[..., Any]
) -> None:
    page.daemon.hostile()
    with visit() as tab:
        for part in ("health", "identity-alice", "plugins", "pauses", "outbox", "dead", "gaps"):
            tab.locator(f"#part-{part}").get_by_text(HOSTILE).first.wait_for()
        event = tab.locator("#events > li").first
        assert event.locator("b").inner_text() == HOSTILE
        assert event.locator(".text").inner_text() == HOSTILE
        dialogs = [
            tab.locator("#part-dead").get_by_role("button", name="Show"),
            event.get_by_role("button", name="Explain"),
            *(tab.locator("#part-outbox").get_by_role("button", name=name) for name in ("Send it", "Drop")),
            *(tab.locator("#part-dead").get_by_role("button", name=name) for name in ("Replay", "Drop")),
            tab.locator("#part-plugins").get_by_role("button", name="Release"),
        ]
        for opener in dialogs:
            opener.click()
            dialog = tab.locator("dialog[open]")
            dialog.wait_for()
            if opener is not dialogs[5]:  # which tells a number, and nothing that anybody wrote
                assert HOSTILE in dialog.inner_text()
            tab.keyboard.press("Escape")
            dialog.wait_for(state="detached")
        tab.locator("#part-plugins").get_by_role("button", name="Pause").click()
        assert tab.get_by_label("Conversation", exact=True).input_value() == f"{HOSTILE}2"
        tab.keyboard.press("Escape")
        page.daemon.error = ControlError(409, "NO", HOSTILE, HOSTILE)
        resume = tab.locator("#part-pauses").get_by_role("button", name="Resume").first
        resume.click()
        tab.locator("#failed").get_by_text(f"Not done: {HOSTILE}; {HOSTILE}").wait_for()
        page.daemon.error = None
        resume.click()
        tab.locator("#said").get_by_text(f"Done: {HOSTILE} goes on").wait_for()
        assert ("resume", "alice", HOSTILE) in page.daemon.asked
        assert tab.title() == "Not flowing: agentd"
        assert tab.locator("img[src='x']").count() == 0


def test_what_could_hide_or_turn_the_writing_around_is_written_out(page: Page, visit: Callable[..., Any]) -> None:
    page.happen(record(1, "safe\u202eexe.txt", sender="@a\u2066b", conversation="c\u200f\u202ed"))
    with visit() as tab:
        tab.locator("#events li").first.wait_for()
        told = tab.locator("#events li").first.inner_text()
        for shown in ("safe\\u202eexe.txt", "@a\\u2066b", "\\u202ed"):
            assert shown in told


def test_a_gap_is_seen_to_open_and_to_close(page: Page, visit: Callable[..., Any]) -> None:
    with visit() as tab:
        tab.get_by_text("No gap was found.").wait_for()
        page.daemon.gap_list = [gap(17, 20)]
        tab.locator("#part-gaps").get_by_text("17 to 19").wait_for()
        assert tab.locator("#part-gaps .pill").inner_text() == "open"
        page.daemon.gap_list = [gap(17, 20, closed_at=iso(0), outcome="filled")]
        tab.locator("#part-gaps .pill", has_text="filled").wait_for()


def test_what_keeps_a_plugin_from_working_is_told_beside_it(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.broken()
    with visit() as tab:
        greeter = tab.locator("#plugin-greeter")
        assert greeter.locator(".pill").inner_text() == "out of order"
        assert greeter.locator(".why").all_inner_texts() == [
            "It failed in several conversations in a row, and all of them wait for a trial: ConnectError: [Errno 111] "
            "refused"
        ]
        assert tab.locator("#plugin-log .why").all_inner_texts() == [
            "For bob it failed in several conversations in a row, and these wait for a trial: ConnectError: [Errno "
            "111] refused",
            "It was not reloaded, and the generation before runs: SyntaxError: line 3",
            "It has no process at this moment: killed by signal 9",
            "It gave a timer of carol up: KeyError: 'x'",
        ]


def test_the_counts_at_a_glance_lead_to_where_they_are_told_in_full(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit(PHONE) as tab:
        glance = tab.get_by_role("navigation", name="At a glance").get_by_role("link")
        assert [each.inner_text().split("\n")[0] for each in glance.all()] == ["2/3", "819", "2", "3", "1", "3"]
        for link, heading in ((glance.nth(4), "Dead letters"), (glance.nth(2), "Paused conversations")):
            link.focus()
            tab.keyboard.press("Enter")
            assert tab.evaluate("document.activeElement.textContent") == heading
            assert 0 <= tab.get_by_role("heading", name=heading).bounding_box()["y"] < PHONE[1]


def test_a_daemon_that_went_away_is_said_to_be_gone(page: Page, visit: Callable[..., Any]) -> None:
    with visit() as tab:
        tab.wait_for_selector("#part-identity-alice")
        page.call(page.server.close())
        tab.get_by_role("alert").get_by_text("The daemon does not answer.").wait_for()


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


def test_whoever_was_at_a_row_that_went_goes_on_at_the_next(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:
        tab.get_by_role("button", name="Drop dead letter 3").focus()
        tab.keyboard.press("Enter")
        tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
        tab.get_by_role("button", name="Drop dead letter 3").wait_for(state="detached")
        assert "no. 5" in tab.evaluate("document.activeElement.innerText")
        tab.keyboard.press("Tab")
        assert focused(tab) == "Show dead letter 5"


def test_a_dialog_gives_the_place_back_though_its_part_was_replaced_meanwhile(
    page: Page, visit: Callable[..., Any]
) -> None:
    page.daemon.busy()
    with visit() as tab:
        for name in ("Show dead letter 5", "Drop dead letter 5", "Pause conv_2a7f3c21e"):
            tab.get_by_role("button", name=name).focus()
            tab.keyboard.press("Enter")
            tab.locator("dialog[open]").wait_for()
            number = max(page.daemon.letters) + 1
            page.daemon.letters = {**page.daemon.letters, number: {**page.daemon.letters[3], "number": number}}
            lanes = [{**each, "depth": each["depth"] + number} for each in page.daemon.plugins[0]["deepest"]]
            page.daemon.plugins = [{**page.daemon.plugins[0], "deepest": lanes}, *page.daemon.plugins[1:]]
            tab.locator(f"#show-{number}").wait_for(state="attached")
            tab.keyboard.press("Escape")
            tab.locator(f"[aria-label='{name}']:focus").wait_for()


def test_everything_is_done_by_keyboard_alone(page: Page, visit: Callable[..., Any]) -> None:
    page.daemon.busy()
    with visit() as tab:

        def go_to(name: str) -> None:
            for _ in range(60):
                tab.keyboard.press("Tab")
                if focused(tab) == name:
                    return
            raise AssertionError(f"no way leads to {name}")

        tab.get_by_role("button", name="Explain conv_9f31b2c4 #1").wait_for()
        go_to("Explain conv_9f31b2c4 #1")
        tab.keyboard.press("Enter")
        tab.get_by_role("dialog", name="What became of an event").wait_for()
        tab.keyboard.press("Escape")
        go_to("say-text")
        tab.keyboard.type("hello")
        tab.keyboard.press("Enter")
        tab.locator("#talk .theirs").wait_for()
        go_to("Release conv_held")
        tab.keyboard.press("Enter")
        tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
        tab.get_by_text("Done: greeter goes on in conv_held.").wait_for()
        go_to("Pause conv_2a7f3c21e")
        tab.keyboard.press("Enter")
        assert focused(tab) == "pause-for"
        tab.keyboard.press("ArrowDown")
        go_to("pause-yes")
        tab.keyboard.press("Enter")
        tab.get_by_text("Done: conv_2a7f3c21e is paused.").wait_for()
        assert ("pause", "alice", "conv_2a7f3c21e", 3_600.0) in page.daemon.asked


def test_a_screen_reader_hears_once_that_mail_does_not_flow_and_no_seconds(
    page: Page, visit: Callable[..., Any]
) -> None:
    with visit() as tab:
        assert tab.locator("#flows").inner_text() == ""
        assert tab.title() == "agentd"
        page.daemon.broken()
        heard = tab.locator("#flows")
        heard.get_by_text("Mail is not flowing.").wait_for(state="attached")
        assert "alice: the platform refused the key" in heard.inner_text()
        assert tab.title() == "Not flowing: agentd"
        tab.evaluate(
            """() => { window.changes = 0; new MutationObserver((all) => { window.changes += all.length; })
               .observe(document.getElementById('flows'), { childList: true, characterData: true, subtree: true }); }"""
        )
        tab.wait_for_timeout(2_500)
        assert tab.evaluate("window.changes") == 0
        live = "[aria-live], [role=status], [role=alert], [role=log]"
        assert tab.evaluate(f"document.querySelectorAll('{live}').length") >= 4
        assert (
            tab.evaluate(f"[...document.querySelectorAll('{live}')].filter(e => e.querySelector('time')).length") == 0
        )


def test_history_that_was_opened_stays_open_when_the_part_changes(page: Page, visit: Callable[..., Any]) -> None:
    with visit() as tab:
        tab.locator("#history-alice summary").click()
        page.daemon.identities = [{**page.daemon.identities[0], "journaled": 1_234_569}]
        tab.locator("#part-identity-alice dd").get_by_text("1,234,569").wait_for()
        assert tab.locator("#history-alice").get_attribute("open") is not None
        assert tab.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_a_long_list_scrolls_in_its_place_and_stays_there_when_it_changes(
    page: Page, visit: Callable[..., Any]
) -> None:
    page.daemon.crowd()
    with visit() as tab:
        at = "document.querySelector('#part-dead > .rows').scrollTop"
        # In one step: an element that was found before may be replaced by the next look.
        before = tab.evaluate(f"() => {{ {at} = 600; return {at}; }}")
        assert before > 500
        page.daemon.letters = {number: row for number, row in page.daemon.letters.items() if number != 20}
        tab.get_by_role("button", name="Drop dead letter 21", exact=True).wait_for(state="attached")
        assert tab.evaluate(at) == before


def test_an_identity_that_joins_appears_and_one_that_left_goes(page: Page, visit: Callable[..., Any]) -> None:
    with visit() as tab:
        page.daemon.identities = [identity("alice"), identity("zoe", "catching_up")]
        tab.locator("#part-identity-zoe .pill").first.wait_for()
        assert tab.locator("#part-identity-alice .pill").first.inner_text() == "live"
        page.daemon.identities = [identity("zoe")]
        tab.locator("#part-identity-alice").wait_for(state="detached")
        tab.locator("#part-identity-zoe .pill", has_text="live").first.wait_for()


def test_hundreds_of_identities_and_thousands_of_everything_are_cut_and_counted(
    page: Page, visit: Callable[..., Any]
) -> None:
    page.daemon.crowd()
    with visit() as tab:
        tab.locator("#part-identity-agent-198").wait_for()
        shown = tab.locator("#part-identities > ul > li")
        assert shown.count() == 50
        assert shown.locator(".line .pill", has_text="connecting").count() == 23, "who is in trouble is not left out"
        tab.locator("#part-identities").get_by_text("and 150 more; see: agentd status").wait_for()
        for part, more in (
            ("health", "and 15 more; see: agentd status"),
            ("plugins", "and 2,990 more; see: agentd status --json"),
            ("pauses", "and 4,980 more; see: agentd status --json"),
            ("outbox", "and 1,980 more; see: agentd outbox ls"),
            ("dead", "and 1,980 more; see: agentd dead ls"),
            ("gaps", "and 180 more; see: agentd gaps"),
        ):
            assert more in tab.locator(f"#part-{part}").inner_text()
        assert "9,000 conversations with something to do, the deepest 10:" in tab.locator("#part-plugins").inner_text()
        assert "agent-000, agent-001, agent-002, agent-003, agent-004 and 195 more" in tab.content()
        assert tab.evaluate("document.querySelectorAll('*').length") < 5_000
        page.happen(*[record(number) for number in range(1, 1_000)])
        tab.locator("#events").get_by_text("more, too fast to show").wait_for()
        assert tab.locator("#events > li").count() <= 100


@pytest.mark.parametrize("state", ["empty", "busy", "broken", "hostile", "crowd"])
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
            """[...document.querySelectorAll('button, input, select, summary, .glance a')]
               .filter((each) => each.checkVisibility())
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
  for (const field of document.querySelectorAll('input[placeholder]')) {
    if (!field.checkVisibility()) continue;
    const [a, b] = [getComputedStyle(field, '::placeholder').color, getComputedStyle(field).backgroundColor]
      .map((colour) => luminance(rgba(colour)));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push([field.id, field.placeholder, ratio]);
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
            tab.keyboard.press("Escape")
            tab.keyboard.press("Escape")
            page.daemon.error = ControlError(503, "UNAVAILABLE", "the disk takes no commits", "make room")
            tab.get_by_role("button", name="Pause one").click()
            tab.locator("#pause-conversation:focus").wait_for()
            tab.keyboard.type("conv_x")
            tab.keyboard.press("Enter")
            tab.get_by_text("Not paused: the disk takes no commits").wait_for()
            picture(tab, tmp_path, f"pause-one-{name}-{scheme}")
            assert tab.evaluate(CONTRAST) == []
            assert tab.evaluate(WIDER_THAN_ITS_DIALOG) == []
            tab.keyboard.press("Escape")
            tab.get_by_role("button", name="Resume conv_noisy").click()
            tab.locator("#failed p").wait_for()
            picture(tab, tmp_path, f"failed-{name}-{scheme}")
            assert tab.evaluate(CONTRAST) == []
            page.daemon.error = None
