"""What the pages beside Home share: the project, the reader, and how an answer or an error becomes a page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from headrace.base.errors import DeadlineError, HeadraceError, OutsideError, RequestError, UnknownNameError
from headrace.base.http import Answer, Request, Response, nothing_answers
from headrace.console.figures import capitalise
from headrace.console.frame import NOTHING, Html, Sheet, command, put, respond, tag, waiting
from headrace.console.guard import FORM_TOKEN, Guarded, caller_of, form_token, needs
from headrace.console.reader import PATIENCE_SECONDS, Reader
from headrace.project import OpenProject

Page = Callable[[Request], Awaitable[Sheet]]


@dataclass(frozen=True)
class Desk:
    """What stands behind the pages of one project."""

    project: OpenProject
    reader: Reader
    changer: Reader
    """A process of its own for what changes something: it waits behind no question."""
    entropy: Callable[[int], bytes]

    def reads(self, page: Page) -> Guarded:
        """Returns the route of a page that every viewer may see."""
        return needs("viewer", partial(self._show, page))

    def acts(self, answer: Answer) -> Guarded:
        """Returns the route of a form with which an operator changes something."""
        return needs("operator", partial(self._act, answer))

    async def ask(self, request: Request, question: str, /, **arguments: Any) -> Any:
        """Returns what the reader answers; None if that takes longer than a page should.

        The page then says so and asks again by itself, and that request waits for the answer to the end.
        """
        patience = None if b"hx-request" in request.headers else PATIENCE_SECONDS
        try:
            return await self.reader.ask(question, patience=patience, **arguments)
        except TimeoutError:
            return None

    def show(self, request: Request, sheet: Sheet) -> Response:
        """Returns a page in its frame."""
        caller = caller_of(request)
        leave = _post("Log out", "/logout", request) if caller.session else NOTHING
        who = put(tag("span", caller.name), leave) if caller.name else NOTHING
        return respond(sheet, project=self.project.declared.name, nonce=self.entropy(12).hex(), who=who)

    async def _show(self, page: Page, request: Request) -> Response:
        try:
            sheet = await page(request)
        except HeadraceError as error:
            sheet = _explain(request, error)
        return self.show(request, sheet)

    async def _act(self, answer: Answer, request: Request) -> Response:
        try:
            return await answer(request)
        except HeadraceError as error:
            return self.show(request, _explain(request, error))
        finally:
            self.reader.forget()
            self.changer.forget()


def pending(request: Request, sheet: Sheet, text: str) -> Sheet:
    """Returns a page whose answer is on its way; without scripts it is loaded again after a moment."""
    again = Html("<noscript><p>Load this page again in a moment: it needs scripts to do so itself.</p></noscript>")
    return replace(sheet, body=put(waiting(request, text), again))


def lazily(place: str, part: str, text: str) -> Html:
    """Returns what stands where a part of a page comes later, from a page that has it under the id `part`."""
    asks = {"hx_get": place, "hx_trigger": "load", "hx_select": f"#{part}", "hx_swap": "outerHTML"}
    return tag("section", tag("p", text, class_="wait", role="status"), class_="panel", **asks)


def asking(place: str, label: str, field: Html, text: str) -> Html:
    """Returns the form that asks a page for something else; what it asks stands in the page's address."""
    asks = {"hx_get": place, "hx_target": "main", "hx_select": "main", "hx_swap": "outerHTML", "hx_push_url": "true"}
    parts = (tag("label", label, field, class_="grow"), tag("button", text))
    return tag("form", *parts, action=place, method="get", class_="line", **asks)


def segment(request: Request, place: str) -> str:
    """Returns what a path has behind `/place/`; raises RequestError 404 for none, or for more than one name."""
    name = request.path.removeprefix(f"/{place}/")
    if not name or name == request.path or "/" in name:
        raise RequestError(404, f"nothing answers {request.path!r}")
    return name


def by_first(pages: Mapping[str, Answer]) -> Answer:
    """Returns what answers /PLACE/NAME by its place."""

    async def answer(request: Request) -> Response:
        place = request.path.partition("/")[2].partition("/")[0]
        found = pages.get(place) if request.method == "GET" else None
        return await (found or nothing_answers)(request)

    return answer


def button(request: Request, text: str, action: str, **fields: str) -> Html:
    """Returns a form of one button, for those who may press it."""
    return _post(text, action, request, **fields) if caller_of(request).may("operator") else NOTHING


def _post(text: str, action: str, request: Request, **fields: str) -> Html:
    given = {**fields, FORM_TOKEN: form_token(request)}
    hidden = [tag("input", type="hidden", name=name, value=value) for name, value in given.items()]
    return tag("form", *hidden, tag("button", text, class_="quiet"), action=action, method="post", class_="line")


def _explain(request: Request, error: HeadraceError) -> Sheet:
    """Returns the page for when something is in the way, with what to do about it."""
    place = "/" + request.path.partition("/")[2].partition("/")[0]
    if isinstance(error, RequestError | UnknownNameError):
        status = error.status if isinstance(error, RequestError) else 404
        title = "Not found" if status == 404 else "Refused"
    elif isinstance(error, OutsideError):
        status, title = 503, "It took too long" if isinstance(error, DeadlineError) else "Away at present"
    else:
        status, title = 400, "This cannot be done"
    head, _, rest = capitalise(str(error)).partition("\n")
    body = tag("section", tag("p", head), command(rest) if rest else "", class_="panel empty")
    return Sheet(place, title, "This page could not be made; the reason stands below.", body, status=status)
