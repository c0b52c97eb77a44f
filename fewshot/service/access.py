"""Who may do what: a request's token against the scope that its route wants."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection, Request

from fewshot.errors import BusyError, ForbiddenError, TokenError, UnauthorizedError, UnforeseenError
from fewshot.service.limits import Backoff, RateLimit, network
from fewshot.service.routes import known_parameters
from fewshot.service.settings import Settings, is_loopback
from fewshot.service.tokens import Token, Tokens
from fewshot.service.web import is_of_page

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="A token that `fewshot token create NAME` made. Routes that change the index need the scope `write`; "
    "the others need `read` only where the service was started so.",
)
MOST_CHECKS_WAITING = 16
# The page is some fifteen small files, and a classroom behind one address opens it in one minute.
PAGE_RATE = 10
LEAST_PAGE_RATE_PER_MINUTE = 600
HEALTH = "/v1/health"

log = logging.getLogger(__name__)


class Access:
    """Counts each caller's requests, checks tokens, and lets who guesses wait.

    A token that has proved right passes at once. Any other costs a scrypt hash, in a thread, one at a time; whoever
    sends wrong ones waits ever longer before the next is looked at.

    Args:
        tokens: those of the index.
        settings: `require_read_token` and `rate_per_minute`.
    """

    def __init__(self, tokens: Tokens, settings: Settings) -> None:
        self._tokens = tokens
        self._settings = settings
        self._rate = RateLimit(settings.rate_per_minute)
        page_rate = max(PAGE_RATE * settings.rate_per_minute, LEAST_PAGE_RATE_PER_MINUTE)
        self._page_rate = RateLimit(page_rate if settings.rate_per_minute else 0)
        self._backoff = Backoff()
        self._hasher = ThreadPoolExecutor(1, "scrypt")
        self._n_checks = 0

    def close(self) -> None:
        """Stop the thread that checks."""
        self._hasher.shutdown(wait=True, cancel_futures=True)

    def count(self, connection: HTTPConnection) -> None:
        """Count a request, before anything else of it is looked at: a known token's, or else its address's.

        The files of the page and the probes of health have allowances of their own: neither who opens the page nor who
        asks too much makes an orchestrator believe that the service is dead.

        Raises:
            TooManyRequestsError: the caller asks too often.
        """
        address, word = _address(connection), _word(connection)
        path = connection.scope["path"].removeprefix(connection.scope.get("root_path", ""))
        if word is None and is_loopback(address):
            return
        if is_of_page(path):
            self._page_rate.count(network(address))
        elif path == HEALTH or path.startswith(f"{HEALTH}/"):
            self._rate.count(f"health {network(address)}")
        elif (token := self._known(word)) is not None:
            self._rate.count(f"token {token.token_id}")
        else:  # also with a word that is none, so that tokens cannot be tried by the million
            self._rate.count(network(address))

    async def check(self, request: Request, scope: str | None) -> Token | None:
        """The request's token, if it has one and may do what `scope` says (None: anything goes).

        Raises:
            UnauthorizedError: a token is needed and there is none, or it is none of this index.
            ForbiddenError: the token may not.
            TooManyRequestsError: the caller sent too many wrong tokens, or its token is new and asks too often.
            BusyError: too many tokens wait to be checked.
            UnforeseenError: the tokens cannot be read; only the log is told why, and where they are.
        """
        try:
            return await self._checked(request, scope)
        except TokenError as error:
            log.error("request %s: %s %s", request.scope.get("request_id", "?"), error.message, error.hint)
            raise UnforeseenError("the tokens of the index cannot be read.") from error

    async def _checked(self, request: Request, scope: str | None) -> Token | None:
        address, word = _address(request), _word(request)
        if word is None:
            if scope == "write" or (scope == "read" and self._settings.require_read_token):
                raise UnauthorizedError(f"this needs a token with the scope {scope!r}, and the request has none.")
            return None
        token = self._tokens.known(word)
        if token is None:
            self._backoff.check(address)
            try:
                token = await self._proved(word)
            except UnauthorizedError:
                self._backoff.mistake(address)
                raise
            self._rate.count(f"token {token.token_id}")  # one that was known has been counted already
        if scope is not None and not token.may(scope):
            raise ForbiddenError(
                f"the token {token.name!r} has the scope {', '.join(token.scopes)!r}; wanted {scope!r}.",
                hint=f"`fewshot token create NAME --scope {scope}` makes one that may.",
            )
        return token

    def _known(self, word: str | None) -> Token | None:
        try:
            return self._tokens.known(word) if word is not None else None
        except TokenError:
            return None  # the route that wants a token tells of it

    async def _proved(self, word: str) -> Token:
        if self._n_checks >= MOST_CHECKS_WAITING:
            raise BusyError(f"{self._n_checks} tokens are waiting to be checked.", retry_after_s=1)
        self._n_checks += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._hasher, self._tokens.check, word)
        finally:
            self._n_checks -= 1


def _address(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else "unknown"


def _word(connection: HTTPConnection) -> str | None:
    kind, _, word = connection.headers.get("authorization", "").partition(" ")
    return word.strip() if kind.lower() == "bearer" else None


Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


async def reading(request: Request, _token: Bearer) -> None:
    """Let a request pass that reads."""
    await _let_in(request, "read")


async def writing(request: Request, _token: Bearer) -> None:
    """Let a request pass that changes the index."""
    await _let_in(request, "write")


async def asking(request: Request, _token: Bearer) -> Token | None:
    """Let any request pass; its token, if it has one."""
    return await _let_in(request, None)


async def _let_in(request: Request, scope: str | None) -> Token | None:
    token: Token | None = await request.app.state.access.check(request, scope)
    await known_parameters(request)  # behind the token: who may not ask is told that, and nothing of the question
    return token


READ: Any = Depends(reading)
WRITE: Any = Depends(writing)
