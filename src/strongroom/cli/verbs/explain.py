"""explain CODE."""

from __future__ import annotations

from strongroom.cli.codes import Page, load_pages
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.errors import NotFound

_DEFAULT = Everywhere()
# Exit statuses of commands that did what they were asked to.
_NO_ERRORS = {
    "0": Page(
        "done",
        0,
        "Everything that was asked for is done.",
        "What was to be written is written, and was verified.",
        "Nothing.",
        "",
    ),
    "10": Page(
        "promise-missed",
        10,
        "The answer is correct, and a promise of a source is missed.",
        "The newest backup is older than `rpo`, or there is none.",
        "Run `strongroom backup SOURCE`; `strongroom status` says which source it is.",
        "",
    ),
}


def explain(code: str | None = None, /, *, everywhere: Everywhere = _DEFAULT) -> int:
    """Explain an error code or an exit status; without one, list them.

    Parameters
    ----------
    code
        An error's code, such as `key-refused`, or an exit status, such as 8.
    """
    output = Desk(everywhere).output
    pages = load_pages()
    known = {"143": "130"}.get(code or "", code)  # the same story, by the other signal
    chosen = [page for page in pages if code is None or known in (page.code, str(page.exit))]
    if code in _NO_ERRORS:
        page = _NO_ERRORS[code]
        output.document("explain", {"codes": [page.body()]})
        output.lines(_as_text(page))
        return 0
    if not chosen:
        names = ", ".join(page.code for page in pages)
        raise NotFound(
            f"No error has the code {code!r}; there are {names}.",
            do="`strongroom explain` lists them with their exit statuses.",
        )
    output.document("explain", {"codes": [page.body() for page in chosen]})
    if code is None:
        rows = [
            (page.code, str(page.exit), page.summary.split(". ")[0].rstrip(".")) for page in chosen
        ]
        output.table(("CODE", "EXIT", "MEANING"), rows, right=" r")
        return 0
    for number, page in enumerate(chosen):
        output.lines([""] * bool(number) + _as_text(page))
    return 0


def _as_text(page: Page) -> list[str]:
    return [
        f"{page.code} · exit status {page.exit}",
        "",
        page.summary,
        "",
        f"Means: {page.means}",
        f"To do: {page.do}",
        "",
        *page.text.strip().splitlines(),
    ]
