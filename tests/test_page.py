"""The page of `stemma serve` in a headless Chromium, beside a server whose answers are known (`page_server`)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import chromium
import page_server
from page_server import HALVES, PAGE, Server, wrong
from stemma import markup
from stemma.markup import asset

Open = Callable[..., chromium.Tab]
FILES = sorted(PAGE.iterdir())
SMALL, OTHER = "SmolLM2-135M-Instruct", "mistral-tiny"


# ---------------------------------------------------------------- the files alone


def test_the_page_needs_nothing_from_elsewhere_and_nothing_inline() -> None:
    index = (PAGE / "index.html").read_text("utf-8")
    named = set(re.findall(r'(?:href|src)="page/([^"]+)"', index))
    assert named == {path.name for path in FILES} - {"index.html"}, (
        "index.html names each file, so that none is waited for"
    )
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", index)
    for path in FILES:
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 500, path.name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\('style", text
        ), path.name
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}, path.name
        assert "url(" not in text and "@import" not in text, path.name
        assert set(re.findall(r"from '\./([\w.]+)'", text)) <= named, path.name


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {
        path.name: set(re.findall(r"from '\./([\w.]+)'", path.read_text("utf-8")))
        for path in FILES
        if path.suffix == ".js"
    }
    while free := [name for name, targets in graph.items() if not targets & set(graph)]:
        for name in free:
            del graph[name]
    assert graph == {}


def colours(css: str) -> dict[str, tuple[str, str]]:
    return {name: (a, b) for name, a, b in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)}


def test_colours_are_those_of_the_other_pages_and_can_be_read() -> None:
    own, shared = colours((PAGE / "base.css").read_text("utf-8")), colours(asset(markup.__file__, "base.css"))
    assert {name: pair for name, pair in own.items() if name in shared} == {n: p for n, p in shared.items() if n in own}
    assert {"paper", "card", "ink", "soft", "line", "wash", "accent", "c0", "c1", "c2"} <= set(own) & set(shared)

    def light(value: str) -> float:
        parts = [int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [
        *product(("ink", "soft", "accent", "c0", "c1", "c2", "c3", "c4"), ("paper", "card", "wash")),
        ("on-accent", "accent"),
    ]
    for (text, ground), theme in product(pairs, (0, 1)):
        high, low = sorted((light(own[text][theme]), light(own[ground][theme])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground, theme)


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Chromium]:
    command = chromium.found()
    if command is None:
        pytest.skip(f"no browser: none of {', '.join(chromium.NAMES)} is in PATH")
    running = chromium.Chromium(command, tmp_path_factory.mktemp("profile"))
    try:
        running.ask("Browser.getVersion", seconds=60)
    except (RuntimeError, OSError, EOFError):
        running.close()
        pytest.skip(f"{command} does not start here")
    yield running
    running.close()


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def server(one_server: Server) -> Server:
    one_server.script = page_server.Script()
    return one_server


@pytest.fixture
def opened(browser: chromium.Chromium, server: Server) -> Iterator[Open]:
    """Open the page as a new user; at the end, nothing is in its log and it asked nobody else."""
    tabs: list[tuple[chromium.Tab, bool]] = []

    def open_page(hash: str = "", trouble: bool = False, **how: Any) -> chromium.Tab:
        tab = browser.tab(server.address + hash, **how)
        tabs.append((tab, trouble))
        return tab

    yield open_page
    for tab, trouble in tabs:
        assert trouble or tab.trouble() == []
        tab.close()


def say(tab: chromium.Tab, text: str, wait: bool = True) -> None:
    """Type a message, send it, and wait for all answers."""
    tab.eval("document.querySelector('#message').focus()")
    tab.type(text)
    if tab.eval("matchMedia('(hover: none) and (pointer: coarse)').matches"):
        tab.eval("document.querySelector('.send').click()")  # Enter begins a line on a telephone
    else:
        tab.press("Enter")
    if wait:
        tab.wait("document.querySelector('.part') && !document.querySelector('[aria-busy=true]')")


def answers(tab: chromium.Tab) -> list[str]:
    return list(tab.eval("[...document.querySelectorAll('.part .body')].map(e => e.innerText.trim())"))


def users(tab: chromium.Tab) -> list[str]:
    return list(tab.eval("[...document.querySelectorAll('.bubble')].map(e => e.innerText)"))


def tool(tab: chromium.Tab, label: str, within: str = "", which: int = -1) -> None:
    """Click the tool of this name, the last one where there are several."""
    tab.eval(f"[...document.querySelectorAll(`{within} .tool[aria-label={json.dumps(label)}]`)].at({which}).click()")


def choose(tab: chromium.Tab, name: str) -> None:
    """Choose a model in the open tree."""
    tab.wait("document.querySelector('dialog .option')")
    tab.type(name)
    tab.press("Enter")
    tab.wait("!document.querySelector('dialog')")


def test_a_message_is_sent_and_its_answer_streams(opened: Open, server: Server) -> None:
    tab = opened()
    assert tab.eval("document.querySelector('.lineage').innerText").split("\n") == [
        "transformer",
        "gpt1",
        "gpt2",
        "gpt3",
        "llama",
        SMALL,
    ]
    server.script.delay, server.script.first = 0.03, 0.05
    tab.eval("""(() => {
      window.seen = []; window.frame = 0;
      addEventListener('keydown', event => { if (event.key === 'Enter') window.pressed = performance.now(); }, true);
      new MutationObserver(() => {
        const text = document.querySelector('.part .body')?.textContent;
        if (text && text !== seen.at(-1)) { seen.push(text); if (!window.frame) requestAnimationFrame(() => requestAnimationFrame(() => { window.frame = performance.now(); })); }
      }).observe(document.body, {subtree: true, childList: true, characterData: true});
    })()""")
    say(tab, "hello there")
    assert answers(tab) == [f"{SMALL} heard: hello there"] and users(tab) == ["hello there"]
    seen = tab.eval("seen")
    assert len(seen) > 5 and all(after.startswith(before.rstrip()) for before, after in pairwise(seen))
    asked = server.script.asked[0]
    assert asked["messages"] == [{"role": "user", "content": "hello there"}] and asked["model"] == SMALL
    assert {k: v for k, v in asked.items() if k not in ("model", "messages")} == {
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "top_p": 0.95,
    }
    own = tab.eval("frame - pressed") - 1000 * server.script.thinking[0]
    print(f"\nfirst token on the screen {own:.0f} ms after the model's own time")
    assert "tokens" in tab.eval("document.querySelector('.stats').textContent")
    # it is there again after a reload
    tab.go(server.address + tab.eval("location.hash"))
    tab.ask("Page.reload")
    tab.wait("document.documentElement?.dataset.ready === 'yes' && document.querySelector('.part')")
    assert answers(tab) == [f"{SMALL} heard: hello there"]
    say(tab, "and again")
    assert [m["content"] for m in server.script.asked[-1]["messages"]] == [
        "hello there",
        f"{SMALL} heard: hello there",
        "and again",
    ]


@pytest.mark.browser
def test_escape_stops_an_answer_and_the_server_hears_of_it(opened: Open, server: Server) -> None:
    tab = opened()
    server.script.delay = 0.01
    say(tab, "long", wait=False)
    tab.wait("document.querySelector('.part .body')?.innerText.includes('word9')")
    assert tab.eval("document.querySelector('.send').getAttribute('aria-label')") == "Stop"
    tab.press("Escape")
    tab.wait("document.querySelector('.part[data-state=stopped]')")
    [text] = answers(tab)
    assert text.startswith("word0 word1") and "Stopped" in tab.eval("document.querySelector('.notes').innerText")
    for _ in range(100):
        if server.script.left:
            break
        tab.eval("new Promise(done => setTimeout(done, 20))")
    assert server.script.left == 1
    tool(tab, "Go on writing")
    tab.wait("document.querySelector('.part[data-state=writing]')")
    tab.click(".send")
    tab.wait("document.querySelector('.part[data-state=stopped]')")
    begun = server.script.asked[-1]
    assert begun["continue_final_message"] is True and begun["messages"][-1]["content"].strip() == text
    assert answers(tab)[0].startswith(text)


@pytest.mark.browser
def test_an_edited_message_is_a_branch_and_branches_are_walked(opened: Open, server: Server) -> None:
    tab = opened()
    say(tab, "one")
    say(tab, "two")
    tool(tab, "Edit and send again", which=0)
    tab.wait("document.activeElement?.closest('.editor')")
    tab.eval("document.activeElement.select()")
    tab.type("uno")
    tab.press("Enter")
    tab.wait("document.querySelectorAll('.user').length === 1 && !document.querySelector('[aria-busy=true]')")
    assert users(tab) == ["uno"] and answers(tab) == [f"{SMALL} heard: uno"]
    assert [m["content"] for m in server.script.asked[-1]["messages"]] == ["uno"]
    assert tab.eval("document.querySelector('.user .branches').innerText") == "2/2"
    tool(tab, "The branch before")
    assert users(tab) == ["one", "two"] and len(answers(tab)) == 2
    tool(tab, "The branch after")
    assert users(tab) == ["uno"]
    # another answer is a branch of its own, and so is an answer that the user rewrites
    tool(tab, "Answer again")
    tab.wait(
        "document.querySelector('.part .branches')?.innerText === '2/2' && !document.querySelector('[aria-busy=true]')"
    )
    tool(tab, "Edit this answer")
    tab.wait("document.activeElement?.closest('.editor')")
    tab.eval("document.activeElement.select()")
    tab.type("as I would have it")
    tab.press("Enter")
    assert (
        answers(tab) == ["as I would have it"]
        and tab.eval("document.querySelector('.part .branches').innerText") == "3/3"
    )
    say(tab, "next")
    assert [m["content"] for m in server.script.asked[-1]["messages"]] == ["uno", "as I would have it", "next"]
    tab.press("ArrowUp")  # from an empty field: the last message
    tab.wait("document.activeElement?.value === 'next'")
    tab.press("Escape")
    assert users(tab) == ["uno", "next"]


@pytest.mark.browser
def test_models_are_chosen_in_the_tree(opened: Open, server: Server) -> None:
    tab = opened()
    tab.press("k", "Control")
    tab.wait("document.querySelector('dialog')")
    lines = tab.eval("[...document.querySelectorAll('.families')].map(e => e.innerText.replace(/\\s+/g, ' '))")
    assert lines == ["transformer", "gpt1 › gpt2", "gpt3 › llama", "mistral", "qwen", "bert", "roberta", "t5"]
    below = tab.eval(
        "[...document.querySelectorAll('.option')].find(e => e.innerText.includes('roberta')).closest('ul').parentElement.parentElement.parentElement.firstElementChild.innerText"
    )
    assert below == "bert"
    choose(tab, "mistral")
    say(tab, "hi")
    tab.press("k", "Control")
    choose(tab, "qwen")
    say(tab, "and you?")
    assert answers(tab) == [f"{OTHER} heard: hi", "qwen2.5-0.5b-instruct heard: and you?"]
    assert [m["content"] for m in server.script.asked[-1]["messages"]] == ["hi", f"{OTHER} heard: hi", "and you?"]
    tab.press("k", "Control")  # an encoder leads to its pane
    choose(tab, "bert encoder")
    tab.wait("document.querySelector('#pane .chip .name')?.innerText === 'bert-base-uncased'")


@pytest.mark.browser
def test_several_models_side_by_side(opened: Open, server: Server) -> None:
    tab = opened()
    tab.click(".beside")
    choose(tab, "mistral")
    say(tab, "first")
    assert answers(tab) == [f"{SMALL} heard: first", f"{OTHER} heard: first"]
    left, right = tab.eval(
        "[...document.querySelectorAll('.part')].map(e => { const r = e.getBoundingClientRect(); return [r.left, r.right, r.top]; })"
    )
    assert left[1] < right[0] and left[2] == right[2]
    say(tab, "second")
    histories = {asked["model"]: [m["content"] for m in asked["messages"]] for asked in server.script.asked[-2:]}
    assert histories == {name: ["first", f"{name} heard: first", "second"] for name in (SMALL, OTHER)}
    tool(tab, "Answer again", ".part")  # one column alone: a branch in which the other stays
    tab.wait(
        "document.querySelector('.round .tools .branches')?.innerText === '2/2' && !document.querySelector('[aria-busy=true]')"
    )
    assert server.script.asked[-1]["model"] == OTHER and len(server.script.asked) == 5 and len(answers(tab)) == 4
    server.script.delay = 0.02
    say(tab, "long", wait=False)
    tab.wait("document.querySelectorAll('[aria-busy=true] .body').length === 2")
    tool(tab, "Stop this answer", ".part", which=0)
    tab.wait(
        "document.querySelectorAll('.part[data-state=stopped]').length === 1 && document.querySelectorAll('[aria-busy=true]').length === 1"
    )
    tab.press("Escape")
    tab.wait("document.querySelectorAll('.part[data-state=stopped]').length === 2")
    tool(tab, f"Leave out {OTHER}")
    say(tab, "alone")
    assert answers(tab)[-1] == f"{SMALL} heard: alone" and len(server.script.asked) == 8


@pytest.mark.browser
def test_what_a_model_writes_is_never_run(opened: Open, server: Server) -> None:
    tab = opened()
    server.script.delay = 0.0
    say(tab, "hostile")
    tab.press("l", "Control", "Shift")  # the same as tokens
    say(tab, "hostile <img src=x onerror=window.hacked=11>")
    tab.eval("new Promise(done => setTimeout(done, 200))")
    assert tab.eval("window.hacked") is None
    assert (
        tab.eval(
            "document.querySelectorAll('#talk :is(script, img, iframe, style, object, embed, form, base, link, meta)').length"
        )
        == 0
    )
    assert (
        tab.eval(
            "[...document.querySelectorAll('#talk *')].flatMap(e => [...e.attributes]).filter(a => /^on|^style$/.test(a.name) && !a.ownerElement.matches('.token, .bar')).length"
        )
        == 0
    )
    links = tab.eval("[...document.querySelectorAll('#talk a')].map(e => [e.protocol, e.rel])")
    assert links and all(row == ["https:", "noopener noreferrer nofollow"] for row in links)
    assert "<script>window.hacked = 9</script>" in tab.eval("document.querySelector('.code code').textContent")
    assert tab.eval("document.querySelector('#heads').innerText").startswith("Today")


@pytest.mark.browser
def test_no_half_of_a_character_is_ever_shown(opened: Open, server: Server) -> None:
    tab = opened()
    tab.eval("""(() => { window.torn = 0; new MutationObserver(() => { torn += document.querySelector('#talk').textContent.includes('\\ufffd'); })
      .observe(document.body, {subtree: true, childList: true, characterData: true}); })()""")
    say(tab, "halves")
    tab.press("l", "Control", "Shift")
    say(tab, "halves")
    assert answers(tab) == [HALVES, HALVES] and tab.eval("document.querySelectorAll('.token').length") > 10
    assert tab.eval("torn") == 0
    say(tab, "ok 👋")
    assert server.script.asked[-1]["messages"][1]["content"] == HALVES


@pytest.mark.browser
def test_a_token_is_pointed_at_and_another_goes_on(opened: Open, server: Server) -> None:
    tab = opened()
    tab.click(".tool[aria-pressed]")
    say(tab, "hello")
    assert server.script.asked[-1]["logprobs"] is True and server.script.asked[-1]["top_logprobs"] == 5
    doubts = tab.eval("[...document.querySelectorAll('.token')].map(e => e.style.getPropertyValue('--doubt'))")
    assert doubts[:4] == ["3%", "38%", "12%", "66%"]
    x, y = tab.eval(
        "(() => { const r = document.querySelectorAll('.token')[3].getBoundingClientRect(); return [r.left + 3, r.top + 5]; })()"
    )
    tab.mouse("mouseMoved", x, y)
    tab.wait("!document.querySelector('#alternatives').hidden")
    rows = tab.eval(
        "[...document.querySelectorAll('#alternatives button')].map(e => [e.innerText.split('\\n'), e.disabled])"
    )
    assert [row[0][1] for row in rows] == ["34 %", "33 %", "13 %", "9.9 %", "6.6 %"]
    token = tab.eval("document.querySelectorAll('.token')[3].textContent")
    assert rows[0][0][0] == token.replace(" ", "␣") and rows[1] == [["␣the", "33 %"], False]
    before = tab.eval("[...document.querySelectorAll('.token')].slice(0, 3).map(e => e.textContent).join('')")
    tab.click("#alternatives button:nth-of-type(2)")
    tab.wait("document.querySelector('.branches')?.innerText === '2/2' && !document.querySelector('[aria-busy=true]')")
    asked = server.script.asked[-1]
    assert asked["continue_final_message"] and asked["messages"][-1] == {
        "role": "assistant",
        "content": before + " the",
    }
    whole = f"{before} the [gone on from {len(before) + 4} letters]"
    assert answers(tab) == [whole] and tab.eval("document.querySelector('.token.chosen').textContent") == " the"
    # by keys alone
    tab.eval("document.querySelector('.tokens').focus()")
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        tab.press(key)
    tab.wait("document.activeElement?.closest('#alternatives')")
    tab.press("Escape")
    assert tab.eval("document.activeElement.className") == "tokens"
    # what ends a text cannot be chosen
    tab.eval("document.querySelectorAll('.token')[5].click()")
    ends = tab.eval(
        "[...document.querySelectorAll('#alternatives button')].map(e => [e.innerText.split('\\n')[0], e.disabled])"
    )
    assert ["<|im_end|>", True] in ends


@pytest.mark.browser
def test_models_without_a_template_go_on_with_a_text(opened: Open, server: Server) -> None:
    tab = opened()
    tab.press("k", "Control")
    choose(tab, "gpt2")
    tab.press("l", "Control", "Shift")
    say(tab, "Once upon a time")
    asked = server.script.asked[-1]
    assert asked["prompt"] == "Once upon a time" and asked["logprobs"] == 5 and asked["max_tokens"] == 512
    [first] = answers(tab)
    say(tab, "The king")
    asked = server.script.asked[-1]
    assert asked["prompt"].replace("\n", "") == f"Once upon a time {first}The king".replace("time  ", "time ")
    tab.eval("document.querySelectorAll('.tokens')[1].querySelectorAll('.token')[1].click()")
    tab.click("#alternatives button:nth-of-type(2)")
    tab.wait("document.querySelector('.branches')?.innerText === '2/2' && !document.querySelector('[aria-busy=true]')")
    assert server.script.asked[-1]["prompt"].startswith(asked["prompt"])
    tab.click("#side .new")  # parts of characters come without their bytes here
    tab.wait("document.querySelector('.welcome')")
    say(tab, "halves")
    assert answers(tab) == [HALVES]
    tab.eval(
        "[...document.querySelectorAll('.token')].find(e => e.textContent.includes('日')).nextElementSibling.click()"
    )
    tab.click("#alternatives button:nth-of-type(2)")
    tab.wait("document.querySelector('.branches')?.innerText === '2/2' && !document.querySelector('[aria-busy=true]')")
    begun = server.script.asked[-1]["prompt"].removeprefix("halves")
    assert begun.startswith(HALVES[: HALVES.index("日") + 1]) and "\ufffd" not in begun
    say(tab, "x" * 900)  # near the end of the context tokens are counted
    assert server.script.asked[-1]["max_tokens"] < 1024


@pytest.mark.browser
def test_settings_reach_the_server(opened: Open, server: Server) -> None:
    tab = opened()
    tab.press(",", "Control")
    tab.wait("!document.querySelector('#options').hidden")
    fields = {
        "system": "Be brief.",
        "o-temperature": "0.5",
        "o-top_p": "0.9",
        "o-top_k": "40",
        "o-min_p": "0.05",
        "o-max_tokens": "7",
        "o-seed": "3",
        "o-stop": "END\n\\n\\n",
    }
    for name, value in fields.items():
        tab.eval(f"(e => {{ e.focus(); e.select(); }})(document.getElementById({name!r}))")
        tab.type(value)
    say(tab, "tell me more about all of this")
    asked = server.script.asked[-1]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {k: v for k, v in asked.items() if k not in ("model", "messages", "stream", "stream_options")} == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 7, "seed": 3, "stop": ["END", "\n\n"],
    }  # fmt: skip
    assert "limit" in tab.eval("document.querySelector('.notes').innerText")
    tab.eval("[...document.querySelectorAll('.presets button')].find(e => e.innerText === 'Exact').click()")
    say(tab, "again")
    assert server.script.asked[-1]["temperature"] == 0 and "top_p" not in server.script.asked[-1]
    tab.press("o", "Control", "Shift")  # a new conversation begins with the same
    tab.wait("document.querySelector('.welcome')")
    say(tab, "new")
    assert (
        server.script.asked[-1]["messages"][0]["content"] == "Be brief."
        and len(server.script.asked[-1]["messages"]) == 2
    )


@pytest.mark.browser
def test_errors_are_told_in_words(opened: Open, server: Server) -> None:
    tab = opened(trouble=True)  # a browser logs each status of 400 and more

    def told() -> str:
        return str(tab.wait("document.querySelector('.round:last-child .error span')?.innerText"))

    server.script.fail = [
        wrong(429, "32 requests wait", Retry_After="3"), wrong(400, "top_k must be 0 or more, not -1"), wrong(500, "")
    ]  # fmt: skip
    say(tab, "hello")
    assert told() == "The server is busy. Try again in 3 seconds."
    tab.click(".error button")
    tab.wait("document.querySelector('.branches')?.innerText === '2/2'")
    assert told() == "top_k must be 0 or more, not -1"
    tab.click(".error button")
    tab.wait("document.querySelector('.branches')?.innerText === '3/3'")
    assert told() == "The server answered with error 500."
    server.script.torn = True
    tab.click(".error button")
    tab.wait("document.querySelector('.branches')?.innerText === '4/4' && !document.querySelector('[aria-busy=true]')")
    assert told() == "The answer broke off: the connection was closed before its end." and answers(tab) == [
        f"{SMALL} heard: hello"
    ]
    tab.ask("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    tab.click(".error button")
    tab.wait("document.querySelector('.branches')?.innerText === '5/5'")
    assert told() == f"The server at 127.0.0.1:{server.port} cannot be reached. Is it still running?"


@pytest.mark.browser
def test_a_key_is_asked_for_once(browser: chromium.Chromium, server: Server) -> None:
    server.script.key = "sesame"
    tab = browser.tab("", ready=False)
    tab.ask("Page.navigate", url=server.address)
    for typed, shown in (("open", "missing or wrong"), ("sesame", None)):
        tab.wait("document.querySelector('dialog.key input')")
        tab.eval("document.querySelector('dialog.key input').focus()")
        tab.type(typed)
        tab.press("Enter")
        if shown:
            tab.wait("document.querySelector('dialog.key .error')")
            assert shown in tab.eval("document.querySelector('dialog.key .error').innerText")
    tab.wait("document.documentElement.dataset.ready === 'yes'")
    say(tab, "hi")
    assert answers(tab) == [f"{SMALL} heard: hi"]
    assert tab.eval("JSON.stringify(localStorage)").count("sesame") == 0
    tab.close()


@pytest.mark.browser
def test_panes_of_the_other_structures(opened: Open, server: Server) -> None:
    tab = opened("#/fill")
    tab.click(".sheet .main")
    tab.wait("document.querySelector('.gap')")
    assert server.script.asked[-1] == {
        "model": "bert-base-uncased",
        "text": "The capital of France is [MASK].",
        "top": 5,
    }
    assert tab.eval("document.querySelector('.result').innerText").strip() == "The capital of France is Paris."
    assert tab.eval("[...document.querySelectorAll('.gap li')].map(e => e.innerText.split('\\n'))")[0] == [
        "Paris",
        "71.0 %",
    ]
    tab.eval("location.hash = '#/embed'")
    tab.wait("document.querySelector('.sheet .main')?.innerText === 'Compare'")
    tab.click(".sheet .main")
    tab.wait("document.querySelector('.near')")
    cells = tab.eval(
        "[...document.querySelectorAll('.near tr')].slice(1).map(r => [...r.querySelectorAll('td')].map(e => e.innerText))"
    )
    assert len(cells) == 4 and all(
        cells[i][j] == cells[j][i] and (cells[i][j] == "") == (i == j) for i, j in product(range(4), range(4))
    )
    tab.eval("location.hash = '#/write'")
    tab.wait("document.querySelector('.sheet .main')?.innerText === 'Write'")
    tab.click(".sheet .main")
    tab.wait("document.querySelector('.out:not([aria-busy]) .result')?.innerText.includes('wunderbar')")
    assert server.script.asked[-1]["model"] == "t5-small"


@pytest.mark.browser
def test_conversations_go_out_and_come_in(opened: Open, server: Server) -> None:
    tab = opened()
    tab.click(".beside")
    choose(tab, "mistral")
    tab.press("l", "Control", "Shift")
    say(tab, 'echo <!-- stemma: user "You" -->\n# not a heading of ours')
    say(tab, "halves")
    code = """(async () => {
      const [{state}, ex, thread] = await Promise.all(['state', 'exchange', 'thread'].map(n => import(`/page/${n}.js`)));
      const conv = state.conv, texts = c => thread.path(c).map(n => n.text ?? n.parts.map(p => [p.model, p.text]));
      const [json] = ex.read('a.json', JSON.stringify(conv)), [marked] = ex.read('a.md', ex.markdown(conv));
      const wrong = [['a.json', '{'], ['a.json', '[1]'], ['a.json', '{"version": 1, "models": [], "nodes": {"a": {"id": "a", "parent": "b"}}}'],
        ['a.json', '{"version": 1, "models": [], "nodes": {"a": {"id": "a", "parent": "b", "role": "user", "text": ""}, "b": {"id": "b", "parent": "a", "role": "user", "text": ""}}}'],
        ['a.json', '{"version": 1, "models": [], "nodes": {"a": {"id": "a", "parent": null, "role": "user", "text": 5}}}'], ['a.md', '# mine'], ['a.json', '{"version": 9}']];
      return {texts: texts(conv), json: texts(json), marked: texts(marked), system: marked.system, tokens: json.nodes[thread.path(json)[1].id].parts[0].tokens.length,
        wrong: wrong.map(([name, text]) => { try { ex.read(name, text); return 'taken'; } catch (e) { return e.message; } })};
    })()"""
    found = tab.eval(code)
    assert found["json"] == found["texts"] == found["marked"] and len(found["texts"]) == 4 and found["tokens"] > 3
    assert len(set(found["wrong"])) == len(found["wrong"]) and "taken" not in found["wrong"]
    # by the page itself: saved, deleted, brought in
    exported = tab.eval(
        "import('/page/exchange.js').then(async ex => (await import('/page/state.js')).state.conv).then(JSON.stringify)"
    )
    tab.click("#heads .tool")
    tab.eval("[...document.querySelectorAll('.popup button')].find(e => e.innerText === 'Delete').click()")
    tab.wait("!document.querySelector('#heads a')")
    tab.eval(f"import('/page/exchange.js').then(ex => ex.take([new File([{json.dumps(exported)}], 'c.json')]))")
    tab.wait("document.querySelectorAll('.part').length === 4")
    assert len(tab.eval("[...document.querySelectorAll('#heads a')].map(e => e.innerText)")) == 1


@pytest.mark.browser
def test_the_list_of_conversations(opened: Open, server: Server) -> None:
    tab = opened()
    say(tab, "about rivers")
    tab.click("#side .new")
    tab.wait("document.querySelector('.welcome')")
    say(tab, "about hills")

    def heads() -> list[str]:
        return list(tab.eval("[...document.querySelectorAll('#heads a')].map(e => e.innerText)"))

    tab.wait("document.querySelectorAll('#heads a').length === 2")
    assert heads() == ["about hills", "about rivers"]
    tab.eval("document.querySelector('#side > input').focus()")
    tab.type("heard: about riv")  # in an answer
    tab.wait("document.querySelectorAll('#heads a').length === 1")
    tab.eval("document.activeElement.select()")
    tab.type("river")
    assert heads() == ["about rivers"]
    tab.click("#heads a")
    tab.wait("document.querySelector('.bubble')?.innerText === 'about rivers'")
    tab.click("#heads .tool")
    tab.eval("[...document.querySelectorAll('.popup button')].find(e => e.innerText === 'Rename').click()")
    tab.type("on the river")
    tab.press("Enter")
    tab.wait("document.querySelector('#heads a')?.innerText === 'on the river'")
    tab.click("#heads .tool")
    tab.eval("[...document.querySelectorAll('.popup button')].find(e => e.innerText === 'Delete').click()")
    tab.wait("document.querySelector('.toast button')")
    tab.click(".toast button")  # undone
    tab.wait("document.querySelector('.bubble')?.innerText === 'about rivers'")


CASES = {
    "a *b* **c** ***d*** _e_ __f__ ~~g~~ snake_case_name 2*3*4": "<p>a <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <em>e</em> <strong>f</strong> <del>g</del> snake_case_name 2<em>3</em>4</p>",
    "`a*b*` ``c`d`` \\*e\\*": "<p><code>a*b*</code> <code>c`d</code> *e*</p>",
    "one\ntwo": "<p>one<br>two</p>",
    "# A\n###### B\n#C": "<h3>A</h3><h6>B</h6><p>#C</p>",
    "- a\n  - b\n- c\n\ntext": "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul><p>text</p>",
    "3. a\n   more\n4. b": '<ol start="3"><li>a<br>more</li><li>b</li></ol>',
    "* a\n\n* b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "> a\n> - b": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>",
    "| a | b |\n|--:|---|\n| 1 | `x|y` |\n| 2 |": '<div><table><thead><tr><th class="end">a</th><th>b</th></tr></thead><tbody><tr><td class="end">1</td><td><code>x|y</code></td></tr><tr><td class="end">2</td><td></td></tr></tbody></table></div>',
    "```py\nx = 1  # one": "<figure>x = 1  # one</figure>",
    "~~~\n```\n~~~\nafter": "<figure>```</figure><p>after</p>",
    "[a](https://b.example/c_(d)) <https://e.example> http://f.example/g. javascript:h": '<p><a href="https://b.example/c_(d)">a</a> &lt;<a href="https://e.example">https://e.example</a>&gt; <a href="http://f.example/g">http://f.example/g</a>. javascript:h</p>',
    "[a](javascript:b) ![c](https://d.example/e.png)": '<p><span>a</span> <a href="https://d.example/e.png">c</a></p>',
    "**a *b": "<p>**a *b</p>",
    "\\(a_1 * b_1\\) and \\[x\\]": '<p><span class="formula">\\(a_1 * b_1\\)</span> and <span class="formula">\\[x\\]</span></p>',
    "<think>\nso *it* is\n</think>\n\nyes": "<details><summary>Thought</summary><p>so <em>it</em> is</p></details><p>yes</p>",
    "<think>so</think>yes": "<details><summary>Thought</summary><p>so</p></details><p>yes</p>",
    "<think>so": '<details open=""><summary>Thinking…</summary><p>so</p></details>',
    "a\n***\nb": "<p>a</p><hr><p>b</p>",
    "<b>&amp;</b>": "<p>&lt;b&gt;&amp;amp;&lt;/b&gt;</p>",
    "": "",
}


@pytest.mark.browser
def test_markdown(opened: Open) -> None:
    tab = opened()
    code = """import('/page/markdown.js').then(({Markdown}) => %s.map(text => {
      const box = document.createElement('div'); new Markdown(box).show(text);
      for (const figure of box.querySelectorAll('figure')) figure.replaceChildren(figure.querySelector('code').textContent);
      for (const e of box.querySelectorAll('*')) for (const name of ['dir', 'rel', 'target', 'tabindex', 'role', 'aria-label']) e.removeAttribute(name);
      for (const e of box.querySelectorAll('div, figure, details')) e.removeAttribute('class');
      return box.innerHTML; }))"""
    found = dict(zip(CASES, tab.eval(code % json.dumps(list(CASES))), strict=True))
    assert {text: html for text, html in found.items() if html != CASES[text]} == {}
    # a text that grows is the same at its end, and none takes for ever
    grown = """import('/page/markdown.js').then(({Markdown}) => { const text = %s, one = document.createElement('div'), two = document.createElement('div');
      const live = new Markdown(one); for (let i = 0; i <= text.length; i += 3) live.show(text.slice(0, i)); live.show(text); new Markdown(two).show(text); return one.innerHTML === two.innerHTML; })"""
    assert tab.eval(grown % json.dumps(page_server.MARKDOWN))
    for piece in (
        "*",
        "_",
        "**a ",
        "_a ",
        "`",
        "[",
        "[](",
        "![",
        "> ",
        "- ",
        "  - ",
        "|",
        "| a |\n|---|\n",
        "```\n",
        "\\",
        "http://",
        "<",
        "~~a",
        "1. ",
        "*a_",
        "[a](b",
        "``a`",
    ):
        text = piece * (100_000 // len(piece))
        assert (
            tab.eval(
                f"import('/page/markdown.js').then(({{Markdown}}) => {{ const box = document.createElement('div'); new Markdown(box).show({json.dumps(text)}); return box.childNodes.length; }})"
            )
            > 0
        ), piece


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_everything_fits_and_has_a_name(opened: Open, server: Server, size: tuple[int, int], dark: bool) -> None:
    phone = size[0] < 500
    tab = opened(size=size, phone=phone, dark=dark)
    server.script.delay = 0.0

    def fits(where: str) -> None:
        width = tab.eval("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
        assert width <= size[0], where
        small = tab.eval(
            "[...document.querySelectorAll('body *')].filter(e => e.checkVisibility({visibilityProperty: true}) && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && parseFloat(getComputedStyle(e).fontSize) < 11.5).map(e => e.className + e.textContent.slice(0, 40))"
        )
        assert small == [], where
        tree = tab.ask("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "link", "textbox", "searchbox", "slider", "spinbutton", "dialog", "menuitem", "region"}
        nameless = [
            n["role"]["value"]
            for n in tree
            if not n.get("ignored") and n["role"]["value"] in roles and not n.get("name", {}).get("value")
        ]
        assert nameless == [], where

    fits("welcome")
    say(tab, "what is it?")
    fits("an answer")
    ground = tab.eval("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(22, 23, 26)" if dark else "rgb(251, 250, 246)")
    tab.eval("document.querySelector('[aria-controls=options]').click()")
    fits("settings")
    tool(tab, "Close the settings")
    tab.eval("document.querySelector('.chip button').click()")
    fits("models")
    tool(tab, "Close", "dialog")
    tab.wait("!document.querySelector('dialog')")
    tab.eval("document.querySelector('.beside').click()")
    tab.wait("document.querySelector('dialog')")
    tab.eval("[...document.querySelectorAll('.option')].find(e => e.innerText.includes('mistral')).click()")
    tab.wait("document.querySelectorAll('.chip').length === 2")
    say(tab, "write a poem")
    fits("side by side")
    if phone:
        assert tab.eval("getComputedStyle(document.querySelector('#side')).visibility") == "hidden"
        tool(tab, "Conversations (Ctrl+B)")
        tab.wait("document.querySelector('#side').getBoundingClientRect().left === 0")
        fits("the side")
    for name in ("fill", "embed", "write"):
        tab.eval(f"location.hash = '#/{name}'")
        tab.wait("document.querySelector('#pane .main')")
        tab.eval("document.querySelector('#pane .main').click()")
        tab.wait("document.querySelector('.out:not([aria-busy]) > *')")
        fits(name)


@pytest.mark.browser
def test_keys_and_colours(opened: Open) -> None:
    tab = opened()
    tab.press("/", "Control")
    tab.wait("document.querySelector('dialog.keys')")
    tab.press("Escape")
    tab.wait("!document.querySelector('dialog.keys')")
    tab.press("b", "Control")
    assert tab.eval("getComputedStyle(document.querySelector('#side')).display") == "none"
    tab.press("b", "Control")
    for scheme in ("light", "dark", "light dark"):
        tab.click("#theme")
        assert tab.eval("getComputedStyle(document.documentElement).colorScheme") == scheme
    tab.click("#theme")
    tab.click("#theme")
    tab.ask("Page.reload")
    tab.wait("document.documentElement?.dataset.ready === 'yes'")
    assert tab.eval("getComputedStyle(document.documentElement).colorScheme") == "dark"
    tab.eval("document.querySelector('#message').focus()")
    tab.type("one")
    tab.press("Enter", "Shift")
    tab.type("two")
    assert tab.eval("document.querySelector('#message').value") == "one\ntwo"


@pytest.mark.browser
def test_a_long_conversation_stays_quick_and_its_elements_stay(opened: Open, server: Server) -> None:
    tab = opened()
    code = """(async () => {
      const [thread, ex] = await Promise.all(['thread', 'exchange'].map(n => import(`/page/${n}.js`)));
      const conv = thread.begin([MODEL]);
      for (let i = 0; i < 300; i += 1) thread.answer(conv, thread.ask(conv, `question ${i}`).id, [{model: MODEL, text: TEXT, state: 'done'}]);
      await ex.take([new File([JSON.stringify(conv)], 'long.json')]);
    })()"""
    tab.eval(code.replace("MODEL", json.dumps(SMALL)).replace("TEXT", json.dumps(page_server.MARKDOWN)))
    tab.wait("document.querySelectorAll('.part').length === 300")
    tab.eval("""(() => { window.first = document.querySelector('.part'); window.drawn = 0;
      addEventListener('keydown', () => { const began = performance.now(); requestAnimationFrame(() => requestAnimationFrame(() => { window.drawn = performance.now() - began; })); }, true); })()""")
    say(tab, "one more")
    assert tab.eval("document.querySelector('.part') === first") and answers(tab)[-1] == f"{SMALL} heard: one more"
    print(f"\na message behind 300 answers: {tab.eval('drawn'):.0f} ms until it is on the screen")


@pytest.mark.browser
def test_models_come_while_the_page_is_open(opened: Open, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(page_server.MODELS)
    monkeypatch.setattr(page_server, "MODELS", {})
    tab = opened()
    assert "No model here writes text" in tab.eval("document.querySelector('.welcome').innerText")
    page_server.MODELS.update({SMALL: known[SMALL]})
    tab.wait(f"document.querySelector('.chip .name')?.innerText === '{SMALL}'")
    page_server.MODELS.update(known)
    tab.press("k", "Control")
    tab.wait(f"document.querySelectorAll('.option').length === {len(known)}")
    tab.press("Escape")
    say(tab, "hi")
    assert answers(tab) == [f"{SMALL} heard: hi"]


@pytest.mark.browser
def test_the_page_and_the_real_server(browser: chromium.Chromium) -> None:
    serving = pytest.importorskip("serving")
    with serving.port(serving.server({"tiny": serving.decoder(), "plain": serving.decoder(None)})) as address:
        tab = browser.tab(f"{address}/")
        tab.eval(
            "localStorage.setItem('stemma.usual', JSON.stringify({system: 'short', params: {max_tokens: 40, seed: 3, top_k: 20, min_p: 0.01, stop: ['END']}}))"
        )
        tab.ask("Page.reload")
        tab.wait("document.documentElement?.dataset.ready === 'yes' && document.querySelector('.lineage')")
        say(tab, "a leaf")
        [first] = answers(tab)
        assert first and tab.eval("document.querySelector('.part').dataset.state") == "done"
        tool(tab, "Answer again")
        tab.wait(
            "document.querySelector('.branches')?.innerText === '2/2' && !document.querySelector('[aria-busy=true]')"
        )
        assert answers(tab) == [first], "the same seed"
        tool(tab, "Go on writing")
        tab.wait(
            "document.querySelector('.branches')?.innerText === '3/3' && !document.querySelector('[aria-busy=true]')"
        )
        assert tab.eval("document.querySelector('.part').dataset.state") == "done"
        tab.click(".beside")
        choose(tab, "plain")
        say(tab, "a branch")
        states = tab.eval(
            "[...document.querySelectorAll('.part')].map(e => [e.dataset.state, e.querySelector('.error')?.innerText ?? ''])"
        )
        assert states == [["done", ""]] * 3
        assert tab.trouble() == []
        tab.close()


@pytest.mark.browser
def test_two_tabs_of_one_user(opened: Open, browser: chromium.Chromium, server: Server) -> None:
    one = opened()
    say(one, "first")
    other = browser.tab(server.address + one.eval("location.hash"), beside=one)
    assert answers(other) == [f"{SMALL} heard: first"]
    say(other, "second")
    one.wait("document.querySelectorAll('.part').length === 2 && !document.querySelector('[aria-busy=true]')")
    assert users(one) == ["first", "second"]
    say(one, "third")
    other.wait("document.querySelectorAll('.part').length === 3")
    assert [m["content"] for m in server.script.asked[-1]["messages"] if m["role"] == "user"] == [
        "first",
        "second",
        "third",
    ]
    assert other.trouble() == []


@pytest.mark.browser
def test_an_answer_goes_on_while_another_conversation_is_open(opened: Open, server: Server) -> None:
    tab = opened()
    server.script.delay = 0.02
    say(tab, "echo " + "word " * 60, wait=False)
    tab.wait("document.querySelector('.part .body')?.innerText.includes('word')")
    tab.click("#side .new")
    tab.wait("document.querySelector('.welcome') && document.querySelector('#heads .writing')")
    server.script.delay = 0.0
    say(tab, "meanwhile")
    tab.wait("!document.querySelector('#heads .writing')")
    tab.eval("[...document.querySelectorAll('#heads a')].find(e => e.innerText.startsWith('echo')).click()")
    tab.wait("document.querySelector('.bubble')?.innerText.startsWith('echo')")
    assert answers(tab) == [" ".join(["word"] * 60)]
    # a page that is left while an answer is written has what was written by then
    server.script.delay = 0.03
    say(tab, "long", wait=False)
    tab.wait("document.querySelectorAll('.part')[1]?.innerText.includes('word90')", 30)
    tab.ask("Page.reload")
    tab.wait(
        "document.documentElement?.dataset.ready === 'yes' && document.querySelectorAll('.part')[1]?.dataset.state === 'stopped'"
    )
    assert answers(tab)[1].startswith("word0 word1 word2")
